"""The command `moldiff sample`: molecules go into the file one by one, and a run that was ended can go on."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moldiff.cli.options import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, options_in
from moldiff.cli.terminal import apart_from_output, for_bars
from moldiff.errors import MoldiffError, as_range
from moldiff.molecules.formats.storage import is_standard
from moldiff.sampling.config import SamplingConfig

if TYPE_CHECKING:
    from moldiff.molecules.formats.writer import FinishedRecords
    from moldiff.sampling.run import SamplingRun
    from moldiff.sampling.sample import Sample


_WRITTEN = "written"  # in the folder of what was drawn for a file: this run has written it, and may replace it


def say(message: str) -> None:
    """Print a line on standard error."""
    print(f"moldiff: {message}", file=sys.stderr)


def sample(options: Mapping[str, Any], run: SamplingRun | None = None) -> int:
    """Run the command with options that `check_sample` lets pass, or a run made of these; returns the exit code."""
    if options["model"] == "?":
        from moldiff.diffusion.shipped import model_lines

        print("\n".join(model_lines()))
        return EXIT_OK
    from moldiff.molecules.formats.storage import locked
    from moldiff.molecules.formats.writer import finished_records

    out = Path(options["out"])
    other = f"out: another run is writing to {out}; choose another name"
    lock = nullcontext() if is_standard(out) else locked(out.with_name(f".{out.name}.lock"), other)
    with lock, _notices():
        finished = finished_records(out) if options["resume"] and not _at_end(options) else None
        run = run or run_of(options)
        if finished is not None:
            run = run.resumed(finished, out)
            if len(finished):
                say(f"going on behind {len(finished)} records of {out}")
        with _drawn_kept(run, options), bars() as show:
            run.on_progress = lambda done: show("sampling", done, run.num_wanted)
            unwritten = _write(run, options, finished)
        return _conclude(run, options, unwritten)


@contextmanager
def _drawn_kept(run: SamplingRun, options: Mapping[str, Any]) -> Iterator[None]:
    """Keep what is drawn for a file that is written at the end, beside it until then, so that a run can go on."""
    from moldiff.molecules.formats.storage import set_aside
    from moldiff.sampling.drawn_blocks import DrawnBlocks, origin_of

    if not _at_end(options) or run.saved is not None or is_standard(options["out"]) or options["trajectory"]:
        yield
        return
    run.saved = DrawnBlocks(Path(f"{options['out']}.drawn"), origin_of(run.settings(), run.molecules))
    folder = run.saved.folder
    if options["resume"] and folder.is_dir():
        say(f"going on with the molecules in {folder}")
    else:
        set_aside(folder)
    yield
    if run.interrupted and folder.is_dir():
        (folder / _WRITTEN).touch()
    elif not run.interrupted:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _notices() -> Iterator[None]:
    """What a run tells of its course, on standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("moldiff: %(message)s"))
    with log_level("moldiff", logging.INFO) as logger:
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)


