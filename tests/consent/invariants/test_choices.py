"""I1 to I6 and I15: what people chose decides what may be done, and nothing else does."""

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consent import (
    Access,
    AccessDenied,
    AccessRequest,
    Action,
    Gate,
    Profile,
    Purpose,
    Refused,
    Register,
    Role,
    RoleMatrix,
    Tier,
    Watch,
    preset,
)
from consent.access import SHIPPED_DIGEST

from .worlds import (
    DENIALS,
    PEOPLE,
    SOME,
    USE,
    Act,
    PlainReading,
    World,
    acts,
    histories,
    new_world,
    opened_events,
    rules_of,
)

CONTACT = Purpose.CONTACT
profiles = st.sampled_from(list(Profile))
LATER = 10**9


def agreed(world: World) -> None:
    """Let everybody agree to be written to, for long."""
    for who in PEOPLE:
        world.register.record(
            who,
            given=[CONTACT],
            notice=world.notice,
            channel="app",
            expressed_at=world.at,
            at=world.at,
            until=world.at + LATER,
        )


# --- I1 ---------------------------------------------------------------------------------------


def _unknown_person(world: World) -> None:
    world.gate.open(CONTACT, ["nobody", "Anna ", ""], use=USE, at=world.at)


def _expired(world: World) -> None:
    world.gate.open(CONTACT, PEOPLE, use=USE, at=world.at + LATER)


def _unknown_purpose(world: World) -> None:
    world.gate.open("contact ", PEOPLE, use=USE, at=world.at)  # type: ignore[arg-type]


def _no_time(world: World) -> None:
    world.gate.open(CONTACT, PEOPLE, use=USE, at=-1)


def _clock_back(world: World) -> None:
    world.gate.open(CONTACT, PEOPLE, use=USE, at=world.at)
    world.gate.open(CONTACT, PEOPLE, use=USE, at=world.at - 300_001)


def _missing_key(world: World) -> None:
    stranger = Register(world.log, pseudonym_key=bytes(32), profile=world.profile)
    Gate(stranger, world.log, policy_digest="00").open(CONTACT, PEOPLE, use=USE, at=world.at)


def _broken_tables(world: World) -> None:
    with world.log.transaction() as transaction:
        transaction.connection.execute("ALTER TABLE consent_seq RENAME TO gone")
    world.gate.open(CONTACT, PEOPLE, use=USE, at=world.at)


def _stale(world: World) -> None:
    watch = Watch(world.register, max_staleness_ms=1_000)
    watch.permitted(np.array([0]), CONTACT, at=world.at)
    with world.log.transaction() as transaction:
        transaction.connection.execute("ALTER TABLE consent_seq RENAME TO gone")
    watch.permitted(np.array([0]), CONTACT, at=world.at + 1_000)


class _Failing:
    name, digest = "failing", SHIPPED_DIGEST

    def judge(self, request: AccessRequest) -> tuple[str, ...]:
        raise KeyError("the engine")


def _engine(world: World) -> None:
    request = AccessRequest(actor="eve", role=Role.OPERATOR, action=Action.READ_LOG)
    Access(_Failing(), world.log, activated=lambda: SHIPPED_DIGEST).authorize(request, at=world.at)


def _unparsable(world: World) -> None:
    access = Access(RoleMatrix(), world.log, activated=lambda: SHIPPED_DIGEST)
    access.authorize_fields({"actor": "eve", "role": "king"}, at=world.at)


FAULTS: dict[Callable[[World], None], str] = {
    _unknown_person: "permit.denied",
    _expired: "permit.denied",
    _unknown_purpose: "permit.denied",
    _missing_key: "permit.denied",
    _broken_tables: "permit.denied",
    _clock_back: "clock.anomaly",
    # A log takes no event of a time that is none, and a watch in another process has no log to
    # write to: there the refusal is all.
    _no_time: "",
    _stale: "",
    _engine: "access.denied",
    _unparsable: "access.denied",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__.strip("_"))
