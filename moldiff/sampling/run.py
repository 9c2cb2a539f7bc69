"""One run of a trained model: molecules are drawn, judged and handed over in the order of their index.

A run that was ended goes on from the file that it was writing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from moldiff.diffusion.pretrained import PretrainedModel
from moldiff.errors import MoldiffError
from moldiff.evaluation.metric import MetricResult
from moldiff.evaluation.metrics.druglike import COLUMNS
from moldiff.evaluation.metrics.novelty import NoveltyIndex
from moldiff.molecules import identity
from moldiff.molecules.formats.writer import FinishedRecords
from moldiff.molecules.molecule import Status
from moldiff.sampling.config import SamplingConfig
from moldiff.sampling.counts import RunCounts
from moldiff.sampling.molecule_sampler import MoleculeSampler
from moldiff.sampling.sample import Sample
from moldiff.sampling.similarity import SimilaritySearch
from moldiff.sampling.workers import IndexBlocks, choose_workers, draw_blocks, with_trial
from moldiff.tasks.task import Admission


@dataclass(frozen=True)
class ResumePoint:
    """What an interrupted run had finished.

    Attributes:
        kept: molecules it had kept.
        behind: index of the first molecule that it had not dealt with.
        seen: normalised keys of the molecules that it kept.
    """

    kept: int
    behind: int
    seen: frozenset[str] = frozenset()


@dataclass(eq=False)
class SamplingRun:
    """Iterating draws the molecules and yields those that are kept; nothing of them stays in memory but their keys.

    Where they are ranked by likeness, all stay, and the likest come out at the end.

    Attributes:
        n: molecules to keep.
        max_draws: give up after so many.
        config: the options of the run.
        molecules: how they are drawn.
        checkpoint: where the model came from.
        novelty: index of the training molecules, if the model has one.
        asked: what is asked for beside the size, in JSON's types.
        search: how they are ranked; None = they are not.
        done: what is finished already; its molecules are not drawn again.
        on_progress: called with the number of molecules kept so far, in fractions; see `num_wanted`.
        kept: molecules kept so far, those of `done` included.
        interrupted: Ctrl-C ended the run.
        counts: of all molecules drawn.
    """

    n: int
    max_draws: int
    config: SamplingConfig
    molecules: MoleculeSampler
    checkpoint: PretrainedModel
    novelty: NoveltyIndex | None
    asked: Mapping[str, Any]
    search: SimilaritySearch | None
    done: ResumePoint
    on_progress: Callable[[float], None] | None = None
    kept: int = 0
    interrupted: bool = False
    counts: RunCounts = field(default_factory=RunCounts)

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
        return [*self.molecules.task.notes(), *(() if self.search is None else self.search.notes)]

    def __iter__(self) -> Generator[Sample, None, None]:
        """Draw; Ctrl-C ends the iteration, and what was not handed over until then is lost."""
        samples = self.round(self.molecules) if self.search is None else self.search.ranked(self)
        try:
            for sample in samples:
                yield self._with_columns(sample)
        finally:
            samples.close()

    def round(self, molecules: MoleculeSampler, number: int = 0) -> Generator[Sample, None, None]:
        """Draw until n are kept.

        Args:
            molecules: how they are drawn.
            number: of the round of a ranking, each of which has indices of its own.
        """
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
        drawing = draw_blocks(molecules, blocks, behind=done.behind, num_workers=workers, on_fraction=on_fraction)
        admission = molecules.task.admission(self.n)
        try:
            for block in drawing:
                for drawn in block:
                    if drawn.index < done.behind:
                        continue
                    sample = self._judged(drawn, seen)
                    if self._is_wanted(sample) and self._is_admitted(sample, admission):
                        self.kept += 1
                        yield sample
                    if self.kept >= self.n:
                        return
                on_fraction(0.0)
        except KeyboardInterrupt:
            self.interrupted = True  # what is finished was handed over, and the caller can see that it is not complete
        finally:
            drawing.close()

    def _judged(self, sample: Sample, seen: set[str]) -> Sample:
        """Count a drawn molecule and say what the run knows of it."""
        self.counts.draw(sample)
        key = sample.verdict.canonical
        name = f"{self.checkpoint.name}-{self.config.seed}-{sample.index}"
        molecule = replace(sample.molecule, name=name)
        judged = replace(
            sample,
            molecule=molecule,
            argmax=molecule if sample.argmax is sample.molecule else replace(sample.argmax, name=name),
            unique=None if key is None else key not in seen,
            novel=None if key is None or self.novelty is None else not self.novelty.contains(key),
            origin={**self.settings(), "index": sample.index, "size": molecule.num_heavy_atoms},
        )
        if key is not None:
            seen.add(key)
        return judged

    def settings(self) -> dict[str, str | int | float]:
        """What the records of all molecules of the run have in common."""
        sampler = self.molecules.sampler
        asked = {"task": json.dumps(self.asked)} if self.asked else {}
        asked |= {"precision": "bfloat16"} if self.molecules.arithmetic.bfloat16 else {}
        return {
            "model": self.checkpoint.name,
            "weights": self.checkpoint.weights_hash,
            "seed": self.config.seed,
            "steps": sampler.num_steps,
            "decode": self.config.decode,
            "sampler": json.dumps(asdict(sampler)),
            **asked,
        }

    def _is_wanted(self, sample: Sample) -> bool:
        is_valid = sample.verdict.canonical is not None
        is_sound = is_valid and sample.unsound is None
        has = {"valid": is_valid, "sound": is_sound, "unique": bool(sample.unique), "novel": bool(sample.novel)}
        return all(has[item] for item in self.config.keep)

    def _is_admitted(self, sample: Sample, admission: Admission | None) -> bool:
        """Whether it is what the task asked for and passes the filters; otherwise the reason is counted."""
        refusal = sample.refusal
        if refusal is None and sample.failed_filters:
            self.counts.fail(sample.failed_filters)
            return False
        if refusal is None and admission is not None:
            finite = sample.molecule.is_finite
            refusal = admission.admit(sample.index, sample.molecule) if finite else str(Status.NON_FINITE)
        if refusal is not None:
            self.counts.miss(refusal)
        else:
            self.counts.keep(sample)
        return refusal is None

    def _with_columns(self, sample: Sample) -> Sample:
        """A delivered molecule with what known lists say of it."""
        if not self.config.columns:
            return sample
        values = {
            name: None if sample.smiles is None else COLUMNS[name][0](sample.smiles) for name in self.config.columns
        }
        self.counts.look_up(values.items())
        return replace(sample, task={**sample.task, **values})

    def resumed(self, finished: FinishedRecords, path: str | Path) -> SamplingRun:
        """This run, not begun, behind the records that are finished; it ends with those of the uninterrupted run.

        Args:
            finished: what the first run, one with the same options, had written.
            path: where, for the message.

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
        return replace(self, done=ResumePoint(kept, behind, frozenset(_keys(finished.fields))))

    def _checked(self, fields: Sequence[Mapping[str, str]], path: Path) -> list[int]:
        """The indices of the records, if the run would have written them."""
        indices: list[int] = []
        settings = {name: " ".join(str(value).split()) for name, value in self.settings().items()}  # as written
        for number, record in enumerate(fields, start=1):
            where = f"resume: {path}: record {number}"
            for name, value in settings.items():
                if record.get(name) != value:
                    raise MoldiffError(f"{where} was drawn with {name}={record.get(name)}, expected {value}")
            index = int(record["index"]) if record.get("index", "").isdecimal() else -1
            if index < (indices[-1] + 1 if indices else self.config.first):
                raise MoldiffError(f"{where} has index {record.get('index')}, expected a larger one")
            missing = [item for item in sorted(self.config.keep) if not _has(record, item)]
            if missing:
                raise MoldiffError(f"{where} is not {missing[0]}, expected one of a run with the same `keep`")
            indices.append(index)
        size, got = self.molecules.spec(indices[-1]).size, fields[-1].get("size")
        if got != str(size):
            raise MoldiffError(
                f"resume: {path}: record {len(fields)} has {got} heavy atoms, expected {size} by the options"
            )
        return indices


def _has(record: Mapping[str, str], item: str) -> bool:
    has = {"valid": "SMILES" in record, "sound": record.get("status") == "ok"}
    return has.get(item, record.get(item) == "true")


def _keys(fields: Iterable[Mapping[str, str]]) -> Iterable[str]:
    return (identity.canonical_key(record["SMILES"]) for record in fields if "SMILES" in record)
