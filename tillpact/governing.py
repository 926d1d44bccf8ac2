"""The commands with which a node's staff decide: access rules, assessments, plans, erasure.

Each opens the node, signs its caller in, and asks `participant.governance`. While a node is
served, the same is done over HTTP, but for plans.
"""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tillpact.answers import NO, WRONG, complain, print_json, say
from tillpact.consenting import Subject, SubjectFile, format_day, read_subject
from tillpact.officer import parse_purpose
from tillpact.staff import (
    As,
    Code,
    CodeFile,
    Config,
    Json,
    TokenFile,
    check_free,
    clean,
    open_node,
    sign_in,
)

if TYPE_CHECKING:
    from consent import Assessment, Proposal
    from models.plan import Plan, SignedPlan
    from participant.node import Node

ProposalId = Annotated[
    int | None, typer.Argument(help="Entry that proposed them; the only one that waits without it.")
]
PlanFile = Annotated[Path, typer.Argument(help="The plan as the coordinator sent it.")]
_LARGEST_PLAN_BYTES = 1 << 20
_MOST_DAYS, _DAY_MS = 1825, 86_400_000


def policy_ls(config: Config, *, as_json: Json = False) -> None:
    """List the proposed access rules and say which are in force."""
    with open_node(config) as node:
        in_force, known = node.rulebook.active_digest(), node.rulebook.proposals()
        document = {"in_force": in_force, "proposals": [_describe_proposal(one) for one in known]}
        if not print_json("policy.ls", document, wanted=as_json):
            for one in known:
                say(_proposal_line(one))
            say(f"In force: {in_force or 'none; the gate and the staff can do next to nothing'}.")


def policy_propose(
    config: Config,
    *,
    as_account: As = None,
    token_file: TokenFile = None,
    code: Code = None,
    code_file: CodeFile = None,
    as_json: Json = False,
) -> None:
    """Propose the shipped access rules, as a policy author."""
    from consent.policy import SHIPPED  # noqa: PLC0415
    from participant.governance import propose_rules  # noqa: PLC0415

    with open_node(config) as node:
        session = sign_in(node, as_account, token_file, code, code_file, asks=False)
        made = propose_rules(node, session)
        if not print_json("policy.propose", _describe_proposal(made), wanted=as_json):
            say(f"Proposed: the rules {made.digest[:12]}, proposal {made.index}.")
            say(f"To read them: {SHIPPED}")
            say("Next: a policy approver runs tillpact policy approve.")


def policy_approve(
    config: Config,
    proposal: ProposalId = None,
    *,
    as_account: As = None,
    token_file: TokenFile = None,
    code: Code = None,
    code_file: CodeFile = None,
    as_json: Json = False,
) -> None:
    """Approve proposed rules, as a policy approver who did not propose them."""
    from participant.governance import approve_rules  # noqa: PLC0415

    with open_node(config) as node:
        waiting = [one for one in node.rulebook.proposals() if one.approver is None]
        index = _chosen(proposal, waiting, "waits for approval")
        session = sign_in(node, as_account, token_file, code, code_file, asks=False)
        done = approve_rules(node, session, index)
        if not print_json("policy.approve", _describe_proposal(done), wanted=as_json):
            say(f"Approved: the rules {done.digest[:12]}, proposal {done.index}.")
            say("Next: a policy approver runs tillpact policy activate, with a fresh code.")


def policy_activate(
    config: Config,
    proposal: ProposalId = None,
    *,
    as_account: As = None,
    token_file: TokenFile = None,
    code: Code = None,
    code_file: CodeFile = None,
    as_json: Json = False,
) -> None:
    """Put approved rules in force, as a policy approver with a fresh second factor."""
    from participant.governance import activate_proposal  # noqa: PLC0415

    with open_node(config) as node:
        replaces = node.rulebook.active_digest() or ""
        waiting = [
            one
            for one in node.rulebook.proposals()
            if one.approver and one.activated_at is None and one.replaces == replaces
        ]
        index = _chosen(proposal, waiting, "is approved and not in force")
        session = sign_in(node, as_account, token_file, code, code_file)
        done = activate_proposal(node, session, index)
        if not print_json("policy.activate", _describe_proposal(done), wanted=as_json):
            say(f"In force: the rules {done.digest[:12]}. Two operators decide on accounts now.")


