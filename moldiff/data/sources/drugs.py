"""Drug-like molecules: ligands of the Protein Data Bank and molecules of MOSES, all with computed conformers.

The ligands are from the Chemical Component Dictionary (Westbrook et al. 2015, doi:10.1093/bioinformatics/btu789) that
the package `biotite` carries; the MOSES benchmark (Polykovskiy et al. 2020, doi:10.3389/fphar.2020.565644) comes with
the package `molsets`.
"""

import gzip
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rdkit
from rdkit import Chem, rdBase
from rdkit.Chem.Scaffolds import MurckoScaffold

from moldiff.data.curation import CurationRules
from moldiff.data.sources import SourceRecord, check_shares
from moldiff.errors import MoldiffError
from moldiff.molecules import conformers
from moldiff.molecules.convert import explicit_atom, one_line, set_positions, stereo_of_coordinates
from moldiff.molecules.descriptors import DESCRIPTORS, descriptors
from moldiff.molecules.formats.record import guarded
from moldiff.molecules.formats.smiles import smiles_record
from moldiff.molecules.identity import both_keys, key_hash, strict_key
from moldiff.molecules.molecule import InvalidMolecule, Status, status_of
from moldiff.processes import Failure, stream_limited

LIGANDS, MOSES = "PDB ligand", "MOSES"  # where a molecule comes from; also notes, so that the prepared set counts both
ELEMENTS = frozenset({"H", "C", "N", "O", "F", "P", "S", "Cl", "Br", "I"})
MIN_HEAVY_ATOMS, MAX_HEAVY_ATOMS = 10, 30

RULE = (
    "by Murcko scaffold (without stereo; a molecule without rings is its own): test where the 64-bit BLAKE2b number of "
    "'SEED SCAFFOLD', scaled to [0, 1), is below test_share, valid where below test_share + valid_share, else train"
)
"""How `part_of` decides, so that test molecules have ring systems that training never showed; a molecule's part does
not depend on the others."""

_MIXED = 30_000  # molecules of MOSES that are spread among the ligands; more come behind, so that parts stay of use
_FILES = {LIGANDS: "biotite/components.bcif", MOSES: "moses/train.csv"}
_ORDERS = {"SING": Chem.BondType.SINGLE, "DOUB": Chem.BondType.DOUBLE, "TRIP": Chem.BondType.TRIPLE}
_IDEAL = tuple(f"pdbx_model_Cartn_{axis}_ideal" for axis in "xyz")
_scaffold: Any = MurckoScaffold.GetScaffoldForMol  # untyped part of RDKit


def scaffold(key: str) -> str:
    """SMILES of the Murcko scaffold (Bemis and Murcko 1996) of a canonical key; the key itself without rings.

    >>> scaffold("CCOc1ccccc1"), scaffold("CCO")
    ('c1ccccc1', 'CCO')
    """
    with rdBase.BlockLogs():
        found = str(Chem.MolToSmiles(_scaffold(Chem.MolFromSmiles(key)), isomericSmiles=False))
    return found or key


def part_of(key: str, *, valid_share: float, test_share: float, seed: int) -> str:
    """The part, "train", "valid" or "test", of the molecule with a canonical key, by `RULE`."""
    share = (key_hash(f"{seed} {scaffold(key)}") + 2**63) / 2**64
    return "test" if share < test_share else "valid" if share < test_share + valid_share else "train"


class Component(NamedTuple):
    """One entry of the Chemical Component Dictionary."""

    name: str
    status: str  # "REL" = released
    kind: str  # such as "NON-POLYMER"
    elements: tuple[str, ...]
    charges: tuple[int, ...]
    pos: np.ndarray  # ideal coordinates (Å) [n, 3], NaN where there are none
    bonds: tuple[tuple[int, int, str], ...]  # ends and order, such as "DOUB"


