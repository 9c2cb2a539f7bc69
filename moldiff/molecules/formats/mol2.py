"""MOL2 records: atom types of Tripos, or of the force field GAFF, which are read by their elements."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rdkit import Chem, rdBase

from moldiff.molecules.convert import atoms, one_line
from moldiff.molecules.formats.record import (
    Block,
    Columns,
    Lines,
    Part,
    Record,
    atomic_number,
    finished,
    line_at,
    rejected,
    rejected_part,
    whole_number,
)

MOL2_START = "@<TRIPOS>MOLECULE"

_GAFF_TYPE = re.compile(r"(cl|br|[chnopsfi])[a-z0-9+]?")
"""Atom types of GAFF and GAFF2 (Wang et al. 2004, doi:10.1002/jcc.20035, table 1) begin with their element in lower
case, which none of Tripos does."""

_OTHER_TYPES = frozenset({"Du", "LP", "Any", "Hal", "Het", "Hev"})
"""Types of Tripos that are of no element."""

_ANIONIC = frozenset({"O.co2", "o"})
"""Types that a single bond leaves negative: a carboxylate's oxygen in Tripos' words and in GAFF's."""

_TYPE = 5
"""The column of the type in a line of an atom."""


def mol2_record(number: int, block: list[str]) -> Record:
    """The lines of a MOL2 record, from its `@<TRIPOS>MOLECULE` on.

    Atom types are those that Corina writes. Of GAFF's only the element is read; formal charges are what the bonds of an
    atom ask for, all hydrogens being there.
    """
    name = block[1].strip() if len(block) > 1 else ""
    problem = _mol2_problem(block)
    if problem is not None:
        return rejected(number, name, problem)
    with rdBase.BlockLogs():
        try:
            text = "\n".join(_by_elements(block)) + "\n"
            mol = Chem.MolFromMol2Block(text, sanitize=False, removeHs=False)
        except (RuntimeError, ValueError) as error:
            return rejected(number, name, _foreign_type(block) or f"malformed MOL2 block: {one_line(error)}")
    if mol is None:
        return rejected(number, name, _foreign_type(block) or "malformed MOL2 block")
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
    everything = atoms(mol)
    if any(atom.GetAtomicNum() == 1 for atom in everything) or len(everything) != len(types):
        return
    for atom, kind in zip(everything, types, strict=True):
        beside_positive = any(other.GetFormalCharge() > 0 for other in atom.GetNeighbors())
        if atom.GetFormalCharge() < 0 and kind not in _ANIONIC and not beside_positive:
            atom.SetFormalCharge(0)
        atom.SetNoImplicit(False)


def _mol2_problem(block: list[str]) -> str | None:
    """Why a MOL2 record cannot be whole, which RDKit takes for the end of its molecule."""
    words = block[2].split()[:2] if len(block) > 2 else []
    counts = [count for count in map(whole_number, words) if count is not None]
    if not counts or len(counts) < len(words):
        return "no counts line, so not a MOL2 block"
    sections: dict[str, int] = {}
    section = ""
    for line in block:
        if line.startswith("@<TRIPOS>"):
            section = line.strip()
        elif line.strip() and not line.startswith("#"):
            sections[section] = sections.get(section, 0) + 1
    expected = dict(zip(("@<TRIPOS>ATOM", "@<TRIPOS>BOND"), counts, strict=False))
    if expected["@<TRIPOS>ATOM"] == 0:
        return "no atom"
    short = [name for name, count in expected.items() if sections.get(name, 0) < count]
    return f"fewer lines in {short[0]} than the {expected[short[0]]} that its counts say" if short else None


def _by_elements(block: list[str]) -> list[str]:
    """The record with elements for types if all are of GAFF, else as it is."""
    lines = _atom_lines(block)
    found = {place: _GAFF_TYPE.fullmatch(words[_TYPE]) for place, words in lines.items()}
    if not found or not all(found.values()):
        return block
    changed = list(block)
    for place, match in found.items():
        assert match is not None
        words = lines[place]
        changed[place] = " ".join([*words[:_TYPE], match[1].capitalize(), *words[_TYPE + 1 :]])
    return changed


def _atom_lines(block: list[str]) -> dict[int, list[str]]:
    """The words of every whole line of an atom, by its place in the record."""
    lines: dict[int, list[str]] = {}
    inside = False
    for place, line in enumerate(block):
        if line.startswith("@<TRIPOS>"):
            inside = line.strip() == "@<TRIPOS>ATOM"
        elif inside and len(words := line.split()) > _TYPE and not line.startswith("#"):
            lines[place] = words
    return lines


def _foreign_type(block: list[str]) -> str | None:
    """The first atom type that is neither of Tripos nor, as all of them, of GAFF; None = there is none."""
    for atom, words in enumerate(_atom_lines(block).values()):
        element = words[_TYPE].partition(".")[0]
        if element not in _OTHER_TYPES and (element != element.capitalize() or atomic_number(element) is None):
            return f"atom {atom}: type {words[_TYPE][:20]!r} is none of Tripos (SYBYL); of others GAFF's are read"
    return None


def mol2_parts(lines: Lines, path: Path, columns: Columns) -> Iterator[Part]:
    """The records of a MOL2 file."""
    block, number = Block(), 0
    for line in lines:
        if line.startswith(MOL2_START):
            if number:
                yield Part(number, mol2_record, (block.lines,), line_at(block.lines, 1))
            block, number = Block(), number + 1
        if number:
            block.add(line)
        elif line.strip() and not line.startswith("#"):
            reason = f"got {line.strip()[:40]!r}, expected {MOL2_START}; the rest of the file is not read"
            yield rejected_part(1, "", reason)
            return
    if number:
        title = line_at(block.lines, 1)
        cut = rejected_part(number, title, f"truncated at record {number}")
        yield cut if lines.cut else Part(number, mol2_record, (block.lines,), title)
