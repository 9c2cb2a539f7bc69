"""Objects from plain dictionaries with `_target_`: how configs and checkpoints name what they are made of.

The rules are those of `hydra.utils.instantiate`, for machines that train without Hydra, with one more: only what is
defined under an allowed prefix is built, so that a checkpoint from elsewhere cannot run code of its choosing.
"""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import Any

from moldiff.errors import MoldiffError

# where everything is that a model is made of; the rest of the package can write files and build what a config names
MODEL_PREFIXES = ("moldiff.diffusion.nn.", "moldiff.diffusion.process.")
TRUST = "MOLDIFF_ALLOW"  # the environment variable with further modules, separated by commas, for one's own networks


def instantiate(config: Any, allowed: Sequence[str] | None = MODEL_PREFIXES, **arguments: Any) -> Any:
    """Build what a config describes: mappings with `_target_` (dotted name) and arguments; other values are passed on.

    `_partial_: true` gives a partial call. `allowed` are prefixes of names that may be built, to which MOLDIFF_ALLOW
    adds; None = any. `arguments` are further ones of the outermost call. MoldiffError for what cannot be built.
    """
    if isinstance(config, Sequence) and not isinstance(config, str):
        return [instantiate(item, allowed) for item in config]
    if not isinstance(config, Mapping):
        return config
    inner = {key: instantiate(value, allowed) for key, value in config.items() if key not in ("_target_", "_partial_")}
    if "_target_" not in config:
        return inner
    target = config["_target_"]
    function = _find(target, allowed)
    try:
        called = partial(function, **inner, **arguments)
        return called if config.get("_partial_", False) else called()
    except TypeError as error:
        raise MoldiffError(f"{target}: {error}") from error


def _find(target: Any, allowed: Sequence[str] | None) -> Any:
    if not isinstance(target, str) or "." not in target:
        raise MoldiffError(
            f"_target_: got {target!r}, expected a dotted name such as "
            "moldiff.diffusion.nn.pair_transformer.PairTransformer"
        )
    own_modules = (name.strip().removesuffix(".") for name in os.environ.get(TRUST, "").split(","))
    prefixes = ("",) if allowed is None else (*allowed, *(f"{name}." for name in own_modules if name))
    if not target.startswith(prefixes):
        own = target.startswith("moldiff.")
        hint = "" if own else f"; if you trust it, set {TRUST}={target.partition('.')[0]}"
        raise MoldiffError(f"_target_: got {target}, expected a name that starts with {' or '.join(prefixes)}{hint}")
    module, _, name = target.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise MoldiffError(f"_target_: {target} cannot be found ({error})") from error
    home = f"{getattr(found, '__module__', None)}."  # what a module has imported is not its own
    if not home.startswith(prefixes):
        raise MoldiffError(f"_target_: got {target} of {home[:-1]}, expected one of {' or '.join(prefixes)}")
    return found