class Dictionary:
    """The entries of the dictionary, in its order. Raises MoldiffError when the package `biotite` is not installed."""

    def __init__(self) -> None:
        if find_spec("biotite") is None:
            advice = 'pip install "moldiff[drugs]"'
            raise MoldiffError(f"data=drugs needs the package biotite, which is not installed: {advice}")
        from biotite.structure.info.ccd import get_ccd

        block = get_ccd()
        entries, atoms, bonds = (block[name] for name in ("chem_comp", "chem_comp_atom", "chem_comp_bond"))
        columns = [entries[name].as_array() for name in ("id", "pdbx_release_status", "type")]
        self._facts = list({facts[0]: tuple(map(str, facts)) for facts in zip(*columns, strict=True)}.values())
        self._atoms = _ranges(atoms["comp_id"].as_array())
        self._bonds = _ranges(bonds["comp_id"].as_array())
        self._symbols, self._labels = (atoms[name].as_array() for name in ("type_symbol", "atom_id"))
        self._charges = atoms["charge"].as_array(int, masked_value=0)
        self._pos = np.stack([atoms[name].as_array(float, masked_value=np.nan) for name in _IDEAL], axis=1)
        self._ends = [bonds[name].as_array() for name in ("atom_id_1", "atom_id_2", "value_order")]

    def __len__(self) -> int:
        return len(self._facts)

    def __getitem__(self, index: int) -> Component:
        name, status, kind = self._facts[index]
        atoms, bonds = self._atoms.get(name, slice(0, 0)), self._bonds.get(name, slice(0, 0))
        place = {str(label): k for k, label in enumerate(self._labels[atoms].tolist())}
        ends = zip(*(column[bonds].tolist() for column in self._ends), strict=True)
        elements = tuple("H" if symbol == "D" else symbol.capitalize() for symbol in self._symbols[atoms].tolist())
        found = tuple((place[first], place[second], str(order)) for first, second, order in ends)
        charges = tuple(self._charges[atoms].tolist())
        return Component(name, status, kind, elements, charges, self._pos[atoms], found)


def _ranges(names: np.ndarray) -> Mapping[str, slice]:
    """Where the rows of each name are; those of one name are together."""
    starts = np.flatnonzero(np.r_[True, names[1:] != names[:-1]]).tolist()
    return {str(names[start]): slice(start, end) for start, end in pairwise([*starts, len(names)])}


def smiles_of(component: Component) -> str | InvalidMolecule:
    """Isomeric SMILES of an entry that is a drug-like ligand, stereo read off its ideal coordinates; else why not."""
    if reason := _unfit(component):
        return InvalidMolecule(Status.UNREADABLE, reason)
    mol = _drawn(component)
    try:
        with rdBase.BlockLogs():
            Chem.SanitizeMol(mol)
            if any(atom.GetNumRadicalElectrons() for atom in mol.GetAtoms()):
                return InvalidMolecule(Status.RADICAL, "unpaired electron")
            fragments = len(Chem.GetMolFrags(mol))
            if fragments > 1:
                return InvalidMolecule(Status.DISCONNECTED, f"{fragments} fragments, expected one")
            stereo_of_coordinates(mol)
            return str(Chem.MolToSmiles(Chem.RemoveHs(mol)))
    except Chem.MolSanitizeException as error:
        return InvalidMolecule(Status.UNSANITIZABLE, one_line(error))


def _unfit(component: Component) -> str:
    """Why an entry is not among the drug-like ligands, "" if it is."""
    heavy = sum(element != "H" for element in component.elements)
    charge = sum(component.charges)
    others = sorted(set(component.elements) - ELEMENTS)
    checks: tuple[tuple[Any, str], ...] = (
        (component.status != "REL", "not a released entry"),
        (component.kind.upper() != "NON-POLYMER", "part of a polymer"),
        (others, f"element {', '.join(others)}"),
        ("C" not in component.elements, "no carbon"),
        (heavy < MIN_HEAVY_ATOMS, f"fewer than {MIN_HEAVY_ATOMS} heavy atoms"),
        (heavy > MAX_HEAVY_ATOMS, f"more than {MAX_HEAVY_ATOMS} heavy atoms"),
        (charge, "charged"),
        (not np.isfinite(component.pos).all(), "no ideal coordinates"),
        (any(order not in _ORDERS for _, _, order in component.bonds), "bond of unknown order"),
    )
    return next((reason for failed, reason in checks if failed), "")


