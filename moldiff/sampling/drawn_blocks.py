"""Blocks of drawn molecules on disk: several processes draw those of one run, which then takes them from there.

What a run makes of its molecules (whether one is unique, when it is complete) depends on those before. Therefore all
that were drawn are kept, and the run itself goes through them in their order, as if it had drawn them.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from moldiff.errors import MoldiffError
from moldiff.evaluation.metrics.validity import ValidityReport
from moldiff.molecules.formats.storage import write_atomically
from moldiff.molecules.molecule import InvalidMolecule, Molecule, Status
from moldiff.sampling.molecule_sampler import Blocks, MoleculeSampler, draw_blocks
from moldiff.sampling.sample import Sample


@dataclass(frozen=True)
class DrawnBlocks:
    """A folder with a file for each block, which says what decided on its molecules."""

    folder: Path
    origin: Mapping[str, Any]  # weights, seed, settings, version ..., in JSON's types

    def holds(self, block: range) -> bool:
        return self._path(block).is_file()

    def save(self, block: range, samples: Sequence[Sample]) -> None:
        """Put the molecules of a block on disk, all or none."""
        content = {"origin": self.origin, "samples": list(map(_fields, samples))}
        text = json.dumps(content, default=_plain)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self._path(block), gzip.compress(text.encode(), compresslevel=1, mtime=0))

    def read(self, block: range) -> list[Sample]:
        """The molecules of a block.

        Raises:
            MoldiffError: for a file that is damaged, or holds others than those of this run.
        """
        stored = self._content(block)["samples"]
        try:
            return [_sample(fields) for fields in stored]
        except (KeyError, TypeError, ValueError) as error:
            raise self._damaged(block, error) from None

    def num_passing(self, block: range, keep: Collection[str]) -> int:
        """Molecules of a block that a run keeps which asks for the same, whether they are unique or novel or not."""
        passing = 0
        for one in self._content(block)["samples"]:
            valid = one["verdict"]["problem"] is None
            has = {"valid": valid, "sound": valid and one["unsound"] is None}
            passing += all(has.get(name, True) for name in keep) and not (one["refusal"] or one["failed_filters"])
        return passing

    def fill(self, molecules: MoleculeSampler, blocks: Sequence[range], num_workers: int) -> None:
        """Draw and save the blocks that are not there."""
        missing = _Chosen([block for block in blocks if not self.holds(block)])
        if missing.blocks:
            deque(self.draw(molecules, missing, behind=0, num_workers=num_workers), maxlen=0)

    def draw(
        self,
        molecules: MoleculeSampler,
        blocks: Blocks,
        *,
        behind: int,
        num_workers: int = 0,
        on_fraction: Callable[[float], None] | None = None,
    ) -> Generator[list[Sample], None, None]:
        """As `draw_blocks`; blocks come from the disk up to the first that is not there, and others go to it."""
        for block in blocks.behind(behind):
            if not self.holds(block):
                break
            yield self.read(block)
            behind = block[-1] + 1
        how: dict[str, Any] = {"num_workers": num_workers, "on_fraction": on_fraction}
        with closing(draw_blocks(molecules, blocks, behind=behind, **how)) as others:
            for block, samples in zip(blocks.behind(behind), others, strict=False):
                self.save(block, samples)
                yield samples

    def _path(self, block: range) -> Path:
        return self.folder / f"{block.start:010d}-{block.stop - 1:010d}.json.gz"

    def _content(self, block: range) -> Any:
        path = self._path(block)
        try:
            content = json.loads(gzip.decompress(path.read_bytes()))
            origin, indices = content["origin"], [one["index"] for one in content["samples"]]
        except (EOFError, OSError, KeyError, TypeError, ValueError) as error:
            raise self._damaged(block, error) from None
        for name in dict.fromkeys([*self.origin, *origin]):
            if (got := origin.get(name)) != (expected := self.origin.get(name)):
                raise MoldiffError(
                    f"{path} was drawn with {name}={got}, expected {expected}; without it, it is drawn anew"
                )
        if indices != list(block):
            raise self._damaged(block, "other molecules than its name says")
        return content

    def _damaged(self, block: range, why: object) -> MoldiffError:
        return MoldiffError(f"{self._path(block)}: damaged ({why}); without it, it is drawn anew")


class _Chosen(NamedTuple):
    """Some of a run's blocks, each as it is drawn there."""

    blocks: list[range]

    def behind(self, index: int) -> Iterator[range]:
        return (block for block in self.blocks if block.stop > index)


def origin_of(settings: Mapping[str, Any], molecules: MoleculeSampler) -> dict[str, Any]:
    """All that decides on the molecules of a run: what their records say, and what these have no room for."""
    sizes = hashlib.sha256(repr((molecules.task.sizes(), sorted(molecules.excluded))).encode()).hexdigest()[:16]
    return {**settings, "trajectory": molecules.trajectory, "sizes and exclusions": sizes}


def _fields(sample: Sample) -> dict[str, Any]:
    """What JSON is made of, by `_plain`."""
    return vars(sample) | {"argmax": None if sample.argmax is sample.molecule else sample.argmax}


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [value.dtype.str, value.shape, base64.b64encode(value.tobytes()).decode()]
    if isinstance(value, np.generic):
        return value.item()
    return {one.name: getattr(value, one.name) for one in fields(value)}


def _sample(stored: dict[str, Any]) -> Sample:
    """The sample of which `_fields` were stored."""
    molecule, verdict = _molecule(stored["molecule"]), stored["verdict"]
    made = {
        "molecule": molecule,
        "argmax": molecule if stored["argmax"] is None else _molecule(stored["argmax"]),
        "unrelaxed": stored["unrelaxed"] and _molecule(stored["unrelaxed"]),
        "trajectory": stored["trajectory"] and tuple(map(_molecule, stored["trajectory"])),
        "verdict": ValidityReport(**verdict | {"problem": _problem(verdict["problem"])}),
        "unsound": _problem(stored["unsound"]),
        "failed_filters": tuple(stored["failed_filters"]),
    }
    return Sample(**stored | made)


def _problem(fields: dict[str, Any] | None) -> InvalidMolecule | None:
    return None if fields is None else InvalidMolecule(**fields | {"status": Status(fields["status"])})


def _molecule(fields: Mapping[str, Any]) -> Molecule:
    read: dict[str, Any] = {name: _array(value) if isinstance(value, list) else value for name, value in fields.items()}
    return Molecule(**read)


def _array(stored: list[Any]) -> np.ndarray:
    dtype, shape, data = stored
    return np.frombuffer(base64.b64decode(data), dtype=dtype).reshape(shape)
