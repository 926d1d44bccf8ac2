"""A served node's staff: each has a token and an authenticator, and speaks over HTTP."""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from fastapi.testclient import TestClient
from httpx import Response

from consent import Purpose, Role
from participant.accounts import Credentials, code_of
from participant.governance import activate_rules, appoint_sample, assess
from participant.node import Node
from participant.service import create_app
from tests.federation.synthetic import DAY_MS, Clock

from .service_client import LENIENT, client_of


@dataclass
class Member:
    """One account and what it was given."""

    client: TestClient
    made: Credentials
    clock: Clock
    keys: Iterator[int] = field(default_factory=lambda: iter(range(10**6)))

    @property
    def account(self) -> str:  # noqa: D102 - see the class
        return self.made.account

    @property
    def headers(self) -> dict[str, str]:  # noqa: D102
        return {"Authorization": f"Bearer {self.made.token}"}

    def get(self, path: str, **more: object) -> Response:  # noqa: D102
        return self.client.get(path, headers=self.headers, params=more)  # type: ignore[arg-type]

    def post(self, path: str, body: object = None, *, key: str | None = None) -> Response:  # noqa: D102
        headers = {**self.headers, "Idempotency-Key": key or f"key-{next(self.keys):06}"}
        if body is None:
            return self.client.post(path, headers=headers)
        return self.client.post(path, headers=headers, json=body)

    def step_up(self) -> Response:
        """Show the code of a new moment."""
        self.clock.now += 60_000
        code = code_of(self.made.uri, at=self.clock())
        return self.post("/v1/session/step-up", {"code": code})


@dataclass
class Staff:
    """Everybody at one node, which follows the shipped rules."""

    node: Node
    clock: Clock
    client: TestClient
    officer: Member
    second: Member
    operator: Member
    approver: Member
    author: Member
    scorer: Member

    @classmethod
    def of(cls, node: Node, clock: Clock) -> "Staff":
        """Add everybody before the rules come into force, and put them in force."""
        found = cls._made(node, clock, lambda role: node.accounts.add_by_host([role], at=clock()))
        author = appoint_sample(node, Role.POLICY_AUTHOR)
        approver = appoint_sample(node, Role.POLICY_APPROVER)
        activate_rules(node, author=author, approver=approver)
        assess(
            node,
            {Purpose.CHURN_SCORING: "cd" * 32},
            author=author,
            approver=approver,
            valid_until=clock() + 365 * DAY_MS,
        )
        return found

    @classmethod
    def of_governed(cls, node: Node, clock: Clock) -> "Staff":
        """Let two operators add everybody to a node whose rules are in force."""
        one, two = appoint_sample(node, Role.OPERATOR), appoint_sample(node, Role.OPERATOR)

        def add(role: Role) -> Credentials:
            name = node.accounts.propose(one, [role], at=clock())
            node.accounts.approve(two, name, at=clock())
            return node.accounts.enrol(two, name, at=clock())

        return cls._made(node, clock, add)

    @classmethod
    def _made(cls, node: Node, clock: Clock, add: Callable[[Role], Credentials]) -> "Staff":
        client = client_of(create_app(node, LENIENT))
        roles = {
            "officer": Role.COMPLIANCE_OFFICER,
            "second": Role.COMPLIANCE_OFFICER,
            "operator": Role.OPERATOR,
            "approver": Role.POLICY_APPROVER,
            "author": Role.POLICY_AUTHOR,
            "scorer": Role.SCORER,
        }
        members = {name: Member(client, add(role), clock) for name, role in roles.items()}
        return cls(node=node, clock=clock, client=client, **members)

    def reopened(self, node: Node) -> "Staff":
        """The same people at the same node after a restart."""
        client = client_of(create_app(node, LENIENT))
        members = {
            each.name: dataclasses.replace(getattr(self, each.name), client=client)
            for each in dataclasses.fields(self)
            if isinstance(getattr(self, each.name), Member)
        }
        return dataclasses.replace(self, node=node, client=client, **members)
