"""Keep one node's log cosigned by the witnesses of its trust policy."""

import contextlib
from collections.abc import Callable

from consent import LogError
from consent.cosigning import Cosigner
from participant.node import Node

_PATIENCE_S = 3.0


def cosigner_of(node: Node) -> Cosigner:
    """Return what asks the witnesses of a node's policy.

    Raises:
        NoteError: The policy cannot be used, or does not know the node's log.
        NodeError: There is no policy, and nobody was pinned.
    """
    return Cosigner(
        node.log,
        node.tower,
        policy=node.trust_policy,
        settings=node.config.witnessing,
        clock=node.clock,
    )


def seek_cosignatures(node: Node) -> Callable[[], None]:
    """Return what asks the witnesses of a node's policy once, and takes what they say.

    Whatever they answer, whoever asked goes on with the newest head that is cosigned.
    """

    def ask() -> None:
        if node.config.witnessing.policy is not None:
            with contextlib.suppress(LogError):
                cosigner_of(node).ask(timeout_s=_PATIENCE_S)

    return ask
