"""Every registered denoiser, and the whole sampler, commute with rotations, reflections, translations, permutations."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from models import (
    NUM_CLASSES,
    STATISTICS,
    VOCABULARY,
    random_batch,
    random_level,
    random_prediction,
    randomised,
    small_denoiser,
    small_process,
)
from scipy.spatial.transform import Rotation
from torch import Tensor

from moldiff.diffusion.batch import MolBatch, NoiseLevel, Prediction
from moldiff.diffusion.model import Denoiser, MoleculeDiffusion
from moldiff.diffusion.nn.egnn import EGNN
from moldiff.diffusion.nn.embedding import PairHarmonics, SteerableLayout
from moldiff.diffusion.sampler import PartialState, PowerSampler, run_sampler

DENOISERS: dict[str, Callable[[], Denoiser]] = {
    "pair_transformer": small_denoiser,
    "one layer, one head": lambda: small_denoiser(num_layers=1, num_heads=1),
    "egnn": lambda: randomised(EGNN, hidden_dim=16, pair_dim=8, steerable_dim=4, num_layers=2),
}
SIZES = [5, 3, 4]
TOLERANCE = {"rtol": 0, "atol": 1e-9}


def orthogonal(seed: int, *, reflect: bool) -> Tensor:
    matrix = torch.from_numpy(Rotation.random(random_state=seed).as_matrix())
    return -matrix if reflect else matrix


def turned(prediction: Prediction, matrix: Tensor) -> Prediction:
    return Prediction(prediction.pos @ matrix.T, prediction.hydrogen @ matrix.T, prediction.atom_type, prediction.bond)


def assert_same(one: Prediction, other: Prediction, mask: Tensor, tolerance: float = 1e-9) -> None:
    pairs = mask[:, :, None] & mask[:, None]
    for name in ("pos", "hydrogen", "atom_type", "bond"):
        where = pairs if name == "bond" else mask
        torch.testing.assert_close(getattr(one, name)[where], getattr(other, name)[where], rtol=0, atol=tolerance)


@pytest.fixture(params=DENOISERS)
def denoiser(request: pytest.FixtureRequest) -> Denoiser:
    return DENOISERS[request.param]()


@pytest.mark.parametrize("reflect", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_denoiser_turns_with_its_input(denoiser: Denoiser, seed: int, reflect: bool) -> None:
    batch, matrix = random_batch(SIZES, seed), orthogonal(seed, reflect=reflect)
    level, previous = random_level(batch, seed), random_prediction(batch, seed)
    moved = batch.replace(pos=batch.pos @ matrix.T, hydrogen=batch.hydrogen @ matrix.T)
    expected = turned(denoiser(batch, level, previous), matrix)
    assert_same(denoiser(moved, level, turned(previous, matrix)), expected, batch.node_mask)


def test_denoiser_moves_with_its_input_where_atoms_are_known(denoiser: Denoiser) -> None:
    batch = random_batch(SIZES)
    level = random_level(batch)
    known = torch.zeros_like(level.pos)
    known[:, 0] = 1
    level = NoiseLevel(level.pos * (1 - known), level.atom, level.bond, level.hydrogen)
    shift = torch.tensor([1.0, -2.0, 0.5]).double()
    moved = denoiser(batch.replace(pos=(batch.pos + shift) * batch.node_mask[..., None]), level, None)
    expected = denoiser(batch, level, None)
    mask = batch.node_mask
    torch.testing.assert_close(moved.pos[mask], (expected.pos + shift)[mask], **TOLERANCE)
    torch.testing.assert_close(moved.pos[:, 0], batch.pos[:, 0] + shift, **TOLERANCE)


def test_denoiser_ignores_translation_and_answers_centred_where_nothing_is_known(denoiser: Denoiser) -> None:
    batch = random_batch(SIZES)
    level = NoiseLevel.uniform(torch.full((3,), 0.5).double(), batch.node_mask)
    shifted = batch.replace(pos=(batch.pos + 3.0) * batch.node_mask[..., None])
    answer = denoiser(shifted, level, None)
    assert_same(answer, denoiser(batch, level, None), batch.node_mask)
    torch.testing.assert_close(answer.pos.sum(1), torch.zeros(3, 3).double(), **TOLERANCE)


def permuted(batch: MolBatch, order: Tensor) -> MolBatch:
    return MolBatch(
        batch.pos[:, order],
        batch.hydrogen[:, order],
        batch.atom_type[:, order],
        batch.bond[:, order][:, :, order],
        batch.node_mask[:, order],
    )


def permuted_prediction(prediction: Prediction, order: Tensor) -> Prediction:
    return Prediction(
        prediction.pos[:, order],
        prediction.hydrogen[:, order],
        prediction.atom_type[:, order],
        prediction.bond[:, order][:, :, order],
    )


def test_denoiser_permutes_with_atoms(denoiser: Denoiser) -> None:
    batch, order = random_batch([5, 5]), torch.tensor([3, 1, 4, 0, 2])
    level, previous = random_level(batch), random_prediction(batch)
    moved_level = NoiseLevel(
        level.pos[:, order], level.atom[:, order], level.bond[:, order][:, :, order], level.hydrogen[:, order]
    )
    moved = denoiser(permuted(batch, order), moved_level, permuted_prediction(previous, order))
    assert_same(moved, permuted_prediction(denoiser(batch, level, previous), order), batch.node_mask)


def test_denoiser_is_blind_to_padding_and_to_the_rest_of_the_batch(denoiser: Denoiser) -> None:
    wide = random_batch(SIZES, width=7)
    level = NoiseLevel.uniform(torch.tensor([0.2, 0.5, 0.9]).double(), wide.node_mask)
    together = denoiser(wide, level, None)
    for row, size in enumerate(SIZES):
        alone = MolBatch(
            wide.pos[row : row + 1, :size],
            wide.hydrogen[row : row + 1, :size],
            wide.atom_type[row : row + 1, :size],
            wide.bond[row : row + 1, :size, :size],
            wide.node_mask[row : row + 1, :size],
        )
        own_level = NoiseLevel.uniform(level.pos[row : row + 1, 0], alone.node_mask)
        expected = denoiser(alone, own_level, None)
        part = Prediction(
            together.pos[row : row + 1, :size],
            together.hydrogen[row : row + 1, :size],
            together.atom_type[row : row + 1, :size],
            together.bond[row : row + 1, :size, :size],
        )
        assert_same(part, expected, alone.node_mask)


def test_denoiser_answers_with_symmetric_bonds_and_the_right_shapes(denoiser: Denoiser) -> None:
    batch = random_batch(SIZES)
    answer = denoiser(batch, random_level(batch), None)
    assert answer.atom_type.shape == (3, 5, NUM_CLASSES)
    assert answer.bond.shape == (3, 5, 5, 4)
    torch.testing.assert_close(answer.bond, answer.bond.transpose(1, 2), **TOLERANCE)


@pytest.mark.parametrize("reflect", [False, True])
def test_harmonics_turn_by_the_layouts_matrix(reflect: bool) -> None:
    layout = SteerableLayout(4)
    matrix = orthogonal(5, reflect=reflect)
    vectors = torch.randn(6, 3, dtype=torch.double)
    harmonics = PairHarmonics(layout)
    distance = vectors.norm(dim=-1)
    expected = harmonics(vectors, distance) @ layout.rotation(matrix).double().T
    # e3nn computes its rotation matrices through angles, which costs some digits.
    torch.testing.assert_close(harmonics(vectors @ matrix.T, distance), expected, rtol=0, atol=1e-6)


class TransformedDraws:
    """The normal numbers of another source, turned, shifted and permuted; the uniform ones permuted."""

    def __init__(self, seed: int, matrix: Tensor, order: Tensor, shift: float = 0.0) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.matrix, self.order, self.shift = matrix, order, shift

    def normal(self, node_mask: Tensor, *tail: int) -> Tensor:
        noise = torch.randn(*node_mask.shape, *tail, generator=self.generator, dtype=torch.double)
        # A shift of the coordinates' noise is projected out; offsets of hydrogens are differences and have none.
        return noise[:, self.order] @ self.matrix.T + (self.shift if tail == (3,) else 0.0)

    def uniform(self, node_mask: Tensor) -> tuple[Tensor, Tensor]:
        batch, size = node_mask.shape
        atoms = torch.rand(batch, size, 2, generator=self.generator, dtype=torch.double)
        pairs = torch.rand(batch, size, size, 2, generator=self.generator, dtype=torch.double)
        upper = pairs * torch.ones(size, size).triu(1)[..., None]
        pairs = upper + upper.transpose(1, 2)
        return atoms[:, self.order], pairs[:, self.order][:, :, self.order]


@pytest.mark.parametrize("churn", [0.0, 0.7])
@pytest.mark.parametrize("reflect", [False, True])
def test_whole_sampler_commutes_with_the_noises_rotation_translation_and_permutation(
    reflect: bool, churn: float
) -> None:
    model = MoleculeDiffusion(small_denoiser(), small_process(), VOCABULARY, STATISTICS).double()
    mask = torch.ones(2, 5, dtype=torch.bool)
    sampler = PowerSampler(num_steps=10, churn=churn)
    matrix, order = orthogonal(3, reflect=reflect), torch.tensor([2, 0, 3, 1, 4])
    plain = run_sampler(
        model, sampler, PartialState.unknown(mask), TransformedDraws(1, torch.eye(3).double(), torch.arange(5))
    )
    moved = run_sampler(model, sampler, PartialState.unknown(mask), TransformedDraws(1, matrix, order, shift=2.5))
    assert_same(moved, turned(permuted_prediction(plain, order), matrix), mask, tolerance=1e-8)


def test_every_block_of_the_network_can_be_traced_for_torch_compile(denoiser: Denoiser) -> None:
    """Training compiles block by block; what the compiler cannot follow would only show on a long run."""
    batch, level, previous = random_batch(SIZES), random_level(random_batch(SIZES)), None
    for parameter in denoiser.parameters():  # type: ignore[attr-defined]
        parameter.requires_grad_(False)  # with gradients the tracing itself warns
    expected = denoiser(batch, level, previous)
    for layer in denoiser.get_submodule("layers").children():  # type: ignore[attr-defined]
        layer.compile(backend="eager", fullgraph=True, dynamic=False)
    assert_same(denoiser(batch, level, previous), expected, batch.node_mask)
