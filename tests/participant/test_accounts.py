import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from consent import AccessDenied, Action, LogError, Role
from participant.accounts import (
    FREE_TRIES,
    TOKEN_LIFE_MS,
    AccountError,
    CodeRefused,
    Credentials,
    NotSignedIn,
    Session,
    check_roles,
    code_of,
)
from participant.governance import activate_rules
from participant.node import Node
from tests.federation.synthetic import Clock, config_of, events, kinds

pytestmark = pytest.mark.usefixtures("both_stores")


class Desk:
    """A node with fixed hands: it adds accounts, signs them in and moves its clock."""

    def __init__(self, node: Node, clock: Clock) -> None:
        self.node, self.clock = node, clock

    def add(self, *roles: Role) -> Credentials:  # noqa: D102 - see the class
        return self.node.accounts.add_by_host(roles, at=self.clock())

    def sign_in(self, made: Credentials) -> Session:  # noqa: D102
        return self.node.accounts.sign_in(made.token, at=self.clock())

    def step_up(self, session: Session, made: Credentials) -> None:  # noqa: D102
        code = code_of(made.uri, at=self.clock())
        self.node.accounts.step_up(session, code, at=self.clock())

    def fresh(self, made: Credentials) -> Session:
        """Signed in with a code of this moment, which is moved so that it is a new one."""
        self.clock.now += 60_000
        session = self.sign_in(made)
        self.step_up(session, made)
        return session


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    clock = Clock()
    with Node.create(config_of("amber", tmp_path), clock=clock) as node:
        yield Desk(node, clock)


@pytest.fixture
def governed(desk: Desk) -> Desk:
    author, approver = desk.add(Role.POLICY_AUTHOR), desk.add(Role.POLICY_APPROVER)
    activate_rules(desk.node, author=desk.fresh(author), approver=desk.fresh(approver))
    return desk


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        ((), "needs at least one role"),
        ((Role.SUBJECT,), "subject is nobody's"),
        ((Role.POLICY_AUTHOR, Role.POLICY_APPROVER), "nobody holds both author and approver"),
        ((Role.COMPLIANCE_OFFICER, Role.ENGINEER), "holds no role besides"),
        ((Role.SCORER, Role.ENGINEER), "a service has one role and no other"),
        ((Role.SCORER, Role.TRAINER), "a service has one role and no other"),
    ],
)
def test_roles_that_exclude_each_other_are_not_held_by_one(
    roles: tuple[Role, ...], message: str
) -> None:
    with pytest.raises(AccountError, match=message):
        check_roles(roles)


def test_an_operator_may_be_an_engineer_and_write_rules() -> None:
    assert len(check_roles([Role.OPERATOR, Role.ENGINEER, Role.POLICY_AUTHOR])) == 3


def test_the_code_is_the_one_of_rfc_6238() -> None:
    # RFC 6238 appendix B, SHA-1, last six of eight digits.
    shared = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"
    found = [
        code_of(f"otpauth://totp/x?secret={shared}", at=seconds * 1000)
        for seconds in (59, 1_111_111_109, 1_234_567_890, 2_000_000_000)
    ]

    assert found == ["287082", "081804", "005924", "279037"]


def test_a_code_counts_once_and_within_one_step(desk: Desk) -> None:
    made = desk.add(Role.OPERATOR)
    session = desk.sign_in(made)
    old = code_of(made.uri, at=desk.clock() - 30_000)
    code = code_of(made.uri, at=desk.clock())
    far = code_of(made.uri, at=desk.clock() + 90_000)

    with pytest.raises(CodeRefused, match="wrong code"):
        desk.node.accounts.step_up(session, far, at=desk.clock())
    desk.node.accounts.step_up(session, old, at=desk.clock())
    desk.node.accounts.step_up(session, code, at=desk.clock())
    with pytest.raises(CodeRefused, match="code used before"):
        desk.node.accounts.step_up(session, code, at=desk.clock())
    with pytest.raises(CodeRefused, match="code used before"):
        desk.node.accounts.step_up(session, old, at=desk.clock())

    assert kinds(desk.node)[-5:] == [
        "account.refused",
        "account.stepped_up",
        "account.stepped_up",
        "account.refused",
        "account.refused",
    ]


