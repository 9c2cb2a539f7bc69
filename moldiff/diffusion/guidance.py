"""Steering: what is still lacking of the values asked for is made up for while a molecule is drawn.

A network that is told a value draws towards it, but not far enough: it has learnt from molecules that have the value,
and its draws of many classes at once stray from it. What contributions of atoms and bonds say of its estimates is known
at no cost, so that the way to a molecule can be a control loop (an integral controller).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

from moldiff.diffusion.batch import MolBatch, NoiseLevel, Prediction
from moldiff.diffusion.model import MoleculeDiffusion
from moldiff.diffusion.nn.contributions import Contributions, expected_bond_counts
from moldiff.diffusion.noise import NoiseSource
from moldiff.diffusion.process.joint import JointProcess
from moldiff.errors import MoldiffError

_NUM_REDRAWS = 8
"""Draws of the classes of each step, of which the one that adds up nearest to the values is taken."""

_FARTHEST = 2.0
"""Standard deviations that a network is told more or less than what was asked for, at most."""


class PropertyFeedback:
    """One run of molecules on the way to values.

    Args:
        contributions: of the network.
        asked: normalised values [B, C], NaN = not asked for.
        free: molecules [B] with a class to be drawn; the others cannot be steered by their classes.
        gain: how much of what is lacking the network is told more, in every call.
    """

    def __init__(self, contributions: Contributions, asked: Tensor, free: Tensor, gain: float) -> None:
        self.contributions, self.asked = contributions, asked
        self._gain = gain * contributions.explained * free[:, None]
        self._more = torch.zeros_like(asked)

    @classmethod
    def of(cls, model: MoleculeDiffusion, noisy: MolBatch, level: NoiseLevel) -> Self | None:
        """Of molecules that a model is about to draw from `noisy` at `level`; None = there is nothing to steer by."""
        contributions = model.contributions
        if not model.steering or noisy.condition is None or contributions is None:
            return None
        atoms, bonds = (level.atom > 0) & noisy.node_mask, (level.bond > 0) & noisy.pair_mask
        free = atoms.any(1) | bonds.flatten(1).any(1)
        return cls(contributions, noisy.condition, free, model.steering)

    def told(self, noisy: MolBatch) -> MolBatch:
        """The molecules with the values that the network is to be told next."""
        return noisy.replace(condition=self.asked + self._more)

    def hear(self, prediction: Prediction, noisy: MolBatch) -> None:
        """Take note of an estimate."""
        lacking = self.lacking(prediction, noisy)
        self._more = (self._more + self._gain * lacking).clamp(-_FARTHEST, _FARTHEST)

    def lacking(self, prediction: Prediction, batch: MolBatch, decided: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """What an estimate lacks of the values [B, C], see `expected_bond_counts`; NaN where none is asked for."""
        # Small differences of large sums, which bfloat16 would blur.
        with torch.autocast(batch.pos.device.type, enabled=False):
            return self.asked - self.contributions(expected_bond_counts(prediction, batch, decided))

    def process(self, process: JointProcess) -> JointProcess:
        """The process with steps that draw the classes several times and take what adds up best."""
        parts = {entry.name: getattr(process, entry.name) for entry in fields(process)}
        return SteeredProcess(**parts, steering=self)


@dataclass(frozen=True, eq=False, kw_only=True)
class SteeredProcess(JointProcess):
    """A process whose steps go the way of a steering.

    Classes of atoms and bonds are drawn independently of each other, and so stray from what they should add up to; of
    several draws the nearest is taken.

    Attributes:
        steering: of the molecules that are drawn.
    """

    steering: PropertyFeedback

    def step_classes(
        self, noisy: MolBatch, prediction: Prediction, t: NoiseLevel, s: NoiseLevel, draws: NoiseSource
    ) -> tuple[Tensor, Tensor]:
        """Classes of the atoms [B, N] and bonds [B, N, N] after a step from level t to s, padding included."""
        best: tuple[Tensor, Tensor, Tensor] | None = None
        for _ in range(_NUM_REDRAWS):
            distance, atom_type, bond = self._drawn(noisy, prediction, t, s, draws)
            if best is None:
                best = distance, atom_type, bond
                continue
            nearer = distance < best[0]
            best = (
                torch.where(nearer, distance, best[0]),
                torch.where(nearer[:, None], atom_type, best[1]),
                torch.where(nearer[:, None, None], bond, best[2]),
            )
        assert best is not None
        return best[1:]

    def _drawn(
        self, noisy: MolBatch, prediction: Prediction, t: NoiseLevel, s: NoiseLevel, draws: NoiseSource
    ) -> tuple[Tensor, Tensor, Tensor]:
        """How far off [B] a draw of the classes is, and the draw; what it does not redraw counts as it is expected."""
        atoms, pairs = draws.uniform(noisy.node_mask)
        atom_type = self.atom_type.step(noisy.atom_type, prediction.atom_type, t.atom, s.atom, atoms)
        bond = self.bond.step(noisy.bond, prediction.bond, t.bond, s.bond, pairs)
        redrawn = (
            self.atom_type.redrawn(t.atom, s.atom, atoms[..., 0]),
            self.bond.redrawn(t.bond, s.bond, pairs[..., 0]),
        )
        drawn = noisy.replace(atom_type=atom_type * noisy.node_mask, bond=bond * noisy.pair_mask)
        lacking = self.steering.lacking(prediction, drawn, redrawn) * self.steering.contributions.explained
        return lacking.square().nansum(1), atom_type, bond


MAX_GUIDANCE = 20.0
"""The largest scale of guidance; good ones are around 1."""

STEERING = 0.5
"""How much of what is lacking of a value is made up for in every network call, unless told otherwise."""


class GuidedDiffusion(MoleculeDiffusion):
    """A model whose estimates are drawn from what it would say without properties towards what it says with them.

    Classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598, eq. 6 with scale = w + 1), applied to the clean
    coordinates and to the logits of the classes.

    Args:
        model: shares its weights.
        scale: 0 = as without properties, 1 = as with them, more = beyond. Every scale but 0 and 1 takes two calls.
        steering: how much of what is lacking is made up for while drawing (`moldiff.diffusion.guidance`); 0 = nothing.
    """

    def __init__(self, model: MoleculeDiffusion, *, scale: float, steering: float = STEERING) -> None:
        super().__init__(model.denoiser, model.process, model.vocabulary, model.statistics, model.properties)
        if not 0 <= scale <= MAX_GUIDANCE:
            raise MoldiffError(f"guidance: got {scale:g}, expected a number from 0 to {MAX_GUIDANCE:g}")
        if not 0 <= steering <= 1:
            raise MoldiffError(f"steering: got {steering:g}, expected a number from 0 to 1")
        self.scale, self.steering = scale, steering if scale else 0.0
        self.train(model.training)

    def denoise(self, noisy: MolBatch, noise_level: NoiseLevel, previous: Prediction | None = None) -> Prediction:
        """The guided estimate of the clean data, in the model's units."""
        if noisy.condition is None or self.scale == 1:
            return super().denoise(noisy, noise_level, previous)
        without = super().denoise(noisy.replace(condition=None), noise_level, previous)
        if self.scale == 0:
            return without
        towards = vars(super().denoise(noisy, noise_level, previous))
        return Prediction(
            **{name: torch.lerp(value, towards[name], self.scale) for name, value in vars(without).items()}
        )
