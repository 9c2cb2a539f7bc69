"""Molecules that share a batch: what is known of each, what the network says of all, and the molecules it stands for.

A molecule that came out in pieces is noised again, part of the way, and drawn on from there, which is cheaper than
drawing another (Restart sampling, Xu et al. 2023, arXiv:2306.14878).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from moldiff.diffusion.batch import (
    MolBatch,
    NoiseLevel,
    PerMoleculeNoise,
    Prediction,
    by_size,
    molecule_generator,
    to_molecules,
)
from moldiff.diffusion.compute import FLOAT32, Precision, one_thread
from moldiff.diffusion.decoding import SumConstraint, decode_argmax, decode_valence
from moldiff.diffusion.guidance import StereoTargets
from moldiff.diffusion.model import MoleculeDiffusion
from moldiff.diffusion.pocket import PocketTarget
from moldiff.diffusion.sampler import Confidence, PartialState, Sampler, SamplerState, run_sampler
from moldiff.molecules.convert import off_their_bonds, with_ideal_hydrogens
from moldiff.molecules.molecule import Molecule
from moldiff.sampling.sample import DecodedMolecule
from moldiff.tasks.task import Task

CPU_PAIRS, GPU_PAIRS = 6_000, 60_000
"""Padded pairs of atoms, a molecule's own included, that go through the network at once, unless one molecule has more.

