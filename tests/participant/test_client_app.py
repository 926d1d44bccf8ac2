import logging
import re

import numpy as np
import pytest
from flwr.app import ConfigRecord, RecordDict

from models.exchange import Delivery
from models.plan import Plan
from participant.node import Node
from participant.release import join
from tests.federation.synthetic import (
    NOTHING_WITNESSED,
    Federation,
    Wire,
    ask,
    events,
    first_round,
    kinds,
    ready,
)

CANARY = "Canary-4711"


@pytest.fixture
def plan(federation: Federation) -> Plan:
    plan = federation.plan()
    join(federation.nodes["amber"], ready(federation.sign(plan)))
    return plan


def refusal(node: Node, kind: str, record: RecordDict) -> str:
    fields = ask(node, kind, record)["fields"]
    assert isinstance(fields, ConfigRecord)
    assert fields["name"] == node.name
    return str(fields["refused"])


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda path: path.unlink(), "there is no file"),
        (lambda path: path.write_text(f"{CANARY},1,2\n{CANARY},3,4\n"), "has no column at"),
        (lambda path: path.write_bytes(b"\xff\xfe" + CANARY.encode()), "is no readable table"),
        (
            lambda path: path.write_text(path.read_text() + f"{CANARY},b,I01,x,y,z\n"),
            "column at needs ISO 8601 dates",
        ),
        (
            lambda path: path.write_text(
                path.read_text().replace("\n", ",,\n") + f"{CANARY},b,I01,{CANARY},1,2011-01-01\n"
            ),
            "no readable table|column pieces needs numbers",
        ),
    ],
    ids=["vanished", "headerless", "binary", "bad line", "shifted"],
)
def test_a_data_file_that_went_bad_never_tells_a_customers_data(
    federation: Federation,
    plan: Plan,
    caplog: pytest.LogCaptureFixture,
    damage: object,
    told: str,
) -> None:
    node = federation.reopen("amber")
    damage(node.config.transactions)  # type: ignore[operator]
    before = len(node.ledger.history())

    with caplog.at_level(logging.DEBUG):
        reason = refusal(node, "train.round", first_round(plan).to_record())

    assert reason == "amber cannot answer now; its operator sees why"
    assert re.search(told, caplog.text)
    assert CANARY not in caplog.text
    assert not any(CANARY in str(event) for event in events(node))
    assert kinds(node)[-1] == "message.refused"
    assert len(node.ledger.history()) == before


def test_the_text_of_an_unforeseen_error_stays_in_the_node(
    federation: Federation, plan: Plan, caplog: pytest.LogCaptureFixture
) -> None:
    node = federation.nodes["amber"]
    now = federation.clock()
    times = iter([ZeroDivisionError(CANARY)])

    def clock() -> int:
        for error in times:
            raise error
        return now

    node.clock = clock
    with caplog.at_level(logging.DEBUG):
        reason = refusal(node, "train.round", first_round(plan).to_record())

    assert reason == "the node could not answer; its own log names the error"
    assert events(node)[-1]["reason"] == reason
    assert "a message of type train.round failed with ZeroDivisionError" in caplog.text
    assert CANARY not in caplog.text


def test_a_refusal_that_cannot_be_logged_is_still_one_and_quotes_nothing(
    federation: Federation, plan: Plan, caplog: pytest.LogCaptureFixture
) -> None:
    node = federation.nodes["amber"]

    def clock() -> int:
        raise ZeroDivisionError(CANARY)

    node.clock = clock
    with caplog.at_level(logging.DEBUG):
        reason = refusal(node, "train.round", first_round(plan).to_record())

    assert reason == "the node could not answer; its own log names the error"
    assert "the refusal could not be logged: it failed with ZeroDivisionError" in caplog.text
    assert CANARY not in caplog.text


def test_a_node_with_a_closed_log_answers_nothing(federation: Federation, plan: Plan) -> None:
    node = federation.nodes["amber"]
    node.log.close()
    before = len(node.ledger.history())

    reason = refusal(node, "train.round", first_round(plan).to_record())

    assert reason == "amber cannot answer now; its operator sees why"
    assert len(node.ledger.history()) == before


@pytest.mark.parametrize("kind", ["query.ready", "train.round", "query.deliver", "query.witness"])
@pytest.mark.parametrize(
    "record",
    [
        RecordDict(),
        RecordDict({"fields": ConfigRecord()}),
        RecordDict({"fields": ConfigRecord({"signed_plan": b"{}", "witnessed_size": -1})}),
    ],
    ids=["empty", "no fields", "wrong fields"],
)
def test_a_message_without_its_fields_is_a_refusal_and_an_event(
    shared: Federation, kind: str, record: RecordDict
) -> None:
    node = shared.nodes["amber"]

    reason = refusal(node, kind, record)

    assert reason.endswith("dropped")
    event = events(node)[-1]
    assert (event["type"], event["kind"], event["reason"]) == ("message.refused", kind, reason)


def test_another_kind_of_message_has_no_answer(shared: Federation) -> None:
    grid = Wire({"amber": shared.nodes["amber"]})
    (info,) = grid.get_nodes()
    message = grid.create_message(RecordDict(), "train.weights", info.node_id, "")

    (got,) = grid.send_and_receive([message])

    assert got.has_error()


def test_a_large_model_comes_through(federation: Federation, plan: Plan) -> None:
    node = federation.nodes["amber"]
    weights = np.random.default_rng(1).normal(size=(500, 500))
    sent = Delivery(plan_digest=plan.digest, parameters={"w": weights}, witnessed=NOTHING_WITNESSED)

    fields = ask(node, "query.deliver", sent.to_record())["fields"]

    assert "refused" not in fields  # type: ignore[operator]
    with np.load(node.config.folder / "models" / f"{plan.digest}.npz") as arrays:
        np.testing.assert_array_equal(arrays["w"], weights)
