from pathlib import Path

import pytest

from coordinator.host import Host
from models.plan import PlanError
from tests.federation.synthetic import Federation, ready


def test_a_coordinator_is_not_created_over_an_existing_folder(federation: Federation) -> None:
    with pytest.raises(FileExistsError):
        Host.create(federation.host.folder, name="coordinator")
    assert Host(federation.host.folder).identity.public == federation.host.identity.public


def test_its_key_is_readable_by_its_owner_only(federation: Federation) -> None:
    assert (federation.host.folder / "identity.key").stat().st_mode & 0o777 == 0o600


def test_members_are_known_by_their_pinned_keys(federation: Federation) -> None:
    assert federation.host.member("amber") == federation.nodes["amber"].identity.public
    with pytest.raises(PlanError, match=r"^zoe is not enrolled; its message was dropped$"):
        federation.host.member("zoe")


def test_the_policy_believes_each_member_with_the_coordinators_cosignature(
    federation: Federation,
) -> None:
    policy = federation.policy

    assert {log.name for log in policy.logs} == set(federation.nodes)
    assert policy.witnesses == {"coordinator": federation.host.identity.public}
    assert policy.quorum == "coordinator"


@pytest.mark.parametrize("digest", ["00" * 32, "", "../coordinator", "."])
def test_a_plan_that_was_not_proposed_is_not_run(federation: Federation, digest: str) -> None:
    with pytest.raises(PlanError, match=rf"^no plan {digest[:12]} was proposed; nothing was run$"):
        federation.host.run(digest)


def test_a_proposed_plan_is_there_after_a_restart(federation: Federation) -> None:
    plan = federation.plan()
    signed = federation.sign(plan)
    federation.host.propose(signed)

    again, run = Host(federation.host.folder).run(plan.digest)

    assert again == signed
    assert run.rounds == []


def test_what_was_witnessed_is_remembered_across_a_restart(federation: Federation) -> None:
    node, host = federation.nodes["amber"], federation.host
    assert (host.witnessed("amber").tree_size, host.witnessed("amber").note) == (0, "")

    host.cosign("amber", checkpoint=node.log.checkpoint(), proof=(), at=federation.clock())

    assert host.witnessed("amber").tree_size == node.log.tree_size
    node.log.accept_cosigned(host.witnessed("amber").note, node.trust_policy)
    again = Host(host.folder)
    assert (again.witnessed("amber").tree_size, again.witnessed("amber").note) == (
        node.log.tree_size,
        "",
    )
    again.close()


def test_proposing_again_keeps_the_run(federation: Federation, tmp_path: Path) -> None:
    plan = federation.plan()
    run = federation.train(plan)
    signed, _ = federation.host.run(plan.digest)

    again = federation.host.propose(signed)

    assert [record.round for record in again.rounds] == [record.round for record in run.rounds]
    assert ready(signed).signed_plan == signed.format()
