"""Quality against the number of network calls: `steps.json`, which a broken run goes on with, and `steps.svg`."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from moldiff.diffusion.pretrained import PretrainedModel
from moldiff.diffusion.sampler import PowerSampler
from moldiff.evaluation.molecule_set import score
from moldiff.evaluation.report import versions
from moldiff.molecules.formats.storage import write_atomically
from tests.benchmarks.card.drawn import SEED, draw, label

DATA_FILE, PLOT_FILE = "steps.json", "steps.svg"
SHOWN = {"p2_valid": "P2 valid and connected", "p1_molecule_stable": "P1 molecule stable"}
"""Results that are tabled and plotted, each raw and decoded."""

FORMS = ("raw", "decoded")

_KEPT = ("p1_atom_stable", "p1_molecule_stable", "p1_valid", "p2_molecule_stable", "p2_valid", "p2_valid_unique")
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 400, 240, 48, 16, 30, 36
_COLOURS = ("#1b6ca8", "#d1495b", "#3a7d44", "#8d6a9f", "#c98a1b", "#4a4a4a")

Point = Mapping[str, Any]


def measure_curve(
    checkpoint: PretrainedModel, samplers: Sequence[PowerSampler], number: int, *, num_workers: int | None = None
) -> list[Point]:
    """Draw and score molecules with every sampler, writing the file after each; those that it has are not drawn again.

    Points of other weights are dropped, those of other samplers kept.
    """
    path = checkpoint.folder / DATA_FILE
    points = [point for point in load_points(checkpoint.folder) if point["weights"] == checkpoint.weights_hash]
    for sampler in samplers:
        if any(_is_of(point, sampler, number) for point in points):
            continue
        points = [point for point in points if _sampler(point["settings"]) != sampler]
        points.append(_point(checkpoint, sampler, number, num_workers))
        points.sort(key=lambda point: (point["sampler"] != "default", point["sampler"], point["steps"]))
        write_atomically(path, (json.dumps({"points": points}, indent=1, allow_nan=False) + "\n").encode())
        write_atomically(path.with_name(PLOT_FILE), plot(points).encode())
    return points


def load_points(folder: Path) -> list[Point]:
    """The points that the file in a model's folder has, by sampler and number of steps; [] without a file."""
    path = folder / DATA_FILE
    points = json.loads(path.read_text(encoding="utf-8"))["points"] if path.is_file() else []
    return [point | {"sampler": label(_sampler(point["settings"]))} for point in points]


def _sampler(settings: Mapping[str, Any]) -> PowerSampler:
    """The sampler of a point, of an earlier version perhaps: its settings may have other names by now, or be gone."""
    former = {"refinements": "restarts", "refine_level": "restart_level"}
    known = {field.name for field in fields(PowerSampler)}
    named = {former.get(name, name): value for name, value in settings.items()}
    return PowerSampler(**{name: value for name, value in named.items() if name in known})


def _is_of(point: Point, sampler: PowerSampler, number: int) -> bool:
    return bool(_sampler(point["settings"]) == sampler and point["samples"] == number and point["seed"] == SEED)


def _point(checkpoint: PretrainedModel, sampler: PowerSampler, number: int, num_workers: int | None) -> Point:
    drawn = draw(checkpoint.folder, sampler, number, num_workers=num_workers)
    lists = {"raw": drawn.raw, "decoded": drawn.decoded}
    return {
        "weights": checkpoint.weights_hash,
        "sampler": label(sampler),
        "settings": asdict(sampler),
        "steps": sampler.num_steps,
        "samples": number,
        "seed": SEED,
        "versions": versions(),
        "results": {
            form: [result.to_dict() for result in score(molecules).results if result.name in _KEPT]
            for form, molecules in lists.items()
        },
    }


def value(point: Point, form: str, name: str) -> float:
    """A result of a point; 0 where it has none."""
    return next((result["value"] or 0.0 for result in point["results"][form] if result["name"] == name), 0.0)


def table(points: Sequence[Point]) -> str:
    """The points as a Markdown table; ± is the standard error of a share of so many molecules."""
    names = [f"{title}, {form}" for title in SHOWN.values() for form in FORMS]
    lines = ["| sampler | steps | " + " | ".join(names) + " | molecules |"]
    lines.append("|---" * (len(names) + 3) + "|")
    for point in points:
        shares = [value(point, form, name) for name in SHOWN for form in FORMS]
        errors = [math.sqrt(share * (1 - share) / point["samples"]) for share in shares]
        cells = [f"{100 * share:.1f} ± {100 * error:.1f} %" for share, error in zip(shares, errors, strict=True)]
        head = [point["sampler"], str(point["steps"]), *cells, f"{point['samples']:,}"]
        lines.append(f"| {' | '.join(head)} |")
    return "\n".join(lines)


def plot(points: Sequence[Point]) -> str:
    """The points as SVG, without any package: a panel for every result, raw and decoded, and a line per sampler."""
    samplers = list(dict.fromkeys(point["sampler"] for point in points))
    panels = [(name, form) for name in SHOWN for form in FORMS]
    parts = [
        _panel(points, samplers, name, form, (number % 2) * _WIDTH, (number // 2) * _HEIGHT)
        for number, (name, form) in enumerate(panels)
    ]
    bottom = _HEIGHT * -(-len(panels) // 2)
    for number, sampler in enumerate(samplers):
        y, colour = bottom + 14 + 16 * number, _COLOURS[number % len(_COLOURS)]
        parts.append(f'<text x="{_LEFT}" y="{y}" fill="{colour}">sampler: {html.escape(sampler)}</text>\n')
    size = f'width="{2 * _WIDTH}" height="{bottom + 16 * len(samplers) + 8}"'
    style = 'font-family="sans-serif" font-size="11" fill="#333"'
    background = '<rect width="100%" height="100%" fill="#fff"/>\n'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>\n{background}{"".join(parts)}</svg>\n'


def _panel(points: Sequence[Point], samplers: Sequence[str], name: str, form: str, left: int, top: int) -> str:
    """One result over the number of steps, which is on a logarithmic scale."""
    steps = sorted({point["steps"] for point in points})
    floor = min(value(point, form, name) for point in points)
    low = math.floor(10 * min(floor, 0.99)) / 10
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    span = math.log(steps[-1] / steps[0]) or 1.0

    def place(step: int, share: float) -> tuple[float, float]:
        x = left + _LEFT + width * math.log(step / steps[0]) / span
        return x, top + _TOP + height * (1 - (share - low) / (1 - low))

    parts = [f'<text x="{left + _LEFT}" y="{top + 18}" font-weight="bold">{SHOWN[name]}, {form}</text>\n']
    for share in (low, (1 + low) / 2, 1.0):
        y = place(steps[0], share)[1]
        parts.append(
            f'<line x1="{left + _LEFT}" x2="{left + _LEFT + width}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>\n'
        )
        parts.append(f'<text x="{left + _LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{100 * share:g} %</text>\n')
    for step in steps:
        x = place(step, low)[0]
        parts.append(f'<text x="{x:.1f}" y="{top + _TOP + height + 15}" text-anchor="middle">{step}</text>\n')
    middle = left + _LEFT + width / 2
    parts.append(f'<text x="{middle}" y="{top + _HEIGHT - 6}" text-anchor="middle">network calls a molecule</text>\n')
    for number, sampler in enumerate(samplers):
        colour = _COLOURS[number % len(_COLOURS)]
        own = [place(point["steps"], value(point, form, name)) for point in points if point["sampler"] == sampler]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in own)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>\n')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>\n' for x, y in own]
    return "".join(parts)
