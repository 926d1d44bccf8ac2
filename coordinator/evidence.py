"""What a contribution must prove before it is added up: it was permitted, paid for and logged.

A node shows three entries of its own log, each with an inclusion proof in the head that the
coordinator has just cosigned. Public keys are enough, and nothing in them is about a person.
"""

import hashlib
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation

from consent import (
    CanonicalError,
    Checkpoint,
    JsonValue,
    ProofError,
    UseKind,
    parse_canonical,
    verify_inclusion,
)
from consent.merkle import leaf_hash
from models.exchange import Reply
from models.plan import Plan

# How far a node's clock may be from the coordinator's, and how old a release may be.
FRESH_MS = 600_000
_KINDS = ("permit.issued", "budget.charged", "release.sent")


def verify_evidence(
    reply: Reply, plan: Plan, head: Checkpoint, *, round_: tuple[int, int], now: int
) -> None:
    """Refuse a contribution whose log does not show permit, charge and release for it.

    Args:
        reply: What the node sent.
        plan: The plan of the run.
        head: The head of the node's log in this reply, its signature already checked.
        round_: Number of the round and of the attempt that was asked.
        now: Epoch milliseconds.

    Raises:
        ProofError: an entry is missing, not in the log, of another round, policy, purpose or
            contribution, over its budget, or not fresh.
    """
    if len(reply.evidence) != len(_KINDS):
        raise ProofError(f"it shows {len(reply.evidence)} entries of its log and not three")
    permit, charge, release = (
        _event(entry.leaf, entry.index, entry.proof, head, kind)
        for entry, kind in zip(reply.evidence, _KINDS, strict=True)
    )
    use = permit.get("use")
    if not isinstance(use, dict) or use.get("kind") != UseKind.TRAIN.value:
        raise ProofError("its permit is not for training")
    number, attempt = round_
    wanted = {"run": plan.digest, "round": number, "attempt": attempt}
    for name, event in (("permit", use), ("charge", charge), ("release", release)):
        if {key: event.get(key) for key in wanted} != wanted:
            raise ProofError(f"its {name} is for another round")
    for name, event in (("permit", permit), ("charge", charge)):
        if event.get("purpose") != plan.purpose.value:
            raise ProofError(f"its {name} is for another purpose")
    if permit.get("policy") not in plan.policies:
        raise ProofError("its permit was issued under another consent policy")
    if use.get("recipients") != list(plan.recipients):
        raise ProofError("its permit names other recipients")
    _verify_paid(charge)
    if release.get("permit") != permit.get("permit"):
        raise ProofError("its release names another permit")
    if release.get("sha256") != hashlib.sha256(reply.masked).hexdigest():
        raise ProofError("its release is of another contribution")
    at = release.get("at")
    if not isinstance(at, int) or abs(now - at) > FRESH_MS:
        raise ProofError("its release is not from the last ten minutes")


def _event(
    leaf: bytes, index: int, proof: tuple[bytes, ...], head: Checkpoint, kind: str
) -> Mapping[str, JsonValue]:
    verify_inclusion(
        leaf_hash(leaf), index=index, tree_size=head.tree_size, proof=proof, root=head.root_hash
    )
    try:
        event = parse_canonical(leaf)
    except CanonicalError as error:
        raise ProofError(f"entry {index} of its log is not canonical") from error
    if not isinstance(event, dict) or event.get("type") != kind:
        raise ProofError(f"entry {index} of its log is no {kind}")
    return event


def _verify_paid(charge: Mapping[str, JsonValue]) -> None:
    try:
        spent, most = (Decimal(str(charge[name])) for name in ("epsilon_spent", "epsilon_budget"))
        paid = spent <= most
    except (KeyError, InvalidOperation) as error:
        raise ProofError("its charge has no epsilon") from error
    if not paid:
        raise ProofError(f"its charge takes epsilon to {spent} of {most}")