def test_a_used_code_stays_used_after_a_restart(desk: Desk) -> None:
    made = desk.add(Role.OPERATOR)
    code = code_of(made.uri, at=desk.clock())
    desk.node.accounts.step_up(desk.sign_in(made), code, at=desk.clock())
    desk.node.close()

    with Node.open(desk.node.config, clock=desk.clock) as node:
        session = node.accounts.sign_in(made.token, at=desk.clock())
        assert node.accounts.mfa_age_s(session, at=desk.clock()) == 0
        with pytest.raises(CodeRefused, match="code used before"):
            node.accounts.step_up(session, code, at=desk.clock())
        node.accounts.verify()


def test_wrong_codes_are_answered_with_growing_pauses(desk: Desk) -> None:
    made = desk.add(Role.OPERATOR)
    session = desk.sign_in(made)
    waits = []
    for _ in range(FREE_TRIES + 3):
        with pytest.raises(CodeRefused) as refusal:
            desk.node.accounts.step_up(session, "not-a-code", at=desk.clock())
        waits.append(refusal.value.wait_s)
        size = desk.node.log.tree_size
        if refusal.value.wait_s:
            with pytest.raises(CodeRefused, match="no code is looked at now"):
                desk.step_up(session, made)
            assert desk.node.log.tree_size == size
        desk.clock.now += refusal.value.wait_s * 1000

    assert waits == [0, 0, 0, 0, 30, 60, 120, 240]
    desk.step_up(session, made)
    with pytest.raises(CodeRefused) as refusal:
        desk.node.accounts.step_up(session, "not-a-code", at=desk.clock())
    assert refusal.value.wait_s == 0


def test_a_wrong_code_ends_what_a_right_one_opened(desk: Desk) -> None:
    made = desk.add(Role.OPERATOR)
    session = desk.fresh(made)
    with pytest.raises(CodeRefused):
        desk.node.accounts.step_up(session, "000", at=desk.clock())

    assert desk.node.accounts.mfa_age_s(session, at=desk.clock()) is None


def test_a_second_factor_grows_old_and_belongs_to_its_token(governed: Desk) -> None:
    node, clock = governed.node, governed.clock
    made = governed.add(Role.OPERATOR)
    session = governed.fresh(made)
    clock.now += 300_999
    node.accounts.authorize(session, Action.ROTATE_KEYS, about="x", at=clock())
    clock.now += 1
    with pytest.raises(AccessDenied, match="by step-up"):
        node.accounts.authorize(session, Action.ROTATE_KEYS, about="x", at=clock())

    session = governed.fresh(made)
    renewed = governed.sign_in(node.accounts.renew(session, at=clock()))
    assert node.accounts.mfa_age_s(renewed, at=clock()) is None


@pytest.mark.parametrize("change", ["", "x", "swap", "other id"])
def test_a_token_that_is_nobodys_is_refused_and_writes_nothing(desk: Desk, change: str) -> None:
    made = desk.add(Role.OPERATOR)
    token_id, secret = made.token.split(".")
    wrong = {
        "": "",
        "x": made.token + "x",
        "swap": f"{token_id}.{secret.swapcase()}",
        "other id": f"{'0' * 16}.{secret}",
    }[change]
    size = desk.node.log.tree_size

    with pytest.raises(NotSignedIn, match="a valid token of an account is needed"):
        desk.node.accounts.sign_in(wrong, at=desk.clock())
    assert desk.node.log.tree_size == size


def test_a_token_ends_after_ninety_days_to_the_millisecond(desk: Desk) -> None:
    made = desk.add(Role.OPERATOR)
    desk.clock.now += TOKEN_LIFE_MS - 1
    desk.sign_in(made)
    desk.clock.now += 1

    with pytest.raises(NotSignedIn):
        desk.sign_in(made)