def assessment_ls(config: Config, *, as_json: Json = False) -> None:
    """List impact assessments, and the purposes that stay closed for want of one."""
    from consent import AssessmentState, needing_assessment  # noqa: PLC0415

    with open_node(config) as node:
        at, known = node.clock(), node.assessments.all()
        good = {one.purpose for one in known if one.state(at=at) is AssessmentState.APPROVED}
        missing = sorted(needing_assessment(node.ladder) - good)
        document = {
            "assessments": [_describe_assessment(one, at=at) for one in known],
            "missing": [purpose.value for purpose in missing],
        }
        if not print_json("assessment.ls", document, wanted=as_json):
            for one in known:
                say(_assessment_line(one, at=at))
            if missing:
                names = ", ".join(purpose.value for purpose in missing)
                say(f"None in force for: {names}. The gate does not open these.")


def assessment_draft(
    config: Config,
    *,
    purpose: Annotated[str, typer.Option(help="What was assessed.")],
    document: Annotated[
        Path, typer.Option(help="The assessment; its SHA-256 goes to the log, and it stays yours.")
    ],
    as_account: As = None,
    token_file: TokenFile = None,
    code: Code = None,
    code_file: CodeFile = None,
    as_json: Json = False,
) -> None:
    """Write down that a document assesses a purpose, as a policy author."""
    from participant.governance import draft_assessment  # noqa: PLC0415

    chosen, digest = parse_purpose(purpose), hashlib.sha256(_read(document)).hexdigest()
    with open_node(config) as node:
        session = sign_in(node, as_account, token_file, code, code_file, asks=False)
        made = draft_assessment(node, session, chosen, digest)
        found = _describe_assessment(made, at=node.clock())
        if not print_json("assessment.draft", found, wanted=as_json):
            say(f"Drafted: {made.assessment_id}, of the document with SHA-256 {digest}.")
            say("Keep the document: the log holds its hash only.")
            say("Next: a policy approver reads it and runs tillpact assessment approve.")


def assessment_approve(
    config: Config,
    assessment: Annotated[
        str | None, typer.Argument(help="Id of the draft; the only draft without it.")
    ] = None,
    *,
    days: Annotated[int, typer.Option(help="How long it holds; then it is to be reviewed.")] = 365,
    document: Annotated[
        Path | None, typer.Option(help="The document you read; refused if it is another one.")
    ] = None,
    as_account: As = None,
    token_file: TokenFile = None,
    code: Code = None,
    code_file: CodeFile = None,
    as_json: Json = False,
) -> None:
    """Put a drafted assessment in force, as a policy approver who did not draft it."""
    from participant.governance import approve_assessment  # noqa: PLC0415

    if not 1 <= days <= _MOST_DAYS:
        complain(f"days must be 1 to {_MOST_DAYS}, got {days}; nothing was approved")
        raise typer.Exit(WRONG)
    digest = None if document is None else hashlib.sha256(_read(document)).hexdigest()
    with open_node(config) as node:
        at = node.clock()
        chosen = _draft(node.assessments.all(), assessment, at=at)
        if digest not in {None, chosen.document}:
            complain("this is not the document that was drafted; nothing was approved")
            raise typer.Exit(NO)
        session = sign_in(node, as_account, token_file, code, code_file, asks=False)
        done = approve_assessment(
            node, session, chosen.assessment_id, valid_until=at + days * _DAY_MS
        )
        found = _describe_assessment(done, at=node.clock())
        if not print_json("assessment.approve", found, wanted=as_json):
            say(f"In force: {done.assessment_id}, until {format_day(done.valid_until)}.")


def plan_show(config: Config, plan: PlanFile, *, as_json: Json = False) -> None:
    """Say in plain words what a plan costs and releases; exit 1 when the node would not sign it."""
    from models.plan import PlanError  # noqa: PLC0415

    with open_node(config) as node:
        signed = _read_plan(plan)
        reason = None
        try:
            node.verify_plan(signed.plan)
            node.verify_affordable(signed.plan)
        except PlanError as error:
            reason = str(error)
        document = {**_describe_plan(node, signed.plan), "acceptable": not reason, "why": reason}
        if not print_json("plan.show", document, wanted=as_json):
            _say_plan(node, signed.plan)
        if reason:
            complain(f"This node does not sign it: {reason}")
            raise typer.Exit(NO)


