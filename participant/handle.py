"""Own the handle: how a data subject shows the service who they are, without a name.

A handle is the subject's pseudonym, how far it reaches, when it ends, and a keyed hash over these.
The brand's own login system asks for one and gives it to the person; whoever holds it is that
person until it ends or is revoked. A receipt holds a second kind, which does not end and can look
and take back, and never give. Both are verified from the key and a generation number, are stored
nowhere and never logged.
"""

import base64
import binascii
import hmac
import os
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

from consent import Log, SubjectRef
from consent.problems import Problem, RequestRefused
from participant.node import Node, NodeError, load_key

_REF_BYTES = _MAC_BYTES = 32
_END_BYTES = 4
_BODY_BYTES = _REF_BYTES + 1 + _END_BYTES
_MOST_REMEMBERED = 100_000
_MINUTE_MS, _DAY_MS = 60_000, 86_400_000


class Reach(IntEnum):
    """How far a handle reaches."""

    EVERYTHING = 0
    RECEIPT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Handle:
    """A handle that was issued.

    Attributes:
        text: What the person shows; a secret.
        expires_at: When it ends, epoch milliseconds; None for never.
    """

    text: str = field(repr=False)
    expires_at: int | None


@dataclass(frozen=True, slots=True)
class Holder:
    """Who showed a handle.

    Attributes:
        ref: Their pseudonym.
        reach: How far the handle reaches.
    """

    ref: SubjectRef
    reach: Reach


