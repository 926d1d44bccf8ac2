"""Own the address at which another brand tells this node that somebody withdrew.

The signature of the notice is what a handle is elsewhere. What is done with it is in
`propagating`.
"""

from collections.abc import Mapping
from typing import Annotated, TypeAlias

from fastapi import APIRouter, Depends, Header, Request
from pydantic import Field

from consent import NoticeError
from consent.problems import Problem, RequestRefused, declare
from participant.propagating import NOTIFY_PATH, Inbox, format_signed, parse_signed
from participant.subject_api import Body

router = APIRouter()


class SignedBody(Body):
    """A signed message."""

    message: str = Field(min_length=1, max_length=8192)
    signature: str = Field(min_length=1, max_length=100)


def _inbox(request: Request) -> Inbox:
    inbox = request.app.state.inbox
    if not isinstance(inbox, Inbox):
        raise TypeError("the service was started without an inbox")
    return inbox


Receiver: TypeAlias = Annotated[Inbox, Depends(_inbox)]
NoticeId: TypeAlias = Annotated[
    str, Header(alias="Idempotency-Key", min_length=8, max_length=128, pattern="^[!-~]+$")
]


@router.post(
    NOTIFY_PATH,
    responses=declare(
        Problem.MALFORMED,
        Problem.UNKNOWN_SENDER,
        Problem.NOT_SIGNED_BY_SENDER,
        Problem.KEY_REUSED,
        Problem.BODY_TOO_LARGE,
        Problem.NOT_JSON,
        Problem.INVALID,
        Problem.KEY_NEEDED,
        Problem.FAULT,
        Problem.LOG_UNAVAILABLE,
    ),
)
def notify(inbox: Receiver, key: NoticeId, body: SignedBody) -> Mapping[str, str]:
    """Follow another brand's notice of withdrawal, and acknowledge it with a signature."""
    try:
        signed = parse_signed(body.model_dump())
    except NoticeError as error:
        raise RequestRefused(Problem.MALFORMED) from error
    return format_signed(inbox.receive(signed, key=key))
