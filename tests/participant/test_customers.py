import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from consent import (
    ConsentChoice,
    Gate,
    Identity,
    Log,
    Notice,
    PermittedView,
    Profile,
    Refused,
    Register,
    Use,
    UseKind,
)
from participant.config import REQUIRED_COLUMNS
from participant.customers import (
    Catalogue,
    CustomerTable,
    DataError,
    load_catalogue,
    load_customers,
)
from participant.features import FEATURES
from tests.federation.synthetic import (
    COLUMNS,
    HORIZON_DAYS,
    LAST_DAY,
    N_ITEMS,
    PURPOSE,
    SNAPSHOT_DAYS,
    Federation,
    agree,
    date,
    invoice_lines,
    write_products,
)

NOTICE = Notice(id="privacy", version=1, language="en", sha256="ab" * 32)
CANARY = "Canary-4711"
HEADER = "who,bill,sku,pieces,each,at\n"
GOOD = "anna,b1,I01,2,3.50,2011-03-01\n"
CUSTOMERS = 40
masks = st.lists(st.booleans(), min_size=CUSTOMERS, max_size=CUSTOMERS).map(np.array)


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    return load_catalogue(write_products(tmp_path / "products.csv"))


@pytest.fixture
def load_text(tmp_path: Path, catalogue: Catalogue) -> Callable[[str], CustomerTable]:
    def load(text: str) -> CustomerTable:
        path = tmp_path / "brand.csv"
        path.write_text(text)
        return load_customers(path, columns=COLUMNS, catalogue=catalogue)

    return load


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> CustomerTable:
    folder = tmp_path_factory.mktemp("brand")
    lines = invoice_lines(seed=1, customers=CUSTOMERS)
    lines.to_csv(folder / "brand.csv", index=False)
    made = load_customers(
        folder / "brand.csv",
        columns=COLUMNS,
        catalogue=load_catalogue(write_products(folder / "products.csv")),
    )
    assert len(made.subjects) == CUSTOMERS
    return made


Permit = Callable[[CustomerTable, NDArray[np.bool_]], PermittedView]


@pytest.fixture(scope="module")
def permit(tmp_path_factory: pytest.TempPathFactory) -> Permit:
    """A gate's views of a table over masks of the test's choice."""

    def open_view(table: CustomerTable, mask: NDArray[np.bool_]) -> PermittedView:
        folder = tmp_path_factory.mktemp("gate")
        with Log.create(folder, Identity.generate("amber")) as log:
            register = Register(log, pseudonym_key=bytes(32), profile=Profile.EU_GDPR)
            agreed = [
                ConsentChoice(
                    subject_id=subject,
                    given=frozenset({PURPOSE}) | register.ladder.rules[PURPOSE].prerequisites,
                    notice=NOTICE,
                    channel="app",
                    expressed_at=1,
                    until=1_000,
                )
                for subject in np.array(table.subjects)[mask].tolist()
            ]
            register.record_many(agreed, at=1)
            gate = Gate(register, log, policy_digest="p")
            return gate.open(PURPOSE, table.subjects, use=Use(kind=UseKind.FEATURE), at=2)

    return open_view


def churn(table: CustomerTable, view: PermittedView) -> tuple[NDArray[np.float64], ...]:
    rows = table.churn_rows(view, snapshot_days=SNAPSHOT_DAYS, horizon_days=HORIZON_DAYS)
    return rows.customer.astype(float), rows.features, rows.day.astype(float), rows.churned


def test_csv_and_parquet_of_the_same_lines_give_the_same_table(
    tmp_path: Path, catalogue: Catalogue, permit: Permit
) -> None:
    lines = invoice_lines(seed=2, customers=9)
    lines.to_csv(tmp_path / "brand.csv", index=False)
    typed = lines.assign(at=pd.to_datetime(lines["at"]))
    typed.to_parquet(tmp_path / "brand.parquet")
    # An index that was saved along is no column, and does not shift any.
    typed.set_index(typed["who"] + "!").to_parquet(tmp_path / "indexed.parquet")
    first, *others = (
        load_customers(tmp_path / name, columns=COLUMNS, catalogue=catalogue)
        for name in ("brand.csv", "brand.parquet", "indexed.parquet")
    )

    for other in others:
        assert other.subjects == first.subjects == tuple(f"c00{i}" for i in range(9))
        view = permit(first, np.ones(9, np.bool_))
        for mine, theirs in zip(churn(first, view), churn(other, view), strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-12)
        np.testing.assert_array_equal(
            first.bought(view, first_day=None, before_day=LAST_DAY),
            other.bought(view, first_day=None, before_day=LAST_DAY),
        )


