"""All that goes into a prepared folder, and the writing of it."""

from __future__ import annotations

import csv
import json
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moldiff import __version__
from moldiff.data.dataset import (
    FORMAT_VERSION,
    META_FILE,
    MOLECULES_FILE,
    NOVELTY_FILE,
    REJECTED_FILE,
    SMILES_FILE,
    SPLITS,
    file_digest,
)
from moldiff.data.frequencies import measure_statistics
from moldiff.data.store import STORED, blocks, class_codes, decode_class, save_arrays
from moldiff.data.writer import Rejected, reason_counts
from moldiff.errors import MoldiffError
from moldiff.molecules.elements import VALENCES
from moldiff.molecules.vocabulary import AtomClass, Vocabulary


def observed_vocabulary(flat: Mapping[str, np.ndarray]) -> Vocabulary:
    """Every atom class of a packed set; valences that the table lacks are those seen in the data."""
    rows = {row for block in blocks(flat, np.arange(len(flat["y"]))) for row in _classes_and_sums(block)}
    extra: dict[tuple[int, int], set[int]] = defaultdict(set)
    for atomic_number, charge, _, total in rows:
        if (atomic_number, charge) not in VALENCES:
            extra[atomic_number, charge].add(total)
    classes = sorted({AtomClass(*row[:3]) for row in rows})
    return Vocabulary(tuple(classes), {key: tuple(sorted(seen)) for key, seen in extra.items()})


def _classes_and_sums(flat: Mapping[str, np.ndarray]) -> list[tuple[int, int, int, int]]:
    """The distinct rows of atomic number, charge, hydrogens and sum of bond orders."""
    sums = flat["num_hydrogens"].astype(np.int64)
    start = np.repeat(flat["atom_slices"][:-1], np.diff(flat["bond_slices"]))
    for end in flat["edge_index"]:
        np.add.at(sums, start + end, flat["bond_order"])
    # One number for each atom, for distinct numbers are found much faster than distinct rows.
    codes = np.unique((class_codes(flat) << 8) + sums)
    return [(*decode_class(code >> 8), code & 0xFF) for code in codes.tolist()]


@dataclass(frozen=True)
class Draft:
    """All that a prepared set says and that cannot be computed from the rest.

    `hashes` [M, 2] are those of the canonical and the strict keys.
    """

    flat: Mapping[str, np.ndarray]
    splits: Mapping[str, np.ndarray]
    smiles: Sequence[str]
    names: Sequence[str]
    properties: Mapping[str, str]
    hashes: np.ndarray
    rejected: Sequence[Rejected]
    meta: dict[str, Any]
    notes: Mapping[str, int]

    def counts(self) -> dict[str, Any]:
        """How many records were seen, kept, rejected and why, are in each part, and repeat one of the training."""
        known = np.isin(self.hashes[:, 0], self.hashes[self.splits["train"], 0])
        return {
            "seen": len(self.smiles) + len(self.rejected),
            "kept": len(self.smiles),
            "molecules": len(np.unique(self.hashes[:, 0])),
            "rejected": len(self.rejected),
            "rejected_by_status": dict(Counter(str(record.problem.status) for record in self.rejected)),
            "rejected_by_reason": reason_counts(self.rejected),
            "notes": dict(self.notes),
            **{part: len(self.splits[part]) for part in SPLITS},
            **{f"{part}_keys_in_train": int(known[self.splits[part]].sum()) for part in ("valid", "test")},
        }

    def write(self, out: Path) -> None:
        """Write all files of the prepared set; an older set there is replaced as a whole."""
        vocabulary = observed_vocabulary(self.flat)
        train = self.splits["train"]
        statistics = measure_statistics(self.flat, train, vocabulary)
        with _replacing(out) as folder:
            splits = {f"split_{part}": self.splits[part].astype(np.int64) for part in SPLITS}
            save_arrays(folder / MOLECULES_FILE, {name: self.flat[name] for name in STORED} | splits)
            novelty = {"canonical": np.unique(self.hashes[train, 0]), "strict": np.unique(self.hashes[train, 1])}
            save_arrays(folder / NOVELTY_FILE, novelty)
            with (folder / SMILES_FILE).open("w", encoding="utf-8", newline="\n") as file:
                # Titles of records may hold tabs and line ends of any kind.
                named = zip(self.smiles, self.names, strict=True)
                file.writelines(f"{text}\t{' '.join(name.split())}\n" for text, name in named)
            self._write_rejected(folder / REJECTED_FILE)
            document = {
                "format_version": FORMAT_VERSION,
                "moldiff_version": __version__,
                **self.meta,
                "counts": self.counts(),
                "properties": [[name, unit] for name, unit in self.properties.items()],
                "vocabulary": vocabulary.to_dict(),
                "statistics": statistics.to_dict(),
                "sha256": file_digest(folder / MOLECULES_FILE),
            }
            text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
            (folder / META_FILE).write_text(text + "\n", encoding="utf-8")

    def _write_rejected(self, path: Path) -> None:
        with_file = any(record.file for record in self.rejected)
        header = ["record", "name", "reason", *(["file"] if with_file else [])]
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(header)
            for record in self.rejected:
                row = [record.number, record.name, record.problem.reason, record.file]
                table.writerow(row[: len(header)])


def is_prepared(out: Path) -> bool:
    """Whether a folder is a prepared set, be it a damaged one."""
    return any((out / name).is_file() for name in (META_FILE, MOLECULES_FILE))


def refuse_foreign(out: Path) -> None:
    """Refuse to replace something that is not a prepared set.

    Raises:
        MoldiffError: when `out` is a file, or a folder that holds other things.
    """
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
