"""The one door out of a node: authorise, charge, train, clip and noise, log, send.

Each step is durable before the next begins, so a crash loses budget and never privacy. What a
request says is never believed: the plan that this node signed decides. A plan is good for one
run, and the run has the plan's digest for a name.
"""

import dataclasses
import hashlib
import struct
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray

from consent import Cosigned, PermittedView, Refused, Use, UseKind, verify_log_signature
from models.churn import ChurnLogistic, ChurnRows
from models.exchange import (
    CONTRIBUTION_CONTEXT,
    NO_TESTIMONY,
    Delivery,
    Evidence,
    Growth,
    ReadyRequest,
    Reply,
    RoundRequest,
    Testimony,
    Witnessed,
    WitnessRequest,
)
from models.plan import Plan, PlanError, SignedPlan
from models.recommendation import ItemGram, ItemRows
from models.sums import Query
from participant.features import FEATURES
from participant.node import Node
from privacy import NoiseSource, ReleaseKey, Session, SumRefused, discrete_gaussian, share_std

# A stored answer is the log's entries of its permit and its charge, then the masked bytes.
_ENTRIES = struct.Struct(">QQ")
MOST_SIZES = 256  # Heads and proofs that are asked for at once; a federation is far smaller.
_VIEWS = 3  # How often a round is begun again because somebody withdrew meanwhile.


def join(node: Node, request: ReadyRequest) -> Reply:
    """Promise to take part in the run of a plan; no data is opened and nothing is charged.

    Raises:
        PlanError: this node has not approved the plan, it no longer fits the node's rules,
            or somebody's signature on it is not theirs.
        NotAssessed: the purpose needs an impact assessment, and none is in force.
    """
    shown = SignedPlan.parse(request.signed_plan)
    plan = node.approved(shown.plan.digest).plan
    node.verify_plan(plan)
    if isinstance(plan.recipe, ItemGram) and (
        plan.recipe.catalogue_digest != node.catalogue.digest
    ):
        raise PlanError(f"plan {plan.name!r} is for another catalogue than {node.name} has")
    _accept_witnessed(node, request.witnessed)
    node.verify_affordable(plan)
    node.assessments.verify_purpose(plan.purpose, at=node.clock())
    node.remember_signatures(shown)
    node.record("run.joined", run=plan.digest, name=plan.name)
    return _reply(node, request.witnessed, testimony=_testify(node))


def answer(node: Node, request: RoundRequest) -> Reply:
    """Contribute this node's noised and masked sum to one round, exactly once.

    The same request again gets the same bytes, without a second draw or charge.

    Raises:
        PlanError: the request is not one that the signed plan allows, or cannot be summed.
        SumRefused: the cohort breaks a rule of the secure sum.
        BudgetExhausted: the purpose has too little budget left; nothing was drawn.
        Refused: nobody has agreed to the purpose.
        Replayed: this attempt was answered before for other terms.
    """
    signed = node.approved(request.plan_digest)
    plan = signed.plan
    node.verify_plan(plan)
    query = _query(plan, request)
    session = _session(node, signed, request, query)
    _accept_witnessed(node, request.witnessed)
    key = ReleaseKey(run=plan.digest, round=request.round, attempt=request.attempt)
    stored = _stored(node, key, request)
    if stored is None:
        stored = _fresh(node, plan, request, session=session, key=key)
    permit, charge = _ENTRIES.unpack_from(stored)
    masked = stored[_ENTRIES.size :]
    release = node.record(
        "release.sent",
        permit=str(node.log.entry(permit).value["permit"]),
        run=plan.digest,
        round=request.round,
        attempt=request.attempt,
        kind=query.name,
        size_bytes=len(masked),
        sha256=hashlib.sha256(masked).hexdigest(),
    )
    signature = node.identity.sign(CONTRIBUTION_CONTEXT, Reply.signed_bytes(request.digest, masked))
    return dataclasses.replace(
        _reply(node, request.witnessed, evidence=(permit, charge, release)),
        masked=masked,
        signature=signature,
    )


