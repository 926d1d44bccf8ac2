from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer

from models.recommendation import ItemGram, ItemRows, text_similarity
from models.sums import Layout, fit, symmetric
from privacy import Budget, quantise
from tests.models.contract import ITEMS, N_ITEMS, checkerboard, draw_items, item_rows

RECIPE: ItemGram = ITEMS.quiet  # type: ignore[assignment]
DIRECTION = np.sqrt(np.arange(1, N_ITEMS + 1) / np.arange(1, N_ITEMS + 1).sum())
ANNOUNCED = {"catalogue": np.arange(N_ITEMS, dtype=np.float64), "direction": DIRECTION}

DESCRIPTIONS = [
    "RED RETROSPOT BAG",
    "Blue retrospot bag, bag",
    "",
    "WHITE HANGING HEART T-LIGHT HOLDER",
    "heart of wicker, heart small, heart large",
    "Set of 6 t-lights",
    "12 4",
    "红色 袋子",
    "RED RETROSPOT BAG",
]


def recipe(**changes: Any) -> ItemGram:  # noqa: ANN401 - fields are of several types
    fields: dict[str, Any] = {
        "n_items": N_ITEMS,
        "catalogue_digest": "00",
        "as_of_day": 19_000,
        "catalogue_size": N_ITEMS,
        "popularity_noise_multiplier": 1e-9,
        "gram_noise_multiplier": 1e-9,
    }
    return ItemGram(**fields | changes)


def residual(rows: ItemRows, direction: np.ndarray[Any, np.dtype[np.float64]]) -> Any:  # noqa: ANN401
    """Unit rows without the direction, of length one again: (customers, items)."""
    dense = np.zeros((rows.n_customers, rows.n_items))
    for customer, (low, high) in enumerate(zip(rows.start[:-1], rows.start[1:], strict=True)):
        dense[customer, rows.item[low:high]] = rows.weight[low:high]
    dense /= np.linalg.norm(dense, axis=1, keepdims=True)
    rest = dense @ (np.eye(rows.n_items) - np.outer(direction, direction))
    return rest / np.linalg.norm(rest, axis=1, keepdims=True)


def test_without_noise_it_is_ease_in_its_closed_form() -> None:
    """Steck 2019, equation 8, from NumPy's inverse, on rows that are put on the same grid.

    Documented: the released popularity direction is taken out of every row first.
    """
    rows = checkerboard()
    popularity = rows.unit().toarray().sum(axis=0)
    direction = popularity / np.linalg.norm(popularity)
    grid = quantise(residual(rows, direction), clip_norm=1.0, scale=256) / 256
    inverse = np.linalg.inv(grid.T @ grid + 5.0 * np.eye(N_ITEMS))
    expected = np.eye(N_ITEMS) - inverse / np.diag(inverse)

    parameters = fit(RECIPE, rows, source=None)

    assert np.allclose(parameters["direction"], direction, atol=1e-4)
    assert np.allclose(parameters["item_weights"], expected, atol=2e-3)
    assert not parameters["item_weights"].diagonal().any()


def test_what_goes_together_has_no_popularity_left() -> None:
    gram = symmetric(RECIPE.answer(1, ANNOUNCED, checkerboard()) / 2**16)

    # 400 customers, each put on a grid of 1/256: the rest is rounding.
    assert abs(DIRECTION @ gram @ DIRECTION) < 400 * (N_ITEMS * (0.5 / 256) ** 2)
    assert np.trace(gram) == pytest.approx(400, rel=0.02)


def test_an_unknown_direction_leaves_the_gram_of_the_unit_rows() -> None:
    rows = checkerboard()
    nothing = ANNOUNCED | {"direction": np.zeros(N_ITEMS)}
    grid = quantise(rows.unit().toarray(), clip_norm=1.0, scale=256)

    assert np.array_equal(symmetric(RECIPE.answer(1, nothing, rows) * 1.0), grid.T @ grid)


