"""The writer of prepared folders, and its account of what was kept, and what was rejected for which reason.

Records lie on disk as they come in, so that a set may be larger than memory.
"""

import csv
import json
import re
import shutil
import tempfile
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.markup import escape
from rich.table import Table

from moldiff import __version__
from moldiff.data import dataset
from moldiff.data.dataset import META_FILE, MOLECULES_FILE, SPLITS
from moldiff.data.sources import SourceRecord
from moldiff.data.store import FIELDS_BY_SLICES, STORED, Packed, Spool, blocks, pack, save_arrays, slices_of
from moldiff.errors import MoldiffError
from moldiff.molecules.identity import both_keys, key_hash
from moldiff.molecules.molecule import InvalidMolecule, Molecule

_SHOWN = 15
_CHUNK = 1024
_PARTS = {"": -1} | {part: number for number, part in enumerate(SPLITS)}


class Rejected(NamedTuple):
    """A record that is not in the set, and why."""

    place: int  # in the whole source, from 0
    number: int  # in its file, from 1
    name: str
    file: str  # "" where the source has no files
    status: str
    reason: str
    atom: int | None = None


def reason_kind(reason: str) -> str:
    """A reason without what differs from record to record: numbers of atoms, quoted text, counts.

    >>> reason_kind("atom 12 (N): bond orders sum to 4, expected 3")
    'N: bond orders sum to 4, expected 3'
    >>> reason_kind("truncated at record 17")
    'truncated at record #'
    """
    kind, at_atom = re.subn(r"^atom \d+ \(([\w*]+)\)", r"\1", reason)
    if not at_atom:
        kind = re.sub(r"'[^']*'", "'...'", re.sub(r"^(atoms?|bond) [\d-]+( and \d+)?: ", "", reason))
        kind = re.sub(r"\b\d+(\.\d+)?\b( \d+\b)*", "#", kind)
    return kind[:100]


def account_table(name: str, counts: Mapping[str, Any]) -> Table:
    """The `counts` of a prepared set's description as a table for a terminal.

    It says: records seen = kept + rejected by reason, and what was done to those kept.
    """
    table = Table(title=escape(f"{name}: records"), title_justify="left", show_header=False)
    table.add_column("", overflow="fold")
    table.add_column("", justify="right")
    reasons, notes = counts["rejected_by_reason"], counts["notes"]
    table.add_row("seen", str(counts["seen"]))
    table.add_row("kept", str(counts["kept"]))
    for note, times in notes.items():
        table.add_row(escape(f"  {note}"), str(times), style="dim")
    table.add_section()
    table.add_row("rejected", str(counts["rejected"]))
    for reason, times in list(reasons.items())[:_SHOWN]:
        table.add_row(escape(f"  {reason}"), str(times))
    if len(reasons) > _SHOWN:
        table.add_row("  other reasons, see rejected.csv", str(sum(list(reasons.values())[_SHOWN:])))
    return table


class Rejects:
    """Rejected records in a temporary file `beside` a path, for a source of rejects may be larger than memory, too."""

    def __init__(self, beside: Path) -> None:
        self._spool, self._places = Spool(beside), array("q")

    def append(self, record: Rejected) -> None:
        self._places.append(record.place)
        self._spool.append_lines([json.dumps(record)])

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Rejected]:
        """The records in the order in which they stand in their source, whatever the order in which they came."""
        lines = self._spool.columns()[0] if self._places else []
        for k in np.argsort(np.array(self._places), kind="stable").tolist():
            yield Rejected(*json.loads(lines[k]))

    def close(self) -> None:
        """Delete the file."""
        self._spool.remove()


