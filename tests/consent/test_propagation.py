import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consent import Identity, Log, LogError, Purpose, Register, format_canonical
from consent.propagation import Backoff, Outbox, Outcome, Recipient, overdue_in
from consent.reader import ReadOnlyDatabase
from consent.withdrawal import (
    NoticeError,
    SignedMessage,
    WithdrawalNotice,
    acknowledge,
    verify_notice,
)

SHARING, LOOKALIKE = Purpose.THIRD_PARTY_SHARING, Purpose.LOOKALIKE
DAY = 86_400_000
T = 1_000_000
BACKOFF = Backoff(first_ms=10, most_ms=35)
PARTNER = Identity.generate("partner.example")
OTHER = Identity.generate("other.example")
HANDLES = {"partner.example": "p-anna", "other.example": ""}


def recipients() -> list[Recipient]:
    return [
        Recipient(identity=PARTNER.public, purposes=frozenset({SHARING, LOOKALIKE})),
        Recipient(identity=OTHER.public, purposes=frozenset({LOOKALIKE})),
    ]


@pytest.fixture
def outbox(log: Log, identity: Identity) -> Outbox:
    return Outbox(log, identity, recipients(), backoff=BACKOFF)


@pytest.fixture
def withdraw(outbox: Outbox, register: Register, log: Log) -> Callable[..., list[str]]:
    def withdraw(*purposes: Purpose, at: int = T) -> list[str]:
        with log.transaction():
            index = register.withdraw("anna", purposes, at=at)
            return outbox.enqueue(index, purposes, handles=HANDLES, at=at)

    return withdraw


def told(log: Log) -> list[tuple[object, object]]:
    events = [entry.value for entry in log.entries()]
    return [
        (event["type"], event["recipient"])
        for event in events
        if str(event.get("type")).startswith("propagation.")
    ]


def test_a_withdrawal_reaches_its_recipients_and_is_closed_by_their_word(
    outbox: Outbox, withdraw: Callable[..., list[str]], log: Log, identity: Identity
) -> None:
    (notice_id,) = withdraw(SHARING)
    (delivery,) = outbox.due(at=T)
    notice = verify_notice(delivery.signed, sender=identity.public, recipient="partner.example")
    outbox.record_attempt(notice_id, Outcome.DELIVERED, at=T + 1)
    ack = acknowledge(delivery.signed, sender=identity.public, identity=PARTNER, at=T + 2)
    outbox.accept(ack, at=T + 3)

    assert notice == WithdrawalNotice(
        notice_id=notice_id,
        sender=identity.name,
        recipient="partner.example",
        handle="p-anna",
        purposes=frozenset({SHARING}),
        at=T,
    )
    assert told(log) == [
        ("propagation.queued", "partner.example"),
        ("propagation.sent", "partner.example"),
        ("propagation.acked", "partner.example"),
    ]
    assert outbox.due(at=T + DAY) == outbox.overdue(at=T + DAY, limit_ms=0) == []
    outbox.verify()


def test_each_recipient_is_told_its_own_purposes_only(
    outbox: Outbox, withdraw: Callable[..., list[str]]
) -> None:
    withdraw(SHARING, LOOKALIKE, Purpose.CONTACT)
    notices = {d.recipient: WithdrawalNotice.parse(d.signed.message) for d in outbox.due(at=T)}

    assert notices["partner.example"].purposes == {SHARING, LOOKALIKE}
    assert notices["other.example"].purposes == {LOOKALIKE}
    assert notices["other.example"].handle == ""


def test_a_purpose_without_recipients_queues_nothing(
    outbox: Outbox, withdraw: Callable[..., list[str]]
) -> None:
    assert withdraw(Purpose.CONTACT) == []
    assert outbox.concerned([Purpose.CONTACT]) == []


def test_nothing_about_the_person_is_in_the_log(
    outbox: Outbox, withdraw: Callable[..., list[str]], log: Log, identity: Identity
) -> None:
    (notice_id,) = withdraw(SHARING, at=T + 1234)
    (delivery,) = outbox.due(at=T + 2000)
    outbox.record_attempt(notice_id, Outcome.FAILED, at=T + 2000)
    outbox.alarm(at=T + DAY, limit_ms=1)
    ack = acknowledge(delivery.signed, sender=identity.public, identity=PARTNER, at=T + DAY)
    outbox.accept(ack, at=T + DAY)

    events = [entry.value for entry in log.entries() if "notice" in entry.value]
    leaves = b"".join(entry.leaf for entry in log.entries())
    assert b"anna" not in leaves
    assert b"third_party" not in leaves
    assert events[0] == {
        "type": "propagation.queued",
        "v": 1,
        "at": (T + 1234) // 60_000 * 60_000,
        "notice": notice_id,
        "recipient": "partner.example",
    }
    allowed = {"type", "v", "at", "notice", "recipient", "attempt", "attempts", "outcome", "sha256"}
    assert all(event.keys() <= allowed for event in events)


