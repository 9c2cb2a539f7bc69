"""XYZ, extended XYZ and QM9's own kind included: its records parted, parsed and written."""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

import numpy as np
from rdkit import Chem

from moldiff.molecules.convert import explicit_atom, set_positions, to_rdkit
from moldiff.molecules.formats.record import (
    MAX_ATOMS,
    Block,
    Fields,
    Lines,
    Part,
    Record,
    atomic_number,
    is_number,
    whole_number,
)
from moldiff.molecules.molecule import InvalidMolecule, Molecule, Status

_QUOTED = r'"(?:[^"\\]|\\.)*"'
_ENTRY = re.compile(rf"""({_QUOTED}|[^\s="]+)(?:\s*=\s*({_QUOTED}|'[^']*'|\{{[^}}]*\}}|\[[^\]]*\]|\S+))?""")
_OF_CELL = ("Properties", "Lattice", "pbc")
_PLAIN = "species:S:1:pos:R:3"  # columns of an extended XYZ that does not say which it has
_PERIODIC = "periodic cell (Lattice), which is not used"
_MATHEMATICA = ("*^", "e")  # which writes numbers like 9.06*^-01
_MAX_COMMENT = 20_000  # characters that are looked at: quotes that do not end take the square of their number
_MAX_FRAME = 1_000_000  # atoms of a frame that is read at all

_QM9_VALUES = ("A", "B", "C", "mu", "alpha", "homo", "lumo", "gap", "r2", "zpve", "U0", "U", "H", "G", "cv")
"""Values in the comment of an XYZ file of QM9 (Ramakrishnan et al. 2014, doi:10.1038/sdata.2014.22, table 3)."""

_QM9_TAIL = 3  # lines behind the atoms of such a file: frequencies, SMILES and InChI


def xyz_record(number: int, comment: str, lines: list[str]) -> Record:
    """Elements and coordinates, one line per atom; the molecule has no bonds.

    The comment is its name, unless it is that of extended XYZ: has a `Properties`, `Lattice` or `pbc`, or nothing but
    `key=value` pairs. Then `Properties` says where the elements and coordinates are, and the pairs are the data fields.
    Or it is the line of values of a file of QM9.
    """
    layout, name, fields = None, comment.strip(), Fields({})
    if values := _qm9_values(comment):
        name, fields = " ".join(comment.split()[:2]), Fields(values)
    elif pairs := _pairs(comment):
        fields = Fields.gathered((key, "T" if value is None else value) for key, value in pairs)
        if None not in dict(pairs).values() or any(map(dict(pairs).get, _OF_CELL)):
            layout = fields.values.get("Properties", _PLAIN)
            name = fields.values.get("name", fields.values.get("Name", ""))
        else:
            fields = Fields({key: value for key, value in fields.values.items() if key == "charge"})
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
    Fields({key: value for key, value in fields.values.items() if key not in _OF_CELL}).set_on(mol)
    periodic = "Lattice" in fields.values and "T" in fields.values.get("pbc", "T").upper()
    return Record(number, name, mol.GetMol(), remarks=(*fields.remarks, *[_PERIODIC] * periodic))


def _pairs(comment: str) -> list[tuple[str, str | None]]:
    """The words of a comment, each with what it is said to be; None = nothing."""
    found = _ENTRY.findall(comment[:_MAX_COMMENT])
    return [(_unquoted(key), _unquoted(value) if value else None) for key, value in found]


def _unquoted(text: str) -> str:
    if len(text) > 1 and text[0] == text[-1] == '"':
        return re.sub(r"\\(.)", r"\1", text[1:-1])
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] == "'" else text


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
        x, y, z = (float(word.replace(*_MATHEMATICA)) for word in words[first : first + 3])
        pos[:] = x, y, z
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


def is_xyz(lines: Sequence[str]) -> bool:
    """Whether the first lines of a file are those of a frame: a number, a comment, and an atom if there is a third."""
    number, atom = (lines[k].split() if k < len(lines) else [] for k in (0, 2))
    if len(number) != 1 or whole_number(number[0]) is None:
        return False
    return len(lines) < 3 or (len(atom) >= 4 and sum(is_number(word.replace(*_MATHEMATICA)) for word in atom) >= 3)


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
    return _frame(molecule, " ".join(molecule.name.split()))


def extxyz_text(molecule: Molecule, fields: Mapping[str, str]) -> str:
    """A frame of an extended XYZ file, whose comment has name, total charge (e) and data fields."""
    said = {"name": " ".join(molecule.name.split()), "charge": str(int(molecule.formal_charge.sum())), **fields}
    pairs = ("=".join((re.sub(r"[^\w.-]", "_", key), _quoted(text))) for key, text in said.items())
    return _frame(molecule, " ".join((f'Properties={_PLAIN} pbc="F F F"', *pairs)))


def _quoted(text: str) -> str:
    return text if re.fullmatch(r"[\w.+-]+", text) else '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'


def _frame(molecule: Molecule, comment: str) -> str:
    mol = to_rdkit(molecule, stereo=False)
    atoms = zip(mol.GetAtoms(), mol.GetConformer().GetPositions().tolist(), strict=True)
    lines = [f"{atom.GetSymbol():<2s} {x:14.8f} {y:14.8f} {z:14.8f}\n" for atom, (x, y, z) in atoms]
    return f"{len(lines)}\n{comment}\n{''.join(lines)}"
