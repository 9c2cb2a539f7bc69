"""A user's own files of molecules as a source for `moldiff.data.prepare.prepare`."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rdkit

from moldiff.data.curation import CurationRules
from moldiff.data.dataset import META_FILE, SPLITS, file_digest
from moldiff.data.sources import SourceRecord, Split
from moldiff.errors import MoldiffError
from moldiff.molecules import conformers
from moldiff.molecules.formats.reader import find_files, name_of, parts
from moldiff.molecules.formats.record import DEFAULT_COLUMNS, Columns, Part, guarded
from moldiff.molecules.formats.storage import shown
from moldiff.molecules.identity import both_keys
from moldiff.molecules.molecule import InvalidMolecule, Molecule, Status, status_of
from moldiff.processes import Failure, stream_limited

_LISTED_FILES = 20


class _Item(NamedTuple):
    """One record to work on, or why its file cannot be read."""

    file: str
    part: Part | None
    reason: str = ""

    def rejected(self, problem: InvalidMolecule) -> SourceRecord:
        number, title = (self.part.number, self.part.title) if self.part else (0, "")
        return SourceRecord(number, title, problem, self.file)


@dataclass(frozen=True)
class RecordWork:
    """What a worker process does with a record: parse it, make it a molecule by the rules and compute its keys."""

    rules: CurationRules
    split_field: str | None  # the data field that says to which part a record belongs

    def __call__(self, item: _Item) -> SourceRecord:
        """The record; whatever goes wrong is its reason."""
        if item.part is None:
            return item.rejected(InvalidMolecule(Status.UNREADABLE, item.reason))
        found = guarded(self._work, item, item.part)
        return item.rejected(found) if isinstance(found, InvalidMolecule) else found

    def _work(self, item: _Item, part: Part) -> SourceRecord:
        record = part.parse()
        found = partial(SourceRecord, part.number, record.name, file=item.file)
        outcome, notes = self.rules.apply(record)
        if isinstance(outcome, InvalidMolecule):
            return found(outcome)
        assert record.mol is not None
        label = ""
        if self.split_field is not None:
            label = record.mol.GetProp(self.split_field).strip() if record.mol.HasProp(self.split_field) else ""
            if label not in SPLITS:
                reason = f"{self.split_field}: got {label!r}, expected {', '.join(SPLITS)}"
                return found(InvalidMolecule(Status.UNREADABLE, reason))
        # Text, or a number that 32 bits do not hold, is none of the properties.
        fields = record.mol.GetPropNames(includePrivate=False, includeComputed=False)
        other = (str(name) for name in fields if name not in outcome.properties and record.mol.GetProp(name).strip())
        return found(outcome, keys=both_keys(outcome), notes=notes, part=label, texts=tuple(other))


class Files:
    """Files of molecules that a user has: SDF, MOL, MOL2, XYZ, SMILES, CSV, TSV and Parquet, most also as .gz.

    Args:
        path: a file, a folder (all files of known types in it, .txt aside) or a glob pattern.
        properties: data fields to keep; None = all that are numbers in at least half of the molecules.
        limit: read only the first `limit` records; None = all.
        num_workers: processes; 0 = none, and no time limit.
        time_limit: seconds of processor time that a record may take.

    Raises MoldiffError when nothing is found at `path`, or an option has a value that it cannot have.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        rules: CurationRules | None = None,
        columns: Columns = DEFAULT_COLUMNS,
        split: Split | None = None,
        properties: Sequence[str] | None = None,
        limit: int | None = None,
        num_workers: int = 2,
        time_limit: float = 60.0,
    ) -> None:
        if time_limit <= 0:
            raise MoldiffError(f"time_limit: got {time_limit}, expected seconds above 0")
        if Path(os.path.expanduser(str(path)), META_FILE).is_file():
            raise MoldiffError(f"{path}: is a prepared set already, ready for `moldiff train data.folder={path}`")
        self.files = find_files(path)
        self.name = name_of(path)
        self._rules, self._columns, self._split = rules or CurationRules(), columns, split or Split()
        self._asked = None if properties is None else tuple(properties)
        self._limit, self._num_workers, self._time_limit = limit, num_workers, time_limit
        self._root = Path(os.path.commonpath([file.parent for file in self.files]))
        self._known: Counter[str] = Counter()
        self._texts: Counter[str] = Counter()
        self._kept = self._embedded = 0

    @property
    def properties(self) -> dict[str, str]:
        """Unit of every property that is kept; known when the records have been read."""
        names = self._asked
        if names is None:
            names = tuple(name for name, count in self._known.items() if 2 * count >= self._kept)
        elif missing := [name for name in names if not self._known[name]]:
            known = ", ".join(self._known) or "none"
            raise MoldiffError(f"properties: no kept record has a number for {missing[0]!r}; there are: {known}")
        return {name: "e" if name == "net_charge" else "" for name in names}

    def fingerprint(self) -> str:
        """A digest of the files' names and content, of all options and of RDKit's version."""
        facts = [(self._relative(file), digest) for file, digest in self._digests.items()]
        text = repr((facts, sorted(self._options().items()), rdkit.__version__))
        return hashlib.sha256(text.encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """Files with size and digest, options, and where the geometry comes from."""
        files = [
            {"file": self._relative(file), "bytes": file.stat().st_size, "sha256": digest}
            for file, digest in islice(self._digests.items(), _LISTED_FILES)
        ]
        total = hashlib.sha256("".join(self._digests.values()).encode()).hexdigest()
        made, kept = conformers.GEOMETRY, self.properties
        geometry = made if self._embedded == self._kept else f"as read, or {made}" if self._embedded else "as read"
        notes = {f"{name}: text, so that no number is known": n for name, n in self._texts.items() if name in kept}
        for name, count in self._known.items() if self._asked is None else ():
            if name not in kept:
                notes[f"{name}: a number, but in fewer than half of the records"] = count
        return {
            "source": {"num_files": len(self.files), "sha256": total, "files": files, "rdkit": rdkit.__version__},
            "geometry": geometry,
            "hydrogens": "explicit",
            "options": self._options(),
            "notes": notes,
        }

    def __len__(self) -> int:
        return sum(1 for _ in islice(self._items(), self._limit))

    def records(self) -> Iterator[SourceRecord]:
        """Every record once, in order of the files and in them."""
        return self.counted(self.worked())

    def worked(self, start: int = 0) -> Iterator[SourceRecord]:
        """The records from number `start` on, which are not counted yet."""
        work, items = RecordWork(self._rules, self._split.field), islice(self._items(), start, self._limit)
        for item, record in stream_limited(work, items, num_workers=self._num_workers, limit=self._time_limit):
            if isinstance(record, Failure):
                record = item.rejected(InvalidMolecule(status_of(record), record.reason))
            yield record

    def counted(self, records: Iterable[SourceRecord]) -> Iterator[SourceRecord]:
        """All records, whoever worked on them, as they pass by; from these it is known what they are like."""
        for record in records:
            if isinstance(record.outcome, Molecule):
                self._kept += 1
                self._embedded += any(note in (conformers.ETKDG, conformers.NO_FORCE_FIELD) for note in record.notes)
                self._known.update(list(record.outcome.properties))
                self._texts.update(record.texts)
            yield record

    def splits(self, keys: np.ndarray) -> dict[str, np.ndarray]:
        return self._split.draw(keys)

    def _items(self) -> Iterator[_Item]:
        for file in self.files:
            name, count = self._relative(file), 0
            try:
                for part in parts(file, self._columns):
                    count += 1
                    yield _Item(name, part)
                if not count:
                    raise MoldiffError(f"{file}: no record found, expected at least one molecule")
            except MoldiffError as error:
                if len(self.files) == 1:
                    raise
                yield _Item(name, None, str(error).removeprefix(f"{file}: "))

    def _relative(self, file: Path) -> str:
        return shown(file.relative_to(self._root).as_posix())

    @cached_property
    def _digests(self) -> dict[Path, str]:
        return {file: file_digest(file) for file in self.files}

    def _options(self) -> dict[str, Any]:
        return {
            **asdict(self._rules),
            "elements": list(self._rules.elements),
            "smiles_column": self._columns.smiles,
            "name_column": self._columns.name,
            "properties": None if self._asked is None else list(self._asked),
            "valid_share": self._split.valid_share,
            "test_share": self._split.test_share,
            "split_field": self._split.field,
            "limit": self._limit,
            "time_limit": self._time_limit,
        }
