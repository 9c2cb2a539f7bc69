"""The card as files in the model's folder: `card.json`, and `card.md`, which is made of it and of the curve."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from moldiff.data.dataset import MoleculeDataset
from moldiff.diffusion.pretrained import PretrainedModel
from moldiff.diffusion.sampler import BROKEN_LEVEL, BROKEN_RESTARTS, PowerSampler
from moldiff.evaluation.metric import MetricResult
from moldiff.evaluation.report import markdown, versions, write_json
from moldiff.molecules.formats.storage import write_atomically
from tests.benchmarks.card import confidence, learning, memory, relaxed
from tests.benchmarks.card.columns import Column
from tests.benchmarks.card.curve import PLOT_FILE, Point, load_points, table
from tests.benchmarks.card.drawn import SEED, Delivered, Drawn, plural
from tests.benchmarks.card.limits import limits

JSON_FILE, TEXT_FILE = "card.json", "card.md"

_DELIVERED = """Delivered are decoded molecules that are P2-valid, as `moldiff sample` writes them; the others are
refused and drawn anew, and "drawn valid" counts all that were drawn for those delivered."""


def write_card(
    checkpoint: PretrainedModel,
    prepared: MoleculeDataset,
    columns: Mapping[str, Column],
    bound: Mapping[str, Sequence[MetricResult]],
    *,
    drawn: Drawn,
    delivered: Delivered,
    sampler: PowerSampler,
    seconds: float,
    of_relaxed: Sequence[MetricResult] = (),
    of_confidence: Mapping[str, Sequence[MetricResult]] = MappingProxyType({}),
    fcd: int = 0,
    machine: str | None = None,
) -> None:
    """Write `card.json` and `card.md` beside the weights; the evaluation took so many seconds.

    The Fréchet distance of `fcd` training molecules to others is stated beside, 0 = not. `machine` is where the model
    was trained, if its history does not say so.
    """
    first = next(iter(columns.values()))
    data = memory.of_the_data(prepared, len(drawn.raw)) + (memory.frechet_of_training(prepared, fcd) if fcd else [])
    document = {
        "facts": _facts(checkpoint, prepared, drawn, delivered, sampler) | {"evaluation": _minutes(seconds)},
        "versions": versions(),
        "options": first.options,
        "skipped": first.skipped,
        "notes": {name: column.notes for name, column in columns.items()},
        "results": {name: [result.to_dict() for result in column.results] for name, column in columns.items()},
        "bound": {name: [result.to_dict() for result in results] for name, results in bound.items()},
        "confidence": {name: [result.to_dict() for result in results] for name, results in of_confidence.items()},
        "relaxed": [result.to_dict() for result in of_relaxed],
        "rings": {name: [result.to_dict() for result in column.rings] for name, column in columns.items()},
        "of_the_data": [result.to_dict() for result in data],
        "limits": limits(prepared),
        "history": checkpoint.config.get("history", []),
    }
    write_json(checkpoint.folder / JSON_FILE, document)
    if document["history"]:
        learning.add_points(checkpoint.folder, [learning.point_of_card(document, machine)])
    write_text(checkpoint)


def write_text(checkpoint: PretrainedModel) -> Path | None:
    """Make `card.md` of what the folder has of the card and the curve; None = it has no `card.json` yet."""
    path = checkpoint.folder / JSON_FILE
    if not path.is_file():
        return None
    document = json.loads(path.read_text(encoding="utf-8"))
    points = [point for point in load_points(checkpoint.folder) if point["weights"] == checkpoint.weights_hash]
    text = checkpoint.folder / TEXT_FILE
    write_atomically(text, _text(checkpoint, document, points).encode())
    return text


def _facts(
    checkpoint: PretrainedModel, prepared: MoleculeDataset, drawn: Drawn, delivered: Delivered, sampler: PowerSampler
) -> dict[str, Any]:
    parameters = sum(parameter.numel() for parameter in checkpoint.model.denoiser.parameters())
    splits = ", ".join(f"{len(prepared.split(name)):,} {name}" for name in ("train", "valid", "test"))
    stretches = [_stretch(stretch) for stretch in checkpoint.config.get("history", [])]
    number, processes = len(drawn.raw), plural(drawn.processes)
    speed = len(drawn.decoded) / drawn.seconds
    refused = ", ".join(f"{count:,} {reason}" for reason, count in delivered.refused.items()) or "none"
    valid = len(delivered.molecules)
    return {
        "weights": f"{checkpoint.weights_hash} ({parameters:,} parameters)",
        "data": f"{prepared.name}: {splits} ({_package(prepared)})",
        "classes": str(checkpoint.model.vocabulary),
        "training, in order": "; then ".join(stretches) or "not recorded",
        "samples": f"{number:,}, seed {SEED}, {sampler.num_steps} network calls a molecule, {sampler}",
        "restarts": f"of decoded molecules in pieces: up to {BROKEN_RESTARTS}, each from noise level {BROKEN_LEVEL} in "
        f"{sampler.of_restart().num_steps} calls; raw molecules have none",
        "delivered": f"{valid:,} valid of {valid + sum(delivered.refused.values()):,} drawn; refused: {refused}",
        "sampling speed": f"{speed:.1f} molecules a second, decoding included, {processes}",
        "measured on": f"{platform.machine()}, {torch.get_num_threads()} CPU threads, torch {torch.__version__}",
    }


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes, bound included"


def _package(prepared: MoleculeDataset) -> str:
    """Where the set comes from, and at which level of theory its geometries are."""
    source = dict(prepared.meta.get("source", {}))
    if "package" in source:
        packages = [f"{source['package']} {source.get('version', '')}".strip()]
    else:  # versions by name
        packages = [f"{name} {version}" for name, version in source.items() if isinstance(version, str)]
    word = "package" if len(packages) == 1 else "packages"
    return f"{word} {', '.join(packages) or 'not said'}; geometry {prepared.meta.get('geometry', 'not said')}"


def _stretch(stretch: Mapping[str, Any]) -> str:
    """One stretch of training in words."""
    steps, batch_size, minutes = int(stretch["steps"]), int(stretch["batch_size"]), float(stretch["seconds"]) / 60
    mean = f", then the mean with {stretch['averaged_with']}" if stretch.get("averaged_with") else ""
    return f"{steps:,} steps of {batch_size} molecules in {minutes:.0f} minutes{mean}"


def _results(rows: Sequence[Mapping[str, Any]]) -> list[MetricResult]:
    return [MetricResult.from_dict(row) for row in rows]


def _text(checkpoint: PretrainedModel, document: Mapping[str, Any], points: Sequence[Point]) -> str:
    columns = {title: _results(rows) for title, rows in document["results"].items()}
    bound = {title: _results(rows) for title, rows in document.get("bound", {}).items()}
    data = _results(document.get("of_the_data", []))
    every = [result for lists in (columns, bound) for rows in lists.values() for result in rows] + data
    every += [result for result in _results(document.get("relaxed", [])) if result.name.startswith("relaxed")]
    every += _results(document.get("confidence", {}).get("all", []))
    definitions = {result.name: result.definition for result in every if "_status_" not in result.name}
    notes = dict.fromkeys(text for texts in document.get("notes", {}).values() for text in texts.items())
    lines = [
        f"# Model card: {checkpoint.name}",
        "",
        "Written by `python -m tests.benchmarks.card`; no number is typed by hand.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {fact} | {text} |" for fact, text in document["facts"].items()),
        "",
        markdown(columns),
        "P1, P2 and P3 count different things and must not be compared with each other. The real molecules' column is",
        "the scale: a figure above theirs means leaving the data, not a better model.",
        *([_DELIVERED] if "p2_drawn_valid" in definitions else []),
        "",
        *relaxed.section(document),
        *confidence.section(document),
        *_rings(document),
        *memory.section(columns, bound, data),
        *_limits(document),
        *_learning(checkpoint.folder),
        *_curve(points),
        "## Definitions",
        "",
        *(f"- `{name}`: {text}" for name, text in definitions.items()),
        *(f"- `{name}`, a note: {text}" for name, text in notes),
        *(f"- `{name}` left out: {text}" for name, text in document.get("skipped", {}).items()),
        "",
    ]
    return "\n".join(lines)


def _rings(document: Mapping[str, Any]) -> list[str]:
    """Ring sizes and ring systems that the real molecules have most often, with every column's share."""
    columns = {title: {row["name"]: row for row in rows} for title, rows in document.get("rings", {}).items()}
    if not any(columns.values()):
        return []
    lines = ["## Rings", "", f"| share of all | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name in dict.fromkeys(name for rows in columns.values() for name in rows):
        kind, _, which = name.removesuffix("]").partition("[")
        label = f"rings of {which} atoms" if kind.endswith("size") else f"ring system `{which}`"
        shares = [rows[name]["value"] if name in rows else None for rows in columns.values()]
        lines.append(f"| {label} | {' | '.join('–' if one is None else f'{100 * one:.1f} %' for one in shares)} |")
    known = "Listed are the most frequent ones of held-out real molecules; rings that share atoms are one system."
    return [*lines, "", known, ""]


def _limits(document: Mapping[str, Any]) -> list[str]:
    """The card of an earlier version has none."""
    found = document.get("limits") or []
    return ["## What it cannot do", "", *(f"- {text}" for text in found), ""] if found else []


def _learning(folder: Path) -> list[str]:
    points = learning.load_points(folder)
    if not points:
        return []
    text = "Molecules seen and hours are those of all trainings one after another, of other sets before this one, too."
    plot = f"![The table as a plot]({learning.PLOT_FILE})"
    return ["## Learning curve", "", learning.table(points), "", text, "", plot, ""]


def _curve(points: Sequence[Point]) -> list[str]:
    if not points:
        return []
    head = "## Quality against the number of network calls"
    return [head, "", table(points), "", f"![The table as a plot]({PLOT_FILE})", ""]
