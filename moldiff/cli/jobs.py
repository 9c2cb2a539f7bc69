"""Where a command writes to, how it works there (`hydra.job.chdir=true`), and several jobs of one.

Several: `moldiff COMMAND -m key=a,b`.
"""

from __future__ import annotations

import copy
import glob
import json
import os
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from moldiff.cli.compose import PATHS, argument, entry
from moldiff.cli.help import EXIT_INTERRUPTED, EXIT_OK
from moldiff.errors import MoldiffError
from moldiff.molecules.formats.storage import is_standard, write_atomically
from moldiff.processes import rank

RECORD_FILE = "multirun.json"

_STARTED_IN = "MOLDIFF_STARTED_IN"
"""The environment variable that tells the other processes of a training, which start in the run folder."""


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
    for key in (*PATHS, "data.source.parts"):
        place, name = entry(absolute, key)
        value = place.get(name)
        if isinstance(value, list):
            place[name] = [_from(start, key, one) for one in value]
        elif value is not None:
            place[name] = _from(start, key, value)
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
    if key in ("model", "init", "reference", "chooser"):
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
    from moldiff.cli import launch

    folders = list(dict.fromkeys(job.folder for job in jobs if job.folder is not None))
    launched = launch.job_launcher(launcher, next(iter(folders), None))
    if rank() == 0:
        _claim(command, jobs)
    codes = launched([[command, *job.arguments, *more] for job in jobs])
    if EXIT_INTERRUPTED in codes:
        raise KeyboardInterrupt(f"; {codes.index(EXIT_INTERRUPTED)} of {len(jobs)} jobs had ended")
    ended = "1 job ended" if len(jobs) == 1 else f"{len(jobs)} jobs ended"
    _say(f"{ended}, outputs in {', '.join(map(str, folders))}" if folders else ended)
    failed = [str(number) for number, code in enumerate(codes) if code != EXIT_OK]
    if failed and rank() == 0:
        print(f"moldiff: error: {len(failed)} of {len(jobs)} jobs failed: {', '.join(failed)}", file=sys.stderr)
    return next((code for code in codes if code != EXIT_OK), EXIT_OK)


def _say(line: str) -> None:
    if rank() == 0:
        print(line, flush=True)  # before what the next process prints


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
