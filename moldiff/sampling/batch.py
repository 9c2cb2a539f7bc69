"""Molecules that share a batch: what is known of each, what the network says of all, and the molecules it stands for.

Restarts: a molecule that came out in pieces is noised again, part of the way, and drawn on from there.

Noise that is added again lets a sampler correct what it got wrong before (Restart sampling, Xu et al. 2023,
arXiv:2306.14878). Here only those molecules get it that could not be delivered, which is cheaper than drawing others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from moldiff.diffusion.batch import MolBatch, NoiseLevel, Prediction, to_molecules
from moldiff.diffusion.compute import FLOAT32, Precision, one_thread
from moldiff.diffusion.decoding import SumConstraint, decode_argmax, decode_valence
from moldiff.diffusion.guidance import StereoTargets
from moldiff.diffusion.model import MoleculeDiffusion
from moldiff.diffusion.noise import PerMoleculeNoise, molecule_generator
from moldiff.diffusion.sampler import PartialState, Sampler, SamplerState, run_sampler
from moldiff.molecules.hydrogens import off_their_bonds, with_ideal_hydrogens
from moldiff.molecules.molecule import Molecule
from moldiff.sampling.sample import DecodedMolecule
from moldiff.sampling.trajectory import Recorder
from moldiff.tasks.task import Task

CPU_PAIRS, GPU_PAIRS = 6_000, 60_000
"""Padded pairs of atoms, a molecule's own included, that go through the network at once, unless one molecule has more.

