"""All P1, P2, uniqueness and novelty numbers of a list of molecules in one pass, with one row per molecule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from moldiff.batch import Molecule
from moldiff.metrics.distance_lookup import (
    LargestFragment,
    LookedUp,
    distance_lookup_results,
    largest_fragment,
    look_up,
)
from moldiff.metrics.novelty import NoveltyIndex, novelty_results
from moldiff.metrics.validity import Verdict, judge, validity_results
from moldiff.results import InvalidMolecule, MetricResult, Status
from moldiff.vocabulary import Vocabulary

NO_REFERENCE = "no reference molecules to compare with"
NOTHING_COUNTED = "the denominator is 0: no molecule to count over"


@dataclass(frozen=True)
class MoleculeRow:
    """What is known of one record after scoring; None where a question does not apply.

    Attributes:
        index: 0-based place in the list.
        name: title of the record.
        status: outcome of the P2 check; "ok" = valid.
        reason: why it is not valid.
        smiles: isomeric SMILES of a valid molecule.
        num_heavy_atoms: heavy atoms.
        num_atoms: atoms, hydrogens included.
        num_fragments: pieces of the explicit graph.
        p2_stable: every atom obeys the valence rule on the explicit graph.
        unique: first valid molecule of the list with its normalised key.
        novel: its normalised key is not in the reference.
        p1_stable: every atom is stable by distance lookup.
        p1_smiles: SMILES of the largest fragment of the looked-up graph, where RDKit sanitises it.
        p1_fragments: pieces of the looked-up graph.
    """

    index: int
    name: str
    status: Status
    reason: str
    smiles: str | None = None
    num_heavy_atoms: int | None = None
    num_atoms: int | None = None
    num_fragments: int | None = None
    p2_stable: bool | None = None
    unique: bool | None = None
    novel: bool | None = None
    p1_stable: bool | None = None
    p1_smiles: str | None = None
    p1_fragments: int | None = None


@dataclass(frozen=True)
class Scores:
    """The numbers of a list of molecules.

    Attributes:
        results: P1, then P2, then uniqueness and novelty (`p2_unique`, `p2_novel`, ...).
        rows: one per record, in order.
        notes: why a result has no value, by name.
    """

    results: list[MetricResult]
    rows: list[MoleculeRow]
    notes: Mapping[str, str]


def score(
    molecules: Sequence[Molecule | InvalidMolecule],
    novelty: NoveltyIndex | None = None,
    *,
    vocabulary: Vocabulary | None = None,
) -> Scores:
    """Score molecules by P1, P2, uniqueness and novelty.

    Args:
        molecules: what was read or sampled; `InvalidMolecule` = a record that could not be read, which counts.
        novelty: index of the known molecules; None = novelty has no value.
        vocabulary: brings valences, observed in the data, that the table of protocol P2 lacks.
    """
    verdicts = [judge(molecule, vocabulary) for molecule in molecules]
    readable = [molecule for molecule in molecules if isinstance(molecule, Molecule)]
    looked_up = look_up(readable)
    fragments = [largest_fragment(graph) for graph in looked_up]
    results = [
        *distance_lookup_results(looked_up, fragments, len(molecules)),
        *validity_results(verdicts),
        *novelty_results(verdicts, novelty),
    ]
    rows = _rows(molecules, verdicts, list(zip(looked_up, fragments, strict=True)), novelty)
    return Scores(results, rows, _notes(results, novelty))


def quality(molecules: Sequence[Molecule | InvalidMolecule], novelty: NoveltyIndex | None = None) -> dict[str, float]:
    """Values by name, as a training callback logs them; results without a value are left out."""
    results = score(molecules, novelty).results
    return {result.name: result.value for result in results if result.value is not None}


def _notes(results: Sequence[MetricResult], novelty: NoveltyIndex | None) -> dict[str, str]:
    notes = {}
    for result in results:
        if result.value is None:
            unreferenced = "novel" in result.name and not novelty
            notes[result.name] = NO_REFERENCE if unreferenced else NOTHING_COUNTED
    return notes


def _rows(
    molecules: Sequence[Molecule | InvalidMolecule],
    verdicts: Sequence[Verdict],
    lookups: Sequence[tuple[LookedUp, LargestFragment | None]],
    novelty: NoveltyIndex | None,
) -> list[MoleculeRow]:
    rows, seen = [], set[str]()
    remaining = iter(lookups)
    for index, (molecule, verdict) in enumerate(zip(molecules, verdicts, strict=True)):
        reason = "" if verdict.problem is None else verdict.problem.reason
        if isinstance(molecule, InvalidMolecule):
            rows.append(MoleculeRow(index, "", verdict.status, reason))
            continue
        graph, fragment = next(remaining)
        key = verdict.canonical
        rows.append(
            MoleculeRow(
                index=index,
                name=molecule.name,
                status=verdict.status,
                reason=reason,
                smiles=verdict.strict,
                num_heavy_atoms=molecule.num_heavy_atoms,
                num_atoms=verdict.num_atoms,
                num_fragments=verdict.num_fragments,
                p2_stable=verdict.stable,
                unique=None if key is None else key not in seen,
                novel=None if key is None or not novelty else not novelty.contains(key),
                p1_stable=graph.stable,
                p1_smiles=fragment and fragment.smiles,
                p1_fragments=fragment and fragment.num_fragments,
            )
        )
        if key is not None:
            seen.add(key)
    return rows
