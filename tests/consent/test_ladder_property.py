"""A million random events, folded into the mask column and read naively, must permit the same.

The naive reading is written from the rules that people are told, not from the code:

- A yes counts from the moment the node has it until it expires. A word that was spoken before
  the one that counts is not heard, however late it arrives; a withdrawal always is.
- Under consent only a yes permits. Under a legitimate interest it is enough to have been told,
  and not to have said no. Being told takes no answer's place, except one that expired.
- What it rests on must be in force: the terms, and the version of the notice that was shown.
- A separate purpose needs a yes of its own; a purpose with needs has no effect without them.
- An objection or a restriction wins. A minor needs a verified guardian. A profile can forbid.
- Two identities that become one keep what both said yes to, and any no, objection, restriction.
"""

import hashlib
import json
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import numpy as np
import pytest

from consent.canonical import JsonValue
from consent.ladder import AgeBand, Purpose
from consent.purpose import parse_ladder
from consent.state import ConsentState

EVENTS = 500_000
PEOPLE = 160
EVERY = 2_500
NAMES = [str(purpose) for purpose in Purpose]
OLD_TERMS, UNKNOWN_TERMS = "ab" * 16, "cd" * 16
AGES = {"0-12": 0, "13": 13, "14": 14, "15": 15, "16-17": 16, "18+": 18}


@dataclass
class Grant:
    """A yes, or having been told."""

    since: int
    until: float
    alone: bool
    rests_on: frozenset[tuple[str, str, int]]


@dataclass
class Someone:
    """All that was heard of one person."""

    spoke: dict[str, int] = field(default_factory=dict)
    yes: dict[str, Grant] = field(default_factory=dict)
    told: dict[str, Grant] = field(default_factory=dict)
    no: set[str] = field(default_factory=set)
    objections: set[str] = field(default_factory=set)
    restrictions: set[str] = field(default_factory=set)
    age: int | None = None
    guardian: bool = False