@settings(SOME, max_examples=5)
@given(history=histories("give", "withdraw", most=4), profile=profiles)
def test_i01_whatever_is_in_doubt_is_a_denial_and_an_event(
    fault: Callable[[World], None], history: list[Act], profile: Profile
) -> None:
    """I1: unknown, expired, stale, unreadable, without key or engine: denied, and written down."""
    with new_world(profile) as world:
        world.live(history)
        agreed(world)
        before = [entry.value.get("type") for entry in world.log.entries()]
        with pytest.raises((Refused, AccessDenied)):
            fault(world)
        told = [entry.value.get("type") for entry in world.log.entries()][len(before) :]

        assert told[-1:] == ([FAULTS[fault]] if FAULTS[fault] else [])
        assert told.count("permit.issued") == (fault is _clock_back)


# --- I2 ---------------------------------------------------------------------------------------


@SOME
@given(
    prelude=st.sampled_from(["silence", "agreement"]),
    history=histories(),
    profile=profiles,
    wait=st.integers(0, 2_010),
)
def test_i02_the_gate_opens_exactly_whom_a_plain_reading_of_the_log_permits(
    prelude: str, history: list[Act], profile: Profile, wait: int
) -> None:
    """I2: no permit without an effective consent in the state it names."""
    with new_world(profile) as world:
        if prelude == "agreement":
            world.agree()
        world.live(history)
        world.at += wait
        plain = PlainReading(world).masks(at=world.at)

        assert world.masks() == plain
        assert world.through_the_gate() == plain
        for purpose in Purpose:
            rows = world.register.rows(PEOPLE)
            singles = [world.gate.is_permitted(int(r), purpose, at=world.at) for r in rows]
            assert singles == plain[purpose]


@SOME
@given(
    history=st.lists(
        acts("give", "give", "withdraw", "object", "clear_objection", "restrict")
        | st.sampled_from(list(Purpose)),
        max_size=24,
    ),
    profile=profiles,
)
def test_i02_every_permit_agrees_with_an_as_of_join_over_the_events(
    history: list[Act | Purpose], profile: Profile
) -> None:
    """I2: joined as of their entry, all permits ever issued rest on a consent of that moment."""
    asked = []
    with new_world(profile) as world:
        world.agree()
        for step in history:
            if isinstance(step, Act):
                # Ages and guardians are not part of this join.
                world.do(step._replace(number=step.number + (step.number % 31 == 0)))
                continue
            mask, index = [False] * len(PEOPLE), world.log.tree_size
            with contextlib.suppress(Refused):
                mask = world.gate.open(step, PEOPLE, use=USE, at=world.at).mask.tolist()
            asked += [
                {"index": index, "at": world.at, "who": world.ref(who), "purpose": step, "may": may}
                for who, may in zip(PEOPLE, mask, strict=True)
            ]
        if not asked:
            return
        decisions = pd.DataFrame(asked)
        expected = _as_of(decisions, opened_events(world.log), rules_of(profile)["purposes"])

    assert decisions["may"].tolist() == expected.tolist()


def _as_of(
    decisions: pd.DataFrame, events: list[dict[str, Any]], rules: dict[str, Any]
) -> "pd.Series[bool]":
    """Join decisions with the newest word, objection and restriction before them."""
    words, flags = [], []
    for event in events:
        about = {"index": event["index"], "who": event.get("subject")}
        for name in event.get("given", []) + event.get("refused", []):
            yes = name in event["given"] and (event["separate"] or not rules[name]["separate"])
            until = event["until"] if yes and rules[name]["allowed"] else 0
            words.append({**about, "purpose": name, "said": event["expressed_at"], "until": until})
        if event["type"] == "consent.withdrawn":
            words += [
                {**about, "purpose": name, "said": event["at"], "until": 0}
                for name in event["purposes"]
            ]
        kind, _, step = event["type"].partition(".")
        if kind in ("objection", "restriction"):
            flags += [
                {**about, "purpose": name, kind: int(step == "set")} for name in event["purposes"]
            ]
    columns = ["index", "who", "purpose", "said", "until"]
    spoken = pd.DataFrame(words, columns=columns).astype({"said": "int64", "until": "int64"})
    # A word that was spoken before one that is known already is not heard.
    heard = spoken[spoken["said"] >= spoken.groupby(["who", "purpose"])["said"].cummax()]
    table = decisions.assign(row=range(len(decisions)), purpose=decisions["purpose"].map(str))
    needs = {name: [name, *_needed(rules, name)] for name in rules}
    table = table.assign(need=table["purpose"].map(needs)).explode("need")
    table = table.drop(columns="purpose").rename(columns={"need": "purpose"})
    joined = _joined(table, heard[["index", "who", "purpose", "until"]])
    ok = joined["until"].fillna(0) > joined["at"]
    for flag in ("objection", "restriction"):
        told = pd.DataFrame(
            [f for f in flags if flag in f], columns=["index", "who", "purpose", flag]
        )
        ok &= _joined(table, told)[flag].fillna(0).eq(0).to_numpy()
    return ok.groupby(joined["row"]).all().sort_index()