def test_the_digest_of_a_catalogue_is_over_its_sorted_lines(tmp_path: Path) -> None:
    path = tmp_path / "products.csv"
    path.write_text("description,stock_code\nred cup,B2\nblue cup,A1\n")

    catalogue = load_catalogue(path)

    assert catalogue.codes == ("A1", "B2")
    assert catalogue.descriptions == ("blue cup", "red cup")
    assert catalogue.digest == hashlib.sha256(b"A1\tblue cup\nB2\tred cup").hexdigest()


def test_a_catalogue_that_repeats_a_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "products.csv"
    path.write_text("stock_code,description\nA1,cup\nB2,pot\nA1,mug\n")
    with pytest.raises(DataError, match=r"^products.csv repeats a stock_code; nothing was loaded$"):
        load_catalogue(path)


@pytest.mark.parametrize("name", ["brand.csv", "brand.parquet"])
def test_a_missing_file_is_one_sentence(tmp_path: Path, catalogue: Catalogue, name: str) -> None:
    with pytest.raises(DataError) as refusal:
        load_customers(tmp_path / name, columns=COLUMNS, catalogue=catalogue)
    assert str(refusal.value) == f"there is no file {tmp_path / name}; nothing was loaded"


@pytest.mark.parametrize("name", ["brand.csv", "brand.parquet"])
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe\x00" + CANARY.encode(),
        b"PAR1 " + CANARY.encode() + b" PAR1",
        f"{HEADER}{GOOD}{CANARY},1,1,1,1,1,1,1,1\n".encode(),
        f'{HEADER}"{CANARY}'.encode() + b"\xe9\n",
    ],
)
def test_a_file_that_is_no_table_is_refused_without_quoting_it(
    tmp_path: Path, catalogue: Catalogue, name: str, data: bytes
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DataError) as refusal:
        load_customers(path, columns=COLUMNS, catalogue=catalogue)
    assert CANARY not in str(refusal.value)
    assert "nothing was loaded" in str(refusal.value)


def test_a_folder_in_place_of_a_file_is_no_readable_table(
    tmp_path: Path, catalogue: Catalogue
) -> None:
    (tmp_path / "brand.csv").mkdir()
    with pytest.raises(DataError, match=r"^brand.csv is no readable table; nothing was loaded$"):
        load_customers(tmp_path / "brand.csv", columns=COLUMNS, catalogue=catalogue)


def test_a_mapping_to_columns_that_are_not_there_names_them(
    tmp_path: Path, catalogue: Catalogue
) -> None:
    path = tmp_path / "brand.csv"
    path.write_text(HEADER + GOOD)
    with pytest.raises(DataError) as refusal:
        load_customers(path, columns={**COLUMNS, "time": "when", "item": "a"}, catalogue=catalogue)
    assert str(refusal.value) == ("brand.csv has no column a, when among its 6; nothing was loaded")


