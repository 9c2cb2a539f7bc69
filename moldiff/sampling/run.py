"""One run of a trained model: molecules are drawn, judged and handed over in the order of their index.

A run that was ended goes on from the file that it was writing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from rdkit import Chem

import moldiff
from moldiff.diffusion.pretrained import PretrainedModel
from moldiff.errors import MoldiffError
from moldiff.evaluation.metric import MetricResult
from moldiff.evaluation.metrics.druglike import COLUMNS, first_alert
from moldiff.evaluation.metrics.novelty import NoveltyIndex
from moldiff.molecules import identity
from moldiff.molecules.formats.record import Value
from moldiff.molecules.formats.writer import FinishedRecords
from moldiff.molecules.molecule import Status
from moldiff.sampling.config import SamplingConfig
from moldiff.sampling.drawn_blocks import DrawnBlocks
from moldiff.sampling.molecule_sampler import IndexBlocks, MoleculeSampler, choose_workers, draw_blocks, with_trial
from moldiff.sampling.sample import RunCounts, Sample
from moldiff.sampling.similarity import SimilaritySearch
from moldiff.tasks.task import Admission

_NOT_ALWAYS = ("task", "precision", "ph", "relax")
"""Settings that records have only where they differ from the default."""


class ResumePoint(NamedTuple):
    """What an interrupted run had finished."""

    kept: int  # molecules it had kept
    behind: int  # index of the first molecule that it had not dealt with
    seen: frozenset[str] = frozenset()  # normalised keys of the molecules that it kept


@dataclass(eq=False, repr=False)
class SamplingRun:
    """Iterating draws the molecules and yields those that are kept; nothing of them stays in memory but their keys.

    Where they are ranked by likeness, all stay, and the likest come out at the end.
    """

    n: int  # molecules to keep
    max_draws: int  # give up after so many
    config: SamplingConfig
    molecules: MoleculeSampler  # how they are drawn
    checkpoint: PretrainedModel  # where the model came from
    novelty: NoveltyIndex | None  # index of the training molecules, if the model has one
    asked: Mapping[str, Any]  # what is asked for beside the size, in JSON's types
    search: SimilaritySearch | None  # how they are ranked; None = they are not
    done: ResumePoint  # what is finished already; its molecules are not drawn again
    saved: DrawnBlocks | None = None  # molecules that are drawn already
    on_progress: Callable[[float], None] | None = None  # called with the number of those kept, in fractions
    kept: int = 0  # so far, those of `done` included
    interrupted: bool = False  # by Ctrl-C
    counts: RunCounts = field(default_factory=RunCounts)  # of all molecules drawn
    hazards: list[str] = field(default_factory=list)  # delivered molecules of a hazardous class
    unscored: list[str] = field(default_factory=list)  # delivered molecules without a score, and why

    def __repr__(self) -> str:
        return f"<SamplingRun of {self.checkpoint.name}: {self.kept} of {self.n} kept, {self.drawn} drawn>"

    @property
    def drawn(self) -> int:
        """Molecules drawn by this run, the rejected ones included."""
        return self.counts.drawn

    @property
    def complete(self) -> bool:
        return self.kept >= self.n and not self.interrupted

    @property
    def num_wanted(self) -> int:
        """Molecules that are kept of all rounds together."""
        return self.n * (1 if self.search is None else 1 + self.search.likeness.rounds)

    def results(self) -> list[MetricResult]:
        """Numbers over all molecules drawn by this run."""
        return self.counts.results(self.novelty, self.molecules.filters, self.config.columns)

    def notes(self) -> Sequence[str]:
        """What the run made of what it was given, a line each."""
        notes = [*self.molecules.task.notes(), *(() if self.search is None else self.search.notes)]
        if self.config.candidates > 1 and self.molecules.choice is None:
            notes.append(f"each molecule is the surest of {self.config.candidates} that were drawn for it")
        if self.unscored:
            notes.append(f"warning: {len(self.unscored)} molecules have no score: {self.unscored[0]}")
        if self.hazards:
            found = f"{len(self.hazards)} molecules are of a hazardous class, marked in their records"
            more = "filters=[hazard] refuses such, see docs/responsible_use.md"
            notes.append(f"warning: {found}: {self.hazards[0]}; {more}")
        return notes

    def __iter__(self) -> Generator[Sample, None, None]:
        """Draw; Ctrl-C ends the iteration, and what was not handed over until then is lost."""
        samples = self.round(self.molecules) if self.search is None else self.search.ranked(self)
        try:
            for sample in samples:
                yield self._delivered(sample)
        finally:
            samples.close()
            if self.molecules.score is not None:
                self.molecules.score.close()

    def round(self, molecules: MoleculeSampler, number: int = 0) -> Generator[Sample, None, None]:
        """Draw until n are kept; each round of a ranking, by its number, has indices of its own."""
        first, before = self.config.first + number * self.max_draws, number * self.n
        done = ResumePoint(0, first) if number else self.done
        self.kept, seen, drawn_before, shown = done.kept, set(done.seen), self.drawn, 0.0
        if self.complete:
            return
        workers = choose_workers(molecules, first, self.n) if self.config.workers is None else self.config.workers
        if self.config.arithmetic is None:
            molecules = with_trial(molecules, first, self.n - done.kept, workers)

        def on_fraction(fraction: float) -> None:
            """Tell how many are kept, counting on that share of those under way that was kept so far."""
            nonlocal shown
            if self.on_progress is not None:
                share = (self.kept - done.kept + 1) / (self.drawn - drawn_before + 1)
                shown = max(shown, min(self.n, self.kept + fraction * share))
                self.on_progress(before + shown)

        blocks = IndexBlocks.of(molecules, first, self.n, self.max_draws)
        draw = draw_blocks if self.saved is None else self.saved.draw
        drawing = draw(molecules, blocks, behind=done.behind, num_workers=workers, on_fraction=on_fraction)
        admission = molecules.task.admission(self.n)
        try:
            for block in drawing:
                for drawn in block:
                    if drawn.index < done.behind:
                        continue
                    sample = self._judged(drawn, seen)
                    if self._is_wanted(sample) and self._is_admitted(sample, admission):
                        self.kept += 1
                        seen.add(str(sample.verdict.canonical))
                        yield sample
                    if self.kept >= self.n:
                        return
                on_fraction(0.0)
        except KeyboardInterrupt:
            self.interrupted = True  # what is finished was handed over, and the caller can see that it is not complete
        finally:
            drawing.close()

    def _judged(self, sample: Sample, seen: Collection[str]) -> Sample:
        """Count a drawn molecule and say what the run knows of it."""
        self.counts.draw(sample)
        name = f"{self.checkpoint.name}-{self.config.seed}-{sample.index}"
        molecule, key, known = replace(sample.molecule, name=name), sample.verdict.canonical, dict[str, Any]()
        if key is not None:
            known["unique"] = key not in seen
            if self.novelty is not None:
                known["novel"] = not self.novelty.contains(key)
        argmax = molecule if sample.argmax is sample.molecule else replace(sample.argmax, name=name)
        if sample.unrelaxed is not None:
            known["unrelaxed"] = replace(sample.unrelaxed, name=name)
        origin = {**self.settings(), "index": sample.index, "size": molecule.num_heavy_atoms}
        return replace(sample, molecule=molecule, argmax=argmax, origin=origin, **known)

    def settings(self) -> dict[str, str | int | float]:
        """What the records of all molecules of the run have in common."""
        sampler, relax = self.molecules.sampler, self.config.relax
        found: dict[str, str | int | float | None] = {
            "version": moldiff.__version__,
            "model": self.checkpoint.name,
            "weights": self.checkpoint.weights_hash,
            "seed": self.config.seed,
            "steps": sampler.num_steps,
            "decode": self.config.decode,
            "ph": None if self.config.ph is None else f"{self.config.ph:g}",
            "relax": None if relax == "none" else relax,
            "sampler": json.dumps(asdict(sampler)),
            "task": json.dumps(self.asked) if self.asked else None,
            "precision": "bfloat16" if self.molecules.arithmetic.bfloat16 else None,
        }
        return {name: value for name, value in found.items() if value is not None}

    def _is_wanted(self, sample: Sample) -> bool:
        is_valid = sample.verdict.canonical is not None
        is_sound = is_valid and sample.unsound is None
        has = {"valid": is_valid, "sound": is_sound, "unique": sample.unique, "novel": sample.novel}
        return all(has[item] for item in self.config.keep)

    def _is_admitted(self, sample: Sample, admission: Admission | None) -> bool:
        """Whether it is what the task asked for and passes the filters; otherwise the reason is counted."""
        refusal = sample.refusal
        if refusal is None and sample.failed_filters:
            self.counts.failed[sample.failed_filters] += 1
            return False
        if refusal is None and admission is not None:
            finite = sample.molecule.is_finite
            refusal = admission.admit(sample.index, sample.molecule) if finite else str(Status.NON_FINITE)
        if refusal is not None:
            self.counts.missed[refusal] += 1
        else:
            self.counts.keep(sample)
        return refusal is None

    def _delivered(self, sample: Sample) -> Sample:
        """A molecule with what known lists say of it, and with a mark where it is of a hazardous class."""
        smiles, values = sample.verdict.strict, dict[str, Value | None]()  # lists hold molecules without charges
        if problem := sample.task.get("score_problem"):
            self.unscored.append(f"{sample.molecule.name} ({problem})")
        if smiles is not None and (hazard := first_alert("HAZARD", Chem.MolFromSmiles(smiles))):
            values["hazard"] = hazard
            self.hazards.append(f"{sample.molecule.name} ({hazard})")
        if self.config.columns:
            found = {name: None if smiles is None else COLUMNS[name][0](smiles) for name in self.config.columns}
            self.counts.look_up(found)
            values |= found
        return replace(sample, task={**sample.task, **values}) if values else sample

    def resumed(self, finished: FinishedRecords, path: str | Path) -> SamplingRun:
        """This run, not begun, behind the records that one with the same options had written to `path`.

        Raises:
            MoldiffError: for records that the run would not have written.
        """
        begun = [*finished.fields, *finished.rest]
        if not begun:
            return self
        if self.molecules.task.admission(self.n) is not None:
            raise MoldiffError("resume: a task that decides on several molecules together cannot be continued")
        indices = self._checked(begun, Path(path))[: len(finished)]
        if not indices:
            return self
        behind = indices[-1] + 1
        # With nothing required, those that could not be written (a coordinate that is not finite) were kept as well.
        kept = len(indices) if self.config.keep or self.molecules.filters else behind - self.config.first
        drawn = (record.get("drawn_SMILES", record.get("SMILES")) for record in finished.fields)
        keys = (identity.canonical_key(smiles) for smiles in drawn if smiles is not None)
        return replace(self, done=ResumePoint(kept, behind, frozenset(keys)))

    def _checked(self, fields: Sequence[Mapping[str, str]], path: Path) -> list[int]:
        """The indices of the records, if the run would have written them."""
        indices: list[int] = []
        settings = {name: " ".join(str(value).split()) for name, value in self.settings().items()}  # as written
        for number, record in enumerate(fields, start=1):
            where = f"resume: {path}: record {number}"
            for name in (*settings, *_NOT_ALWAYS):
                got, expected = record.get(name), settings.get(name)
                if got != expected:
                    raise MoldiffError(f"{where} was drawn with {name}={got}, expected {expected}")
            index = int(record["index"]) if record.get("index", "").isdecimal() else -1
            if index < (indices[-1] + 1 if indices else self.config.first):
                raise MoldiffError(f"{where} has index {record.get('index')}, expected a larger one")
            has = {"valid": "SMILES" in record, "sound": record.get("status") == "ok"}
            missing = [one for one in sorted(self.config.keep) if not has.get(one, record.get(one) == "true")]
            if missing:
                raise MoldiffError(f"{where} is not {missing[0]}, expected one of a run with the same `keep`")
            indices.append(index)
        size, got = self.molecules.spec(indices[-1]).size, fields[-1].get("size")
        if got != str(size):
            raise MoldiffError(f"{where} has {got} heavy atoms, expected {size} by the options")
        return indices
