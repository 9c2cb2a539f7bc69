"""A prepared set as a PyTorch Geometric data set."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import numpy as np
from torch import Tensor, from_numpy

from moldiff.data.store import ATOM_FIELDS, BOND_FIELDS, in_slots

with warnings.catch_warnings():
    # PyG scripts a class while it is imported, which newer versions of torch deprecate.
    warnings.simplefilter("ignore", DeprecationWarning)
    from torch_geometric.data import Data, InMemoryDataset


class MoleculeGraphs(InMemoryDataset):  # type: ignore[misc]
    """M molecules in PyG's collated form: one `Data` of concatenated fields and the slices that part them.

    `graphs[i]` is a `Data` with `atomic_number`, `formal_charge`, `num_hydrogens` [n], `pos` [n, 3] (Å),
    `hydrogen_offset` [n, 4, 3] (Å), `edge_index` [2, m] with i < j, `bond_order` [m] and `y` [1, P]. Bonds are
    listed once; a message-passing network wants both directions, `torch_geometric.utils.to_undirected`.

    Args:
        flat: the arrays of `moldiff.data.store.pack`.
    """

    def __init__(self, flat: Mapping[str, np.ndarray]) -> None:
        super().__init__()
        offset = in_slots(flat["num_hydrogens"], flat["hydrogen_offset"])
        arrays = {name: flat[name] for name in (*ATOM_FIELDS, *BOND_FIELDS, "y")} | {"hydrogen_offset": offset}
        tensors = {name: from_numpy(array) for name, array in arrays.items()}
        fields = {name: t if t.is_floating_point() else t.long() for name, t in tensors.items()}
        atoms, bonds = from_numpy(flat["atom_slices"]), from_numpy(flat["bond_slices"])
        slices = dict.fromkeys((*ATOM_FIELDS, "hydrogen_offset"), atoms) | dict.fromkeys(BOND_FIELDS, bonds)
        self._data = Data(**fields)
        self.slices: dict[str, Tensor] = slices | {"y": from_numpy(np.arange(len(flat["y"]) + 1))}

    @property
    def num_molecules(self) -> int:
        return len(self.slices["y"]) - 1
