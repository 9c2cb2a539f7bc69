"""Protocol P3 on molecules that perception fails on or hangs on."""

from __future__ import annotations

import json

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem import rdDistGeom

from moldiff.evaluation.evaluate import evaluate
from moldiff.evaluation.metric import MetricOutput
from moldiff.evaluation.metrics.perception import Perception
from moldiff.evaluation.metrics.validity import all_atoms
from moldiff.evaluation.molecule_set import NO_BONDS, MoleculeSet
from moldiff.molecules import convert, identity
from moldiff.molecules.molecule import InvalidMolecule, Status

PENTASULFATE = "O=S(=O)([O-])OC1C(OS(=O)(=O)[O-])C(OS(=O)(=O)[O-])C(OS(=O)(=O)[O-])C1OS(=O)(=O)[O-]"
SMALL = ("O", "C", "N", "CO", "CC", "C#N", "C=O", "CCO", "CC=O")


def atoms_of(smiles: str):
    """Elements and coordinates [a, 3] of an embedded molecule, in RDKit's order."""
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    assert rdDistGeom.EmbedMolecule(mol, randomSeed=5) == 0
    return np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()]), mol.GetConformer().GetPositions()


def bare(*atoms) -> MoleculeSet:
    """Elements and coordinates without bonds, as from an XYZ file."""
    nothing = InvalidMolecule(Status.UNREADABLE, "no bonds")
    return MoleculeSet([nothing] * len(atoms), list(atoms), [None] * len(atoms), missing={"p2": NO_BONDS})


def with_graphs(*smiles: str) -> MoleculeSet:
    """Molecules with their own bonds."""
    entries = []
    for text in smiles:
        mol = Chem.AddHs(Chem.MolFromSmiles(text))
        assert rdDistGeom.EmbedMolecule(mol, randomSeed=5) == 0
        entries.append(convert.from_rdkit(mol))
    return MoleculeSet(
        entries, [all_atoms(entry) for entry in entries], [identity.strict_key(entry) for entry in entries]
    )


def fractions(measured: MetricOutput) -> dict[str, tuple[float, float]]:
    return {result.name: (result.numerator, result.denominator) for result in measured.results}


def test_b29_a_pentasulfate_costs_its_time_and_nothing_else():
    atoms = [atoms_of(text) for text in SMALL]
    atoms.insert(4, atoms_of(PENTASULFATE))
    found = Perception(limit=3)(bare(*atoms))
    assert fractions(found)["p3_status_time-out"] == (1, 10)
    assert fractions(found)["p3_valid"] == (9, 10)
    assert found.columns["p3_status"][4] == Status.TIME_OUT
    assert found.columns["p3_reason"][4] == "not finished within 3 s"


def test_b29_a_pentasulfate_with_its_charge_hangs_too():
    found = Perception(charge=None, limit=3)(with_graphs("O", PENTASULFATE, "C[NH3+]"))
    assert found.columns["p3[charge=own]_status"] == ["ok", "time-out", "ok"]
    assert found.columns["p3[charge=own]_same_graph"] == [True, None, True]


def test_b30_a_nitroarene_fails_in_perception_and_is_valid_by_its_own_bonds():
    subjects = with_graphs("CN(C)c1ccc([N+](=O)[O-])cc1", "CCO")
    report = evaluate(subjects.entries, metrics=["p3"])
    assert (report["p2_valid"].numerator, report["p2_valid"].denominator) == (2, 2)
    assert (report["p3_valid"].numerator, report["p3_valid"].denominator) == (1, 2)
    assert report["p3_status_perception failed"].numerator == 1
    assert report.rows[0]["status"] == "ok"
    assert report.rows[0]["p3_status"] == "perception failed"
    assert "could not find valid bond ordering" in report.rows[0]["p3_reason"]


def test_b33_other_options_are_another_metric():
    """The same molecule is valid under one set of options and not under the other, and the labels say which."""
    subjects = with_graphs("C[N+](=O)[O-]", "CCO")
    usual, other = Perception(), Perception(allow_charged_fragments=False, use_vdw=True)
    assert (usual.name, other.name) == ("p3", "p3[allow-charged-fragments=false,use-vdw=true]")
    report = evaluate(subjects.entries, metrics=[usual, other])
    definitions = [report[f"{metric.name}_valid"].definition for metric in (usual, other)]
    assert rdBase.rdkitVersion in definitions[0]
    assert "connect-the-dots, charged fragments allowed" in definitions[0]
    assert "touching radii times 1.3, charged fragments not allowed" in definitions[1]
    assert report.options["metrics"]["p3"]["rdkit"] == rdBase.rdkitVersion
    assert not report.options["metrics"][other.name]["allow_charged_fragments"]
    titles = [table.title for table in report.tables()]
    assert "P3: bonds perceived by RDKit (allow-charged-fragments=false,use-vdw=true)" in titles
    json.dumps(report.to_dict(), allow_nan=False)


def test_b34_phosphine():
    pos = np.array([[0, 0, 0], [1.19, 0, 0.77], [-0.595, 1.03, 0.77], [-0.595, -1.03, 0.77]])
    found = Perception()(bare((np.array([15, 1, 1, 1]), pos)))
    assert found.columns["p3_smiles"] == ["P"]


def test_b35_b36_loose_fragments_and_records_that_cannot_be_perceived():
    z, pos = atoms_of("O")
    two = np.concatenate([z, z]), np.concatenate([pos, pos + 6])
    broken = z, np.where(np.arange(9).reshape(3, 3) == 4, np.nan, pos)
    found = Perception()(bare((z, pos), two, broken, None))
    assert found.columns["p3_status"] == ["ok", "disconnected", "non-finite", "unreadable"]
    assert fractions(found)["p3_perceived"] == (2, 4)
    assert fractions(found)["p3_valid"] == (1, 4)
    assert fractions(found)["p3_unique"] == (1, 1)


def test_another_graph_than_the_own_one_is_counted():
    """The coordinates of formaldehyde under the name of carbon monoxide."""
    subjects = with_graphs("C=O", "CO")
    subjects = MoleculeSet(subjects.entries, subjects.atoms, ["[C-]#[O+]", "CO"])
    found = Perception()(subjects)
    assert found.columns["p3_same_graph"] == [False, True]
    assert fractions(found)["p3_same_graph"] == (1, 2)


def test_no_molecules():
    found = Perception()(bare())
    assert all(result.value is None for result in found.results)
