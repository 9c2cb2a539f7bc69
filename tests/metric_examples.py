"""Molecules whose metrics are known, and what tests of metrics ask of them."""

from __future__ import annotations

import math
from importlib.resources import files

import numpy as np
from rdkit import Chem
from rdkit.Chem import rdDistGeom

from moldiff.data.dataset import MoleculeDataset
from moldiff.evaluation.metric import MetricOutput
from moldiff.evaluation.metrics.validity import all_atoms
from moldiff.evaluation.molecule_set import MoleculeSet
from moldiff.molecules import convert, identity, validity
from moldiff.molecules.molecule import InvalidMolecule, Molecule, Status

UNREADABLE = InvalidMolecule(Status.UNREADABLE, "garbage")


def embedded(smiles: str) -> Molecule:
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    assert rdDistGeom.EmbedMolecule(mol, randomSeed=3) == 0
    converted = convert.from_rdkit(mol)
    assert isinstance(converted, Molecule)
    return converted


def water(length: float = 1.0, degrees: float = 90.0) -> Molecule:
    """Both bonds of that length (Å), at that angle."""
    offset = np.zeros((1, 4, 3))
    offset[0, 0] = [length, 0, 0]
    offset[0, 1] = [length * math.cos(math.radians(degrees)), length * math.sin(math.radians(degrees)), 0]
    return Molecule(np.zeros((1, 3)), np.array([8]), np.array([0]), np.array([2]), offset, np.zeros((0, 3), dtype=int))


def chain(distances: list[float], z: int = 9) -> Molecule:
    """Bare atoms on a line, bonded one to the next; not a valid molecule."""
    pos = np.zeros((len(distances) + 1, 3))
    pos[1:, 0] = np.cumsum(distances)
    number = len(pos)
    bonds = np.array([(k, k + 1, 1) for k in range(number - 1)])
    return Molecule(
        pos, np.full(number, z), np.zeros(number, int), np.zeros(number, int), np.zeros((number, 4, 3)), bonds
    )


def subjects(*entries: Molecule | InvalidMolecule) -> MoleculeSet:
    readable = [entry if isinstance(entry, Molecule) else None for entry in entries]
    smiles = [None if one is None or validity.check(one) is not None else identity.strict_key(one) for one in readable]
    return MoleculeSet(entries, [None if one is None else all_atoms(one) for one in readable], smiles)


def fractions(measured: MetricOutput) -> dict[str, tuple[float, float]]:
    return {result.name: (result.numerator, result.denominator) for result in measured.results}


def values(measured: MetricOutput) -> dict[str, float | None]:
    return {result.name: result.value for result in measured.results}


def sample_molecules() -> list[Molecule]:
    """100 molecules of QM9, of all sizes."""
    prepared = MoleculeDataset.load(str(files("moldiff.example_data").joinpath("sample")))
    return [prepared.molecule(index) for index in range(0, 1000, 10)]
