"""A brand's transactions as arrays, which nobody reads without a permitted view.

Owns the raw rows: they are read and checked here, kept private, and only ever handed out
through a `PermittedView` of the consent gate. A load is all or nothing.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from consent import PermittedView
from models.churn import ChurnRows
from models.recommendation import ItemRows
from participant.features import Orders, Snapshots, snapshots

_DAY_MS = 86_400_000


class DataError(ValueError):
    """A data file breaks the input contract; nothing was loaded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    """The public products, in the order that numbers them.

    Attributes:
        codes: Stock codes, ascending.
        descriptions: Public product text, in the same order.
    """

    codes: tuple[str, ...]
    descriptions: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Hex SHA-256 that plans name, so that item 17 is the same item everywhere."""
        lines = zip(self.codes, self.descriptions, strict=True)
        text = "\n".join(f"{code}\t{description}" for code, description in lines)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lines:
    """Single purchases, one entry a sold line, sorted by customer."""

    customer: NDArray[np.int64]
    item: NDArray[np.int64]
    day: NDArray[np.int64]


class CustomerTable:
    """All customers of one brand, opened only through permitted views."""

    def __init__(
        self, subjects: tuple[str, ...], orders: Orders, lines: _Lines, n_items: int
    ) -> None:
        """Take checked arrays; `load_customers` makes them."""
        self.subjects = subjects
        self.n_items = n_items
        self._raw_orders = orders
        self._raw_lines = lines
        self._described: dict[tuple[tuple[int, ...], int], tuple[NDArray[np.bool_], Snapshots]] = {}

    def churn_rows(
        self, view: PermittedView, *, snapshot_days: tuple[int, ...], horizon_days: int
    ) -> ChurnRows:
        """Features and labels of permitted customers, computed for nobody else.

        A view that only lost customers since the last call drops their rows; any other view
        is computed afresh.
        """
        mask = self._checked(view)
        key = (snapshot_days, horizon_days)
        known = self._described.get(key)
        if known is None or np.any(mask & ~known[0]):
            described = snapshots(
                self._raw_orders.only(mask), snapshot_days, horizon_days=horizon_days
            )
            known = self._described[key] = (mask, described)
        rows = known[1]
        kept = mask[rows.customer]
        return ChurnRows(
            customer=rows.customer[kept],
            features=rows.features[kept],
            day=rows.day[kept],
            churned=rows.churned[kept],
        )

    def item_rows(self, view: PermittedView, *, before_day: int, half_life_days: int) -> ItemRows:
        """Each permitted customer's items by recency: 2^(-age / half-life) of the last purchase.

        Customers without purchases before `before_day` have empty rows.
        """
        lines = self._permitted_lines(view, first_day=None, before_day=before_day)
        permitted = np.flatnonzero(view.mask)
        pair = lines.customer * self.n_items + lines.item
        pairs, inverse = np.unique(pair, return_inverse=True)
        last = np.full(pairs.size, np.iinfo(np.int64).min)
        np.maximum.at(last, inverse, lines.day)
        counts = np.bincount(pairs // self.n_items, minlength=len(self.subjects))[permitted]
        return ItemRows(
            start=np.concatenate([[0], np.cumsum(counts)]),
            item=pairs % self.n_items,
            weight=2.0 ** (-(before_day - last) / half_life_days),
            n_items=self.n_items,
        )

    def bought(
        self, view: PermittedView, *, first_day: int | None, before_day: int
    ) -> NDArray[np.bool_]:
        """Which items each permitted customer bought in [first_day, before_day).

        Returns:
            Shape (permitted customers, n_items).
        """
        lines = self._permitted_lines(view, first_day=first_day, before_day=before_day)
        position = np.cumsum(view.mask) - 1
        result = np.zeros((int(view.mask.sum()), self.n_items), dtype=np.bool_)
        result[position[lines.customer], lines.item] = True
        return result

    def _permitted_lines(
        self, view: PermittedView, *, first_day: int | None, before_day: int
    ) -> _Lines:
        mask = self._checked(view)
        lines = self._raw_lines
        kept = mask[lines.customer] & (lines.day < before_day)
        if first_day is not None:
            kept &= lines.day >= first_day
        return _Lines(customer=lines.customer[kept], item=lines.item[kept], day=lines.day[kept])

    def _checked(self, view: PermittedView) -> NDArray[np.bool_]:
        view.verify_people(self.subjects)
        return view.mask


def load_catalogue(path: Path) -> Catalogue:
    """Read the public products: columns stock_code and description.

    Raises:
        DataError: the file is missing, lacks a column, or repeats a code.
    """
    frame = _read(path, ["stock_code", "description"])
    frame = frame.astype(str).sort_values("stock_code")
    if frame["stock_code"].duplicated().any():
        raise DataError(f"{path.name} repeats a stock_code; nothing was loaded")
    return Catalogue(codes=tuple(frame["stock_code"]), descriptions=tuple(frame["description"]))


def load_customers(
    path: Path, *, columns: Mapping[str, str], catalogue: Catalogue
) -> CustomerTable:
    """Read a brand's invoice lines.

    Lines with a negative quantity are returns. Lines without a customer are left out, since
    nobody can have agreed to their use; lines whose item is not in the catalogue count for
    orders and spend, and not for recommendations.

    Args:
        path: CSV or Parquet, one row an invoice line.
        columns: Column of the file for customer, invoice, item, quantity, price and time.
        catalogue: The public products.

    Raises:
        DataError: the file is missing or unreadable, a mapped column is absent, or a value
            is no number, no date or no invoice number. The message names the row and not the
            value, which is customer data.
    """
    found = _read(path, list(columns.values()))
    frame = pd.DataFrame({name: found[column] for name, column in columns.items()})
    frame = frame[frame["customer"].notna() & (frame["customer"].astype(str) != "")]
    if frame.empty:
        raise DataError(f"{path.name} has no line with a customer; nothing was loaded")
    # A line of no invoice would be counted for its items and lost for its order.
    _verify_known(frame["invoice"], path, f"column {columns['invoice']} needs invoice numbers")
    frame["day"] = _days(frame["time"], path, columns["time"])
    for name in ("quantity", "price"):
        frame[name] = _numbers(frame[name], path, columns[name])
    codes, subjects = pd.factorize(_ids(frame["customer"]), sort=True)
    frame["customer"] = codes.astype(np.int64)
    return CustomerTable(
        tuple(str(subject) for subject in subjects),
        _orders(frame, len(subjects)),
        _lines(frame, catalogue),
        len(catalogue.codes),
    )


def _orders(frame: pd.DataFrame, n_customers: int) -> Orders:
    # An invoice is a return when its first line is one: real exports do not mix the two.
    lines = frame.assign(
        value=(frame["quantity"] * frame["price"]).abs(), units=frame["quantity"].abs()
    )
    invoices = lines.groupby(["customer", "invoice"], sort=True, observed=True).agg(
        day=("day", "min"),
        value=("value", "sum"),
        lines=("value", "size"),
        units=("units", "sum"),
        first=("quantity", "first"),
    )
    return Orders(
        customer=invoices.index.get_level_values("customer").to_numpy(dtype=np.int64),
        day=invoices["day"].to_numpy(dtype=np.int64),
        value=invoices["value"].to_numpy(dtype=np.float64),
        lines=invoices["lines"].to_numpy(dtype=np.float64),
        units=invoices["units"].to_numpy(dtype=np.float64),
        is_return=invoices["first"].to_numpy(dtype=np.float64) < 0,
        n_customers=n_customers,
    )


def _lines(frame: pd.DataFrame, catalogue: Catalogue) -> _Lines:
    item = pd.Index(catalogue.codes).get_indexer(pd.Index(frame["item"].astype(str)))
    kept = (frame["quantity"].to_numpy() > 0) & (item >= 0)
    customer = frame["customer"].to_numpy(dtype=np.int64)[kept]
    order = np.argsort(customer, kind="stable")
    return _Lines(
        customer=customer[order],
        item=item[kept][order].astype(np.int64),
        day=frame["day"].to_numpy(dtype=np.int64)[kept][order],
    )


def _read(path: Path, columns: list[str]) -> pd.DataFrame:
    try:
        if path.suffix == ".parquet":
            frame = pd.read_parquet(path)
        else:
            # Without index_col, one comma too many in each row would shift every column.
            frame = pd.read_csv(
                path, dtype=str, keep_default_na=False, na_values=[""], index_col=False
            )
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path}; nothing was loaded") from error
    except (OSError, ValueError, pd.errors.ParserError) as error:
        # The parser's own words may quote a row, so they stay out of the message.
        raise DataError(f"{path.name} is no readable table; nothing was loaded") from error
    missing = sorted(set(columns) - set(frame.columns))
    if missing:
        # In a file without a header the "columns" are the first customer, so none is named.
        raise DataError(
            f"{path.name} has no column {', '.join(missing)} among its {len(frame.columns)}; "
            "nothing was loaded"
        )
    # A stored index could hold customer ids, and rows are named in messages by their number.
    return frame[list(dict.fromkeys(columns))].reset_index(drop=True)


def _ids(values: pd.Series) -> "pd.Series[str]":
    # A column of numbers with gaps is read as floats, and 123.0 is nobody's customer number.
    if pd.api.types.is_float_dtype(values) and (values % 1 == 0).all():
        values = values.astype("int64")
    return values.astype(str)


def _days(values: pd.Series, path: Path, column: str) -> "pd.Series[int]":
    times = pd.to_datetime(values, errors="coerce", format="ISO8601", utc=True)
    _verify_known(times, path, f"column {column} needs ISO 8601 dates")
    return times.astype("datetime64[ms, UTC]").astype("int64") // _DAY_MS


def _numbers(values: pd.Series, path: Path, column: str) -> "pd.Series[float]":
    numbers = pd.to_numeric(values, errors="coerce").astype("float64")
    numbers = numbers.where(np.isfinite(numbers))
    _verify_known(numbers, path, f"column {column} needs numbers")
    return numbers


def _verify_known(values: pd.Series, path: Path, rule: str) -> None:
    unknown = np.flatnonzero(values.isna().to_numpy())
    if unknown.size:
        raise DataError(
            f"{path.name}, row {int(values.index[unknown[0]]) + 1}: {rule}, and "
            f"{unknown.size} rows have none; nothing was loaded"
        )
