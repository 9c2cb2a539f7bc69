"""Tasks as users ask for them, and the starts that they are made of."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from moldiff.batch import Molecule, NoiseLevel, collate
from moldiff.data.statistics import Statistics
from moldiff.drawing import Task
from moldiff.sampler import Start
from moldiff.vocabulary import Vocabulary

_MAX_NAME = 4096
"""Longer texts are no names of files."""


class Request(Protocol):
    """A task as a user asks for it; a frozen dataclass of plain options."""

    def prepare(self, vocabulary: Vocabulary, statistics: Statistics) -> Task:
        """The same for a model.

        Raises:
            MoldiffError: when that model, or any, cannot do it.
        """
        ...


def known_start(known: Molecule, vocabulary: Vocabulary, *, new_atoms: int) -> Start:
    """Known atoms with their coordinates and the bonds among them, then new atoms of which nothing is known."""
    size = known.num_heavy_atoms
    level = np.ones(size + new_atoms)
    level[:size] = 0
    pairs = np.maximum(level[:, None], level)
    return start_at(known, vocabulary, pos=level, atom=level, bond=pairs)


def start_at(
    known: Molecule,
    vocabulary: Vocabulary,
    *,
    pos: np.ndarray,
    atom: np.ndarray,
    bond: np.ndarray,
    allowed: np.ndarray | None = None,
) -> Start:
    """A molecule at the given noise levels, atoms that `known` lacks behind those that it has.

    Hydrogens are known where coordinates are, and otherwise not at all.

    Args:
        known: clean values (Å).
        vocabulary: must have the classes of its atoms.
        pos: level of the coordinates [n].
        atom: level of the classes [n].
        bond: symmetric level of the bonds [n, n].
        allowed: classes that each atom may have [n, K]; None = any.
    """
    clean = collate([known], vocabulary, len(pos))
    clean = clean.replace(node_mask=torch.ones(1, len(pos), dtype=torch.bool))
    return Start(
        clean,
        NoiseLevel(*(torch.from_numpy(level.astype(np.float32))[None] for level in (pos, atom, bond, pos > 0))),
        None if allowed is None else torch.from_numpy(allowed)[None],
    )


def description(request: Request) -> dict[str, Any]:
    """The request in JSON's types: its name and options, of files also a hash of what they hold."""
    options: dict[str, Any] = {"name": type(request).__name__.lower()}
    for option in fields(request):  # type: ignore[arg-type]  # every request is a dataclass
        value = getattr(request, option.name)
        if value is None:
            continue
        options[option.name] = _plain(value)
        if isinstance(value, str | Path) and len(str(value)) < _MAX_NAME and Path(value).is_file():
            options[f"{option.name}_sha256"] = hashlib.sha256(Path(value).read_bytes()).hexdigest()[:16]
    return options


def _plain(value: Any) -> Any:
    if isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Sequence):
        return [_plain(entry) for entry in value]
    return f"{type(value).__name__} from Python"