def receive(node: Node, delivery: Delivery) -> Reply:
    """Keep the trained model of a plan that this node signed.

    Raises:
        PlanError: the plan is not approved, does not name this node as a recipient, or the
            model has a value that is not finite.
    """
    plan = node.approved(delivery.plan_digest).plan
    if node.name not in plan.recipients:
        raise PlanError(f"{node.name} is no recipient of plan {plan.name!r}; nothing was kept")
    if not all(np.isfinite(array).all() for array in delivery.parameters.values()):
        raise PlanError(f"the model of plan {plan.name!r} is not finite; nothing was kept")
    _accept_witnessed(node, delivery.witnessed)
    path = node.save_model(plan.digest, delivery.parameters)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    node.record("model.received", run=plan.digest, sha256=digest)
    return _reply(node, delivery.witnessed)


def show(node: Node, request: WitnessRequest) -> Reply:
    """Show the log's newest head to its witnesses, keep what they cosigned, and cosign theirs.

    Raises:
        NoteError, LogError: the cosigned note is not of this log.
    """
    _accept_witnessed(node, request.witnessed)
    cosigned = node.tower.judge_relayed(request.relayed[:MOST_SIZES], node.trust_policy)
    return _reply(node, request.witnessed, testimony=_testify(node, cosigned))


def _query(plan: Plan, request: RoundRequest) -> Query:
    queries = plan.queries
    if not 1 <= request.round <= len(queries):
        raise PlanError(
            f"plan {plan.name!r} has rounds 1 to {len(queries)}, not {request.round}; "
            "no data was opened"
        )
    if not 1 <= request.attempt <= plan.attempts:
        raise PlanError(
            f"plan {plan.name!r} allows attempts 1 to {plan.attempts}, not {request.attempt}; "
            "no data was opened"
        )
    return queries[request.round - 1]


def _session(node: Node, signed: SignedPlan, request: RoundRequest, query: Query) -> Session:
    plan = signed.plan
    if len(request.cohort) < plan.cohort_floor:
        raise PlanError(
            f"plan {plan.name!r} needs {plan.cohort_floor} brands in each sum, the cohort has "
            f"{len(request.cohort)}; no data was opened"
        )
    signed.verify({name: node.public_identity(name) for name in request.cohort})
    try:
        session = Session(
            run=plan.digest,
            round=request.round,
            attempt=request.attempt,
            cohort=request.cohort,
            terms_digest=request.digest,
            dimension=query.dimension,
            ring_bits=cast("Literal[32, 64]", plan.ring_bits),
        )
    except ValueError as error:
        raise PlanError(f"{error}; no data was opened") from error
    node.party.verify_session(session)
    return session


def _stored(node: Node, key: ReleaseKey, request: RoundRequest) -> bytes | None:
    stored = node.ledger.reply(key)
    if stored is not None and node.ledger.request_digest(key) != request.digest:
        raise SumRefused(f"{key} was answered before for other terms; nothing was sent")
    return stored


def _fresh(
    node: Node, plan: Plan, request: RoundRequest, *, session: Session, key: ReleaseKey
) -> bytes:
    """Authorise, charge, train, noise, mask, and store; what is stored may be sent."""
    _rehearse(node, plan, request)
    query = plan.queries[request.round - 1]
    use = Use(
        kind=UseKind.TRAIN,
        run=plan.digest,
        round=request.round,
        attempt=request.attempt,
        recipients=plan.recipients,
    )
    view = node.gate.open(plan.purpose, node.table.subjects, use=use, at=node.clock())
    charge = node.charge(
        key,
        purpose=plan.purpose,
        release=query.release(shares=len(plan.members)),
        digest=request.digest,
    )
    for _ in range(_VIEWS):
        values = _train(node, plan, request, view)
        if node.gate.is_current(view.permit, at=node.clock()):
            break
        view = node.gate.open(plan.purpose, node.table.subjects, use=use, at=node.clock())
    else:
        raise Refused("people kept withdrawing while the round ran; nothing was sent")
    total = query.total_noise_std
    share = share_std(total, cohort=len(session.cohort), colluders=plan.colluders)
    noise = discrete_gaussian(
        query.noise_std(fraction=share / total), query.dimension, source=NoiseSource()
    )
    most = (2 ** (session.ring_bits - 1) - 1) // len(session.cohort)
    masked = node.party.mask(session, values + noise, max_abs=most)
    stored = _ENTRIES.pack(view.permit.index, charge) + masked
    node.ledger.commit(key, stored)
    return stored


