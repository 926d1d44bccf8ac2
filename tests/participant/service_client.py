"""A node that is served, and a person who speaks to it."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fastapi import FastAPI
from fastapi.testclient import TestClient
from httpx import Response

from consent import Notice
from participant.config import format_config
from participant.handle import issue_handle
from participant.node import Node
from participant.service import ServiceSettings, create_app
from tests.federation.synthetic import Clock, config_of

NOTICE = Notice(id="privacy", version=2, language="en", sha256="ab" * 32)
NOTICE_FIELDS = {"id": "privacy", "version": 2, "language": "en", "sha256": "ab" * 32}
LENIENT = ServiceSettings(requests_per_minute=10_000)


def new_node(
    name: str, folder: Path, *, clock: Clock | None = None, store: str | None = None
) -> Node:
    """A node that has published a notice; it has no customers' data."""
    node = Node.create(config_of(name, folder, store=store), clock=clock or Clock())
    node.register.publish_notice(NOTICE, oldest_accepted=2, at=node.clock())
    return node


@dataclass
class Person:
    """One data subject with their handle; each write gets a key of its own."""

    client: TestClient
    handle: str
    keys: Iterator[int] = field(default_factory=lambda: iter(range(10**6)))

    @property
    def headers(self) -> dict[str, str]:  # noqa: D102 - see the class
        return {"Authorization": f"Bearer {self.handle}"}

    def get(self, path: str) -> Response:  # noqa: D102
        return self.client.get(path, headers=self.headers)

    def post(self, path: str, body: object = None, *, key: str | None = None) -> Response:  # noqa: D102
        key = key or f"key-{next(self.keys):06}"
        headers = {**self.headers, "Idempotency-Key": key}
        if body is None:
            return self.client.post(path, headers=headers)
        return self.client.post(path, headers=headers, json=body)

    def give(self, *given: str, key: str | None = None, **changes: object) -> Response:  # noqa: D102
        body = {"given": list(given), "notice": NOTICE_FIELDS, "channel": "app", **changes}
        return self.post("/v1/consents", body, key=key)

    def state(self) -> dict[str, dict[str, object]]:  # noqa: D102
        purposes = self.get("/v1/me/state").json()["purposes"]
        return {each["purpose"]: each for each in purposes}


def client_of(app: FastAPI) -> TestClient:
    return TestClient(app, base_url="http://node.example", raise_server_exceptions=False)


def person(node: Node, subject_id: str, settings: ServiceSettings = LENIENT) -> Person:
    return Person(client_of(create_app(node, settings)), issue_handle(node, subject_id))


@contextmanager
def served(node: Node, *options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A closed node in a process of its own, with its address."""
    config = node.config.folder.parent / f"{node.name}.toml"
    config.write_text(format_config(node.config), encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, "-m", "tillpact", "node", "serve", config, "--port", "0", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith("Serving "):
            raise AssertionError(process.communicate())
        yield line.split()[-1], process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