def test_only_the_catalogue_takes_part() -> None:
    small = recipe(catalogue_size=3)
    announced = {"catalogue": np.array([1.0, 4.0, 9.0]), "direction": np.zeros(3)}
    rows = item_rows([{1: 1.0, 4: 1.0, 7: 1.0}, {7: 1.0}, {9: 0.5}])

    gram = symmetric(small.answer(1, announced, rows) * 1.0)

    half = round(256 / np.sqrt(2)) ** 2
    assert gram.tolist() == [[half, half, 0], [half, half, 0], [0, 0, 2**16]]


def test_the_catalogue_is_the_most_popular_items_in_ascending_order() -> None:
    total = np.array([5.0, -3.0, 9.0, 7.0, -1.0, 8.0] + [0.0] * 10)

    parameters = recipe(catalogue_size=3).advance(0, {}, total)

    assert parameters["catalogue"].tolist() == [2, 3, 5]
    assert parameters["direction"] == pytest.approx(np.array([9, 7, 8]) / np.sqrt(194))


def test_popularity_that_noise_made_negative_gives_no_direction() -> None:
    parameters = RECIPE.advance(0, {}, np.full(N_ITEMS, -2.0))

    assert parameters["direction"].tolist() == [0.0] * N_ITEMS


def test_eigenvalues_under_the_edge_of_noise_are_dropped() -> None:
    """The edge is 4 sqrt(2 * 16) = 22.6: of 22 nothing is left, of 40 what was under the noise."""
    noisy = recipe(gram_noise_multiplier=4.0)
    vectors = np.linalg.qr(np.random.default_rng(0).standard_normal((N_ITEMS, N_ITEMS)))[0]
    begun = noisy.advance(0, {}, np.ones(N_ITEMS))

    def weights(*eigenvalues: float) -> Any:  # noqa: ANN401
        values = np.array([*eigenvalues, *[0.0] * (N_ITEMS - len(eigenvalues))])
        matrix = (vectors * values) @ vectors.T
        total = matrix[np.triu_indices(N_ITEMS)]
        return noisy.advance(1, begun, total)["item_weights"]

    kept = (40 + np.sqrt(40**2 - 4**2 * 32)) / 2
    precision = np.eye(N_ITEMS) / 5 - np.outer(vectors[:, 0], vectors[:, 0]) * (
        1 / 5 - 1 / (kept + 5)
    )
    expected = -precision / np.diag(precision)
    np.fill_diagonal(expected, 0.0)
    assert np.allclose(weights(22.0, -30.0), 0, atol=1e-12)
    assert np.allclose(weights(40.0, 22.0), expected, atol=1e-12)


@given(
    st.lists(st.sampled_from([1.0, 0.5, 1e-5, 1e-160, 1e-300, 5e-324, 0.0]), max_size=N_ITEMS),
    st.integers(1, N_ITEMS - 1),
)
@settings(max_examples=100)
def test_a_long_and_ancient_history_moves_no_sum_further_than_the_bound(
    weights: list[float], stride: int
) -> None:
    rows = item_rows([dict(enumerate(weights)), {stride: 1.0}])
    without = item_rows([{stride: 1.0}])

    popularity = RECIPE.answer(0, {}, rows) - RECIPE.answer(0, {}, without)
    together = RECIPE.answer(1, ANNOUNCED, rows) - RECIPE.answer(1, ANNOUNCED, without)

    assert sum(int(value) ** 2 for value in popularity) <= 2**32
    matrix = symmetric(together.astype(np.float64)).astype(np.int64)
    assert sum(int(value) ** 2 for value in matrix.ravel()) <= 2**32


def test_an_item_that_a_customer_has_twice_moves_no_sum_further_either() -> None:
    twice = ItemRows(
        start=np.array([0, 3]), item=np.array([3, 3, 3]), weight=np.ones(3), n_items=N_ITEMS
    )

    assert np.abs(RECIPE.answer(0, {}, twice)).sum() <= 2**16
    assert np.linalg.norm(symmetric(RECIPE.answer(1, ANNOUNCED, twice) * 1.0)) <= 2**16


