"""Own what one event does to one person's standings: the rules, one person at a time.

No clock, no database, no profile: the same events in the same order give the same standings
under every law. What a standing permits is decided in `state`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TypeAlias

from consent.canonical import LARGEST_INTEGER, JsonValue
from consent.ladder import AgeBand, Purpose

RECORDED, RENEWED, WITHDRAWN = "consent.recorded", "consent.renewed", "consent.withdrawn"
REQUESTED, CONFIRMED, INVALIDATED = (
    "consent.requested",
    "consent.confirmed",
    "consent.invalidated",
)
OBJECTED, OBJECTION_CLEARED = "objection.set", "objection.cleared"
RESTRICTED, RESTRICTION_CLEARED = "restriction.set", "restriction.cleared"
GUARDIAN, AGE, MERGED = "guardian.verified", "subject.age_recorded", "subject.merged"

NEVER = LARGEST_INTEGER
"""The expiry of what does not expire, epoch milliseconds."""


class Status(StrEnum):
    """Where a person stands for one purpose; only given and confirmed are a yes.

    Expired, restricted and objected are never stored: they follow from the time and the flags.
    """

    UNKNOWN = "unknown"
    REQUESTED = "requested"
    REFUSED = "refused"
    GIVEN = "given"
    CONFIRMED = "confirmed"
    WITHDRAWN = "withdrawn"
    INVALIDATED = "invalidated"
    EXPIRED = "expired"
    RESTRICTED = "restricted"
    OBJECTED = "objected"


AGREED = frozenset({Status.GIVEN, Status.CONFIRMED})
TOLD = AGREED | {Status.REQUESTED}
SAID_NO = frozenset({Status.REFUSED, Status.WITHDRAWN})
_STRICTEST = (Status.WITHDRAWN, Status.REFUSED, Status.INVALIDATED)


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a person stands for one purpose.

    Attributes:
        status: What was said or done last.
        said_at: When the person said it, epoch milliseconds; 0 when they never spoke.
        effective_at: When the node committed it.
        until: When it expires; it has no effect at this millisecond any more.
        separate: Whether it was given in an act of its own.
        terms: What it rests on, each as `terms_of` writes it; all of them must be accepted.
        asked_at: When the person was asked last; 0 for never.
    """

    status: Status
    said_at: int
    effective_at: int
    until: int
    separate: bool
    terms: tuple[str, ...] = ()
    asked_at: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """What holds for a person whatever they agreed to.

    Attributes:
        objected: Bits of the purposes that the person objects to.
        restricted: Bits of the purposes whose processing is restricted.
        age: Age band; None when nobody told.
        guardian: Whether a guardian was verified.
    """

    objected: int = 0
    restricted: int = 0
    age: AgeBand | None = None
    guardian: bool = False


@dataclass(frozen=True, slots=True)
class Change:
    """What an event changes for one person.

    Attributes:
        standings: New standings by purpose.
        person: The person's flags after it; None when they stay.
        narrows: Whether anything that may have been permitted may be so no more.
    """

    standings: Mapping[Purpose, Standing]
    person: Person | None = None
    narrows: bool = False


StandingOf: TypeAlias = Callable[[Purpose], Standing | None]


def terms_of(digest: str, *, notice_id: str, version: int) -> str:
    """Return what a grant rests on, in one line: terms of the purpose, notice and version."""
    return f"{digest} {version} {notice_id}"


def parse_terms(line: str) -> tuple[str, int, str]:
    """Return (digest, version, notice id) of such a line."""
    digest, version, notice_id = line.split(" ", 2)
    return digest, int(version), notice_id


def fold(event: Mapping[str, JsonValue], standing_of: StandingOf, person: Person) -> Change:
    """Say what one event about one person changes.

    An act that was expressed before the one that counts for a purpose changes nothing there,
    however late it arrives; a withdrawal always counts.

    Raises:
        ValueError: The event is of no type known here, or a field is missing or wrong.
    """
    rule = _RULES.get(str(event.get("type")))
    try:
        if rule is not None:
            return rule(event, standing_of, person)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(_UNREADABLE) from error
    raise ValueError(_UNREADABLE)


