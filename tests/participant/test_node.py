import dataclasses
import shutil
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from consent import AccessDenied, Action, Identity, Purpose, Role, verify_published
from models.plan import PlanError
from participant.accounts import Session
from participant.governance import appoint_sample, approve_plan
from participant.node import STATE_ROOT_EVERY_MS, Node, NodeError, system_clock
from privacy import Budget, Roster, RosterError
from tests.federation.synthetic import (
    PURPOSE,
    Federation,
    agree,
    approve,
    ask,
    config_of,
    events,
    first_round,
    govern,
    kinds,
    ready,
)
from tests.postgresql import Server


def test_a_new_node_has_secrets_that_only_its_owner_can_read(shared: Federation) -> None:
    folder = shared.nodes["amber"].config.folder
    secret = ["identity.key", "agreement.key", "pseudonym.key", "ledger.sqlite"]
    secret += ["log/log.sqlite", "log/keys.sqlite", "log/wrapping.key"]

    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for name in secret:
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600, name


def test_a_node_is_not_created_over_an_existing_folder(shared: Federation) -> None:
    node = shared.nodes["amber"]
    key = (node.config.folder / "identity.key").read_bytes()

    with pytest.raises(NodeError) as refusal:
        Node.create(node.config)

    assert str(refusal.value) == f"{node.config.folder} exists already; nothing was created"
    assert (node.config.folder / "identity.key").read_bytes() == key


def test_a_node_opens_with_what_it_had(federation: Federation) -> None:
    before = federation.nodes["amber"]
    card, size = before.card, before.log.tree_size

    after = federation.reopen("amber")

    assert (after.card, after.log.tree_size) == (card, size)
    assert after.roster == federation.host.roster
    assert after.trust_policy.quorum == "federation"


def test_closing_twice_does_nothing_and_a_node_closes_itself(federation: Federation) -> None:
    config = federation.nodes["amber"].config
    federation.nodes["amber"].close()
    federation.nodes["amber"].close()

    with Node.open(config) as node:
        assert node.name == "amber"
    with Node.open(config) as again:
        assert again.clock is system_clock


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("identity.key", "the key file .* cannot be read"),
        ("agreement.key", "no agreement key can be read from"),
        ("pseudonym.key", "No such file or directory"),
        ("ledger.sqlite", "there is no ledger at"),
        ("log/log.sqlite", "the folder .* holds no log"),
    ],
)
def test_a_node_that_lacks_a_part_is_not_opened_and_leaves_its_log_free(
    federation: Federation, name: str, message: str
) -> None:
    node = federation.nodes["amber"]
    node.close()
    path = node.config.folder / name
    kept = path.with_name("kept")
    path.rename(kept)

    with pytest.raises(NodeError, match=f"^the node in .* cannot be opened: .*{message}"):
        Node.open(node.config)

    kept.rename(path)
    Node.open(node.config).close()


def test_a_damaged_roster_is_one_sentence(federation: Federation) -> None:
    node = federation.nodes["amber"]
    node.close()
    (node.config.folder / "roster").write_bytes(b"{}\n")
    with pytest.raises(NodeError, match="cannot be opened: the roster cannot be read"):
        Node.open(node.config)


def test_another_budget_than_the_recorded_one_is_not_opened(federation: Federation) -> None:
    node = federation.nodes["amber"]
    node.close()
    config = config_of("amber", federation.folder, budgets={PURPOSE: Budget(epsilon=9, delta=1e-5)})
    with pytest.raises(NodeError, match="is recorded as epsilon 4 and delta 1e-05, not 9 and"):
        Node.open(config)


def test_pinning_the_same_again_is_fine_and_another_is_refused(federation: Federation) -> None:
    node = federation.nodes["amber"]
    roster, coordinator = federation.host.roster, federation.host.identity.public
    node.pin(roster, coordinator)
    smaller = Roster(card for card in roster.cards if card.name != "birch")
    other = Identity.generate("coordinator").public

    with pytest.raises(NodeError, match=r"^roster was pinned before and differs; nothing was ch"):
        node.pin(smaller, coordinator)
    with pytest.raises(NodeError, match=r"^coordinator.vkey was pinned before and differs; noth"):
        node.pin(roster, other)

    assert federation.reopen("amber").roster == roster


def test_a_roster_without_the_own_key_is_refused_before_it_is_written(tmp_path: Path) -> None:
    a, b = (Node.create(config_of(name, tmp_path)) for name in ("amber", "birch"))
    coordinator = Identity.generate("coordinator").public

    with pytest.raises(RosterError, match="the roster does not pin this agreement key for amber"):
        a.pin(Roster([b.card]), coordinator)

    a.pin(Roster([a.card, b.card]), coordinator)
    a.close()
    b.close()


