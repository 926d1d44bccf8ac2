import csv
import dataclasses
import io
import json
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consent import Gate, Log, LogError, Notice, Purpose, Refused, Register, Use, UseKind
from consent.access import AccessDenied, AccessGrant, Action, Role
from consent.assessment import Assessment
from consent.controller import NamedRecipient, PurposeDeclaration, TransferMechanism
from consent.processing import ProcessingRegister, _cell, register_processing
from consent.purpose import Ladder, Profile, ladder_of

Granting = Callable[..., AccessGrant]
TRAINING = Purpose.FEDERATED_TRAINING
DAY = 86_400_000
BRAND = dataclasses.replace(
    runpy.run_path(str(Path(__file__).parents[1] / "vectors" / "receipt" / "make.py"))[
        "CONTROLLER"
    ],
    officer="=A1, Main Street",
    joint=("B",),
    purposes={
        TRAINING: PurposeDeclaration(
            retention_days=365,
            recipients=(
                NamedRecipient(
                    name="Partner Ltd",
                    contact="privacy@partner.example",
                    method="adds up",
                    data=("noisy sums",),
                    country="SG",
                    mechanism=TransferMechanism.STANDARD_CONTRACT,
                    filing="SCC-1",
                ),
            ),
        ),
        Purpose.CONTACT: PurposeDeclaration(retention_days=99_999),
    },
)
EU = ladder_of(Profile.EU_GDPR)
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
    def write(since: int = 0, at: int = 5 * DAY, ladder: Ladder = EU) -> ProcessingRegister:
        allowed = grant(Role.COMPLIANCE_OFFICER, Action.READ_REGISTER, "processing", at=at)
        return register_processing(
            log, BRAND, ladder=ladder, assessments=[ASSESSMENT], grant=allowed, window=(since, at)
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
    lines = {line.purpose: line for line in write().activities}
    training, contact, order = lines[TRAINING], lines[Purpose.CONTACT], lines["order"]

    assert (training.uses, training.refusals, training.last_used_day) == ("64", "<64", 2 * DAY)
    assert training.seen_recipients == ("coordinator.example",)
    assert (training.assessment, training.retention_days) == ("pia-1", 365)
    assert training.transfers == ("SG, Partner Ltd, standard_contract, SCC-1",)
    assert "Partner Ltd" in training.recipients
    assert training.legal_basis == "consent: GDPR 6(1)(a), GDPR 26, GDPR 35"
    assert contact.retention_days == EU.rules[Purpose.CONTACT].retention_days
    assert (order.legal_basis[:9], order.retention_days, order.uses) == ("contract:", 3650, "")
    assert len(lines) == 14
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
    assert row["officer"] == "'=A1, Main Street"


@given(st.text() | st.lists(st.text(), max_size=3))
def test_no_cell_begins_like_a_formula(value: str | list[str]) -> None:
    assert not _cell(list(value) if isinstance(value, list) else value).startswith(
        ("=", "+", "-", "@", "\t", "\r")
    )


def test_a_use_that_the_profile_forbids_is_no_register(
    gate: Gate, write: Callable[..., ProcessingRegister]
) -> None:
    use(gate, Purpose.RECOMMENDATION, at=DAY)
    forbidden = dataclasses.replace(EU.rules[Purpose.RECOMMENDATION], allowed=False)
    rules = {**EU.rules, Purpose.RECOMMENDATION: forbidden}
    with pytest.raises(ValueError, match="recommendation was used, and the profile forbids it"):
        write(ladder=dataclasses.replace(EU, rules=rules))


def test_an_empty_window_is_refused(write: Callable[..., ProcessingRegister]) -> None:
    with pytest.raises(ValueError, match="must begin before it ends"):
        write(since=5 * DAY)


def test_the_register_is_read_with_a_grant(log: Log, grant: Granting) -> None:
    other = grant(Role.OPERATOR, Action.READ_LOG, "processing", at=5)
    with pytest.raises(AccessDenied, match="the grant is not one to read_register"):
        register_processing(log, BRAND, ladder=EU, assessments=[], grant=other, window=(0, 5))


def test_a_permit_for_an_unknown_purpose_is_refused(
    log: Log, write: Callable[..., ProcessingRegister]
) -> None:
    log.append({"type": "permit.issued", "v": 1, "at": 1, "purpose": "spam", "use": {}})
    with pytest.raises(LogError, match="a permit for a purpose that is not known"):
        write()
