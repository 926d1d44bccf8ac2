import dataclasses
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consent import (
    AgeBand,
    AskedTooSoon,
    ConsentChoice,
    Identity,
    Log,
    LogError,
    Notice,
    Person,
    Profile,
    Purpose,
    Register,
    SealError,
    Status,
    Tier,
    is_separate,
    ladder_of,
    preset,
)
from consent.register import Standing

IDENTITY = Identity.generate("brand-a.example/log")
NOTICE = Notice(id="privacy", version=1, language="en", sha256="0" * 64)
PEOPLE = ["anna", "ben", "chen"]
FEW = [
    Purpose.CONTACT,
    Purpose.AUTOMATED_MARKETING,
    Purpose.FEDERATED_TRAINING,
    Purpose.LOOKALIKE,
]


@dataclass(frozen=True)
class Withdrawal:
    """A withdrawal as a history tells it; None means everything."""

    subject_id: str
    purposes: frozenset[Purpose] | None


Act = ConsentChoice | Withdrawal


@st.composite
def choices(draw: st.DrawFn) -> ConsentChoice:
    separate = draw(st.booleans())
    said = draw(
        st.lists(st.sampled_from(FEW), unique=True, min_size=1, max_size=1 if separate else 4)
    )
    given_count = draw(st.integers(0, len(said)))
    expressed_at = draw(st.integers(0, 60))
    return ConsentChoice(
        subject_id=draw(st.sampled_from(PEOPLE)),
        given=frozenset(said[:given_count]),
        refused=frozenset(said[given_count:]),
        notice=NOTICE,
        channel="app",
        expressed_at=expressed_at,
        until=expressed_at + draw(st.integers(1, 100)),
        separate=separate,
    )


withdrawals = st.builds(
    Withdrawal,
    st.sampled_from(PEOPLE),
    st.none() | st.frozensets(st.sampled_from(FEW), min_size=1),
)
histories = st.lists(choices() | withdrawals, max_size=9)


def _oracle(
    acts: list[tuple[int, Act]], subject_id: str, purpose: Purpose, *, profile: Profile, at: int
) -> bool:
    """Read the whole history for one person and one purpose, as slowly as it is said."""
    agreed: ConsentChoice | None = None
    effective_at, said_at = 0, -1
    for committed_at, act in acts:
        if act.subject_id != subject_id:
            continue
        if isinstance(act, Withdrawal):
            if act.purposes is None or purpose in act.purposes:
                agreed, said_at = None, max(said_at, committed_at)
        elif purpose in act.given | act.refused and act.expressed_at >= said_at:
            said_at, effective_at = act.expressed_at, committed_at
            agreed = act if purpose in act.given else None
    if agreed is None or not effective_at <= at < agreed.until:
        return False
    if is_separate(purpose, profile=profile) and not agreed.separate:
        return False
    return all(
        _oracle(acts, subject_id, needed, profile=profile, at=at)
        for needed in ladder_of(profile).rules[purpose].prerequisites
    )


def _tell(register: Register, act: Act, *, at: int) -> None:
    if isinstance(act, Withdrawal):
        register.withdraw(act.subject_id, act.purposes, at=at)
    else:
        register.record_many([act], at=at)


def _commit_times(history: list[Act]) -> list[tuple[int, Act]]:
    return [(60 + 7 * number, act) for number, act in enumerate(history)]


@settings(max_examples=40, deadline=None)
@given(histories, st.sampled_from(list(Profile)))
def test_the_register_agrees_with_a_naive_reading_of_the_history(
    history: list[Act], profile: Profile
) -> None:
    acts = _commit_times(history)
    with tempfile.TemporaryDirectory() as folder, Log.create(Path(folder), IDENTITY) as log:
        register = Register(log, pseudonym_key=bytes(32), profile=profile)
        for at, act in acts:
            _tell(register, act, at=at)
        reread = Register(log, pseudonym_key=bytes(32), profile=profile)

        for purpose in FEW:
            for at in (0, 60, 65, 80, 100, 130, 200):
                expected = [_oracle(acts, p, purpose, profile=profile, at=at) for p in PEOPLE]
                assert register.mask(PEOPLE, purpose, at=at).tolist() == expected
                assert reread.mask(PEOPLE, purpose, at=at).tolist() == expected
        register.verify_replay()
        assert [register.state(p) for p in PEOPLE] == [reread.state(p) for p in PEOPLE]


