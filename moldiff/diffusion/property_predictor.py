"""Properties of molecules as a network predicts them: the judge of what was drawn towards property values."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from moldiff.diffusion.batch import MolBatch, NoiseLevel, by_size, collate
from moldiff.diffusion.compute import in_float32
from moldiff.diffusion.conditioning import Properties, class_counts, fitted_slopes, num_counts
from moldiff.diffusion.model import in_units
from moldiff.diffusion.nn.pair_transformer import PairNetwork, masked_softmax
from moldiff.diffusion.pretrained import parse_weights
from moldiff.diffusion.shipped import shipped_folder
from moldiff.diffusion.statistics import COUNTED, Statistics
from moldiff.errors import MoldiffError, first_line
from moldiff.molecules.formats.storage import write_atomically
from moldiff.molecules.molecule import Molecule
from moldiff.molecules.vocabulary import Vocabulary

FORMAT_VERSION = 1
CONFIG_FILE = "predictor.json"
WEIGHTS_FILE = "predictor.safetensors"

_BATCH_PAIRS = 20_000
_SUM_SCALE = 0.1  # of a sum over atoms, so that it starts with a size of order one


class PropertyNetwork(PairNetwork):
    """Predicts `num_properties` invariant properties of clean molecules with the generator's blocks, of such `sizes`.

    It learns what a linear function of the numbers of atoms and bonds of each class leaves (`fit_counts`).
    """

    counts: Tensor

    def __init__(self, *, num_atom_classes: int, num_properties: int, hidden_dim: int = 128, **sizes: int) -> None:
        sizes = {"pair_dim": 32, "steerable_dim": 16, "num_layers": 4, "num_heads": 8, "num_probes": 8} | sizes
        super().__init__(num_atom_classes=num_atom_classes, hidden_dim=hidden_dim, hydrogen_level=False, **sizes)
        self.num_atom_classes, self.num_properties = num_atom_classes, num_properties
        last = nn.Linear(hidden_dim, 3 * num_properties)
        nn.init.zeros_(last.weight)  # so that it starts as the linear function of the counts
        nn.init.zeros_(last.bias)
        self.read = nn.Sequential(nn.LayerNorm(hidden_dim), nn.Linear(hidden_dim, hidden_dim), nn.SiLU(), last)
        self.register_buffer("counts", torch.zeros(num_counts(num_atom_classes), num_properties))

    def forward(self, clean: MolBatch) -> Tensor:
        """Normalised properties [B, C] of clean molecules in the model's units. 0e; the same for any order of atoms."""
        mask, pos = clean.node_mask, clean.pos
        level = NoiseLevel.uniform(pos.new_zeros(clean.num_molecules), mask)
        atom, pair, steerable = self.embedding(clean, level, None)
        for layer in self.layers:
            atom, pair, pos, steerable = layer(atom, pair, pos, steerable, mask)
        read = self.read(atom)
        value, share, summand = (read.float() if read.dtype == torch.bfloat16 else read).chunk(3, dim=-1)
        # Frontier orbitals sit on few atoms, heat capacities add up over all.
        weight = masked_softmax(share.transpose(1, 2), mask[:, None])
        pooled = (weight * value.transpose(1, 2)).sum(-1)
        total = (summand * mask[..., None]).sum(1) * _SUM_SCALE
        values: Tensor = pooled + total + class_counts(clean, self.num_atom_classes).to(self.counts) @ self.counts
        return values

    @torch.no_grad()
    def fit_counts(self, counts: Tensor, targets: Tensor) -> None:
        """Least squares for normalised properties [M, C], NaN = not known, on `class_counts` [M, K + 4]."""
        self.counts.copy_(fitted_slopes(counts, targets))


