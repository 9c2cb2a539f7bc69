"""XYZ, QM9's own kind included: its records parted, parsed and written."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import islice

import numpy as np
from rdkit import Chem

from moldiff.molecules.convert import explicit_atom, set_positions, to_rdkit
from moldiff.molecules.formats.record import MAX_ATOMS, Block, Fields, Lines, Part, Record, atomic_number, whole_number
from moldiff.molecules.molecule import InvalidMolecule, Molecule, Status

_ASSIGNMENT = re.compile(r"""([\w-]+)=("[^"]*"|'[^']*'|\S+)""")
_MATHEMATICA = ("*^", "e")  # which writes numbers like 9.06*^-01
_MAX_FRAME = 1_000_000  # atoms of a frame that is read at all

_QM9_VALUES = ("A", "B", "C", "mu", "alpha", "homo", "lumo", "gap", "r2", "zpve", "U0", "U", "H", "G", "cv")
"""Values in the comment of an XYZ file of QM9 (Ramakrishnan et al. 2014, doi:10.1038/sdata.2014.22, table 3)."""

_QM9_TAIL = 3  # lines behind the atoms of such a file: frequencies, SMILES and InChI


def xyz_record(number: int, comment: str, lines: list[str]) -> Record:
    """Elements and coordinates, one line per atom; the molecule has no bonds.

    The comment is its name, unless it holds the `key=value` pairs of extended XYZ: then `Properties` says where the
    elements and coordinates are, and the pairs are the data fields. Or it is the line of values of a file of QM9.
    """
    layout = None
    if values := _qm9_values(comment):
        name, fields = " ".join(comment.split()[:2]), Fields(values)
    else:
        fields = Fields.gathered((key, value.strip("\"'")) for key, value in _ASSIGNMENT.findall(comment))
        layout = fields.values.get("Properties")
        name = comment.strip() if layout is None else fields.values.get("name", fields.values.get("Name", ""))
        fields = Fields({k: v for k, v in fields.values.items() if k == "charge"}) if layout is None else fields
    columns = (0, 1) if layout is None else _columns(layout)
    if columns is None:
        reason = f"got Properties={str(layout)[:60]}, expected species:S:1 and pos:R:3 among them"
        return Record.rejected(number, name, reason)
    if len(lines) > MAX_ATOMS:
        return Record.rejected(number, name, f"{len(lines)} atoms, more than {MAX_ATOMS}")
    if not lines:
        return Record.rejected(number, name, "no atom")
    mol = Chem.RWMol()
    pos = np.zeros((len(lines), 3))
    for atom, line in enumerate(lines):
        if problem := _add_atom(mol, line, columns, pos[atom]):
            return Record(number, name, None, problem, fields.remarks)
    set_positions(mol, pos)
    mol.SetProp("_Name", name)
    Fields({k: v for k, v in fields.values.items() if k not in ("Properties", "Lattice", "pbc")}).set_on(mol)
    return Record(number, name, mol.GetMol(), remarks=fields.remarks)


def _qm9_values(comment: str) -> dict[str, str]:
    """The values in the comment of an XYZ file of QM9, empty for another."""
    tag, *words = comment.split() or [""]
    if tag != "gdb" or len(words) != 1 + len(_QM9_VALUES):
        return {}
    return {key: word.replace(*_MATHEMATICA) for key, word in zip(_QM9_VALUES, words[1:], strict=True)}


def _columns(properties: str) -> tuple[int, int] | None:
    """Where the element and the first coordinate are in a line of extended XYZ."""
    words = properties.split(":")
    starts, column = {}, 0
    for key, _, count in zip(words[::3], words[1::3], words[2::3], strict=False):
        starts[key] = column
        column += whole_number(count) or 1
    element = starts.get("species", starts.get("Z", starts.get("element")))
    return None if element is None or "pos" not in starts else (element, starts["pos"])


def _add_atom(mol: Chem.RWMol, line: str, columns: tuple[int, int], pos: np.ndarray) -> InvalidMolecule | None:
    """Add the atom of a line and fill in its position [3]; why that cannot be, else None."""
    words = line.split()
    element, first = columns
    number = atomic_number(words[element]) if len(words) > element else None
    try:
        pos[:] = [float(word.replace(*_MATHEMATICA)) for word in words[first : first + 3]]
    except ValueError:
        number = None
    index = mol.GetNumAtoms()
    if number is None:
        reason = f"atom {index}: got {' '.join(words)[:40]!r}, expected an element and three coordinates"
        return InvalidMolecule(Status.UNREADABLE, reason, index)
    if not np.isfinite(pos).all():
        return InvalidMolecule.at(index, words[element], Status.NON_FINITE, "coordinate not finite")
    mol.AddAtom(explicit_atom(number))
    return None


def xyz_parts(lines: Lines) -> Iterator[Part]:
    """The frames of an XYZ file."""
    stream = iter(lines)
    number, tail = 0, 0
    for line in stream:
        if not line.strip():
            continue
        if tail and whole_number(line.strip()) is None:
            tail -= 1
            continue
        number += 1
        count = whole_number(line.split()[0])
        if count is None or count > _MAX_FRAME:
            what = f"got {line.strip()[:40]!r}, expected a number of atoms"
            what = what if count is None else f"{count} atoms, more than {_MAX_FRAME}"
            yield Part.rejected(number, "", f"{what}; the rest of the file is not read")
            return
        frame = Block()
        for text in islice(stream, count + 1):
            frame.add(text)
        title = frame.line(0)
        if len(frame.lines) < count + 1:
            lost = "lines longer than those of atoms" if frame.full else f"truncated at record {number}"
            yield Part.rejected(number, title, lost)
        else:
            yield Part(number, xyz_record, (frame.lines[0], frame.lines[1:]), title)
        tail = _QM9_TAIL if _qm9_values(title) else 0


def xyz_text(molecule: Molecule, fields: Mapping[str, str]) -> str:
    """A frame of an XYZ file."""
    mol = to_rdkit(molecule, stereo=False)
    atoms = zip(mol.GetAtoms(), mol.GetConformer().GetPositions().tolist(), strict=True)
    lines = [f"{atom.GetSymbol():<2s} {x:14.8f} {y:14.8f} {z:14.8f}\n" for atom, (x, y, z) in atoms]
    return f"{len(lines)}\n{' '.join(molecule.name.split())}\n{''.join(lines)}"