@settings(max_examples=25, deadline=None)
@given(histories, choices() | withdrawals, st.sampled_from(list(Profile)))
def test_an_act_never_reaches_beyond_what_it_says(
    history: list[Act], last: Act, profile: Profile
) -> None:
    """A withdrawal enlarges no mask; an act about some purposes changes no other."""
    with tempfile.TemporaryDirectory() as folder, Log.create(Path(folder), IDENTITY) as log:
        register = Register(log, pseudonym_key=bytes(32), profile=profile)
        for at, act in _commit_times(history):
            _tell(register, act, at=at)
        times = (60, 100, 125, 150)
        before = {(p, at): register.mask(PEOPLE, p, at=at) for p in FEW for at in times}
        _tell(register, last, at=125)

        for (purpose, at), old in before.items():
            new = register.mask(PEOPLE, purpose, at=at)
            if isinstance(last, Withdrawal):
                assert not (new & ~old).any()
                continue
            said = last.given | last.refused
            if not said & {purpose, *register.ladder.rules[purpose].prerequisites}:
                assert (new == old).all()


def _choice(subject_id: str = "anna", **said: object) -> ConsentChoice:
    fields: dict[str, object] = {
        "given": preset(Tier.ADVANCED, profile=Profile.EU_GDPR),
        "notice": NOTICE,
        "channel": "app",
        "expressed_at": 5,
        "until": 1000,
        **said,
    }
    return ConsentChoice(subject_id=subject_id, **fields)  # type: ignore[arg-type]


def test_a_record_says_what_was_agreed(register: Register, log: Log, notice: Notice) -> None:
    record = register.record(
        "anna",
        given={Purpose.CONTACT},
        refused={Purpose.CHURN_SCORING},
        notice=notice,
        channel="till",
        expressed_at=5,
        at=7,
        until=100,
        tier=Tier.BASIC,
    )

    event = log.opened(record.index)
    assert (event["record"], event["subject"]) == (record.record_id, record.subject_ref)
    assert (record.expressed_at, record.effective_at, record.until) == (5, 7, 100)
    assert event["notice"] == {
        "id": "privacy",
        "version": 7,
        "language": "zh-CN",
        "sha256": "ab" * 32,
    }
    state = register.state("anna")
    assert state[Purpose.CONTACT].status is Status.GIVEN
    assert state[Purpose.CHURN_SCORING].status is Status.REFUSED
    assert set(state) == {Purpose.CONTACT, Purpose.CHURN_SCORING}


def test_a_mask_follows_the_order_of_its_question(register: Register) -> None:
    register.record_many([_choice("anna"), _choice("ben")], at=10)

    mask = register.mask(["ben", "nobody", "anna", "ben"], Purpose.CONTACT, at=10)

    assert mask.dtype == np.bool_
    assert mask.tolist() == [True, False, True, True]
    assert register.mask([], Purpose.CONTACT, at=10).tolist() == []


def test_consent_expires_at_its_millisecond(register: Register) -> None:
    register.record_many([_choice()], at=10)

    answers = [register.mask(["anna"], Purpose.CONTACT, at=at)[0] for at in (9, 10, 999, 1000)]

    assert answers == [False, True, True, False]


def test_withdrawing_everything_is_one_call_and_counts_at_once(register: Register) -> None:
    register.record_many([_choice()], at=10)
    register.withdraw("anna", at=11)

    assert not any(register.mask(["anna"], purpose, at=11)[0] for purpose in Purpose)
    assert {standing.status for standing in register.state("anna").values()} == {Status.WITHDRAWN}


def test_withdrawing_one_purpose_leaves_the_others(register: Register) -> None:
    register.record_many([_choice()], at=10)
    register.withdraw("anna", [Purpose.FEDERATED_TRAINING], at=11)

    assert not register.mask(["anna"], Purpose.FEDERATED_TRAINING, at=11)[0]
    assert register.mask(["anna"], Purpose.CHURN_SCORING, at=11)[0]


