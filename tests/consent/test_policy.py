import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consent import Identity, JsonValue, Log, LogError
from consent.access import (
    SHIPPED_DIGEST,
    Access,
    AccessDenied,
    AccessGrant,
    AccessRequest,
    Action,
    PolicyEngine,
    Role,
)
from consent.cedar import CedarEngine
from consent.matrix import RoleMatrix
from consent.policy import SHIPPED, PolicyError, PolicyFiles, Proposal, Rulebook

Granting = Callable[..., AccessGrant]
FILES = PolicyFiles.read(SHIPPED)
AUTHOR, APPROVER = Role.POLICY_AUTHOR, Role.POLICY_APPROVER


@pytest.fixture
def rulebook(log: Log) -> Rulebook:
    return Rulebook(log)


def propose(
    rulebook: Rulebook, grant: Granting, files: PolicyFiles = FILES, *, at: int = 10
) -> Proposal:
    allowed = grant(AUTHOR, Action.PROPOSE_POLICY, files.digest, at=at, actor="ann")
    return rulebook.propose(files, grant=allowed, at=at)


def approve(
    rulebook: Rulebook,
    grant: Granting,
    index: int,
    *,
    actor: str = "bo",
    author: str = "ann",
    about: str = FILES.digest,
) -> Proposal:
    allowed = grant(APPROVER, Action.APPROVE_POLICY, about, at=20, actor=actor, author=author)
    return rulebook.approve(index, grant=allowed, at=20)


def activate(
    rulebook: Rulebook,
    grant: Granting,
    index: int,
    engine: PolicyEngine | None = None,
    *,
    about: str = FILES.digest,
) -> Proposal:
    allowed = grant(APPROVER, Action.ACTIVATE_POLICY, about, at=30, actor="bo")
    return rulebook.activate(index, engine or RoleMatrix(), grant=allowed, at=30)


@pytest.fixture
def another(tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(SHIPPED, tmp_path / "another"))
    (folder / "limits.cedar").write_text((folder / "limits.cedar").read_text() + "\n// more\n")
    return folder


def test_a_policy_comes_into_force_in_three_steps(
    rulebook: Rulebook, grant: Granting, log: Log
) -> None:
    proposed = propose(rulebook, grant)
    assert rulebook.active_digest() is None
    approved = approve(rulebook, grant, proposed.index)
    assert rulebook.active_digest() is None
    activated = activate(rulebook, grant, proposed.index)

    assert rulebook.active_digest() == FILES.digest
    assert (proposed.approver, approved.approver, activated.activated_at) == (None, "bo", 30)
    assert rulebook.proposals() == Rulebook(log).proposals() == [activated]
    told = [entry.value for entry in log.entries() if "policy." in str(entry.value["type"])]
    assert [(event["type"], event["digest"]) for event in told] == [
        ("policy.proposed", FILES.digest),
        ("policy.approved", FILES.digest),
        ("policy.activated", FILES.digest),
    ]
    assert told[-1]["engine"] == "matrix 1"
    rulebook.verify()


def test_the_whole_life_of_a_first_policy_needs_no_policy_before_it(log: Log) -> None:
    rulebook, engine = Rulebook(log), CedarEngine(SHIPPED)
    access = Access(engine, log, activated=rulebook.active_digest)

    def ask(actor: str, role: Role, action: Action, author: str = "") -> AccessGrant:
        request = AccessRequest(
            actor=actor,
            role=role,
            action=action,
            about=engine.digest,
            author=author,
            mfa_age_s=0,
        )
        return access.authorize(request, at=10)

    read = AccessRequest(actor="eve", role=Role.COMPLIANCE_OFFICER, action=Action.READ_LOG)
    with pytest.raises(AccessDenied, match="no policy was activated yet"):
        access.authorize(read, at=10)
    grant = ask("ann", AUTHOR, Action.PROPOSE_POLICY)
    index = rulebook.propose(FILES, grant=grant, at=10).index
    rulebook.approve(index, grant=ask("bo", APPROVER, Action.APPROVE_POLICY, "ann"), at=10)
    rulebook.activate(index, engine, grant=ask("bo", APPROVER, Action.ACTIVATE_POLICY), at=10)

    assert access.authorize(read, at=11).policy_digest == engine.digest == SHIPPED_DIGEST


