"""What commands say: on the terminal unless it is to be quiet, and plainly in a log (`log=FILE`, `quiet=true`)."""

import io
import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, TextIO

from moldiff.processes import rank

_STYLE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_MOVES = re.compile(r"\r|\x1b\[(\?25|\d*[AK])")  # by which bars are drawn anew
_SERIOUS = re.compile(r"moldiff: (error|warning|interrupted)")


class _Copied:
    """A stream of the terminal whose text also goes to a log; a quiet one lets only lines through that are serious."""

    def __init__(self, stream: TextIO, log: TextIO | None, *, quiet: bool) -> None:
        self.stream, self._log, self._quiet, self._begun = stream, log, quiet, ""

    def write(self, text: str) -> int:
        if self._log is not None and not _MOVES.search(text):
            self._log.write(_STYLE.sub("", text))
        if not self._quiet:
            return self.stream.write(text)
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            if _SERIOUS.match(line):
                self.stream.write(f"{line}\n")
        return len(text)

    def isatty(self) -> bool:
        return not self._quiet and self.stream.isatty()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def for_bars() -> TextIO:
    """Where bars are drawn: on standard error, but in no log, and nowhere in a quiet run."""
    stream: Any = sys.stderr
    if not isinstance(stream, _Copied):
        return sys.stderr
    return io.StringIO() if stream._quiet else stream.stream


@contextmanager
def spoken(arguments: Sequence[str]) -> Iterator[None]:
    """Let a command with these arguments speak where its options `log` and `quiet` say."""
    given = dict(text.partition("=")[::2] for text in arguments)
    path, quiet = given.get("log", "null").strip("\"'"), given.get("quiet", "").lower() == "true"
    with ExitStack() as stack:
        log = None
        if path not in ("", "null") and rank() == 0:
            place = Path(os.path.expanduser(path))
            log = stack.enter_context(place.open("a", encoding="utf-8", errors="backslashreplace", buffering=1))
            log.write(f"$ moldiff {shlex.join(arguments)}\n")
        if log is not None or quiet:
            for redirect, stream in ((redirect_stdout, sys.stdout), (redirect_stderr, sys.stderr)):
                if stream is not None:  # one that is closed
                    stack.enter_context(redirect(_Copied(stream, log, quiet=quiet)))
        yield


@contextmanager
def apart_from_output(wanted: bool) -> Iterator[None]:
    """Send to standard error, if `wanted`, what is printed, by compiled code too: standard output is for molecules."""
    if not wanted:
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
