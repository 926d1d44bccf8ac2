"""Own the addresses through which services ask the gate.

What is asked is decided in `decisions`; here is how it is spelt. Nothing but masks and yes or no
goes out. A person is named in a body and never in an address.
"""

from collections.abc import Sequence
from typing import Annotated, TypeAlias

import pyarrow as pa
from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import Field, StrictInt

from consent import JsonValue, NotAssessed, Purpose, Refused, SubjectRef, Use, UseKind
from consent.problems import Problem, RequestRefused, answer, declare
from consent.serving import BodyRule
from participant.accounts import Session
from participant.decisions import MOST_SUBJECTS, GateDesk, UnknownPermit, Why
from participant.handle import Handles
from participant.staff_api import STAFF_WRITES, Desk, Staff, token_of
from participant.subject_api import Answer, Body, Key

ARROW = "application/vnd.apache.arrow.stream"
PERMIT = "Tillpact-Permit"
BODIES = {
    "/v1/notices": BodyRule(largest_bytes=1 << 20),
    "/v1/permits": BodyRule(largest_bytes=1 << 23),
    "/v1/decisions:batch": BodyRule(largest_bytes=1 << 25, media_type=ARROW),
}
_COLUMN = "subject"
_ANSWERS = (
    Problem.NOT_SIGNED_IN,
    Problem.NOT_PERMITTED,
    Problem.BODY_TOO_LARGE,
    Problem.INVALID,
    Problem.FAULT,
    Problem.LOG_UNAVAILABLE,
)
_PERMIT = declare(*STAFF_WRITES, Problem.NOT_OPENED, Problem.NOT_ASSESSED)
_CLOSE = declare(*STAFF_WRITES, Problem.UNKNOWN_PERMIT)
_SINGLE = declare(*_ANSWERS, Problem.MALFORMED, Problem.NOT_JSON)
_STREAM = {ARROW: {"schema": {"type": "string", "format": "binary"}}}
_BATCH = declare(
    *_ANSWERS,
    Problem.NOT_OPENED,
    Problem.NOT_ASSESSED,
    Problem.NOT_ARROW,
    Problem.TOO_MANY_REQUESTS,
) | {200: {"content": _STREAM}}
_BEARER = HTTPBearer(
    auto_error=False, scheme_name="StaffToken", description="The token of an account: id.secret."
)
Credentials: TypeAlias = Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]

router = APIRouter()


class UseBody(Body):
    """What the mask is for."""

    kind: UseKind
    run: str = Field(default="", pattern="^[A-Za-z0-9._:-]{0,128}$")
    round: StrictInt = Field(default=0, ge=0, lt=2**31)
    attempt: StrictInt = Field(default=0, ge=0, lt=2**31)
    recipients: tuple[Annotated[str, Field(pattern="^[a-z0-9.-]{1,64}$")], ...] = Field(
        default=(), max_length=64
    )


class PermitBody(Body):
    """Whose rows are needed, why and what for."""

    purpose: Purpose
    use: UseBody
    subjects: tuple[Annotated[str, Field(min_length=1, max_length=200)], ...] = Field(
        min_length=1, max_length=MOST_SUBJECTS
    )


class DecisionBody(Body):
    """One person, by the brand's own id or by a handle, and a purpose."""

    purpose: Purpose
    subject: str | None = Field(default=None, min_length=1, max_length=200)
    handle: str | None = Field(default=None, min_length=1, max_length=200)


def answer_gate_refusals(app: FastAPI) -> None:
    """Turn what the gate refuses into problems."""

    @app.exception_handler(Refused)
    def refused(_request: Request, error: Refused) -> JSONResponse:
        is_known = isinstance(error, NotAssessed)
        return answer(Problem.NOT_ASSESSED if is_known else Problem.NOT_OPENED)

    @app.exception_handler(UnknownPermit)
    def unknown(_request: Request, _error: UnknownPermit) -> JSONResponse:
        return answer(Problem.UNKNOWN_PERMIT)


async def _gate(request: Request) -> GateDesk:
    desk = request.app.state.gate_desk
    if not isinstance(desk, GateDesk):
        raise TypeError("the service was started without a desk at the gate")
    return desk


Gate: TypeAlias = Annotated[GateDesk, Depends(_gate)]


