import csv
import io
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consent import ConsentChoice, Notice, Profile, Purpose, Register
from consent.optins import (
    OptInColumn,
    OptInError,
    OptInMapping,
    OptIns,
    Reason,
    Remark,
    parse_mapping,
    read_opt_ins,
)

AT = 1_795_293_098_800  # 2026-11-21 20:31:38 UTC
DAY = 86_400_000
NEWS = OptInColumn(
    column="newsletter",
    purpose=Purpose.CONTACT,
    given=frozenset({"Y", "yes"}),
    refused=frozenset({"N"}),
)
TIPS = OptInColumn(
    column="tips",
    purpose=Purpose.RECOMMENDATION,
    given=frozenset({"1"}),
    refused=frozenset({"0"}),
)
PARTNER = OptInColumn(
    column="partner",
    purpose=Purpose.THIRD_PARTY_SHARING,
    given=frozenset({"signed"}),
    refused=frozenset(),
    separate_act=True,
)
MAPPING = OptInMapping(
    profile=Profile.EU_GDPR,
    subject_column="id",
    date_column="date",
    date_format="%Y-%m-%d",
    utc_offset_minutes=60,
    valid_days=730,
    channel="web",
    notice=Notice(id="privacy", version=3, language="de", sha256="ab" * 32),
    columns=(NEWS, TIPS, PARTNER),
)
HEADER = "id,date,newsletter,tips,partner,shoe\n"
TOML = """
profile = "eu-gdpr"
subject_column = "id"
date_column = "date"
date_format = "%Y-%m-%d"
utc_offset = "+01:00"
valid_days = 730
channel = "web"
encoding = "utf-8"
delimiter = ","

[notice]
id = "privacy"
version = 3
language = "de"
sha256 = "abababababababababababababababababababababababababababababababab"

[[columns]]
column = "newsletter"
purpose = "contact"
given = ["Y", "yes"]
refused = ["N"]
separate_act = false

[[columns]]
column = "tips"
purpose = "recommendation"
given = ["1"]
refused = ["0"]
separate_act = false

[[columns]]
column = "partner"
purpose = "third_party_sharing"
given = ["signed"]
refused = []
separate_act = true
"""


def read(*rows: str, mapping: OptInMapping = MAPPING) -> OptIns:
    return read_opt_ins((HEADER + "\n".join(rows)).encode(), mapping, at=AT)


def test_a_mapping_is_read_from_toml() -> None:
    assert parse_mapping(TOML) == MAPPING


def test_a_row_becomes_one_act_and_one_more_for_each_separate_purpose() -> None:
    table = read("anna,2026-01-31,Y,0,signed,38")

    bundled, separate = table.choices
    assert bundled == ConsentChoice(
        subject_id="anna",
        given=frozenset({Purpose.CONTACT}),
        refused=frozenset({Purpose.RECOMMENDATION}),
        notice=MAPPING.notice,
        channel="web",
        expressed_at=1_769_814_000_000,  # midnight in Berlin
        until=1_769_814_000_000 + 730 * DAY,
        separate=False,
    )
    assert separate.given == {Purpose.THIRD_PARTY_SHARING}
    assert separate.separate
    assert (table.rows, table.given, table.not_given, table.quarantined) == (1, 1, 0, 0)
    assert table.remarks == ()


def test_a_refusal_is_an_act_and_not_a_consent() -> None:
    table = read("anna,2026-01-31,N,0,,38")

    assert table.choices[0].refused == {Purpose.CONTACT, Purpose.RECOMMENDATION}
    assert (table.given, table.not_given) == (0, 1)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("anna,2026-01-31,,1,,38", Reason.EMPTY),
        ("anna,2026-01-31,y,1,,38", Reason.UNKNOWN_VALUE),
        ("anna,2026-01-31,Y ,1,,38", Reason.UNKNOWN_VALUE),
        ("anna,2026-01-31,true,1,,38", Reason.UNKNOWN_VALUE),
        ("anna,,Y,1,,38", Reason.NO_DATE),
        ("anna,31.01.2026,Y,1,,38", Reason.NO_DATE),
        ("anna,2026-1-31,Y,1,,38", Reason.NO_DATE),
        ("anna,2026-02-30,Y,1,,38", Reason.NO_DATE),
        ("anna,٢٠٢٦-01-31,Y,1,,38", Reason.NO_DATE),
        ("anna,0001-01-01,Y,1,,38", Reason.NO_DATE),
        ("anna,2026-11-23,Y,1,,38", Reason.FUTURE_DATE),
        ("anna,2024-11-01,Y,1,,38", Reason.EXPIRED),
    ],
)
def test_what_is_in_doubt_is_not_given(row: str, reason: Reason) -> None:
    table = read(row)

    assert Remark(row=2, column="newsletter", reason=reason) in table.remarks
    assert not any(Purpose.CONTACT in choice.given for choice in table.choices)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("anna,2026-01-31,Y,1", Reason.WRONG_WIDTH),
        ("anna,2026-01-31,Y,1,,38,39", Reason.WRONG_WIDTH),
        (",2026-01-31,Y,1,,38", Reason.NO_PERSON),
        (" anna,2026-01-31,Y,1,,38", Reason.NO_PERSON),
        ("an\u202ena,2026-01-31,Y,1,,38", Reason.NO_PERSON),
        ("e\u0301va,2026-01-31,Y,1,,38", Reason.NO_PERSON),
    ],
)
def test_a_row_about_nobody_is_quarantined(row: str, reason: Reason) -> None:
    table = read(row, "ben,2026-01-31,Y,1,,38")

    assert table.remarks[0] == Remark(row=2, column=None, reason=reason)
    assert (table.rows, table.given, table.not_given, table.quarantined) == (2, 1, 0, 1)
    assert {choice.subject_id for choice in table.choices} == {"ben"}


