"""Answer services that ask the gate over HTTP: a mask or a yes or no, never a row.

Many people at once are a permit of the gate, logged before the mask leaves. Single questions are
logged by the hour: the window is an open entry before its first answer, and when it closes a
second one says in powers of two how many were asked about, with a hash over who. Who it was is
kept beside the log. Whatever goes wrong is a no.
"""

import hashlib
import secrets
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from consent import (
    AccessDenied,
    AccessGrant,
    Action,
    JsonValue,
    LogError,
    NotAssessed,
    Permit,
    Purpose,
    Refused,
    Role,
    SubjectRef,
    Use,
    UseKind,
)
from consent.gate import bucket
from participant.accounts import Session
from participant.node import Node

WINDOW_MS = 3_600_000
KEPT_EVERY_MS = 5_000
MOST_SUBJECTS = 1_000_000
_ASSESSED_FOR_MS = 1_000
_KINDS = {
    Role.INGEST: {UseKind.INGEST, UseKind.LINK},
    Role.TRAINER: {UseKind.TRAIN, UseKind.FEATURE, UseKind.EVALUATE},
    Role.SCORER: {UseKind.SCORE, UseKind.QUERY, UseKind.EVALUATE},
    Role.EXPORTER: {UseKind.EXPORT, UseKind.SEND},
}


class UnknownPermit(Exception):  # noqa: N818 - an answer, named for the answer
    """This account opened no permit of this id, or closed it before."""


class Why(StrEnum):
    """Why a single answer is what it is; no finer, because a service is not to learn more."""

    PERMITTED = "permitted"
    NO_CONSENT = "no_consent"
    NOT_ASSESSED = "not_assessed"
    UNDECIDED = "undecided"


@dataclass(slots=True)
class _Window:
    """The single questions of one account about one purpose in one hour."""

    name: str
    ends_at: int
    salt: bytes
    rows: set[int] = field(default_factory=set)
    permitted: int = 0
    refused: int = 0
    kept_at: int = 0
    is_changed: bool = False


