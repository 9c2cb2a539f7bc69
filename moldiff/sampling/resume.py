"""Going on with a sampling run that was ended, from the file that it was writing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from moldiff.errors import MoldiffError
from moldiff.molecules import identity
from moldiff.molecules.formats.writer import FinishedRecords
from moldiff.sampling.batch import Beginning
from moldiff.sampling.filters import ScreenedRun
from moldiff.sampling.run import Done, SamplingRun


def resumed(run: SamplingRun, finished: FinishedRecords, path: str | Path) -> SamplingRun:
    """The run behind the records that are finished; it ends with the molecules of the uninterrupted run.

    Args:
        run: one with the options of the first.
        finished: what the first had written.
        path: where, for the message.

    Raises:
        MoldiffError: for records that the run would not have written.
    """
    begun = [*finished.fields, *finished.rest]
    if not begun:
        return run
    if run.recipe.task.admission(run.order.n) is not None:
        raise MoldiffError("resume: a task that decides on several molecules together cannot be continued")
    indices = _checked(run, begun, Path(path))[: len(finished)]
    if not indices:
        return run
    behind = indices[-1] + 1
    # With nothing required, those that could not be written (a coordinate that is not finite) were kept as well.
    required = run.order.keep or (isinstance(run, ScreenedRun) and run.filters)
    kept = len(indices) if required else behind - run.order.first
    return replace(run, done=Done(kept, behind, frozenset(_keys(finished.fields))))


def _checked(run: SamplingRun, fields: Sequence[Mapping[str, str]], path: Path) -> list[int]:
    """The indices of the records, if the run would have written them."""
    indices: list[int] = []
    settings = {name: " ".join(str(value).split()) for name, value in run.settings().items()}  # as they are written
    for number, record in enumerate(fields, start=1):
        where = f"resume: {path}: record {number}"
        for name, value in settings.items():
            if record.get(name) != value:
                raise MoldiffError(f"{where} was drawn with {name}={record.get(name)}, expected {value}")
        index = int(record["index"]) if record.get("index", "").isdecimal() else -1
        if index < (indices[-1] + 1 if indices else run.order.first):
            raise MoldiffError(f"{where} has index {record.get('index')}, expected a larger one")
        missing = [item for item in sorted(run.order.keep) if not _has(record, item)]
        if missing:
            raise MoldiffError(f"{where} is not {missing[0]}, expected one of a run with the same `keep`")
        indices.append(index)
    size, got = Beginning.of(run.recipe.task, run.recipe.seed, indices[-1]).size, fields[-1].get("size")
    if got != str(size):
        raise MoldiffError(
            f"resume: {path}: record {len(fields)} has {got} heavy atoms, expected {size} by the options"
        )
    return indices


def _has(record: Mapping[str, str], item: str) -> bool:
    has = {"valid": "SMILES" in record, "sound": record.get("status") == "ok"}
    return has.get(item, record.get(item) == "true")


def _keys(fields: Iterable[Mapping[str, str]]) -> Iterable[str]:
    return (identity.canonical_key(record["SMILES"]) for record in fields if "SMILES" in record)
