"""One record of a file of molecules: parsed on its own, with a reason where that fails."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from rdkit import Chem, rdBase

from moldiff.batch import Molecule
from moldiff.chem import assign_stereo, atom_order, atoms, check, from_rdkit
from moldiff.fields import gathered, sdf_fields
from moldiff.radii import COVALENT
from moldiff.results import InvalidMolecule, Status

_ASSIGNMENT = re.compile(r"""([\w-]+)=("[^"]*"|'[^']*'|\S+)""")
_TOO_MANY_BONDS = re.compile(r"Explicit valence for atom # (\d+) (\w+), (\d+), is greater than permitted")
_MAX_SMILES = 100_000
"""Characters of a SMILES; what is longer is no molecule, and RDKit would take gigabytes to find that out."""

MAX_ATOMS = 2_500
"""Atoms of a record. Memory grows with their square and RDKit's time with their third power: at this number both are a
few seconds and some 100 MB, whatever the graph, and so it is a limit on both."""

_SHORTEST, _LONGEST_MULTIPLE = 0.72, 0.96
"""Times the sum of covalent radii: C#C has 0.79, an aromatic bond 0.92, and a drawing's bonds are all of one length."""

_XYZ_COLUMNS = (0, 1)
_QM9_VALUES = ("A", "B", "C", "mu", "alpha", "homo", "lumo", "gap", "r2", "zpve", "U0", "U", "H", "G", "cv")
QM9_TAIL = 3
"""Lines behind the atoms of an XYZ file of QM9: frequencies, SMILES and InChI."""

_Result = TypeVar("_Result")

END_OF_BLOCK = "M  END"
END_OF_RECORD = "$$$$"
MOL2_START = "@<TRIPOS>MOLECULE"


@dataclass(frozen=True)
class Record:
    """One record of a file.

    Attributes:
        number: position in the file, from 1.
        name: its title, "" without one.
        mol: the RDKit molecule, data fields as its properties, sanitised unless `problem` says why not; None when
            the record cannot be parsed.
        problem: why the record is no sound molecule; None = nothing wrong so far. Atoms count from 0, in the
            order of the file.
        remarks: what is odd about its data fields (`moldiff.fields`).
    """

    number: int
    name: str
    mol: Chem.Mol | None
    problem: InvalidMolecule | None = None
    remarks: tuple[str, ...] = ()

    def molecule(self) -> Molecule | InvalidMolecule:
        """The molecule if it has 3D coordinates and passes protocol P2 (`moldiff.chem.check`), else why not."""
        if self.problem is not None:
            return self.problem
        assert self.mol is not None
        return guarded(_checked, self.mol)

    def as_drawn(self) -> Molecule | InvalidMolecule:
        """The graph as it stands in the file, broken valences and loose fragments included."""
        if self.mol is None:
            return self.problem or InvalidMolecule(Status.UNREADABLE, "no molecule")
        return guarded(from_rdkit, self.mol)


def guarded(function: Callable[[Chem.Mol], _Result], mol: Chem.Mol) -> _Result | InvalidMolecule:
    """What a function makes of a molecule; whatever goes wrong is why there is none, and no other record's concern."""
    try:
        return function(mol)
    except MemoryError:
        raise
    except Exception as error:
        return unexpected(error)


def total_charge(mol: Chem.Mol) -> int:
    """The charge (e) that a data field gives, else the sum of the charges on atoms."""
    for key in ("charge", "total_charge", "net_charge"):
        if mol.HasProp(key):
            try:
                return int(float(mol.GetProp(key)))
            except (ValueError, OverflowError):
                continue
    return int(Chem.GetFormalCharge(mol))


def whole_number(text: str) -> int | None:
    """A number without sign, of which the first 12 digits are read; None for any other text."""
    return int(text[:12]) if text.isdecimal() else None


def rejected(
    number: int, name: str, reason: str, status: Status = Status.UNREADABLE, atom: int | None = None
) -> Record:
    """A record that could not be parsed."""
    return Record(number, name, None, InvalidMolecule(status, reason, atom))


def unexpected(error: Exception) -> InvalidMolecule:
    """What is said of a record with which something went wrong that nobody had thought of."""
    return InvalidMolecule(Status.UNREADABLE, f"unexpected {type(error).__name__}: {one_line(error)[:200]}")


