import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from consent import (
    ConsentChoice,
    Gate,
    Identity,
    Log,
    Notice,
    Permit,
    Profile,
    Purpose,
    Refused,
    Register,
    Tier,
    TrustPolicy,
    Use,
    UseKind,
    preset,
    verify_published,
)
from consent.gate import bucket

TRAIN = Use(kind=UseKind.TRAIN, run="run-1", round=2, attempt=1, recipients=("coordinator",))
PEOPLE = ["anna", "ben", "chen"]
TRAINING = Purpose.FEDERATED_TRAINING


@pytest.fixture
def gate(register: Register, log: Log, notice: Notice) -> Gate:
    given = preset(Tier.ADVANCED, profile=Profile.EU_GDPR)
    register.record_many(
        [
            ConsentChoice(
                subject_id=name,
                given=given,
                notice=notice,
                channel="app",
                expressed_at=1,
                until=until,
            )
            for name, until in (("anna", 1000), ("ben", 500))
        ],
        at=10,
    )
    return Gate(register, log, policy_digest="sha256:00")


def test_the_permit_is_in_the_log_before_the_mask_is_out(gate: Gate, log: Log) -> None:
    view = gate.open(TRAINING, PEOPLE, use=TRAIN, at=20)

    event = log.entry(view.permit.index).value
    assert view.mask.tolist() == [True, True, False]
    assert (event["type"], event["permit"]) == ("permit.issued", view.permit.permit_id)
    assert event["use"] == {
        "kind": "train",
        "run": "run-1",
        "round": 2,
        "attempt": 1,
        "recipients": ["coordinator"],
    }
    assert (event["included"], event["excluded"]) == ("<64", "<64")
    assert view.permit.use == TRAIN
    gate.verify_permit(view.permit)


def test_the_mask_cannot_be_changed_by_accident(gate: Gate) -> None:
    view = gate.open(TRAINING, PEOPLE, use=TRAIN, at=20)
    with pytest.raises(ValueError, match="read-only"):
        view.mask[2] = True


def test_nothing_in_the_event_tells_who_was_in(gate: Gate, log: Log) -> None:
    first = gate.open(TRAINING, PEOPLE, use=TRAIN, at=20).permit
    second = gate.open(TRAINING, PEOPLE, use=TRAIN, at=20).permit

    assert first.mask_root != second.mask_root
    assert "valid_until" not in log.entry(first.index).value


def test_nobody_permitted_is_a_refusal_and_an_event(gate: Gate, log: Log) -> None:
    with pytest.raises(Refused, match="nobody of the people asked for has agreed to lookalike"):
        gate.open(Purpose.LOOKALIKE, PEOPLE, use=TRAIN, at=20)

    event = log.entry(log.tree_size - 1).value
    assert (event["type"], event["purpose"]) == ("permit.denied", "lookalike")
    assert event["reason"] == "nobody of the people asked for has agreed to lookalike"


def test_nobody_asked_for_is_a_refusal(gate: Gate) -> None:
    with pytest.raises(Refused, match="nobody"):
        gate.open(TRAINING, [], use=TRAIN, at=20)


def test_a_purpose_that_nobody_was_asked_about_is_refused(gate: Gate, log: Log) -> None:
    with pytest.raises(Refused, match="is not one that people were asked about"):
        gate.open("training", PEOPLE, use=TRAIN, at=20)  # type: ignore[arg-type]
    assert log.entry(log.tree_size - 1).value["purpose"] == "unknown"


@pytest.mark.parametrize("at", [-1, "now", 1.5])
def test_a_time_that_is_none_is_refused(gate: Gate, at: int) -> None:
    with pytest.raises(Refused):
        gate.open(TRAINING, PEOPLE, use=TRAIN, at=at)


def test_ids_that_are_none_are_refused_without_repeating_them(gate: Gate, log: Log) -> None:
    with pytest.raises(Refused, match=r"^the gate could not decide, which is a refusal$"):
        gate.open(TRAINING, ["anna", 17], use=TRAIN, at=20)  # type: ignore[list-item]
    assert log.entry(log.tree_size - 1).value["type"] == "permit.denied"


def test_a_closed_log_is_a_refusal(gate: Gate, log: Log) -> None:
    log.close()
    with pytest.raises(Refused, match=r"cannot be used, which is a refusal$"):
        gate.open(TRAINING, PEOPLE, use=TRAIN, at=20)


def test_an_unreadable_state_is_a_refusal(gate: Gate, log: Log) -> None:
    with log.transaction() as transaction:
        transaction.connection.execute("DROP TABLE consent_seq")
    with pytest.raises(Refused, match="which is a refusal"):
        gate.open(TRAINING, PEOPLE, use=TRAIN, at=20)
    assert log.entry(log.tree_size - 1).value["type"] == "permit.denied"


