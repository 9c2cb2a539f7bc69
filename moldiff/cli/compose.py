"""Options of a command: `key=value` arguments over the configs in `moldiff.conf`, composed by Hydra, as plain values.

Only this module and `jobs` know Hydra. Its own messages run over many lines and name its internals, so every
argument is checked here first: that it can be parsed, that the option exists, and that the value is of the right kind.
"""

import difflib
import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import cache
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

import moldiff
from moldiff.cli.options import COMMANDS, kinds_of, options_of, root_config
from moldiff.errors import MoldiffError
from moldiff.sampling.config import KEEP

CONFIG_MODULE = "moldiff.conf"

for _command in COMMANDS:
    ConfigStore.instance().store(f"{_command}_options", root_config(_command))


@cache
def _store_metrics() -> None:
    """The group `metrics`: every metric of the suite with the defaults of its class, and the names for several."""
    from moldiff.evaluation.suite import SETS, SUITE  # here, for it loads RDKit

    store, settings = ConfigStore.instance(), {name: asdict(metric()) for name, metric in SUITE.items()}
    for name, metric in SUITE.items():
        target = {"_target_": f"{metric.__module__}.{metric.__qualname__}"}
        store.store(name, {name: target | settings[name]}, group="metrics")
    for several, names in SETS.items():
        optional = {name: {"skip_if_missing": True} for name in names if "skip_if_missing" in settings[name]}
        store.store(several, {"defaults": [*names, "_self_"], **optional}, group="metrics")


_PACKAGE_PREFIX = "pkg://"
PATHS = (
    *("out", "input", "reference", "model", "init", "predictor", "data.folder", "data.path", "data.source.path"),
    *("task.core", "task.input", "task.of", "task.receptor", "task.ligand", "like.reference", "exclude", "lead"),
    *("summary", "log", "receptor"),
)
"""Options that name files and folders, some of them also models or molecules."""

_CHDIR = "hydra.job.chdir"
_OPEN = ("condition",)
"""Empty groups whose names are not known beforehand: the model's properties."""

_NAMES: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "a group of options",
    type(None): "null",
}
_TYPES = {
    "int | None": "sampler.num_steps data.min_count metrics.p3.charge",
    "float | None": "sampler.corrector sampler.churn sampler.class_lead task.rmsd task.noise",
    "str | None": "task.smiles task.input task.formula task.of task.receptor task.ligand data.folder data.path "
    "data.smiles_column data.name_column data.split_field",
    "list | None": "data.properties task.center task.also",
    "list | str | None": "task.core task.residues",
    "list | int | None": "task.charge",
    "list | int | str | None": "task.keep task.remove task.attach",
    "int | str | None": "task.new_atoms",
    "Mapping | None": "quality tasks",
}
_KINDS = {name: kinds_of(annotation) for annotation, names in _TYPES.items() for name in names.split()}
"""Kinds of value of the options of groups whose default does not tell them."""


def compose_options(command: str, arguments: Sequence[str], config_dirs: Sequence[str] = ()) -> dict[str, Any]:
    """Options of a command with all references between them resolved, from `key=value` as typed.

    Options of the groups are looked for in `config_dirs`, too, before the package's own.

    Raises:
        MoldiffError: for the first argument that cannot be used.
    """
    if "metrics" in options_of(command):
        _store_metrics()
    kinds = _KINDS | {name: one.kinds for name, one in options_of(command).items() if one.kinds}
    folders = [Path(os.path.expanduser(folder)).resolve() for folder in config_dirs]
    for typed, folder in zip(config_dirs, folders, strict=True):
        if not typed or not folder.is_dir():
            raise MoldiffError(f"--config-dir: got {typed!r}, expected a folder with configs")
    search = [f"hydra.searchpath=[{','.join(quoted(f'file://{folder}') for folder in folders)}]"] if folders else []
    with hydra_over() as loader:
        overrides = [_parse(_written_out(text)) for text in _with_implied(arguments)]
        choices = compose(command, overrides=search, return_hydra_config=True).hydra.runtime.choices
        groups = sorted(str(name) for name in choices if not str(name).startswith("hydra/"))
        chosen = [override for override in overrides if override.key_or_group in groups]
        for override in chosen:
            _check_choice(override, loader, folders)
        defaults = _composed(command, search, chosen)
        overrides = [_parse(_in_its_group(override, defaults)) for override in overrides]
        for override in overrides:
            if override.key_or_group not in groups:
                _check_value(override, defaults, groups, kinds)
        options = _composed(command, search, overrides)
    change_paths(options, PATHS, _expanded)
    return options


