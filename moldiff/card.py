"""The card of a model: how it was trained and how its molecules fare, measured and written by this module.

`python -m moldiff.card MODEL PREPARED_SET [NUMBER] [STEPS]` draws the molecules, scores them raw and decoded beside the
real test molecules, and writes `card.md` and `card.json` into the model's folder.
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from moldiff.batch import Molecule
from moldiff.checkpoint import NOVELTY_FILE, Checkpoint, find_model, load_checkpoint, write_atomically
from moldiff.data.dataset import PreparedSet
from moldiff.drawing import Beginning, MemoryBudget, NewMolecules, draw_within
from moldiff.metrics.novelty import NoveltyIndex
from moldiff.metrics.summary import score
from moldiff.report import markdown, versions, write_json
from moldiff.results import MetricResult
from moldiff.sampler import PowerSampler

SEED = 2024
_CHUNK = 250


def draw(folder: str, sampler: PowerSampler, indices: Sequence[int]) -> tuple[list[Molecule], list[Molecule]]:
    """The molecules `indices` of the card's seed, raw and decoded from the same network calls."""
    torch.set_num_threads(1)
    model = load_checkpoint(folder).model
    task = NewMolecules(model.statistics.size_counts)
    raw: list[Molecule] = []
    decoded: list[Molecule] = []
    beginnings = (Beginning.of(task, SEED, index) for index in indices)
    budget = MemoryBudget.of(next(model.parameters()).device)
    for _, drawn in draw_within(budget, model, sampler, beginnings):
        raw += drawn.decode("raw")[0]
        decoded += drawn.decode("valence")[0]
    return raw, decoded


def measure(
    folder: Path, prepared: PreparedSet, *, number: int, sampler: PowerSampler, num_workers: int = 2
) -> tuple[dict[str, Sequence[MetricResult]], float]:
    """Results of raw, decoded and real test molecules, and the seconds that drawing took."""
    chunks = [range(k, min(k + _CHUNK, number)) for k in range(0, number, _CHUNK)]
    raw: list[Molecule] = []
    decoded: list[Molecule] = []
    start = time.monotonic()
    with ProcessPoolExecutor(num_workers, mp_context=get_context("spawn")) as pool:
        jobs = pool.map(partial(draw, str(folder), sampler), chunks)
        for one, other in track(jobs, "drawing molecules", total=len(chunks)):
            raw += one
            decoded += other
    seconds = time.monotonic() - start
    real = [prepared.molecule(int(index)) for index in prepared.split("test")[:number]]
    novelty = NoveltyIndex.load(folder / NOVELTY_FILE)
    columns = {"model, raw": raw, "model, decoded": decoded, f"real test molecules ({len(real):,})": real}
    return {name: score(molecules, novelty).results for name, molecules in columns.items()}, seconds


def write_card(
    checkpoint: Checkpoint,
    prepared: PreparedSet,
    results: Mapping[str, Sequence[MetricResult]],
    *,
    number: int,
    sampler: PowerSampler,
    seconds: float,
) -> None:
    """Write `card.md` and `card.json` beside the weights."""
    facts = _facts(checkpoint, prepared, number, sampler, seconds)
    document = {
        "facts": facts,
        "versions": versions(),
        "results": {name: [result.to_dict() for result in column] for name, column in results.items()},
    }
    write_json(checkpoint.folder / "card.json", document)
    definitions = {result.name: result.definition for column in results.values() for result in column}
    lines = [
        f"# Model card: {checkpoint.name}",
        "",
        "Written by `python -m moldiff.card`; no number is typed by hand.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in facts.items()),
        "",
        markdown(results),
        "## Definitions",
        "",
        *(f"- `{name}`: {text}" for name, text in definitions.items() if "_status_" not in name),
        "",
        "The numbers of P1 and P2 count different things and must not be compared with each other. P1 calls 95 % of",
        "the real molecules stable: a figure above that would mean leaving the data, not a better model.",
        "",
        "## What it cannot do",
        "",
        "The network is blind to mirror images, so both enantiomers of a molecule are drawn equally often. Elements",
        "and charges outside the training data are never drawn.",
        "",
    ]
    write_atomically(checkpoint.folder / "card.md", "\n".join(lines).encode())


def _facts(
    checkpoint: Checkpoint, prepared: PreparedSet, number: int, sampler: PowerSampler, seconds: float
) -> dict[str, Any]:
    parameters = sum(parameter.numel() for parameter in checkpoint.model.denoiser.parameters())
    splits = ", ".join(f"{len(prepared.split(name)):,} {name}" for name in ("train", "valid", "test"))
    stretches = [_stretch(stretch) for stretch in checkpoint.config.get("history", [])]
    return {
        "weights": f"{checkpoint.weights_hash} ({parameters:,} parameters)",
        "data": f"{prepared.name}: {splits} ({_package(prepared)})",
        "classes": str(checkpoint.model.vocabulary),
        "training, in order": "; then ".join(stretches) or "not recorded",
        "samples": f"{number:,}, seed {SEED}, {sampler.num_steps} network calls a molecule, {sampler}",
        "sampling speed": f"{number / seconds:.1f} molecules a second, decoding included, 2 processes",
        "measured on": f"{platform.machine()}, {torch.get_num_threads()} CPU threads, torch {torch.__version__}",
    }


def _package(prepared: PreparedSet) -> str:
    """Where the set comes from, and at which level of theory its geometries are."""
    source = prepared.meta.get("source", {})
    return f"package {source.get('package', '?')} {source.get('version', '')}, {prepared.meta.get('geometry', '?')}"


def _stretch(stretch: Mapping[str, Any]) -> str:
    """One stretch of training in words."""
    steps, batch_size, minutes = int(stretch["steps"]), int(stretch["batch_size"]), float(stretch["seconds"]) / 60
    return f"{steps:,} steps of {batch_size} molecules in {minutes:.0f} minutes"


def main(arguments: Sequence[str]) -> None:
    """Measure a model and write its card."""
    name, data, *rest = arguments
    number = int(rest[0]) if rest else 10_000
    sampler = PowerSampler(num_steps=int(rest[1])) if len(rest) > 1 else PowerSampler()
    checkpoint, prepared = load_checkpoint(find_model(name)), PreparedSet.load(data)
    results, seconds = measure(checkpoint.folder, prepared, number=number, sampler=sampler)
    write_card(checkpoint, prepared, results, number=number, sampler=sampler, seconds=seconds)
    print((checkpoint.folder / "card.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main(sys.argv[1:])
