"""Protocol P2: stability and validity of the explicit graph, with the model's own bonds and charges.

Nothing is perceived, added or dropped. An atom is stable when the Kekulé orders of its bonds, hydrogens included,
sum to a value that `moldiff.molecules.elements.VALENCES` allows for its element and formal charge. A molecule is valid
when its coordinates are finite, every atom is stable, RDKit sanitises the explicit graph without implicit
hydrogens, no atom keeps an unpaired electron, and everything hangs together in **one** fragment.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from rdkit import Chem

from moldiff.errors import MoldiffError
from moldiff.evaluation.result import MetricResult
from moldiff.molecules import identity
from moldiff.molecules.elements import SYMBOLS, VALENCES
from moldiff.molecules.formats.record import guarded
from moldiff.molecules.molecule import InvalidMolecule, Molecule, Status
from moldiff.molecules.validity import allowed_sums, check
from moldiff.molecules.vocabulary import Vocabulary

FAILURES = (
    Status.NON_FINITE,
    Status.VALENCE,
    Status.RADICAL,
    Status.DISCONNECTED,
    Status.UNSANITIZABLE,
    Status.UNREADABLE,
)
"""How the check of protocol P2 can end other than well."""


@dataclass(frozen=True)
class ValidityReport:
    """What protocol P2 says of one record.

    Attributes:
        problem: why it is not valid; None = valid.
        num_atoms: atoms, hydrogens included; 0 for a record that could not be read.
        num_stable: stable atoms, hydrogens included.
        num_fragments: pieces of the heavy-atom graph; 0 for a record that could not be read.
        canonical: normalised key of a valid molecule (`identity.canonical_key`).
        strict: isomeric SMILES of a valid molecule (`identity.strict_key`).
    """

    problem: InvalidMolecule | None
    num_atoms: int
    num_stable: int
    num_fragments: int
    canonical: str | None = None
    strict: str | None = None

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
    if isinstance(molecule, InvalidMolecule):
        return ValidityReport(molecule, 0, 0, 0)
    found = guarded(_judged, molecule, vocabulary, drawing)
    return ValidityReport(found, 0, 0, 0) if isinstance(found, InvalidMolecule) else found


def _judged(molecule: Molecule, vocabulary: Vocabulary | None, drawing: Chem.Mol | None) -> ValidityReport:
    problem = check(molecule, vocabulary)
    counts = molecule.num_atoms, _num_stable(molecule, vocabulary), molecule.pieces()[0]
    if problem is not None:
        return ValidityReport(problem, *counts)
    strict = identity.strict_key(molecule if drawing is None else drawing)
    try:
        canonical = identity.canonical_key(molecule)
    except (MoldiffError, Chem.MolSanitizeException):
        canonical = strict  # normalising failed, which must not stop the evaluation of all the others
    return ValidityReport(None, *counts, canonical, strict)


def _num_stable(molecule: Molecule, vocabulary: Vocabulary | None) -> int:
    """Stable atoms; a hydrogen is stable by construction, with its one bond to a heavy atom."""
    if not molecule.is_finite:
        return 0
    pairs = zip(allowed_sums(molecule, vocabulary), molecule.bond_sums().tolist(), strict=True)
    return sum(total in allowed for allowed, total in pairs) + int(molecule.num_hydrogens.sum())


@dataclass(eq=False)
class ValidityCounts:
    """P2 numbers of a stream of records, of which none has to be kept.

    One that could not be read counts in every per-molecule denominator.
    """

    total: int = 0
    _atoms: int = 0
    _stable_atoms: int = 0
    _stable: int = 0
    _connected: int = 0
    _statuses: Counter[Status] = field(default_factory=Counter)

    def add(self, verdict: ValidityReport) -> None:
        """Count one record."""
        self.total += 1
        self._atoms += verdict.num_atoms
        self._stable_atoms += verdict.num_stable
        self._stable += verdict.stable
        self._connected += verdict.num_fragments == 1
        self._statuses[verdict.status] += 1

    def results(self) -> list[MetricResult]:
        """The numbers so far, ending with one count for every way to fail."""
        counts: list[tuple[str, int, int, str]] = [
            ("p2_atom_stable", self._stable_atoms, self._atoms, _ATOM_STABLE),
            ("p2_molecule_stable", self._stable, self.total, _MOLECULE_STABLE),
            ("p2_connected", self._connected, self.total, _CONNECTED),
            ("p2_valid", self._statuses[Status.OK], self.total, _VALID),
        ]
        for status in FAILURES:
            definition = f"Molecules whose check ended with '{status}', over all molecules."
            counts.append((f"p2_status_{status}", self._statuses[status], self.total, definition))
        return [MetricResult(*count) for count in counts]


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
