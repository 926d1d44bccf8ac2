import shutil
from collections.abc import Callable

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message

from consent import Log
from coordinator.loopback import run_embedded
from coordinator.rounds import RoundRecord, Run, RunStatus
from coordinator.server_app import server_app
from models.exchange import CONTRIBUTION_CONTEXT, ROUND, Reply, RoundRequest
from models.plan import SignedPlan
from participant.client_app import client_app
from tests.federation.synthetic import (
    NAMES,
    PURPOSE,
    Federation,
    Wire,
    kinds,
)


class Interrupted(Exception):  # noqa: N818 - no fault of the run
    """The coordinator's process ends here."""


def epsilons(federation: Federation) -> dict[str, float]:
    return {
        name: node.ledger.spent(PURPOSE.value).epsilon for name, node in federation.nodes.items()
    }


def changing(
    name: str, kind: str, fields: Callable[[dict[str, object]], dict[str, object]], *, at: int = 1
) -> Callable[[str, Message, Message], Message]:
    """Change the fields of one brand's answer number `at` to one kind of message."""
    seen = 0

    def change(asked: str, message: Message, got: Message) -> Message:
        nonlocal seen
        if (asked, message.metadata.message_type) != (name, kind):
            return got
        seen += 1
        if seen == at:
            old = dict(got.content["fields"])  # type: ignore[arg-type, call-overload]
            got.content["fields"] = ConfigRecord({**old, **fields(old)})  # type: ignore[dict-item]
        return got

    return change


def test_the_server_app_leads_the_plan_of_its_run_configuration(federation: Federation) -> None:
    plan = federation.plan()
    federation.host.propose(federation.sign(plan))
    heard: list[RoundRecord] = []

    run_embedded(
        server_app(federation.host, on_round=heard.append),
        {name: client_app(node) for name, node in federation.nodes.items()},
        plan_digest=plan.digest,
    )

    _, run = federation.host.run(plan.digest)
    assert run.status is RunStatus.COMPLETED
    assert heard == run.rounds


def test_a_run_says_who_was_in_each_sum_and_counts_the_bytes(federation: Federation) -> None:
    plan = federation.plan()
    sizes = dict.fromkeys(NAMES, 0)

    def count(name: str, message: Message, got: Message) -> Message:
        if message.metadata.message_type == ROUND:
            fields = got.content["fields"]
            assert isinstance(fields, ConfigRecord)
            for value in fields.values():
                parts = value if isinstance(value, list) else [value]
                sizes[name] += sum(
                    len(part if isinstance(part, bytes) else str(part).encode()) for part in parts
                )
        return got

    run = federation.train(plan, grid=Wire(federation.nodes, change=count))

    assert [(r.round, r.attempt, r.cohort) for r in run.rounds] == [
        (number, 1, NAMES) for number in (1, 2, 3)
    ]
    assert [record.name for record in run.rounds] == [query.name for query in plan.queries]
    assert (run.status, run.reason, run.refusals) == (RunStatus.COMPLETED, "", {})
    in_rounds = {name: sum(r.bytes_up[name] for r in run.rounds) for name in NAMES}
    assert in_rounds == sizes
    assert all(run.total_bytes_up[name] > in_rounds[name] for name in NAMES)
    for record, query in zip(run.rounds, plan.queries, strict=True):
        assert record.bytes_up["amber"] > 4 * query.dimension


def test_recipients_get_the_model_that_was_trained(federation: Federation) -> None:
    plan = federation.plan(recipients=("amber", "birch"))

    run = federation.train(plan)

    for name in NAMES:
        path = federation.nodes[name].config.folder / "models" / f"{plan.digest}.npz"
        assert path.exists() == (name in plan.recipients)
    with np.load(
        federation.nodes["amber"].config.folder / "models" / f"{plan.digest}.npz"
    ) as arrays:
        np.testing.assert_array_equal(arrays["weights"], run.parameters["weights"])