def sdf_record(number: int, block: list[str]) -> Record:
    """The lines of an SDF record: a MOL block (V2000 or V3000) and data fields."""
    name = block[0].strip() if block else ""
    end = next((k + 1 for k, line in enumerate(block) if line.startswith(END_OF_BLOCK)), len(block))
    with rdBase.BlockLogs():
        mol = Chem.MolFromMolBlock("\n".join(block[:end]) + "\n", sanitize=False, removeHs=False)
    if mol is None:
        return Record(number, name, None, _why_unparsed(block[:end]))
    if mol.GetNumAtoms() == 0:
        return rejected(number, name, "no atom")
    # RDKit takes a flat molecule for a drawing even where the header says that it is 3D; see `_is_drawing`.
    if block[1][20:22] == "3D" and np.ptp(mol.GetConformer().GetPositions(), axis=0).max() > 0:
        mol.GetConformer().Set3D(True)
    fields = sdf_fields(block[end:])
    _set_fields(mol, fields.values)
    return replace(finished(number, name, mol), remarks=fields.remarks)


def _why_unparsed(block: list[str]) -> InvalidMolecule:
    """A reason for a MOL block that RDKit does not parse (RDKit only logs its own)."""
    counts = block[3] if len(block) > 3 else ""
    if "V3000" in counts:
        return InvalidMolecule(Status.UNREADABLE, "malformed V3000 block")
    if not counts[:6].replace(" ", "").isdecimal():
        return InvalidMolecule(Status.UNREADABLE, "no counts line, so not a MOL block")
    num_atoms, num_bonds = (whole_number(text.replace(" ", "")) or 0 for text in (counts[:3], counts[3:6]))
    if len(block) < 4 + num_atoms + num_bonds:
        reason = f"fewer lines than its {num_atoms} atoms and {num_bonds} bonds need"
        return InvalidMolecule(Status.UNREADABLE, reason)
    for atom, line in enumerate(block[4 : 4 + num_atoms]):
        symbol = line[31:34].strip()
        if re.search(r"nan|inf", line[:30], re.IGNORECASE):
            return InvalidMolecule(Status.NON_FINITE, f"atom {atom} ({symbol}): coordinate not finite", atom)
        if atomic_number(symbol) is None:
            return InvalidMolecule(Status.UNREADABLE, f"atom {atom}: unknown element {symbol!r}", atom)
    return InvalidMolecule(Status.UNREADABLE, "RDKit cannot read this MOL block")


def atomic_number(symbol: str) -> int | None:
    """The atomic number of a symbol or of its own digits; None for any other text."""
    number = whole_number(symbol)
    if number is not None:
        return number if 0 < number < 119 else None
    with rdBase.BlockLogs():
        try:
            return int(Chem.GetPeriodicTable().GetAtomicNumber(symbol.capitalize()))
        except RuntimeError:
            return None


def finished(number: int, name: str, mol: Chem.Mol) -> Record:
    """Sanitise; where that fails keep the molecule as drawn and say why, naming the atom if there is one.

    Sanitising includes RDKit's clean-up, so that a nitro group drawn with two double bonds becomes charge-separated;
    stereo is marked as the record means it (`moldiff.chem.assign_stereo`).
    """
    mol.SetProp("_Name", name)
    if mol.GetNumAtoms() > MAX_ATOMS:
        return rejected(number, name, f"{mol.GetNumAtoms()} atoms, more than {MAX_ATOMS}")
    sanitized = Chem.Mol(mol)
    try:
        with rdBase.BlockLogs():
            Chem.SanitizeMol(sanitized)
        assign_stereo(sanitized)
    except Chem.KekulizeException as error:
        advice = "draw single and double bonds, or the hydrogen of the ring atom that has one"
        return Record(number, name, mol, InvalidMolecule(Status.UNSANITIZABLE, f"{one_line(error)}: {advice}"))
    except Chem.MolSanitizeException as error:
        drawn = _checked(mol) if mol.GetNumConformers() else None
        if isinstance(drawn, InvalidMolecule) and drawn.status != Status.UNREADABLE:
            return Record(number, name, mol, drawn)
        return Record(number, name, mol, _why_unsanitized(error))
    except (RuntimeError, ValueError) as error:  # valences beyond what RDKit thinks of
        reason = f"RDKit cannot work with it: {str(error).strip().splitlines()[0]}"
        return rejected(number, name, reason, Status.UNSANITIZABLE)
    if sanitized.GetNumConformers() and _is_drawing(sanitized):
        sanitized.GetConformer().Set3D(False)
    return Record(number, name, sanitized)


