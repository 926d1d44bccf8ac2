import dataclasses
import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from consent import Checkpoint, PermittedView, Refused, Use, UseKind, sign_checkpoint
from models.exchange import CONTRIBUTION_CONTEXT, Delivery, Reply, RoundRequest, Witnessed
from models.plan import Plan, PlanError, SignedPlan
from models.recommendation import ItemGram
from participant import release
from participant.node import Node
from participant.partners import OnWithdraw, Spreading
from participant.release import answer, join, receive
from privacy import Budget, BudgetExhausted, ReleaseKey, Replayed, SumRefused
from tests.federation.synthetic import (
    NOTHING_WITNESSED,
    PURPOSE,
    Federation,
    ask,
    churn_recipe,
    events,
    first_round,
    gradient_round,
    kinds,
    ready,
)


@pytest.fixture
def plan(federation: Federation) -> Plan:
    """A plan that everybody signed and amber has joined."""
    plan = federation.plan()
    join(federation.nodes["amber"], ready(federation.sign(plan)))
    return plan


@pytest.fixture
def node(federation: Federation, plan: Plan) -> Node:
    return federation.nodes["amber"]


def memory(node: Node) -> tuple[int, float]:
    """What must not change when nothing may be charged."""
    return len(node.ledger.history()), node.ledger.spent(PURPOSE.value).epsilon


def test_joining_opens_no_data_and_costs_nothing(federation: Federation) -> None:
    node, plan = federation.nodes["amber"], federation.plan()
    signed = federation.sign(plan)
    before, size = memory(node), node.log.tree_size

    reply = join(node, ready(signed))

    assert kinds(node, after=size) == ["run.joined"]
    assert memory(node) == before
    assert (reply.masked, reply.signature) == (b"", b"")
    assert set(node.approved(plan.digest).signatures) == {"amber", "birch", "cedar"}


def test_joining_a_plan_for_another_catalogue_is_refused(shared: Federation) -> None:
    recipe = dataclasses.replace(shared.item_recipe(), catalogue_digest="00" * 32)
    plan = shared.plan(recipe)
    message = "plan 'spring' is for another catalogue than amber has"
    with pytest.raises(PlanError, match=message):
        join(shared.nodes["amber"], ready(shared.sign(plan)))


def test_joining_a_plan_that_somebody_else_signed_in_anothers_name_is_refused(
    federation: Federation,
) -> None:
    plan = federation.plan()
    signed = federation.sign(plan)
    mixed = {**signed.signatures, "birch": signed.signatures["cedar"]}
    with pytest.raises(PlanError, match="the signature of birch is not for plan 'spring'"):
        join(federation.nodes["amber"], ready(SignedPlan(plan=plan, signatures=mixed)))


def test_authorise_charge_send_is_the_order_in_the_log(node: Node, plan: Plan) -> None:
    size = node.log.tree_size

    reply = answer(node, first_round(plan))

    permit, charge, sent = events(node, after=size)
    assert [permit["type"], charge["type"], sent["type"]] == [
        "permit.issued",
        "budget.charged",
        "release.sent",
    ]
    assert permit["use"] == {
        "kind": "train",
        "run": plan.digest,
        "round": 1,
        "attempt": 1,
        "recipients": list(plan.recipients),
    }
    assert node.ledger.contains_head(str(charge["ledger_head"]))
    assert sent["permit"] == permit["permit"]
    assert sent["kind"] == "second moments"
    assert sent["size_bytes"] == len(reply.masked)
    assert sent["sha256"] == hashlib.sha256(reply.masked).hexdigest()
    assert [event[key] for event in (charge, sent) for key in ("round", "attempt")] == [1, 1, 1, 1]


def test_an_answer_is_signed_by_the_participants_own_key(node: Node, plan: Plan) -> None:
    request = first_round(plan)

    reply = answer(node, request)

    signed = Reply.signed_bytes(request.digest, reply.masked)
    node.identity.public.verify(CONTRIBUTION_CONTEXT, signed, reply.signature)


