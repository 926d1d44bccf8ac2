import pytest
from hypothesis import given
from hypothesis import strategies as st

from consent import Identity, Purpose, format_canonical
from consent.withdrawal import (
    Acknowledgement,
    NoticeError,
    SignedMessage,
    WithdrawalNotice,
    acknowledge,
    verify_message,
)

notices = st.builds(
    WithdrawalNotice,
    notice_id=st.text("0123456789abcdef", max_size=32),
    sender=st.sampled_from(["a", "ä", "brand-a.example/log"]),
    recipient=st.sampled_from(["b", "c"]),
    handle=st.text("xyz ", max_size=5),
    purposes=st.frozensets(st.sampled_from(Purpose), max_size=3),
    at=st.integers(0, 2**53 - 1),
)


@given(notices)
def test_a_notice_reads_as_it_was_written(notice: WithdrawalNotice) -> None:
    assert WithdrawalNotice.parse(notice.format()) == notice


@given(notices, st.data())
def test_a_changed_notice_raises_only_our_error(
    notice: WithdrawalNotice, data: st.DataObject
) -> None:
    message = bytearray(notice.format())
    place = data.draw(st.integers(0, len(message) - 1))
    message[place] ^= data.draw(st.integers(1, 255))
    try:
        found = WithdrawalNotice.parse(bytes(message))
    except NoticeError:
        return
    assert found.format() == message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"purposes": ["spam"]}, "a notice names a purpose that is not known"),
        ({"purposes": [1]}, "a notice names a purpose that is not known"),
        ({"purposes": ["lookalike", "contact"]}, "a notice of withdrawal cannot be read"),
        ({"at": -1}, "a notice of withdrawal cannot be read"),
        ({"at": True}, "a notice of withdrawal cannot be read"),
        ({"more": 1}, "a notice of withdrawal cannot be read"),
        ({"v": True}, "is not a withdrawal.notice of version 1"),
    ],
    ids=str,
)
def test_a_notice_is_refused(change: dict[str, object], message: str) -> None:
    fields = {
        "type": "withdrawal.notice",
        "v": 1,
        "notice": "00",
        "sender": "a",
        "recipient": "b",
        "handle": "",
        "purposes": ["contact"],
        "at": 1,
    }
    WithdrawalNotice.parse(format_canonical(fields))  # type: ignore[arg-type]
    with pytest.raises(NoticeError, match=message):
        WithdrawalNotice.parse(format_canonical({**fields, **change}))  # type: ignore[arg-type]


@given(st.binary(max_size=40))
def test_garbage_raises_only_our_error(garbage: bytes) -> None:
    for parse in (WithdrawalNotice.parse, Acknowledgement.parse):
        with pytest.raises(NoticeError):
            parse(garbage)


@given(st.text("0123456789abcdef", max_size=9), st.integers(0, 2**53 - 1))
def test_an_acknowledgement_reads_as_it_was_written(digest: str, at: int) -> None:
    ack = Acknowledgement(notice_id="00", recipient="ä", sha256=digest, at=at)

    assert Acknowledgement.parse(ack.format()) == ack


def test_an_acknowledgement_is_no_notice() -> None:
    """One signature means one thing, though the same key signs both in the other direction."""
    identity = Identity.generate("both.example")
    notice = WithdrawalNotice(
        notice_id="00",
        sender=identity.name,
        recipient=identity.name,
        handle="",
        purposes=frozenset(Purpose),
        at=1,
    )
    sent = SignedMessage(notice.format(), identity.sign("withdrawal.notice", notice.format()))
    ack = acknowledge(sent, sender=identity.public, identity=identity, at=2)

    verify_message(ack, by=identity.public, context="withdrawal.ack")
    with pytest.raises(NoticeError, match=r"the message was not signed by both\.example"):
        verify_message(ack, by=identity.public, context="withdrawal.notice")
