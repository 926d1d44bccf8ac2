"""Carry notices of withdrawal between nodes: the courier sends, the inbox receives.

A notice is sent until its recipient's signed acknowledgement came, however often either side is
stopped in between: an attempt that was not written down is made again, and the inbox gives the
same answer to the same notice. Neither side logs who it is about.
"""

import base64
import binascii
import contextlib
import hashlib
import json
import logging
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

import httpx

from consent import (
    Delivery,
    NoticeError,
    Outcome,
    Overdue,
    SignedMessage,
    WithdrawalNotice,
    acknowledge,
    verify_notice,
)
from consent.problems import Problem, RequestRefused
from participant.node import Node
from participant.partners import HandleMode, RecipientSettings

NOTIFY_PATH = "/v1/withdrawals:notify"
_MOST_ANSWER_BYTES = 16_384
_TIMEOUT_S, _LONGEST_S, _PAUSE_S = 10.0, 30.0, 2.0
_MINUTE_MS = 60_000
_log = logging.getLogger(__name__)


def format_signed(signed: SignedMessage) -> dict[str, str]:
    """Write a signed message as the object that travels."""
    return {
        "message": signed.message.decode(),
        "signature": base64.b64encode(signed.signature).decode(),
    }


def parse_signed(value: object) -> SignedMessage:
    """Read it back; raise `NoticeError` for anything else."""
    match value:
        case {"message": str(message), "signature": str(signature), **rest} if not rest:
            try:
                raw = base64.b64decode(signature, validate=True)
                return SignedMessage(message.encode(), raw)
            except (binascii.Error, ValueError) as error:
                raise NoticeError("a signed message cannot be read") from error
    raise NoticeError("a signed message must hold a message and a signature")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trip:
    """What the courier did on one trip.

    Attributes:
        acked: Notices that were acknowledged.
        failed: Notices that were tried and not acknowledged.
        raised: Notices that became overdue meanwhile.
    """

    acked: int
    failed: int
    raised: tuple[Overdue, ...]


