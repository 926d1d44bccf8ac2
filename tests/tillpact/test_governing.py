"""The decisions of a node's staff at the command line, on real nodes."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from consent import Role
from models.plan import SignedPlan
from participant.accounts import code_of
from participant.approvals import Approvals
from participant.config import format_config, load
from participant.node import Node, system_clock
from tests.federation.synthetic import PURPOSE, Federation, churn_recipe, config_of
from tillpact.cli import app

Run = Callable[..., Result]


def add(node: Node, folder: Path, **roles: Role) -> None:
    for name, role in roles.items():
        made = node.accounts.add_by_host([role], at=node.clock())
        (folder / f"{name}.token").write_text(made.token)
        (folder / f"{name}.uri").write_text(made.uri)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A node that has decided nothing yet, and its staff."""
    path = tmp_path / "amber.toml"
    path.write_text(format_config(config_of("amber", tmp_path)), encoding="utf-8")
    with Node.create(load(path)) as node:
        add(
            node,
            tmp_path,
            author=Role.POLICY_AUTHOR,
            approver=Role.POLICY_APPROVER,
            operator=Role.OPERATOR,
        )
    return path


@pytest.fixture
def run(config: Path) -> Run:
    def run(
        *words: object, by: str | None = None, code: bool = False, exits: int = 0, stdin: str = ""
    ) -> Result:
        folder = config.parent
        who = [] if by is None else ["--token-file", folder / f"{by}.token"]
        if code:
            uri = (folder / f"{by}.uri").read_text()
            who += ["--code", code_of(uri, at=system_clock())]
        done = CliRunner().invoke(app, [*map(str, words), *map(str, who)], input=stdin)
        assert done.exit_code == exits, (done.output, done.exception)
        return done

    return run


def data(done: Result) -> dict[str, object]:
    found = json.loads(done.stdout)["data"]
    assert isinstance(found, dict)
    return found


def put_in_force(run: Run, config: Path) -> None:
    run("policy", "propose", config, by="author")
    run("policy", "approve", config, by="approver")
    run("policy", "activate", config, by="approver", code=True)


def test_rules_come_into_force_by_two_people_with_a_fresh_code(run: Run, config: Path) -> None:
    nothing = run("policy", "approve", config, by="approver", exits=2)
    run("policy", "propose", config, by="author")
    own = run("policy", "approve", config, by="author", exits=1)
    early = run("policy", "activate", config, by="approver", code=True, exits=2)
    run("policy", "approve", config, by="approver")
    before = data(run("policy", "ls", config, "--json"))
    done = run("policy", "activate", config, by="operator", exits=1)

    assert "no proposal waits for approval (see tillpact policy ls)" in nothing.stderr
    assert "Refused: " in own.stderr
    assert "no proposal is approved and not in force" in early.stderr
    assert before["in_force"] is None
    assert "Refused: " in done.stderr


def test_an_activation_without_a_fresh_code_says_what_to_do(run: Run, config: Path) -> None:
    run("policy", "propose", config, by="author")
    run("policy", "approve", config, by="approver")
    stale = run("policy", "activate", config, by="approver", exits=1)
    run("policy", "activate", config, by="approver", code=True)

    assert "by step-up (show a code of your authenticator" in stale.stderr
    assert "In force: none" not in run("policy", "ls", config).stdout


def test_of_two_proposals_one_must_be_named(run: Run, config: Path) -> None:
    first = data(run("policy", "propose", config, "--json", by="author"))
    run("policy", "propose", config, by="author")
    which = run("policy", "approve", config, by="approver", exits=2)
    named = run("policy", "approve", config, first["proposal"], "--json", by="approver")

    assert f"more than one proposal waits for approval: name one of {first['proposal']}," in (
        which.stderr
    )
    assert data(named)["proposal"] == first["proposal"]


