"""The EGNN on PyTorch Geometric is trained, saved, loaded and drawn from by the commands, as any network is."""

from __future__ import annotations

from pathlib import Path

from rdkit import Chem
from trainings import QUIET

from moldiff.cli.main import main

pytestmark = QUIET


def test_an_egnn_is_trained_and_drawn_from(tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out.sdf"
    small = ["denoiser.hidden_dim=32", "denoiser.pair_dim=16", "denoiser.steerable_dim=8", "denoiser.num_layers=2"]
    options = ["trainer.max_steps=3", "trainer.num_quality_samples=0", "trainer.num_validation=20", "batch_size=16"]
    assert main(["train", "data=sample", "denoiser=egnn", *small, *options, f"out={run}"]) == 0
    sampled = ["n=3", "keep=[]", "decode=valence", "steps=4", "workers=0", f"out={out}"]
    assert main(["sample", f"model={run}", *sampled]) == 0
    assert len(list(Chem.SDMolSupplier(str(out), sanitize=False))) == 3
