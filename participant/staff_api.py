"""Own the addresses through which staff sign in, manage accounts, and put rules in force.

Whoever comes here shows a token; what they may do is asked of `Access` in the roles of their
account, each time. How a refusal is spelt for all staff is decided here too.
"""

import hashlib
from collections.abc import Callable
from typing import Annotated, TypeAlias

from fastapi import APIRouter, Depends, FastAPI, Path, Request
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import Field, StrictInt

from consent import (
    AccessDenied,
    AssessmentError,
    EvidenceError,
    JsonValue,
    Notice,
    PolicyError,
    Purpose,
    Role,
    SealError,
    SubjectRef,
)
from consent.problems import Problem, RequestRefused, answer, declare
from participant import governance
from participant.accounts import (
    AccountError,
    CodeRefused,
    Credentials,
    NotSignedIn,
    Session,
)
from participant.cases import CaseError, NotProvableYet, UnknownCase
from participant.handle import Limiter
from participant.node import Node
from participant.officer import NoExport, OfficerDesk
from participant.subject_api import Answer, Body, Key, NoFields

REQUESTS_PER_MINUTE = 600
STAFF_READS = (
    Problem.NOT_SIGNED_IN,
    Problem.STEP_UP_NEEDED,
    Problem.NOT_PERMITTED,
    Problem.INVALID,
    Problem.TOO_MANY_REQUESTS,
    Problem.FAULT,
    Problem.LOG_UNAVAILABLE,
)
STAFF_WRITES = (
    *STAFF_READS,
    Problem.MALFORMED,
    Problem.SECOND_PERSON_NEEDED,
    Problem.KEY_REUSED,
    Problem.STEP_NOT_POSSIBLE,
    Problem.BODY_TOO_LARGE,
    Problem.NOT_JSON,
    Problem.KEY_NEEDED,
)
STAFF_READ = declare(*STAFF_READS)
STAFF_WRITE = declare(*STAFF_WRITES)
_STEP_UP = declare(*STAFF_WRITES, Problem.CODE_REFUSED, Problem.TOO_MANY_CODES)
_BEARER = HTTPBearer(
    auto_error=False, scheme_name="StaffToken", description="The token of an account: id.secret."
)

router = APIRouter()


class CodeBody(Body):
    """One code of an authenticator."""

    code: str = Field(pattern="^[0-9]{6}$")


class RolesBody(Body):
    """The roles of one account."""

    roles: frozenset[Role] = Field(min_length=1)


class ProposalBody(Body):
    """Which proposed rules."""

    proposal: StrictInt = Field(ge=0, lt=2**53)


class DraftBody(Body):
    """Which document assesses which purpose."""

    purpose: Purpose
    document: str = Field(pattern="^[0-9a-f]{64}$")


class PublishBody(Body):
    """One version of a notice, with its exact text."""

    id: str = Field(min_length=1, max_length=200)
    version: StrictInt = Field(ge=1, lt=2**31)
    language: str = Field(min_length=1, max_length=35)
    text: str = Field(min_length=1, max_length=500_000)
    oldest_accepted: StrictInt | None = Field(default=None, ge=1, lt=2**31)


class AssessmentBody(Body):
    """Which draft, and until when it is to be in force."""

    assessment: str = Field(pattern="^[a-z0-9_-]{1,128}$")
    valid_until: StrictInt = Field(ge=1, lt=2**53)


class SubjectBody(Body):
    """The brand's own id of one person; it is in no address, where proxies would log it."""

    subject: str = Field(min_length=1, max_length=200)


def _desk(request: Request) -> OfficerDesk:
    desk = request.app.state.officer_desk
    if not isinstance(desk, OfficerDesk):
        raise TypeError("the service was started without a desk for staff")
    return desk


def token_of(credentials: HTTPAuthorizationCredentials | None) -> str:
    """Return the token of a request; empty when there is none."""
    return "" if credentials is None else credentials.credentials


def _session(
    request: Request,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)],
) -> Session:
    node = _desk(request).node
    session = node.accounts.sign_in(token_of(credentials), at=node.clock())
    limiter = request.app.state.staff_limiter
    if not isinstance(limiter, Limiter):
        raise TypeError("the service was started without a limit for staff")
    limiter.admit(SubjectRef(session.account))
    return session


def _maybe_session(
    request: Request,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)],
) -> Session | None:
    return None if credentials is None else _session(request, credentials)


Desk: TypeAlias = Annotated[OfficerDesk, Depends(_desk)]
Staff: TypeAlias = Annotated[Session, Depends(_session)]
MaybeStaff: TypeAlias = Annotated[Session | None, Depends(_maybe_session)]
Name: TypeAlias = Annotated[str, Path(pattern="^[a-z0-9-]{1,64}$")]


