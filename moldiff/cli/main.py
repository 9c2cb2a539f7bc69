"""The command line: `moldiff prepare | train | sample | evaluate | view | verify key=value ...`.

Everything heavy is imported inside the command that needs it, so that help and wrong input answer at once.
"""

from __future__ import annotations

import io
import logging
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moldiff import __version__
from moldiff.cli.options import (
    CHOICE,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_WRONG_INPUT,
    GENERAL,
    SCREENS,
    TASKS,
    check_limits,
)
from moldiff.cli.sample import bars, check_sample, log_level, sample, say
from moldiff.cli.terminal import spoken
from moldiff.errors import MoldiffError, check_at_least
from moldiff.processes import handled, rank, started_together

if TYPE_CHECKING:
    from moldiff.data.prepare import RecordParts

_NO_DATA = "data.path: nothing given, expected a file, folder or pattern, such as data.path=mine.sdf"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 1 (failed), 2 (wrong input) or 130 (interrupted)."""
    # Threads that wait for one another in a loop starve where another program uses the processor: 33 s instead of 5 for
    # 20 molecules beside one busy core of two. Has to be said before torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file's name may be bytes that are no text
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with spoken(arguments):
            return _guarded(arguments)
    except OSError as error:  # the log cannot be written
        return _say(f"error: log: {error.filename}: {error.strerror}", EXIT_WRONG_INPUT, debug=False)


def _guarded(arguments: list[str]) -> int:
    """Run a command; what goes wrong is one line on standard error."""
    debug = any(text.lower() == "debug=true" for text in arguments)
    try:
        with _termination_interrupts():
            return _dispatch(arguments)
    except KeyboardInterrupt as error:
        return _say(f"interrupted{error}", EXIT_INTERRUPTED, debug=debug)
    except BrokenPipeError as error:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.filename is None:  # of what is printed, rather than molecules
            return EXIT_FAILED
        return _say("interrupted: standard output was closed by its reader", EXIT_FAILED, debug=debug)
    except MoldiffError as error:
        return _say(f"error: {error}", EXIT_WRONG_INPUT, debug=debug)
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:
            return _say(f"error: {error.filename}: {error.strerror}", EXIT_WRONG_INPUT, debug=debug)
        reason = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        return _say(f"error: unexpected {reason} (debug=true shows where)", EXIT_FAILED, debug=debug)


def _termination_interrupts() -> AbstractContextManager[None]:
    """SIGTERM, with which `kill`, `timeout` and cluster schedulers end a process, does what Ctrl-C does."""
    if signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:  # whoever started us wants something else
        return nullcontext()

    def interrupt(*_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it may come twice, and what is finished is being saved
        raise KeyboardInterrupt

    return handled(("SIGTERM",), interrupt)


def _say(message: str, code: int, *, debug: bool) -> int:
    """Print a message as one line on standard error, behind the stack trace where that is wanted."""
    if debug:
        import traceback

        traceback.print_exc()
    say(" ".join(message.split()))
    return code


def _dispatch(arguments: list[str]) -> int:
    wants_help = any(text in ("-h", "--help") for text in arguments)
    command = arguments[0] if arguments else ""
    if wants_help:
        print(_help(command, arguments), end="")
        return EXIT_OK
    if command in SCREENS:
        return _run(command, arguments[1:])
    if command == "models":
        if arguments[1:]:
            raise MoldiffError(f"models: got {arguments[1]!r}, expected nothing")
        return sample({"model": "?"})
    if command == "--version":
        print(f"moldiff {__version__}")
        return EXIT_OK
    if not command:
        print(GENERAL, end="", file=sys.stderr)
        return EXIT_WRONG_INPUT
    known = [*SCREENS, "models"]
    close = get_close_matches(command, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"expected one of: {', '.join(known)}"
    raise MoldiffError(f"unknown command {command!r}; {hint}")


def _help(command: str, arguments: Sequence[str]) -> str:
    """The help of a command, of what its arguments ask about, or of all commands."""
    if command == "sample" and any(text.startswith("task=") for text in arguments):
        return TASKS
    if command == "sample" and any(text.startswith(("filters=", "columns=", "like")) for text in arguments):
        return CHOICE
    return SCREENS.get(command, GENERAL)


def _run(command: str, arguments: Sequence[str]) -> int:
    from moldiff.cli.compose import as_yaml, compose_options, each_combination, without_hydra
    from moldiff.cli.jobs import job_launcher, plan, return_to_start, run_jobs, with_outputs, work_in_run_folder
    from moldiff.cli.shards import check_shards, run_shards

    return_to_start()
    only_print, is_multirun = "--cfg" in arguments, not {"-m", "--multirun"}.isdisjoint(arguments)
    overrides, config_dirs = [], []
    rest = iter([text for text in arguments if text not in ("--cfg", "-m", "--multirun")])
    for text in rest:
        if text == "--config-dir":
            config_dirs.append(next(rest, ""))
        elif text.startswith("--config-dir="):
            config_dirs.append(text.partition("=")[2])
        else:
            overrides.append(text)
    overrides, launcher, chdir = without_hydra(overrides)
    every = each_combination(overrides) if is_multirun else [overrides]
    composed = [compose_options(command, texts, config_dirs) for texts in every]
    if only_print:
        print("---\n".join(map(as_yaml, composed)), end="")
        return EXIT_OK
    composed = [with_outputs(command, options) for options in composed]
    check, run = _COMMANDS[command]
    for options in composed:
        check_limits(command, options)
        check(options)
        if options.get("shards") is not None:
            check_shards(options, alone=not (is_multirun or chdir))
    more = [f"--config-dir={folder}" for folder in config_dirs] + ["hydra.job.chdir=true"] * chdir
    if is_multirun:
        return run_jobs(command, plan(command, every, composed), more, launcher)
    (options,) = composed
    if options.get("shards") is not None:
        words = [text for text in overrides if text.partition("=")[0] != "shards"] + more
        return run_shards(command, options, words, partial(job_launcher, launcher), run)
    if launcher:
        raise MoldiffError(f"{launcher[0]}: got a launcher for one job, expected -m or shards=K as well")
    if not chdir:
        return run(options)
    with work_in_run_folder(command, options) as options:
        return run(options)


def _check_prepare(options: Mapping[str, Any]) -> None:
    data = options["data"]
    if data["source"] is None:
        raise MoldiffError(f"data: got {data['name']}, which is prepared already ({data['folder']}); expected data=qm9")
    if data.get("path", "") is None:
        raise MoldiffError(_NO_DATA)
    for name in ("min_count", "max_heavy_atoms"):
        check_at_least(f"data.{name}", data.get(name), 1)


def _prepare(options: Mapping[str, Any], parts: RecordParts | None = None) -> int:
    print(f"prepared set in {_make_set(options['data'], options['out'], strict=options['strict'], parts=parts)}")
    return EXIT_OK


def _make_set(
    data: Mapping[str, Any], out: str | None, *, strict: bool = False, parts: RecordParts | None = None
) -> Path:
    """The folder of the set that a source makes; it is read only if it has changed."""
    from moldiff.data.prepare import prepare
    from moldiff.diffusion.instantiate import instantiate

    source = instantiate(data["source"], None) if parts is None else parts.source
    folder = out or f"prepared/{source.name}"
    return prepare(source, folder, min_count=data.get("min_count", 1), strict=strict, parts=parts).path


def _train(options: Mapping[str, Any]) -> int:
    data, together = options["data"], started_together()
    if data.get("path") is not None:
        if together and not Path(data["folder"], "meta.json").is_file():
            first = f"run first: moldiff prepare data.path={data['path']} out={data['folder']}"
            raise MoldiffError(f"data.path: several processes were started together; {first}")
        if rank() == 0 and not together:
            _make_set(data, data["folder"])
    from moldiff.training.checkpoint import STATE_FILE
    from moldiff.training.train import train

    settings = {key: value for key, value in options.items() if key not in ("debug", "prior")}
    try:
        with log_level("lightning.pytorch", logging.WARNING), warnings.catch_warnings():  # errors come through
            warnings.filterwarnings("ignore", module=r"lightning\.")
            folder = train(settings)
    except (SystemExit, KeyboardInterrupt) as error:
        # Lightning's answer to Ctrl-C is a SystemExit.
        if isinstance(error, SystemExit) and not isinstance(error.__context__, KeyboardInterrupt):
            raise
        if rank() > 0:  # the first process says it for all
            return EXIT_INTERRUPTED
        saved = (Path(options["out"]) / STATE_FILE).is_file()
        advice = f"out={options['out']} resume=true goes on with it" if saved else "nothing saved yet"
        raise KeyboardInterrupt(f"; {advice}") from error
    if rank() == 0:
        print(f"model in {folder}; to use it: moldiff sample model={folder}")
    return EXIT_OK


def _check_train(options: Mapping[str, Any]) -> None:
    if options["data"]["folder"] is None and options["data"].get("path") is None:
        raise MoldiffError(_NO_DATA)
    duration = options["trainer"]["max_time"]
    if duration is not None and not re.fullmatch(r"\d+:\d+:\d+:\d+", duration):
        expected = "days:hours:minutes:seconds, such as 00:08:00:00"
        raise MoldiffError(f"trainer.max_time: got {duration!r}, expected {expected}")


def _check_input(options: Mapping[str, Any]) -> None:
    if not options["input"]:
        raise MoldiffError("input: nothing given, expected a file of molecules, for example input=molecules.sdf")


def _evaluate(options: Mapping[str, Any]) -> int:
    from rich.console import Console

    from moldiff.evaluation.evaluate import compare, evaluate
    from moldiff.molecules.formats.reader import is_one_file, read_sets

    source = options["input"]
    one_file = isinstance(source, str) and is_one_file(source)
    sets = {} if one_file else read_sets(source)
    with _judged(options) as shared:
        shared |= {"out": options["out"], "reference_size": options["reference_size"]}
        report = compare(sets, **shared) if len(sets) > 1 else evaluate(*sets.values() or [source], **shared)
    console = Console()
    for table in report.tables():
        console.print(table)
    for name, reason in report.skipped.items():
        console.print(f"{name} left out: {reason}", markup=False)
    for line in report.remark_lines():
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if options["out"] is not None:
        print(f"report in {Path(options['out'])}")
    if report.interrupted:
        say("interrupted; the report holds what was finished")
        return EXIT_INTERRUPTED
    return EXIT_OK


@contextmanager
def _judged(options: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What evaluating and viewing have in common, and a bar for each metric that reports its progress."""
    from moldiff.diffusion.instantiate import instantiate
    from moldiff.diffusion.shipped import available_models, shipped_folder

    reference = options["reference"]  # of a shipped model its folder, which lists its training molecules
    if reference in available_models():
        reference = shipped_folder() / reference
    metrics = [instantiate(config, None) for config in (options.get("metrics") or {}).values()]
    with bars() as show:
        yield {"reference": reference, "metrics": metrics, "hydrogens": options["hydrogens"], "on_progress": show}