@dataclass(frozen=True, eq=False)
class PropertyPredictor:
    """Predicts properties of molecules that are known and finite."""

    network: PropertyNetwork  # in evaluation mode, float32, on the CPU
    vocabulary: Vocabulary  # classes of atoms that it knows
    statistics: Statistics  # of its training molecules; brings the scale of the coordinates
    properties: Properties  # what it predicts, with units and scales
    sizes: Mapping[str, int]  # arguments of the network
    training: Mapping[str, Any]  # what it was trained on, and how long
    errors: Mapping[str, float]  # mean absolute error of every property on held-out molecules, in the data's units
    name: str = ""  # of its folder

    def predict(self, molecules: Sequence[Molecule]) -> list[dict[str, float]]:
        """Properties of every molecule by name, in the units of the data; {} = it has atoms that are not known."""
        found: list[dict[str, float]] = [{} for _ in molecules]
        known = [place for place, molecule in enumerate(molecules) if self._is_known(molecule)]
        for places in by_size(known, lambda place: molecules[place].num_heavy_atoms, _BATCH_PAIRS):
            batch = collate([molecules[place] for place in places], self.vocabulary)
            for place, row in zip(places, self.values(batch).tolist(), strict=True):
                found[place] = dict(zip(self.properties.names, row, strict=True))
        return found

    @in_float32()
    @torch.no_grad()
    def values(self, batch: MolBatch) -> Tensor:
        """Properties [B, C] of clean molecules (Å), in the units of the data; on the device of the network."""
        batch = batch.to(self.network.counts.device)
        return self.properties.restored(self.network(in_units(batch, self.statistics)))

    def _is_known(self, molecule: Molecule) -> bool:
        try:
            self.vocabulary.encode(molecule.atomic_number, molecule.formal_charge, molecule.num_hydrogens)
        except MoldiffError:
            return False
        numbers = (molecule.pos, molecule.hydrogen_offset)
        return molecule.num_heavy_atoms > 0 and all(np.isfinite(one).all() for one in numbers)

    def save(self, folder: Path) -> None:
        """Write weights, in half precision, and everything else."""
        folder.mkdir(parents=True, exist_ok=True)
        state = self.network.state_dict()
        weights = {name: (value if name == "counts" else value.half()).contiguous() for name, value in state.items()}
        description = {
            "format_version": FORMAT_VERSION,
            "network": dict(self.sizes),
            **{name: getattr(self, name).to_dict() for name in ("vocabulary", "statistics", "properties")},
            "training": dict(self.training),
            "errors": dict(self.errors),
        }
        write_atomically(folder / WEIGHTS_FILE, save(weights))
        write_atomically(folder / CONFIG_FILE, (json.dumps(description, indent=1, allow_nan=False) + "\n").encode())


def available_predictors() -> list[str]:
    """Names of the predictors that ship with the package."""
    return sorted(path.parent.name for path in shipped_folder().glob(f"*/{CONFIG_FILE}"))


@in_float32()
def load_predictor(name_or_folder: str | Path) -> PropertyPredictor:
    """A predictor of the package by its name, or a trained one by its folder; MoldiffError for none or damage."""
    shipped = str(name_or_folder) in available_predictors()
    folder = shipped_folder() / str(name_or_folder) if shipped else Path(name_or_folder)
    if not (folder / CONFIG_FILE).is_file():
        names = ", ".join(available_predictors()) or "none"
        raise MoldiffError(f"predictor: got {str(name_or_folder)!r}, expected the folder of one or one of: {names}")
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        if config["format_version"] != FORMAT_VERSION:
            raise MoldiffError(f"{folder}: got format_version {config['format_version']}, expected {FORMAT_VERSION}")
        vocabulary, properties = Vocabulary.from_dict(config["vocabulary"]), Properties.from_dict(config["properties"])
        sizes = {"num_atom_classes": vocabulary.num_atom_classes, "num_properties": len(properties)}
        with torch.random.fork_rng(devices=[]):  # modules draw their first weights from the global generator
            network = PropertyNetwork(**sizes, **config["network"])
        weights = parse_weights(folder / WEIGHTS_FILE, (folder / WEIGHTS_FILE).read_bytes())
        network.load_state_dict({name: value.float() for name, value in weights.items()})
        statistics = Statistics.from_dict(config["statistics"])
        arguments, training, errors = (config[key] for key in ("network", "training", "errors"))
        network.eval().requires_grad_(False)
        return PropertyPredictor(network, vocabulary, statistics, properties, arguments, training, errors, folder.name)
    except (ValueError, KeyError, TypeError, RuntimeError, OSError) as error:
        first = first_line(error)
        raise MoldiffError(f"{folder}: damaged, expected a property predictor ({first})") from None


def predictor_for(properties: Properties, half: str | None, *, same: bool = False) -> PropertyPredictor | None:
    """The shipped predictor that knows all these properties, but for counts, in these units; None = there is none.

    Of several it is one that has learnt from the other half of the training molecules than the model, to judge by, or
    with `same` from the same half, to choose by; where there is none, any.
    """
    units = {(entry.name, entry.unit) for entry in properties.entries} - set(COUNTED.items())
    known = [load_predictor(name) for name in available_predictors()]
    suited = [one for one in known if units <= {(entry.name, entry.unit) for entry in one.properties.entries}]
    wanted = [one for one in suited if (one.training.get("half") == half) == same]
    return next(iter(wanted or suited), None)
