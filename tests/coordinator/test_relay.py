"""Heads and cosignatures between members, carried by a coordinator that nobody has to believe."""

import shutil
from collections.abc import Callable

import pytest
from flwr.app import ConfigRecord, Message

from consent import (
    Checkpoint,
    Evidence,
    LogError,
    NoteError,
    cosign,
    sign_checkpoint,
    verify_cosignatures,
    verify_published,
)
from coordinator.host import Host
from coordinator.relay import FRESH_MS
from coordinator.rounds import RunStatus
from models.exchange import WITNESS, Testimony, WitnessRequest
from models.plan import PlanError
from participant.release import show
from tests.federation.synthetic import NAMES, NOTHING_WITNESSED, Federation, Wire, kinds

Fields = dict[str, object]


def changing_testimony(
    name: str, change: Callable[[Fields], Fields]
) -> Callable[[str, Message, Message], Message]:
    """Change what one member says as a witness, each time."""

    def act(asked: str, message: Message, got: Message) -> Message:
        if (asked, message.metadata.message_type) == (name, WITNESS):
            old = dict(got.content["fields"])  # type: ignore[arg-type, call-overload]
            got.content["fields"] = ConfigRecord({**old, **change(old)})  # type: ignore[dict-item]
        return got

    return act


def silent(*names: str) -> Callable[[str, Message, Message], Message | None]:
    return lambda name, _, got: None if name in names else got


def events_of(host: Host, kind: str) -> list[dict[str, object]]:
    return [dict(entry.value) for entry in host.log.entries() if entry.value.get("type") == kind]


def test_every_accepted_update_had_a_fresh_quorum(federation: Federation) -> None:
    run = federation.train(federation.plan())

    accepted = events_of(federation.host, "update.accepted")
    assert run.status is RunStatus.COMPLETED
    assert len(accepted) == 3 * len(NAMES)
    for event in accepted:
        assert federation.policy.is_quorum(event["cosigners"])  # type: ignore[arg-type]
        assert len(event["evidence"]) == 3  # type: ignore[arg-type]


def test_the_coordinators_own_log_tells_the_run_and_the_members_cosign_it(
    federation: Federation,
) -> None:
    plan = federation.plan()
    federation.train(plan)
    host = federation.host

    verdict = verify_published(host.publish(), federation.policy)

    assert set(verdict.cosigners) == {"coordinator", *NAMES}
    assert verdict.events == {
        "coordinator.created": 1,
        "members.enrolled": 1,
        "run.offered": 1,
        "round.begun": 3,
        "update.accepted": 12,
        "round.aggregated": 3,
        "model.delivered": 1,
        "run.ended": 1,
    }
    assert all(event["run"] == plan.digest for event in events_of(host, "round.begun"))


def test_with_one_peer_down_the_others_are_enough(federation: Federation) -> None:
    run = federation.train(federation.plan(), grid=Wire(federation.nodes, change=silent("dune")))

    assert run.status is RunStatus.COMPLETED
    accepted = events_of(federation.host, "update.accepted")
    assert {str(event["member"]) for event in accepted} == {"amber", "birch", "cedar"}
    assert all("dune" not in event["cosigners"] for event in accepted)  # type: ignore[operator]


def test_with_two_witnesses_silent_no_update_is_accepted(federation: Federation) -> None:
    def mute(name: str, message: Message, got: Message) -> Message | None:
        is_witness = message.metadata.message_type == WITNESS
        return None if is_witness and name in ("cedar", "dune") else got

    run = federation.train(federation.plan(), grid=Wire(federation.nodes, change=mute))

    assert run.status is RunStatus.FAILED
    assert run.rounds == []
    assert "was cosigned in the last ten minutes by coordinator, amber, birch, which" in run.reason
    assert "is not the quorum 'federation'" in run.reason
    refused = events_of(federation.host, "update.refused")
    assert {event["reason"] for event in refused} == {"unwitnessed"}


