"""Protocols P1, bonds looked up from distances, and P2, the explicit graph with the model's own bonds and charges.

Uniqueness and novelty of P2-valid molecules count normalised keys (`identity.canonical_key`), or where their name ends
in `_strict` isomeric SMILES (`identity.strict_key`).

P1 is that of EDM (Hoogeboom et al. 2022, arXiv:2203.17003), with lengths and margins in pm: two atoms at distance d are
bonded when d is below the single-bond length plus 10. Such a bond is double when a double-bond length is known and d is
below it plus 5, and such a double bond is triple when a triple-bond length is known and d is below it plus 3. Formal
charges do not exist. An atom is stable when its orders sum to a neutral valence of its element. The rule is blunt
(docs/real_molecules.md), so its numbers are only read beside those of real molecules.

In P2 nothing is perceived, added or dropped. An atom is stable when the Kekulé orders of its bonds, hydrogens included,
sum to a value that `moldiff.molecules.vocabulary.VALENCES` allows for its element and formal charge. A molecule is
valid when its coordinates are finite, every atom is stable, RDKit sanitises the explicit graph without implicit
hydrogens, no atom keeps an unpaired electron, and everything hangs together in **one** fragment.
"""

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from rdkit import Chem, rdBase

from moldiff.errors import MoldiffError
from moldiff.evaluation.metric import MetricResult
from moldiff.evaluation.metrics.novelty import NoveltyIndex
from moldiff.molecules import identity
from moldiff.molecules.convert import BOND_TYPES
from moldiff.molecules.formats.record import guarded
from moldiff.molecules.molecule import InvalidMolecule, Molecule, Status
from moldiff.molecules.validity import allowed_sums, check
from moldiff.molecules.vocabulary import SYMBOLS, VALENCES, Vocabulary

SINGLE_BOND_PM: dict[tuple[int, int], int] = {
    (1, 1): 74, (1, 5): 119, (1, 6): 109, (1, 7): 101, (1, 8): 96, (1, 9): 92, (1, 14): 148, (1, 15): 144,
    (1, 16): 134, (1, 17): 127, (1, 33): 152, (1, 35): 141, (1, 53): 161,
    (5, 17): 175,
    (6, 6): 154, (6, 7): 147, (6, 8): 143, (6, 9): 135, (6, 14): 185, (6, 15): 184, (6, 16): 182, (6, 17): 177,
    (6, 35): 194, (6, 53): 214,
    (7, 7): 145, (7, 8): 140, (7, 9): 136, (7, 15): 177, (7, 16): 168, (7, 17): 175, (7, 35): 214, (7, 53): 222,
    (8, 8): 148, (8, 9): 142, (8, 14): 163, (8, 15): 163, (8, 16): 151, (8, 17): 164, (8, 35): 172, (8, 53): 194,
    (9, 9): 142, (9, 14): 160, (9, 15): 156, (9, 16): 158, (9, 17): 166, (9, 35): 178, (9, 53): 187,
    (14, 14): 233, (14, 16): 200, (14, 17): 202, (14, 35): 215, (14, 53): 243,
    (15, 15): 221, (15, 16): 210, (15, 17): 203, (15, 35): 222,
    (16, 16): 204, (16, 17): 207, (16, 35): 225, (16, 53): 234,
    (17, 17): 199, (17, 35): 214,
    (35, 35): 228, (53, 53): 266,
}  # fmt: skip
"""(Z, Z) with the smaller first -> single-bond length (pm); the published compilations that EDM names."""

DOUBLE_BOND_PM: dict[tuple[int, int], int] = {
    (6, 6): 134, (6, 7): 129, (6, 8): 120, (6, 16): 160, (7, 7): 125, (7, 8): 121, (8, 8): 121, (8, 15): 150,
    (15, 16): 186,
}  # fmt: skip

TRIPLE_BOND_PM: dict[tuple[int, int], int] = {(6, 6): 120, (6, 7): 116, (6, 8): 113, (7, 7): 110}

MARGINS_PM = (10, 5, 3)
"""Added to the single, double and triple length (pm); EDM tuned them on the stability of the real QM9."""

NEUTRAL_VALENCES: dict[int, tuple[int, ...]] = {
    1: (1,), 5: (3,), 6: (4,), 7: (3,), 8: (2,), 9: (1,), 13: (3,), 14: (4,), 15: (3, 5), 16: (4,), 17: (1,),
    33: (3,), 35: (1,), 53: (1,), 80: (1, 2), 83: (3, 5),
}  # fmt: skip
"""Allowed sums of looked-up orders. EDM allows sulfur 4 only, which is kept so that numbers compare."""

