"""Weights of a trained model as the start of another, whose atom classes may be others.

What belongs to an atom class, a row of the embedding or of a read-out, follows the class and not its index. What
belongs to a property that a model is told follows its name; what is new to the trained model starts at zero, so that
the first step continues from the function that its weights are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from moldiff.diffusion.model import MoleculeDiffusion
from moldiff.diffusion.pretrained import PretrainedModel
from moldiff.errors import MoldiffError
from moldiff.molecules.vocabulary import Vocabulary

_CONDITION = "condition."  # what the names of the weights for properties begin with
_FITTED = {"condition.slopes", "condition.unexplained"}  # fitted to the training molecules, so never taken over

Names = Sequence[str]


def load_matching_weights(model: MoleculeDiffusion, start: PretrainedModel, denoiser_config: Mapping[str, Any]) -> str:
    """Give a fresh model the weights of a trained one; classes that only the fresh one has keep their fresh rows.

    Returns:
        One line on which classes are known, new and left behind.

    Raises:
        MoldiffError: when the networks differ in more than the atom classes.
    """
    theirs, ours = start.model.vocabulary, model.vocabulary
    axes: Mapping[str, int] = getattr(model.denoiser, "class_axes", {})
    if not axes and theirs.atom_classes != ours.atom_classes:
        name = type(model.denoiser).__name__
        raise MoldiffError(
            f"init: {start.name} knows the classes {theirs}; the data has {ours}, and {name} has no class_axes that "
            "say which weights belong to which class"
        )
    fresh, trained = model.denoiser.state_dict(), start.model.denoiser.state_dict()
    new, old = model.properties.names, start.model.properties.names
    trained = _for_properties(trained, fresh, getattr(model.denoiser, "property_axes", {}), new, old)
    if (odd := _odd_one(fresh, trained, axes)) is not None:
        raise MoldiffError(_difference(start, denoiser_config, odd))
    rows = _shared_rows(ours, theirs)
    filled = {
        name: trained[name] if name not in axes else _with_rows(value, trained[name], axes[name], rows)
        for name, value in fresh.items()
    }
    model.denoiser.load_state_dict(filled)
    return _summary(start.name, ours, theirs, new, old)


def _for_properties(
    trained: Mapping[str, Tensor], fresh: Mapping[str, Tensor], axes: Mapping[str, int], new: Names, old: Names
) -> dict[str, Tensor]:
    """The trained weights with what belongs to properties as the fresh model has them."""
    kept = {name: value for name, value in trained.items() if not name.startswith(_CONDITION)}
    own = {name: value for name, value in fresh.items() if name.startswith(_CONDITION)}
    if not set(new) & set(old):
        return kept | own
    for name in own.keys() & trained.keys() - _FITTED:
        own[name] = trained[name]
        if name in axes:
            parts = dict(zip(old, trained[name].chunk(len(old), axes[name]), strict=True))
            nothing = torch.zeros_like(parts[old[0]])
            own[name] = torch.cat([parts.get(entry, nothing) for entry in new], axes[name])
    return kept | own


def _odd_one(fresh: Mapping[str, Tensor], trained: Mapping[str, Tensor], axes: Mapping[str, int]) -> str | None:
    """Name of the first weight that only one of the networks has, or that has another shape."""
    if surplus := sorted(fresh.keys() ^ trained.keys()):
        return surplus[0]
    for name, value in fresh.items():
        one, other = list(value.shape), list(trained[name].shape)
        if name in axes:
            del one[axes[name]], other[axes[name]]
        if one != other:
            return name
    return None


def _difference(start: PretrainedModel, ours: Mapping[str, Any], odd: str) -> str:
    theirs: Mapping[str, Any] = start.config["denoiser"]
    what = f"differs from this training's network in {odd}"
    if differing := [key for key in theirs.keys() | ours.keys() if theirs.get(key) != ours.get(key)]:
        key = min(differing, key=lambda key: (key != "_target_", key))
        what = f"has denoiser.{key}={theirs.get(key)}, this training denoiser.{key}={ours.get(key)}"
    return f"init: {start.name} {what}; expected the same network"


def _shared_rows(ours: Vocabulary, theirs: Vocabulary) -> list[tuple[int, int]]:
    """(our index, their index) of every class that both know, the mask among them."""
    places = {atom_class: index for index, atom_class in enumerate(theirs.atom_classes)}
    shared = [(index, places[c]) for index, c in enumerate(ours.atom_classes) if c in places]
    return [*shared, (ours.mask_atom, theirs.mask_atom)]


def _with_rows(fresh: Tensor, trained: Tensor, axis: int, rows: list[tuple[int, int]]) -> Tensor:
    """The fresh weights with those of the shared classes put in; read-outs have no row for the mask."""
    pairs = [(new, old) for new, old in rows if new < fresh.shape[axis] and old < trained.shape[axis]]
    if not pairs:
        return fresh
    new, old = torch.tensor(pairs, device=fresh.device).T
    return fresh.index_copy(axis, new, trained.to(fresh).index_select(axis, old))


def _summary(name: str, ours: Vocabulary, theirs: Vocabulary, properties: Names, before: Names) -> str:
    new, dropped = _differences(ours.atom_classes, theirs.atom_classes)
    unknown, gone = _differences(properties, before)
    known = ours.num_atom_classes - len(new)
    notes = {
        "new, with fresh weights": new,
        "not in the data, dropped": dropped,
        "properties, with fresh weights": unknown,
        "properties dropped": gone,
    }
    line = f"init: {name} knows {known} of the {ours.num_atom_classes} atom classes of the data"
    return line + "".join(f"; {note}: {' '.join(names)}" for note, names in notes.items() if names)


def _differences(ones: Sequence[Any], others: Sequence[Any]) -> tuple[list[str], list[str]]:
    return [str(one) for one in ones if one not in others], [str(one) for one in others if one not in ones]
