from pathlib import Path

import pytest

from consent import verify_cosignatures
from coordinator.host import Host
from models.exchange import Witnessed, WitnessRequest
from models.plan import PlanError
from participant.release import show
from tests.federation.synthetic import Federation, ready


def test_a_coordinator_is_not_created_over_an_existing_folder(federation: Federation) -> None:
    with pytest.raises(FileExistsError):
        Host.create(federation.host.folder, name="coordinator")
    federation.host.close()
    with Host(federation.host.folder) as again:
        assert again.identity.public == federation.host.identity.public


def test_its_key_is_readable_by_its_owner_only(federation: Federation) -> None:
    assert (federation.host.folder / "identity.key").stat().st_mode & 0o777 == 0o600


def test_members_are_known_by_their_pinned_keys(federation: Federation) -> None:
    assert federation.host.member("amber") == federation.nodes["amber"].identity.public
    with pytest.raises(PlanError, match=r"^zoe is not enrolled; its message was dropped$"):
        federation.host.member("zoe")


def test_the_policy_asks_for_the_coordinator_and_more_than_half_of_the_peers(
    federation: Federation,
) -> None:
    policy = federation.policy

    assert {log.name for log in policy.logs} == {*federation.nodes, "coordinator"}
    assert set(policy.witnesses) == {*federation.nodes, "coordinator"}
    for cosigners, enough in [
        (("coordinator", "amber", "birch", "cedar"), True),
        (("coordinator", "amber", "birch"), False),
        (("amber", "birch", "cedar", "dune"), False),
    ]:
        assert policy.is_quorum(cosigners) == enough
    assert federation.nodes["amber"].trust_policy == policy


@pytest.mark.parametrize("digest", ["00" * 32, "", "../coordinator", "."])
def test_a_plan_that_was_not_proposed_is_not_run(federation: Federation, digest: str) -> None:
    with pytest.raises(PlanError, match=rf"^no plan {digest[:12]} was proposed; nothing was run$"):
        federation.host.run(digest)


def test_a_proposed_plan_is_there_after_a_restart(federation: Federation) -> None:
    plan = federation.plan()
    signed = federation.sign(plan)
    federation.host.propose(signed)

    federation.host.close()
    with Host(federation.host.folder) as host:
        again, run = host.run(plan.digest)

    assert again == signed
    assert run.rounds == []


def test_what_was_witnessed_is_remembered_across_a_restart(federation: Federation) -> None:
    node, host = federation.nodes["amber"], federation.host
    assert host.relay.witnessed("amber") == Witnessed(tree_size=0, note="")
    reply = show(node, WitnessRequest(witnessed=host.relay.witnessed("amber")))

    host.relay.take(host.member("amber"), reply, host.trust_policy)
    host.close()

    with Host(host.folder, clock=federation.clock) as again:
        witnessed = again.relay.witnessed("amber")
        assert witnessed.tree_size == node.log.tree_size
        note = node.log.collect(witnessed.note, node.trust_policy)
        assert "coordinator" in verify_cosignatures(note, federation.policy).cosigners


def test_proposing_again_keeps_the_run(federation: Federation, tmp_path: Path) -> None:
    plan = federation.plan()
    run = federation.train(plan)
    signed, _ = federation.host.run(plan.digest)

    again = federation.host.propose(signed)

    assert [record.round for record in again.rounds] == [record.round for record in run.rounds]
    assert ready(signed).signed_plan == signed.format()
