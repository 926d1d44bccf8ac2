"""What the embedded engine borrows from Flower, also from its insides.

An upgrade of Flower that moves one of these names fails here, and not in the middle of a run.
"""

import inspect

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common import serde
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run as FlowerRun
from flwr.supercore.task_identity import TaskIdentity

from coordinator.loopback import LoopbackGrid, run_embedded


def echo() -> ClientApp:
    app = ClientApp()

    @app.train("round")
    def on_round(message: Message, context: Context) -> Message:
        seen = ConfigRecord({"node": context.node_id, "identity": TaskIdentity.node_id})
        return Message(RecordDict({**message.content, "seen": seen}), reply_to=message)

    return app


def broken() -> ClientApp:
    app = ClientApp()

    @app.train("round")
    def on_round(_message: Message, _context: Context) -> Message:
        raise RuntimeError("Canary-4711")

    return app


def ask(grid: Grid, name: str, content: RecordDict) -> Message:
    (node_id,) = (node.node_id for node in grid.get_nodes() if node.name == name)
    message = grid.create_message(content, "train.round", node_id, "", ttl=60.0)
    (got,) = grid.send_and_receive([message], timeout=1.0)
    return got


def test_the_loopback_is_a_flower_grid() -> None:
    grid = LoopbackGrid({"b": echo(), "a": echo()})

    assert isinstance(grid, Grid)
    assert [(node.name, node.node_id) for node in grid.get_nodes()] == [("a", 2), ("b", 3)]
    assert grid.get_node_ids() == [2, 3]
    assert grid.run.run_id == 1
    grid.set_run(grid.run)


def test_the_loopback_has_each_method_of_a_grid_with_the_same_arguments() -> None:
    abstract = Grid.__abstractmethods__

    assert abstract == {
        "create_message",
        "get_node_ids",
        "pull_messages",
        "push_messages",
        "run",
        "send_and_receive",
        "set_run",
    }
    for name in abstract - {"run"}:
        theirs = inspect.signature(getattr(Grid, name)).parameters
        ours = inspect.signature(getattr(LoopbackGrid, name)).parameters
        assert list(ours) == list(theirs), name


def test_flower_still_has_the_inner_names_that_the_loopback_uses() -> None:
    assert {"_task_id", "_run_id", "_node_id"} <= set(vars(TaskIdentity))
    assert {"node_id", "name"} <= {field.name for field in NodeInfo.DESCRIPTOR.fields}
    assert FlowerRun.create_empty(run_id=7).run_id == 7
    assert callable(serde.message_to_proto)
    assert callable(serde.message_from_proto)
    taken = inspect.signature(Context).parameters
    assert {"run_id", "node_id", "node_config", "state", "run_config"} <= set(taken)


def test_each_participant_has_its_own_identity_while_it_answers() -> None:
    grid = LoopbackGrid({"a": echo(), "b": echo()})

    seen = [ask(grid, name, RecordDict()).content["seen"] for name in ("a", "b")]

    assert [dict(record) for record in seen] == [  # type: ignore[arg-type, call-overload]
        {"node": 2, "identity": 2},
        {"node": 3, "identity": 3},
    ]
    assert TaskIdentity.node_id == 1


def test_messages_are_serialised_on_the_way() -> None:
    content = RecordDict(
        {
            "fields": ConfigRecord({"text": "客户", "number": 2**60, "bytes": b"\0\xff"}),
            "arrays": ArrayRecord({"w": Array(np.array([[0.1, -np.pi]]))}),
        }
    )

    got = ask(LoopbackGrid({"a": echo()}), "a", content).content

    assert got is not content
    assert got["fields"] is not content["fields"]
    assert dict(got["fields"]) == dict(content["fields"])  # type: ignore[arg-type, call-overload]
    arrays = got["arrays"]
    assert isinstance(arrays, ArrayRecord)
    np.testing.assert_array_equal(arrays["w"].numpy(), np.array([[0.1, -np.pi]]))


def test_a_broken_app_is_an_error_that_tells_only_its_kind() -> None:
    got = ask(LoopbackGrid({"a": broken()}), "a", RecordDict())

    assert got.has_error()
    assert "Canary-4711" not in str(got.error)
    assert got.error.reason is not None
    assert TaskIdentity.node_id == 1


def test_an_answer_can_be_pulled_once() -> None:
    grid = LoopbackGrid({"a": echo()})
    message = grid.create_message(RecordDict(), "train.round", 2, "")
    (number,) = grid.push_messages([message])

    assert len(list(grid.pull_messages([number]))) == 1
    assert list(grid.pull_messages([number])) == []


def test_the_embedded_engine_gives_the_server_app_its_plan_and_its_grid() -> None:
    app = ServerApp()
    seen: list[object] = []

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        seen.extend([context.run_config["plan"], [node.name for node in grid.get_nodes()]])

    run_embedded(app, {"a": echo()}, plan_digest="ab")

    assert seen == ["ab", ["a"]]
