"""Take over the opt-ins that a retailer already has in a table, and nothing that is in doubt.

A mapping says in full what each column means; nothing is inferred from a header or a value. A
cell that is empty, unknown, undated, dated in the future, expired, or contradicted by another row
of the same person is "not given" and is listed by row, column and reason, never by value.
"""

import csv
import io
import tomllib
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from consent.fields import Fields
from consent.instant import LATEST_MS
from consent.purpose import Profile, Purpose, is_separate
from consent.register import ConsentChoice, Notice

__all__ = [
    "OptInColumn",
    "OptInError",
    "OptInMapping",
    "OptIns",
    "Reason",
    "Remark",
    "parse_mapping",
    "read_opt_ins",
]

_DAY_MS = 86_400_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Directives whose meaning depends on no locale and on no guess about the century.
_DIRECTIVES = frozenset("YmdHMS")
_ENCODINGS = {"utf-8": "utf-8-sig", "gb18030": "gb18030"}


class OptInError(Exception):
    """A table cannot be read with its mapping at all; nothing was taken over."""


class Reason(StrEnum):
    """Why a row or a cell was not taken for a consent."""

    EMPTY = "the cell is empty"
    UNKNOWN_VALUE = "the mapping does not know the value"
    NO_DATE = "the date cannot be read in the mapping's format"
    FUTURE_DATE = "the date is in the future"
    EXPIRED = "the consent had expired before the import"
    CONTRADICTION = "another row of the same person says something else"
    WRONG_WIDTH = "the row has more or fewer cells than the header"
    NO_PERSON = "the row does not name a person without doubt"


