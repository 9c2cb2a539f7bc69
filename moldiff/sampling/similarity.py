"""Samples like a reference in shape and pharmacophore: ranked, and drawn again from near the best.

Ranking needs all molecules of a run, so they stay in memory and come out at the end, best first. A round of steering
noises the best ones part of the way, draws new molecules from there while what the run's task keeps stays as it is, and
goes on with the best of all.

Example:
    samples = rank(load("qm9").run(50), Likeness(reference="ligand.sdf", rounds=3))
    print(samples[0].smiles, samples[0].task["like_score"])
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from moldiff.errors import MoldiffError
from moldiff.evaluation.metrics.shape import Overlay, ShapeReference
from moldiff.evaluation.result import MetricResult
from moldiff.sampling.batch import Beginning
from moldiff.sampling.config import Likeness
from moldiff.sampling.filters import FilteredTask, ScreenedRun, asking, screened
from moldiff.sampling.run import SamplingRun
from moldiff.sampling.sample import SampledMolecule, Samples
from moldiff.tasks.analogues import Descendants, Parent
from moldiff.tasks.inputs import given
from moldiff.tasks.task import Task, description

_SCORE = "score (shape and pharmacophore, 0 to 1)"
_PARENTS = 0.1
"""Share of the molecules asked for from near which a round draws, unless their number is given."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A drawn molecule over the reference.

    Attributes:
        sample: as it was drawn, in its own frame (Å).
        overlay: the same over the reference.
        index: of the molecule of the first drawing that it descends from.
        number: of the round that it was drawn in; 0 = the first drawing.
    """

    sample: SampledMolecule
    overlay: Overlay
    index: int
    number: int

    def ranked(self, is_unique: bool) -> SampledMolecule:
        """The molecule in the reference's frame, its record with the score."""
        fields = {
            "like_score": self.overlay.score,
            "like_shape": self.overlay.shape,
            "like_pharmacophore": self.overlay.pharmacophore,
            "like_round": self.number,
        }
        sample = self.sample
        return replace(
            sample, molecule=self.overlay.molecule, unique=is_unique, task={**sample.task, **fields}, trajectory=None
        )


@dataclass(eq=False)
class _Ranking:
    """All candidates of a run and its rounds.

    Attributes:
        run: the first drawing.
        task: what its molecules are drawn for, filters apart.
        likeness: what they are to be like.
        reference: the same for comparing.
        candidates: found so far.
        results: of each round.
    """

    run: ScreenedRun
    task: Task
    likeness: Likeness
    reference: ShapeReference
    candidates: list[Candidate] = field(default_factory=list)
    results: list[MetricResult] = field(default_factory=list)

    def draw(self, number: int) -> bool:
        """One round; whether it ended without an interruption."""
        run, parents = self.run, list[Candidate]()
        on_progress = run.on_progress
        if number:
            parents = self.best(self.num_parents)
            run = run.another(self._near(parents), first=run.order.first + number * run.order.max_draws)
        if on_progress is not None:
            run.on_progress = _shifted(on_progress, number * run.order.n)
        found = []
        try:
            for sample in run:
                origin = parents[sample.index % len(parents)].index if parents else sample.index
                found.append(Candidate(sample, self.reference.overlay(sample.molecule), origin, number))
        except KeyboardInterrupt:
            run.interrupted = True
        self.candidates += found
        self.run.interrupted = run.interrupted
        self.results += _round_results(number, found, self.best(run.order.n))
        return not run.interrupted

    @property
    def num_parents(self) -> int:
        asked = self.run.order.n
        return min(asked, self.likeness.parents or max(1, round(_PARENTS * asked)))

    def best(self, n: int) -> list[Candidate]:
        """The n best, the best first: one of each structure, and others of the same only where these are too few."""
        ranked = sorted(self.candidates, key=lambda one: (-one.overlay.score, one.sample.index))
        seen: set[str] = set()
        first: list[Candidate] = []
        rest: list[Candidate] = []
        for one in ranked:
            key = str(one.sample.verdict.canonical)
            (rest if key in seen else first).append(one)
            seen.add(key)
        chosen = (first + ([] if "unique" in self.run.order.keep else rest))[:n]
        return sorted(chosen, key=lambda one: (-one.overlay.score, one.sample.index))

    def _near(self, parents: Sequence[Candidate]) -> Descendants:
        model = self.run.recipe.model
        return Descendants(
            self.task,
            self.run.recipe.seed,
            tuple(Parent(one.sample.molecule, one.index) for one in parents),
            self.likeness.noise,
            model.vocabulary,
            model.statistics.hydrogens_placed,
        )


