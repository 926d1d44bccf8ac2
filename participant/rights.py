"""Keep every request of a person about their rights until it is answered, and by when.

What was asked and answered is sealed like every act of a person. A table beside the log names
only what is still open, so that whoever runs the node sees what is due; it changes in the same
durable commit. What the node can do itself (an objection, a restriction) is done when it is
asked. Everything else is answered by staff, who show a grant.
"""

import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from consent import AccessGrant, Action, JsonValue, Purpose, SubjectRef, due_at
from participant.handle import Handles
from participant.node import Node
from participant.records import own_events, refs_of

OPENED, EXTENDED = "rights.opened", "rights.extended"
ANSWERED, REFUSED = "rights.answered", "rights.refused"
MOST_OPEN = 20
_LONGEST_TEXT = 2000
_AT_ONCE = "done when it was asked"
_COLUMNS = "request_id, subject_ref, kind, purposes, opened_at, due_at, extended"


class RightsError(Exception):
    """A request about a right cannot be opened or closed like that; nothing was recorded."""


class RequestKind(StrEnum):
    """What a person asks for (GDPR 15 to 18, 20 to 22; PIPL 24, 44 to 48)."""

    ACCESS = "access"
    PORTABILITY = "portability"
    RECTIFICATION = "rectification"
    ERASURE = "erasure"
    RESTRICTION = "restriction"
    OBJECTION = "objection"
    EXPLANATION = "explanation"


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenRequest:
    """A request that waits for an answer.

    Attributes:
        request_id: 32 random hex digits; they lead to nobody.
        subject_ref: Whose it is.
        kind: What is asked for.
        purposes: What it is about; empty for everything.
        opened_at: When it was asked, epoch milliseconds.
        due_at: Until when it must be answered.
        is_extended: Whether the person was told that it takes longer.
    """

    request_id: str
    subject_ref: SubjectRef
    kind: RequestKind
    purposes: frozenset[Purpose]
    opened_at: int
    due_at: int
    is_extended: bool

    def is_overdue(self, *, at: int) -> bool:
        """Tell whether the answer is late."""
        return at > self.due_at


