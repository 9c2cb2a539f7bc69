"""A trained predictor: from its folder, and from molecules to their properties.

Properties of molecules as a network predicts them: the judge of what was drawn towards property values.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from moldiff.diffusion.batch import MolBatch, collate
from moldiff.diffusion.compute import in_float32
from moldiff.diffusion.conditioning import Properties
from moldiff.diffusion.model import in_units
from moldiff.diffusion.nn.property_network import PropertyNetwork
from moldiff.diffusion.pretrained import parse_weights
from moldiff.diffusion.statistics import COUNTED, Statistics
from moldiff.errors import MoldiffError
from moldiff.molecules.formats.storage import write_atomically
from moldiff.molecules.molecule import Molecule
from moldiff.molecules.vocabulary import Vocabulary

FORMAT_VERSION = 1
CONFIG_FILE = "predictor.json"
WEIGHTS_FILE = "predictor.safetensors"

_BATCH_PAIRS = 20_000


@dataclass(frozen=True, eq=False)
class PropertyPredictor:
    """Predicts properties of molecules.

    Attributes:
        network: in evaluation mode, float32, on the CPU.
        vocabulary: classes of atoms that it knows.
        statistics: of its training molecules; brings the scale of the coordinates.
        properties: what it predicts, with units and scales.
        sizes: arguments of the network.
        training: what it was trained on, and how long.
        errors: mean absolute error of every property on held-out molecules, in the units of the data.
        name: of its folder.
    """

    network: PropertyNetwork
    vocabulary: Vocabulary
    statistics: Statistics
    properties: Properties
    sizes: Mapping[str, int]
    training: Mapping[str, Any]
    errors: Mapping[str, float]
    name: str = ""

    def predict(self, molecules: Sequence[Molecule]) -> list[dict[str, float]]:
        """Properties of every molecule by name, in the units of the data; {} = it has atoms that are not known."""
        found: list[dict[str, float]] = [{} for _ in molecules]
        for places in self._batches(molecules):
            batch = collate([molecules[place] for place in places], self.vocabulary)
            for place, row in zip(places, self.values(batch).tolist(), strict=True):
                found[place] = dict(zip(self.properties.names, row, strict=True))
        return found

    @in_float32()
    @torch.no_grad()
    def values(self, batch: MolBatch) -> torch.Tensor:
        """Properties [B, C] of clean molecules (Å), in the units of the data."""
        return self.properties.restored(self.network(in_units(batch, self.statistics)))

    def _batches(self, molecules: Sequence[Molecule]) -> Iterator[list[int]]:
        """Places of molecules that are known and finite, in batches of similar sizes."""
        batch: list[int] = []
        for place in sorted(range(len(molecules)), key=lambda place: molecules[place].num_heavy_atoms):
            molecule = molecules[place]
            if not self._is_known(molecule):
                continue
            if batch and (len(batch) + 1) * molecule.num_heavy_atoms**2 > _BATCH_PAIRS:
                yield batch
                batch = []
            batch.append(place)
        if batch:
            yield batch

    def _is_known(self, molecule: Molecule) -> bool:
        try:
            self.vocabulary.encode(molecule.atomic_number, molecule.formal_charge, molecule.num_hydrogens)
        except MoldiffError:
            return False
        finite = (
            torch.from_numpy(molecule.pos).isfinite().all()
            & torch.from_numpy(molecule.hydrogen_offset).isfinite().all()
        )
        return bool(finite) and molecule.num_heavy_atoms > 0

    def save(self, folder: Path) -> None:
        """Write weights, in half precision, and everything else."""
        folder.mkdir(parents=True, exist_ok=True)
        state = self.network.state_dict()
        weights = {name: (value if name == "counts" else value.half()).contiguous() for name, value in state.items()}
        description = {
            "format_version": FORMAT_VERSION,
            "network": dict(self.sizes),
            "vocabulary": self.vocabulary.to_dict(),
            "statistics": self.statistics.to_dict(),
            "properties": self.properties.to_dict(),
            "training": dict(self.training),
            "errors": dict(self.errors),
        }
        write_atomically(folder / WEIGHTS_FILE, save(weights))
        write_atomically(folder / CONFIG_FILE, (json.dumps(description, indent=1, allow_nan=False) + "\n").encode())


def _shipped() -> Path:
    return Path(str(resources.files("moldiff.weights")))


def available_predictors() -> list[str]:
    """Names of the predictors that ship with the package."""
    return sorted(path.parent.name for path in _shipped().glob(f"*/{CONFIG_FILE}"))


@in_float32()
def load_predictor(name_or_folder: str | Path) -> PropertyPredictor:
    """A predictor that ships with the package by its name, or a trained one by its folder.

    Raises:
        MoldiffError: when there is none, or it is damaged.
    """
    shipped = str(name_or_folder) in available_predictors()
    folder = _shipped() / str(name_or_folder) if shipped else Path(name_or_folder)
    if not (folder / CONFIG_FILE).is_file():
        names = ", ".join(available_predictors()) or "none"
        raise MoldiffError(f"predictor: got {str(name_or_folder)!r}, expected the folder of one or one of: {names}")
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        if config["format_version"] != FORMAT_VERSION:
            raise MoldiffError(f"{folder}: got format_version {config['format_version']}, expected {FORMAT_VERSION}")
        vocabulary = Vocabulary.from_dict(config["vocabulary"])
        properties = Properties.from_dict(config["properties"])
        sizes = {"num_atom_classes": vocabulary.num_atom_classes, "num_properties": len(properties)}
        with torch.random.fork_rng(devices=[]):  # modules draw their first weights from the global generator
            network = PropertyNetwork(**sizes, **config["network"])
        content = (folder / WEIGHTS_FILE).read_bytes()
        weights = parse_weights(folder / WEIGHTS_FILE, content)
        network.load_state_dict({name: value.float() for name, value in weights.items()})
        return PropertyPredictor(
            network=network.eval().requires_grad_(False),
            vocabulary=vocabulary,
            statistics=Statistics.from_dict(config["statistics"]),
            properties=properties,
            sizes=config["network"],
            training=config["training"],
            errors=config["errors"],
            name=folder.name,
        )
    except (ValueError, KeyError, TypeError, RuntimeError, OSError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise MoldiffError(f"{folder}: damaged, expected a property predictor ({first})") from None


def predictor_for(properties: Properties, half: str | None, *, same: bool = False) -> PropertyPredictor | None:
    """The shipped predictor that knows all these properties in these units; None = there is none.

    Args:
        properties: of a model; what every set counts needs no prediction.
        half: of the training molecules that the model has learnt from; None = all.
        same: one that has learnt from the same half, to choose by; otherwise from the other, to judge by. Where there
            is none of these, any.
    """
    units = {(entry.name, entry.unit) for entry in properties.entries} - set(COUNTED.items())
    known = [load_predictor(name) for name in available_predictors()]
    suited = [one for one in known if units <= {(entry.name, entry.unit) for entry in one.properties.entries}]
    wanted = [one for one in suited if (one.training.get("half") == half) == same]
    return next(iter(wanted or suited), None)
