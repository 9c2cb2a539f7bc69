"""Models as folders: weights in safetensors, everything else in JSON; nothing is pickled."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from moldiff.diffusion.compute import in_float32
from moldiff.diffusion.conditioning import Properties
from moldiff.diffusion.instantiate import MODEL_PREFIXES, instantiate
from moldiff.diffusion.model import MoleculeDiffusion
from moldiff.diffusion.sampler import PowerSampler
from moldiff.diffusion.shipped import CONFIG_FILE, WEIGHTS_FILE, available_models, shipped_folder
from moldiff.diffusion.statistics import Statistics
from moldiff.errors import MoldiffError
from moldiff.molecules.formats.storage import write_atomically
from moldiff.molecules.vocabulary import Vocabulary

FORMAT_VERSION = 1
NOVELTY_FILE = "novelty.safetensors"

_THEN = json.loads(Path(__file__).with_name("former_names.json").read_text(encoding="utf-8"))
FORMER: Mapping[str, str] = _THEN["former"]
"""Modules, and packages behind theirs, that had another name when a model or a training was written; now this one."""

GONE: Mapping[str, Sequence[str]] = _THEN["gone"]
"""Options of then that have no effect any more."""


@dataclass(frozen=True)
class PretrainedModel:
    """A model read from its folder."""

    model: MoleculeDiffusion  # in evaluation mode, float32, on the CPU
    folder: Path
    name: str  # of the folder
    weights_hash: str  # first 12 hexadecimal digits of the SHA-256 of the weights file
    config: Mapping[str, Any]  # what `config.json` says

    @property
    def num_steps(self) -> int:
        """Network calls a molecule where nothing else is asked for: the model's own number, or the sampler's."""
        return int(self.config.get("steps", PowerSampler.num_steps))

    @property
    def filters(self) -> tuple[str, ...]:
        """What molecules pass where nothing else is asked for, in the words of `moldiff.sampling.filters`."""
        return tuple(self.config.get("filters", ()))


def build_model(
    config: Mapping[str, Any],
    vocabulary: Vocabulary,
    statistics: Statistics,
    allowed: Sequence[str] | None = None,
    *,
    properties: Properties | None = None,
) -> MoleculeDiffusion:
    """A model with fresh weights from the configs of its `denoiser` and `process`.

    A denoiser is only asked for properties (`num_properties`) if the model is to have some.
    """
    numbers = {"num_properties": len(properties)} if properties else {}
    denoiser = instantiate(config["denoiser"], allowed, num_atom_classes=vocabulary.num_atom_classes, **numbers)
    marginals = torch.tensor(statistics.atom_marginal), torch.tensor(statistics.bond_marginal)
    process = instantiate(config["process"], allowed).build(*marginals)
    return MoleculeDiffusion(denoiser, process, vocabulary, statistics, properties)


def save_pretrained(
    folder: Path, model: MoleculeDiffusion, config: Mapping[str, Any], *, dtype: torch.dtype | None = None
) -> None:
    """Write weights and config, each to a temporary name first and then renamed, to a folder that is made if missing.

    The config has those of `denoiser` and `process`, and anything worth keeping about the training. `dtype` is the
    stored precision of the weights; None = as they are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.to("cpu", dtype).contiguous() for name, value in model.denoiser.state_dict().items()}
    description = {
        "format_version": FORMAT_VERSION,
        "vocabulary": model.vocabulary.to_dict(),
        "statistics": model.statistics.to_dict(),
        **({"properties": model.properties.to_dict()} if model.properties else {}),
        **config,
    }
    write_atomically(folder / WEIGHTS_FILE, save(weights))
    write_atomically(folder / CONFIG_FILE, (json.dumps(description, indent=1, allow_nan=False) + "\n").encode())


def leftovers(folder: Path) -> set[Path]:
    """What `write_atomically` was writing into a folder when its process was killed."""
    return {path for path in folder.glob(".*.*") if re.fullmatch(r"\..+\.\d+(\.part)?", path.name) and path.is_file()}


def find_model(name_or_folder: str | Path) -> Path:
    """The folder of a shipped model by its name, or of a trained one by its path; MoldiffError for neither."""
    if str(name_or_folder) in available_models():
        return shipped_folder() / str(name_or_folder)
    folder = Path(name_or_folder)
    if (folder / CONFIG_FILE).is_file():
        return folder
    found = "a folder without config.json" if folder.is_dir() else "no such model or folder"
    expected = f"expected a trained model's folder or one of: {', '.join(available_models()) or 'none'}"
    raise MoldiffError(f"model: got {str(name_or_folder)!r} ({found}), {expected}")