def test_a_renewed_token_ends_the_old_one_when_it_is_first_used(desk: Desk) -> None:
    made = desk.add(Role.SCORER)
    lost = desk.node.accounts.renew(desk.sign_in(made), at=desk.clock())
    desk.clock.now += 1
    kept = desk.node.accounts.renew(desk.sign_in(made), at=desk.clock())
    assert made.uri == ""
    desk.sign_in(made)
    desk.sign_in(kept)

    for token in (made, lost):
        with pytest.raises(NotSignedIn):
            desk.sign_in(token)
    with pytest.raises(CodeRefused, match="a service has no second factor"):
        desk.node.accounts.step_up(desk.sign_in(kept), "1", at=desk.clock())


def test_a_person_renews_with_a_fresh_code_only(desk: Desk) -> None:
    made = desk.add(Role.OPERATOR)

    with pytest.raises(AccountError, match="needs a second factor of at most five minutes"):
        desk.node.accounts.renew(desk.sign_in(made), at=desk.clock())


def test_a_revoked_account_is_out_at_once_and_its_session_too(governed: Desk) -> None:
    first, second = governed.add(Role.OPERATOR), governed.add(Role.OPERATOR)
    accounts, session = governed.node.accounts, governed.fresh(second)
    accounts.revoke(governed.fresh(first), second.account, at=governed.clock())

    with pytest.raises(NotSignedIn):
        governed.sign_in(second)
    with pytest.raises(NotSignedIn, match="was revoked"):
        accounts.authorize(session, Action.READ_LOG, about="x", at=governed.clock())
    with pytest.raises(AccountError, match="was revoked before"):
        accounts.revoke(governed.fresh(first), second.account, at=governed.clock())
    with pytest.raises(AccountError, match="there is no account of this id"):
        accounts.revoke_by_host("nobody", at=governed.clock())
    accounts.revoke(governed.fresh(first), first.account, at=governed.clock())
    assert events(governed.node)[-1]["by"] == first.account
    accounts.verify()


def test_after_the_rules_are_in_force_the_host_adds_two_operators_and_no_more(
    governed: Desk,
) -> None:
    with pytest.raises(AccountError, match="one of them proposes an account and the other"):
        governed.add(Role.COMPLIANCE_OFFICER)
    one = governed.add(Role.OPERATOR)
    governed.add(Role.OPERATOR)
    with pytest.raises(AccountError, match="nothing was added"):
        governed.add(Role.OPERATOR)
    governed.node.accounts.revoke_by_host(one.account, at=governed.clock())
    governed.add(Role.OPERATOR)


def test_an_account_needs_two_operators_and_one_alone_adds_nobody(governed: Desk) -> None:
    accounts, clock = governed.node.accounts, governed.clock
    first, second = governed.add(Role.OPERATOR), governed.add(Role.OPERATOR)
    one = governed.fresh(first)
    name = accounts.propose(one, [Role.COMPLIANCE_OFFICER], at=clock())

    with pytest.raises(AccountError, match="by another than its proposer and itself"):
        accounts.approve(one, name, at=clock())
    with pytest.raises(AccountError, match="only who approved an account enrols it"):
        accounts.enrol(one, name, at=clock())
    stale = governed.sign_in(second)
    with pytest.raises(AccessDenied, match="by step-up"):
        accounts.approve(stale, name, at=clock())
    two = governed.fresh(second)
    accounts.approve(two, name, at=clock())
    with pytest.raises(AccountError, match="only who approved an account enrols it"):
        accounts.enrol(one, name, at=clock())
    lost = accounts.enrol(two, name, at=clock())
    made = accounts.enrol(two, name, at=clock())
    with pytest.raises(NotSignedIn):
        governed.sign_in(lost)
    officer = governed.sign_in(made)

    assert accounts.roles(officer) == {Role.COMPLIANCE_OFFICER}
    with pytest.raises(AccountError, match="only before it was signed in"):
        accounts.enrol(two, name, at=clock())
    with pytest.raises(AccountError, match="nothing about this account waits"):
        accounts.approve(two, name, at=clock())
    told = [event for event in events(governed.node) if event["type"] == "account.added"][-1]
    assert (told["by"], told["approver"]) == (first.account, second.account)
    accounts.verify()


