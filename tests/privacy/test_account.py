import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy import (
    Accounting,
    Budget,
    BudgetExhausted,
    GaussianRelease,
    LaplaceRelease,
    Release,
    SampledGaussianRelease,
    compose,
    epsilon_of,
    epsilon_planned,
)
from privacy.account import Account

BUDGET = Budget(epsilon=3.0, delta=1e-6)
SUMS = GaussianRelease(sensitivity=100, noise_std=1000, slack_delta=1e-13)
COUNTS = LaplaceRelease(sensitivity=1, scale=20)
STEPS = SampledGaussianRelease(sensitivity=100, noise_std=120, sampling_rate=0.01, steps=100)

releases = st.lists(
    st.one_of(
        st.builds(
            GaussianRelease,
            sensitivity=st.floats(1, 100),
            noise_std=st.floats(100, 1e4),
            slack_delta=st.floats(0, 1e-10),
        ),
        st.builds(LaplaceRelease, sensitivity=st.integers(1, 3), scale=st.floats(5, 50)),
    ),
    max_size=8,
)


def fill(account: Account, release: Release, *, most: int) -> int:
    """Charge until the answer is no; return how often the answer was yes."""
    for count in range(most):
        try:
            account.admit("churn", release)
        except BudgetExhausted:
            return count
        account.charge(release)
    return most


@given(releases)
def test_no_order_of_charges_changes_what_was_spent(charged: list[Release]) -> None:
    there, back = Account(BUDGET, Accounting.ADAPTIVE), Account(BUDGET, Accounting.ADAPTIVE)
    for release in charged:
        there.charge(release)
    for release in reversed(charged):
        back.charge(release)

    assert there.spent() == back.spent()
    assert there.remaining() == back.remaining()


@given(releases)
@settings(max_examples=30)
def test_the_bound_of_an_adaptive_budget_is_never_below_the_planned_one(
    charged: list[Release],
) -> None:
    account = Account(BUDGET, Accounting.ADAPTIVE)
    for release in charged:
        account.charge(release)

    planned = epsilon_planned(charged, delta=BUDGET.delta)

    assert account.spent().epsilon >= planned * (1 - 1e-3) - 1e-3


@pytest.mark.parametrize("accounting", Accounting)
def test_a_settled_charge_leaves_what_the_smaller_one_would_have(accounting: Accounting) -> None:
    settled, fresh = Account(BUDGET, accounting), Account(BUDGET, accounting)
    smaller = GaussianRelease(sensitivity=10, noise_std=1000, slack_delta=1e-14)
    for account in (settled, fresh):
        account.charge(SUMS)
    settled.charge(SUMS)
    settled.settle(SUMS, smaller)
    fresh.charge(smaller)

    assert settled.spent() == fresh.spent()
    assert settled.remaining() == fresh.remaining()


@pytest.mark.parametrize(
    ("accounting", "release"),
    [
        (Accounting.GAUSSIAN, SUMS),
        (Accounting.ADAPTIVE, SUMS),
        (Accounting.ADAPTIVE, COUNTS),
        (Accounting.ADAPTIVE, STEPS),
        (Accounting.PLANNED, STEPS),
    ],
)
def test_what_is_affordable_is_what_is_admitted(accounting: Accounting, release: Release) -> None:
    account = Account(BUDGET, accounting)
    promised = account.affordable(release, most=2000)

    admitted = fill(account, release, most=2000)

    assert admitted == promised
    assert 5 < admitted < 2000
    assert account.spent().epsilon <= BUDGET.epsilon
    assert account.affordable(release, most=2000) == 0


def test_a_plan_buys_more_than_a_filter() -> None:
    """What is fixed beforehand can be counted exactly: that is worth releases."""
    planned = Account(BUDGET, Accounting.PLANNED).affordable(STEPS, most=2000)
    adaptive = Account(BUDGET, Accounting.ADAPTIVE).affordable(STEPS, most=2000)

    assert planned > 1.1 * adaptive


@pytest.mark.parametrize("accounting", Accounting)
def test_the_remaining_mu_can_be_spent_and_little_more(accounting: Accounting) -> None:
    account = Account(BUDGET, accounting)
    account.charge(SUMS)
    if accounting is not Accounting.GAUSSIAN:
        account.charge(COUNTS)
    left = account.remaining().mu

    account.admit("churn", GaussianRelease(sensitivity=1e4 * left * (1 - 1e-6), noise_std=1e4))
    with pytest.raises(BudgetExhausted):
        account.admit("churn", GaussianRelease(sensitivity=1e4 * left * 1.01, noise_std=1e4))


def test_an_exhausted_budget_has_nothing_left() -> None:
    account = Account(BUDGET, Accounting.ADAPTIVE)
    account.charge(LaplaceRelease(sensitivity=10, scale=1))

    left = account.remaining()

    assert (left.epsilon, left.mu) == (0, 0)


def test_ten_thousand_charges_are_counted_to_the_last_digit() -> None:
    account = Account(BUDGET, Accounting.GAUSSIAN)
    small = GaussianRelease(sensitivity=1, noise_std=1234.5, slack_delta=1e-18)
    for _ in range(10_000):
        account.charge(small)
    total = compose([small] * 10_000)

    spent = account.spent()

    assert spent.releases == 10_000
    exact = epsilon_of(total.mu, delta=1e-6, slack_delta=total.slack_delta)
    assert spent.epsilon == pytest.approx(exact, rel=1e-9)
    assert math.isclose(account.remaining().epsilon, BUDGET.epsilon - exact, rel_tol=1e-9)


def test_bad_questions_are_refused_in_words() -> None:
    account = Account(BUDGET, Accounting.GAUSSIAN)

    with pytest.raises(ValueError, match="most must be at least 1, got 0"):
        account.affordable(SUMS, most=0)
    with pytest.raises(ValueError, match="does not pay for a LaplaceRelease"):
        account.affordable(COUNTS, most=1)
