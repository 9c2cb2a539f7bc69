"""Which files of molecules are meant by a path, a folder or a pattern, and which of them belong together."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from moldiff.errors import MoldiffError
from moldiff.molecules.formats.reader import SUFFIXES, ReadResult, read, type_of
from moldiff.molecules.formats.record import Record
from moldiff.molecules.formats.storage import is_standard, shown


def find_files(path: str | Path) -> list[Path]:
    """The files of molecules that a path means, in alphabetical order. Raises MoldiffError when there are none."""
    text = os.path.expanduser(str(path))
    place = Path(text)
    if place.is_dir():
        found = [file for file in place.rglob("*") if file.is_file() and _is_readable(file, file.relative_to(place))]
        problem = f"no file of molecules in this folder, expected any of {', '.join(SUFFIXES)}"
    elif place.exists() or not glob.has_magic(text):
        found = [place] if place.is_file() else []
        problem = "no such file or folder"
    else:
        found = [Path(name) for name in glob.glob(text, recursive=True) if os.path.isfile(name)]
        problem = "no file matches this pattern"
    if not found:
        raise MoldiffError(f"{path}: {problem}")
    return sorted(found)


def _is_readable(file: Path, inside: Path) -> bool:
    """Whether a file of a folder is one of molecules, and neither it nor a folder on the way is hidden.

    Text (.txt) in a folder is more often no list of SMILES, but may be XYZ, as the molecules that EDM writes are.
    """
    name = file.name.lower().removesuffix(".gz")
    if any(part.startswith(".") for part in inside.parts) or not name.endswith(SUFFIXES):
        return False
    with suppress(MoldiffError):  # an archive that is none
        return not name.endswith(".txt") or (file.stat().st_size > 0 and type_of(file) == ".xyz")
    return False


def name_of(path: str | Path) -> str:
    """A name for the set of what is at a path: that of the file or folder without suffix."""
    text = str(path).rstrip("/")
    if glob.has_magic(text) and not Path(text).exists():
        text = text[: next(k for k, letter in enumerate(text) if letter in "*?[")].rpartition("/")[0]
    name = Path(text).resolve().name.removesuffix(".gz")
    for suffix in SUFFIXES:
        name = name.removesuffix(suffix)
    return shown(name) or "molecules"


def read_sets(source: str | Path | Sequence[str | Path]) -> dict[str, ReadResult]:
    """What is at a path, or at several: files, folders (with all below) and patterns; by the name of each set.

    A file is a set of its own, but files of one record each in the same folder, such as those of EDM, are one together,
    unless they are named one by one. A file of a folder or pattern that cannot be read is one record with the reason.

    Raises MoldiffError when nothing is found at a path, or a file that is named itself cannot be read.
    """
    sets: dict[Path, ReadResult] = {}
    for path in [source] if isinstance(source, str | Path) else source:
        for found in [read(path)] if is_standard(path) else _sets_at(path):
            sets[found.path] = found
    names = [shown(path.name) for path in sets]
    return {
        name if names.count(name) == 1 else shown(path): found
        for (path, found), name in zip(sets.items(), names, strict=True)
    }


def is_one_file(path: str | Path) -> bool:
    """Whether a path means a file, or standard input, whose records can be had one at a time."""
    return is_standard(path) or Path(path).is_file()


def read_set(source: str | Path) -> ReadResult:
    """What is at a path that has one set; raises MoldiffError also where there are several."""
    sets = read_sets(source)
    if len(sets) > 1:
        raise MoldiffError(f"{source}: got {len(sets)} sets of molecules ({', '.join(sets)}), expected one")
    return next(iter(sets.values()))


def _sets_at(path: str | Path) -> Iterator[ReadResult]:
    files = find_files(path)
    if files == [Path(os.path.expanduser(str(path)))]:
        yield read(files[0])
        return
    alone: dict[Path, list[ReadResult]] = {}
    for file in files:
        try:
            found = read(file)
        except MoldiffError as error:
            found = ReadResult(file, [Record.rejected(1, "", str(error).removeprefix(f"{file}: "))])
        if len(found.records) == 1:
            alone.setdefault(file.parent, []).append(found)
        else:
            yield found
    for folder, several in alone.items():
        records = [one.records[0] for one in several]
        if len(several) == 1 or all(record.mol is None for record in records):
            yield from several
            continue
        names = [record.name or shown(one.path.name) for record, one in zip(records, several, strict=True)]
        pairs = enumerate(zip(records, names, strict=True), start=1)
        yield ReadResult(folder, [replace(record, number=number, name=name) for number, (record, name) in pairs])
