"""Protocol P3: bonds perceived by RDKit's `DetermineBonds` from elements, coordinates and the total charge.

What it finds depends on the version of RDKit and on its options, so both are part of the result's definition. It fails
on ordinary molecules (many nitroarenes) and does not return on others (several sulfates).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem import rdDetermineBonds

from moldiff.evaluation.metric import MetricOutput, MetricResult, count_statuses, finished
from moldiff.evaluation.molecule_set import MoleculeSet
from moldiff.molecules.convert import explicit_atom, set_positions
from moldiff.molecules.molecule import InvalidMolecule, Status, status_of
from moldiff.processes import Failure, OnProgress, run_limited

_EXPECTED = (Status.PERCEPTION_FAILED, Status.TIME_OUT, Status.DISCONNECTED)  # beside what was wrong before

_Task = tuple[np.ndarray, np.ndarray, int, str | None]
"""Atomic numbers [a], coordinates [a, 3] (Å), total charge (e) and SMILES of its own graph, if that is valid."""


class Perceived(NamedTuple):
    """What perception came to, and whether it is the molecule's own graph, stereo aside, if there are two graphs."""

    status: Status
    reason: str
    smiles: str | None = None
    same_graph: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Perception:
    """Protocol P3; the options from the second to the fourth are RDKit's."""

    charge: int | None = 0  # total charge that every molecule is said to have (e); None = the sum of its formal charges
    allow_charged_fragments: bool = True  # charges on atoms rather than unpaired electrons
    use_vdw: bool = False  # bonds where covalent radii times `cov_factor` touch, instead of "connect the dots"
    cov_factor: float = 1.3
    limit: float = 10.0  # seconds of processor time that a molecule may take
    num_workers: int | None = None

    needs = ("coordinates",)

    @property
    def name(self) -> str:
        """`p3`, or `p3[option=value,...]` with the options that differ from the default."""
        values = ((option, getattr(self, option.name)) for option in fields(self)[:4])
        texts = [
            f"{option.name.replace('_', '-')}={'own' if value is None else str(value).lower()}"
            for option, value in values
            if value != option.default
        ]
        return f"p3[{','.join(texts)}]" if texts else "p3"

    def __call__(
        self, molecules: MoleculeSet, reference: MoleculeSet | None = None, on_progress: OnProgress | None = None
    ) -> MetricOutput:
        outcomes = self.perceive(molecules, on_progress)
        columns = {f"{self.name}_{key}": [getattr(one, key) for one in outcomes] for key in Perceived._fields}
        options = asdict(self) | {"rdkit": rdBase.rdkitVersion}
        kept, left = finished(self.name, outcomes, lambda outcome: outcome.status is Status.INTERRUPTED)
        return MetricOutput([*self._results(kept), *left], columns, {}, options, bool(left))

    def perceive(self, molecules: MoleculeSet, on_progress: OnProgress | None = None) -> list[Perceived]:
        """The outcome of every record, in order."""
        problems = [molecules.problem(place) for place in range(len(molecules))]
        usable = [place for place, problem in enumerate(problems) if problem is None]
        options = {f.name: getattr(self, f.name) for f in fields(self)[1:4]}
        function, tasks = partial(perceive, **options), [self._task(molecules, place) for place in usable]
        found = run_limited(function, tasks, limit=self.limit, num_workers=self.num_workers, on_progress=on_progress)
        by_place = dict(zip(usable, found, strict=True))
        outcomes = [problem or by_place[place] for place, problem in enumerate(problems)]
        return [one if isinstance(one, Perceived) else Perceived(_status(one), one.reason) for one in outcomes]

    def _task(self, molecules: MoleculeSet, place: int) -> _Task:
        atoms, entry = molecules.atoms[place], molecules.entries[place]
        assert atoms is not None
        own = 0 if isinstance(entry, InvalidMolecule) else int(entry.formal_charge.sum())
        return *atoms, own if self.charge is None else self.charge, molecules.smiles[place]

    def _results(self, outcomes: Sequence[Perceived]) -> list[MetricResult]:
        name, total, statuses = self.name, len(outcomes), [outcome.status for outcome in outcomes]
        charge = "the sum of the formal charges" if self.charge is None else f"{self.charge}"
        method = f"touching radii times {self.cov_factor:g}" if self.use_vdw else "connect-the-dots"
        fragments = "allowed" if self.allow_charged_fragments else "not allowed"
        options = f"charge {charge}, {method}, charged fragments {fragments}, {self.limit:g} s"
        how = f"RDKit {rdBase.rdkitVersion} DetermineBonds ({options})"
        valid = statuses.count(Status.OK)
        perceived = valid + statuses.count(Status.DISCONNECTED)
        distinct = len({outcome.smiles for outcome in outcomes if outcome.status is Status.OK})
        compared = [outcome.same_graph for outcome in outcomes if outcome.same_graph is not None]
        results = [
            MetricResult(f"{name}_perceived", perceived, total, f"Molecules for which {how} succeeds, over all."),
            MetricResult(f"{name}_valid", valid, total, f"Molecules for which {how} gives one fragment, over all."),
            MetricResult(f"{name}_unique", distinct, valid, "Distinct SMILES of perceived graphs, over the P3-valid."),
            MetricResult(f"{name}_same_graph", sum(compared), len(compared), _SAME_GRAPH),
        ]
        ended = f"Molecules for which {how} ended with '{{status}}', over all."
        return [*results, *count_statuses(name, statuses, _EXPECTED, ended)]


_SAME_GRAPH = (
    "Molecules whose perceived graph is their own one (SMILES without stereo), over those whose own graph is P2-valid "
    "and for which perception succeeds."
)


def _status(problem: Failure | InvalidMolecule) -> Status:
    return status_of(problem, Status.PERCEPTION_FAILED) if isinstance(problem, Failure) else problem.status


def perceive(task: _Task, *, allow_charged_fragments: bool, use_vdw: bool, cov_factor: float) -> Perceived:
    """Perceive one molecule in this process, which may take for ever.

    Example:
        >>> water = np.array([[0, 0, 0.1173], [0, 0.7572, -0.4692], [0, -0.7572, -0.4692]])
        >>> task = np.array([8, 1, 1]), water, 0, "O"
        >>> perceive(task, allow_charged_fragments=True, use_vdw=False, cov_factor=1.3).smiles
        'O'
    """
    elements, pos, charge, smiles = task
    mol = Chem.RWMol()
    for atomic_number in elements.tolist():
        mol.AddAtom(explicit_atom(atomic_number))
    set_positions(mol, pos)
    options: Any = {"allowChargedFragments": allow_charged_fragments, "useVdw": use_vdw, "covFactor": cov_factor}
    with rdBase.BlockLogs():
        try:
            rdDetermineBonds.DetermineBonds(mol, charge=charge, **options)
            Chem.SanitizeMol(mol)
            plain = Chem.RemoveHs(mol)
        except (ValueError, RuntimeError) as error:
            return Perceived(Status.PERCEPTION_FAILED, " ".join(str(error).split()))
    text, fragments = str(Chem.MolToSmiles(plain)), len(Chem.GetMolFrags(mol))
    same = None if smiles is None else _flat(text) == _flat(smiles)
    if fragments > 1:
        return Perceived(Status.DISCONNECTED, f"{fragments} fragments, expected one", text, same)
    return Perceived(Status.OK, "", text, same)


def _flat(text: str) -> str:
    """The SMILES without stereo."""
    return str(Chem.MolToSmiles(Chem.MolFromSmiles(text), isomericSmiles=False))
