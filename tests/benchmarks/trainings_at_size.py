"""Trainings on molecules of one size, by the command that users run, and what speed they report."""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moldiff.cli.compose import compose_options
from moldiff.data.prepare import prepare
from moldiff.data.sources import SourceRecord
from moldiff.molecules.molecule import Molecule

BATCH = 128
"""Molecules a step and process: the default."""

REPEATS, _STEPS = 5, 3
_RATE = re.compile(r"^step (\d+) .* (\d+) molecules/s", re.MULTILINE)


@dataclass(frozen=True)
class Chains:
    """A source of chains of carbon atoms with random coordinates."""

    size: int
    count: int
    name: str = "chains"

    @property
    def properties(self) -> Mapping[str, str]:
        return {}

    def describe(self) -> dict[str, Any]:
        return {"source": {}, "geometry": "random", "hydrogens": "explicit", "options": {"size": self.size}}

    def __len__(self) -> int:
        return self.count

    def records(self) -> Iterator[SourceRecord]:
        random = np.random.default_rng(0)
        number = np.full(self.size, 2)
        number[[0, -1]] = 3
        bonds = np.stack([np.arange(self.size - 1), np.arange(1, self.size), np.ones(self.size - 1, int)], axis=1)
        for index in range(self.count):
            offsets = random.normal(size=(self.size, 4, 3)) * (np.arange(4) < number[:, None])[..., None]
            yield SourceRecord(
                index + 1,
                "",
                Molecule(
                    pos=2 * random.normal(size=(self.size, 3)),
                    atomic_number=np.full(self.size, 6),
                    formal_charge=np.zeros(self.size, int),
                    num_hydrogens=number,
                    hydrogen_offset=offsets,
                    bonds=bonds,
                ),
            )

    def splits(self, keys: np.ndarray) -> dict[str, np.ndarray]:
        return {"train": np.arange(len(keys)), "valid": np.arange(0), "test": np.arange(0)}


def training_rates(
    folder: Path, size: int, *, processes: int, precision: str, compiled: bool, self_conditioning: int
) -> list[float]:
    """Molecules a second of five stretches of a training by all processes together, everything included."""
    data = folder / f"chains{size}"
    if not data.is_dir():
        prepare(Chains(size, 2 * BATCH * processes), data, progress=False)
    out = folder / f"trained{size}"
    shutil.rmtree(out, ignore_errors=True)
    options = [
        f"data.folder={data}",
        f"out={out}",
        f"batch_size={BATCH}",
        f"self_conditioning={self_conditioning}",
        f"compile={str(compiled).lower()}",
        "data=sample",
        f"trainer.precision={precision}",
        f"trainer.devices={processes}",
        "trainer.accelerator=cpu",
        f"trainer.max_steps={_STEPS * (REPEATS + 1)}",
        f"trainer.log_every={_STEPS}",
        "trainer.validate_every=1000000",
        "trainer.num_validation=0",
        "trainer.num_quality_samples=0",
    ]
    config = folder / "training.json"
    config.write_text(json.dumps(compose_options("train", options)), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "moldiff.training.train", str(config)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    # The first stretch holds the steps that warm up.
    return [float(rate) for step, rate in _RATE.findall(done.stdout) if int(step) > _STEPS]


def mean_rate(folder: Path, size: int, *, processes: int, precision: str, compiled: bool) -> tuple[float, list[float]]:
    """Molecules a second where half of the steps feed the network its own estimate, as in training; and all rates."""
    both = [
        training_rates(
            folder, size, processes=processes, precision=precision, compiled=compiled, self_conditioning=share
        )
        for share in (0, 1)
    ]
    return 2 / sum(1 / statistics.median(rates) for rates in both), [rate for rates in both for rate in rates]