Atoms = tuple[np.ndarray, np.ndarray]
"""Atomic numbers [a] and coordinates [a, 3] (Å) of all atoms of a molecule, hydrogens included."""


def _threshold_table(lengths: dict[tuple[int, int], int], margin: int) -> np.ndarray:
    """Upper distances (Å) by atomic numbers [119, 119]; -inf where no length is known, so that nothing lies below."""
    table = np.full((119, 119), -np.inf)
    for (first, second), length in lengths.items():
        table[first, second] = table[second, first] = (length + margin) / 100
    return table


_THRESHOLDS = tuple(map(_threshold_table, (SINGLE_BOND_PM, DOUBLE_BOND_PM, TRIPLE_BOND_PM), MARGINS_PM))


@dataclass(frozen=True, eq=False)
class LookedUp:
    """One molecule as protocol P1 sees it."""

    atomic_number: np.ndarray  # [a]
    bonds: np.ndarray  # (i, j, order) with i < j [m, 3]; none when a coordinate is not finite
    atom_stable: np.ndarray  # [a]
    finite: bool

    @property
    def stable(self) -> bool:
        """Every atom is stable."""
        return len(self.atom_stable) > 0 and bool(self.atom_stable.all())

    @cached_property
    def largest_fragment(self) -> tuple[str, int] | None:
        """SMILES (hydrogens written out) of the largest fragment, and how many there are; None = RDKit refuses it.

        Open valences are filled with implicit hydrogens, as in EDM; that is one reason why P1 validity is lenient.
        """
        if not self.finite or not len(self.atomic_number):
            return None
        graph = Chem.RWMol()
        for atomic_number in self.atomic_number.tolist():
            graph.AddAtom(Chem.Atom(atomic_number))
        for i, j, order in self.bonds.tolist():
            graph.AddBond(i, j, BOND_TYPES[order])
        with rdBase.BlockLogs():
            if Chem.SanitizeMol(graph, catchErrors=True) != Chem.SanitizeFlags.SANITIZE_NONE:
                return None
            fragments = Chem.GetMolFrags(graph, asMols=True)
            largest = max(fragments, key=lambda fragment: int(fragment.GetNumAtoms()))
            return str(Chem.MolToSmiles(largest)), len(fragments)


def all_atoms(molecule: Molecule) -> Atoms:
    """Atomic numbers [a] and coordinates [a, 3] (Å): heavy atoms first, then the hydrogens in their order."""
    hydrogens = (molecule.pos[:, None, :] + molecule.hydrogen_offset)[molecule.hydrogen_mask]
    atomic_number = np.concatenate([molecule.atomic_number, np.ones(len(hydrogens), dtype=np.int64)])
    return atomic_number.astype(np.int64), np.concatenate([molecule.pos, hydrogens]).astype(np.float64)


def bond_orders(atomic_number: np.ndarray, pos: np.ndarray) -> np.ndarray:
    """Symmetric orders [a, a] (int8) looked up for atomic numbers [a] and pos [a, 3] (Å).

    >>> bond_orders(np.array([6, 6]), np.array([[0.0, 0.0, 0.0], [1.34, 0.0, 0.0]])).tolist()
    [[0, 2], [2, 0]]
    """
    distance = np.sqrt(np.square(pos[:, None] - pos[None]).sum(-1))
    orders = np.zeros(distance.shape, dtype=np.int8)
    reached = np.ones(distance.shape, dtype=bool)
    for table in _THRESHOLDS:  # nested: a double bond must first be a single one, a triple bond a double one
        reached &= distance < table[np.ix_(atomic_number, atomic_number)]
        orders += reached
    np.fill_diagonal(orders, 0)
    return orders


def look_up(atoms: Atoms) -> LookedUp:
    """Bonds and stability of a molecule given by atomic numbers [a] and coordinates [a, 3] (Å)."""
    atomic_number, pos = atoms
    if not (np.abs(pos) < 1e6).all():  # also for NaN and infinity
        return LookedUp(atomic_number, np.zeros((0, 3), dtype=np.int64), np.zeros(len(pos), dtype=bool), finite=False)
    orders = bond_orders(atomic_number, pos)
    sums = orders.sum(-1, dtype=np.int64).tolist()
    stable = [total in NEUTRAL_VALENCES.get(z, ()) for z, total in zip(atomic_number.tolist(), sums, strict=True)]
    i, j = np.nonzero(np.triu(orders))
    return LookedUp(atomic_number, np.stack([i, j, orders[i, j]], axis=1), np.array(stable, dtype=bool), finite=True)