def _is_drawing(mol: Chem.Mol) -> bool:
    """Whether coordinates that may say they are 3D are those of a drawing: flat, though the molecule cannot be.

    A molecule with all its hydrogens, which is one with a C-H, is flat only where no atom has four neighbours. One that
    lacks some may have its other atoms in a plane; then it is a drawing if an atom with four neighbours is within its
    chain or ring, or if its bonds are all as long as single ones.
    """
    pos = mol.GetConformer().GetPositions()
    if mol.GetNumAtoms() < 3 or np.ptp(pos[:, 2]) > 0:
        return False
    with_hydrogens = [other for atom in atoms(mol) if atom.GetAtomicNum() == 1 for other in atom.GetNeighbors()]
    complete = any(atom.GetAtomicNum() == 6 for atom in with_hydrogens)
    closed = {atom.GetIdx() for atom in (atoms(mol) if complete else with_hydrogens)}
    open_atoms = [atom for atom in atoms(mol) if atom.GetIdx() not in closed and atom.GetTotalNumHs()]
    tetrahedral = [atom for atom in open_atoms if atom.GetTotalDegree() >= 4]
    if any(atom.GetDegree() >= 4 for atom in atoms(mol)) or any(atom.GetDegree() >= 2 for atom in tetrahedral):
        return True
    return bool(open_atoms) and not all(_has_length_of_bond(bond, pos) for bond in mol.GetBonds())


def _has_length_of_bond(bond: Chem.Bond, pos: np.ndarray) -> bool:
    """Whether a bond is as long as one of its order can be, measured by the covalent radii of its atoms."""
    ends = bond.GetBeginAtom(), bond.GetEndAtom()
    length = np.linalg.norm(pos[ends[0].GetIdx()] - pos[ends[1].GetIdx()])
    share = float(length / sum(COVALENT[min(atom.GetAtomicNum(), len(COVALENT) - 1)] for atom in ends))
    multiple = bond.GetBondType() != Chem.BondType.SINGLE
    return share >= _SHORTEST and (not multiple or share <= _LONGEST_MULTIPLE)


def _why_unsanitized(error: Exception) -> InvalidMolecule:
    """RDKit's reason; where it names an atom, in the words of all other reasons."""
    text = one_line(error)
    found = _TOO_MANY_BONDS.match(text)
    if found is None:
        return InvalidMolecule(Status.UNSANITIZABLE, text)
    atom, symbol, valence = int(found[1]), found[2], found[3]
    reason = f"atom {atom} ({symbol}): valence {valence} is greater than permitted"
    return InvalidMolecule(Status.UNSANITIZABLE, reason, atom)


def _checked(mol: Chem.Mol) -> Molecule | InvalidMolecule:
    elements = [atom.GetAtomicNum() for atom in mol.GetAtoms()]
    if len(elements) > 1 and mol.GetNumBonds() == 0 and 1 in elements:
        return InvalidMolecule(Status.UNREADABLE, "no bonds, only elements and coordinates")
    molecule = from_rdkit(mol)
    if isinstance(molecule, InvalidMolecule):
        return molecule
    problem = check(molecule)
    if problem is None:
        return molecule
    if problem.status == Status.RADICAL and 1 not in elements:
        return InvalidMolecule(Status.RADICAL, "hydrogens are missing, expected explicit ones with coordinates")
    return problem.renumbered(atom_order(mol))


def xyz_record(number: int, comment: str, lines: list[str]) -> Record:
    """Elements and coordinates, one line per atom; the molecule has no bonds.

    The comment is its name, unless it holds the `key=value` pairs of extended XYZ: then `Properties` says where the
    elements and coordinates are, and the pairs are the data fields. Or it is the line of values of a file of QM9.
    """
    if values := qm9_values(comment):
        title = " ".join(comment.split()[:2])
        return _xyz_record(number, title, _XYZ_COLUMNS, lines, values)
    pairs, remarks = gathered((key, value.strip("\"'")) for key, value in _ASSIGNMENT.findall(comment))
    extended = "Properties" in pairs
    fields = pairs if extended else {key: pairs[key] for key in ("charge",) if key in pairs}
    name = fields.get("name", fields.get("Name", "")) if extended else comment.strip()
    columns = _xyz_columns(fields["Properties"]) if extended else _XYZ_COLUMNS
    if columns is None:
        reason = f"got Properties={fields['Properties'][:60]}, expected species:S:1 and pos:R:3 among them"
        return rejected(number, name, reason)
    data = {key: value for key, value in fields.items() if key not in ("Properties", "Lattice", "pbc")}
    record = _xyz_record(number, name, columns, lines, data)
    return replace(record, remarks=remarks if extended else ())


