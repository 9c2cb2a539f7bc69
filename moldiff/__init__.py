"""3D molecules by E(3)-equivariant diffusion of atoms, charges, bonds and coordinates."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moldiff.diffusion.shipped import available_models
    from moldiff.errors import MoldiffError
    from moldiff.evaluation.evaluate import evaluate
    from moldiff.molecules.formats.reader import read
    from moldiff.molecules.formats.writer import write
    from moldiff.molecules.molecule import Molecule
    from moldiff.sampling.config import SamplingConfig
    from moldiff.sampling.generator import Generator, load
    from moldiff.sampling.sample import Sample, Samples
    from moldiff.sampling.verify import verify

__version__ = "0.1.0"

__all__ = [
    "Generator",
    "MoldiffError",
    "Molecule",
    "Sample",
    "Samples",
    "SamplingConfig",
    "__version__",
    "available_models",
    "evaluate",
    "load",
    "read",
    "verify",
    "write",
]

_HOMES = {
    "Generator": "moldiff.sampling.generator",
    "MoldiffError": "moldiff.errors",
    "Molecule": "moldiff.molecules.molecule",
    "Sample": "moldiff.sampling.sample",
    "Samples": "moldiff.sampling.sample",
    "SamplingConfig": "moldiff.sampling.config",
    "available_models": "moldiff.sampling.generator",
    "load": "moldiff.sampling.generator",
    "evaluate": "moldiff.evaluation.evaluate",
    "read": "moldiff.molecules.formats.reader",
    "verify": "moldiff.sampling.verify",
    "write": "moldiff.molecules.formats.writer",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for only then, so that `moldiff --help` need not wait for torch and RDKit."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'moldiff' has no attribute {name!r}")