def _drawn(component: Component) -> Chem.Mol:
    """The entry as it stands in the dictionary, not sanitised."""
    mol = Chem.RWMol()
    for element, charge in zip(component.elements, component.charges, strict=True):
        mol.AddAtom(explicit_atom(element, charge))
    for first, second, order in component.bonds:
        mol.AddBond(first, second, _ORDERS[order])
    set_positions(mol, component.pos)
    return mol.GetMol()


class Entry(NamedTuple):
    """One molecule to make: an entry of the dictionary or a SMILES, and its number there, from 1."""

    number: int
    name: str
    molecule: Component | str

    @property
    def origin(self) -> str:
        return MOSES if isinstance(self.molecule, str) else LIGANDS


@dataclass(frozen=True, kw_only=True)
class DrugWork:
    """What a worker process does with an entry: conformer, of the same seed as `part_of`, properties, keys and part."""

    valid_share: float
    test_share: float
    seed: int

    def __call__(self, entry: Entry) -> SourceRecord:
        """The record of an entry; whatever goes wrong is its reason."""
        found = guarded(self._work, entry)
        return _rejected(entry, replace(found, status=Status.FAILED)) if isinstance(found, InvalidMolecule) else found

    def _work(self, entry: Entry) -> SourceRecord:
        text = entry.molecule if isinstance(entry.molecule, str) else smiles_of(entry.molecule)
        if isinstance(text, InvalidMolecule):
            return _rejected(entry, text)
        treatment = CurationRules(fragments="reject", max_heavy_atoms=MAX_HEAVY_ATOMS, seed=self.seed)
        outcome, notes = treatment.apply(smiles_record(entry.number, text, entry.name, {}))
        if isinstance(outcome, InvalidMolecule):
            return _rejected(entry, outcome)
        if conformers.ETKDG not in notes:
            reason = "MMFF94s has no parameters, so not at the set's level of geometry"
            return _rejected(entry, InvalidMolecule(Status.FAILED, reason))
        keys = both_keys(outcome)
        if entry.origin == LIGANDS and keys[1] != strict_key(text):
            return _rejected(entry, InvalidMolecule(Status.FAILED, "the conformer has other stereocentres"))
        outcome = replace(outcome, name=entry.name, properties=descriptors(Chem.MolFromSmiles(keys[1])))
        part = part_of(keys[0], **asdict(self))
        notes = (entry.origin, *notes)
        return SourceRecord(entry.number, entry.name, outcome, _FILES[entry.origin], keys, notes, part)


