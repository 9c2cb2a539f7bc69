"""MOL2 records: atom types of Tripos, or of the force field GAFF, which are read by their elements."""

import re
from collections.abc import Iterator

import numpy as np
from rdkit import Chem, rdBase

from moldiff.molecules.convert import atoms, has_hydrogen, one_line
from moldiff.molecules.formats.record import Block, Lines, Part, Record, atomic_number, finished, whole_number

_START, _ATOM, _BOND = "@<TRIPOS>MOLECULE", "@<TRIPOS>ATOM", "@<TRIPOS>BOND"

_GAFF_TYPE = re.compile(r"(cl|br|[chnopsfi])[a-z0-9+]?")
"""Atom types of GAFF and GAFF2 (Wang et al. 2004, doi:10.1002/jcc.20035, table 1): their element in lower case first,
which none of Tripos has."""

_OTHER_TYPES = frozenset({"Du", "LP", "Any", "Hal", "Het", "Hev"})  # types of Tripos that are of no element
_ANIONIC = frozenset({"O.co2", "o"})  # that a single bond leaves negative: a carboxylate's oxygen of Tripos and of GAFF
_TYPE = 5  # the column of the type in a line of an atom


def mol2_record(number: int, block: list[str]) -> Record:
    """The lines of a MOL2 record, from its `@<TRIPOS>MOLECULE` on.

    Atom types are those that Corina writes. Of GAFF's only the element is read; formal charges are what the bonds of an
    atom ask for, all hydrogens being there.
    """
    name = block[1].strip() if len(block) > 1 else ""
    if problem := _mol2_problem(block):
        return Record.rejected(number, name, problem)
    why = ""
    with rdBase.BlockLogs():
        try:
            mol = Chem.MolFromMol2Block("\n".join(_by_elements(block)) + "\n", sanitize=False, removeHs=False)
        except (RuntimeError, ValueError) as error:
            mol, why = None, f": {one_line(error)}"
    if mol is None:
        return Record.rejected(number, name, _foreign_type(block) or f"malformed MOL2 block{why}")
    if mol.GetNumConformers():
        conformer = mol.GetConformer()
        conformer.Set3D(mol.GetNumAtoms() == 1 or bool(np.ptp(conformer.GetPositions(), axis=0).max() > 0))
    for key in mol.GetPropNames():
        if key != "_Name":  # what RDKit notes of the file is no property of the molecule
            mol.ClearProp(key)
    _open_valences(mol, [words[_TYPE] for words in _atom_lines(block).values()])
    return finished(number, name, mol)


def _open_valences(mol: Chem.Mol, types: list[str]) -> None:
    """Let the atoms of a record without any hydrogen have implicit ones, in place.

    RDKit takes what is missing for negative charges. They stay where the type of the atom or a neighbour asks for one.
    """
    if has_hydrogen(mol) or mol.GetNumAtoms() != len(types):
        return
    for atom, kind in zip(atoms(mol), types, strict=True):
        beside_positive = any(other.GetFormalCharge() > 0 for other in atom.GetNeighbors())
        if atom.GetFormalCharge() < 0 and kind not in _ANIONIC and not beside_positive:
            atom.SetFormalCharge(0)
        atom.SetNoImplicit(False)


def _mol2_problem(block: list[str]) -> str | None:
    """Why a MOL2 record cannot be whole, which RDKit takes for the end of its molecule."""
    counts = list(map(whole_number, block[2].split()[:2])) if len(block) > 2 else []
    if not counts or None in counts:
        return "no counts line, so not a MOL2 block"
    if counts[0] == 0:
        return "no atom"
    for section, count in zip((_ATOM, _BOND), counts, strict=False):
        if len(_section(block, section)) < (count or 0):
            return f"fewer lines in {section} than the {count} that its counts say"
    return None


def _by_elements(block: list[str]) -> list[str]:
    """The record with elements for types if all are of GAFF, else as it is."""
    changed = list(block)
    for place, words in _atom_lines(block).items():
        if not (found := _GAFF_TYPE.fullmatch(words[_TYPE])):
            return block
        changed[place] = " ".join([*words[:_TYPE], found[1].capitalize(), *words[_TYPE + 1 :]])
    return changed


def _atom_lines(block: list[str]) -> dict[int, list[str]]:
    """The words of every whole line of an atom, by its place in the record."""
    lines = ((place, block[place].split()) for place in _section(block, _ATOM))
    return {place: words for place, words in lines if len(words) > _TYPE}


def _section(block: list[str], name: str) -> list[int]:
    """Places of the lines of a section, without comments and blank ones."""
    places, inside = [], False
    for place, line in enumerate(block):
        if line.startswith("@<TRIPOS>"):
            inside = line.strip() == name
        elif inside and line.strip() and not line.startswith("#"):
            places.append(place)
    return places


def _foreign_type(block: list[str]) -> str | None:
    """The first atom type that is neither of Tripos nor, as all of them, of GAFF; None = there is none."""
    for atom, words in enumerate(_atom_lines(block).values()):
        element = words[_TYPE].partition(".")[0]
        if element not in _OTHER_TYPES and (element != element.capitalize() or atomic_number(element) is None):
            return f"atom {atom}: type {words[_TYPE][:20]!r} is none of Tripos (SYBYL); of others GAFF's are read"
    return None


def mol2_parts(lines: Lines) -> Iterator[Part]:
    """The records of a MOL2 file."""
    block, number = Block(), 0
    for line in lines:
        if line.startswith(_START):
            if number:
                yield Part(number, mol2_record, (block.lines,), block.line(1))
            block, number = Block(), number + 1
        if number:
            block.add(line)
        elif line.strip() and not line.startswith("#"):
            reason = f"got {line.strip()[:40]!r}, expected {_START}; the rest of the file is not read"
            yield Part.rejected(1, "", reason)
            return
    if number and lines.cut:
        yield Part.rejected(number, block.line(1), f"truncated at record {number}")
    elif number:
        yield Part(number, mol2_record, (block.lines,), block.line(1))