def rank(run: SamplingRun, likeness: Likeness) -> Samples:
    """Draw the molecules of a run and of the rounds of steering; the n best of all come out, the best first.

    Their coordinates are those over the reference, and their records hold `like_score` (0 to 1), of which
    `like_shape` and `like_pharmacophore` are the parts, `like_round`, and in rounds `like_parent`, a name. Numbers of
    every round are among the results. Ctrl-C ranks what is finished.

    Args:
        run: any run that has not begun and keeps valid molecules only.
        likeness: the reference and how to come near it.

    Raises:
        MoldiffError: for a reference that cannot be used, or a run that cannot be ranked or steered.
    """
    if "valid" not in run.order.keep:
        raise MoldiffError("like: only valid molecules can be compared, expected keep=[valid] and more")
    if run.recipe.trajectory:
        raise MoldiffError("like: trajectories are not moved onto the reference, expected trajectory=false")
    run = run if isinstance(run, ScreenedRun) else screened(run)
    task = run.recipe.task.task if isinstance(run.recipe.task, FilteredTask) else run.recipe.task
    if likeness.rounds and task.admission(run.order.n) is not None:
        raise MoldiffError("like.rounds: a task that decides on several molecules together can only be ranked")
    align = likeness.align
    if align is None:
        align = not bool(Beginning.of(task, run.recipe.seed, run.order.first).start.known.any())
    references, left_out = given("like", likeness.reference)
    reference = ShapeReference(references[0].mol, likeness.pharmacophore, align)
    wanted = description(likeness)  # type: ignore[arg-type]  # not a task, but of the same make
    plain = replace(run, recipe=asking(run.recipe, like=wanted), columns=())
    ranking = _Ranking(plain, task, likeness, reference)
    for number in range(likeness.rounds + 1):
        if not ranking.draw(number) or not ranking.candidates:
            break
    return _samples(ranking, run, list(task.notes()) + _notes(len(references) + len(left_out), align))


def _samples(ranking: _Ranking, run: ScreenedRun, notes: Sequence[str]) -> Samples:
    """What comes out of a ranking; `run` is the one with columns."""
    kept: list[SampledMolecule] = []
    seen: set[str] = set()
    for one in ranking.best(run.order.n):
        key = str(one.sample.verdict.canonical)
        kept.append(run.with_columns(one.ranked(key not in seen)))
        seen.add(key)
    drawing = ranking.run
    run.kept, run.interrupted = len(kept), drawing.interrupted
    columns = [result for result in run.results() if result.name.removeprefix("task_") in run.columns]
    results = [*drawing.results(), *ranking.results, *columns]
    complete = len(kept) >= run.order.n and not run.interrupted
    return Samples(kept, run.order.n, drawing.drawn, results, complete, notes)


def _shifted(on_progress: Callable[[float], None], offset: int) -> Callable[[float], None]:
    return lambda done: on_progress(offset + done)


def _notes(references: int, align: bool) -> list[str]:
    more = f"the first of {references} molecules is the reference; " if references > 1 else ""
    return [f"like: {more}molecules are {'moved onto the reference' if align else 'compared as they lie'}"]


def _round_results(number: int, found: Sequence[Candidate], best: Sequence[Candidate]) -> list[MetricResult]:
    """Scores of those drawn in a round, and of the best of all until then."""
    if not best:
        return []
    name = f"task_like_round_{number}"
    drawn = [one.overlay.score for one in found]
    kept = [one.overlay.score for one in best]
    return [
        MetricResult(
            f"{name}_drawn", sum(drawn), float(len(drawn)), f"Mean {_SCORE} of those drawn in it.", len(drawn)
        ),
        MetricResult(f"{name}_kept", sum(kept), float(len(kept)), f"Mean {_SCORE} of the best until then.", len(kept)),
        MetricResult(f"{name}_best", max(kept), 1.0, f"Best {_SCORE} until then.", len(kept)),
    ]
