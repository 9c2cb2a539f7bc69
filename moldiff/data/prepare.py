"""From a source of molecules to a prepared folder: every record seen is kept or rejected with a reason."""

from __future__ import annotations

import csv
import json
import multiprocessing
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from rich.console import Console
from rich.progress import track
from safetensors.numpy import save_file

from moldiff import __version__
from moldiff.batch import Molecule
from moldiff.chem import canonical_key, key_hash, strict_key
from moldiff.data.dataset import (
    FORMAT_VERSION,
    META_FILE,
    MOLECULES_FILE,
    NOVELTY_FILE,
    REJECTED_FILE,
    SMILES_FILE,
    SPLITS,
    PreparedSet,
    encode_atoms,
    file_digest,
    pack,
    stored_form,
    take,
)
from moldiff.data.statistics import Statistics
from moldiff.errors import MoldiffError
from moldiff.results import InvalidMolecule
from moldiff.vocabulary import VALENCES, AtomClass, Vocabulary


class SourceRecord(NamedTuple):
    """One record of a source: its number (from 1), its name, and the molecule or why there is none."""

    number: int
    name: str
    outcome: Molecule | InvalidMolecule


class Source(Protocol):
    """Where molecules come from.

    Attributes:
        name: name of the set.
        properties: unit of every property the molecules carry.
    """

    name: str
    properties: Mapping[str, str]

    def describe(self) -> dict[str, Any]:
        """What goes to `meta.json`: `source` (package, version or file and digest), `geometry`, `hydrogens`."""
        ...

    def __len__(self) -> int:
        """Number of records."""
        ...

    def records(self) -> Iterator[SourceRecord]:
        """Every record once, in order."""
        ...

    def splits(self, count: int) -> dict[str, np.ndarray]:
        """Indices of the parts "train", "valid" and "test" among `count` kept molecules."""
        ...


def prepare(source: Source, out: str | Path, *, num_workers: int = 2, progress: bool = True) -> PreparedSet:
    """Read a source and write a prepared folder `out`, which replaces an older one as a whole.

    Args:
        source: where the molecules come from.
        out: the folder to make.
        num_workers: processes that compute SMILES and keys.
        progress: show progress bars and the final counts on standard error.

    Raises:
        MoldiffError: when no molecule is kept, or `out` exists and is not a prepared set.
    """
    out = Path(out)
    _refuse_foreign(out)
    kept: list[Molecule] = []
    rejected: list[tuple[int, str, InvalidMolecule]] = []
    for number, name, outcome in _tracked(source.records(), len(source), f"reading {source.name}", progress):
        if isinstance(outcome, InvalidMolecule):
            rejected.append((number, name, outcome))
        else:
            kept.append(outcome)
    if not kept:
        first = f"; first reason: {rejected[0][2].reason}" if rejected else ""
        raise MoldiffError(f"{source.name}: no molecule kept of {len(rejected)} records{first}")
    flat = pack(kept, list(source.properties))
    splits = source.splits(len(kept))
    keys = list(_tracked(_keys(kept, num_workers), len(kept), "SMILES and keys", progress))
    hashes = np.array([[key_hash(key) for key in pair] for pair in keys], dtype=np.int64)
    draft = _Draft(
        flat=flat,
        splits=splits,
        smiles=[strict for _, strict in keys],
        names=[molecule.name for molecule in kept],
        properties=source.properties,
        hashes=hashes,
        rejected=rejected,
        meta={"name": source.name} | source.describe(),
    )
    _write(draft, out)
    if progress:
        Console(stderr=True).print(f"{source.name}: {len(kept)} kept + {len(rejected)} rejected -> {out}")
    return PreparedSet.load(out)


def subset(prepared: PreparedSet, splits: Mapping[str, np.ndarray], out: str | Path, *, name: str) -> PreparedSet:
    """Write the chosen molecules of a prepared set as a prepared set of its own, with its own vocabulary.

    Args:
        prepared: the set to take from.
        splits: indices into `prepared` for "train", "valid" and "test"; the new set holds them in this order.
        out: the folder to make.
        name: name of the new set.
    """
    out = Path(out)
    _refuse_foreign(out)
    indices = np.concatenate([splits[part] for part in SPLITS])
    ends = np.cumsum([len(splits[part]) for part in SPLITS])
    parts = dict(zip(SPLITS, np.split(np.arange(len(indices)), ends[:-1]), strict=True))
    smiles = [prepared.smiles[i] for i in indices]
    origin = {key: prepared.meta[key] for key in ("source", "geometry", "hydrogens", "options") if key in prepared.meta}
    draft = _Draft(
        flat=take(prepared.flat, indices),
        splits=parts,
        smiles=smiles,
        names=[prepared.names[i] for i in indices],
        properties=prepared.properties,
        hashes=np.array([[key_hash(canonical_key(s)), key_hash(s)] for s in smiles], dtype=np.int64),
        rejected=[],
        meta={"name": name, "subset_of": prepared.name} | origin,
    )
    _write(draft, out)
    return PreparedSet.load(out)


