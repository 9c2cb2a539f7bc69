"""What is known of a training molecule: the mixture of tasks that one set of weights learns."""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from moldiff.diffusion.batch import MolBatch, NoiseLevel
from moldiff.diffusion.process.schedule import MIN_LEVEL
from moldiff.errors import MoldiffError

_KNOWN_SHARE = (0.1, 0.9)  # between which shares of a molecule's atoms are known in the task `part`
_SETTLING = 0.4  # the highest noise level of coordinates in the task `settle`
_HIDDEN = 0.1  # share of the molecules of the task `settle` of which nothing is known of the hydrogens' places


@dataclass(frozen=True)
class TaskMixture:
    """Draws for every molecule of a batch which of its atoms and fields carry noise, by the shares of tasks.

    To `settle` is how every molecule ends; some atoms of a third of these molecules are known.
    """

    whole: float = 1.0  # the same noise level everywhere
    part: float = 0.0  # some atoms known: half of the time what is around one, a quarter all but that, or any
    fields: float = 0.0  # an independent noise level for coordinates, atom classes and bonds
    graph: float = 0.0  # known atom classes and bonds, free coordinates (conformers); hydrogens have their level
    geometry: float = 0.0  # known coordinates and free bonds, the atom classes free in half of them
    composition: float = 0.0  # known atom classes, the rest free
    settle: float = 0.0  # known atom classes and bonds, coordinates at low levels, hydrogens at any

    def __post_init__(self) -> None:
        shares = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        for name, share in shares.items():
            if not share >= 0:
                raise MoldiffError(f"tasks.{name}: got {share}, expected a share of at least 0")
        if not sum(shares.values()) > 0:
            raise MoldiffError("tasks: got no share above 0, expected at least one")

    def __call__(
        self, batch: MolBatch, times: Callable[[int, torch.Generator], Tensor], generator: torch.Generator
    ) -> NoiseLevel:
        """Noise levels of clean molecules; hydrogens are hidden where classes are, but for the task `geometry`."""
        mask, count = batch.node_mask, batch.num_molecules
        shares = torch.tensor([getattr(self, entry.name) for entry in fields(self)], device=mask.device)
        rows = torch.multinomial(shares, count, replacement=True, generator=generator)
        _, part, apart, graph, geometry, composition, settle = (
            (rows == number)[:, None] for number in range(len(shares))
        )
        pos, atom, bond = (times(count, generator)[:, None].expand(mask.shape) for _ in range(3))
        atom, bond = torch.where(apart, atom, pos), torch.where(apart, bond, pos)
        uniform, coin, other = torch.rand(3, count, 1, generator=generator, device=mask.device)
        known = (part | (settle & (coin < 1 / 3))) & known_part(batch, generator)
        zero, one = torch.zeros((), device=mask.device), torch.ones((), device=mask.device)
        low = (_SETTLING * uniform.square()).clamp(min=MIN_LEVEL)
        shown = torch.where(other < _HIDDEN, one, times(count, generator)[:, None]).expand(mask.shape)
        hydrogen = torch.where(graph, pos, torch.where(settle, shown, one))
        return NoiseLevel(
            pos=torch.where(known | geometry, zero, torch.where(settle, low, pos)),
            atom=torch.where(known | graph | settle | composition | (geometry & (coin < 0.5)), zero, atom),
            bond=torch.where(
                (known[:, :, None] & known[:, None]) | (graph | settle)[..., None],
                zero,
                bond[..., None].expand(*mask.shape, mask.shape[1]),
            ),
            hydrogen=torch.where(known | geometry, zero, hydrogen),
        )


def known_part(batch: MolBatch, generator: torch.Generator) -> Tensor:
    """Atoms [B, N] to be taken as known: some, but not all, of every molecule of at least two atoms."""
    mask, count, device = batch.node_mask, batch.num_molecules, batch.node_mask.device
    noise = torch.rand(mask.shape, generator=generator, device=device)
    size = mask.sum(1)
    low, high = _KNOWN_SHARE
    share = low + (high - low) * torch.rand(count, generator=generator, device=device)
    number = torch.minimum((share * size).round().long().clamp(min=1), size - 1)[:, None]
    kind = torch.rand(count, 1, generator=generator, device=device)
    root = (torch.rand(count, generator=generator, device=device) * size).long()
    # Atoms are ranked by their distance in bonds from a random one, those of equal distance at random.
    score = torch.where(kind < 0.75, hops(batch.bond, root) + noise, noise)
    rank = score.masked_fill(~mask, float("inf")).argsort(1).argsort(1)
    return mask & torch.where((kind >= 0.5) & (kind < 0.75), rank >= size[:, None] - number, rank < number)


def hops(bond: Tensor, root: Tensor) -> Tensor:
    """Bonds [B, N] on the shortest way from atom `root` [B], by bond orders [B, N, N]; N where there is none."""
    size = bond.shape[1]
    adjacency = (bond > 0).float()
    reached = torch.nn.functional.one_hot(root, size).float()
    distance = torch.where(reached > 0, 0, size)
    for step in range(1, size):
        wider = ((adjacency @ reached[..., None]).squeeze(-1) + reached > 0).float()
        if torch.equal(wider, reached):
            break
        distance = torch.where((wider > 0) & (reached == 0), step, distance)
        reached = wider
    return distance