def broken_requests(plan: Plan) -> Iterator[tuple[str, RoundRequest, str]]:
    first = first_round(plan)
    nan = {"weights": np.full(29, np.nan)}
    yield "an extra round", dataclasses.replace(first, round=4), "has rounds 1 to 3, not 4; no data"
    yield "round zero", dataclasses.replace(first, round=0), "has rounds 1 to 3, not 0; no data"
    yield "attempt three", dataclasses.replace(first, attempt=3), "allows attempts 1 to 2, not 3;"
    yield "attempt zero", dataclasses.replace(first, attempt=0), "allows attempts 1 to 2, not 0;"
    yield (
        "two brands",
        dataclasses.replace(first, cohort=("amber", "birch")),
        "plan 'spring' needs 3 brands in each sum, the cohort has 2; no data was opened",
    )
    yield (
        "one brand three times",
        dataclasses.replace(first, cohort=("amber",) * 3),
        "a cohort must be sorted and name each member once; no data was opened",
    )
    yield (
        "an unknown member",
        dataclasses.replace(first, cohort=("amber", "birch", "zoe")),
        "zoe is not pinned in the roster of amber",
    )
    yield (
        "a name that the log cannot spell",
        dataclasses.replace(first, cohort=("amber", "birch", "zoe\u0308")),
        "zo\u00eb is not pinned in the roster of amber",
    )
    yield (
        "a plan that nobody signed",
        dataclasses.replace(first, plan_digest="00" * 32),
        "amber has not approved this plan; no data was opened",
    )
    yield (
        "the plan with one digit more",
        dataclasses.replace(
            first, plan_digest=dataclasses.replace(plan, expires_at=plan.expires_at + 1).digest
        ),
        "amber has not approved this plan; no data was opened",
    )
    yield (
        "weights that are no numbers",
        gradient_round(plan, announced=nan),
        r"needs a finite weights of shape \(29,\), got shape \(29,\); .*; no data was opened",
    )
    yield (
        "weights of another shape",
        gradient_round(plan, announced={"weights": np.zeros(3)}),
        r"needs a finite weights of shape \(29,\), got shape \(3,\); .*; no data was opened",
    )
    yield (
        "no weights",
        gradient_round(plan, announced={}),
        r"needs a finite weights of shape \(29,\), got nothing; .*; no data was opened",
    )


def test_what_the_plan_does_not_allow_is_refused_before_anything_is_opened(
    node: Node, plan: Plan
) -> None:
    for name, request, message in broken_requests(plan):
        before, size = memory(node), node.log.tree_size

        said = ask(node, "train.round", request.to_record())["fields"]

        assert said["name"] == "amber"  # type: ignore[index]
        with pytest.raises(AssertionError, match=message):
            raise AssertionError(said["refused"])  # type: ignore[index]
        assert memory(node) == before, name
        (event,) = events(node, after=size)
        assert (event["type"], event["kind"]) == ("message.refused", "train.round"), name
        assert event["reason"] == said["refused"]  # type: ignore[index]


def test_a_cohort_without_the_node_itself_is_refused(tmp_path: Path) -> None:
    federation = Federation.create(tmp_path, customers=15)
    plan = federation.plan()
    node = federation.nodes["amber"]
    join(node, ready(federation.sign(plan)))
    before = memory(node)

    with pytest.raises(SumRefused, match="amber is not in the cohort; nothing was masked"):
        answer(node, first_round(plan, cohort=("birch", "cedar", "dune")))

    assert memory(node) == before
    federation.close()


def test_a_cohort_with_a_brand_that_has_not_signed_is_refused(tmp_path: Path) -> None:
    federation = Federation.create(tmp_path, customers=15)
    plan = federation.plan()
    node = federation.nodes["amber"]
    join(node, ready(federation.sign(plan, by=["amber", "birch", "cedar"])))
    before = memory(node)

    with pytest.raises(PlanError, match="dune has not approved plan 'spring'"):
        answer(node, first_round(plan))
    assert memory(node) == before

    answer(node, first_round(plan, cohort=("amber", "birch", "cedar")))
    assert memory(node) > before
    federation.close()


def test_a_plan_that_expired_since_it_was_signed_is_refused(
    federation: Federation, node: Node, plan: Plan
) -> None:
    before = memory(node)
    federation.clock.now = plan.expires_at

    with pytest.raises(PlanError, match="plan 'spring' has expired"):
        answer(node, first_round(plan))

    assert memory(node) == before


def test_a_signed_plan_with_one_changed_digit_is_refused(shared: Federation) -> None:
    plan = shared.plan()
    signed = shared.sign(plan)
    changed = dataclasses.replace(plan, colluders=0)
    with pytest.raises(PlanError, match="amber has not approved this plan"):
        join(shared.nodes["amber"], ready(dataclasses.replace(signed, plan=changed)))