def test_a_node_without_pinned_members_answers_nothing(
    federation: Federation, tmp_path: Path
) -> None:
    plan = federation.plan()
    with Node.create(config_of("lone", tmp_path)) as node:
        with pytest.raises(NodeError, match="lone has pinned no members yet; nothing was answered"):
            _ = node.roster
        with pytest.raises(NodeError, match="lone has pinned no coordinator yet; nothing was answ"):
            _ = node.trust_policy
        with pytest.raises(PlanError, match="lone is no member of plan 'spring'"):
            approve(node, plan)
        member = federation.plan(members=("amber", "birch", "cedar", "lone"))
        with pytest.raises(NodeError, match="lone has pinned no members yet; nothing was answered"):
            approve(node, member)
        for kind, record in (
            ("query.ready", ready(federation.sign(plan)).to_record()),
            ("train.round", first_round(plan).to_record()),
        ):
            said = ask(node, kind, record)["fields"]
            assert said["refused"] == "lone has not approved this plan; no data was opened"  # type: ignore[index]
        assert kinds(node) == ["node.created", "message.refused", "message.refused"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"members": ("birch", "cedar", "dune")}, "amber is no member of plan 'spring'"),
        ({"roster_digest": "00" * 32}, "plan 'spring' names other keys than amber has pinned"),
        ({"code_digest": "00" * 32}, "plan 'spring' is for other code than amber runs"),
        ({"purpose": Purpose.CHURN_SCORING}, "amber has no budget for churn_scoring"),
        ({"expires_at": 1}, "plan 'spring' has expired"),
        (
            {"budget": Budget(epsilon=0.9, delta=1e-5)},
            r"promises epsilon 0.9 but its noise gives (1|0\.99\d*) \(delta 1e-05\); nothing was",
        ),
    ],
)
def test_a_plan_that_breaks_a_rule_is_not_signed(
    shared: Federation, changes: dict[str, Any], message: str
) -> None:
    node = shared.nodes["amber"]
    plan = shared.plan(**changes)
    size = node.log.tree_size

    with pytest.raises(PlanError, match=message):
        approve(node, plan)

    with pytest.raises(PlanError, match="amber has not approved this plan; no data was opened"):
        node.approved(plan.digest)
    assert node.log.tree_size == size


def test_a_floor_below_the_own_one_is_not_signed(tmp_path: Path) -> None:
    federation = Federation.create(tmp_path, customers=15)
    federation.nodes["amber"].close()
    careful = Node.open(config_of("amber", tmp_path, cohort_floor=4))
    with pytest.raises(PlanError, match="the floor of amber is 4 brands, plan 'spring' has 3"):
        approve(careful, federation.plan())
    assert approve(careful, federation.plan(cohort_floor=4))
    careful.close()
    federation.close()


def test_a_plan_expires_at_its_very_millisecond(federation: Federation) -> None:
    node, plan = federation.nodes["amber"], federation.plan()
    federation.clock.now = plan.expires_at - 1
    approve(node, plan)
    federation.clock.now += 1
    with pytest.raises(PlanError, match="has expired"):
        approve(node, plan)


def test_a_grant_for_another_plan_signs_nothing(federation: Federation) -> None:
    node, plan = federation.nodes["amber"], federation.plan()
    session = appoint_sample(node, Role.OPERATOR)
    grant = node.accounts.authorize(
        session, Action.APPROVE_PLAN, about="another", author="coordinator", at=node.clock()
    )

    with pytest.raises(AccessDenied, match="the grant is not one to approve_plan"):
        node.approve(plan, grant=grant)
    officer = federation.nodes["birch"]
    with pytest.raises(AccessDenied, match="no rule permits approve_plan"):
        approve_plan(officer, engineer_of(officer), plan)
    assert "plan.approved" not in [*kinds(node), *kinds(officer)]


def engineer_of(node: Node) -> Session:
    one, two = appoint_sample(node, Role.OPERATOR), appoint_sample(node, Role.OPERATOR)
    name = node.accounts.propose(one, [Role.ENGINEER], at=node.clock())
    node.accounts.approve(two, name, at=node.clock())
    made = node.accounts.enrol(two, name, at=node.clock())
    return node.accounts.sign_in(made.token, at=node.clock())


def test_an_approved_plan_is_kept_signed_and_logged(federation: Federation) -> None:
    node, plan = federation.nodes["amber"], federation.plan()

    signature = approve(node, plan)

    kept = federation.reopen("amber").approved(plan.digest)
    assert (kept.plan, kept.signatures) == (plan, {"amber": signature})
    (event,) = [e for e in events(federation.nodes["amber"]) if e["type"] == "plan.approved"]
    assert (event["plan"], event["name"]) == (plan.digest, "spring")


@pytest.mark.parametrize("digest", ["", "00" * 32, "../../identity", "../identity.key", "a" * 500])
def test_a_plan_of_another_name_is_not_approved(shared: Federation, digest: str) -> None:
    with pytest.raises((PlanError, OSError)):
        shared.nodes["amber"].approved(digest)