def test_what_a_notice_said_is_destroyed_when_it_was_acknowledged(
    outbox: Outbox, withdraw: Callable[..., list[str]], log: Log, identity: Identity, tmp_path: Path
) -> None:
    withdraw(SHARING)
    (delivery,) = outbox.due(at=T)
    ack = acknowledge(delivery.signed, sender=identity.public, identity=PARTNER, at=T)
    outbox.accept(ack, at=T)

    log._writer.store.forget()
    with log.reading() as connection:
        kept = connection.execute("SELECT message, signature, ack FROM outbox").fetchall()
    assert [tuple(row) for row in kept] == [(None, None, ack.message)]
    stored = b"".join(path.read_bytes() for path in (tmp_path / "log").glob("log.sqlite*"))
    assert b"p-anna" not in stored


def test_a_withdrawal_that_is_rolled_back_tells_nobody(
    outbox: Outbox, register: Register, log: Log
) -> None:
    def fail() -> None:
        with log.transaction():
            index = register.withdraw("anna", [SHARING], at=T)
            outbox.enqueue(index, [SHARING], handles=HANDLES, at=T)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()

    assert (outbox.due(at=T), log.tree_size) == ([], 0)


def test_a_withdrawal_is_queued_once(outbox: Outbox, register: Register, log: Log) -> None:
    index = register.withdraw("anna", [SHARING], at=T)
    first = outbox.enqueue(index, [SHARING], handles=HANDLES, at=T)
    size = log.tree_size

    assert outbox.enqueue(index, [SHARING], handles=HANDLES, at=T + 5) == first
    assert (log.tree_size, len(outbox.due(at=T + 5))) == (size, 1)


def test_a_recipient_without_a_name_for_the_person_is_not_told(
    outbox: Outbox, register: Register
) -> None:
    index = register.withdraw("anna", [LOOKALIKE], at=T)
    handles = {"partner.example": "p-anna", "other.example": None}
    (notice,) = outbox.enqueue(index, [LOOKALIKE], handles=handles, at=T)

    assert [(each.notice_id, each.recipient) for each in outbox.due(at=T)] == [
        (notice, "partner.example")
    ]


def test_a_reader_in_another_process_sees_what_is_overdue(
    outbox: Outbox, withdraw: Callable[..., list[str]], tmp_path: Path, store: str | None
) -> None:
    withdraw(SHARING)
    database = ReadOnlyDatabase(tmp_path / "log", store=store)

    found = overdue_in(database, at=T + DAY, limit_ms=DAY)
    database.close()
    assert found == outbox.overdue(at=T + DAY, limit_ms=DAY) != []


def test_a_forgotten_recipient_is_refused(outbox: Outbox, register: Register, log: Log) -> None:
    index = register.withdraw("anna", [LOOKALIKE], at=T)
    with pytest.raises(ValueError, match=r"how other\.example knows the person, if it does"):
        outbox.enqueue(index, [LOOKALIKE], handles={"partner.example": "p"}, at=T)
    with pytest.raises(LogError, match="entry 7 is not in the log; no notice was queued"):
        outbox.enqueue(7, [LOOKALIKE], handles=HANDLES, at=T)
    assert log.tree_size == 1


def test_a_notice_is_tried_again_with_growing_pauses(
    outbox: Outbox, withdraw: Callable[..., list[str]]
) -> None:
    (notice_id,) = withdraw(SHARING)
    at, pauses = T, []
    for _ in range(5):
        assert [d.notice_id for d in outbox.due(at=at)] == [notice_id]
        later = outbox.record_attempt(notice_id, Outcome.FAILED, at=at)
        assert outbox.due(at=later - 1) == []
        pauses.append(later - at)
        at = later

    assert pauses == [10, 20, 35, 35, 35]
    assert outbox.due(at=at)[0].attempts == 5
    outbox.verify()


@given(st.integers(1, 10**9), st.integers(1, 10**9), st.integers(1, 500))
def test_no_pause_shrinks_or_passes_the_longest(first: int, more: int, attempts: int) -> None:
    backoff = Backoff(first_ms=first, most_ms=first + more)

    pause = backoff.pause_ms(attempts)

    assert first <= pause <= backoff.pause_ms(attempts + 1) <= first + more


def test_pauses_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="the first pause must be positive and at most the long"):
        Backoff(first_ms=5, most_ms=4)
    with pytest.raises(ValueError, match="attempts must be at least 1, got 0"):
        BACKOFF.pause_ms(0)


def test_what_waits_too_long_raises_one_alarm(
    outbox: Outbox, withdraw: Callable[..., list[str]], log: Log
) -> None:
    (notice_id,) = withdraw(SHARING)
    assert outbox.alarm(at=T + DAY - 1, limit_ms=DAY) == []
    (raised,) = outbox.alarm(at=T + DAY, limit_ms=DAY)

    assert (raised.notice_id, raised.recipient, raised.queued_at) == (
        notice_id,
        "partner.example",
        T,
    )
    assert outbox.alarm(at=T + DAY + 1, limit_ms=DAY) == []
    assert outbox.overdue(at=T + DAY + 1, limit_ms=DAY) == [raised]
    assert told(log).count(("propagation.overdue", "partner.example")) == 1
    outbox.verify()


