"""What this machine is good at: how a network is computed, and how long that takes."""

import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from moldiff.errors import MoldiffError, first_line


def choose_device(device: str) -> torch.device:
    """`auto` = the first GPU or, without any, the CPU; others as torch names them, MoldiffError for one not here."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = first_line(error)
        raise MoldiffError(f"device: got {device!r}, expected auto, cpu or a GPU this machine has ({reason})") from None
    return chosen


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, of the GPU or the machine, was too small for what was asked."""
    texts = ("not enough memory", "can't allocate memory", "out of memory")  # of torch's allocator for the CPU
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in texts)
    )


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free on a device; None = the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    with suppress(OSError):
        found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), flags=re.MULTILINE)
        return int(found[1]) * 1024 if found else None
    return None


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 matrix products are done by the hardware rather than emulated."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, name, lambda: False)() for name in probes)


def can_compile(device: torch.device) -> bool:
    """Whether `torch.compile` is worth a trial: on GPUs, and on CPUs with AVX-512 and a C++ compiler."""
    if device.type == "cuda":
        return True
    has_avx512 = getattr(torch.cpu, "_is_avx512_supported", lambda: False)()
    return bool(has_avx512) and any(shutil.which(name) for name in ("c++", "g++", "clang++"))


@contextmanager
def in_float32() -> Iterator[None]:
    """What torch makes where no precision is named is float32, whatever the user's own default; a decorator, too."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """Work of torch's on a CPU in one thread: the same to the last digit everywhere, and as fast for small batches."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if device.type == "cpu" else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class Precision:
    """How a network is computed."""

    bfloat16: bool = False  # matrix products in bfloat16 instead of float32
    compiled: bool = False  # blocks compiled by `torch.compile`

    def __str__(self) -> str:
        return ("bfloat16" if self.bfloat16 else "float32") + (", compiled" if self.compiled else "")

    def autocast(self, device: torch.device) -> AbstractContextManager[None]:
        """The context in which a network computes so."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.bfloat16)


FLOAT32 = Precision()
PRECISIONS = {"float32": FLOAT32, "bfloat16": Precision(bfloat16=True)}  # by the names that users give them


def compile_blocks(network: nn.Module, wanted: bool, *, dynamic: bool) -> None:
    """Have a network's blocks compiled when next called (`dynamic` = for all shapes at once), or as they stand."""
    for block in _blocks(network):
        block._compiled_call_impl = None  # what `compile` sets; there is no method that undoes it
        if wanted:
            block.compile(dynamic=dynamic)
            # Of a block; torch alone stops at 8, and size buckets of large molecules are more.
            torch._dynamo.config.recompile_limit = 64


def is_compiled(network: nn.Module) -> bool:
    """Whether a network's blocks are compiled, or will be when it is called next."""
    return any(block._compiled_call_impl is not None for block in _blocks(network))


def _blocks(network: nn.Module) -> list[nn.Module]:
    layers = getattr(network, "layers", None)
    return list(layers.children()) if isinstance(layers, nn.Module) else [network]


def seconds(run: Callable[[], object], device: torch.device, *, repeats: int = 3) -> tuple[float, float]:
    """The least seconds of some repeats, and the seconds by the clock of the first call, which may have compiled.

    On one thread of a CPU the processor's time counts, which other programs do not lengthen; elsewhere the clock's.
    """

    def timed(clock: Callable[[], float]) -> float:
        start = clock()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return clock() - start

    first = timed(time.perf_counter)
    on_one_thread = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if on_one_thread else time.perf_counter
    return min(timed(clock) for _ in range(repeats)), first


def verdict(chosen: Precision, figures: Mapping[Precision, float]) -> str:
    """One line that says what was chosen and what each took."""
    each = ", ".join(f"{taken:.3g} s {arithmetic}" for arithmetic, taken in figures.items())
    return f"arithmetic: {chosen} (a batch took {each})"
