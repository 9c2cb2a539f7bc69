"""What this machine is good at: the choices that `auto` stands for."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from moldiff.errors import MoldiffError


def choose_device(device: str) -> torch.device:
    """`auto` = the first GPU if there is one, otherwise the CPU; anything else as torch names it.

    Raises:
        MoldiffError: for a device torch does not know or this machine lacks.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise MoldiffError(f"device: got {device!r}, expected auto, cpu or a GPU this machine has ({reason})") from None
    return chosen


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, of the GPU or the machine, was too small for what was asked."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # torch's allocator for the CPU raises a plain RuntimeError.
    return isinstance(error, RuntimeError) and any(
        text in str(error) for text in ("not enough memory", "can't allocate memory", "out of memory")
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
    """What torch makes without being told a precision is float32, whatever the user's own default; a decorator, too."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """Work of torch's on a CPU in one thread, and so to the same last digit whatever number of threads there is.

    Batches of molecules are too small for more: two threads take as long as one, or longer. Cores are for processes.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
