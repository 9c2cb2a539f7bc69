"""Which atoms a user means: by their numbers, or by a SMARTS."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rdkit import Chem, rdBase

from moldiff.errors import MoldiffError
from moldiff.tasks.given import Given

Choice = int | str | Sequence[int]
"""Numbers of atoms as in the input, from 0 (3, [0, 1, 2], "0,1,2"), or a SMARTS."""

_NUMBERS = re.compile(r"\s*-?\d+([\s,]+-?\d+)*\s*")


def select(name: str, choice: Choice, source: Given) -> tuple[int, ...]:
    """Rows of the heavy atoms that are meant, in the input's order.

    Args:
        name: of the option, for messages.
        choice: see `Choice`.
        source: the molecule they belong to.

    Raises:
        MoldiffError: for a number that is no heavy atom or comes twice, a SMARTS that cannot be read, matches nowhere
            or at several places, or no atom at all.
    """
    if isinstance(choice, str) and not _NUMBERS.fullmatch(choice):
        return _by_smarts(name, choice, source)
    if isinstance(choice, str):
        numbers: Sequence[int] = [int(word) for word in re.split(r"[\s,]+", choice.strip())]
    else:
        numbers = [choice] if isinstance(choice, int) else list(choice)
    return _by_number(name, numbers, source)


def _by_number(name: str, numbers: Sequence[int], source: Given) -> tuple[int, ...]:
    if not numbers:
        raise MoldiffError(f"{name}: got no atom, expected at least one")
    rows = {int(number): row for row, number in enumerate(source.index)}
    for place, number in enumerate(numbers):
        if not isinstance(number, int) or isinstance(number, bool):
            raise MoldiffError(f"{name}: got {number!r}, expected numbers of atoms, or a SMARTS as text")
        if not 0 <= number < source.size:
            raise MoldiffError(f"{name}: got atom {number}, expected 0 to {source.size - 1}; atoms count from 0")
        if number not in rows:
            raise MoldiffError(f"{name}: atom {number} is a hydrogen or *, expected the heavy atom it is bonded to")
        if number in numbers[:place]:
            raise MoldiffError(f"{name}: got atom {number} ({source.symbol(rows[number])}) twice")
    return tuple(sorted(rows[number] for number in numbers))


def _by_smarts(name: str, smarts: str, source: Given) -> tuple[int, ...]:
    with rdBase.BlockLogs():
        pattern = Chem.MolFromSmarts(smarts)
    if pattern is None or pattern.GetNumAtoms() == 0:
        raise MoldiffError(f"{name}: got {smarts!r}, expected numbers of atoms, or a SMARTS")
    mol = Chem.Mol(source.mol)
    with rdBase.BlockLogs():
        mol.UpdatePropertyCache(strict=False)
        Chem.FastFindRings(mol)
        Chem.SetAromaticity(mol)
    heavy = [atom.GetIdx() for atom in mol.GetAtoms() if atom.GetAtomicNum() != 1]
    rows = {index: row for row, index in enumerate(heavy)}
    matches = mol.GetSubstructMatches(pattern, uniquify=True, maxMatches=100)
    found = list(dict.fromkeys(tuple(sorted(rows[index] for index in match if index in rows)) for match in matches))
    if not found or not found[0]:
        raise MoldiffError(f"{name}: {smarts} matches no heavy atom of {source.name}")
    if len(found) > 1:
        places = " or ".join(str([int(source.index[row]) for row in place]).replace(" ", "") for place in found[:3])
        raise MoldiffError(f"{name}: {smarts} matches {len(found)} places, expected one; say which: {places}")
    return found[0]