def test_a_plan_with_another_number_of_features_is_refused_before_a_charge(
    federation: Federation,
) -> None:
    plan = federation.plan(dataclasses.replace(churn_recipe(), n_features=3))
    node = federation.nodes["amber"]
    join(node, ready(federation.sign(plan)))
    before, size = memory(node), node.log.tree_size

    with pytest.raises(PlanError, match=r"the plan names 3 features, .*; no data was opened"):
        answer(node, first_round(plan))

    assert memory(node) == before
    assert kinds(node, after=size) == []


def test_a_catalogue_that_does_not_fit_is_refused_before_a_charge(federation: Federation) -> None:
    plan = federation.plan(federation.item_recipe())
    node = federation.nodes["amber"]
    join(node, ready(federation.sign(plan)))
    answer(node, first_round(plan))
    before = memory(node)
    size = plan.recipe.catalogue_size  # type: ignore[union-attr]
    backwards = {"catalogue": np.arange(size, 0, -1.0), "direction": np.zeros(size)}

    with pytest.raises(PlanError, match="the catalogue must be ascending item numbers"):
        answer(node, first_round(plan, round=2, announced=backwards))

    assert memory(node) == before


def test_the_same_request_gets_the_same_bytes_and_one_charge(
    federation: Federation, node: Node, plan: Plan
) -> None:
    request = first_round(plan)
    first = answer(node, request)
    charged = memory(node)

    again = answer(node, request)
    after_restart = answer(federation.reopen("amber"), request)

    assert again.masked == after_restart.masked == first.masked
    assert again.signature == after_restart.signature == first.signature
    assert memory(federation.nodes["amber"]) == charged
    log = kinds(federation.nodes["amber"])
    assert (log.count("permit.issued"), log.count("budget.charged")) == (1, 1)
    assert log.count("release.sent") == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"announced": {"weights": np.full(29, 1e-300)}},
        {"announced": {"weights": np.zeros(29), "more": np.zeros(1)}},
    ],
)
def test_an_attempt_is_answered_for_one_request_only(
    federation: Federation, node: Node, plan: Plan, changes: dict[str, Any]
) -> None:
    answer(node, gradient_round(plan))
    before = memory(node)

    with pytest.raises(SumRefused, match="was answered before for other terms; nothing was sent"):
        answer(node, gradient_round(plan, **changes))
    with pytest.raises(SumRefused, match="was answered before for other terms; nothing was sent"):
        answer(federation.reopen("amber"), gradient_round(plan, **changes))

    assert memory(federation.nodes["amber"]) == before


def test_an_attempt_that_was_only_reserved_is_not_answered_for_other_terms(
    node: Node, plan: Plan
) -> None:
    request = gradient_round(plan)
    key = ReleaseKey(run=plan.digest, round=2, attempt=1)
    release = plan.queries[1].release(shares=len(plan.members))
    node.charge(key, purpose=PURPOSE, release=release, digest=bytes(32))

    with pytest.raises(Replayed, match="was reserved for another request; nothing was released"):
        answer(node, request)

    assert "release.sent" not in kinds(node)


def test_another_attempt_is_another_draw_and_another_charge(node: Node, plan: Plan) -> None:
    first = answer(node, first_round(plan))
    spent = memory(node)[1]

    second = answer(node, first_round(plan, attempt=2))

    assert second.masked != first.masked
    assert memory(node)[1] > spent


def test_an_exhausted_budget_refuses_with_the_numbers(tmp_path: Path) -> None:
    federation = Federation.create(
        tmp_path,
        names=("amber", "birch", "cedar"),
        customers=15,
        budget=Budget(epsilon=1.02, delta=1e-5),
    )
    node, plan = federation.nodes["amber"], federation.plan()
    join(node, ready(federation.sign(plan)))
    # A voided attempt is paid for, so that the last round has too little left.
    for request in (first_round(plan), first_round(plan, attempt=2), gradient_round(plan)):
        answer(node, request)
    before, size = memory(node), node.log.tree_size

    with pytest.raises(
        BudgetExhausted,
        match=r"^purpose federated_training: epsilon would be 1.\d+, the budget is 1.02 and 0.\d+ "
        r"is spent \(delta 1e-05\); nothing was released$",
    ):
        answer(node, gradient_round(plan, round=3))

    assert memory(node) == before
    assert kinds(node, after=size) == ["permit.issued"]
    federation.close()


