"""Own the handle: how a data subject shows the service who they are, without a name.

A handle is the subject's pseudonym and a keyed hash over it. The brand's own login system asks
for one and gives it to the person; whoever holds it is that person until it is revoked. It is
verified from the key and a generation number, is stored nowhere and never logged.
"""

import base64
import binascii
import hmac
import os
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from consent import Log, SubjectRef
from participant.node import Node, NodeError
from participant.problems import Problem, RequestRefused

_REF_BYTES = _MAC_BYTES = 32
_MOST_REMEMBERED = 100_000


class Handles:
    """Makes and verifies the handles of one node."""

    def __init__(self, log: Log, *, key: bytes) -> None:
        """Keep generation numbers in the log's database.

        Args:
            log: The node's log, open for writing.
            key: At least 32 secret bytes. Trusted: whoever has them can be any data subject.

        Raises:
            LogError: The log cannot be written.
        """
        if len(key) < 32:
            raise ValueError(f"a handle key must have 32 bytes, got {len(key)}")
        self._log = log
        self._key = key

    @classmethod
    def of(cls, node: Node) -> "Handles":
        """Use the key in a node's folder; it is made when there is none.

        Raises:
            NodeError: The key file is damaged or can be read by others.
            LogError: The log cannot be written.
        """
        return cls(node.log, key=_load_key(node.config.folder / "handle.key"))

    def issue(self, ref: SubjectRef) -> str:
        """Return the handle of a data subject; a secret."""
        raw = bytes.fromhex(ref)
        data = raw + self._mac(raw, generation=self._generation(ref))
        return base64.urlsafe_b64encode(data).decode().rstrip("=")

    def verify(self, handle: str) -> SubjectRef:
        """Return whose handle it is.

        Raises:
            RequestRefused: It is nobody's, or was revoked.
            LogError: The generation cannot be read.
        """
        data = _decode(handle)
        raw, mac = data[:_REF_BYTES], data[_REF_BYTES:]
        ref = SubjectRef(raw.hex())
        if not hmac.compare_digest(mac, self._mac(raw, generation=self._generation(ref))):
            raise _not_authenticated()
        return ref

    def revoke(self, ref: SubjectRef) -> None:
        """Make every handle of a data subject invalid; new ones can be issued at once.

        Raises:
            LogError: The log's database cannot be written; the handles are still valid.
        """
        with self._log.transaction() as transaction:
            transaction.connection.execute(
                "INSERT INTO handle_generation VALUES (?, 1) ON CONFLICT (subject_ref)"
                " DO UPDATE SET generation = handle_generation.generation + 1",
                (ref,),
            )

    def _generation(self, ref: SubjectRef) -> int:
        with self._log.reading() as connection:
            row = connection.execute(
                "SELECT generation FROM handle_generation WHERE subject_ref = ?", (ref,)
            ).fetchone()
        return 0 if row is None else int(row[0])

    def _mac(self, raw: bytes, *, generation: int) -> bytes:
        message = b"tillpact/handle\0" + raw + generation.to_bytes(8, "big")
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
    return Handles.of(node).issue(node.register.subject_ref(subject_id))


def revoke_handles(node: Node, subject_id: str) -> None:
    """Make every handle of a data subject invalid, as after a lost telephone.

    Raises:
        NodeError: The key of the handles cannot be used.
        LogError: The log cannot be written; the handles are still valid.
    """
    Handles.of(node).revoke(node.register.subject_ref(subject_id))


def _decode(handle: str) -> bytes:
    try:
        data = base64.b64decode(handle + "==", altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise _not_authenticated() from error
    is_canonical = base64.urlsafe_b64encode(data).decode().rstrip("=") == handle
    if len(data) != _REF_BYTES + _MAC_BYTES or not is_canonical:
        raise _not_authenticated()
    return data


def _not_authenticated() -> RequestRefused:
    return RequestRefused(Problem.NOT_AUTHENTICATED, headers={"WWW-Authenticate": "Bearer"})


def _load_key(path: Path) -> bytes:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        key = path.read_bytes()
        if len(key) != 32 or path.stat().st_mode & 0o077:
            raise NodeError(
                f"{path} must hold 32 bytes and be readable by its owner only; nothing was started"
            ) from None
        return key
    key = secrets.token_bytes(32)
    with os.fdopen(descriptor, "wb") as file:
        file.write(key)
        file.flush()
        os.fsync(file.fileno())
    return key
