"""The state of an unfinished training as one safetensors file, whose header holds all that is no tensor.

Nothing in it is pickled, and the file holds either the old state or the whole new one, whenever the power goes off.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from moldiff.checkpoint import leftovers, parse_weights
from moldiff.errors import MoldiffError
from moldiff.ranks import rank
from moldiff.storage import locked, write_atomically

STATE_FILE = "state.safetensors"
FORMAT_VERSION = 1
_KEY = "moldiff_state"
_OPTIONS_FILE = "training.json"
_LOCK_FILE = ".lock"

_DECISIVE = ("denoiser", "process", "optimizer", "condition")
"""Options without which a state cannot be used."""

_INFLUENTIAL = (
    "batch_size",
    "seed",
    "field_weights",
    "times",
    "tasks",
    "schedule",
    "self_conditioning",
    "ema_decay",
    "half",
)
"""Options that may change, but then the training goes another way than it would have."""


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write nested dictionaries and lists of tensors, numbers, texts and None.

    Raises:
        OSError: when it cannot be written; an older file then still stands.
    """
    tensors: dict[str, Tensor] = {}
    header = json.dumps({"format_version": FORMAT_VERSION, "state": _without_tensors(state, "state", tensors)})
    write_atomically(path, save(tensors, {_KEY: header}))


def load_state(path: Path) -> dict[str, Any]:
    """Read what `save_state` wrote.

    Raises:
        MoldiffError: when it is damaged or something else.
    """
    content = path.read_bytes()
    tensors = parse_weights(path, content)
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length]).get("__metadata__", {}).get(_KEY)
    if header is None:
        raise MoldiffError(f"{path}: got weights without a state, expected the state of an interrupted training")
    document = json.loads(header)
    if document["format_version"] != FORMAT_VERSION:
        raise MoldiffError(f"{path}: got format_version {document['format_version']}, expected {FORMAT_VERSION}")
    state: dict[str, Any] = _with_tensors(document["state"], tensors)
    return state


def _without_tensors(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """A JSON-ready copy; tensors are put aside under the path that leads to them."""
    if isinstance(value, Tensor):
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, Mapping):  # JSON knows only text as keys
        return {"items": [[key, _without_tensors(item, f"{name}.{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_without_tensors(item, f"{name}.{number}", tensors) for number, item in enumerate(value)]
    return value


def _with_tensors(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_with_tensors(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    return {key: _with_tensors(item, tensors) for key, item in value["items"]}


@contextmanager
def claimed(out: Path, config: Mapping[str, Any]) -> Iterator[dict[str, Any] | None]:
    """Hold a run folder as long as a training lasts; gives the state to resume from, or None to start anew.

    With `resume: auto` it is resumed if there is something to resume. The options are written at once, which marks the
    folder as a training's.

    Raises:
        MoldiffError: when the folder is in use, a new training's is not empty, or there is nothing to resume.
    """
    resume = config["resume"]
    if resume == "auto":
        resume = any((out / name).is_file() for name in (STATE_FILE, _OPTIONS_FILE))
    if rank() > 0:  # the first of several processes holds the folder for all
        path = out / STATE_FILE
        yield load_state(path) if resume and path.is_file() else None
        return
    found = {path.name for path in {*out.iterdir()} - leftovers(out)} - {_LOCK_FILE} if out.is_dir() else {""}
    if resume and found and not found & {STATE_FILE, _OPTIONS_FILE}:
        raise MoldiffError(f"resume: {out / STATE_FILE} not found, expected the folder of an interrupted training")
    if not resume and found and out.exists():
        raise MoldiffError(f"out: {out} is not empty; choose another folder, or resume=true to continue there")
    out.mkdir(parents=True, exist_ok=True)
    with locked(out / _LOCK_FILE, f"out: another training is writing to {out}; choose another folder"):
        for folder in (out, out / "log", out / "best"):
            for path in leftovers(folder):
                path.unlink()
        if resume and STATE_FILE not in found:
            print("resume: no state was saved yet, so the training starts from the beginning", flush=True)
        if _OPTIONS_FILE not in found:
            write_atomically(out / _OPTIONS_FILE, (json.dumps(config, indent=1) + "\n").encode())
        try:
            yield load_state(out / STATE_FILE) if STATE_FILE in found else None
        finally:
            if {path.name for path in out.iterdir()} <= {_OPTIONS_FILE, _LOCK_FILE}:  # it did not even begin
                (out / _OPTIONS_FILE).unlink()


def check_options(state: Mapping[str, Any], config: Mapping[str, Any], data: str) -> None:
    """Whether a state can be gone on from with these options and the set whose checksum is `data`.

    Raises:
        MoldiffError: naming the first option, or the set, that does not fit.
    """
    for name in _DECISIVE:
        if (was := state["config"].get(name)) != config.get(name):
            change = _first_change(name, was, config.get(name))
            raise MoldiffError(f"resume: this training was started with {change}")
    if state["data"] != data:
        raise MoldiffError(
            f"resume: the set {config['data']['folder']} has changed since; to train on it, start anew with "
            f"init={config['out']}"
        )
    for name in _INFLUENTIAL:
        if (was := state["config"].get(name)) != config.get(name) and rank() == 0:
            change = _first_change(name, was, config.get(name))
            print(f"moldiff: warning: resume: this training was started with {change}", file=sys.stderr)


def _first_change(name: str, was: Any, now: Any) -> str:
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        key = next(key for key in (*was, *now) if was.get(key) != now.get(key))
        return _first_change(f"{name}.{key}", was.get(key), now.get(key))
    return f"{name}={was}, now it is {now}"
