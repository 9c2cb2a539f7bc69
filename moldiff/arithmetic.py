"""How a network is computed: in float32 or bfloat16, as it is written or compiled; and how long that takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import nn

_REPEATS = 3

_MANY_SHAPES = 64
"""Shapes that one block is compiled for; torch alone stops at 8, and size buckets of large molecules are more."""


@dataclass(frozen=True)
class Arithmetic:
    """How a network is computed.

    Attributes:
        bfloat16: matrix products in bfloat16 instead of float32.
        compiled: blocks compiled by `torch.compile`.
    """

    bfloat16: bool = False
    compiled: bool = False

    def __str__(self) -> str:
        return ("bfloat16" if self.bfloat16 else "float32") + (", compiled" if self.compiled else "")

    def autocast(self, device: torch.device) -> AbstractContextManager[None]:
        """The context in which a network computes so."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.bfloat16)


PLAIN = Arithmetic()
"""float32, as the network is written."""

PRECISIONS = {"float32": PLAIN, "bfloat16": Arithmetic(bfloat16=True)}
"""By the names that users give them."""


def compile_blocks(network: nn.Module, wanted: bool, *, dynamic: bool) -> None:
    """Have a network compiled block by block when it is called next, or as it was written.

    Args:
        network: a module whose repeated blocks are its submodule `layers`; without one it is compiled as a whole.
        wanted: compiled or not.
        dynamic: one version for all shapes instead of one for each.
    """
    for block in _blocks(network):
        if wanted:
            block.compile(dynamic=dynamic)
        else:
            block._compiled_call_impl = None  # what `compile` sets; there is no method that undoes it
    if wanted:
        torch._dynamo.config.recompile_limit = _MANY_SHAPES


def is_compiled(network: nn.Module) -> bool:
    """Whether a network's blocks are compiled, or will be when it is called next."""
    return any(block._compiled_call_impl is not None for block in _blocks(network))


def _blocks(network: nn.Module) -> list[nn.Module]:
    layers = getattr(network, "layers", None)
    return list(layers.children()) if isinstance(layers, nn.Module) else [network]


def seconds(run: Callable[[], object], device: torch.device, *, repeats: int = _REPEATS) -> tuple[float, float]:
    """The least seconds of some repeats, and the seconds by the clock of the first call, which may have compiled.

    On one thread of a CPU the processor's time counts, which other programs do not lengthen; elsewhere the clock's.
    """
    on_one_thread = device.type == "cpu" and torch.get_num_threads() == 1

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.process_time() if on_one_thread else time.perf_counter()

    start = time.perf_counter()
    run()
    now()
    first = time.perf_counter() - start
    found = []
    for _ in range(repeats):
        start = now()
        run()
        found.append(now() - start)
    return min(found), first


def verdict(chosen: Arithmetic, figures: Mapping[Arithmetic, float]) -> str:
    """One line that says what was chosen and what each took."""
    each = ", ".join(f"{taken:.3g} s {arithmetic}" for arithmetic, taken in figures.items())
    return f"arithmetic: {chosen} (a batch took {each})"
