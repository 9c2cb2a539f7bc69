"""The card as files in the model's folder: `card.json`, and `card.md`, which is made of it and of the curve."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from moldiff.card.columns import Column
from moldiff.card.curve import PLOT_FILE, Point, load_points, table
from moldiff.card.drawn import SEED, Drawn, plural
from moldiff.checkpoint import Checkpoint, write_atomically
from moldiff.data.dataset import PreparedSet
from moldiff.report import format_fraction, format_value, markdown, versions, write_json
from moldiff.results import MetricResult
from moldiff.sampler import PowerSampler

JSON_FILE, TEXT_FILE = "card.json", "card.md"


def write_card(
    checkpoint: Checkpoint,
    prepared: PreparedSet,
    columns: Mapping[str, Column],
    bound: Mapping[str, Sequence[MetricResult]],
    *,
    drawn: Drawn,
    sampler: PowerSampler,
    seconds: float,
) -> None:
    """Write `card.json` and `card.md` beside the weights; the evaluation took so many seconds."""
    first = next(iter(columns.values()))
    document = {
        "facts": _facts(checkpoint, prepared, drawn, sampler) | {"evaluation": _minutes(seconds)},
        "versions": versions(),
        "options": first.options,
        "skipped": first.skipped,
        "notes": {name: column.notes for name, column in columns.items()},
        "results": {name: [result.to_dict() for result in column.results] for name, column in columns.items()},
        "bound": {name: [result.to_dict() for result in results] for name, results in bound.items()},
        "of_the_data": [result.to_dict() for result in _of_the_data(prepared)],
    }
    write_json(checkpoint.folder / JSON_FILE, document)
    write_text(checkpoint)


def write_text(checkpoint: Checkpoint) -> Path | None:
    """Make `card.md` of what the folder has of the card and the curve; None = it has no `card.json` yet."""
    path = checkpoint.folder / JSON_FILE
    if not path.is_file():
        return None
    document = json.loads(path.read_text(encoding="utf-8"))
    points = [point for point in load_points(checkpoint.folder) if point["weights"] == checkpoint.weights_hash]
    text = checkpoint.folder / TEXT_FILE
    write_atomically(text, _text(checkpoint.name, document, points).encode())
    return text


def _of_the_data(prepared: PreparedSet) -> list[MetricResult]:
    """How novel molecules would be that are drawn from the data itself."""
    others = len(prepared) - len(prepared.split("train"))
    definition = (
        "Molecules of the data outside the training part, over all: valid × unique × novel of molecules drawn from the "
        "data's own distribution without replacement. A higher figure means molecules that the data lacks."
    )
    return [MetricResult("data_valid_unique_novel", others, len(prepared), definition)]


def _facts(checkpoint: Checkpoint, prepared: PreparedSet, drawn: Drawn, sampler: PowerSampler) -> dict[str, Any]:
    parameters = sum(parameter.numel() for parameter in checkpoint.model.denoiser.parameters())
    splits = ", ".join(f"{len(prepared.split(name)):,} {name}" for name in ("train", "valid", "test"))
    stretches = [_stretch(stretch) for stretch in checkpoint.config.get("history", [])]
    number, processes = len(drawn.raw), plural(drawn.processes)
    return {
        "weights": f"{checkpoint.weights_hash} ({parameters:,} parameters)",
        "data": f"{prepared.name}: {splits} ({_package(prepared)})",
        "classes": str(checkpoint.model.vocabulary),
        "training, in order": "; then ".join(stretches) or "not recorded",
        "samples": f"{number:,}, seed {SEED}, {sampler.num_steps} network calls a molecule, {sampler}",
        "sampling speed": f"{number / drawn.seconds:.1f} molecules a second, decoding included, {processes}",
        "measured on": f"{platform.machine()}, {torch.get_num_threads()} CPU threads, torch {torch.__version__}",
    }


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes, bound included"


def _package(prepared: PreparedSet) -> str:
    """Where the set comes from, and at which level of theory its geometries are."""
    source = prepared.meta.get("source", {})
    return f"package {source.get('package', '?')} {source.get('version', '')}, {prepared.meta.get('geometry', '?')}"


def _stretch(stretch: Mapping[str, Any]) -> str:
    """One stretch of training in words."""
    steps, batch_size, minutes = int(stretch["steps"]), int(stretch["batch_size"]), float(stretch["seconds"]) / 60
    return f"{steps:,} steps of {batch_size} molecules in {minutes:.0f} minutes"


def _results(rows: Sequence[Mapping[str, Any]]) -> list[MetricResult]:
    """Results as they were before `MetricResult.to_dict`."""
    return [MetricResult(**{key: value for key, value in row.items() if key != "value"}) for row in rows]


def _text(name: str, document: Mapping[str, Any], points: Sequence[Point]) -> str:
    columns = {title: _results(rows) for title, rows in document["results"].items()}
    bound = {title: _results(rows) for title, rows in document.get("bound", {}).items()}
    data = _results(document.get("of_the_data", []))
    every = [result for lists in (columns, bound) for rows in lists.values() for result in rows] + data
    definitions = {result.name: result.definition for result in every if "_status_" not in result.name}
    notes = dict.fromkeys(text for texts in document.get("notes", {}).values() for text in texts.items())
    lines = [
        f"# Model card: {name}",
        "",
        "Written by `python -m moldiff.card`; no number is typed by hand.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {fact} | {text} |" for fact, text in document["facts"].items()),
        "",
        markdown(columns),
        "P1, P2 and P3 count different things and must not be compared with each other. The real molecules' column is",
        "the scale: a figure above theirs means leaving the data, not a better model.",
        "",
        *_memorising(bound, data),
        *_curve(points),
        "## Definitions",
        "",
        *(f"- `{name}`: {text}" for name, text in definitions.items()),
        *(f"- `{name}`, a note: {text}" for name, text in notes),
        *(f"- `{name}` left out: {text}" for name, text in document.get("skipped", {}).items()),
        "",
        "## What it cannot do",
        "",
        "The network is blind to mirror images, so both enantiomers of a molecule are drawn equally often. Elements",
        "and charges outside the training data are never drawn.",
        "",
    ]
    return "\n".join(lines)


def _memorising(bound: Mapping[str, Sequence[MetricResult]], data: Sequence[MetricResult]) -> list[str]:
    """What tells whether the model repeats its training molecules."""
    if not bound and not data:
        return []
    drawn = [
        "Of molecules drawn from the data itself without replacement, "
        f"{format_value(result)} ({format_fraction(result)}) would be valid, unique and novel at once; "
        "the others would be training molecules."
        for result in data
    ]
    return [
        "## Does it memorise?",
        "",
        "The nearest known molecules above are those of the training set, for the model's molecules and for real ones",
        "that it has not seen. A bound that is lower on training molecules than on others by more than its error means",
        "that some of them are remembered.",
        "",
        *drawn,
        "",
        markdown(bound),
    ]


def _curve(points: Sequence[Point]) -> list[str]:
    if not points:
        return []
    head = "## Quality against the number of network calls"
    return [head, "", table(points), "", f"![The table as a plot]({PLOT_FILE})", ""]
