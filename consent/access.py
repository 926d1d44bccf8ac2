"""Decide what a person or a service may do on a node, and write every answer to the log.

Roles and actions are closed sets. An engine judges a request (`matrix`, `cedar`); what is asked,
by which role and with what answer is an open event before anybody acts on it. Rows of customers
are not opened here: that is the gate's, person by person. Who holds which role is decided by
whoever signs people in; it is trusted.
"""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar, dataclass
from enum import StrEnum
from typing import Protocol

from consent.canonical import LARGEST_INTEGER, JsonValue
from consent.event import LogError, is_count
from consent.gate import Refused
from consent.log import Log

STEP_UP_S = 300
GRANT_LIFE_MS = 300_000
_MINUTE_MS = 60_000
_ISSUED = object()
_OPAQUE = re.compile(r"[A-Za-z0-9._:/-]{1,128}")
_log = logging.getLogger(__name__)


class AccessDenied(Refused):
    """A person or a service may not do what was asked; nothing was done."""


class Role(StrEnum):
    """In which capacity somebody asks; one request is made in one role."""

    SUBJECT = "subject"
    ENGINEER = "engineer"
    OPERATOR = "operator"
    COMPLIANCE_OFFICER = "compliance_officer"
    SCIENTIST = "scientist"
    POLICY_AUTHOR = "policy_author"
    POLICY_APPROVER = "policy_approver"
    INGEST = "ingest"
    TRAINER = "trainer"
    SCORER = "scorer"
    EXPORTER = "exporter"
    WITNESS = "witness"


class Action(StrEnum):
    """What can be asked for."""

    READ_OWN_STATE = "read_own_state"
    RECORD_CONSENT = "record_consent"
    WITHDRAW = "withdraw"
    MAKE_REQUEST = "make_request"
    ANSWER_REQUEST = "answer_request"
    ERASE_SUBJECT = "erase_subject"
    READ_ROWS = "read_rows"
    READ_MASKED_VIEWS = "read_masked_views"
    READ_REGISTER = "read_register"
    READ_LOG = "read_log"
    EXPORT_EVIDENCE = "export_evidence"
    REQUEST_UNSEAL = "request_unseal"
    UNSEAL = "unseal"
    PROPOSE_POLICY = "propose_policy"
    APPROVE_POLICY = "approve_policy"
    ACTIVATE_POLICY = "activate_policy"
    DRAFT_ASSESSMENT = "draft_assessment"
    APPROVE_ASSESSMENT = "approve_assessment"
    APPROVE_PLAN = "approve_plan"
    START_RUN = "start_run"
    READ_MODELS = "read_models"
    RELEASE_MODEL = "release_model"
    SEND_NOTICES = "send_notices"
    COSIGN = "cosign"
    ROTATE_KEYS = "rotate_keys"


SHIPPED_DIGEST = "a82d62b6c497cbde65b88606298c80d3b21e6c1a24d73cf95424ade00ec42ebc"
"""Digest of the shipped policy files, the only rules that count before any was activated.

Whoever changes the files changes the table in `matrix` too.
"""