A pair takes about 4 kB, so that a batch of many on a CPU stays below 30 MB; there, larger ones are slower, too.
"""

MAX_FRAMES = 50
"""Frames that are kept of a molecule; of a longer run every second, third, ... network call."""


@dataclass(frozen=True, eq=False)
class SampleSpec:
    """A molecule that is about to be drawn."""

    index: int  # its number within the run
    generator: torch.Generator  # source of all its random numbers
    start: PartialState  # what is known of it
    totals: Sequence[SumConstraint] = ()  # sums over its classes that decoding has to meet
    candidate: int = 0  # its number among the candidates for the molecule

    @classmethod
    def of(cls, task: Task, seed: int, index: int, candidate: int = 0) -> SampleSpec:
        """Molecule `index` of the run with that seed, or a further candidate for it."""
        generator = molecule_generator(seed, index, candidate)
        return cls(index, generator, task.begin(index, generator), task.totals(index), candidate)

    @property
    def size(self) -> int:
        """Heavy atoms."""
        return self.start.clean.max_atoms

    @property
    def key(self) -> tuple[int, int]:
        """What tells it from all others of its run."""
        return self.index, self.candidate


@dataclass(frozen=True, eq=False)
class DenoisedBatch:
    """Molecules that were drawn together, before they are decoded."""

    model: MoleculeDiffusion
    specs: Sequence[SampleSpec]
    start: PartialState  # of all, row by row
    prediction: Prediction  # the last network call's (Å)
    frames: Sequence[tuple[Molecule, ...]] | None = None  # the way from noise to each of them (Å); None = not kept
    confidence: Sequence[float] | None = None  # in each of them, see `moldiff.diffusion.sampler`; None = 0 in all

    def decode(self, rule: str) -> list[DecodedMolecule]:
        """The molecules by a rule, "valence" or "raw", see `moldiff.diffusion.decoding`.

        By valence rules a hydrogen whose bond is too short or too long is put at its ideal place, too.
        """
        node_mask, vocabulary = self.start.clean.node_mask, self.model.vocabulary
        unplaced = node_mask & (not self.model.statistics.hydrogens_placed)
        frames: Sequence[tuple[Molecule, ...] | None] = self.frames or [None] * len(self.specs)
        raw = to_molecules(decode_argmax(self.prediction, node_mask), vocabulary)
        raw = [_with_ideal_hydrogens(one, atoms) for one, atoms in zip(raw, unplaced.cpu().numpy(), strict=True)]
        confidence = self.confidence or [0.0] * len(self.specs)
        if rule == "raw":
            rows = zip(raw, confidence, frames, strict=True)
            return [
                DecodedMolecule(molecule=one, argmax=one, confidence=sure, trajectory=way) for one, sure, way in rows
            ]
        totals = [spec.totals for spec in self.specs]
        decoded = decode_valence(self.prediction, node_mask, vocabulary, totals=totals)
        lacking, drawn = (decoded.gained | unplaced).cpu().numpy(), (self.start.level.hydrogen > 0).cpu().numpy()
        found = []
        for row, molecule in enumerate(to_molecules(decoded.batch, vocabulary)):
            atoms, repaired = lacking[row, : molecule.num_heavy_atoms], bool(decoded.repaired[row])
            off = off_their_bonds(molecule) & drawn[row, : len(atoms)] & ~atoms
            is_raw = not (repaired or off.any())
            found.append(
                DecodedMolecule(
                    molecule=raw[row] if is_raw else _with_ideal_hydrogens(molecule, atoms | off),
                    argmax=raw[row],
                    repaired=repaired,
                    confidence=confidence[row],
                    replaced_hydrogens=int(molecule.num_hydrogens[off].sum()),
                    trajectory=frames[row],
                )
            )
        return found

    def restart(self, row: int) -> SampleSpec:
        """A molecule at its estimate, with random numbers of its own; what is known of it stays as it is."""
        spec = self.specs[row]
        own = (value[row : row + 1, : spec.size] for value in vars(self.prediction).values())
        estimate = Prediction(*(value.to(spec.start.clean.pos) for value in own))
        estimate = replace(estimate, bond=estimate.bond[:, :, : spec.size])
        seed = torch.randint(2**62, (1,), generator=spec.generator.clone_state())
        generator = torch.Generator().manual_seed(int(seed))
        return replace(spec, generator=generator, start=spec.start.restarted(estimate))


def _with_ideal_hydrogens(molecule: Molecule, atoms: np.ndarray) -> Molecule:
    """The molecule with ideal places of the hydrogens of the heavy atoms marked in [N >= n]."""
    atoms = atoms[: molecule.num_heavy_atoms]
    return with_ideal_hydrogens(molecule, atoms) if atoms.any() else molecule


class Recorder:
    """Collects the frames of a batch while it is sampled.

    A frame holds the noisy coordinates that went into a network call (Å) and the classes of atoms and bonds that came
    out as the most probable ones; nothing is repaired. Hydrogens are there as soon as the network is told of any; a
    model of heavy atoms alone knows no place for one, so its frames have none.
    """

    def __init__(self, model: MoleculeDiffusion, node_mask: Tensor, num_steps: int) -> None:
        self._model = model
        self._node_mask = node_mask
        self._every = math.ceil(num_steps / MAX_FRAMES)
        self._frames: list[tuple[MolBatch, np.ndarray]] = []  # and whose hydrogens are not there

    def __call__(self, state: SamplerState) -> None:
        if state.step % self._every:
            return
        scales = self._model.statistics
        pos, hydrogen = state.noisy.pos * scales.pos_scale, state.noisy.hydrogen * scales.hydrogen_scale
        frame = decode_argmax(state.prediction, self._node_mask).replace(pos=pos, hydrogen=hydrogen)
        hidden = (state.level.hydrogen == 1) | (not scales.hydrogens_placed)
        self._frames.append((frame.to("cpu"), hidden.cpu().numpy()))

    def trajectories(self) -> list[tuple[Molecule, ...]]:
        """The frames of every molecule of the batch, noise first."""
        vocabulary = self._model.vocabulary
        frames = [map(_without_hydrogens, to_molecules(batch, vocabulary), hidden) for batch, hidden in self._frames]
        return list(zip(*frames, strict=True))


def _without_hydrogens(molecule: Molecule, atoms: np.ndarray) -> Molecule:
    """The molecule without the hydrogens of the heavy atoms marked in [N >= n]."""
    atoms = atoms[: molecule.num_heavy_atoms]
    return replace(
        molecule,
        num_hydrogens=np.where(atoms, 0, molecule.num_hydrogens),
        hydrogen_offset=np.where(atoms[:, None, None], 0.0, molecule.hydrogen_offset),
    )


def denoise_batch(
    model: MoleculeDiffusion,
    sampler: Sampler,
    specs: Sequence[SampleSpec],
    *,
    num_frames: int = 0,
    on_step: Callable[[SamplerState], None] | None = None,
    arithmetic: Precision = FLOAT32,
) -> DenoisedBatch:
    """Draw molecules, best of similar sizes, in one batch on the model's device; their generators stay as they were.

    `num_frames` are the network calls of the sampler, if the way from noise is to be kept; 0 = it is not. `on_step` is
    called after every network call. Compiling the network is left to the caller.
    """
    device = next(model.parameters()).device
    start = stack_starts([spec.start for spec in specs]).to(device)
    recorder = Recorder(model, start.clean.node_mask, num_frames) if num_frames else None
    confidence = Confidence(start, float(model.statistics.pos_scale))

    def watch(state: SamplerState) -> None:
        for watcher in (on_step, recorder, confidence):
            if watcher is not None:
                watcher(state)

    draws = PerMoleculeNoise([spec.generator.clone_state() for spec in specs], device=device)
    with one_thread(device), arithmetic.autocast(device):
        prediction = run_sampler(model, sampler, start, draws, on_step=watch)
    frames = None if recorder is None else recorder.trajectories()
    return DenoisedBatch(model, specs, start, prediction, frames, confidence.values())


def in_batches(specs: Iterable[SampleSpec], pairs: int = CPU_PAIRS) -> Iterator[list[SampleSpec]]:
    """Molecules in batches of similar sizes, each within so many padded pairs of atoms."""
    return by_size(sorted(specs, key=lambda one: one.key), lambda one: one.size, pairs)


def stack_starts(starts: Sequence[PartialState]) -> PartialState:
    """Starts of one or more molecules each as one, padded to the largest molecule; padding counts as unknown.

    Where only some have property targets, none are given for the others, and where only some restrict the classes of
    atoms, all are allowed in the others.
    """
    width = max(start.clean.max_atoms for start in starts)

    def stacked(part: str, name: str, dims: int = 1, fill: float = 0) -> Tensor:
        values = [getattr(getattr(start, part), name) for start in starts]
        return torch.cat([_padded(value, width, dims, fill) for value in values])

    fields = {name: stacked("clean", name) for name in ("pos", "hydrogen", "atom_type", "node_mask")}
    levels = {name: stacked("level", name, fill=1) for name in ("pos", "atom", "hydrogen")}
    targets = _filled([start.clean.condition for start in starts], [start.clean.pos for start in starts], 1, torch.nan)
    allowed = _filled([start.allowed for start in starts], [start.clean.pos for start in starts], 2, True)
    condition = torch.cat(targets) if targets else None
    clean = MolBatch(**fields, bond=stacked("clean", "bond", 2), condition=condition)
    level = NoiseLevel(**levels, bond=stacked("level", "bond", 2, fill=1))
    classes = torch.cat([_padded(value, width, 1, True) for value in allowed]) if allowed else None
    stereo = StereoTargets.stack([start.stereo for start in starts])
    return PartialState(clean, level, classes, stereo, PocketTarget.stack([start.pocket for start in starts]))


def _filled(values: Sequence[Tensor | None], like: Sequence[Tensor], dims: int, fill: float) -> list[Tensor]:
    """The values with all of `fill` where there is none, its first `dims` sizes those of `like`; [] = there is none."""
    given = next((value for value in values if value is not None), None)
    if given is None:
        return []
    blanks = (given.new_full((*other.shape[:dims], given.shape[-1]), fill) for other in like)
    return [blank if value is None else value for value, blank in zip(values, blanks, strict=True)]


def _padded(value: Tensor, width: int, dims: int, fill: float) -> Tensor:
    """Widen the `dims` dimensions behind the first to `width` with `fill`."""
    missing = width - value.shape[1]
    if not missing:
        return value
    kept = value.dim() - 1 - dims
    return torch.nn.functional.pad(value, [0, 0] * kept + [0, missing] * dims, value=fill)
