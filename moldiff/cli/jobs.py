"""Where a command writes to, how it works there (`hydra.job.chdir=true`), and several jobs of one (`-m key=a,b`).

One of Hydra's launchers starts the jobs, on the machines that people have, each a command of its own.
"""

import copy
import glob
import json
import os
import re
import shlex
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from hydra import compose
from hydra._internal.callbacks import Callbacks
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.types import HydraContext
from omegaconf import DictConfig

from moldiff.cli.compose import PATHS, argument, change_paths, hydra_over, quoted
from moldiff.cli.options import EXIT_INTERRUPTED, EXIT_OK
from moldiff.errors import MoldiffError
from moldiff.molecules.formats.storage import is_standard, write_atomically
from moldiff.processes import rank

RECORD_FILE = "multirun.json"

_STARTED_IN = "MOLDIFF_STARTED_IN"
"""The environment variable that tells the other processes of a training, which start in the run folder."""

_EXTRAS = {"joblib": "joblib", "submitit_local": "submitit", "submitit_slurm": "submitit", "ray": "ray"}
"""The extra that a launcher comes with."""

_QUIET = ("hydra.output_subdir=null", "hydra.sweep.subdir=.", "hydra.job_logging.root=null")
_interrupted = False  # whether a job in this process was, so that no other begins

ConfigStore.instance().store("job", {"number": 0, "words": [], "folder": "."})


