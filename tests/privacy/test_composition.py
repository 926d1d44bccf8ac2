import math

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.dp_event import DiscreteLaplaceDpEvent
from dp_accounting.pld.pld_privacy_accountant import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants import GaussianAccountant, PRVAccountant

from privacy import (
    Budget,
    GaussianRelease,
    LaplaceRelease,
    Release,
    SampledGaussianRelease,
    compose,
    epsilon_of,
    epsilon_planned,
)
from privacy.composition import (
    epsilon_filtered,
    renyi_cost,
    renyi_limit,
    renyi_order,
)

orders = st.integers(2, 64)
budgets = st.builds(Budget, epsilon=st.floats(0.1, 12), delta=st.floats(1e-12, 1e-3))


def steps(noise_multiplier: float, sampling_rate: float, count: int) -> SampledGaussianRelease:
    return SampledGaussianRelease(
        sensitivity=1000,
        noise_std=math.hypot(1000 * noise_multiplier, 3),
        sampling_rate=sampling_rate,
        steps=count,
    )


@pytest.mark.parametrize(
    ("noise_multiplier", "sampling_rate", "count", "epsilon"),
    [(1, 0.01, 1000, 2.125), (0.8, 0.005, 5000, 3.662), (1, 0.001, 10_000, 0.555)],
)
def test_steps_of_dp_sgd_cost_the_known_epsilon(
    noise_multiplier: float, sampling_rate: float, count: int, epsilon: float
) -> None:
    """Known answers at delta 1e-6, from dp-accounting 0.6 with a grid of 1e-4."""
    found = epsilon_planned([steps(noise_multiplier, sampling_rate, count)], delta=1e-6)

    assert found == pytest.approx(epsilon, abs=4e-3)
    assert found >= epsilon - 1e-3


@pytest.mark.parametrize(
    ("noise_multiplier", "sampling_rate", "count"), [(1, 0.01, 1000), (2, 0.02, 500)]
)
def test_the_planned_bound_agrees_with_another_accountant(
    noise_multiplier: float, sampling_rate: float, count: int
) -> None:
    """Opacus' PRV accountant bounds from above, with a slack of 0.01."""
    prv = PRVAccountant()
    prv.history = [(noise_multiplier, sampling_rate, count)]
    found = epsilon_planned([steps(noise_multiplier, sampling_rate, count)], delta=1e-6)

    assert found == pytest.approx(prv.get_epsilon(delta=1e-6), abs=0.02)


def test_the_accountant_that_is_never_used_is_below_the_truth() -> None:
    """Why Opacus' `gdp` has no place here: at little noise it promises eleven times too much."""
    wishful = GaussianAccountant()
    wishful.history = [(0.5, 0.001, 100)]

    honest = epsilon_planned([steps(0.5, 0.001, 100)], delta=1e-6)

    assert wishful.get_epsilon(delta=1e-6) < honest / 10


def test_gaussian_sums_alone_are_exact() -> None:
    releases = [GaussianRelease(sensitivity=10**6, noise_std=2e6, slack_delta=1e-12)] * 20
    total = compose(releases)

    assert epsilon_planned(releases, delta=1e-6) == epsilon_of(
        total.mu, delta=1e-6, slack_delta=total.slack_delta
    )
    assert epsilon_planned([], delta=1e-6) == 0


def test_kinds_compose_to_less_than_the_sum_of_their_parts() -> None:
    """A year: training, forty sums, twenty counts; the naive sum of epsilons is far larger."""
    sums = GaussianRelease(sensitivity=10, noise_std=100)
    count = LaplaceRelease(sensitivity=1, scale=10)
    year: list[Release] = [steps(1, 0.01, 1000), *[sums] * 40, *[count] * 20]

    together = epsilon_planned(year, delta=1e-6)
    alone = math.fsum(epsilon_planned([each], delta=1e-6) for each in year)

    oracle = PLDAccountant(value_discretization_interval=1e-3)
    oracle.compose(SelfComposedDpEvent(PoissonSampledDpEvent(0.01, GaussianDpEvent(1)), 1000))
    oracle.compose(GaussianDpEvent(1 / math.sqrt(40 * sums.mu**2)))
    oracle.compose(SelfComposedDpEvent(DiscreteLaplaceDpEvent(0.1, 1), 20))
    assert together == pytest.approx(oracle.get_epsilon(1e-6), rel=1e-3)
    assert together < 0.25 * alone


@given(orders, st.floats(0.5, 8), st.floats(1e-4, 1), st.integers(1, 1000))
@settings(max_examples=40)
def test_the_renyi_cost_of_dp_sgd_is_that_of_dp_accounting(
    order: int, noise_multiplier: float, sampling_rate: float, count: int
) -> None:
    release = steps(noise_multiplier, sampling_rate, count)
    accountant = RdpAccountant([order])
    accountant.compose(
        SelfComposedDpEvent(
            PoissonSampledDpEvent(sampling_rate, GaussianDpEvent(release.noise_multiplier)), count
        )
    )
    theirs = float(accountant._rdp[0])

    assert renyi_cost(release, order=order) == pytest.approx(theirs, rel=1e-6, abs=1e-9)


