from datetime import UTC, datetime

import pytest

from consent import Profile
from consent.deadline import due_at
from consent.ladder import ClockUnit, Period


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


@pytest.mark.parametrize(
    ("start", "count", "unit", "profile", "end"),
    [
        ("2026-01-31T10:00", 1, ClockUnit.MONTHS, Profile.EU_GDPR, "2026-02-28T10:00"),
        ("2026-11-15T10:00", 3, ClockUnit.MONTHS, Profile.EU_GDPR, "2027-02-15T10:00"),
        ("2026-01-31T10:00", 72, ClockUnit.HOURS, Profile.EU_GDPR, "2026-02-03T10:00"),
        ("2026-01-31T10:00", 0, ClockUnit.HOURS, Profile.CN_PIPL, "2026-01-31T10:00"),
        ("2026-01-31T10:00", 30, ClockUnit.DAYS, Profile.EU_GDPR, "2026-03-02T10:00"),
        # Monday 23 November 2026 plus three working weeks.
        ("2026-11-23T02:00", 15, ClockUnit.WORKING_DAYS, Profile.CN_PIPL, "2026-12-14T02:00"),
        ("2026-11-26T02:00", 2, ClockUnit.WORKING_DAYS, Profile.CN_PIPL, "2026-11-30T02:00"),
        # Saturday and Sunday: Monday is the first day.
        ("2026-11-21T02:00", 1, ClockUnit.WORKING_DAYS, Profile.CN_PIPL, "2026-11-23T02:00"),
        ("2026-11-22T02:00", 5, ClockUnit.WORKING_DAYS, Profile.CN_PIPL, "2026-11-27T02:00"),
        # Friday evening in London is Saturday in Shanghai.
        ("2026-11-20T20:00", 1, ClockUnit.WORKING_DAYS, Profile.CN_PIPL, "2026-11-22T20:00"),
        ("2026-11-20T20:00", 1, ClockUnit.WORKING_DAYS, Profile.EU_GDPR, "2026-11-23T20:00"),
    ],
)
def test_a_clock_ends_when_its_law_says(
    start: str, count: int, unit: ClockUnit, profile: Profile, end: str
) -> None:
    assert due_at(ms(start), Period(count=count, unit=unit), profile=profile) == ms(end)


def test_fifteen_working_days_always_hold_three_weekends() -> None:
    for day in range(1, 29):
        start = ms(f"2026-11-{day:02}T02:00")
        period = Period(count=15, unit=ClockUnit.WORKING_DAYS)
        days = (due_at(start, period, profile=Profile.CN_PIPL) - start) / 86_400_000
        assert 19 <= days <= 21
