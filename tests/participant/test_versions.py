import dataclasses

import numpy as np
import pytest

from consent import Purpose, Remedy
from models.exchange import Delivery
from models.plan import Plan, PlanError
from participant.node import Node
from participant.partners import RemedySettings, Spreading
from participant.release import answer, join, receive
from participant.versions import ModelOutOfUse
from tests.federation.synthetic import (
    DAY_MS,
    NOTHING_WITNESSED,
    Federation,
    events,
    first_round,
    gradient_round,
    kinds,
    ready,
)

pytestmark = pytest.mark.usefixtures("both_stores")

WEIGHTS = {"weights": np.arange(29.0)}


@pytest.fixture
def plan(federation: Federation) -> Plan:
    plan = federation.plan()
    join(federation.nodes["amber"], ready(federation.sign(plan)))
    return plan


@pytest.fixture
def node(federation: Federation, plan: Plan) -> Node:
    """A node that sent two sums and keeps the model that they are in."""
    node = federation.nodes["amber"]
    answer(node, first_round(plan))
    answer(node, gradient_round(plan))
    deliver(node, plan)
    return node


def deliver(node: Node, plan: Plan, factor: float = 1.0) -> None:
    model = {name: array * factor for name, array in WEIGHTS.items()}
    receive(
        node,
        Delivery(plan_digest=plan.digest, parameters=model, witnessed=NOTHING_WITNESSED),
    )


def another(federation: Federation, node: Node) -> Plan:
    """The node takes part in a second plan and keeps its model."""
    plan = federation.plan(name="summer")
    join(node, ready(federation.sign(plan)))
    answer(node, first_round(plan))
    deliver(node, plan, factor=2.0)
    return plan


def test_a_model_that_is_kept_says_which_sums_are_in_it(node: Node, plan: Plan) -> None:
    (model,) = node.versions.all
    (released,) = [e for e in events(node) if e["type"] == "model.released"]
    sent = [(e["round"], e["permit"]) for e in events(node) if e["type"] == "release.sent"]

    assert list(model.sums) == sent
    assert released["sums"] == [{"round": r, "permit": p} for r, p in sent]
    assert (model.version, model.purpose) == (plan.digest, plan.purpose)
    assert node.model(plan.digest)["weights"].tolist() == WEIGHTS["weights"].tolist()
    assert node.versions.clocks(at=node.clock()) == []


def test_a_withdrawal_starts_the_clocks_of_the_models_that_learned_from_the_person(
    node: Node, plan: Plan
) -> None:
    subject, size = node.table.subjects[0], node.log.tree_size
    index = node.withdraw(subject)

    (late,) = node.versions.clocks(at=node.clock())
    assert (late.version, late.remedy) == (plan.digest, Remedy.RETRAIN)
    assert late.retrain_by == day(node.clock() + 21 * DAY_MS)
    assert late.retire_by == day(node.clock() + 30 * DAY_MS)
    assert kinds(node, after=size) == ["remedy.opened"]
    assert index == size
    told = events(node, after=size)[0]
    assert told.keys() == {"type", "v", "at", "model", "retrain_by", "retire_by"}
    assert told["at"] == node.clock() // 60_000 * 60_000


def day(at: int) -> int:
    return at - at % DAY_MS


def test_clocks_that_run_are_not_put_off_and_others_do_not_begin(node: Node) -> None:
    first, second = node.table.subjects[:2]
    stranger = node.table.subjects[-1]
    size = node.log.tree_size
    node.withdraw(stranger)
    node.withdraw(first, [Purpose.CONTACT])
    node.withdraw("nobody")
    assert "remedy.opened" not in kinds(node, after=size)
    node.object(first)
    node.restrict(second)

    assert kinds(node, after=size).count("remedy.opened") == 1


@pytest.mark.parametrize("act", ["object", "restrict", "erase"])
def test_every_way_of_taking_back_starts_the_clocks(node: Node, act: str) -> None:
    getattr(node, act)(node.table.subjects[0])

    assert len(node.versions.clocks(at=node.clock())) == 1
    node.register.verify_replay()


def test_a_consent_found_to_be_none_starts_the_clocks_too(node: Node) -> None:
    subject, at = node.table.subjects[0], node.clock()
    node.withdrawals.invalidate(
        subject, [Purpose.FEDERATED_TRAINING], reason="no notice was shown", at=at
    )

    assert len(node.versions.clocks(at=at)) == 1


def test_who_withdrew_before_the_model_was_released_starts_its_clocks_at_once(
    federation: Federation, plan: Plan
) -> None:
    node = federation.nodes["amber"]
    answer(node, first_round(plan))
    node.withdraw(node.table.subjects[0])
    assert node.versions.clocks(at=node.clock()) == []
    deliver(node, plan)

    assert [late.version for late in node.versions.clocks(at=node.clock())] == [plan.digest]


