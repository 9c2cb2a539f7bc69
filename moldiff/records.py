"""One record of a file of molecules: parsed on its own, with a reason where that fails."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np
from rdkit import Chem, rdBase

from moldiff.batch import Molecule
from moldiff.chem import check, from_rdkit
from moldiff.results import InvalidMolecule, Status

_DATA_HEADER = re.compile(r">.*<([^<>]+)>")
END_OF_BLOCK = "M  END"


@dataclass(frozen=True)
class Record:
    """One record of a file.

    Attributes:
        number: position in the file, from 1.
        name: its title, "" without one.
        mol: the RDKit molecule, data fields as its properties, sanitised unless `problem` says why not; None when
            the record cannot be parsed.
        problem: why the record is no sound molecule; None = nothing wrong so far. Atoms are counted from 1, as in
            the file.
    """

    number: int
    name: str
    mol: Chem.Mol | None
    problem: InvalidMolecule | None = None

    def molecule(self) -> Molecule | InvalidMolecule:
        """The molecule if it has 3D coordinates and passes protocol P2 (`moldiff.chem.check`), else why not."""
        if self.problem is not None:
            return self.problem
        assert self.mol is not None
        return _checked(self.mol)

    def as_drawn(self) -> Molecule | InvalidMolecule:
        """The graph as it stands in the file, broken valences and loose fragments included."""
        if self.mol is None:
            return self.problem or InvalidMolecule(Status.UNREADABLE, "no molecule")
        return from_rdkit(self.mol)


def rejected(
    number: int, name: str, reason: str, status: Status = Status.UNREADABLE, atom: int | None = None
) -> Record:
    """A record that could not be parsed."""
    return Record(number, name, None, InvalidMolecule(status, reason, atom))


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
    # RDKit takes a flat molecule for a drawing even where the header says that it is 3D.
    if block[1][20:22] == "3D" and np.ptp(mol.GetConformer().GetPositions(), axis=0).max() > 0:
        mol.GetConformer().Set3D(True)
    for key, value in _data_fields(block[end:]).items():
        mol.SetProp(key, value)
    return _finished(number, name, mol)


def _data_fields(lines: list[str]) -> dict[str, str]:
    """Data fields of an SDF record; a line of spaces ends a value like an empty one does."""
    fields: dict[str, list[str]] = {}
    value: list[str] | None = None
    for line in lines:
        header = _DATA_HEADER.match(line)
        if header:
            value = fields.setdefault(header[1], [])
        elif not line.strip():
            value = None
        elif value is not None:
            value.append(line)
    return {key: "\n".join(text) for key, text in fields.items()}


def _why_unparsed(block: list[str]) -> InvalidMolecule:
    """A reason for a MOL block that RDKit does not parse (RDKit only logs its own)."""
    counts = block[3] if len(block) > 3 else ""
    if "V3000" in counts:
        return InvalidMolecule(Status.UNREADABLE, "malformed V3000 block")
    if not counts[:6].replace(" ", "").isdigit():
        return InvalidMolecule(Status.UNREADABLE, "no counts line, so not a MOL block")
    num_atoms, num_bonds = (int(text) if text.strip() else 0 for text in (counts[:3], counts[3:6]))
    if len(block) < 4 + num_atoms + num_bonds:
        reason = f"fewer lines than its {num_atoms} atoms and {num_bonds} bonds need"
        return InvalidMolecule(Status.UNREADABLE, reason)
    for atom, line in enumerate(block[4 : 4 + num_atoms]):
        if re.search(r"nan|inf", line[:30], re.IGNORECASE):
            return InvalidMolecule(Status.NON_FINITE, f"atom {atom + 1}: coordinate not finite", atom)
        if _atomic_number(symbol := line[31:34].strip()) is None:
            return InvalidMolecule(Status.UNREADABLE, f"atom {atom + 1}: unknown element {symbol!r}", atom)
    return InvalidMolecule(Status.UNREADABLE, "malformed MOL block")


def _atomic_number(symbol: str) -> int | None:
    if symbol.isdigit():
        return int(symbol) if 0 < int(symbol) < 119 else None
    with rdBase.BlockLogs():
        try:
            return int(Chem.GetPeriodicTable().GetAtomicNumber(symbol.capitalize()))
        except RuntimeError:
            return None


def _finished(number: int, name: str, mol: Chem.Mol) -> Record:
    """Sanitise; where that fails keep the molecule as drawn and say why, naming the atom if there is one."""
    mol.SetProp("_Name", name)
    sanitized = Chem.Mol(mol)
    try:
        with rdBase.BlockLogs():
            Chem.SanitizeMol(sanitized)
    except Chem.MolSanitizeException as error:
        drawn = _checked(mol) if mol.GetNumConformers() else None
        if isinstance(drawn, InvalidMolecule) and drawn.status != Status.UNREADABLE:
            return Record(number, name, mol, drawn)
        return Record(number, name, mol, InvalidMolecule(Status.UNSANITIZABLE, " ".join(str(error).split())))
    return Record(number, name, sanitized)


def _checked(mol: Chem.Mol) -> Molecule | InvalidMolecule:
    elements = [atom.GetAtomicNum() for atom in mol.GetAtoms()]
    if len(elements) > 1 and mol.GetNumBonds() == 0 and 1 in elements:
        return InvalidMolecule(Status.UNREADABLE, "no bonds, only elements and coordinates")
    molecule = from_rdkit(mol)
    if isinstance(molecule, InvalidMolecule):
        return _in_file_order(molecule, list(range(len(elements))))
    problem = check(molecule)
    if problem is None:
        return molecule
    if problem.status == Status.RADICAL and 1 not in elements:
        return InvalidMolecule(Status.RADICAL, "hydrogens are missing, expected explicit ones with coordinates")
    return _in_file_order(problem, [k for k, element in enumerate(elements) if element != 1])


def _in_file_order(problem: InvalidMolecule, order: list[int]) -> InvalidMolecule:
    """The same with the atom as the file counts it: in the file's order, and from 1 in the text."""
    if problem.atom is None or problem.atom >= len(order):
        return problem
    atom = order[problem.atom]
    return replace(problem, atom=atom, reason=re.sub(r"^atom \d+", f"atom {atom + 1}", problem.reason))