def _joined(left: pd.DataFrame, right: pd.DataFrame) -> pd.DataFrame:
    types = {"index": "int64", "who": "object", "purpose": "object"}
    return pd.merge_asof(
        left.astype(types).sort_values("index", kind="stable"),
        right.astype(types).sort_values("index", kind="stable"),
        on="index",
        by=["who", "purpose"],
        allow_exact_matches=False,
    )


def _needed(rules: dict[str, Any], name: str) -> list[str]:
    direct: list[str] = rules[name]["prerequisites"]
    return direct + [more for needed in direct for more in _needed(rules, needed)]


# --- I3 ---------------------------------------------------------------------------------------


@SOME
@given(
    history=histories("give", "give", "give", "guardian", "age", "withdraw"),
    denial=acts(*DENIALS),
    profile=profiles,
)
def test_i03_a_denial_never_enlarges_any_view(
    history: list[Act], denial: Act, profile: Profile
) -> None:
    """I3: a withdrawal, an objection, a restriction and their like only ever take away."""
    with new_world(profile) as world:
        world.agree()
        world.live(history)
        if denial.kind == "age":
            # Growing up is no denial: the youngest band is one.
            denial = denial._replace(number=0)
        before = world.masks(at=world.at + denial.wait)
        permitted = [
            (who, purpose)
            for purpose, mask in before.items()
            for who, may in zip(PEOPLE, mask, strict=True)
            if may
        ]
        if permitted:
            # Deny what is permitted, so that there is something to take away.
            who, purpose = permitted[denial.number % len(permitted)]
            denial = denial._replace(who=who, purposes=denial.purposes | {purpose})
        world.do(denial)
        after = world.masks()
        if permitted and denial.kind in ("withdraw", "object", "restrict", "invalidate", "erase"):
            assert not after[purpose][PEOPLE.index(who)]

    for purpose in Purpose:
        assert not (np.array(after[purpose]) & ~np.array(before[purpose])).any()


@SOME
@given(history=histories(), given=acts("give"), profile=profiles)
def test_i03_a_grant_changes_nothing_for_others_and_for_what_it_does_not_name(
    history: list[Act], given: Act, profile: Profile
) -> None:
    """I3: adding a grant for A never changes B, unless B needs A."""
    given = given._replace(number=given.number + (given.number % 31 == 0))
    with new_world(profile) as world:
        world.live(history)
        before = world.masks(at=world.at + given.wait)
        same = world.register.rows(PEOPLE) == world.register.rows([given.who])[0]
        stood = world.register.state(given.who)
        world.do(given)
        after, stands = world.masks(), world.register.state(given.who)
        rules = rules_of(profile)["purposes"]

    for purpose in set(Purpose) - given.purposes:
        assert stands.get(purpose) == stood.get(purpose)
        needed = {Purpose(name) for name in _needed(rules, purpose.value)}
        for number, who in enumerate(PEOPLE):
            is_other = who != given.who and not same[number]
            if is_other or not needed & given.purposes:
                assert after[purpose][number] == before[purpose][number]


# --- I4 ---------------------------------------------------------------------------------------


