"""Files that are written whole or not at all, by one process at a time, and over nothing unless `overwrite` says so."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from moldiff.errors import MoldiffError

_STANDARD = re.compile(r"-(\.\w+){0,2}")


def is_standard(path: str | Path) -> bool:
    """Whether a path stands for standard input or output: `-`, or `-.csv`, which says what type of file that is."""
    return _STANDARD.fullmatch(str(path)) is not None


def temporary_of(path: Path) -> Path:
    """Where the content of `path` is written before it takes its place; what killed processes left is removed."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.(\d+)(\.part)?")
    with suppress(OSError):  # a folder that cannot be listed
        for other in path.parent.iterdir():
            found = pattern.fullmatch(other.name)
            if found is not None and not _is_alive(int(found[1])):
                other.unlink(missing_ok=True)
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def _is_alive(process: int) -> bool:
    try:
        with suppress(PermissionError):
            if os.name == "posix":  # elsewhere there is no harmless signal
                os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    return True


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that `path` holds either its old content or all of the new one, even after a power cut.

    Raises OSError naming `path`, for example when the disk is full; the old content then still stands.
    """
    temporary = temporary_of(path)
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def encoded(text: str) -> bytes:
    r"""Text for a file, in UTF-8; bytes of a file's name that are not UTF-8 become `\udcff`, as JSON writes them."""
    return text.encode("utf-8", "backslashreplace")


def shown(path: str | Path) -> str:
    """A path as text that can be printed and written anywhere, whatever bytes its name has."""
    return encoded(str(path)).decode()


def set_aside(path: Path) -> Path | None:
    """Give what is at `path` a name with the first number that is free: "a.1.sdf" for "a.sdf"; None = nothing is there.

    A file also keeps its old name, so that one is there until another takes its place; a folder does not.
    """
    if not path.exists():
        return None
    found = re.fullmatch(r"(.+?)((?:\.trajectory)?\.\w+(?:\.gz)?)", path.name)
    stem, suffix = found.groups() if found else (path.name, "")
    number = 1
    while True:
        other = path.with_name(f"{stem}.{number}{suffix}")
        try:
            os.link(path, other)
        except FileExistsError:
            number += 1
            continue
        except OSError:  # a folder, or a file system without links
            if other.exists():
                number += 1
                continue
            path.rename(other)
        return other


@contextmanager
def locked(path: Path, refusal: str) -> Iterator[None]:
    """Hold the lock file `path`; the system lets go of it when the process dies.

    Raises MoldiffError with the text `refusal`, when another process holds it.
    """
    try:
        import fcntl
    except ModuleNotFoundError:  # not on Windows
        yield
        return
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = os.path.samestat(os.fstat(file.fileno()), path.stat())
        except BlockingIOError:
            raise MoldiffError(refusal) from None
        except FileNotFoundError:
            mine = False
        except OSError:  # a file system without locks
            mine = True
        if not mine:  # who held it has taken the file away in between
            raise MoldiffError(refusal)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