def test_unit_rows_have_length_one_and_empty_ones_none() -> None:
    rows = item_rows([{}, {1: 0.25, 2: 0.5}, {}, {5: 1e-200}, {7: 0.0}, {}])

    unit = rows.unit().toarray()

    assert np.linalg.norm(unit, axis=1) == pytest.approx([0, 1, 0, 1, 0, 0])
    assert unit[1, 2] / unit[1, 1] == pytest.approx(2)


def test_pooled_brands_keep_every_customer() -> None:
    parts = [item_rows([{1: 1.0}, {}]), item_rows([]), item_rows([{2: 0.5, 3: 0.25}])]

    pooled = ItemRows.pooled(parts)

    assert pooled.n_customers == 3
    assert pooled.start.tolist() == [0, 1, 1, 3]
    assert np.array_equal(
        pooled.unit().toarray(), np.concatenate([part.unit().toarray() for part in parts])
    )


def test_many_customers_are_summed_in_chunks_that_do_not_show() -> None:
    generator = np.random.default_rng(3)
    rows = draw_items(generator, 1100)
    halves = [ITEMS.pick(rows, range(513)), ITEMS.pick(rows, range(513, 1100))]

    for step, announced in enumerate(({}, ANNOUNCED)):
        parts = [RECIPE.answer(step, announced, half) for half in halves]
        assert np.array_equal(sum(parts), RECIPE.answer(step, announced, rows))