@router.post("/v1/permits", responses=_PERMIT)
def open_permit(desk: Desk, gate: Gate, session: Staff, key: Key, body: PermitBody) -> Answer:
    """Return a permit, which is in the log by then, and a mask over the people asked for."""
    use = Use(
        kind=body.use.kind,
        run=body.use.run,
        round=body.use.round,
        attempt=body.use.attempt,
        recipients=body.use.recipients,
    )
    asked: dict[str, JsonValue] = {"address": "permits", "body": body.model_dump(mode="json")}
    kept = desk.kept.find(session, key, asked)
    if kept is not None:
        return kept
    permit, mask = gate.permit(session, body.purpose, body.subjects, use=use)
    made: dict[str, JsonValue] = {
        "permit": permit.permit_id,
        "log_index": permit.index,
        "state_seq": permit.state_seq,
        "valid_until": permit.valid_until,
        "mask": [bool(each) for each in mask],
    }
    return desk.kept.once(session, key, asked, lambda: made)


@router.post("/v1/permits/{permit}/close", responses=_CLOSE)
def close_permit(
    desk: Desk,
    gate: Gate,
    session: Staff,
    key: Key,
    permit: str,
) -> Answer:
    """Say that the use of a permit is over."""
    asked: dict[str, JsonValue] = {"address": f"permits/{permit}/close"}
    return desk.kept.once(session, key, asked, lambda: gate.close_permit(session, permit))


@router.post("/v1/decisions", responses=_SINGLE)
async def decide(
    request: Request, gate: Gate, credentials: Credentials, body: DecisionBody
) -> Answer:
    """Tell whether one person may be used for a purpose now; whatever goes wrong is a no."""
    if (body.subject is None) == (body.handle is None):
        raise RequestRefused(Problem.INVALID)
    # One change of threads for the whole question: it may wait for a commit of the log.
    why = await run_in_threadpool(_decide, request, gate, token_of(credentials), body)
    return {"permitted": why is Why.PERMITTED, "reason": str(why)}


@router.post(
    "/v1/decisions:batch",
    response_class=Response,
    responses=_BATCH,
    openapi_extra={"requestBody": {"required": True, "content": _STREAM}},
)
async def decide_batch(
    request: Request,
    gate: Gate,
    session: Staff,
    purpose: Annotated[Purpose, Query()],
) -> Response:
    """Take people as a column of an Arrow stream, and return a column of yes or no in order.

    It is one permit for scoring, in the log before the answer.
    """
    body = await request.body()
    data, permit = await run_in_threadpool(_decide_batch, gate, session, purpose, body)
    return Response(data, media_type=ARROW, headers={PERMIT: permit})


def _decide(request: Request, gate: GateDesk, token: str, body: DecisionBody) -> Why:
    session = gate.sign_in(token)
    ref: SubjectRef | None = None
    if body.handle is not None:
        handles = request.app.state.handles
        if not isinstance(handles, Handles):
            raise TypeError("the service was started without handles")
        try:
            ref = handles.verify(body.handle).ref
        except RequestRefused:
            return Why.NO_CONSENT
    return gate.decide(session, body.purpose, subject=body.subject, ref=ref)


def _decide_batch(
    gate: GateDesk, session: Session, purpose: Purpose, body: bytes
) -> tuple[bytes, str]:
    permit, mask = gate.permit(session, purpose, _parse_subjects(body), use=Use(kind=UseKind.SCORE))
    table = pa.table({"permitted": pa.array(mask)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes(), permit.permit_id


def _parse_subjects(body: bytes) -> Sequence[str]:
    """Return the one column of text; nothing else of what Arrow can carry is accepted."""
    try:
        with pa.ipc.open_stream(body) as reader:
            fields = reader.schema
            if fields.names != [_COLUMN] or not _is_text(fields.field(_COLUMN).type):
                raise RequestRefused(Problem.NOT_ARROW)
            subjects: list[str] = []
            for batch in reader:
                batch.validate(full=True)
                if batch.num_rows + len(subjects) > MOST_SUBJECTS or batch.column(0).null_count:
                    raise RequestRefused(Problem.INVALID)
                subjects += batch.column(0).to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise RequestRefused(Problem.NOT_ARROW) from error
    if not subjects or not all(subjects):
        raise RequestRefused(Problem.INVALID)
    return subjects


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
