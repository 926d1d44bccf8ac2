"""Count the clocks of a profile: until when an answer is due.

Months end on the same day of the month, or on its last one (Regulation 1182/71 as the GDPR reads
it, without moving a weekend's end on: earlier is never late). Working days are Monday to Friday
in the profile's time zone; public holidays and days that are worked instead are not known here,
so a due day can be earlier than the law's and, after a worked weekend, later by that weekend.
"""

import calendar
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from types import MappingProxyType

from consent.instant import LATEST_MS
from consent.ladder import ClockUnit, Period, Profile

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SATURDAY = 5

OFFSET_MINUTES: Mapping[Profile, int] = MappingProxyType({Profile.EU_GDPR: 0, Profile.CN_PIPL: 480})
"""Offset from UTC in which the days of a profile are counted and its times are printed."""


def due_at(at: int, period: Period, *, profile: Profile) -> int:
    """Return when a period that begins at a time ends, epoch milliseconds.

    Args:
        at: When the clock starts, epoch milliseconds, before the year 9999.
        period: How long.
        profile: Whose days are counted.
    """
    offset = timedelta(minutes=OFFSET_MINUTES[profile])
    start = _EPOCH + timedelta(milliseconds=at) + offset
    match period.unit:
        case ClockUnit.HOURS:
            end = start + timedelta(hours=period.count)
        case ClockUnit.DAYS:
            end = start + timedelta(days=period.count)
        case ClockUnit.MONTHS:
            end = _after_months(start, period.count)
        case ClockUnit.WORKING_DAYS:
            end = _after_working_days(start, period.count)
    return min(LATEST_MS, (end - offset - _EPOCH) // timedelta(milliseconds=1))


def _after_months(start: datetime, months: int) -> datetime:
    years, month = divmod(start.month - 1 + months, 12)
    year = start.year + years
    last = calendar.monthrange(year, month + 1)[1]
    return start.replace(year=year, month=month + 1, day=min(start.day, last))


def _after_working_days(start: datetime, days: int) -> datetime:
    weeks, rest = divmod(days, 5)
    end = start + timedelta(weeks=weeks)
    # A clock that starts at a weekend counts from the Friday before: Monday is its first day.
    if end.weekday() >= _SATURDAY and days:
        end -= timedelta(days=end.weekday() - _SATURDAY + 1)
    for _ in range(rest):
        end += timedelta(days=3 if end.weekday() == _SATURDAY - 1 else 1)
    return end
