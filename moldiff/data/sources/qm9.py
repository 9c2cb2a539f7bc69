"""QM9 from the package `qm9pack`: 130,831 molecules of up to nine heavy atoms with B3LYP geometries and properties.

Bonds are perceived from the coordinates and get their orders and charges from the SMILES that the set lists; the
often-used gdb9.sdf has wrong ones in about 30,000 molecules.
"""

import csv
import importlib.metadata
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem import rdDetermineBonds

from moldiff.data.sources import SourceRecord
from moldiff.errors import MoldiffError
from moldiff.molecules.convert import from_rdkit, set_positions
from moldiff.molecules.identity import both_keys
from moldiff.molecules.molecule import InvalidMolecule, Molecule, Status, status_of
from moldiff.molecules.validity import check
from moldiff.processes import Failure, stream_limited

PROPERTIES = {
    "mu": ("Dipole_debye", "D"),
    "alpha": ("Polarizability_bohr3", "Bohr^3"),
    "homo": ("HOMO_au", "Hartree"),
    "lumo": ("LUMO_au", "Hartree"),
    "gap": ("HOMO_LUMO_gap_au", "Hartree"),
    "cv": ("Heatcapacity_Cv_cal_mol_K", "cal/(mol K)"),
}
"""Property -> column of the package's tables and unit."""

NUM_RECORDS = 130_831
_NUM_TRAIN = 100_000
_TIME_LIMIT = 60.0  # seconds of processor time a record
_COVALENT_FACTORS = (1.15, 1.1, 1.2, 1.3)
_NUMBERS = re.compile(r"[^\[\],\s]+")
_ELEMENTS = re.compile(r"[A-Z][a-z]?")
_Row = dict[str, str]


@dataclass(kw_only=True, eq=False)
class QM9:
    """The whole characterised QM9 as a source for `moldiff.data.prepare.prepare`.

    Raises MoldiffError when the package `qm9pack` is not installed.
    """

    limit: int | None = None  # read only the first `limit` records; None = all
    num_workers: int = 2  # processes that build molecules

    def __post_init__(self) -> None:
        self.name, self.properties = "qm9", {name: unit for name, (_, unit) in PROPERTIES.items()}
        self._tables = _tables()

    def __len__(self) -> int:
        return NUM_RECORDS if self.limit is None else min(self.limit, NUM_RECORDS)

    def describe(self) -> dict[str, Any]:
        return {
            "source": {"package": "qm9pack", "version": importlib.metadata.version("qm9pack")},
            "geometry": "B3LYP/6-31G(2df,p)",
            "hydrogens": "explicit",
            "options": {"limit": self.limit, "covalent_factors": list(_COVALENT_FACTORS)},
        }

    def records(self) -> Iterator[SourceRecord]:
        rows = islice(self._rows(), self.limit)
        workers = self.num_workers if self.num_workers > 1 else 0
        for row, record in stream_limited(build, rows, num_workers=workers, limit=_TIME_LIMIT):
            if isinstance(record, Failure):
                problem = InvalidMolecule(status_of(record), record.reason)
                record = SourceRecord(int(row["Index"]), f"gdb_{row['Index']}", problem)
            yield record

    def splits(self, keys: np.ndarray) -> dict[str, np.ndarray]:
        """EDM's convention: a permutation seeded with 0; 100,000 train, 10% test, the rest valid.

        With fewer molecules (`limit`) 80% are for training. Source: Hoogeboom et al. 2022, arXiv:2203.17003.
        """
        count = len(keys)
        order = np.random.RandomState(0).permutation(count)
        num_test = round(0.1 * count)
        num_train = _NUM_TRAIN if count >= _NUM_TRAIN + 2 * num_test else count - 2 * num_test
        train, valid, test = np.split(order, [num_train, count - num_test])
        return {"train": train, "valid": valid, "test": test}

    def _rows(self) -> Iterator[_Row]:
        for table in self._tables:
            with table.open(newline="", encoding="utf-8") as file:
                yield from csv.DictReader(file)


