"""The set `drugs`: ligands and MOSES molecules, their conformers, properties and parts, and going on after an end."""

import json
from pathlib import Path

import numpy as np
import pytest
from rdkit import Chem

from moldiff.data.prepare import Journal, prepare
from moldiff.data.sources import drugs
from moldiff.data.sources.drugs import Component, Drugs, Entry, part_of, scaffold, smiles_of
from moldiff.errors import MoldiffError
from moldiff.evaluation.metrics.druglike import describe
from moldiff.molecules import conformers
from moldiff.molecules.descriptors import descriptors
from moldiff.molecules.identity import canonical_key, strict_key
from moldiff.molecules.molecule import InvalidMolecule, Molecule
from moldiff.molecules.vocabulary import AtomClass

COMPONENTS = Path(__file__).parents[1] / "data" / "components.json"
MOSES = [
    "CCCS(=O)c1ccc2[nH]c(=NC(=O)OC)[nH]c2c1",
    "CC(C)(C)C(=O)C(Oc1ccc(Cl)cc1)n1ccnc1",
    "Cc1c(Cl)cccc1Nc1ncccc1C(=O)OCC(O)CO",
    "Cn1cnc2c1c(=O)n(CC(O)CO)c(=O)n2C",
    "O=[N+]([O-])c1ccc(NCCc2ccncc2)cc1",
    "CC1Oc2ccc(Cl)cc2N(CC(O)CO)C1=O",
]
_READ_MOSES, _DICTIONARY = drugs._moses_smiles, drugs.Dictionary


def components() -> list[Component]:
    """Entries of the dictionary that stand for its kinds."""
    rows = json.loads(COMPONENTS.read_text(encoding="utf-8"))
    return [
        Component(
            row["name"],
            row["status"],
            row["kind"],
            tuple(row["elements"]),
            tuple(row["charges"]),
            np.array(row["pos"], dtype=np.float64).reshape(-1, 3),
            tuple((i, j, order) for i, j, order in row["bonds"]),
        )
        for row in rows
    ]