def plan_approve(
    config: Config,
    plan: PlanFile,
    *,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Where the signed plan goes, for the coordinator.")
    ],
    by_rule: Annotated[
        bool, typer.Option("--by-rule", help="By [approvals] in participant.toml; asks nobody.")
    ] = False,
    as_account: As = None,
    token_file: TokenFile = None,
    code: Code = None,
    code_file: CodeFile = None,
    as_json: Json = False,
) -> None:
    """Show a plan and sign it for the brand, as an operator or by the node's own rule."""
    from participant.governance import approve_plan  # noqa: PLC0415

    check_free(out)
    if by_rule and (as_account is not None or token_file is not None):
        complain("either a rule or a person signs, and not both; nothing was signed")
        raise typer.Exit(WRONG)
    with open_node(config) as node:
        shown = _read_plan(plan)
        shown.verify({name: node.public_identity(name) for name in shown.signatures})
        if not as_json:
            _say_plan(node, shown.plan)
        if by_rule:
            node.approve_by_rule(shown.plan)
        else:
            session = sign_in(node, as_account, token_file, code, code_file, asks=False)
            approve_plan(node, session, shown.plan)
        node.remember_signatures(shown)
        signed = node.approved(shown.plan.digest)
        out.write_bytes(signed.format())
        document = {
            "plan": shown.plan.digest,
            "by": "rule" if by_rule else session.account,
            "signed_by": sorted(signed.signatures),
            "missing": sorted(set(signed.plan.members) - set(signed.signatures)),
        }
        if not print_json("plan.approve", document, wanted=as_json):
            say(f"Signed for {node.name}: {out}. Send it to the coordinator.")


def consent_erase(
    config: Config,
    *,
    request: Annotated[
        str | None, typer.Option(help="Id of the person's request to be erased; closes it.")
    ] = None,
    subject: Subject = None,
    subject_file: SubjectFile = None,
    as_account: As = None,
    token_file: TokenFile = None,
    code: Code = None,
    code_file: CodeFile = None,
    as_json: Json = False,
) -> None:
    """Destroy what the node holds about a person, for good, as an operator with a fresh factor."""
    from participant.governance import erase_by_request, erase_subject  # noqa: PLC0415

    if request is not None and (subject is not None or subject_file is not None):
        complain("name the request or the person, and not both; nothing was erased")
        raise typer.Exit(WRONG)
    who = read_subject(subject, subject_file) if request is None else ""
    with open_node(config) as node:
        session = sign_in(node, as_account, token_file, code, code_file)
        if request is None:
            index = erase_subject(node, session, who)
        else:
            index = erase_by_request(node, session, request)
        if not print_json("consent.erase", {"log_index": index}, wanted=as_json):
            say(f"Erased: entry {index} of the log says that somebody was, and not who.")
            say("Delete them from the brand's own tables too: the node does not write there.")


def _chosen(given: int | None, waiting: "list[Proposal]", what: str) -> int:
    """Return the proposal that was named, or the only one that can be meant."""
    if given is not None:
        return given
    if len(waiting) == 1:
        return waiting[0].index
    if waiting:
        known = ", ".join(str(one.index) for one in waiting)
        complain(f"more than one proposal {what}: name one of {known}; nothing was changed")
    else:
        complain(f"no proposal {what} (see tillpact policy ls); nothing was changed")
    raise typer.Exit(WRONG)


def _draft(known: "list[Assessment]", given: str | None, *, at: int) -> "Assessment":
    """Return the draft that was named, or the only one that can be meant."""
    from consent import AssessmentState  # noqa: PLC0415

    drafts = [one for one in known if one.state(at=at) is AssessmentState.DRAFT]
    found = [one for one in drafts if given in {None, one.assessment_id}]
    if len(found) == 1:
        return found[0]
    names = ", ".join(one.assessment_id for one in drafts) or "none"
    complain(f"one draft must be meant, those that wait are: {names}; nothing was approved")
    raise typer.Exit(WRONG)


