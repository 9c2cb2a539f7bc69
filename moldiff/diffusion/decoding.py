"""The final distributions -> one molecule: the most probable classes, or the most probable that obey valences."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Self

import numpy as np
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from moldiff.diffusion.batch import MolBatch, Prediction, pair_mask
from moldiff.molecules.vocabulary import COVALENT, Vocabulary

# times the sum of their covalent radii up to which decoding may join two atoms that the prediction leaves apart; the
# longest of the 650,000 bonds of heavy atoms in 20,000 molecules each of QM9 and of the drug-like set is at 1.28
REACH = 1.3
# classes this many nats below the best of their atom or pair enter only if there is no answer without them
_KEEP_WITHIN = 12.0
# log-probability below which a class is none of the choices; what is known rules classes out by such logits
_NEVER = -1e3
_MAX_CUTS = 50  # times that an answer in several fragments is sent back; a trained network's needs a few at most


@dataclass(frozen=True, eq=False)
class SumConstraint:
    """A rule for one molecule: the weights of its atoms' classes add up to a value."""

    weight: np.ndarray  # of every class [K], such as its hydrogens or its charge
    value: int

    @classmethod
    def of_charge(cls, vocabulary: Vocabulary, value: int) -> Self:
        """The rule that formal charges add up to a total charge (e)."""
        return cls(vocabulary.table[:, 1], value)


@dataclass(frozen=True, eq=False)
class Decoded:
    """Class indices chosen from a prediction; where no assignment obeys all rules, in fragments, or else the argmax."""

    batch: MolBatch  # coordinates as in the prediction
    repaired: Tensor  # [B] True where the argmax broke a rule and the integer programme found another assignment
    failed: Tensor  # [B] True where no assignment obeys all rules
    gained: Tensor  # [B, N] True where an atom has more hydrogens than its argmax, some without a place of their own


def decode_argmax(prediction: Prediction, node_mask: Tensor) -> MolBatch:
    """The most probable class of every atom and pair on its own (argmax)."""
    atom_type = prediction.atom_type.argmax(-1) * node_mask
    bond = prediction.bond.argmax(-1) * pair_mask(node_mask)
    return MolBatch(prediction.pos, prediction.hydrogen, atom_type, bond, node_mask)


def decode_valence(
    prediction: Prediction,
    node_mask: Tensor,
    vocabulary: Vocabulary,
    *,
    connected: bool = True,
    totals: Sequence[Sequence[SumConstraint]] = (),
    time_limit: float = 5.0,
) -> Decoded:
    """The most probable assignment in which every atom obeys a valence rule; if `connected`, in one fragment.

    Only molecules whose argmax breaks a rule need the integer programme. A class that `moldiff.diffusion.sampler` ruled
    out is never chosen, and atoms farther apart than `REACH` are not joined. `totals` are further rules of each
    molecule, empty = none for any; the time limit is for one molecule's programme (s).
    """
    totals = totals or [()] * len(node_mask)
    raw = decode_argmax(prediction, node_mask)
    atom_type, bond = raw.atom_type.clone(), raw.bond.clone()
    failed = torch.zeros(len(node_mask), dtype=torch.bool)
    for row in _broken(raw, vocabulary, totals, connected=connected).nonzero()[:, 0].tolist():
        size = int(node_mask[row].sum())
        atoms = prediction.atom_type[row, :size].double().log_softmax(-1).cpu().numpy()
        pairs = prediction.bond[row, :size, :size].double().log_softmax(-1).cpu().numpy()
        elements = vocabulary.table[raw.atom_type[row, :size].cpu().numpy(), 0]
        pairs = _within_reach(pairs, elements, prediction.pos[row, :size].double().cpu().numpy())
        solve = partial(solve_assignment, atoms, pairs, vocabulary, totals=totals[row], time_limit=time_limit)
        answer = solve(connected=connected)
        failed[row] = answer is None
        answer = answer or (solve(connected=False) if connected else None)
        if answer:
            atom_type[row, :size] = torch.from_numpy(answer[0]).to(atom_type)
            bond[row, :size, :size] = torch.from_numpy(answer[1]).to(bond)
    repaired = (atom_type != raw.atom_type).any(1) | (bond != raw.bond).flatten(1).any(1)
    hydrogens = torch.from_numpy(vocabulary.table[:, 2]).to(atom_type.device)
    gained = hydrogens[atom_type] > hydrogens[raw.atom_type]
    return Decoded(raw.replace(atom_type=atom_type, bond=bond), repaired.cpu(), failed, gained)


