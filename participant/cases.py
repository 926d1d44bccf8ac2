"""Own cases: why an officer may see everything a log holds about one person, and who agreed.

A case has a random id that tells nothing about its person; no list and no entry of the log joins
two cases of one person. Whom it is about stands in one table of the node. One officer asks,
another approves, and the dossier goes to who asked, for a day. Each step is an open event, and
where a case stands follows from these events alone.
"""

import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import cast

from consent import (
    Action,
    JsonValue,
    LogError,
    ProofError,
    SubjectRef,
    append_state_root,
    build_dossier,
    newest_state_root,
    parse_canonical,
)
from consent.dossier import EPOCH_MS
from consent.note import Note
from consent.topic import Told, Topic
from participant.accounts import Session
from participant.node import Node

APPROVED_FOR_MS = 86_400_000
OPENED = "case.opened"
REQUESTED, APPROVED, DONE = "unseal.requested", "unseal.approved", "unseal.done"
_ROOT_LIFE_MS = 3_600_000


class CaseError(Exception):
    """A step of a case may not be taken; nothing was handed out."""


class UnknownCase(CaseError):  # noqa: N818 - an answer, named for the answer
    """There is no case of this id."""


class NotProvableYet(CaseError):  # noqa: N818
    """No dossier can be proved complete before the log is cosigned again."""


