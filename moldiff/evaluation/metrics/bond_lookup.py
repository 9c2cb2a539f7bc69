"""Protocol P1: bonds looked up from interatomic distances, as in EDM (Hoogeboom et al. 2022, arXiv:2203.17003).

The rule, with lengths and margins in pm: two atoms at distance d are bonded when d is below the single-bond
length plus 10. Such a bond is double when a double-bond length is known and d is below it plus 5, and such a
double bond is triple when a triple-bond length is known and d is below it plus 3. A pair of elements without a
single-bond length is never bonded. Hydrogens are atoms like all others; formal charges do not exist.

An atom is stable when its orders sum to a neutral valence of its element; elements without an entry are never
stable. The rule is blunt: of the real QM9 molecules (130,829 whose graph is known) it calls 99.4 % of the atoms
and 95.3 % of the molecules stable and 97.7 % valid (the paper prints 99.0, 95.2 and 97.7), so it is only read
beside the same numbers of real molecules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from rdkit import Chem, rdBase

from moldiff.evaluation.result import MetricResult
from moldiff.molecules.convert import BOND_TYPES
from moldiff.molecules.molecule import Molecule

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

_NUM_ELEMENTS = 119  # atomic numbers 0 to 118


def _threshold_table(lengths: dict[tuple[int, int], int], margin: int) -> np.ndarray:
    """[119, 119] upper distances (Å); -inf where no length is known, so that nothing lies below."""
    table = np.full((_NUM_ELEMENTS, _NUM_ELEMENTS), -np.inf)
    for (first, second), length in lengths.items():
        table[first, second] = table[second, first] = (length + margin) / 100
    return table


_THRESHOLDS = tuple(map(_threshold_table, (SINGLE_BOND_PM, DOUBLE_BOND_PM, TRIPLE_BOND_PM), MARGINS_PM))

_ALLOWED = np.zeros((_NUM_ELEMENTS, 8), dtype=bool)
"""Whether a sum of orders is a neutral valence of an element."""
for _number, _valences in NEUTRAL_VALENCES.items():
    _ALLOWED[_number, list(_valences)] = True


@dataclass(frozen=True, eq=False)
class LookedUp:
    """One molecule as protocol P1 sees it.

    Attributes:
        atomic_number: [a] integers.
        bonds: rows (i, j, order) with i < j [m, 3].
        atom_stable: [a] booleans.
        finite: False when a coordinate is not a finite number; then there are no bonds.
    """

    atomic_number: np.ndarray
    bonds: np.ndarray
    atom_stable: np.ndarray
    finite: bool

    @property
    def stable(self) -> bool:
        """Every atom is stable."""
        return len(self.atom_stable) > 0 and bool(self.atom_stable.all())


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
    first, second = atomic_number[:, None], atomic_number[None]
    orders = np.zeros(distance.shape, dtype=np.int8)
    reached = np.ones(distance.shape, dtype=bool)
    for table in _THRESHOLDS:  # nested: a double bond must first be a single one, a triple bond a double one
        reached &= distance < table[first, second]
        orders += reached
    np.fill_diagonal(orders, 0)
    return orders


def look_up(atoms: Sequence[Atoms]) -> list[LookedUp]:
    """Bonds and stability of molecules given by atomic numbers [a] and coordinates [a, 3] (Å), in the order given."""
    return [_looked_up(atomic_number, pos) for atomic_number, pos in atoms]


def _looked_up(atomic_number: np.ndarray, pos: np.ndarray) -> LookedUp:
    if not (np.abs(pos) < 1e6).all():  # also for NaN and infinity
        return LookedUp(atomic_number, np.zeros((0, 3), dtype=np.int64), np.zeros(len(pos), dtype=bool), finite=False)
    orders = bond_orders(atomic_number, pos)
    sums = orders.sum(-1, dtype=np.int64)
    stable = _ALLOWED[atomic_number, np.minimum(sums, _ALLOWED.shape[1] - 1)] & (sums < _ALLOWED.shape[1])
    i, j = np.nonzero(np.triu(orders))
    return LookedUp(atomic_number, np.stack([i, j, orders[i, j]], axis=1), stable, finite=True)


class LargestFragment(NamedTuple):
    """The P1 name of a molecule that sanitises: SMILES of its largest fragment, and how many fragments there were."""

    smiles: str
    num_fragments: int


def largest_fragment(looked_up: LookedUp) -> LargestFragment | None:
    """SMILES (hydrogens written out) of the largest fragment, or None when RDKit cannot sanitise the whole graph.

    Open valences are filled with implicit hydrogens, as in EDM; that is one reason why P1 validity is lenient.
    """
    if not looked_up.finite or not len(looked_up.atomic_number):
        return None
    graph = Chem.RWMol()
    for atomic_number in looked_up.atomic_number.tolist():
        graph.AddAtom(Chem.Atom(atomic_number))
    for i, j, order in looked_up.bonds.tolist():
        graph.AddBond(i, j, BOND_TYPES[order])
    with rdBase.BlockLogs():
        if Chem.SanitizeMol(graph, catchErrors=True) != Chem.SanitizeFlags.SANITIZE_NONE:
            return None
        fragments = Chem.GetMolFrags(graph, asMols=True)
        largest = max(fragments, key=lambda fragment: int(fragment.GetNumAtoms()))
        return LargestFragment(str(Chem.MolToSmiles(largest)), len(fragments))


def distance_lookup_results(
    looked_up: Sequence[LookedUp], fragments: Sequence[LargestFragment | None], num_molecules: int
) -> list[MetricResult]:
    """P1 numbers of molecules already looked up; `num_molecules` also counts records that could not be read."""
    valid = [fragment for fragment in fragments if fragment is not None]
    distinct = len({fragment.smiles for fragment in valid})
    trimmed = sum(fragment.num_fragments > 1 for fragment in valid)
    atoms_stable = sum(int(m.atom_stable.sum()) for m in looked_up)
    counts: list[tuple[str, int, int, str]] = [
        ("p1_atom_stable", atoms_stable, sum(len(m.atom_stable) for m in looked_up), _ATOM_STABLE),
        ("p1_molecule_stable", sum(m.stable for m in looked_up), num_molecules, _MOLECULE_STABLE),
        ("p1_valid", len(valid), num_molecules, _VALID),
        ("p1_valid_trimmed", trimmed, len(valid), _TRIMMED),
        ("p1_unique", distinct, len(valid), f"Distinct {_SMILES}, over the P1-valid molecules."),
        ("p1_valid_unique", distinct, num_molecules, f"Distinct {_SMILES}, over all molecules."),
    ]
    return [MetricResult(*count) for count in counts]


_LOOKUP = "bonds looked up from distances (EDM's lengths plus 10/5/3 pm for single/double/triple)"
_ATOM_STABLE = (
    f"Atoms, hydrogens included, whose {_LOOKUP} sum to a neutral valence (H 1, B 3, C 4, N 3, O 2, F 1, Si 4, "
    "P 3 or 5, S 4, Cl/Br/I 1), over all atoms of the molecules that could be read."
)
_MOLECULE_STABLE = f"Molecules whose every atom is stable by {_LOOKUP}, over all molecules."
_VALID = (
    f"Molecules whose graph of {_LOOKUP} RDKit sanitises, open valences filled with implicit hydrogens and only "
    "the largest fragment kept for the SMILES (disconnected molecules can pass), over all molecules."
)
_TRIMMED = "P1-valid molecules of more than one fragment, whose smaller ones were dropped, over the P1-valid molecules."
_SMILES = "SMILES of the largest fragment of P1-valid molecules"