@dataclass(eq=False)
class LookupCounts:
    """P1 of a stream of records, of which only the distinct SMILES are kept; `num_molecules` is that of all records."""

    num_molecules: int
    _sums: Counter[str] = field(default_factory=Counter)
    _smiles: set[str] = field(default_factory=set)

    def add(self, graph: LookedUp) -> LookedUp:
        """Count a record that could be read, and give it back."""
        self._sums["atoms"] += len(graph.atom_stable)
        self._sums["stable_atoms"] += int(graph.atom_stable.sum())
        self._sums["stable"] += graph.stable
        if graph.largest_fragment is not None:
            smiles, fragments = graph.largest_fragment
            self._smiles.add(smiles)
            self._sums["valid"] += 1
            self._sums["trimmed"] += fragments > 1
        return graph

    def results(self) -> list[MetricResult]:
        """Stability and validity by looked-up bonds, and uniqueness of the valid."""
        total, sums, valid, distinct = self.num_molecules, self._sums, self._sums["valid"], len(self._smiles)
        return [
            MetricResult("p1_atom_stable", sums["stable_atoms"], sums["atoms"], _P1_ATOM_STABLE),
            MetricResult("p1_molecule_stable", sums["stable"], total, _P1_MOLECULE_STABLE),
            MetricResult("p1_valid", valid, total, _P1_VALID),
            MetricResult("p1_valid_trimmed", sums["trimmed"], valid, _TRIMMED),
            MetricResult("p1_unique", distinct, valid, f"Distinct {_P1_SMILES}, over the P1-valid molecules."),
            MetricResult("p1_valid_unique", distinct, total, f"Distinct {_P1_SMILES}, over all molecules."),
        ]


_LOOKUP = "bonds looked up from distances (EDM's lengths plus 10/5/3 pm for single/double/triple)"
_P1_ATOM_STABLE = (
    f"Atoms, hydrogens included, whose {_LOOKUP} sum to a neutral valence (H 1, B 3, C 4, N 3, O 2, F 1, Si 4, "
    "P 3 or 5, S 4, Cl/Br/I 1), over all atoms of the molecules that could be read."
)
_P1_SMILES = "SMILES of the largest fragment of P1-valid molecules"
_P1_MOLECULE_STABLE = f"Molecules whose every atom is stable by {_LOOKUP}, over all molecules."
_P1_VALID = (
    f"Molecules whose graph of {_LOOKUP} RDKit sanitises, open valences filled with implicit hydrogens and only "
    "the largest fragment kept for the SMILES (disconnected molecules can pass), over all molecules."
)
_TRIMMED = "P1-valid molecules of more than one fragment, whose smaller ones were dropped, over the P1-valid molecules."


FAILURES = (
    Status.NON_FINITE,
    Status.VALENCE,
    Status.RADICAL,
    Status.DISCONNECTED,
    Status.UNSANITIZABLE,
    Status.UNREADABLE,
)
"""How the check of protocol P2 can end other than well."""


@dataclass(frozen=True, slots=True)
class ValidityReport:
    """What protocol P2 says of one record; numbers are 0 for one that could not be read, and count hydrogens."""

    problem: InvalidMolecule | None  # why it is not valid
    num_atoms: int = 0
    num_stable: int = 0
    num_fragments: int = 0  # pieces of the heavy-atom graph
    canonical: str | None = None  # normalised key of a valid molecule (`identity.canonical_key`)
    strict: str | None = None  # isomeric SMILES of a valid molecule (`identity.strict_key`)

    @property
    def status(self) -> Status:
        return Status.OK if self.problem is None else self.problem.status

    @property
    def stable(self) -> bool:
        """Every atom is stable."""
        return 0 < self.num_atoms == self.num_stable


def judge(
    molecule: Molecule | InvalidMolecule, vocabulary: Vocabulary | None = None, drawing: Chem.Mol | None = None
) -> ValidityReport:
    """The verdict on one record; an `InvalidMolecule` is a record that could not be read.

    With a `drawing` of the molecule, its stereo is what the drawing's marks say, not what the coordinates do.
    """
    found = molecule if isinstance(molecule, InvalidMolecule) else guarded(_judged, molecule, vocabulary, drawing)
    return ValidityReport(found) if isinstance(found, InvalidMolecule) else found


def _judged(molecule: Molecule, vocabulary: Vocabulary | None, drawing: Chem.Mol | None) -> ValidityReport:
    problem, num_stable = check(molecule, vocabulary), 0
    if molecule.is_finite:  # a hydrogen is stable by construction, with its one bond to a heavy atom
        sums = zip(allowed_sums(molecule, vocabulary), molecule.bond_sums().tolist(), strict=True)
        num_stable = sum(total in allowed for allowed, total in sums) + int(molecule.num_hydrogens.sum())
    counts = molecule.num_atoms, num_stable, molecule.pieces()[0]
    if problem is not None:
        return ValidityReport(problem, *counts)
    strict = identity.strict_key(molecule if drawing is None else drawing)
    try:
        canonical = identity.canonical_key(molecule)
    except (MoldiffError, Chem.MolSanitizeException):
        canonical = strict  # normalising failed, which must not stop the evaluation of all the others
    return ValidityReport(None, *counts, canonical, strict)


