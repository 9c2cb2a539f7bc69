"""Muon for the matrices of the blocks and AdamW for everything else, as one optimizer; the course of learning rates."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


def orthogonalize(matrices: Tensor, *, num_steps: int = 5) -> Tensor:
    """Nearest semi-orthogonal matrices [S, m, n], roughly: singular values end between 0.7 and 1.2.

    Quintic Newton-Schulz iteration with the coefficients of Jordan et al. (2024, Muon).
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    for _ in range(num_steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    orthogonal: Tensor = x.mT if tall else x
    return orthogonal


class MuonAdamW(torch.optim.Optimizer):
    """Muon for the block matrices and AdamW for the rest as one optimizer; weight decay is decoupled for both.

    torch's own Muon (2.9 and newer) works in bfloat16 and matrix by matrix, 8 times slower than this on a CPU without
    bfloat16 arithmetic. `dtype` is the arithmetic of the orthogonalisation, None = the parameters' own. Processes that
    all step with the same gradients can share it: `share` = (rank, their number).
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        *,
        muon_lr: float = 0.015,
        adamw_lr: float = 1.5e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.98),
        weight_decay: float = 0.01,
        dtype: torch.dtype | None = None,
    ) -> None:
        by_rule: dict[str, list[nn.Parameter]] = {"muon": [], "adamw": []}
        for name, parameter in named_parameters:
            in_block = ".layers." in f".{name}" and parameter.ndim == 2 and min(parameter.shape) >= 16
            by_rule["muon" if in_block else "adamw"].append(parameter)
        rates = {"muon": muon_lr, "adamw": adamw_lr}
        groups = [{"params": found, "rule": rule, "lr": rates[rule]} for rule, found in by_rule.items() if found]
        super().__init__(groups, {"momentum": momentum, "betas": betas, "weight_decay": weight_decay})
        self.dtype, self.share = dtype, (0, 1)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of all parameters that have a gradient."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for group in self.param_groups:
            (self._muon if group["rule"] == "muon" else self._adamw)(group)
        return loss

    def _muon(self, group: dict[str, Any]) -> None:
        by_shape: defaultdict[torch.Size, list[Tensor]] = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is not None:
                by_shape[parameter.shape].append(parameter)
        stacks = []
        for parameters in by_shape.values():
            gradients: list[Any] = [parameter.grad for parameter in parameters]
            momenta = [self._state(parameter, "momentum") for parameter in parameters]
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            stacks.append(torch.stack(torch._foreach_lerp(gradients, momenta, group["momentum"])))
        for parameters, updates in zip(by_shape.values(), self._orthogonalized(stacks), strict=True):
            scale = max(1.0, updates.shape[1] / updates.shape[2]) ** 0.5
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(parameters, list(updates.unbind()), alpha=-group["lr"] * scale)

    def _orthogonalized(self, stacks: Sequence[Tensor]) -> list[Tensor]:
        """Stacks of matrices [S, m, n], every matrix orthogonalised by one of the processes and sent to all."""
        rank, count = self.share
        own = [orthogonalize(stack[rank::count].to(self.dtype or stack.dtype)).to(stack.dtype) for stack in stacks]
        if count == 1 or not stacks:
            return own
        sizes = [[stack[number::count].numel() for stack in stacks] for number in range(count)]
        sent = stacks[0].new_zeros(max(sum(each) for each in sizes))
        sent[: sum(sizes[rank])] = torch.cat([update.flatten() for update in own])
        received = [torch.empty_like(sent) for _ in range(count)]
        torch.distributed.all_gather(received, sent)
        updates = [torch.empty_like(stack) for stack in stacks]
        for number, (flat, each) in enumerate(zip(received, sizes, strict=True)):
            for update, part in zip(updates, torch.split(flat[: sum(each)], each), strict=True):
                update[number::count] = part.view(-1, *update.shape[1:])
        return updates

    def _adamw(self, group: dict[str, Any]) -> None:
        parameters: list[Tensor] = [parameter for parameter in group["params"] if parameter.grad is not None]
        if not parameters:
            return
        gradients: list[Any] = [parameter.grad for parameter in parameters]
        means = [self._state(p, "mean") for p in parameters]
        squares = [self._state(p, "square") for p in parameters]
        for parameter in parameters:
            self.state[parameter]["step"] = self.state[parameter].get("step", 0) + 1
        step = self.state[parameters[0]]["step"]
        beta1, beta2 = group["betas"]
        torch._foreach_lerp_(means, gradients, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, value=1 - beta2)
        scales = torch._foreach_sqrt(squares)
        torch._foreach_div_(scales, (1 - beta2**step) ** 0.5)
        torch._foreach_add_(scales, 1e-8)
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_addcdiv_(parameters, means, scales, value=-group["lr"] / (1 - beta1**step))

    def _state(self, parameter: Tensor, name: str) -> Tensor:
        if name not in self.state[parameter]:
            self.state[parameter][name] = torch.zeros_like(parameter)
        return self.state[parameter][name]  # type: ignore[no-any-return]


@dataclass(frozen=True)
class TrapezoidSchedule:
    """Warm up over steps, hold, then decay linearly over the last share of the training."""

    warmup_steps: int = 100  # until the full rate
    decay_share: float = 0.6  # of the training, at its end, over which the rate falls
    final: float = 0.02  # the factor at the very end

    def __call__(self, step: int, progress: float) -> float:
        """Factor on the learning rate at a 0-based step and a progress from 0 to 1."""
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        falling = (1 - progress) / self.decay_share if self.decay_share > 0 else 1.0
        return warm * max(self.final, min(1.0, falling))
