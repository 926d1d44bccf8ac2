import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy import (
    Accounting,
    Budget,
    EventKind,
    GaussianRelease,
    LaplaceRelease,
    LedgerError,
    LedgerEvent,
    ReleaseKey,
    SampledGaussianRelease,
)
from privacy.history import History, next_head

keys = st.builds(
    ReleaseKey, run=st.text(min_size=1), round=st.integers(0, 2**62), attempt=st.integers(0, 9)
)
sums = st.builds(
    GaussianRelease,
    sensitivity=st.floats(1e-3, 2.0**53),
    noise_std=st.floats(30, 1e300),
    slack_delta=st.floats(0, 0.5),
)
sampled = st.builds(
    SampledGaussianRelease,
    sensitivity=st.floats(1e-3, 2.0**53),
    noise_std=st.floats(30, 1e300),
    sampling_rate=st.floats(1e-9, 1),
    steps=st.integers(1, 10**7),
    slack_delta=st.floats(0, 0.5),
)
counts = st.builds(
    LaplaceRelease,
    sensitivity=st.integers(1, 4096),
    scale=st.floats(1e-3, 1e300),
    slack_delta=st.floats(0, 0.5),
)
releases = st.one_of(sums, sampled, counts)
budgets = st.builds(Budget, epsilon=st.floats(1e-9, 1e9), delta=st.floats(1e-300, 0.9))
events = st.one_of(
    st.builds(
        LedgerEvent,
        kind=st.just(EventKind.BUDGET),
        purpose=st.text(),
        budget=budgets,
        accounting=st.sampled_from(Accounting),
    ),
    st.builds(
        LedgerEvent,
        kind=st.just(EventKind.RESERVED),
        purpose=st.text(),
        key=keys,
        release=releases,
        digest=st.binary(min_size=32, max_size=32).map(bytes.hex),
    ),
)


@given(events)
def test_an_event_survives_being_written_and_read_to_the_last_bit(event: LedgerEvent) -> None:
    assert LedgerEvent.parse(event.format()) == event


@given(st.one_of(st.text(), st.dictionaries(st.text(), st.integers()).map(str)))
def test_garbage_is_no_event(text: str) -> None:
    with pytest.raises(LedgerError, match="a ledger event cannot be read"):
        LedgerEvent.parse(text)


def test_an_event_in_another_form_is_no_event() -> None:
    event = LedgerEvent(
        kind=EventKind.BUDGET, purpose="churn", budget=Budget(epsilon=3.0, delta=1e-5)
    )

    with pytest.raises(LedgerError, match="it is not in the canonical form"):
        LedgerEvent.parse(event.format().replace(",", ", "))


def test_a_release_without_a_budget_before_it_is_no_history() -> None:
    history = History()
    body = LedgerEvent(
        kind=EventKind.RELEASED,
        purpose="churn",
        key=ReleaseKey(run="june", round=1, attempt=0),
        digest="00",
    ).format()

    with pytest.raises(LedgerError, match="event 1 concerns nothing that is known"):
        history.append(body, next_head(history.head, body))


def test_a_key_names_a_run_a_round_and_an_attempt() -> None:
    with pytest.raises(ValueError, match="run must not be empty"):
        ReleaseKey(run="", round=0, attempt=0)
    with pytest.raises(ValueError, match="round and attempt must be at least 0, got -1 and 0"):
        ReleaseKey(run="june", round=-1, attempt=0)
