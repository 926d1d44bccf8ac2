"""Own the addresses at which a person gets receipts, uses their rights, and takes data along."""

from typing import Annotated

from fastapi import APIRouter, Header, Path, Query, Response
from pydantic import Field

from consent import Language, Purpose
from consent.problems import Problem, declare
from participant.rights import RequestKind
from participant.subject_api import (
    READ,
    WRITE,
    Answer,
    Body,
    Desk,
    Key,
    PresentSubject,
    Subject,
    act_of,
    speak,
)

JWT, HTML = "application/jwt", "text/html"
_PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
_RECEIPT = {**READ, **declare(Problem.UNKNOWN_RECORD, Problem.NOT_DECLARED)}
_RecordId = Annotated[str, Path(pattern="^[0-9a-f]{32}$")]

router = APIRouter()


class RequestBody(Body):
    """What a person asks for."""

    right: RequestKind
    purposes: frozenset[Purpose] = frozenset()
    details: str = Field(default="", max_length=2000)


@router.get("/v1/me/receipts", responses=READ)
def receipts(desk: Desk, subject: Subject) -> Answer:
    """Return which receipts the person can get, and whether the log proves them yet."""
    return desk.receipts(subject)


@router.get(
    "/v1/me/receipts/{record}",
    responses={**_RECEIPT, 200: {"content": {JWT: {}, HTML: {}}}},
    response_class=Response,
)
def receipt(
    desk: Desk,
    subject: Subject,
    record: _RecordId,
    accept: Annotated[str, Header(max_length=1000)] = JWT,
    accept_language: Annotated[str, Header(max_length=1000)] = "en",
) -> Response:
    """Return a receipt: the signed text, or a page to read for whoever asks for HTML."""
    if HTML in accept.lower():
        return _page(desk.receipt_page(subject, record, speak(accept_language)))
    return Response(desk.receipt(subject, record), media_type=JWT, headers={"Vary": "Accept"})


@router.get(
    "/v1/me/receipts/{record}/page",
    responses={**_RECEIPT, 200: {"content": {HTML: {}}}},
    response_class=Response,
)
def receipt_page(
    desk: Desk,
    subject: Subject,
    record: _RecordId,
    lang: Annotated[Language, Query()] = Language.EN,
) -> Response:
    """Return a receipt as a page in both languages; it holds neither secret nor proof."""
    return _page(desk.receipt_page(subject, record, lang))


@router.post("/v1/me/requests", responses=WRITE)
def ask(desk: Desk, subject: PresentSubject, key: Key, body: RequestBody) -> Answer:
    """Open a request about a right; an objection or a restriction is done at once."""
    return desk.ask(
        act_of(subject, key, "requests", body),
        body.right,
        purposes=body.purposes,
        details=body.details,
    )


@router.get("/v1/me/requests", responses=READ)
def requests(desk: Desk, subject: Subject) -> Answer:
    """Return the person's requests, until when each is due, and how it was answered."""
    return desk.requests(subject)


@router.get("/v1/me/export", responses={**READ, **declare(Problem.NOT_DECLARED)})
def export(desk: Desk, subject: PresentSubject) -> Answer:
    """Return everything the node's register knows of the person, records as ISO/IEC TS 27560."""
    return desk.export(subject)


def _page(html: str) -> Response:
    headers = {"Content-Security-Policy": _PAGE_POLICY, "Vary": "Accept, Accept-Language"}
    return Response(html, media_type=HTML, headers=headers)