def qm9_values(comment: str) -> dict[str, str]:
    """The values in the comment of an XYZ file of QM9, empty for another.

    Names and order are those of Ramakrishnan et al. 2014 (doi:10.1038/sdata.2014.22), table 3.
    """
    tag, *words = comment.split() or [""]
    if tag != "gdb" or len(words) != 1 + len(_QM9_VALUES):
        return {}
    return {key: _plain_exponent(word) for key, word in zip(_QM9_VALUES, words[1:], strict=True)}


def _plain_exponent(word: str) -> str:
    """A number as Mathematica writes it, such as 9.06*^-01, in the usual way."""
    return word.replace("*^", "e")


def _xyz_record(
    number: int, name: str, columns: tuple[int, int], lines: list[str], fields: Mapping[str, str]
) -> Record:
    """The record of a frame whose comment is understood; `columns` are those of the element and of x."""
    if len(lines) > MAX_ATOMS:
        return rejected(number, name, f"{len(lines)} atoms, more than {MAX_ATOMS}")
    mol = Chem.RWMol()
    pos = np.zeros((len(lines), 3))
    for atom, line in enumerate(lines):
        problem = _add_xyz_atom(mol, line, columns, pos[atom])
        if problem is not None:
            status = Status.NON_FINITE if problem.endswith("not finite") else Status.UNREADABLE
            return rejected(number, name, f"atom {atom}{problem}", status, atom)
    if not lines:
        return rejected(number, name, "no atom")
    conformer = Chem.Conformer(len(lines))
    conformer.SetPositions(pos)
    mol.AddConformer(conformer)
    mol.SetProp("_Name", name)
    _set_fields(mol, fields)
    return Record(number, name, mol.GetMol())


def _xyz_columns(properties: str) -> tuple[int, int] | None:
    """Where the element and the first coordinate are in a line of extended XYZ."""
    words = properties.split(":")
    starts, column = {}, 0
    for key, _, count in zip(words[::3], words[1::3], words[2::3], strict=False):
        starts[key] = column
        column += whole_number(count) or 1
    element = starts.get("species", starts.get("Z", starts.get("element")))
    return None if element is None or "pos" not in starts else (element, starts["pos"])


def _add_xyz_atom(mol: Chem.RWMol, line: str, columns: tuple[int, int], pos: np.ndarray) -> str | None:
    """Add the atom of a line and fill in its position [3]; why that cannot be, else None."""
    words = line.split()
    element, first = columns
    number = atomic_number(words[element]) if len(words) > element else None
    try:
        pos[:] = [float(_plain_exponent(word)) for word in words[first : first + 3]]
    except ValueError:
        number = None
    if number is None:
        return f": got {' '.join(words)[:40]!r}, expected an element and three coordinates"
    if not np.isfinite(pos).all():
        return f" ({words[element]}): coordinate not finite"
    atom = Chem.Atom(number)
    atom.SetNoImplicit(True)
    mol.AddAtom(atom)
    return None


def is_inchi(text: str) -> bool:
    """Whether a text is meant to be an InChI."""
    return text.startswith("InChI=")


def parsed(text: str) -> Chem.Mol | None:
    """The molecule of a SMILES or an InChI, not sanitised; None for any other text."""
    with rdBase.BlockLogs():
        mol: Chem.Mol | None = (
            Chem.MolFromInchi(text, sanitize=False, removeHs=False)  # type: ignore[no-untyped-call]
            if is_inchi(text)
            else Chem.MolFromSmiles(text, sanitize=False)
        )
    return mol


def smiles_record(
    number: int, text: str, name: str, fields: Mapping[str, str], remarks: tuple[str, ...] = ()
) -> Record:
    """A SMILES or InChI with data fields, and what is odd about these: a molecule without coordinates."""
    if not text:
        return rejected(number, name, "no SMILES")
    if len(text) > _MAX_SMILES:
        return rejected(number, name, f"SMILES of {len(text)} characters, more than {_MAX_SMILES}")
    mol = parsed(text)
    if mol is None or mol.GetNumAtoms() == 0:
        return rejected(number, name, f"cannot read {text[:80]!r} as {'InChI' if is_inchi(text) else 'SMILES'}")
    _set_fields(mol, fields)
    return replace(finished(number, name, mol), remarks=remarks)


def _set_fields(mol: Chem.Mol, fields: Mapping[str, str]) -> None:
    for key, value in fields.items():
        mol.SetProp(key, value)


def one_line(error: Exception) -> str:
    """The message of an error without its line ends."""
    return " ".join(str(error).split())
