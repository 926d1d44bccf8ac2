"""An officer's day at the command line, on a real node."""

import json
import stat
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from consent import Role, TrustPolicy
from participant.accounts import code_of
from participant.config import format_config
from participant.governance import activate_rules, appoint_sample
from participant.node import Node, system_clock
from tests.federation.synthetic import agree, config_of
from tests.participant.service_client import served

from .test_cli import tillpact

CANARY = "canary-person-17"


@dataclass
class Desk:
    """A closed node whose rules are in force, and its staff's files."""

    folder: Path
    node: Node
    accounts: dict[str, str] = field(default_factory=dict)
    uris: dict[str, str] = field(default_factory=dict)

    @property
    def config(self) -> Path:  # noqa: D102 - see the class
        return self.folder / "amber.toml"

    def token(self, name: str) -> Path:  # noqa: D102
        return self.folder / f"{name}.token"

    def run(
        self, *arguments: object, by: str | None = None, code: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as one of the staff, with a code of this moment or without."""
        who: list[object] = []
        if by is not None:
            who = ["--as", self.accounts[by], "--token-file", self.token(by)]
        if code and by is not None:
            file = self.folder / "code"
            file.write_text(code_of(self.uris[by], at=system_clock()))
            who += ["--code-file", file]
        done = tillpact(*arguments, *who)
        assert "Traceback" not in done.stderr
        assert CANARY not in done.stdout + done.stderr
        return done


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    node = Node.create(config_of("amber", tmp_path))
    desk = Desk(tmp_path, node)
    roles = {
        "one": Role.OPERATOR,
        "two": Role.OPERATOR,
        "officer": Role.COMPLIANCE_OFFICER,
        "second": Role.COMPLIANCE_OFFICER,
    }
    for name, role in roles.items():
        made = node.accounts.add_by_host([role], at=node.clock())
        desk.accounts[name], desk.uris[name] = made.account, made.uri
        desk.token(name).write_text(made.token + "\n")
    agree(node, [CANARY])
    author = appoint_sample(node, Role.POLICY_AUTHOR)
    activate_rules(node, author=author, approver=appoint_sample(node, Role.POLICY_APPROVER))
    policy = TrustPolicy(logs=(node.identity.public,), witnesses={}, groups={}, quorum="none")
    (tmp_path / "trust.policy").write_text(policy.format())
    (tmp_path / "person").write_text(CANARY + "\n")
    desk.config.write_text(format_config(node.config), encoding="utf-8")
    node.close()
    return desk


def test_two_officers_get_a_dossier_that_anybody_verifies_offline(desk: Desk) -> None:
    person, out = desk.folder / "person", desk.folder / "dossier.json"
    asked = ("case", "open", desk.config, "--reason", "audit", "--subject-file", person)
    opened = desk.run(*asked, "--json", by="officer")
    case = json.loads(opened.stdout)["data"]["case"]
    own = desk.run("case", "approve", desk.config, case, by="officer", code=True)
    stale = desk.run("case", "approve", desk.config, case, by="second")
    approved = desk.run("case", "approve", desk.config, case, by="second", code=True)
    written = desk.run("audit", "dossier", desk.config, "--case", case, "-o", out, by="officer")
    again = desk.run("audit", "dossier", desk.config, "--case", case, "-o", out, by="officer")
    policy = desk.folder / "trust.policy"
    verified = desk.run("audit", "dossier-verify", out, "--policy", policy)
    listed = desk.run("case", "ls", desk.config)

    assert own.returncode == stale.returncode == 1
    assert "forbidden to the role compliance_officer by second-person" in own.stderr
    assert "by step-up" in stale.stderr
    assert approved.returncode == 0
    assert written.returncode == 0, written.stderr
    assert "No witness has cosigned this log" in written.stderr
    assert again.returncode == 2
    assert "exists already" in again.stderr
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert "Complete: until " in verified.stdout
    assert "chose; yes to " in verified.stdout
    assert "handed out 1 times" in listed.stdout


def test_a_dossier_that_was_changed_or_is_none_does_not_verify(desk: Desk) -> None:
    policy, bad = desk.folder / "trust.policy", desk.folder / "bad.json"
    bad.write_text("{}")
    wrong = desk.run("audit", "dossier-verify", bad, "--policy", policy, "--json")
    missing = desk.run("audit", "dossier-verify", desk.folder / "none", "--policy", policy)

    assert (wrong.returncode, missing.returncode) == (1, 2)
    assert json.loads(wrong.stdout)["data"]["verified"] is False
    assert "cannot be read; nothing was verified" in missing.stderr


def test_an_account_is_added_by_two_and_its_token_shown_once(desk: Desk) -> None:
    alone = desk.run("account", "add", desk.config, "--role", "scorer")
    proposed = desk.run(
        "account", "add", desk.config, "--role", "scientist", "--json", by="one", code=True
    )
    name = json.loads(proposed.stdout)["data"]["account"]
    selfmade = desk.run("account", "approve", desk.config, name, by="one")
    out = desk.folder / "new.token"
    approve = ("account", "approve", desk.config, name)
    approved = desk.run(*approve, "--out", out, by="two", code=True)
    lost = desk.run(*approve, "--json", by="two")
    listed = desk.run("account", "ls", desk.config)

    assert (alone.returncode, selfmade.returncode) == (1, 1)
    assert "one of them proposes an account and the other approves it" in alone.stderr
    assert "by another than its proposer and itself" in selfmade.stderr
    assert "Authenticator: otpauth://totp/amber:" in approved.stdout
    assert out.read_text().strip() not in approved.stdout
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert json.loads(lost.stdout)["data"]["token"] != out.read_text().strip()
    assert f"{name}  active    scientist" in listed.stdout


def test_roles_are_changed_a_token_renewed_and_an_account_revoked(desk: Desk) -> None:
    two, officer = desk.accounts["two"], desk.accounts["officer"]
    change = ("account", "roles", desk.config, two, "--role", "operator", "--role", "engineer")
    roles = desk.run(*change, by="one", code=True)
    renewed = desk.run("account", "renew", desk.config, "--out", desk.folder / "n", by="one")
    revoked = desk.run("account", "revoke", desk.config, officer, by="one")
    by_host = desk.run("account", "revoke", desk.config, desk.accounts["second"])
    refused = desk.run("account", "renew", desk.config, by="officer")

    assert "Proposed for " in roles.stdout
    assert "proposed: engineer, operator" in desk.run("account", "ls", desk.config).stdout
    assert [each.returncode for each in (renewed, revoked, by_host)] == [0, 0, 0]
    assert refused.returncode == 1
    assert "a valid token of an account is needed" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("account", "add", "CONFIG", "--role", "king"), "the roles are engineer, operator"),
        (("account", "renew", "CONFIG"), "say who you are: --token-file FILE"),
        (
            ("case", "open", "CONFIG", "--reason", "x", "--subject-file", "PERSON"),
            "there is no reason 'x'; the reasons are subject_request",
        ),
        (
            ("case", "open", "CONFIG", "--reason", "audit", "--subject-file", "EMPTY"),
            "holds no id of a person; nothing was opened",
        ),
    ],
)
def test_what_cannot_be_used_is_said_and_exits_two(
    desk: Desk, arguments: tuple[str, ...], message: str
) -> None:
    (desk.folder / "empty").write_text("\n")
    known = {
        "CONFIG": desk.config,
        "PERSON": desk.folder / "person",
        "EMPTY": desk.folder / "empty",
    }
    done = desk.run(*(known.get(each, each) for each in arguments))

    assert done.returncode == 2
    assert message in done.stderr


def test_a_token_of_somebody_else_is_refused(desk: Desk) -> None:
    stolen = desk.token("second")
    done = desk.run(
        *("account", "renew", desk.config, "--as", desk.accounts["one"], "--token-file", stolen)
    )

    assert done.returncode == 2
    assert "the token is not one of the account" in done.stderr


def test_while_a_node_is_served_the_command_names_its_addresses(desk: Desk) -> None:
    headers = {"Authorization": f"Bearer {desk.token('officer').read_text().strip()}"}
    with served(desk.node) as (url, _process):
        done = desk.run("case", "ls", desk.config)
        health = httpx.get(f"{url}/v1/health", headers=headers, trust_env=False)
        code = {"code": code_of(desk.uris["officer"], at=system_clock())}
        keyed = {**headers, "Idempotency-Key": "step-up-1"}
        fresh = httpx.post(f"{url}/v1/session/step-up", headers=keyed, json=code, trust_env=False)
        body = {"since": 0, "until": 2**42}
        keyed = {**headers, "Idempotency-Key": "export-of-all"}
        made = httpx.post(f"{url}/v1/exports", headers=keyed, json=body, trust_env=False)

    assert done.returncode == 2
    assert "is open for writing elsewhere" in done.stderr
    assert "use its HTTP addresses: /v1/accounts, /v1/cases" in done.stderr
    assert health.json()["alive"] is True
    assert (fresh.status_code, made.status_code) == (200, 200)
    assert made.json()["size_bytes"] > 0


def test_an_operator_rotates_keys_and_nobody_else_does(desk: Desk) -> None:
    file = desk.node.config.folder / "log" / "wrapping.key"
    before = file.read_bytes()
    nobody = desk.run("node", "rotate-keys", desk.config)
    officer = desk.run("node", "rotate-keys", desk.config, by="officer", code=True)
    stale = desk.run("node", "rotate-keys", desk.config, by="one")
    unchanged = file.read_bytes()
    done = desk.run("node", "rotate-keys", desk.config, "--json", by="one", code=True)
    said = desk.run("node", "rotate-keys", desk.config, by="two", code=True)

    assert (nobody.returncode, officer.returncode, stale.returncode) == (2, 1, 1)
    assert "forbidden to the role compliance_officer by officer-reads-only" in officer.stderr
    assert "by step-up" in stale.stderr
    assert unchanged == before != file.read_bytes()
    answer = json.loads(done.stdout)
    assert answer["schema"] == "tillpact.node.rotate-keys/1"
    assert answer["data"]["kind"] == "wrapping"
    assert f"Rotated: the wrapping key is {_last_rotation(desk)['id']};" in said.stdout
    assert answer["data"]["id"] not in said.stdout


def _last_rotation(desk: Desk) -> dict[str, object]:
    with Node.open(desk.node.config) as node:
        values = [entry.value for entry in node.log.entries()]
    return next(value for value in reversed(values) if value.get("type") == "key.rotated")
