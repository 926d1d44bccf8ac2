"""What staff decide on a node, each step asked of `Access` by a signed-in account.

Nothing here is decided by the toolkit. One person proposes and drafts, another approves; the
gate opens no purpose whose profile asks for an assessment before that. How fresh a second factor
is comes from the node's accounts and never from the caller.
"""

import hashlib
import secrets
from collections.abc import Mapping

from consent import (
    Action,
    Assessment,
    AssessmentError,
    Notice,
    PolicyError,
    PolicyFiles,
    Proposal,
    Purpose,
    Role,
)
from consent.cedar import CedarEngine
from consent.durable import replace_files
from consent.policy import SHIPPED
from models.plan import Plan
from participant.accounts import Session, code_of
from participant.handle import Handles
from participant.node import WRAPPING, Node
from participant.rights import Rights


def propose_rules(node: Node, session: Session) -> Proposal:
    """Propose the shipped access rules.

    Raises:
        AccessDenied: Only a policy author may.
        PolicyError: The files cannot be read.
    """
    files, at = PolicyFiles.read(SHIPPED), node.clock()
    grant = node.accounts.authorize(session, Action.PROPOSE_POLICY, about=files.digest, at=at)
    return node.rulebook.propose(files, grant=grant, at=at)


def approve_rules(node: Node, session: Session, index: int) -> Proposal:
    """Approve proposed rules as a second person.

    Raises:
        AccessDenied: Only a policy approver may, and not its own proposal.
        PolicyError: There is no such proposal, or it was approved before.
    """
    proposal, at = _proposal(node, index), node.clock()
    grant = node.accounts.authorize(
        session, Action.APPROVE_POLICY, about=proposal.digest, author=proposal.author, at=at
    )
    return node.rulebook.approve(index, grant=grant, at=at)


def activate_proposal(node: Node, session: Session, index: int) -> Proposal:
    """Put approved rules in force.

    Raises:
        AccessDenied: Only a policy approver with a fresh second factor may.
        PolicyError: There is no such proposal, nobody approved it, or it is stale.
    """
    proposal, at = _proposal(node, index), node.clock()
    grant = node.accounts.authorize(
        session, Action.ACTIVATE_POLICY, about=proposal.digest, author=proposal.author, at=at
    )
    return node.rulebook.activate(index, CedarEngine(SHIPPED), grant=grant, at=at)


def activate_rules(node: Node, *, author: Session, approver: Session) -> str:
    """Propose, approve and activate the shipped rules; return their digest.

    Args:
        node: An open node.
        author: A policy author.
        approver: Another person, a policy approver with a fresh second factor.

    Raises:
        AccessDenied: The rules do not let these people do that.
        PolicyError: Author and approver are the same.
    """
    index = propose_rules(node, author).index
    approve_rules(node, approver, index)
    return activate_proposal(node, approver, index).digest


def draft_assessment(node: Node, session: Session, purpose: Purpose, document: str) -> Assessment:
    """Write down that a document assesses a purpose.

    Raises:
        AccessDenied: Only a policy author may.
        AssessmentError: One of that purpose with this document was drafted before.
        ValueError: The document is not given by its SHA-256.
    """
    name, at = f"{purpose.value}-{document[:12]}", node.clock()
    grant = node.accounts.authorize(session, Action.DRAFT_ASSESSMENT, about=name, at=at)
    return node.assessments.draft(name, purpose, document, grant=grant, at=at)


def approve_assessment(
    node: Node, session: Session, assessment_id: str, *, valid_until: int
) -> Assessment:
    """Put a drafted assessment in force until a time, epoch milliseconds.

    Raises:
        AccessDenied: Only a policy approver may, and not its own draft.
        AssessmentError: There is no such draft.
        ValueError: It would end before it begins.
    """
    at = node.clock()
    drafts = {known.assessment_id: known for known in node.assessments.all()}
    if assessment_id not in drafts:
        raise AssessmentError(f"there is no assessment {assessment_id}")
    grant = node.accounts.authorize(
        session,
        Action.APPROVE_ASSESSMENT,
        about=assessment_id,
        author=drafts[assessment_id].author,
        at=at,
    )
    return node.assessments.approve(assessment_id, valid_until=valid_until, grant=grant, at=at)


def assess(
    node: Node,
    documents: Mapping[Purpose, str],
    *,
    author: Session,
    approver: Session,
    valid_until: int,
) -> None:
    """Put one impact assessment for each of these purposes in force.

    Args:
        node: An open node whose access rules are in force.
        documents: Hex SHA-256 of the document that assesses each purpose.
        author: A policy author.
        approver: Another person, a policy approver.
        valid_until: When they end, epoch milliseconds.

    Raises:
        AccessDenied: The rules do not let these people do that.
        AssessmentError: Author and approver are the same, or one of that purpose was drafted.
    """
    for purpose, document in documents.items():
        name = draft_assessment(node, author, purpose, document).assessment_id
        approve_assessment(node, approver, name, valid_until=valid_until)


def approve_plan(node: Node, session: Session, plan: Plan) -> bytes:
    """Check a plan and sign it for the brand; return the signature for the coordinator.

    The second person is the coordinator, who proposed the plan: the operator decides on what
    somebody else wrote.

    Raises:
        AccessDenied: Only an operator may.
        PlanError: The plan breaks a rule of this node; it was not signed.
    """
    node.verify_plan(plan)
    grant = node.accounts.authorize(
        session, Action.APPROVE_PLAN, about=plan.digest, author="coordinator", at=node.clock()
    )
    return node.approve(plan, grant=grant)