def test_a_late_report_of_an_older_yes_does_not_undo_a_withdrawal(register: Register) -> None:
    register.withdraw("anna", at=10)
    register.record_many([_choice(expressed_at=9)], at=20)
    assert not register.mask(["anna"], Purpose.CONTACT, at=20)[0]

    register.record_many([_choice(expressed_at=11)], at=21)
    assert register.mask(["anna"], Purpose.CONTACT, at=21)[0]


def test_a_separate_purpose_in_a_bundle_has_no_effect(register: Register) -> None:
    bundle = frozenset({Purpose.FEDERATED_TRAINING, Purpose.LOOKALIKE})
    register.record_many([_choice(given=bundle)], at=10)
    assert not register.mask(["anna"], Purpose.LOOKALIKE, at=10)[0]

    register.record_many([_choice(given=frozenset({Purpose.LOOKALIKE}), separate=True)], at=11)
    assert register.mask(["anna"], Purpose.LOOKALIKE, at=11)[0]


def test_in_china_training_needs_an_act_of_its_own(log: Log) -> None:
    register = Register(log, pseudonym_key=bytes(32), profile=Profile.CN_PIPL)
    register.record_many([_choice()], at=10)
    assert not register.mask(["anna"], Purpose.FEDERATED_TRAINING, at=10)[0]

    alone = _choice(given=frozenset({Purpose.FEDERATED_TRAINING}), separate=True)
    register.record_many([alone], at=11)
    assert register.mask(["anna"], Purpose.FEDERATED_TRAINING, at=11)[0]


def test_no_subject_id_is_stored_anywhere(register: Register, tmp_path: Path) -> None:
    register.record_many([_choice("anna-the-canary")], at=10)
    register.withdraw("anna-the-canary", at=11)

    files = [path.read_bytes() for path in (tmp_path / "log").iterdir()]
    assert not any(b"canary" in data for data in files)


def test_another_pseudonym_key_knows_nobody(register: Register, log: Log) -> None:
    register.record_many([_choice()], at=10)
    other = Register(log, pseudonym_key=b"x" * 32, profile=Profile.EU_GDPR)

    assert other.state("anna") == {}
    assert other.subject_ref("anna") != register.subject_ref("anna")


def test_every_act_moves_the_state_and_only_some_narrow_it(register: Register) -> None:
    register.record_many([_choice("anna"), _choice("ben")], at=10)
    assert (register.state_seq, register.narrowed_seq) == (2, 0)

    register.withdraw("anna", [Purpose.CONTACT], at=11)
    assert (register.state_seq, register.narrowed_seq) == (3, 3)


def test_a_rolled_back_act_is_forgotten(register: Register, log: Log) -> None:
    def fail() -> None:
        with log.transaction():
            register.record_many([_choice()], at=10)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()

    assert register.state("anna") == {}
    assert register.state_seq == 0
    register.record_many([_choice()], at=10)
    register.verify_replay()


def test_two_registers_of_one_log_agree(register: Register, log: Log) -> None:
    other = Register(log, pseudonym_key=bytes(32), profile=Profile.EU_GDPR)
    other.record_many([_choice()], at=10)

    assert register.mask(["anna"], Purpose.CONTACT, at=10)[0]


def test_an_erased_person_is_denied_and_their_acts_never_open(register: Register, log: Log) -> None:
    record = register.record_many([_choice("anna"), _choice("ben")], at=10)[0]
    root = log.root_hash
    register.erase("anna", at=11)

    assert register.state("anna") == {}
    assert not register.mask(["anna"], Purpose.CONTACT, at=11)[0]
    assert register.mask(["ben"], Purpose.CONTACT, at=11)[0]
    assert log.root_at(2) == root
    with pytest.raises(SealError):
        log.opened(record.index)
    register.verify_replay()


def test_a_permission_written_past_the_log_is_noticed(register: Register, log: Log) -> None:
    register.record_many([_choice(given=frozenset({Purpose.CONTACT}))], at=10)
    with log.transaction() as transaction:
        transaction.connection.execute("UPDATE consent_standing SET bit = 6, until = 9999")
    forged = Register(log, pseudonym_key=bytes(32), profile=Profile.EU_GDPR)

    with pytest.raises(LogError, match="are not what its log adds up to, first for contact"):
        forged.verify_replay()


