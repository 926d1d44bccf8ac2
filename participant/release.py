"""The one door out of a node: authorise, charge, train, clip and noise, log, send.

Each step is durable before the next begins, so a crash loses budget and never privacy. What a
request says is never believed: the plan that this node signed decides. A plan is good for one
run, and the run has the plan's digest for a name.
"""

import dataclasses
import hashlib
import struct
from collections.abc import Callable
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
from models.sums import Parameters, Query
from participant.features import FEATURES
from participant.node import Node
from participant.partners import OnWithdraw
from participant.versions import ModelOutOfUse
from privacy import NoiseSource, ReleaseKey, Session, SumRefused, discrete_gaussian, share_std

# A stored answer is the log's entries of its permit and its charge, then the masked bytes.
_ENTRIES = struct.Struct(">QQ")
BATCH = 4096  # Customers between two questions to the gate.
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
        stored, release = _fresh(node, plan, request, session=session, key=key)
    else:
        release = _again(node, plan, key, stored, kind=query.name)
    permit, charge = _ENTRIES.unpack_from(stored)
    masked = stored[_ENTRIES.size :]
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
    try:
        path = node.save_model(plan.digest, delivery.parameters)
    except ModelOutOfUse as error:
        raise PlanError(f"plan {plan.name!r} makes one model: {error}") from error
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
) -> tuple[bytes, int]:
    """Authorise, charge, train, noise, mask, and store; what is stored may be sent.

    Returns:
        What was stored, and the entry of the log that says that it leaves.
    """
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
        noised = None if values is None else values + _noise(plan, query, session)
        # Nobody withdraws inside a log transaction: what it finds still holds when it commits,
        # and so the entry of every later withdrawal comes after the entry of this release. Only
        # here is anything masked: the masks of an attempt are good for one answer.
        with node.log.transaction():
            if noised is not None and node.gate.is_current(view.permit, at=node.clock()):
                most = (2 ** (session.ring_bits - 1) - 1) // len(session.cohort)
                masked = node.party.mask(session, noised, max_abs=most)
                stored = _ENTRIES.pack(view.permit.index, charge) + masked
                node.ledger.commit(key, stored)
                return stored, _record_sent(node, key, view.permit.permit_id, masked, query.name)
        if node.config.spreading.on_withdraw is OnWithdraw.DISCARD_ROUND:
            node.record("round.discarded", run=key.run, round=key.round, attempt=key.attempt)
            raise Refused("who may be used changed while the round ran; nothing was sent")
        view = node.gate.open(plan.purpose, node.table.subjects, use=use, at=node.clock())
    raise Refused("people kept withdrawing while the round ran; nothing was sent")


def _again(node: Node, plan: Plan, key: ReleaseKey, stored: bytes, *, kind: str) -> int:
    """Let a stored answer leave: for the first time only if it is still permitted.

    A node that was stopped between storing and sending may have heard of a withdrawal since. A
    second answer under the same masks would betray both, so there is none.
    """
    index, _ = _ENTRIES.unpack_from(stored)
    permit_id = str(node.log.entry(index).value["permit"])
    with node.log.transaction():
        was_sent = node.versions.was_sent(key.run, round=key.round, attempt=key.attempt)
        if not was_sent and not node.gate.is_unchanged([permit_id], plan.purpose, at=node.clock()):
            raise Refused("who may be used changed before the answer was sent; nothing was sent")
        return _record_sent(node, key, permit_id, stored[_ENTRIES.size :], kind)


def _record_sent(node: Node, key: ReleaseKey, permit_id: str, masked: bytes, kind: str) -> int:
    return node.versions.record_sent(
        at=node.clock(),
        permit=permit_id,
        run=key.run,
        round=key.round,
        attempt=key.attempt,
        kind=kind,
        size_bytes=len(masked),
        sha256=hashlib.sha256(masked).hexdigest(),
    )


def _noise(plan: Plan, query: Query, session: Session) -> NDArray[np.int64]:
    total = query.total_noise_std
    share = share_std(total, cohort=len(session.cohort), colluders=plan.colluders)
    return discrete_gaussian(
        query.noise_std(fraction=share / total), query.dimension, source=NoiseSource()
    )


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


def _train(
    node: Node, plan: Plan, request: RoundRequest, view: PermittedView
) -> NDArray[np.int64] | None:
    """Sum over the people of a view, batch by batch.

    The gate is asked anew before each batch. A sum over customers is the sum of its batches to
    the last digit, because each customer's part is rounded to integers first.

    Returns:
        The sum, or None as soon as somebody in the view may no longer be used.
    """
    step, announced = request.round - 1, request.announced
    people = np.flatnonzero(view.mask)
    total = np.zeros(plan.queries[step].dimension, dtype=np.int64)
    answer_for = _answering(node, plan, view, step=step, announced=announced)
    for first in range(0, people.size, BATCH):
        batch = people[first : first + BATCH]
        if not node.gate.batch(view, batch, at=node.clock()).all():
            return None
        total += answer_for(first, batch)
    return total


def _answering(
    node: Node, plan: Plan, view: PermittedView, *, step: int, announced: Parameters
) -> Callable[[int, NDArray[np.int64]], NDArray[np.int64]]:
    """Prepare the rows of a view; what comes back answers for one batch of its people."""
    match plan.recipe:
        case ChurnLogistic() as churn:
            rows = node.table.churn_rows(
                view, snapshot_days=churn.snapshot_days, horizon_days=churn.horizon_days
            )

            def churn_batch(_first: int, people: NDArray[np.int64]) -> NDArray[np.int64]:
                low, high = np.searchsorted(rows.customer, [people[0], people[-1] + 1])
                part = slice(int(low), int(high))
                return churn.answer(
                    step,
                    announced,
                    ChurnRows(
                        customer=rows.customer[part],
                        features=rows.features[part],
                        day=rows.day[part],
                        churned=rows.churned[part],
                    ),
                )

            return churn_batch
        case ItemGram() as items:
            histories = node.table.item_rows(
                view, before_day=items.as_of_day, half_life_days=items.half_life_days
            )

            def item_batch(first: int, people: NDArray[np.int64]) -> NDArray[np.int64]:
                start = histories.start[first : first + people.size + 1]
                part = slice(int(start[0]), int(start[-1]))
                return items.answer(
                    step,
                    announced,
                    ItemRows(
                        start=start - start[0],
                        item=histories.item[part],
                        weight=histories.weight[part],
                        n_items=histories.n_items,
                    ),
                )

            return item_batch


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