def test_a_file_without_a_header_is_refused_without_quoting_its_first_customer(
    load_text: Callable[[str], CustomerTable],
) -> None:
    with pytest.raises(DataError, match=r"brand.csv has no column at, bill") as refusal:
        load_text(GOOD.replace("anna", CANARY) * 2)
    assert CANARY not in str(refusal.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"anna,b2,I01,2,3.50,{CANARY}\n", "row 3: column at needs ISO 8601 dates, and 1 rows h"),
        ("anna,b2,I01,2,3.50,31/12/2011\n", "row 3: column at needs ISO 8601 dates"),
        ("anna,b2,I01,2,3.50,2011-02-30\n", "row 3: column at needs ISO 8601 dates"),
        ("anna,b2,I01,2,3.50,\n", "row 3: column at needs ISO 8601 dates"),
        (f"anna,b2,I01,{CANARY},3.50,2011-03-01\n", "row 3: column pieces needs numbers, and 1 r"),
        (f"anna,b2,I01,2,{CANARY},2011-03-01\n", "row 3: column each needs numbers"),
        ("anna,b2,I01,2,1e999,2011-03-01\n", "row 3: column each needs numbers"),
        ("anna,b2,I01,nan,2,2011-03-01\n", "row 3: column pieces needs numbers"),
        (f"{CANARY},,I01,2,3.50,2011-03-01\n", "row 3: column bill needs invoice numbers"),
        (
            f"{CANARY},b2,I01,x,3,2011-03-01\nben,b3,I02,y,1,2011-03-01\n",
            "pieces needs numbers, an",
        ),
    ],
)
def test_a_value_of_the_wrong_kind_is_named_by_row_and_column_only(
    load_text: Callable[[str], CustomerTable], line: str, message: str
) -> None:
    with pytest.raises(DataError, match=message) as refusal:
        # The first line has no customer: it is left out, and still counts as a row.
        load_text(HEADER + ",b0,I01,x,x,x\n" + GOOD + line)
    assert str(refusal.value).startswith("brand.csv, row 3: ")
    assert str(refusal.value).endswith("have none; nothing was loaded")
    assert CANARY not in str(refusal.value)
    assert "ben" not in str(refusal.value)


def test_the_number_of_wrong_rows_is_told(load_text: Callable[[str], CustomerTable]) -> None:
    with pytest.raises(DataError, match=r"row 2: column each needs numbers, and 2 rows have none"):
        load_text(HEADER + GOOD + GOOD.replace("3.50", "x") * 2)


def test_one_comma_too_many_in_each_row_shifts_nothing(
    load_text: Callable[[str], CustomerTable],
) -> None:
    table = load_text(HEADER + GOOD.replace("\n", ",\n") * 2)

    assert table.subjects == ("anna",)


def test_a_table_of_nobody_is_refused(load_text: Callable[[str], CustomerTable]) -> None:
    for text in (HEADER, HEADER + GOOD.replace("anna", "")):
        with pytest.raises(DataError) as refusal:
            load_text(text)
        assert str(refusal.value) == "brand.csv has no line with a customer; nothing was loaded"


def test_lines_without_a_customer_are_left_out(
    tmp_path: Path, catalogue: Catalogue, load_text: Callable[[str], CustomerTable]
) -> None:
    table = load_text(HEADER + GOOD + GOOD.replace("anna", "").replace("I01", "I02"))
    blank = pd.read_csv(tmp_path / "brand.csv", keep_default_na=False)
    blank.to_parquet(tmp_path / "blank.parquet")

    again = load_customers(tmp_path / "blank.parquet", columns=COLUMNS, catalogue=catalogue)

    assert table.subjects == again.subjects == ("anna",)


def test_one_column_may_hold_two_things(tmp_path: Path, catalogue: Catalogue) -> None:
    path = tmp_path / "brand.csv"
    path.write_text(HEADER + GOOD)

    table = load_customers(path, columns={**COLUMNS, "invoice": "at"}, catalogue=catalogue)

    assert table.subjects == ("anna",)


def test_returns_and_items_of_no_catalogue_are_spend_and_no_purchase(
    load_text: Callable[[str], CustomerTable], permit: Permit
) -> None:
    day = int(np.datetime64("2011-03-01").astype(int))
    table = load_text(
        HEADER
        + "anna,b1,I01,2,10,2011-03-01\n"
        + "anna,b1,unknown,1,80,2011-03-01\n"
        + "anna,b2,I02,-1,25,2011-03-02\n"
        + "ben,b3,I03,1,1,2011-03-03T23:59:59\n"
    )
    view = permit(table, np.ones(2, np.bool_))

    rows = table.churn_rows(view, snapshot_days=(day + 10,), horizon_days=5)
    bought = table.bought(view, first_day=None, before_day=day + 10)

    anna = dict(zip(FEATURES, rows.features[0], strict=True))
    assert anna["spend_30"] == pytest.approx(np.log1p(100) / np.log1p(20_000))
    assert anna["orders_30"] == pytest.approx(np.log1p(1) / np.log1p(30))
    assert anna["lines_per_order"] == pytest.approx(np.log1p(2) / np.log1p(200))
    assert anna["return_orders"] == pytest.approx(np.log1p(1) / np.log1p(20))
    assert anna["return_share"] == pytest.approx(np.log1p(0.25) / np.log1p(1))
    assert anna["recency_days"] == pytest.approx(np.log1p(10) / np.log1p(365))
    assert np.argwhere(bought).tolist() == [[0, 1], [1, 3]]
    assert bought.shape == (2, N_ITEMS)


