"""Protocols P1 and P2, uniqueness, novelty and reports on lists counted by hand."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from by_hand import UNREADABLE, WATER_OFFSETS, fractions, from_smiles, molecule, samples, too_many_bonds, values, water
from rdkit import Chem
from safetensors.numpy import save_file

from moldiff.errors import MoldiffError
from moldiff.evaluation.metrics.novelty import NoveltyIndex
from moldiff.evaluation.metrics.validity import (
    DOUBLE_BOND_PM,
    MARGINS_PM,
    NEUTRAL_VALENCES,
    SINGLE_BOND_PM,
    TRIPLE_BOND_PM,
    all_atoms,
    bond_orders,
    look_up,
)
from moldiff.evaluation.molecule_set import NO_REFERENCE, NOTHING_COUNTED, quality, score
from moldiff.evaluation.report import Report
from moldiff.molecules import convert
from moldiff.molecules.molecule import Status
from moldiff.molecules.vocabulary import AtomClass, Vocabulary


def scored(molecules, reference=None):
    """All numbers of a list of molecules, beside known ones given as SMILES."""
    return score(molecules, None if reference is None else NoveltyIndex.of(reference)).results


# --- P1: distance lookup ---


def naive_order(first: int, second: int, distance: float) -> int:
    """The rule of the paper, one pair at a time, in pm."""
    pair = (min(first, second), max(first, second))
    if pair not in SINGLE_BOND_PM or 100 * distance >= SINGLE_BOND_PM[pair] + MARGINS_PM[0]:
        return 0
    if pair not in DOUBLE_BOND_PM or 100 * distance >= DOUBLE_BOND_PM[pair] + MARGINS_PM[1]:
        return 1
    if pair not in TRIPLE_BOND_PM or 100 * distance >= TRIPLE_BOND_PM[pair] + MARGINS_PM[2]:
        return 2
    return 3


@pytest.mark.parametrize(
    ("pair", "distance", "order"),
    [
        ((6, 6), 1.635, 1), ((6, 6), 1.645, 0), ((6, 6), 1.395, 1), ((6, 6), 1.385, 2), ((6, 6), 1.225, 3),
        ((6, 6), 1.235, 2), ((7, 8), 1.0, 2), ((8, 8), 0.5, 2), ((6, 1), 1.185, 1), ((6, 1), 1.195, 0),
        ((9, 9), 0.2, 1), ((34, 6), 1.9, 0), ((118, 1), 1.0, 0),
    ],
)  # fmt: skip
def test_lookup_thresholds(pair, distance, order):
    orders = bond_orders(np.array(pair), np.array([[0.0, 0, 0], [0, 0, distance]]))
    assert orders.tolist() == [[0, order], [order, 0]]


def test_lookup_equals_the_pairwise_rule_on_random_clouds():
    generator = np.random.default_rng(3)
    elements = np.array(sorted(NEUTRAL_VALENCES))[:13]
    for _ in range(20):
        z = generator.choice(elements, size=25)
        pos = generator.normal(size=(25, 3)) * 1.5
        expected = [
            [0 if i == j else naive_order(z[i], z[j], np.linalg.norm(pos[i] - pos[j])) for j in range(25)]
            for i in range(25)
        ]
        assert bond_orders(z, pos).tolist() == expected


@pytest.mark.parametrize("smiles", ["C", "CC(=O)N", "FC(F)F", "C1CC1", "CCO"])
def test_lookup_finds_the_bonds_of_plain_molecules(smiles):
    found = fractions(scored([from_smiles(smiles, embed_conformer=True)]))
    assert found["p1_molecule_stable"] == (1, 1)
    assert found["p1_valid"] == (1, 1)


def test_lookup_judges_real_benzene_unstable():
    """At 1.395 Å every ring bond is single: the known bluntness that the row of real molecules makes readable."""
    angle = np.arange(6) * np.pi / 3
    ring = np.stack([np.cos(angle), np.sin(angle), 0 * angle], axis=1)
    offsets = np.zeros((6, 4, 3))
    offsets[:, 0] = 1.086 * ring
    bonds = [(0, 1, 2), (1, 2, 1), (2, 3, 2), (3, 4, 1), (4, 5, 2), (0, 5, 1)]
    found = fractions(score([molecule([6] * 6, 1.395 * ring, bonds, [1] * 6, offsets=offsets)]).results)
    assert found["p1_atom_stable"] == (6, 12)
    assert found["p1_valid"] == (1, 1)
    assert found["p2_atom_stable"] == (12, 12)


def test_lookup_does_not_depend_on_the_other_molecules():
    singles = [water(), from_smiles("CC(=O)NC", embed_conformer=True), from_smiles("c1ccccc1C#N", embed_conformer=True)]
    together = [look_up(all_atoms(one)) for one in singles]
    for one, other in zip(singles, together, strict=True):
        alone = look_up(all_atoms(one))
        assert alone.bonds.tolist() == other.bonds.tolist()
        assert alone.atom_stable.tolist() == other.atom_stable.tolist()


@pytest.mark.parametrize(("center", "distance", "count"), [(15, 1.42, 3), (16, 1.34, 2), (14, 1.48, 4), (5, 1.19, 3)])
def test_b34_hydrides_of_heavier_elements_have_bonds(center, distance, count):
    offsets = np.zeros((1, 4, 3))
    offsets[0, :count] = distance * np.array([[1, 1, 1], [-1, -1, 1], [-1, 1, -1], [1, -1, -1]])[:count] / 3**0.5
    looked_up = look_up(all_atoms(molecule([center], [[0, 0, 0]], hydrogens=[count], offsets=offsets)))
    assert looked_up.bonds.tolist() == [[0, k, 1] for k in range(1, count + 1)]
    # EDM allows sulfur 4 only, so that H2S counts as unstable; kept for comparability
    assert looked_up.atom_stable.tolist() == [center != 16] + [True] * count


def test_b34_phosphine_of_a_real_report():
    """P-H bonds were once missing from bond perception; the table has them."""
    offsets = [[[1.19, 0, 0.77], [-0.595, 1.03, 0.77], [-0.595, -1.03, 0.77], [0, 0, 0]]]
    looked_up = look_up(all_atoms(molecule([15], [[0, 0, 0]], hydrogens=[3], offsets=offsets)))
    assert looked_up.bonds.tolist() == [[0, 1, 1], [0, 2, 1], [0, 3, 1]]
    assert looked_up.stable


def test_all_atoms_puts_hydrogens_after_heavy_atoms():
    z, pos = all_atoms(water(at=(1.0, 0, 0)))
    assert z.tolist() == [8, 1, 1]
    assert pos.tolist() == [[1, 0, 0], [1, 0.7572, -0.5865], [1, -0.7572, -0.5865]]


def test_p1_counts_by_hand():
    """Water, water with a hydrogen pulled off, two waters in one record, and one record that was not read."""
    pulled = molecule([8], [[0, 0, 0]], hydrogens=[2], offsets=[[[0, 0.76, -0.59], [0, -3, 0], [0, 0, 0], [0, 0, 0]]])
    pair = molecule([8, 8], [[0, 0, 0], [6, 0, 0]], hydrogens=[2, 2], offsets=WATER_OFFSETS * 2)
    found = fractions(scored([water(), pulled, pair, UNREADABLE]))
    assert found["p1_atom_stable"] == (3 + 1 + 6, 12)
    assert found["p1_molecule_stable"] == (2, 4)
    assert found["p1_valid"] == (3, 4)  # the open valence is filled, the loose fragments are dropped ...
    assert found["p1_valid_trimmed"] == (2, 3)  # ... and counted here
    # the first and third largest fragments are the same water; the second is OH completed by RDKit
    assert found["p1_unique"] == (2, 3)
    assert found["p1_valid_unique"] == (2, 4)


def test_p1_rejects_what_rdkit_rejects():
    five = too_many_bonds()
    assert look_up(all_atoms(five)).largest_fragment is None
    assert fractions(scored([five]))["p1_valid"] == (0, 1)


# --- P2: generated bonds ---


def test_p2_counts_by_hand():
    broken = too_many_bonds()
    found = fractions(scored([water(), broken, UNREADABLE]))
    assert found["p2_atom_stable"] == (3 + 20, 3 + 21)
    assert found["p2_molecule_stable"] == (1, 3)
    assert found["p2_connected"] == (2, 3)
    assert found["p2_valid"] == (1, 3)
    assert found["p2_status_valence"] == (1, 3)
    assert found["p2_status_unreadable"] == (1, 3)
    assert sum(above for name, (above, _) in found.items() if "_status_" in name) == 2


@pytest.mark.parametrize(
    ("z", "charge", "hydrogens", "stable"),
    [(6, 0, 3, False), (7, 0, 2, False), (8, 0, 2, True), (7, 1, 4, True), (8, -1, 1, True), (6, 0, 4, True)],
)
def test_b41_valence_table_is_strict(z, charge, hydrogens, stable):
    """CH3 and NH2 are radicals, not methane and ammonia; hydroxide and ammonium are fine."""
    one = molecule([z], [[0, 0, 0]], hydrogens=[hydrogens], charges=[charge])
    results = scored([one])
    found = fractions(results)
    assert found["p2_molecule_stable"] == (int(stable), 1)
    assert found["p2_valid"] == (int(stable), 1)
    assert (
        "C 4, C+ 3, C- 3, N 3, N+ 4, N- 2, O 2,"
        in next(one for one in results if one.name == "p2_atom_stable").definition
    )


def test_b41_carbon_monoxide_is_stable_with_its_charges():
    one = molecule([6, 8], [[0, 0, 0], [1.13, 0, 0]], [(0, 1, 3)], charges=[-1, 1])
    assert fractions(scored([one]))["p2_valid"] == (1, 1)


def test_b41_methyl_is_never_reported_as_methane():
    one = molecule([6], [[0, 0, 0]], hydrogens=[3])
    row = score([one]).rows[0]
    assert row.status is Status.RADICAL
    assert row.smiles is None


def test_b40_aromatic_rings_are_stable_written_either_way():
    scores = score([from_smiles(text) for text in ("c1ccccc1", "C1=CC=CC=C1", "c1cc[nH]c1")])
    assert fractions(scores.results)["p2_molecule_stable"] == (3, 3)
    assert fractions(scores.results)["p2_unique"] == (2, 3)


def test_b40_aromatic_bonds_outside_a_ring_are_not_rounded_to_single():
    """H:O:H with two aromatic bonds is broken; the same from an SDF file is in test_evaluate."""
    strange = Chem.RWMol()
    for z in (1, 8, 1):
        atom = Chem.Atom(z)
        atom.SetNoImplicit(True)
        strange.AddAtom(atom)
    strange.AddBond(0, 1, Chem.BondType.AROMATIC)
    strange.AddBond(1, 2, Chem.BondType.AROMATIC)
    conformer = Chem.Conformer(3)
    conformer.SetPositions(np.array([[0.0, 0.76, -0.59], [0.0, 0.0, 0.0], [0.0, -0.76, -0.59]]))
    strange.AddConformer(conformer)
    assert fractions(score([convert.from_rdkit(strange.GetMol())]).results)["p2_molecule_stable"] == (0, 1)


def test_b36_loose_fragments_are_not_valid():
    pair = molecule([8, 8], [[0, 0, 0], [6, 0, 0]], hydrogens=[2, 2], offsets=WATER_OFFSETS * 2)
    phosphorus = molecule([15] * 5, [[3 * k, 0, 0] for k in range(5)])
    found = fractions(scored([pair, phosphorus]))
    assert found["p2_valid"] == (0, 2)
    assert found["p2_connected"] == (0, 2)
    assert found["p2_molecule_stable"] == (1, 2)
    assert found["p2_status_disconnected"] == (1, 2)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_b35_coordinates_that_are_not_finite(bad):
    broken = water(at=(bad, 0.0, 0.0))
    offsets = np.array(WATER_OFFSETS)
    offsets[0, 1, 2] = bad
    scores = score([water(), broken, molecule([8], [[0, 0, 0]], hydrogens=[2], offsets=offsets)])
    assert [row.status for row in scores.rows] == [Status.OK, Status.NON_FINITE, Status.NON_FINITE]
    found = fractions(scores.results)
    for name in ("p1_molecule_stable", "p1_valid", "p2_molecule_stable", "p2_valid"):
        assert found[name] == (1, 3)
    for name in ("p1_atom_stable", "p2_atom_stable"):
        assert found[name] == (3, 9)


def test_valences_from_the_data_are_used_when_given():
    selenium = molecule([34], [[0, 0, 0]], hydrogens=[2])
    vocabulary = Vocabulary((AtomClass(8, 0, 2),), {(34, 0): (2,)})
    assert fractions(score([selenium]).results)["p2_molecule_stable"] == (0, 1)
    assert fractions(score([selenium], vocabulary=vocabulary).results)["p2_molecule_stable"] == (1, 1)


def test_b48_one_broken_molecule_does_not_abort_the_rest():
    hydronium = molecule([8], [[0, 0, 0]], hydrogens=[3])
    rows = score([water(), hydronium, from_smiles("CCO")]).rows
    assert [row.status for row in rows] == [Status.OK, Status.VALENCE, Status.OK]
    assert "atom 0 (O)" in rows[1].reason
    assert rows[1].novel is None
    assert rows[1].unique is None


# --- uniqueness and novelty ---


def test_b42_each_number_has_its_own_denominator():
    scores = score(samples(), NoveltyIndex.of(["CC"]))
    found = fractions(scores.results)
    assert found["p2_valid"] == (4, 6)
    assert found["p2_unique"] == (2, 4)
    assert found["p2_novel"] == (1, 2)
    assert found["p2_valid_unique"] == (2, 6)
    assert found["p2_valid_unique_novel"] == (1, 6)
    assert [row.unique for row in scores.rows] == [True, False, False, None, True, None]
    assert [row.novel for row in scores.rows] == [True, True, True, None, False, None]
    assert fractions(scored(samples(), ["CC"]))["p2_novel"] == (1, 2)


def test_b44_reference_in_another_form_makes_nothing_novel():
    """Explicit hydrogens, atom maps and another atom order in the training file."""
    generated = [from_smiles(text) for text in ("O", "CO", "CCO")]
    found = fractions(scored(generated, ["[H]O[H]", "[CH3:1][OH:2]", "C(O)C"]))
    assert found["p2_novel"] == (0, 3)
    assert found["p2_valid_unique_novel"] == (0, 3)


def test_isotopes_and_charge_separated_sulfur_do_not_make_a_molecule_new():
    assert fractions(scored([from_smiles("CO")], ["[2H]C([2H])([2H])O"]))["p2_novel"] == (0, 1)
    assert fractions(scored([from_smiles("CS(C)=O")], ["C[S+](C)[O-]"]))["p2_novel"] == (0, 1)


def test_strict_and_normalised_novelty_are_both_shown():
    mirrored = from_smiles("C[C@H](N)C(=O)O", embed_conformer=True)
    found = fractions(scored([mirrored], ["C[C@@H](N)C(=O)O"]))
    assert found["p2_novel"] == (0, 1)
    assert found["p2_novel_strict"] == (1, 1)


@pytest.mark.parametrize("reference", [None, []])
def test_missing_reference_is_not_a_number(reference):
    index = None if reference is None else NoveltyIndex.of(reference)
    scores = score([water()], index)
    for name in ("p2_novel", "p2_novel_strict", "p2_valid_unique_novel"):
        assert values(scores.results)[name] is None
        assert scores.notes[name] == NO_REFERENCE
    assert scores.rows[0].novel is None
    assert values(scores.results)["p2_unique"] == 1


def test_b46_no_valid_molecule():
    scores = score([too_many_bonds()] * 10, NoveltyIndex.of(["CC"]))
    found = values(scores.results)
    assert found["p2_valid"] == 0
    assert found["p2_valid_unique"] == 0
    assert found["p2_valid_unique_novel"] == 0
    for name in ("p2_unique", "p2_novel"):
        assert found[name] is None
        assert scores.notes[name] == NOTHING_COUNTED


def test_b46_empty_list():
    scores = score([])
    assert scores.rows == []
    assert all(value is None for value in values(scores.results).values())
    assert set(scores.notes) == set(values(scores.results))
    json.loads(json.dumps(Report(scores.results, notes=scores.notes).to_dict(), allow_nan=False))
    assert quality([]) == {}


def test_single_molecule_scores_full_marks():
    found = quality([water()])
    for name in ("p1_atom_stable", "p1_molecule_stable", "p1_valid", "p2_atom_stable", "p2_valid", "p2_unique"):
        assert found[name] == 1
    assert "p2_novel" not in found
    assert all(isinstance(value, float) for value in found.values())


def test_uniqueness_is_the_same_in_every_process():
    code = (
        "from moldiff.evaluation.metrics.novelty import NoveltyIndex; "
        "print(NoveltyIndex.of(['CCO', 'CC', 'c1ccccc1']).canonical)"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1


# --- novelty index on disk ---


def write_index(path, **arrays):
    save_file(arrays, path)
    return path


def test_index_round_trip(tmp_path):
    index = NoveltyIndex.of(["CCO", "CC", "not a molecule", UNREADABLE])
    assert index.num_skipped == 2
    path = write_index(tmp_path / "novelty.safetensors", canonical=index.canonical, strict=index.strict)
    loaded = NoveltyIndex.load(path)
    assert len(loaded) == len(NoveltyIndex.load(tmp_path)) == 2
    assert loaded.contains("CCO")
    assert loaded.contains("CC", strict=True)
    assert not loaded.contains("CCC")


def test_index_files_that_cannot_be_used(tmp_path):
    good = NoveltyIndex.of(["CCO", "CC"])
    unsorted = good.canonical[::-1].copy()
    bad = {
        "unsorted": write_index(tmp_path / "a", canonical=unsorted, strict=good.strict),
        "missing array": write_index(tmp_path / "b", canonical=good.canonical),
        "type": write_index(tmp_path / "c", canonical=good.canonical.astype(np.float32), strict=good.strict),
    }
    (tmp_path / "d").write_text("version https://git-lfs.github.com/spec/v1")
    bad["text"] = tmp_path / "d"
    bad["absent"] = tmp_path / "e"
    for path in bad.values():
        with pytest.raises(MoldiffError, match="novelty reference"):
            NoveltyIndex.load(path)