def test_a_withdrawal_ends_a_permit_and_a_new_customer_does_not(
    gate: Gate, register: Register, notice: Notice
) -> None:
    permit = gate.open(TRAINING, PEOPLE, use=TRAIN, at=20).permit
    register.record(
        "dana",
        given={TRAINING},
        notice=notice,
        channel="app",
        expressed_at=21,
        at=21,
        until=99,
    )
    assert gate.is_current(permit)
    register.withdraw("anna", [TRAINING], at=22)

    assert not gate.is_current(permit)
    assert gate.open(TRAINING, PEOPLE, use=TRAIN, at=23).mask.tolist() == [False, True, False]


def test_the_first_expiry_ends_a_permit(gate: Gate) -> None:
    permit = gate.open(TRAINING, PEOPLE, use=TRAIN, at=20).permit

    assert permit.valid_until == 500
    assert gate.is_current(permit, at=499)
    assert not gate.is_current(permit, at=500)


def test_the_node_can_tell_in_which_uses_a_person_was(gate: Gate, register: Register) -> None:
    first = gate.open(TRAINING, PEOPLE, use=TRAIN, at=20).permit
    register.withdraw("anna", at=21)
    second = gate.open(TRAINING, PEOPLE, use=TRAIN, at=22).permit

    assert gate.uses_of("anna") == [first]
    assert gate.uses_of("ben") == [first, second]
    assert gate.uses_of("chen") == gate.uses_of("nobody") == []


def test_permits_are_unchanged_until_somebody_in_them_leaves(
    gate: Gate, register: Register
) -> None:
    permit = gate.open(TRAINING, ["anna", "ben"], use=TRAIN, at=20).permit.permit_id
    rows = register.rows_of("anna")
    register.withdraw("chen", at=21)
    before = gate.is_unchanged([permit], TRAINING, at=22)
    register.withdraw("anna", at=23)

    assert before
    assert not gate.is_unchanged([permit], TRAINING, at=24)
    assert gate.is_unchanged([], TRAINING, at=24)
    assert gate.including(rows, [permit]) == gate.including(rows) == [permit]
    assert gate.including(rows, []) == gate.including([]) == []
    with pytest.raises(Refused, match="the permit is not the one in the log of this node"):
        gate.is_unchanged(["00"], TRAINING, at=24)


def test_uses_survive_a_restart(
    gate: Gate, log: Log, tmp_path: Path, identity: Identity, store: str | None
) -> None:
    permit = gate.open(TRAINING, PEOPLE, use=TRAIN, at=20).permit
    log.close()
    with Log.open(tmp_path / "log", identity, store=store) as reopened:
        register = Register(reopened, pseudonym_key=bytes(32), profile=Profile.EU_GDPR)
        again = Gate(register, reopened, policy_digest="sha256:00")

        assert again.uses_of("anna") == [permit]
        again.verify_permit(permit)


def test_a_permit_cannot_be_made_by_hand(gate: Gate) -> None:
    permit = gate.open(TRAINING, PEOPLE, use=TRAIN, at=20).permit
    fields = {field.name: getattr(permit, field.name) for field in dataclasses.fields(permit)}
    make: Callable[..., Permit] = Permit

    with pytest.raises(TypeError, match=r"is issued by Gate.open and cannot be made by hand"):
        make(**fields)
    with pytest.raises((TypeError, ValueError)):
        dataclasses.replace(permit, purpose=Purpose.SENSITIVE)


def test_a_permit_changed_by_force_is_refused(gate: Gate) -> None:
    permit = gate.open(TRAINING, PEOPLE, use=TRAIN, at=20).permit
    object.__setattr__(permit, "purpose", Purpose.SENSITIVE)
    with pytest.raises(Refused, match="is not the one in the log of this node"):
        gate.verify_permit(permit)
    object.__setattr__(permit, "permit_id", "0" * 32)
    with pytest.raises(Refused, match="is not the one in the log of this node"):
        gate.verify_permit(permit)


def test_a_use_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(ValueError, match="the use of a permit cannot be read"):
        Use.parse({"kind": "train"})


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "<64"), (63, "<64"), (64, "64"), (127, "64"), (128, "128"), (5000, "4096")],
)
def test_counts_are_told_in_powers_of_two(count: int, text: str) -> None:
    assert bucket(count) == text


def test_a_log_with_permits_verifies(
    gate: Gate, log: Log, tmp_path: Path, identity: Identity
) -> None:
    gate.open(TRAINING, PEOPLE, use=TRAIN, at=20)
    with pytest.raises(Refused):
        gate.open(Purpose.LOOKALIKE, PEOPLE, use=TRAIN, at=20)
    log.publish(tmp_path / "published")
    policy = TrustPolicy.parse(f"log {identity.public.format()}\nquorum none\n")

    verdict = verify_published(tmp_path / "published", policy)

    assert verdict.events == {"sealed": 2, "permit.issued": 1, "permit.denied": 1}
