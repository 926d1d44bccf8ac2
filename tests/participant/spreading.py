"""Two brands that exchange data about single people, and a line between them that may fail."""

import dataclasses
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from consent import (
    ConsentChoice,
    PublicIdentity,
    Purpose,
)
from participant.node import Clock, Node, system_clock
from participant.partners import (
    HandleMode,
    OnWithdraw,
    PropagationSettings,
    RecipientSettings,
    Spreading,
)
from participant.propagating import NOTIFY_PATH
from participant.service import create_app
from tests.federation.synthetic import DAY_MS, config_of

from .service_client import NOTICE, client_of

SHARING, LOOKALIKE = Purpose.THIRD_PARTY_SHARING, Purpose.LOOKALIKE
Answer = tuple[int, bytes]
Change = Callable[[Answer], Answer | None]


def unchanged(answer: Answer) -> Answer | None:
    return answer


@dataclass
class Line:
    """A real HTTP address in front of a node's service.

    Attributes:
        url: The address.
        node: Who answers; None while it is down.
        before: Told before a request reaches the node; False drops it there.
        change: Makes of each answer what the sender gets; None breaks the connection.
        seen: The bodies that arrived.
    """

    url: str = ""
    node: Node | None = None
    before: Callable[[], bool] = lambda: True
    change: Change = unchanged
    seen: list[bytes] = dataclasses.field(default_factory=list)

    def ask(self, body: bytes, headers: dict[str, str]) -> Answer | None:
        """Pass one request on."""
        self.seen.append(body)
        if self.node is None or not self.before():
            return None
        response = client_of(create_app(self.node)).post(NOTIFY_PATH, content=body, headers=headers)
        return self.change((response.status_code, response.content))


@contextmanager
def line() -> Iterator[Line]:
    """A line that is up, with nobody at its end yet."""
    made = Line()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            kept = ("Content-Type", "Idempotency-Key")
            answer = made.ask(body, {name: self.headers[name] for name in kept})
            if answer is None:
                self.close_connection = True
                return
            self.send_response(answer[0])
            self.send_header("Content-Length", str(len(answer[1])))
            self.end_headers()
            self.wfile.write(answer[1])

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        made.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield made
        finally:
            server.shutdown()
            thread.join()


def recipient(
    key: PublicIdentity,
    url: str,
    *purposes: Purpose,
    handle: HandleMode = HandleMode.SHARED,
) -> RecipientSettings:
    return RecipientSettings(
        identity=key, url=url, purposes=frozenset(purposes or {SHARING}), handle=handle
    )


def open_with(
    node: Node,
    *,
    recipients: tuple[RecipientSettings, ...] = (),
    senders: tuple[PublicIdentity, ...] = (),
    propagation: PropagationSettings | None = None,
    on_withdraw: OnWithdraw = OnWithdraw.NEXT_BATCH,
) -> Node:
    """Close a node and open it with partners in its configuration."""
    node.close()
    spreading = Spreading(
        recipients={one.identity.name: one for one in recipients},
        senders={one.name: one for one in senders},
        propagation=propagation or PropagationSettings(),
        on_withdraw=on_withdraw,
    )
    return Node.open(dataclasses.replace(node.config, spreading=spreading), clock=node.clock)


def created(name: str, folder: Path, *, clock: Clock = system_clock) -> Node:
    """A new node that has published a notice."""
    node = Node.create(config_of(name, folder), clock=clock)
    node.register.publish_notice(NOTICE, oldest_accepted=2, at=node.clock())
    return node


def agree_to(node: Node, *people: str, purpose: Purpose = SHARING) -> None:
    """Each person agrees to one purpose in an act of its own."""
    at = node.clock()
    node.register.record_many(
        [
            ConsentChoice(
                subject_id=person,
                given=frozenset({purpose}),
                notice=NOTICE,
                channel="app",
                expressed_at=at,
                until=at + 365 * DAY_MS,
                separate=True,
            )
            for person in people
        ],
        at=at,
    )


def share(sender: Node, receiver: Node, person: str, *, known_as: str) -> str:
    """Data about a person went from one node to the other, who knows them by another id."""
    handle = sender.share_handle(receiver.name, person)
    receiver.learn_handle(sender.name, handle, known_as)
    return handle


def signed_body(answer: Answer) -> dict[str, str]:
    found: dict[str, str] = json.loads(answer[1])
    return found


def is_permitted(node: Node, person: str, purpose: Purpose = SHARING) -> bool:
    return bool(node.register.mask([person], purpose, at=node.clock())[0])
