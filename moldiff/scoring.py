"""The quality of a model during its training: sample from it, and count."""

from __future__ import annotations

from moldiff.batch import Molecule
from moldiff.drawing import Beginning, MemoryBudget, NewMolecules, draw_within
from moldiff.metrics.summary import quality
from moldiff.model import MoleculeDiffusion
from moldiff.sampler import PowerSampler

_LOGGED = ("p1_atom_stable", "p1_molecule_stable", "p2_molecule_stable", "p2_valid", "p2_valid_unique")


def sample_quality(model: MoleculeDiffusion, *, num_samples: int, sampler: PowerSampler) -> dict[str, float]:
    """P1 and P2 of raw molecules and validity of decoded ones, for molecules 0 to num_samples - 1 of seed 0."""
    task = NewMolecules(model.statistics.size_counts)
    raw: list[Molecule] = []
    decoded: list[Molecule] = []
    beginnings = (Beginning.of(task, 0, index) for index in range(num_samples))
    budget = MemoryBudget.of(next(model.parameters()).device)
    for _, drawn in draw_within(budget, model, sampler, beginnings):
        raw += drawn.decode("raw")[0]
        decoded += drawn.decode("valence")[0]
    found = quality(raw)
    scores = {name: found[name] for name in _LOGGED if name in found}
    return scores | {"decoded_p2_valid": quality(decoded)["p2_valid"]}
