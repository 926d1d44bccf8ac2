"""Own what travels when a consent was withdrawn: a signed notice, and a signed answer to it.

The recipient's side needs nothing else of a node than its public key. Both messages are
canonical JSON with one spelling; whatever else arrives raises `NoticeError`.
"""

import hashlib
from dataclasses import dataclass

from consent.canonical import CanonicalError, JsonValue, format_canonical, parse_canonical
from consent.event import is_count, is_version
from consent.identity import Identity, PublicIdentity, SignatureError
from consent.purpose import Purpose

NOTICE, ACK = "withdrawal.notice", "withdrawal.ack"


class NoticeError(Exception):
    """A notice or an acknowledgement is not what it must be, or not from whom it should be."""


@dataclass(frozen=True, slots=True)
class SignedMessage:
    """A message with its signature, as it travels.

    Attributes:
        message: Canonical JSON.
        signature: 64 bytes of Ed25519 in the context of the message's type.
    """

    message: bytes
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class WithdrawalNotice:
    """What a recipient is told.

    Attributes:
        notice_id: Random id; also the key by which a repeated notice is recognised.
        sender: Name of the node.
        recipient: Name of who is told.
        handle: How the recipient knows the person; empty when it holds nothing about one.
        purposes: What was withdrawn, of the purposes the recipient is concerned with.
        at: When it was withdrawn, epoch milliseconds.
    """

    notice_id: str
    sender: str
    recipient: str
    handle: str
    purposes: frozenset[Purpose]
    at: int

    def format(self) -> bytes:
        """Write the notice in its only spelling."""
        return format_canonical(
            {
                "type": NOTICE,
                "v": 1,
                "notice": self.notice_id,
                "sender": self.sender,
                "recipient": self.recipient,
                "handle": self.handle,
                "purposes": [str(purpose) for purpose in sorted(self.purposes)],
                "at": self.at,
            }
        )

    @classmethod
    def parse(cls, message: bytes) -> "WithdrawalNotice":
        """Read a notice; raise `NoticeError` when it is none."""
        match _parse(message, NOTICE):
            case {
                "notice": str(notice_id),
                "sender": str(sender),
                "recipient": str(recipient),
                "handle": str(handle),
                "purposes": list(names),
                "at": int(at),
                **rest,
            } if not rest and is_count(at):
                notice = cls(
                    notice_id=notice_id,
                    sender=sender,
                    recipient=recipient,
                    handle=handle,
                    purposes=_purposes(names),
                    at=at,
                )
                if notice.format() == message:
                    return notice
        raise NoticeError("a notice of withdrawal cannot be read")


@dataclass(frozen=True, slots=True, kw_only=True)
class Acknowledgement:
    """What a recipient claims; `verify_message` tells whether it was really them.

    Attributes:
        notice_id: Of the notice.
        recipient: Who received it.
        sha256: Hex digest of the notice as it was received.
        at: When, by the recipient's clock, epoch milliseconds.
    """

    notice_id: str
    recipient: str
    sha256: str
    at: int

    def format(self) -> bytes:
        """Write the acknowledgement in its only spelling."""
        return format_canonical(
            {
                "type": ACK,
                "v": 1,
                "notice": self.notice_id,
                "recipient": self.recipient,
                "sha256": self.sha256,
                "at": self.at,
            }
        )

    @classmethod
    def parse(cls, message: bytes) -> "Acknowledgement":
        """Read an acknowledgement; raise `NoticeError` when it is none."""
        match _parse(message, ACK):
            case {
                "notice": str(notice_id),
                "recipient": str(recipient),
                "sha256": str(digest),
                "at": int(at),
                **rest,
            } if not rest and is_count(at):
                return cls(notice_id=notice_id, recipient=recipient, sha256=digest, at=at)
        raise NoticeError("an acknowledgement cannot be read")


def verify_notice(
    signed: SignedMessage, *, sender: PublicIdentity, recipient: str
) -> WithdrawalNotice:
    """Return a notice of a sender to a recipient.

    Raises:
        NoticeError: It is not the sender's, not for this recipient, or no notice at all.
    """
    verify_message(signed, by=sender, context=NOTICE)
    notice = WithdrawalNotice.parse(signed.message)
    if (notice.sender, notice.recipient) != (sender.name, recipient):
        raise NoticeError(f"the notice is not one from {sender.name} to {recipient}")
    return notice


def acknowledge(
    signed: SignedMessage, *, sender: PublicIdentity, identity: Identity, at: int
) -> SignedMessage:
    """Verify a notice and sign that it was received and is being followed.

    Raises:
        NoticeError: The notice is not the sender's, or not for this identity.
    """
    notice = verify_notice(signed, sender=sender, recipient=identity.name)
    message = Acknowledgement(
        notice_id=notice.notice_id,
        recipient=identity.name,
        sha256=hashlib.sha256(signed.message).hexdigest(),
        at=at,
    ).format()
    return SignedMessage(message, identity.sign(ACK, message))


def verify_message(signed: SignedMessage, *, by: PublicIdentity, context: str) -> None:
    """Raise `NoticeError` unless somebody signed a message as what the context says."""
    try:
        by.verify(context, signed.message, signed.signature)
    except SignatureError as error:
        raise NoticeError(f"the message was not signed by {by.name}") from error


def _parse(message: bytes, kind: str) -> dict[str, JsonValue]:
    try:
        value = parse_canonical(message)
    except CanonicalError as error:
        raise NoticeError("a message about a withdrawal must be canonical JSON") from error
    if not (isinstance(value, dict) and value.get("type") == kind and is_version(value.get("v"))):
        raise NoticeError(f"the message is not a {kind} of version 1")
    return {key: field for key, field in value.items() if key not in {"type", "v"}}


def _purposes(names: list[JsonValue]) -> frozenset[Purpose]:
    if not all(isinstance(name, str) and name in set(Purpose) for name in names):
        raise NoticeError("a notice names a purpose that is not known")
    return frozenset(Purpose(str(name)) for name in names)