def test_a_run_that_the_budget_cannot_finish_is_not_joined(tmp_path: Path) -> None:
    federation = Federation.create(
        tmp_path,
        names=("amber", "birch", "cedar"),
        customers=15,
        budget=Budget(epsilon=0.6, delta=1e-5),
    )
    node, plan = federation.nodes["amber"], federation.plan()

    with pytest.raises(
        PlanError,
        match=r"^amber has epsilon 0.6 left for federated_training, and plan 'spring' costs 1; "
        "nothing was charged$",
    ):
        join(node, ready(federation.sign(plan)))

    assert memory(node) == (1, 0.0)
    federation.close()


def test_a_run_that_was_paid_for_can_be_joined_again(node: Node, plan: Plan) -> None:
    signed = node.approved(plan.digest)
    for request in (first_round(plan), gradient_round(plan), gradient_round(plan, round=3)):
        answer(node, request)

    join(node, ready(signed))

    assert kinds(node)[-1] == "run.joined"


def test_a_customer_who_withdraws_between_rounds_is_in_no_later_permit(
    node: Node, plan: Plan
) -> None:
    subject, stays = node.table.subjects[:2]
    answer(node, first_round(plan))
    node.register.withdraw(subject, at=node.clock())

    answer(node, gradient_round(plan))

    assert [permit.use.round for permit in node.gate.uses_of(subject)] == [1]
    assert [permit.use.round for permit in node.gate.uses_of(stays)] == [1, 2]


def test_a_customer_who_withdraws_while_a_round_runs_is_not_in_what_is_sent(
    federation: Federation, node: Node, plan: Plan
) -> None:
    subject, size = node.table.subjects[0], node.log.tree_size

    def clock() -> int:
        if kinds(node, after=size) == ["permit.issued"]:
            node.register.withdraw(subject, at=federation.clock())
        return federation.clock()

    node.clock = clock
    answer(node, first_round(plan))

    sent = events(node, after=size)[-1]
    assert kinds(node, after=size) == [
        "permit.issued",
        "budget.charged",
        "permit.issued",
        "release.sent",
    ]
    assert sent["permit"] not in {permit.permit_id for permit in node.gate.uses_of(subject)}
    assert len(node.gate.uses_of(subject)) == 1


def test_while_people_keep_withdrawing_nothing_is_sent(
    federation: Federation, node: Node, plan: Plan
) -> None:
    leaving = iter(node.table.subjects)

    def clock() -> int:
        if "budget.charged" in kinds(node):
            node.register.withdraw(next(leaving), at=federation.clock())
        return federation.clock()

    node.clock = clock
    with pytest.raises(Refused, match="people kept withdrawing while the round ran; nothing was s"):
        answer(node, first_round(plan))

    assert "release.sent" not in kinds(node)


