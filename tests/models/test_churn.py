import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from models.churn import ChurnLogistic, ChurnRows
from models.evaluation import auc
from models.sums import Layout, fit, symmetric
from privacy import Budget
from tests.models.contract import CHURN, N_FEATURES, SNAPSHOT_DAYS

RECIPE: ChurnLogistic = CHURN.quiet  # type: ignore[assignment]
WEIGHTS = {"weights": np.array([0.3, -1.0, 2.0, 0.5, -0.2, 0.1])}


def recipe(**changes: float) -> ChurnLogistic:
    fields: dict[str, Any] = {
        "n_features": N_FEATURES,
        "snapshot_days": SNAPSHOT_DAYS,
        "horizon_days": 90,
        "expected_customers": 400,
        "second_moment_noise_multiplier": 1e-9,
        "gradient_noise_multiplier": 1e-9,
    }
    return ChurnLogistic(**fields | changes)


def noisy_outcomes(customers: int = 1500, *, snapshots: int = 1) -> ChurnRows:
    """Churn follows a logistic law of all features, so that no weight runs away."""
    generator = np.random.default_rng(1)
    n_rows = customers * snapshots
    features = generator.random((n_rows, N_FEATURES))
    chance = 1 / (1 + np.exp(-(features @ np.array([3.0, -2.0, 1.0]) - 0.6)))
    return ChurnRows(
        customer=np.repeat(np.arange(customers), snapshots),
        features=features,
        day=generator.integers(18_000, 20_000, size=n_rows),
        churned=(generator.random(n_rows) < chance).astype(np.float64),
    )


def one_customer(features: NDArray[np.float64], churned: NDArray[np.float64]) -> ChurnRows:
    n_rows = len(features)
    return ChurnRows(
        customer=np.zeros(n_rows, dtype=np.int64),
        features=features,
        day=np.arange(n_rows, dtype=np.int64) * 31 + 18_000,
        churned=churned,
    )


@pytest.mark.parametrize("snapshots", [1, 3])
def test_without_noise_it_reaches_the_logistic_regression_of_scikit_learn(snapshots: int) -> None:
    """No penalty on either side: `ridge` slows the steps here and does not move the optimum."""
    rows = noisy_outcomes(snapshots=snapshots)
    patient = recipe(expected_customers=1500, gradient_rounds=150, gradient_clip=100.0)
    design = patient.design(rows.features, rows.day)
    theirs = LogisticRegression(C=math.inf, fit_intercept=False, tol=1e-10, max_iter=1000)
    theirs.fit(design, rows.churned)

    parameters = fit(patient, rows, source=None)

    ours = patient.probability(parameters, rows.features, rows.day)
    expected = theirs.predict_proba(design)[:, 1]
    assert np.allclose(parameters["weights"], theirs.coef_[0], atol=2e-3)
    assert np.abs(ours - expected).max() < 1e-3
    assert auc(rows.churned, ours) == pytest.approx(auc(rows.churned, expected), abs=1e-4)


def test_eight_default_rounds_rank_as_well_as_scikit_learn() -> None:
    rows = noisy_outcomes()
    default = recipe(expected_customers=1500)
    theirs = LogisticRegression(C=math.inf, fit_intercept=False)
    theirs.fit(default.design(rows.features, rows.day), rows.churned)

    parameters = fit(default, rows, source=None)

    score = default.probability(parameters, rows.features, rows.day)
    expected = theirs.predict_proba(default.design(rows.features, rows.day))[:, 1]
    assert auc(rows.churned, score) == pytest.approx(auc(rows.churned, expected), abs=0.005)


def test_a_larger_ridge_only_walks_more_slowly() -> None:
    rows = noisy_outcomes()
    lengths = [
        np.linalg.norm(fit(recipe(ridge=ridge), rows, source=None)["weights"])
        for ridge in (1e-4, 1.0, 100.0)
    ]

    assert lengths[0] > lengths[1] > lengths[2] > 0


