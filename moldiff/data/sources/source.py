"""What a source of molecules is: an object that gives records, each a molecule or a reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from rdkit import Chem, rdBase

from moldiff.errors import MoldiffError
from moldiff.molecules.convert import stereo_of_coordinates, to_rdkit
from moldiff.molecules.identity import canonical_key, isomeric_smiles
from moldiff.molecules.molecule import InvalidMolecule, Molecule

_SANITIZE_WITHOUT_CLEANUP = Chem.SanitizeFlags.SANITIZE_ALL ^ Chem.SanitizeFlags.SANITIZE_CLEANUP


@dataclass(frozen=True, eq=False)
class SourceRecord:
    """One record of a source.

    Attributes:
        number: position in its source or file, from 1; 0 stands for a file as a whole that cannot be read.
        name: its title, "" without one.
        outcome: the molecule, or why there is none.
        file: the file it comes from, "" where the source has no files.
        keys: canonical and strict key (`moldiff.molecules`) where they have been computed already.
        notes: what was done to it; the prepared set says how often each was.
        texts: names of its data fields that hold text rather than a number.
        part: "train", "valid" or "test" where the source says so; "" = left to `Source.splits`.
    """

    number: int
    name: str
    outcome: Molecule | InvalidMolecule
    file: str = ""
    keys: tuple[str, str] | None = None
    notes: tuple[str, ...] = ()
    part: str = ""
    texts: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Split:
    """Which molecules are for training, validation and test.

    Args:
        valid_share, test_share: of the molecules, drawn at random; conformers of one stay together.
        seed: of the draw.
        field: data field that says train, valid or test instead; None = drawn.

    Raises:
        MoldiffError: for shares that leave nothing to train on.
    """

    valid_share: float = 0.1
    test_share: float = 0.1
    seed: int = 0
    field: str | None = None

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
    """Refuse shares of the parts that are none.

    Raises:
        MoldiffError: when one is negative, or nothing is left to train on.
    """
    if valid_share < 0 or test_share < 0 or valid_share + test_share >= 1:
        got = f"valid_share={valid_share} test_share={test_share}"
        raise MoldiffError(f"{got}: expected shares of at least 0 that leave something to train on")


class Source(Protocol):
    """Where molecules come from.

    Attributes:
        name: name of the set.
        properties: unit of every property the molecules carry; read after the records.
    """

    name: str

    @property
    def properties(self) -> Mapping[str, str]: ...

    def describe(self) -> dict[str, Any]:
        """What goes to `meta.json`: `source` (package, version or file and digest), `geometry`, `hydrogens`.

        `notes`, counts by text, go to the account of the records instead. Asked for after the records.
        """
        ...

    def __len__(self) -> int:
        """Number of records."""
        ...

    def records(self) -> Iterator[SourceRecord]:
        """Every record once, in order."""
        ...

    def splits(self, keys: np.ndarray) -> dict[str, np.ndarray]:
        """Indices of the parts "train", "valid" and "test" among the kept molecules.

        Args:
            keys: a number for the graph of every one [M], the same for conformers of one molecule.
        """
        ...


@runtime_checkable
class Fingerprinted(Protocol):
    """A source that can tell whether it would give the same molecules again."""

    def fingerprint(self) -> str:
        """A digest of the content and of all options that have a say in the molecules."""
        ...


@runtime_checkable
class Resumable(Protocol):
    """A source that is slow and can begin at any of its records.

    Attributes:
        parts: folder for finished records, which stays; None = beside the result, and deleted when that is made.
    """

    parts: Path | None

    def parts_key(self) -> str:
        """A digest of all that decides what the records are, but not how many of them are asked for."""
        ...

    def records(self, start: int = 0) -> Iterator[SourceRecord]:
        """The records from number `start` on."""
        ...


def both_keys(molecule: Molecule) -> tuple[str, str]:
    """Canonical and strict key of a molecule: the same as `moldiff.molecules` gives, at half the cost.

    Raises:
        MoldiffError: when RDKit cannot sanitise the graph; ask `moldiff.molecules.validity.check` first.
    """
    mol = to_rdkit(molecule, stereo=False)
    try:
        with rdBase.BlockLogs():
            Chem.SanitizeMol(mol, sanitizeOps=_SANITIZE_WITHOUT_CLEANUP)
            stereo_of_coordinates(mol)
            heavy = Chem.RemoveHs(mol)
    except Chem.MolSanitizeException as error:
        raise MoldiffError(f"cannot write a SMILES: {' '.join(str(error).split())}") from None
    return canonical_key(heavy), isomeric_smiles(heavy)
