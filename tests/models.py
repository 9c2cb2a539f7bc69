"""Small models and batches that several test modules share."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moldiff.diffusion.batch import MolBatch, NoiseLevel, Prediction
from moldiff.diffusion.conditioning import Properties
from moldiff.diffusion.model import MoleculeDiffusion
from moldiff.diffusion.nn.pair_transformer import PairTransformer
from moldiff.diffusion.process.joint import JointProcess, JointProcessConfig
from moldiff.diffusion.shipped import available_models
from moldiff.diffusion.statistics import Statistics
from moldiff.molecules.vocabulary import AtomClass, Vocabulary

needs_weights = pytest.mark.skipif("qm9" not in available_models(), reason="the weights qm9 are not here")

VOCABULARY = Vocabulary(
    (
        AtomClass(6, 0, 0),
        AtomClass(6, 0, 1),
        AtomClass(6, 0, 2),
        AtomClass(6, 0, 3),
        AtomClass(7, 0, 1),
        AtomClass(8, 0, 0),
        AtomClass(8, 0, 1),
    ),
    {},
)
NUM_CLASSES = VOCABULARY.num_atom_classes
STATISTICS = Statistics(
    size_counts={4: 1, 5: 2, 6: 1},
    atom_marginal=(0.2, 0.2, 0.2, 0.1, 0.1, 0.1, 0.1),
    bond_marginal=(0.6, 0.3, 0.08, 0.02),
    pos_scale=1.2,
    hydrogen_scale=0.6,
)


SIZES = {"hidden_dim": 16, "pair_dim": 8, "steerable_dim": 8, "num_layers": 2, "num_heads": 2, "num_probes": 4}
MODEL_CONFIG = {
    "denoiser": {"_target_": "moldiff.diffusion.nn.pair_transformer.PairTransformer", **SIZES},
    "process": {"_target_": "moldiff.diffusion.process.joint.JointProcessConfig"},
}
"""What `config.json` says of `small_model`."""


def small_denoiser(seed: int = 0, **options: int) -> PairTransformer:
    """A network with random weights everywhere, so that no branch is switched off by a zero initialisation."""
    return randomised(PairTransformer, seed, **(SIZES | options))


def randomised(kind: type[PairTransformer], seed: int = 0, **options: int) -> PairTransformer:
    """A network of this kind with random weights everywhere."""
    torch.manual_seed(seed)
    network = kind(num_atom_classes=NUM_CLASSES, **options)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return network.double()


def small_process(**options: object) -> JointProcess:
    config = JointProcessConfig(**options)  # type: ignore[arg-type]
    return config.build(torch.tensor(STATISTICS.atom_marginal), torch.tensor(STATISTICS.bond_marginal))


def small_model(seed: int = 0) -> MoleculeDiffusion:
    return MoleculeDiffusion(small_denoiser(seed), small_process(), VOCABULARY, STATISTICS).eval()


def conditional_model(seed: int = 0) -> MoleculeDiffusion:
    """`small_model` that is told two properties, `one` and `other`, to which every class contributes something."""
    values = np.array([[0.0, 1.0], [2.0, 5.0]])
    properties = Properties.of({"one": "", "other": ""}, values, np.array([4, 5]))
    model = MoleculeDiffusion(
        small_denoiser(seed, num_properties=2), small_process(), VOCABULARY, STATISTICS, properties
    )
    slopes = model.denoiser.condition.slopes
    slopes.normal_(generator=torch.Generator().manual_seed(seed))
    return model.eval()


def random_batch(sizes: list[int], seed: int = 0, width: int | None = None) -> MolBatch:
    """Molecules of random classes and coordinates in double precision."""
    generator = torch.Generator().manual_seed(seed)
    width = width or max(sizes)
    mask = torch.arange(width) < torch.tensor(sizes)[:, None]
    shape = (len(sizes), width)
    pos = torch.randn(*shape, 3, generator=generator, dtype=torch.double) * mask[..., None]
    hydrogen = torch.randn(*shape, 4, 3, generator=generator, dtype=torch.double) * mask[..., None, None]
    atoms = torch.randint(NUM_CLASSES, shape, generator=generator) * mask
    bond = torch.randint(4, (*shape, width), generator=generator).triu(1)
    bond = (bond + bond.mT) * (mask[:, :, None] & mask[:, None])
    return MolBatch(pos, hydrogen, atoms, bond, mask).validate()


def random_level(batch: MolBatch, seed: int = 0) -> NoiseLevel:
    """Independent levels for every atom, pair and field."""
    generator = torch.Generator().manual_seed(seed)
    shape = batch.node_mask.shape
    nodes = torch.rand(3, *shape, generator=generator, dtype=torch.double)
    pairs = torch.rand(*shape, shape[1], generator=generator, dtype=torch.double).triu(1)
    return NoiseLevel(nodes[0], nodes[1], pairs + pairs.mT, nodes[2])


def random_prediction(batch: MolBatch, seed: int = 0) -> Prediction:
    """An arbitrary previous estimate with the symmetries of a real one."""
    other = random_batch(batch.node_mask.sum(1).tolist(), seed + 1, batch.max_atoms)
    generator = torch.Generator().manual_seed(seed)
    shape = batch.node_mask.shape
    atoms = torch.randn(*shape, NUM_CLASSES, generator=generator, dtype=torch.double)
    bonds = torch.randn(*shape, shape[1], 4, generator=generator, dtype=torch.double)
    return Prediction(other.pos, other.hydrogen, atoms, bonds + bonds.transpose(1, 2))
