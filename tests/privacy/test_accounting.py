import math

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from privacy import (
    Budget,
    Composition,
    GaussianRelease,
    compose,
    delta_of,
    epsilon_of,
    mu_for,
    noise_std_for,
    noise_std_of,
)

mus = st.floats(1e-3, 12.0)
deltas = st.floats(1e-15, 1e-2)


def discrete_law(noise_std: float, *, reach: int) -> NDArray[np.float64]:
    grid = np.arange(-reach, reach + 1, dtype=np.float64)
    weights = np.exp(-(grid**2) / (2 * noise_std**2))
    return np.asarray(weights / weights.sum())


def hockey_stick(law: NDArray[np.float64], *, shift: int, epsilon: float) -> float:
    """Smallest delta of adding noise of this law to a number that moves by `shift`."""
    here = np.concatenate([law, np.zeros(shift)])
    there = np.concatenate([np.zeros(shift), law])
    return float(np.maximum(0.0, here - math.exp(epsilon) * there).sum())


def test_twenty_releases_at_half_the_noise_cost_the_known_epsilon() -> None:
    """Known answer: exact Gaussian, sigma 2, 20 rounds, delta 1e-6: 12.595."""
    releases = [GaussianRelease(sensitivity=10**6, noise_std=2e6)] * 20

    together = compose(releases)

    assert together.slack_delta == 0.0
    assert epsilon_of(together.mu, delta=1e-6) == pytest.approx(12.595, abs=5e-4)


@pytest.mark.parametrize(("noise_multiplier", "releases"), [(2.0, 20), (8.0, 40), (1.0, 1)])
def test_epsilon_agrees_with_dp_accounting(noise_multiplier: float, releases: int) -> None:
    """dp-accounting 0.6, connect the dots, interval 1e-3: pessimistic by about 1e-3."""
    oracle = privacy_loss_distribution.from_gaussian_mechanism(
        noise_multiplier, value_discretization_interval=1e-3
    ).self_compose(releases)

    ours = epsilon_of(math.sqrt(releases) / noise_multiplier, delta=1e-5)

    assert ours <= oracle.get_epsilon_for_delta(1e-5) + 1e-6
    assert ours == pytest.approx(oracle.get_epsilon_for_delta(1e-5), abs=3e-3)


@pytest.mark.parametrize(
    ("mu", "epsilon", "delta"),
    # mpmath 1.4.1 at 60 digits, from the formula of Balle and Wang.
    [
        (0.001, 0.001, 8.33571321252085e-5),
        (0.05, 0.3, 9.08033996640092e-12),
        (0.72, 3.0, 1.02485733287553e-5),
        (2.0, 30.0, 9.66210668297518e-46),
        (10.0, 100.0, 1.87971700205192e-7),
        (12.0, 100.0, 0.00799467229860689),
        (8.0, 90.0, 1.0792641132064e-13),
        (0.5, 4.0, 2.70603380295691e-16),
        (30.0, 1.0, 1.0),
    ],
)
def test_delta_keeps_its_digits_where_plain_floats_lose_them(
    mu: float, epsilon: float, delta: float
) -> None:
    assert delta_of(mu, epsilon=epsilon) == pytest.approx(delta, rel=1e-9)


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize(("noise_std", "shift"), [(30.0, 10), (30.0, 45), (57.3, 40)])
def test_discrete_noise_never_costs_more_than_it_is_accounted(
    noise_std: float, shift: int, epsilon: float
) -> None:
    law = discrete_law(noise_std, reach=int(14 * noise_std))
    release = GaussianRelease(sensitivity=shift, noise_std=noise_std)

    exact = hockey_stick(law, shift=shift, epsilon=epsilon)

    assert exact <= delta_of(release.mu, epsilon=epsilon) + 1e-15
    assert exact >= 0.85 * delta_of(release.mu, epsilon=epsilon) - 1e-15


def test_summed_shares_never_cost_more_than_they_are_accounted() -> None:
    share = discrete_law(30 / math.sqrt(5), reach=200)
    law = share
    for _ in range(4):
        law = np.convolve(law, share)
    release = GaussianRelease(sensitivity=30, noise_std=30.0)

    exact = hockey_stick(law, shift=30, epsilon=1.0)

    assert 0.9 * delta_of(release.mu, epsilon=1.0) <= exact <= delta_of(release.mu, epsilon=1.0)


@given(st.lists(st.tuples(st.floats(1, 1e6), st.floats(30, 1e6), st.floats(0, 1e-9))))
def test_composition_is_the_root_of_the_sum_of_squares_in_any_order(
    parts: list[tuple[float, float, float]],
) -> None:
    releases = [
        GaussianRelease(sensitivity=sensitivity, noise_std=noise_std, slack_delta=slack)
        for sensitivity, noise_std, slack in parts
    ]

    forward, backward = compose(releases), compose(reversed(releases))

    assert forward == backward
    assert forward.mu == pytest.approx(math.sqrt(sum(release.mu**2 for release in releases)))


