"""Serve an application over HTTP so that it gives nothing away by the way it answers.

Every answer forbids guessing of its type and, unless its route says otherwise, caching; none
allows another site to read it. A body is read up to a limit and no further. Nothing about a
request is logged.
"""

import ipaddress
import signal
import socket
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, MappingProxyType
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from consent.event import LogError
from consent.problems import Problem, RequestRefused, answer

LARGEST_BODY_BYTES = 16_384
_REQUEST = "http.request"
_JSON = "application/json"
_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}


class ServiceError(ValueError):
    """The service cannot be started as asked; nothing was started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listening:
    """Where the service listens.

    Attributes:
        host: Address; anything but loopback needs TLS or `is_insecure`.
        port: Port; 0 takes a free one.
        certificate: PEM file with the certificate chain; None for no TLS.
        key: PEM file with its private key.
        is_insecure: Whether handles may travel unencrypted over a network, as behind a proxy
            that ends TLS.
    """

    host: str = "127.0.0.1"
    port: int = 8480
    certificate: Path | None = None
    key: Path | None = None
    is_insecure: bool = False

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ServiceError("TLS needs a certificate and its key; nothing was started")
        if not 0 <= self.port < 65_536:
            raise ServiceError(f"the port must be in [0, 65535], got {self.port}")
        if not (_is_loopback(self.host) or self.certificate or self.is_insecure):
            raise ServiceError(
                f"{self.host} is not a loopback address, and handles would travel unencrypted: "
                "give a certificate or say that this is meant; nothing was started"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyRule:
    """What may be sent to one address that takes other bodies than the rest.

    Attributes:
        largest_bytes: Longest body.
        media_type: Its only Content-Type.
    """

    largest_bytes: int
    media_type: str = _JSON


class Envelope:
    """Around every answer: a limit for the body, and the headers that every answer has."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        largest_body_bytes: int,
        bodies: Mapping[str, BodyRule] = MappingProxyType({}),
    ) -> None:
        """Wrap an application; `bodies` names the addresses with a rule of their own."""
        self._app = app
        self._rule = BodyRule(largest_bytes=largest_body_bytes)
        self._bodies = dict(bodies)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    # A route says itself what differs: which styles a page may use, or that a full
                    # tile of a log never changes and may be kept.
                    headers.setdefault(name, value)
            await send(message)

        rule = self._bodies.get(str(scope["path"]), self._rule)
        body = await _read(scope, receive, largest_bytes=rule.largest_bytes)
        if body is None:
            await answer(Problem.BODY_TOO_LARGE)(scope, receive, send_with_headers)
        elif body and not _is_of(scope, rule.media_type):
            wrong = Problem.NOT_JSON if rule.media_type == _JSON else Problem.NOT_ARROW
            await answer(wrong)(scope, receive, send_with_headers)
        else:
            await self._app(scope, _once(body, receive), send_with_headers)


def harden(
    app: FastAPI,
    *,
    largest_body_bytes: int = LARGEST_BODY_BYTES,
    bodies: Mapping[str, BodyRule] = MappingProxyType({}),
) -> None:
    """Put the envelope around an application, and a problem in the place of every fault.

    Args:
        app: The application.
        largest_body_bytes: Longest body that is read.
        bodies: Addresses that take other bodies than the rest.
    """
    app.add_middleware(Envelope, largest_body_bytes=largest_body_bytes, bodies=bodies)
    _answer_faults(app)


def serve_app(
    app: FastAPI, listening: Listening, *, on_start: Callable[[str], None] = lambda _url: None
) -> None:
    """Serve an application until SIGTERM or an interrupt.

    Args:
        app: The application.
        listening: Where.
        on_start: Is told the address once connections are accepted.

    Raises:
        SystemExit: SIGTERM came; requests that had begun were answered first.
        OSError: The address cannot be used.
    """
    # Before and after uvicorn's own handler: it raises the signal again when it has finished.
    signal.signal(signal.SIGTERM, _leave)
    family = socket.AF_INET6 if ":" in listening.host else socket.AF_INET
    with socket.create_server((listening.host, listening.port), family=family) as listener:
        config = uvicorn.Config(
            app,
            access_log=False,
            log_level="warning",
            server_header=False,
            proxy_headers=False,
            ws="none",
            timeout_graceful_shutdown=10,
            limit_concurrency=200,
            ssl_certfile=listening.certificate,
            ssl_keyfile=listening.key,
        )
        scheme = "http" if listening.certificate is None else "https"
        host = f"[{listening.host}]" if ":" in listening.host else listening.host
        on_start(f"{scheme}://{host}:{listener.getsockname()[1]}")
        uvicorn.Server(config).run(sockets=[listener])


def _answer_faults(app: FastAPI) -> None:
    """Turn everything that can go wrong into a problem that says nothing of the request."""

    @app.exception_handler(RequestRefused)
    def refused(_request: Request, error: RequestRefused) -> JSONResponse:
        return answer(error.problem, headers=error.headers)

    @app.exception_handler(RequestValidationError)
    def invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        places = {tuple(str(step).lower() for step in each["loc"]) for each in error.errors()}
        needs_key = ("header", "idempotency-key") in places
        return answer(Problem.KEY_NEEDED if needs_key else Problem.INVALID)

    @app.exception_handler(LogError)
    def unavailable(_request: Request, _error: LogError) -> JSONResponse:
        return answer(Problem.LOG_UNAVAILABLE, headers={"Retry-After": "5"})

    @app.exception_handler(HTTPException)
    def other(_request: Request, error: HTTPException) -> JSONResponse:
        known = {404: Problem.NOT_FOUND, 405: Problem.METHOD_NOT_ALLOWED, 400: Problem.MALFORMED}
        return answer(known.get(error.status_code, Problem.FAULT), headers=error.headers)

    @app.exception_handler(Exception)
    def fault(_request: Request, _error: Exception) -> JSONResponse:
        return answer(Problem.FAULT)


async def _read(scope: Scope, receive: Receive, *, largest_bytes: int) -> bytes | None:
    """Return the body, or None when it is too large."""
    length = Headers(scope=scope).get("content-length", "0")
    if not length.isdecimal() or int(length[:20]) > largest_bytes:
        return None
    body, more = bytearray(), True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message["type"] == _REQUEST and message.get("more_body", False)
        if len(body) > largest_bytes:
            return None
    return bytes(body)


def _once(body: bytes, receive: Receive) -> Receive:
    told = False

    async def receive_body() -> MutableMapping[str, Any]:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": _REQUEST, "body": body, "more_body": False}

    return receive_body


def _is_of(scope: Scope, media_type: str) -> bool:
    """Tell whether a body may be sent here: a witness takes text, nearly all others JSON."""
    kind = Headers(scope=scope).get("content-type", "").partition(";")[0].strip().lower()
    return kind == media_type or not str(scope["path"]).startswith("/v1/")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _leave(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)