def answer_refusals(app: FastAPI) -> None:
    """Turn what accounts, rules and cases refuse into problems that say nothing of a person."""

    @app.exception_handler(NotSignedIn)
    def not_signed_in(_request: Request, _error: NotSignedIn) -> JSONResponse:
        return answer(Problem.NOT_SIGNED_IN, headers={"WWW-Authenticate": "Bearer"})

    @app.exception_handler(CodeRefused)
    def code_refused(_request: Request, error: CodeRefused) -> JSONResponse:
        if error.wait_s:
            return answer(Problem.TOO_MANY_CODES, headers={"Retry-After": str(error.wait_s)})
        return answer(Problem.CODE_REFUSED)

    @app.exception_handler(AccessDenied)
    def denied(_request: Request, error: AccessDenied) -> JSONResponse:
        _, _, rules = error.reason.rpartition(" by ")
        if "second-person" in rules:
            return answer(Problem.SECOND_PERSON_NEEDED)
        return answer(Problem.STEP_UP_NEEDED if rules == "step-up" else Problem.NOT_PERMITTED)

    simple: dict[type[Exception], Problem] = {
        UnknownCase: Problem.UNKNOWN_CASE,
        NotProvableYet: Problem.NOT_PROVABLE_YET,
        NoExport: Problem.UNKNOWN_EXPORT,
        AccountError: Problem.STEP_NOT_POSSIBLE,
        CaseError: Problem.STEP_NOT_POSSIBLE,
        PolicyError: Problem.STEP_NOT_POSSIBLE,
        AssessmentError: Problem.STEP_NOT_POSSIBLE,
        EvidenceError: Problem.STEP_NOT_POSSIBLE,
        SealError: Problem.STEP_NOT_POSSIBLE,
    }
    for kind, problem in simple.items():
        app.add_exception_handler(kind, _answering(problem))


def _answering(problem: Problem) -> Callable[[Request, Exception], JSONResponse]:
    return lambda _request, _error: answer(problem)


def once(
    desk: OfficerDesk,
    session: Session,
    key: str,
    asked: tuple[str, Body | None],
    perform: Callable[[Node], dict[str, JsonValue]],
) -> Answer:
    """Do what was asked once and keep the answer; `asked` is the address and the body."""
    address, body = asked
    fields = {} if body is None else body.model_dump(mode="json")
    for name, value in fields.items():
        if isinstance(value, list):
            # Sets have no order of their own: sorted, the same choice is the same request.
            fields[name] = sorted(value)
    try:
        return desk.kept.once(
            session,
            key,
            {"address": address, "body": fields},
            lambda: perform(desk.node),
        )
    except ValueError as error:
        raise RequestRefused(Problem.INVALID) from error


@router.post("/v1/session/step-up", responses=_STEP_UP)
def step_up(desk: Desk, session: Staff, key: Key, body: CodeBody) -> Answer:
    """Show a code of the second factor; it is fresh for five minutes."""

    def perform(node: Node) -> dict[str, JsonValue]:
        at = node.clock()
        node.accounts.step_up(session, body.code, at=at)
        return {"account": session.account, "stepped_up_at": at}

    return once(desk, session, key, ("session/step-up", body), perform)


@router.post("/v1/session/renew", responses=STAFF_WRITE)
def renew(desk: Desk, session: Staff, key: Key, body: NoFields | None = None) -> Answer:  # noqa: ARG001
    """Return a new token; the old one ends when the new one is first used. No answer is kept."""
    node = desk.node
    return _describe(node.accounts.renew(session, at=node.clock()))


@router.get("/v1/accounts", responses=STAFF_READ)
def accounts(desk: Desk, session: Staff) -> Answer:
    """Return every account by its opaque id, with its roles."""
    return desk.accounts(session)


@router.post("/v1/accounts", responses=STAFF_WRITE)
def propose_account(desk: Desk, session: Staff, key: Key, body: RolesBody) -> Answer:
    """Propose a new account; another operator approves it."""

    def perform(node: Node) -> dict[str, JsonValue]:
        return {"account": node.accounts.propose(session, body.roles, at=node.clock())}

    return once(desk, session, key, ("accounts", body), perform)


@router.post("/v1/accounts/{name}/roles", responses=STAFF_WRITE)
def propose_roles(desk: Desk, session: Staff, key: Key, name: Name, body: RolesBody) -> Answer:
    """Propose other roles for an account; another operator approves them."""

    def perform(node: Node) -> dict[str, JsonValue]:
        node.accounts.propose(session, body.roles, account=name, at=node.clock())
        return {"account": name}

    return once(desk, session, key, (f"accounts/{name}/roles", body), perform)


@router.post("/v1/accounts/{name}/approve", responses=STAFF_WRITE)
def approve_account(
    desk: Desk, session: Staff, key: Key, name: Name, body: NoFields | None = None
) -> Answer:
    """Approve what another operator proposed about an account."""

    def perform(node: Node) -> dict[str, JsonValue]:
        return node.accounts.approve(session, name, at=node.clock()).format()

    return once(desk, session, key, (f"accounts/{name}/approve", body), perform)