def test_lineage_tells_rounds_and_models_of_a_person(federation: Federation, plan: Plan) -> None:
    node = federation.nodes["amber"]
    subject, stays = node.table.subjects[:2]
    answer(node, first_round(plan))
    node.withdraw(subject)
    answer(node, gradient_round(plan))
    deliver(node, plan)
    gone, here = node.lineage(subject), node.lineage(stays)

    assert [(used.run, used.round, used.is_sent) for used in gone.rounds] == [
        (plan.digest, 1, True)
    ]
    assert [used.round for used in here.rounds] == [1, 2]
    (used,) = gone.models
    assert used.model.version == plan.digest
    assert used.clocks is not None
    assert node.lineage("nobody").rounds == node.lineage("nobody").models == ()


def test_a_round_that_was_thrown_away_is_opened_and_not_sent(
    federation: Federation, plan: Plan
) -> None:
    node = federation.nodes["amber"]
    subject, size = node.table.subjects[0], node.log.tree_size

    def clock() -> int:
        if kinds(node, after=size) == ["permit.issued"]:
            node.register.withdraw(subject, at=federation.clock())
        return federation.clock()

    node.clock = clock
    answer(node, first_round(plan))
    deliver(node, plan)
    lineage = node.lineage(subject)

    assert [used.is_sent for used in lineage.rounds] == [False]
    assert lineage.models == ()
    assert node.versions.clocks(at=node.clock()) == []


def test_a_model_whose_time_is_over_is_not_handed_out(
    federation: Federation, node: Node, plan: Plan
) -> None:
    node.withdraw(node.table.subjects[0])
    (late,) = node.versions.clocks(at=node.clock())
    federation.clock.now = late.retire_by - 1
    assert node.model(plan.digest)
    federation.clock.now = late.retire_by

    with pytest.raises(ModelOutOfUse, match="had to be out of use by now: retire it, and train"):
        node.model(plan.digest)
    reopened = federation.reopen("amber")
    with pytest.raises(ModelOutOfUse, match="nothing was handed out"):
        reopened.model(plan.digest)


def test_a_retired_model_is_gone_for_good_and_its_clocks_stop(
    federation: Federation, node: Node, plan: Plan
) -> None:
    node.withdraw(node.table.subjects[0])
    newer = another(federation, node)
    node.retire_model(plan.digest, replaced_by=newer.digest)

    assert node.versions.clocks(at=node.clock()) == []
    assert [e["replaced_by"] for e in events(node) if e["type"] == "model.retired"] == [
        newer.digest
    ]
    with pytest.raises(ModelOutOfUse, match=f"the model {plan.digest} is retired; nothing was han"):
        node.model(plan.digest)
    with pytest.raises(ModelOutOfUse, match="is retired already; nothing was changed"):
        node.retire_model(plan.digest)
    assert node.model(newer.digest)
    deliver(node, plan)
    with pytest.raises(ModelOutOfUse, match="is retired"):
        node.model(plan.digest)


def test_a_model_is_not_replaced_by_one_that_is_no_better(
    federation: Federation, node: Node, plan: Plan
) -> None:
    newer = another(federation, node)
    node.withdraw(node.table.subjects[0])

    for bad in (plan.digest, newer.digest):
        with pytest.raises(ModelOutOfUse, match=f"{bad} cannot take the place of {plan.digest}"):
            node.retire_model(plan.digest, replaced_by=bad)
    with pytest.raises(ModelOutOfUse, match="no model 00 was saved here; nothing was handed out"):
        node.retire_model(plan.digest, replaced_by="00")
    assert len(node.versions.clocks(at=node.clock())) == 2


def test_a_plan_makes_one_model(node: Node, plan: Plan) -> None:
    size = node.log.tree_size
    deliver(node, plan)
    assert kinds(node, after=size) == ["model.received"]

    with pytest.raises(PlanError, match="plan 'spring' makes one model: the model of plan "):
        deliver(node, plan, factor=3.0)
    assert node.model(plan.digest)["weights"].tolist() == WEIGHTS["weights"].tolist()


def test_a_file_that_was_changed_is_not_handed_out(node: Node, plan: Plan) -> None:
    path = node.config.folder / "models" / f"{plan.digest}.npz"
    path.write_bytes(path.read_bytes()[:-1] + b"x")

    with pytest.raises(ModelOutOfUse, match="is not the one that was saved; nothing was handed"):
        node.model(plan.digest)


def test_the_clocks_are_the_nodes_own_choice(federation: Federation, node: Node) -> None:
    node.close()
    spreading = Spreading(remedy=RemedySettings(retrain_days=1, retire_days=2))
    config = dataclasses.replace(node.config, spreading=spreading)
    federation.nodes["amber"] = node = Node.open(config, clock=federation.clock)
    node.withdraw(node.table.subjects[0])

    (late,) = node.versions.clocks(at=node.clock())
    assert late.retire_by - late.retrain_by == DAY_MS
