"""Put a brand's access rules and impact assessments in force: two people, each step in the log.

Nothing here is decided by the toolkit. One person proposes and drafts, another approves; the
gate opens no purpose whose profile asks for an assessment before that.
"""

from collections.abc import Mapping

from consent import AccessGrant, AccessRequest, Action, PolicyFiles, Purpose, Role
from consent.cedar import CedarEngine
from consent.policy import SHIPPED
from participant.node import Node


def activate_rules(node: Node, *, author: str, approver: str) -> str:
    """Put the shipped access rules in force on a node.

    Args:
        node: An open node.
        author: Account that proposes them.
        approver: Account of another person, who approves and activates them.

    Returns:
        Digest of the rules in force.

    Raises:
        AccessDenied: the rules do not let these people do that.
        PolicyError: author and approver are the same.
    """
    files = PolicyFiles.read(SHIPPED)
    propose = _grant(node, Role.POLICY_AUTHOR, Action.PROPOSE_POLICY, files.digest, actor=author)
    proposal = node.rulebook.propose(files, grant=propose, at=node.clock())
    approve = _grant(
        node,
        Role.POLICY_APPROVER,
        Action.APPROVE_POLICY,
        files.digest,
        actor=approver,
        author=author,
    )
    node.rulebook.approve(proposal.index, grant=approve, at=node.clock())
    activate = _grant(
        node, Role.POLICY_APPROVER, Action.ACTIVATE_POLICY, files.digest, actor=approver
    )
    node.rulebook.activate(proposal.index, CedarEngine(SHIPPED), grant=activate, at=node.clock())
    return files.digest


def assess(
    node: Node,
    documents: Mapping[Purpose, str],
    *,
    author: str,
    approver: str,
    valid_until: int,
) -> None:
    """Put one impact assessment for each of these purposes in force.

    Args:
        node: An open node whose access rules are in force.
        documents: Hex SHA-256 of the document that assesses each purpose.
        author: Account that drafted them.
        approver: Account of another person, who approves them.
        valid_until: When they end, epoch milliseconds.

    Raises:
        AccessDenied: the rules do not let these people do that.
        AssessmentError: author and approver are the same, or one of that purpose was drafted.
    """
    for purpose, document in documents.items():
        name = f"{purpose.value}-{document[:12]}"
        draft = _grant(node, Role.POLICY_AUTHOR, Action.DRAFT_ASSESSMENT, name, actor=author)
        node.assessments.draft(name, purpose, document, grant=draft, at=node.clock())
        approve = _grant(
            node,
            Role.POLICY_APPROVER,
            Action.APPROVE_ASSESSMENT,
            name,
            actor=approver,
            author=author,
        )
        node.assessments.approve(name, valid_until=valid_until, grant=approve, at=node.clock())


def _grant(
    node: Node, role: Role, action: Action, about: str, *, actor: str, author: str = ""
) -> AccessGrant:
    request = AccessRequest(
        actor=actor, role=role, action=action, about=about, author=author, mfa_age_s=0
    )
    return node.access.authorize(request, at=node.clock())