def test_after_another_activation_the_old_rules_open_nothing(
    rulebook: Rulebook, grant: Granting, log: Log, another: Path
) -> None:
    activate(rulebook, grant, approve(rulebook, grant, propose(rulebook, grant).index).index)
    access = Access(RoleMatrix(), log, activated=rulebook.active_digest)
    read = AccessRequest(actor="eve", role=Role.COMPLIANCE_OFFICER, action=Action.READ_LOG)
    access.authorize(read, at=31)
    engine = CedarEngine(another)
    index = propose(rulebook, grant, PolicyFiles.read(another), at=40).index
    approve(rulebook, grant, index, about=engine.digest)
    activate(rulebook, grant, index, engine, about=engine.digest)

    with pytest.raises(AccessDenied, match="the rules of this node are not the activated ones"):
        access.authorize(read, at=41)
    new = Access(engine, log, activated=rulebook.active_digest)
    assert new.authorize(read, at=41).policy_digest == engine.digest


def test_the_author_cannot_approve_whatever_the_rules_say(
    rulebook: Rulebook, grant: Granting
) -> None:
    index = propose(rulebook, grant).index
    with pytest.raises(PolicyError, match="must be approved by another person than its author"):
        approve(rulebook, grant, index, actor="ann", author="somebody")
    with pytest.raises(AccessDenied, match="by second-person"):
        approve(rulebook, grant, index, actor="ann")
    assert rulebook.proposals()[0].approver is None


def test_a_grant_that_names_another_author_is_refused(rulebook: Rulebook, grant: Granting) -> None:
    index = propose(rulebook, grant).index
    with pytest.raises(PolicyError, match="the grant names another author than the one of the"):
        approve(rulebook, grant, index, author="somebody")


def test_nothing_is_approved_twice(rulebook: Rulebook, grant: Granting) -> None:
    index = approve(rulebook, grant, propose(rulebook, grant).index).index
    with pytest.raises(PolicyError, match=f"proposal {index} was approved before"):
        approve(rulebook, grant, index, actor="cy")


def test_without_a_second_person_nothing_is_activated(rulebook: Rulebook, grant: Granting) -> None:
    index = propose(rulebook, grant).index
    with pytest.raises(PolicyError, match=f"proposal {index} was not approved by a second person"):
        activate(rulebook, grant, index)
    assert rulebook.active_digest() is None


def test_other_files_than_the_approved_ones_are_not_activated(
    rulebook: Rulebook, grant: Granting, another: Path
) -> None:
    index = approve(rulebook, grant, propose(rulebook, grant).index).index
    with pytest.raises(PolicyError, match="the policy files are not those that were approved"):
        activate(rulebook, grant, index, CedarEngine(another))


def test_a_policy_that_was_overtaken_is_not_activated(rulebook: Rulebook, grant: Granting) -> None:
    first = approve(rulebook, grant, propose(rulebook, grant).index).index
    second = approve(rulebook, grant, propose(rulebook, grant, at=21).index).index
    activate(rulebook, grant, first)
    with pytest.raises(PolicyError, match=f"proposal {second} is stale: another policy came into"):
        activate(rulebook, grant, second)


def test_nothing_is_activated_twice(rulebook: Rulebook, grant: Granting) -> None:
    activate(rulebook, grant, approve(rulebook, grant, propose(rulebook, grant).index).index)
    again = approve(rulebook, grant, propose(rulebook, grant, at=31).index).index
    activate(rulebook, grant, again)
    with pytest.raises(PolicyError, match=f"proposal {again} was activated before"):
        activate(rulebook, grant, again)


def test_a_proposal_that_is_none_is_refused(rulebook: Rulebook, grant: Granting) -> None:
    with pytest.raises(PolicyError, match="entry 7 of the log proposes no policy"):
        approve(rulebook, grant, 7)


def test_a_grant_for_other_files_is_refused(rulebook: Rulebook, grant: Granting) -> None:
    allowed = grant(AUTHOR, Action.PROPOSE_POLICY, "00", at=10)
    with pytest.raises(AccessDenied, match="the grant is not one to propose_policy"):
        rulebook.propose(FILES, grant=allowed, at=10)


