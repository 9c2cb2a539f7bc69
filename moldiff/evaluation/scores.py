"""All P1, P2, uniqueness and novelty numbers of a list of molecules in one pass, with one row per molecule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rdkit import Chem

from moldiff.evaluation.metric import MetricResult
from moldiff.evaluation.metrics.novelty import MAX_TEXTS, NoveltyCounts, NoveltyIndex, parent_novelty
from moldiff.evaluation.metrics.validity import (
    Atoms,
    ValidityCounts,
    all_atoms,
    distance_lookup_results,
    judge,
    look_up,
)
from moldiff.molecules.molecule import InvalidMolecule, Molecule, Status
from moldiff.molecules.vocabulary import Vocabulary

NO_REFERENCE = "no reference molecules to compare with"
KEYS_ALONE = f"parents need the molecules of the reference, at most {MAX_TEXTS:,}; a model knows only their keys"
NOTHING_COUNTED = "the denominator is 0: no molecule to count over"


@dataclass(frozen=True)
class MoleculeRow:
    """What is known of one record after scoring; None where a question does not apply.

    Attributes:
        number: place in the list or file, from 1.
        status: outcome of the P2 check; "ok" = valid.
        remarks: what is odd about it all the same; None = nothing, or not looked for.
        smiles: isomeric SMILES of a valid molecule.
        num_fragments: pieces of the explicit graph.
        unique: first valid molecule of the list with its normalised key.
        novel: its normalised key is not in the reference.
        novel_parent: nor is another charge state, salt or tautomer of it.
        p1_smiles: SMILES of the largest fragment of the looked-up graph, where RDKit sanitises it.
        p1_fragments: pieces of the looked-up graph.
    """

    number: int
    name: str
    status: Status
    reason: str
    remarks: str | None = None
    smiles: str | None = None
    num_heavy_atoms: int | None = None
    num_atoms: int | None = None
    num_fragments: int | None = None
    p2_stable: bool | None = None
    unique: bool | None = None
    novel: bool | None = None
    novel_parent: bool | None = None
    p1_stable: bool | None = None
    p1_smiles: str | None = None
    p1_fragments: int | None = None


@dataclass(frozen=True)
class Scores:
    """The numbers of a list of molecules, a row for each, and why results have no value, by name."""

    results: list[MetricResult]
    rows: list[MoleculeRow]
    notes: Mapping[str, str]


def score(
    molecules: Sequence[Molecule | InvalidMolecule],
    novelty: NoveltyIndex | None = None,
    *,
    vocabulary: Vocabulary | None = None,
    atoms: Sequence[Atoms | None] | None = None,
    drawings: Sequence[Chem.Mol | None] | None = None,
) -> Scores:
    """Score molecules by P1, P2, uniqueness and novelty.

    Args:
        molecules: what was read or sampled; `InvalidMolecule` = a record that could not be read, which counts.
        novelty: index of the known molecules; None = novelty has no value.
        vocabulary: brings valences, observed in the data, that the table of protocol P2 lacks.
        atoms: elements and coordinates for P1, where a record has them without being a molecule; None entries have
            none. Default: those of the molecules.
        drawings: of those molecules whose stereo is in a drawing's marks rather than in their coordinates.
    """
    if atoms is None:
        atoms = [all_atoms(molecule) if isinstance(molecule, Molecule) else None for molecule in molecules]
    pairs = zip(molecules, drawings or [None] * len(molecules), strict=True)
    verdicts = [judge(molecule, vocabulary, drawing) for molecule, drawing in pairs]
    validity, uniqueness = ValidityCounts(), NoveltyCounts()
    for verdict in verdicts:
        validity.add(verdict)
        uniqueness.add(verdict)
    graphs = [None if entry is None else look_up(entry) for entry in atoms]
    parents, novel = parent_novelty(verdicts, novelty)
    results = [
        *distance_lookup_results([graph for graph in graphs if graph is not None], len(molecules)),
        *validity.results(),
        *uniqueness.results(novelty),
        parents,
    ]
    rows, seen = [], set[str | None]()
    for number, (molecule, verdict, graph) in enumerate(zip(molecules, verdicts, graphs, strict=True), start=1):
        key = verdict.canonical
        row = MoleculeRow(
            number=number,
            name=molecule.name if isinstance(molecule, Molecule) else "",
            status=verdict.status,
            reason="" if verdict.problem is None else verdict.problem.reason,
            smiles=verdict.strict,
            unique=None if key is None else key not in seen,
            novel=None if key is None or not novelty else not novelty.contains(key),
            novel_parent=None if key is None or not parents.denominator else key in novel,
        )
        if isinstance(molecule, Molecule):
            row = replace(
                row,
                num_heavy_atoms=molecule.num_heavy_atoms,
                num_atoms=verdict.num_atoms,
                num_fragments=verdict.num_fragments,
                p2_stable=verdict.stable,
            )
        if graph is not None:
            smiles, count = graph.largest_fragment or (None, None)
            row = replace(row, p1_stable=graph.stable, p1_smiles=smiles, p1_fragments=count)
        rows.append(row)
        seen.add(key)
    notes = {result.name: NOTHING_COUNTED for result in results if result.value is None}
    if not novelty:
        notes |= {name: NO_REFERENCE for name in notes if "novel" in name}
    elif novelty.texts is None:
        notes["p2_novel_parent"] = KEYS_ALONE
    return Scores(results, rows, notes)


def quality(molecules: Sequence[Molecule | InvalidMolecule], novelty: NoveltyIndex | None = None) -> dict[str, float]:
    """Values by name, as a training callback logs them; results without a value are left out."""
    results = score(molecules, novelty).results
    return {result.name: result.value for result in results if result.value is not None}