class Courier:
    """Brings the notices of one node to their recipients."""

    def __init__(self, node: Node, *, timeout_s: float = _TIMEOUT_S) -> None:
        """Take an open node.

        Args:
            node: The node; it must stay open while the courier is on its way.
            timeout_s: Seconds to wait for each part of an answer.
        """
        self._node = node
        self._timeout_s = timeout_s
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._not_before: dict[str, int] = {}

    def deliver(self) -> Trip:
        """Send what is due, keep what was acknowledged, and raise the alarms.

        A recipient that cannot be reached is left alone for the pause of the notice that found
        this out, so that a long absence does not fill the log with attempts.

        Raises:
            LogError: The log cannot be read or written.
        """
        node, acked, failed = self._node, 0, 0
        with contextlib.ExitStack() as stack:
            clients: dict[str, httpx.Client] = {}
            for delivery in node.outbox.due(at=node.clock()):
                if self._stopping.is_set():
                    break
                if node.clock() >= self._not_before.get(delivery.recipient, 0):
                    is_acked = self._try(delivery, clients, stack)
                    acked, failed = acked + is_acked, failed + (not is_acked)
        limit_ms = node.config.spreading.propagation.limit_ms
        # Looked for first, because an alarm needs a transaction and most trips raise none.
        is_late = bool(node.overdue_notices())
        raised = node.outbox.alarm(at=node.clock(), limit_ms=limit_ms) if is_late else []
        for late in raised:
            _log.error("%s has not acknowledged the notice %s", late.recipient, late.notice_id)
        return Trip(acked=acked, failed=failed, raised=tuple(raised))

    def start(self, *, pause_s: float = _PAUSE_S) -> None:
        """Deliver in a thread of its own until `stop`.

        Args:
            pause_s: Seconds between two trips; what is due is decided by the outbox.
        """
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._keep_going, args=(pause_s,), name="courier", daemon=True
            )
            self._thread.start()

    def stop(self) -> None:
        """Finish the notice at hand and end the thread; a second time does nothing."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._stopping.clear()

    def _keep_going(self, pause_s: float) -> None:
        while not self._stopping.is_set():
            try:
                self.deliver()
            except Exception as error:  # noqa: BLE001 - the text could hold what a notice says
                # A thread that ended would let every later notice wait unseen.
                _log.error("the courier failed with %s and goes on", type(error).__name__)
            self._stopping.wait(pause_s)

    def _try(
        self,
        delivery: Delivery,
        clients: dict[str, httpx.Client],
        stack: contextlib.ExitStack,
    ) -> bool:
        """Try one notice, and tell whether it was acknowledged."""
        node, answer, is_reached = self._node, None, True
        known = node.config.spreading.recipients.get(delivery.recipient)
        try:
            if known is None or known.handle is HandleMode.NONE:
                raise NoticeError("the recipient is not configured any more")
            if delivery.recipient not in clients:
                clients[delivery.recipient] = stack.enter_context(self._client(known))
            answer = self._post(clients[delivery.recipient], known, delivery)
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            is_reached = False
            _log.warning("%s cannot be reached: %s", delivery.recipient, type(error).__name__)
        except NoticeError as error:
            _log.warning("%s did not acknowledge: %s", delivery.recipient, error)
        outcome = Outcome.FAILED if answer is None else Outcome.DELIVERED
        with node.log.transaction():
            later = node.outbox.record_attempt(delivery.notice_id, outcome, at=node.clock())
            if not is_reached:
                self._not_before[delivery.recipient] = later
            if answer is None:
                return False
            try:
                node.outbox.accept(answer, at=node.clock())
            except NoticeError as error:
                _log.warning("%s sent no acknowledgement: %s", delivery.recipient, error)
                return False
        return True

    def _client(self, recipient: RecipientSettings) -> httpx.Client:
        verify: ssl.SSLContext | bool = True
        if recipient.authorities is not None:
            verify = ssl.create_default_context(cafile=recipient.authorities)
        # No proxy of the environment may see or change what two nodes say to each other.
        return httpx.Client(timeout=self._timeout_s, trust_env=False, verify=verify)

    def _post(
        self, client: httpx.Client, recipient: RecipientSettings, delivery: Delivery
    ) -> SignedMessage:
        until_s = time.monotonic() + _LONGEST_S
        with client.stream(
            "POST",
            recipient.url.rstrip("/") + NOTIFY_PATH,
            json=format_signed(delivery.signed),
            headers={"Idempotency-Key": delivery.notice_id},
        ) as response:
            data = b""
            for chunk in response.iter_bytes():
                data += chunk
                if len(data) > _MOST_ANSWER_BYTES or time.monotonic() > until_s:
                    raise NoticeError("the answer is too long or too slow")
            if response.status_code != 200:
                raise NoticeError(f"the answer was {response.status_code}")
        try:
            return parse_signed(json.loads(data))
        except (ValueError, RecursionError) as error:
            raise NoticeError("the answer is no signed message") from error


class Inbox:
    """Receives what other nodes withdraw, and follows it before it says so."""

    def __init__(self, node: Node) -> None:
        """Take an open node."""
        self._node = node
        self._withdrawals = node.withdrawals

    def receive(self, signed: SignedMessage, *, key: str) -> SignedMessage:
        """Follow a notice, durably, and then acknowledge it; the same notice, the same answer.

        Args:
            signed: As it came.
            key: Its Idempotency-Key, which must be the id of the notice.

        Returns:
            The acknowledgement, a pure function of the notice and the time it first came.

        Raises:
            RequestRefused: It is no notice, its sender is not configured, its signature is not
                the sender's, or its id was used for another text; nothing was recorded.
            LogError: The log cannot be written; nothing was recorded.
        """
        node = self._node
        try:
            claimed = WithdrawalNotice.parse(signed.message)
        except NoticeError as error:
            raise RequestRefused(Problem.MALFORMED) from error
        sender = node.config.spreading.senders.get(claimed.sender)
        if sender is None:
            raise RequestRefused(Problem.UNKNOWN_SENDER)
        try:
            notice = verify_notice(signed, sender=sender, recipient=node.name)
        except NoticeError as error:
            raise RequestRefused(Problem.NOT_SIGNED_BY_SENDER) from error
        if key != notice.notice_id:
            raise RequestRefused(Problem.INVALID)
        at = self._follow(notice, hashlib.sha256(signed.message).hexdigest())
        return acknowledge(signed, sender=sender, identity=node.identity, at=at)

    def _follow(self, notice: WithdrawalNotice, digest: str) -> int:
        """Record a notice once, and return when that was."""
        node = self._node
        with node.log.transaction() as transaction:
            connection, at = transaction.connection, node.clock()
            row = connection.execute(
                "SELECT sha256, at FROM received_notice WHERE sender = ? AND notice = ?",
                (notice.sender, notice.notice_id),
            ).fetchone()
            if row is not None:
                if row[0] != digest:
                    raise RequestRefused(Problem.KEY_REUSED)
                return int(row[1])
            connection.execute(
                "INSERT INTO received_notice VALUES (?, ?, ?, ?)",
                (notice.sender, notice.notice_id, digest, at),
            )
            # To the minute, as the sealed withdrawal beside it.
            transaction.append(
                {
                    "type": "withdrawal.received",
                    "v": 1,
                    "at": at - at % _MINUTE_MS,
                    "notice": notice.notice_id,
                    "sender": notice.sender,
                }
            )
            for handle in notice.handle.split():
                ref = node.handles.whose(notice.sender, handle)
                if ref is None:
                    node.handles.wait(notice.sender, handle, notice.purposes)
                else:
                    self._withdrawals.follow(ref, notice.purposes, told_by=notice.sender, at=at)
        return at


def health(node: Node) -> Mapping[str, int]:
    """Return what an operator must act on, as counts: none of them is about a person.

    Raises:
        LogError: The log cannot be read.
    """
    at = node.clock()
    clocks = node.versions.clocks(at=at)
    return {
        "overdue_notices": len(node.overdue_notices()),
        "models_to_retrain": sum(at < model.retire_by for model in clocks),
        "models_to_retire": sum(at >= model.retire_by for model in clocks),
    }