@pytest.mark.parametrize("other", ["N", "", "maybe"])
def test_rows_of_one_person_that_disagree_give_nothing_in_either_order(other: str) -> None:
    rows = ["anna,2026-01-31,Y,1,,38", f"anna,2026-02-28,{other},1,,38"]
    for order in (rows, rows[::-1]):
        table = read(*order)

        assert not any(Purpose.CONTACT in choice.given | choice.refused for choice in table.choices)
        found = {
            remark.row
            for remark in table.remarks
            if (remark.column, remark.reason) == ("newsletter", Reason.CONTRADICTION)
        }
        assert found == {2, 3}
        assert all(choice.given == {Purpose.RECOMMENDATION} for choice in table.choices)


def test_rows_of_one_person_that_agree_are_two_acts() -> None:
    table = read("anna,2026-01-31,Y,1,,38", "anna,2026-02-28,Y,1,,38")

    assert len(table.choices) == 2
    assert table.given == 2


def test_a_report_never_holds_a_value() -> None:
    canary = "canary-7f3a"
    table = read(
        f"{canary},2026-01-31,{canary},1,,38",
        f"{canary},{canary},Y,1,,38",
        f" {canary},{canary},Y,1,,38",
    )

    assert len(table.remarks) > 3
    assert canary not in repr(table.remarks)


cells = st.sampled_from(
    ["", "Y", "N", "yes", "y", "1", "0", "signed", "anna", "ben", " anna", "2026-01-31", "x\n,y"]
) | st.text(max_size=4)
rows_in_shape = st.tuples(
    st.sampled_from(["anna", "ben", " anna"]),
    st.sampled_from(["2026-01-31"] * 4 + ["2027-01-31", ""]),
    st.sampled_from(["Y", "Y", "N", "", "y"]),
    st.sampled_from(["1", "1", "0", "?"]),
    st.sampled_from(["signed", ""]),
    cells,
).map(list)
tables = st.lists(rows_in_shape | st.lists(cells, max_size=7), max_size=8)


def _naive_answers(rows: list[list[str]]) -> dict[tuple[str, Purpose], set[str]]:
    """Collect what every row of a person says, spelled out without the module under test."""
    said: dict[tuple[str, Purpose], set[str]] = {}
    for row in rows:
        if len(row) == 6:
            for cell, column in zip(row[2:5], MAPPING.columns, strict=True):
                yes = cell in column.given and row[1] == "2026-01-31"
                said.setdefault((row[0], column.purpose), set()).add("yes" if yes else "else")
    return said


@settings(max_examples=300)
@given(tables)
def test_the_counts_add_up_and_only_a_plain_yes_of_all_rows_is_a_consent(
    rows: list[list[str]],
) -> None:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerow(["id", "date", "newsletter", "tips", "partner", "shoe"])
    writer.writerows(rows)
    try:
        table = read_opt_ins(stream.getvalue().encode(errors="surrogatepass"), MAPPING, at=AT)
    except OptInError:
        return

    assert table.rows == len(rows)
    assert table.rows == table.given + table.not_given + table.quarantined
    said = _naive_answers(rows)
    for choice in table.choices:
        for purpose in choice.given:
            assert said[choice.subject_id, purpose] == {"yes"}
        if any(purpose is Purpose.THIRD_PARTY_SHARING for purpose in choice.given):
            assert choice.separate
    places = {remark.row for remark in table.remarks}
    assert places <= set(range(2, len(rows) + 2))


@given(st.binary() | st.binary().map(HEADER.encode().__add__))
def test_garbage_raises_only_an_opt_in_error(data: bytes) -> None:
    try:
        table = read_opt_ins(data, MAPPING, at=AT)
    except OptInError:
        return
    assert table.rows == table.given + table.not_given + table.quarantined