def test_a_policy_survives_a_restart(
    rulebook: Rulebook,
    grant: Granting,
    log: Log,
    tmp_path: Path,
    identity: Identity,
    store: str | None,
) -> None:
    activate(rulebook, grant, approve(rulebook, grant, propose(rulebook, grant).index).index)
    log.close()
    with Log.open(tmp_path / "log", identity, store=store) as reopened:
        assert Rulebook(reopened).active_digest() == FILES.digest


steps = st.lists(
    st.tuples(
        st.sampled_from(["policy.proposed", "policy.approved", "policy.activated"]),
        st.integers(0, 1),
        st.sampled_from(["ann", "bo"]),
        st.just("aa"),
    ),
    max_size=6,
)
IDENTITY = Identity.generate("brand-a.example/log")


@settings(max_examples=60, deadline=None)
@given(steps)
def test_whatever_a_log_says_nothing_is_in_force_without_two_people(
    tmp_path_factory: pytest.TempPathFactory, said: list[tuple[str, int, str, str]]
) -> None:
    with Log.create(tmp_path_factory.mktemp("log") / "log", IDENTITY) as log:
        rulebook = Rulebook(log)
        for kind, index, actor, digest in said:
            event: dict[str, JsonValue] = {"type": kind, "v": 1, "at": 1, "digest": digest}
            extra: dict[str, JsonValue] = {"proposal": index, "approver": actor}
            if kind == "policy.proposed":
                extra = {"author": actor, "replaces": ""}
            rulebook._topic.append({**event, **extra})
        try:
            found = rulebook.proposals()
        except LogError:
            return
        in_force = [p for p in found if p.activated_at is not None]
        assert all(p.approver not in {None, p.author} for p in in_force)


BEGUN: dict[str, JsonValue] = {"type": "policy.proposed", "author": "ann", "replaces": ""}
SEEN: dict[str, JsonValue] = {"type": "policy.approved", "proposal": 0, "approver": "bo"}
LIVE: dict[str, JsonValue] = {"type": "policy.activated", "proposal": 0}


@pytest.mark.parametrize(
    "said",
    [
        [LIVE],
        [BEGUN, LIVE],
        [BEGUN, {**SEEN, "approver": "ann"}],
        [BEGUN, SEEN, SEEN],
        [BEGUN, SEEN, LIVE, LIVE],
        [BEGUN, SEEN, {**LIVE, "digest": "bb"}],
        [{**BEGUN, "replaces": "bb"}, SEEN, LIVE],
    ],
)
def test_a_step_that_could_not_have_been_taken_is_not_believed(
    rulebook: Rulebook, said: list[dict[str, JsonValue]]
) -> None:
    for event in said:
        rulebook._topic.append({"v": 1, "at": 1, "digest": "aa", **event})
    with pytest.raises(LogError, match=f"entry {len(said) - 1} is a step of a policy that could"):
        rulebook.proposals()


def test_a_hidden_step_is_detected(rulebook: Rulebook, grant: Granting, log: Log) -> None:
    activate(rulebook, grant, approve(rulebook, grant, propose(rulebook, grant).index).index)
    with log.transaction() as transaction:
        transaction.connection.execute("DELETE FROM topic WHERE kind = 'policy.activated'")
    with pytest.raises(LogError, match="do not name the events that its log holds"):
        rulebook.verify()


def test_policy_files_are_read_in_order_and_all_count(another: Path) -> None:
    files = PolicyFiles.read(another)
    assert files.digest != FILES.digest
    assert files.policies.index("// What stays forbidden") < files.policies.index("What people may")
    (another / "limits.cedar").rename(another / "zlimits.cedar")
    assert PolicyFiles.read(another).digest != files.digest


def test_a_folder_without_policies_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="the policy files cannot be read"):
        PolicyFiles.read(tmp_path / "none")
    (tmp_path / "schema.cedarschema").write_text("entity Role;")
    with pytest.raises(PolicyError, match="the policy folder holds no policies"):
        PolicyFiles.read(tmp_path)
    (tmp_path / "ä.cedar").write_text("")
    with pytest.raises(PolicyError, match="the names of policy files must be ASCII"):
        PolicyFiles.read(tmp_path)
    (tmp_path / "a.cedar").write_bytes(b"\xff")
    with pytest.raises(PolicyError, match="the policy files cannot be read"):
        PolicyFiles.read(tmp_path)
