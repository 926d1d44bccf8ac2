import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from consent.problems import Problem
from consent.serving import Listening, ServiceError
from participant.handle import issue_handle
from participant.node import Node
from participant.service import create_app
from tests.federation.synthetic import Clock

from .service_client import NOTICE_FIELDS, client_of, new_node, served
from .test_subject_api import problem

SLUGS = {401, 409, 413, 415, 422, 429, 500, 503}
SIGNED = {"/v1/withdrawals:notify"}  # The body proves who asks.
# A service asks them again and again; they change nothing that a second time would repeat.
QUESTIONS = {"/v1/decisions", "/v1/decisions:batch"}
ROUTES = {
    ("get", "/v1/ladder"),
    ("get", "/v1/notices/{notice_id}"),
    ("post", "/v1/consents"),
    ("post", "/v1/consents/{purpose}/withdraw"),
    ("post", "/v1/withdrawals"),
    ("post", "/v1/withdraw-all"),
    ("post", "/v1/objections"),
    ("post", "/v1/restrictions"),
    ("post", "/v1/withdrawals:notify"),
    ("get", "/v1/me/state"),
    ("get", "/v1/me/history"),
    ("get", "/v1/me/export"),
    ("get", "/v1/me/receipts"),
    ("get", "/v1/me/receipts/{record}"),
    ("get", "/v1/me/receipts/{record}/page"),
    ("get", "/v1/me/requests"),
    ("post", "/v1/me/requests"),
    ("post", "/v1/handles"),
    ("post", "/v1/handles/revoke"),
    ("post", "/v1/session/step-up"),
    ("post", "/v1/session/renew"),
    ("get", "/v1/accounts"),
    ("post", "/v1/accounts"),
    ("post", "/v1/accounts/{name}/roles"),
    ("post", "/v1/accounts/{name}/approve"),
    ("post", "/v1/accounts/{name}/enrol"),
    ("post", "/v1/accounts/{name}/revoke"),
    ("get", "/v1/policies"),
    ("post", "/v1/policies:propose"),
    ("post", "/v1/policies:approve"),
    ("post", "/v1/policies:activate"),
    ("get", "/v1/purposes"),
    ("get", "/v1/recipients"),
    ("post", "/v1/notices"),
    ("post", "/v1/assessments:draft"),
    ("post", "/v1/assessments:approve"),
    ("post", "/v1/erasures"),
    ("get", "/v1/health"),
    ("get", "/v1/events"),
    ("get", "/v1/cases"),
    ("post", "/v1/cases"),
    ("post", "/v1/cases/{name}/unseal"),
    ("post", "/v1/cases/{name}/approve"),
    ("get", "/v1/cases/{name}/dossier"),
    ("post", "/v1/exports"),
    ("get", "/v1/exports/{name}"),
    ("post", "/v1/permits"),
    ("post", "/v1/permits/{permit}/close"),
    ("post", "/v1/decisions"),
    ("post", "/v1/decisions:batch"),
    ("get", "/log/checkpoint"),
    ("get", "/log/entries"),
    ("get", "/log/proof"),
    ("get", "/log/tile/{path}"),
    ("post", "/witness/add-checkpoint"),
    ("get", "/witness/{name}/checkpoint"),
}


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with new_node("amber", tmp_path, clock=Clock()) as made:
        yield made


def test_every_route_declares_its_problems_and_every_write_its_key(node: Node) -> None:
    document = client_of(create_app(node)).get("/v1/openapi.json").json()
    found = {(verb, path) for path, verbs in document["paths"].items() for verb in verbs}

    assert found == ROUTES
    for verb, path in found:
        route = document["paths"][path][verb]
        problems = {
            int(status)
            for status, response in route["responses"].items()
            if "application/problem+json" in response.get("content", {})
        }
        assert {500} <= problems, path
        assert "HTTPValidationError" not in str(route), path
        if path in SIGNED:
            assert {400, 403, *SLUGS} - {401, 429} <= problems, path
            assert "security" not in route, path
            continue
        # A handle is made anew each time and revoking twice is revoking: these need no key.
        is_handle = "handles" in path
        is_write = verb == "post" and path.startswith("/v1") and path not in QUESTIONS
        if is_handle:
            assert {401, 422, 503} <= problems, path
        elif path.startswith("/v1/me") or is_write:
            assert route["security"] in ([{"HTTPBearer": []}], [{"StaffToken": []}]), path
            assert {401, 422, 429, 503} <= problems, path
        if path in QUESTIONS:
            assert {401, 403, 413, 415, 422, 503} <= problems, path
        if is_write and not is_handle:
            assert problems >= SLUGS, path
            (key,) = [each for each in route["parameters"] if each["name"] == "Idempotency-Key"]
            assert (key["in"], key["required"]) == ("header", True), path


