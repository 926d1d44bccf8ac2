"""Serve one open node over HTTP: its data subjects, readers of its log, and its peers."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fastapi import FastAPI

from consent import TrustPolicy, Witness, log_api
from consent.log_api import LogDesk
from consent.serving import LARGEST_BODY_BYTES, Listening, harden, serve_app
from participant import gate_api, officer_api, staff_api, subject_api
from participant.decisions import GateDesk
from participant.handle import Handles, Limiter
from participant.node import Node
from participant.officer import OfficerDesk
from participant.subject import SubjectDesk


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSettings:
    """How a node is served.

    Attributes:
        peers: Trust policy whose logs this node cosigns; None cosigns nobody's. Trusted: whoever
            can edit it decides whose heads get this node's word.
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

    Raises:
        NodeError: The key of the handles cannot be used.
        LogError: The log or the memory of the witness cannot be used.
    """
    settings = settings or ServiceSettings()
    witness = Witness(node.config.folder / "witness.sqlite", node.identity)

    gate_desk = GateDesk(node)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        try:
            gate_desk.close()
        finally:
            witness.close()

    app = FastAPI(
        title="Tillpact node",
        version="1",
        openapi_url="/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.state.desk = SubjectDesk(node, consent_days=settings.consent_days)
    app.state.handles = Handles.of(node)
    app.state.limiter = Limiter(per_minute=settings.requests_per_minute)
    app.state.log_desk = LogDesk(node.log, witness, peers=settings.peers, clock=node.clock)
    app.state.gate_desk = gate_desk
    app.state.officer_desk = OfficerDesk(node)
    app.state.staff_limiter = Limiter(per_minute=staff_api.REQUESTS_PER_MINUTE)
    app.include_router(subject_api.router)
    app.include_router(staff_api.router)
    app.include_router(officer_api.router)
    app.include_router(gate_api.router)
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
        LogError: The log or the memory of the witness cannot be used.
    """
    serve_app(create_app(node, settings), listening, on_start=on_start)
