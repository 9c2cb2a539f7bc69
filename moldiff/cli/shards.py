"""A command that splits itself into jobs for any launcher, each with a part that can go on, and merges the parts.

The result is what the command alone would have written: the merge is that command, which takes from the parts what it
would have computed itself.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any, NamedTuple, Self

from moldiff.cli.compose import argument
from moldiff.cli.options import EXIT_INTERRUPTED, EXIT_OK
from moldiff.cli.sample import is_ranked, run_of, say
from moldiff.errors import MoldiffError, as_range
from moldiff.molecules.formats.storage import write_atomically

_RECORD = "shards.json"


class SampleShards:
    """A command's work in parts of what it numbers: blocks of drawn molecules."""

    def __init__(self, options: Mapping[str, Any], folder: Path) -> None:
        from moldiff.sampling.drawn_blocks import DrawnBlocks, origin_of
        from moldiff.sampling.molecule_sampler import IndexBlocks

        if is_ranked(options):
            raise MoldiffError("shards: molecules are ranked by likeness all together, expected no shards")
        self.options: Mapping[str, Any] = {**options, "resume": False}  # by which it makes one result of the parts
        self._run = run_of(options)
        run, self._first = self._run, self._run.config.first
        self._saved = DrawnBlocks(folder, origin_of(run.settings(), run.molecules))
        self._blocks = IndexBlocks.of(run.molecules, self._first, run.n, run.max_draws)

    def first(self, number: int) -> list[range]:
        """The parts of about equal size of all that has to be done."""
        end = self._first + self._blocks.needed
        return _split(list(takewhile(lambda one: one.start < end, self._blocks.behind(self._first))), number)

    def further(self, number: int) -> list[range]:
        """Parts of what turned out to be needed as well: so many more that n pass, by the share of those that do.

        Raises MoldiffError for a part that is damaged, or was made by other options.
        """
        there = list(takewhile(self._saved.holds, self._blocks.behind(self._first)))
        passing = sum(self._saved.num_passing(block, self._run.config.keep) for block in there)
        drawn, missing = sum(map(len, there)), self._run.n - passing
        if missing <= self._run.n // 50:  # the merge draws them itself
            return []
        wanted = drawn + min(missing * drawn // max(1, passing), 10 * drawn)
        end = self._first + wanted
        return _split(list(takewhile(lambda one: one.start < end, self._blocks.behind(self._first + drawn))), number)

    def holds(self, part: range) -> bool:
        return all(map(self._saved.holds, self._blocks_of(part)))

    def work(self, part: range) -> None:
        from moldiff.sampling.molecule_sampler import choose_workers, with_trial

        molecules, workers = self._run.molecules, self._run.config.workers
        if workers is None:
            workers = choose_workers(molecules, part.start, len(part))
        if self._run.config.arithmetic is None:
            molecules = with_trial(molecules, part.start, len(part), workers)
        self._saved.fill(molecules, self._blocks_of(part), workers)

    def _blocks_of(self, part: range) -> list[range]:
        return list(takewhile(lambda one: one.start < part.stop, self._blocks.behind(part.start)))

    @property
    def finished(self) -> Any:
        """What the command takes from the parts, instead of working itself, without a trial: little is drawn."""
        config = replace(self._run.config, arithmetic=self._run.molecules.arithmetic)
        return replace(self._run, saved=self._saved, config=config)


class PrepareShards:
    """The same of records of a source."""

    def __init__(self, options: Mapping[str, Any], folder: Path) -> None:
        from moldiff.data.prepare import RecordParts
        from moldiff.diffusion.instantiate import instantiate

        data = options["data"]
        if data.get("path") is None:
            raise MoldiffError(f"shards: got {options['shards']} with data={data['name']}, expected data.path=FILE")
        self.options, self.finished = options, RecordParts(instantiate(data["source"], None), folder)

    def first(self, number: int) -> list[range]:
        end = len(self.finished.source)
        return _split([range(end * k // number, end * (k + 1) // number) for k in range(number)], number)

    def further(self, number: int) -> list[range]:
        return []

    def holds(self, part: range) -> bool:
        return self.finished.holds(part)

    def work(self, part: range) -> None:
        self.finished.work(part)


class Wanted(NamedTuple):
    """What `shards=...` asks for."""

    number: int = 0  # of parts in all
    one: int | None = None  # that part alone, from 0
    part: range | None = None  # what a job is to do
    merge: bool = False  # nothing but to put the parts together

    @classmethod
    def of(cls, value: int | str) -> Self:
        """Of K, I/K, FIRST..LAST or merge/K; raises `MoldiffError` for anything else."""
        low, high = as_range(str(value)) if ".." in str(value) else (0, -1)
        if low <= high:
            return cls(part=range(low, high + 1))
        found = re.fullmatch(r"(?:(\d+|merge)/)?(\d+)", str(value))
        number, which = (int(found[2]), found[1] or "1") if found else (0, "")
        if not number or not (which == "merge" or 1 <= int(which) <= number):
            raise MoldiffError(f"shards: got {value!r}, expected a number such as 8, or 3/8 for the third of eight")
        if found and found[1] and which != "merge":
            return cls(number, one=int(which) - 1)
        return cls(number, merge=which == "merge")


def check_shards(options: Mapping[str, Any], *, alone: bool) -> None:
    """Refuse shards that cannot be; `alone` = the command is neither one of several jobs nor in another folder."""
    Wanted.of(options["shards"])
    if not alone:
        raise MoldiffError(f"shards: got {options['shards']} together with -m or hydra.job.chdir, expected it alone")


def run_shards(
    command: str,
    options: Mapping[str, Any],
    words: Sequence[str],
    launched: Callable[[Path], Callable[[Sequence[Sequence[str]]], list[int]]],
    run: Callable[[Mapping[str, Any], Any], int],
) -> int:
    """Do what `shards` asks of a command that was typed with these words, `run` being what runs it.

    `launched` gives what runs words of jobs, beside the parts. Returns the exit code.
    """
    wanted, folder = Wanted.of(options["shards"]), folder_of(command, options)
    shards = (SampleShards if command == "sample" else PrepareShards)(options, folder)
    if wanted.part is not None:
        shards.work(wanted.part)
        return EXIT_OK
    parts = shards.first(wanted.number)
    if not wanted.merge:
        folder.mkdir(parents=True, exist_ok=True)
        record = {"command": command, "words": list(words), "shards": wanted.number, "started in": os.getcwd()}
        write_atomically(folder / _RECORD, (json.dumps(record, indent=1) + "\n").encode())
    if wanted.one is not None:
        for part in parts[wanted.one : wanted.one + 1]:
            shards.work(part)
        return EXIT_OK
    missing = [part for part in parts if not shards.holds(part)]
    if wanted.merge and missing:
        lacking = ", ".join(f"{parts.index(part) + 1}/{wanted.number}" for part in missing)
        raise MoldiffError(f"input: {folder} lacks shards={lacking}, expected all; the command goes on with each alone")
    missing = missing or shards.further(wanted.number)
    while missing and not wanted.merge:  # which does itself what is needed as well
        codes = launched(folder)([[command, *words, argument("shards", f"{one[0]}..{one[-1]}")] for one in missing])
        if EXIT_INTERRUPTED in codes:
            raise KeyboardInterrupt("; the same command goes on")
        if failed := [code for code in codes if code != EXIT_OK]:
            say(f"error: {len(failed)} of {len(codes)} shards failed; the same command goes on with these")
            return failed[0]
        missing = shards.further(wanted.number)
    code = run(shards.options, shards.finished)
    if code != EXIT_INTERRUPTED:
        shutil.rmtree(folder, ignore_errors=True)
    return code


def merge_words(folder: str | Path) -> list[str]:
    """The words of the command that merges the parts in a folder of shards.

    Raises:
        MoldiffError: for another folder, or one whose command was started elsewhere.
    """
    try:
        record = json.loads((Path(folder) / _RECORD).read_text())
        started, words = record["started in"], [record["command"], *record["words"], f"shards=merge/{record['shards']}"]
    except (OSError, KeyError, TypeError, ValueError):
        raise MoldiffError(f"input: {folder} holds no {_RECORD}, expected the folder of a command's shards") from None
    if os.path.realpath(started) != os.getcwd():
        raise MoldiffError(f"input: the shards in {folder} were started in {started}, expected to be merged there")
    return words


def folder_of(command: str, options: Mapping[str, Any]) -> Path:
    """Where the parts of a command lie: `molecules.shards` of `molecules.sdf`, `prepared/mine.shards` of a set."""
    from moldiff.sampling.sample import beside

    out = Path(options["out"])
    return beside(out, "shards") if command == "sample" else out.with_name(f"{out.name}.shards")


def _split(pieces: Sequence[range], number: int) -> list[range]:
    """So many runs of pieces, or fewer where there are fewer."""
    bounds = [len(pieces) * k // number for k in range(number + 1)]
    runs = (pieces[low:high] for low, high in pairwise(bounds) if low < high)
    return [part for part in (range(run[0].start, run[-1].stop) for run in runs) if len(part)]
