"""Drug-like molecules: ligands of the Protein Data Bank and molecules of MOSES, all with computed conformers.

The MOSES benchmark (Polykovskiy et al. 2020, doi:10.3389/fphar.2020.565644) comes with the package `molsets`, the
ligands with `biotite`.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version as _version
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rdkit
from rdkit import Chem

from moldiff.data.curation import CurationRules
from moldiff.data.sources.pdb_ligands import MAX_HEAVY_ATOMS, MIN_HEAVY_ATOMS, Component, Dictionary, smiles_of
from moldiff.data.sources.source import SourceRecord, both_keys, check_shares
from moldiff.errors import MoldiffError
from moldiff.molecules import conformers
from moldiff.molecules.descriptors import DESCRIPTORS, descriptors
from moldiff.molecules.formats.record import unexpected
from moldiff.molecules.formats.smiles import smiles_record
from moldiff.molecules.fragments import RULE, part_of
from moldiff.molecules.identity import strict_key
from moldiff.molecules.molecule import InvalidMolecule, Status, status_of
from moldiff.processes import Failure, stream_limited

LIGANDS, MOSES = "PDB ligand", "MOSES"
"""Where a molecule comes from; also notes, so that the prepared set counts both."""

_MIXED = 30_000
"""Molecules of MOSES that are spread among the ligands; more of them come behind, so that parts stay of use."""

_FILES = {LIGANDS: "biotite/components.bcif", MOSES: "moses/train.csv"}


class Entry(NamedTuple):
    """One molecule to make: an entry of the dictionary or a SMILES, and its number there, from 1."""

    number: int
    name: str
    molecule: Component | str

    @property
    def origin(self) -> str:
        return MOSES if isinstance(self.molecule, str) else LIGANDS


@dataclass(frozen=True, kw_only=True)
class DrugWork:
    """What a worker process does with an entry: conformer, properties, keys and part.

    Args:
        valid_share, test_share, seed: see `moldiff.molecules.fragments.part_of`; the seed is also that of the
            conformers.
    """

    valid_share: float
    test_share: float
    seed: int

    def __call__(self, entry: Entry) -> SourceRecord:
        """The record of an entry; whatever goes wrong is its reason."""
        try:
            return self._work(entry)
        except MemoryError:
            raise
        except Exception as error:  # RDKit raises of all kinds, and no record may take the others with it
            return _rejected(entry, replace(unexpected(error), status=Status.FAILED))

    def _work(self, entry: Entry) -> SourceRecord:
        text = entry.molecule if isinstance(entry.molecule, str) else smiles_of(entry.molecule)
        if isinstance(text, InvalidMolecule):
            return _rejected(entry, text)
        treatment = CurationRules(fragments="reject", max_heavy_atoms=MAX_HEAVY_ATOMS, seed=self.seed)
        outcome, notes = treatment.apply(smiles_record(entry.number, text, entry.name, {}))
        if isinstance(outcome, InvalidMolecule):
            return _rejected(entry, outcome)
        if conformers.ETKDG not in notes:
            reason = "MMFF94s has no parameters, so not at the set's level of geometry"
            return _rejected(entry, InvalidMolecule(Status.FAILED, reason))
        keys = both_keys(outcome)
        if entry.origin == LIGANDS and keys[1] != strict_key(text):
            return _rejected(entry, InvalidMolecule(Status.FAILED, "the conformer has other stereocentres"))
        outcome = replace(outcome, name=entry.name, properties=descriptors(Chem.MolFromSmiles(keys[1])))
        part = part_of(keys[0], valid_share=self.valid_share, test_share=self.test_share, seed=self.seed)
        notes = (entry.origin, *notes)
        return SourceRecord(entry.number, entry.name, outcome, _FILES[entry.origin], keys, notes, part)


class Drugs:
    """PDB ligands and MOSES molecules as a source for `moldiff.data.prepare.prepare`.

    The ligands are the released, neutral non-polymers with 10 to 30 heavy atoms of H C N O F P S Cl Br I, with their
    stereo; of MOSES, a random part of the training molecules. All get coordinates by ETKDGv3 and MMFF94s, so that
    there is one level of geometry. The order is fixed and random, ligands among molecules of MOSES, so that the start
    of the set is a fair part of it.

    Args:
        num_moses: molecules of MOSES.
        valid_share, test_share: of the scaffolds, see `moldiff.molecules.fragments`.
        seed: of the order, the conformers and the parts.
        parts: folder for what is finished; "" = beside the result, and deleted with the last molecule.
        limit: read only the first `limit` records; None = all.
        num_workers: processes; 0 = none, and no time limit.
        time_limit: seconds of processor time that a molecule may take.

    Raises:
        MoldiffError: when a package is not installed, or an option has a value that it cannot have.
    """

    name = "drugs"

    def __init__(
        self,
        *,
        num_moses: int = 300_000,
        valid_share: float = 0.05,
        test_share: float = 0.05,
        seed: int = 0,
        parts: str = "",
        limit: int | None = None,
        num_workers: int = 2,
        time_limit: float = 60.0,
    ) -> None:
        check_shares(valid_share, test_share)
        self.properties = {name: descriptor.unit for name, descriptor in DESCRIPTORS.items()}
        self.parts = Path(parts) if parts else None
        self._work = DrugWork(valid_share=valid_share, test_share=test_share, seed=seed)
        self._limit, self._num_workers, self._time_limit = limit, num_workers, time_limit
        self._moses = _moses_smiles()
        self._dictionary = Dictionary()
        if not 0 <= num_moses <= len(self._moses):
            raise MoldiffError(f"data.num_moses: got {num_moses}, expected from 0 to {len(self._moses)}")
        self._num_moses = num_moses

    def __len__(self) -> int:
        total = len(self._dictionary) + self._num_moses
        return total if self._limit is None else min(self._limit, total)

    def fingerprint(self) -> str:
        """A digest of the packages' versions and of all options."""
        return _digest(self.parts_key(), self._num_moses, self._limit)

    def parts_key(self) -> str:
        """The same of what decides on each record and their order, but not on how many there are."""
        return _digest(sorted(self._source().items()), self._work, min(self._num_moses, _MIXED), self._time_limit)

    def describe(self) -> dict[str, Any]:
        return {
            "source": self._source(),
            "geometry": conformers.GEOMETRY,
            "hydrogens": "explicit",
            "split": RULE,
            "options": {
                "num_moses": self._num_moses,
                "min_heavy_atoms": MIN_HEAVY_ATOMS,
                "max_heavy_atoms": MAX_HEAVY_ATOMS,
                "valid_share": self._work.valid_share,
                "test_share": self._work.test_share,
                "seed": self._work.seed,
                "limit": self._limit,
                "time_limit": self._time_limit,
            },
        }

    def records(self, start: int = 0) -> Iterator[SourceRecord]:
        """Every record once, in order, from number `start` on."""
        entries = islice(self._entries(start), max(0, len(self) - start))
        results = stream_limited(self._work, entries, num_workers=self._num_workers, limit=self._time_limit)
        for entry, result in results:
            if isinstance(result, Failure):
                result = _rejected(entry, InvalidMolecule(status_of(result), result.reason))
            yield result

    def splits(self, keys: np.ndarray) -> dict[str, np.ndarray]:
        """Never asked, for every record says to which part it belongs."""
        raise NotImplementedError

    def _source(self) -> dict[str, str]:
        versions = {name: _version(name) for name in ("biotite", "molsets")}
        return versions | {"rdkit": rdkit.__version__}

    def _entries(self, start: int) -> Iterator[Entry]:
        num_ligands, mixed = len(self._dictionary), min(self._num_moses, _MIXED)
        generator = np.random.default_rng(self._work.seed)
        drawn = generator.permutation(len(self._moses))
        order = generator.permutation(num_ligands + mixed)
        for place in range(start, num_ligands + self._num_moses):
            index = int(order[place]) if place < len(order) else place
            if index < num_ligands:
                component = self._dictionary[index]
                yield Entry(index + 1, f"pdb_{component.name}", component)
            else:
                line = int(drawn[index - num_ligands])
                yield Entry(line + 1, f"moses_{line + 1}", self._moses[line])


def _digest(*facts: Any) -> str:
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _rejected(entry: Entry, problem: InvalidMolecule) -> SourceRecord:
    return SourceRecord(entry.number, entry.name, problem, _FILES[entry.origin])


def _moses_smiles() -> list[str]:
    """SMILES of the training part of MOSES."""
    # Found without importing it: the package's __init__ needs libraries that are of no use here.
    spec = find_spec("moses")
    places = list(spec.submodule_search_locations or []) if spec else []
    tables = [Path(place) / "dataset" / "data" / "train.csv.gz" for place in places]
    if not tables or not tables[0].is_file():
        # Without its dependencies, for pomegranate no longer builds.
        advice = "pip install --no-deps molsets"
        raise MoldiffError(f"data=drugs needs the package molsets, which is not installed: {advice}")
    with gzip.open(tables[0], "rt", encoding="utf-8") as file:
        next(file)  # the header
        return [line.partition(",")[0].strip() for line in file]
