import math

import pytest

from privacy import Budget, BudgetExhausted


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.inf, math.nan])
def test_a_budget_refuses_an_epsilon_that_bounds_nothing(epsilon: float) -> None:
    with pytest.raises(ValueError, match=f"epsilon must be positive and finite, got {epsilon}"):
        Budget(epsilon=epsilon, delta=1e-5)


@pytest.mark.parametrize("delta", [0.0, -1e-5, 1.0, math.nan])
def test_a_budget_refuses_a_delta_that_is_no_chance(delta: float) -> None:
    with pytest.raises(ValueError, match=rf"delta must be in \(0, 1\), got {delta}"):
        Budget(epsilon=3.0, delta=delta)


def test_a_refusal_says_the_rule_the_values_and_that_nothing_left() -> None:
    budget = Budget(epsilon=3.0, delta=1e-5)

    refusal = BudgetExhausted(budget, purpose="churn", spent=2.5, after=3.25)

    assert str(refusal) == (
        "purpose churn: epsilon would be 3.25, the budget is 3 and 2.5 is spent "
        "(delta 1e-05); nothing was released"
    )
    assert (refusal.budget, refusal.purpose, refusal.spent, refusal.after) == (
        budget,
        "churn",
        2.5,
        3.25,
    )
