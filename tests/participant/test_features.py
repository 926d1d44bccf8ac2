from random import Random
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from participant.features import FEATURES, Orders, Snapshots, snapshots

DAY = 15_000
HORIZON = 60
PEOPLE = 5

EDGES = [DAY - 366, DAY - 365, DAY - 90, DAY - 1, DAY, DAY + 1, DAY + HORIZON - 1, DAY + HORIZON]

order = st.tuples(
    st.integers(0, PEOPLE - 1),
    st.integers(DAY - 800, DAY + 200) | st.sampled_from(EDGES),
    st.floats(0, 1e6),
    st.integers(1, 300),
    st.integers(0, 10_000),
    st.booleans(),
)
brands = st.lists(order, max_size=40)


def orders_of(rows: list[tuple[Any, ...]]) -> Orders:
    customer, day, value, lines, units, is_return = (
        list(column) for column in (zip(*rows, strict=True) if rows else ([],) * 6)
    )
    return Orders(
        customer=np.array(customer, dtype=np.int64),
        day=np.array(day, dtype=np.int64),
        value=np.array(value, dtype=np.float64),
        lines=np.array(lines, dtype=np.float64),
        units=np.array(units, dtype=np.float64),
        is_return=np.array(is_return, dtype=np.bool_),
        n_customers=PEOPLE,
    )


def described(rows: list[tuple[Any, ...]], *days: int) -> Snapshots:
    return snapshots(orders_of(rows), days or (DAY,), horizon_days=HORIZON)


@given(brands)
def test_all_features_are_in_the_unit_interval(rows: list[tuple[Any, ...]]) -> None:
    result = described(rows, DAY, DAY - 100)

    assert result.features.shape == (len(result.customer), len(FEATURES))
    assert np.all((result.features >= 0) & (result.features <= 1))
    assert set(result.churned) <= {0.0, 1.0}
    assert np.all(np.diff(result.customer) >= 0)


@given(brands, st.lists(order, min_size=1, max_size=20))
def test_what_comes_later_changes_labels_and_no_feature(
    rows: list[tuple[Any, ...]], more: list[tuple[Any, ...]]
) -> None:
    later = [(who, max(day, DAY), *rest) for who, day, *rest in more]
    known = [row for row in rows if row[1] < DAY]

    alone, together = described(known), described(known + later)

    np.testing.assert_array_equal(alone.customer, together.customer)
    np.testing.assert_array_equal(alone.features, together.features)
    assert set(alone.churned) <= {1.0}
    back = {row[0] for row in later if row[1] < DAY + HORIZON and not row[-1]}
    assert [who in back for who in together.customer] == [not c for c in together.churned]


