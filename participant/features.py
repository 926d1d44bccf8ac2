"""Turn one brand's orders into churn features and labels, as of any day, without looking ahead.

Only arrays go in and come out. A feature of day t uses orders strictly before t; a label of
day t uses orders of [t, t + horizon). All scaling is by the public constants below, so that
nothing about the customers leaks through a fitted scaler.

Source of the feature list: docs/explanation/models.md.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WINDOWS_DAYS = (30, 60, 90, 180, 365)
ACTIVE_DAYS = 365
_MOST_DAYS = 10_000_000  # More days than from the year 1 to 9999.

# Name and public cap of each feature: log1p(value) / log1p(cap), cut to [0, 1].
_CAPPED: tuple[tuple[str, float], ...] = (
    ("recency_days", 365),
    ("tenure_days", 730),
    *((f"orders_{days}", 30) for days in WINDOWS_DAYS),
    *((f"spend_{days}", 20_000) for days in WINDOWS_DAYS),
    ("gap_mean_days", 365),
    ("gap_std_days", 180),
    ("gap_max_days", 365),
    ("overdue_ratio", 10),
    ("order_value_mean", 5_000),
    ("order_value_max", 10_000),
    ("order_value_last", 5_000),
    ("lines_per_order", 200),
    ("units_per_order", 5_000),
    ("active_months", 12),
    ("return_orders", 20),
    ("return_share", 1),
)
# Differences of logs, mapped from [-1, 1] of the cap to [0, 1].
_TRENDS: tuple[tuple[str, float], ...] = (("spend_trend", 20_000), ("orders_trend", 30))
FEATURES: tuple[str, ...] = tuple(name for name, _ in (*_CAPPED, *_TRENDS))


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """One brand's orders and returns, one entry an invoice.

    Attributes:
        customer: Dense customer number, shape (n_orders,); int64 in [0, n_customers).
        day: Days since 1970-01-01, shape (n_orders,); int64.
        value: Sum of quantity times price, in the brand's currency; >= 0, shape (n_orders,).
        lines: Invoice lines, shape (n_orders,).
        units: Pieces, shape (n_orders,).
        is_return: True where goods came back, shape (n_orders,).
        n_customers: Number of customers that `customer` counts.
    """

    customer: NDArray[np.int64]
    day: NDArray[np.int64]
    value: NDArray[np.float64]
    lines: NDArray[np.float64]
    units: NDArray[np.float64]
    is_return: NDArray[np.bool_]
    n_customers: int

    def only(self, permitted: NDArray[np.bool_]) -> "Orders":
        """The orders of permitted customers; customer numbers stay as they are."""
        kept = permitted[self.customer]
        return Orders(
            customer=self.customer[kept],
            day=self.day[kept],
            value=self.value[kept],
            lines=self.lines[kept],
            units=self.units[kept],
            is_return=self.is_return[kept],
            n_customers=self.n_customers,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshots:
    """Features of customers on some days, sorted by customer.

    Attributes:
        customer: Dense customer number of each row, shape (n_rows,), ascending.
        features: Scaled to [0, 1], shape (n_rows, n_features), in the order of `FEATURES`.
        day: The snapshot day of each row, shape (n_rows,).
        churned: 1 where no purchase came within the horizon, else 0, shape (n_rows,).
    """

    customer: NDArray[np.int64]
    features: NDArray[np.float64]
    day: NDArray[np.int64]
    churned: NDArray[np.float64]


def snapshots(orders: Orders, days: tuple[int, ...], *, horizon_days: int) -> Snapshots:
    """Describe every customer who was active in the year before each of `days`.

    Args:
        orders: All orders of the brand; those on or after a snapshot day only label it.
        days: Snapshot days, since 1970-01-01.
        horizon_days: Length of the label window, which must lie inside the data.

    Returns:
        One row per customer and day on which that customer had bought within 365 days.

    Raises:
        ValueError: no days, or the horizon is not positive.
    """
    if not days or horizon_days <= 0:
        raise ValueError(f"need snapshot days and a positive horizon, got {days}, {horizon_days}")
    parts = [_snapshot(orders, day, horizon_days=horizon_days) for day in days]
    customer = np.concatenate([part.customer for part in parts])
    order = np.argsort(customer, kind="stable")
    return Snapshots(
        customer=customer[order],
        features=np.concatenate([part.features for part in parts])[order],
        day=np.concatenate([part.day for part in parts])[order],
        churned=np.concatenate([part.churned for part in parts])[order],
    )


def _snapshot(orders: Orders, day: int, *, horizon_days: int) -> Snapshots:
    past = orders.day < day
    sale = past & ~orders.is_return
    columns = _sale_columns(orders, sale, day) | _return_columns(orders, past, sale)
    n = orders.n_customers
    active = np.bincount(orders.customer[sale & (orders.day >= day - ACTIVE_DAYS)], minlength=n) > 0
    window = ~orders.is_return & (orders.day >= day) & (orders.day < day + horizon_days)
    returned = np.bincount(orders.customer[window], minlength=n) > 0
    who = np.flatnonzero(active)
    return Snapshots(
        customer=who,
        features=_scale(columns)[who],
        day=np.full(who.size, day),
        churned=(~returned[who]).astype(np.float64),
    )


def _sale_columns(
    orders: Orders, sale: NDArray[np.bool_], day: int
) -> dict[str, NDArray[np.float64]]:
    n, who, when = orders.n_customers, orders.customer[sale], orders.day[sale]
    value = orders.value[sale]
    count = np.bincount(who, minlength=n).astype(np.float64)
    some = np.maximum(count, 1)
    last, first = np.full(n, day - 10_000), np.full(n, day)
    np.maximum.at(last, who, when)
    np.minimum.at(first, who, when)
    columns = {
        "recency_days": (day - last).astype(float),
        "tenure_days": (day - first).astype(float),
    }
    for days in WINDOWS_DAYS:
        recent = when >= day - days
        columns[f"orders_{days}"] = np.bincount(who[recent], minlength=n).astype(float)
        columns[f"spend_{days}"] = np.bincount(who[recent], value[recent], minlength=n)
    columns |= _gap_columns(who, when, n)
    # A customer with one order has no gap of its own: the public 90 days stand in.
    usual = np.where(columns["gap_mean_days"] > 0, columns["gap_mean_days"], 90.0)
    columns["overdue_ratio"] = columns["recency_days"] / usual
    columns["order_value_mean"] = np.bincount(who, value, minlength=n) / some
    largest, latest = np.zeros(n), np.zeros(n)
    np.maximum.at(largest, who, value)
    by_day = np.argsort(when, kind="stable")
    latest[who[by_day]] = value[by_day]
    columns["order_value_max"], columns["order_value_last"] = largest, latest
    columns["lines_per_order"] = np.bincount(who, orders.lines[sale], minlength=n) / some
    columns["units_per_order"] = np.bincount(who, orders.units[sale], minlength=n) / some
    year = when >= day - ACTIVE_DAYS
    month = np.unique(who[year] * 64 + (day - when[year]) // 31)
    columns["active_months"] = np.bincount(month // 64, minlength=n).astype(float)
    before = np.log1p(columns["spend_180"] - columns["spend_90"])
    columns["spend_trend"] = np.log1p(columns["spend_90"]) - before
    earlier = np.log1p(columns["orders_180"] - columns["orders_90"])
    columns["orders_trend"] = np.log1p(columns["orders_90"]) - earlier
    return columns


def _gap_columns(
    who: NDArray[np.int64], when: NDArray[np.int64], n: int
) -> dict[str, NDArray[np.float64]]:
    """Mean, spread and longest of the days between one customer's shopping days."""
    # Counted from the first day, since a day before 1970 would end up at another customer.
    visits = np.unique(who * _MOST_DAYS + when - when.min(initial=0))
    who, when = visits // _MOST_DAYS, visits % _MOST_DAYS
    same = who[1:] == who[:-1]
    gap, owner = (when[1:] - when[:-1])[same].astype(float), who[1:][same]
    count = np.maximum(np.bincount(owner, minlength=n), 1)
    mean = np.bincount(owner, gap, minlength=n) / count
    square = np.bincount(owner, gap**2, minlength=n) / count
    longest = np.zeros(n)
    np.maximum.at(longest, owner, gap)
    return {
        "gap_mean_days": mean,
        "gap_std_days": np.sqrt(np.maximum(square - mean**2, 0)),
        "gap_max_days": longest,
    }


def _return_columns(
    orders: Orders, past: NDArray[np.bool_], sale: NDArray[np.bool_]
) -> dict[str, NDArray[np.float64]]:
    n, back = orders.n_customers, past & orders.is_return
    sold = np.bincount(orders.customer[sale], orders.value[sale], minlength=n)
    returned = np.bincount(orders.customer[back], orders.value[back], minlength=n)
    return {
        "return_orders": np.bincount(orders.customer[back], minlength=n).astype(float),
        "return_share": returned / np.maximum(sold, 1.0),
    }


def _scale(columns: dict[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    capped = [np.log1p(columns[name]) / np.log1p(cap) for name, cap in _CAPPED]
    trends = [0.5 + 0.5 * columns[name] / np.log1p(cap) for name, cap in _TRENDS]
    scaled: NDArray[np.float64] = np.clip(np.stack([*capped, *trends], axis=1), 0.0, 1.0)
    return scaled
