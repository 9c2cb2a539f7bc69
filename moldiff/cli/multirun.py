"""Several jobs of one command, one after another: `moldiff COMMAND -m key=a,b`."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from typing import Any

from moldiff.cli.compose import argument
from moldiff.cli.help import EXIT_INTERRUPTED, EXIT_OK
from moldiff.errors import MoldiffError
from moldiff.molecules.formats.storage import write_atomically
from moldiff.processes import handled, rank

RECORD_FILE = "multirun.json"


@dataclass(frozen=True)
class Job:
    """One of the jobs.

    Attributes:
        number: from 0.
        arguments: its options as typed, with the output of its own.
        folder: which holds the outputs of the jobs, each under its number; None = it only prints.
    """

    number: int
    arguments: list[str]
    folder: Path | None


def plan(command: str, typed: Sequence[Sequence[str]], composed: Sequence[Mapping[str, Any]]) -> list[Job]:
    """The jobs of a command: `OUT/0`, `OUT/1` ... instead of a folder `OUT`, `NAME/0.sdf` ... instead of `NAME.sdf`.

    Args:
        command: its name.
        typed: the arguments of every job.
        composed: the options of every job.
    """
    jobs = []
    for number, (arguments, options) in enumerate(zip(typed, composed, strict=True)):
        folder, own = None, {}
        if options["out"] is not None:
            folder, name = _placed(command, Path(options["out"]), number)
            own["out"] = str(folder / name)
        if command == "train" and _is_contested(options["data"], [other["data"] for other in composed]):
            own["data.folder"] = f"{options['data']['folder']}-{number}"
        kept = [text for text in arguments if text.partition("=")[0] not in own]
        jobs.append(Job(number, kept + [argument(*pair) for pair in own.items()], folder))
    return jobs


def _placed(command: str, out: Path, number: int) -> tuple[Path, str]:
    """The folder for the outputs of all jobs, and the name of one job's."""
    is_file = command in ("sample", "view") or (command == "evaluate" and out.suffix.lower() == ".json")
    if not is_file:
        return out, str(number)
    stem = out.name[:-3] if out.name.lower().endswith(".gz") else out.name
    stem = stem.rpartition(".")[0]
    return out.with_name(stem or "jobs"), f"{number}{out.name[len(stem) :]}"


def _is_contested(data: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> bool:
    """Whether another job would make another set in the folder of this one's."""
    return data.get("path") is not None and any(other["folder"] == data["folder"] and other != data for other in others)


def run_jobs(command: str, jobs: Sequence[Job], more: Sequence[str]) -> int:
    """Run every job in a process of its own, also after one has failed; returns the first exit code that is not 0.

    Args:
        command: its name.
        jobs: see `plan`.
        more: further arguments of each.

    Raises:
        KeyboardInterrupt: when a job was interrupted; no further one is started then.
        MoldiffError: when the outputs would end up among other things.
    """
    if rank() == 0:
        _claim(command, jobs)
    codes = []
    for job in jobs:
        _say(f"[{job.number}] {shlex.join(job.arguments)}")
        codes.append(_run_alone([command, *job.arguments, *more]))
        if codes[-1] == EXIT_INTERRUPTED:
            raise KeyboardInterrupt(f"; {job.number} of {len(jobs)} jobs had ended")
    folders = dict.fromkeys(str(job.folder) for job in jobs if job.folder is not None)
    ended = "1 job ended" if len(jobs) == 1 else f"{len(jobs)} jobs ended"
    _say(f"{ended}, outputs in {', '.join(folders)}" if folders else ended)
    failed = [str(number) for number, code in enumerate(codes) if code != EXIT_OK]
    if failed and rank() == 0:
        print(f"moldiff: error: {len(failed)} of {len(jobs)} jobs failed: {', '.join(failed)}", file=sys.stderr)
    return next((code for code in codes if code != EXIT_OK), EXIT_OK)


def _say(line: str) -> None:
    if rank() == 0:
        print(line, flush=True)  # before what the next process prints


def _claim(command: str, jobs: Sequence[Job]) -> None:
    """Make the folders for the outputs, with a record of what each job was."""
    folders: dict[Path, list[Job]] = {}
    for job in jobs:
        if job.folder is not None:
            folders.setdefault(job.folder, []).append(job)
    for folder in folders:
        if folder.exists() and not (folder / RECORD_FILE).is_file() and (not folder.is_dir() or any(folder.iterdir())):
            raise MoldiffError(f"out: {folder} is there already, expected a new folder for the outputs of the jobs, or "
                               "that of an earlier -m")  # fmt: skip
    for folder, inside in folders.items():
        folder.mkdir(parents=True, exist_ok=True)
        record = {"command": command, "jobs": {job.number: job.arguments for job in inside}}
        write_atomically(folder / RECORD_FILE, (json.dumps(record, indent=1) + "\n").encode())


def _run_alone(words: Sequence[str]) -> int:
    """Run `moldiff` with these words in a process of its own; returns its exit code."""
    only_installed = {} if os.getcwd() in sys.path else {"PYTHONSAFEPATH": "1"}
    with Popen([sys.executable, "-m", "moldiff.cli.main", *words], env=os.environ | only_installed) as process:
        try:
            with _passing_on(process):
                code = process.wait()
        except KeyboardInterrupt:  # which the job has got as well
            process.wait()
            return EXIT_INTERRUPTED
    return code if code >= 0 else 128 - code


def _passing_on(process: Popen[bytes]) -> AbstractContextManager[None]:
    """Pass on SIGTERM and SIGUSR1 to a process, and end as after Ctrl-C."""

    def pass_on(number: int, _: Any) -> None:
        process.send_signal(number)
        raise KeyboardInterrupt

    return handled(("SIGTERM", "SIGUSR1"), pass_on)