class GateDesk:
    """Stands at the gate of one node for its services."""

    def __init__(self, node: Node) -> None:
        """Close the windows that a crash left open.

        Raises:
            LogError: The log cannot be written.
        """
        self._node = node
        self._lock = threading.Lock()
        self._windows: dict[tuple[str, Purpose], _Window] = {}
        self._assessed: dict[Purpose, tuple[int, bool]] = {}
        with node.log.transaction() as transaction:
            left = transaction.connection.execute(
                "SELECT decisions, salt, members, permitted, refused FROM decision_window"
                " WHERE closed = 0 ORDER BY idx"
            ).fetchall()
            for name, salt, members, permitted, refused in left:
                self._tell_closed(str(name), bytes(salt), bytes(members), (permitted, refused))

    def sign_in(self, token: str) -> Session:
        """Return whose token it is; see `Accounts.sign_in`."""
        return self._node.accounts.sign_in(token, at=self._node.clock())

    def permit(
        self, session: Session, purpose: Purpose, subjects: Sequence[str], *, use: Use
    ) -> tuple[Permit, NDArray[np.bool_]]:
        """Return a permit and a mask over the people asked for, in their order.

        Raises:
            AccessDenied: The account is no service, or not one for this kind of use.
            Refused: Nobody is permitted, or anything went wrong; nothing was opened.
            LogError: The permit could not be noted as the account's.
        """
        self._ask(session, purpose, use.kind)
        at = self._node.clock()
        view = self._node.gate.open(purpose, subjects, use=use, at=at)
        with self._node.log.transaction() as transaction:
            transaction.connection.execute(
                "INSERT INTO service_permit VALUES (?, ?, 0)",
                (view.permit.permit_id, session.account),
            )
        return view.permit, view.mask

    def close_permit(self, session: Session, permit_id: str) -> dict[str, JsonValue]:
        """Write down that the use of a permit is over.

        Raises:
            UnknownPermit: The account opened none of this id, or closed it before.
            LogError: The log cannot be written.
        """
        self._node.accounts.roles(session)
        at = self._node.clock()
        with self._node.log.transaction() as transaction:
            done = transaction.connection.execute(
                "UPDATE service_permit SET closed_at = ?"
                " WHERE permit = ? AND account = ? AND closed_at = 0",
                (at, permit_id, session.account),
            )
            if done.rowcount != 1:
                raise UnknownPermit("this account opened no permit of this id, or closed it")
            index = transaction.append(
                {
                    "type": "permit.closed",
                    "v": 1,
                    "at": at,
                    "permit": permit_id,
                    "by": session.account,
                }
            )
        return {"permit": permit_id, "log_index": index}

    def decide(
        self,
        session: Session,
        purpose: Purpose,
        *,
        subject: str | None = None,
        ref: SubjectRef | None = None,
    ) -> Why:
        """Tell whether one person may be used for a purpose now.

        Args:
            session: A service that scores.
            purpose: Why.
            subject: The brand's own id of the person; or:
            ref: Their pseudonym.

        Raises:
            AccessDenied: The account is no service, or not one for single answers.
        """
        self._ask(session, purpose, UseKind.SCORE)
        at = self._node.clock()
        try:
            if not self._is_assessed(purpose, at=at):
                return Why.NOT_ASSESSED
            register = self._node.register
            row = int(register.rows([subject or "" if ref is None else ref])[0])
            permitted = row >= 0 and self._node.gate.is_permitted(row, purpose, at=at)
            self._count(session, purpose, row if permitted else None, at=at)
        except (LogError, Refused, ValueError):
            return Why.UNDECIDED
        return Why.PERMITTED if permitted else Why.NO_CONSENT

    def close(self) -> None:
        """Close every window, as when the service stops.

        Raises:
            LogError: The log cannot be written; the next start closes them.
        """
        with self._lock:
            for window in self._windows.values():
                self._keep(window, at=self._node.clock())
                self._close(window)
            self._windows.clear()

    def _ask(self, session: Session, purpose: Purpose, kind: UseKind) -> AccessGrant:
        grant = self._node.accounts.authorize_standing(
            session, Action.READ_ROWS, about=f"gate/{purpose}", at=self._node.clock()
        )
        if kind not in _KINDS.get(grant.request.role, set()):
            raise AccessDenied(f"the role {grant.request.role} does not {kind}")
        return grant

    def _is_assessed(self, purpose: Purpose, *, at: int) -> bool:
        known = self._assessed.get(purpose)
        if known is None or not 0 <= at - known[0] < _ASSESSED_FOR_MS:
            try:
                self._node.assessments.verify_purpose(purpose, at=at)
            except NotAssessed:
                known = (at, False)
            else:
                known = (at, True)
            self._assessed[purpose] = known
        return known[1]

    def _count(self, session: Session, purpose: Purpose, row: int | None, *, at: int) -> None:
        """Count one answer in its window, before it is given."""
        key = (session.account, purpose)
        with self._lock:
            window = self._windows.get(key)
            if window is not None and at >= window.ends_at:
                self._keep(window, at=at)
                self._close(window)
                del self._windows[key]
                window = None
            if window is None:
                window = self._windows[key] = self._open(session, purpose, at=at)
            if row is None:
                window.refused += 1
            else:
                window.permitted += 1
                window.rows.add(row)
            window.is_changed = True
            if at - window.kept_at >= KEPT_EVERY_MS:
                self._keep(window, at=at)

    def _open(self, session: Session, purpose: Purpose, *, at: int) -> _Window:
        name, salt = f"decisions-{secrets.token_hex(8)}", secrets.token_bytes(32)
        with self._node.log.transaction() as transaction:
            index = transaction.append(
                {
                    "type": "decisions.opened",
                    "v": 1,
                    "at": at,
                    "decisions": name,
                    "purpose": str(purpose),
                    "by": session.account,
                    "policy": self._node.register.ladder.digest,
                    "state_seq": self._node.register.state_seq,
                }
            )
            transaction.connection.execute(
                "INSERT INTO decision_window VALUES (?, ?, ?, ?, ?, 0, 0, 0)",
                (name, index, str(purpose), salt, b""),
            )
        return _Window(name, at - at % WINDOW_MS + WINDOW_MS, salt, kept_at=at)

    def _keep(self, window: _Window, *, at: int) -> None:
        """Write down durably who was asked about so far."""
        if not window.is_changed:
            return
        with self._node.log.transaction() as transaction:
            transaction.connection.execute(
                "UPDATE decision_window SET members = ?, permitted = ?, refused = ?"
                " WHERE decisions = ?",
                (_pack(window.rows), window.permitted, window.refused, window.name),
            )
        window.kept_at, window.is_changed = at, False

    def _close(self, window: _Window) -> None:
        counts = (window.permitted, window.refused)
        self._tell_closed(window.name, window.salt, _pack(window.rows), counts)

    def _tell_closed(self, name: str, salt: bytes, members: bytes, counts: tuple[int, int]) -> None:
        permitted, refused = counts
        with self._node.log.transaction() as transaction:
            transaction.append(
                {
                    "type": "decisions.closed",
                    "v": 1,
                    "at": self._node.clock(),
                    "decisions": name,
                    "mask_root": hashlib.sha256(salt + members).hexdigest(),
                    "permitted": bucket(permitted),
                    "refused": bucket(refused),
                }
            )
            transaction.connection.execute(
                "UPDATE decision_window SET closed = 1 WHERE decisions = ?", (name,)
            )


def _pack(rows: set[int]) -> bytes:
    members = np.zeros(max(rows, default=-1) + 1, np.bool_)
    members[list(rows)] = True
    return np.packbits(members).tobytes()
