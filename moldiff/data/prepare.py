"""From a source of molecules to a prepared folder: every record seen is kept or rejected with a reason."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from safetensors import SafetensorError

from moldiff import __version__
from moldiff.data.curation import HYDROGENS_NOT_PLACED
from moldiff.data.dataset import FORMAT_VERSION, SPLITS, MoleculeDataset, rare_classes
from moldiff.data.sources import Fingerprinted, Resumable, Shardable, Source, SourceRecord
from moldiff.data.store import load_arrays, pack, save_arrays, unpack
from moldiff.data.writer import DatasetWriter, account_table, is_prepared, refuse_foreign
from moldiff.errors import MoldiffError
from moldiff.molecules.molecule import InvalidMolecule, Molecule, Status

_PART_RECORDS = 256
_TEXT = "text"
_UNPLACED = "hydrogens are missing that other records have; hydrogens=add adds them, hydrogens=none leaves all out"


def prepare(
    source: Source,
    out: str | Path,
    *,
    min_count: int | None = 1,
    strict: bool = False,
    progress: bool = True,
    parts: RecordParts | None = None,
) -> MoleculeDataset:
    """Read a source and write a prepared folder `out`, which replaces an older one as a whole.

    A source that has a fingerprint is not read again when `out` was made of the same content with the same options.
    One that is resumable goes on where an earlier call was ended. Molecules with an atom class that fewer than
    `min_count` molecules have are left out, the rarest class first; None = one in 5,000 molecules, which leaves nothing
    out of smaller sets. `progress` shows a bar and the account of the records on standard error; `parts` hold records
    of the source that are worked on already.

    Raises MoldiffError when no molecule is kept, `out` exists and is not a prepared set, or `strict` finds a reject.
    """
    out = Path(out)
    console = Console(stderr=True, quiet=not progress)
    say = partial(console.print, highlight=False, soft_wrap=True, markup=False)
    refuse_foreign(out)
    fingerprint = _digest(source.fingerprint(), min_count) if isinstance(source, Fingerprinted) else None
    ready = _up_to_date(out, fingerprint, say)
    if ready is None:
        records, journal = _records(source, out, say) if parts is None else (parts.records(), None)
        with closing(DatasetWriter(out)) as writer:
            _gather(source, records, writer, min_count, progress)
            if strict:
                _refuse_rejects(writer, source.name)
            meta: dict[str, Any] = {"name": source.name} | source.describe()
            notes = writer.note_counts() | meta.pop("notes", {})
            if HYDROGENS_NOT_PLACED in notes:
                meta["hydrogens"] = HYDROGENS_NOT_PLACED
            if fingerprint is not None:
                meta["fingerprint"] = fingerprint
            writer.write(writer.labelled_splits() or source.splits(writer.hashes[:, 0]), meta, notes)
        ready = MoleculeDataset.load(out)
        if isinstance(source, Resumable) and journal is not None and source.parts is None:
            journal.remove()
    elif strict and ready.meta["counts"]["rejected"]:
        raise MoldiffError(f"{source.name}: {ready.meta['counts']['rejected']} records rejected, but strict=true")
    console.print(account_table(source.name, ready.meta["counts"]))
    for line in _remarks(ready):
        say(line)
    return ready


def _digest(*facts: Any) -> str:
    return hashlib.sha256(json.dumps([*facts, FORMAT_VERSION, __version__]).encode()).hexdigest()


def _up_to_date(out: Path, fingerprint: str | None, say: Callable[[str], None]) -> MoleculeDataset | None:
    """The set in `out` if it is whole and was made of the same; else None, with a note on why it is made again."""
    if fingerprint is None or not is_prepared(out):
        return None
    try:
        ready = MoleculeDataset.load(out)
    except MoldiffError as error:
        say(f"{out}: damaged, so it is made again ({error})")
        return None
    same = ready.meta.get("fingerprint") == fingerprint
    what = "up to date, content and options are the same"
    say(f"{out}: {what if same else 'made of other content or with other options, so it is made again'}")
    return ready if same else None


def _records(source: Source, out: Path, say: Callable[[str], None]) -> tuple[Iterable[SourceRecord], Journal | None]:
    """Every record once; of a resumable source those that are finished, then the others, and the journal of both."""
    if not isinstance(source, Resumable):
        return source.records(), None
    journal = Journal(source.parts or out.with_name(f".{out.name}-parts"), _digest(source.parts_key()))
    if len(journal):
        say(f"{out}: goes on after {len(journal)} records that are finished")
    finished = min(len(journal), len(source))
    return chain(islice(journal, finished), journal.kept(source.records(finished))), journal


def _gather(
    source: Source, records: Iterable[SourceRecord], writer: DatasetWriter, min_count: int | None, progress: bool
) -> None:
    """All records of a source, sorted into kept and rejected."""
    if progress:
        title = escape(f"reading {source.name}")
        records = track(records, title, total=len(source), console=Console(stderr=True))
    for place, record in enumerate(records):
        writer.add(place, record)
    writer.finish(source.properties)
    if len(writer):
        unplaced = writer.noted(HYDROGENS_NOT_PLACED)
        if ((np.diff(writer.flat["hydrogen_slices"]) > 0) & ~unplaced).any():
            problem = InvalidMolecule(Status.UNREADABLE, _UNPLACED)
            writer.leave_out(dict.fromkeys(np.flatnonzero(unplaced).tolist(), problem))
        writer.leave_out(rare_classes(writer.flat, len(writer) // 5000 if min_count is None else min_count))
    if not len(writer):
        first = next(iter(writer.rejected), None)
        why = f"; first reason: {first.reason}" if first else ""
        raise MoldiffError(f"{source.name}: no molecule kept of {len(writer.rejected)} records{why}")


def _refuse_rejects(writer: DatasetWriter, name: str) -> None:
    for first in writer.rejected:
        where = f"record {first.number}" + (f" of {first.file}" if first.file else "")
        rejected = f"{len(writer.rejected)} of {len(writer.rejected) + len(writer)} records rejected"
        raise MoldiffError(f"{name}: {rejected}, but strict=true; first: {where}: {first.reason}")


def _remarks(prepared: MoleculeDataset) -> list[str]:
    """What a user should know of a set before training on it."""
    counts = prepared.meta["counts"]
    lines = []
    if prepared.meta.get("hydrogens") == HYDROGENS_NOT_PLACED:
        counted = "they are counted in the atom classes, and a model learns the heavy atoms' coordinates alone"
        lines.append(f"this set has no hydrogens: {counted}")
    if counts["train"] < 1000:
        few = f"only {counts['train']} molecules to train on"
        lines.append(f"{few}: a model may learn them by heart, and novelty means little")
    if counts.get("molecules", counts["kept"]) < counts["kept"]:
        crossing = counts["valid_keys_in_train"] + counts["test_keys_in_train"]
        where = f"{crossing} are of one to train on, too" if crossing else "each of these is in one part only"
        lines.append(f"{counts['kept']} records are of {counts['molecules']} molecules; {where}")
    if constant := [name for name in prepared.properties if name not in prepared.learnable]:
        lines.append(f"{', '.join(constant)}: the same in all that there is to train on, so that no model learns it")
    sizes = prepared.statistics.size_counts
    parts = ", ".join(f"{counts[part]} {part}" for part in SPLITS)
    classes = f"{prepared.vocabulary.num_atom_classes} atom classes: {prepared.vocabulary}"
    return [*lines, f"{parts}; {min(sizes)} to {max(sizes)} heavy atoms; {classes}"]


@dataclass(eq=False)
class RecordParts:
    """Records of a source on disk, which several processes work on, each on a part of them."""

    source: Shardable
    folder: Path

    @cached_property
    def _key(self) -> str:
        return _digest(self.source.fingerprint())

    def holds(self, part: range) -> bool:
        """Whether all records of a part are on disk."""
        return len(Journal(self.folder, self._key, part.start)) >= len(part)

    def work(self, part: range) -> None:
        """Work on the records of a part that are not on disk."""
        journal = Journal(self.folder, self._key, part.start)
        done = min(len(journal), len(part))
        for _ in journal.kept(islice(self.source.worked(part.start + done), len(part) - done)):
            pass

    def records(self) -> Iterator[SourceRecord]:
        """Every record, those on disk first."""
        journal = Journal(self.folder, self._key)
        finished = min(len(journal), len(self.source))
        return self.source.counted(chain(islice(journal, finished), journal.kept(self.source.worked(finished))))


class Journal:
    """The records of a source from one of them on, in files of up to 256, of which each gets its name when it is whole.

    They are in a folder of their own for each key, a digest of all that decides on the records.
    """

    def __init__(self, folder: Path, key: str, first: int = 0) -> None:
        self._root, self._folder, self._first = folder, folder / key[:16], first
        self._open: list[SourceRecord] = []
        self._parts: list[tuple[int, Path]] = []  # number of records and file
        for path in sorted(self._folder.glob("*.part")):
            # Two processes at the same records may have divided them in different ways, so that some files overlap.
            start, _, count = path.stem.partition("-")
            if int(start) == self._first + len(self):
                self._parts.append((int(count), path))

    def __len__(self) -> int:
        return sum(count for count, _ in self._parts) + len(self._open)

    def __iter__(self) -> Iterator[SourceRecord]:
        """All records that are on disk."""
        return chain.from_iterable(_read_part(path) for _, path in self._parts)

    def kept(self, records: Iterable[SourceRecord]) -> Iterator[SourceRecord]:
        """The records, each added as the next one; on disk at the latest when there is no more."""
        try:
            for record in records:
                self.append(record)
                yield record
        finally:
            self.flush()

    def append(self, record: SourceRecord) -> None:
        """Add the next record; it is on disk with the 256th, or after `flush`."""
        self._open.append(record)
        if len(self._open) == _PART_RECORDS:
            self.flush()

    def flush(self) -> None:
        """Put the records on disk that are not yet."""
        if not self._open:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        first, count = self._first + len(self) - len(self._open), len(self._open)
        path = self._folder / f"{first:010d}-{count:04d}.part"
        unfinished = path.with_suffix(f".{os.getpid()}.tmp")
        flat = pack([record.outcome for record in self._open if isinstance(record.outcome, Molecule)], [])
        text = json.dumps([_fields(record) for record in self._open]).encode()
        save_arrays(unfinished, flat | {_TEXT: np.frombuffer(text, dtype=np.uint8)})
        os.replace(unfinished, path)
        self._parts.append((count, path))
        self._open = []

    def remove(self) -> None:
        """Delete the folder with all that is in it."""
        shutil.rmtree(self._root, ignore_errors=True)


def _fields(record: SourceRecord) -> dict[str, Any]:
    """All of a record but its molecule's arrays."""
    fields = {name: getattr(record, name) for name in ("number", "name", "file", "keys", "notes", "part", "texts")}
    if isinstance(record.outcome, InvalidMolecule):
        return fields | {"problem": [record.outcome.status, record.outcome.reason, record.outcome.atom]}
    return fields | {"title": record.outcome.name, "properties": dict(record.outcome.properties)}


def _read_part(path: Path) -> Iterator[SourceRecord]:
    try:
        flat = load_arrays(path, map_from=path.stat().st_size + 1)
        texts = json.loads(flat.pop(_TEXT).tobytes())
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise MoldiffError(f"{path}: damaged ({error}); delete {path.parent} to begin anew") from None
    index = count()
    for fields in texts:
        outcome: Molecule | InvalidMolecule
        if problem := fields.pop("problem", None):
            outcome = InvalidMolecule(Status(problem[0]), *problem[1:])
        else:
            outcome = unpack(flat, next(index), properties=fields.pop("properties"), name=fields.pop("title"))
        keys = fields.pop("keys")
        lists: dict[str, Any] = {name: tuple(fields.pop(name, ())) for name in ("notes", "texts")}
        yield SourceRecord(outcome=outcome, keys=keys and tuple(keys), **lists, **fields)