def _keys(molecules: Sequence[Molecule], num_workers: int) -> Iterator[tuple[str, str]]:
    """(canonical key, strict key) of every molecule."""
    if num_workers <= 1 or len(molecules) < 5000:
        yield from map(_both_keys, molecules)
        return
    with multiprocessing.get_context("spawn").Pool(num_workers) as pool:
        yield from pool.imap(_both_keys, molecules, chunksize=256)


def _both_keys(molecule: Molecule) -> tuple[str, str]:
    return canonical_key(molecule), strict_key(molecule)


def _tracked(items: Iterable[Any], total: int, title: str, progress: bool) -> Iterable[Any]:
    if not progress:
        return items
    return track(items, title, total=total, console=Console(stderr=True))


def observed_vocabulary(flat: Mapping[str, np.ndarray]) -> Vocabulary:
    """Every atom class of a packed set; valences that the table lacks are those seen in the data."""
    sums = flat["num_hydrogens"].astype(np.int64)
    start = np.repeat(flat["atom_slices"][:-1], np.diff(flat["bond_slices"]))
    for end in flat["edge_index"]:
        np.add.at(sums, start + end, flat["bond_order"])
    columns = [flat["atomic_number"], flat["formal_charge"], flat["num_hydrogens"], sums]
    rows = np.unique(np.stack([column.astype(np.int64) for column in columns], axis=1), axis=0).tolist()
    extra: dict[tuple[int, int], set[int]] = defaultdict(set)
    for atomic_number, charge, _, total in rows:
        if (atomic_number, charge) not in VALENCES:
            extra[atomic_number, charge].add(total)
    classes = sorted({AtomClass(*row[:3]) for row in rows})
    return Vocabulary(tuple(classes), {key: tuple(sorted(seen)) for key, seen in extra.items()})


@dataclass(frozen=True)
class _Draft:
    """All that a prepared set says and that cannot be computed from the rest.

    `hashes` [M, 2] are those of the canonical and the strict keys.
    """

    flat: Mapping[str, np.ndarray]
    splits: Mapping[str, np.ndarray]
    smiles: Sequence[str]
    names: Sequence[str]
    properties: Mapping[str, str]
    hashes: np.ndarray
    rejected: Sequence[tuple[int, str, InvalidMolecule]]
    meta: Mapping[str, Any]

    def counts(self) -> dict[str, Any]:
        """How many records were seen, kept, rejected and why, are in each part, and repeat one of the training."""
        known = np.isin(self.hashes[:, 0], self.hashes[self.splits["train"], 0])
        return {
            "seen": len(self.smiles) + len(self.rejected),
            "kept": len(self.smiles),
            "rejected": len(self.rejected),
            "rejected_by_status": dict(Counter(str(problem.status) for _, _, problem in self.rejected)),
            **{part: len(self.splits[part]) for part in SPLITS},
            **{f"{part}_keys_in_train": int(known[self.splits[part]].sum()) for part in ("valid", "test")},
        }


def _write(draft: _Draft, out: Path) -> None:
    """Write all files of a prepared set."""
    vocabulary = observed_vocabulary(draft.flat)
    train = draft.splits["train"]
    atom_type = encode_atoms(draft.flat, vocabulary)
    statistics = Statistics.from_flat(draft.flat, atom_type, train, vocabulary.num_atom_classes)
    with _replacing(out) as folder:
        splits = {f"split_{part}": draft.splits[part].astype(np.int64) for part in SPLITS}
        save_file(stored_form(draft.flat) | splits, folder / MOLECULES_FILE)
        novelty = {"canonical": np.unique(draft.hashes[train, 0]), "strict": np.unique(draft.hashes[train, 1])}
        save_file(novelty, folder / NOVELTY_FILE)
        # Titles of records may hold tabs and line ends of any kind.
        lines = [f"{text}\t{' '.join(name.split())}\n" for text, name in zip(draft.smiles, draft.names, strict=True)]
        (folder / SMILES_FILE).write_text("".join(lines), encoding="utf-8")
        with (folder / REJECTED_FILE).open("w", newline="", encoding="utf-8") as file:
            rows = [(number, name, problem.reason) for number, name, problem in draft.rejected]
            csv.writer(file, lineterminator="\n").writerows([("record", "name", "reason"), *rows])
        document = {
            "format_version": FORMAT_VERSION,
            "moldiff_version": __version__,
            **draft.meta,
            "counts": draft.counts(),
            "properties": [[name, unit] for name, unit in draft.properties.items()],
            "vocabulary": vocabulary.to_dict(),
            "statistics": statistics.to_dict(),
            "sha256": file_digest(folder / MOLECULES_FILE),
        }
        text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
        (folder / META_FILE).write_text(text + "\n", encoding="utf-8")
        for path in folder.iterdir():
            path.chmod(0o644)  # safetensors makes files that only their owner can read


def _refuse_foreign(out: Path) -> None:
    """Refuse to replace something that is not a prepared set."""
    if out.exists() and not (out / META_FILE).is_file() and (not out.is_dir() or any(out.iterdir())):
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