BOOTSTRAP = frozenset({Action.PROPOSE_POLICY, Action.APPROVE_POLICY, Action.ACTIVATE_POLICY})
"""What may be asked for before any policy was activated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessRequest:
    """What somebody asks to do.

    Attributes:
        actor: Opaque id of the account that asks, never a name or an address; for a subject the
            pseudonym.
        role: The capacity in which they ask.
        action: What they ask to do.
        about: Opaque id of the thing it is about, such as a policy digest or a case; it goes to
            the log and must not lead to a person.
        owner: Pseudonym of the person whose data it is; empty when it is nobody's alone.
        author: Account that proposed, drafted or requested the thing; empty when nobody did.
        masked: Whether the view that would be handed out is masked.
        mfa_age_s: Seconds since the last second factor; None when there was none.
    """

    actor: str
    role: Role
    action: Action
    about: str = ""
    owner: str = ""
    author: str = ""
    masked: bool = False
    mfa_age_s: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.role, Role):
            raise ValueError("the role is not one of the roles")
        if not isinstance(self.action, Action):
            raise ValueError("the action is not one of the actions")
        if not _is_opaque(self.actor):
            raise ValueError("an actor must be an opaque id: letters, digits and . _ : / - only")
        if not all(
            text == "" or _is_opaque(text) for text in (self.about, self.owner, self.author)
        ):
            raise ValueError("what a request is about must be opaque ids")
        if self.about and self.about in {self.owner, self._subject()}:
            raise ValueError("what a request is about goes to the log and must not be a person")
        if not isinstance(self.masked, bool):
            raise ValueError("masked must be true or false")
        if self.mfa_age_s is not None and not _is_age(self.mfa_age_s):
            raise ValueError("the age of a second factor must be whole seconds from 0")

    @classmethod
    def parse(cls, fields: Mapping[str, JsonValue]) -> "AccessRequest":
        """Read a request from outside; raise `ValueError` for anything that is not one."""
        match dict(fields):
            case {"actor": str(actor), "role": str(role), "action": str(action), **rest}:
                known = {"about", "owner", "author", "masked", "mfa_age_s"}
                if not rest.keys() <= known:
                    raise ValueError("a request holds a field that is not known")
                about, owner = rest.get("about", ""), rest.get("owner", "")
                author, masked = rest.get("author", ""), rest.get("masked", False)
                age = rest.get("mfa_age_s")
                if (
                    isinstance(about, str)
                    and isinstance(owner, str)
                    and isinstance(author, str)
                    and isinstance(masked, bool)
                    and (age is None or isinstance(age, int))
                ):
                    return cls(
                        actor=actor,
                        role=Role(role),
                        action=Action(action),
                        about=about,
                        owner=owner,
                        author=author,
                        masked=masked,
                        mfa_age_s=age,
                    )
        raise ValueError("a request cannot be read")

    def context(self) -> dict[str, str | int | bool]:
        """Return every fact that a rule may look at; none is ever left out."""
        return {
            "actor": self.actor,
            "owner": self.owner,
            "author": self.author,
            "masked": self.masked,
            "mfa_age_s": LARGEST_INTEGER if self.mfa_age_s is None else self.mfa_age_s,
        }

    def _subject(self) -> str | None:
        return self.actor if self.role is Role.SUBJECT else None


class PolicyEngine(Protocol):
    """Something that judges requests by one fixed set of rules."""

    @property
    def name(self) -> str:
        """Return which engine it is, with its version."""
        ...

    @property
    def digest(self) -> str:
        """Return the digest of the policy files whose rules it applies."""
        ...

    def judge(self, request: AccessRequest) -> tuple[str, ...]:
        """Return the ids of the rules that permit a request, sorted; at least one.

        Raises:
            AccessDenied: A rule forbids it, no rule permits it, or anything went wrong.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessGrant:
    """A request that was permitted and is in the log; only `Access` issues it.

    Attributes:
        request: What was asked.
        rules: Ids of the rules that permit it.
        policy_digest: The policy in force; empty before the first activation.
        at: When, epoch milliseconds.
        index: Entry of the log.
    """

    request: AccessRequest
    rules: tuple[str, ...]
    policy_digest: str
    at: int
    index: int
    issued_by: InitVar[object] = None

    def __post_init__(self, issued_by: object) -> None:
        if issued_by is not _ISSUED:
            raise TypeError("an AccessGrant is issued by Access and cannot be made by hand")

    def verify(self, action: Action, *, about: str, at: int) -> None:
        """Raise `AccessDenied` unless the grant is for this action on this thing, and fresh."""
        if (self.request.action, self.request.about) != (action, about):
            raise AccessDenied(f"the grant is not one to {action} of what was given")
        if not 0 <= at - self.at <= GRANT_LIFE_MS:
            raise AccessDenied("the grant is older than five minutes, or from the future")