def test_a_brand_that_did_not_approve_is_told_so_and_the_others_go_on(
    federation: Federation,
) -> None:
    run = federation.train(federation.plan(), by=["amber", "birch", "cedar"])

    assert run.status is RunStatus.COMPLETED
    assert run.refusals == {"dune": "dune has not approved this plan; no data was opened"}
    assert all(record.cohort == ("amber", "birch", "cedar") for record in run.rounds)
    assert epsilons(federation)["dune"] == 0
    assert kinds(federation.nodes["dune"])[-1] == "message.refused"


def test_a_brand_that_refuses_in_mid_run_voids_the_attempt_and_the_rest_go_on(
    federation: Federation,
) -> None:
    plan = federation.plan()
    dune = federation.nodes["dune"]

    def leave(record: RoundRecord) -> None:
        if record.round == 1:
            dune.clock = lambda: plan.expires_at

    run = federation.train(plan, on_round=leave)

    assert run.status is RunStatus.COMPLETED
    assert [(r.round, r.attempt, r.cohort) for r in run.rounds] == [
        (1, 1, NAMES),
        (2, 2, NAMES[:3]),
        (3, 1, NAMES[:3]),
    ]
    assert run.refusals == {"dune": "plan 'spring' has expired"}
    # The voided attempt was answered by three brands, and is paid for.
    releases = {
        n: node.ledger.spent(PURPOSE.value).releases for n, node in federation.nodes.items()
    }
    assert releases == {"amber": 4, "birch": 4, "cedar": 4, "dune": 1}


def test_below_the_floor_a_run_fails_with_the_reasons(federation: Federation) -> None:
    run = federation.train(federation.plan(), by=["amber", "birch"])

    assert run.status is RunStatus.FAILED
    assert run.reason == (
        "2 brands are left, the floor is 3 (cedar: cedar has not approved this plan; no data was "
        "opened; dune: dune has not approved this plan; no data was opened)"
    )
    assert run.rounds == []
    assert set(epsilons(federation).values()) == {0.0}


def test_a_run_that_falls_below_the_floor_ends_there(federation: Federation) -> None:
    plan = federation.plan()

    def leave(_: RoundRecord) -> None:
        for name in ("cedar", "dune"):
            federation.nodes[name].clock = lambda: plan.expires_at

    run = federation.train(plan, on_round=leave)

    assert (run.status, len(run.rounds)) == (RunStatus.FAILED, 1)
    assert run.reason == (
        "2 brands are left, the floor is 3 (cedar: plan 'spring' has expired; "
        "dune: plan 'spring' has expired)"
    )


def test_a_run_that_finds_no_full_cohort_in_its_attempts_fails(federation: Federation) -> None:
    plan = federation.plan(attempts=1)
    dune = federation.nodes["dune"]

    def leave(_: RoundRecord) -> None:
        dune.clock = lambda: plan.expires_at

    run = federation.train(plan, on_round=leave)

    assert run.status is RunStatus.FAILED
    assert run.reason == "round 2 found no full cohort in 1 attempts"


def test_a_node_that_stays_away_is_named(federation: Federation) -> None:
    nodes = {name: federation.nodes[name] for name in NAMES}
    silent = Wire(nodes, change=lambda name, _, got: None if name == "dune" else got)

    run = federation.train(federation.plan(), grid=silent)

    assert run.status is RunStatus.COMPLETED
    assert run.refusals == {"dune": "it did not answer in time"}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (lambda old: {"signature": bytes(64)}, "the signature is not one of dune"),
        (lambda old: {"masked": old["masked"][:-1] + b"\0\0"}, "the signature is not one of dune"),
        (lambda old: {"name": "amber"}, "it calls itself 'amber'"),
        (lambda old: {"checkpoint": "hello"}, ""),
        (lambda old: {"proof": [bytes(32)]}, ""),
        (lambda old: {"masked": "text"}, "field masked must be bytes; the message was dropped"),
    ],
    ids=["forged", "changed", "another name", "no checkpoint", "wrong proof", "wrong type"],
)
def test_an_answer_that_cannot_be_trusted_is_dropped_with_its_reason(
    federation: Federation,
    fields: Callable[[dict[str, object]], dict[str, object]],
    reason: str,
) -> None:
    wire = Wire(federation.nodes, change=changing("dune", ROUND, fields))

    run = federation.train(federation.plan(), grid=wire)

    assert run.status is RunStatus.COMPLETED
    assert run.refusals["dune"].startswith("its answer cannot be trusted: ")
    assert reason in run.refusals["dune"]
    assert [(r.attempt, r.cohort) for r in run.rounds] == [(2, NAMES[:3])] + [(1, NAMES[:3])] * 2