@dataclass(eq=False)
class ValidityCounts:
    """P2, uniqueness and novelty of a stream of records, of which only the distinct keys are kept.

    One that could not be read counts in every per-molecule denominator.
    """

    statuses: Counter[Status] = field(default_factory=Counter)
    canonical: set[str] = field(default_factory=set)
    strict: set[str] = field(default_factory=set)
    _sums: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        """Records counted."""
        return self.statuses.total()

    def add(self, verdict: ValidityReport) -> None:
        """Count one record."""
        self.statuses[verdict.status] += 1
        self._sums["atoms"] += verdict.num_atoms
        self._sums["stable_atoms"] += verdict.num_stable
        self._sums["stable"] += verdict.stable
        self._sums["connected"] += verdict.num_fragments == 1
        if verdict.canonical is not None and verdict.strict is not None:
            self.canonical.add(verdict.canonical)
            self.strict.add(verdict.strict)

    def results(self, index: NoveltyIndex | None) -> list[MetricResult]:
        """P2 with one count for every way to fail, uniqueness over the valid, novelty over the distinct valid.

        Without a reference (None, or one that holds no molecule) the novelty results are 0/0, whose value is None.
        """
        total, valid, sums = self.total, self.statuses[Status.OK], self._sums
        distinct, distinct_strict = len(self.canonical), len(self.strict)
        novel = sum(not index.contains(key) for key in self.canonical) if index else 0
        novel_strict = sum(not index.contains(key, strict=True) for key in self.strict) if index else 0
        compared, compared_strict, of_all = (distinct, distinct_strict, total) if index else (0, 0, 0)
        return [
            MetricResult("p2_atom_stable", sums["stable_atoms"], sums["atoms"], _ATOM_STABLE),
            MetricResult("p2_molecule_stable", sums["stable"], total, _MOLECULE_STABLE),
            MetricResult("p2_connected", sums["connected"], total, _CONNECTED),
            MetricResult("p2_valid", valid, total, _VALID),
            *(MetricResult(f"p2_status_{end}", self.statuses[end], total, _ENDED.format(end)) for end in FAILURES),
            MetricResult("p2_unique", distinct, valid, f"Distinct {_KEY}, over the valid molecules."),
            MetricResult("p2_unique_strict", distinct_strict, valid, _UNIQUE_STRICT),
            MetricResult("p2_valid_unique", distinct, total, f"Distinct {_KEY}, over all molecules."),
            MetricResult("p2_novel", novel, compared, f"{_NOVEL}, over the distinct valid ones."),
            MetricResult("p2_novel_strict", novel_strict, compared_strict, _NOVEL_STRICT),
            MetricResult("p2_valid_unique_novel", novel, of_all, f"{_NOVEL}, over all molecules."),
        ]


_RULE = (
    "bond orders (Kekulé, hydrogens included) sum to an allowed valence of its element and formal charge, on the "
    "explicit graph"
)
_TABLE = ", ".join(
    f"{SYMBOLS[number]}{'+' * charge}{'-' * -charge} {' or '.join(map(str, allowed))}"
    for (number, charge), allowed in VALENCES.items()
)
_ATOM_STABLE = (
    f"Atoms, hydrogens included, whose {_RULE}, over all atoms of the molecules that could be read; none is stable "
    f"in a molecule with a coordinate that is not finite. Allowed are {_TABLE}; others as in the data."
)
_MOLECULE_STABLE = f"Molecules whose every atom's {_RULE}, over all molecules."
_CONNECTED = "Molecules whose explicit graph is one fragment, valid or not, over all molecules."
_VALID = (
    "Molecules with finite coordinates, stable atoms, an explicit graph that RDKit sanitises without implicit "
    "hydrogens, no radical and one single fragment, over all molecules."
)
_ENDED = "Molecules whose check ended with '{}', over all molecules."
_KEY = (
    "normalised keys (hydrogens implicit; no isotopes, atom maps or stereo; functional groups normalised) of valid "
    "molecules"
)
_UNIQUE_STRICT = "Distinct isomeric SMILES of valid molecules, over the valid molecules."
_NOVEL = "Distinct normalised keys of valid molecules that the reference lacks"
_NOVEL_STRICT = "Distinct isomeric SMILES of valid molecules that the reference lacks, over the distinct valid ones."