def test_items_weigh_half_after_each_half_life_of_their_last_purchase(
    load_text: Callable[[str], CustomerTable], permit: Permit
) -> None:
    day = int(np.datetime64("2011-03-01").astype(int))
    table = load_text(
        HEADER
        + f"anna,b1,I02,1,1,{date(day - 20)}\n"
        + f"anna,b2,I01,1,1,{date(day - 30)}\n"
        + f"anna,b3,I01,1,1,{date(day - 10)}\n"
        + f"anna,b4,I05,1,1,{date(day)}\n"
        + f"ben,b5,I05,1,1,{date(day)}\n"
        + f"chen,b6,I00,1,1,{date(day - 40)}\n"
    )

    rows = table.item_rows(permit(table, np.ones(3, np.bool_)), before_day=day, half_life_days=10)

    assert rows.start.tolist() == [0, 2, 2, 3]
    assert rows.item.tolist() == [1, 2, 0]
    assert rows.weight.tolist() == [0.5, 0.25, 0.0625]
    assert rows.n_items == N_ITEMS


def test_bought_knows_first_and_last_day(
    load_text: Callable[[str], CustomerTable], permit: Permit
) -> None:
    table = load_text(
        HEADER + "".join(f"anna,b{day},I0{day},1,1,{date(day)}\n" for day in range(1, 6))
    )
    view = permit(table, np.ones(1, np.bool_))

    assert np.flatnonzero(table.bought(view, first_day=2, before_day=4)).tolist() == [2, 3]
    assert np.flatnonzero(table.bought(view, first_day=None, before_day=3)).tolist() == [1, 2]


@pytest.mark.parametrize("ancient", ["0001-01-01", "1753-01-01", "1900-01-01", "1969-12-31"])
def test_a_placeholder_date_of_one_customer_moves_nobody_else(
    load_text: Callable[[str], CustomerTable],
    permit: Permit,
    ancient: str,
) -> None:
    line = "{},b{},I01,1,5,{}\n"
    known = [line.format("anna", i, f"2011-0{i}-01") for i in range(1, 5)]
    known += [line.format("chen", 10 + i, f"2011-0{i}-05") for i in range(1, 5)]
    odd = [line.format("ben", 20, ancient), line.format("ben", 21, "2011-04-02")]
    day = int(np.datetime64("2011-05-01").astype(int))

    def described(lines: list[str], people: int) -> NDArray[np.float64]:
        made = load_text(HEADER + "".join(lines))
        view = permit(made, np.ones(people, np.bool_))
        return made.churn_rows(view, snapshot_days=(day,), horizon_days=5).features

    without, together = described(known, 2), described(known + odd, 3)

    np.testing.assert_array_equal(without, together[[0, 2]])
    assert together.min() >= 0
    assert together.max() <= 1


def test_a_view_of_another_table_is_refused(
    table: CustomerTable, load_text: Callable[[str], CustomerTable], permit: Permit
) -> None:
    lines = "".join(f"stranger {i:02},b{i},I01,1,1,2011-03-01\n" for i in range(CUSTOMERS))
    stranger = load_text(HEADER + lines)
    fewer = load_text(HEADER + GOOD)
    message = r"^the view is over {} people, and they are not the 40 whose rows were asked for"

    for other, people in [(stranger, 40), (fewer, 1)]:
        view = permit(other, np.ones(people, np.bool_))
        with pytest.raises(Refused, match=message.format(people)):
            churn(table, view)
        with pytest.raises(Refused, match=message.format(people)):
            table.item_rows(view, before_day=LAST_DAY, half_life_days=90)
        with pytest.raises(Refused, match=message.format(people)):
            table.bought(view, first_day=None, before_day=LAST_DAY)