@given(orders, st.integers(1, 60), st.floats(0.5, 100))
def test_the_renyi_cost_of_counts_is_the_sum_over_the_integers(
    order: int, sensitivity: int, scale: float
) -> None:
    reach = int(60 * scale) + sensitivity
    grid = np.arange(-reach, reach + sensitivity + 1, dtype=np.float64)
    here, there = -np.abs(grid) / scale, -np.abs(grid - sensitivity) / scale
    log_mass = math.log(math.tanh(0.5 / scale))
    terms = order * here + (1 - order) * there + log_mass
    direct = float(np.logaddexp.reduce(terms)) / (order - 1)
    release = LaplaceRelease(sensitivity=sensitivity, scale=scale)

    assert renyi_cost(release, order=order) == pytest.approx(max(0, direct), rel=1e-6, abs=1e-9)
    assert renyi_cost(release, order=order) <= release.epsilon * (1 + 1e-9)


@given(orders, st.lists(st.integers(1, 40), min_size=2, max_size=5), st.floats(0.5, 100))
def test_counts_cost_most_when_one_of_them_takes_all(
    order: int, shifts: list[int], scale: float
) -> None:
    def cost(sensitivity: int) -> float:
        return renyi_cost(LaplaceRelease(sensitivity=sensitivity, scale=scale), order=order)

    assert math.fsum(map(cost, shifts)) <= cost(sum(shifts)) * (1 + 1e-9) + 1e-12


@given(budgets)
def test_the_filter_pays_for_what_the_budget_says(budget: Budget) -> None:
    most = renyi_limit(budget)

    assert epsilon_filtered(most, budget) == pytest.approx(budget.epsilon, rel=1e-9)
    assert epsilon_filtered(0.0, budget) == 0
    assert renyi_limit(budget, slack_delta=budget.delta) == -math.inf
    assert epsilon_filtered(most, budget, slack_delta=budget.delta) == math.inf
    assert epsilon_filtered(most, budget, slack_delta=budget.delta * 1e-9) > budget.epsilon


@given(budgets, st.floats(0.6, 4), st.floats(1e-3, 0.1), st.integers(1, 2000))
@settings(max_examples=15)
def test_the_filter_is_never_below_the_planned_bound(
    budget: Budget, noise_multiplier: float, sampling_rate: float, count: int
) -> None:
    """Whatever the order that the budget fixes, a filter cannot promise more than the truth."""
    release = steps(noise_multiplier, sampling_rate, count)
    cost = renyi_cost(release, order=renyi_order(budget))

    filtered = epsilon_filtered(cost, budget)

    assert filtered >= epsilon_planned([release], delta=budget.delta) * (1 - 1e-3) - 1e-3


def test_a_customer_with_many_rows_pays_for_one_customer() -> None:
    """Sampling customers: doubling their rows changes nothing, doubling the clip does."""
    once = steps(2, 0.01, 100)
    twice = SampledGaussianRelease(
        sensitivity=2 * once.sensitivity, noise_std=once.noise_std, sampling_rate=0.01, steps=100
    )

    assert epsilon_planned([twice], delta=1e-6) > 1.5 * epsilon_planned([once], delta=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sensitivity": 0}, "sensitivity must be positive and finite, got 0"),
        ({"noise_std": 29.0}, "noise_std must be finite and at least 30 .* got 29.0"),
        ({"sampling_rate": 0.0}, r"sampling_rate must be in \(0, 1\], got 0.0"),
        ({"steps": 0}, "steps must be 1 to 10000000, got 0"),
        ({"slack_delta": 1.0}, r"slack_delta must be in \[0, 1\), got 1.0"),
    ],
)
def test_steps_refuse_what_cannot_be_accounted(changes: dict[str, float], message: str) -> None:
    fields = {"sensitivity": 1.0, "noise_std": 40.0, "sampling_rate": 0.1, "steps": 5, **changes}

    with pytest.raises(ValueError, match=message):
        SampledGaussianRelease(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sensitivity": 0}, "sensitivity must be 1 to 4096, got 0"),
        ({"scale": math.inf}, "scale must be positive and finite, got inf"),
        ({"slack_delta": -1.0}, r"slack_delta must be in \[0, 1\), got -1.0"),
    ],
)
def test_counts_refuse_what_cannot_be_accounted(changes: dict[str, float], message: str) -> None:
    fields = {"sensitivity": 1, "scale": 10.0, **changes}

    with pytest.raises(ValueError, match=message):
        LaplaceRelease(**fields)  # type: ignore[arg-type]


def test_the_formulas_refuse_arguments_out_of_range() -> None:
    with pytest.raises(ValueError, match="order must be at least 2, got 1"):
        renyi_cost(LaplaceRelease(sensitivity=1, scale=1), order=1)
    with pytest.raises(ValueError, match=r"delta must be in \(0, 1\), got 1"):
        epsilon_planned([], delta=1)
