"""What a program that was ended while it wrote an SDF had finished: the whole records at the start of the file."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from moldiff.errors import MoldiffError
from moldiff.io.parts import file_suffix
from moldiff.io.writer import MEMBER_RECORDS, is_packed

_END = b"\n$$$$\n"
_BYTES = 1 << 20


@dataclass(eq=False)
class FinishedRecords:
    """The whole records of a streamed SDF.

    Attributes:
        size: bytes of the file that hold them.
        fields: data of each, by name.
        rest: data of the whole records behind them, in a compressed member that is not full.
    """

    size: int = 0
    fields: list[dict[str, str]] = field(default_factory=list)
    rest: list[dict[str, str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.fields)


def finished_records(path: str | Path) -> FinishedRecords:
    """The whole records of a file that `moldiff.io.Writer` streamed; of a compressed file those of its full members.

    Who is ended before the first record leaves no file, so that one that is missing has no records.

    Raises:
        MoldiffError: for a file of another type, or one that has content but no whole record.
    """
    path = Path(path)
    if file_suffix(path, (".sdf", ".xyz", ".smi", ".csv")) != ".sdf":
        raise MoldiffError(f"{path}: only .sdf and .sdf.gz can be continued")
    found = FinishedRecords()
    if not path.exists():
        return found
    for size, text in _members(path) if is_packed(path) else _plain(path):
        blocks = text.split(_END)[:-1]
        if is_packed(path) and len(blocks) != MEMBER_RECORDS:
            found.rest = [_fields(block) for block in blocks]
            break  # the last one of a run that came to its end, or was stopped before it was full
        found.size = size
        found.fields += [_fields(block) for block in blocks]
    if path.stat().st_size and not (found.fields or found.rest):
        raise MoldiffError(
            f"resume: {path} is not the file of an ended run, for it holds no whole record of one; it is left as it is"
        )
    return found


def _plain(path: Path) -> Iterator[tuple[int, bytes]]:
    """Whole records a megabyte at a time, each time with the number of bytes up to their end."""
    size, rest = 0, b""
    with path.open("rb") as file:
        while data := file.read(_BYTES):
            rest += data
            end = rest.rfind(_END) + len(_END)
            if end >= len(_END):
                size += end
                yield size, rest[:end]
                rest = rest[end:]


def _members(path: Path) -> Iterator[tuple[int, bytes]]:
    """The content of every whole gzip member, each with the number of bytes up to its end."""
    size, rest = 0, b""
    with path.open("rb") as file:
        while True:
            unpack, content = zlib.decompressobj(wbits=31), b""
            while not unpack.eof:
                rest = rest or file.read(_BYTES)
                if not rest:
                    return
                try:
                    content += unpack.decompress(rest)
                except zlib.error:
                    return
                size += len(rest) - len(unpack.unused_data)
                rest = unpack.unused_data
            yield size, content


def _fields(block: bytes) -> dict[str, str]:
    """The data fields of a record, whose values are of one line each."""
    lines = iter(block.decode("utf-8", errors="replace").split("\n"))
    return {line[line.find("<") + 1 : line.rfind(">")]: next(lines, "") for line in lines if line.startswith(">")}