def put_notice_in_force(
    node: Node, notice: Notice, text: bytes, *, oldest_accepted: int | None = None
) -> int:
    """Keep a notice's exact text in the node's folder, and its hash in the log.

    Whoever calls this has the host, or has asked the access rules.

    Args:
        node: An open node.
        notice: Which; its hash is that of the text.
        text: What people are shown.
        oldest_accepted: Oldest version that still counts; as before without it.

    Returns:
        The entry of the log.

    Raises:
        ValueError: The hash is another one, or the versions contradict each other.
        LogError: The log cannot be written; the notice is not in force.
    """
    if hashlib.sha256(text).hexdigest() != notice.sha256:
        raise ValueError("the text of a notice must have the hash that the notice says")
    with node.log.reading() as connection:
        row = connection.execute(
            "SELECT oldest FROM consent_notice WHERE notice_id = ?", (notice.id,)
        ).fetchone()
    before = 1 if row is None else int(row[0])
    folder = node.config.folder / "notices"
    folder.mkdir(mode=0o700, exist_ok=True)
    replace_files(folder, {notice.sha256: text})
    oldest = before if oldest_accepted is None else oldest_accepted
    return node.register.publish_notice(notice, oldest_accepted=oldest, at=node.clock())


def publish_notice(
    node: Node,
    session: Session,
    notice: Notice,
    text: bytes,
    *,
    oldest_accepted: int | None = None,
) -> int:
    """Put a notice in force as a policy approver; return the entry of the log.

    Raises:
        AccessDenied: Only a policy approver with a fresh second factor may.
        ValueError: As `put_notice_in_force`.
        LogError: The log cannot be written; the notice is not in force.
    """
    about = f"notice/{notice.sha256}"
    node.accounts.authorize(session, Action.ACTIVATE_POLICY, about=about, at=node.clock())
    return put_notice_in_force(node, notice, text, oldest_accepted=oldest_accepted)


def erase_subject(node: Node, session: Session, subject_id: str) -> int:
    """Destroy what is held about a person; return the open entry that says so.

    The log shows who asked and when, not about whom.

    Raises:
        AccessDenied: Only an operator with a fresh second factor may.
        LogError: Not everything could be destroyed; try again.
    """
    at = node.clock()
    about = f"erasure/{secrets.token_hex(8)}"
    node.accounts.authorize(session, Action.ERASE_SUBJECT, about=about, at=at)
    return Rights(node, Handles.of(node)).erase_person(subject_id, at=at)


def rotate_keys(node: Node, session: Session) -> str:
    """Change the key that the keys of data subjects are wrapped under; return its id.

    Raises:
        AccessDenied: Only an operator with a fresh second factor may.
        LogError: It could not be completed; rotate again.
    """
    grant = node.accounts.authorize(session, Action.ROTATE_KEYS, about=WRAPPING, at=node.clock())
    return node.rotate_keys(grant=grant)


def erase_by_request(node: Node, session: Session, request_id: str) -> int:
    """Erase the person who asked for it, and close their request.

    Returns:
        The open entry that says that somebody was erased, and not who.

    Raises:
        AccessDenied: Only an operator with a fresh second factor may.
        RightsError: No such request is open, or it is not one to erase; nothing was done.
        LogError: Not everything could be destroyed; try again.
    """
    at = node.clock()
    grant = node.accounts.authorize(session, Action.ERASE_SUBJECT, about=request_id, at=at)
    return Rights(node, Handles.of(node)).erase(request_id, grant=grant, at=at)


def answer_request(
    node: Node,
    session: Session,
    request_id: str,
    *,
    answer: str | None = None,
    reason: str | None = None,
) -> None:
    """Close a person's request with what was done, or with the reason why nothing was.

    Args:
        node: An open node.
        session: An operator.
        request_id: The request.
        answer: What was done, for the person to read.
        reason: Why it is not followed; exactly one of the two is given.

    Raises:
        AccessDenied: Only an operator may.
        RightsError: No such request is open, or it cannot be closed like that.
        ValueError: Both or neither of answer and reason are given.
    """
    at = node.clock()
    if (answer is None) == (reason is None):
        raise ValueError("a request is closed with an answer or with a reason, got both or neither")
    grant = node.accounts.authorize(session, Action.ANSWER_REQUEST, about=request_id, at=at)
    rights = Rights(node, Handles.of(node))
    if answer is not None:
        rights.answer(request_id, answer=answer, grant=grant, at=at)
    if reason is not None:
        rights.refuse(request_id, reason=reason, grant=grant, at=at)


def appoint_sample(node: Node, *roles: Role) -> Session:
    """Add an account by the host and sign it in with a fresh second factor.

    For samples and trials, whose people are made up: nobody keeps the token or the secret.

    Raises:
        AccountError: The roles exclude each other, or two operators must decide.
    """
    at = node.clock()
    made = node.accounts.add_by_host(roles, at=at)
    session = node.accounts.sign_in(made.token, at=at)
    if made.uri:
        node.accounts.step_up(session, code_of(made.uri, at=at), at=at)
    return session


def _proposal(node: Node, index: int) -> Proposal:
    for known in node.rulebook.proposals():
        if known.index == index:
            return known
    raise PolicyError(f"entry {index} of the log proposes no policy")
