"""From a source of molecules to a prepared folder: every record seen is kept or rejected with a reason.

Molecules that are sound by themselves but do not fit into their set.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import track

from moldiff import __version__
from moldiff.data.curation import HYDROGENS_NOT_PLACED
from moldiff.data.dataset import FORMAT_VERSION, SPLITS, PreparedSet
from moldiff.data.draft import Draft, is_prepared, refuse_foreign
from moldiff.data.journal import Journal
from moldiff.data.sources.source import Fingerprinted, Resumable, Source, SourceRecord
from moldiff.data.store import blocks, class_codes, decode_class, take
from moldiff.data.writer import Gathering, account_table
from moldiff.errors import MoldiffError
from moldiff.molecules.identity import canonical_key, key_hash
from moldiff.molecules.molecule import InvalidMolecule, Status
from moldiff.molecules.vocabulary import AtomClass


def prepare(
    source: Source, out: str | Path, *, min_count: int | None = 1, strict: bool = False, progress: bool = True
) -> PreparedSet:
    """Read a source and write a prepared folder `out`, which replaces an older one as a whole.

    A source that has a fingerprint is not read again when `out` was made of the same content with the same options.
    One that is resumable goes on where an earlier call was ended.

    Args:
        source: where the molecules come from.
        out: the folder to make.
        min_count: molecules with an atom class that fewer molecules than this have are left out, the rarest class
            first; None = one in 5,000 molecules, which leaves nothing out of smaller sets.
        strict: make it an error that a record is rejected.
        progress: show a progress bar and the account of the records on standard error.

    Raises:
        MoldiffError: when no molecule is kept, `out` exists and is not a prepared set, or `strict` finds a reject.
    """
    out = Path(out)
    console = Console(stderr=True, quiet=not progress)
    refuse_foreign(out)
    fingerprint = _fingerprint(source, min_count)
    ready = _up_to_date(out, fingerprint, console)
    if ready is None:
        gathering = Gathering(out)
        journal = _journal(source, out, console)
        try:
            draft = _read(source, gathering, journal, min_count, progress)
            _refuse_rejects(draft, source.name, strict=strict)
            if fingerprint is not None:
                draft.meta["fingerprint"] = fingerprint
            draft.write(out)
        finally:
            gathering.close()
        ready = PreparedSet.load(out)
        if isinstance(source, Resumable) and journal is not None and source.parts is None:
            journal.remove()
    elif strict and ready.meta["counts"]["rejected"]:
        raise MoldiffError(f"{source.name}: {ready.meta['counts']['rejected']} records rejected, but strict=true")
    console.print(account_table(source.name, ready.meta["counts"]))
    for line in _remarks(ready):
        _say(console, line)
    return ready


def _fingerprint(source: Source, min_count: int | None) -> str | None:
    """A digest of all that the prepared set depends on; None = the source cannot tell."""
    if not isinstance(source, Fingerprinted):
        return None
    facts = [source.fingerprint(), min_count, FORMAT_VERSION, __version__]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _up_to_date(out: Path, fingerprint: str | None, console: Console) -> PreparedSet | None:
    """The set in `out` if it is whole and was made of the same; else None, with a note on why it is made again."""
    if fingerprint is None or not is_prepared(out):
        return None
    try:
        ready = PreparedSet.load(out)
    except MoldiffError as error:
        _say(console, f"{out}: damaged, so it is made again ({error})")
        return None
    if ready.meta.get("fingerprint") != fingerprint:
        _say(console, f"{out}: made of other content or with other options, so it is made again")
        return None
    _say(console, f"{out}: up to date, content and options are the same")
    return ready


def _say(console: Console, line: str) -> None:
    console.print(line, highlight=False, soft_wrap=True, markup=False)


def _journal(source: Source, out: Path, console: Console) -> Journal | None:
    """What is finished of a resumable source, None for another."""
    if not isinstance(source, Resumable):
        return None
    key = hashlib.sha256(json.dumps([source.parts_key(), FORMAT_VERSION, __version__]).encode()).hexdigest()
    journal = Journal(source.parts or out.with_name(f".{out.name}-parts"), key)
    if len(journal):
        _say(console, f"{out}: goes on after {len(journal)} records that are finished")
    return journal


def _records(source: Source, journal: Journal | None) -> Iterator[SourceRecord]:
    """Every record once: those that are finished, then the others, of which the journal is kept."""
    if journal is None or not isinstance(source, Resumable):
        yield from source.records()
        return
    finished = min(len(journal), len(source))
    yield from islice(iter(journal), finished)
    try:
        for record in source.records(finished):
            journal.append(record)
            yield record
    finally:
        journal.flush()


def _read(
    source: Source, gathering: Gathering, journal: Journal | None, min_count: int | None, progress: bool
) -> Draft:
    """All records of a source, sorted into kept and rejected."""
    records = _records(source, journal)
    for place, record in enumerate(_tracked(records, len(source), f"reading {source.name}", progress)):
        gathering.add(place, record)
    gathering.finish(source.properties)
    if len(gathering):
        gathering.leave_out(unplaced_hydrogens(gathering.flat, gathering.noted(HYDROGENS_NOT_PLACED)))
        rarest = len(gathering) // 5000 if min_count is None else min_count
        gathering.leave_out(rare_classes(gathering.flat, rarest))
    rejected = gathering.rejected
    if not len(gathering):
        first = f"; first reason: {rejected[0].problem.reason}" if rejected else ""
        raise MoldiffError(f"{source.name}: no molecule kept of {len(rejected)} records{first}")
    described: dict[str, Any] = {"name": source.name} | source.describe()
    notes = gathering.note_counts() | described.pop("notes", {})
    if HYDROGENS_NOT_PLACED in notes:
        described["hydrogens"] = HYDROGENS_NOT_PLACED
    return Draft(
        flat=gathering.flat,
        splits=gathering.labelled_splits() or source.splits(gathering.hashes[:, 0]),
        smiles=gathering.smiles,
        names=gathering.names,
        properties=source.properties,
        hashes=gathering.hashes,
        rejected=rejected,
        meta=described,
        notes=notes,
    )


def _refuse_rejects(draft: Draft, name: str, *, strict: bool) -> None:
    if not (strict and draft.rejected):
        return
    first = draft.rejected[0]
    where = f"record {first.number}" + (f" of {first.file}" if first.file else "")
    total = len(draft.rejected) + len(draft.smiles)
    reason = f"first: {where}: {first.problem.reason}"
    raise MoldiffError(f"{name}: {len(draft.rejected)} of {total} records rejected, but strict=true; {reason}")


def _remarks(prepared: PreparedSet) -> list[str]:
    """What a user should know of a set before training on it."""
    counts = prepared.meta["counts"]
    lines = []
    if prepared.meta.get("hydrogens") == HYDROGENS_NOT_PLACED:
        lines.append(
            "this set has no hydrogens: they are counted in the atom classes, and a model learns the heavy atoms' "
            "coordinates alone"
        )
    if counts["train"] < 1000:
        lines.append(
            f"only {counts['train']} molecules to train on: a model may learn them by heart, and novelty means little"
        )
    if counts.get("molecules", counts["kept"]) < counts["kept"]:
        crossing = counts["valid_keys_in_train"] + counts["test_keys_in_train"]
        where = f"{crossing} are of one to train on, too" if crossing else "each of these is in one part only"
        lines.append(f"{counts['kept']} records are of {counts['molecules']} molecules; {where}")
    if constant := [name for name in prepared.properties if name not in prepared.learnable]:
        lines.append(f"{', '.join(constant)}: the same in all that there is to train on, so that no model learns it")
    sizes = sorted(prepared.statistics.size_counts)
    parts = ", ".join(f"{counts[part]} {part}" for part in SPLITS)
    classes = f"{prepared.vocabulary.num_atom_classes} atom classes: {prepared.vocabulary}"
    return [*lines, f"{parts}; {sizes[0]} to {sizes[-1]} heavy atoms; {classes}"]


def subset(prepared: PreparedSet, splits: Mapping[str, np.ndarray], out: str | Path, *, name: str) -> PreparedSet:
    """Write the chosen molecules of a prepared set as a prepared set of its own, with its own vocabulary.

    Args:
        prepared: the set to take from.
        splits: indices into `prepared` for "train", "valid" and "test"; the new set holds them in this order.
        out: the folder to make.
        name: name of the new set.
    """
    out = Path(out)
    refuse_foreign(out)
    indices = np.concatenate([splits[part] for part in SPLITS])
    ends = np.cumsum([len(splits[part]) for part in SPLITS])
    parts = dict(zip(SPLITS, np.split(np.arange(len(indices)), ends[:-1]), strict=True))
    smiles = [prepared.smiles[i] for i in indices]
    origin = {key: prepared.meta[key] for key in ("source", "geometry", "hydrogens", "options") if key in prepared.meta}
    draft = Draft(
        flat=take(prepared.flat, indices),
        splits=parts,
        smiles=smiles,
        names=[prepared.names[i] for i in indices],
        properties=prepared.properties,
        hashes=np.array([[key_hash(canonical_key(s)), key_hash(s)] for s in smiles], dtype=np.int64),
        rejected=[],
        meta={"name": name, "subset_of": prepared.name} | origin,
        notes={},
    )
    draft.write(out)
    return PreparedSet.load(out)


def _tracked(items: Iterable[Any], total: int, title: str, progress: bool) -> Iterable[Any]:
    if not progress:
        return items
    return track(items, escape(title), total=total, console=Console(stderr=True))


def unplaced_hydrogens(flat: Mapping[str, np.ndarray], unplaced: np.ndarray) -> dict[int, InvalidMolecule]:
    """Molecules without coordinates of their hydrogens, if others of the set have them.

    Args:
        flat: packed arrays of the set.
        unplaced: which molecules have hydrogens that are only counted [M] bool.
    """
    has_hydrogens = np.diff(flat["hydrogen_slices"]) > 0
    if not (has_hydrogens & ~unplaced).any():
        return {}
    reason = "hydrogens are missing that other records have; hydrogens=add adds them, hydrogens=none leaves all out"
    return dict.fromkeys(np.flatnonzero(unplaced).tolist(), InvalidMolecule(Status.UNREADABLE, reason))


def rare_classes(flat: Mapping[str, np.ndarray], min_count: int) -> dict[int, InvalidMolecule]:
    """Molecules with an atom class that fewer than `min_count` molecules have.

    The rarest class goes first, and with it all its molecules, which may make other classes rarer; so on until every
    class left is in at least `min_count` molecules.
    """
    if min_count <= 1:
        return {}
    classes, pairs = _classes_of_molecules(flat)
    problems: dict[int, InvalidMolecule] = {}
    while len(pairs):
        counts = np.bincount(pairs[:, 0], minlength=len(classes))
        present = np.flatnonzero(counts)
        rarest = int(present[counts[present].argmin()])
        if counts[rarest] >= min_count:
            break
        name = classes[rarest]
        reason = f"class {name} is in {counts[rarest]} molecules, fewer than min_count={min_count}"
        dropped = pairs[pairs[:, 0] == rarest, 1]
        problems |= dict.fromkeys(dropped.tolist(), InvalidMolecule(Status.VALENCE, reason))
        pairs = pairs[~np.isin(pairs[:, 1], dropped)]
    return problems


def _classes_of_molecules(flat: Mapping[str, np.ndarray]) -> tuple[list[AtomClass], np.ndarray]:
    """The atom classes of a set, and a row (class, molecule) for each class that a molecule has."""
    known: dict[AtomClass, int] = {}
    found, first = [], 0
    for block in blocks(flat, np.arange(len(flat["y"]))):
        counts = np.diff(block["atom_slices"])
        codes, index = np.unique(class_codes(block), return_inverse=True)
        classes = [AtomClass(*decode_class(code)) for code in codes.tolist()]
        numbers = np.array([known.setdefault(atom_class, len(known)) for atom_class in classes], dtype=np.int64)
        owner = np.repeat(np.arange(len(counts)), counts)
        pairs = np.unique((numbers[index] << 32) + owner)
        found.append(np.stack([pairs >> 32, first + (pairs & 0xFFFFFFFF)], axis=1).astype(np.int32))
        first += len(counts)
    return list(known), np.concatenate(found) if found else np.zeros((0, 2), dtype=np.int32)