def _tables() -> list[Path]:
    # Found without importing it: the package's __init__ needs pkg_resources, which newer Pythons lack.
    spec = importlib.util.find_spec("qm9pack")
    folders = list(spec.submodule_search_locations or []) if spec else []
    if not folders:
        raise MoldiffError('data=qm9 needs the package qm9pack, which is not installed: pip install "moldiff[qm9]"')
    tables = [Path(folders[0]) / "data" / f"qm9_part{part}.csv" for part in (1, 2, 3)]
    for table in tables:
        if not table.is_file():
            raise MoldiffError(f'{table}: not found, expected the tables of qm9pack: pip install "moldiff[qm9]"')
    return tables


def build(row: _Row) -> SourceRecord:
    """The molecule of one row of the tables, or the reason why there is none."""
    number = int(row["Index"])
    outcome = _molecule(row, f"gdb_{number}")
    keys = both_keys(outcome) if isinstance(outcome, Molecule) else None
    return SourceRecord(number, f"gdb_{number}", outcome, keys=keys)


def _molecule(row: _Row, name: str) -> Molecule | InvalidMolecule:
    try:
        elements = _ELEMENTS.findall(row["Elements"])
        pos = np.array(_NUMBERS.findall(row["XYZ_Ang"]), dtype=np.float64).reshape(len(elements), 3)
        values = {key: float(row[column]) for key, (column, _) in PROPERTIES.items()}
    except (ValueError, KeyError, TypeError) as error:
        return InvalidMolecule(Status.UNREADABLE, f"unreadable row: {error}")
    with rdBase.BlockLogs():
        mol = _match(row["SMILES"], elements, pos)
    if mol is None:
        reason = f"bonds in the coordinates do not match the SMILES: {row['SMILES']}"
        return InvalidMolecule(Status.UNREADABLE, reason)
    molecule = from_rdkit(mol)
    if isinstance(molecule, InvalidMolecule):
        return molecule
    return check(molecule) or replace(molecule, properties=values, name=name)


def _match(smiles: str, elements: list[str], pos: np.ndarray) -> Chem.Mol | None:
    """The atoms at `pos` [n, 3] (Å) with the bonds and charges of the SMILES; None when the graphs disagree."""
    template = Chem.AddHs(Chem.MolFromSmiles(smiles))
    Chem.Kekulize(template, clearAromaticFlags=True)
    skeleton = _bare(template)
    for factor in _COVALENT_FACTORS:
        mol = _connected(elements, pos, factor)
        match = mol.GetSubstructMatch(skeleton) if mol.GetNumBonds() == skeleton.GetNumBonds() else ()
        if len(match) == len(elements):
            break
    else:
        return None
    for atom in template.GetAtoms():
        mol.GetAtomWithIdx(match[atom.GetIdx()]).SetFormalCharge(atom.GetFormalCharge())
    for bond in template.GetBonds():
        ends = match[bond.GetBeginAtomIdx()], match[bond.GetEndAtomIdx()]
        mol.GetBondBetweenAtoms(*ends).SetBondType(bond.GetBondType())
    return mol


def _connected(elements: list[str], pos: np.ndarray, factor: float) -> Chem.Mol:
    """Atoms joined by single bonds wherever two are closer than `factor` times their covalent radii."""
    mol = Chem.RWMol()
    for element in elements:
        mol.AddAtom(Chem.Atom(element))
    set_positions(mol, pos)
    rdDetermineBonds.DetermineConnectivity(mol, useVdw=True, covFactor=factor)
    return _bare(mol)


def _bare(mol: Chem.Mol) -> Chem.Mol:
    """A copy of which only elements and connectivity are left, for matching graphs drawn in different ways."""
    mol = Chem.Mol(mol)
    for atom in mol.GetAtoms():
        atom.SetFormalCharge(0)
        atom.SetNoImplicit(True)
        atom.SetNumExplicitHs(0)
        atom.SetNumRadicalElectrons(0)
        atom.SetChiralTag(Chem.ChiralType.CHI_UNSPECIFIED)
    for bond in mol.GetBonds():
        bond.SetBondType(Chem.BondType.SINGLE)
    return mol
