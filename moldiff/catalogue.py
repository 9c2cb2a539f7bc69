"""Which models there are, each in one line from its config and its card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from moldiff.checkpoint import WEIGHTS_FILE, find_model
from moldiff.shipped import CONFIG_FILE, available_models
from moldiff.vocabulary import SYMBOLS


def model_lines() -> list[str]:
    """Name, heavy atoms, elements, properties, size and data of every model that ships with the package."""
    names = available_models()
    width = max((len(name) for name in names), default=0)
    return [f"{name:<{width}}  {_line(find_model(name))}" for name in names]


def _line(folder: Path) -> str:
    config = _read(folder / CONFIG_FILE)
    sizes = [size for size, _ in config["statistics"]["size_counts"]]
    numbers = sorted({number for number, _, _ in config["vocabulary"]["atom_classes"]})
    elements = " ".join(SYMBOLS[number] for number in numbers)
    megabytes = (folder / WEIGHTS_FILE).stat().st_size / 1e6
    card = folder / "card.json"
    data = _read(card)["facts"]["data"] if card.is_file() else "no card"
    names = " ".join(entry["name"] for entry in config.get("properties", ()))
    told = f"towards {names}; " if names else ""
    return f"{min(sizes)} to {max(sizes)} heavy atoms of {elements}; {told}{megabytes:.1f} MB; {data}"


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
