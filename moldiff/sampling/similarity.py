"""Samples like a reference in shape and pharmacophore, or of a low score: ranked, and drawn again from near the best.

Ranking needs all molecules of a run, so they stay in memory and come out at the end, best first. A round of refinement
noises the best ones part of the way, draws new molecules from there while what the run's task keeps stays as it is, and
goes on with the best of all: `load("qm9").sample(50, like=Likeness(reference="ligand.sdf", rounds=3))`.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from moldiff.errors import MoldiffError
from moldiff.evaluation.metric import MetricResult
from moldiff.evaluation.metrics.diversity import ShapeReference
from moldiff.sampling.config import Likeness, SamplingConfig
from moldiff.sampling.molecule_sampler import MoleculeSampler
from moldiff.sampling.sample import Sample
from moldiff.tasks.analogues import Descendants, Parent, PartialDiffusion
from moldiff.tasks.inputs import given

if TYPE_CHECKING:
    from moldiff.sampling.run import SamplingRun


@dataclass(frozen=True, eq=False)
class Candidate:
    """A drawn molecule with what it is ranked by."""

    sample: Sample  # as it was drawn, in its own frame (Å)
    shown: Sample  # the same as it comes out, over the reference if there is one
    score: float
    rank: tuple[float, int]  # the least is the best
    origin: int  # index of the molecule of the first drawing that it descends from
    number: int  # of the round that it was drawn in; 0 = the first drawing

    @property
    def key(self) -> str:
        """What tells its structure from others."""
        return str(self.sample.verdict.canonical)

    def ranked(self, is_unique: bool) -> Sample:
        """The molecule as it comes out."""
        return replace(self.shown, unique=is_unique, task={**self.shown.task, "like_round": self.number})


@dataclass(frozen=True, eq=False)
class SimilaritySearch:
    """How the molecules of a run are ranked, and those of further rounds drawn.

    Their coordinates come to lie over the reference, and their records hold `like_score` (0 to 1), of which
    `like_shape` and `like_pharmacophore` are the parts, `like_round`, and in rounds `like_parent`, a name. Without a
    reference they are ranked by `score`, and those without one are left out. Numbers of every round are among the
    results. Ctrl-C ranks what is finished.
    """

    likeness: Likeness
    reference: ShapeReference | None  # None = molecules have scores
    notes: Sequence[str]  # what was made of it, for the user

    @classmethod
    def of(cls, config: SamplingConfig, molecules: MoleculeSampler, n: int) -> SimilaritySearch | None:
        """The search that a config asks for, if any."""
        likeness = config.like
        if likeness is None:
            return None
        if likeness.reference is None and molecules.score is None:
            raise MoldiffError("like: nothing given, expected a molecule in 3D, such as like=ligand.sdf, or a score")
        if "valid" not in config.keep:
            raise MoldiffError("like: only valid molecules can be compared, expected keep=[valid] and more")
        if config.trajectory:
            raise MoldiffError("like: trajectories are not moved with ranked molecules, expected trajectory=false")
        if likeness.rounds and molecules.task.admission(n) is not None:
            raise MoldiffError("like.rounds: a task that decides on several molecules together can only be ranked")
        if likeness.reference is None:
            return cls(likeness, None, [])
        align = likeness.align
        if align is None:
            align = not bool(molecules.spec(config.first).start.known.any())
        references, left_out = given("like", likeness.reference)
        total = len(references) + len(left_out)
        more = f"the first of {total} molecules is the reference; " if total > 1 else ""
        notes = [f"like: {more}molecules are {'moved onto the reference' if align else 'compared as they lie'}"]
        return cls(likeness, ShapeReference(references[0].mol, likeness.pharmacophore, align), notes)

    def ranked(self, run: SamplingRun) -> Generator[Sample, None, None]:
        """Draw the molecules of a run and of the rounds of refinement; the n best of all come out, the best first."""
        candidates: list[Candidate] = []
        num_parents = min(run.n, self.likeness.parents or max(1, round(0.1 * run.n)))
        for number in range(self.likeness.rounds + 1):
            found = self._round(run, number, _best(run, candidates, num_parents))
            candidates += found
            what = "like_score (0 to 1)" if self.reference is not None else "score (the lower the better)"
            run.counts.likeness += _round_results(number, what, found, _best(run, candidates, run.n))
            if run.interrupted or not candidates:
                break
        best = _best(run, candidates, run.n)
        run.kept = len(best)
        seen: set[str] = set()
        for one in best:
            yield one.ranked(one.key not in seen)
            seen.add(one.key)

    def _round(self, run: SamplingRun, number: int, parents: Sequence[Candidate]) -> list[Candidate]:
        """What one round draws, the first one from noise, later ones from near parents."""
        molecules, model, found = run.molecules, run.molecules.model, list[Candidate]()
        if number:
            near = tuple(Parent(one.sample.molecule, one.origin) for one in parents)
            way = PartialDiffusion(self.likeness.noise, model.vocabulary, model.statistics.hydrogens_placed)
            molecules = replace(molecules, task=Descendants(molecules.task, molecules.seed, near, way))
        try:
            for sample in run.round(molecules, number):
                origin = parents[sample.index % len(parents)].origin if number else sample.index
                if (ranked := self._ranked(sample)) is not None:
                    found.append(Candidate(sample, *ranked, origin, number))
        except KeyboardInterrupt:
            run.interrupted = True
        return found

    def _ranked(self, sample: Sample) -> tuple[Sample, float, tuple[float, int]] | None:
        """A sample as it comes out, its score and its rank; None = it has no score."""
        if self.reference is None:
            score = sample.task.get("score")
            return None if score is None else (sample, float(score), (float(score), sample.index))
        overlay = self.reference.overlay(sample.molecule)
        scores = {f"like_{name}": getattr(overlay, name) for name in ("score", "shape", "pharmacophore")}
        shown = replace(sample, molecule=overlay.molecule, task={**sample.task, **scores})
        return shown, overlay.score, (-overlay.score, sample.index)


def _best(run: SamplingRun, candidates: Sequence[Candidate], n: int) -> list[Candidate]:
    """The n best, the best first: one of each structure, and others of the same only where these are too few."""
    ranked = sorted(candidates, key=lambda one: one.rank)
    first = {one.key: one for one in reversed(ranked)}
    others = [] if "unique" in run.config.keep else [one for one in ranked if first[one.key] is not one]
    chosen = [one for one in ranked if first[one.key] is one] + others
    return sorted(chosen[:n], key=lambda one: one.rank)


def _round_results(number: int, what: str, found: Sequence[Candidate], best: Sequence[Candidate]) -> list[MetricResult]:
    """Scores of those drawn in a round, and of the best of all until then."""
    if not best:
        return []
    name, drawn, kept = f"task_like_round_{number}", [one.score for one in found], [one.score for one in best]
    many, few = len(drawn), len(kept)
    return [
        MetricResult(f"{name}_drawn", sum(drawn), float(many), f"Mean {what} of those drawn in it.", many),
        MetricResult(f"{name}_kept", sum(kept), float(few), f"Mean {what} of the best until then.", few),
        MetricResult(f"{name}_best", kept[0], 1.0, f"Best {what} until then.", few),
    ]