def _within_reach(pairs: np.ndarray, elements: np.ndarray, pos: np.ndarray) -> np.ndarray:
    """Log-probabilities [n, n, 4] without bonds, unless they lead, of elements [n] at pos [n, 3] (Å) too far apart."""
    radius = COVALENT[np.minimum(elements, len(COVALENT) - 1)]
    distance = np.linalg.norm(pos[:, None] - pos, axis=-1)
    apart = (distance > REACH * (radius[:, None] + radius)) & (pairs.argmax(-1) == 0)
    ruled_out = apart[..., None] & (np.arange(pairs.shape[-1]) > 0)
    return np.where(ruled_out, np.minimum(pairs, 2 * _NEVER), pairs)


def _broken(
    batch: MolBatch, vocabulary: Vocabulary, totals: Sequence[Sequence[SumConstraint]], *, connected: bool
) -> Tensor:
    """[B] True where a valence rule or a total is broken or, if asked for, there is more than one fragment."""
    sums = [vocabulary.allowed_bond_sums(index) for index in range(vocabulary.num_atom_classes)]
    highest = max((max(values) for values in sums if values), default=0)
    allowed = torch.tensor([[total in values for total in range(highest + 2)] for values in sums]).to(batch.bond.device)
    total = batch.bond.sum(-1).clamp(max=allowed.shape[1] - 1)  # the last column is False for every class
    broken = ~(allowed[batch.atom_type, total] | ~batch.node_mask).all(1)
    for row, size in enumerate(batch.node_mask.sum(1).tolist()):
        if totals[row]:
            classes = batch.atom_type[row, :size].cpu().numpy()
            broken[row] |= any(total.weight[classes].sum() != total.value for total in totals[row])
    return broken | ~_in_one_piece(batch) if connected else broken


def _in_one_piece(batch: MolBatch) -> Tensor:
    """[B] True where bonds lead from the first atom to all others."""
    bonded = batch.bond > 0
    reached = torch.zeros_like(batch.node_mask)
    reached[:, 0] = True
    while not torch.equal(wider := reached | (reached[..., None] & bonded).any(1), reached):
        reached = wider
    return (reached | ~batch.node_mask).all(1)


def solve_assignment(
    atoms: np.ndarray,
    pairs: np.ndarray,
    vocabulary: Vocabulary,
    *,
    connected: bool = True,
    totals: Sequence[SumConstraint] = (),
    time_limit: float = 5.0,
) -> tuple[np.ndarray, np.ndarray] | None:
    """Solve the assignment exactly: classes [n] and symmetric orders [n, n]; None = there is none, or not in time.

    Maximise the sum of log-probabilities of atoms [n, K] and pairs [n, n, 4] (below -1e3 = never) subject to: one class
    an atom, one order a pair, and orders that add up to a sum which the atom's class allows. Connectedness is added by
    cuts: each fragment of an answer must gain a bond. The time limit (s) is for all solutions together.
    """
    if not (np.isfinite(atoms).all() and np.isfinite(pairs).all()):
        return None
    end = time.monotonic() + time_limit
    for keep in (_KEEP_WITHIN, np.inf):
        programme = _Programme(atoms, pairs, vocabulary, keep)
        for total in totals:
            programme.require(total.weight[programme.choice[:, 1]], 0, total.value, total.value)
        for _ in range(_MAX_CUTS):
            left = end - time.monotonic()
            answer = programme.solve(left) if left > 0 else None
            if answer is None:
                break
            count, fragment = connected_components(answer[1], directed=False)
            if not connected or count == 1:
                return answer
            for number in range(count if count > 2 else 1):
                inside = fragment == number
                i, j, order = programme.bond.T
                programme.require(0, (inside[i] != inside[j]) & (order > 0), 1, np.inf)
    return None


