"""`python -m moldiff.training.model_soup runs/mine qm9 --out runs/mean`: the mean of weights of one start.

Such a mean often scores above each of them (model soups, Wortsman et al. 2022, arXiv:2203.05482).
"""

import argparse
import sys
from collections.abc import Sequence
from copy import deepcopy
from itertools import product
from pathlib import Path

import torch

from moldiff.diffusion.pretrained import NOVELTY_FILE, PretrainedModel, load_pretrained, save_pretrained
from moldiff.errors import MoldiffError
from moldiff.molecules.formats.storage import write_atomically

# what has to be the same in all models, by its name in `config.json`
_DESCRIPTION = ("vocabulary", "denoiser", "statistics", "properties")


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the mean; the exit code is 2 for wrong input."""
    parser = argparse.ArgumentParser(prog="python -m moldiff.training.model_soup", description=__doc__)
    parser.add_argument("models", nargs="+", help="models of the package, or folders; the first one's config is kept")
    parser.add_argument("--out", type=Path, required=True, help="folder to write, which must not be there yet")
    parser.add_argument("--half", action="store_true", help="store in half precision")
    options = parser.parse_args(arguments)
    try:
        if options.out.exists():
            raise MoldiffError(f"out: got {options.out}, which exists, expected a new folder")
        models = [load_pretrained(name) for name in options.models]
        average(models, options.out, dtype=torch.float16 if options.half else None)
    except MoldiffError as error:
        print(f"moldiff: error: {error}", file=sys.stderr)
        return 2
    print(f"{options.out}: weights {load_pretrained(options.out).weights_hash}")
    return 0


def average(models: Sequence[PretrainedModel], folder: Path, *, dtype: torch.dtype | None = None) -> None:
    """Write a model whose weights are the mean of those of at least two of the same network, classes and data.

    The first one's config and training history are kept, and say what it was averaged with. The weights are stored in
    `dtype`, None = float32. MoldiffError where models are not alike, or the first one has no history.
    """
    first, *others = models
    if not others:
        raise MoldiffError("models: got one, expected at least two")
    if not first.config.get("history"):
        raise MoldiffError(f"models: got {first.name} without a history of its training, expected one")
    for other, name in product(others, _DESCRIPTION):
        if other.config.get(name) != first.config.get(name):
            raise MoldiffError(f"models: {first.name} and {other.name} differ in {name}, expected the same")
    weights = [model.model.denoiser.state_dict() for model in models]
    mean = {
        name: torch.stack([one[name] for one in weights]).mean(0) if value.is_floating_point() else value
        for name, value in weights[0].items()
    }
    model = deepcopy(first.model)  # the caller's own keeps its weights
    model.denoiser.load_state_dict(mean)
    *before, last = first.config["history"]
    last = {**last, "averaged_with": ", ".join(other.weights_hash for other in others)}
    save_pretrained(folder, model, {**first.config, "history": [*before, last]}, dtype=dtype)
    if (keys := first.folder / NOVELTY_FILE).is_file():
        write_atomically(folder / NOVELTY_FILE, keys.read_bytes())


if __name__ == "__main__":
    sys.exit(main())
