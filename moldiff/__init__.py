"""3D molecules by E(3)-equivariant diffusion of atoms, charges, bonds and coordinates."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moldiff.diffusion.shipped import available_models
    from moldiff.evaluation.evaluate import evaluate
    from moldiff.molecules.formats.reader import read
    from moldiff.molecules.formats.writer import write
    from moldiff.sampling.config import SamplingConfig
    from moldiff.sampling.generator import load

__version__ = "0.1.0"

__all__ = ["SamplingConfig", "__version__", "available_models", "evaluate", "load", "read", "write"]

_HOMES = {
    "SamplingConfig": "moldiff.sampling.config",
    "available_models": "moldiff.sampling.generator",
    "load": "moldiff.sampling.generator",
    "evaluate": "moldiff.evaluation.evaluate",
    "read": "moldiff.molecules.formats.reader",
    "write": "moldiff.molecules.formats.writer",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for only then, so that `moldiff --help` need not wait for torch and RDKit."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'moldiff' has no attribute {name!r}")
