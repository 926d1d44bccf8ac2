import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from models.evaluation import Measure, auc, auc_measure, bootstrap, mean_measure, recall_at

# Few distinct scores, so that ties are the rule.
pairs = st.lists(st.tuples(st.booleans(), st.integers(-3, 3)), min_size=2, max_size=40).filter(
    lambda pairs: len({happened for happened, _ in pairs}) == 2
)

SCORES = np.array([[9.0, 8, 7, 6], [1, 2, 3, 4], [5, 6, 7, 8]])


def flags(*rows: str) -> NDArray[np.bool_]:
    """One row of ones and dots for each customer."""
    return np.array([[mark == "1" for mark in row] for row in rows])


@given(pairs)
def test_auc_is_that_of_scikit_learn_with_ties(pairs: list[tuple[bool, int]]) -> None:
    happened = np.array([float(yes) for yes, _ in pairs])
    score = np.array([float(value) for _, value in pairs])

    assert auc(happened, score) == pytest.approx(roc_auc_score(happened, score), abs=1e-12)


@pytest.mark.parametrize(
    ("score", "value"), [([1, 2, 3, 4], 1.0), ([4, 3, 2, 1], 0.0), ([7, 7, 7, 7], 0.5)]
)
def test_auc_of_the_best_the_worst_and_a_constant_score(score: list[float], value: float) -> None:
    assert auc(np.array([0.0, 0, 1, 1]), np.array(score, dtype=np.float64)) == value


@given(pairs, st.floats(0.1, 10), st.floats(-5, 5))
@settings(max_examples=50)
def test_auc_knows_only_the_order(
    pairs: list[tuple[bool, int]], slope: float, offset: float
) -> None:
    happened = np.array([float(yes) for yes, _ in pairs])
    score = np.array([float(value) for _, value in pairs])

    assert auc(happened, np.tanh(slope * score / 10) + offset) == auc(happened, score)


@pytest.mark.parametrize(("happened", "found"), [([1.0, 1], "2 and 0"), ([0.0, 0, 0], "0 and 3")])
def test_auc_of_one_outcome_is_refused(happened: list[float], found: str) -> None:
    with pytest.raises(ValueError, match=f"AUC needs both outcomes, got {found}"):
        auc(np.array(happened), np.arange(float(len(happened))))


def test_recall_counts_only_what_is_new() -> None:
    """The first finds one of its two new items, the second none, the third bought nothing new."""
    recall = recall_at(
        2,
        SCORES,
        seen=flags("1...", "...1", "11.."),
        bought=flags("11.1", "1..1", "11.."),
    )

    assert recall.tolist() == [0.5, 0.0]


@pytest.mark.parametrize(("k", "value"), [(1, 1.0), (2, 0.5), (3, 2 / 3), (4, 1.0)])
def test_recall_is_a_share_of_what_the_list_could_hold(k: int, value: float) -> None:
    """New are the items ranked 1, 3 and 4, so that a short list can hold k of them."""
    recall = recall_at(k, SCORES[:1], seen=flags("...."), bought=flags("1.11"))

    assert recall.tolist() == [pytest.approx(value)]


def test_a_list_longer_than_the_catalogue_holds_everything() -> None:
    recall = recall_at(20, SCORES, seen=SCORES > 8, bought=SCORES > 0)

    assert recall.tolist() == [1.0, 1.0, 1.0]


def test_what_was_seen_is_never_recommended_even_when_the_list_is_not_full() -> None:
    recall = recall_at(2, SCORES[:1], seen=flags("111."), bought=flags("1..1"))

    assert recall.tolist() == [1.0]


def test_without_new_purchases_there_is_no_recall() -> None:
    recall = recall_at(2, SCORES, seen=SCORES > 0, bought=SCORES > 0)

    assert recall.shape == (0,)


def test_a_list_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        recall_at(0, SCORES, seen=SCORES > 9, bought=SCORES > 0)


def test_an_interval_is_the_same_for_the_same_seed_only() -> None:
    values = np.random.default_rng(0).random(50)

    def measure(picked: NDArray[np.intp]) -> float:
        return float(values[picked].mean())

    first = bootstrap(measure, 50, seed=3)

    assert first == bootstrap(measure, 50, seed=3)
    assert (first.low, first.high) != (
        bootstrap(measure, 50, seed=4).low,
        bootstrap(measure, 50, seed=4).high,
    )
    assert first.low < first.value < first.high
    assert first.value == pytest.approx(values.mean())
    assert first.customers == 50


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    """200 samples of 80: 95 % intervals cover in 176 to 199 cases but for 1 seed in 1,000."""
    generator = np.random.default_rng(11)
    measures = [mean_measure(generator.random(80)) for _ in range(200)]

    assert 176 <= sum(measure.low <= 0.5 <= measure.high for measure in measures) <= 199


def test_the_interval_of_a_mean_has_the_width_that_theory_says() -> None:
    values = np.random.default_rng(5).standard_normal(2000)

    measure = mean_measure(values)

    assert measure.high - measure.low == pytest.approx(2 * 1.96 / np.sqrt(2000), rel=0.15)


def test_the_interval_of_an_auc_holds_it() -> None:
    generator = np.random.default_rng(2)
    happened = generator.integers(0, 2, size=200).astype(np.float64)
    score = happened + 2 * generator.standard_normal(200)

    measure = auc_measure(happened, score)

    assert measure.low < measure.value < measure.high
    assert measure.value == auc(happened, score)
    assert measure.customers == 200


def test_resamples_that_cannot_be_measured_are_left_out() -> None:
    """Of two customers half of the resamples have one outcome only; the others give 1."""
    measure = auc_measure(np.array([0.0, 1.0]), np.array([0.0, 1.0]))

    assert measure == Measure(value=1.0, low=1.0, high=1.0, customers=2)


def test_when_no_resample_can_be_measured_the_interval_is_unknown() -> None:
    def only_everybody(picked: NDArray[np.intp]) -> float:
        if len(set(picked.tolist())) < 100:
            raise ValueError("somebody is missing")
        return 1.0

    measure = bootstrap(only_everybody, 100, resamples=20)

    assert measure.value == 1.0
    assert np.isnan([measure.low, measure.high]).all()


def test_figures_of_nobody_are_refused() -> None:
    with pytest.raises(ValueError, match="the mean of no customer is not defined"):
        mean_measure(np.zeros(0))
    with pytest.raises(ValueError, match="AUC needs both outcomes, got 0 and 0"):
        auc_measure(np.zeros(0), np.zeros(0))