def _rehearse(node: Node, plan: Plan, request: RoundRequest) -> None:
    """Answer for one made-up customer: what cannot be summed is refused before any charge."""
    step, announced = request.round - 1, request.announced
    none = np.zeros(0, dtype=np.int64)
    one = np.zeros(1, dtype=np.int64)
    try:
        match plan.recipe:
            case ChurnLogistic() as churn:
                features = np.zeros((1, len(FEATURES)))
                rows = ChurnRows(customer=one, features=features, day=one, churned=np.zeros(1))
                churn.answer(step, announced, rows)
            case ItemGram() as items:
                n_items = len(node.catalogue.codes)
                start = np.zeros(2, dtype=np.int64)
                empty = ItemRows(start=start, item=none, weight=np.zeros(0), n_items=n_items)
                items.answer(step, announced, empty)
    except ValueError as error:
        raise PlanError(f"{error}; no data was opened") from error


def _train(node: Node, plan: Plan, request: RoundRequest, view: PermittedView) -> NDArray[np.int64]:
    step, announced = request.round - 1, request.announced
    match plan.recipe:
        case ChurnLogistic() as churn:
            snapshots = node.table.churn_rows(
                view, snapshot_days=churn.snapshot_days, horizon_days=churn.horizon_days
            )
            return churn.answer(step, announced, snapshots)
        case ItemGram() as items:
            histories = node.table.item_rows(
                view, before_day=items.as_of_day, half_life_days=items.half_life_days
            )
            return items.answer(step, announced, histories)


def _accept_witnessed(node: Node, witnessed: Witnessed) -> None:
    """Keep the cosignatures, unless the log was put back: then nothing leaves."""
    if witnessed.note:
        head = verify_log_signature(witnessed.note, node.identity.public)
        if head.tree_size > node.log.tree_size:
            node.tower.remember_elsewhere(witnessed.note)
    node.tower.verify_not_put_back()
    if witnessed.note:
        node.log.collect(witnessed.note, node.trust_policy)


def _testify(node: Node, cosigned: tuple[Cosigned, ...] = ()) -> Testimony:
    evidence = node.tower.convicted.values()
    return Testimony(
        known=node.tower.known_sizes(node.trust_policy),
        cosigned=tuple((each.origin, each.line) for each in cosigned if each.line),
        evidence=tuple(each.format() for each in evidence),
    )


def _reply(
    node: Node,
    witnessed: Witnessed,
    *,
    evidence: tuple[int, ...] = (),
    testimony: Testimony = NO_TESTIMONY,
) -> Reply:
    # Memory and log must agree before a head leaves; the own cosignature says that they do.
    checkpoint = node.tower.cosign_own()
    size = verify_log_signature(checkpoint, node.identity.public).tree_size
    proof = node.log.consistency_proof(witnessed.tree_size, size) if witnessed.tree_size else []
    return Reply(
        name=node.name,
        checkpoint=checkpoint,
        proof=tuple(proof),
        growth=tuple(
            Growth(old_size=old, proof=tuple(node.log.consistency_proof(old, size)))
            for old in witnessed.sizes[:MOST_SIZES]
            if 0 < old < size
        ),
        testimony=testimony,
        evidence=tuple(
            Evidence(
                leaf=node.log.entry(index).leaf,
                index=index,
                proof=tuple(node.log.inclusion_proof(index, size)),
            )
            for index in evidence
        ),
    )
