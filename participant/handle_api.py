"""Own the addresses at which a brand's login system gets handles for people it authenticated.

It shows the secret of a file in the node's folder. Whoever has that secret can be any data
subject of the node: it belongs on the login system and nowhere else.
"""

import hmac
from typing import Annotated, TypeAlias

from fastapi import APIRouter, Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import Field

from consent.problems import Problem, RequestRefused, declare
from participant.handle import Handle, Handles, read_issuer_token
from participant.node import Node, NodeError
from participant.subject_api import Answer, Body

_LOGIN = HTTPBearer(auto_error=False, description="The secret of handle-issuer.token.")
_ANSWERS = declare(
    Problem.MALFORMED,
    Problem.NOT_AUTHENTICATED,
    Problem.BODY_TOO_LARGE,
    Problem.NOT_JSON,
    Problem.INVALID,
    Problem.FAULT,
    Problem.LOG_UNAVAILABLE,
)

router = APIRouter()


class SubjectBody(Body):
    """The brand's own id of a person whom it has just authenticated."""

    subject: str = Field(min_length=1, max_length=500)


class HandleDesk:
    """Issues and revokes handles for whoever shows the secret of the issuer."""

    def __init__(self, node: Node, handles: Handles) -> None:
        """Take the open node and what makes its handles."""
        self._node = node
        self._handles = handles

    def verify(self, token: str) -> None:
        """Refuse whoever does not show the secret; the file is read anew each time.

        Raises:
            RequestRefused: The secret is another one, or nobody made one yet.
        """
        try:
            expected = read_issuer_token(self._node.config.folder)
        except (NodeError, OSError):
            expected = None
        shown = token.encode()
        if expected is None or not hmac.compare_digest(shown, expected.encode()):
            raise RequestRefused(Problem.NOT_AUTHENTICATED, headers={"WWW-Authenticate": "Bearer"})

    def issue(self, subject_id: str) -> Handle:
        """Return a handle of a person."""
        return self._handles.issue(self._node.register.subject_ref(subject_id))

    def revoke(self, subject_id: str) -> None:
        """Make every handle of a person invalid."""
        self._handles.revoke(self._node.register.subject_ref(subject_id))


def _desk(
    request: Request,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_LOGIN)],
) -> HandleDesk:
    desk = request.app.state.handle_desk
    if not isinstance(desk, HandleDesk):
        raise TypeError("the service was started without a desk for handles")
    desk.verify("" if credentials is None else credentials.credentials)
    return desk


Issuer: TypeAlias = Annotated[HandleDesk, Depends(_desk)]


@router.post("/v1/handles", responses=_ANSWERS)
def issue(desk: Issuer, body: SubjectBody) -> Answer:
    """Return a handle for a person, and when it ends."""
    handle = desk.issue(body.subject)
    return {"handle": handle.text, "expires_at": handle.expires_at}


@router.post("/v1/handles/revoke", responses=_ANSWERS)
def revoke(desk: Issuer, body: SubjectBody) -> Answer:
    """Make every handle of a person invalid, as after a lost telephone."""
    desk.revoke(body.subject)
    return {"revoked": True}