def test_every_route_is_in_the_reference() -> None:
    page = Path(__file__).parents[2] / "docs" / "reference" / "http.md"
    text = page.read_text(encoding="utf-8")

    for verb, path in ROUTES:
        assert f"`{verb.upper()} {path}" in text, path
    for each in Problem:
        assert f"| {each.status} | `{each.slug}` |" in text, each


@pytest.mark.parametrize(
    "path", ["/v1/ladder", "/v1/me/state", "/nothing", "/log/checkpoint", "/v1/openapi.json"]
)
def test_every_answer_forbids_caching_and_guessing(node: Node, path: str) -> None:
    response = client_of(create_app(node)).get(path, headers={"Origin": "https://evil.example"})

    assert response.headers["cache-control"] == "no-store"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in response.headers


def test_what_nobody_knows_is_a_problem_too(node: Node) -> None:
    client = client_of(create_app(node))

    assert problem(client.get("/nothing")) == (404, "not-found")
    assert problem(client.get("/docs")) == (404, "not-found")
    assert problem(client.delete("/v1/ladder")) == (405, "method-not-allowed")


def test_a_body_is_read_up_to_its_limit(node: Node) -> None:
    client = client_of(create_app(node))
    parts = (b"x" * 1000 for _ in range(100))
    headers = {"Content-Type": "application/json"}

    assert problem(client.post("/v1/consents", content=b"x" * 20_000)) == (413, "body-too-large")
    assert problem(client.post("/v1/consents", content=parts)) == (413, "body-too-large")
    assert problem(client.post("/v1/consents", content=b"x", headers=headers))[0] == 422
    assert problem(client.post("/v1/consents", content=b"x")) == (415, "not-json")
    assert problem(client.post("/v1/consents", data={"given": "x"})) == (415, "not-json")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "node.example"])  # noqa: S104
def test_a_network_is_served_with_tls_or_on_purpose(host: str) -> None:
    with pytest.raises(ServiceError, match="is not a loopback address"):
        Listening(host=host)

    Listening(host=host, is_insecure=True)
    Listening(host=host, certificate=Path("c"), key=Path("k"))


def test_half_a_certificate_and_a_port_that_is_none_are_refused() -> None:
    with pytest.raises(ServiceError, match="TLS needs a certificate and its key"):
        Listening(certificate=Path("c"))
    with pytest.raises(ServiceError, match="the port must be in"):
        Listening(port=70_000)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_loopback_needs_nothing(host: str) -> None:
    assert Listening(host=host).port == 8480


def test_a_served_node_stops_cleanly_and_leaves_its_log_free(node: Node) -> None:
    handle = issue_handle(node, "anna")
    node.close()
    with served(node) as (url, process):
        headers = {"Authorization": f"Bearer {handle}", "Idempotency-Key": "once-upon"}
        body = {"given": ["contact"], "notice": NOTICE_FIELDS, "channel": "app"}
        given = httpx.post(f"{url}/v1/consents", headers=headers, json=body, trust_env=False)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)

    assert given.status_code == 200
    assert (process.returncode, err) == (0, "")
    assert handle not in out
    Node.open(node.config).close()


def test_an_act_survives_a_kill_and_is_not_done_twice(node: Node) -> None:
    handle = issue_handle(node, "anna")
    node.close()
    headers = {"Authorization": f"Bearer {handle}", "Idempotency-Key": "once-upon"}
    body = {"given": ["contact"], "notice": NOTICE_FIELDS, "channel": "app"}
    answers = []
    for _ in range(2):
        with served(node) as (url, process):
            answer = httpx.post(f"{url}/v1/consents", headers=headers, json=body, trust_env=False)
            process.kill()
            process.wait()
        answers.append(answer.json())

    assert answers[0] == answers[1]
    with Node.open(node.config) as again:
        assert again.log.tree_size == answers[0]["log_index"] + 1


def test_a_second_service_of_one_node_is_refused(node: Node) -> None:
    node.close()
    with (
        served(node),
        pytest.raises(AssertionError, match="is open for writing elsewhere"),
        served(node),
    ):
        time.sleep(0)


def test_the_command_refuses_a_network_without_tls(node: Node) -> None:
    node.close()
    with (
        pytest.raises(AssertionError, match=r"0\.0\.0\.0 is not a loopback address"),
        served(node, "--host", "0.0.0.0"),  # noqa: S104
    ):
        pass
