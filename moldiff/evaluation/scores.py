"""All P1, P2, uniqueness and novelty numbers of a list of molecules in one pass, with one row per molecule."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from moldiff.evaluation.metric import MetricResult
from moldiff.evaluation.metrics.novelty import MAX_TEXTS, NoveltyIndex, parent_novelty
from moldiff.evaluation.metrics.validity import LookupCounts, ValidityCounts, look_up
from moldiff.evaluation.molecule_set import MoleculeSet
from moldiff.molecules.molecule import InvalidMolecule, Molecule, Status
from moldiff.molecules.vocabulary import Vocabulary

NO_REFERENCE = "no reference molecules to compare with"
KEYS_ALONE = f"parents need the molecules of the reference, at most {MAX_TEXTS:,}; a model knows only their keys"
NOTHING_COUNTED = "the denominator is 0: no molecule to count over"


@dataclass(frozen=True, slots=True)
class MoleculeRow:
    """What is known of one record after scoring; None where a question does not apply."""

    number: int  # place in the list or file, from 1
    name: str
    status: Status  # outcome of the P2 check; "ok" = valid
    reason: str
    remarks: str | None = None  # what is odd about it all the same; None = nothing, or not looked for
    smiles: str | None = None  # isomeric SMILES of a valid molecule
    num_heavy_atoms: int | None = None
    num_atoms: int | None = None
    num_fragments: int | None = None  # pieces of the explicit graph
    p2_stable: bool | None = None
    unique: bool | None = None  # first valid molecule of the list with its normalised key
    novel: bool | None = None  # its normalised key is not in the reference
    novel_parent: bool | None = None  # nor is another charge state, salt or tautomer of it
    p1_stable: bool | None = None
    p1_smiles: str | None = None  # of the largest fragment of the looked-up graph, where RDKit sanitises it
    p1_fragments: int | None = None  # pieces of the looked-up graph


@dataclass(frozen=True)
class Scores:
    """The numbers of a list of molecules, a row for each, and why results have no value, by name."""

    results: list[MetricResult]
    rows: list[MoleculeRow]
    notes: Mapping[str, str]


def score(
    molecules: MoleculeSet | Sequence[Molecule | InvalidMolecule],
    novelty: NoveltyIndex | None = None,
    vocabulary: Vocabulary | None = None,
) -> Scores:
    """Score molecules by P1, P2, uniqueness and novelty.

    Args:
        molecules: what was read or sampled; `InvalidMolecule` = a record that could not be read, which counts.
        novelty: index of the known molecules; None = novelty has no value.
        vocabulary: brings valences, observed in the data, that the table of protocol P2 lacks; a `MoleculeSet` was
            made with it.
    """
    known = molecules if isinstance(molecules, MoleculeSet) else MoleculeSet.of(molecules, vocabulary)
    counts, lookup = ValidityCounts(), LookupCounts(len(known))
    for verdict in known.verdicts:
        counts.add(verdict)
    parents, novel = parent_novelty(counts.canonical, novelty)
    rows, seen = [], set[str | None]()
    records = zip(known.entries, known.verdicts, known.atoms, strict=True)
    for number, (molecule, verdict, atoms) in enumerate(records, start=1):
        graph = None if atoms is None else lookup.add(look_up(atoms))
        key, read = verdict.canonical, molecule if isinstance(molecule, Molecule) else None
        p1_smiles, p1_fragments = (graph and graph.largest_fragment) or (None, None)
        row = MoleculeRow(
            number=number,
            name="" if read is None else read.name,
            status=verdict.status,
            reason="" if verdict.problem is None else verdict.problem.reason,
            smiles=verdict.strict,
            num_heavy_atoms=None if read is None else read.num_heavy_atoms,
            num_atoms=None if read is None else verdict.num_atoms,
            num_fragments=None if read is None else verdict.num_fragments,
            p2_stable=None if read is None else verdict.stable,
            unique=None if key is None else key not in seen,
            novel=None if key is None or not novelty else not novelty.contains(key),
            novel_parent=None if key is None or not parents.denominator else key in novel,
            p1_stable=None if graph is None else graph.stable,
            p1_smiles=p1_smiles,
            p1_fragments=p1_fragments,
        )
        rows.append(row)
        seen.add(key)
    results = [*lookup.results(), *counts.results(novelty), parents]
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
