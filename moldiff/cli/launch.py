"""Jobs on the machines that people have: one of Hydra's launchers starts them, each a command of its own."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra import compose
from hydra._internal.callbacks import Callbacks
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.types import HydraContext
from omegaconf import DictConfig

from moldiff.cli.compose import hydra_over, quoted
from moldiff.cli.help import EXIT_INTERRUPTED
from moldiff.errors import MoldiffError
from moldiff.processes import rank

_EXTRAS = {"joblib": "joblib", "submitit_local": "submitit", "submitit_slurm": "submitit", "ray": "ray"}
"""The extra that a launcher comes with."""

_QUIET = ("hydra.output_subdir=null", "hydra.sweep.subdir=.", "hydra.job_logging.root=null")
_interrupted = False  # whether a job in this process was, so that no other begins

ConfigStore.instance().store("job", {"number": 0, "words": [], "folder": "."})


def job_launcher(options: Sequence[str], outputs: Path | None) -> Callable[[Sequence[Sequence[str]]], list[int]]:
    """What runs the words of jobs as commands and gives their exit codes, by the launcher that Hydra's options name.

    What it writes itself goes to the folder of the `outputs`. Raises MoldiffError for an option that it does not have.
    """
    settings = [*_QUIET, "hydra.hydra_logging.root=null", f"hydra.sweep.dir={quoted(str(outputs or '.'))}", *options]
    with hydra_over() as loader:
        known = loader.get_group_options("hydra/launcher")
        for name in (text.partition("=")[2] for text in options if text.startswith("hydra/")):
            if name not in known:
                install = f'to install it: pip install "moldiff[{_EXTRAS.get(name)}]"'
                expected = install if name in _EXTRAS else f"expected one of: {', '.join(known)}"
                raise MoldiffError(f"hydra/launcher: got {name}, {expected}")
        config = compose("job", overrides=settings, return_hydra_config=True)
        context = HydraContext(config_loader=loader, callbacks=Callbacks())
        made = Plugins.instance().instantiate_launcher(context, run, config)

    def launch(jobs: Sequence[Sequence[str]]) -> list[int]:
        global _interrupted
        _interrupted = False
        folder = f"folder={quoted(os.getcwd())}"
        every = [
            [f"number={number}", folder, f"words=[{','.join(map(quoted, words))}]"] for number, words in enumerate(jobs)
        ]
        return [int(ended.return_value) for ended in made.launch(every, initial_job_idx=0)]

    return launch


def run(job: DictConfig) -> int:
    """Run a command as a job, in the process that a launcher has for it; returns its exit code."""
    global _interrupted
    from moldiff.cli import main

    if _interrupted:
        return EXIT_INTERRUPTED
    if rank() == 0:
        print(f"[{job.number}] {shlex.join(job.words[1:])}", flush=True)  # before what it prints itself
    with _process_of_its_own(main.__name__, [main.__file__, *job.words], job.folder):
        code = main.main(sys.argv[1:])
    _interrupted = code == EXIT_INTERRUPTED
    return code


@contextmanager
def _process_of_its_own(module: str, words: list[str], folder: str) -> Iterator[None]:
    """Let a command find things as if it was started alone; afterwards they are as before.

    Lightning starts further processes by `__main__` and `sys.argv`, or by Hydra's options, and leaves its group.
    """
    before = dict(os.environ), os.getcwd(), sys.argv, sys.modules["__main__"]
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None
    os.chdir(folder)
    sys.argv, sys.modules["__main__"] = words, sys.modules[module]
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before[0])
        os.chdir(before[1])
        sys.argv, sys.modules["__main__"] = before[2:]
        if (torch := sys.modules.get("torch")) is not None and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
