"""The trial at the start of a training that finds which arithmetic is fastest on this machine."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback

from moldiff.diffusion.compute import Precision, can_compile, has_fast_bfloat16, is_out_of_memory, seconds, verdict
from moldiff.training.callbacks import remaining

_TRIAL_STEPS, _TRIAL_SECONDS = 200, 60.0
"""A training with fewer steps or less time ahead is not worth a trial of its arithmetic."""

_COMPILE_SECONDS = 1200.0
"""Compiling costs some minutes, so with less time ahead it is not tried."""


class ArithmeticTrial(Callback):
    """Settles how the network is computed before the first step; a resumed training keeps what was settled.

    bfloat16 and compiled blocks are used where a trial on this machine found them faster; a short training does
    without, in float32.

    Args:
        bfloat16: matrix products in bfloat16; None = by trial.
        compiled: blocks are compiled; None = by trial.
    """

    def __init__(self, *, bfloat16: bool | None, compiled: bool | None) -> None:
        self.bfloat16, self.compiled = bfloat16, compiled
        self._settled: tuple[str, Precision] | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        machine = f"{pl_module.device.type} {has_fast_bfloat16(pl_module.device)} {can_compile(pl_module.device)}"
        if self._settled is not None and self._settled[0] == machine:
            chosen = self._settled[1]
        else:
            chosen = self._by_trial(trainer, pl_module)
        chosen = Precision(
            chosen.bfloat16 if self.bfloat16 is None else self.bfloat16,
            chosen.compiled if self.compiled is None else self.compiled,
        )
        self._settled = (machine, chosen)
        pl_module.use(chosen)

    def _by_trial(self, trainer: Any, module: Any) -> Precision:
        """Of what is left to choose, what takes least; the same on all ranks."""
        chosen, device = Precision(), module.device
        precisions = (False, True) if self.bfloat16 is None and has_fast_bfloat16(device) else (bool(self.bfloat16),)
        compiles = self.compiled is None and can_compile(device)
        steps, left = remaining(trainer)
        if min(steps / _TRIAL_STEPS, left / _TRIAL_SECONDS) < 1 or not (compiles or len(precisions) > 1):
            return chosen
        figures, lasting = {}, 0.0
        for bfloat16 in precisions:
            chosen = Precision(bfloat16)
            figures[chosen], first = self._measure(trainer, module, chosen)
            lasting = max(lasting, first)  # by the clock, and the first of all has to warm up
        chosen = min(figures, key=lambda one: figures[one])
        left = min(left, steps * trainer.accumulate_grad_batches * lasting)
        if compiles and left >= _COMPILE_SECONDS:
            tried = replace(chosen, compiled=True)
            figures[tried], first = self._measure(trainer, module, tried)
            # Every padded width is compiled on its own, with and without gradients.
            cost = first * len(trainer.train_dataloader.batches.widths)
            if (1 - figures[tried] / figures[chosen]) * left > cost:
                chosen = tried
        if len(figures) > 1 and trainer.is_global_zero:
            print(verdict(chosen, figures), flush=True)
        return chosen

    @staticmethod
    def _measure(trainer: Any, module: Any, arithmetic: Precision) -> tuple[float, float]:
        """Seconds of a batch's losses and gradients, and of the first time; the means over all ranks."""
        module.use(arithmetic)
        noised, _ = module.own_part(trainer.train_dataloader[trainer.global_step].to(module.device), 0)

        def run() -> None:
            with arithmetic.autocast(module.device):
                losses = module.model.losses_of(noised, self_condition=True)
            torch.autograd.backward(torch.stack(list(losses.values())).sum())
            module.model.zero_grad(set_to_none=True)

        try:
            found = seconds(run, module.device)
        except Exception as error:
            if not arithmetic.compiled and not is_out_of_memory(error):
                raise
            found = (float("inf"), 0.0)  # memory or the compiler is too small for it
        return tuple(trainer.strategy.reduce(torch.tensor(found, device=module.device), reduce_op="mean").tolist())

    def state_dict(self) -> dict[str, Any]:
        return {} if self._settled is None else {"machine": self._settled[0], **asdict(self._settled[1])}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict:
            self._settled = (state_dict["machine"], Precision(state_dict["bfloat16"], state_dict["compiled"]))
