"""Vina's energy in a pocket, against the package vina and finite differences, and what it does to molecules."""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from rdkit import Chem
from rdkit.Chem import AllChem, rdForceFieldHelpers
from scipy.spatial.transform import Rotation

from moldiff.diffusion.pocket import AtomKinds, PocketEnergy, class_kinds
from moldiff.diffusion.shipped import available_models
from moldiff.evaluation import docking
from moldiff.evaluation.docking import vina_types
from moldiff.molecules.receptor import Receptor, Site, find_site, read_receptor
from moldiff.sampling.generator import load
from moldiff.tasks.grow import Pocket
from moldiff.tasks.pocket import PocketTask
from moldiff.tasks.refine import Flexible, PocketGrid, Poses, Search

pytest.importorskip("gemmi")
pytestmark = pytest.mark.usefixtures("one_thread")
DHFR = Path(str(files("moldiff.example_data") / "receptors" / "1s3v.pdb"))
CENTER = np.array([-2.7, 27.8, 3.4])
NAMES = ("pos", "radius", "hydrophobic", "donor", "acceptor")


def energy_of(receptor: Receptor) -> PocketEnergy:
    pos, radius, hydrophobic, donor, acceptor = (getattr(receptor, name) for name in NAMES)
    return PocketEnergy(torch.from_numpy(pos), AtomKinds.of_flags(radius, hydrophobic, donor, acceptor))


def placed(smiles: str, center: np.ndarray, seed: int) -> Chem.Mol:
    """A conformer somewhere in the pocket, turned at random."""
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    AllChem.EmbedMolecule(mol, randomSeed=1)
    pos = mol.GetConformer().GetPositions()
    mol.GetConformer().SetPositions((pos - pos.mean(0)) @ Rotation.random(random_state=seed).as_matrix().T + center)
    return mol


def heavy(mol: Chem.Mol) -> torch.Tensor:
    rows = [atom.GetIdx() for atom in mol.GetAtoms() if atom.GetAtomicNum() > 1]
    return torch.from_numpy(mol.GetConformer().GetPositions()[rows])


@pytest.fixture(scope="module")
def site() -> Site:
    return find_site(read_receptor(DHFR), "center", CENTER[None])


