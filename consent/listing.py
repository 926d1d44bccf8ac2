"""Say in one row what one entry of a log says, for a list, a table or a spreadsheet.

Rows tell what entries claim. Whether the entries are the log's is decided in `verify`, and
nothing about a person is in them: of a sealed entry only the minute can be read.
"""

import csv
import io
import re
from collections.abc import Iterable
from dataclasses import dataclass

from consent.canonical import CanonicalError, JsonValue, parse_canonical
from consent.event import SEALED, LogError, is_count
from consent.instant import LATEST_MS, format_instant
from consent.sealed import MINUTE_MS

COLUMNS = (
    "index",
    "time",
    "type",
    "purpose",
    "run",
    "round",
    "recipients",
    "included",
    "excluded",
)
_FORMULA = re.compile(r"(^|[;,|])(?=\s*[=+\-@\uff1d\uff0b\uff0d\uff20])")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufeff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryRow:
    """What one entry says; text that the entry does not hold is empty.

    Attributes:
        index: Position in the log.
        at: Epoch milliseconds; of a sealed entry the start of its minute.
        kind: Type of the event, or `sealed`.
        purpose: What data was used for; of a sent release the purpose of its permit.
        run: Digest of the plan.
        round: Number of the round.
        recipients: Who was to get the result.
        included: People whose data was opened, as the power of two at or below.
        excluded: People whose data stayed closed, in the same way.
    """

    index: int
    at: int
    kind: str
    purpose: str = ""
    run: str = ""
    round: str = ""
    recipients: tuple[str, ...] = ()
    included: str = ""
    excluded: str = ""

    @property
    def time(self) -> str:
        """Return the moment as ISO 8601 in UTC, or the bare number after the year 9999."""
        return format_instant(self.at) if self.at <= LATEST_MS else str(self.at)

    def cells(self) -> list[str]:
        """Return the row in the order of `COLUMNS`."""
        return [
            str(self.index),
            self.time,
            self.kind,
            self.purpose,
            self.run,
            self.round,
            " ".join(self.recipients),
            self.included,
            self.excluded,
        ]


class RowReader:
    """Reads entries in the order of the log, and remembers what a permit was for."""

    def __init__(self) -> None:
        self._purposes: dict[str, str] = {}

    def read(self, index: int, leaf: bytes) -> EntryRow:
        """Return the row of the next entry.

        Raises:
            LogError: The bytes are no entry of a log.
        """
        event = parse_entry(index, leaf)
        if event.get("k") == SEALED:
            return EntryRow(index=index, at=_number(event, "t", index) * MINUTE_MS, kind=SEALED)
        use = event.get("use")
        about: dict[str, JsonValue] = {**use, **event} if isinstance(use, dict) else event
        purpose, permit = _text(event, "purpose"), _text(event, "permit")
        kind = _text(event, "type")
        if kind == "permit.issued":
            self._purposes[permit] = purpose
        return EntryRow(
            index=index,
            at=_number(event, "at", index),
            kind=kind,
            purpose=purpose or self._purposes.get(permit, ""),
            run=_text(about, "run"),
            round=str(about["round"]) if is_count(about.get("round")) else "",
            recipients=_recipients(about),
            included=_text(event, "included"),
            excluded=_text(event, "excluded"),
        )


def parse_entry(index: int, leaf: bytes) -> dict[str, JsonValue]:
    """Return the event of an entry, or what a sealed entry shows.

    Raises:
        LogError: The bytes are no canonical object.
    """
    try:
        event = parse_canonical(leaf)
    except CanonicalError as error:
        raise LogError(f"entry {index} is not canonical: {error}", index=index) from error
    if not isinstance(event, dict):
        raise LogError(f"entry {index} must be an object", index=index)
    return event


def format_csv(rows: Iterable[EntryRow]) -> bytes:
    """Write rows as CSV (RFC 4180) that no spreadsheet takes for a formula.

    An apostrophe stands before whatever a spreadsheet might calculate; characters that control
    a terminal or end a line are replaced by U+FFFD.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    writer.writerows([safe_text(cell) for cell in row.cells()] for row in rows)
    return text.getvalue().encode()


def safe_text(cell: str) -> str:
    """Return a cell in which nothing is a formula and nothing ends a line."""
    return _FORMULA.sub(r"\1'", printable(cell))


def printable(text: str) -> str:
    """Return text in which nothing controls a terminal or turns the direction of reading."""
    return _CONTROL.sub("\ufffd", text)


def _recipients(event: dict[str, JsonValue]) -> tuple[str, ...]:
    many = event.get("recipients")
    if isinstance(many, list):
        return tuple(name for name in many if isinstance(name, str))
    one = _text(event, "recipient")
    return (one,) if one else ()


def _text(event: dict[str, JsonValue], name: str) -> str:
    value = event.get(name)
    return value if isinstance(value, str) else ""


def _number(event: dict[str, JsonValue], name: str, index: int) -> int:
    value = event.get(name)
    if not isinstance(value, int) or not is_count(value):
        raise LogError(f"entry {index} does not say when it was", index=index)
    return value