def _describe_proposal(one: "Proposal") -> dict[str, object]:
    return {
        "proposal": one.index,
        "digest": one.digest,
        "author": one.author,
        "approver": one.approver,
        "activated_at": one.activated_at,
    }


def _proposal_line(one: "Proposal") -> str:
    state = "waits for approval" if one.approver is None else f"approved by {one.approver}"
    if one.activated_at is not None:
        state += f", activated {format_day(one.activated_at)}"
    return f"{one.index:>8}  {one.digest[:12]}  proposed by {one.author}, {state}"


def _describe_assessment(one: "Assessment", *, at: int) -> dict[str, object]:
    return {
        "assessment": one.assessment_id,
        "purpose": one.purpose.value,
        "document": one.document,
        "state": one.state(at=at).value,
        "author": one.author,
        "approver": one.approver,
        "valid_until": one.valid_until,
    }


def _assessment_line(one: "Assessment", *, at: int) -> str:
    until = f"  until {format_day(one.valid_until)}" if one.valid_until else ""
    return f"{one.assessment_id}  {one.purpose.value}  {one.state(at=at).value}{until}"


def _read(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        complain(f"the document {path} cannot be read; nothing was written")
        raise typer.Exit(WRONG) from error
    if not data:
        complain(f"the document {path} is empty; nothing was written")
        raise typer.Exit(WRONG)
    return data


def _read_plan(path: Path) -> "SignedPlan":
    """Read a plan, with the signatures of others or without any."""
    from models.plan import Plan, PlanError, SignedPlan  # noqa: PLC0415

    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST_PLAN_BYTES)
    except OSError as error:
        complain(f"the plan {path} cannot be read; nothing was signed")
        raise typer.Exit(WRONG) from error
    try:
        return SignedPlan.parse(data)
    except PlanError:
        return SignedPlan(plan=Plan.parse(data), signatures={})


def _describe_plan(node: "Node", plan: "Plan") -> dict[str, object]:
    from participant.approvals import most_epsilon_of  # noqa: PLC0415

    known = node.ledger.budgets()
    purpose = plan.purpose.value
    left = node.ledger.remaining(purpose).epsilon if purpose in known else 0.0
    # First, because it names a plan that has no price.
    most = most_epsilon_of(plan, delta=plan.budget.delta)
    return {
        "plan": plan.digest,
        "name": plan.name,
        "kind": plan.recipe.KIND,
        "purpose": purpose,
        "epsilon": plan.epsilon(),
        "most_epsilon": most,
        "delta": plan.budget.delta,
        "epsilon_left": left,
        "members": list(plan.members),
        "recipients": list(plan.recipients),
        "cohort_floor": plan.cohort_floor,
        "attempts": plan.attempts,
        "expires_at": plan.expires_at,
        "releases": [{"name": query.name, "numbers": query.dimension} for query in plan.queries],
    }


def _say_plan(node: "Node", plan: "Plan") -> None:
    found = _describe_plan(node, plan)
    say(f"Plan: {clean(plan.name)} ({plan.digest[:12]})")
    say(f"Trains: {plan.recipe.KIND}, of customers who agreed to {plan.purpose.value}.")
    say(f"With: {', '.join(map(clean, plan.members))}; at least {plan.cohort_floor} in each sum.")
    say(f"The model goes to: {', '.join(map(clean, plan.recipients)) or 'nobody'}.")
    say("What leaves this node, each added up over its customers, with noise, and masked:")
    counts: dict[tuple[str, int], int] = {}
    for query in plan.queries:
        counts[query.name, query.dimension] = counts.get((query.name, query.dimension), 0) + 1
    for (name, dimension), times in counts.items():
        say(f"  {times:>3} x {clean(name)}: {dimension} numbers")
    say(
        f"It costs each customer epsilon {found['epsilon']:.3f}, at most "
        f"{found['most_epsilon']:.3f} if every round needs all {plan.attempts} attempts "
        f"(delta {plan.budget.delta:g}). Left for the purpose: {found['epsilon_left']:.3f}."
    )
    say(f"It may be run until {format_day(plan.expires_at)}, once.")
