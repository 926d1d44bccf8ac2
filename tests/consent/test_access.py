import dataclasses
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consent import JsonValue, Log, Refused
from consent.access import (
    SHIPPED_DIGEST,
    Access,
    AccessDenied,
    AccessGrant,
    AccessRequest,
    Action,
    Role,
)
from consent.matrix import RoleMatrix

READ_LOG = AccessRequest(actor="account-7", role=Role.COMPLIANCE_OFFICER, action=Action.READ_LOG)
OWN_STATE = AccessRequest(
    actor="ab" * 32, owner="ab" * 32, role=Role.SUBJECT, action=Action.READ_OWN_STATE
)


class Broken:
    """An engine that fails in a way of the test's choosing."""

    name = "broken"
    digest = SHIPPED_DIGEST

    def __init__(self, answer: tuple[str, ...] | Exception) -> None:
        self.answer = answer

    def judge(self, request: AccessRequest) -> tuple[str, ...]:
        """Give the answer."""
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def last(log: Log) -> dict[str, JsonValue]:
    return log.entry(log.tree_size - 1).value


def test_a_grant_is_in_the_log_before_it_is_out(access: Access, log: Log) -> None:
    grant = access.authorize(READ_LOG, at=7)

    assert log.entry(grant.index).value == {
        "type": "access.allowed",
        "v": 1,
        "at": 7,
        "role": "compliance_officer",
        "actor": "account-7",
        "action": "read_log",
        "about": "",
        "engine": "matrix 1",
        "policy": SHIPPED_DIGEST,
        "rules": ["compliance-officer"],
    }
    assert (grant.request, grant.rules, grant.at) == (READ_LOG, ("compliance-officer",), 7)


def test_a_refusal_is_an_event(access: Access, log: Log) -> None:
    request = dataclasses.replace(READ_LOG, action=Action.READ_ROWS)
    with pytest.raises(AccessDenied, match="read_rows is forbidden to the role") as refusal:
        access.authorize(request, at=7)

    assert isinstance(refusal.value, Refused)
    event = last(log)
    assert (event["type"], event["actor"]) == ("access.denied", "account-7")
    assert event["reason"] == refusal.value.reason


def test_nothing_about_a_customer_is_in_an_open_event(access: Access, log: Log) -> None:
    grant = access.authorize(OWN_STATE, at=60_007)
    assert (grant.at, last(log)["at"]) == (60_007, 60_000)
    with pytest.raises(AccessDenied):
        access.authorize(dataclasses.replace(OWN_STATE, owner="cd" * 32), at=60_007)
    access.authorize(dataclasses.replace(READ_LOG, owner="cd" * 32), at=60_007)

    leaves = b"".join(entry.leaf for entry in log.entries())
    assert b"abab" not in leaves
    assert b"cdcd" not in leaves


def test_before_the_first_activation_only_policies_are_dealt_with(log: Log) -> None:
    access = Access(RoleMatrix(), log, activated=lambda: None)
    with pytest.raises(AccessDenied, match="no policy was activated yet; until then policies can"):
        access.authorize(READ_LOG, at=7)

    proposal = AccessRequest(actor="a", role=Role.POLICY_AUTHOR, action=Action.PROPOSE_POLICY)
    assert access.authorize(proposal, at=7).policy_digest == ""


def test_before_the_first_activation_only_the_shipped_rules_count(log: Log) -> None:
    engine = Broken(("mine",))
    engine.digest = "00" * 32
    proposal = AccessRequest(actor="a", role=Role.POLICY_AUTHOR, action=Action.PROPOSE_POLICY)
    with pytest.raises(AccessDenied, match="the rules of this node are not the activated ones"):
        Access(engine, log, activated=lambda: None).authorize(proposal, at=7)


def test_other_rules_than_the_activated_ones_are_refused(log: Log) -> None:
    access = Access(RoleMatrix(), log, activated=lambda: "00" * 32)
    with pytest.raises(AccessDenied, match="the rules of this node are not the activated ones"):
        access.authorize(READ_LOG, at=7)
    assert last(log)["type"] == "access.denied"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((), "the policy engine named no rule, which is a refusal"),
        (RuntimeError("anna"), "access could not be decided, which is a refusal"),
    ],
)
def test_an_engine_that_fails_is_a_refusal_and_an_event(
    log: Log, answer: tuple[str, ...] | Exception, reason: str
) -> None:
    access = Access(Broken(answer), log, activated=lambda: SHIPPED_DIGEST)
    with pytest.raises(AccessDenied, match=f"^{reason}$"):
        access.authorize(READ_LOG, at=7)
    assert last(log)["reason"] == reason


def test_a_state_that_cannot_be_read_is_a_refusal(log: Log) -> None:
    def unreadable() -> str:
        raise OSError

    with pytest.raises(AccessDenied, match="access could not be decided"):
        Access(RoleMatrix(), log, activated=unreadable).authorize(READ_LOG, at=7)
    assert last(log)["type"] == "access.denied"