def _check_view(options: Mapping[str, Any]) -> None:
    _check_input(options)
    from moldiff.view.page import target_of

    target_of(options["input"], options["out"])


def _view(options: Mapping[str, Any]) -> int:
    from moldiff.view import view

    with _judged(options) as shared:
        page = view(options["input"], options["out"], lead=options["lead"], receptor=options["receptor"], **shared)
    print(f"page in {page}; it opens in any browser")
    return EXIT_OK


def _check_verify(options: Mapping[str, Any]) -> None:
    _check_input(options)
    if options["out"] is not None and not options["out"].lower().endswith(".json"):
        raise MoldiffError(f"out: got {options['out']}, expected a name that ends in .json")


def _verify(options: Mapping[str, Any]) -> int:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from moldiff.evaluation.report import write_json
    from moldiff.molecules.formats.storage import shown
    from moldiff.sampling.verify import Finding, document, verify

    with bars() as show:
        found = verify(options["input"], device=options["device"], on_progress=partial(show, "verifying"))
    report, table = document(options["input"], found), Table("records", "", "first", title="Verified")
    for kind, count in report["counts"].items():
        first = next((one for one in found if one.finding == kind and one.reason), None)
        if count:
            table.add_row(kind, str(count), "" if first is None else escape(f"{first.number}: {shown(first.reason)}"))
    Console().print(table)
    if options["out"] is not None:
        write_json(options["out"], report)
        print(f"report in {options['out']}")
    return EXIT_OK if all(one.finding is Finding.REPRODUCED for one in found) else EXIT_FAILED


def _check_merge(options: Mapping[str, Any]) -> None:
    if options["input"] is None:
        raise MoldiffError("input: nothing given, expected a folder of shards, such as input=molecules.shards")


def _merge(options: Mapping[str, Any]) -> int:
    from moldiff.cli.shards import merge_words

    command, *words = merge_words(options["input"])
    return _run(command, words)


_COMMANDS: Mapping[str, tuple[Callable[[Mapping[str, Any]], None], Callable[..., int]]] = {
    "prepare": (_check_prepare, _prepare),
    "train": (_check_train, _train),
    "sample": (check_sample, sample),
    "evaluate": (_check_input, _evaluate),
    "view": (_check_view, _view),
    "verify": (_check_verify, _verify),
    "merge": (_check_merge, _merge),
}
"""Of each command what refuses impossible values before anything slow happens, and what runs it."""

if __name__ == "__main__":
    sys.exit(main())