def test_an_app_that_fails_is_a_reason(federation: Federation) -> None:
    wire = Wire(federation.nodes)
    wire._apps["dune"] = type(wire._apps["dune"])()

    run = federation.train(federation.plan(), grid=wire)

    assert run.refusals == {"dune": "its answer cannot be trusted: its app failed"}
    assert run.status is RunStatus.COMPLETED


def test_a_member_that_is_not_enrolled_is_dropped(federation: Federation) -> None:
    plan = federation.plan()
    signed = federation.sign(plan)
    roster = federation.host.roster
    federation.host.enrol(type(roster)(card for card in roster.cards if card.name != "dune"))
    federation.host.propose(signed)

    run = federation.lead(plan)

    assert run.refusals == {
        "dune": "its answer cannot be trusted: dune is not enrolled; its message was dropped"
    }


def test_a_contribution_that_was_changed_after_it_was_logged_is_dropped(
    federation: Federation,
) -> None:
    """Its own key signed it, but its own log has another."""
    identity = federation.nodes["dune"].identity

    def cut(name: str, message: Message, got: Message) -> Message:
        if (name, message.metadata.message_type) == ("dune", ROUND):
            old = dict(got.content["fields"])  # type: ignore[arg-type, call-overload]
            masked = old["masked"][:-8]
            terms = RoundRequest.from_record(message.content).digest
            signed = identity.sign(CONTRIBUTION_CONTEXT, Reply.signed_bytes(terms, masked))
            got.content["fields"] = ConfigRecord({**old, "masked": masked, "signature": signed})
        return got

    run = federation.train(federation.plan(), grid=Wire(federation.nodes, change=cut))

    assert run.status is RunStatus.COMPLETED
    assert run.refusals["dune"] == (
        "its answer cannot be trusted: its release is of another contribution"
    )
    assert all("dune" not in record.cohort for record in run.rounds)