def xyz_record(number: int, name: str, atoms: list[list[str]]) -> Record:
    """Elements and coordinates, one list of words per atom; the molecule has no bonds."""
    mol = Chem.RWMol()
    pos = np.zeros((len(atoms), 3))
    for atom, words in enumerate(atoms):
        element = _atomic_number(words[0]) if words else None
        try:
            pos[atom] = [float(word) for word in words[1:4]]
        except ValueError:
            element = None
        if element is None:
            reason = f"atom {atom + 1}: got {' '.join(words)[:40]!r}, expected an element and three coordinates"
            return rejected(number, name, reason, atom=atom)
        if not np.isfinite(pos[atom]).all():
            reason = f"atom {atom + 1} ({words[0]}): coordinate not finite"
            return rejected(number, name, reason, Status.NON_FINITE, atom)
        new = Chem.Atom(element)
        new.SetNoImplicit(True)
        mol.AddAtom(new)
    if not atoms:
        return rejected(number, name, "no atom")
    conformer = Chem.Conformer(len(atoms))
    conformer.SetPositions(pos)
    mol.AddConformer(conformer)
    mol.SetProp("_Name", name)
    return Record(number, name, mol.GetMol())


def smiles_record(number: int, text: str, name: str) -> Record:
    """A SMILES: a molecule without coordinates."""
    with rdBase.BlockLogs():
        mol = Chem.MolFromSmiles(text, sanitize=False)
    if mol is None:
        return rejected(number, name, f"cannot read {text[:80]!r} as SMILES")
    return _finished(number, name, mol)
