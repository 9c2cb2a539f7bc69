"""The learning curve of a model: quality over molecules seen and hours, from its trainings and its earlier cards."""

from __future__ import annotations

import csv
import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from moldiff.diffusion.shipped import CONFIG_FILE
from moldiff.errors import MoldiffError
from moldiff.molecules.formats.storage import write_atomically

DATA_FILE, PLOT_FILE = "learning.json", "learning.svg"
SHOWN = {
    "p2_valid": "P2 valid and connected, raw",
    "p1_molecule_stable": "P1 molecule stable, raw",
    "p2_novel": "novel of valid and distinct, raw",
}
"""Results that are tabled and plotted."""

LOG = Path("log") / "metrics.csv"
_STRETCH = re.compile(r"([\d,]+) steps of (\d+) molecules in ([\d.]+) minutes")
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 640, 280, 56, 20, 30, 76
_COLOURS = ("#1b6ca8", "#d1495b", "#3a7d44")

Point = Mapping[str, Any]


def load_points(folder: Path) -> list[Point]:
    """The points that a model's folder has, by molecules seen; [] without a file."""
    path = folder / DATA_FILE
    points: list[Point] = json.loads(path.read_text(encoding="utf-8"))["points"] if path.is_file() else []
    return points


def add_points(folder: Path, new: Iterable[Point]) -> list[Point]:
    """Write the points beside the weights together with those there, and the plot of all.

    A point takes the place of one of the same origin with as many molecules seen.
    """
    found = {_place(point): point for point in [*load_points(folder), *new]}
    points = [found[place] for place in sorted(found)]
    write_atomically(folder / DATA_FILE, (json.dumps({"points": points}, indent=1, allow_nan=False) + "\n").encode())
    write_atomically(folder / PLOT_FILE, plot(points).encode())
    return points


def _place(point: Point) -> tuple[int, str]:
    return int(point["molecules"]), str(point["origin"])


def seen(history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Molecules seen, seconds and machines of stretches of training."""
    machines = dict.fromkeys(str(stretch["machine"]) for stretch in history if stretch.get("machine"))
    return {
        "molecules": sum(int(stretch["steps"]) * int(stretch["batch_size"]) for stretch in history),
        "seconds": sum(float(stretch["seconds"]) for stretch in history),
        "machine": ", ".join(machines) or None,
    }


def point_of_card(document: Mapping[str, Any], machine: str | None = None) -> Point:
    """The point of a model's card, an earlier one's included.

    Raises:
        MoldiffError: when the card does not say how the model was trained.
    """
    text = document["facts"]["training, in order"]
    parts = [
        (int(steps.replace(",", "")), int(size), float(minutes)) for steps, size, minutes in _STRETCH.findall(text)
    ]
    told = [{"steps": steps, "batch_size": size, "seconds": 60 * minutes} for steps, size, minutes in parts]
    history = document.get("history") or told
    if not history:
        raise MoldiffError(f"card: got {text!r} as its training, expected steps, molecules and minutes")
    column = next(iter(document["results"].values()))
    values = {result["name"]: result for result in column}
    return {
        **_with_machine(seen(history), machine),
        "weights": document["facts"]["weights"].split()[0],
        "origin": "card",
        "samples": values["p2_valid"]["denominator"],
        **{name: values[name]["value"] if name in values else None for name in SHOWN},
    }


def points_of_training(folder: Path, machine: str | None = None) -> list[Point]:
    """The points of a training's own log, whose samples were few.

    Raises:
        MoldiffError: when the folder is not that of a training.
    """
    config, log = folder / CONFIG_FILE, folder / LOG
    if not (config.is_file() and log.is_file()):
        raise MoldiffError(f"training: got {folder}, expected the folder of one, with {CONFIG_FILE} and {LOG}")
    document = json.loads(config.read_text(encoding="utf-8"))
    if not document.get("history"):
        raise MoldiffError(f"training: got {config}, which lacks the history that says what was trained before")
    *before, own = document["history"]
    options = document.get("training", {}).get("trainer", {})
    with log.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("sample/p2_valid")]
    points: list[Point] = []
    for row in rows:
        share = int(row["step"]) / int(own["steps"])
        stretch = own | {"steps": int(row["step"]), "seconds": own["seconds"] * share}
        points.append(
            {
                **_with_machine(seen([*before, stretch]), machine),
                "weights": None,
                "origin": "training",
                "samples": options.get("num_quality_samples"),
                **{name: float(row[f"sample/{name}"]) if row.get(f"sample/{name}") else None for name in SHOWN},
            }
        )
    return points


def _with_machine(facts: dict[str, Any], machine: str | None) -> dict[str, Any]:
    return facts | {"machine": facts["machine"] or machine}


def table(points: Sequence[Point]) -> str:
    """The points as a Markdown table."""
    head = ["molecules seen", "hours", "machine", *SHOWN.values(), "from"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for point in points:
        shares = ["–" if point[name] is None else f"{100 * point[name]:.1f} %" for name in SHOWN]
        number = "" if point["samples"] is None else f", {point['samples']:,} molecules"
        origin = f"card {point['weights']}" if point["weights"] else "a validation in training"
        hours = f"{point['seconds'] / 3600:.1f}"
        cells = [f"{point['molecules']:,}", hours, point["machine"] or "not recorded", *shares, f"{origin}{number}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(points: Sequence[Point]) -> str:
    """The points as SVG, without any package: a line per result, dots for cards."""
    most = max([int(point["molecules"]) for point in points] or [1]) or 1
    least = min([point[name] for point in points for name in SHOWN if point[name] is not None] or [0.0])
    low = int(10 * min(least, 0.99)) / 10
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def place(point: Point, value: float) -> tuple[float, float]:
        return _LEFT + width * point["molecules"] / most, _TOP + height * (1 - (value - low) / (1 - low))

    parts = ['<rect width="100%" height="100%" fill="#fff"/>\n']
    for share in (low, (1 + low) / 2, 1.0):
        y = place({"molecules": 0}, share)[1]
        parts.append(f'<line x1="{_LEFT}" x2="{_LEFT + width}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>\n')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{100 * share:g} %</text>\n')
    for share in (0.0, 0.5, 1.0):
        x = _LEFT + width * share
        label = f"{most * share / 1e6:.3g} M"
        parts.append(f'<text x="{x:.1f}" y="{_TOP + height + 15}" text-anchor="middle">{label}</text>\n')
    parts.append(f'<text x="{_LEFT + width}" y="{_TOP + height + 30}" text-anchor="end">molecules seen</text>\n')
    for number, (name, title) in enumerate(SHOWN.items()):
        colour = _COLOURS[number]
        own = [(point, place(point, point[name])) for point in points if point[name] is not None]
        line = " ".join(f"{x:.1f},{y:.1f}" for _, (x, y) in own)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>\n')
        parts += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>\n'
            for point, (x, y) in own
            if point["origin"] == "card"
        ]
        y = _TOP + height + 32 + 14 * number
        parts.append(f'<text x="{_LEFT}" y="{y}" fill="{colour}">{html.escape(title)}</text>\n')
    style = 'font-family="sans-serif" font-size="11" fill="#333"'
    size = f'width="{_WIDTH}" height="{_HEIGHT}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>\n{"".join(parts)}</svg>\n'