def test_roles_change_by_two_operators_and_the_token_stays(governed: Desk) -> None:
    accounts, clock = governed.node.accounts, governed.clock
    first, second = governed.add(Role.OPERATOR), governed.add(Role.OPERATOR)
    one = governed.fresh(first)
    roles = [Role.OPERATOR, Role.ENGINEER]
    accounts.propose(one, roles, account=second.account, at=clock())

    with pytest.raises(AccountError, match="its proposer and itself"):
        accounts.approve(governed.fresh(second), second.account, at=clock())
    accounts.propose(governed.fresh(second), roles, account=first.account, at=clock())
    with pytest.raises(AccountError, match="its proposer and itself"):
        accounts.approve(governed.fresh(first), first.account, at=clock())
    accounts.revoke_by_host(first.account, at=clock())
    third = governed.fresh(governed.add(Role.OPERATOR))
    accounts.approve(third, second.account, at=clock())

    assert accounts.roles(governed.sign_in(second)) == set(roles)
    assert kinds(governed.node)[-1] == "account.roles_changed"
    with pytest.raises(AccountError, match="was revoked or never approved"):
        accounts.propose(third, roles, account=first.account, at=clock())


def test_secrets_are_in_no_table_and_no_entry(desk: Desk) -> None:
    made = desk.add(Role.OPERATOR)
    desk.fresh(made)
    secret = made.token.split(".")[1]
    shared = made.uri.split("secret=")[1].split("&")[0]
    folder = desk.node.config.folder
    desk.node.close()

    stored = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert secret.encode() not in stored
    assert shared.encode() not in stored
    assert secret not in repr(made)
    assert stat.S_IMODE((folder / "accounts.key").stat().st_mode) == 0o600


def test_a_session_is_not_made_by_hand() -> None:
    with pytest.raises(TypeError, match="is issued by Accounts"):
        Session(account="a", token_id="b")  # noqa: S106


def test_an_account_event_that_could_not_have_happened_closes_the_node(desk: Desk) -> None:
    made = desk.add(Role.OPERATOR)
    accounts, fields = desk.node.accounts, {"roles": ["operator"], "by": "x", "approver": "x"}
    accounts._tell("account.added", made.account, at=desk.clock(), **fields)

    with pytest.raises(LogError, match="is a step of an account that could not have been taken"):
        accounts.reload()


def test_an_approval_by_its_own_proposer_in_the_log_closes_the_node(governed: Desk) -> None:
    accounts, clock = governed.node.accounts, governed.clock
    made = governed.add(Role.OPERATOR)
    name = accounts.propose(governed.fresh(made), [Role.SCIENTIST], at=clock())
    fields = {"roles": ["scientist"], "by": made.account, "approver": made.account}
    accounts._tell("account.added", name, at=clock(), **fields)

    with pytest.raises(LogError, match="is a step of an account that could not have been taken"):
        accounts.reload()


def test_with_several_roles_the_one_that_may_is_asked_and_one_answer_logged(desk: Desk) -> None:
    author, approver = desk.add(Role.POLICY_AUTHOR), desk.add(Role.POLICY_APPROVER)
    both = desk.add(Role.ENGINEER, Role.OPERATOR)
    activate_rules(desk.node, author=desk.fresh(author), approver=desk.fresh(approver))
    session, size = desk.fresh(both), desk.node.log.tree_size
    authorize = desk.node.accounts.authorize
    grant = authorize(session, Action.READ_REGISTER, about="x", at=desk.clock())
    with pytest.raises(AccessDenied, match="no rule permits cosign to the role engineer"):
        authorize(session, Action.COSIGN, about="x", at=desk.clock())

    assert grant.request.role is Role.OPERATOR
    assert kinds(desk.node, after=size) == ["access.allowed", "access.denied"]


def test_the_key_of_the_accounts_must_be_whole(desk: Desk) -> None:
    with pytest.raises(ValueError, match="the key of the accounts must have 32 bytes, got 3"):
        type(desk.node.accounts)(desk.node.log, desk.node.access, key=b"abc", in_force=lambda: True)
