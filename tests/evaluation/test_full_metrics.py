"""Metrics beyond P1 to P3, on molecules whose numbers can be worked out by hand."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
from metric_examples import UNREADABLE, chain, embedded, fractions, sample_molecules, subjects, values, water
from rdkit import Chem
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers, rdMolTransforms

from moldiff.evaluation.evaluate import evaluate
from moldiff.evaluation.metrics.contacts import Contacts
from moldiff.evaluation.metrics.distributions import (
    Distribution,
    FrechetDistance,
    features,
    frechet_distance,
    jensen_shannon,
    wasserstein,
)
from moldiff.evaluation.metrics.diversity import Diversity
from moldiff.evaluation.metrics.druglike import DrugLikeness, describe
from moldiff.evaluation.metrics.posebusters import CHECKS, PoseBustersChecks
from moldiff.evaluation.metrics.relaxation import (
    ForceFieldRelaxation,
    Relaxation,
    RelaxationInput,
    compare,
    superposed_rmsd,
)
from moldiff.evaluation.metrics.validity import all_atoms
from moldiff.molecules import conformers, convert
from moldiff.molecules.descriptors import ring_systems
from moldiff.molecules.molecule import Molecule
from moldiff.molecules.validity import all_bonds, odd_bonds


@pytest.fixture(scope="module")
def sample() -> list[Molecule]:
    return sample_molecules()


# --- internal coordinates ---


@pytest.mark.parametrize("smiles", ["CCO", "C1CC1C#N", "c1ccccc1C(=O)N"])
def test_internal_coordinates_equal_those_of_rdkit(smiles):
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    assert rdDistGeom.EmbedMolecule(mol, randomSeed=3) == 0
    conformer = mol.GetConformer()
    pos, number = conformer.GetPositions(), mol.GetNumAtoms()
    bonds = np.array([(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in mol.GetBonds()])
    angles, torsions = (
        conformers.angle_atoms(bonds, number),
        conformers.torsion_atoms(bonds, number),
    )
    degree = np.bincount(bonds.ravel())
    assert len(angles) == sum(d * (d - 1) // 2 for d in degree)
    matches = mol.GetSubstructMatches(Chem.MolFromSmarts("*~*~*~*"), uniquify=False, maxMatches=10_000)
    assert {min(tuple(t), tuple(t)[::-1]) for t in torsions.tolist()} == {min(m, m[::-1]) for m in matches}
    assert 2 * len(torsions) == len(matches)
    expected = [rdMolTransforms.GetAngleDeg(conformer, *atoms) for atoms in angles.tolist()]
    assert conformers.angles(pos, angles) == pytest.approx(expected)
    ordinary = conformers.angles(pos, torsions[:, :3]) < 175
    expected = [rdMolTransforms.GetDihedralDeg(conformer, *atoms) for atoms in torsions[ordinary].tolist()]
    change = conformers.torsion_change(conformers.torsions(pos, torsions[ordinary]), np.array(expected))
    assert change.max() < 1e-6


# --- distributions ---


def test_features_of_two_waters():
    found = features(subjects(water(1.0), water(1.2, 120)).mols())
    assert set(found.bond_lengths) == {"H-O"}
    assert found.bond_lengths["H-O"] == pytest.approx([1, 1, 1.2, 1.2])
    assert found.angles["H-O-H"] == pytest.approx([90, 120])
    assert found.torsions == {}
    assert sorted(found.elements.tolist()) == [1, 1, 1, 1, 8, 8]
    assert found.sizes.tolist() == [1, 1]
    assert found.ring_sizes.tolist() == []


def test_features_do_not_depend_on_how_many_are_worked_out_at_once(monkeypatch):
    molecules = subjects(*sample_molecules()[:20])
    whole = features(molecules.mols())
    monkeypatch.setattr("moldiff.evaluation.metrics.distributions._TOGETHER", 7)
    parts = features(molecules.mols())
    assert np.array_equal(parts.elements, whole.elements)
    assert np.array_equal(parts.ring_systems, whole.ring_systems)
    for name in ("bond_lengths", "angles", "torsions"):
        one, other = getattr(parts, name), getattr(whole, name)
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[kind], other[kind]) for kind in one)


def test_features_know_kinds_of_bonds_and_rings():
    found = features(subjects(embedded("c1ccccc1C=C"), embedded("C1CC1C#N")).mols())
    assert {kind: len(lengths) for kind, lengths in found.bond_lengths.items()} == {
        "H-C": 8 + 5, "C:C": 6, "C-C": 1 + 4, "C=C": 1, "C#N": 1
    }  # fmt: skip
    assert sorted(found.ring_sizes.tolist()) == [3, 6]
    assert sorted(found.ring_systems.tolist()) == ["C1CC1", "c1ccccc1"]
    assert len(found.torsions["H-C=C-H"]) == 2
    assert all(kind.count("#") == 0 for kind in found.torsions)  # straight: no torsion there


@pytest.mark.parametrize(
    ("smiles", "expected"),
    [
        ("O=C1CCCCC1Cc1ccc2ccccc2c1", ["O=C1CCCCC1", "c1ccc2ccccc2c1"]),  # an atom on a double bond; fused rings
        ("Cn1cccc1-c1cc[nH]c1", ["c1cc[nH]c1", "c1cc[nH]c1"]),  # what is bonded to a ring counts as hydrogen
        ("C1CC12CCNCC2", ["C1CC2(CCN1)CC2"]),  # spiro
        ("C1CC2CCC1C2", ["C1CC2CCC1C2"]),  # bridged
        ("CC(=O)O", []),
    ],
)
def test_ring_systems_by_hand(smiles, expected):
    assert ring_systems(Chem.MolFromSmiles(smiles)) == expected
    assert ring_systems(Chem.AddHs(Chem.MolFromSmiles(smiles))) == expected


def test_ring_systems_against_a_reference():
    reference = subjects(*map(embedded, ("c1ccccc1C", "c1ccccc1N", "C1CC1C", "C1CCCCC1")))
    found = Distribution(num_rings=2)(subjects(*map(embedded, ("c1ccccc1", "C1CCC1"))), reference)
    assert fractions(found)["distribution_ring_systems_known"] == (1, 2)
    assert fractions(found)["distribution_ring_system[c1ccccc1]"] == (1, 2)
    assert fractions(found)["distribution_ring_system[C1CC1]"] == (0, 2)
    assert "distribution_ring_system[C1CCCCC1]" not in values(found)  # only the two most frequent ones
    assert fractions(found)["distribution_ring_size[6]"] == (1, 2)
    expected = jensen_shannon(np.array([1, 1, 0, 0]), np.array([2, 0, 1, 1]))
    assert values(found)["distribution_ring_systems"] == pytest.approx(expected)


def test_distances_by_hand():
    assert wasserstein(np.array([0, 1, 3]), np.array([5, 6, 8])) == pytest.approx(5)
    assert jensen_shannon(np.array([1, 1]), np.array([1, 0])) == pytest.approx(0.311278, abs=1e-6)


def test_distribution_by_hand():
    found = Distribution(min_count=1)(subjects(water(1.1, 100), water(1.1, 100)), subjects(water(1.0), water(1.2)))
    assert values(found)["distribution_bond_length"] == pytest.approx(0.1)
    assert values(found)["distribution_bond_length[H-O]"] == pytest.approx(0.1)
    assert values(found)["distribution_angle"] == pytest.approx(10)
    assert fractions(found)["distribution_bond_length_covered"] == (4, 4)
    assert values(found)["distribution_elements"] == 0
    assert values(found)["distribution_torsion"] is None
    assert values(found)["distribution_ring_sizes"] is None
    assert values(found)["distribution_ring_systems"] is None
    assert values(found)["distribution_ring_systems_known"] is None
    assert next(r for r in found.results if r.name == "distribution_bond_length").unit == "Å"


def test_distribution_says_how_much_is_compared():
    found = Distribution(min_count=4)(subjects(water()), subjects(water(), water(), embedded("CO")))
    assert fractions(found)["distribution_bond_length_covered"] == (5, 5 + 3 + 1)  # H-O; neither H-C nor C-O
    found = Distribution(min_count=6)(subjects(water()), subjects(water(), water()))
    assert values(found)["distribution_bond_length"] is None
    assert fractions(found)["distribution_bond_length_covered"] == (0, 4)


def test_distribution_of_a_set_from_itself_is_zero(sample):
    both = subjects(*sample)
    found = values(Distribution(min_count=1)(both, both))
    shares = {name: value for name, value in found.items() if "ring_size[" in name or "ring_system[" in name}
    assert 0.5 < sum(value for name, value in shares.items() if "ring_size[" in name) <= 1
    distances = {name: value for name, value in found.items() if name not in shares}
    assert all(value == (1 if name.endswith(("covered", "known")) else 0) for name, value in distances.items())


def test_mirror_images_have_the_same_distribution(sample):
    mirrored = [replace(one, pos=-one.pos, hydrogen_offset=-one.hydrogen_offset) for one in sample]
    found = values(Distribution(min_count=1)(subjects(*mirrored), subjects(*sample)))
    assert found["distribution_torsion"] == pytest.approx(0, abs=1e-3)  # values on the edge of a bin
    assert found["distribution_angle"] == pytest.approx(0, abs=1e-6)


# --- geometry ---


def test_real_molecules_are_sound(sample):
    assert fractions(Contacts()(subjects(*sample)))["geometry_sound"] == (100, 100)


def test_clash_exploded_and_what_has_no_coordinates():
    broken = water()
    broken.hydrogen_offset[0, 0, 0] = np.nan
    found = Contacts()(subjects(water(), water(0.4), water(3.0), broken, UNREADABLE))
    assert found.columns["geometry_status"] == ["ok", "clash", "exploded", "non-finite", "unreadable"]
    assert found.columns["geometry_reason"][1].startswith("atoms 0 (O) and 1 (H) at 0.40 Å, closer than 0.6")
    assert found.columns["geometry_reason"][2].startswith("atoms 0 (O) and 1 (H) at 3.00 Å, bonded, farther apart")
    assert fractions(found)["geometry_sound"] == (1, 5)
    assert fractions(found)["geometry_status_clash"] == (1, 5)


def test_atoms_far_apart_in_the_graph_clash_sooner():
    """Two fluorines at 1.4 Å are a bond; five bonds apart they are a clash, and so are two molecules."""
    assert Contacts().check(chain([1.4, 1.4])) is None
    folded = chain([1.4] * 5)
    folded.pos[:] = [[0, 0, 0], [0, 1.4, 0], [0, 2.1, 1.2], [1.4, 2.1, 1.2], [1.4, 1.4, 0], [1.4, 0, 0]]
    problem = Contacts().check(folded)
    assert problem is not None
    assert "atoms 0 (F) and 5 (F) at 1.40 Å" in problem.reason


def test_a_torn_bond_is_a_long_one_of_the_same_definition():
    """A length by order: C-C 1.50 Å, C=C 1.34, N-N 1.42; of cobalt none is known, so that a coarser one holds."""
    lengths = [(1.81, 6, "", True), (1.82, 6, "long", True), (1.94, 6, "long", True), (1.96, 6, "long", False)]
    lengths += [(1.83, 7, "long", True), (1.86, 7, "long", False), (3.3, 27, "", True), (3.9, 27, "", False)]
    for length, z, oddity, is_sound in lengths:
        one = chain([length], z)
        problem = Contacts().check(one)
        assert (problem is None or problem.status != "exploded") is is_sound
        assert "".join(found.kind.partition(" ")[0] for found in odd_bonds(one)) == oddity
    for length, is_sound in ((1.73, True), (1.75, False)):
        double = chain([length], 6)
        double.bonds[0, 2] = 2
        assert (Contacts().check(double) is None) is is_sound


def test_geometry_leaves_p2_as_it_is():
    report = evaluate([water(), water(0.4)])
    assert [row["status"] for row in report.rows] == ["ok", "ok"]
    assert [row["geometry_status"] for row in report.rows] == ["ok", "clash"]
    assert report["p2_valid"].value == 1
    assert not any(result.name in ("p2_status_clash", "p2_status_exploded") for result in report.results)


def test_bonds_are_in_the_order_of_the_atoms():
    ethanol = embedded("CCO")
    z, pos = all_atoms(ethanol)
    bonds = all_bonds(ethanol).atoms
    assert np.bincount(bonds.ravel()).tolist() == [4, 4, 2, *[1] * 6]
    assert conformers.lengths(pos, bonds).max() < 1.6
    assert len(z) == 9


# --- diversity and drug-likeness ---


def test_diversity_by_hand():
    found = fractions(Diversity()(subjects(water(), water(1.1), embedded("C1CC1C"), embedded("C1CC1O"), UNREADABLE)))
    assert found["diversity_scaffolds"] == (1, 2)
    assert found["diversity_cyclic"] == (2, 4)
    assert found["diversity_internal"][1] == 6
    twice = Diversity()(subjects(water(), water(1.1)))
    assert fractions(twice)["diversity_internal"] == (0, 1)
    assert values(Diversity()(subjects(water())))["diversity_internal"] is None


def test_diversity_of_many_is_that_of_a_random_part():
    molecules = subjects(*sample_molecules())
    whole, part = (Diversity(max_molecules=k)(molecules).results for k in (1000, 60))
    assert (whole[0].denominator, part[0].denominator) == (100 * 99 / 2, 60 * 59 / 2)
    assert "all pairs of 60 random P2-valid molecules" in part[0].definition
    assert part[0].value == pytest.approx(whole[0].value, abs=0.02)
    assert part[1:] == whole[1:]  # scaffolds are those of all


def test_descriptors_of_aspirin_and_alerts():
    aspirin = describe("CC(=O)Oc1ccccc1C(=O)O")
    assert aspirin.mw == pytest.approx(180.159, abs=1e-3)
    assert aspirin.tpsa == pytest.approx(63.6)
    assert aspirin.logp == pytest.approx(1.3101, abs=1e-4)
    assert aspirin.qed == pytest.approx(0.5501, abs=1e-3)
    assert aspirin.sa == pytest.approx(1.58, abs=0.05)
    assert aspirin.alerts[0] is None
    assert "quinone" in describe("O=C1C=CC(=O)C=C1").alerts[0]
    assert describe("CC(=O)Cl").alerts[1] is not None
    assert describe("CCO").alerts == (None, None, None)


def test_druglike_counts_valid_molecules():
    found = DrugLikeness(num_workers=1)(subjects(embedded("CCO"), chain([1.4, 1.4]), embedded("CC")), None)
    assert fractions(found)["druglike_described"] == (2, 2)
    assert values(found)["druglike_mw_mean"] == pytest.approx((46.069 + 30.07) / 2, abs=1e-3)
    assert found.columns["druglike_mw"][1] is None
    assert found.columns["druglike_pains"] == ["", None, ""]
    assert fractions(found)["druglike_pains"] == (0, 2)


def test_druglike_compares_with_a_reference():
    found = values(DrugLikeness(num_workers=1)(subjects(embedded("CCO")), subjects(embedded("CC"))))
    assert found["druglike_mw_distance"] == pytest.approx(46.069 - 30.07, abs=1e-3)


# --- PoseBusters ---


def hydronium() -> Molecule:
    """A neutral oxygen with three hydrogens."""
    offset = np.zeros((1, 4, 3))
    offset[0, :3] = [[0.94, 0, 0.3], [-0.47, 0.81, 0.3], [-0.47, -0.81, 0.3]]
    return Molecule(np.zeros((1, 3)), np.array([8]), np.array([0]), np.array([3]), offset, np.zeros((0, 3), dtype=int))


def test_b48_posebusters_goes_on_behind_a_molecule_that_does_not_sanitise():
    pytest.importorskip("posebusters")
    found = PoseBustersChecks(num_workers=1)(subjects(embedded("CCN"), hydronium(), embedded("CCO"), UNREADABLE))
    assert found.columns["posebusters_status"] == ["ok", "failed", "ok", "unreadable"]
    assert found.columns["posebusters_sanitization"] == [True, False, True, None]
    assert found.columns["posebusters_bond_lengths"] == [True, None, True, None]
    assert found.columns["posebusters_internal_energy"] == [True, None, True, None]
    assert found.columns["posebusters_reason"][1].startswith("failed: sanitization, inchi_convertible; not made: bond")
    assert fractions(found)["posebusters_valid"] == (2, 4)
    assert fractions(found)["posebusters_complete"] == (2, 4)
    assert fractions(found)["posebusters_bond_lengths"] == (2, 4)  # not made is not passed
    assert next(r for r in found.results if r.name == "posebusters_bond_lengths").counted == 2


def test_posebusters_makes_every_check_of_its_configuration():
    package = pytest.importorskip("posebusters")
    modules = package.PoseBusters(config="mol").config["modules"]
    outputs = [name for module in modules for name in module.get("chosen_binary_test_output", [])]
    assert len(outputs) == len(CHECKS)
    found = PoseBustersChecks(num_workers=1)(subjects(embedded("CCO")))
    assert [name for name in found.columns if name.removeprefix("posebusters_") in CHECKS] == [
        f"posebusters_{check}" for check in CHECKS
    ]
    assert all(found.columns[f"posebusters_{check}"] == [True] for check in CHECKS)


# --- relaxation ---


def test_rmsd_is_that_of_the_best_superposition_without_reflection():
    pos = embedded("C[C@H](N)C(=O)O").pos
    turn = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    assert superposed_rmsd(pos, pos @ turn + 5) == pytest.approx(0, abs=1e-9)
    assert superposed_rmsd(pos, -pos) > 0.3
    assert superposed_rmsd(np.array([[-1.0, 0, 0], [1, 0, 0]]), np.array([[-2.0, 0, 0], [2, 0, 0]])) == pytest.approx(1)


def test_changes_by_hand():
    """A four-atom chain whose last bond is 0.3 Å longer and whose torsion goes from 170 to -170 degrees."""

    def pos(length: float, torsion: float) -> np.ndarray:
        end = [1, length * math.cos(math.radians(torsion)), length * math.sin(math.radians(torsion))]
        return np.array([[0, 1, 0], [0, 0, 0], [1, 0, 0], end], dtype=float)

    task = RelaxationInput(np.full(4, 6), pos(1.0, 170), np.array([[0, 1], [1, 2], [2, 3]]), 0)
    found = compare(task, pos(1.3, -170), 2.5)
    assert found.bond_change == pytest.approx([0, 0, 0.3])
    assert found.angle_change == pytest.approx([0, 0])
    assert found.torsion_change == pytest.approx([20])
    assert found.energy_drop == 2.5


def test_force_field_relaxes_to_its_own_minimum():
    """Water's minimum of MMFF94s is at 0.969 Å; a molecule minimised by it before loses nothing."""
    mol = convert.to_rdkit(embedded("CC(=O)NCCO"))
    Chem.SanitizeMol(mol)
    rdForceFieldHelpers.MMFFOptimizeMolecule(mol, mmffVariant="MMFF94s", maxIters=5000)
    relaxed = convert.from_rdkit(mol)
    found = ForceFieldRelaxation(num_workers=1)(subjects(water(1.1, 104), relaxed, chain([1.4, 1.4]), UNREADABLE))
    assert found.columns["mmff_status"] == ["ok", "ok", None, None]
    assert fractions(found)["mmff_relaxed"] == (2, 2)
    # 143.9325 / 2 k Δr² (1 + cs Δr + 7/12 cs² Δr²) with k = 7.88, r = 0.969, cs = -2 (Halgren 1996), twice
    stretch = 1.1 - 0.969
    expected = 143.9325 * 7.88 * stretch**2 * (1 - 2 * stretch + 7 / 3 * stretch**2)
    assert found.columns["mmff_energy_drop"][0] == pytest.approx(expected, abs=0.3)
    assert found.columns["mmff_bond_change"][0] == pytest.approx(stretch, abs=0.002)
    assert found.columns["mmff_torsion_change"][0] is None
    assert 0 <= found.columns["mmff_energy_drop"][1] < 0.05
    assert values(found)["mmff_energy_drop_mean"] == pytest.approx(np.mean(found.columns["mmff_energy_drop"][:2]))
    assert found.options["method"] == "MMFF94s"


