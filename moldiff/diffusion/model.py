"""Network, process, vocabulary and statistics as one module: what is trained, saved and sampled from."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from moldiff.diffusion.batch import BatchNoise, MolBatch, NoiseLevel, NoiseSource, Prediction, TensorFields, center
from moldiff.diffusion.conditioning import Contributions, Properties, bond_counts, expected_bond_counts
from moldiff.diffusion.process.joint import JointProcess, ordered_slots
from moldiff.diffusion.process.schedule import log_snr
from moldiff.diffusion.statistics import Statistics
from moldiff.molecules.vocabulary import MAX_HYDROGENS, Vocabulary


@runtime_checkable
class Denoiser(Protocol):
    """Estimates the clean molecules from noisy ones; an equivariant network, or an exact score in tests."""

    def __call__(self, noisy: MolBatch, noise_level: NoiseLevel, previous: Prediction | None = None) -> Prediction:
        """Predict the clean data; `previous` is the last estimate (self-conditioning), None = none yet.

        pos 1o; hydrogen 1o; the rest 0e; permutes with atoms.
        """


BOUND_LEVELS = (0.01, 0.999)  # noise levels between which the bound is taken; the lower is about 0.01 Å of noise
_LEAST_UNEXPLAINED = 0.1  # standard deviations of a property that contributions are taken to leave at least

TimeDistribution = Callable[[int, torch.Generator], Tensor]
PropertyChoice = Callable[[Tensor, torch.Generator], Tensor]
TaskDistribution = Callable[[MolBatch, TimeDistribution, torch.Generator], NoiseLevel]


@dataclass(frozen=True, eq=False)
class NoisyBatch(TensorFields):
    """Molecules of a training step with and without noise, in the model's units."""

    clean: MolBatch
    noisy: MolBatch
    level: NoiseLevel


