from dataclasses import dataclass
from pathlib import Path

import pytest

from consent import (
    AccessDenied,
    Action,
    AssessmentError,
    NotAssessed,
    PolicyError,
    Purpose,
    Role,
    Use,
    UseKind,
)
from participant.accounts import Session
from participant.governance import (
    activate_rules,
    appoint_sample,
    approve_assessment,
    approve_rules,
    assess,
    erase_subject,
    propose_rules,
    rotate_keys,
)
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


@dataclass(frozen=True)
class Staff:
    """Who decides at a brand that has decided nothing yet."""

    author: Session
    approver: Session
    operator: Session


@pytest.fixture
def staff(node: Node) -> Staff:
    roles = (Role.POLICY_AUTHOR, Role.POLICY_APPROVER, Role.OPERATOR)
    return Staff(*(appoint_sample(node, role) for role in roles))


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """A node whose people agreed, and whose brand decided nothing yet."""
    config = config_of("amber", tmp_path)
    write_products(tmp_path / "products.csv")
    invoice_lines(seed=1, customers=15).to_csv(config.transactions, index=False)
    node = Node.create(config, clock=Clock())
    agree(node, node.table.subjects)
    return node


def assess_by(node: Node, author: Session, approver: Session, until: int) -> None:
    assess(node, {PURPOSE: DOCUMENT}, author=author, approver=approver, valid_until=until)


def test_rules_and_an_assessment_by_two_people_open_the_gate(node: Node, staff: Staff) -> None:
    activate_rules(node, author=staff.author, approver=staff.approver)
    until = node.clock() + DAY_MS
    assess(
        node, {PURPOSE: DOCUMENT}, author=staff.author, approver=staff.approver, valid_until=until
    )

    view = node.gate.open(PURPOSE, node.table.subjects, use=USE, at=node.clock())

    assert view.mask.all()
    assert node.rulebook.active_digest() is not None


def test_without_an_assessment_the_gate_opens_nothing_and_says_so(node: Node, staff: Staff) -> None:
    activate_rules(node, author=staff.author, approver=staff.approver)

    with pytest.raises(NotAssessed, match="needs an approved impact assessment, found: none"):
        node.gate.open(PURPOSE, node.table.subjects, use=USE, at=node.clock())

    assert kinds(node)[-1] == "permit.denied"


def test_an_assessment_that_has_ended_closes_the_gate(node: Node, staff: Staff) -> None:
    activate_rules(node, author=staff.author, approver=staff.approver)
    until = node.clock() + DAY_MS
    assess(
        node, {PURPOSE: DOCUMENT}, author=staff.author, approver=staff.approver, valid_until=until
    )

    with pytest.raises(NotAssessed, match="found: expired"):
        node.gate.open(PURPOSE, node.table.subjects, use=USE, at=until)


def test_a_purpose_that_needs_no_assessment_opens_without_one(node: Node) -> None:
    view = node.gate.open(Purpose.RECOMMENDATION, node.table.subjects, use=USE, at=node.clock())

    assert view.mask.all()


def test_one_person_alone_puts_nothing_in_force(node: Node, staff: Staff) -> None:
    with pytest.raises(AccessDenied):
        activate_rules(node, author=staff.author, approver=staff.author)
    assert node.rulebook.active_digest() is None

    activate_rules(node, author=staff.author, approver=staff.approver)
    until = node.clock() + DAY_MS
    with pytest.raises(AccessDenied):
        assess(
            node, {PURPOSE: DOCUMENT}, author=staff.author, approver=staff.author, valid_until=until
        )
    with pytest.raises(NotAssessed):
        node.gate.open(PURPOSE, node.table.subjects, use=USE, at=node.clock())


def test_before_the_rules_are_in_force_nobody_assesses(node: Node, staff: Staff) -> None:
    until = node.clock() + DAY_MS

    with pytest.raises(AccessDenied):
        assess(
            node,
            {PURPOSE: DOCUMENT},
            author=staff.author,
            approver=staff.approver,
            valid_until=until,
        )


def test_rules_and_assessments_outlive_the_process(node: Node, staff: Staff) -> None:
    activate_rules(node, author=staff.author, approver=staff.approver)
    until = node.clock() + DAY_MS
    assess(
        node, {PURPOSE: DOCUMENT}, author=staff.author, approver=staff.approver, valid_until=until
    )
    node.close()

    with Node.open(node.config, clock=node.clock) as again:
        again.gate.open(PURPOSE, again.table.subjects, use=USE, at=again.clock())


def test_a_person_is_erased_by_an_operator_with_a_fresh_factor_only(
    node: Node, staff: Staff
) -> None:
    activate_rules(node, author=staff.author, approver=staff.approver)
    someone, other = node.table.subjects[:2]
    with pytest.raises(AccessDenied, match="no rule permits erase_subject"):
        erase_subject(node, staff.approver, someone)

    erase_subject(node, staff.operator, someone)
    erased = kinds(node)[-2:]
    node.clock.now += 301_000  # type: ignore[attr-defined]
    with pytest.raises(AccessDenied, match="forbidden to the role operator by step-up"):
        erase_subject(node, staff.operator, other)

    assert erased == ["access.allowed", "subject.erased"]
    assert list(node.register.mask([someone, other], PURPOSE, at=node.clock())) == [False, True]


def test_keys_are_rotated_by_an_operator_with_a_fresh_factor_only(node: Node, staff: Staff) -> None:
    activate_rules(node, author=staff.author, approver=staff.approver)
    people, file = node.table.subjects, node.config.folder / "log" / "wrapping.key"
    mask = list(node.register.mask(people, PURPOSE, at=node.clock()))
    with pytest.raises(AccessDenied, match="no rule permits rotate_keys"):
        rotate_keys(node, staff.approver)
    before = file.read_bytes()

    key_id = rotate_keys(node, staff.operator)
    told = node.log.entry(node.log.tree_size - 1).value
    after = file.read_bytes()
    at = node.clock()
    other = node.accounts.authorize(staff.operator, Action.ROTATE_KEYS, about="x", at=at)
    with pytest.raises(AccessDenied, match="the grant is not one to rotate_keys"):
        node.rotate_keys(grant=other)
    node.clock.now += 301_000  # type: ignore[attr-defined]
    with pytest.raises(AccessDenied, match="forbidden to the role operator by step-up"):
        rotate_keys(node, staff.operator)

    assert (told["type"], told["kind"], told["id"]) == ("key.rotated", "wrapping", key_id)
    assert before != after == file.read_bytes()
    assert list(node.register.mask(people, PURPOSE, at=node.clock())) == mask
    node.register.verify_replay()


def test_a_step_about_nothing_that_was_proposed_is_refused(node: Node, staff: Staff) -> None:
    with pytest.raises(PolicyError, match="entry 3 of the log proposes no policy"):
        approve_rules(node, staff.approver, 3)
    with pytest.raises(AssessmentError, match="there is no assessment nothing"):
        approve_assessment(node, staff.approver, "nothing", valid_until=node.clock() + 1)
    index = propose_rules(node, staff.author).index
    assert approve_rules(node, staff.approver, index).approver == staff.approver.account
