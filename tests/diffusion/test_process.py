"""The processes against what is known exactly: Gaussian and categorical data with the analytic denoiser."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from models import NUM_CLASSES, random_batch, random_level, random_prediction, small_process
from torch import Tensor

from moldiff.diffusion.batch import BatchNoise, NoiseLevel, PerMoleculeNoise, Prediction, molecule_generator
from moldiff.diffusion.process.categorical import (
    CategoricalProcess,
    absorbing_prior,
    draw,
    marginal_prior,
    uniform_prior,
)
from moldiff.diffusion.process.gaussian import GaussianProcess
from moldiff.diffusion.process.joint import filled_slots, ordered_slots
from moldiff.diffusion.process.schedule import (
    MIN_LEVEL,
    CosineSchedule,
    LinearSchedule,
    PowerTimes,
    Schedule,
    log_snr,
    power_grid,
)
from moldiff.diffusion.sampler import extrapolate
from moldiff.errors import MoldiffError

SCHEDULES = [LinearSchedule(), CosineSchedule()]
FREQUENCIES = torch.tensor([0.5, 0.3, 0.2], dtype=torch.double)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedule_ends_and_inverse(schedule: Schedule) -> None:
    ends = torch.tensor([0.0, 1.0], dtype=torch.double)
    torch.testing.assert_close(schedule.alpha(ends), torch.tensor([1.0, 0.0]).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(schedule.sigma(ends), torch.tensor([0.0, 1.0]).double(), atol=1e-12, rtol=0)
    level = torch.linspace(0.01, 0.99, 50, dtype=torch.double)
    torch.testing.assert_close(schedule.level(log_snr(schedule, level)), level)


def test_cosine_schedule_preserves_variance() -> None:
    level = torch.linspace(0, 1, 11, dtype=torch.double)
    schedule = CosineSchedule()
    torch.testing.assert_close(schedule.alpha(level) ** 2 + schedule.sigma(level) ** 2, torch.ones(11).double())


def gaussian_mean(noisy: Tensor, alpha: Tensor, sigma: Tensor, mean: float, std: float) -> Tensor:
    """E[x_0 | x_t] for x_0 ~ N(mean, std²): the exact denoiser of Gaussian data."""
    gain = alpha * std**2 / (alpha**2 * std**2 + sigma**2)
    return mean + gain * (noisy - alpha * mean)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("churn", [0.0, 0.5, 1.0])
def test_exact_denoiser_samples_the_gaussian_at_every_churn(schedule: Schedule, churn: float) -> None:
    mean, std, count = 0.7, 0.4, 40_000
    process = GaussianProcess(schedule, churn=churn)
    generator = torch.Generator().manual_seed(0)

    def normal() -> Tensor:
        return torch.randn(count, 1, 1, generator=generator, dtype=torch.double)

    noisy = normal()
    grid = torch.linspace(1, 0.0005, 400, dtype=torch.double)
    for t, s in itertools.pairwise(grid):
        clean = gaussian_mean(noisy, schedule.alpha(t), schedule.sigma(t), mean, std)
        noisy = process.step(noisy, clean, t.expand(count, 1), s.expand(count, 1), normal())
    assert float(noisy.mean()) == pytest.approx(mean, abs=4 * std / math.sqrt(count) + 0.002)
    assert float(noisy.std()) == pytest.approx(std, rel=0.02)


def test_corrupt_has_the_stated_mean_and_deviation() -> None:
    process = GaussianProcess(CosineSchedule())
    noise = torch.randn(1, 20_000, 3, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    level = torch.full((1, 20_000), 0.3, dtype=torch.double)
    noisy = process.corrupt(torch.full_like(noise, 2.0), noise, level)
    assert float(noisy.mean()) == pytest.approx(2 * math.cos(0.15 * math.pi), abs=0.01)
    assert float(noisy.std()) == pytest.approx(math.sin(0.15 * math.pi), rel=0.02)
    torch.testing.assert_close(process.noise_from_clean(noisy, torch.full_like(noise, 2.0), level), noise)


def test_score_is_that_of_the_gaussian() -> None:
    process, level = GaussianProcess(), torch.full((1, 5), 0.4, dtype=torch.double)
    noisy = torch.randn(1, 5, 3, dtype=torch.double)
    alpha, sigma = torch.tensor(0.6).double(), torch.tensor(0.4).double()
    clean = gaussian_mean(noisy, alpha, sigma, 0.7, 0.5)
    expected = -(noisy - alpha * 0.7) / (alpha**2 * 0.5**2 + sigma**2)
    torch.testing.assert_close(-process.noise_from_clean(noisy, clean, level) / sigma, expected)


def test_gaussian_step_from_a_known_level_changes_nothing() -> None:
    noisy = torch.randn(2, 3, 3)
    level = torch.zeros(2, 3)
    torch.testing.assert_close(GaussianProcess(churn=0.5).step(noisy, noisy + 1, level, level, noisy), noisy)


def test_gaussian_loss_counts_only_noisy_atoms_with_the_clamped_weight() -> None:
    process = GaussianProcess(min_weight=0.05, max_weight=1.5)
    clean, prediction = torch.zeros(1, 4, 3), torch.ones(1, 4, 3)
    level = torch.tensor([[0.5, 0.1, 0.0, 0.5]])  # weights 1 and 1.5; one known, one padding
    mask = torch.tensor([[True, True, True, False]])
    assert float(process.loss(prediction, clean, level, mask)) == pytest.approx((3 * 1 + 3 * 1.5) / 2)
    slots = torch.tensor([[[True, False], [False, False], [True, True], [True, True]]])
    vectors = torch.ones(1, 4, 2, 3)
    assert float(process.loss(vectors, 0 * vectors, level, slots & mask[..., None])) == pytest.approx(3)


def test_gaussian_bound_is_the_kl_divergence_of_two_posteriors() -> None:
    process = GaussianProcess(CosineSchedule())
    t, s = torch.tensor([[0.6]]).double(), torch.tensor([[0.5]]).double()
    clean, guess = torch.zeros(1, 1, 3).double(), torch.full((1, 1, 3), 0.3).double()
    # Both posteriors have the ancestral variance; their means differ by this factor times the difference in x_0.
    alpha_t, sigma_t, alpha_s, sigma_s = (
        f(x) for x in (t, s) for f in (process.schedule.alpha, process.schedule.sigma)
    )
    transition = sigma_t**2 - (alpha_t / alpha_s) ** 2 * sigma_s**2
    variance = transition * sigma_s**2 / sigma_t**2
    factor = alpha_s * transition / sigma_t**2
    expected = (factor * 0.3) ** 2 * 3 / (2 * variance)
    torch.testing.assert_close(process.bound(guess, clean, t, s, torch.ones(1, 1, dtype=torch.bool)), expected[:, 0])


PRIORS = {"marginal": marginal_prior, "uniform": uniform_prior, "absorbing": absorbing_prior}


@pytest.mark.parametrize("prior", PRIORS)
def test_product_of_transitions_is_the_closed_form(prior: str) -> None:
    process = CategoricalProcess(PRIORS[prior](FREQUENCIES), CosineSchedule())
    size = len(process.prior)
    grid = torch.linspace(0, 0.9, 10, dtype=torch.double)
    product = torch.eye(size).double()
    for s, t in itertools.pairwise(grid):
        keep = process.schedule.alpha(t) / process.schedule.alpha(s)
        product = product @ (keep * torch.eye(size) + (1 - keep) * process.prior.expand(size, size))
    alpha = process.schedule.alpha(grid[-1])
    expected = alpha * torch.eye(size) + (1 - alpha) * process.prior.expand(size, size)
    torch.testing.assert_close(product, expected.double())


@pytest.mark.parametrize("prior", PRIORS)
def test_posterior_is_bayes_rule_by_enumeration(prior: str) -> None:
    process = CategoricalProcess(PRIORS[prior](FREQUENCIES))
    size, t, s = len(process.prior), torch.tensor(0.7).double(), torch.tensor(0.4).double()
    eye, spread = torch.eye(size).double(), process.prior.expand(size, size)
    alpha_t, alpha_s = process.schedule.alpha(t), process.schedule.alpha(s)
    keep = alpha_t / alpha_s
    to_s = alpha_s * eye + (1 - alpha_s) * spread  # q(x_s | x_0)
    to_t = keep * eye + (1 - keep) * spread  # q(x_t | x_s)
    clean = torch.tensor([0.6, 0.1, 0.3]).double()
    for current in range(size):
        joint = to_s * to_t[:, current]
        evidence = joint.sum(1, keepdim=True)
        posterior = torch.where(evidence > 0, joint / evidence.clamp(min=1e-30), 0.0)
        # A class of x_0 that cannot have led to x_t has no posterior, and its weight no meaning.
        expected = (clean[:, None] * posterior[:3]).sum(0)
        got = process.posterior(torch.tensor(current), clean, t, s)
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("prior", PRIORS)
def test_exact_denoiser_samples_the_classes(prior: str) -> None:
    process = CategoricalProcess(PRIORS[prior](torch.tensor([0.2, 0.3, 0.5]).double()))
    count, generator = 40_000, torch.Generator().manual_seed(0)
    uniform = torch.rand(count, 2, generator=generator, dtype=torch.double)
    noisy = process.draw_prior(uniform[:, 0])
    grid = torch.linspace(1, 0, 60, dtype=torch.double)
    for t, s in itertools.pairwise(grid):
        # p(x_0 | x_t) for independent entries of known frequencies, by Bayes' rule.
        alpha = process.schedule.alpha(t)
        match = torch.nn.functional.one_hot(noisy, 4)[:, :3]
        likelihood = alpha * match + (1 - alpha) * process.prior[noisy][:, None]
        logits = (likelihood * FREQUENCIES).clamp(min=1e-300).log()
        uniform = torch.rand(count, 2, generator=generator, dtype=torch.double)
        noisy = process.step(noisy, logits, t.expand(count), s.expand(count), uniform)
    frequencies = torch.bincount(noisy, minlength=4).double() / count
    torch.testing.assert_close(frequencies[:3], FREQUENCIES, atol=0.012, rtol=0)
    assert int((noisy == 3).sum()) == 0  # the mask is never an answer


def test_bound_is_zero_for_the_truth_and_positive_otherwise() -> None:
    process = CategoricalProcess(marginal_prior(FREQUENCIES))
    t, s = torch.full((3,), 0.6).double(), torch.full((3,), 0.5).double()
    clean, noisy = torch.tensor([0, 1, 2]), torch.tensor([0, 2, 2])
    truth = torch.nn.functional.one_hot(clean, 3).double() * 200
    torch.testing.assert_close(process.bound(truth, clean, noisy, t, s), torch.zeros(3).double())
    assert bool((process.bound(torch.zeros(3, 3).double(), clean, noisy, t, s) > 0).all())


def test_class_loss_on_a_list_counted_by_hand() -> None:
    process = CategoricalProcess(uniform_prior(FREQUENCIES))
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [1 / 3, 1 / 3, 1 / 3]]))
    loss = process.loss(logits, torch.tensor([0, 1, 2]), torch.tensor([True, True, False]))
    assert float(loss) == pytest.approx((math.log(2) - math.log(0.8)) / 2)


def test_class_step_leaves_known_entries_alone_and_corrector_redraws_more() -> None:
    level, lower = torch.full((4000,), 0.5), torch.full((4000,), 0.4)
    logits = torch.zeros(4000, 3)
    logits[:, 2] = 50.0
    uniform = torch.rand(4000, 2, generator=torch.Generator().manual_seed(0))
    noisy = torch.zeros(4000, dtype=torch.long)
    plain = CategoricalProcess(marginal_prior(FREQUENCIES.float()))
    eager = CategoricalProcess(marginal_prior(FREQUENCIES.float()), corrector=4.0)
    assert float((plain.step(noisy, logits, level, lower, uniform) == 2).float().mean()) == pytest.approx(0.2, abs=0.02)
    assert float((eager.step(noisy, logits, level, lower, uniform) == 2).float().mean()) == pytest.approx(0.6, abs=0.02)
    known = torch.zeros(4000)
    torch.testing.assert_close(eager.step(noisy, logits, known, known, uniform), noisy)
    with pytest.raises(MoldiffError, match="corrector"):
        CategoricalProcess(FREQUENCIES, corrector=-1)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6).filter(lambda w: sum(w) > 1e-3), st.floats(0, 0.999999))
@settings(max_examples=200, deadline=None)
def test_draw_never_gives_a_class_without_weight(weights: list[float], uniform: float) -> None:
    chosen = int(draw(torch.tensor(weights, dtype=torch.double), torch.tensor(uniform, dtype=torch.double)))
    assert 0 <= chosen < len(weights)
    assert weights[chosen] > 0


def test_joint_process_keeps_padding_empty_bonds_symmetric_and_known_parts_fixed() -> None:
    process, clean = small_process(), random_batch([5, 3])
    draws = BatchNoise(torch.Generator().manual_seed(0), torch.double)
    noise = process.prior(clean.node_mask, draws).validate()
    torch.testing.assert_close(noise.pos.sum(1), torch.zeros(2, 3).double(), atol=1e-12, rtol=0)
    level = random_level(clean)
    known = NoiseLevel(*(field * 0 for field in vars(level).values()))
    process.corrupt(clean, noise, level, draws).validate()
    for name in ("pos", "hydrogen", "atom_type", "bond"):
        unchanged = process.corrupt(clean, noise, known, draws)
        torch.testing.assert_close(getattr(unchanged, name), getattr(clean, name))
        stepped = process.step(clean, random_prediction(clean), known, known, draws)
        torch.testing.assert_close(getattr(stepped, name), getattr(clean, name))
    process.step(noise, random_prediction(clean), level, known, draws).validate()


def test_times_stay_in_range_and_favour_low_noise() -> None:
    level = PowerTimes(power=1.5)(20_000, torch.Generator().manual_seed(0))
    assert float(level.min()) >= MIN_LEVEL
    assert float(level.max()) <= 1
    # 1 - t has the Beta(1.5, 1) distribution, of mean 1.5 / 2.5.
    assert float(level.mean()) == pytest.approx(0.4, abs=0.002)


def test_grid_starts_at_noise_and_ends_at_the_lowest_level() -> None:
    grid = power_grid(50)
    assert (len(grid), float(grid[0])) == (50, 1.0)
    assert float(grid[-1]) == pytest.approx(MIN_LEVEL)
    assert bool((grid.diff() < 0).all())
    assert power_grid(1).tolist() == [1.0]
    assert power_grid(3, power=2.0).tolist() == pytest.approx([1.0, 0.25 + 0.75 * MIN_LEVEL, MIN_LEVEL])
    part = power_grid(4, start=0.5, end=0.05)
    assert part[[0, 3]].tolist() == pytest.approx([0.5, 0.05])
    assert (part.sub(MIN_LEVEL).sqrt().diff().diff().abs() < 1e-12).all()  # spaced as the whole grid is
    with pytest.raises(MoldiffError, match="steps: got 0"):
        power_grid(0)


def test_molecule_draws_do_not_depend_on_batch_or_padding() -> None:
    def drawn(index: int, indices: list[int], sizes: list[int], width: int) -> list[Tensor]:
        mask = torch.arange(width) < torch.tensor(sizes)[:, None]
        draws = PerMoleculeNoise([molecule_generator(7, k) for k in indices])
        row, size = indices.index(index), sizes[indices.index(index)]
        normal = draws.normal(mask, 4, 3)[row, :size]
        atoms, pairs = draws.uniform(mask)
        assert float(pairs[row, size:].abs().sum()) == 0
        return [normal, atoms[row, :size], pairs[row, :size, :size]]

    alone = drawn(3, [3], [4], 4)
    together = drawn(3, [1, 3, 8], [6, 4, 2], 9)
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))
    other_seed = PerMoleculeNoise([molecule_generator(8, 3)]).normal(torch.ones(1, 4, dtype=torch.bool), 4, 3)
    assert not torch.equal(other_seed[0], alone[0])


def test_posterior_has_one_entry_more_than_classes_for_the_mask() -> None:
    process = small_process()
    batch = random_batch([4])
    level = random_level(batch)
    lower = level.atom * 0.5
    posterior = process.atom_type.posterior(
        batch.atom_type, torch.full((1, 4, NUM_CLASSES), 1 / NUM_CLASSES).double(), level.atom, lower
    )
    assert posterior.shape == (1, 4, NUM_CLASSES + 1)
    torch.testing.assert_close(posterior.sum(-1), torch.ones(1, 4).double())


def test_second_order_steps_converge_faster_than_first_order_ones() -> None:
    """The probability-flow path of a Gaussian is known: x_0 = mean + std (x_1 - 0) at the end of the path."""
    process, mean, std = GaussianProcess(), 0.7, 0.4
    start = torch.linspace(-2, 2, 9, dtype=torch.double).view(1, 9, 1)

    def error(num_steps: int, order: int, from_noise: bool = False) -> float:
        grid = process.schedule.level(torch.linspace(-10, 10, num_steps, dtype=torch.double))
        if from_noise:
            grid = power_grid(num_steps)
        noisy, previous = start, None
        for step, (t, s) in enumerate(itertools.pairwise(grid)):
            clean = gaussian_mean(noisy, process.schedule.alpha(t), process.schedule.sigma(t), mean, std)
            blank = torch.zeros_like(clean)
            now = Prediction(clean, blank, blank, blank)
            target = now
            if order == 2 and previous is not None:
                mask = torch.ones(1, 9, dtype=torch.bool)
                levels = [NoiseLevel.uniform(level[None], mask) for level in grid[step - 1 : step + 2]]
                target = extrapolate(now, previous, levels, replace(small_process(), pos=process))
            noisy, previous = process.step(noisy, target.pos, t.expand(1, 9), s.expand(1, 9), None), now
        # Along the exact path the standardised coordinate is constant.
        alpha, sigma = (f(grid[0]) for f in (process.schedule.alpha, process.schedule.sigma))
        score = (start - alpha * mean) / (alpha**2 * std**2 + sigma**2).sqrt()
        alpha, sigma = (f(grid[-1]) for f in (process.schedule.alpha, process.schedule.sigma))
        exact = alpha * mean + (alpha**2 * std**2 + sigma**2).sqrt() * score
        return float((noisy - exact).abs().max())

    assert error(40, 2) < 0.35 * error(40, 1)
    assert error(80, 1) == pytest.approx(error(40, 1) / 2, rel=0.2)
    assert error(40, 2, from_noise=True) < 0.35 * error(40, 1, from_noise=True)


def moments_of_the_end(num_steps: int, *, order: int, churn: float) -> tuple[float, float]:
    """Factor on the mean and variance of what is sampled of N(0, 0.4²) from noise, exactly.

    With the exact denoiser every step is linear, so that the end is a sum of the first noise and of that of each step.
    Each "atom" carries the coefficient of one of them.
    """
    process, std = GaussianProcess(churn=churn), 0.4
    grid = process.schedule.level(torch.linspace(-9, 9, num_steps + 1, dtype=torch.double))
    noises = torch.eye(num_steps + 1, dtype=torch.double)[..., None]
    alpha, sigma = (f(grid[0]) for f in (process.schedule.alpha, process.schedule.sigma))
    noisy, previous = noises[:1] * (alpha**2 * std**2 + sigma**2).sqrt(), None
    mask = torch.ones(1, num_steps + 1, dtype=torch.bool)
    levels = [NoiseLevel.uniform(level[None], mask) for level in grid]
    for step, (t, s) in enumerate(itertools.pairwise(levels)):
        alpha, sigma = process.schedule.alpha(grid[step]), process.schedule.sigma(grid[step])
        clean = gaussian_mean(noisy, alpha, sigma, 0.0, std)
        blank = torch.zeros_like(clean)
        now = target = Prediction(clean, blank, blank, blank)
        if order == 2 and previous is not None:
            target = extrapolate(now, previous, levels[step - 1 : step + 2], replace(small_process(), pos=process))
        noisy, previous = process.step(noisy, target.pos, t.pos, s.pos, noises[step + 1 : step + 2]), now
    alpha, sigma = process.schedule.alpha(grid[-1]), process.schedule.sigma(grid[-1])
    return float(noisy.square().sum()), float(alpha**2 * std**2 + sigma**2)


@pytest.mark.parametrize("churn", [0.0, 0.5, 1.0, 2.0])
def test_variance_converges_by_the_order_of_the_solver(churn: float) -> None:
    def error(num_steps: int, order: int) -> float:
        got, exact = moments_of_the_end(num_steps, order=order, churn=churn)
        return abs(got / exact - 1)

    assert error(160, 1) == pytest.approx(error(80, 1) / 2, rel=0.15)
    assert error(160, 2) < 0.3 * error(80, 2)
    assert error(80, 2) < 0.3 * error(80, 1)


def test_noise_is_drawn_anew_only_between_the_levels_asked_for() -> None:
    process = GaussianProcess(churn=1.0, churn_levels=(0.2, 0.6))
    noisy, clean, noise = (torch.full((1, 1, 3), value).double() for value in (0.5, 0.2, 9.0))

    def moved(t: float, s: float) -> bool:
        levels = [torch.full((1, 1), value).double() for value in (t, s)]
        return not torch.equal(*(process.step(noisy, clean, *levels, drawn) for drawn in (noise, None)))

    assert [moved(0.9, 0.7), moved(0.5, 0.4), moved(0.3, 0.1), moved(0.1, 0.05)] == [False, True, True, False]


def test_refreshed_classes_have_the_law_of_their_level() -> None:
    process = CategoricalProcess(marginal_prior(torch.tensor([0.2, 0.3, 0.5]).double()), refresh=0.5)
    count = 40_000
    uniform = torch.rand(count, 2, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    level = torch.full((count,), 0.4).double()
    logits = FREQUENCIES.log().expand(count, 3)
    noisy = torch.zeros(count, dtype=torch.long)
    got = torch.bincount(process.refreshed(noisy, logits, level, uniform), minlength=4).double() / count
    fresh = 0.6 * FREQUENCIES + 0.4 * process.prior[:3]
    expected = 0.5 * torch.tensor([1.0, 0, 0]).double() + 0.5 * fresh
    torch.testing.assert_close(got[:3], expected, atol=0.01, rtol=0)
    assert torch.equal(process.refreshed(noisy, logits, 0 * level, uniform), noisy)  # what is known stays


def test_hydrogens_come_in_the_first_slots_nearest_the_middle_first_but_known_ones_in_any_order() -> None:
    clean = random_batch([4, 3])
    empty = torch.tensor([True, False, True, False])  # two hydrogens an atom, in slots 1 and 3
    clean = clean.replace(hydrogen=clean.hydrogen.masked_fill(empty[:, None], 0.0))
    draws = BatchNoise(torch.Generator().manual_seed(0), torch.double)
    free, known = torch.zeros_like(clean.node_mask), clean.node_mask
    ordered = ordered_slots(clean, free, draws)
    assert torch.equal(filled_slots(ordered), clean.node_mask[..., None] & torch.tensor([True, True, False, False]))
    torch.testing.assert_close(ordered.hydrogen.sum(2), clean.hydrogen.sum(2))
    middle = torch.stack([clean.pos[0].mean(0), clean.pos[1, :3].mean(0)])[:, None, None]
    away = (ordered.pos[:, :, None] + ordered.hydrogen - middle).norm(dim=-1)
    assert bool((away[..., 0] <= away[..., 1])[clean.node_mask].all())
    turned = ordered_slots(clean.replace(pos=-clean.pos, hydrogen=-clean.hydrogen), free, draws)
    torch.testing.assert_close(turned.hydrogen, -ordered.hydrogen)
    orders = {tuple(ordered_slots(clean, known, draws).hydrogen[0, 0, 0].tolist()) for _ in range(20)}
    assert orders == {tuple(clean.hydrogen[0, 0, slot].tolist()) for slot in (1, 3)}
