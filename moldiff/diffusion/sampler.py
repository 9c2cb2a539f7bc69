"""Sampling loops over a model, a grid of levels and a source of random numbers; how sure the network is."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor

from moldiff.diffusion.batch import MolBatch, NoiseLevel, NoiseSource, Prediction, TensorFields, masked_mean, pair_mask
from moldiff.diffusion.decoding import decode_argmax
from moldiff.diffusion.guidance import LOWEST_LEVEL, FeedbackProcess, PropertyFeedback, StereoTargets
from moldiff.diffusion.model import MoleculeDiffusion
from moldiff.diffusion.pocket import PocketGuide, PocketTarget
from moldiff.diffusion.process.joint import JointProcess
from moldiff.diffusion.process.schedule import MIN_LEVEL, power_grid
from moldiff.errors import MoldiffError
from moldiff.molecules.vocabulary import MAX_HYDROGENS

_EXCLUDED = -1e4  # logit of a class that cannot be
_CORRECTOR = 3.0  # how many more classes a step redraws by default
_CHURN = 1.5  # the rate of fresh noise in many calls by default
_DRAWN = 0.01  # noise level at which classes and bonds are drawn; to go on down to the data is left to settling
_LEAST_SETTLING = 6  # network calls that hydrogens need to find their places, where there are as many to spare
BROKEN_LEVEL = 0.75  # noise level that a molecule in pieces goes back to, at most
BROKEN_RESTARTS = 2  # how often a molecule in pieces is drawn on at most
_BROKEN_SHARE = 0.4  # network calls of such a restart, as a share of those of a whole run
_MANY = 50  # network calls from which on a run draws noise anew


@dataclass(frozen=True)
class SamplerState:
    """One network call of a running sampler."""

    noisy: MolBatch  # the state that went into the network (model units)
    prediction: Prediction  # the network's answer (model units)
    level: NoiseLevel  # its noise levels
    step: int  # 0-based number of the call


@dataclass(frozen=True, eq=False)
class PartialState(TensorFields):
    """What is known of the molecules that are to be sampled."""

    clean: MolBatch  # the known values, coordinates in Å; whatever lies where nothing is known has no influence
    level: NoiseLevel  # 0 = known, 1 = to be sampled, between = known roughly: noised that far, and sampled from there
    allowed: Tensor | None = None  # [B, N, K] True = the atom may end up in this class; None = in any
    stereo: StereoTargets | None = None  # handedness that the molecules are to have; None = any
    pocket: PocketTarget | None = None  # where the molecules are to fit; None = anywhere

    @classmethod
    def unknown(cls, node_mask: Tensor) -> Self:
        """Nothing is known but the number of atoms (`node_mask` [B, N])."""
        batch, size = node_mask.shape
        pos = torch.zeros(batch, size, 3, device=node_mask.device)
        classes = torch.zeros(batch, size, size, dtype=torch.long, device=node_mask.device)
        hydrogen = pos.new_zeros(batch, size, MAX_HYDROGENS, 3)
        clean = MolBatch(pos, hydrogen, classes.new_zeros(batch, size), classes, node_mask)
        return cls(clean, NoiseLevel.uniform(pos.new_ones(batch), node_mask))

    @property
    def known(self) -> Tensor:
        """Atoms of known position [B, N]."""
        return (self.level.pos == 0) & self.clean.node_mask

    def restarted(self, estimate: Prediction) -> Self:
        """From `BROKEN_LEVEL` of an estimate (Å), for a molecule that came out in pieces; what is known stays."""
        clean = most_probable_state(self.clean, estimate, self.level)
        pocket = self.pocket
        if pocket is not None and not bool(self.known.any()):
            pocket = pocket.around(estimate.pos, self.clean.node_mask)
        return replace(self, clean=clean, level=self.level.at_most(BROKEN_LEVEL), pocket=pocket)


Denoise = Callable[[MolBatch, NoiseLevel, Prediction | None], Prediction]


class Sampler(Protocol):
    """Turns noise into clean-data estimates; a frozen dataclass of its settings."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def num_steps(self) -> int:
        """Network calls a molecule."""

    def of_restart(self) -> Self:
        """How a molecule in pieces is drawn on, see `PartialState.restarted`."""

    def __call__(
        self, denoise: Denoise, process: JointProcess, noisy: MolBatch, noise_level: NoiseLevel, draws: NoiseSource
    ) -> Iterator[SamplerState]:
        """Run from `noisy` at `noise_level` (0 where known) down to the data; `denoise` is the network.

        Each state that it yields is one network call, the last one's prediction is the sample.
        """