@given(brands, st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_matter(rows: list[tuple[Any, ...]], random: Random) -> None:
    # Two orders on one day have no order of their own, so that the last one is not defined.
    distinct = list({(row[0], row[1]): row for row in rows}.values())
    shuffled = random.sample(distinct, len(distinct))

    first, second = described(distinct), described(shuffled)

    np.testing.assert_array_equal(first.customer, second.customer)
    np.testing.assert_array_equal(first.churned, second.churned)
    np.testing.assert_allclose(first.features, second.features, rtol=1e-9, atol=1e-9)


@given(brands, st.lists(order, min_size=1, max_size=10))
def test_one_customers_orders_move_no_other_customer(
    rows: list[tuple[Any, ...]], more: list[tuple[Any, ...]]
) -> None:
    own = [(0, *row[1:]) for row in more]
    without, together = described(rows), described(rows + own)
    others, same = without.customer > 0, together.customer > 0

    np.testing.assert_array_equal(without.customer[others], together.customer[same])
    np.testing.assert_allclose(
        without.features[others], together.features[same], rtol=1e-9, atol=1e-9
    )


@given(brands)
@settings(max_examples=40)
def test_the_columns_are_what_their_names_say(rows: list[tuple[Any, ...]]) -> None:
    """Against a slow and separate reading of the definitions, one customer at a time."""
    result = described(rows, DAY, DAY - 45)

    for who, day, features in zip(result.customer, result.day, result.features, strict=True):
        found = dict(zip(FEATURES, features, strict=True))
        for name, value in _by_hand(rows, int(who), int(day)).items():
            assert found[name] == pytest.approx(value, abs=1e-9), name
    active = {
        (row[0], day)
        for row in rows
        for day in (DAY, DAY - 45)
        if day - 365 <= row[1] < day and not row[-1]
    }
    assert set(zip(result.customer.tolist(), result.day.tolist(), strict=True)) == active


def _by_hand(rows: list[tuple[Any, ...]], who: int, day: int) -> dict[str, float]:
    columns = ["who", "day", "value", "lines", "units", "back"]
    frame = pd.DataFrame(rows, columns=columns)
    past = frame[(frame["who"] == who) & (frame["day"] < day)]
    sales, backs = past[~past["back"].astype(bool)], past[past["back"].astype(bool)]
    visits = sorted(set(sales["day"]))
    gaps = np.diff(visits) if len(visits) > 1 else np.zeros(1)
    recency = day - visits[-1]

    def scaled(value: float, cap: float) -> float:
        return float(min(np.log1p(value) / np.log1p(cap), 1.0))

    def recent(days: int) -> pd.DataFrame:
        return sales[sales["day"] >= day - days]

    def trend(new: float, both: float, cap: float) -> float:
        change = np.log1p(new) - np.log1p(max(both - new, 0.0))
        return float(np.clip(0.5 + 0.5 * change / np.log1p(cap), 0, 1))

    values = {
        "recency_days": scaled(recency, 365),
        "tenure_days": scaled(day - visits[0], 730),
        "gap_mean_days": scaled(float(np.mean(gaps)), 365),
        "gap_std_days": scaled(float(np.std(gaps)), 180),
        "gap_max_days": scaled(float(np.max(gaps)), 365),
        "overdue_ratio": scaled(recency / (np.mean(gaps) if len(visits) > 1 else 90), 10),
        "order_value_mean": scaled(sales["value"].mean(), 5_000),
        "order_value_max": scaled(sales["value"].max(), 10_000),
        "lines_per_order": scaled(sales["lines"].mean(), 200),
        "units_per_order": scaled(sales["units"].mean(), 5_000),
        "active_months": scaled(len({(day - d) // 31 for d in recent(365)["day"]}), 12),
        "return_orders": scaled(len(backs), 20),
        "return_share": scaled(backs["value"].sum() / max(sales["value"].sum(), 1.0), 1),
        "spend_trend": trend(recent(90)["value"].sum(), recent(180)["value"].sum(), 20_000),
        "orders_trend": trend(len(recent(90)), len(recent(180)), 30),
    }
    for days in (30, 60, 90, 180, 365):
        values[f"orders_{days}"] = scaled(len(recent(days)), 30)
        values[f"spend_{days}"] = scaled(recent(days)["value"].sum(), 20_000)
    if sales["day"].is_unique:
        last = sales[sales["day"] == visits[-1]]
        values["order_value_last"] = scaled(float(last["value"].iloc[0]), 5_000)
    return values


def test_only_the_permitted_keep_their_orders_and_nobody_is_renumbered() -> None:
    orders = orders_of([(who, DAY - 5, 10.0, 1, 1, False) for who in range(PEOPLE)])
    permitted: NDArray[np.bool_] = np.array([True, False, True, False, False])

    kept = orders.only(permitted)

    assert kept.customer.tolist() == [0, 2]
    assert kept.n_customers == PEOPLE
    assert len(kept.day) == len(kept.value) == len(kept.lines) == len(kept.units) == 2


def test_the_first_and_last_day_of_a_window_are_as_stated() -> None:
    def one(day: int) -> Snapshots:
        return described([(0, DAY - 1, 10.0, 1, 1, False), (0, day, 10.0, 1, 1, False)])

    assert described([(0, DAY - 365, 1.0, 1, 1, False)]).customer.size == 1
    assert described([(0, DAY - 366, 1.0, 1, 1, False)]).customer.size == 0
    assert one(DAY).churned.tolist() == [0.0]
    assert one(DAY + HORIZON - 1).churned.tolist() == [0.0]
    assert one(DAY + HORIZON).churned.tolist() == [1.0]


@pytest.mark.parametrize(("days", "horizon"), [((), 60), ((DAY,), 0), ((DAY,), -1)])
def test_no_day_or_no_horizon_is_refused(days: tuple[int, ...], horizon: int) -> None:
    with pytest.raises(ValueError, match="need snapshot days and a positive horizon, got") as said:
        snapshots(orders_of([]), days, horizon_days=horizon)
    assert str(said.value).endswith(f"{days}, {horizon}")