def test_a_plan_file_that_somebody_else_wrote_is_not_approved(federation: Federation) -> None:
    node = federation.nodes["amber"]
    plan, other = federation.plan(), federation.plan(name="other")
    approve(node, plan)
    signed = federation.sign(other, by=["birch"])
    (node.config.folder / "plans" / other.digest).write_bytes(signed.format())

    with pytest.raises(PlanError, match="amber has not approved plan 'other'"):
        node.approved(other.digest)


def test_signatures_of_others_are_kept_only_after_a_check(federation: Federation) -> None:
    plan = federation.plan()
    signed = federation.sign(plan)
    node = federation.nodes["amber"]
    forged = type(signed)(plan=plan, signatures={**signed.signatures, "birch": bytes(64)})
    stranger = type(signed)(plan=plan, signatures={"zoe": bytes(64)})

    with pytest.raises(PlanError, match="the signature of birch is not for plan 'spring'"):
        node.remember_signatures(forged)
    with pytest.raises(PlanError, match="zoe is not pinned in the roster of amber"):
        node.remember_signatures(stranger)
    assert set(node.approved(plan.digest).signatures) == {"amber"}

    node.remember_signatures(signed)
    assert node.approved(plan.digest).signatures == signed.signatures


def copy_ledger(folder: Path, to: Path) -> None:
    to.mkdir(exist_ok=True)
    for path in folder.glob("ledger.sqlite*"):
        shutil.copy2(path, to / path.name)


def test_a_ledger_that_was_put_back_from_an_older_copy_is_noticed(federation: Federation) -> None:
    folder = federation.nodes["amber"].config.folder
    copy_ledger(folder, federation.folder / "older")
    assert federation.train(federation.plan()).status == "completed"
    federation.nodes["amber"].close()
    copy_ledger(folder, federation.folder / "newest")
    for path in folder.glob("ledger.sqlite*"):
        path.unlink()
    copy_ledger(federation.folder / "older", folder)

    with pytest.raises(NodeError, match="the ledger of amber is older than its audit log: entry "):
        Node.open(federation.nodes["amber"].config)

    for path in folder.glob("ledger.sqlite*"):
        path.unlink()
    copy_ledger(federation.folder / "newest", folder)
    Node.open(federation.nodes["amber"].config).close()


def test_a_model_is_kept_whole(federation: Federation) -> None:
    node, plan = federation.nodes["amber"], federation.plan()
    federation.sign(plan)

    path = node.save_model(plan.digest, {"weights": np.arange(3.0)})

    with np.load(path) as arrays:
        assert arrays["weights"].tolist() == [0, 1, 2]
    assert [p.name for p in path.parent.iterdir()] == [f"{plan.digest}.npz"]


def test_what_a_node_publishes_verifies_with_the_policy_of_the_coordinator(
    federation: Federation,
) -> None:
    federation.train(federation.plan())
    folder = federation.nodes["amber"].publish()

    verdict = verify_published(folder, federation.policy)

    # The state root that publishing logged waits for the next note.
    assert verdict.entries == federation.nodes["amber"].log.tree_size - 1
    assert kinds(federation.nodes["amber"])[-1] == "state.root"
    assert (verdict.events["budget.charged"], verdict.events["release.sent"]) == (3, 3)


def test_publishing_logs_a_state_root_once_a_day(federation: Federation) -> None:
    node = federation.nodes["amber"]
    start = max(node.clock(), node.log.latest)

    counts = []
    for passed in (0, STATE_ROOT_EVERY_MS - 1, STATE_ROOT_EVERY_MS, STATE_ROOT_EVERY_MS + 1):
        node.clock = lambda passed=passed: start + passed  # type: ignore[misc]
        node.publish()
        counts.append(kinds(node).count("state.root"))

    assert counts == [1, 1, 2, 2]


def test_a_node_in_postgresql_keeps_keys_and_anchor_at_home(tmp_path: Path, server: Server) -> None:
    store = server.url(schema="whole_node")
    made = Federation.create(tmp_path, names=("amber", "birch", "cedar"), customers=15)
    made.close()
    config = dataclasses.replace(made.nodes["amber"].config, folder=tmp_path / "n", store=store)
    with Node.create(config, clock=made.clock) as node:
        govern(node)
        agree(node, node.table.subjects)
        root = node.log.root_hash
    with Node.open(config, clock=made.clock) as node:
        mask = node.register.mask(node.table.subjects, PURPOSE, at=node.clock())
        assert mask.all()
        assert node.log.root_hash == root
        node.log.publish(tmp_path / "published")

    names = {path.name for path in (config.folder / "log").iterdir()}
    assert {"keys.sqlite", "wrapping.key", "anchor", "lock"} <= names
    assert "log.sqlite" not in names
