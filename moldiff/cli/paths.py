"""Where a command writes to, and how it works there: `hydra.job.chdir=true`."""

from __future__ import annotations

import copy
import glob
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from moldiff.cli.compose import PATHS, entry
from moldiff.processes import rank

_STARTED_IN = "MOLDIFF_STARTED_IN"
"""The environment variable that tells the other processes of a training, which start in the run folder."""

_NAMES_OR_PATHS = ("model", "init", "reference", "chooser")
_MOLECULES_OR_PATHS = ("task.core", "task.of", "like.reference")


def with_outputs(command: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a command with the places it writes to where none were asked for."""
    made = dict(options)
    data = made.get("data") or {}
    if data.get("path") is not None and data["folder"] is None:
        made["data"] = {**data, "folder": f"prepared/{data['name']}"}
    if command == "prepare" and made["out"] is None:
        made["out"] = made["data"]["folder"]
    if command == "view" and made["out"] is None and made["input"] is not None:
        from moldiff.view.page import page_of

        made["out"] = str(page_of(made["input"]))
    return made


@contextmanager
def work_in_run_folder(command: str, options: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Work in the folder of the outputs: `out` of a training, the folder that holds `out` for other commands.

    Gives the options with all paths as they are from there. What had to be made and stays empty is taken away.
    """
    start, absolute = os.getcwd(), _with_absolute_paths(options)
    out = Path(absolute["out"] or start)
    folder = out if command == "train" or absolute["out"] is None else out.parent
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    if command in ("prepare", "train", "evaluate"):  # the others write only where a folder is
        folder.mkdir(parents=True, exist_ok=True)
    sys.argv[0] = os.path.abspath(sys.argv[0])  # Lightning starts further processes by it
    os.environ[_STARTED_IN] = start
    os.chdir(folder)
    try:
        yield absolute
    finally:
        os.chdir(start)
        del os.environ[_STARTED_IN]
        for place in missing:
            with suppress(OSError):
                place.rmdir()


def return_to_start() -> None:
    """Go back to where the command was typed, in a process that a training has started in its run folder."""
    if rank() > 0 and _STARTED_IN in os.environ:
        os.chdir(os.environ[_STARTED_IN])


def _with_absolute_paths(options: Mapping[str, Any]) -> dict[str, Any]:
    made = copy.deepcopy(dict(options))
    for key in (*PATHS, "data.source.parts"):
        place, name = entry(made, key)
        value = place.get(name)
        if isinstance(value, str) and _is_path(key, value):
            is_pattern = key.endswith(".path") and glob.has_magic(value) and not os.path.exists(value)
            place[name] = os.path.join(glob.escape(os.getcwd()) if is_pattern else os.getcwd(), value)
    return made


def _is_path(key: str, value: str) -> bool:
    """Whether the value of one of `PATHS` is not a model's name or a molecule."""
    if key in _NAMES_OR_PATHS:
        from moldiff.diffusion.property_predictor import available_predictors
        from moldiff.diffusion.shipped import available_models

        return value not in ("?", *available_models(), *available_predictors())
    if key in _MOLECULES_OR_PATHS:
        from moldiff.tasks.inputs import names_file

        return names_file(value)
    return value != ""