class DatasetWriter:
    """Kept and rejected records of a source, put on disk a thousand at a time, and written as a prepared folder `out`.

    Temporary files are beside it.
    """

    def __init__(self, out: Path) -> None:
        self.flat: Packed = {}  # the molecules kept (`moldiff.data.store`), there after `finish`
        self.hashes = np.zeros((0, 2), dtype=np.int64)  # of their canonical and strict keys [M, 2]
        self.rejected = Rejects(out)  # the other records
        self._out, self._spool = out, Spool(out)
        self._smiles: Sequence[str] = []
        self._names: Sequence[str] = []
        self._properties: Mapping[str, str] = {}
        self._open: list[tuple[int, SourceRecord, Molecule]] = []
        self._count = 0
        # Texts that many records share are kept once, and by number with each record.
        self._files: dict[str, int] = defaultdict(count().__next__)
        self._notes: dict[tuple[str, ...], int] = defaultdict(count().__next__)
        self._property_numbers: dict[str, int] = defaultdict(count().__next__)
        self._origins = np.zeros((0, 5), dtype=np.int64)

    def __len__(self) -> int:
        """Number of molecules kept."""
        return self._count

    def add(self, place: int, record: SourceRecord) -> None:
        """Take in the record at `place` of the source."""
        if isinstance(record.outcome, InvalidMolecule):
            problem = astuple(record.outcome)
            self.rejected.append(Rejected(place, record.number, record.name, record.file, *problem))
            return
        self._open.append((place, record, record.outcome))
        self._count += 1
        if len(self._open) == _CHUNK:
            self._spill()

    def _spill(self) -> None:
        """Put the open records on disk."""
        if not self._open:
            return
        molecules = [molecule for _, _, molecule in self._open]
        keys = [record.keys or both_keys(molecule) for _, record, molecule in self._open]
        known = [
            (index, self._property_numbers[name], value)
            for index, molecule in enumerate(molecules, start=self._count - len(molecules))
            for name, value in molecule.properties.items()
        ]
        origins = [
            (place, record.number, self._files[record.file], self._notes[record.notes], _PARTS[record.part])
            for place, record, _ in self._open
        ]
        self._spool.append(
            _rows(pack(molecules, []))
            | {
                "property_of": np.array([row[:2] for row in known], dtype=np.int64).reshape(-1, 2),
                "property": np.array([row[2] for row in known], dtype=np.float32),
                "hashes": np.array([[key_hash(key) for key in pair] for pair in keys], dtype=np.int64),
                "origins": np.array(origins, dtype=np.int64),
            }
        )
        titles = (molecule.name or record.name for _, record, molecule in self._open)
        # Titles of records may hold tabs and line ends of any kind.
        self._spool.append_lines([f"{key}\t{' '.join(t.split())}" for (_, key), t in zip(keys, titles, strict=True)])
        self._open = []

    def finish(self, properties: Mapping[str, str]) -> None:
        """All records are in; of their properties, those named (with their units) become columns of `y`."""
        self._spill()
        self._properties, arrays = properties, self._spool.arrays()
        y = np.full((self._count, len(properties)), np.nan, dtype=np.float32)
        columns = {name: column for column, name in enumerate(properties)}
        if self._property_numbers:
            molecule, number = np.asarray(arrays["property_of"]).T
            column = np.array([columns.get(name, -1) for name in self._property_numbers], dtype=np.int64)[number]
            wanted = column >= 0
            y[molecule[wanted], column[wanted]] = arrays["property"][wanted]
        self._show(y)

    def _show(self, y: np.ndarray) -> None:
        """Give what is on disk, and the properties [M, P] of the molecules."""
        if self._count:
            rows = self._spool.arrays()
            self.flat = {name: rows[name] for name in _BY_ROWS} | {"edge_index": rows["edges"].T, "y": y}
            self.flat |= {name: slices_of(rows[name]) for name in FIELDS_BY_SLICES}
            self.hashes, self._origins = np.asarray(rows["hashes"]), np.asarray(rows["origins"])
            self._smiles, self._names = self._spool.columns()

    def noted(self, note: str) -> np.ndarray:
        """Which molecules have a note [M] bool."""
        return np.isin(self._origins[:, 3], [number for notes, number in self._notes.items() if note in notes])

    def note_counts(self) -> dict[str, int]:
        """How many molecules have each note, the commonest first."""
        notes = list(self._notes)
        counts: Counter[str] = Counter()
        for number, times in zip(*np.unique(self._origins[:, 3], return_counts=True), strict=True):
            counts.update(dict.fromkeys(notes[number], int(times)))
        return dict(counts.most_common())

    def leave_out(self, problems: Mapping[int, InvalidMolecule]) -> None:
        """Reject molecules that were kept so far, by their index."""
        if not problems:
            return
        files = list(self._files)
        for index, problem in problems.items():
            place, number, file, *_ = self._origins[index].tolist()
            self.rejected.append(Rejected(place, number, self._names[index], files[file], *astuple(problem)))
        left = np.setdiff1d(np.arange(self._count), list(problems))
        spool = Spool(self._out)
        for block in blocks(self.flat, left):
            spool.append(_rows(block))
        if len(left):
            spool.append({"hashes": self.hashes[left], "origins": self._origins[left]})
            spool.append_lines([f"{self._smiles[k]}\t{self._names[k]}" for k in left.tolist()])
        self._spool.remove()
        self._spool, self._count = spool, len(left)
        self._show(self.flat["y"][left])

    def labelled_splits(self) -> dict[str, np.ndarray] | None:
        """Indices of every part where the records say to which they belong, else None.

        Raises MoldiffError when none says that it is for training.
        """
        labels = self._origins[:, 4]
        if (labels < 0).all():
            return None
        splits = {part: np.flatnonzero(labels == number) for number, part in enumerate(SPLITS)}
        if not len(splits["train"]):
            raise MoldiffError("split: no kept record says 'train', expected at least one to train on")
        return splits

    def write(self, splits: Mapping[str, np.ndarray], meta: Mapping[str, Any], notes: Mapping[str, int]) -> None:
        """Write all files of the prepared set, with what else `meta.json` says; an older set is replaced as a whole.

        `splits` are indices of the molecules of every part; `notes` says how many molecules something was done to.
        """
        vocabulary, train = dataset.observed_vocabulary(self.flat), splits["train"]
        statistics = dataset.measure_statistics(self.flat, train, vocabulary)
        with _replacing(self._out) as folder:
            parts = {f"split_{part}": splits[part].astype(np.int64) for part in SPLITS}
            save_arrays(folder / MOLECULES_FILE, {name: self.flat[name] for name in STORED} | parts)
            novelty = {"canonical": np.unique(self.hashes[train, 0]), "strict": np.unique(self.hashes[train, 1])}
            save_arrays(folder / dataset.NOVELTY_FILE, novelty)
            with (folder / dataset.SMILES_FILE).open("w", encoding="utf-8", newline="\n") as file:
                file.writelines(f"{text}\t{name}\n" for text, name in zip(self._smiles, self._names, strict=True))
            self._write_rejected(folder / dataset.REJECTED_FILE)
            document = {
                "format_version": dataset.FORMAT_VERSION,
                "moldiff_version": __version__,
                **meta,
                "counts": self._counts(splits, notes),
                "properties": [[name, unit] for name, unit in self._properties.items()],
                "vocabulary": vocabulary.to_dict(),
                "statistics": statistics.to_dict(),
                "sha256": dataset.file_digest(folder / MOLECULES_FILE),
            }
            text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
            (folder / META_FILE).write_text(text + "\n", encoding="utf-8")

    def _counts(self, splits: Mapping[str, np.ndarray], notes: Mapping[str, int]) -> dict[str, Any]:
        """What was seen, kept and rejected; how many records of a molecule that is in training, too, are not."""
        known = np.isin(self.hashes[:, 0], self.hashes[splits["train"], 0])
        statuses = Counter(record.status for record in self.rejected)
        reasons = Counter(reason_kind(record.reason) for record in self.rejected)
        return {
            "seen": len(self) + len(self.rejected),
            "kept": len(self),
            "molecules": len(np.unique(self.hashes[:, 0])),
            "rejected": len(self.rejected),
            "rejected_by_status": dict(statuses),
            "rejected_by_reason": dict(reasons.most_common()),
            "notes": dict(notes),
            **{part: len(splits[part]) for part in SPLITS},
            **{f"{part}_keys_in_train": int(known[splits[part]].sum()) for part in ("valid", "test")},
        }

    def _write_rejected(self, path: Path) -> None:
        columns = 3 + any(record.file for record in self.rejected)
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["record", "name", "reason", "file"][:columns])
            table.writerows([one.number, one.name, one.reason, one.file][:columns] for one in self.rejected)

    def close(self) -> None:
        """Delete the temporary files."""
        self._spool.remove()
        self.rejected.close()


_BY_ROWS = [name for fields in FIELDS_BY_SLICES.values() for name in fields if name != "edge_index"]


def _rows(flat: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Packed arrays in a form that grows by rows; `DatasetWriter._show` is the inverse."""
    rows = {name: flat[name] for name in _BY_ROWS} | {"edges": flat["edge_index"].T}
    return rows | {name: np.diff(flat[name]) for name in FIELDS_BY_SLICES}


def is_prepared(out: Path) -> bool:
    """Whether a folder is a prepared set, be it a damaged one."""
    return any((out / name).is_file() for name in (META_FILE, MOLECULES_FILE))


def refuse_foreign(out: Path) -> None:
    """Raise MoldiffError when `out` is a file, or a folder that holds other things than a prepared set."""
    if out.exists() and not is_prepared(out) and (not out.is_dir() or any(out.iterdir())):
        raise MoldiffError(f"{out}: exists and is not a prepared set, expected a new folder")


@contextmanager
def _replacing(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` that takes its place when all is written, so no half set is ever seen."""
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        folder.chmod(0o755)
        yield folder
        if out.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{out.name}-old-", dir=out.parent))
            out.rename(old / out.name)
            folder.rename(out)
            shutil.rmtree(old)
        else:
            folder.rename(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
