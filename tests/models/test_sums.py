"""The contract of every recipe, and what every query promises."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.sums import (
    Layout,
    Parameters,
    Query,
    Recipe,
    checked,
    fit,
    matrix_size,
    noise_multiplier,
    symmetric,
    upper_triangle,
)
from privacy import Budget, NoiseSource, compose, epsilon_of, symmetric_noise_std
from tests.models.contract import CASES, EASY

every_case = pytest.mark.parametrize("kind", CASES)

seeds = st.integers(0, 2**32 - 1)
easy_budgets = st.builds(Budget, epsilon=st.floats(0.1, 5.0), delta=st.just(1e-5))
budgets = st.builds(Budget, epsilon=st.floats(0.1, 8.0), delta=st.sampled_from([1e-5, 1e-6]))


def source() -> NoiseSource:
    return NoiseSource.deterministic(bytes(range(32)))


def keyed(number: int) -> NoiseSource:
    return NoiseSource.deterministic(bytes([number]) * 32)


def schedule(recipe: Recipe[Any], rows: object) -> list[Parameters]:
    """What is announced at each step when a recipe runs on these rows without noise."""
    parameters, announced = recipe.begin(), []
    for step, query in enumerate(recipe.queries):
        announced.append(recipe.announce(step, parameters))
        total = recipe.answer(step, announced[-1], rows)
        parameters = recipe.advance(step, parameters, total / query.scale)
    return announced


def squared_norm(query: Query, answer: NDArray[np.int64]) -> int:
    """L2 norm squared in exact integers; of a matrix Frobenius, so off the diagonal twice."""
    values: list[int] = answer.tolist()
    if query.layout is Layout.VECTOR:
        return sum(value * value for value in values)
    rows, columns = np.triu_indices(matrix_size(query.dimension))
    weights: list[int] = np.where(rows == columns, 1, 2).tolist()
    return sum(w * value * value for w, value in zip(weights, values, strict=True))


def squared_bound(query: Query) -> float:
    bound = query.clip_norm * query.scale
    assert bound == round(bound)
    return int(bound) ** 2


@every_case
def test_without_noise_a_recipe_finds_the_right_answer(kind: str) -> None:
    case = CASES[kind]
    parameters = fit(case.quiet, case.known, source=None)

    assert case.understood(case.quiet, parameters) > 0.99


@every_case
def test_at_an_easy_budget_a_recipe_still_finds_most_of_it(kind: str) -> None:
    case = CASES[kind]
    recipe = case.for_budget(EASY)

    # One draw is luck: guessing is right half of the time, and five draws average 0.85.
    understood = [
        case.understood(recipe, fit(recipe, case.known, source=keyed(number)))
        for number in range(5)
    ]

    assert np.mean(understood) > 0.75


@every_case
def test_without_noise_two_trainings_agree_to_the_last_bit(kind: str) -> None:
    case = CASES[kind]
    first, second = (fit(case.quiet, case.known, source=None) for _ in range(2))

    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)


@every_case
def test_with_the_same_keystream_two_trainings_agree_and_with_another_they_differ(
    kind: str,
) -> None:
    case = CASES[kind]
    recipe = case.for_budget(EASY)

    first, again, other = (
        fit(recipe, case.known, source=NoiseSource.deterministic(key))
        for key in (bytes(32), bytes(32), bytes(range(32)))
    )

    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert any(not np.array_equal(first[name], other[name]) for name in first)


@every_case
@pytest.mark.parametrize("noise_share", [1.0, 1000.0])
def test_heavy_noise_leaves_finite_parameters_of_the_announced_shape(
    kind: str, noise_share: float
) -> None:
    case = CASES[kind]
    recipe = case.for_budget(Budget(epsilon=0.01, delta=1e-6))
    for rows in (case.known, case.pick(case.known, [])):
        parameters = fit(recipe, rows, source=source(), noise_share=noise_share)

        assert all(np.isfinite(array).all() for array in parameters.values())


@every_case
def test_parameters_have_the_announced_shape(kind: str) -> None:
    case = CASES[kind]
    parameters = fit(case.quiet, case.known, source=None)

    assert {name: array.shape for name, array in parameters.items()} == dict(case.shapes)
    assert {array.dtype for array in parameters.values()} == {np.dtype(np.float64)}


@every_case
@given(budget=budgets, members=st.integers(3, 50))
@settings(max_examples=50)
def test_a_recipe_costs_its_budget_and_never_more(kind: str, budget: Budget, members: int) -> None:
    case = CASES[kind]
    recipe = case.for_budget(budget, members=members)

    cost = compose(query.release(shares=members) for query in recipe.queries)

    epsilon = epsilon_of(cost.mu, delta=budget.delta, slack_delta=cost.slack_delta)
    assert 0.999 * budget.epsilon <= epsilon <= budget.epsilon


@every_case
@given(seed=seeds, cuts=st.lists(st.integers(0, 25), max_size=5))
@settings(max_examples=40)
def test_federated_equals_central_to_the_last_digit(
    kind: str, seed: int, cuts: Sequence[int]
) -> None:
    case = CASES[kind]
    generator = np.random.default_rng(seed)
    rows = case.draw(generator, 25)
    order = generator.permutation(25).tolist()
    edges = [0, *sorted(cuts), 25]
    brands = [case.pick(rows, order[low:high]) for low, high in itertools.pairwise(edges)]
    pooled = case.pooled(brands)

    for step, announced in enumerate(schedule(case.quiet, rows)):
        parts = [case.quiet.answer(step, announced, brand) for brand in brands]
        for central in (rows, pooled):
            assert np.array_equal(sum(parts), case.quiet.answer(step, announced, central))


@every_case
@given(seed=seeds, customers=st.integers(1, 8), who=st.integers(0, 7))
@settings(max_examples=40)
def test_one_customer_moves_no_sum_further_than_the_bound(
    kind: str, seed: int, customers: int, who: int
) -> None:
    case = CASES[kind]
    rows = case.draw(np.random.default_rng(seed), customers)
    everybody = list(range(customers))
    without = case.pick(rows, [other for other in everybody if other != who % customers])

    for step, announced in enumerate(schedule(case.quiet, rows)):
        query = case.quiet.queries[step]
        moved = case.quiet.answer(step, announced, rows) - case.quiet.answer(
            step, announced, without
        )
        assert squared_norm(query, moved) <= squared_bound(query)


@every_case
def test_a_brand_without_permitted_rows_adds_zeros(kind: str) -> None:
    case = CASES[kind]
    nobody = case.pick(case.known, [])

    for step, announced in enumerate(schedule(case.quiet, case.known)):
        answer = case.quiet.answer(step, announced, nobody)

        assert answer.dtype == np.int64
        assert answer.tolist() == [0] * case.quiet.queries[step].dimension


@every_case
def test_every_answer_has_the_dimension_that_its_query_says(kind: str) -> None:
    case = CASES[kind]
    for step, announced in enumerate(schedule(case.quiet, case.known)):
        answer = case.quiet.answer(step, announced, case.known)

        assert answer.shape == (case.quiet.queries[step].dimension,)
        assert answer.dtype == np.int64


@every_case
def test_announced_arrays_that_do_not_fit_are_refused(kind: str) -> None:
    case = CASES[kind]
    announced = schedule(case.quiet, case.known)
    for step, arrays in enumerate(announced):
        for name, array in arrays.items():
            shape = rf"\({array.size},\)"
            for wrong, found in (
                (None, "nothing"),
                (array[:-1], rf"shape \({array.size - 1},\)"),
                (array[None], rf"shape \(1, {array.size}\)"),
                (np.where(np.arange(array.size) == 1, np.nan, array), f"shape {shape}"),
                (np.where(np.arange(array.size) == 1, np.inf, array), f"shape {shape}"),
            ):
                changed = {other: arrays[other] for other in arrays if other != name}
                if wrong is not None:
                    changed[name] = wrong

                sentence = (
                    rf"^the recipe needs a finite {name} of shape {shape}, got {found}; "
                    "nothing was summed$"
                )
                with pytest.raises(ValueError, match=sentence):
                    case.quiet.answer(step, changed, case.known)


@every_case
def test_a_recipe_neither_changes_what_it_is_given_nor_draws_at_random(kind: str) -> None:
    case = CASES[kind]
    parameters = dict(fit(case.quiet, case.known, source=None))
    before = {name: array.copy() for name, array in parameters.items()}
    last = len(case.quiet.queries) - 1
    total = np.linspace(-1.0, 1.0, case.quiet.queries[last].dimension)

    first, second = (case.quiet.advance(last, parameters, total) for _ in range(2))

    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert all(np.array_equal(parameters[name], before[name]) for name in before)
    assert np.array_equal(total, np.linspace(-1.0, 1.0, total.size))


@every_case
def test_the_noise_of_a_query_is_its_multiple_of_the_bound(kind: str) -> None:
    case = CASES[kind]
    for query in case.for_budget(EASY).queries:
        std = query.noise_multiplier * query.clip_norm * query.scale
        release = query.release(shares=4)

        assert query.total_noise_std == std
        assert (release.noise_std, release.sensitivity) == (std, query.clip_norm * query.scale)
        diagonal = np.max(query.noise_std(fraction=0.5))
        assert diagonal == pytest.approx(std / 2, rel=1e-12)


def test_a_symmetric_query_has_less_noise_off_the_diagonal() -> None:
    query = Query(
        name="moments",
        dimension=6,
        clip_norm=2.0,
        scale=64,
        noise_multiplier=3.0,
        layout=Layout.SYMMETRIC,
    )

    noise_std = query.noise_std(fraction=0.5)

    assert np.array_equal(noise_std, symmetric_noise_std(3, 192.0))
    off = math.sqrt((192.0**2 + 9) / 2)
    assert np.asarray(noise_std).tolist() == [192.0, off, off, 192.0, off, 192.0]


def test_a_vector_query_has_the_same_noise_everywhere() -> None:
    query = Query(name="gradient", dimension=6, clip_norm=2.0, scale=64, noise_multiplier=3.0)

    assert query.noise_std(fraction=0.5) == 192.0


class Asks:
    """The smallest recipe: one sum of whatever the rows are, kept as it comes."""

    def __init__(self, query: Query) -> None:
        self.queries = (query,)

    def begin(self) -> Parameters:
        """Nothing."""
        return {}

    def announce(self, step: int, parameters: Parameters) -> Parameters:
        """Nothing."""
        return {}

    def answer(
        self, step: int, announced: Parameters, rows: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """The rows as they are."""
        return rows

    def advance(
        self, step: int, parameters: Parameters, total: NDArray[np.float64]
    ) -> Mapping[str, NDArray[np.float64]]:
        """The noised sum as it is."""
        return {"total": total}


@pytest.mark.parametrize("layout", Layout)
def test_training_draws_the_noise_that_the_query_says(layout: Layout) -> None:
    """Spread of 20,100 draws; each side of 5 standard errors fails for 1 key in 3 million."""
    query = Query(
        name="noise",
        dimension=200 * 201 // 2,
        clip_norm=1.0,
        scale=100,
        noise_multiplier=4.0,
        layout=layout,
    )
    rows = np.full(query.dimension, 700, dtype=np.int64)

    total = fit(Asks(query), rows, source=source(), noise_share=1.5)["total"]

    expected = np.broadcast_to(query.noise_std(fraction=1.5), total.shape) / query.scale
    noise = (total - 7.0) / expected
    assert np.mean(noise**2) == pytest.approx(1, abs=5 * math.sqrt(2 / total.size))
    assert np.mean(noise) == pytest.approx(0, abs=5 * math.sqrt(1 / total.size))
    if layout is Layout.SYMMETRIC:
        rows_of, columns = np.triu_indices(200)
        for part, std in ((rows_of == columns, 6.0), (rows_of != columns, 6.0 / math.sqrt(2))):
            spread = np.sqrt(np.mean((total[part] - 7.0) ** 2))
            assert spread == pytest.approx(std, rel=5 / math.sqrt(2 * part.sum()))


def test_training_without_a_source_adds_nothing() -> None:
    query = Query(name="plain", dimension=2, clip_norm=1.0, scale=100, noise_multiplier=4.0)

    parameters = fit(Asks(query), np.array([250, -50]), source=None)

    assert parameters["total"].tolist() == [2.5, -0.5]


@given(easy_budgets, st.floats(0.05, 1.0), st.integers(1, 30))
@settings(max_examples=50)
def test_equal_queries_take_their_share_of_the_squared_budget(
    budget: Budget, share: float, queries: int
) -> None:
    one = noise_multiplier(budget, share=1.0)

    multiplier = noise_multiplier(budget, share=share, queries=queries)

    assert queries / multiplier**2 == pytest.approx(share / one**2)


@given(st.integers(1, 40), seeds)
def test_an_upper_triangle_reads_back_as_the_symmetric_matrix(size: int, seed: int) -> None:
    square = np.random.default_rng(seed).integers(-100, 100, size=(size, size))
    matrix = square + square.T

    vector = upper_triangle(matrix)

    assert matrix_size(vector.size) == size
    assert np.array_equal(symmetric(vector.astype(np.float64)), matrix)


def test_what_is_no_upper_triangle_is_refused() -> None:
    with pytest.raises(ValueError, match="5 entries are no upper triangle; nothing was reshaped"):
        matrix_size(5)


def test_an_announced_array_that_fits_is_given_back() -> None:
    weights = np.arange(3.0)

    assert checked({"weights": weights}, "weights", (3,)) is weights


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dimension": 0}, "dimension and scale must be at least 1, got 0 and 2"),
        ({"scale": 0}, "dimension and scale must be at least 1, got 3 and 0"),
        ({"clip_norm": 0.0}, "clip_norm must be positive and finite, got 0.0"),
        ({"clip_norm": math.nan}, "clip_norm must be positive and finite, got nan"),
        ({"noise_multiplier": math.inf}, "noise_multiplier must be positive and finite, got inf"),
    ],
)
def test_a_query_that_cannot_be_priced_is_refused(changes: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {
        "name": "sum",
        "dimension": 3,
        "clip_norm": 1.0,
        "scale": 2,
        "noise_multiplier": 1.0,
    }

    with pytest.raises(ValueError, match=message):
        Query(**good | changes)