@contextmanager
def hydra_over() -> Iterator[ConfigLoader]:
    """Hydra over the configs of the package; the first lines of its messages as one."""
    if find_spec(CONFIG_MODULE) is None:
        bare = f"{moldiff.__path__[0]} is a bare source folder"
        raise MoldiffError(f"{CONFIG_MODULE} not found: {bare}; start from another folder, or pip install -e there")
    try:
        with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
            yield GlobalHydra.instance().config_loader()
    except MoldiffError:
        raise
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise MoldiffError(" ".join(line.strip() for line in str(error).splitlines()[:2])) from error


def _composed(command: str, search: Sequence[str], overrides: Sequence[Override]) -> dict[str, Any]:
    config = compose(command, overrides=[*search, *(str(override.input_line) for override in overrides)])
    options: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    return options


def each_combination(arguments: Sequence[str]) -> list[list[str]]:
    """The arguments of every job, where options have several values in Hydra's syntax; the last option runs fastest.

    Several values are `key=a,b`, `key=range(1,4)`, `key=choice(a,b)` or `group=glob(*)`.
    """
    with hydra_over() as loader:
        overrides = [_swept(text, loader) for text in arguments]
        ((*jobs,),) = BasicSweeper.split_arguments(overrides, None)
    return jobs


def _swept(text: str, loader: ConfigLoader) -> Override:
    """An argument of one value or of several that can be counted."""
    try:
        override = _read(text, loader)
    except MoldiffError:
        override = _read(_written_out(text), loader)
    if override.is_sweep_override() and not override.is_discrete_sweep():
        raise MoldiffError(f"{text}: got an interval, expected values that can be counted")
    if override.is_sweep_override() and not any(True for _ in override.sweep_string_iterator()):
        raise MoldiffError(f"{text}: got no value, expected at least one")
    return override


def without_hydra(arguments: Sequence[str]) -> tuple[list[str], list[str], bool]:
    """The arguments but Hydra's own, those that choose and set up a launcher, and whether it is `hydra.job.chdir=true`.

    Others of Hydra's are refused.
    """
    rest, launcher, chdir = [], [], False
    for text in arguments:
        key, _, value = text.lstrip("+~").partition("=")
        if not key.startswith(("hydra.", "hydra/")):
            rest.append(text)
        elif key == "hydra/launcher" or key.startswith("hydra.launcher."):
            launcher.append(text)
        elif key != _CHDIR:
            raise MoldiffError(f"{key}: Hydra's own options are not for here, expected {_CHDIR} or a launcher's at "
                               "most; results go where out=... says")  # fmt: skip
        elif value.lower() not in ("true", "false"):
            raise MoldiffError(f"{_CHDIR}: got {value or 'nothing'}, expected true or false")
        else:
            chdir = value.lower() == "true"
    return rest, launcher, chdir


def argument(key: str, value: str) -> str:
    """An option as it is typed to have this text as its value, in quotes where Hydra needs them."""
    with suppress(MoldiffError):
        if _parse(f"{key}={value}").value() == value:
            return f"{key}={value}"
    return f"{key}={quoted(value)}"


def _with_implied(arguments: Sequence[str]) -> list[str]:
    """`data.path=...` alone says that the data are the user's own files, and gives them their name."""
    typed = next((text for text in reversed(arguments) if text.startswith("data.path=")), "data.path=")
    path = str(_parse(typed).value())
    if not path:
        return list(arguments)
    keys = {text.partition("=")[0] for text in arguments}
    implied = [] if "data" in keys else ["data=files"]
    if "data.name" not in keys:
        from moldiff.molecules.formats.reader import name_of  # here, for it loads RDKit

        implied.append(f"data.name={quoted(name_of(path))}")
    return [*implied, *arguments]


def _written_out(text: str) -> str:
    """An argument as Hydra takes it: `like=FILE` for `like.reference=FILE`, bounds such as `sa<4.5` in quotes."""
    key, _, value = text.partition("=")
    if key == "like":
        return f"like.reference={value}"
    if key != "filters" or value == "null" or '"' in value or "'" in value:
        return text
    words = [word.strip() for word in value.strip().removeprefix("[").removesuffix("]").split(",")]
    listed = ",".join(quoted(word) for word in words if word)
    return f"filters=[{listed}]"


def as_yaml(options: Mapping[str, Any]) -> str:
    """The options as YAML text."""
    return str(OmegaConf.to_yaml(OmegaConf.create(dict(options))))


def _in_its_group(override: Override, defaults: Mapping[str, Any]) -> str:
    """`task.core=...` for `core=...`, where the chosen task has such an option and the command none of that name.

    Both may have a `keep`: what a molecule must be, in the words for that, and which atoms stay. Where a config does
    not have a name yet, Hydra wants `+condition.gap=...` for `condition.gap=...`.
    """
    text, key = str(override.input_line), override.key_or_group
    group, dot, _ = text.partition("=")[0].partition(".")
    if dot and group in _OPEN and defaults.get(group) == {}:
        return f"+{text}"
    if override.is_delete() or override.is_add() or key not in (defaults.get("task") or {}):
        return text
    value = override.value()
    words = value if isinstance(value, list) else [value]
    return text if key in defaults and all(word in KEEP for word in words) else f"task.{text}"


