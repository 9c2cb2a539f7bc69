"""A user's own files as a source, with options by the names that they have on the command line."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from moldiff.data.curation import CurationRules
from moldiff.data.dataset import SPLITS, MoleculeDataset
from moldiff.data.sources import SourceRecord, Split
from moldiff.data.sources.files import Files
from moldiff.data.writer import DatasetWriter, refuse_foreign
from moldiff.molecules.formats.record import Columns
from moldiff.molecules.identity import canonical_key

RULES = [field.name for field in fields(CurationRules)]


def own_files(path: str | Path, **options: Any) -> Files:
    """`Files` with the options of `conf/data/files.yaml`; without `num_workers`, all is done in this process."""
    seed = {"seed": options["seed"]} if "seed" in options else {}
    rules = {name: options.pop(name) for name in RULES if name in options}
    shares = {name: options.pop(name) for name in ("valid_share", "test_share") if name in options}
    return Files(
        path,
        rules=CurationRules(**rules),
        columns=Columns(options.pop("smiles_column", None), options.pop("name_column", None)),
        split=Split(field=options.pop("split_field", None), **shares, **seed),
        **{"num_workers": 0} | options,
    )


def subset(
    prepared: MoleculeDataset, splits: Mapping[str, np.ndarray], out: str | Path, *, name: str
) -> MoleculeDataset:
    """Write molecules of a prepared set as a set of its own in the folder `out`, with its own vocabulary.

    `splits` are indices into `prepared` for "train", "valid" and "test"; the new set holds them in this order.
    """
    out = Path(out)
    refuse_foreign(out)
    chosen = ((part, int(index)) for part in SPLITS for index in splits[part])
    origin = {key: prepared.meta[key] for key in ("source", "geometry", "hydrogens", "options") if key in prepared.meta}
    with closing(DatasetWriter(out)) as writer:
        for place, (part, index) in enumerate(chosen):
            smiles = prepared.smiles[index]
            keys = (canonical_key(smiles), smiles)
            writer.add(place, SourceRecord(place + 1, "", prepared.molecule(index), keys=keys, part=part))
        writer.finish(prepared.properties)
        parts = writer.labelled_splits() or {}
        writer.write(parts, {"name": name, "subset_of": prepared.name} | origin, {})
    return MoleculeDataset.load(out)
