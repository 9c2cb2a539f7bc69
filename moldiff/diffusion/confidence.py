"""How sure the network is of molecules that it has drawn, from what it says of them anyway: docs/confidence.md."""

from __future__ import annotations

import torch
from torch import Tensor

from moldiff.diffusion.batch import Prediction, pair_mask
from moldiff.diffusion.sampler import PartialState, SamplerState

_ENTROPY = 0.001  # nats an atom, added to that of the bonds: below it, less says no more
_EVEN = 2.3e-5  # nats times Å at which a molecule is as likely to be good as not
_POWER = 4.8  # of that product in the odds
_USUAL = 0.0065  # Å between the last two calls, where all coordinates are known


class Confidence:
    """Looks at a batch while it is drawn; the figures were fitted to whole new molecules of `drugs` in 80 calls."""

    def __init__(self, start: PartialState, pos_scale: float) -> None:
        self._start, self._scale = start, pos_scale
        self._last: Prediction | None = None
        self._before: Prediction | None = None

    def __call__(self, state: SamplerState) -> None:
        self._before, self._last = self._last, state.prediction

    def values(self) -> list[float]:
        """From 0 to 1 for each molecule: the odds fall with the doubt about its bonds and about its coordinates.

        The first is the entropy of the classes of its bonds at the end of the first way down (nats an atom), the second
        how far the last call moved its atoms (RMS, Å). Both count what is drawn alone; after one call all are 0.
        """
        mask, level = self._start.clean.node_mask, self._start.level
        if self._last is None or self._before is None:
            return [0.0] * len(mask)
        logs = self._last.bond.double().log_softmax(-1)
        entropy = (-(logs.exp() * logs).sum(-1) * pair_mask(mask)).sum((1, 2))
        drawn = mask & (level.pos > 0)
        moved = self._scale * (self._last.pos - self._before.pos).double()
        count = drawn.sum(1)
        spread = ((moved.square().sum(-1) * drawn).sum(1) / count.clamp(min=1)).sqrt()
        spread = torch.where(count > 0, spread, _USUAL)
        doubt = (entropy / (mask & (level.atom > 0)).sum(1).clamp(min=1) + _ENTROPY) * spread
        found: Tensor = 1 / (1 + (doubt / _EVEN) ** _POWER)
        return [float(value) for value in found.nan_to_num(nan=0.0)]