@SOME
@given(
    history=histories("give", "give", "merge", "withdraw", most=20),
    tiers=st.lists(st.sampled_from(Tier), max_size=3),
    profile=profiles,
)
def test_i04_a_separate_purpose_rests_on_an_act_about_nothing_else(
    history: list[Act], tiers: list[Tier], profile: Profile
) -> None:
    """I4: separate purposes come only from one-purpose acts, and no preset ever holds one."""
    separate = {p for p in Purpose if rules_of(profile)["purposes"][p.value]["separate"]}
    with new_world(profile) as world:
        for tier in tiers:
            shown = preset(tier, profile=profile)
            assert not shown & separate
            world.do(Act("give", "anna", shown, 301, 1))
        world.live(history)
        permitted = {p for p, mask in world.masks().items() if any(mask)} & separate
        alone = {
            event["given"][0]
            for event in opened_events(world.log)
            if event["type"] == "consent.recorded"
            and event["separate"]
            and len(event["given"]) == 1
            and not event["refused"]
        }

    assert permitted <= alone


# --- I5 ---------------------------------------------------------------------------------------


@SOME
@given(
    history=histories("give", "guardian"),
    refusals=st.lists(acts("withdraw", "object", "restrict", "invalidate"), min_size=1, max_size=5),
    profile=profiles,
)
def test_i05_refusing_anything_leaves_essential_decisions_as_they_were(
    history: list[Act], refusals: list[Act], profile: Profile
) -> None:
    """I5: what an order needs is outside the ladder; no refusal of any purpose touches it."""
    essential = rules_of(profile)["essential"]
    with new_world(profile) as world:
        world.live(history)

        def decisions() -> list[object]:
            told = []
            for name in essential:
                with pytest.raises(Refused) as refused:
                    world.gate.open(name, PEOPLE, use=USE, at=world.at)
                terms = world.register.ladder.essential[name]
                told.append((name, refused.value.reason, terms.basis, terms.data, terms.recipients))
            return told

        before = decisions()
        world.live(refusals)

        assert essential.keys() == world.register.ladder.essential.keys()
        assert not essential.keys() & {p.value for p in Purpose}
        assert decisions() == before


# --- I6 ---------------------------------------------------------------------------------------


@SOME
@given(purposes=st.frozensets(st.sampled_from(Purpose), min_size=1), profile=profiles)
def test_i06_taking_consent_back_needs_no_more_calls_than_giving_it(
    purposes: frozenset[Purpose], profile: Profile
) -> None:
    """I6: whatever was given in some calls, one purpose or all, goes in at most as many."""
    rules = rules_of(profile)["purposes"]
    alone = {p for p in purposes if rules[p.value]["separate"]}
    acts_of_giving = [frozenset({p}) for p in alone] + [purposes - alone] * bool(purposes - alone)
    with new_world(profile) as world:
        for given_now in acts_of_giving:
            world.do(Act("give", "anna", given_now, 302, 1))
        size = world.log.tree_size
        world.register.withdraw("anna", purposes, at=world.at)
        calls = world.log.tree_size - size

        assert calls <= len(acts_of_giving)
        assert not any(any(mask) for mask in world.masks().values())


# --- I15 --------------------------------------------------------------------------------------


@SOME
@given(
    history=histories("give", "give", "give", "object", "restrict", "withdraw", "notice", most=18),
    minors=st.lists(acts("age", "guardian"), max_size=2),
    profile=profiles,
    lengthened=st.booleans(),
    agreed_before=st.sampled_from([[], ["anna"], ["ben"], list(PEOPLE)]),
)
def test_i15_a_merge_is_the_intersection(
    history: list[Act],
    minors: list[Act],
    profile: Profile,
    lengthened: bool,  # noqa: FBT001
    agreed_before: list[str],
) -> None:
    """I15: two ids of one person are left with what both permitted, and never with more."""
    with new_world(profile) as world:
        world.agree(agreed_before)
        for act in history:
            # Without ages in the acts; half of the histories without any expiry in between.
            number = act.number // 31 * 31 + 1 + act.number % 29
            world.do(act._replace(number=number, wait=0 if lengthened else act.wait))
        world.live(minors)
        before = world.masks()
        world.register.merge("anna", "ben", at=world.at)
        after = world.masks()

    for purpose, (anna, ben, cleo) in before.items():
        merged = after[purpose]
        assert merged[0] == merged[1]
        assert merged[2] == cleo
        assert merged[0] <= (anna and ben)
        if not minors:
            assert merged[0] == (anna and ben)