def quoted(value: str) -> str:
    """A value as Hydra reads it back literally."""
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"' if '"' in value else f'"{value}"'


def _suggest_quotes(text: str) -> str:
    """The argument as it is typed in a shell to have its value taken literally."""
    key, _, value = text.partition("=")
    return shlex.quote(f"{key}={quoted(value)}")


def _read(text: str, loader: ConfigLoader | None = None) -> Override:
    """An argument, of one value or of several."""
    if text.startswith("-"):
        raise MoldiffError(f"got {text!r}, expected key=value; options have no dashes, for example n=10")
    if "=" not in text and not text.startswith("~"):
        raise MoldiffError(f"got {text!r}, expected key=value, for example n=10")
    try:
        override: Override
        (override,) = OverridesParser.create(loader).parse_overrides([text])
    except HydraException:
        raise MoldiffError(f"{text}: cannot be read; text with special characters goes in quotes: "
                           f"{_suggest_quotes(text)}") from None  # fmt: skip
    return override


def _parse(text: str) -> Override:
    """An argument of one value."""
    override = _read(text)
    if override.is_sweep_override():
        value = text.partition("=")[2]
        raise MoldiffError(f"{text}: got several values, expected one; a list is written {text.partition('=')[0]}"
                           f"=[{value}], a job for each has -m, text {_suggest_quotes(text)}")  # fmt: skip
    return override


def _check_choice(override: Override, loader: ConfigLoader, folders: Sequence[Path]) -> None:
    group, value = override.key_or_group, override.value()
    known = {path.stem for folder in folders for path in (folder / group).glob("*.yaml")}
    known |= set(loader.get_group_options(group))
    for choice in value if isinstance(value, list) else [value]:
        if str(choice) not in known and not override.is_delete():
            raise MoldiffError(f"{group}: got {choice!r}, expected one of: {', '.join(sorted(known))}")


def _check_value(
    override: Override, defaults: Mapping[str, Any], groups: Sequence[str], known_kinds: Mapping[str, tuple[type, ...]]
) -> None:
    known, key, text = dict(_flatten(defaults)), override.key_or_group, str(override.input_line)
    if key not in known and not (override.is_add() and key.rpartition(".")[0] in known):
        raise MoldiffError(f"unknown option {key!r}; {_closest(key, list(dict.fromkeys([*known, *groups])))}")
    if override.is_delete():
        raise MoldiffError(f"{text}: an option cannot be taken away, expected key=value")
    if key not in known or (known[key] is None and key not in known_kinds):
        return
    value, kinds = override.value(), known_kinds.get(key, (type(known[key]),))
    if type(value) in kinds or (type(value) is int and float in kinds):
        return
    expected = " or ".join(_NAMES[kind] for kind in kinds)
    got = f"{key}: got {text.partition('=')[2] or 'nothing'} ({_NAMES.get(type(value), 'a dictionary')})"
    hint = f"; text that looks like something else goes in quotes: {_suggest_quotes(text)}" if str in kinds else ""
    raise MoldiffError(f"{got}, expected {expected}{hint}")


def _flatten(options: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in options.items():
        yield f"{prefix}{name}", value
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")


def _closest(key: str, known: Sequence[str]) -> str:
    """A hint at what may have been meant."""
    visible = [name for name in known if "_target_" not in name and "_partial_" not in name]
    by_last = {name.rpartition(".")[2]: name for name in reversed(visible)}
    close = [by_last[key]] if key in by_last else difflib.get_close_matches(key, visible, n=1)
    close = close or [by_last[name] for name in difflib.get_close_matches(key.rpartition(".")[2], by_last, n=1)]
    names = ", ".join(name for name in visible if "." not in name)
    return f"did you mean {close[0]}?" if close else f"expected one of: {names}"


def change_paths(options: dict[str, Any], keys: Sequence[str], change: Callable[[str, Any], Any]) -> None:
    """Change the values of options that name files, each of a list, in place."""
    for key in keys:
        *groups, name = key.split(".")
        place = options
        for group in groups:
            place = place.get(group) or {}
        value = place.get(name)
        if isinstance(value, list):
            place[name] = [change(key, one) for one in value]
        elif value is not None:
            place[name] = change(key, value)


def _expanded(key: str, path: Any) -> Any:
    """A path without `~` and `pkg://`; a relative one stays relative to the folder the command was started in."""
    if path == "":
        raise MoldiffError(f"{key}: got nothing, expected a name or path")
    if not isinstance(path, str):
        return path
    if path.startswith(_PACKAGE_PREFIX):
        package, _, inner = path.removeprefix(_PACKAGE_PREFIX).partition("/")
        return str(resources.files(package).joinpath(inner))
    return os.path.expanduser(path)  # unlike pathlib's, it leaves an unknown ~name alone
