"""Guidance: to property values by the network's condition and how classes are drawn, to handedness by gradients."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from moldiff.diffusion.batch import MolBatch, NoiseLevel, NoiseSource, Prediction, TensorFields, center
from moldiff.diffusion.conditioning import Contributions, expected_bond_counts
from moldiff.diffusion.model import MoleculeDiffusion
from moldiff.diffusion.process.joint import JointProcess
from moldiff.errors import MoldiffError

MAX_GUIDANCE = 20.0  # the largest scale of guidance; good ones are around 1
FEEDBACK = 0.5  # how much of what is lacking of a value is made up for in every network call by default
_NUM_REDRAWS = 8  # draws of the classes of each step, of which the one that adds up nearest to the values is taken
_FARTHEST_VALUE = 2.0  # standard deviations between a network's condition and the value asked for, at most


class PropertyFeedback:
    """One run of molecules on the way to values: what is lacking of them is made up for, see docs/properties.md.

    In every call the network's condition goes so much (`gain`) of what is lacking beyond the values `requested` [B, C]
    (normalised, NaN = none), for `free` molecules [B] with a class to be drawn.
    """

    def __init__(self, contributions: Contributions, requested: Tensor, free: Tensor, gain: float) -> None:
        self.contributions, self.requested = contributions, requested
        self._gain = gain * contributions.explained * free[:, None]
        self._beyond = torch.zeros_like(requested)

    @classmethod
    def of(cls, model: MoleculeDiffusion, noisy: MolBatch, level: NoiseLevel) -> Self | None:
        """Of molecules that a model is about to draw from `noisy` at `level`; None = towards no values."""
        contributions = model.contributions
        if not model.feedback or noisy.condition is None or contributions is None:
            return None
        return cls(contributions, noisy.condition, ~level.graph_known(noisy.node_mask), model.feedback)

    @property
    def condition(self) -> Tensor:
        """The values [B, C] for the next call of the network."""
        return self.requested + self._beyond

    def update(self, prediction: Prediction, noisy: MolBatch) -> None:
        """Take an estimate into account."""
        beyond = self._beyond + self._gain * self.lacking(prediction, noisy)
        self._beyond = beyond.clamp(-_FARTHEST_VALUE, _FARTHEST_VALUE)

    def lacking(self, prediction: Prediction, batch: MolBatch, decided: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """What an estimate lacks of the values [B, C], see `expected_bond_counts`; NaN where none is asked for."""
        # Small differences of large sums, which bfloat16 would blur.
        with torch.autocast(batch.pos.device.type, enabled=False):
            return self.requested - self.contributions(expected_bond_counts(prediction, batch, decided))


@dataclass(frozen=True, eq=False, kw_only=True)
class FeedbackProcess(JointProcess):
    """A process of whose draws of the classes the one is taken that adds up nearest to the values of `feedback`.

    What a draw does not redraw counts as it is expected.
    """

    feedback: PropertyFeedback

    def step_classes(
        self, noisy: MolBatch, prediction: Prediction, t: NoiseLevel, s: NoiseLevel, draws: NoiseSource
    ) -> tuple[Tensor, Tensor]:
        each = []
        for _ in range(_NUM_REDRAWS):
            atoms, pairs = draws.uniform(noisy.node_mask)
            atom_type = self.atom_type.step(noisy.atom_type, prediction.atom_type, t.atom, s.atom, atoms)
            bond = self.bond.step(noisy.bond, prediction.bond, t.bond, s.bond, pairs)
            redrawn_atoms = self.atom_type.redrawn(t.atom, s.atom, atoms[..., 0])
            redrawn_bonds = self.bond.redrawn(t.bond, s.bond, pairs[..., 0])
            drawn = noisy.replace(atom_type=atom_type * noisy.node_mask, bond=bond * noisy.pair_mask)
            lacking = self.feedback.lacking(prediction, drawn, (redrawn_atoms, redrawn_bonds))
            each.append(((lacking * self.feedback.contributions.explained).square().nansum(1), atom_type, bond))
        distance, atom_type, bond = (torch.stack(values) for values in zip(*each, strict=True))
        best, rows = distance.argmin(0), torch.arange(noisy.num_molecules, device=distance.device)
        return atom_type[best, rows], bond[best, rows]


class GuidedDiffusion(MoleculeDiffusion):
    """A model whose estimates are drawn from what it would say without properties towards what it says with them.

    Classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598, eq. 6 with scale = w + 1) of coordinates and logits:
    0 = as without properties, 1 = as with them, more = beyond; all but 0 and 1 take two calls. `feedback` is how much
    of what is lacking is made up for while drawing (see `PropertyFeedback`). The weights are shared.
    """

    def __init__(self, model: MoleculeDiffusion, *, scale: float, feedback: float = FEEDBACK) -> None:
        super().__init__(model.denoiser, model.process, model.vocabulary, model.statistics, model.properties)
        if not 0 <= scale <= MAX_GUIDANCE:
            raise MoldiffError(f"guidance: got {scale:g}, expected a number from 0 to {MAX_GUIDANCE:g}")
        if not 0 <= feedback <= 1:
            raise MoldiffError(f"feedback: got {feedback:g}, expected a number from 0 to 1")
        self.scale, self.feedback = scale, feedback if scale else 0.0
        self.train(model.training)

    def denoise(self, noisy: MolBatch, noise_level: NoiseLevel, previous: Prediction | None = None) -> Prediction:
        """The guided estimate of the clean data, in the model's units."""
        if noisy.condition is None or self.scale == 1:
            return super().denoise(noisy, noise_level, previous)
        without = super().denoise(noisy.replace(condition=None), noise_level, previous)
        if self.scale == 0:
            return without
        towards = super().denoise(noisy, noise_level, previous)
        pairs = zip(vars(without).values(), vars(towards).values(), strict=True)
        return Prediction(*(torch.lerp(value, other, self.scale) for value, other in pairs))


