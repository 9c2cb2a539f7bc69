"""The way from noise to a molecule, frame by frame: what `moldiff sample trajectory=true` keeps."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor

from moldiff.diffusion.batch import MolBatch, to_molecules
from moldiff.diffusion.decoding import decode_argmax
from moldiff.diffusion.model import MoleculeDiffusion
from moldiff.diffusion.sampler import SamplerState
from moldiff.molecules.formats.writer import Recorded, Writer
from moldiff.molecules.molecule import Molecule

MAX_FRAMES = 50
"""Frames that are kept of a molecule; of a longer run every second, third, ... network call."""


class Recorder:
    """Collects the frames of a batch while it is sampled.

    A frame holds the noisy coordinates that went into a network call (Å) and the classes of atoms and bonds that came
    out as the most probable ones; nothing is repaired. Hydrogens are there as soon as the network is told of any.

    Args:
        model: brings the vocabulary and the scales of the coordinates.
        node_mask: [B, N].
        num_steps: network calls of the run.
    """

    def __init__(self, model: MoleculeDiffusion, node_mask: Tensor, num_steps: int) -> None:
        self._model = model
        self._node_mask = node_mask
        self._every = math.ceil(num_steps / MAX_FRAMES)
        self._batches: list[MolBatch] = []
        self._hidden: list[np.ndarray] = []

    def __call__(self, state: SamplerState) -> None:
        """Keep the state, if it is one of the frames."""
        if state.step % self._every:
            return
        scales = self._model.statistics
        pos, hydrogen = state.noisy.pos * scales.pos_scale, state.noisy.hydrogen * scales.hydrogen_scale
        frame = decode_argmax(state.prediction, self._node_mask).replace(pos=pos, hydrogen=hydrogen)
        self._batches.append(frame.to("cpu"))
        self._hidden.append(((state.level.hydrogen == 1) | (not scales.hydrogens_placed)).cpu().numpy())

    def trajectories(self) -> list[tuple[Molecule, ...]]:
        """The frames of every molecule of the batch, noise first.

        A model of heavy atoms alone knows no place for a hydrogen, so its frames have none.
        """
        frames = [
            [_without_hydrogens(molecule, atoms) for molecule, atoms in zip(molecules, hidden, strict=True)]
            for batch, hidden in zip(self._batches, self._hidden, strict=True)
            for molecules in [to_molecules(batch, self._model.vocabulary)]
        ]
        return list(zip(*frames, strict=True))


def _without_hydrogens(molecule: Molecule, atoms: np.ndarray) -> Molecule:
    """The molecule without the hydrogens of the heavy atoms marked in [N >= n]."""
    atoms = atoms[: molecule.num_heavy_atoms]
    return replace(
        molecule,
        num_hydrogens=np.where(atoms, 0, molecule.num_hydrogens),
        hydrogen_offset=np.where(atoms[:, None, None], 0.0, molecule.hydrogen_offset),
    )


def trajectory_path(path: str | Path) -> Path:
    """Where the frames of the molecules of a file are kept: "a.sdf" -> "a.trajectory.sdf.gz", beside it."""
    return beside(path, "trajectory.sdf.gz")


def beside(path: str | Path, ending: str) -> Path:
    """A file that belongs to a file of molecules: "a.sdf.gz" -> "a.ENDING"."""
    path = Path(path)
    return path.with_name(f"{path.name.removesuffix('.gz').rpartition('.')[0]}.{ending}")


def write_trajectories(path: str | Path, samples: Iterable[Recorded]) -> int:
    """Write the frames of molecules, each followed by the molecule itself, to a file of molecules; how many frames.

    The frames are a sample's `trajectory`.

    A record's title is the molecule's name, its data fields are `frame` (0 = noise) and `frames` (how many there are).
    Molecules without frames, or with a coordinate that is not finite, are left out.
    """
    with Writer(path) as writer:
        for sample in samples:
            write_frames(writer, sample)
    return writer.count


def write_frames(writer: Writer, sample: Recorded) -> None:
    """Write the frames of one molecule and the molecule itself, see `write_trajectories`."""
    frames = [*(getattr(sample, "trajectory", None) or ()), sample.molecule]
    if len(frames) == 1 or not all(frame.is_finite for frame in frames):
        return
    for number, frame in enumerate(frames):
        named = replace(frame, name=sample.molecule.name, properties={})
        writer.write(named, {"frame": number, "frames": len(frames)})