class Handles:
    """Makes and verifies the handles of one node."""

    def __init__(self, log: Log, *, key: bytes, clock: Callable[[], int], days: int = 30) -> None:
        """Keep generation numbers in the log's database.

        Args:
            log: The node's log, open for writing.
            key: At least 32 secret bytes. Trusted: whoever has them can be any data subject.
            clock: Epoch milliseconds; a clock that goes back gives handles a second life.
            days: Days until a handle ends; at least 1.

        Raises:
            LogError: The log cannot be written.
        """
        if len(key) < 32:
            raise ValueError(f"a handle key must have 32 bytes, got {len(key)}")
        if days < 1:
            raise ValueError(f"a handle must last at least 1 day, got {days}")
        self._log = log
        self._key = key
        self._clock = clock
        self._days = days

    @classmethod
    def of(cls, node: Node) -> "Handles":
        """Use the key in a node's folder; it is made when there is none.

        Raises:
            NodeError: The key file is damaged or can be read by others.
            LogError: The log cannot be written.
        """
        key = load_key(node.config.folder / "handle.key")
        return cls(node.log, key=key, clock=node.clock, days=node.config.handle_days)

    def issue(self, ref: SubjectRef) -> Handle:
        """Return a handle of a data subject that reaches everything that is theirs."""
        # Whole minutes, rounded up: four bytes last until the year 10136.
        end = -(-(self._clock() + self._days * _DAY_MS) // _MINUTE_MS)
        return Handle(
            text=self._format(ref, Reach.EVERYTHING, end=end), expires_at=end * _MINUTE_MS
        )

    def receipt_key(self, ref: SubjectRef) -> str:
        """Return the secret that stands on a data subject's receipts, always the same.

        It does not end, because taking consent back must stay as easy; revoking ends it.
        """
        return self._format(ref, Reach.RECEIPT, end=0)

    def receipt_id(self, record_id: str) -> str:
        """Return the id of a record's receipt: 32 hex digits that only this node can tell."""
        return hmac.digest(self._key, b"tillpact/receipt\0" + record_id.encode(), "sha256")[
            :16
        ].hex()

    def verify(self, handle: str) -> Holder:
        """Return whose handle it is, and how far it reaches.

        Raises:
            RequestRefused: It is nobody's, has ended, or was revoked.
            LogError: The generation cannot be read.
        """
        data = _decode(handle)
        body, mac = data[:_BODY_BYTES], data[_BODY_BYTES:]
        ref = SubjectRef(body[:_REF_BYTES].hex())
        if not hmac.compare_digest(mac, self._mac(body, generation=self._generation(ref))):
            raise _not_authenticated()
        reach, end = body[_REF_BYTES], int.from_bytes(body[-_END_BYTES:], "big")
        if reach == Reach.EVERYTHING and self._clock() >= end * _MINUTE_MS:
            raise _not_authenticated()
        return Holder(ref, Reach(reach))

    def revoke(self, ref: SubjectRef) -> None:
        """Make every handle and every receipt key of a data subject invalid.

        New ones can be issued at once; a receipt that is fetched again holds a new key.

        Raises:
            LogError: The log's database cannot be written; the handles are still valid.
        """
        self.revoke_all([ref])

    def revoke_all(self, refs: Iterable[SubjectRef]) -> None:
        """Do the same for several pseudonyms in one durable commit."""
        with self._log.transaction() as transaction:
            transaction.connection.executemany(
                "INSERT INTO handle_generation VALUES (?, 1) ON CONFLICT (subject_ref)"
                " DO UPDATE SET generation = handle_generation.generation + 1",
                [(ref,) for ref in refs],
            )

    def _generation(self, ref: SubjectRef) -> int:
        with self._log.reading() as connection:
            row = connection.execute(
                "SELECT generation FROM handle_generation WHERE subject_ref = ?", (ref,)
            ).fetchone()
        return 0 if row is None else int(row[0])

    def _format(self, ref: SubjectRef, reach: Reach, *, end: int) -> str:
        body = bytes.fromhex(ref) + bytes([reach]) + end.to_bytes(_END_BYTES, "big")
        data = body + self._mac(body, generation=self._generation(ref))
        return base64.urlsafe_b64encode(data).decode().rstrip("=")

    def _mac(self, body: bytes, *, generation: int) -> bytes:
        message = b"tillpact/handle\0" + body + generation.to_bytes(8, "big")
        return hmac.digest(self._key, message, "sha256")


class Limiter:
    """Lets each handle ask so many times a minute; its memory is bounded and not durable."""

    def __init__(
        self, *, per_minute: int, monotonic_s: Callable[[], float] = time.monotonic
    ) -> None:
        """Start with everybody at rest."""
        if per_minute < 1:
            raise ValueError(f"per_minute must be at least 1, got {per_minute}")
        self._per_minute = per_minute
        self._monotonic_s = monotonic_s
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def admit(self, ref: SubjectRef) -> None:
        """Count one request.

        Raises:
            RequestRefused: There were too many; says when to come again.
        """
        now = self._monotonic_s()
        left, at = self._left.pop(ref, (float(self._per_minute), now))
        left = min(self._per_minute, left + (now - at) * self._per_minute / 60)
        is_admitted = left >= 1
        self._left[ref] = (left - 1 if is_admitted else left, now)
        if len(self._left) > _MOST_REMEMBERED:
            self._left.popitem(last=False)
        if not is_admitted:
            wait_s = int((1 - left) * 60 / self._per_minute) + 1
            raise RequestRefused(Problem.TOO_MANY_REQUESTS, headers={"Retry-After": str(wait_s)})


def issue_handle(node: Node, subject_id: str) -> str:
    """Return the handle of a data subject, for the brand's own login system to hand out.

    Args:
        node: The open node.
        subject_id: The brand's own id of the person whom it has just authenticated.

    Raises:
        NodeError: The key of the handles cannot be used.
        LogError: The log cannot be used.
    """
    return Handles.of(node).issue(node.register.subject_ref(subject_id)).text


def revoke_handles(node: Node, subject_id: str) -> None:
    """Make every handle of a data subject invalid, as after a lost telephone.

    Raises:
        NodeError: The key of the handles cannot be used.
        LogError: The log cannot be written; the handles are still valid.
    """
    Handles.of(node).revoke(node.register.subject_ref(subject_id))


def _decode(handle: str) -> bytes:
    try:
        padding = "=" * (-len(handle) % 4)
        data = base64.b64decode(handle + padding, altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise _not_authenticated() from error
    is_canonical = base64.urlsafe_b64encode(data).decode().rstrip("=") == handle
    if len(data) != _BODY_BYTES + _MAC_BYTES or not is_canonical:
        raise _not_authenticated()
    return data


def _not_authenticated() -> RequestRefused:
    return RequestRefused(Problem.NOT_AUTHENTICATED, headers={"WWW-Authenticate": "Bearer"})


ISSUER_FILE = "handle-issuer.token"


def make_issuer_token(folder: Path) -> Path:
    """Make the secret with which a login system asks a served node for handles, if there is none.

    Returns:
        The file that holds it; it can be read by its owner only.

    Raises:
        NodeError: The file can be read by others, or does not hold a token.
    """
    path = folder / ISSUER_FILE
    try:
        _write_new(path, secrets.token_urlsafe(32).encode())
    except FileExistsError:
        read_issuer_token(folder)
    return path


def read_issuer_token(folder: Path) -> str | None:
    """Return that secret; None when nobody made one, and handles are not issued over HTTP.

    Raises:
        NodeError: The file can be read by others, or does not hold a token.
    """
    path = folder / ISSUER_FILE
    if not path.exists():
        return None
    token = path.read_bytes().strip()
    if len(token) < 43 or not token.isascii() or path.stat().st_mode & 0o077:
        raise NodeError(
            f"{path} must hold a token and be readable by its owner only; no handle was issued"
        )
    return token.decode()


def _write_new(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