@contextmanager
def log_level(name: str, level: int) -> Iterator[logging.Logger]:
    """The logger of that name, which lets nothing below the level through."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield logger
    finally:
        logger.setLevel(before)


def run_of(options: Mapping[str, Any]) -> SamplingRun:
    """The run that the options ask for."""
    from moldiff.diffusion.compute import PRECISIONS
    from moldiff.diffusion.instantiate import instantiate
    from moldiff.sampling.generator import load

    built = {"arithmetic": PRECISIONS.get(options["precision"])}
    built["task"] = instantiate(options["task"], None) if options.get("task") else None
    built["like"] = instantiate(options["like"], None) if is_ranked(options) else None
    generator, sampler = load(options["model"], device=options["device"]), dict(options["sampler"])
    if "num_steps" in sampler and sampler["num_steps"] is None:
        sampler["num_steps"] = generator.checkpoint.num_steps
    return generator.stream(options["n"], config=_config(options, **built, sampler=instantiate(sampler, None)))


def check_sample(options: Mapping[str, Any]) -> None:
    """Refuse impossible values before anything slow happens."""
    workers = options["workers"]
    if workers != "auto" and (isinstance(workers, str) or workers < 0):
        raise MoldiffError(f"workers: got {workers}, expected auto or a whole number of at least 0")
    if options["summary"] is not None and not options["summary"].lower().endswith(".json"):
        raise MoldiffError(f"summary: got {options['summary']}, expected a name that ends in .json")
    for name in ("resume", "trajectory", "unrelaxed"):
        if options[name] and is_standard(options["out"]):
            raise MoldiffError(f"{name}: got true with standard output, expected out=NAME.sdf")
    for name in ("trajectory", "unrelaxed"):
        if options["resume"] and options[name]:
            raise MoldiffError(f"resume: a second file cannot be continued, expected {name}=false")
    if options["unrelaxed"] and options["relax"] == "none":
        raise MoldiffError("unrelaxed: got true without relax, expected relax=mmff94s or relax=xtb")
    _config(options)
    if filters := _as_list(options["filters"]):  # what these need is imported only where one is asked for
        from moldiff.sampling.filters import parse_filters

        parse_filters(filters)
    if columns := _as_list(options["columns"]):
        from moldiff.evaluation.metrics.druglike import check_columns

        check_columns(columns)
    ranked, sort = is_ranked(options), options["sort"]
    if options["score"] is None and sort == "score":
        raise MoldiffError("sort: got score without one, expected score=my_module:function")
    if options["score"] is None and ranked and options["like"]["reference"] is None:
        expected = "a molecule in 3D to come near, such as like=ligand.sdf, or a score"
        raise MoldiffError(f"like: nothing given, expected {expected}")
    if ranked and sort != "index":
        raise MoldiffError(f"sort: got {sort} together with like, which ranks molecules itself, expected sort=index")
    if ranked and options["trajectory"]:
        raise MoldiffError("trajectory: got true together with like, which moves molecules, expected false")
    from moldiff.molecules.formats.writer import check_target

    check_target(options["out"])


def _config(options: Mapping[str, Any], **built: Any) -> SamplingConfig:
    """The options of the run, those that are objects as they were built."""
    defined = [one for one in options_in(SamplingConfig) if one.name in options]
    values = {one.name: _as_list(options[one.name]) if list in one.kinds else options[one.name] for one in defined}
    workers = None if options["workers"] == "auto" else options["workers"]
    objects = {"task": None, "sampler": None, "like": None} | built
    size = None if options["size"] is None else as_range(options["size"])
    if size is not None and not 1 <= size[0] <= size[1]:
        got = f"got {options['size']}, expected heavy atoms as a number such as 9 or a range such as 7..9"
        raise MoldiffError(f"size: {got}")
    return SamplingConfig(**values | objects | {"size": size, "workers": workers})


def _as_list(value: Any) -> list[Any] | None:
    """A value alone stands for a list of one."""
    return value if value is None or isinstance(value, list) else [value]


@contextmanager
def bars() -> Iterator[Callable[[str, float, int], None]]:
    """Bars on standard error, one for each name that is shown to be so far done, of so many."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(file=for_bars())
    progress, tasks = Progress(*columns, console=console, redirect_stdout=False, redirect_stderr=False), {}

    def show(name: str, done: float, total: int) -> None:
        progress.start()  # only now, so that what is fast or refused leaves no empty bar; later calls do nothing
        if name not in tasks:
            tasks[name] = progress.add_task(escape(name), total=total)
        progress.update(tasks[name], completed=done)

    try:
        yield show
    finally:
        if progress.live.is_started:
            progress.stop()


def _write(run: SamplingRun, options: Mapping[str, Any], finished: FinishedRecords | None) -> list[str]:
    """Draw and write what can be written; returns why the others cannot."""
    from moldiff.molecules.formats.writer import Writer, writer_of
    from moldiff.sampling.sample import beside, trajectory_path, write_frames

    out, reasons = Path(options["out"]), []
    is_own = finished is not None or (run.saved is not None and (run.saved.folder / _WRITTEN).is_file())
    keep_older = not (options["overwrite"] or is_own)
    with ExitStack() as files:
        if finished is None or not len(finished):  # what is ranked comes all at once
            writer = writer_of(out, streamed=not _at_end(options), keep_older=keep_older)
        else:
            writer = Writer.behind(out, finished.size, len(finished))
        files.enter_context(writer)
        files.enter_context(apart_from_output(is_standard(out)))
        films = drawn = None
        if options["trajectory"]:
            films = files.enter_context(Writer(trajectory_path(out), streamed=True, keep_older=keep_older))
        if options["unrelaxed"]:
            drawn = files.enter_context(Writer(beside(out, "unrelaxed.sdf"), streamed=True, keep_older=keep_older))
        try:
            in_order = run if options["sort"] == "index" else sorted(run, key=_ORDERS[options["sort"]])
            for sample in in_order:
                record = sample.record()
                try:
                    writer.write(sample.molecule, record)
                    if drawn is not None:
                        drawn.write(sample.unrelaxed or sample.molecule, {**record, "relaxed": None})
                except MoldiffError as error:
                    reasons.append(str(error))
                if films is not None:
                    write_frames(films, sample)
        except KeyboardInterrupt:
            run.interrupted = True
        except OSError as error:
            held = f"; {writer.path} holds {writer.count} finished records" if writer.count else ""
            again = ", and the same command with resume=true goes on" if held and _can_go_on(options) else ""
            raise OSError(error.errno, f"{error.strerror}{held}{again}", error.filename) from error
        if not writer.count:  # an exception leaves an older file of that name as it was
            _save_summary(run, options, None, len(reasons))
            raise KeyboardInterrupt if run.interrupted else MoldiffError(_why_no_file(run, options))
    if writer.older is not None:
        say(f"{writer.path} was there already and is now {writer.older}; overwrite=true would have replaced it")
    return reasons


