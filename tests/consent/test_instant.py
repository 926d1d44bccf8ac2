import pytest
from hypothesis import given
from hypothesis import strategies as st

from consent.instant import LATEST_MS, format_instant, parse_instant


@given(st.integers(0, LATEST_MS))
def test_a_moment_reads_back_as_it_was(at: int) -> None:
    assert parse_instant(format_instant(at)) == at


def test_a_moment_is_written_in_utc_to_the_millisecond() -> None:
    assert format_instant(1_795_293_098_805) == "2026-11-21T20:31:38.805Z"
    assert format_instant(LATEST_MS) == "9999-12-31T23:59:59.999Z"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2026-11-21", "must read like"),
        ("2026-11-21T20:31:38Z", "must read like"),
        ("2026-11-21T20:31:38.805+00:00", "must read like"),
        ("٢٠٢٦-11-21T20:31:38.805Z", "must read like"),
        ("2026-02-30T00:00:00.000Z", "must be a moment that exists"),
        ("2026-01-01T00:00:60.000Z", "must be a moment that exists|must read"),
        ("1969-12-31T23:59:59.999Z", "must not be before 1970"),
    ],
)
def test_any_other_spelling_of_a_moment_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_instant(text)


@pytest.mark.parametrize("at", [-1, LATEST_MS + 1])
def test_a_moment_that_four_digits_cannot_hold_is_refused(at: int) -> None:
    with pytest.raises(ValueError, match="must be between the years 1970 and 9999"):
        format_instant(at)


@given(st.text())
def test_garbage_raises_only_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match="a time must"):
        parse_instant(text)