def test_nothing_released_costs_nothing() -> None:
    assert compose([]) == Composition(mu=0.0, slack_delta=0.0)
    assert epsilon_of(0.0, delta=1e-6) == 0.0
    assert delta_of(0.0, epsilon=0.0) == 0.0


@given(mus, mus, deltas)
def test_epsilon_grows_with_mu(first: float, second: float, delta: float) -> None:
    small, large = sorted((first, second))

    assert epsilon_of(small, delta=delta) <= epsilon_of(large, delta=delta) * (1 + 1e-9)


@given(mus, deltas)
def test_epsilon_is_the_inverse_of_delta_rounded_up(mu: float, delta: float) -> None:
    epsilon = epsilon_of(mu, delta=delta)

    assert delta_of(mu, epsilon=epsilon) <= delta
    if epsilon > 1e-6:
        assert delta_of(mu, epsilon=epsilon * (1 - 1e-6)) > delta


@given(mus, deltas, st.floats(0, 1))
def test_slack_is_paid_in_both_worlds(mu: float, delta: float, part: float) -> None:
    slack = part * delta / (1 + math.exp(epsilon_of(mu, delta=delta / 2))) / 2

    epsilon = epsilon_of(mu, delta=delta, slack_delta=slack)

    assert epsilon >= epsilon_of(mu, delta=delta) * (1 - 1e-9)
    assert delta_of(mu, epsilon=epsilon, slack_delta=slack) <= delta


def test_slack_past_delta_leaves_no_guarantee() -> None:
    assert epsilon_of(1.0, delta=1e-6, slack_delta=1e-6) == math.inf
    assert delta_of(1.0, epsilon=700.0, slack_delta=1e-12) == 1.0


@given(st.floats(0.01, 100.0), deltas)
def test_the_mu_of_a_budget_spends_it_and_no_more(epsilon: float, delta: float) -> None:
    mu = mu_for(Budget(epsilon=epsilon, delta=delta))

    assert delta_of(mu, epsilon=epsilon) <= delta
    assert delta_of(mu * (1 + 1e-6), epsilon=epsilon) > delta


@pytest.mark.parametrize("releases", [1, 7, 40])
def test_planned_noise_fits_the_budget_to_the_last_release(releases: int) -> None:
    budget = Budget(epsilon=3.0, delta=1e-5)

    noise_std = noise_std_for(budget, sensitivity=10_000, releases=releases, slack_delta=1e-12)

    planned = [GaussianRelease(sensitivity=10_000, noise_std=noise_std, slack_delta=1e-12)]
    total = compose(planned * releases)
    epsilon = epsilon_of(total.mu, delta=1e-5, slack_delta=total.slack_delta)
    assert 2.999 < epsilon <= 3.0


def test_planned_noise_is_never_below_what_can_be_accounted() -> None:
    assert noise_std_of(5.0, sensitivity=1) == 30.0


def test_a_release_refuses_what_cannot_be_accounted() -> None:
    with pytest.raises(ValueError, match=r"sensitivity must be in \(0, 2\^53\], got 0"):
        GaussianRelease(sensitivity=0, noise_std=30.0)
    with pytest.raises(ValueError, match=r"sensitivity must be in \(0, 2\^53\], got nan"):
        GaussianRelease(sensitivity=math.nan, noise_std=30.0)
    with pytest.raises(ValueError, match=r"at least 30 for discrete noise .*, got 29\.9"):
        GaussianRelease(sensitivity=1, noise_std=29.9)
    with pytest.raises(ValueError, match=r"slack_delta must be in \[0, 1\), got -1"):
        GaussianRelease(sensitivity=1, noise_std=30.0, slack_delta=-1)


def test_the_formulas_refuse_arguments_out_of_range() -> None:
    with pytest.raises(ValueError, match="mu must be finite and at least 0, got nan"):
        delta_of(math.nan, epsilon=1.0)
    with pytest.raises(ValueError, match="epsilon must be finite and at least 0, got -1"):
        delta_of(1.0, epsilon=-1)
    with pytest.raises(ValueError, match=r"delta must be in \(0, 1\), got 0"):
        epsilon_of(1.0, delta=0)
    with pytest.raises(ValueError, match="slack_delta must be finite and at least 0, got -1"):
        epsilon_of(1.0, delta=0.1, slack_delta=-1)
    with pytest.raises(ValueError, match=r"slack_delta 0\.1 alone is past delta 1e-05"):
        mu_for(Budget(epsilon=3.0, delta=1e-5), slack_delta=0.1)
    with pytest.raises(ValueError, match="mu must be positive and finite, got 0"):
        noise_std_of(0, sensitivity=1)
    with pytest.raises(ValueError, match=r"sensitivity must be in \(0, 2\^53\], got -1"):
        noise_std_of(1.0, sensitivity=-1)
    with pytest.raises(ValueError, match="releases must be at least 1, got 0"):
        noise_std_for(Budget(epsilon=3.0, delta=1e-5), sensitivity=1, releases=0)