class Rights:
    """The requests of one node's data subjects."""

    def __init__(self, node: Node, handles: Handles) -> None:
        """Make the table when there is none.

        Args:
            node: The open node.
            handles: What an erasure revokes.

        Raises:
            LogError: The log cannot be written.
        """
        self._node = node
        self._handles = handles

    def open(
        self,
        ref: SubjectRef,
        kind: RequestKind,
        *,
        at: int,
        purposes: frozenset[Purpose] = frozenset(),
        details: str = "",
    ) -> OpenRequest | None:
        """Record what a person asks for, and do at once what the node can do itself.

        Args:
            ref: Who asks.
            kind: What for.
            at: Epoch milliseconds.
            purposes: What it is about; empty for everything.
            details: In the person's own words, sealed; at most 2000 characters.

        Returns:
            The request and its clock; None when it was done at once.

        Raises:
            RightsError: Too many requests of this person are open, or the details cannot be
                kept; nothing was recorded.
            LogError: The log cannot be written; nothing was recorded.
        """
        if len(details) > _LONGEST_TEXT:
            raise RightsError(f"the details must have at most {_LONGEST_TEXT} characters")
        act = self._at_once(kind)
        ladder = self._node.ladder
        request = OpenRequest(
            request_id=secrets.token_hex(16),
            subject_ref=ref,
            kind=kind,
            purposes=purposes,
            opened_at=at,
            due_at=due_at(at, ladder.clocks.answer, profile=ladder.profile),
            is_extended=False,
        )
        with self._node.log.transaction() as transaction:
            if act is None and len(self.open_of(ref)) >= MOST_OPEN:
                raise RightsError(f"{MOST_OPEN} requests of this person are open already")
            self._tell(
                request,
                OPENED,
                at=at,
                more={
                    "right": str(kind),
                    "purposes": [*sorted(str(purpose) for purpose in purposes)],
                    "details": details,
                    "due_at": request.due_at,
                },
            )
            if act is not None:
                act(ref, purposes or None, at=at)
                self._tell(request, ANSWERED, at=at, more={"answer": _AT_ONCE})
                return None
            transaction.connection.execute(
                "INSERT INTO rights_request VALUES (?, ?, ?, ?, ?, ?, 0)",
                (
                    request.request_id,
                    ref,
                    str(kind),
                    json.dumps(sorted(str(purpose) for purpose in purposes)),
                    at,
                    request.due_at,
                ),
            )
        return request

    def answer(self, request_id: str, *, answer: str, grant: AccessGrant, at: int) -> None:
        """Close a request with what was done, which the person can read.

        Raises:
            AccessDenied: The grant is not one to answer this request.
            RightsError: No such request is open, it is one to erase, or the answer is empty or
                longer than 2000 characters; nothing was recorded.
        """
        request = self._granted(request_id, Action.ANSWER_REQUEST, grant=grant, at=at)
        if request.kind is RequestKind.ERASURE:
            raise RightsError("a request to erase is answered by erasing, or refused with a reason")
        self._close(request, ANSWERED, {"answer": _said(answer)}, grant=grant, at=at)

    def refuse(self, request_id: str, *, reason: str, grant: AccessGrant, at: int) -> None:
        """Close a request with the reason why it is not followed (GDPR 12(4), PIPL 50).

        Raises:
            AccessDenied: The grant is not one to answer this request.
            RightsError: No such request is open, or the reason is empty; nothing was recorded.
        """
        request = self._granted(request_id, Action.ANSWER_REQUEST, grant=grant, at=at)
        self._close(request, REFUSED, {"reason": _said(reason)}, grant=grant, at=at)

    def extend(self, request_id: str, *, reason: str, grant: AccessGrant, at: int) -> int:
        """Tell the person that the answer takes longer, once and before it is due.

        Returns:
            Until when it must be answered now, epoch milliseconds.

        Raises:
            AccessDenied: The grant is not one to answer this request.
            RightsError: The profile allows no extension, there was one, or it is overdue.
        """
        request = self._granted(request_id, Action.ANSWER_REQUEST, grant=grant, at=at)
        ladder = self._node.ladder
        if ladder.clocks.extension.count == 0:
            raise RightsError(f"the profile {ladder.profile} allows no extension")
        if request.is_extended or request.is_overdue(at=at):
            raise RightsError("a request is extended once, and before it is due")
        due = due_at(request.due_at, ladder.clocks.extension, profile=ladder.profile)
        with self._node.log.transaction() as transaction:
            more: dict[str, JsonValue] = {"reason": _said(reason), "due_at": due}
            self._tell(request, EXTENDED, at=at, more={**more, "grant": grant.index})
            transaction.connection.execute(
                "UPDATE rights_request SET due_at = ?, extended = 1 WHERE request_id = ?",
                (due, request_id),
            )
        return due

    def erase(self, request_id: str, *, grant: AccessGrant, at: int) -> int:
        """Erase the person who asked for it: keys, events, records, receipts, handles.

        A crash in between leaves the request open; the same call finishes the work.

        Returns:
            The open entry that says that somebody was erased, and not who.

        Raises:
            AccessDenied: The grant is not one to erase by this request.
            RightsError: No such request is open, or it is not one to erase; nothing was done.
            LogError: The log cannot be written; the request is still open.
        """
        request = self._granted(request_id, Action.ERASE_SUBJECT, grant=grant, at=at)
        if request.kind is not RequestKind.ERASURE:
            raise RightsError(f"the request is one for {request.kind}, not to erase")
        index = self.erase_person(request.subject_ref, at=at, but=request_id)
        # Last, so that a crash before it leaves a request that can be repeated.
        with self._node.log.transaction() as transaction:
            transaction.connection.execute(
                "DELETE FROM rights_request WHERE request_id = ?", (request_id,)
            )
        return index

    def erase_person(self, subject_id: str, *, at: int, but: str = "") -> int:
        """Erase somebody everywhere on the node, and tell who got data about them.

        Whoever calls this has asked the access rules. A crash in between leaves somebody who has
        withdrawn from everything: erase them again.

        Args:
            subject_id: Who, by the brand's own id or by pseudonym.
            at: Epoch milliseconds.
            but: A request that is left for the caller to close.

        Returns:
            The open entry that says that somebody was erased, and not who.

        Raises:
            LogError: The log cannot be written; see above for what holds then.
        """
        refs = refs_of(self._node, self._node.register.subject_ref(subject_id))
        with self._node.log.transaction() as transaction:
            self._handles.revoke_all(refs)
            connection = transaction.connection
            for ref in refs:
                connection.execute("DELETE FROM service_answer WHERE subject_ref = ?", (ref,))
                connection.execute("DELETE FROM case_file WHERE subject_ref = ?", (ref,))
                connection.execute(
                    "DELETE FROM rights_request WHERE subject_ref = ? AND request_id <> ?",
                    (ref, but),
                )
        return self._node.withdrawals.erase(subject_id, at=at)

    def of(self, ref: SubjectRef) -> list[JsonValue]:
        """Return a person's requests, oldest first, each with what became of it."""
        found: dict[str, dict[str, JsonValue]] = {}
        for _, event in own_events(self._node, ref):
            kind, request_id = event.get("type"), str(event.get("request"))
            if kind == OPENED:
                found[request_id] = {
                    "request": request_id,
                    "state": "open",
                    "opened_at": event["at"],
                    **{name: event[name] for name in ("right", "purposes", "details", "due_at")},
                }
            elif kind in {EXTENDED, ANSWERED, REFUSED} and request_id in found:
                names = [name for name in ("answer", "reason", "due_at") if name in event]
                found[request_id].update({name: event[name] for name in names})
                if kind != EXTENDED:
                    state = "answered" if kind == ANSWERED else "refused"
                    found[request_id].update({"state": state, "closed_at": event["at"]})
        return [*found.values()]

    def open_of(self, ref: SubjectRef) -> list[OpenRequest]:
        """Return what a person still waits for."""
        refs = set(refs_of(self._node, ref))
        return [request for request in self.all_open() if request.subject_ref in refs]

    def all_open(self) -> list[OpenRequest]:
        """Return every open request, the one that is due first at the beginning."""
        with self._node.log.reading() as connection:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM rights_request ORDER BY due_at, request_id"  # noqa: S608
            ).fetchall()
        return [_request(row) for row in rows]

    def overdue(self, *, at: int) -> list[OpenRequest]:
        """Return the open requests whose answer is late."""
        return [request for request in self.all_open() if request.is_overdue(at=at)]

    def _at_once(self, kind: RequestKind) -> Callable[..., int] | None:
        """Return what the node can do itself."""
        if kind is RequestKind.OBJECTION:
            return self._node.withdrawals.object
        if kind is RequestKind.RESTRICTION:
            return self._node.withdrawals.restrict
        return None

    def _granted(
        self, request_id: str, action: Action, *, grant: AccessGrant, at: int
    ) -> OpenRequest:
        grant.verify(action, about=request_id, at=at)
        with self._node.log.reading() as connection:
            row = connection.execute(
                f"SELECT {_COLUMNS} FROM rights_request WHERE request_id = ?",  # noqa: S608
                (request_id,),
            ).fetchone()
        if row is None:
            raise RightsError("no open request has this id; nothing was recorded")
        return _request(row)

    def _close(
        self,
        request: OpenRequest,
        kind: str,
        more: dict[str, JsonValue],
        *,
        grant: AccessGrant,
        at: int,
    ) -> None:
        with self._node.log.transaction() as transaction:
            self._tell(request, kind, at=at, more={**more, "grant": grant.index})
            transaction.connection.execute(
                "DELETE FROM rights_request WHERE request_id = ?", (request.request_id,)
            )

    def _tell(
        self, request: OpenRequest, kind: str, *, at: int, more: dict[str, JsonValue]
    ) -> None:
        event: dict[str, JsonValue] = {
            "type": kind,
            "v": 1,
            "at": at,
            "subject": request.subject_ref,
            "request": request.request_id,
            **more,
        }
        self._node.log.append_sealed(request.subject_ref, event)


def _request(row: tuple[str, str, str, str, int, int, int]) -> OpenRequest:
    request_id, ref, kind, purposes, opened_at, due, extended = row
    return OpenRequest(
        request_id=request_id,
        subject_ref=SubjectRef(ref),
        kind=RequestKind(kind),
        purposes=frozenset(Purpose(name) for name in json.loads(purposes)),
        opened_at=opened_at,
        due_at=due,
        is_extended=bool(extended),
    )


def _said(text: str) -> str:
    if not text.strip() or len(text) > _LONGEST_TEXT:
        raise RightsError(f"an answer or a reason must have 1 to {_LONGEST_TEXT} characters")
    return text
