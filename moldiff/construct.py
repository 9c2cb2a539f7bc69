"""Objects from plain dictionaries with `_target_`: how configs and checkpoints name what they are made of.

The rules are those of `hydra.utils.instantiate`, for machines that train without Hydra, with one more: only names
under an allowed prefix are built, so that a checkpoint from elsewhere cannot run code of its choosing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import Any

from moldiff.errors import MoldiffError

OWN_PREFIXES = ("moldiff.", "torch.optim.")


def construct(config: Any, allowed: Sequence[str] | None = OWN_PREFIXES, **arguments: Any) -> Any:
    """Build what a config describes; mappings without `_target_`, lists and values are passed through.

    Args:
        config: mapping with `_target_` (dotted name) and its arguments; `_partial_: true` gives a partial call.
        allowed: prefixes of the names that may be built; None allows any.
        arguments: further arguments of the outermost call.

    Raises:
        MoldiffError: for a name that is not allowed or not found, or arguments that do not fit.
    """
    if isinstance(config, Sequence) and not isinstance(config, str):
        return [construct(item, allowed) for item in config]
    if not isinstance(config, Mapping):
        return config
    inner = {key: construct(value, allowed) for key, value in config.items() if key not in ("_target_", "_partial_")}
    if "_target_" not in config:
        return inner
    target = config["_target_"]
    function = _find(target, allowed)
    try:
        if config.get("_partial_", False):
            return partial(function, **inner, **arguments)
        return function(**inner, **arguments)
    except TypeError as error:
        raise MoldiffError(f"{target}: {error}") from error


def _find(target: Any, allowed: Sequence[str] | None) -> Any:
    if not isinstance(target, str) or "." not in target:
        raise MoldiffError(
            f"_target_: got {target!r}, expected a dotted name such as moldiff.nn.denoiser.PairTransformer"
        )
    if allowed is not None and not target.startswith(tuple(allowed)):
        raise MoldiffError(f"_target_: got {target}, expected a name that starts with {' or '.join(allowed)}")
    module, _, name = target.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise MoldiffError(f"_target_: {target} cannot be found ({error})") from error