@router.post("/v1/accounts/{name}/enrol", responses=STAFF_WRITE)
def enrol(
    desk: Desk,
    session: Staff,
    key: Key,  # noqa: ARG001
    name: Name,
    body: NoFields | None = None,  # noqa: ARG001
) -> Answer:
    """Return the token and second factor of an account that was never signed in.

    No answer is kept: asked again, it makes new ones and the ones before are void.
    """
    return _describe(desk.node.accounts.enrol(session, name, at=desk.node.clock()))


@router.post("/v1/accounts/{name}/revoke", responses=STAFF_WRITE)
def revoke(
    desk: Desk, session: Staff, key: Key, name: Name, body: NoFields | None = None
) -> Answer:
    """Take an account out of use at once."""

    def perform(node: Node) -> dict[str, JsonValue]:
        node.accounts.revoke(session, name, at=node.clock())
        return {"account": name, "revoked": True}

    return once(desk, session, key, (f"accounts/{name}/revoke", body), perform)


@router.get("/v1/policies", responses=STAFF_READ)
def policies(desk: Desk, session: Staff) -> Answer:
    """Return the proposed access rules and which are in force."""
    return desk.policies(session)


@router.post("/v1/policies:propose", responses=STAFF_WRITE)
def propose_policy(desk: Desk, session: Staff, key: Key, body: NoFields | None = None) -> Answer:
    """Propose the shipped access rules."""

    def perform(node: Node) -> dict[str, JsonValue]:
        proposal = governance.propose_rules(node, session)
        return {"proposal": proposal.index, "digest": proposal.digest}

    return once(desk, session, key, ("policies:propose", body), perform)


@router.post("/v1/policies:approve", responses=STAFF_WRITE)
def approve_policy(desk: Desk, session: Staff, key: Key, body: ProposalBody) -> Answer:
    """Approve proposed rules as a second person."""

    def perform(node: Node) -> dict[str, JsonValue]:
        proposal = governance.approve_rules(node, session, body.proposal)
        return {"proposal": proposal.index, "digest": proposal.digest}

    return once(desk, session, key, ("policies:approve", body), perform)


@router.post("/v1/policies:activate", responses=STAFF_WRITE)
def activate_policy(desk: Desk, session: Staff, key: Key, body: ProposalBody) -> Answer:
    """Put approved rules in force."""

    def perform(node: Node) -> dict[str, JsonValue]:
        proposal = governance.activate_proposal(node, session, body.proposal)
        return {"proposal": proposal.index, "digest": proposal.digest}

    return once(desk, session, key, ("policies:activate", body), perform)


@router.get("/v1/purposes", responses=STAFF_READ)
def purposes(desk: Desk, session: Staff) -> Answer:
    """Return every purpose with its rules and impact assessments."""
    return desk.purposes(session)


@router.get("/v1/recipients", responses=STAFF_READ)
def recipients(desk: Desk, session: Staff) -> Answer:
    """Return who gets data about people from this node, and for which purposes."""
    return desk.recipients(session)


@router.post("/v1/notices", responses=STAFF_WRITE)
def publish_notice(desk: Desk, session: Staff, key: Key, body: PublishBody) -> Answer:
    """Put a notice in force; the node keeps its text, and the log its hash."""
    text = body.text.encode()
    digest = hashlib.sha256(text).hexdigest()
    notice = Notice(id=body.id, version=body.version, language=body.language, sha256=digest)

    def perform(node: Node) -> dict[str, JsonValue]:
        index = governance.publish_notice(
            node, session, notice, text, oldest_accepted=body.oldest_accepted
        )
        return {"id": notice.id, "version": notice.version, "sha256": digest, "log_index": index}

    return once(desk, session, key, ("notices", body), perform)


@router.post("/v1/assessments:draft", responses=STAFF_WRITE)
def draft_assessment(desk: Desk, session: Staff, key: Key, body: DraftBody) -> Answer:
    """Write down that a document assesses a purpose."""

    def perform(node: Node) -> dict[str, JsonValue]:
        drafted = governance.draft_assessment(node, session, body.purpose, body.document)
        return {"assessment": drafted.assessment_id}

    return once(desk, session, key, ("assessments:draft", body), perform)


@router.post("/v1/assessments:approve", responses=STAFF_WRITE)
def approve_assessment(desk: Desk, session: Staff, key: Key, body: AssessmentBody) -> Answer:
    """Put a drafted assessment in force as a second person."""

    def perform(node: Node) -> dict[str, JsonValue]:
        approved = governance.approve_assessment(
            node, session, body.assessment, valid_until=body.valid_until
        )
        return {"assessment": approved.assessment_id, "valid_until": approved.valid_until}

    return once(desk, session, key, ("assessments:approve", body), perform)


@router.post("/v1/erasures", responses=STAFF_WRITE)
def erase(desk: Desk, session: Staff, key: Key, body: SubjectBody) -> Answer:
    """Destroy what is held about a person, also in the files of cases."""
    return desk.erase(session, key, body.subject)


def _describe(made: Credentials) -> Answer:
    return {
        "account": made.account,
        "token": made.token,
        "uri": made.uri,
        "expires_at": made.expires_at,
    }