LOWEST_LEVEL = 0.25  # noise level down to which hands are guided; below it the network makes the geometry of them
# how many times further than its law asks for guidance goes; there are few calls, and the estimate follows late
_SCALE = 100.0
_FARTHEST = 8.0  # how far it moves an estimate at most, in the model's units, over all atoms of a molecule
_HEIGHT = 0.5  # of a tetrahedral carbon over three of its neighbours (Å)
_SHARPNESS = 2.5  # log odds of a hand that an estimate of that height stands for
_SHORTEST = 0.3  # lengths (Å, or Å² of an area) below which an estimate is taken to have no direction yet
# pairs of atoms whose gradients are taken together; these need ten times the memory of an estimate alone
_PAIRS_AT_ONCE = 40_000


@dataclass(frozen=True, eq=False)
class StereoTargets(TensorFields):
    """What handedness molecules of a known graph are to have, rows of -1 pad; section 5 of docs/method.md says how."""

    centres: Tensor  # [B, H, 4] a centre c and three neighbours, (a - c) · ((b - c) × (d - c)) is to be positive
    double_bonds: Tensor  # [B, S, 4] chains of atoms, the double bond in the middle
    same_side: Tensor  # [B, S] whether the ends of a chain are to lie on the same side of the bond

    @classmethod
    def stack(cls, each: Sequence[Self | None]) -> Self | None:
        """Those of several molecules as one; None = of a molecule without any, or of all."""
        if all(one is None for one in each):
            return None
        no_chain = torch.full((1, 0, 4), -1)
        none = cls(no_chain, no_chain, no_chain[..., 0].bool())
        columns = zip(*([rows[0] for rows in vars(one or none).values()] for one in each), strict=True)
        return cls(*(pad_sequence(list(rows), batch_first=True, padding_value=-1) for rows in columns))

    def guided(
        self, model: MoleculeDiffusion, noisy: MolBatch, level: NoiseLevel, previous: Prediction | None
    ) -> Prediction:
        """What `model.denoise` estimates, its coordinates moved towards these targets."""
        step, parts = max(1, _PAIRS_AT_ONCE // noisy.max_atoms**2), []
        for first in range(0, noisy.num_molecules, step):
            rows = slice(first, first + step)
            before = None if previous is None else previous.rows(rows)
            parts.append(self.rows(rows)._guided_together(model, noisy.rows(rows), level.rows(rows), before))
        return Prediction(*(torch.cat(values) for values in zip(*(vars(part).values() for part in parts), strict=True)))

    def _guided_together(
        self, model: MoleculeDiffusion, noisy: MolBatch, level: NoiseLevel, previous: Prediction | None
    ) -> Prediction:
        with torch.enable_grad(), torch.compiler.set_stance("force_eager"):
            pos = noisy.pos.detach().clone().requires_grad_()
            prediction = model.denoise(noisy.replace(pos=pos), level, previous)
            odds = self.log_odds(prediction.pos * model.statistics.pos_scale)
            (gradient,) = torch.autograd.grad(odds.sum(), pos)
        schedule = model.process.pos.schedule
        alpha, sigma = schedule.alpha(level.pos)[..., None], schedule.sigma(level.pos)[..., None]
        shift = _SCALE * sigma.square() / alpha.clamp(min=0.05) * gradient
        length = shift.square().sum((1, 2), keepdim=True).sqrt()
        shift = center(shift * (_FARTHEST / length.clamp(min=_FARTHEST)), noisy.node_mask)
        prediction = prediction.detach()
        return replace(prediction, pos=prediction.pos + torch.where(level.pos[..., None] > 0, shift, 0.0))

    def log_odds(self, pos: Tensor) -> Tensor:
        """Log of how likely estimated coordinates [B, N, 3] (Å) are to turn out as is wanted, in all [B]."""
        heights, sides = self._turned(pos)
        counted = torch.cat([self.centres[..., 0], self.double_bonds[..., 0]], 1) >= 0
        odds = torch.nn.functional.logsigmoid(_SHARPNESS * torch.cat([heights / _HEIGHT, sides], 1))
        return (odds * counted).sum(1)

    def met(self, pos: np.ndarray) -> tuple[bool, bool]:
        """Whether one molecule [N, 3] (Å), or else its mirror image, has all of them; and whether it is the image."""
        heights, sides = (turned[0] > 0 for turned in self._turned(torch.as_tensor(pos)[None]))
        mirrored = len(heights) > 0 and not bool(heights.any())
        return bool(sides.all()) and (mirrored or bool(heights.all())), mirrored

    def _turned(self, pos: Tensor) -> tuple[Tensor, Tensor]:
        """Heights of centres [B, H] (Å) and sides of double bonds [B, S], positive where they are as is wanted."""
        rows = torch.arange(len(pos), device=pos.device)[:, None, None]
        centres, chains = (pos[rows, ends.clamp(min=0)].unbind(2) for ends in (self.centres, self.double_bonds))
        return _heights(*centres), _cosines(*chains) * torch.where(self.same_side.bool(), 1.0, -1.0)


def _direction(vector: Tensor) -> Tensor:
    """Of length 1, but for vectors so short that they have none."""
    length: Tensor = vector.norm(dim=-1, keepdim=True).clamp(min=_SHORTEST)
    return vector / length


def _heights(centre: Tensor, first: Tensor, second: Tensor, third: Tensor) -> Tensor:
    """Of centres over three neighbours [B, K] (Å), positive where these turn as is wanted."""
    normal = _direction(torch.linalg.cross(second - first, third - first))
    return ((first - centre) * normal).sum(-1)


def _cosines(first: Tensor, begin: Tensor, end: Tensor, last: Tensor) -> Tensor:
    """Of the ends of chains about the bonds in the middle [B, K], times their distances from it."""
    axis = _direction(end - begin)
    one, other = (bond - (bond * axis).sum(-1, keepdim=True) * axis for bond in (first - begin, last - end))
    product: Tensor = (one * other).sum(-1)
    return product
