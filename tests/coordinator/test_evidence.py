"""One honest contribution, then every way in which its evidence can be wrong."""

import dataclasses
from collections.abc import Callable

import pytest

from consent import Checkpoint, JsonValue, ProofError, format_canonical, parse_canonical
from consent.merkle import inclusion_proof, leaf_hash, tree_root
from coordinator.evidence import FRESH_MS, verify_evidence
from models.exchange import Evidence, Reply
from models.plan import Plan
from participant.release import answer, join
from tests.federation.synthetic import Federation, first_round, ready

Event = dict[str, JsonValue]
Change = Callable[[Event, Event, Event], object]


@pytest.fixture
def honest(federation: Federation) -> tuple[Plan, Reply]:
    plan = federation.plan()
    join(federation.nodes["amber"], ready(federation.sign(plan)))
    return plan, answer(federation.nodes["amber"], first_round(plan))


def relogged(reply: Reply, change: Change) -> tuple[Reply, Checkpoint]:
    """The same contribution with evidence from a log in which these entries say something else."""
    events = []
    for entry in reply.evidence:
        event = parse_canonical(entry.leaf)
        assert isinstance(event, dict)
        events.append(event)
    change(*events)
    leaves = [format_canonical(event) for event in events]
    hashes = [leaf_hash(leaf) for leaf in leaves]
    evidence = tuple(
        Evidence(leaf=leaf, index=index, proof=tuple(inclusion_proof(hashes, index)))
        for index, leaf in enumerate(leaves)
    )
    head = Checkpoint("amber", len(leaves), tree_root(hashes))
    return dataclasses.replace(reply, evidence=evidence), head


def test_an_honest_contribution_is_permitted_paid_for_and_logged(
    federation: Federation, honest: tuple[Plan, Reply]
) -> None:
    plan, reply = honest
    host = federation.host
    head = host.relay.take(host.member("amber"), reply, host.trust_policy)

    verify_evidence(reply, plan, head, round_=(1, 1), now=federation.clock())


def test_the_same_contribution_again_shows_the_same_permit_and_charge(
    federation: Federation, honest: tuple[Plan, Reply]
) -> None:
    plan, reply = honest

    again = answer(federation.nodes["amber"], first_round(plan))

    assert [entry.leaf for entry in again.evidence[:2]] == [
        entry.leaf for entry in reply.evidence[:2]
    ]
    assert again.masked == reply.masked


FAULTS: list[tuple[str, Change]] = [
    ("its permit is not for training", lambda p, c, r: p["use"].update(kind="score")),  # type: ignore[union-attr]
    ("its permit is for another round", lambda p, c, r: p["use"].update(round=2)),  # type: ignore[union-attr]
    ("its charge is for another round", lambda p, c, r: c.update(attempt=2)),
    ("its release is for another round", lambda p, c, r: r.update(run="0" * 64)),
    ("its permit is for another purpose", lambda p, c, r: p.update(purpose="contact")),
    ("its charge is for another purpose", lambda p, c, r: c.update(purpose="contact")),
    ("its permit was issued under another consent policy", lambda p, c, r: p.update(policy="0")),
    ("its permit names other recipients", lambda p, c, r: p["use"].update(recipients=["x"])),  # type: ignore[union-attr]
    ("its charge takes epsilon to 9 of", lambda p, c, r: c.update(epsilon_spent="9")),
    ("its charge has no epsilon", lambda p, c, r: c.update(epsilon_spent="much")),
    ("its charge has no epsilon", lambda p, c, r: c.pop("epsilon_budget")),
    ("its release names another permit", lambda p, c, r: r.update(permit="0" * 32)),
    ("its release is of another contribution", lambda p, c, r: r.update(sha256="0" * 64)),
    ("its release is not from the last ten minutes", lambda p, c, r: r.update(at=1)),
    ("entry 1 of its log is no budget.charged", lambda p, c, r: c.update(type="budget.planned")),
]


@pytest.mark.parametrize(("sentence", "change"), FAULTS, ids=[text for text, _ in FAULTS])
def test_evidence_that_says_something_else_is_refused(
    federation: Federation, honest: tuple[Plan, Reply], sentence: str, change: Change
) -> None:
    plan, reply = honest
    other, head = relogged(reply, change)

    with pytest.raises(ProofError, match=f"^{sentence}"):
        verify_evidence(other, plan, head, round_=(1, 1), now=federation.clock())


def test_evidence_that_is_not_in_the_log_is_refused(
    federation: Federation, honest: tuple[Plan, Reply]
) -> None:
    plan, reply = honest
    other, head = relogged(reply, lambda permit, charge, release: None)
    elsewhere = Checkpoint(head.origin, head.tree_size, bytes(32))

    with pytest.raises(ProofError):
        verify_evidence(other, plan, elsewhere, round_=(1, 1), now=federation.clock())


def test_evidence_that_is_missing_or_old_is_refused(
    federation: Federation, honest: tuple[Plan, Reply]
) -> None:
    plan, reply = honest
    other, head = relogged(reply, lambda permit, charge, release: None)
    none = dataclasses.replace(reply, evidence=())

    with pytest.raises(ProofError, match="it shows 0 entries of its log and not three"):
        verify_evidence(none, plan, head, round_=(1, 1), now=federation.clock())
    later = federation.clock() + FRESH_MS + 1
    with pytest.raises(ProofError, match="not from the last ten minutes"):
        verify_evidence(other, plan, head, round_=(1, 1), now=later)


def test_a_leaf_that_is_not_canonical_is_refused(
    federation: Federation, honest: tuple[Plan, Reply]
) -> None:
    plan, reply = honest
    leaf = b'{"type": "permit.issued"}'
    entry = Evidence(leaf=leaf, index=0, proof=())
    head = Checkpoint("amber", 1, leaf_hash(leaf))
    other = dataclasses.replace(reply, evidence=(entry, *reply.evidence[1:]))

    with pytest.raises(ProofError, match="entry 0 of its log is not canonical"):
        verify_evidence(other, plan, head, round_=(1, 1), now=federation.clock())