@given(st.text() | st.text('[]="x.\n', max_size=20))
def test_garbage_is_no_mapping(text: str) -> None:
    with pytest.raises(ValueError, match=r"mapping|utc_offset"):
        parse_mapping(text)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the table has no header; nothing was taken over"),
        (b"\xff\xfe", "the table is not utf-8; nothing was taken over"),
        (HEADER.encode() + b'"anna', "the table is not CSV"),
        (b"id,date,newsletter,tips\n", "must have exactly one column 'partner', it has 0"),
        (b"id,id,date,newsletter,tips,partner\n", "must have exactly one column 'id', it has 2"),
    ],
)
def test_a_table_that_cannot_be_read_at_all_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(OptInError, match=message):
        read_opt_ins(data, MAPPING, at=AT)


def test_a_spreadsheet_of_a_chinese_brand_is_read() -> None:
    mapping = replace(
        MAPPING,
        profile=Profile.CN_PIPL,
        encoding="gb18030",
        delimiter=";",
        date_format="%Y年%m月%d日 %H:%M",
        utc_offset_minutes=480,
        columns=(replace(NEWS, column="短信", given=frozenset({"同意"}), refused=frozenset()),),
    )
    data = "id;date;短信\n王五;2026年01月31日 09:30;同意\n".encode("gb18030")
    table = read_opt_ins(data, mapping, at=AT)

    assert table.choices[0].subject_id == "王五"
    assert table.choices[0].expressed_at == 1_769_823_000_000


def test_a_byte_order_mark_is_no_part_of_a_header() -> None:
    data = b"\xef\xbb\xbf" + (HEADER + "anna,2026-01-31,Y,1,,38\n").encode()

    assert read_opt_ins(data, MAPPING, at=AT).given == 1


def _column(**changes: object) -> Callable[[], object]:
    return lambda: replace(NEWS, **changes)  # type: ignore[arg-type]


def _mapping(**changes: object) -> Callable[[], object]:
    return lambda: replace(MAPPING, **changes)  # type: ignore[arg-type]


def _toml(old: str, new: str) -> Callable[[], object]:
    return lambda: parse_mapping(TOML.replace(old, new))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_column(given=frozenset()), "column 'newsletter' must say which values mean yes"),
        (_column(refused=frozenset({"Y"})), "no value may mean both yes and no"),
        (_column(given=frozenset({"Y", ""})), "an empty cell means neither"),
        (_mapping(date_format="%d/%m/%y"), "date_format must hold %Y, %m and %d once"),
        (_mapping(date_format="%Y-%m-%d %p"), "other directives leave a date in doubt"),
        (_mapping(date_format="%Y-%m-%d %Y"), "date_format must hold %Y, %m and %d once"),
        (_mapping(utc_offset_minutes=900), r"utc_offset_minutes must be in \[-840, 840\]"),
        (_mapping(valid_days=0), r"valid_days must be in \[1, 36500\]"),
        (_mapping(encoding="latin-1"), "encoding must be utf-8 or gb18030"),
        (_mapping(delimiter="\n"), "delimiter must be one character"),
        (_mapping(columns=()), "a mapping must hold at least one column"),
        (
            _mapping(columns=(NEWS, replace(TIPS, column="newsletter"))),
            "one answer to two questions is no choice",
        ),
        (
            _mapping(columns=(NEWS, replace(TIPS, purpose=Purpose.CONTACT))),
            "a purpose must be mapped from one column only",
        ),
        (
            _mapping(columns=(replace(PARTNER, separate_act=False),)),
            "third_party_sharing needs an act of its own under eu-gdpr: say separate_act = true",
        ),
        (
            _mapping(
                profile=Profile.CN_PIPL,
                columns=(replace(NEWS, purpose=Purpose.FEDERATED_TRAINING),),
            ),
            "federated_training needs an act of its own under cn-pipl",
        ),
        (_toml("profile", "=profile"), "the mapping must be TOML"),
        (_toml("channel", "chanel"), "channel of the mapping is missing"),
        (_toml('encoding = "utf-8"', 'encoding = "utf-8"\nx = 1'), "holds an unknown field 'x'"),
        (_toml("+01:00", "CET"), "utc_offset must read like"),
        (_toml("+01:00", "+01:75"), "utc_offset must read like"),
        (_toml('given = ["1"]', "given = [1]"), "given of columns of the mapping"),
        (_toml("separate_act = true", 'separate_act = "yes"'), "must be true or false"),
        (_toml('"contact"', '"spam"'), "'spam' is not a valid Purpose"),
    ],
)
def test_a_mapping_that_leaves_a_meaning_in_doubt_is_refused(
    make: Callable[[], object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_the_register_takes_what_a_table_gave(register: Register) -> None:
    table = read("anna,2026-01-31,Y,0,signed,38", "ben,2026-01-31,maybe,1,,38")
    register.record_many(table.choices, at=AT)

    def may(purpose: Purpose) -> list[bool]:
        found: list[bool] = register.mask(["anna", "ben"], purpose, at=AT).tolist()
        return found

    assert may(Purpose.CONTACT) == [True, False]
    assert may(Purpose.RECOMMENDATION) == [False, True]
    assert may(Purpose.THIRD_PARTY_SHARING) == [True, False]
