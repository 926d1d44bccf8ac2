"""Tell everybody who got something about a person that it was withdrawn, until they confirm.

A notice is queued in the same durable commit as the withdrawal, signed, sent again with growing
pauses, and closed only by the recipient's signed acknowledgement. The log shows notices by
random ids; how a recipient knows the person stands in the notice alone, which is destroyed when
it was acknowledged. Nothing is sent from here and no clock is read.
"""

import hashlib
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from consent.canonical import JsonValue
from consent.event import LogError
from consent.identity import Identity, PublicIdentity
from consent.log import Log
from consent.purpose import Purpose
from consent.reader import Database
from consent.topic import Topic
from consent.withdrawal import (
    ACK,
    NOTICE,
    Acknowledgement,
    NoticeError,
    SignedMessage,
    WithdrawalNotice,
    verify_message,
)

QUEUED, SENT = "propagation.queued", "propagation.sent"
ACKED, OVERDUE = "propagation.acked", "propagation.overdue"
_MINUTE_MS = 60_000


class Outcome(StrEnum):
    """How an attempt to send ended."""

    DELIVERED = "delivered"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipient:
    """Somebody who gets what is derived from people's data.

    Attributes:
        identity: Whose signature acknowledges.
        purposes: For which purposes they get anything.
    """

    identity: PublicIdentity
    purposes: frozenset[Purpose]


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """How long to wait after each attempt: twice as long as before, up to the most.

    Attributes:
        first_ms: After the first attempt, milliseconds.
        most_ms: The longest pause, milliseconds.
    """

    first_ms: int = 60_000
    most_ms: int = 3_600_000

    def __post_init__(self) -> None:
        if not 0 < self.first_ms <= self.most_ms:
            raise ValueError("the first pause must be positive and at most the longest one")

    def pause_ms(self, attempts: int) -> int:
        """Return the pause after a number of attempts, from 1."""
        if attempts < 1:
            raise ValueError(f"attempts must be at least 1, got {attempts}")
        # Beyond 63 doublings every pause is the longest one, and the number stays small.
        return min(self.first_ms << min(attempts - 1, 63), self.most_ms)


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """A notice that should be sent now.

    Attributes:
        notice_id: Random id; send it along as the idempotency key.
        recipient: To whom.
        signed: What to send.
        attempts: How often it was tried before.
    """

    notice_id: str
    recipient: str
    signed: SignedMessage
    attempts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Overdue:
    """A notice that was not acknowledged in time.

    Attributes:
        notice_id: Random id.
        recipient: Who has not acknowledged.
        queued_at: Since when it waits, epoch milliseconds.
        attempts: How often it was tried.
    """

    notice_id: str
    recipient: str
    queued_at: int
    attempts: int