def test_a_view_cannot_be_made_by_hand(table: CustomerTable, permit: Permit) -> None:
    view = permit(table, np.arange(CUSTOMERS) < 3)

    with pytest.raises(TypeError, match=r"^a PermittedView is issued by Gate\.open"):
        PermittedView(
            permit=view.permit,
            subject_ids=table.subjects,
            mask=np.ones(CUSTOMERS, np.bool_),
            rows=view.rows,
        )
    with pytest.raises(TypeError, match=r"^a PermittedView is issued by Gate\.open"):
        dataclasses.replace(view, mask=np.ones(CUSTOMERS, np.bool_))
    with pytest.raises(ValueError, match="read-only"):
        view.mask[:] = True


@given(masks)
def test_nobody_outside_the_mask_ever_appears(
    table: CustomerTable, permit: Permit, mask: NDArray[np.bool_]
) -> None:
    assume(mask.any())
    everybody, view = permit(table, np.ones(CUSTOMERS, np.bool_)), permit(table, mask)
    kept = np.flatnonzero(mask)

    rows = table.churn_rows(view, snapshot_days=SNAPSHOT_DAYS, horizon_days=HORIZON_DAYS)
    items = table.item_rows(view, before_day=SNAPSHOT_DAYS[0], half_life_days=90)
    all_items = table.item_rows(everybody, before_day=SNAPSHOT_DAYS[0], half_life_days=90)
    bought = table.bought(view, first_day=None, before_day=LAST_DAY)
    all_bought = table.bought(everybody, first_day=None, before_day=LAST_DAY)

    assert set(rows.customer) <= set(kept)
    assert items.n_customers == len(kept) == len(bought)
    np.testing.assert_array_equal(bought, all_bought[kept])
    for position, customer in enumerate(kept):
        mine = slice(*items.start[position : position + 2])
        theirs = slice(*all_items.start[customer : customer + 2])
        np.testing.assert_array_equal(items.item[mine], all_items.item[theirs])
        np.testing.assert_array_equal(items.weight[mine], all_items.weight[theirs])


@settings(max_examples=40)
@given(st.lists(masks, min_size=1, max_size=5))
def test_remembered_features_are_those_of_a_fresh_table(
    table: CustomerTable, permit: Permit, masks: list[NDArray[np.bool_]]
) -> None:
    """Whatever was asked before: people come, withdraw, and come back."""
    for mask in masks:
        fresh = CustomerTable(table.subjects, table._raw_orders, table._raw_lines, table.n_items)
        if mask.any():
            view = permit(table, mask)
            for mine, theirs in zip(churn(table, view), churn(fresh, view), strict=True):
                np.testing.assert_array_equal(mine, theirs)


def test_after_a_withdrawal_the_gate_and_the_table_leave_the_customer_out(
    federation: Federation,
) -> None:
    node = federation.nodes["amber"]
    subject = node.table.subjects[2]
    use = Use(kind=UseKind.TRAIN, run="r", round=1, attempt=1)
    first = node.gate.open(PURPOSE, node.table.subjects, use=use, at=node.clock())
    before = churn(node.table, first)[0]
    node.register.withdraw(subject, at=node.clock())
    second = node.gate.open(PURPOSE, node.table.subjects, use=use, at=node.clock())

    after = churn(node.table, second)[0]

    assert 2 in before
    assert set(before) - set(after) == {2}
    federation.clock.now += 10
    agree(node, [subject])
    third = node.gate.open(PURPOSE, node.table.subjects, use=use, at=node.clock())
    np.testing.assert_array_equal(churn(node.table, third)[0], before)


def test_customer_numbers_with_gaps_in_the_column_stay_numbers(tmp_path: Path) -> None:
    path = tmp_path / "lines.parquet"
    pd.DataFrame(
        {
            "customer": [12.0, None, 7.0],
            "invoice": ["a", "b", "c"],
            "item": ["x", "x", "x"],
            "quantity": [1, 1, 1],
            "price": [1.0, 1.0, 1.0],
            "time": ["2011-01-01"] * 3,
        }
    ).to_parquet(path)
    columns = {name: name for name in REQUIRED_COLUMNS}
    catalogue = Catalogue(codes=("x",), descriptions=("a thing",))

    table = load_customers(path, columns=columns, catalogue=catalogue)

    assert set(table.subjects) == {"12", "7"}