def test_an_assessment_is_drafted_by_one_and_approved_by_another(run: Run, config: Path) -> None:
    document, other = config.parent / "assessment.txt", config.parent / "other.txt"
    document.write_text("what we weighed")
    other.write_text("something else")
    put_in_force(run, config)
    draft = ("assessment", "draft", config, "--purpose", "federated_training", "--document")
    approve = ("assessment", "approve", config)
    none = run(*approve, by="approver", exits=2)
    run(*draft, document, by="author")
    wrong = run(*approve, "--document", other, by="approver", exits=1)
    own = run(*approve, by="author", exits=1)
    endless = run(*approve, "--days", 9999, by="approver", exits=2)
    done = run(*approve, "--document", document, by="approver")
    empty = run(*draft, config.parent / "none", by="author", exits=2)
    listed = data(run("assessment", "ls", config, "--json"))

    assert "those that wait are: none; nothing was approved" in none.stderr
    assert "this is not the document that was drafted" in wrong.stderr
    assert "Refused: " in own.stderr
    assert "days must be 1 to 1825, got 9999" in endless.stderr
    assert "In force: federated_training-" in done.stdout
    assert "cannot be read; nothing was written" in empty.stderr
    assert "federated_training" not in listed["missing"]  # type: ignore[operator]
    assert "churn_scoring" in listed["missing"]  # type: ignore[operator]


def test_a_person_is_erased_by_an_operator_with_a_fresh_code(run: Run, config: Path) -> None:
    put_in_force(run, config)
    notice = config.parent / "notice.txt"
    notice.write_text("We ask you.")
    publish = ("consent", "notice", "publish", config, "--file", notice, "--id", "n")
    run(*publish, "--version", 1, "--language", "en")
    who = ("--subject", "anna", "--notice", "n", "--channel", "app", "--give", "contact")
    run("consent", "record", config, *who)
    held = run("consent", "state", config, "--subject", "anna")
    asked = run(
        *("consent", "request", config, "--subject", "anna", "--right", "erasure", "--json")
    )
    erase = ("consent", "erase", config, "--request", data(asked)["request"])
    stale = run(*erase, by="operator", exits=1)
    both = run(*erase, "--subject", "anna", by="operator", exits=2)
    done = run(*erase, by="operator", code=True)
    again = run(*erase, by="operator", exits=1)
    other = run("consent", "erase", config, "--subject", "-", by="operator", stdin="bea\n")

    assert "by step-up" in stale.stderr
    assert "name the request or the person, and not both" in both.stderr
    assert "says that somebody was, and not who" in done.stdout
    assert "no open request has this id" in again.stderr
    assert "anna" not in done.output
    assert "Erased: entry" in other.stdout
    assert "yes  contact" in held.stdout
    assert "yes  " not in run("consent", "state", config, "--subject", "anna").stdout


@pytest.fixture
def consortium(tmp_path: Path) -> Federation:
    """Three closed nodes that have pinned each other, and a plan of their coordinator."""
    federation = Federation.create(
        tmp_path / "three", names=("amber", "birch", "cedar"), customers=15
    )
    (tmp_path / "spring.plan").write_bytes(federation.plan().format())
    for name, node in federation.nodes.items():
        add(node, tmp_path, **{name: Role.OPERATOR})
        path = tmp_path / f"{name}.plan.toml"
        path.write_text(format_config(node.config), encoding="utf-8")
    federation.close()
    return federation


def test_a_plan_is_shown_and_signed_by_one_brand_after_the_other(
    run: Run, consortium: Federation, tmp_path: Path
) -> None:
    plan, one, two = (tmp_path / name for name in ("spring.plan", "one", "two"))
    shown = run("plan", "show", tmp_path / "amber.plan.toml", plan)
    approve = ("plan", "approve", tmp_path / "amber.plan.toml", plan, "--out", one)
    nobody = run(*approve, exits=2)
    run(*approve, by="amber")
    taken = run(*approve, by="amber", exits=2)
    second = ("plan", "approve", tmp_path / "birch.plan.toml", one, "--out", two)
    told = data(run(*second, "--json", by="birch"))
    unsigned = run(
        "plan",
        "approve",
        tmp_path / "cedar.plan.toml",
        two,
        "--out",
        tmp_path / "x",
        "--by-rule",
        exits=1,
    )

    assert "The model goes to: amber, birch, cedar." in shown.stdout
    assert "at least 3 in each sum" in shown.stdout
    assert "if every round needs all 2 attempts" in shown.stdout
    assert "say who you are: --token-file FILE" in nobody.stderr
    assert "exists already" in taken.stderr
    assert told["signed_by"] == ["amber", "birch"]
    assert told["missing"] == ["cedar"]
    assert set(SignedPlan.parse(two.read_bytes()).signatures) == {"amber", "birch"}
    assert "Refused: cedar has no rule for plans; a person decides" in unsigned.stderr
    assert not (tmp_path / "x").exists()