def test_a_closed_log_is_a_refusal(
    access: Access, log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    log.close()
    with pytest.raises(AccessDenied, match="the log cannot be used, which is a refusal"):
        access.authorize(READ_LOG, at=7)
    assert "a refusal to role compliance_officer could not be written" in caplog.text


@pytest.mark.parametrize("request_", [READ_LOG, OWN_STATE])
@pytest.mark.parametrize("at", [-1, True, 1.5])
def test_a_time_that_is_none_is_a_refusal(access: Access, request_: AccessRequest, at: int) -> None:
    with pytest.raises(AccessDenied, match="access could not be decided"):
        access.authorize(request_, at=at)


def test_a_request_from_outside_is_read(access: Access) -> None:
    grant = access.authorize_fields(
        {
            "actor": "a",
            "role": "policy_approver",
            "action": "approve_policy",
            "about": "ff",
            "author": "b",
            "masked": False,
            "mfa_age_s": 1,
        },
        at=7,
    )
    assert grant.request == AccessRequest(
        actor="a",
        role=Role.POLICY_APPROVER,
        action=Action.APPROVE_POLICY,
        about="ff",
        author="b",
        mfa_age_s=1,
    )


@pytest.mark.parametrize(
    "change",
    [
        {"role": "root"},
        {"action": "anything"},
        {"actor": 7},
        {"masked": "no"},
        {"mfa_age_s": "0"},
        {"color": "red"},
    ],
    ids=str,
)
def test_a_request_that_cannot_be_read_is_a_refusal_and_an_event(
    access: Access, log: Log, change: dict[str, JsonValue]
) -> None:
    fields: dict[str, JsonValue] = {"actor": "a", "role": "operator", "action": "read_log"}
    with pytest.raises(AccessDenied, match="the request cannot be read, which is a refusal"):
        access.authorize_fields({**fields, **change}, at=7)
    assert (last(log)["type"], last(log)["role"]) == ("access.denied", "unknown")


values = st.none() | st.booleans() | st.integers(-2, 2) | st.text("ab@ ", max_size=2)
asked = st.fixed_dictionaries(
    {"actor": values, "role": values | st.sampled_from(Role), "action": st.sampled_from(Action)},
    optional=dict.fromkeys(("about", "owner", "author", "masked", "mfa_age_s", "x"), values),
)


@given(asked)
def test_a_parser_of_requests_raises_only_its_own_error(found: dict[str, JsonValue]) -> None:
    try:
        request = AccessRequest.parse(found)
    except ValueError:
        return
    assert {name: getattr(request, name) for name in found} == found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"role": "operator"}, "the role is not one of the roles"),
        ({"action": "read_log"}, "the action is not one of the actions"),
        ({"actor": ""}, "an actor must be an opaque id"),
        ({"actor": "anna@example.com"}, "an actor must be an opaque id"),
        ({"about": "two words"}, "what a request is about must be opaque ids"),
        ({"about": "p1", "owner": "p1"}, "goes to the log and must not be a person"),
        ({"role": Role.SUBJECT, "about": "account-7"}, "must not be a person"),
        ({"masked": 1}, "masked must be true or false"),
        ({"mfa_age_s": -1}, "the age of a second factor must be whole seconds from 0"),
        ({"mfa_age_s": True}, "the age of a second factor must be whole seconds from 0"),
    ],
)
def test_a_request_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(READ_LOG, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({}, "a request cannot be read"),
        (
            {"actor": "a", "role": "operator", "action": "read_log", "x": 1},
            "a request holds a field that is not known",
        ),
    ],
)
def test_a_request_that_is_none_is_refused(found: dict[str, JsonValue], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AccessRequest.parse(found)


def test_a_grant_cannot_be_made_by_hand(grant: Callable[..., AccessGrant]) -> None:
    issued = grant(Role.OPERATOR, Action.READ_LOG, "", at=7)
    make: Callable[..., AccessGrant] = AccessGrant
    values = {field.name: getattr(issued, field.name) for field in dataclasses.fields(issued)}
    with pytest.raises(TypeError, match="an AccessGrant is issued by Access and cannot be made"):
        make(**values)


def test_a_grant_is_for_one_action_on_one_thing_and_for_five_minutes(
    grant: Callable[..., AccessGrant],
) -> None:
    issued = grant(Role.OPERATOR, Action.READ_LOG, "x", at=7)
    issued.verify(Action.READ_LOG, about="x", at=300_007)

    with pytest.raises(AccessDenied, match="the grant is not one to read_rows of what was given"):
        issued.verify(Action.READ_ROWS, about="x", at=7)
    with pytest.raises(AccessDenied, match="the grant is not one to read_log of what was given"):
        issued.verify(Action.READ_LOG, about="y", at=7)
    for at in (6, 300_008):
        with pytest.raises(AccessDenied, match="older than five minutes, or from the future"):
            issued.verify(Action.READ_LOG, about="x", at=at)
