"""Serve the coordinator's log and its witness over HTTP, and keep its log cosigned."""

from collections.abc import Callable

from fastapi import FastAPI

from consent import Witnessing, log_api
from consent.cosigning import Cosigner, keeping_cosigned
from consent.log_api import LogDesk
from consent.serving import Listening, harden, serve_app
from coordinator.host import Host


def create_app(host: Host) -> FastAPI:
    """Return the application of one open coordinator; closing it is the caller's.

    Raises:
        NoteError: The trust policy cannot be used.
    """
    app = FastAPI(
        title="Tillpact coordinator",
        version="1",
        openapi_url="/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.log_desk = LogDesk(host.log, host.tower, peers=host.trust_policy)
    app.include_router(log_api.router)
    harden(app)
    return app


def cosigner_of(host: Host, settings: Witnessing | None = None) -> Cosigner:
    """Return what asks the witnesses of the federation to cosign the coordinator's log.

    Raises:
        NoteError: The trust policy cannot be used.
    """
    return Cosigner(
        host.log,
        host.tower,
        policy=host.trust_policy,
        settings=settings or Witnessing(),
        clock=host.clock,
    )


def serve(
    host: Host,
    listening: Listening,
    *,
    settings: Witnessing | None = None,
    on_start: Callable[[str], None] = lambda _url: None,
) -> None:
    """Serve a coordinator until SIGTERM or an interrupt; it stays open.

    Raises:
        SystemExit: SIGTERM came; requests that had begun were answered first.
        OSError: The address cannot be used.
        NoteError: The trust policy cannot be used.
    """
    app = create_app(host)
    with keeping_cosigned(cosigner_of(host, settings), publish=host.publish):
        serve_app(app, listening, on_start=on_start)
