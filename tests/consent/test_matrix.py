import itertools
from collections.abc import Iterator

import pytest

from consent.access import (
    SHIPPED_DIGEST,
    AccessDenied,
    AccessRequest,
    Action,
    PolicyEngine,
    Role,
)
from consent.cedar import CedarEngine
from consent.matrix import RoleMatrix
from consent.policy import SHIPPED, PolicyFiles

SERVICES = {Role.INGEST, Role.TRAINER, Role.SCORER, Role.EXPORTER, Role.WITNESS}
ROW_SERVICES = SERVICES - {Role.WITNESS}
READS = {
    Action.READ_REGISTER,
    Action.READ_LOG,
    Action.READ_MODELS,
    Action.EXPORT_EVIDENCE,
    Action.REQUEST_UNSEAL,
    Action.UNSEAL,
}
MATRIX = RoleMatrix()


def everything(role: Role, action: Action) -> Iterator[AccessRequest]:
    for owner, author, masked, mfa in itertools.product(
        ("", "me", "you"), ("", "me", "you"), (False, True), (None, 0, 300, 301)
    ):
        yield AccessRequest(
            actor="me",
            role=role,
            action=action,
            owner=owner,
            author=author,
            masked=masked,
            mfa_age_s=mfa,
        )


def answer(engine: PolicyEngine, request: AccessRequest) -> tuple[str, ...] | str:
    try:
        return engine.judge(request)
    except AccessDenied as refusal:
        return refusal.reason


def permitted(role: Role, action: Action) -> list[AccessRequest]:
    return [r for r in everything(role, action) if isinstance(answer(MATRIX, r), tuple)]


@pytest.fixture(scope="module")
def cedar() -> CedarEngine:
    return CedarEngine(SHIPPED)


@pytest.mark.parametrize("role", Role)
def test_the_matrix_and_the_shipped_policies_give_one_answer_to_everything(
    role: Role, cedar: CedarEngine
) -> None:
    for action in Action:
        for request in everything(role, action):
            assert answer(MATRIX, request) == answer(cedar, request), request


def test_the_matrix_speaks_for_the_shipped_files() -> None:
    assert MATRIX.digest == SHIPPED_DIGEST == PolicyFiles.read(SHIPPED).digest


@pytest.mark.parametrize("role", set(Role) - ROW_SERVICES)
def test_no_human_reads_rows(role: Role) -> None:
    assert not permitted(role, Action.READ_ROWS)


@pytest.mark.parametrize("action", set(Action) - READS)
def test_the_officer_reads_and_changes_nothing(action: Action) -> None:
    assert not permitted(Role.COMPLIANCE_OFFICER, action)


@pytest.mark.parametrize("action", READS)
def test_the_officer_can_do_the_work(action: Action) -> None:
    assert permitted(Role.COMPLIANCE_OFFICER, action)


def test_the_scientist_sees_masked_views_and_models_only() -> None:
    allowed = {action for action in Action if permitted(Role.SCIENTIST, action)}

    assert allowed == {Action.READ_MASKED_VIEWS, Action.READ_MODELS}
    assert all(request.masked for request in permitted(Role.SCIENTIST, Action.READ_MASKED_VIEWS))


@pytest.mark.parametrize("action", Action)
def test_a_customer_acts_for_nobody_else(action: Action) -> None:
    assert all(request.owner == "me" for request in permitted(Role.SUBJECT, action))


@pytest.mark.parametrize(
    "action",
    [Action.APPROVE_POLICY, Action.APPROVE_ASSESSMENT, Action.APPROVE_PLAN, Action.UNSEAL],
)
@pytest.mark.parametrize("role", Role)
def test_nobody_decides_on_their_own(role: Role, action: Action) -> None:
    assert all(request.author == "you" for request in permitted(role, action))


@pytest.mark.parametrize(
    "action",
    [
        Action.UNSEAL,
        Action.EXPORT_EVIDENCE,
        Action.ACTIVATE_POLICY,
        Action.ERASE_SUBJECT,
        Action.ROTATE_KEYS,
    ],
)
@pytest.mark.parametrize("role", Role)
def test_what_is_dangerous_needs_a_fresh_second_factor(role: Role, action: Action) -> None:
    assert all(request.mfa_age_s in {0, 300} for request in permitted(role, action))


@pytest.mark.parametrize("action", Action)
def test_every_action_is_open_to_somebody(action: Action) -> None:
    assert any(permitted(role, action) for role in Role)


def test_withdrawing_asks_no_more_than_agreeing() -> None:
    for role in Role:
        agree = [r.context() for r in permitted(role, Action.RECORD_CONSENT)]
        withdraw = [r.context() for r in permitted(role, Action.WITHDRAW)]

        assert agree == withdraw


def test_a_refusal_says_why() -> None:
    request = AccessRequest(actor="me", role=Role.ENGINEER, action=Action.WITHDRAW)
    with pytest.raises(AccessDenied, match="no rule permits withdraw to the role engineer"):
        MATRIX.judge(request)
    request = AccessRequest(actor="me", role=Role.POLICY_APPROVER, action=Action.ACTIVATE_POLICY)
    with pytest.raises(AccessDenied, match=r"activate_policy is forbidden to the role .* by step-"):
        MATRIX.judge(request)