def test_five_thousand_records_are_one_fast_commit(register: Register) -> None:
    choices = [_choice(f"c{number}") for number in range(5000)]
    started = time.process_time()
    register.record_many(choices, at=10)

    assert time.process_time() - started < 2
    assert register.mask([f"c{n}" for n in range(5000)], Purpose.CONTACT, at=10).all()


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"refused": frozenset({Purpose.CONTACT})}, "must not be given and refused in one act"),
        ({"separate": True}, "a separate act must be about exactly one purpose"),
        ({"until": 5}, "must expire after it was expressed"),
        ({"expressed_at": -1}, "must expire after it was expressed"),
    ],
)
def test_an_act_that_contradicts_itself_is_refused(said: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _choice(**said)


def test_an_act_from_the_future_is_refused_with_its_whole_batch(
    register: Register, log: Log
) -> None:
    with pytest.raises(ValueError, match="must not be recorded before it was expressed"):
        register.record_many([_choice("anna"), _choice("ben", expressed_at=11)], at=10)
    assert log.tree_size == 0


def test_a_notice_must_be_identified() -> None:
    with pytest.raises(ValueError, match="must be 64 lower-case hex digits"):
        Notice(id="privacy", version=1, language="en", sha256="AB" * 32)
    with pytest.raises(ValueError, match="the version of a notice must be at least 1, got 0"):
        Notice(id="privacy", version=0, language="en", sha256="ab" * 32)


def test_a_register_needs_a_long_key_and_real_ids(log: Log, register: Register) -> None:
    with pytest.raises(ValueError, match="a pseudonym key must have 32 bytes, got 3"):
        Register(log, pseudonym_key=b"abc", profile=Profile.EU_GDPR)
    with pytest.raises(ValueError, match="a subject id must be a non-empty string"):
        register.mask([""], Purpose.CONTACT, at=1)


def test_an_act_whose_tables_cannot_be_written_is_forgotten(register: Register, log: Log) -> None:
    register.record_many([_choice("ben")], at=10)
    with log.transaction() as transaction:
        transaction.connection.execute("ALTER TABLE consent_standing RENAME TO consent_gone")
    with pytest.raises(LogError, match="nothing was appended"):
        register.record_many([_choice("anna")], at=11)

    with log.transaction() as transaction:
        transaction.connection.execute("ALTER TABLE consent_gone RENAME TO consent_standing")
    assert not register.mask(["anna"], Purpose.CONTACT, at=11)[0]
    assert register.mask(["ben"], Purpose.CONTACT, at=11)[0]
    assert log.tree_size == 1
    register.verify_replay()


CONTACT = Purpose.CONTACT
DAY_MS = 86_400_000


def _may(register: Register, *, at: int, subject_id: str = "anna") -> bool:
    return bool(register.mask([subject_id], CONTACT, at=at)[0])


def _contact(subject_id: str = "anna", **said: object) -> ConsentChoice:
    return _choice(subject_id, **{"given": frozenset({CONTACT}), **said})


def test_an_objection_wins_at_once_until_it_is_cleared(register: Register) -> None:
    register.record_many([_contact()], at=10)
    register.set_objection("anna", [CONTACT], at=11)
    register.record_many([_contact(expressed_at=12)], at=12)
    assert not _may(register, at=12)
    assert register.status("anna", CONTACT, at=12) is Status.OBJECTED
    assert not register.may_ask("anna", CONTACT, at=10**15)

    register.clear_objection("anna", at=13)
    assert _may(register, at=13)
    register.verify_replay()


def test_a_restriction_wins_at_once_until_it_is_cleared(register: Register) -> None:
    register.record_many([_contact()], at=10)
    register.set_restriction("anna", at=11)
    assert not _may(register, at=11)
    assert register.status("anna", Purpose.SENSITIVE, at=11) is Status.RESTRICTED

    register.clear_restriction("anna", [Purpose.SENSITIVE], at=12)
    assert not _may(register, at=12)
    register.clear_restriction("anna", [CONTACT], at=13)
    assert _may(register, at=13)
    register.verify_replay()


def test_a_minor_waits_for_a_guardian(register: Register) -> None:
    register.record_many([_contact(age=AgeBand.AGE_15)], at=10)
    assert not _may(register, at=10)

    register.record_guardian("anna", reference="case-17", at=11)
    assert _may(register, at=11)
    assert register.person("anna") == Person(age=AgeBand.AGE_15, guardian=True)
    register.record_many([_contact("ben")], at=12)
    register.record_age("ben", AgeBand.UNDER_13, at=13)
    assert not _may(register, at=13, subject_id="ben")
    register.record_age("ben", AgeBand.ADULT, at=14)
    assert _may(register, at=14, subject_id="ben")
    register.verify_replay()


def test_a_refusal_is_not_answered_with_the_same_question(register: Register) -> None:
    register.record_many([_contact(given=frozenset(), refused=frozenset({CONTACT}))], at=10)
    end = 5 + 180 * DAY_MS
    assert not register.may_ask("anna", CONTACT, at=end - 1)
    assert register.may_ask("anna", CONTACT, at=end)
    assert register.may_ask("anna", Purpose.RECOMMENDATION, at=11)
    assert register.may_ask("nobody", CONTACT, at=11)

    with pytest.raises(
        AskedTooSoon,
        match="who said no to contact must not be asked again for 180 days; nothing was recorded",
    ):
        register.request("anna", [CONTACT], notice=NOTICE, channel="app", at=end - 1)
    assert register.status("anna", CONTACT, at=end - 1) is Status.REFUSED


def test_a_question_after_the_days_starts_them_again(register: Register) -> None:
    register.record_many([_contact()], at=10)
    register.withdraw("anna", [CONTACT], at=11)
    end = 11 + 180 * DAY_MS
    register.request("anna", [CONTACT], notice=NOTICE, channel="app", at=end)

    assert register.status("anna", CONTACT, at=end) is Status.WITHDRAWN
    assert not register.may_ask("anna", CONTACT, at=end + 179 * DAY_MS)
    assert register.may_ask("anna", CONTACT, at=end + 180 * DAY_MS)
    register.verify_replay()


def test_being_asked_is_no_yes(register: Register) -> None:
    register.request("anna", [CONTACT], notice=NOTICE, channel="app", at=10)

    assert register.status("anna", CONTACT, at=11) is Status.REQUESTED
    assert not _may(register, at=11)
    register.record_many([_contact(expressed_at=9)], at=12)
    assert _may(register, at=12)
    register.request("anna", [CONTACT], notice=NOTICE, channel="app", at=13)
    assert _may(register, at=13)
    register.verify_replay()


def test_a_confirmed_yes_stays_one_and_an_invalid_one_does_not(register: Register) -> None:
    register.record_many([_contact()], at=10)
    register.confirm("anna", [CONTACT, Purpose.SENSITIVE], at=11)
    assert register.status("anna", CONTACT, at=11) is Status.CONFIRMED
    assert register.status("anna", Purpose.SENSITIVE, at=11) is Status.UNKNOWN
    assert _may(register, at=11)

    register.invalidate("anna", [CONTACT], reason="the box was ticked before", at=12)
    assert register.status("anna", CONTACT, at=12) is Status.INVALIDATED
    register.record_many([_contact(expressed_at=11)], at=13)
    assert not _may(register, at=13)
    register.verify_replay()


def test_a_new_notice_waits_for_a_renewal(register: Register) -> None:
    register.record_many([_contact(), _contact("ben")], at=10)
    second = dataclasses.replace(NOTICE, version=2)
    register.publish_notice(second, oldest_accepted=1, at=11)
    assert _may(register, at=11)
    assert register.narrowed_seq == 0
    register.publish_notice(second, oldest_accepted=2, at=12)
    assert not _may(register, at=12)
    assert register.narrowed_seq == register.state_seq

    record = register.renew(_contact(expressed_at=13, notice=second), at=13)
    assert _may(register, at=13)
    assert not _may(register, at=13, subject_id="ben")
    assert record.terms == {CONTACT: register.ladder.rules[CONTACT].terms}
    register.verify_replay()


def test_a_notice_never_comes_back_into_force(register: Register) -> None:
    second = dataclasses.replace(NOTICE, version=2)
    register.publish_notice(second, oldest_accepted=2, at=12)
    for notice, oldest in ((second, 1), (second, 3), (NOTICE, 2)):
        with pytest.raises(ValueError, match=r"accepted version must be in \[2, [12]\], got"):
            register.publish_notice(notice, oldest_accepted=oldest, at=13)
    register.verify_replay()


def test_other_terms_of_the_profile_wait_for_a_renewal(register: Register, log: Log) -> None:
    register.record_many([_contact()], at=10)
    ladder = ladder_of(Profile.EU_GDPR)
    changed = dataclasses.replace(ladder.rules[CONTACT], data=("contact", "scores"))
    ladder = dataclasses.replace(ladder, rules={**ladder.rules, CONTACT: changed})
    again = Register(log, pseudonym_key=bytes(32), profile=ladder)
    assert not _may(again, at=11)

    again.renew(_contact(expressed_at=12), at=12)
    assert _may(again, at=12)
    assert not _may(register, at=12)
    again.verify_replay()


def test_only_a_yes_can_be_renewed(register: Register, log: Log) -> None:
    register.record_many([_contact(refused=frozenset({Purpose.CHURN_SCORING}))], at=10)
    wrong = [
        _contact("ben", expressed_at=11),
        _contact(given=frozenset({Purpose.CHURN_SCORING}), expressed_at=11),
        _contact(refused=frozenset({Purpose.CHURN_SCORING}), expressed_at=11),
        _contact(given=frozenset(), expressed_at=11),
    ]
    for choice in wrong:
        with pytest.raises(ValueError, match="must be about purposes that were agreed to"):
            register.renew(choice, at=12)
    with pytest.raises(ValueError, match="must not be recorded before it was expressed"):
        register.renew(_contact(expressed_at=13), at=12)
    assert log.tree_size == 1


def test_i15_two_identities_are_left_with_what_both_agreed_to(register: Register) -> None:
    both, one = frozenset({CONTACT, Purpose.RECOMMENDATION}), frozenset({CONTACT})
    register.record_many([_choice("anna", given=both), _choice("anna2", given=one)], at=10)
    register.set_objection("anna2", [Purpose.CHURN_SCORING], at=11)
    register.merge("anna", "anna2", at=12)

    for name in ("anna", "anna2"):
        assert _may(register, at=12, subject_id=name)
        assert not register.mask([name], Purpose.RECOMMENDATION, at=12)[0]
        assert register.status(name, Purpose.RECOMMENDATION, at=12) is Status.UNKNOWN
        assert register.status(name, Purpose.CHURN_SCORING, at=12) is Status.OBJECTED
    assert register.rows(["anna"]) == register.rows(["anna2"])
    assert register.rows_of("anna2") == [0, 1]
    assert register.rows_of("nobody") == []
    register.withdraw("anna2", at=13)
    assert not _may(register, at=13)
    register.verify_replay()


def test_one_person_is_not_merged_twice(register: Register, log: Log) -> None:
    register.merge("anna", "ben", at=10)
    for pair in (("anna", "ben"), ("anna", "anna"), ("chen", "chen")):
        with pytest.raises(ValueError, match="mean one person already; nothing was merged"):
            register.merge(*pair, at=11)
    assert log.tree_size == 1
    register.merge("dana", "anna", at=12)
    assert register.rows_of("ben") == [2, 0, 1]
    register.verify_replay()


def test_erasing_a_merged_person_erases_every_id(register: Register, log: Log) -> None:
    records = register.record_many([_contact("anna"), _contact("ben"), _contact("chen")], at=10)
    register.merge("anna", "ben", at=11)
    register.erase("ben", at=12)

    assert register.rows(["anna", "ben", "chen"]).tolist() == [-1, -1, 2]
    for record in records[:2]:
        with pytest.raises(SealError):
            log.opened(record.index)
    log.opened(records[2].index)
    register.verify_replay()
    register.record_many([_contact("anna", expressed_at=13)], at=13)
    assert register.rows(["anna", "ben"]).tolist() == [3, -1]
    register.verify_replay()


def test_an_act_about_nothing_is_refused(register: Register, log: Log) -> None:
    with pytest.raises(ValueError, match="an act must be about at least one purpose"):
        register.withdraw("anna", [], at=10)
    with pytest.raises(ValueError, match="an act must be about at least one purpose"):
        register.request("anna", [], notice=NOTICE, channel="app", at=10)
    assert log.tree_size == 0


def test_i6_withdrawing_takes_one_call_as_giving_does(register: Register) -> None:
    register.record_many([_choice()], at=10)
    given = register.state_seq
    register.withdraw("anna", at=11)

    assert register.state_seq - given <= given


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ("UPDATE consent_subject SET objected = 0", "the flags of a data subject"),
        ("UPDATE consent_notice SET oldest = 1", "the accepted notices"),
    ],
)
def test_a_flag_taken_off_past_the_log_is_noticed(
    register: Register, log: Log, change: str, place: str
) -> None:
    register.set_objection("anna", at=10)
    register.publish_notice(dataclasses.replace(NOTICE, version=2), oldest_accepted=2, at=11)
    with log.transaction() as transaction:
        transaction.connection.execute(change)
    forged = Register(log, pseudonym_key=bytes(32), profile=Profile.EU_GDPR)

    with pytest.raises(LogError, match=f"not what its log adds up to, first for {place}"):
        forged.verify_replay()


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE consent_standing SET bit = 40",
        "UPDATE consent_subject SET age = 'old'",
        "UPDATE consent_terms SET id = 7",
    ],
)
def test_i1_tables_that_cannot_be_read_are_an_error(
    register: Register, log: Log, change: str
) -> None:
    register.record_many([_contact()], at=10)
    with log.transaction() as transaction:
        transaction.connection.execute(change)

    with pytest.raises(LogError, match="a row of the consent tables cannot be read"):
        Register(log, pseudonym_key=bytes(32), profile=Profile.EU_GDPR)


