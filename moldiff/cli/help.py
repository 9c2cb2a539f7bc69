"""What `moldiff --help` and `moldiff COMMAND --help` print: the screens in `screens/`; and what the exit codes are."""

from collections.abc import Iterable
from pathlib import Path

from moldiff.cli import options
from moldiff.sampling.config import Likeness

EXIT_OK, EXIT_FAILED, EXIT_WRONG_INPUT, EXIT_INTERRUPTED = 0, 1, 2, 130

_COMMON = """\
  --cfg              print all options with their values and stop
  --config-dir DIR   look in DIR for own configs, too
  -m                 a job for each combination of KEY=A,B or KEY=range(1,4)"""


def _screen(name: str, shown: Iterable[options.Option] = (), column: int = 22) -> str:
    """A text with these options, and what every command has, where it says `{options}` and `{common}`."""
    text = Path(__file__).with_name("screens").joinpath(f"{name}.txt").read_text(encoding="utf-8")
    return text.replace("{options}", options.help_lines(shown, column).rstrip()).replace("{common}", _COMMON)


GENERAL, TASKS = _screen("general"), _screen("tasks")
CHOICE = _screen("choice", options.options_in(Likeness, "like."), 27)
COMMANDS = {
    name: _screen(name, (one for one in options.options_of(name).values() if not one.name.startswith("like.")))
    for name in options.COMMANDS
}
