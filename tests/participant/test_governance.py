from pathlib import Path

import pytest

from consent import AccessDenied, AssessmentError, NotAssessed, PolicyError, Purpose, Use, UseKind
from participant.governance import activate_rules, assess
from participant.node import Node
from tests.federation.synthetic import (
    DAY_MS,
    PURPOSE,
    Clock,
    agree,
    config_of,
    invoice_lines,
    kinds,
    write_products,
)

DOCUMENT = "ef" * 32
USE = Use(kind=UseKind.TRAIN)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """A node whose people agreed, and whose brand decided nothing yet."""
    config = config_of("amber", tmp_path)
    write_products(tmp_path / "products.csv")
    invoice_lines(seed=1, customers=15).to_csv(config.transactions, index=False)
    node = Node.create(config, clock=Clock())
    agree(node, node.table.subjects)
    return node


def test_rules_and_an_assessment_by_two_people_open_the_gate(node: Node) -> None:
    activate_rules(node, author="ann", approver="bo")
    until = node.clock() + DAY_MS
    assess(node, {PURPOSE: DOCUMENT}, author="ann", approver="bo", valid_until=until)

    view = node.gate.open(PURPOSE, node.table.subjects, use=USE, at=node.clock())

    assert view.mask.all()
    assert node.rulebook.active_digest() is not None


def test_without_an_assessment_the_gate_opens_nothing_and_says_so(node: Node) -> None:
    activate_rules(node, author="ann", approver="bo")

    with pytest.raises(NotAssessed, match="needs an approved impact assessment, found: none"):
        node.gate.open(PURPOSE, node.table.subjects, use=USE, at=node.clock())

    assert kinds(node)[-1] == "permit.denied"


def test_an_assessment_that_has_ended_closes_the_gate(node: Node) -> None:
    activate_rules(node, author="ann", approver="bo")
    until = node.clock() + DAY_MS
    assess(node, {PURPOSE: DOCUMENT}, author="ann", approver="bo", valid_until=until)

    with pytest.raises(NotAssessed, match="found: expired"):
        node.gate.open(PURPOSE, node.table.subjects, use=USE, at=until)


def test_a_purpose_that_needs_no_assessment_opens_without_one(node: Node) -> None:
    view = node.gate.open(Purpose.RECOMMENDATION, node.table.subjects, use=USE, at=node.clock())

    assert view.mask.all()


def test_one_person_alone_puts_nothing_in_force(node: Node) -> None:
    with pytest.raises((AccessDenied, PolicyError)):
        activate_rules(node, author="ann", approver="ann")
    assert node.rulebook.active_digest() is None

    activate_rules(node, author="ann", approver="bo")
    until = node.clock() + DAY_MS
    with pytest.raises((AccessDenied, AssessmentError)):
        assess(node, {PURPOSE: DOCUMENT}, author="ann", approver="ann", valid_until=until)
    with pytest.raises(NotAssessed):
        node.gate.open(PURPOSE, node.table.subjects, use=USE, at=node.clock())


def test_before_the_rules_are_in_force_nobody_assesses(node: Node) -> None:
    until = node.clock() + DAY_MS

    with pytest.raises(AccessDenied):
        assess(node, {PURPOSE: DOCUMENT}, author="ann", approver="bo", valid_until=until)


def test_rules_and_assessments_outlive_the_process(node: Node) -> None:
    activate_rules(node, author="ann", approver="bo")
    until = node.clock() + DAY_MS
    assess(node, {PURPOSE: DOCUMENT}, author="ann", approver="bo", valid_until=until)
    node.close()

    with Node.open(node.config, clock=node.clock) as again:
        again.gate.open(PURPOSE, again.table.subjects, use=USE, at=again.clock())