def test_second_moments_are_those_of_the_mean_over_a_customers_snapshots() -> None:
    rows = noisy_outcomes(50, snapshots=3)
    query = RECIPE.queries[0]
    design = RECIPE.design(rows.features, rows.day)

    answer = symmetric(RECIPE.answer(0, {}, rows) / query.scale)

    # Rows are put on a grid of 1/256: an error of up to 1/512 of a row's entry in each.
    assert np.abs(answer - design.T @ design / 3).max() < 150 * 2.5 / 256


def test_a_gradient_is_the_clipped_mean_over_a_customers_snapshots() -> None:
    rows = noisy_outcomes(50, snapshots=3)
    design = RECIPE.design(rows.features, rows.day)
    chance = 1 / (1 + np.exp(-(design @ WEIGHTS["weights"])))
    each = ((chance - rows.churned)[:, None] * design).reshape(50, 3, -1).mean(axis=1)
    norms = np.linalg.norm(each, axis=1, keepdims=True)
    expected = (each * np.minimum(1, 0.5 / norms)).sum(axis=0)

    answer = RECIPE.answer(1, WEIGHTS, rows) / RECIPE.queries[1].scale

    assert np.abs(answer - expected).max() < 50 / 2**16


@given(
    st.integers(1, 200),
    st.sampled_from([0.0, 1.0, -1e9, 1e100]),
    st.sampled_from([0.0, 1.0, 1e9, -1e200]),
    st.sampled_from([0.0, 1.0]),
)
@settings(max_examples=60)
def test_a_long_and_extreme_history_moves_no_sum_further_than_the_bound(
    snapshots: int, feature: float, churned: float, spread: float
) -> None:
    """Every row at its bound and all in one direction: the worst that a customer can be."""
    differences = np.linspace(0.0, spread, snapshots)[:, None]
    features = feature + np.repeat(differences, N_FEATURES, axis=1)
    rows = one_customer(features, np.full(snapshots, churned))
    moments, gradient = RECIPE.answer(0, {}, rows), RECIPE.answer(1, WEIGHTS, rows)

    diagonal = np.array(symmetric(moments.astype(np.float64)).diagonal(), dtype=np.int64)
    squares = sum(int(value) ** 2 for value in moments.tolist()) * 2
    squares -= sum(int(value) ** 2 for value in diagonal.tolist())
    assert squares <= int(2.5**2 * 2**16) ** 2
    assert int(diagonal.sum()) <= int(2.5**2 * 2**16)
    assert sum(int(value) ** 2 for value in gradient.tolist()) <= int(0.5 * 2**16) ** 2


def test_a_customer_at_the_bound_uses_nearly_all_of_it() -> None:
    """A bound that nobody reaches would waste noise; with four rows rounding costs 4 %."""
    rows = one_customer(np.full((4, N_FEATURES), 1e6), np.ones(4))
    query = RECIPE.queries[0]

    matrix = symmetric(RECIPE.answer(0, {}, rows) / query.scale)

    assert 0.96 < np.linalg.norm(matrix) / query.clip_norm <= 1


def test_the_default_schedule_is_one_matrix_and_eight_gradients() -> None:
    queries = ChurnLogistic.for_budget(
        Budget(epsilon=3.0, delta=1e-5),
        n_features=36,
        snapshot_days=SNAPSHOT_DAYS,
        horizon_days=90,
        expected_customers=5000,
    ).queries

    assert [query.name for query in queries] == [
        "second moments",
        *(f"gradient {step}" for step in range(1, 9)),
    ]
    assert [query.dimension for query in queries] == [39 * 40 // 2, *[39] * 8]
    assert [query.layout for query in queries] == [Layout.SYMMETRIC, *[Layout.VECTOR] * 8]
    mu_squared = [query.noise_multiplier**-2 for query in queries]
    assert mu_squared[0] / sum(mu_squared) == pytest.approx(0.3)
    assert mu_squared[1:] == [mu_squared[1]] * 8


def test_only_the_gradients_announce_anything_and_that_is_the_weights() -> None:
    parameters = fit(RECIPE, noisy_outcomes(20), source=None)

    assert RECIPE.announce(0, parameters) == {}
    assert list(RECIPE.announce(1, parameters)) == ["weights"]


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=N_FEATURES, max_size=N_FEATURES),
    st.integers(-50_000, 50_000),
)
def test_no_design_row_is_longer_than_the_bound(features: list[float], day: int) -> None:
    design = RECIPE.design(np.array([features]), np.array([day]))

    assert np.linalg.norm(design) <= 2.5 * (1 + 1e-12)


