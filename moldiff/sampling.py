"""The command `moldiff sample`: molecules go into the file one by one, and a run that was ended can go on."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moldiff.errors import MoldiffError, check_at_least
from moldiff.usage import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK

if TYPE_CHECKING:
    from moldiff.io.finished import FinishedRecords
    from moldiff.run import SamplingRun

_RANGE = re.compile(r"(\d+)(?:\.\.(\d+))?")


def sample(options: Mapping[str, Any]) -> int:
    """Run the command; returns the exit code."""
    _check(options)
    size = _parse_size(options["size"])
    finished = _finished(options)
    from moldiff.construct import construct

    sampler = construct(options["sampler"], None)
    task = construct(options["task"], None) if options.get("task") else None
    from moldiff.generate import load

    generator = load(options["model"], device=options["device"])
    _warn_of_size(size, generator.trained_sizes())
    run = generator.run(
        options["n"],
        seed=options["seed"],
        task=task,
        size=size,
        elements=_as_list(options["elements"]),
        forbid=_as_list(options["forbid"]) or (),
        steps=options["steps"],
        sampler=sampler,
        keep=_keep(options),
        decode=options["decode"],
        first=options["first"],
        max_draws=options["max_draws"],
        trajectory=options["trajectory"],
        workers=None if options["workers"] == "auto" else options["workers"],
    )
    if finished is not None:
        from moldiff.resume import resumed

        run = resumed(run, finished, options["out"])
        print(f"moldiff: going on behind {len(finished)} records of {options['out']}", file=sys.stderr)
    with _progress_bar(run.order.n) as run.on_progress:
        unwritten = _write(run, options, finished)
    return _conclude(run, options, unwritten)


def _check(options: Mapping[str, Any]) -> None:
    """Refuse impossible values before anything slow happens."""
    for name, low in (("n", 1), ("steps", 1), ("max_draws", 1), ("seed", 0), ("first", 0)):
        check_at_least(name, options[name], low)
    if options["seed"] >= 2**32:
        raise MoldiffError(f"seed: got {options['seed']}, expected a whole number from 0 to {2**32 - 1}")
    for item in _keep(options):
        if item not in ("valid", "unique", "novel"):
            raise MoldiffError(f"keep: got {item!r}, expected any of valid, unique, novel")
    if options["decode"] not in ("valence", "raw"):
        raise MoldiffError(f"decode: got {options['decode']!r}, expected valence or raw")
    workers = options["workers"]
    if workers != "auto" and (isinstance(workers, str) or workers < 0):
        raise MoldiffError(f"workers: got {workers}, expected auto or a whole number of at least 0")
    if options["resume"] and options["trajectory"]:
        raise MoldiffError("resume: trajectories cannot be continued, expected trajectory=false")
    from moldiff.io.writer import check_target

    check_target(options["out"])


def _keep(options: Mapping[str, Any]) -> list[str]:
    return _as_list(options["keep"]) or []


def _as_list(value: Any) -> list[Any] | None:
    """A value alone stands for a list of one."""
    return value if value is None or isinstance(value, list) else [value]


def _parse_size(size: int | str | None) -> tuple[int, int] | None:
    """The smallest and largest number of heavy atoms that is meant."""
    if size is None:
        return None
    found = _RANGE.fullmatch(str(size))
    low, high = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= low <= high:
        raise MoldiffError(f"size: got {size}, expected heavy atoms as a number such as 9 or a range such as 7..9")
    return low, high


def _finished(options: Mapping[str, Any]) -> FinishedRecords | None:
    """What an ended run had written; None = nothing, or it is not to go on."""
    if not options["resume"]:
        return None
    from moldiff.io.finished import finished_records

    found = finished_records(options["out"])
    return found if len(found) else None


def _warn_of_size(size: tuple[int, int] | None, trained: tuple[int, int]) -> None:
    if size is not None and (size[0] < trained[0] or size[1] > trained[1]):
        learned = f"the model has seen {trained[0]} to {trained[1]} heavy atoms"
        print(f"moldiff: warning: size: {learned}; other sizes may come out badly", file=sys.stderr)


@contextmanager
def _progress_bar(total: int) -> Iterator[Callable[[float], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("sampling"), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f}"))
    bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True))
    task = bar.add_task("", total=total)

    def on_progress(done: float) -> None:
        bar.start()  # only now, so that values refused by the model leave no empty bar; later calls do nothing
        bar.update(task, completed=done)

    try:
        yield on_progress
    finally:
        if bar.live.is_started:
            bar.stop()


def _write(run: SamplingRun, options: Mapping[str, Any], finished: FinishedRecords | None) -> list[str]:
    """Draw and write what can be written; returns why the others cannot."""
    from moldiff.io import Writer
    from moldiff.trajectory import trajectory_path, write_frames

    out, reasons = Path(options["out"]), []
    with ExitStack() as files:
        if finished is None:
            writer = files.enter_context(Writer(out, streamed=True))
        else:
            writer = files.enter_context(Writer.behind(out, finished.size, len(finished)))
        films = files.enter_context(Writer(trajectory_path(out), streamed=True)) if options["trajectory"] else None
        try:
            for drawn in run:
                try:
                    writer.write(drawn.molecule, drawn.record())
                except MoldiffError as error:
                    reasons.append(str(error))
                if films is not None:
                    write_frames(films, drawn)
        except KeyboardInterrupt:
            run.interrupted = True
        if not writer.count:  # an exception leaves an older file of that name as it was
            if run.interrupted:
                raise KeyboardInterrupt
            wanted = " and ".join(_keep(options)) or "to be written"
            raise MoldiffError(f"none of the {run.drawn} drawn molecules is {wanted}, so no file was written")
    return reasons


def _conclude(run: SamplingRun, options: Mapping[str, Any], unwritten: list[str]) -> int:
    """Print the summary; the exit code says whether all that was asked for is there."""
    from rich.console import Console

    from moldiff.report import summary_table

    out, asked = options["out"], run.order.n
    for note in run.recipe.task.notes():
        print(f"moldiff: {note}", file=sys.stderr)
    Console().print(summary_table(run.results(), asked=asked, drawn=run.drawn, path=out))
    if unwritten:
        first = f"first reason: {unwritten[0]}"
        print(f"moldiff: warning: {len(unwritten)} molecules not written; {first}", file=sys.stderr)
    if run.interrupted:
        advice = "; the same command with resume=true goes on" if Path(out).suffix in (".sdf", ".gz") else ""
        print(f"moldiff: interrupted; {out} holds what was finished{advice}", file=sys.stderr)
        return EXIT_INTERRUPTED
    if not run.complete:
        limit = f"max_draws={run.order.max_draws} reached"
        print(f"moldiff: warning: {run.kept} of {asked} molecules kept; {limit}", file=sys.stderr)
        return EXIT_FAILED
    return EXIT_OK