def test_a_peer_that_missed_a_run_gets_the_proof_from_where_it_stands(
    federation: Federation,
) -> None:
    federation.train(federation.plan(name="first"))
    federation.train(
        federation.plan(name="second"), grid=Wire(federation.nodes, change=silent("dune"))
    )
    behind = federation.nodes["dune"].tower.size_of("amber")

    run = federation.train(federation.plan(name="third"))

    assert run.status is RunStatus.COMPLETED
    assert 0 < behind < federation.nodes["dune"].tower.size_of("amber")
    assert run.refusals == {}
    third = [e for e in events_of(federation.host, "update.accepted") if e["member"] == "amber"]
    assert "dune" in third[-1]["cosigners"]  # type: ignore[operator]


def test_a_coordinator_that_forgot_what_members_know_learns_it_again(
    federation: Federation,
) -> None:
    federation.train(federation.plan(name="first"))
    federation.host.close()
    federation.host = Host(federation.host.folder, clock=federation.clock)

    run = federation.train(federation.plan(name="second"))

    assert (run.status, run.refusals) == (RunStatus.COMPLETED, {})


@pytest.mark.parametrize(
    "change",
    [
        lambda old: {"cosigned_lines": [line[:-6] + "AAA=\n" for line in old["cosigned_lines"]]},
        lambda old: {"cosigned_lines": ["nonsense" for _ in old["cosigned_lines"]]},
        lambda old: {"convictions": [b"{}"]},
    ],
    ids=["forged", "nonsense", "false evidence"],
)
def test_a_member_that_lies_as_a_witness_counts_as_one_that_is_down(
    federation: Federation, change: Callable[[Fields], Fields]
) -> None:
    wire = Wire(federation.nodes, change=changing_testimony("dune", change))

    run = federation.train(federation.plan(), grid=wire)

    assert run.status is RunStatus.COMPLETED
    accepted = events_of(federation.host, "update.accepted")
    assert all(
        "dune" not in event["cosigners"]  # type: ignore[operator]
        for event in accepted
        if event["member"] != "dune"
    )
    assert not federation.host.quarantined


def head_of(federation: Federation, name: str) -> str:
    host, node = federation.host, federation.nodes[name]
    reply = show(node, WitnessRequest(witnessed=host.relay.witnessed(name)))
    host.relay.take(host.member(name), reply, federation.policy)
    return node.log.checkpoint()


def test_a_cosignature_of_another_time_is_refused(federation: Federation) -> None:
    note, birch = head_of(federation, "amber"), federation.nodes["birch"]
    size = federation.nodes["amber"].log.tree_size
    for minutes_off in (-5, 5):
        at = federation.clock() + minutes_off * 60_000 + minutes_off * 1000
        line = cosign(note, birch.identity, at=at).removeprefix(note)
        testimony = Testimony(known={"amber": size}, cosigned=(("amber", line),))
        with pytest.raises(NoteError, match="has a time five minutes off or more"):
            federation.host.relay.absorb("birch", testimony, federation.policy)


def test_a_cosignature_by_somebody_else_is_refused(federation: Federation) -> None:
    note, cedar = head_of(federation, "amber"), federation.nodes["cedar"]
    size = federation.nodes["amber"].log.tree_size
    line = cosign(note, cedar.identity, at=federation.clock()).removeprefix(note)
    testimony = Testimony(known={"amber": size}, cosigned=(("amber", line),))

    with pytest.raises(NoteError, match="its cosignature of the log 'amber' is not its own"):
        federation.host.relay.absorb("birch", testimony, federation.policy)


def test_an_old_quorum_is_none(federation: Federation) -> None:
    federation.train(federation.plan())
    relay, policy = federation.host.relay, federation.policy
    size = federation.nodes["amber"].log.tree_size
    assert "birch" in relay.verify_fresh("amber", policy, tree_size=size)

    with pytest.raises(NoteError, match="by nobody, which is not the quorum"):
        relay.verify_fresh("amber", policy, tree_size=size + 1)
    federation.clock.now += FRESH_MS + 1000
    with pytest.raises(NoteError, match="by nobody, which is not the quorum"):
        relay.verify_fresh("amber", policy, tree_size=size)


def test_a_log_that_grows_while_it_is_carried_round_still_gets_its_quorum(
    federation: Federation,
) -> None:
    """Customers act at a node at any time; each act moves its head."""

    def busy(name: str, message: Message, got: Message) -> Message:
        federation.nodes[name].record("test.happened")
        return got

    run = federation.train(federation.plan(), grid=Wire(federation.nodes, change=busy))

    assert (run.status, run.refusals) == (RunStatus.COMPLETED, {})


