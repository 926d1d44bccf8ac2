"""A Flower Grid in one process: the embedded engine, for demo, notebooks and tests.

Messages go to ClientApps as Flower would carry them, serialised on the way, so that what a
test shows here holds on real processes. `TaskIdentity` and the serialisation are internal to
Flower 1.41; a contract test watches them.
"""

from collections.abc import Iterable, Mapping

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run as FlowerRun
from flwr.supercore.task_identity import TaskIdentity

_APP_FAILED = 2
_COORDINATOR = 1


def run_embedded(app: ServerApp, apps: Mapping[str, ClientApp], *, plan_digest: str) -> None:
    """Run a ServerApp over participants in this process, as `flwr run` would.

    Args:
        app: The coordinator's app.
        apps: ClientApp by participant name.
        plan_digest: The plan to run, for the run configuration.
    """
    context = Context(
        run_id=1,
        node_id=_COORDINATOR,
        node_config={},
        state=RecordDict(),
        run_config={"plan": plan_digest},
    )
    app(LoopbackGrid(apps), context)


class LoopbackGrid(Grid):
    """Participants in this process, each behind its ClientApp."""

    def __init__(self, apps: Mapping[str, ClientApp]) -> None:
        """Give each participant a node id.

        Args:
            apps: ClientApp by participant name.
        """
        TaskIdentity.task_id = TaskIdentity.run_id = 1
        TaskIdentity.node_id = _COORDINATOR
        self._nodes = {
            node_id: NodeInfo(node_id=node_id, name=name)
            for node_id, name in enumerate(sorted(apps), start=_COORDINATOR + 1)
        }
        self._apps = dict(apps)
        self._contexts = {
            node_id: Context(
                run_id=1, node_id=node_id, node_config={}, state=RecordDict(), run_config={}
            )
            for node_id in self._nodes
        }
        self._replies: dict[str, Message] = {}
        self._sent = 0

    def set_run(self, run: FlowerRun) -> None:
        """There is one run here; Flower's bookkeeping of runs is not needed."""

    @property
    def run(self) -> FlowerRun:
        """The one run."""
        return FlowerRun.create_empty(run_id=1)

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message as Flower's own grids make it."""
        return Message(
            content,
            dst_node_id=dst_node_id,
            message_type=message_type,
            group_id=group_id,
            ttl=ttl,
        )

    def get_node_ids(self) -> Iterable[int]:
        """All participants."""
        return list(self._nodes)

    def get_nodes(self) -> Iterable[NodeInfo]:
        """All participants, by name."""
        return list(self._nodes.values())

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Deliver each message at once; the answers wait to be pulled."""
        ids = []
        for message in messages:
            self._sent += 1
            ids.append(str(self._sent))
            self._replies[ids[-1]] = self._deliver(message)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The answers to these messages, each once."""
        return [self._replies.pop(key) for key in message_ids if key in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Deliver and answer; nothing here can time out."""
        del timeout
        return self.pull_messages(self.push_messages(messages))

    def _deliver(self, message: Message) -> Message:
        node_id = message.metadata.dst_node_id
        app, context = self._apps[self._nodes[node_id].name], self._contexts[node_id]
        TaskIdentity.node_id = node_id
        try:
            return _carried(app(_carried(message), context))
        except Exception as error:  # noqa: BLE001 - a broken app must look as it does on the wire
            return Message(Error(_APP_FAILED, type(error).__name__), reply_to=message)
        finally:
            TaskIdentity.node_id = _COORDINATOR


def _carried(message: Message) -> Message:
    """What is left of a message after the wire: exactly what its bytes say."""
    carried: Message = message_from_proto(message_to_proto(message))
    return carried
