"""Write a moment, which is a number of epoch milliseconds everywhere else, for other readers."""

import re
from datetime import UTC, datetime, timedelta, timezone

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_WRITTEN = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z")
LATEST_MS = 253_402_300_799_999
"""The last millisecond of the year 9999."""


def format_instant(at: int) -> str:
    """Write epoch milliseconds as ISO 8601 in UTC, with exactly three digits after the second.

    Raises:
        ValueError: The moment is before 1970 or after the year 9999.
    """
    moment = _moment(at)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{at % 1000:03d}Z"


def parse_instant(text: str) -> int:
    """Read what `format_instant` wrote, and refuse every other spelling.

    Raises:
        ValueError: The text is not such a moment.
    """
    if not _WRITTEN.fullmatch(text):
        raise ValueError("a time must read like 2027-11-21T08:30:00.000Z")
    try:
        moment = datetime.strptime(text[:19], "%Y-%m-%dT%H:%M:%S").replace(tzinfo=UTC)
    except ValueError as error:
        raise ValueError("a time must be a moment that exists") from error
    at = (moment - _EPOCH) // timedelta(seconds=1) * 1000 + int(text[20:23])
    if at < 0:
        raise ValueError("a time must not be before 1970")
    return at


def format_minute(at: int, *, offset_minutes: int) -> str:
    """Write epoch milliseconds for people, to the minute, with the offset from UTC beside it."""
    local = _moment(at).astimezone(timezone(timedelta(minutes=offset_minutes)))
    hours, minutes = divmod(abs(offset_minutes), 60)
    zone = "UTC"
    if offset_minutes:
        zone += f"{'+' if offset_minutes > 0 else '-'}{hours}" + (
            f":{minutes:02d}" if minutes else ""
        )
    return f"{local:%Y-%m-%d %H:%M} ({zone})"


def _moment(at: int) -> datetime:
    if not 0 <= at <= LATEST_MS:
        raise ValueError("a time must be between the years 1970 and 9999")
    return _EPOCH + timedelta(milliseconds=at)