class Outbox:
    """The notices of one node that wait to be acknowledged."""

    def __init__(
        self, log: Log, identity: Identity, recipients: Iterable[Recipient], *, backoff: Backoff
    ) -> None:
        """Keep notices in the log's database and sign them as the node.

        Raises:
            ValueError: Two recipients have one name.
        """
        self._log = log
        self._identity = identity
        chosen = list(recipients)
        self._recipients = {one.identity.name: one for one in chosen}
        if len(self._recipients) != len(chosen):
            raise ValueError("every recipient must have a name of its own")
        self._backoff = backoff
        self._topic = Topic(log, (QUEUED, SENT, ACKED, OVERDUE))

    def concerned(self, purposes: Iterable[Purpose]) -> list[str]:
        """Return the names of the recipients of any of some purposes, sorted."""
        taken = frozenset(purposes)
        return sorted(name for name, one in self._recipients.items() if one.purposes & taken)

    def enqueue(
        self,
        withdrawal: int,
        purposes: Iterable[Purpose],
        *,
        handles: Mapping[str, str | None],
        at: int,
    ) -> list[str]:
        """Queue a notice to every concerned recipient, in the commit of the caller.

        Call it in the transaction that holds `Register.withdraw`. A second call for the same
        withdrawal queues nothing new.

        Args:
            withdrawal: Entry of the log that holds the withdrawal; it is not told to anybody.
            purposes: What was withdrawn.
            handles: How each concerned recipient knows the person, by recipient; empty text for
                one that holds nothing about a single person and is told all the same, None for
                one that is not told. No recipient may be left out.
            at: Epoch milliseconds.

        Returns:
            The ids of the notices, in the order of the recipients' names.

        Raises:
            ValueError: A concerned recipient is missing in `handles`; nothing was queued.
            LogError: There is no such entry, or the log cannot be written.
        """
        taken = frozenset(purposes)
        names = self.concerned(taken)
        missing = [name for name in names if name not in handles]
        if missing:
            raise ValueError(f"it must be said how {missing[0]} knows the person, if it does")
        with self._log.transaction() as transaction:
            if not 0 <= withdrawal < transaction.head[0].size:
                raise LogError(f"entry {withdrawal} is not in the log; no notice was queued")
            told = [(name, handles[name]) for name in names]
            return [
                self._queue(withdrawal, name, taken, handle=handle, at=at)
                for name, handle in told
                if handle is not None
            ]

    def due(self, *, at: int) -> list[Delivery]:
        """Return what should be sent at a time, the longest waiting first."""
        with self._log.reading() as connection:
            rows = connection.execute(
                "SELECT notice, recipient, message, signature, attempts FROM outbox"
                " WHERE acked_at IS NULL AND next_at <= ? ORDER BY queued_at, notice",
                (at,),
            ).fetchall()
        return [
            Delivery(
                notice_id=notice,
                recipient=recipient,
                signed=SignedMessage(bytes(message), bytes(signature)),
                attempts=attempts,
            )
            for notice, recipient, message, signature, attempts in rows
        ]

    def record_attempt(self, notice_id: str, outcome: Outcome, *, at: int) -> int:
        """Write down that a notice was tried, and return when to try again.

        Delivered is not acknowledged: only `accept` ends it.

        Raises:
            NoticeError: There is no such notice.
        """
        with self._log.transaction() as transaction:
            row = transaction.connection.execute(
                "SELECT recipient, attempts FROM outbox WHERE notice = ?", (notice_id,)
            ).fetchone()
            if row is None:
                raise NoticeError("there is no such notice in the outbox")
            recipient, attempts = row[0], row[1] + 1
            next_at = at + self._backoff.pause_ms(attempts)
            transaction.connection.execute(
                "UPDATE outbox SET attempts = ?, next_at = ? WHERE notice = ?",
                (attempts, next_at, notice_id),
            )
            event = _event(SENT, notice_id, recipient, at=at)
            self._topic.append({**event, "attempt": attempts, "outcome": str(outcome)})
        return next_at

    def accept(self, signed: SignedMessage, *, at: int) -> None:
        """Close a notice by its recipient's acknowledgement; a repeated one changes nothing.

        Raises:
            NoticeError: No acknowledgement, of no notice of this node, of another text, or not
                signed by the recipient; the notice stays open.
        """
        claim = Acknowledgement.parse(signed.message)
        named = (claim.notice_id, claim.recipient, claim.sha256)
        with self._log.transaction() as transaction:
            row = transaction.connection.execute(
                "SELECT vkey, notice, recipient, sha256, acked_at FROM outbox WHERE notice = ?",
                (claim.notice_id,),
            ).fetchone()
            if row is None or tuple(row[1:4]) != named:
                raise NoticeError("the acknowledgement is of no notice of this node")
            known = self._recipients.get(claim.recipient)
            key = PublicIdentity.parse(row[0]) if known is None else known.identity
            verify_message(signed, by=key, context=ACK)
            if row[4] is not None:
                return
            # What it said about the person is no longer needed; SQLite overwrites it.
            transaction.connection.execute(
                "UPDATE outbox SET acked_at = ?, ack = ?, ack_signature = ?, message = NULL,"
                " signature = NULL WHERE notice = ?",
                (at, signed.message, signed.signature, claim.notice_id),
            )
            event = _event(ACKED, claim.notice_id, claim.recipient, at=at)
            digest = hashlib.sha256(signed.message).hexdigest()
            self._topic.append({**event, "sha256": digest})

    def overdue(self, *, at: int, limit_ms: int) -> list[Overdue]:
        """Return what was not acknowledged within a limit, the longest waiting first."""
        return overdue_in(self._log, at=at, limit_ms=limit_ms)

    def alarm(self, *, at: int, limit_ms: int) -> list[Overdue]:
        """Write one event for each notice that became overdue, and return these."""
        raised = []
        with self._log.transaction() as transaction:
            for late in self.overdue(at=at, limit_ms=limit_ms):
                changed = transaction.connection.execute(
                    "UPDATE outbox SET alarmed_at = ? WHERE notice = ? AND alarmed_at IS NULL",
                    (at, late.notice_id),
                )
                if changed.rowcount:
                    event = _event(OVERDUE, late.notice_id, late.recipient, at=at)
                    self._topic.append({**event, "attempts": late.attempts})
                    raised.append(late)
        return raised

    def verify(self) -> None:
        """Read the whole log and raise `LogError` unless it gives the state of the outbox."""
        self._topic.verify()
        told: dict[str, tuple[str, int, bool, bool]] = {}
        for event in self._topic.events():
            name = event.text("notice")
            recipient, attempts, acked, late = told.get(
                name, (event.text("recipient"), 0, False, False)
            )
            kind = event.text("type")
            attempts += kind == SENT
            told[name] = (recipient, attempts, acked or kind == ACKED, late or kind == OVERDUE)
        with self._log.reading() as connection:
            rows = connection.execute(
                "SELECT notice, recipient, attempts, acked_at, alarmed_at FROM outbox"
            ).fetchall()
        held = {
            notice: (recipient, attempts, acked is not None, alarmed is not None)
            for notice, recipient, attempts, acked, alarmed in rows
        }
        if told != held:
            raise LogError(f"the outbox of {self._log.origin!r} is not what its log adds up to")

    def _queue(
        self, withdrawal: int, name: str, taken: frozenset[Purpose], *, handle: str, at: int
    ) -> str:
        with self._log.transaction() as transaction:
            row = transaction.connection.execute(
                "SELECT notice FROM outbox WHERE withdrawal = ? AND recipient = ?",
                (withdrawal, name),
            ).fetchone()
            if row is not None:
                return str(row[0])
            recipient = self._recipients[name]
            notice = WithdrawalNotice(
                notice_id=secrets.token_hex(16),
                sender=self._identity.name,
                recipient=name,
                handle=handle,
                purposes=taken & recipient.purposes,
                at=at,
            )
            message = notice.format()
            transaction.connection.execute(
                "INSERT INTO outbox (notice, withdrawal, recipient, vkey, message, signature,"
                " sha256, queued_at, attempts, next_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0, ?)",
                (
                    notice.notice_id,
                    withdrawal,
                    name,
                    recipient.identity.format(),
                    message,
                    self._identity.sign(NOTICE, message),
                    hashlib.sha256(message).hexdigest(),
                    at,
                    at,
                ),
            )
            # The sealed withdrawal beside it shows its minute only, so neither does this.
            self._topic.append(_event(QUEUED, notice.notice_id, name, at=at - at % _MINUTE_MS))
            return notice.notice_id


def overdue_in(database: Database, *, at: int, limit_ms: int) -> list[Overdue]:
    """Return the same of an outbox that another process may be writing.

    Raises:
        LogError: The database cannot be read.
    """
    with database.reading() as connection:
        rows = connection.execute(
            "SELECT notice, recipient, queued_at, attempts FROM outbox"
            " WHERE acked_at IS NULL AND queued_at <= ? ORDER BY queued_at, notice",
            (at - limit_ms,),
        ).fetchall()
    return [
        Overdue(notice_id=notice, recipient=recipient, queued_at=queued, attempts=attempts)
        for notice, recipient, queued, attempts in rows
    ]


def _event(kind: str, notice_id: str, recipient: str, *, at: int) -> dict[str, JsonValue]:
    return {"type": kind, "v": 1, "at": at, "notice": notice_id, "recipient": recipient}