@in_float32()
def load_pretrained(
    name_or_folder: str | Path, allowed: Sequence[str] | None = MODEL_PREFIXES, *, to_sample: bool = True
) -> PretrainedModel:
    """Read a shipped model by its name, or one from its folder.

    `allowed` are prefixes of names that its config may build, see `moldiff.diffusion.instantiate`, None = any. Without
    `to_sample` it may be one that has to be trained on before molecules can be drawn from it. MoldiffError for an
    unknown model, or a file that is empty, truncated, damaged, of another kind or version.
    """
    folder = find_model(name_or_folder)
    config = _read_config(folder / CONFIG_FILE)
    if to_sample and config["process"].get("coupling"):
        raise MoldiffError(
            f"model: {name_or_folder} has learnt with noise matched to its molecules (process.coupling), from which "
            f"this version does not draw; train it on: moldiff train init={name_or_folder}"
        )
    config = with_present_names(config)
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise MoldiffError(f"{path}: not found, expected the model's weights")
    content = path.read_bytes()
    vocabulary, statistics = Vocabulary.from_dict(config["vocabulary"]), Statistics.from_dict(config["statistics"])
    properties = Properties.from_dict(config.get("properties", []))
    with torch.random.fork_rng(devices=[]):  # modules draw their first weights from the global generator
        model = build_model(config, vocabulary, statistics, allowed, properties=properties)
    _fill(model.denoiser, parse_weights(path, content), path)
    weights_hash = hashlib.sha256(content).hexdigest()[:12]
    return PretrainedModel(model.eval().requires_grad_(False), folder, folder.name, weights_hash, config)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise MoldiffError(f"{path}: damaged, expected JSON ({error})") from None
    version = config.get("format_version") if isinstance(config, dict) else None
    if version != FORMAT_VERSION:
        raise MoldiffError(f"{path}: got format_version {version}, expected {FORMAT_VERSION}")
    missing = [key for key in ("denoiser", "process", "vocabulary", "statistics") if key not in config]
    if missing:
        raise MoldiffError(f"{path}: lacks {', '.join(missing)}, expected a model's config")
    return dict(config)


def with_present_names(config: Any) -> Any:
    """The same description with every `_target_` as it is called now, without options that are gone."""
    if isinstance(config, list):
        return [with_present_names(item) for item in config]
    if not isinstance(config, Mapping):
        return config
    present = {key: with_present_names(value) for key, value in config.items()}
    if isinstance(target := config.get("_target_"), str):
        former = next((name for name in FORMER if target.startswith(f"{name}.")), "")
        present["_target_"] = FORMER.get(former, "") + target.removeprefix(former)
        present = {key: value for key, value in present.items() if key not in GONE.get(present["_target_"], ())}
    return present


def parse_weights(path: Path, content: bytes) -> dict[str, Tensor]:
    """Tensors of the content of a safetensors file; MoldiffError says what it, at `path`, is instead."""
    size = f"{path} ({len(content)} bytes)"
    if not content:
        raise MoldiffError(f"{size}: empty, expected the model's weights")
    if content.startswith(b"version https://git-lfs"):
        raise MoldiffError(f"{size}: a git-lfs pointer instead of the weights; run `git lfs pull`")
    if content.lstrip()[:1] == b"<":
        raise MoldiffError(f"{size}: a web page instead of the weights; download the file itself")
    if (expected := _expected_size(content)) > len(content):
        raise MoldiffError(f"{size}: truncated, expected {expected} bytes")
    try:
        return dict(load(content))
    except SafetensorError as error:
        raise MoldiffError(f"{size}: damaged, expected a safetensors file ({error})") from None


def _expected_size(content: bytes) -> int:
    """Length (bytes) that a safetensors file claims to have; 0 where its header makes no sense."""
    header = int.from_bytes(content[:8], "little")
    if header > 100_000_000:  # the format's own limit
        return 0
    if len(content) < 8 + header:
        return 8 + header
    try:
        entries = json.loads(content[8 : 8 + header])
        ends = [int(entry["data_offsets"][1]) for name, entry in entries.items() if name != "__metadata__"]
        return 8 + header + max(ends)
    except (ValueError, KeyError, TypeError, AttributeError):
        return 0


def _fill(module: torch.nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Load weights by name after comparing names and shapes, so that the message can name the difference.

    Those that a module calls its `zero_weights` may be missing, for it starts with zeros there.
    """
    expected = module.state_dict()
    weights = {name: expected[name] for name in expected.keys() & getattr(module, "zero_weights", set())} | {**weights}
    if missing := sorted(expected.keys() - weights.keys()):
        raise MoldiffError(f"{path}: lacks {missing[0]} and {len(missing) - 1} more, expected by its config.json")
    if surplus := sorted(weights.keys() - expected.keys()):
        raise MoldiffError(f"{path}: holds {surplus[0]} and {len(surplus) - 1} more that its config.json does not know")
    if axes := getattr(module, "class_axes", {}):  # the mask is a class more in some of them
        held, listed = (min(values[name].shape[axis] for name, axis in axes.items()) for values in (weights, expected))
        if held != listed:
            raise MoldiffError(f"{path}: made for {held} atom classes, but its config.json lists {listed}")
    for name, value in expected.items():
        if value.shape != weights[name].shape:
            got, want = tuple(weights[name].shape), tuple(value.shape)
            raise MoldiffError(f"{path}: {name} has shape {got}, expected {want} by its config.json")
    module.load_state_dict({name: value.to(expected[name].dtype) for name, value in weights.items()})
