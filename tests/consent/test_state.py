import numpy as np
import pytest

from consent.canonical import JsonValue
from consent.purpose import Profile, Purpose
from consent.state import ConsentState, Standing, Status

GIVEN = Standing(Status.GIVEN, said_at=5, effective_at=6, until=100, separate=False)


def test_a_row_that_never_spoke_has_no_standing() -> None:
    state = ConsentState()
    state.put(3, Purpose.CONTACT, GIVEN)

    assert state.standing(3, Purpose.CONTACT) == GIVEN
    assert state.standing(2, Purpose.CONTACT) is None
    assert state.standing(10_000, Purpose.CONTACT) is None


def test_rows_beyond_the_state_are_not_permitted() -> None:
    state = ConsentState()
    state.put(0, Purpose.CONTACT, GIVEN)
    rows = np.array([-1, 0, 1, 10_000, 0])

    mask = state.permitted(rows, Purpose.CONTACT, profile=Profile.EU_GDPR, at=50)

    assert mask.tolist() == [False, True, False, False, True]


def test_a_prerequisite_can_be_what_expires_first() -> None:
    state = ConsentState()
    state.put(0, Purpose.CONTACT, GIVEN)
    later = Standing(Status.GIVEN, said_at=5, effective_at=6, until=900, separate=False)
    state.put(0, Purpose.AUTOMATED_MARKETING, later)

    assert state.earliest_until(np.array([0]), Purpose.AUTOMATED_MARKETING) == 100


@pytest.mark.parametrize(
    "event",
    [{}, {"type": "consent.recorded", "at": 1}, {"type": "consent.withdrawn", "purposes": []}],
)
def test_an_event_that_is_no_consent_event_is_refused(event: dict[str, JsonValue]) -> None:
    with pytest.raises(ValueError, match="must be a record or a withdrawal with its fields"):
        ConsentState().apply(0, event)