class CaseReason(StrEnum):
    """Why a case was opened; one of these goes to the log and no free text."""

    SUBJECT_REQUEST = "subject_request"
    COMPLAINT = "complaint"
    AUTHORITY = "authority"
    COURT = "court"
    INCIDENT = "incident"
    AUDIT = "audit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Where one case stands.

    Attributes:
        case_id: Random; says nothing about the person.
        reason: Why it was opened.
        opened_by: Account of the officer.
        opened_at: Epoch milliseconds.
        requester: Account that asked to unseal last; empty before that.
        approver: Account of another person who approved that request; empty before that.
        approved_until: When the approval ends, epoch milliseconds; 0 without one.
        handed_out: How many dossiers were handed out.
    """

    case_id: str
    reason: CaseReason
    opened_by: str
    opened_at: int
    requester: str = ""
    approver: str = ""
    approved_until: int = 0
    handed_out: int = 0

    def format(self) -> dict[str, JsonValue]:
        """Return the case as JSON."""
        return {
            "case": self.case_id,
            "reason": str(self.reason),
            "opened_by": self.opened_by,
            "opened_at": self.opened_at,
            "requester": self.requester,
            "approver": self.approver,
            "approved_until": self.approved_until,
            "handed_out": self.handed_out,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Dossier:
    """A dossier that was handed out.

    Attributes:
        data: Canonical JSON; as secret as the person's events.
        complete_until: Time of its state root, epoch milliseconds: until then nothing is missing.
        is_cosigned: Whether its checkpoint holds more signatures than the node's own.
    """

    data: bytes
    complete_until: int
    is_cosigned: bool


class Cases:
    """The cases of one node."""

    def __init__(self, node: Node, *, seek_cosignatures: Callable[[], None] = lambda: None) -> None:
        """Keep cases in a node's log.

        Args:
            node: The open node.
            seek_cosignatures: Asks the peers that can be reached to cosign the log's head, and
                returns in seconds whatever they answer.

        Raises:
            LogError: The log cannot be written.
        """
        self._node = node
        self._seek_cosignatures = seek_cosignatures
        self._topic = Topic(node.log, (OPENED, REQUESTED, APPROVED, DONE))

    def all(self) -> list[Case]:
        """Return every case, oldest first, as the log adds it up."""
        return list(self._replay().values())

    def open(self, session: Session, ref: SubjectRef, *, reason: CaseReason) -> Case:
        """Open a case about a person, known to the node or not.

        Raises:
            AccessDenied: Only a compliance officer may.
            LogError: The log cannot be written; nothing was opened.
        """
        at, case_id = self._node.clock(), f"case-{secrets.token_hex(8)}"
        self._node.accounts.authorize(session, Action.REQUEST_UNSEAL, about=case_id, at=at)
        with self._node.log.transaction() as transaction:
            self._tell(OPENED, case_id, session, at=at, reason=str(reason))
            transaction.connection.execute("INSERT INTO case_file VALUES (?, ?)", (case_id, ref))
        return self._find(case_id)

    def request(self, session: Session, case_id: str) -> Case:
        """Ask to see the person's dossier; an approval that was there before ends.

        Raises:
            AccessDenied: Only a compliance officer may.
            CaseError: There is no such case.
        """
        at = self._node.clock()
        self._find(case_id)
        self._node.accounts.authorize(session, Action.REQUEST_UNSEAL, about=case_id, at=at)
        self._tell(REQUESTED, case_id, session, at=at)
        return self._find(case_id)

    def approve(self, session: Session, case_id: str) -> Case:
        """Approve a request as a second person; it holds for a day.

        Raises:
            AccessDenied: Only another compliance officer with a fresh second factor may.
            CaseError: There is no such case, or nobody asked.
        """
        at, case = self._node.clock(), self._find(case_id)
        if not case.requester or case.approver:
            raise CaseError("no request of this case waits for approval")
        self._node.accounts.authorize(
            session, Action.UNSEAL, about=case_id, author=case.requester, at=at
        )
        if session.account == case.requester:
            raise CaseError("a request must be approved by another than who made it")
        self._tell(APPROVED, case_id, session, at=at, until=at + APPROVED_FOR_MS)
        return self._find(case_id)

    def dossier(self, session: Session, case_id: str) -> Dossier:
        """Hand the dossier to who asked for it; it covers everything up to now when it can.

        A new state root is logged when it is needed, and peers are asked to cosign. Nobody waits
        for them: the dossier then says until when it is complete.

        Raises:
            AccessDenied: Only the officer who asked, with a fresh second factor, may.
            CaseError: There is no such case, no approval in force, or the person was erased.
            NotProvableYet: The newest cosigned checkpoint covers no state root of the last day.
            LogError: The log cannot be used; nothing was handed out.
        """
        at, case = self._node.clock(), self._find(case_id)
        self._node.accounts.authorize(session, Action.EXPORT_EVIDENCE, about=case_id, at=at)
        if session.account != case.requester:
            raise CaseError("the dossier goes to the officer who asked for it")
        if not case.approver or at >= case.approved_until:
            raise CaseError("no approval by a second person is in force")
        ref = self._subject(case_id)
        self._log_root(at=at)
        self._seek_cosignatures()
        dossier = self._build(ref, at=at)
        digest = hashlib.sha256(dossier.data).hexdigest()
        self._tell(
            DONE, case_id, session, at=at, sha256=digest, complete_until=dossier.complete_until
        )
        return dossier

    def _subject(self, case_id: str) -> SubjectRef:
        with self._node.log.reading() as connection:
            row = connection.execute(
                "SELECT subject_ref FROM case_file WHERE case_id = ?", (case_id,)
            ).fetchone()
        if row is None:
            raise CaseError("the person of this case was erased")
        return SubjectRef(str(row[0]))

    def _log_root(self, *, at: int) -> None:
        """Log a state root unless one of the last hour covers every event about a person."""
        log, newest = self._node.log, newest_state_root(self._node.log)
        with log.reading() as connection:
            (last,) = connection.execute("SELECT MAX(idx) FROM sealed").fetchone()
        is_covered = newest is not None and (last is None or last < newest.log_size)
        if newest is None or not is_covered or at - newest.at > _ROOT_LIFE_MS:
            append_state_root(log, at=at)

    def _build(self, ref: SubjectRef, *, at: int) -> Dossier:
        waiting = (
            "the newest cosigned checkpoint covers no state root of the last day; one was logged "
            "now: ask again when the log was cosigned"
        )
        try:
            data = build_dossier(self._node.log, ref, at=at)
        except (LogError, ProofError) as error:
            raise NotProvableYet(waiting) from error
        document = cast("dict[str, dict[str, dict[str, int]]]", parse_canonical(data))
        complete_until = document["root"]["event"]["at"]
        if at - complete_until > EPOCH_MS:
            raise NotProvableYet(waiting)
        signatures = Note.parse(self._node.log.newest_note()).signatures
        return Dossier(data=data, complete_until=complete_until, is_cosigned=len(signatures) > 1)

    def _find(self, case_id: str) -> Case:
        case = self._replay().get(case_id)
        if case is None:
            raise UnknownCase("there is no case of this id")
        return case

    def _tell(
        self, kind: str, case_id: str, session: Session, *, at: int, **fields: JsonValue
    ) -> None:
        by = session.account
        self._topic.append({"type": kind, "v": 1, "at": at, "case": case_id, "by": by, **fields})

    def _replay(self) -> dict[str, Case]:
        cases: dict[str, Case] = {}
        for told in self._topic.events():
            kind, case_id, by = told.text("type"), told.text("case"), told.text("by")
            known = cases.get(case_id)
            if kind == OPENED and known is None:
                cases[case_id] = _opened(told)
            elif kind == REQUESTED and known is not None:
                cases[case_id] = replace(known, requester=by, approver="", approved_until=0)
            elif kind == APPROVED and known is not None and by != known.requester != "":
                cases[case_id] = replace(known, approver=by, approved_until=told.number("until"))
            elif kind == DONE and known is not None and known.approver and by == known.requester:
                cases[case_id] = replace(known, handed_out=known.handed_out + 1)
            else:
                raise LogError(
                    f"entry {told.index} is a step of a case that could not have been taken",
                    index=told.index,
                )
        return cases


def _opened(told: Told) -> Case:
    return Case(
        case_id=told.text("case"),
        reason=CaseReason(told.text("reason")),
        opened_by=told.text("by"),
        opened_at=told.number("at"),
    )