def _within(scores: np.ndarray, keep: float) -> np.ndarray:
    """[..., K] True for what is possible and at most `keep` below the best of its row."""
    found: np.ndarray = (scores >= scores.max(-1, keepdims=True) - keep) & (scores > _NEVER)
    return found


class _Programme:
    """The integer programme: a 0/1 variable for every `choice` of an atom, then for every order of a `bond`.

    A choice (atom, class, sum) is a class together with one allowed sum of the orders of its bonds to heavy atoms, so
    that a class with several (sulfur) enters once for each. Those within `keep` nats of the best of their atom or pair
    enter.
    """

    def __init__(self, atoms: np.ndarray, pairs: np.ndarray, vocabulary: Vocabulary, keep: float) -> None:
        choices = (
            (atom, index, total)
            for atom, index in np.argwhere(_within(atoms, keep)).tolist()
            for total in vocabulary.allowed_bond_sums(index)
        )
        self.num_atoms = size = len(atoms)
        self.choice = choice = np.array(list(choices), dtype=np.int64).reshape(-1, 3)
        i, j = np.triu_indices(size, 1)
        pair, order = np.nonzero(_within(pairs[i, j], keep))
        self.bond = bond = np.stack([i[pair], j[pair], order], axis=1)  # rows (i, j, order)
        self.score = np.concatenate([atoms[choice[:, 0], choice[:, 1]], pairs[bond[:, 0], bond[:, 1], bond[:, 2]]])
        variables = len(self.score)
        column = np.arange(variables)
        # "Exactly one" for every atom and pair; "orders minus the chosen sum is zero" for every atom.
        owner = np.concatenate([choice[:, 0], size + pair])
        one = coo_array((np.ones(variables), (owner, column)), shape=(size + len(i), variables))
        ends = np.concatenate([choice[:, 0], bond[:, 0], bond[:, 1]])
        weight = np.concatenate([-choice[:, 2], order, order]).astype(float)
        where = np.concatenate([column, column[len(choice) :]])
        balance = coo_array((weight, (ends, where)), shape=(size, variables))
        self.constraints = [LinearConstraint(one.tocsc(), 1, 1), LinearConstraint(balance.tocsc(), 0, 0)]

    def require(self, choices: np.ndarray | int, bonds: np.ndarray | int, least: float, most: float) -> None:
        """Limit the sum of the weights of what is chosen, given those of all `choices` and `bonds`."""
        ends = (choices, len(self.choice)), (bonds, len(self.bond))
        row = np.concatenate([np.broadcast_to(weights, count) for weights, count in ends]).astype(float)
        self.constraints.append(LinearConstraint(row[None], least, most))

    def solve(self, time_limit: float) -> tuple[np.ndarray, np.ndarray] | None:
        """Classes [n] and symmetric orders [n, n] of the best assignment, None if there is none in time."""
        result = milp(
            -self.score,
            integrality=np.ones(len(self.score)),
            bounds=Bounds(0, 1),
            constraints=self.constraints,
            options={"time_limit": time_limit},
        )
        if result.x is None:
            return None
        picked = result.x > 0.5
        choice, bond = self.choice[picked[: len(self.choice)]], self.bond[picked[len(self.choice) :]]
        classes = np.empty(self.num_atoms, dtype=np.int64)
        classes[choice[:, 0]] = choice[:, 1]
        orders = np.zeros((self.num_atoms, self.num_atoms), dtype=np.int64)
        orders[bond[:, 0], bond[:, 1]] = bond[:, 2]
        return classes, orders + orders.T