def test_the_energy_is_that_of_the_package_vina(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("vina")
    pytest.importorskip("meeko")
    monkeypatch.setattr(docking, "_BOX", 22.0)
    monkeypatch.setattr(docking, "_SPACING", 1.0)  # of the maps, which scoring without a minimisation does not use
    engine, pdbqt = docking.Vina(site.receptor, site.center).tools
    energy = energy_of(site.receptor)
    for smiles in ("Nc1ncc(Cc2ccccc2)c(N)n1", "O=C(O)c1ccc(Cl)cc1O", "CS(=O)(=O)NCCc1cncn1C", "Fc1ccc(I)cc1Br"):
        for seed in range(3):
            mol = placed(smiles, site.center, seed)
            own = float(energy.pairs(AtomKinds.of_flags(*vina_types(mol))).energy(heavy(mol)).sum())
            engine.set_ligand_from_string(pdbqt(mol))
            assert own == pytest.approx(engine.score()[1], abs=0.03, rel=0.015)  # Vina interpolates in a table


def test_the_gradient_is_that_of_finite_differences(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    mol = placed("Nc1ncc(Cc2ccccc2)c(N)n1", site.center, 0)
    every, kinds = energy_of(site.receptor), AtomKinds.of_flags(*vina_types(mol))
    pos = heavy(mol)
    monkeypatch.setattr("moldiff.diffusion.pocket._STEEPEST", 1e9)
    for softness, pairs in ((0.0, every.pairs(kinds)), (1.5, every.pairs(kinds)), (0.5, every.near(pos, kinds))):
        gradient, energy = pairs.gradient(pos, softness), pairs.energy
        for atom, axis in ((0, 0), (5, 1), (9, 2)):
            step = torch.zeros_like(pos)
            step[atom, axis] = 1e-5
            change = energy(pos + step, softness).sum() - energy(pos - step, softness).sum()
            assert float(change) / 2e-5 == pytest.approx(float(gradient[atom, axis]), rel=1e-3, abs=1e-3)
    assert float(every.near(pos, kinds).energy(pos).sum()) == pytest.approx(float(every.pairs(kinds).energy(pos).sum()))


def test_slopes_of_the_search_are_those_of_its_energy_which_is_near_that_of_the_package(site: Site) -> None:
    mol = placed("CC(=O)NCc1ccc(OC)cc1", site.center, 0)
    types, properties = vina_types(mol), rdForceFieldHelpers.MMFFGetMoleculeProperties(mol)
    grid, count = PocketGrid(site, energy_of(around(site))), mol.GetNumHeavyAtoms()
    pos = (mol.GetConformer().GetPositions() - site.center) @ site.axes
    flexible = Flexible(mol, pos, np.zeros(count, dtype=bool))
    maps = grid.maps(AtomKinds.of_flags(*types))
    search = Search(flexible, maps, types[0], flexible.profiles(properties))
    best = search.run(2, seed=0).rows(np.arange(1))
    exact = grid.energy.pairs(AtomKinds.of_flags(*types)).energy(torch.from_numpy(flexible.placed(best) @ site.axes.T))
    assert float(exact.sum()) < -5
    assert abs(float(search._from_maps(flexible.placed(best))[0][0]) - float(exact.sum())) < 1
    _, slope = search.energy(best)
    for place in range(slope.shape[1]):
        step = 1e-6 * np.eye(slope.shape[1])[place]
        ends = [
            Poses(
                Rotation.from_rotvec(sign * step[3:6]).as_matrix() @ best.rotation,
                best.shift + sign * step[:3],
                best.angles + sign * step[6:],
            )
            for sign in (1, -1)
        ]
        (up, _), (down, _) = (search.energy(one) for one in ends)
        assert float(up[0] - down[0]) / 2e-6 == pytest.approx(float(slope[0, place]), abs=0.02)


def around(site: Site) -> Receptor:
    """The protein around the pocket's middle."""
    return Receptor(**{**vars(site.receptor), "pos": site.receptor.pos - site.center})


def test_what_is_expected_of_classes_that_are_certain_is_what_they_are() -> None:
    vocabulary = load("qm9").checkpoint.model.vocabulary
    kinds, rows = class_kinds(vocabulary), {str(one): row for row, one in enumerate(vocabulary.atom_classes)}
    assert kinds.bonding[rows["NH1"]].tolist() == [1, 0, 1]
    assert kinds.bonding[rows["O"]].tolist() == [0, 1, 1]
    assert kinds.bonding[rows["OH1"]].tolist() == [1, 1, 1]
    assert (float(kinds.radius[rows["CH3"]]), float(kinds.hydrophobic[rows["CH3"]])) == (pytest.approx(1.9), 1)


@pytest.mark.skipif("qm9" not in available_models(), reason="the weights qm9 are not here")
def test_molecules_turn_with_the_protein(site: Site) -> None:
    turn, shift = Rotation.random(random_state=5).as_matrix(), np.array([10.0, -4.0, 7.0])
    moved = Receptor(**{**vars(site.receptor), "pos": site.receptor.pos @ turn.T + shift})
    task = Pocket(receptor=DHFR, center=CENTER.tolist(), search=0)  # which enlarges rounding
    here = load("qm9").stream(3, task=task, seed=3, steps=10, keep=(), workers=0).molecules
    assert isinstance(here.task, PocketTask)
    there = find_site(moved, "center", (turn @ site.center + shift)[None])
    others = replace(here, task=replace(here.task, site=there)).draw(range(3))
    for one, other in zip(here.draw(range(3)), others, strict=True):
        assert one.smiles == other.smiles
        assert np.abs(one.molecule.pos @ turn.T + shift - other.molecule.pos).max() < 0.02


@pytest.mark.skipif("qm9" not in available_models(), reason="the weights qm9 are not here")
def test_guided_molecules_lie_deeper_and_clash_less_than_those_put_there_at_random() -> None:
    task = Pocket(receptor=DHFR, center=CENTER.tolist())
    run = load("qm9").stream(8, task=task, seed=1, steps=15, keep=(), workers=0)
    guided = run.molecules.draw(range(8))
    pocket = run.molecules.task
    assert isinstance(pocket, PocketTask)
    pocket = replace(pocket, vina=None)
    random = [
        replace(one.molecule, pos=(one.molecule.pos - one.molecule.pos.mean(0)) @ turn.T + CENTER)
        for one, turn in zip(guided, Rotation.random(8, random_state=0).as_matrix(), strict=True)
    ]
    scores = [pocket.fit(one) for one in random]
    assert sum(one.task["clashes"] == 0 for one in guided) >= 7
    assert (
        np.median([one.task["pocket_energy"] for one in guided])
        < np.median([one["pocket_energy"] for one in scores]) - 1
    )


@pytest.mark.skipif("qm9" not in available_models(), reason="the weights qm9 are not here")
def test_a_molecule_is_the_same_in_any_batch() -> None:
    task = Pocket(receptor=DHFR, center=CENTER.tolist())
    molecules = load("qm9").stream(3, task=task, seed=1, steps=40, keep=(), workers=0).molecules
    assert isinstance(molecules.task, PocketTask)
    molecules = replace(molecules, task=replace(molecules.task, vina=None))
    for index, together in enumerate(molecules.draw(range(3))):
        (alone,) = molecules.draw([index])
        assert alone.smiles == together.smiles
        assert np.abs(alone.molecule.pos - together.molecule.pos).max() < 0.005