def merge(kept: StandingOf, other: StandingOf, people: tuple[Person, Person], *, at: int) -> Change:
    """Say what is left when two identities turn out to be one person: what both agreed to.

    Any objection, any restriction, the youngest age and the later word stay.
    """
    standings = {}
    for purpose in Purpose:
        merged = _merge(kept(purpose), other(purpose), at=at)
        if merged is not None:
            standings[purpose] = merged
    first, second = people
    ages = [age for age in (first.age, second.age) if age is not None]
    person = Person(
        objected=first.objected | second.objected,
        restricted=first.restricted | second.restricted,
        age=min(ages, key=lambda age: age.youngest, default=None),
        guardian=first.guardian and second.guardian,
    )
    return Change(standings, person, narrows=True)


def _merge(first: Standing | None, second: Standing | None, *, at: int) -> Standing | None:
    if first is None and second is None:
        return None
    both = [standing for standing in (first, second) if standing is not None]
    said_at = max(standing.said_at for standing in both)
    asked_at = max(standing.asked_at for standing in both)
    statuses = {standing.status for standing in both}
    if len(both) == 2 and statuses <= TOLD:
        agreed = Status.CONFIRMED if statuses == {Status.CONFIRMED} else Status.GIVEN
        return Standing(
            status=Status.REQUESTED if Status.REQUESTED in statuses else agreed,
            said_at=said_at,
            effective_at=max(standing.effective_at for standing in both),
            until=min(standing.until for standing in both),
            separate=all(standing.separate for standing in both),
            terms=tuple(sorted({line for standing in both for line in standing.terms})),
            asked_at=asked_at,
        )
    status = next((status for status in _STRICTEST if status in statuses), Status.UNKNOWN)
    return Standing(status, said_at, at, 0, separate=False, asked_at=asked_at)


def _act(event: Mapping[str, JsonValue], standing_of: StandingOf, person: Person) -> Change:
    at, said_at, until = _int(event, "at"), _int(event, "expressed_at"), _int(event, "until")
    separate, terms, notice = event["separate"], event["terms"], event["notice"]
    if not (isinstance(separate, bool) and isinstance(terms, dict) and isinstance(notice, dict)):
        raise TypeError
    version, notice_id = _int(notice, "version"), str(notice["id"])
    changes, narrows = {}, False
    for key in ("given", "refused"):
        for name in _names(event, key):
            purpose = Purpose(name)
            old = standing_of(purpose)
            if old is not None and said_at < old.said_at:
                continue
            asked_at = 0 if old is None else old.asked_at
            narrows |= old is not None and old.status in TOLD
            if key == "refused":
                changes[purpose] = Standing(
                    Status.REFUSED, said_at, at, 0, separate=False, asked_at=asked_at
                )
                continue
            line = terms_of(str(terms[name]), notice_id=notice_id, version=version)
            changes[purpose] = Standing(
                Status.GIVEN, said_at, at, until, separate, (line,), asked_at
            )
    age = event.get("age")
    if age is None or AgeBand(str(age)) is person.age:
        return Change(changes, None, narrows)
    return Change(changes, replace(person, age=AgeBand(str(age))), narrows=True)


def _withdrawal(event: Mapping[str, JsonValue], standing_of: StandingOf, _: Person) -> Change:
    at = _int(event, "at")
    changes, narrows = {}, False
    for purpose in _purposes(event):
        old = standing_of(purpose)
        if old is None:
            changes[purpose] = Standing(Status.WITHDRAWN, at, at, 0, separate=False)
            continue
        narrows |= old.status in TOLD
        changes[purpose] = Standing(
            Status.WITHDRAWN,
            max(at, old.said_at),
            at,
            0,
            separate=False,
            asked_at=old.asked_at,
        )
    return Change(changes, None, narrows)