class Naive:
    """People as plain Python, under a profile as its file says it."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.rules = document["purposes"]
        self.limit = document["children"]["age_of_consent"]
        self.people = [Someone() for _ in range(PEOPLE)]
        self.oldest: dict[str, int] = {}
        self.terms = {
            name: {self.digest(name), *rules["accepted_terms"]}
            for name, rules in self.rules.items()
        }

    def digest(self, name: str) -> str:
        """Return what a yes rests on: a digest of what the file says of data and use."""
        rules = self.rules[name]
        told = {key: rules[key] for key in ("data", "recipients", "method")}
        text = json.dumps({**told, "purpose": name}, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def hear(self, who: int, event: dict[str, Any]) -> None:
        """Take one event in."""
        one, kind = self.people[who], event["type"]
        flags = {"objection": one.objections, "restriction": one.restrictions}
        match kind.split("."):
            case ["consent", "recorded" | "renewed"]:
                self.act(one, event)
            case ["consent", "requested"]:
                self.tell(one, event)
            case ["consent", "withdrawn" | "invalidated"]:
                for name in event["purposes"]:
                    if kind == "consent.withdrawn" or name in one.yes or name in one.told:
                        self.deny(one, name, spoke=event["at"])
            case [flag, "set"]:
                flags[flag].update(event["purposes"])
            case [flag, "cleared"]:
                flags[flag].difference_update(event["purposes"])
            case ["guardian", _]:
                one.guardian = True
            case ["subject", "age_recorded"]:
                one.age = AGES[event["age"]]

    def act(self, one: Someone, event: dict[str, Any]) -> None:
        """Take a yes or a no in."""
        said = event["expressed_at"]
        for name in event["given"] + event["refused"]:
            if said < one.spoke.get(name, 0):
                continue
            self.deny(one, name, spoke=said)
            if name in event["given"]:
                one.no.discard(name)
                rests_on = (event["terms"][name], event["notice"]["id"], event["notice"]["version"])
                one.yes[name] = Grant(
                    event["at"], event["until"], event["separate"], frozenset({rests_on})
                )
        if event["age"] is not None:
            one.age = AGES[event["age"]]

    def tell(self, one: Someone, event: dict[str, Any]) -> None:
        """Take in that somebody was asked, and so was told."""
        for name in event["purposes"]:
            answered = name in one.yes and event["at"] < one.yes[name].until
            if name not in one.no and not answered:
                one.yes.pop(name, None)
                rests_on = (event["terms"][name], event["notice"]["id"], event["notice"]["version"])
                one.told[name] = Grant(
                    event["at"], float("inf"), alone=False, rests_on=frozenset({rests_on})
                )

    def deny(self, one: Someone, name: str, *, spoke: int) -> None:
        """Take a no in."""
        one.spoke[name] = max(spoke, one.spoke.get(name, 0))
        one.yes.pop(name, None)
        one.told.pop(name, None)
        one.no.add(name)

    def merge(self, who: int, other: int) -> None:
        """Make one person of two."""
        one, two = self.people[who], self.people[other]
        new = Someone(
            no=one.no | two.no,
            objections=one.objections | two.objections,
            restrictions=one.restrictions | two.restrictions,
            age=min((age for age in (one.age, two.age) if age is not None), default=None),
            guardian=one.guardian and two.guardian,
        )
        for name in NAMES:
            new.spoke[name] = max(one.spoke.get(name, 0), two.spoke.get(name, 0))
            first = one.yes.get(name) or one.told.get(name)
            second = two.yes.get(name) or two.told.get(name)
            if first and second:
                grant = Grant(
                    max(first.since, second.since),
                    min(first.until, second.until),
                    first.alone and second.alone,
                    first.rests_on | second.rests_on,
                )
                both = name in one.yes and name in two.yes
                (new.yes if both else new.told)[name] = grant
        self.people[who], self.people[other] = new, Someone()

    def may(self, who: int, name: str, at: int) -> bool:
        """Tell whether one person may be used."""
        one, rules = self.people[who], self.rules[name]
        grant = one.yes.get(name)
        if grant is None and rules["basis"] == "legitimate_interest":
            grant = one.told.get(name)
        return (
            grant is not None
            and grant.since <= at < grant.until
            and rules["allowed"]
            and (grant.alone or not rules["separate"])
            and name not in one.objections
            and name not in one.restrictions
            and (one.age is None or one.age >= self.limit or one.guardian)
            and all(
                terms in self.terms[name] and version >= self.oldest.get(notice, 0)
                for terms, notice, version in grant.rests_on
            )
            and all(self.may(who, needed, at) for needed in rules["prerequisites"])
        )

    def next_expiry(self, at: int) -> int:
        """Return when the next yes that has effect expires."""
        untils = (
            grant.until
            for who, one in enumerate(self.people)
            for name, grant in one.yes.items()
            if self.may(who, name, at)
        )
        return int(min(untils, default=at))

    def mask(self, name: str, at: int) -> list[bool]:
        """Tell it for everybody."""
        return [self.may(who, name, at) for who in range(PEOPLE)]


def eu_with_every_rule() -> str:
    """Return the EU profile with interests, a purpose that is forbidden, and old terms in force."""
    text = resources.files("consent").joinpath("profiles", "eu-gdpr.toml").read_text("utf-8")
    for name, old, new in (
        ("recommendation", 'basis = "consent"', 'basis = "legitimate_interest"'),
        ("churn_scoring", 'basis = "consent"', 'basis = "legitimate_interest"'),
        ("contact", 'basis = "consent"', 'basis = "legitimate_interest"'),
        ("contact", "accepted_terms = []", f'accepted_terms = ["{OLD_TERMS}"]'),
        ("aggregate_benchmark", "allowed = true", "allowed = false"),
    ):
        head, tail = text.split(f"[purposes.{name}]")
        text = f"{head}[purposes.{name}]{tail.replace(old, new, 1)}"
    return text


def cn() -> str:
    return resources.files("consent").joinpath("profiles", "cn-pipl.toml").read_text("utf-8")


KINDS = {
    "consent.recorded": 0.60,
    "consent.renewed": 0.07,
    "consent.requested": 0.08,
    "consent.withdrawn": 0.07,
    "consent.confirmed": 0.02,
    "consent.invalidated": 0.01,
    "objection.set": 0.01,
    "objection.cleared": 0.03,
    "restriction.set": 0.01,
    "restriction.cleared": 0.03,
    "guardian.verified": 0.02,
    "subject.age_recorded": 0.02,
    "subject.merged": 0.02,
    "subject.erased": 0.0099,
    "notice.published": 0.0001,
}


class Draws:
    """Random numbers in advance: one row of them for each event."""

    def __init__(self, *, seed: int, naive: Naive) -> None:
        rng = np.random.default_rng(seed)
        self.kinds = rng.choice(list(KINDS), EVENTS, p=list(KINDS.values())).tolist()
        self.who = rng.integers(0, PEOPLE, EVENTS).tolist()
        self.numbers = rng.integers(0, 1 << 30, (EVENTS, 4)).tolist()
        self.digests = {name: naive.digest(name) for name in NAMES}

    def event(self, number: int, *, at: int, version: int) -> dict[str, JsonValue]:
        """Return one event as the register writes it."""
        kind = self.kinds[number]
        first, second, third, fourth = self.numbers[number]
        name = NAMES[first % 12]
        event: dict[str, JsonValue] = {"type": kind, "v": 1, "at": at}
        if kind in ("consent.recorded", "consent.renewed", "consent.requested"):
            terms = self.digests
            if third % 16 == 0:
                terms = dict.fromkeys(NAMES, OLD_TERMS if third & 16 else UNKNOWN_TERMS)
            # The version before the newest is told now and then; other notices never change.
            event["terms"] = {name: terms[name]}
            event["notice"] = {
                "id": "other" if third % 5 == 0 else "privacy",
                "version": max(1, version - (third >> 8) % 2),
            }
        if kind in ("consent.recorded", "consent.renewed"):
            separate = second % 2 == 0
            more = [] if separate else [NAMES[second % 12]]
            event["terms"] |= {extra: terms[extra] for extra in more}  # type: ignore[operator]
            event["given"] = [name, *(extra for extra in more if extra != name)]  # type: ignore[list-item]
            event["refused"] = []
            if fourth % 8 == 0:
                event["given"], event["refused"] = event["refused"], event["given"]
            event["separate"] = separate
            event["expressed_at"] = max(0, at - fourth % 40)
            event["until"] = at + 1 + (second >> 6) % 20_000
            event["age"] = list(AGES)[third % 6] if (third >> 12) % 64 == 0 else None
        elif kind == "subject.age_recorded":
            event["age"] = list(AGES)[third % 6]
        elif kind != "guardian.verified":
            if kind in ("consent.withdrawn", "consent.invalidated"):
                # Clocks of two processes may differ: the word can be older than the last act.
                event["at"] = max(0, at - fourth % 40)
            count = 12 if second % 8 == 0 and kind != "consent.requested" else 1
            event["purposes"] = [name, *(NAMES if count == 12 else [])]
        return event


def forget(state: ConsentState, naive: Naive, who: int) -> None:
    state.forget(who)
    naive.people[who] = Someone()


@pytest.mark.parametrize("profile", [eu_with_every_rule, cn], ids=["eu-gdpr", "cn-pipl"])
def test_i2_half_a_million_events_permit_nobody_whom_the_rules_do_not(
    profile: Callable[[], str],
) -> None:
    text = profile()
    naive, state = Naive(tomllib.loads(text)), ConsentState(parse_ladder(text))
    draws = Draws(seed=len(text), naive=naive)
    rows, version, at = np.arange(-1, PEOPLE + 1), 1, 1
    heard, permitted, unlawful, missed = dict.fromkeys(KINDS, 0), 0, 0, 0
    for person in range(PEOPLE):
        forget(state, naive, person)
        state.put_person(person, state.person(person))
    started = time.process_time()

    for number in range(EVENTS):
        kind, who = draws.kinds[number], draws.who[number]
        at += draws.numbers[number][0] % 3
        heard[kind] += 1
        if kind == "notice.published":
            version += 1
            state.raise_notice("privacy", oldest=version - 1)
            naive.oldest["privacy"] = version - 1
        elif kind == "subject.erased":
            forget(state, naive, who)
        elif kind == "subject.merged":
            other = draws.numbers[number][1] % PEOPLE
            if other != who:
                state.apply(who, {"type": kind, "v": 1, "at": at}, other=other)
                naive.merge(who, other)
        else:
            event = draws.event(number, at=at, version=version)
            state.apply(who, event)
            naive.hear(who, event)
        if number % EVERY == EVERY - 1:
            edge = naive.next_expiry(at) if number // EVERY % 2 else at
            for name in NAMES:
                for moment in (at, max(0, at - 30), edge - 1, edge):
                    mask = state.permitted(rows, Purpose(name), at=moment)
                    assert not mask[0]
                    assert not mask[-1]
                    expected = np.array(naive.mask(name, moment))
                    permitted += int(expected.sum())
                    unlawful += int((mask[1:-1] & ~expected).sum())
                    missed += int((expected & ~mask[1:-1]).sum())
            state.verify_column()

    assert (unlawful, missed) == (0, 0)
    # The trial must not be empty: everything happened, and thousands were permitted.
    assert min(heard.values()) > 20
    assert permitted > 20_000
    assert time.process_time() - started < 60


def test_the_ages_of_the_naive_reading_are_those_of_the_bands() -> None:
    assert {str(band): band.youngest for band in AgeBand} == AGES