def test_a_truncated_contribution_fails_the_run_and_names_the_brand(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The brand itself logged and signed it, so that nothing but the sum can tell."""
    party = federation.nodes["dune"].party
    whole = party.mask
    monkeypatch.setattr(party, "mask", lambda *args, **more: whole(*args, **more)[:-8])

    run = federation.train(federation.plan())

    assert run.status is RunStatus.FAILED
    assert run.reason.startswith("round 1 does not add up: the contribution of dune must have ")
    assert run.rounds == []


def test_a_log_that_forks_is_dropped(federation: Federation) -> None:
    dune = federation.nodes["dune"]
    dune.close()
    shutil.copytree(dune.config.folder / "log", federation.folder / "twin")
    federation.reopen("dune")
    with Log.open(federation.folder / "twin", dune.identity) as twin:

        def fork(_: dict[str, object]) -> dict[str, object]:
            known = federation.host.tower.size_of("dune")
            while twin.tree_size < known:
                twin.append({"type": "nothing", "v": 1, "at": federation.clock()})
            return {"checkpoint": twin.checkpoint(), "proof": []}

        wire = Wire(federation.nodes, change=changing("dune", ROUND, fork))
        run = federation.train(federation.plan(), grid=wire)

    assert run.status is RunStatus.COMPLETED
    assert "signed two different heads of size" in run.refusals["dune"]
    assert run.rounds[0].cohort == NAMES[:3]


def test_a_log_that_shrank_is_dropped(federation: Federation) -> None:
    dune = federation.nodes["dune"]
    old = dune.log.checkpoint()
    federation.train(federation.plan(name="first"))
    wire = Wire(
        federation.nodes,
        change=changing("dune", ROUND, lambda _: {"checkpoint": old, "proof": []}),
    )

    run = federation.train(federation.plan(), grid=wire)

    assert "shows" in run.refusals["dune"]
    assert "entries after" in run.refusals["dune"]


def test_an_interrupted_run_goes_on_at_the_next_round_without_a_second_charge(
    federation: Federation,
) -> None:
    plan = federation.plan()

    def stop(record: RoundRecord) -> None:
        if record.round == 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        federation.train(plan, on_round=stop)
    spent = epsilons(federation)
    federation.close()

    again = Federation.open(federation.folder)
    assert epsilons(again) == spent
    heard: list[int] = []
    run = again.lead(plan, on_round=lambda record: heard.append(record.round))

    assert (run.status, heard) == (RunStatus.COMPLETED, [3])
    assert [record.round for record in run.rounds] == [1, 2, 3]
    assert len(set(epsilons(again).values())) == 1
    assert epsilons(again)["amber"] == pytest.approx(plan.epsilon(), rel=1e-9)
    again.close()


def test_a_run_cut_off_within_a_round_gets_the_same_bytes_again(federation: Federation) -> None:
    plan = federation.plan()
    sent: list[bytes] = []

    def cut(name: str, message: Message, got: Message) -> Message:
        if message.metadata.message_type == ROUND:
            sent.append(bytes(got.content["fields"]["masked"]))  # type: ignore[index, arg-type]
            if len(sent) == 4 + 3:
                raise Interrupted
        return got

    with pytest.raises(Interrupted):
        federation.train(plan, grid=Wire(federation.nodes, change=cut))
    run = federation.lead(plan, grid=Wire(federation.nodes, change=cut))

    assert run.status is RunStatus.COMPLETED
    assert sent[4:7] == sent[7:10]
    assert [record.attempt for record in run.rounds] == [1, 1, 1]
    assert epsilons(federation)["amber"] == pytest.approx(plan.epsilon(), rel=1e-9)


def test_a_run_cut_off_within_a_round_goes_on_without_a_brand_that_is_gone(
    federation: Federation,
) -> None:
    plan = federation.plan()
    sent = []

    def cut(name: str, message: Message, got: Message) -> Message:
        if message.metadata.message_type == ROUND:
            sent.append(name)
            if len(sent) == 4 + 2:
                raise Interrupted
        return got

    with pytest.raises(Interrupted):
        federation.train(plan, grid=Wire(federation.nodes, change=cut))
    run = federation.lead(
        plan, grid=Wire({name: federation.nodes[name] for name in NAMES if name != "dune"})
    )

    assert run.status is RunStatus.COMPLETED
    assert [(r.round, r.attempt, r.cohort) for r in run.rounds] == [
        (1, 1, NAMES),
        (2, 2, NAMES[:3]),
        (3, 1, NAMES[:3]),
    ]


def test_a_completed_run_is_not_asked_again(federation: Federation) -> None:
    plan = federation.plan()
    first = federation.train(plan)
    spent = epsilons(federation)

    second: Run = federation.lead(plan)

    assert second.status is RunStatus.COMPLETED
    assert epsilons(federation) == spent
    np.testing.assert_array_equal(second.parameters["weights"], first.parameters["weights"])


def test_signatures_that_were_swapped_by_the_coordinator_stop_the_run(
    federation: Federation,
) -> None:
    plan = federation.plan()
    signed = federation.sign(plan)
    swapped = {**signed.signatures, "dune": signed.signatures["amber"]}
    federation.host.propose(SignedPlan(plan=plan, signatures=swapped))

    run = federation.lead(plan)

    assert run.status is RunStatus.FAILED
    assert "the signature of dune is not for plan 'spring'" in run.reason
    assert set(epsilons(federation).values()) == {0.0}


def test_a_smaller_plan_invites_only_its_members(federation: Federation) -> None:
    plan = federation.plan(members=NAMES[1:])
    before = kinds(federation.nodes["amber"])

    run = federation.train(plan, by=NAMES[1:])

    assert run.status is RunStatus.COMPLETED
    assert kinds(federation.nodes["amber"]) == before
