"""The quality of a model during its training: sample from it, and count."""

from __future__ import annotations

import torch

from moldiff.batch import to_molecules
from moldiff.decode import decode_raw, decode_valence
from moldiff.metrics.summary import quality
from moldiff.model import MoleculeDiffusion
from moldiff.randomness import MoleculeDraws, draw_size, molecule_generator
from moldiff.sampler import PowerSampler, Start, run_sampler

_LOGGED = ("p1_atom_stable", "p1_molecule_stable", "p2_molecule_stable", "p2_valid", "p2_valid_unique")


def sample_quality(model: MoleculeDiffusion, *, num_samples: int, sampler: PowerSampler) -> dict[str, float]:
    """P1 and P2 of raw molecules and validity of decoded ones, for molecules 0 to num_samples - 1 of seed 0."""
    generators = [molecule_generator(0, index) for index in range(num_samples)]
    sizes = torch.tensor([draw_size(generator, model.statistics.size_counts) for generator in generators])
    device = next(model.parameters()).device
    node_mask = (torch.arange(int(sizes.max())) < sizes[:, None]).to(device)
    prediction = run_sampler(model, sampler, Start.unknown(node_mask), MoleculeDraws(generators, device=device))
    raw = quality(to_molecules(decode_raw(prediction, node_mask), model.vocabulary))
    decoded = decode_valence(prediction, node_mask, model.vocabulary).batch
    scores = {name: raw[name] for name in _LOGGED if name in raw}
    return scores | {"decoded_p2_valid": quality(to_molecules(decoded, model.vocabulary))["p2_valid"]}
