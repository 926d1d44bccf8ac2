"""Keep one node's log cosigned by the witnesses of its trust policy."""

from consent.cosigning import Cosigner
from participant.node import Node


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