def test_a_grant_that_was_rolled_back_is_forgotten_after_another_commit(
    register: Register, log: Log
) -> None:
    """Both acts have the number 1, so that a counter alone could not tell them apart."""
    other = Register(log, pseudonym_key=bytes(32), profile=Profile.EU_GDPR)
    try:
        with log.transaction():
            register.record_many([_contact("anna")], at=10)
            raise RuntimeError
    except RuntimeError:
        other.record_many([_contact("ben")], at=10)

    assert register.mask(["anna", "ben"], CONTACT, at=10).tolist() == [False, True]
    assert register.state("anna") == {}


def test_a_register_follows_another_one_act_by_act(register: Register, log: Log) -> None:
    """The kinds of acts that another process may have done since the last look."""
    other = Register(log, pseudonym_key=bytes(32), profile=Profile.EU_GDPR)
    people = ["anna", "ben", "chen", "dana"]
    second = dataclasses.replace(NOTICE, version=2)
    acts = [
        lambda at: register.record_many([_choice(name) for name in people], at=at),
        lambda at: register.withdraw("anna", [CONTACT], at=at),
        lambda at: register.set_objection("ben", at=at),
        lambda at: register.record_age("chen", AgeBand.AGE_13, at=at),
        lambda at: register.merge("dana", "ben", at=at),
        lambda at: register.record_guardian("chen", reference="7", at=at),
        lambda at: register.erase("anna", at=at),
        lambda at: register.publish_notice(second, oldest_accepted=2, at=at),
        lambda at: register.renew(_choice("chen", expressed_at=at, notice=second), at=at),
        lambda at: register.erase("nobody", at=at),
        lambda at: register.clear_objection("ben", at=at),
    ]
    for at, act in enumerate(acts, start=10):
        act(at)
        fresh = Register(log, pseudonym_key=bytes(32), profile=Profile.EU_GDPR)
        for purpose in (CONTACT, Purpose.FEDERATED_TRAINING):
            expected = fresh.mask(people, purpose, at=at).tolist()
            assert other.mask(people, purpose, at=at).tolist() == expected
            assert register.mask(people, purpose, at=at).tolist() == expected
        assert [other.state(name) for name in people] == [fresh.state(name) for name in people]
        assert [other.person(name) for name in people] == [fresh.person(name) for name in people]
        register.verify_replay()
    assert isinstance(other.state("chen")[CONTACT], Standing)


def test_the_same_people_asked_for_again_are_found_after_somebody_joined(
    register: Register, notice: Notice
) -> None:
    people = ("ann", "bo")
    assert register.rows(people).tolist() == [-1, -1]

    register.record(
        "bo",
        given={Purpose.CONTACT},
        notice=notice,
        channel="app",
        expressed_at=1,
        at=2,
        until=100,
    )

    assert register.rows(people).tolist() == [-1, 0]
    assert register.rows(("bo", "ann")).tolist() == [0, -1]
    register.erase("bo", at=3)
    assert register.rows(people).tolist() == [-1, -1]