@dataclass(frozen=True, eq=False)
class Stage:
    """One way down."""

    grid: Tensor  # level of each network call [n], times that of each field to begin with
    hydrogen: Tensor  # that of the hydrogens [n], unless they have the level of the coordinates
    graph_known: bool = False  # whether classes and bonds are taken as known

    def levels(self, first: NoiseLevel, joint: Tensor, class_lead: float) -> list[NoiseLevel]:
        """The levels of every call, from `first` on; what is known (0) stays known.

        Classes and bonds have the level to the power `class_lead`, hydrogens of `joint` molecules [B] as it is.
        """
        found = []
        for factor, own in zip(self.grid.to(first.pos), self.hydrogen.to(first.pos), strict=True):
            ahead = torch.zeros_like(factor) if self.graph_known else factor**class_lead
            hydrogen = first.hydrogen * torch.where(joint, factor, own)[:, None]
            found.append(NoiseLevel(first.pos * factor, first.atom * ahead, first.bond * ahead, hydrogen))
        return found


@dataclass(frozen=True)
class PowerSampler:
    """Steps down power grids of levels, one network call a level, in two stages: section 5 of docs/method.md.

    Above the level `self_condition` the last estimate would draw molecules together, and towards the most frequent.
    Where the network's first choice may not be taken, the graph has to be known before the coordinates are, and so a
    run that limits the elements has a `class_lead` of its own.
    """

    num_steps: int = 50  # network calls a molecule
    grid_power: float = 2.0  # above 1 the grids are denser towards the data
    corrector: float | None = None  # how many times more classes than its law asks for a step redraws; None = 3
    refresh: float = 0.0  # share of the classes and bonds that every step noises anew, as they are at its level
    churn: float | None = None  # rate of fresh noise: 0 = deterministic, 1 = reverse SDE; None = 1.5 from 50 calls on
    churn_low: float = 0.0  # the lowest noise level from which noise of the coordinates is drawn anew
    churn_high: float = 1.0  # the highest
    order: int = 2  # of the solver for the coordinates; 2 = from the last two estimates, until the graph is known
    self_condition: float = 0.5  # noise level up to which the network sees its last estimate
    settle: float = 0.16  # share of the calls in which the graph is known; at least 6, no more than half of them
    settle_level: float = 0.2  # noise level that the coordinates go back to then
    class_lead: float | None = None  # power of a level for classes, above 1 they run ahead of the coordinates; None = 1

    def __post_init__(self) -> None:
        if not isinstance(self.num_steps, int) or self.num_steps < 1:
            raise MoldiffError(f"steps: got {self.num_steps}, expected a whole number of at least 1")
        shares = ("refresh", "churn_low", "churn_high", "self_condition", "settle")
        expected = {
            "grid_power": (self.grid_power >= 0.1, "a number >= 0.1"),
            "corrector": (self.corrector is None or self.corrector >= 0, "a number >= 0.0"),
            "churn": (self.churn is None or self.churn >= 0, "a number >= 0.0"),
            **{name: (0 <= getattr(self, name) <= 1, "a number from 0 to 1") for name in shares},
            "class_lead": (self.class_lead is None or self.class_lead >= 1, "a number of at least 1"),
            "order": (self.order in (1, 2), "1 or 2"),
            "settle_level": (0 < self.settle_level < 1, "a number between 0 and 1"),
        }
        for name, (fits, what) in expected.items():
            if not fits:
                raise MoldiffError(f"sampler.{name}: got {getattr(self, name)}, expected {what}")

    def __call__(
        self, denoise: Denoise, process: JointProcess, noisy: MolBatch, noise_level: NoiseLevel, draws: NoiseSource
    ) -> Iterator[SamplerState]:
        process, step = self._stepping(process), 0
        previous: Prediction | None = None
        # Hydrogens of a known graph are drawn with the coordinates, others when the graph is known.
        joint = noise_level.graph_known(noisy.node_mask)
        for stage in self.stages():
            levels = stage.levels(noise_level, joint, self.class_lead or 1.0)
            if previous is not None:
                noisy = process.start(most_probable_state(noisy, previous, noise_level), levels[0], draws)
            graph = previous
            for place, level in enumerate(levels):
                last = previous if float(stage.grid[place]) <= self.self_condition else None
                prediction = shown = denoise(noisy, level, last)
                if stage.graph_known and graph is not None:  # what it says of known classes is nothing
                    shown = replace(prediction, atom_type=graph.atom_type, bond=graph.bond)
                yield SamplerState(noisy, shown, level, step)
                if place + 1 < len(levels):
                    target = prediction
                    # Hydrogens find their places to first order: extrapolated while they turn, they come out short.
                    if self.order == 2 and not stage.graph_known and previous is not None and place > 0:
                        target = extrapolate(prediction, previous, levels[place - 1 : place + 2], process)
                    noisy = process.step(noisy, target, level, levels[place + 1], draws)
                previous, step = prediction, step + 1

    def _stepping(self, process: JointProcess) -> JointProcess:
        """The process with the noise that the steps draw anew."""
        churn = _CHURN * (self.num_steps >= _MANY) if self.churn is None else self.churn
        vectors: dict[str, Any] = {"churn": churn, "churn_levels": (self.churn_low, self.churn_high)}
        corrector = _CORRECTOR if self.corrector is None else self.corrector
        classes: dict[str, Any] = {"corrector": corrector, "refresh": self.refresh}
        changes = {"pos": vectors, "hydrogen": vectors, "atom_type": classes, "bond": classes}
        return replace(process, **{name: replace(getattr(process, name), **new) for name, new in changes.items()})

    def of_restart(self) -> Self:
        return replace(self, num_steps=max(1, round(_BROKEN_SHARE * self.num_steps)))

    def stages(self) -> list[Stage]:
        """The ways down of the run, `num_steps` network calls in all: to a graph, and with that graph known."""
        wanted = max(_LEAST_SETTLING, round(self.settle * self.num_steps)) if self.settle else 0
        calls = min(self.num_steps // 2, wanted)
        grid = power_grid(self.num_steps - calls, self.grid_power, end=_DRAWN if calls else MIN_LEVEL)
        first = Stage(grid, torch.ones_like(grid))
        if not calls:
            return [first]
        down = power_grid(calls, self.grid_power, start=self.settle_level)
        return [first, Stage(down, power_grid(calls, self.grid_power), graph_known=True)]


def extrapolate(
    prediction: Prediction, previous: Prediction, levels: Sequence[NoiseLevel], process: JointProcess
) -> Prediction:
    """The clean coordinates that carry a first-order step to second order, from the last two estimates.

    DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095, algorithm 2) with steps in -log sigma: near the data the
    same as in half the log SNR, and finite for pure noise. Levels: the last, present and next one.
    """

    def share(name: str) -> Tensor:
        schedule = getattr(process, name).schedule
        last, now, coming = (schedule.sigma(getattr(level, name).double()).clamp(min=1e-12).log() for level in levels)
        moved = (now - last) < 0
        return torch.where(moved, (coming - now) / (2 * torch.where(moved, now - last, 1.0)), 0.0).to(prediction.pos)

    pos, hydrogen = share("pos")[..., None], share("hydrogen")[..., None, None]
    return replace(
        prediction,
        pos=prediction.pos + pos * (prediction.pos - previous.pos),
        hydrogen=prediction.hydrogen + hydrogen * (prediction.hydrogen - previous.hydrogen),
    )


def most_probable_state(noisy: MolBatch, prediction: Prediction, noise_level: NoiseLevel) -> MolBatch:
    """The estimate as a molecule, its most probable classes included; what is known (level 0) stays as it is."""
    known, best = noise_level.pos == 0, decode_argmax(prediction, noisy.node_mask)
    return noisy.replace(
        pos=torch.where(known[..., None], noisy.pos, prediction.pos),
        hydrogen=torch.where(known[..., None, None], noisy.hydrogen, prediction.hydrogen),
        atom_type=torch.where(noise_level.atom == 0, noisy.atom_type, best.atom_type),
        bond=torch.where(noise_level.bond == 0, noisy.bond, best.bond),
    )


def mask_logits(prediction: Prediction, start: PartialState) -> Prediction:
    """The prediction with no weight on classes that what is known rules out."""
    clean, level = start.clean, start.level
    atom_type, bond = prediction.atom_type, prediction.bond
    possible = torch.nn.functional.one_hot(clean.atom_type, atom_type.shape[-1]).bool() | (level.atom > 0)[..., None]
    if start.allowed is not None:
        possible &= start.allowed
    bonds = torch.nn.functional.one_hot(clean.bond, bond.shape[-1]).bool() | (level.bond > 0)[..., None]
    atom_type, bond = atom_type.masked_fill(~possible, _EXCLUDED), bond.masked_fill(~bonds, _EXCLUDED)
    return replace(prediction, atom_type=atom_type, bond=bond)


@torch.no_grad()
def run_sampler(
    model: MoleculeDiffusion,
    sampler: Sampler,
    start: PartialState,
    draws: NoiseSource,
    *,
    on_step: Callable[[SamplerState], None] | None = None,
) -> Prediction:
    """Sample molecules from what is known of them; `PartialState.unknown(node_mask)` asks for whole new ones.

    It gives the last network call's prediction, coordinates in Å and, where atoms are known, in their frame, else in
    that of a pocket. Known coordinates are those of `start`; classes that are known or not allowed elsewhere have
    logits of -1e4.
    """
    clean, known = start.clean, start.known
    free = start.allowed is None and all(bool((level > 0).all()) for level in vars(start.level).values())
    noisy = model.process.start(model.to_model_units(clean, known), start.level, draws)
    feedback = PropertyFeedback.of(model, noisy, start.level)
    guide = None if start.pocket is None else PocketGuide(start.pocket, model, clean.node_mask, known)

    def denoise(noisy: MolBatch, level: NoiseLevel, previous: Prediction | None) -> Prediction:
        network = model.denoise
        if start.stereo is not None and float(level.pos.max()) >= LOWEST_LEVEL:
            network = partial(start.stereo.guided, model)
        if feedback is not None:
            noisy = noisy.replace(condition=feedback.condition)
        prediction = network(noisy, level, previous)
        prediction = prediction if free else mask_logits(prediction, start)
        if feedback is not None and not bool(level.graph_known(noisy.node_mask).all()):
            feedback.update(prediction, noisy)
        return prediction if guide is None else guide.guided(prediction, level)

    process = model.process if feedback is None else FeedbackProcess(**vars(model.process), feedback=feedback)
    state = None
    for state in sampler(denoise, process, noisy, start.level, draws):
        if on_step is not None:
            on_step(state if guide is None else replace(state, noisy=guide.of_state(state.noisy)))
    if state is None:
        raise MoldiffError("sampler: got no network call, expected at least one")
    prediction = state.prediction
    pos = prediction.pos * model.statistics.pos_scale + masked_mean(
        clean.pos, known | ~known.any(1, keepdim=True) & clean.node_mask
    )
    filled = model.filled_slots(prediction.atom_type.argmax(-1))[..., None]
    hydrogen = prediction.hydrogen * model.statistics.hydrogen_scale * filled
    if guide is not None:
        pos = torch.where(guide.bound[:, None, None], pos, guide.placed(prediction.pos * model.statistics.pos_scale))
        hydrogen = guide.turned(hydrogen)
    return replace(
        prediction,
        pos=torch.where(known[..., None], clean.pos, pos) * clean.node_mask[..., None],
        hydrogen=torch.where(known[..., None, None], clean.hydrogen, hydrogen),
    )


_ENTROPY = 0.001  # nats an atom, added to that of the bonds: below it, less says no more
_EVEN = 2.3e-5  # nats times Å at which a molecule is as likely to be good as not
_POWER = 4.8  # of that product in the odds
_USUAL = 0.0065  # Å between the last two calls, where all coordinates are known


class Confidence:
    """How sure the network is of molecules, from what it says of them while they are drawn: docs/confidence.md.

    The figures were fitted to whole new molecules of `drugs` in 80 calls.
    """

    def __init__(self, start: PartialState, pos_scale: float) -> None:
        self._start, self._scale = start, pos_scale
        self._last: Prediction | None = None
        self._before: Prediction | None = None

    def __call__(self, state: SamplerState) -> None:
        self._before, self._last = self._last, state.prediction

    def values(self) -> list[float]:
        """From 0 to 1 for each molecule: the odds fall with the doubt about its bonds and about its coordinates.

        The first is the entropy of the classes of its bonds at the end of the first way down (nats an atom), the second
        how far the last call moved its atoms (RMS, Å). Both count what is drawn alone; after one call all are 0.
        """
        mask, level = self._start.clean.node_mask, self._start.level
        if self._last is None or self._before is None:
            return [0.0] * len(mask)
        logs = self._last.bond.double().log_softmax(-1)
        entropy = (-(logs.exp() * logs).sum(-1) * pair_mask(mask)).sum((1, 2))
        drawn = mask & (level.pos > 0)
        moved = self._scale * (self._last.pos - self._before.pos).double()
        count = drawn.sum(1)
        spread = ((moved.square().sum(-1) * drawn).sum(1) / count.clamp(min=1)).sqrt()
        spread = torch.where(count > 0, spread, _USUAL)
        doubt = (entropy / (mask & (level.atom > 0)).sum(1).clamp(min=1) + _ENTROPY) * spread
        found: Tensor = 1 / (1 + (doubt / _EVEN) ** _POWER)
        return [float(value) for value in found.nan_to_num(nan=0.0)]
