"""Figures of a benchmark, kept in a JSON file, and the tables of documents that are written from them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def known(store: Path) -> dict[str, Any]:
    """What was measured before; {} without a file."""
    found: dict[str, Any] = json.loads(store.read_text(encoding="utf-8")) if store.is_file() else {}
    return found


def add(store: Path, figures: Mapping[str, Any]) -> dict[str, Any]:
    """Put figures beside those that were measured before; returns all."""
    found = known(store) | dict(figures)
    store.parent.mkdir(exist_ok=True)
    store.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return found


def fill(document: Path, tables: Mapping[str, Sequence[Sequence[str]]]) -> None:
    """Write tables, each as rows of which the first is the head, between the marks of their name in a document."""
    text = document.read_text(encoding="utf-8")
    for name, (head, *rows) in tables.items():
        lines = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]
        content = "\n".join(lines) if rows else "Not measured yet."
        place = re.compile(rf"(<!-- measured: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text = place.sub(lambda found, content=content: f"{found[1]}{content}\n{found[2]}", text)
    document.write_text(text, encoding="utf-8")