def test_force_field_says_what_it_cannot_do():
    found = ForceFieldRelaxation(num_workers=1)(subjects(embedded("CB(C)C")))
    assert found.columns["mmff_status"] == ["failed"]
    assert "MMFF94s has no parameters" in found.columns["mmff_reason"][0]
    assert fractions(found)["mmff_relaxed"] == (0, 1)
    assert values(found)["mmff_energy_drop_median"] is None
    found = ForceFieldRelaxation(num_workers=1, max_iterations=1)(subjects(water(1.3, 104)))
    assert "not relaxed after 1 steps" in found.columns["mmff_reason"][0]


def test_relaxation_of_stretched_and_relaxed_water_and_of_an_ion():
    pytest.importorskip("tblite")
    valid = subjects(water(1.1, 104), embedded("C[NH3+]"), chain([1.4, 1.4]), UNREADABLE)
    found = Relaxation(num_workers=1)(valid)
    assert found.columns["xtb_status"] == ["ok", "ok", None, None]
    assert fractions(found)["xtb_relaxed"] == (2, 2)
    assert 10 < found.columns["xtb_energy_drop"][0] < 40
    assert found.columns["xtb_bond_change"][0] == pytest.approx(1.1 - 0.959, abs=0.01)  # GFN2-xTB: 0.959 Å
    assert found.columns["xtb_torsion_change"][0] is None
    assert fractions(found)["xtb_energy_drop_median"][1] == 1
    assert next(r for r in found.results if r.name == "xtb_energy_drop_median").counted == 2
    assert fractions(found)["xtb_bond_change"][1] == 2 + 7
    assert values(found)["xtb_energy_drop_mean"] == pytest.approx(np.mean(found.columns["xtb_energy_drop"][:2]))


