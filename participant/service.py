"""Serve one open node over HTTP: its data subjects, readers of its log, and its peers."""

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from fastapi import FastAPI

from consent import TrustPolicy, log_api
from consent.cosigning import keeping_cosigned
from consent.log_api import LogDesk
from consent.serving import LARGEST_BODY_BYTES, Listening, harden, serve_app
from participant import (
    gate_api,
    handle_api,
    officer_api,
    rights_api,
    staff_api,
    subject_api,
    withdrawal_api,
)
from participant.cosigning import cosigner_of, seek_cosignatures
from participant.decisions import GateDesk
from participant.handle import Handles, Limiter
from participant.handle_api import HandleDesk
from participant.node import Node
from participant.officer import OfficerDesk
from participant.propagating import Courier, Inbox
from participant.subject import SubjectDesk


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSettings:
    """How a node is served.

    Attributes:
        peers: Trust policy whose logs this node cosigns; None takes the configured one, and
            cosigns nobody's without it. Trusted: whoever can edit it decides whose heads get
            this node's word.
        consent_days: Days until a consent that is given here expires.
        requests_per_minute: Most requests with one handle.
        largest_body_bytes: Longest body that is read.
    """

    peers: TrustPolicy | None = None
    consent_days: int = 365
    requests_per_minute: int = 60
    largest_body_bytes: int = LARGEST_BODY_BYTES


def create_app(node: Node, settings: ServiceSettings | None = None) -> FastAPI:
    """Return the application of one open node; closing the node is the caller's.

    While it is served, a thread sends the notices of withdrawal that are due.

    Raises:
        NodeError: The key of the handles cannot be used.
        LogError: The log cannot be used.
        NoteError: The configured trust policy cannot be used.
    """
    settings = settings or ServiceSettings()
    courier = Courier(node)

    gate_desk = GateDesk(node)

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        courier.start()
        yield
        try:
            courier.stop()
        finally:
            gate_desk.close()

    app = FastAPI(
        title="Tillpact node",
        version="1",
        openapi_url="/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.state.handles = Handles.of(node)
    app.state.desk = SubjectDesk(node, app.state.handles, consent_days=settings.consent_days)
    app.state.handle_desk = HandleDesk(node, app.state.handles)
    app.state.limiter = Limiter(per_minute=settings.requests_per_minute)
    app.state.log_desk = LogDesk(node.log, node.tower, peers=settings.peers or _configured(node))
    app.state.inbox = Inbox(node)
    app.state.gate_desk = gate_desk
    app.state.officer_desk = OfficerDesk(
        node,
        seek_cosignatures=seek_cosignatures(node),
        count_overdue=lambda: len(node.overdue_notices()),
    )
    app.state.staff_limiter = Limiter(per_minute=staff_api.REQUESTS_PER_MINUTE)
    for api in (
        subject_api,
        withdrawal_api,
        rights_api,
        handle_api,
        staff_api,
        officer_api,
        gate_api,
    ):
        app.include_router(api.router)
    staff_api.answer_refusals(app)
    gate_api.answer_gate_refusals(app)
    app.include_router(log_api.router)
    harden(app, largest_body_bytes=settings.largest_body_bytes, bodies=gate_api.BODIES)
    return app


def serve(
    node: Node,
    settings: ServiceSettings,
    listening: Listening,
    *,
    on_start: Callable[[str], None] = lambda _url: None,
) -> None:
    """Serve a node until SIGTERM or an interrupt; the node stays open.

    Args:
        node: The open node.
        settings: How it is served.
        listening: Where.
        on_start: Is told the address once connections are accepted.

    Raises:
        SystemExit: SIGTERM came; requests that had begun were answered first.
        OSError: The address cannot be used.
        NodeError: The key of the handles cannot be used.
        LogError: The log cannot be used.
        NoteError: The configured trust policy cannot be used.
    """
    app = create_app(node, settings)
    with contextlib.ExitStack() as stack:
        if node.config.witnessing.policy is not None:
            keeping = keeping_cosigned(cosigner_of(node), publish=node.publish)
            stack.enter_context(keeping)
        serve_app(app, listening, on_start=on_start)


def _configured(node: Node) -> TrustPolicy | None:
    return None if node.config.witnessing.policy is None else node.trust_policy
