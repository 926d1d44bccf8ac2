"""Own the addresses through which an officer reads, asks for dossiers, and takes evidence away.

What is asked is done in `officer` and `cases`; here is how it is spelt. A person is named in a
body and never in an address, and no answer but the dossier itself holds anything about one.
"""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field, StrictInt

from consent import Purpose
from consent.problems import Problem, RequestRefused, declare
from participant.cases import CaseReason
from participant.handle import Handles
from participant.officer import MOST_EVENTS, EventFilter
from participant.staff_api import (
    STAFF_READ,
    STAFF_READS,
    STAFF_WRITE,
    STAFF_WRITES,
    Desk,
    MaybeStaff,
    Name,
    Staff,
    once,
)
from participant.subject_api import Answer, Body, Key, NoFields

COMPLETE_UNTIL, COSIGNED = "Tillpact-Complete-Until", "Tillpact-Cosigned"
_ZIP = {"application/zip": {"schema": {"type": "string", "format": "binary"}}}
_CASE = declare(*STAFF_WRITES, Problem.UNKNOWN_CASE)
_DOSSIER = declare(
    *STAFF_READS, Problem.UNKNOWN_CASE, Problem.STEP_NOT_POSSIBLE, Problem.NOT_PROVABLE_YET
)
_EXPORT = declare(*STAFF_WRITES, Problem.NOT_PROVABLE_YET)
_PACK = declare(*STAFF_READS, Problem.UNKNOWN_EXPORT) | {200: {"content": _ZIP}}

router = APIRouter()


class CaseBody(Body):
    """Whom a case is about, by the brand's own id or by a handle, and why it is opened."""

    subject: str | None = Field(default=None, min_length=1, max_length=200)
    handle: str | None = Field(default=None, min_length=1, max_length=200)
    reason: CaseReason


class ExportBody(Body):
    """A period, epoch milliseconds, and whether only entries of one purpose are wanted."""

    since: StrictInt = Field(ge=0, lt=2**53)
    until: StrictInt = Field(ge=1, lt=2**53)
    purpose: Purpose | None = None


@router.get("/v1/health", responses=STAFF_READ)
def health(desk: Desk, session: MaybeStaff) -> Answer:
    """Say that the node answers; to staff that may read the log, also how it stands."""
    if session is None:
        return {"alive": True}
    return {"alive": True, **desk.health(session)}


@router.get("/v1/events", responses=STAFF_READ)
def events(  # noqa: PLR0917 - an address has parameters by name
    desk: Desk,
    session: Staff,
    kind: Annotated[str | None, Query(alias="type", max_length=64)] = None,
    since: Annotated[int, Query(ge=0, lt=2**53)] = 0,
    until: Annotated[int | None, Query(ge=0, lt=2**53)] = None,
    start: Annotated[int, Query(ge=0, lt=2**53)] = 0,
    end: Annotated[int | None, Query(ge=0, lt=2**53)] = None,
    limit: Annotated[int, Query(ge=1, le=MOST_EVENTS)] = MOST_EVENTS,
) -> Answer:
    """Return open events, oldest first; `next` is where to go on."""
    chosen = EventFilter(kind=kind, since=since, until=until, start=start, end=end, limit=limit)
    return desk.events(session, chosen)


@router.get("/v1/cases", responses=STAFF_READ)
def cases(desk: Desk, session: Staff) -> Answer:
    """Return every case; nothing in it leads to a person."""
    return desk.list_cases(session)


@router.post("/v1/cases", responses=STAFF_WRITE)
def open_case(request: Request, desk: Desk, session: Staff, key: Key, body: CaseBody) -> Answer:
    """Open a case about one person."""
    if (body.subject is None) == (body.handle is None):
        raise RequestRefused(Problem.INVALID)
    if body.handle is not None:
        handles = request.app.state.handles
        if not isinstance(handles, Handles):
            raise TypeError("the service was started without handles")
        try:
            ref = handles.verify(body.handle).ref
        except RequestRefused as error:
            raise RequestRefused(Problem.INVALID) from error
    else:
        ref = desk.node.register.subject_ref(body.subject or "")
    return once(
        desk,
        session,
        key,
        ("cases", body),
        lambda _node: desk.cases.open(session, ref, reason=body.reason).format(),
    )


@router.post("/v1/cases/{name}/unseal", responses=_CASE)
def request_unseal(
    desk: Desk, session: Staff, key: Key, name: Name, body: NoFields | None = None
) -> Answer:
    """Ask to see the dossier of the person of a case."""
    return once(
        desk,
        session,
        key,
        (f"cases/{name}/unseal", body),
        lambda _node: desk.cases.request(session, name).format(),
    )


@router.post("/v1/cases/{name}/approve", responses=_CASE)
def approve_unseal(
    desk: Desk, session: Staff, key: Key, name: Name, body: NoFields | None = None
) -> Answer:
    """Approve what another officer asked for; it holds for a day."""
    return once(
        desk,
        session,
        key,
        (f"cases/{name}/approve", body),
        lambda _node: desk.cases.approve(session, name).format(),
    )


@router.get("/v1/cases/{name}/dossier", responses=_DOSSIER)
def dossier(desk: Desk, session: Staff, name: Name) -> Response:
    """Return everything the log holds about the person, with proofs, to the officer who asked."""
    made = desk.cases.dossier(session, name)
    headers = {
        COMPLETE_UNTIL: str(made.complete_until),
        COSIGNED: "yes" if made.is_cosigned else "no",
    }
    return Response(made.data, media_type="application/json", headers=headers)


@router.post("/v1/exports", responses=_EXPORT)
def export(desk: Desk, session: Staff, key: Key, body: ExportBody) -> Answer:
    """Make an evidence pack of a period."""
    try:
        return desk.export(session, key, since=body.since, until=body.until, purpose=body.purpose)
    except ValueError as error:
        raise RequestRefused(Problem.INVALID) from error


@router.get("/v1/exports/{name}", responses=_PACK)
def pack(desk: Desk, session: Staff, name: Name) -> Response:
    """Return an evidence pack that was made."""
    return Response(desk.pack(session, name), media_type="application/zip")
