"""What is asked of a run, and its limits: `SamplingConfig` is the one definition of every option of sampling."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from moldiff.errors import MoldiffError, check_at_least

if TYPE_CHECKING:
    from moldiff.diffusion.compute import Precision
    from moldiff.diffusion.sampler import Sampler
    from moldiff.tasks.inputs import Source
    from moldiff.tasks.task import TaskSpec

ScoreFunction = Callable[[list[Any]], Sequence[float | None]]
"""Of RDKit molecules, see `moldiff.sampling.score`."""

KEEP = ("valid", "sound", "unique", "novel")
"""What a sampled molecule can be required to be."""

RELAX = ("none", "mmff94s", "xtb")
"""Where delivered molecules lie: as they were drawn, or at the next minimum of a force field or of GFN2-xTB."""

DECODE = ("valence", "raw")
"""`valence` = the most probable molecule that obeys valence rules; `raw` = the most probable class of each entry."""

MAX_MOLECULES = 100_000_000
"""Molecules of a run at most: indices are below 2**31, and a run may draw 20 times as many as are asked for."""


def option(default: Any, help: str, **more: Any) -> Any:
    """A field of a dataclass that is an option with this default and this line of help.

    More can be: `full` = what is said of it where there is room; of the command line `least` and `choices` = the values
    that there are, `typed` = how its help shows it, `beside` = there it goes on behind the option before, `hidden` =
    not there, `group` = it is a choice of configs, `built` = its value is an object.
    """
    metadata = {"help": help, **more}
    if isinstance(default, list | dict):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """What samples are to be like, and how they are led there, or without a reference to better scores."""

    reference: Source | None = option(None, "one molecule in 3D, or a SMILES, which gets one conformer", hidden=True)
    rounds: int = option(
        0,
        "of refinement: draw n more from near the best, and keep the n best of all; what a task keeps stays; without "
        "a molecule, the best by score",
    )
    parents: int | None = option(None, "how many best ones; null = a tenth of n")
    noise: float = option(0.6, "how near, from 0 to 1: lower repeats the best ones")
    pharmacophore: float = option(0.5, "its weight in the score; the shape has the rest")
    align: bool | None = option(
        None, "false = compare as they lie; null = move, unless the task keeps atoms where they are"
    )

    def __post_init__(self) -> None:
        check_at_least("like.rounds", self.rounds, 0)
        check_at_least("like.parents", self.parents, 1)
        if not 0 < self.noise <= 1:
            raise MoldiffError(f"like.noise: got {self.noise}, expected a number above 0, up to 1")
        if not 0 <= self.pharmacophore <= 1:
            raise MoldiffError(f"like.pharmacophore: got {self.pharmacophore}, expected a number from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Every option of a run from Python; the command line has them too, but for `arithmetic`."""

    seed: int = option(
        0, "another seed, other molecules", full="`0` to `2**32 - 1`; molecule k of a seed is the same at any `n`"
    )
    first: int = option(
        0,
        "first index of it",
        full="index of the first molecule, so that several runs of one seed can share the work",
        beside=True,
    )
    size: int | tuple[int, int] | None = option(None, "heavy atoms: `9`, or `7..9`; `null` = as in the training data")
    charge: int | None = option(
        None, "total; `null` = as learnt, or given", full="total charge; `null` = as in training, or in what is given"
    )
    ph: float | None = option(
        None,
        "in water, 7.4",
        full="pH of water, such as `7.4`, whose charges delivered molecules get, hydrogens placed; `null` = as drawn",
        beside=True,
    )
    elements: Sequence[str] | None = option(
        None,
        "the only elements, such as [C,H,O]",
        full="the only elements that may be drawn, H apart, such as `[C,H,O]`",
    )
    forbid: Sequence[str] = option((), "not these", full="elements that must not be drawn", beside=True)
    condition: Mapping[str, float] = option(
        {},
        "towards values the model knows",
        full="property values to draw towards, of a model that knows properties: `condition.gap=0.25`",
        typed="condition.gap=0.25",
    )
    guidance: float = option(
        1.0,
        "how far",
        full="how far towards them (classifier-free guidance): `0` = not at all, `1` = as learnt; any other takes "
        "twice the time",
        beside=True,
    )
    feedback: float = option(
        0.5,
        "lack made up for",
        full="how much of what is still lacking of them is made up for in every network call, `0` to `1`",
        beside=True,
    )
    predictor: str | Path | None = option(
        None,
        "judge",
        full="the property predictor that says which is the nearest, by name or folder; by default one that ships, "
        "trained on the molecules that the model has learnt from",
        beside=True,
    )
    candidates: int = option(
        1,
        "drawn for each: the best by score, surest or nearest stays",
        full="molecules drawn for each one delivered, which is that of the lowest `score`, without one the surest "
        "(`confidence`), with `condition` the nearest to the values, in a pocket the deepest",
    )
    score: str | ScoreFunction | None = option(
        None,
        "module:function, low = best",
        full="a number for each molecule, the lower the better: `module:function` of your own, see below, or in a "
        "pocket `vina` or `vinardo`",
    )
    score_limit: float = option(
        60.0, "s each", full="seconds by the clock that `module:function` may take for a molecule", beside=True
    )
    task: TaskSpec | None = option(
        None,
        "grow, link, ...: see moldiff sample task=NAME --help",
        full="what to start from, see below; by default whole new molecules",
        typed="task=NAME",
        group=True,
    )
    keep: Collection[str] = option(
        ("valid", "sound"),
        "and unique, novel; sound = distances are possible",
        full="any of `valid`, `sound` (no clash, no torn or collapsed bond), `unique`, `novel`; draws on until `n` are "
        "kept; `[]` = all as they came",
    )
    filters: Sequence[str] | None = option(
        None,
        "what they must pass, such as pains, sa<4.5; [] = nothing",
        full="what they must pass, see below; by default the model's own: `[stable]` for `drugs`, none for the others, "
        "nor where `keep` is empty or bonds or coordinates are given; `[]` = nothing",
    )
    has: Sequence[str] = option((), "parts to have, as SMARTS", full="SMARTS of parts that they must have, all of them")
    lacks: Sequence[str] = option((), "to lack", full="SMARTS of parts that they must not have", beside=True)
    exclude: Sequence[Source] | None = option(
        None,
        "not these SMILES or files",
        full="structures not to deliver: `lead` = the molecule that a task was given, SMILES, or files; by default "
        "`[lead]`, and where `keep` is empty `[]`",
    )
    similarity: str | tuple[float, float] | None = option(
        None,
        "0.4..0.9",
        full="least and largest Tanimoto similarity to what a task was given, such as `0.4..0.9`",
        beside=True,
    )
    columns: Sequence[str] = option((), "what known lists say: `purchasable`, `known_drug`")
    like: Likeness | None = option(
        None,
        "rank by likeness; see moldiff sample like=FILE --help",
        full="rank by likeness to a molecule in 3D",
        typed="like=FILE",
        built=True,
    )
    max_draws: int | None = option(None, "stop after so many", full="stop after so many draws; `null` = 20 `n` + 200")
    steps: int | None = option(
        None,
        "network calls",
        least=1,
        beside=True,
        full="network calls a molecule; by default the model's own number: 50 for `qm9` and `qm9_properties`, 80 for "
        "`drugs`",
    )
    sampler: Sampler | None = option(
        None,
        "sampler.grid_power=2.0 .corrector=null .churn=null ...",
        full="how to step; by default in the model's own number of network calls",
        typed="sampler=power",
        group=True,
    )
    decode: str = option(
        "valence",
        "valence = obey valence rules, raw = most probable classes",
        full="`valence` = the most probable molecule that obeys valence rules, and what comes in pieces is noised part "
        "of the way and drawn on, at most twice; `raw` = the most probable classes",
    )
    relax: str = option(
        "none",
        "mmff94s, xtb = to a minimum; unrelaxed=false = drawn, too",
        full="`mmff94s` or `xtb` (GFN2-xTB) = take each molecule that passes to the next minimum; atoms that a task "
        "keeps stay where they are, and so does a molecule whose stereo would change",
    )
    trajectory: bool = option(
        False,
        "true = keep the way from noise to each, for moldiff view",
        full="`true` = keep the way from noise to each molecule, about 100 kB, in `molecules.trajectory.sdf.gz`",
    )
    workers: int | None = option(
        None,
        "processes; 0 = one alone",
        full="single-thread processes that share the work; by default where that pays, and none on a GPU; `0` = none",
    )
    arithmetic: Precision | None = option(
        None,
        "how the network is computed",
        full="how the network is computed; by default in float32, compiled where a trial at the start of a long run "
        "found that to pay. In bfloat16 molecule k of a seed depends on which molecules share its batch",
    )

    def __post_init__(self) -> None:
        check_whole("seed", self.seed, 0, 2**32)
        if self.ph is not None and not 0 <= self.ph <= 14:
            raise MoldiffError(f"ph: got {self.ph}, expected a number from 0 to 14, such as 7.4")
        check_whole("candidates", self.candidates, 1, 1001)
        if not self.score_limit > 0:
            raise MoldiffError(f"score_limit: got {self.score_limit}, expected a number above 0 (s)")
        check_whole("first", self.first, 0, 2**31)
        check_whole("max_draws", 1 if self.max_draws is None else self.max_draws, 1, 2**31)
        check_whole("workers", 0 if self.workers is None else self.workers, 0, 1024)
        if unknown := [item for item in sorted(self.keep, key=str) if item not in KEEP]:
            raise MoldiffError(f"keep: got {unknown[0]!r}, expected any of {', '.join(KEEP)}")
        _ = self.similarity_bounds
        for name, choices in (("relax", RELAX), ("decode", DECODE)):
            if (got := getattr(self, name)) not in choices:
                raise MoldiffError(f"{name}: got {got!r}, expected {' or '.join(choices)}")

    @property
    def similarity_bounds(self) -> tuple[float, float] | None:
        """The least and the largest similarity to what a task was given; None = any."""
        if self.similarity is None:
            return None
        words = self.similarity.split("..") if isinstance(self.similarity, str) else self.similarity
        try:
            low, high = map(float, words)
        except (TypeError, ValueError):
            low, high = 1.0, 0.0
        if not 0 <= low <= high <= 1:
            expected = "the least and the largest, from 0 to 1, such as 0.4..0.9"
            raise MoldiffError(f"similarity: got {self.similarity!r}, expected {expected}")
        return low, high