def test_a_log_that_shows_two_heads_to_two_witnesses_is_quarantined(
    federation: Federation,
) -> None:
    """The fork was shown to one peer only, over HTTP as it were; the relay brings it together."""
    dune, amber, host = federation.nodes["dune"], federation.nodes["amber"], federation.host
    fork = sign_checkpoint(Checkpoint("dune", dune.log.tree_size + 1, b"f" * 32), dune.identity)
    dune.record("test.happened")
    evidence = Evidence(log=dune.identity.public, known=dune.log.checkpoint(), shown=fork)
    assert amber.tower.convict(evidence)

    run = federation.train(federation.plan())

    assert host.quarantined == {"dune"}
    assert "'dune' signed two different heads of one size" in run.refusals["dune"]
    assert run.status is RunStatus.COMPLETED
    assert all("dune" not in record.cohort for record in run.rounds)
    (path,) = (host.folder / "evidence").glob("*.json")
    assert Evidence.parse(path.read_bytes()) == evidence
    assert [event["origin"] for event in events_of(host, "witness.conflict")] == ["dune"]
    host.release("dune", reason="looked into it")
    assert not host.quarantined
    assert events_of(host, "member.released")[0]["reason"] == "looked into it"


def test_evidence_against_another_key_quarantines_nobody(federation: Federation) -> None:
    stranger = type(federation.host.identity).generate("dune")
    notes = [sign_checkpoint(Checkpoint("dune", 3, byte * 32), stranger) for byte in (b"a", b"b")]
    evidence = Evidence(log=stranger.public, known=notes[0], shown=notes[1])

    with pytest.raises(PlanError, match="the evidence is against another key than that of dune"):
        federation.host.quarantine(evidence)


def test_a_node_put_back_from_an_older_copy_takes_part_in_nothing(
    federation: Federation,
) -> None:
    dune = federation.nodes["dune"]
    dune.close()
    shutil.copytree(dune.config.folder, federation.folder / "backup")
    federation.reopen("dune")
    federation.train(federation.plan(name="first"))
    federation.nodes["dune"].close()
    shutil.rmtree(dune.config.folder)
    shutil.copytree(federation.folder / "backup", dune.config.folder)
    federation.reopen("dune")

    plan = federation.plan(name="second")
    run = federation.train(plan)

    assert run.status is RunStatus.COMPLETED
    assert run.refusals == {"dune": "dune cannot answer now; its operator sees why"}
    assert "release.sent" not in kinds(federation.nodes["dune"])
    with pytest.raises(LogError, match="another witness has seen: it was put back"):
        show(federation.nodes["dune"], WitnessRequest(witnessed=NOTHING_WITNESSED))


def test_a_coordinator_put_back_from_an_older_copy_asks_nobody(federation: Federation) -> None:
    host = federation.host
    host.close()
    shutil.copytree(host.folder / "log", federation.folder / "old-log")
    federation.host = Host(host.folder, clock=federation.clock)
    federation.train(federation.plan(name="first"))
    federation.host.close()
    shutil.rmtree(host.folder / "log")
    shutil.copytree(federation.folder / "old-log", host.folder / "log")
    federation.host = Host(host.folder, clock=federation.clock)
    plan = federation.plan(name="second")
    before = kinds(federation.nodes["amber"])
    federation.host.propose(federation.sign(plan))
    before += ["access.allowed", "plan.approved"]

    with pytest.raises(LogError, match="its own witness has seen: it was put back"):
        federation.lead(plan)
    assert kinds(federation.nodes["amber"]) == before


def test_a_coordinator_without_its_policy_asks_nobody(federation: Federation) -> None:
    (federation.host.folder / "trust.policy").unlink()

    with pytest.raises(NoteError, match="the coordinator has no trust policy; nobody was asked"):
        federation.train(federation.plan())


def test_what_members_cosigned_is_kept_in_each_log(federation: Federation) -> None:
    federation.train(federation.plan())

    for node in federation.nodes.values():
        found = verify_cosignatures(node.log.newest_note(), federation.policy)
        assert set(found.cosigners) == {"coordinator", *NAMES}
        assert found.checkpoint.tree_size == node.log.tree_size
