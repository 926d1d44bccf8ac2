"""Keep impact assessments, and refuse a purpose that needs one while none is in force.

Drafted by one person, approved by another, valid until a day: each an open event with the hash
of the document, which stays where the brand keeps it. Expiry is read from the time that the
caller gives, so that nobody has to remember to write it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from consent.access import AccessGrant, Action
from consent.canonical import JsonValue
from consent.event import LogError, is_count
from consent.gate import Refused
from consent.ladder import Ladder, Purpose
from consent.log import Log
from consent.topic import Told, Topic

DRAFTED, APPROVED, EXPIRED = "assessment.drafted", "assessment.approved", "assessment.expired"


def needing_assessment(ladder: Ladder) -> frozenset[Purpose]:
    """Return the purposes that a profile does not let anybody use without an assessment."""
    return frozenset(purpose for purpose, rules in ladder.rules.items() if rules.assessment)


class AssessmentError(Exception):
    """A step of an assessment may not be taken."""


class NotAssessed(Refused):
    """A purpose that needs an impact assessment has none in force; nothing was opened."""


class AssessmentState(StrEnum):
    """Where an assessment stands at a time."""

    DRAFT = "draft"
    APPROVED = "approved"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True, kw_only=True)
class Assessment:
    """One impact assessment.

    Attributes:
        assessment_id: Opaque id that the brand gave it.
        purpose: What was assessed.
        document: 64 hex digits, the SHA-256 of the document.
        author: Account that drafted it.
        approver: Account that approved it; None before that.
        approved_at: When it was approved, epoch milliseconds; 0 before that.
        valid_until: When it ends, epoch milliseconds; 0 before it is approved.
        ended_at: When it was ended early; None when it was not.
    """

    assessment_id: str
    purpose: Purpose
    document: str
    author: str
    approver: str | None = None
    approved_at: int = 0
    valid_until: int = 0
    ended_at: int | None = None

    def state(self, *, at: int) -> AssessmentState:
        """Return where it stands at a time, epoch milliseconds."""
        if self.approver is None and self.ended_at is None:
            return AssessmentState.DRAFT
        if self.approver is None or (self.ended_at is not None and at >= self.ended_at):
            return AssessmentState.EXPIRED
        if at < self.approved_at:
            return AssessmentState.DRAFT
        return AssessmentState.APPROVED if at < self.valid_until else AssessmentState.EXPIRED


def verify_assessed(
    purpose: Purpose, at: int, *, assessments: Iterable[Assessment], needed: frozenset[Purpose]
) -> None:
    """Raise `NotAssessed` unless a purpose needs no assessment or has one in force.

    Args:
        purpose: What somebody wants to do.
        at: Epoch milliseconds.
        assessments: All that are known.
        needed: Purposes that need one, from `needing_assessment`.
    """
    if purpose not in needed:
        return
    states = {known.state(at=at) for known in assessments if known.purpose == purpose}
    if AssessmentState.APPROVED in states:
        return
    found = ", ".join(sorted(states)) or "none"
    raise NotAssessed(f"{purpose} needs an approved impact assessment, found: {found}")


class Assessments:
    """The impact assessments of one node."""

    def __init__(self, log: Log, *, needed: frozenset[Purpose]) -> None:
        """Keep assessments in a log; purposes in `needed` are refused without one."""
        self._log = log
        self._needed = needed
        self._topic = Topic(log, (DRAFTED, APPROVED, EXPIRED))

    def all(self) -> list[Assessment]:
        """Return every assessment, oldest first, as the log adds it up."""
        return list(self._replay().values())

    def verify_purpose(self, purpose: Purpose, *, at: int) -> None:
        """Raise `NotAssessed` unless a purpose may be used; a gate asks this before it opens.

        A log that cannot be read, or does not add up, raises `LogError`: also no permission.
        """
        if purpose in self._needed:
            verify_assessed(purpose, at, assessments=self.all(), needed=self._needed)

    def draft(
        self, assessment_id: str, purpose: Purpose, document: str, *, grant: AccessGrant, at: int
    ) -> Assessment:
        """Write down that a document assesses a purpose.

        Raises:
            AssessmentError: The id is taken.
            ValueError: The document is not given by its SHA-256.
            AccessDenied: The grant is for something else or too old.
        """
        grant.verify(Action.DRAFT_ASSESSMENT, about=assessment_id, at=at)
        if len(document) != 64 or not set(document) <= set("0123456789abcdef"):
            raise ValueError("the document must be given by 64 lower-case hex digits of SHA-256")
        with self._log.transaction():
            if assessment_id in self._replay():
                raise AssessmentError(f"there is an assessment {assessment_id} already")
            event: dict[str, JsonValue] = {
                "type": DRAFTED,
                "v": 1,
                "at": at,
                "assessment": assessment_id,
                "purpose": str(purpose),
                "document": document,
                "author": grant.request.actor,
            }
            return _drafted(Told(self._topic.append(event), event))

    def approve(
        self, assessment_id: str, *, valid_until: int, grant: AccessGrant, at: int
    ) -> Assessment:
        """Put a drafted assessment in force as a second person.

        Raises:
            AssessmentError: No such draft, or it is the approver's own.
            ValueError: It would end before it begins.
            AccessDenied: The grant is for something else or too old.
        """
        grant.verify(Action.APPROVE_ASSESSMENT, about=assessment_id, at=at)
        if not (is_count(valid_until) and valid_until > at):
            raise ValueError("an assessment must be valid for some time after its approval")
        with self._log.transaction():
            drafted = self._find(assessment_id)
            if drafted.state(at=at) is not AssessmentState.DRAFT:
                raise AssessmentError(f"the assessment {assessment_id} is not a draft")
            if grant.request.actor == drafted.author:
                raise AssessmentError("an assessment must be approved by another than its author")
            if grant.request.author != drafted.author:
                raise AssessmentError("the grant names another author than the assessment's")
            approved = replace(
                drafted, approver=grant.request.actor, approved_at=at, valid_until=valid_until
            )
            event = self._step(APPROVED, assessment_id, at=at)
            self._topic.append(
                {**event, "approver": grant.request.actor, "valid_until": valid_until}
            )
            return approved

    def expire(self, assessment_id: str, *, grant: AccessGrant, at: int) -> Assessment:
        """End an assessment early, for example because what it describes was changed.

        Raises:
            AssessmentError: No such assessment, or it was ended before.
            AccessDenied: The grant is not one to approve this assessment, or too old.
        """
        grant.verify(Action.APPROVE_ASSESSMENT, about=assessment_id, at=at)
        with self._log.transaction():
            known = self._find(assessment_id)
            if known.ended_at is not None:
                raise AssessmentError(f"the assessment {assessment_id} was ended before")
            event = self._step(EXPIRED, assessment_id, at=at)
            self._topic.append({**event, "by": grant.request.actor})
            return replace(known, ended_at=at)

    def _find(self, assessment_id: str) -> Assessment:
        known = self._replay().get(assessment_id)
        if known is None:
            raise AssessmentError(f"there is no assessment {assessment_id}")
        return known

    def _step(self, kind: str, assessment_id: str, *, at: int) -> dict[str, JsonValue]:
        return {"type": kind, "v": 1, "at": at, "assessment": assessment_id}

    def _replay(self) -> dict[str, Assessment]:
        found: dict[str, Assessment] = {}
        for told in self._topic.events():
            kind, name = told.text("type"), told.text("assessment")
            known = found.get(name)
            if kind == DRAFTED and known is None:
                found[name] = _drafted(told)
            elif kind == APPROVED and known is not None and known.author != told.text("approver"):
                found[name] = replace(
                    known,
                    approver=told.text("approver"),
                    approved_at=told.number("at"),
                    valid_until=told.number("valid_until"),
                )
            elif kind == EXPIRED and known is not None:
                found[name] = replace(known, ended_at=told.number("at"))
            else:
                raise LogError(
                    f"entry {told.index} is a step of an assessment that could not have been taken",
                    index=told.index,
                )
        return found


def _drafted(told: Told) -> Assessment:
    return Assessment(
        assessment_id=told.text("assessment"),
        purpose=Purpose(told.text("purpose")),
        document=told.text("document"),
        author=told.text("author"),
    )