def test_the_default_schedule_is_popularity_and_what_goes_together() -> None:
    default = ItemGram.for_budget(
        Budget(epsilon=3.0, delta=1e-5),
        n_items=3000,
        catalogue_digest="00",
        as_of_day=19_000,
        expected_customers=4960,
    )

    popularity, together = default.queries
    assert default.catalogue_size == 318
    assert (popularity.dimension, together.dimension) == (3000, 318 * 319 // 2)
    assert (popularity.layout, together.layout) == (Layout.VECTOR, Layout.SYMMETRIC)
    mu_squared = [query.noise_multiplier**-2 for query in default.queries]
    assert mu_squared[0] / sum(mu_squared) == pytest.approx(0.15)


@pytest.mark.parametrize(("customers", "size"), [(1, 2), (10**9, 50)])
def test_the_catalogue_is_never_below_two_nor_past_all_items(customers: int, size: int) -> None:
    default = ItemGram.for_budget(
        Budget(epsilon=1.0, delta=1e-5),
        n_items=50,
        catalogue_digest="00",
        as_of_day=19_000,
        expected_customers=customers,
    )

    assert default.catalogue_size == size


def test_scores_add_popularity_and_text_where_they_are_wanted() -> None:
    rows = item_rows([{0: 1.0}])
    text = sparse.csr_array(([1.0], ([0], [5])), shape=(N_ITEMS, N_ITEMS))
    parameters = {
        "catalogue": np.arange(N_ITEMS, dtype=np.float64),
        "popularity": np.r_[np.ones(N_ITEMS - 1), 100.0],
        "item_weights": np.zeros((N_ITEMS, N_ITEMS)),
    }

    with_text = recipe(text_weight=1.0).scores(parameters, rows, text)
    without = recipe(text_weight=0.0).scores(parameters, rows, text)
    only_text = recipe(popularity_weight=0.0).scores(parameters, rows, text)

    assert with_text.shape == (1, N_ITEMS)
    assert with_text[0].argsort()[-2:].tolist() == [15, 5]
    assert without[0].argmax() == 15
    assert only_text[0].argmax() == 5
    assert np.isclose(only_text[0, 15], only_text[0, 0])


def test_scores_of_a_customer_without_items_are_finite() -> None:
    parameters = fit(RECIPE, checkerboard(), source=None)
    nothing = sparse.csr_array((N_ITEMS, N_ITEMS))

    scores = RECIPE.scores(parameters, item_rows([{}, {3: 1.0}]), nothing)

    assert np.isfinite(scores).all()
    assert np.ptp(RECIPE.scores(parameters, item_rows([]), nothing).shape) == N_ITEMS


def test_text_similarity_is_that_of_scikit_learn() -> None:
    """Fewer items than neighbours, so that only the diagonal is taken out."""
    words = r"[a-z]{2,}"
    vectorizer = TfidfVectorizer(sublinear_tf=True, smooth_idf=True, token_pattern=words)
    vectors = vectorizer.fit_transform(DESCRIPTIONS)
    expected = (vectors @ vectors.T).toarray()
    np.fill_diagonal(expected, 0.0)

    similarity = text_similarity(DESCRIPTIONS).toarray()

    assert similarity == pytest.approx(expected, abs=1e-12)
    assert similarity[0, 8] == pytest.approx(1)
    assert (similarity >= 0).all()
    assert (similarity <= 1 + 1e-12).all()


@pytest.mark.parametrize("empty", [2, 6, 7])
def test_an_item_without_latin_words_is_like_no_other(empty: int) -> None:
    similarity = text_similarity(DESCRIPTIONS).toarray()

    assert not similarity[empty].any()
    assert not similarity[:, empty].any()


@pytest.mark.parametrize("descriptions", [["", ""], ["red bag"], [""]])
def test_descriptions_that_say_nothing_are_no_fault(descriptions: list[str]) -> None:
    similarity = text_similarity(descriptions)

    assert similarity.shape == (len(descriptions), len(descriptions))
    assert not similarity.toarray().any()


def test_only_the_nearest_fifty_are_kept() -> None:
    """Item n shares ever fewer words with the first, so that all similarities differ."""
    words = [chr(97 + n // 26) + chr(97 + n % 26) for n in range(80)]
    descriptions = [" ".join(words[n:]) for n in range(80)]

    similarity = text_similarity(descriptions).toarray()

    assert (similarity > 0).sum(axis=1).max() == 50
    assert similarity[0].nonzero()[0].tolist() == list(range(1, 51))


def test_rows_of_another_catalogue_are_refused() -> None:
    with pytest.raises(
        ValueError, match="the plan numbers 16 items, the rows 17; nothing was summed"
    ):
        RECIPE.answer(0, {}, item_rows([{1: 1.0}], n_items=17))


@pytest.mark.parametrize(
    "wrong", [[-1, 2, 3], [2, 3, 16], [3, 2, 4], [2, 2, 3], [2, 3, 1e300], [2, 3, 3.5]]
)
def test_a_catalogue_that_is_no_ascending_list_of_items_is_refused(wrong: list[float]) -> None:
    announced = {"catalogue": np.array(wrong), "direction": np.zeros(3)}

    with pytest.raises(
        ValueError, match=r"^the catalogue must be ascending item numbers; nothing was summed$"
    ):
        recipe(catalogue_size=3).answer(1, announced, checkerboard())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"catalogue_size": 1}, r"catalogue_size must be in 2..16, got 1"),
        ({"catalogue_size": 17}, r"catalogue_size must be in 2..16, got 17"),
        ({"n_items": 1}, r"n_items must be 2 to 1.34218e\+08, got 1"),
        (
            {"popularity_noise_multiplier": 0.0},
            r"popularity_noise_multiplier must be 1e-12 to 1e\+12, got 0.0",
        ),
        (
            {"gram_noise_multiplier": float("nan")},
            r"gram_noise_multiplier must be 1e-12 to 1e\+12, got nan",
        ),
        ({"half_life_days": 0}, "half_life_days must be 1 to 36500, got 0"),
        ({"ridge": 0.0}, r"ridge must be 1e-12 to 1e\+12, got 0.0"),
        (
            {"popularity_weight": float("inf")},
            r"popularity_weight must be -1e\+12 to 1e\+12, got inf",
        ),
        ({"text_weight": float("nan")}, r"text_weight must be -1e\+12 to 1e\+12, got nan"),
    ],
)
def test_a_recipe_with_a_constant_out_of_range_is_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        recipe(**changes)