@dataclass(kw_only=True, eq=False)
class Drugs:
    """PDB ligands and MOSES molecules as a source for `moldiff.data.prepare.prepare`.

    The ligands are the released, neutral non-polymers with 10 to 30 heavy atoms of H C N O F P S Cl Br I, with their
    stereo; of MOSES, a random part of the training molecules. All get coordinates by ETKDGv3 and MMFF94s, so that
    there is one level of geometry. The order is fixed and random, ligands among molecules of MOSES, so that the start
    of the set is a fair part of it.

    Raises MoldiffError when a package is not installed, or an option has a value that it cannot have.
    """

    num_moses: int = 300_000  # molecules of MOSES
    valid_share: float = 0.05  # of the scaffolds, as of `test_share`, see `RULE`
    test_share: float = 0.05
    seed: int = 0  # of the order, the conformers and the parts
    parts: str | Path | None = ""  # folder for what is finished; "" = beside the result, and deleted when that is made
    limit: int | None = None  # read only the first `limit` records; None = all
    num_workers: int = 2  # processes; 0 = none, and no time limit
    time_limit: float = 60.0  # seconds of processor time that a molecule may take

    def __post_init__(self) -> None:
        check_shares(self.valid_share, self.test_share)
        self.name, self.properties = "drugs", {name: descriptor.unit for name, descriptor in DESCRIPTORS.items()}
        self.parts = Path(self.parts) if self.parts else None
        self._work = DrugWork(valid_share=self.valid_share, test_share=self.test_share, seed=self.seed)
        self._moses, self._dictionary = _moses_smiles(), Dictionary()
        if not 0 <= self.num_moses <= len(self._moses):
            raise MoldiffError(f"data.num_moses: got {self.num_moses}, expected from 0 to {len(self._moses)}")

    def __len__(self) -> int:
        total = len(self._dictionary) + self.num_moses
        return total if self.limit is None else min(self.limit, total)

    def fingerprint(self) -> str:
        """A digest of the packages' versions and of all options."""
        return _digest(self.parts_key(), self.num_moses, self.limit)

    def parts_key(self) -> str:
        """The same of what decides on each record and their order, but not on how many there are."""
        return _digest(sorted(self._source().items()), self._work, min(self.num_moses, _MIXED), self.time_limit)

    def describe(self) -> dict[str, Any]:
        return {
            "source": self._source(),
            "geometry": conformers.GEOMETRY,
            "hydrogens": "explicit",
            "split": RULE,
            "options": {
                "num_moses": self.num_moses,
                "min_heavy_atoms": MIN_HEAVY_ATOMS,
                "max_heavy_atoms": MAX_HEAVY_ATOMS,
                **asdict(self._work),
                "limit": self.limit,
                "time_limit": self.time_limit,
            },
        }

    def records(self, start: int = 0) -> Iterator[SourceRecord]:
        """Every record once, in order, from number `start` on."""
        entries = islice(self._entries(start), max(0, len(self) - start))
        for entry, result in stream_limited(self._work, entries, num_workers=self.num_workers, limit=self.time_limit):
            if isinstance(result, Failure):
                result = _rejected(entry, InvalidMolecule(status_of(result), result.reason))
            yield result

    def splits(self, keys: np.ndarray) -> dict[str, np.ndarray]:
        """Never called, for every record says to which part it belongs."""
        raise NotImplementedError

    def _source(self) -> dict[str, str]:
        return {name: version(name) for name in ("biotite", "molsets")} | {"rdkit": rdkit.__version__}

    def _entries(self, start: int) -> Iterator[Entry]:
        num_ligands, mixed = len(self._dictionary), min(self.num_moses, _MIXED)
        generator = np.random.default_rng(self.seed)
        drawn = generator.permutation(len(self._moses))
        order = generator.permutation(num_ligands + mixed)
        for place in range(start, num_ligands + self.num_moses):
            index = int(order[place]) if place < len(order) else place
            if index < num_ligands:
                component = self._dictionary[index]
                yield Entry(index + 1, f"pdb_{component.name}", component)
            else:
                line = int(drawn[index - num_ligands])
                yield Entry(line + 1, f"moses_{line + 1}", self._moses[line])


def _digest(*facts: Any) -> str:
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _rejected(entry: Entry, problem: InvalidMolecule) -> SourceRecord:
    return SourceRecord(entry.number, entry.name, problem, _FILES[entry.origin])


def _moses_smiles() -> list[str]:
    """SMILES of the training part of MOSES."""
    spec = find_spec("moses")  # not imported, for the package's __init__ needs libraries that are of no use here
    folders = list(spec.submodule_search_locations or []) if spec else []
    table = Path(*folders[:1], "dataset", "data", "train.csv.gz")
    if not folders or not table.is_file():
        advice = "pip install --no-deps molsets"  # without its dependencies, for pomegranate no longer builds
        raise MoldiffError(f"data=drugs needs the package molsets, which is not installed: {advice}")
    with gzip.open(table, "rt", encoding="utf-8") as file:
        next(file)  # the header
        return [line.partition(",")[0].strip() for line in file]
