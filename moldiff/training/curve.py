"""The course of a training as a picture: losses and the quality of samples over steps, as SVG without any package."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from moldiff.molecules.formats.storage import write_atomically

CURVE_FILE = "curve.svg"
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 640, 240, 56, 170, 28, 34
_COLOURS = ("#1b6ca8", "#d1495b", "#3a7d44", "#8d6a9f", "#c98a1b", "#4a4a4a", "#17a2a2")

Series = Mapping[str, Sequence[tuple[int, float]]]


def write_curve(path: Path, rows: Mapping[int, Mapping[str, float]]) -> None:
    """Draw the numbers of a training by step: `train/loss` and `valid/loss` above, `sample/...` below."""
    losses = _series(rows, ("train/loss", "valid/loss"))
    names = sorted({name for row in rows.values() for name in row if name.startswith("sample/")})
    panels = [("Loss", losses, None), ("Quality of samples", _series(rows, names), (0.0, 1.0))]
    drawn = [(title, series, span) for title, series, span in panels if series]
    if not drawn:
        return
    last = max(rows)
    parts = [_panel(k * _HEIGHT, title, series, span, last) for k, (title, series, span) in enumerate(drawn)]
    size = f'width="{_WIDTH}" height="{_HEIGHT * len(drawn)}"'
    style = 'font-family="sans-serif" font-size="11" fill="#333"'
    text = f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>\n{"".join(parts)}</svg>\n'
    write_atomically(path, text.encode())


def _series(rows: Mapping[int, Mapping[str, float]], names: Sequence[str]) -> dict[str, list[tuple[int, float]]]:
    """The finite values of every name that has any, by step."""
    found = {
        name: [(step, row[name]) for step, row in sorted(rows.items()) if math.isfinite(row.get(name, math.nan))]
        for name in names
    }
    return {name: points for name, points in found.items() if points}


def _panel(top: int, title: str, series: Series, span: tuple[float, float] | None, last: int) -> str:
    values = [value for points in series.values() for _, value in points]
    low, high = span or (min(values), max(values))
    high = high if high > low else low + 1.0
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def place(step: float, value: float) -> tuple[float, float]:
        share = (value - low) / (high - low)
        return _LEFT + width * step / max(1, last), top + _TOP + height * (1 - min(1.0, max(0.0, share)))

    parts = [f'<text x="{_LEFT}" y="{top + 16}" font-weight="bold">{title}</text>\n']
    for share in (0.0, 0.5, 1.0):
        value = low + share * (high - low)
        y = place(0, value)[1]
        parts.append(f'<line x1="{_LEFT}" x2="{_LEFT + width}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>\n')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>\n')
        x, step = place(share * last, low)[0], round(share * last)
        parts.append(f'<text x="{x:.1f}" y="{top + _HEIGHT - 16}" text-anchor="middle">{step}</text>\n')
    parts.append(f'<text x="{_LEFT + width}" y="{top + _HEIGHT - 3}" text-anchor="end">steps</text>\n')
    for number, (name, points) in enumerate(series.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>\n')
        x, y = place(*points[-1])
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>\n')
        label = f"{name.partition('/')[2] if name.startswith('sample/') else name} {points[-1][1]:.3g}"
        y = top + _TOP + 8 + 15 * number
        parts.append(f'<text x="{_LEFT + width + 10}" y="{y}" fill="{colour}">{html.escape(label)}</text>\n')
    return "".join(parts)