@dataclass(frozen=True, slots=True, kw_only=True)
class OptInColumn:
    """What one column means.

    Attributes:
        column: Its header.
        purpose: The one purpose that people were asked about.
        given: Cells that mean yes, letter by letter.
        refused: Cells that mean no, letter by letter.
        separate_act: Whether people were asked for this and nothing else in the same act.
    """

    column: str
    purpose: Purpose
    given: frozenset[str]
    refused: frozenset[str]
    separate_act: bool = False

    def __post_init__(self) -> None:
        if not self.given or self.given & self.refused or "" in self.given | self.refused:
            raise ValueError(
                f"column {self.column!r} must say which values mean yes; no value may mean both "
                "yes and no, and an empty cell means neither"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class OptInMapping:
    """What a whole table means. Trusted: whoever edits it decides what people agreed to.

    Attributes:
        profile: The law that the node follows.
        subject_column: Header of the brand's id of the person.
        date_column: Header of when the person said it.
        date_format: strptime format of that column, of %Y %m %d %H %M %S only; without hours
            the day begins at midnight.
        utc_offset_minutes: Offset of those dates from UTC, such as 480 for China.
        valid_days: Days from then until the consent expires.
        channel: Where people were asked.
        notice: What they were shown.
        columns: One for each purpose.
        encoding: "utf-8" or "gb18030".
        delimiter: One character between cells.
    """

    profile: Profile
    subject_column: str
    date_column: str
    date_format: str
    utc_offset_minutes: int
    valid_days: int
    channel: str
    notice: Notice
    columns: tuple[OptInColumn, ...]
    encoding: str = "utf-8"
    delimiter: str = ","

    def __post_init__(self) -> None:
        directives = self.date_format.replace("%%", "").split("%")[1:]
        letters = [part[:1] for part in directives]
        if not set("Ymd") <= set(letters) <= _DIRECTIVES or len(set(letters)) != len(letters):
            raise ValueError(
                "date_format must hold %Y, %m and %d once and may hold %H, %M and %S; other "
                "directives leave a date in doubt"
            )
        if not -840 <= self.utc_offset_minutes <= 840:
            raise ValueError("utc_offset_minutes must be in [-840, 840]")
        if not 1 <= self.valid_days <= 36_500:
            raise ValueError("valid_days must be in [1, 36500]")
        if self.encoding not in _ENCODINGS:
            raise ValueError("encoding must be utf-8 or gb18030")
        if len(self.delimiter) != 1 or self.delimiter in '"\r\n \0':
            raise ValueError("delimiter must be one character that is no quote and no space")
        self._check_columns()

    def _check_columns(self) -> None:
        if not self.columns:
            raise ValueError("a mapping must hold at least one column")
        names = [self.subject_column, self.date_column, *(c.column for c in self.columns)]
        if len(set(names)) != len(names):
            raise ValueError(
                "a column must be mapped once: one answer to two questions is no choice"
            )
        if len({column.purpose for column in self.columns}) != len(self.columns):
            raise ValueError("a purpose must be mapped from one column only")
        for column in self.columns:
            if is_separate(column.purpose, profile=self.profile) and not column.separate_act:
                raise ValueError(
                    f"{column.purpose} needs an act of its own under {self.profile}: say "
                    "separate_act = true if it was one, or leave the column out"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Remark:
    """Why something was not taken for a consent.

    Attributes:
        row: Line of the table as a spreadsheet counts it: the header is row 1.
        column: Header of the cell, or None for the whole row.
        reason: Why.
    """

    row: int
    column: str | None
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class OptIns:
    """What a table gave; `rows` is always `given + not_given + quarantined`.

    Attributes:
        choices: Acts for `Register.record_many`; refusals are acts too.
        remarks: Everything that was not taken over, in the order of the table.
        rows: Rows below the header.
        given: Rows that gave at least one purpose.
        not_given: Rows of a known person that gave none.
        quarantined: Rows of which nobody can tell whom they are about.
    """

    choices: tuple[ConsentChoice, ...]
    remarks: tuple[Remark, ...]
    rows: int
    given: int
    not_given: int
    quarantined: int


def parse_mapping(text: str) -> OptInMapping:
    """Read a mapping from TOML.

    Raises:
        ValueError: The text is no TOML, a key is missing, unknown or of the wrong kind, or the
            mapping leaves a meaning in doubt.
    """
    try:
        fields = Fields(tomllib.loads(text), where="the mapping")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the mapping must be TOML: {error}") from error
    offset = fields.text("utc_offset")
    notice = fields.inner("notice")
    mapping = OptInMapping(
        profile=Profile(fields.text("profile")),
        subject_column=fields.text("subject_column"),
        date_column=fields.text("date_column"),
        date_format=fields.text("date_format"),
        utc_offset_minutes=_offset_minutes(offset),
        valid_days=fields.count("valid_days"),
        channel=fields.text("channel"),
        notice=Notice(
            id=notice.text("id"),
            version=notice.count("version"),
            language=notice.text("language"),
            sha256=notice.text("sha256"),
        ),
        columns=tuple(_parse_column(column) for column in fields.each("columns")),
        encoding=fields.text("encoding"),
        delimiter=fields.text("delimiter"),
    )
    notice.finish()
    fields.finish()
    return mapping


def read_opt_ins(data: bytes, mapping: OptInMapping, *, at: int) -> OptIns:
    """Read a table of opt-ins.

    Args:
        data: The whole CSV file with its header.
        mapping: What its columns mean.
        at: The time of the import, epoch milliseconds.

    Raises:
        OptInError: The file is in another encoding, is no CSV, or misses a mapped column.
    """
    header, lines = _read_table(data, mapping)
    width, place = len(header), {name: index for index, name in enumerate(header)}
    rows = [
        _read_row(cells, number, width=width, place=place, mapping=mapping, at=at)
        for number, cells in enumerate(lines, start=2)
    ]
    _compare_rows(rows)
    choices = [choice for row in rows for choice in row.choices(mapping)]
    given = sum(any(answer is True for answer in row.answers.values()) for row in rows)
    quarantined = sum(row.subject_id is None for row in rows)
    return OptIns(
        choices=tuple(choices),
        remarks=tuple(remark for row in rows for remark in row.remarks),
        rows=len(rows),
        given=given,
        not_given=len(rows) - given - quarantined,
        quarantined=quarantined,
    )


@dataclass(slots=True)
class _Row:
    """One row while it is read: True is yes, False is no, None is in doubt."""

    number: int
    subject_id: str | None
    expressed_at: int
    answers: dict[OptInColumn, bool | None]
    remarks: list[Remark]

    def doubt(self, column: OptInColumn, reason: Reason) -> None:
        self.answers[column] = None
        remark = Remark(row=self.number, column=column.column, reason=reason)
        if remark not in self.remarks:
            self.remarks.append(remark)

    def choices(self, mapping: OptInMapping) -> Iterator[ConsentChoice]:
        """Give the acts of this row: one for all bundled columns, one for each separate one."""
        bundled = [column for column in self.answers if not column.separate_act]
        acts = [bundled, *([column] for column in self.answers if column.separate_act)]
        for columns in acts:
            said = {column.purpose: self.answers[column] for column in columns}
            given = frozenset(purpose for purpose, answer in said.items() if answer is True)
            refused = frozenset(purpose for purpose, answer in said.items() if answer is False)
            if self.subject_id is not None and given | refused:
                yield ConsentChoice(
                    subject_id=self.subject_id,
                    given=given,
                    refused=refused,
                    notice=mapping.notice,
                    channel=mapping.channel,
                    expressed_at=self.expressed_at,
                    until=self.expressed_at + mapping.valid_days * _DAY_MS,
                    separate=columns is not bundled,
                )


def _read_table(data: bytes, mapping: OptInMapping) -> tuple[list[str], list[list[str]]]:
    try:
        text = data.decode(_ENCODINGS[mapping.encoding])
        lines = list(
            csv.reader(io.StringIO(text, newline=""), delimiter=mapping.delimiter, strict=True)
        )
    except UnicodeDecodeError as error:
        raise OptInError(f"the table is not {mapping.encoding}; nothing was taken over") from error
    except csv.Error as error:
        raise OptInError(f"the table is not CSV ({error}); nothing was taken over") from error
    if not lines:
        raise OptInError("the table has no header; nothing was taken over")
    header = lines[0]
    needed = [mapping.subject_column, mapping.date_column, *(c.column for c in mapping.columns)]
    for name in needed:
        if header.count(name) != 1:
            raise OptInError(
                f"the table must have exactly one column {name!r}, it has {header.count(name)}; "
                "nothing was taken over"
            )
    return header, lines[1:]


def _read_row(
    cells: Sequence[str],
    number: int,
    *,
    width: int,
    place: dict[str, int],
    mapping: OptInMapping,
    at: int,
) -> _Row:
    row = _Row(number, None, 0, {}, [])
    if len(cells) != width:
        row.remarks.append(Remark(row=number, column=None, reason=Reason.WRONG_WIDTH))
        return row
    subject_id = cells[place[mapping.subject_column]]
    if not _is_unmistakable(subject_id):
        row.remarks.append(Remark(row=number, column=None, reason=Reason.NO_PERSON))
        return row
    row.subject_id = subject_id
    expressed_at = _date(cells[place[mapping.date_column]], mapping)
    fault = _date_fault(expressed_at, mapping, at=at)
    row.expressed_at = expressed_at or 0
    for column in mapping.columns:
        cell = cells[place[column.column]]
        row.answers[column] = cell in column.given
        if cell == "":
            row.doubt(column, Reason.EMPTY)
        elif cell not in column.given | column.refused:
            row.doubt(column, Reason.UNKNOWN_VALUE)
        elif fault is not None:
            row.doubt(column, fault)
    return row


def _compare_rows(rows: list[_Row]) -> None:
    """Put in doubt whatever two rows of one person do not agree on."""
    people: dict[str, list[_Row]] = {}
    for row in rows:
        if row.subject_id is not None:
            people.setdefault(row.subject_id, []).append(row)
    for same in people.values():
        for column in same[0].answers:
            if len({row.answers[column] for row in same}) > 1:
                for row in same:
                    row.doubt(column, Reason.CONTRADICTION)


def _is_unmistakable(subject_id: str) -> bool:
    return (
        bool(subject_id)
        and subject_id == subject_id.strip()
        and subject_id.isprintable()
        and unicodedata.is_normalized("NFC", subject_id)
    )


def _date(text: str, mapping: OptInMapping) -> int | None:
    """Return epoch milliseconds, or None for anything but the one spelling of a real date."""
    try:
        local = datetime.strptime(text, mapping.date_format).replace(tzinfo=UTC)
        # strptime also takes single digits, other scripts' digits and stray spaces.
        if local.strftime(mapping.date_format) != text:
            return None
        moment = local - timedelta(minutes=mapping.utc_offset_minutes)
    except (ValueError, OverflowError):
        return None
    return (moment - _EPOCH) // timedelta(milliseconds=1)


def _date_fault(expressed_at: int | None, mapping: OptInMapping, *, at: int) -> Reason | None:
    if expressed_at is None or expressed_at < 0:
        return Reason.NO_DATE
    if expressed_at > at:
        return Reason.FUTURE_DATE
    until = expressed_at + mapping.valid_days * _DAY_MS
    return Reason.EXPIRED if until <= at or until > LATEST_MS else None


def _parse_column(fields: Fields) -> OptInColumn:
    column = OptInColumn(
        column=fields.text("column"),
        purpose=Purpose(fields.text("purpose")),
        given=frozenset(fields.texts("given")),
        refused=frozenset(fields.texts("refused")),
        separate_act=fields.flag("separate_act"),
    )
    fields.finish()
    return column


def _offset_minutes(text: str) -> int:
    sign = {"+": 1, "-": -1}.get(text[:1])
    hours, colon, minutes = text[1:].partition(":")
    digits = (hours + minutes).isascii() and (hours + minutes).isdecimal()
    if sign is None or not (colon and digits and len(hours) == len(minutes) == 2) or minutes > "59":
        raise ValueError("utc_offset must read like +08:00")
    return sign * (int(hours) * 60 + int(minutes))
