"""What a source of molecules is: an object that gives records, each a molecule or a reason."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from moldiff.errors import MoldiffError
from moldiff.molecules.molecule import InvalidMolecule, Molecule


@dataclass(frozen=True, eq=False)
class SourceRecord:
    """One record of a source."""

    number: int  # position in its source or file, from 1; 0 stands for a file as a whole that cannot be read
    name: str  # its title, "" without one
    outcome: Molecule | InvalidMolecule  # or why there is no molecule
    file: str = ""  # the file it comes from, "" where the source has no files
    keys: tuple[str, str] | None = None  # canonical and strict, where they have been computed already
    notes: tuple[str, ...] = ()  # what was done to it; the prepared set says how often each was
    part: str = ""  # "train", "valid" or "test" where the source says so; "" = left to `Source.splits`
    texts: tuple[str, ...] = ()  # names of its data fields that hold text rather than a number


@dataclass(frozen=True, kw_only=True)
class Split:
    """Which molecules are for training, validation and test. Raises MoldiffError if nothing is left to train on."""

    valid_share: float = 0.1  # of the molecules, drawn at random; conformers of one stay together
    test_share: float = 0.1
    seed: int = 0
    field: str | None = None  # data field that says train, valid or test instead; None = drawn

    def __post_init__(self) -> None:
        check_shares(self.valid_share, self.test_share)

    def draw(self, keys: np.ndarray) -> dict[str, np.ndarray]:
        """Indices of every part; the training part gets what rounding leaves (see `Source.splits`)."""
        _, molecule = np.unique(keys, return_inverse=True)
        first = np.unique(molecule, return_index=True)[1].argsort().argsort()[molecule]  # in the order of the records
        order = np.random.default_rng(self.seed).permutation(first.max() + 1)
        num_valid, num_test = int(self.valid_share * len(order)), int(self.test_share * len(order))
        test, valid, train = np.split(order, [num_test, num_test + num_valid])
        parts = {"train": train, "valid": valid, "test": test}
        return {part: np.flatnonzero(np.isin(first, chosen)) for part, chosen in parts.items()}


def check_shares(valid_share: float, test_share: float) -> None:
    """Raise MoldiffError when a share is negative, or nothing is left to train on."""
    if valid_share < 0 or test_share < 0 or valid_share + test_share >= 1:
        got = f"valid_share={valid_share} test_share={test_share}"
        raise MoldiffError(f"{got}: expected shares of at least 0 that leave something to train on")


class Source(Protocol):
    """Where molecules come from; `name` is that of the set."""

    name: str

    @property
    def properties(self) -> Mapping[str, str]:
        """Unit of every property that the molecules carry; read after the records."""

    def describe(self) -> dict[str, Any]:
        """What goes to `meta.json`: `source` (package, version or file and digest), `geometry`, `hydrogens`.

        `notes`, counts by text, go to the account of the records instead. Asked for after the records.
        """

    def __len__(self) -> int:
        """Number of records."""

    def records(self) -> Iterator[SourceRecord]:
        """Every record once, in order."""

    def splits(self, keys: np.ndarray) -> dict[str, np.ndarray]:
        """Indices of "train", "valid" and "test" among the kept molecules.

        `keys` [M] is a number for the graph of every one, the same for conformers of one molecule.
        """


@runtime_checkable
class Fingerprinted(Protocol):
    """A source that can tell whether it would give the same molecules again."""

    def fingerprint(self) -> str:
        """A digest of the content and of all options that have a say in the molecules."""


@runtime_checkable
class Resumable(Protocol):
    """A source that is slow and can begin at any of its records."""

    parts: Path | None
    """Folder for finished records, which stays; None = beside the result, and deleted when that is made."""

    def parts_key(self) -> str:
        """A digest of all that decides what the records are, but not how many of them are asked for."""

    def records(self, start: int = 0) -> Iterator[SourceRecord]:
        """The records from number `start` on."""


@runtime_checkable
class Shardable(Source, Fingerprinted, Protocol):
    """A source whose records several processes can work on, each on some of them."""

    def worked(self, start: int = 0) -> Iterator[SourceRecord]:
        """The records from number `start` on, which are not counted yet."""

    def counted(self, records: Iterable[SourceRecord]) -> Iterator[SourceRecord]:
        """All records of the source, whoever worked on them, as they pass by."""