def test_a_short_design_row_is_intercept_centred_features_and_season() -> None:
    design = RECIPE.design(np.array([[0.45, 0.95, 0.0]]), np.array([0]))

    assert design[0].tolist() == pytest.approx([1, 0, 0.5, -0.45, 0, 0.5])


def test_probabilities_stay_in_their_range_for_any_weights() -> None:
    weights = {"weights": np.array([1e4, -1e4, 0, 0, 0, 0])}

    chance = RECIPE.probability(weights, np.array([[0.0, 0, 0], [1.0, 1, 1]]), np.array([0, 0]))

    assert ((chance >= 0) & (chance <= 1)).all()


def test_pooled_brands_keep_their_customers_apart() -> None:
    part = noisy_outcomes(3, snapshots=2)
    nobody = CHURN.pick(part, [])

    pooled = ChurnRows.pooled([part, nobody, part])

    assert pooled.customer.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert np.array_equal(pooled.features, np.r_[part.features, part.features])


@pytest.mark.parametrize("step", [0, 1])
def test_unsorted_customers_are_refused(step: int) -> None:
    rows = noisy_outcomes(3)
    shuffled = ChurnRows(
        customer=np.array([0, 2, 1]), features=rows.features, day=rows.day, churned=rows.churned
    )

    with pytest.raises(ValueError, match=r"^rows must be sorted by customer; nothing was summed$"):
        RECIPE.answer(step, WEIGHTS, shuffled)


def test_rows_with_other_features_than_the_plan_are_refused() -> None:
    rows = noisy_outcomes(3)
    wider = ChurnRows(
        customer=rows.customer,
        features=np.zeros((3, N_FEATURES + 1)),
        day=rows.day,
        churned=rows.churned,
    )

    with pytest.raises(
        ValueError,
        match=r"the plan names 3 features, the rows have shape \(3, 4\); nothing was summed",
    ):
        RECIPE.answer(0, {}, wider)


@pytest.mark.parametrize("step", [0, 1])
def test_features_that_are_no_numbers_are_refused(step: int) -> None:
    with pytest.raises(ValueError, match="must be finite"):
        RECIPE.answer(step, WEIGHTS, one_customer(np.full((1, N_FEATURES), np.nan), np.ones(1)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_features": 0}, "n_features must be 1 to 4096, got 0"),
        ({"horizon_days": 0}, "horizon_days must be 1 to 36500, got 0"),
        ({"expected_customers": 0}, "expected_customers must be 1 to .*, got 0"),
        (
            {"second_moment_noise_multiplier": math.nan},
            r"second_moment_noise_multiplier must be 1e-12 to 1e\+12, got nan",
        ),
        (
            {"gradient_noise_multiplier": 0.0},
            r"gradient_noise_multiplier must be 1e-12 to 1e\+12, got 0.0",
        ),
        ({"gradient_rounds": 10**9}, "gradient_rounds must be 1 to 1000, got 1000000000"),
        ({"momentum": 1.0}, "momentum must be 0 to 0.999, got 1.0"),
        ({"ridge": 0.0}, r"ridge must be 1e-12 to 1e\+12, got 0.0"),
        ({"gradient_clip": math.inf}, "gradient_clip must be 1e-12 to 16384, got inf"),
        ({"row_norm": 65.0}, "row_norm must be 1e-12 to 64, got 65.0"),
        ({"curvature_floor": -1.0}, r"curvature_floor must be 0 to 1e\+12, got -1.0"),
        ({"season_weight": math.nan}, r"season_weight must be 0 to 1e\+12, got nan"),
    ],
)
def test_a_recipe_with_a_constant_out_of_range_is_refused(
    changes: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        recipe(**changes)