_ORDERS: Mapping[str, Callable[[Sample], float]] = {
    "confidence": lambda one: -one.confidence,
    "score": lambda one: inf if (score := one.task.get("score")) is None else float(score),
}
"""What molecules are written in the order of."""


def _can_go_on(options: Mapping[str, Any]) -> bool:
    grows = Path(options["out"]).name.lower().endswith((".sdf", ".sdf.gz"))
    return (grows or _at_end(options)) and not (
        is_standard(options["out"]) or options["trajectory"] or options["unrelaxed"]
    )


def _at_end(options: Mapping[str, Any]) -> bool:
    """Whether all is written when the last molecule is drawn."""
    from moldiff.molecules.formats.writer import is_table

    return is_ranked(options) or options["sort"] != "index" or is_table(options["out"])


def is_ranked(options: Mapping[str, Any]) -> bool:
    """Whether all molecules of the run are ranked together, and perhaps more drawn from near the best."""
    return options["like"]["reference"] is not None or options["like"]["rounds"] > 0


def _why_no_file(run: SamplingRun, options: Mapping[str, Any]) -> str:
    """Why there is no file, and how many molecules were rejected for what."""
    from moldiff.sampling.molecule_sampler import LEAD_REASON

    wanted = " and ".join(_as_list(options["keep"]) or []) or "to be written"
    passing = " and passes the filters" if run.molecules.filters else ""
    problem = f"none of the {run.drawn} drawn molecules is {wanted}{passing}, so no file was written"
    counts = [(result.name.partition("_status_")[2], result.numerator) for result in run.results()]
    rejected = ", ".join(f"{count:.0f} {reason}" for reason, count in counts if reason and count)
    advice = (
        "; other new_atoms, or more noise, draw others, and exclude=[] lets it in" if LEAD_REASON in rejected else ""
    )
    return problem + (f"; rejected: {rejected}{advice}" if rejected else "") + _hardest_filter(run)


def _hardest_filter(run: SamplingRun) -> str:
    """Which filter fewest molecules pass, to be added to a sentence; "" where all pass all."""
    passes = [result for result in run.results() if result.name.startswith("task_passes_")]
    least = min(passes, key=lambda result: result.value or 0, default=None)
    if least is None or least.value == 1:
        return ""
    name = least.name.removeprefix("task_passes_")
    return f"; the hardest filter is {name}, which {least.numerator:.0f} of {least.denominator:.0f} pass"


def _conclude(run: SamplingRun, options: Mapping[str, Any], unwritten: Sequence[str]) -> int:
    """Print the summary; the exit code says whether all that was asked for is there."""
    from rich.console import Console

    from moldiff.evaluation.report import summary_table

    out = "standard output" if is_standard(options["out"]) else options["out"]
    _save_summary(run, options, options["out"], len(unwritten))
    for note in run.notes():
        say(note)
    table = summary_table(run.results(), asked=run.n, drawn=run.drawn, path=out)
    Console(stderr=is_standard(options["out"])).print(table)
    if unwritten:
        say(f"warning: {len(unwritten)} molecules not written; first reason: {unwritten[0]}")
    if run.interrupted:
        advice = "; the same command with resume=true goes on" if _can_go_on(options) else ""
        say(f"interrupted; {out} holds what was finished{advice}")
        return EXIT_INTERRUPTED
    if not run.complete:
        say(f"warning: {run.kept} of {run.n} molecules kept; max_draws={run.max_draws} reached{_hardest_filter(run)}")
        return EXIT_FAILED
    return EXIT_OK


def _save_summary(run: SamplingRun, options: Mapping[str, Any], file: str | None, unwritten: int) -> None:
    """Write what the table at the end says where that is wanted: docs/files.md says what each entry is."""
    if options["summary"] is None:
        return
    from moldiff.evaluation.report import write_json

    document = {
        "format_version": 1,
        "file": file,
        "settings": run.settings(),
        "first": run.config.first,
        "asked": run.n,
        "kept": run.kept,
        "drawn": run.drawn,
        "max_draws": run.max_draws,
        "not_written": unwritten,
        "complete": run.complete,
        "interrupted": run.interrupted,
        "notes": list(run.notes()),
        "results": [result.to_dict() for result in run.results()],
    }
    write_json(options["summary"], document)