def _request(event: Mapping[str, JsonValue], standing_of: StandingOf, _: Person) -> Change:
    """Being asked changes no answer; it takes the place of none and of one that expired."""
    at, terms, notice = _int(event, "at"), event["terms"], event["notice"]
    if not (isinstance(terms, dict) and isinstance(notice, dict)):
        raise TypeError
    changes, narrows = {}, False
    for purpose in _purposes(event):
        old = standing_of(purpose)
        said_at = 0 if old is None else old.said_at
        if (
            old is None
            or old.status in {Status.UNKNOWN, Status.REQUESTED}
            or (old.status in AGREED and old.until <= at)
        ):
            line = terms_of(
                str(terms[purpose]), notice_id=str(notice["id"]), version=_int(notice, "version")
            )
            narrows |= old is not None and old.status in TOLD
            changes[purpose] = Standing(
                Status.REQUESTED, said_at, at, NEVER, separate=False, terms=(line,), asked_at=at
            )
        else:
            changes[purpose] = replace(old, asked_at=at)
    return Change(changes, None, narrows)


def _confirmation(event: Mapping[str, JsonValue], standing_of: StandingOf, _: Person) -> Change:
    old = {purpose: standing_of(purpose) for purpose in _purposes(event)}
    return Change(
        {
            purpose: replace(standing, status=Status.CONFIRMED)
            for purpose, standing in old.items()
            if standing is not None and standing.status is Status.GIVEN
        }
    )


def _invalidation(event: Mapping[str, JsonValue], standing_of: StandingOf, _: Person) -> Change:
    at = _int(event, "at")
    changes = {}
    for purpose in _purposes(event):
        old = standing_of(purpose)
        if old is not None and old.status in TOLD:
            said_at = max(at, old.said_at)
            changes[purpose] = Standing(
                Status.INVALIDATED, said_at, at, 0, separate=False, asked_at=old.asked_at
            )
    return Change(changes, None, narrows=bool(changes))


def _objection(event: Mapping[str, JsonValue], _: StandingOf, person: Person) -> Change:
    return Change({}, replace(person, objected=person.objected | _bits(event)), narrows=True)


def _no_objection(event: Mapping[str, JsonValue], _: StandingOf, person: Person) -> Change:
    return Change({}, replace(person, objected=person.objected & ~_bits(event)))


def _restriction(event: Mapping[str, JsonValue], _: StandingOf, person: Person) -> Change:
    return Change({}, replace(person, restricted=person.restricted | _bits(event)), narrows=True)


def _no_restriction(event: Mapping[str, JsonValue], _: StandingOf, person: Person) -> Change:
    return Change({}, replace(person, restricted=person.restricted & ~_bits(event)))


def _guardian(_: Mapping[str, JsonValue], __: StandingOf, person: Person) -> Change:
    return Change({}, replace(person, guardian=True))


def _age(event: Mapping[str, JsonValue], _: StandingOf, person: Person) -> Change:
    return Change({}, replace(person, age=AgeBand(str(event["age"]))), narrows=True)


_RULES: Mapping[str, Callable[[Mapping[str, JsonValue], StandingOf, Person], Change]] = {
    RECORDED: _act,
    RENEWED: _act,
    WITHDRAWN: _withdrawal,
    REQUESTED: _request,
    CONFIRMED: _confirmation,
    INVALIDATED: _invalidation,
    OBJECTED: _objection,
    OBJECTION_CLEARED: _no_objection,
    RESTRICTED: _restriction,
    RESTRICTION_CLEARED: _no_restriction,
    GUARDIAN: _guardian,
    AGE: _age,
}
_UNREADABLE = "an event about consent must be of a known type and have its fields"


def _int(event: Mapping[str, JsonValue], key: str) -> int:
    value = event[key]
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError
    return value


def _names(event: Mapping[str, JsonValue], key: str) -> list[str]:
    value = event[key]
    if not isinstance(value, list):
        raise TypeError
    return [str(name) for name in value]


def _purposes(event: Mapping[str, JsonValue]) -> list[Purpose]:
    return [Purpose(name) for name in _names(event, "purposes")]


def _bits(event: Mapping[str, JsonValue]) -> int:
    return sum(1 << purpose.bit for purpose in set(_purposes(event)))