def described(one: Field[Any]) -> str:
    """All that is said of an option."""
    return str(one.metadata.get("full", one.metadata["help"]))


for _config in (SamplingConfig, Likeness):
    _lines = (f"    {one.name}: {described(one)}." for one in fields(_config))
    _config.__doc__ = "\n    ".join([f"{_config.__doc__}\n", "Attributes:", *_lines])


class SamplingOverrides(TypedDict, total=False):
    """The fields of `SamplingConfig` as keywords, for editors and type checkers; a test holds them equal."""

    seed: int
    first: int
    size: int | tuple[int, int] | None
    charge: int | None
    ph: float | None
    elements: Sequence[str] | None
    forbid: Sequence[str]
    condition: Mapping[str, float]
    guidance: float
    feedback: float
    predictor: str | Path | None
    candidates: int
    score: str | ScoreFunction | None
    score_limit: float
    task: TaskSpec | None
    keep: Collection[str]
    filters: Sequence[str] | None
    has: Sequence[str]
    lacks: Sequence[str]
    exclude: Sequence[Source] | None
    similarity: str | tuple[float, float] | None
    columns: Sequence[str]
    like: Likeness | None
    max_draws: int | None
    steps: int | None
    sampler: Sampler | None
    decode: str
    relax: str
    trajectory: bool
    workers: int | None
    arithmetic: Precision | None


def check_whole(name: str, value: object, low: int, high: int) -> None:
    """Refuse what is not a whole number in [low, high)."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value < high:
        raise MoldiffError(f"{name}: got {value!r}, expected a whole number from {low} to {high - 1}")