def test_a_rule_signs_a_plan_and_nobody_is_asked(
    run: Run, consortium: Federation, tmp_path: Path
) -> None:
    rule = Approvals(
        purposes=frozenset({PURPOSE}),
        most_epsilon=2.0,
        recipients=frozenset({"amber", "birch", "cedar"}),
    )
    path = tmp_path / "ruled.toml"
    path.write_text(format_config(config_of("amber", tmp_path / "three", approvals=rule)))
    approve = ("plan", "approve", path, tmp_path / "spring.plan", "--out", tmp_path / "signed")
    both = run(*approve, "--by-rule", by="amber", exits=2)
    done = data(run(*approve, "--by-rule", "--json"))

    assert "either a rule or a person signs, and not both" in both.stderr
    assert done["by"] == "rule"
    assert done["signed_by"] == ["amber"]


def test_a_plan_that_the_node_does_not_sign_is_shown_with_the_reason(
    run: Run, consortium: Federation, tmp_path: Path
) -> None:
    other, junk = tmp_path / "other.plan", tmp_path / "junk.plan"
    other.write_bytes(consortium.plan(code_digest="00" * 32).format())
    junk.write_bytes(b"{}")
    forged = tmp_path / "forged.plan"
    plan = consortium.plan(name="forged")
    forged.write_bytes(SignedPlan(plan=plan, signatures={"birch": bytes(64)}).format())
    config = tmp_path / "amber.plan.toml"
    shown = run("plan", "show", config, other, exits=1)
    wrong = run("plan", "show", config, junk, exits=1)
    none = run("plan", "show", config, tmp_path / "none", exits=2)
    bare = dataclasses.replace(churn_recipe(), gradient_noise_multiplier=1e-9)
    priceless = tmp_path / "priceless.plan"
    priceless.write_bytes(consortium.plan(bare).format())
    costly = run("plan", "show", config, priceless, exits=1)
    refused = run("plan", "approve", config, forged, "--out", tmp_path / "x", by="amber", exits=1)

    assert "This node does not sign it: plan 'spring' is for other code" in shown.stderr
    assert "Refused: this is no plan" in wrong.stderr
    assert "the plan " in none.stderr
    assert "Refused: the plan has no price at delta 1e-05" in costly.stderr
    assert "the signature of birch is not for plan 'forged'" in refused.stderr
    assert not (tmp_path / "three" / "nodes" / "amber" / "plans").exists()
    assert not (tmp_path / "x").exists()


def test_a_node_is_made_once_and_shows_who_it_is(run: Run, tmp_path: Path) -> None:
    path, out = tmp_path / "dune.toml", tmp_path / "public"
    path.write_text(format_config(config_of("dune", tmp_path)), encoding="utf-8")
    missing = run("node", "card", path, exits=2)
    made = data(run("node", "create", path, "--json"))
    again = run("node", "create", path, exits=1)
    shown = data(run("node", "card", path, "--out", out, "--json"))
    taken = run("node", "card", path, "--out", out, exits=2)
    published = run("audit", "publish", path)
    verified = run(
        "audit", "verify", tmp_path / "nodes/dune/audit", "--policy", out / "trust.policy"
    )

    assert "there is no usable node in " in missing.stderr
    assert "exists already; nothing was created" in again.stderr
    assert shown["fingerprint"] == made["fingerprint"]
    assert (out / "issuer.vkey").read_text().strip() == shown["key"]
    assert "exists already; nothing was written" in taken.stderr
    assert "Published: " in published.stdout
    assert "Cosigned by nobody." in verified.stdout