class Access:
    """The door for people and services of one node."""

    def __init__(
        self, engine: PolicyEngine, log: Log, *, activated: Callable[[], str | None]
    ) -> None:
        """Judge with an engine as long as its rules are the activated ones.

        Args:
            engine: Applies the rules.
            log: Where every answer goes.
            activated: Tells the digest of the policy in force, None when there never was one;
                `Rulebook.active_digest`. Before the first one only the shipped rules count.
        """
        self._engine = engine
        self._engine_name = engine.name
        self._log = log
        self._activated = activated

    def authorize(self, request: AccessRequest, *, at: int) -> AccessGrant:
        """Return a grant after it is in the log durably.

        Args:
            request: Who asks for what.
            at: Epoch milliseconds.

        Raises:
            AccessDenied: The rules do not permit it, they are not the activated ones, or
                anything at all went wrong; the refusal is an event.
        """
        try:
            digest = self._digest_in_force(request)
            rules = self._engine.judge(request)
            if not rules:
                raise AccessDenied("the policy engine named no rule, which is a refusal")
            event = self._event("access.allowed", request, at=at)
            index = self._log.append({**event, "policy": digest, "rules": list(rules)})
        except AccessDenied as refusal:
            self._deny(self._event("access.denied", request, at=at), refusal.reason)
            raise
        except Exception as error:
            reason = "access could not be decided, which is a refusal"
            if isinstance(error, LogError):
                reason = "the log cannot be used, which is a refusal"
            self._deny(self._event("access.denied", request, at=at), reason)
            raise AccessDenied(reason) from error
        return AccessGrant(
            request=request,
            rules=rules,
            policy_digest=digest,
            at=at,
            index=index,
            issued_by=_ISSUED,
        )

    def judge_own(self, request: AccessRequest, *, at: int) -> None:
        """Judge what a person asks about themselves; only a refusal is written to the log.

        What people do is in the log already, sealed. An open entry beside each act would double
        the log, and tell whoever reads it how many people looked at what is theirs, and when.
        Before the first activation the shipped rules hold: a person's rights do not wait for it.

        Args:
            request: In the role of a data subject.
            at: Epoch milliseconds.

        Raises:
            AccessDenied: The rules do not permit it, they are not the activated ones, or
                anything at all went wrong; the refusal is an event.
        """
        if request.role is not Role.SUBJECT:
            raise ValueError("only what a data subject asks is judged without an entry")
        try:
            if self._engine.digest != (self._activated() or SHIPPED_DIGEST):
                raise AccessDenied("the rules of this node are not the activated ones")
            if not self._engine.judge(request):
                raise AccessDenied("the policy engine named no rule, which is a refusal")
        except AccessDenied as refusal:
            self._deny(self._event("access.denied", request, at=at), refusal.reason)
            raise
        except Exception as error:
            reason = "access could not be decided, which is a refusal"
            self._deny(self._event("access.denied", request, at=at), reason)
            raise AccessDenied(reason) from error

    def authorize_any(self, requests: Sequence[AccessRequest], *, at: int) -> AccessGrant:
        """Do the same for somebody with several roles: in the first role that may do it.

        One answer is logged. When no role may, it is the refusal of the first.

        Args:
            requests: The same request in each role; at least one.
            at: Epoch milliseconds.
        """
        for request in requests:
            try:
                self._engine.judge(request)
            except AccessDenied:
                continue
            return self.authorize(request, at=at)
        return self.authorize(requests[0], at=at)

    def authorize_fields(self, fields: Mapping[str, JsonValue], *, at: int) -> AccessGrant:
        """Do the same for a request from outside; one that cannot be read is refused."""
        try:
            request = AccessRequest.parse(fields)
        except (ValueError, TypeError) as error:
            reason = "the request cannot be read, which is a refusal"
            self._deny({"type": "access.denied", "v": 1, "at": at, "role": "unknown"}, reason)
            raise AccessDenied(reason) from error
        return self.authorize(request, at=at)

    def _digest_in_force(self, request: AccessRequest) -> str:
        activated = self._activated()
        if activated is None and request.action not in BOOTSTRAP:
            raise AccessDenied(
                "no policy was activated yet; until then policies can be proposed, approved and "
                "activated, and nothing else"
            )
        if self._engine.digest != (SHIPPED_DIGEST if activated is None else activated):
            raise AccessDenied("the rules of this node are not the activated ones")
        return activated or ""

    def _event(self, kind: str, request: AccessRequest, *, at: int) -> dict[str, JsonValue]:
        event: dict[str, JsonValue] = {
            "type": kind,
            "v": 1,
            "at": at,
            "role": str(request.role),
            "action": str(request.action),
            "about": request.about,
            "engine": self._engine_name,
        }
        # Peers read open events: staff stand in them by account, customers not at all, and as
        # coarse in time as the sealed entry that may follow.
        if request.role is Role.SUBJECT:
            return {**event, "at": at - at % _MINUTE_MS} if is_count(at) else event
        return {**event, "actor": request.actor}

    def _deny(self, event: dict[str, JsonValue], reason: str) -> None:
        try:
            self._log.append({**event, "reason": reason})
        except (LogError, ValueError):
            _log.warning("a refusal to role %s could not be written to the log", event["role"])


def _is_opaque(text: object) -> bool:
    return isinstance(text, str) and _OPAQUE.fullmatch(text) is not None


def _is_age(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < LARGEST_INTEGER
