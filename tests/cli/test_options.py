"""An option is defined once: keywords, help, docs/sampling.md and configs say what the dataclasses say."""

import re
from dataclasses import fields, is_dataclass
from inspect import getdoc
from pathlib import Path
from typing import get_type_hints

import pytest

import moldiff
from moldiff.cli.compose import compose_options
from moldiff.cli.main import main
from moldiff.cli.options import COMMANDS, as_typed, options_in, options_of, root_config
from moldiff.diffusion.compute import Precision
from moldiff.diffusion.guidance import FEEDBACK
from moldiff.diffusion.sampler import Sampler
from moldiff.errors import MoldiffError
from moldiff.sampling.config import Likeness, SamplingConfig, SamplingOverrides, described
from moldiff.tasks.inputs import Source
from moldiff.tasks.task import TaskSpec

PAGE = Path(__file__).parents[2] / "docs" / "sampling.md"
NAMES = {"Precision": Precision, "Sampler": Sampler, "Source": Source, "TaskSpec": TaskSpec}


def test_keywords_are_the_fields_of_the_config() -> None:
    hints = get_type_hints(SamplingConfig, localns=NAMES)
    assert get_type_hints(SamplingOverrides, localns=NAMES) == hints
    assert list(SamplingOverrides.__annotations__) == [one.name for one in fields(SamplingConfig)]


def test_every_option_is_explained() -> None:
    text = getdoc(moldiff.SamplingConfig) or ""
    for one in fields(SamplingConfig):
        assert one.metadata["help"]
        assert f"\n    {one.name}: " in text


def test_a_config_is_checked_where_it_is_made() -> None:
    with pytest.raises(MoldiffError, match="candidates: got 0, expected a whole number from 1 to 1000"):
        SamplingConfig(candidates=0)
    assert SamplingConfig().feedback == FEEDBACK


def table_of(command: str) -> str:
    """The options of a command as a table in Markdown; groups have their own places."""
    rows = ["| option | default | meaning |", "|---|---|---|"]
    for one in options_of(command).values():
        if "." not in one.name and "group" not in one.field.metadata:
            is_empty = isinstance(one.default, dict) or is_dataclass(one.default)
            default = "" if is_empty else f"`{as_typed(one.default)}` "
            rows.append(f"| `{one.name}` | {default}| {described(one.field)} |")
    return "\n".join(rows) + "\n"


def with_table(text: str) -> str:
    """The page of sampling with its table of options as the dataclasses have them."""
    begin, end = "<!-- options: written by `python tests/cli/test_options.py` -->\n", "<!-- end of options -->"
    before, _, rest = text.partition(begin)
    return f"{before}{begin}\n{table_of('sample')}\n{end}{rest.partition(end)[2]}"


def test_the_table_of_options_is_written_from_the_options() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text == with_table(text), "python tests/cli/test_options.py writes it"
    assert text.count("| option | default | meaning |") == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_shows_every_option_or_names_it(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    words = capsys.readouterr().out
    for one in options_of(command).values():
        if "." not in one.name and "hidden" not in one.field.metadata:
            shown = " ".join(words.split())
            assert one.typed in shown
            assert one.field.metadata["help"].replace("`", "") in shown
        elif "." not in one.name and one.field.metadata["help"]:
            assert re.search(rf"\b{one.name}\b", words)


@pytest.mark.parametrize("command", COMMANDS)
def test_composed_options_are_those_of_the_dataclasses(command: str) -> None:
    composed = compose_options(command, [])
    for name, value in root_config(command).items():
        default = list(value) if isinstance(value, tuple) else value
        assert name in composed
        assert composed[name] == default or "${" in as_typed(default)


@pytest.mark.parametrize("command", COMMANDS)
def test_options_explained_to_take_null_do(command: str) -> None:
    found = 0
    for one in options_of(command).values():
        if "group" in one.field.metadata:
            continue
        takes = type(None) in one.kinds
        assert takes or not re.search(r"\bnull\b", one.field.metadata["help"] + described(one.field)), one.name
        if takes:
            found += 1
            group, _, name = one.name.rpartition(".")
            options = compose_options(command, [f"{one.name}=null"])
            assert (options[group] if group else options)[name] is None
    assert found


def test_the_command_line_has_every_option_of_python() -> None:
    options = options_of("sample")
    own = {one.name: one.default for one in options_in(SamplingConfig)}
    different = {name for name, default in own.items() if options[name].default != default}
    assert different == {"workers", "like"}  # which is asked for by its reference
    hidden = {name for name, one in options.items() if "hidden" in one.field.metadata}
    assert hidden == {"arithmetic", "like.reference", "unrelaxed"}  # the last is said with `relax`
    assert {f"like.{one.name}" for one in fields(Likeness)} <= options.keys()


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