def test_an_outbox_survives_a_restart_without_its_recipients(
    withdraw: Callable[..., list[str]],
    outbox: Outbox,
    log: Log,
    tmp_path: Path,
    identity: Identity,
    store: str | None,
) -> None:
    withdraw(SHARING)
    (delivery,) = outbox.due(at=T)
    log.close()
    with Log.open(tmp_path / "log", identity, store=store) as reopened:
        again = Outbox(reopened, identity, [], backoff=BACKOFF)
        assert again.due(at=T) == [delivery]
        ack = acknowledge(delivery.signed, sender=identity.public, identity=PARTNER, at=T)
        again.accept(ack, at=T)
        assert again.due(at=T) == []
        again.verify()


def test_a_repeated_acknowledgement_changes_nothing(
    outbox: Outbox, withdraw: Callable[..., list[str]], log: Log, identity: Identity
) -> None:
    withdraw(SHARING)
    (delivery,) = outbox.due(at=T)
    for at in (T, T + 1):
        ack = acknowledge(delivery.signed, sender=identity.public, identity=PARTNER, at=at)
        outbox.accept(ack, at=at)

    assert told(log).count(("propagation.acked", "partner.example")) == 1
    outbox.verify()


def ack_of(
    signed: SignedMessage,
    *,
    by: Identity = PARTNER,
    context: str = "withdrawal.ack",
    **changes: object,
) -> SignedMessage:
    notice = json.loads(signed.message)
    message = format_canonical(
        {
            "type": "withdrawal.ack",
            "v": 1,
            "notice": notice["notice"],
            "sha256": hashlib.sha256(signed.message).hexdigest(),
            "recipient": "partner.example",
            "at": 1,
            **changes,  # type: ignore[dict-item]
        }
    )
    return SignedMessage(message, by.sign(context, message))


@pytest.mark.parametrize(
    ("forge", "message"),
    [
        (lambda s: ack_of(s, by=OTHER), r"the message was not signed by partner\.example"),
        (lambda s: ack_of(s, context="plan"), r"the message was not signed by partner\.example"),
        (lambda s: SignedMessage(ack_of(s).message, b""), "the message was not signed by"),
        (lambda s: ack_of(s, notice="00"), "the acknowledgement is of no notice of this node"),
        (lambda s: ack_of(s, sha256="00"), "the acknowledgement is of no notice of this node"),
        (
            lambda s: ack_of(s, by=OTHER, recipient="other.example"),
            "the acknowledgement is of no notice of this node",
        ),
        (lambda s: ack_of(s, more=1), "an acknowledgement cannot be read"),
        (lambda s: ack_of(s, at="now"), "an acknowledgement cannot be read"),
        (lambda s: ack_of(s, v=2), r"the message is not a withdrawal\.ack of version 1"),
        (lambda s: s, r"the message is not a withdrawal\.ack of version 1"),
        (lambda s: SignedMessage(b"{", s.signature), "must be canonical JSON"),
    ],
)
def test_a_forged_acknowledgement_closes_nothing(
    outbox: Outbox,
    withdraw: Callable[..., list[str]],
    forge: Callable[[SignedMessage], SignedMessage],
    message: str,
) -> None:
    withdraw(SHARING)
    (delivery,) = outbox.due(at=T)
    with pytest.raises(NoticeError, match=message):
        outbox.accept(forge(delivery.signed), at=T)
    assert outbox.due(at=T) == [delivery]


def test_a_notice_is_believed_from_its_sender_to_its_recipient_only(
    outbox: Outbox, withdraw: Callable[..., list[str]], identity: Identity
) -> None:
    withdraw(SHARING)
    signed = outbox.due(at=T)[0].signed
    with pytest.raises(NoticeError, match=r"the notice is not one from .* to other\.example"):
        acknowledge(signed, sender=identity.public, identity=OTHER, at=T)
    with pytest.raises(NoticeError, match=r"the message was not signed by partner\.example"):
        verify_notice(signed, sender=PARTNER.public, recipient="partner.example")


def test_an_attempt_of_no_notice_is_refused(outbox: Outbox) -> None:
    with pytest.raises(NoticeError, match="there is no such notice in the outbox"):
        outbox.record_attempt("00", Outcome.FAILED, at=T)


def test_two_recipients_of_one_name_are_refused(log: Log, identity: Identity) -> None:
    with pytest.raises(ValueError, match="every recipient must have a name of its own"):
        Outbox(log, identity, recipients() + recipients(), backoff=BACKOFF)


@pytest.mark.parametrize(
    "forgery",
    [
        "DELETE FROM outbox",
        "UPDATE outbox SET acked_at = 1",
        "UPDATE outbox SET attempts = 3",
        "UPDATE outbox SET alarmed_at = 3",
        "UPDATE outbox SET recipient = 'nobody'",
    ],
)
def test_an_outbox_that_is_not_what_the_log_says_is_detected(
    outbox: Outbox, withdraw: Callable[..., list[str]], log: Log, forgery: str
) -> None:
    withdraw(SHARING)
    with log.transaction() as transaction:
        transaction.connection.execute(forgery)
    with pytest.raises(LogError, match=r"the outbox of .* is not what its log adds up to"):
        outbox.verify()
