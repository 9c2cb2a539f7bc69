"""A user's own files as a source, with options by the names that they have on the command line."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from moldiff.data.curation import CurationRules
from moldiff.data.sources import Split
from moldiff.data.sources.files import Files
from moldiff.molecules.formats.record import Columns

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
