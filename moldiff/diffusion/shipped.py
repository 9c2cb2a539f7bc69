"""What the models that ship with the package have learnt: which of them fits where another one does not."""

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from moldiff.molecules.vocabulary import SYMBOLS, AtomClass, Vocabulary

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


@dataclass(frozen=True)
class Learnt:
    """What a model has learnt."""

    name: str
    sizes: tuple[int, int]  # the smallest and largest number of heavy atoms
    classes: frozenset[AtomClass]  # of atoms
    properties: tuple[str, ...]  # that it is conditioned on


def shipped_folder() -> Path:
    """The folder of the models that ship with the package."""
    return Path(str(resources.files("moldiff"))) / "weights"


def available_models() -> list[str]:
    """Names of the models that ship with the package."""
    return sorted(path.parent.name for path in shipped_folder().glob(f"*/{CONFIG_FILE}"))


@cache
def shipped_models() -> tuple[Learnt, ...]:
    """All that ship: those of small molecules first, those conditioned on properties last."""
    found = [learnt(shipped_folder() / name) for name in available_models()]
    return tuple(sorted(found, key=lambda one: (bool(one.properties), one.sizes[1])))


def learnt(folder: Path) -> Learnt:
    """What the model in a folder has learnt."""
    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    sizes = [size for size, _ in config["statistics"]["size_counts"]]
    classes = frozenset(Vocabulary.from_dict(config["vocabulary"]).atom_classes)
    properties = tuple(entry["name"] for entry in config.get("properties", ()))
    return Learnt(folder.name, (min(sizes), max(sizes)), classes, properties)


def model_lines() -> list[str]:
    """Name, heavy atoms, elements, properties, size and data of every model that ships with the package."""
    names, lines = available_models(), []
    for folder in map(shipped_folder().joinpath, names):
        model, card = learnt(folder), folder / "card.json"
        elements = " ".join(SYMBOLS[number] for number in sorted({one.atomic_number for one in model.classes}))
        towards = f"towards {' '.join(model.properties)}; " if model.properties else ""
        size = f"{(folder / WEIGHTS_FILE).stat().st_size / 1e6:.1f} MB"
        data = json.loads(card.read_text(encoding="utf-8"))["facts"]["data"] if card.is_file() else "no card"
        atoms = "{} to {} heavy atoms of".format(*model.sizes)
        lines.append(f"{model.name:<{max(map(len, names))}}  {atoms} {elements}; {towards}{size}; {data}")
    return lines


def advice(atoms: Iterable[Collection[AtomClass]], sizes: tuple[int, int] | None = None) -> str:
    """Which shipped model fits, for the end of a sentence; "" where none does.

    Each atom may have some classes; sizes are the smallest and largest, None = the atoms and any number more.
    """
    atoms = list(atoms)
    for model in shipped_models():
        smallest, largest = model.sizes
        within = len(atoms) <= largest if sizes is None else smallest <= sizes[0] and sizes[1] <= largest
        if within and not any(model.classes.isdisjoint(choices) for choices in atoms):
            return f"; model={model.name} has learnt them, in molecules of {smallest} to {largest} heavy atoms"
    return ""


def of_atoms(atoms: Iterable[tuple[int, int | None]]) -> list[frozenset[AtomClass]]:
    """Classes that each atom may have, by its atomic number and number of hydrogens; None = any number."""
    known = frozenset[AtomClass]().union(*(model.classes for model in shipped_models()))
    return [
        frozenset(one for one in known if one.atomic_number == number and hydrogens in (None, one.num_hydrogens))
        for number, hydrogens in atoms
    ]
