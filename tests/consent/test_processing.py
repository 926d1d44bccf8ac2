import csv
import dataclasses
import io
import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consent import Gate, Log, LogError, Notice, Purpose, Refused, Register, Use, UseKind
from consent.access import AccessDenied, AccessGrant, Action, Role
from consent.assessment import Assessment
from consent.processing import (
    Controller,
    Keeping,
    ProcessingRegister,
    _cell,
    register_processing,
)

Granting = Callable[..., AccessGrant]
TRAINING = Purpose.FEDERATED_TRAINING
DAY = 86_400_000
KEEPING = {
    TRAINING: Keeping(legal_basis="consent", retention_days=365, transfers=("none",)),
    Purpose.CONTACT: Keeping(legal_basis="consent", retention_days=30),
}
BRAND = Controller(
    name="Brand A",
    contact="=A1, Main Street",
    officer="dpo",
    joint=("B",),
    security="keys, noise",
    keeping=KEEPING,
)
ASSESSMENT = Assessment(
    assessment_id="pia-1",
    purpose=TRAINING,
    document="ab" * 32,
    author="ann",
    approver="bo",
    approved_at=0,
    valid_until=9 * DAY,
)


@pytest.fixture
def gate(register: Register, log: Log, notice: Notice) -> Gate:
    register.record(
        "anna",
        given={TRAINING, Purpose.RECOMMENDATION},
        notice=notice,
        channel="app",
        expressed_at=1,
        at=1,
        until=99 * DAY,
    )
    return Gate(register, log, policy_digest="00")


@pytest.fixture
def write(log: Log, grant: Granting) -> Callable[..., ProcessingRegister]:
    def write(since: int = 0, at: int = 5 * DAY) -> ProcessingRegister:
        allowed = grant(Role.COMPLIANCE_OFFICER, Action.READ_REGISTER, "processing", at=at)
        return register_processing(
            log, BRAND, assessments=[ASSESSMENT], grant=allowed, window=(since, at)
        )

    return write


def use(gate: Gate, purpose: Purpose, *, at: int, times: int = 1) -> None:
    what = Use(kind=UseKind.TRAIN, run="r", recipients=("coordinator.example",))
    for _ in range(times):
        gate.open(purpose, ["anna"], use=what, at=at)


def test_the_register_tells_what_is_asked_and_what_was_done(
    gate: Gate, write: Callable[..., ProcessingRegister]
) -> None:
    use(gate, TRAINING, at=DAY, times=3)
    use(gate, TRAINING, at=2 * DAY + 7, times=67)
    with pytest.raises(Refused):
        use(gate, Purpose.CONTACT, at=3 * DAY)
    training, contact = sorted(write().activities, key=lambda line: line.purpose != TRAINING)

    assert (training.uses, training.refusals, training.last_used_day) == ("64", "<64", 2 * DAY)
    assert training.seen_recipients == ("coordinator.example",)
    assert (training.assessment, training.retention_days) == ("pia-1", 365)
    assert training.transfers == ("none",)
    assert (contact.uses, contact.last_used_day, contact.assessment) == ("<64", None, "")
    assert "anna" not in write().format_json() + write().format_csv()


def test_only_the_window_counts(gate: Gate, write: Callable[..., ProcessingRegister]) -> None:
    use(gate, TRAINING, at=DAY, times=70)
    use(gate, TRAINING, at=3 * DAY)

    def training(found: ProcessingRegister) -> tuple[str, int | None]:
        line = next(line for line in found.activities if line.purpose == TRAINING)
        return line.uses, line.last_used_day

    assert training(write(since=2 * DAY)) == ("<64", 3 * DAY)
    assert training(write(since=0)) == ("64", 3 * DAY)
    assert training(write(since=4 * DAY)) == ("<64", None)


def test_json_and_csv_say_the_same(gate: Gate, write: Callable[..., ProcessingRegister]) -> None:
    use(gate, TRAINING, at=DAY)
    found = write()

    document = json.loads(found.format_json())
    rows = list(csv.DictReader(io.StringIO(found.format_csv())))
    assert [line["purpose"] for line in document["activities"]] == [r["purpose"] for r in rows]
    assert document["controller"]["joint"] == ["B"]
    for line, row in zip(document["activities"], rows, strict=True):
        for key, value in line.items():
            joined = "; ".join(value) if isinstance(value, list) else value
            assert row[key] == ("" if joined is None else str(joined))


def test_a_spreadsheet_runs_no_cell(gate: Gate, write: Callable[..., ProcessingRegister]) -> None:
    row = next(csv.DictReader(io.StringIO(write().format_csv())))
    assert row["contact"] == "'=A1, Main Street"


@given(st.text() | st.lists(st.text(), max_size=3))
def test_no_cell_begins_like_a_formula(value: str | list[str]) -> None:
    assert not _cell(list(value) if isinstance(value, list) else value).startswith(
        ("=", "+", "-", "@", "\t", "\r")
    )


def test_a_use_that_the_brand_does_not_declare_is_no_register(
    gate: Gate, write: Callable[..., ProcessingRegister]
) -> None:
    use(gate, Purpose.RECOMMENDATION, at=DAY)
    with pytest.raises(ValueError, match="recommendation was used, and the register says nothing"):
        write()


def test_an_empty_window_is_refused(write: Callable[..., ProcessingRegister]) -> None:
    with pytest.raises(ValueError, match="must begin before it ends"):
        write(since=5 * DAY)


def test_the_register_is_read_with_a_grant(log: Log, grant: Granting) -> None:
    other = grant(Role.OPERATOR, Action.READ_LOG, "processing", at=5)
    with pytest.raises(AccessDenied, match="the grant is not one to read_register"):
        register_processing(log, BRAND, assessments=[], grant=other, window=(0, 5))


def test_a_permit_for_an_unknown_purpose_is_refused(
    log: Log, write: Callable[..., ProcessingRegister]
) -> None:
    log.append({"type": "permit.issued", "v": 1, "at": 1, "purpose": "spam", "use": {}})
    with pytest.raises(LogError, match="a permit for a purpose that is not known"):
        write()


def test_a_controller_must_be_reachable() -> None:
    with pytest.raises(ValueError, match="must have a name, a contact, an officer and measures"):
        dataclasses.replace(BRAND, contact="")
    with pytest.raises(ValueError, match="a controller must declare at least one purpose"):
        dataclasses.replace(BRAND, keeping={})


@pytest.mark.parametrize(
    ("basis", "days", "message"),
    [
        ("", 1, "a purpose must have a legal basis"),
        ("consent", 0, "retention_days must be at least 1, got 0"),
    ],
)
def test_a_purpose_without_basis_or_end_is_refused(basis: str, days: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Keeping(legal_basis=basis, retention_days=days)
