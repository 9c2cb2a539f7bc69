"""Bonds: whether they are found again from elements and coordinates, beside RDKit's perception."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from moldiff.evaluation.metric import MetricResult
from moldiff.evaluation.metrics.perception import Perception
from moldiff.evaluation.molecule_set import MoleculeSet
from moldiff.molecules import identity
from moldiff.tasks import Bonds
from tests.benchmarks.tasks.settings import Columns, Row, Settings


class Graphs:
    """Graphs found again from elements and coordinates: ours raw and decoded, and RDKit's."""

    def rows(self, settings: Settings, places: range) -> list[Row]:
        """Of every molecule whether each way finds its graph; where decoding does not, what it finds."""
        wholes = [settings.molecules[place] for place in places]
        rows: list[Row] = [{"raw": False, "decoded": False, "molecule": identity.smiles(whole)} for whole in wholes]
        for sample in settings.draw(Bonds(input=wholes), first=settings.first(places.start)):
            k = int(sample.task["input_record"] or 0) - 1
            for column, (molecule, verdict) in settings.forms(sample).items():
                rows[k][column] = verdict.problem is None and identity.smiles(molecule) == rows[k]["molecule"]
            if not rows[k]["decoded"]:
                rows[k]["found"] = sample.smiles
        found = MoleculeSet.of([replace(whole, properties={}) for whole in wholes])
        found = replace(found, smiles=[identity.strict_key(whole) for whole in wholes])
        perceived = Perception(charge=None).perceive(found)
        for row, outcome in zip(rows, perceived, strict=True):
            row["RDKit"] = outcome.same_graph is True
        return rows

    def columns(self, rows: Sequence[Row]) -> Columns:
        """Shares of all molecules."""
        return {
            name: [MetricResult("bonds_same_graph", sum(row[name] for row in rows), len(rows), _SAME)]
            for name in ("raw", "decoded", "RDKit")
        }

    def details(self, rows: Sequence[Row]) -> list[Row]:
        """The molecules whose graph was not found."""
        return [row for row in rows if not row["decoded"]]


_SAME = (
    "Molecules whose graph is the true one, stereo aside, over all; RDKit is told the true charge, ours that it is 0."
)