def test_relaxation_that_does_not_end_is_counted():
    pytest.importorskip("tblite")
    found = Relaxation(num_workers=1, max_iterations=1)(subjects(water(1.3, 104)))
    assert found.columns["xtb_status"] == ["failed"]
    assert "not relaxed after 1 steps" in found.columns["xtb_reason"][0]
    assert fractions(found)["xtb_relaxed"] == (0, 1)
    assert fractions(found)["xtb_status_failed"] == (1, 1)
    assert values(found)["xtb_energy_drop_median"] is None


# --- Fréchet ChemNet Distance ---


def test_frechet_distance_of_known_samples():
    first = np.array([[-1.0], [1.0]])  # mean 0, variance 2
    second = np.array([[1.0], [5.0]])  # mean 3, variance 8
    assert frechet_distance(first, second) == pytest.approx(9 + 2 + 8 - 2 * 4)
    assert frechet_distance(second, second) == pytest.approx(0, abs=1e-9)


def test_fcd_equals_the_package():
    package = pytest.importorskip("fcd")
    first, second = ("CCO", "CCN", "CC"), ("CCC", "CC=O", "c1ccccc1", "O")
    found = FrechetDistance()(subjects(*map(embedded, first)), subjects(*map(embedded, second)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = package.get_fcd(list(first), list(second), device="cpu")
    assert values(found)["fcd_distance"] == pytest.approx(expected, abs=1e-3)
    assert "3 and 4 molecules" in found.notes["fcd_distance"]


def test_fcd_needs_two_on_each_side():
    pytest.importorskip("fcd")
    found = FrechetDistance()(subjects(embedded("CCO")), subjects(embedded("CCO"), embedded("CC")))
    assert values(found)["fcd_distance"] is None
    assert "fewer than two" in found.notes["fcd_distance"]