A pair takes about 4 kB, so that a batch of many on a CPU stays below 30 MB; there, larger ones are slower, too.
"""


@dataclass(frozen=True, eq=False)
class SampleSpec:
    """A molecule that is about to be drawn.

    Attributes:
        index: its number within the run.
        generator: source of all its random numbers.
        start: what is known of it.
        totals: sums over its classes that decoding has to meet.
        candidate: its number among the candidates for the molecule.
    """

    index: int
    generator: torch.Generator
    start: PartialState
    totals: Sequence[SumConstraint] = ()
    candidate: int = 0

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
    """Molecules that were drawn together, before they are decoded.

    Attributes:
        model: what drew them.
        specs: what was asked for, row by row.
        start: the same as a batch.
        prediction: the last network call's (Å).
        frames: the way from noise to each of them (Å); None = not kept.
    """

    model: MoleculeDiffusion
    specs: Sequence[SampleSpec]
    start: PartialState
    prediction: Prediction
    frames: Sequence[tuple[Molecule, ...]] | None = None

    def decode(self, rule: str) -> list[DecodedMolecule]:
        """The molecules by a rule, "valence" or "raw", see `moldiff.diffusion.decoding`.

        By valence rules a hydrogen whose bond is too short or too long is put at its ideal place, too.
        """
        node_mask, vocabulary = self.start.clean.node_mask, self.model.vocabulary
        unplaced = torch.zeros_like(node_mask) if self.model.statistics.hydrogens_placed else node_mask
        frames: Sequence[tuple[Molecule, ...] | None] = self.frames or [None] * len(self.specs)
        raw = to_molecules(decode_argmax(self.prediction, node_mask), vocabulary)
        raw = [_with_ideal_hydrogens(one, atoms) for one, atoms in zip(raw, unplaced.cpu().numpy(), strict=True)]
        if rule == "raw":
            return [
                DecodedMolecule(molecule=one, argmax=one, trajectory=way) for one, way in zip(raw, frames, strict=True)
            ]
        totals = [spec.totals for spec in self.specs]
        decoded = decode_valence(self.prediction, node_mask, vocabulary, totals=totals)
        lacking, drawn = ((decoded.gained | unplaced).cpu().numpy(), (self.start.level.hydrogen > 0).cpu().numpy())
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
                    replaced_hydrogens=int(molecule.num_hydrogens[off].sum()),
                    trajectory=frames[row],
                )
            )
        return found

    def restart(self, row: int) -> SampleSpec:
        """A molecule at its estimate, with random numbers of its own; what is known of it stays as it is."""
        spec = self.specs[row]
        size, clean, batch = spec.size, spec.start.clean, self.prediction
        estimate = Prediction(
            pos=batch.pos[row, :size][None].to(clean.pos),
            hydrogen=batch.hydrogen[row, :size][None].to(clean.hydrogen),
            atom_type=batch.atom_type[row, :size][None].to(clean.pos),
            bond=batch.bond[row, :size, :size][None].to(clean.pos),
        )
        seed = torch.randint(2**62, (1,), generator=spec.generator.clone_state())
        generator = torch.Generator().manual_seed(int(seed))
        return replace(spec, generator=generator, start=spec.start.restarted(estimate))


def _with_ideal_hydrogens(molecule: Molecule, atoms: np.ndarray) -> Molecule:
    """The molecule with ideal places of the hydrogens of the heavy atoms marked in [N >= n]."""
    atoms = atoms[: molecule.num_heavy_atoms]
    return with_ideal_hydrogens(molecule, atoms) if atoms.any() else molecule


def denoise_batch(
    model: MoleculeDiffusion,
    sampler: Sampler,
    specs: Sequence[SampleSpec],
    *,
    num_frames: int = 0,
    on_step: Callable[[SamplerState], None] | None = None,
    arithmetic: Precision = FLOAT32,
) -> DenoisedBatch:
    """Draw molecules in one batch, on the model's device; their generators are left as they were.

    Args:
        model: the network and what gives its numbers meaning.
        sampler: how to step.
        specs: of the molecules; similar sizes waste least.
        num_frames: network calls of the sampler, if the way from noise is to be kept; 0 = it is not.
        on_step: called after every network call.
        arithmetic: how the network is computed; compiling it is left to the caller.
    """
    device = next(model.parameters()).device
    start = stack_starts([spec.start for spec in specs]).to(device)
    recorder = Recorder(model, start.clean.node_mask, num_frames) if num_frames else None

    def watch(state: SamplerState) -> None:
        if on_step is not None:
            on_step(state)
        if recorder is not None:
            recorder(state)

    draws = PerMoleculeNoise([spec.generator.clone_state() for spec in specs], device=device)
    with one_thread(device), arithmetic.autocast(device):
        prediction = run_sampler(model, sampler, start, draws, on_step=watch)
    return DenoisedBatch(model, specs, start, prediction, None if recorder is None else recorder.trajectories())


def in_batches(specs: Iterable[SampleSpec], pairs: int = CPU_PAIRS) -> Iterator[list[SampleSpec]]:
    """Molecules in batches of similar sizes, each within so many padded pairs of atoms."""
    batch: list[SampleSpec] = []
    for spec in sorted(specs, key=lambda one: (one.size, one.key)):
        if batch and (len(batch) + 1) * spec.size**2 > pairs:
            yield batch
            batch = []
        batch.append(spec)
    if batch:
        yield batch


def stack_starts(starts: Sequence[PartialState]) -> PartialState:
    """Starts of one or more molecules each as one, padded to the largest molecule; padding counts as unknown."""
    width = max(start.clean.max_atoms for start in starts)

    def stacked(part: str, name: str, dims: int = 1, fill: float = 0) -> Tensor:
        values = [getattr(getattr(start, part), name) for start in starts]
        return torch.cat([_padded(value, width, dims, fill) for value in values])

    fields = {name: stacked("clean", name) for name in ("pos", "hydrogen", "atom_type", "node_mask")}
    levels = {name: stacked("level", name, fill=1) for name in ("pos", "atom", "hydrogen")}
    clean = MolBatch(**fields, bond=stacked("clean", "bond", 2), condition=_conditions(starts))
    level = NoiseLevel(**levels, bond=stacked("level", "bond", 2, fill=1))
    return PartialState(clean, level, _allowed(starts, width), StereoTargets.stack([start.stereo for start in starts]))


def _conditions(starts: Sequence[PartialState]) -> Tensor | None:
    """The property targets of each [B, C]; where only some have any, none are given for the others."""
    widths = {start.clean.condition.shape[1] for start in starts if start.clean.condition is not None}
    if not widths:
        return None
    none = (start.clean.pos.new_full((start.clean.num_molecules, *widths), torch.nan) for start in starts)
    given = (start.clean.condition for start in starts)
    return torch.cat([other if rows is None else rows for rows, other in zip(given, none, strict=True)])


def _allowed(starts: Sequence[PartialState], width: int) -> Tensor | None:
    """The allowed classes of each [B, N, K]; where only some restrict them, all are allowed in the others."""
    classes = {start.allowed.shape[-1] for start in starts if start.allowed is not None}
    if not classes:
        return None
    anything = (torch.ones(*start.clean.atom_type.shape, *classes, dtype=torch.bool) for start in starts)
    found = [free if start.allowed is None else start.allowed for start, free in zip(starts, anything, strict=True)]
    return torch.cat([_padded(value, width, 1, True) for value in found])


def _padded(value: Tensor, width: int, dims: int, fill: float) -> Tensor:
    """Widen the `dims` dimensions behind the first to `width` with `fill`."""
    missing = width - value.shape[1]
    if not missing:
        return value
    kept = value.dim() - 1 - dims
    return torch.nn.functional.pad(value, [0, 0] * kept + [0, missing] * dims, value=fill)
