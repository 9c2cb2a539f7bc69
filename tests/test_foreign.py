"""What CONTRIBUTING promises to outsiders: their own network, sampler, task and metric, by the public API alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import moldiff
from moldiff.cli.main import main
from moldiff.diffusion.batch import MolBatch, NoiseLevel, Prediction
from moldiff.diffusion.pretrained import load_pretrained
from moldiff.diffusion.process.schedule import power_grid
from moldiff.diffusion.sampler import PartialState, SamplerState
from moldiff.evaluation.metric import MetricOutput, MetricResult
from moldiff.tasks.task import Task


class Mean(nn.Module):
    """A network that moves atoms along the vectors to one another, and says how frequent each class is."""

    def __init__(self, num_atom_classes: int) -> None:
        super().__init__()
        self.atoms = nn.Parameter(torch.zeros(num_atom_classes))
        self.bonds = nn.Parameter(torch.zeros(4))
        self.pull = nn.Parameter(torch.tensor(0.1))

    def forward(self, noisy: MolBatch, noise_level: NoiseLevel, previous: Prediction | None = None) -> Prediction:
        pairs = noisy.pair_mask[..., None]
        vectors = ((noisy.pos[:, None] - noisy.pos[:, :, None]) * pairs).mean(2)
        return Prediction(
            pos=(noisy.pos + self.pull * vectors) * noisy.node_mask[..., None],
            hydrogen=noisy.hydrogen,
            atom_type=self.atoms.expand(*noisy.node_mask.shape, -1),
            bond=self.bonds.expand(*pairs.shape[:-1], -1),
        )


@dataclass(frozen=True)
class FirstOrder:
    """Down an even grid, a call a level."""

    num_steps: int = 6

    def of_restart(self) -> FirstOrder:
        return replace(self, num_steps=2)

    def __call__(
        self, denoise: Any, process: Any, noisy: MolBatch, noise_level: NoiseLevel, draws: Any
    ) -> Iterator[SamplerState]:
        levels = [
            NoiseLevel(*(factor * value for value in vars(noise_level).values()))
            for factor in power_grid(self.num_steps, 1.0)
        ]
        previous = None
        for step, level in enumerate(levels):
            previous = denoise(noisy, level, previous)
            yield SamplerState(noisy, previous, level, step)
            if step + 1 < len(levels):
                noisy = process.step(noisy, previous, level, levels[step + 1], draws)


@dataclass(frozen=True)
class FiveAtoms:
    """A task as a user asks for it: new molecules of five heavy atoms."""

    def prepare(self, vocabulary: Any, statistics: Any) -> FiveAtomsTask:
        return FiveAtomsTask()


class FiveAtomsTask(Task):
    """The same for a model."""

    def sizes(self) -> tuple[int, int]:
        return 5, 5

    def begin(self, index: int, generator: torch.Generator) -> PartialState:
        return PartialState.unknown(torch.ones(1, 5, dtype=torch.bool))


@dataclass(frozen=True)
class Carbons:
    """Mean number of carbon atoms."""

    name: str = "carbons"
    needs: Sequence[str] = ()
    package: str | None = None

    def __call__(self, molecules: Any, reference: Any, on_progress: Any) -> MetricOutput:
        counts = [int((one.atomic_number == 6).sum()) for one in molecules.entries if isinstance(one, moldiff.Molecule)]
        mean = MetricResult("carbons_mean", float(sum(counts)), len(counts), "Carbon atoms, mean over molecules.")
        return MetricOutput([mean])


def test_a_network_of_ones_own_is_trained_and_sampled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "denoiser").mkdir()
    (tmp_path / "denoiser" / "mean.yaml").write_text(f"_target_: {__name__}.Mean\n")
    words = ["train", f"--config-dir={tmp_path}", "denoiser=mean", "data=sample", f"out={tmp_path / 'run'}"]
    quick = ["trainer.max_steps=3", "trainer.num_quality_samples=0", "batch_size=16", "compile=false"]
    assert main([*words, *quick, "trainer.precision=32-true"]) == 0, capsys.readouterr().err
    model = load_pretrained(tmp_path / "run", None)  # None: it may build classes of any package
    samples = moldiff.Generator(model, torch.device("cpu")).sample(3, keep=(), steps=3, workers=0)
    assert len(samples) == 3


def test_a_sampler_of_ones_own_draws() -> None:
    samples = moldiff.load("qm9").sample(2, sampler=FirstOrder(), keep=(), workers=0)
    assert [sample.origin["steps"] for sample in samples] == [6, 6]


def test_a_task_of_ones_own_is_run() -> None:
    samples = moldiff.load("qm9").sample(3, task=FiveAtoms(), steps=8, workers=0)
    assert [sample.molecule.num_heavy_atoms for sample in samples] == [5, 5, 5]


def test_a_metric_of_ones_own_is_reported() -> None:
    samples = moldiff.load("qm9").sample(3, task=FiveAtoms(), steps=8, workers=0)
    report = moldiff.evaluate([sample.molecule for sample in samples], metrics=[Carbons()])
    (found,) = [one for one in report.results if one.name == "carbons_mean"]
    carbons = [int((sample.molecule.atomic_number == 6).sum()) for sample in samples]
    assert found.value == pytest.approx(sum(carbons) / 3)