class MoleculeDiffusion(nn.Module):
    """A denoiser with everything that gives its numbers meaning.

    Inside, lengths are divided by the data's own scales so that every field has unit variance; batches that go in and
    molecules that come out are in Å.
    """

    feedback = 0.0  # how much of the error of the requested values is fed back, see `diffusion.guidance`
    num_hydrogens: Tensor  # of every atom class [K]

    def __init__(
        self,
        denoiser: nn.Module,
        process: JointProcess,
        vocabulary: Vocabulary,
        statistics: Statistics,
        properties: Properties | None = None,
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.process = process
        self.vocabulary = vocabulary
        self.statistics = statistics
        self.properties = Properties() if properties is None else properties
        self.register_buffer("num_hydrogens", torch.from_numpy(vocabulary.table[:, 2].copy()), persistent=False)

    def to_model_units(self, batch: MolBatch, known: Tensor | None = None) -> MolBatch:
        """As `in_units`; properties become normalised, and a model without properties drops them."""
        values = batch.condition if self.properties else None
        values = None if values is None else self.properties.normalised(values)
        return in_units(batch, self.statistics, known).replace(condition=values)

    def denoise(self, noisy: MolBatch, noise_level: NoiseLevel, previous: Prediction | None = None) -> Prediction:
        """The network's estimate of the clean data, in the model's units.

        It sees the places of the hydrogens that atoms of known class have, once these are noised at all.
        """
        denoiser: Denoiser = self.denoiser
        level = noise_level.hydrogen[..., None]
        seen = ((level == 0) | ((level < 1) & self.filled_slots(noisy.atom_type))).to(noisy.pos)[..., None]
        noisy = noisy.replace(hydrogen=noisy.hydrogen * seen)
        if previous is not None:
            previous = replace(previous, hydrogen=previous.hydrogen * seen)
        return denoiser(noisy, noise_level, previous)

    def filled_slots(self, atom_type: Tensor) -> Tensor:
        """[..., 4] True where atoms of the classes [...] have a hydrogen; those of the mask have none."""
        counts = torch.cat([self.num_hydrogens, self.num_hydrogens.new_zeros(1)])[atom_type]
        return torch.arange(MAX_HYDROGENS, device=counts.device) < counts[..., None]

    def noise(
        self,
        batch: MolBatch,
        times: TimeDistribution,
        generator: torch.Generator,
        *,
        tasks: TaskDistribution | None = None,
        visible: PropertyChoice | None = None,
    ) -> NoisyBatch:
        """Noise for a training step on clean molecules (Å).

        `tasks` draws what is known of each molecule (None = nothing, one noise level shared by all fields), `visible`
        which properties the network sees of each (None = all that the batch has).
        """
        mask, draws = batch.node_mask, BatchNoise(generator)
        if tasks is None:
            level, known = NoiseLevel.uniform(times(batch.num_molecules, generator), mask), None
            level = replace(level, hydrogen=torch.ones_like(level.hydrogen))
        else:
            level = tasks(batch, times, generator)
            known = (level.pos == 0) & mask
        clean = self.to_model_units(ordered_slots(batch, level.hydrogen == 0, draws), known)
        noise = self.process.prior(mask, draws, known)
        if clean.condition is not None and visible is not None:
            clean = clean.replace(condition=visible(clean.condition, generator))
        return NoisyBatch(clean, self.process.corrupt(clean, noise, level, draws), level)

    def losses_of(self, noised: NoisyBatch, *, self_condition: bool) -> dict[str, Tensor]:
        """Loss of every field, with the network's own first estimate if wanted (Chen et al. 2022, arXiv:2208.04202)."""
        previous = None
        if self_condition:
            with torch.no_grad():
                previous = self.denoise(noised.noisy, noised.level).detach()
        prediction = self.denoise(noised.noisy, noised.level, previous)
        losses = self.process.loss(prediction, noised.clean, noised.level)
        if (conditioned := self._conditioned(noised)) is not None:
            losses["contributions"] = self._contribution_loss(prediction, noised, conditioned)
        return losses

    def counts_of(self, noised: NoisyBatch) -> dict[str, Tensor]:
        """Over how many entries `losses_of` averages each loss; weighted by them, losses of parts of a batch add up."""
        counts = self.process.counts(noised.clean, noised.level)
        if (conditioned := self._conditioned(noised)) is not None:
            counts["contributions"] = conditioned.sum()
        return counts

    @property
    def contributions(self) -> Contributions | None:
        """Of atoms and bonds to the properties; None = the network knows none."""
        return getattr(self.denoiser, "contributions", None) if self.properties else None

    def _conditioned(self, noised: NoisyBatch) -> Tensor | None:
        """True [B, C] where the network sees a property of a molecule without known classes; None = of none ever."""
        clean, level = noised.clean, noised.level
        if clean.condition is None or self.contributions is None:
            return None
        atoms, bonds = (level.atom > 0) | ~clean.node_mask, (level.bond > 0) | ~clean.pair_mask
        return clean.condition.isfinite() & (atoms.all(1) & bonds.flatten(1).all(1))[:, None]

    def _contribution_loss(self, prediction: Prediction, noised: NoisyBatch, conditioned: Tensor) -> Tensor:
        """Squared error of the expected sums of contributions to properties, in what these leave unexplained.

        Their mean given the noisy molecule has the least, so that this does not pull the classes away from theirs.
        """
        contributions = self.contributions
        assert contributions is not None
        with torch.autocast(noised.clean.pos.device.type, enabled=False):
            expected = expected_bond_counts(prediction, noised.clean)
            counts = bond_counts(noised.clean, self.vocabulary.num_atom_classes)
            errors = contributions(expected - counts) / contributions.unexplained.clamp(min=_LEAST_UNEXPLAINED)
        return (errors.square() * conditioned).sum() / conditioned.sum().clamp(min=1)

    def losses(
        self,
        batch: MolBatch,
        times: TimeDistribution,
        generator: torch.Generator,
        *,
        self_condition: bool,
        **options: Any,
    ) -> dict[str, Tensor]:
        """Loss of every field for clean molecules in Å: `noise` with its options, then `losses_of`."""
        return self.losses_of(self.noise(batch, times, generator, **options), self_condition=self_condition)

    @torch.no_grad()
    def bound(self, batch: MolBatch, generator: torch.Generator, *, num_steps: int = 100) -> dict[str, Tensor]:
        """One-sample estimate of the variational bound of a process of `num_steps` steps, per field [B] (nats).

        Section 4 of docs/method.md, for clean molecules in Å, by one step drawn at random for each molecule (Kingma et
        al. 2021, arXiv:2107.00630, eq. 12). The grid is even in log SNR, so that no step outweighs the others.
        """
        draws = BatchNoise(generator)
        clean = self.to_model_units(ordered_slots(batch, torch.zeros_like(batch.node_mask), draws))
        noise = self.process.prior(batch.node_mask, draws)
        schedule = self.process.pos.schedule
        low, high = log_snr(schedule, torch.tensor(BOUND_LEVELS, dtype=torch.double))
        grid = schedule.level(torch.lerp(low, high, torch.linspace(0, 1, num_steps + 1).double())).to(clean.pos)
        index = torch.randint(num_steps, (batch.num_molecules,), generator=generator, device=generator.device)
        s, t = (NoiseLevel.uniform(grid[k], batch.node_mask) for k in (index, index + 1))
        terms = self._bound_of_step(clean, noise, t, s, draws)
        s, t = (NoiseLevel(0 * level.pos, 0 * level.atom, 0 * level.bond, level.hydrogen) for level in (s, t))
        terms["hydrogen"] = self._bound_of_step(clean, noise, t, s, draws)["hydrogen"]
        return {name: term * num_steps for name, term in terms.items()}

    def _bound_of_step(
        self, clean: MolBatch, noise: MolBatch, t: NoiseLevel, s: NoiseLevel, draws: NoiseSource
    ) -> dict[str, Tensor]:
        """KL divergence of the step from t to s for every field [B] (nats)."""
        if bool((t.pos > 0).any()):  # hidden, as while coordinates are drawn
            t, s = (replace(level, hydrogen=torch.ones_like(level.hydrogen)) for level in (t, s))
        noisy = self.process.corrupt(clean, noise, t, draws)
        return self.process.bound(self.denoise(noisy, t, self.denoise(noisy, t)), clean, noisy, t, s)


def in_units(batch: MolBatch, statistics: Statistics, known: Tensor | None = None) -> MolBatch:
    """Å -> unit variance, centred on the atoms of known position (`known` [B, N]) or, without any, on all."""
    return batch.replace(
        pos=center(batch.pos, batch.node_mask, known) / statistics.pos_scale,
        hydrogen=batch.hydrogen / statistics.hydrogen_scale,
    )