def test_a_withdrawal_from_another_thread_between_two_batches_is_not_in_what_is_sent(
    node: Node, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(release, "BATCH", 4)
    subject, stays = node.table.subjects[:2]
    size, batches = node.log.tree_size, list[int]()
    open_gate = node.gate.batch

    def batch(view: PermittedView, positions: NDArray[np.int64], *, at: int) -> NDArray[np.bool_]:
        batches.append(1)
        if len(batches) == 2:  # The person's own batch has been summed.
            leaving = threading.Thread(target=node.withdraw, args=(subject,))
            leaving.start()
            leaving.join(10)
            assert not leaving.is_alive()
        return open_gate(view, positions, at=at)

    monkeypatch.setattr(node.gate, "batch", batch)
    answer(node, first_round(plan))

    (sent,) = [event for event in events(node, after=size) if event["type"] == "release.sent"]
    assert len(batches) > 4
    assert len(node.gate.uses_of(subject)) == 1
    assert [permit.permit_id for permit in node.gate.uses_of(stays)][-1] == sent["permit"]
    assert sent["permit"] not in {permit.permit_id for permit in node.gate.uses_of(subject)}


@pytest.mark.parametrize("size", [1, 3, 4, 7, 4096])
def test_batches_add_up_to_the_same_sum(
    federation: Federation, node: Node, plan: Plan, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    items = federation.plan(federation.item_recipe())
    asked = [
        (plan, first_round(plan)),
        (plan, gradient_round(plan)),
        (items, first_round(items)),
        (items, item_round(items)),
    ]
    use = Use(kind=UseKind.TRAIN)
    view = node.gate.open(PURPOSE, node.table.subjects, use=use, at=node.clock())
    whole = [release._train(node, of, request, view) for of, request in asked]
    monkeypatch.setattr(release, "BATCH", size)

    again = [release._train(node, of, request, view) for of, request in asked]
    for first, second in zip(whole, again, strict=True):
        assert first is not None
        assert second is not None
        assert first.any()
        assert first.tolist() == second.tolist()


def item_round(plan: Plan) -> RoundRequest:
    recipe = plan.recipe
    assert isinstance(recipe, ItemGram)
    m = recipe.catalogue_size
    announced = {"catalogue": np.arange(float(m)), "direction": np.full(m, m**-0.5)}
    return first_round(plan, round=2, announced=announced)


def test_a_node_may_give_a_round_up_when_somebody_withdraws(
    federation: Federation, node: Node, plan: Plan
) -> None:
    spreading = Spreading(on_withdraw=OnWithdraw.DISCARD_ROUND)
    node.close()
    config = dataclasses.replace(node.config, spreading=spreading)
    federation.nodes["amber"] = node = Node.open(config, clock=federation.clock)
    subject, size = node.table.subjects[0], node.log.tree_size

    def clock() -> int:
        if kinds(node, after=size) == ["permit.issued"]:
            node.register.withdraw(subject, at=federation.clock())
        return federation.clock()

    node.clock = clock
    with pytest.raises(Refused, match="who may be used changed while the round ran; nothing was s"):
        answer(node, first_round(plan))

    assert kinds(node, after=size) == ["permit.issued", "budget.charged", "round.discarded"]
    assert events(node)[-1].keys() == {"type", "v", "at", "run", "round", "attempt"}
    assert node.ledger.spent(PURPOSE.value).epsilon > 0
    answer(node, first_round(plan, attempt=2))
    assert kinds(node)[-1] == "release.sent"


def test_an_answer_that_never_left_does_not_leave_after_a_withdrawal(
    federation: Federation, node: Node, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(**_: object) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(node.versions, "record_sent", crash)
        with pytest.raises(KeyboardInterrupt):
            answer(node, first_round(plan))
    node = federation.reopen("amber")
    size = node.log.tree_size
    subject = node.table.subjects[0]
    node.withdraw(subject)

    with pytest.raises(Refused, match="who may be used changed before the answer was sent; noth"):
        answer(node, first_round(plan))
    assert "release.sent" not in kinds(node, after=size)
    answer(node, first_round(plan, attempt=2))
    node.withdraw(node.table.subjects[1])
    answer(node, first_round(plan, attempt=2))
    assert kinds(node).count("release.sent") == 2


def test_a_brand_of_whom_nobody_agrees_is_charged_nothing(node: Node, plan: Plan) -> None:
    for subject in node.table.subjects:
        node.register.withdraw(subject, at=node.clock())
    before = memory(node)

    with pytest.raises(Refused, match="nobody of the people asked for has agreed to federated_tra"):
        answer(node, first_round(plan))

    assert memory(node) == before
    assert kinds(node)[-1] == "permit.denied"


def delivery(plan: Plan, **changes: object) -> Delivery:
    made = Delivery(
        plan_digest=plan.digest,
        parameters={"weights": np.arange(29.0)},
        witnessed=NOTHING_WITNESSED,
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def test_a_model_is_received_and_logged(node: Node, plan: Plan) -> None:
    receive(node, delivery(plan))

    path = node.config.folder / "models" / f"{plan.digest}.npz"
    with np.load(path) as arrays:
        assert arrays["weights"].tolist() == list(range(29))
    event = events(node)[-1]
    assert (event["type"], event["run"]) == ("model.received", plan.digest)
    assert event["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_model_that_is_not_finite_or_not_for_this_brand_is_not_kept(
    federation: Federation, node: Node, plan: Plan
) -> None:
    other = federation.plan(recipients=("birch",))
    federation.sign(other)

    with pytest.raises(PlanError, match="the model of plan 'spring' is not finite; nothing was k"):
        receive(node, delivery(plan, parameters={"weights": np.array([np.inf])}))
    with pytest.raises(PlanError, match="amber is no recipient of plan 'spring'; nothing was kept"):
        receive(node, delivery(other))
    with pytest.raises(PlanError, match="amber has not approved this plan"):
        receive(node, delivery(plan, plan_digest="00" * 32))
    assert not (node.config.folder / "models").exists()


def test_a_note_of_a_tree_that_never_was_is_refused_before_data_is_opened(
    node: Node, plan: Plan
) -> None:
    before = memory(node)
    other = sign_checkpoint(Checkpoint(node.name, 3, bytes(32)), node.identity)
    witnessed = Witnessed(tree_size=3, note=other)

    said = ask(node, "train.round", first_round(plan, witnessed=witnessed).to_record())["fields"]

    assert "its operator sees why" in str(said["refused"])  # type: ignore[index]
    assert memory(node) == before