def with_outputs(command: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a command with the places it writes to where none were asked for."""
    made = dict(options)
    data = made.get("data") or {}
    if data.get("path") is not None and data["folder"] is None:
        made["data"] = {**data, "folder": f"prepared/{data['name']}"}
    if command == "prepare" and made["out"] is None:
        made["out"] = made["data"]["folder"]
    if command == "view" and made["out"] is None and made["input"]:
        from moldiff.view.page import target_of

        made["out"] = str(target_of(made["input"], None))
    return made


@contextmanager
def work_in_run_folder(command: str, options: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Work in the folder of the outputs: `out` of a training, the folder that holds `out` for other commands.

    Gives the options with all paths as they are from there. What had to be made and stays empty is taken away.
    """
    start, absolute = os.getcwd(), copy.deepcopy(dict(options))
    change_paths(absolute, (*PATHS, "data.source.parts"), partial(_from, start))
    out = Path(absolute["out"] or start)
    folder = out if command == "train" or absolute["out"] is None else out.parent
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    if command in ("prepare", "train", "evaluate"):  # the others write only where a folder is
        folder.mkdir(parents=True, exist_ok=True)
    sys.argv[0] = os.path.abspath(sys.argv[0])  # Lightning starts further processes by it
    os.environ[_STARTED_IN] = start
    os.chdir(folder)
    try:
        yield absolute
    finally:
        os.chdir(start)
        del os.environ[_STARTED_IN]
        for made in missing:
            with suppress(OSError):
                made.rmdir()


def return_to_start() -> None:
    """Go back to where the command was typed, in a process that a training has started in its run folder."""
    if rank() > 0 and _STARTED_IN in os.environ:
        os.chdir(os.environ[_STARTED_IN])


def _from(start: str, key: str, value: Any) -> Any:
    """A value of one of `PATHS`, as an absolute path if it is one."""
    if not isinstance(value, str) or not _is_path(key, value):
        return value
    is_pattern = (key == "input" or key.endswith(".path")) and glob.has_magic(value) and not os.path.exists(value)
    return os.path.join(glob.escape(start) if is_pattern else start, value)


def _is_path(key: str, value: str) -> bool:
    """Whether the value of one of `PATHS` is not standard input or output, a model's name or a molecule."""
    if is_standard(value):
        return False
    if key in ("model", "init", "reference", "predictor"):
        from moldiff.diffusion.property_predictor import available_predictors
        from moldiff.diffusion.shipped import available_models

        return value not in ("?", *available_models(), *available_predictors())
    if key in ("task.core", "task.of", "like.reference", "exclude", "lead"):
        from moldiff.tasks.inputs import names_file

        return names_file(value)
    return value != ""


class Job(NamedTuple):
    """One of several jobs."""

    number: int  # from 0
    arguments: list[str]  # its options as typed, with the output of its own
    folder: Path | None  # which holds the outputs of the jobs, each under its number; None = it only prints


def plan(command: str, typed: Sequence[Sequence[str]], composed: Sequence[Mapping[str, Any]]) -> list[Job]:
    """The jobs of a command: `OUT/0`, `OUT/1` ... instead of a folder `OUT`, `NAME/0.sdf` ... instead of `NAME.sdf`.

    `typed` are the arguments of each, `composed` its options.
    """
    jobs = []
    for number, (arguments, options) in enumerate(zip(typed, composed, strict=True)):
        folder, own = None, {}
        if options["out"] is not None and is_standard(options["out"]):
            raise MoldiffError("out: got - with -m, expected the name of a file, which gets a number")
        if options["out"] is not None:
            folder, name = Path(options["out"]), str(number)
            if command in ("sample", "view") or (command == "evaluate" and folder.suffix.lower() == ".json"):
                stem = re.sub(r"\.gz$", "", folder.name, flags=re.IGNORECASE).rpartition(".")[0]
                folder, name = folder.with_name(stem or "jobs"), f"{number}{folder.name[len(stem) :]}"
            own["out"] = str(folder / name)
        if command == "train" and (data := options["data"]).get("path") is not None:
            # Another job would make another set in the folder of this one's.
            others = [other["data"] for other in composed if other["data"]["folder"] == data["folder"]]
            if any(other != data for other in others):
                own["data.folder"] = f"{data['folder']}-{number}"
        kept = [text for text in arguments if text.partition("=")[0] not in own]
        jobs.append(Job(number, kept + [argument(*pair) for pair in own.items()], folder))
    return jobs


def run_jobs(command: str, jobs: Sequence[Job], more: Sequence[str], launcher: Sequence[str] = ()) -> int:
    """Run every job with `more` arguments by Hydra's launcher, also after one has failed, unless by Ctrl-C.

    Returns the first exit code that is not 0; raises `MoldiffError` when the outputs would end up among other things.
    """
    folders = list(dict.fromkeys(job.folder for job in jobs if job.folder is not None))
    launched = job_launcher(launcher, next(iter(folders), None))
    if rank() == 0:
        _claim(command, jobs)
    codes = launched([[command, *job.arguments, *more] for job in jobs])
    if EXIT_INTERRUPTED in codes:
        raise KeyboardInterrupt(f"; {codes.index(EXIT_INTERRUPTED)} of {len(jobs)} jobs had ended")
    failed = [str(number) for number, code in enumerate(codes) if code != EXIT_OK]
    if rank() == 0:
        ended = "1 job ended" if len(jobs) == 1 else f"{len(jobs)} jobs ended"
        print(f"{ended}, outputs in {', '.join(map(str, folders))}" if folders else ended, flush=True)
    if failed and rank() == 0:
        print(f"moldiff: error: {len(failed)} of {len(jobs)} jobs failed: {', '.join(failed)}", file=sys.stderr)
    return next((code for code in codes if code != EXIT_OK), EXIT_OK)


def _claim(command: str, jobs: Sequence[Job]) -> None:
    """Make the folders for the outputs, with a record of what each job was."""
    folders: defaultdict[Path, dict[int, list[str]]] = defaultdict(dict)
    for job in jobs:
        if job.folder is not None:
            folders[job.folder][job.number] = job.arguments
    for folder in folders:
        if folder.exists() and not (folder / RECORD_FILE).is_file() and (not folder.is_dir() or any(folder.iterdir())):
            raise MoldiffError(f"out: {folder} is there already, expected a new folder for the outputs of the jobs, or "
                               "that of an earlier -m")  # fmt: skip
    for folder, inside in folders.items():
        folder.mkdir(parents=True, exist_ok=True)
        record = {"command": command, "jobs": inside}
        write_atomically(folder / RECORD_FILE, (json.dumps(record, indent=1) + "\n").encode())


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
