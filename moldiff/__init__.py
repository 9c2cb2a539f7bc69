"""3D molecules by E(3)-equivariant diffusion of atoms, charges, bonds and coordinates."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moldiff.evaluation import evaluate
    from moldiff.generate import available_models, load
    from moldiff.io import read, write

__version__ = "0.1.0"

__all__ = ["__version__", "available_models", "evaluate", "load", "read", "write"]

_HOMES = {
    "available_models": "moldiff.generate",
    "load": "moldiff.generate",
    "evaluate": "moldiff.evaluation",
    "read": "moldiff.io",
    "write": "moldiff.io",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for only then, so that `moldiff --help` need not wait for torch and RDKit."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'moldiff' has no attribute {name!r}")