@pytest.fixture(scope="module", autouse=True)
def _packages():
    """A handful of real molecules in the place of the packages."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drugs, "Dictionary", components)
        patch.setattr(drugs, "_moses_smiles", lambda: MOSES)
        patch.setattr(drugs, "version", lambda name: "0")
        yield


def small(**options) -> Drugs:
    """The source of those molecules."""
    return Drugs(**{"num_moses": len(MOSES), "num_workers": 0, **options})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """All of them, prepared."""
    return prepare(small(), tmp_path_factory.mktemp("drugs") / "set", progress=False)


def test_ligands_that_are_taken_and_why_others_are_not():
    found = {component.name: smiles_of(component) for component in components()}
    assert {name: text for name, text in found.items() if isinstance(text, str)} == {
        "AIN": "CC(=O)Oc1ccccc1C(=O)O",
        "BTN": "O=C(O)CCCC[C@@H]1SC[C@@H]2NC(=O)N[C@@H]21",
        "NIM": "CS(=O)(=O)Nc1ccc([N+](=O)[O-])cc1Oc1ccccc1",
        "RTL": "CC1=C(/C=C/C(C)=C/C=C/C(C)=C/CO)C(C)(C)CCC1",
        "PLP": "Cc1ncc(COP(=O)(O)O)c(C=O)c1O",
        "TES": "C[C@]12CC[C@H]3[C@@H](CCC4=CC(=O)CC[C@@]43C)[C@@H]1CC[C@@H]2O",
        "00S": "[H]/N=C(\\N)c1ccc(CN)cc1",
        "4PO": "CC(C)(C)/[N+]([O-])=C/c1cc[n+]([O-])cc1",
        "4E2": "O=C(O)c1nc2ccc(I)cc2c2[nH]c3c(Cl)cccc3c12",
    }
    assert {name: problem.reason for name, problem in found.items() if isinstance(problem, InvalidMolecule)} == {
        "1LN": "charged",
        "6SE": "element Se",
        "GOL": "fewer than 10 heavy atoms",
        "ALA": "part of a polymer",
        "SO4": "no carbon",
        "0AA": "not a released entry",
        "8XL": "no ideal coordinates",
        "STI": "more than 30 heavy atoms",
    }


def test_every_entry_is_accounted_for(made):
    counts = made.meta["counts"]
    assert (counts["seen"], counts["kept"], counts["rejected"]) == (17 + 6, 9 + 6, 8)
    assert counts["notes"]["PDB ligand"] == 9
    assert counts["notes"]["MOSES"] == 6
    assert counts["notes"]["3D by ETKDGv3 and MMFF94s"] == 15
    rows = sorted((made.path / "rejected.csv").read_text().splitlines())
    assert "14,pdb_SO4,no carbon,biotite/components.bcif" in rows
    assert {name.partition("_")[0] for name in made.names} == {"pdb", "moses"}
    assert sorted(name for name in made.names if name.startswith("moses")) == [f"moses_{k}" for k in range(1, 7)]
    assert made.meta["geometry"] == "ETKDGv3, then MMFF94s"
    assert made.meta["hydrogens"] == "explicit"
    assert made.meta["source"]["biotite"] == "0"
    assert made.meta["options"]["num_moses"] == 6


def test_molecules_keep_their_graph_and_stereo(made):
    wanted = {f"pdb_{component.name}": smiles_of(component) for component in components()}
    for index, name in enumerate(made.names):
        molecule = made.molecule(index)
        if name.startswith("pdb_"):
            assert strict_key(molecule) == strict_key(wanted[name])
        else:
            assert canonical_key(molecule) == canonical_key(MOSES[int(name.removeprefix("moses_")) - 1])
        assert np.linalg.norm(molecule.hydrogen_offset, axis=2).max() < 1.4
    classes = made.vocabulary.atom_classes
    assert {AtomClass(7, 1, 0), AtomClass(8, -1, 0), AtomClass(53, 0, 0), AtomClass(15, 0, 0)} <= set(classes)
    # Neutral as a whole, with charged atoms in the nitro group and the N-oxides.
    assert all(made.molecule(index).formal_charge.sum() == 0 for index in range(len(made)))
    assert made.molecule(made.names.index("pdb_4PO")).formal_charge.tolist().count(1) == 2


def test_there_is_one_level_of_geometry(monkeypatch):
    monkeypatch.setattr(conformers.rdForceFieldHelpers, "MMFFHasAllMoleculeParams", lambda mol: False)
    record = drugs.DrugWork(valid_share=0.1, test_share=0.1, seed=0)(Entry(1, "moses_1", MOSES[0]))
    assert isinstance(record.outcome, InvalidMolecule)
    assert record.outcome.reason == "MMFF94s has no parameters, so not at the set's level of geometry"


def test_properties_are_those_of_the_evaluation(made):
    assert list(made.properties) == [
        *("heavy_atoms", "mw", "logp", "tpsa", "qed", "sa", "rotatable_bonds", "rings", "donors", "acceptors")
    ]
    assert made.properties["mw"] == "g/mol"
    aspirin = made.molecule(made.names.index("pdb_AIN")).properties
    known = describe("CC(=O)Oc1ccccc1C(=O)O")
    for name in ("qed", "sa", "logp", "tpsa", "mw"):
        assert aspirin[name] == pytest.approx(getattr(known, name), rel=1e-6)
    counts = ("heavy_atoms", "rotatable_bonds", "rings", "donors", "acceptors")
    assert [aspirin[name] for name in counts] == [13, 2, 1, 1, 3]
    assert descriptors(Chem.MolFromSmiles("CC(=O)Oc1ccccc1C(=O)O"))["mw"] == pytest.approx(180.159)


def test_parts_follow_from_the_scaffold_alone(tmp_path):
    assert scaffold("CCOc1ccccc1") == scaffold("Nc1ccccc1") == "c1ccccc1"
    assert scaffold("CC(N)C(=O)O") == "CC(N)C(=O)O"
    shares = {"valid_share": 0.2, "test_share": 0.3, "seed": 0}
    keys = [f"{'C' * before}OC{'N' * after}" for before in range(1, 31) for after in range(1, 31)]
    parts = [part_of(key, **shares) for key in keys]
    assert parts.count("test") == pytest.approx(270, abs=45)
    assert parts.count("valid") == pytest.approx(180, abs=40)
    assert part_of("CCOc1ccccc1", **shares) == part_of("Nc1ccccc1", **shares)
    half = prepare(small(valid_share=0.3, test_share=0.3), tmp_path / "set", progress=False)
    part = {int(index): name for name in half.splits for index in half.splits[name]}
    for index, text in enumerate(half.smiles):
        assert part[index] == part_of(canonical_key(text), valid_share=0.3, test_share=0.3, seed=0)
    assert half.meta["counts"]["valid_keys_in_train"] == half.meta["counts"]["test_keys_in_train"] == 0
    assert half.meta["split"].startswith("by Murcko scaffold")


def test_a_limit_takes_the_start_of_the_same_order(tmp_path):
    whole = [record.name for record in small().records()]
    assert sorted(whole) == sorted({*whole})
    assert [record.name for record in small(limit=9).records()] == whole[:9]
    assert [record.name for record in small().records(5)] == whole[5:]
    assert [record.name for record in small(limit=9).records(9)] == []
    assert len(small(limit=9)) == 9
    assert len(small(limit=99)) == len(whole) == 23


def test_more_moses_goes_behind(monkeypatch):
    monkeypatch.setattr(drugs, "_MIXED", 3)
    few, many = (small(num_moses=count) for count in (4, 6))
    names = [record.name for record in many.records()]
    assert [record.name for record in few.records()] == names[:21]
    assert few.parts_key() == many.parts_key()
    assert few.fingerprint() != many.fingerprint()
    assert small(num_moses=2).parts_key() != many.parts_key()
    assert small(num_moses=6, seed=1).parts_key() != many.parts_key()


class _Ended(Drugs):
    """A source that is interrupted after its seventh record."""

    def records(self, start: int = 0):
        for count, record in enumerate(super().records(start)):
            if count == 7:
                raise KeyboardInterrupt
            yield record


def _content(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in ("molecules.safetensors", "smiles.txt", "rejected.csv")]


def test_what_was_interrupted_goes_on_where_it_was(made, tmp_path, monkeypatch, capsys):
    for rest in (23, 16, 9):
        with pytest.raises(KeyboardInterrupt):
            prepare(_Ended(num_moses=6, num_workers=0), tmp_path / "set", progress=False)
        parts = tmp_path / ".set-parts"
        assert len(list(parts.glob("*/*.part"))) == (23 - rest) // 7 + 1
    starts = []
    monkeypatch.setattr(Drugs, "_entries", _spying(Drugs._entries, starts))
    prepare(small(), tmp_path / "set", progress=True)
    assert starts == [21]
    assert "goes on after 21 records that are finished" in capsys.readouterr().err
    assert _content(tmp_path / "set") == _content(made.path)
    assert not parts.exists()


def _spying(function, starts):
    def spy(self, start):
        starts.append(start)
        return function(self, start)

    return spy


def test_a_parts_folder_stays_and_serves_other_limits(tmp_path, monkeypatch):
    parts = str(tmp_path / "parts")
    prepare(small(parts=parts, limit=12), tmp_path / "a", progress=False)
    assert [path.name for path in (tmp_path / "parts").glob("*/*")] == ["0000000000-0012.part"]
    starts = []
    monkeypatch.setattr(Drugs, "_entries", _spying(Drugs._entries, starts))
    prepare(small(parts=parts, limit=8), tmp_path / "b", progress=False)
    prepare(small(parts=parts), tmp_path / "c", progress=False)
    prepare(small(parts=parts, seed=3), tmp_path / "d", progress=False)
    assert starts == [8, 12, 0]
    assert len(list((tmp_path / "parts").iterdir())) == 2
    prepare(small(limit=8), tmp_path / "e", progress=False)
    assert _content(tmp_path / "b") == _content(tmp_path / "e")


def test_parts_that_overlap(tmp_path):
    # As two processes at the same records may leave them.
    records = list(small(limit=7).records())
    for ends in ((3, 7), (5,)):
        journal = Journal(tmp_path / str(len(ends)), "key")
        for number, record in enumerate(records[: ends[-1]], start=1):
            journal.append(record)
            if number in ends:
                journal.flush()
    part = next((tmp_path / "1" / "key").iterdir())
    part.rename(tmp_path / "2" / "key" / part.name)
    assert [record.name for record in Journal(tmp_path / "2", "key")] == [record.name for record in records]


def test_a_damaged_part(tmp_path):
    parts = tmp_path / "parts"
    prepare(small(parts=str(parts), limit=4), tmp_path / "a", progress=False)
    part = next(parts.glob("*/*.part"))
    part.write_bytes(part.read_bytes()[:300])
    with pytest.raises(MoldiffError, match=r"0000000000-0004.part: damaged .* to begin anew"):
        prepare(small(parts=str(parts)), tmp_path / "b", progress=False)


def test_records_come_back_from_the_journal_as_they_were(tmp_path):
    records = list(small().records())
    journal = Journal(tmp_path / "parts", "key")
    for record in records:
        journal.append(record)
    journal.flush()
    again = list(Journal(tmp_path / "parts", "key"))
    assert len(again) == len(records) == 23
    for one, other in zip(again, records, strict=True):
        assert (one.number, one.name, one.file, one.keys, one.notes, one.part) == (
            *(other.number, other.name, other.file, other.keys, other.notes, other.part),
        )
        if isinstance(other.outcome, InvalidMolecule):
            assert one.outcome == other.outcome
            continue
        assert isinstance(one.outcome, Molecule)
        assert one.outcome.properties == other.outcome.properties
        np.testing.assert_array_equal(one.outcome.bonds, other.outcome.bonds)
        np.testing.assert_allclose(one.outcome.pos, other.outcome.pos, atol=1e-6)
        np.testing.assert_allclose(one.outcome.hydrogen_offset, other.outcome.hydrogen_offset, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_moses": 7}, "data.num_moses: got 7, expected from 0 to 6"),
        ({"valid_share": 0.5, "test_share": 0.5}, "expected shares of at least 0"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(MoldiffError, match=message):
        small(**options)


def test_packages_missing(monkeypatch):
    monkeypatch.setattr(drugs, "_moses_smiles", _READ_MOSES)
    monkeypatch.setattr(drugs, "find_spec", lambda name: None)
    with pytest.raises(MoldiffError, match="molsets, which is not installed: pip install --no-deps molsets"):
        Drugs()
    monkeypatch.setattr(drugs, "find_spec", lambda name: None)
    with pytest.raises(MoldiffError, match=r'biotite, which is not installed: pip install "moldiff\[drugs\]"'):
        _DICTIONARY()
