"""Small worlds for the invariants: a log with a register, random histories, and a plain reading.

The plain reading is written from the rules that people are told. It sees only what the log
itself opens, so that it knows nothing of tables, masks or the fold of the register.
"""

import contextlib
import tempfile
import tomllib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from consent import (
    AgeBand,
    AskedTooSoon,
    ConsentChoice,
    Gate,
    Identity,
    Log,
    Notice,
    Profile,
    Purpose,
    Refused,
    Register,
    SealError,
    SubjectRef,
    TrustPolicy,
    Use,
    UseKind,
    cosign,
)

PEOPLE = ("anna", "ben", "cleo")
START = 1_795_000_000_000
IDENTITY = Identity.generate("brand-a.example/log")
COORDINATOR = Identity.generate("coordinator.example")
POLICY = TrustPolicy.parse(
    f"log {IDENTITY.public.format()}\n"
    f"witness coordinator {COORDINATOR.public.format_witness()}\n"
    "quorum coordinator\n"
)
USE = Use(kind=UseKind.SCORE)
KEY = bytes(range(32))
SOME = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
DENIALS = ("withdraw", "object", "restrict", "invalidate", "age", "merge", "notice", "erase")
_KINDS = (
    *("give",) * 8,
    *DENIALS,
    *("withdraw", "clear_objection", "clear_restriction", "guardian", "request", "confirm"),
)
_SIMPLE = {
    "object": "set_objection",
    "clear_objection": "clear_objection",
    "restrict": "set_restriction",
    "clear_restriction": "clear_restriction",
    "confirm": "confirm",
}


class Act(NamedTuple):
    """One thing that happens to one person."""

    kind: str
    who: str
    purposes: frozenset[Purpose]
    number: int
    wait: int


def acts(*kinds: str) -> st.SearchStrategy[Act]:
    """Draw one act of some kinds; of all kinds when none is named."""
    return st.builds(
        Act,
        kind=st.sampled_from(kinds or _KINDS),
        who=st.sampled_from(PEOPLE),
        purposes=st.one_of(
            st.frozensets(st.sampled_from(Purpose), min_size=1, max_size=1),
            st.frozensets(st.sampled_from(list(Purpose)[:6]), min_size=1, max_size=6),
            st.frozensets(st.sampled_from(Purpose), min_size=1),
        ),
        number=st.integers(0, 2**16),
        wait=st.integers(0, 40),
    )


def histories(*kinds: str, most: int = 14) -> st.SearchStrategy[list[Act]]:
    """Draw a short history."""
    return st.lists(acts(*kinds), max_size=most)


@contextlib.contextmanager
def new_folder() -> Iterator[Path]:
    """Give a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@contextlib.contextmanager
def new_log() -> Iterator[Log]:
    """Give a log of its own; the one place of these tests that makes one."""
    with new_folder() as folder, Log.create(folder / "log", IDENTITY) as log:
        yield log


@dataclass
class World:
    """A node's log and register, and the time."""

    log: Log
    profile: Profile
    at: int = START
    version: int = 3
    register: Register = field(init=False)
    gate: Gate = field(init=False)

    def __post_init__(self) -> None:
        self.register = Register(self.log, pseudonym_key=KEY, profile=self.profile)
        self.gate = Gate(self.register, self.log, policy_digest="00")

    def live(self, history: list[Act]) -> None:
        """Let a whole history happen."""
        for act in history:
            self.do(act)

    def do(self, act: Act) -> None:
        """Let one act happen through the public calls; one that is refused does not happen."""
        self.at += act.wait
        if act.kind in _SIMPLE:
            getattr(self.register, _SIMPLE[act.kind])(act.who, act.purposes, at=self.at)
            return
        special: dict[str, Callable[[Act], object]] = {
            "give": self.give,
            "withdraw": self._withdraw,
            "invalidate": lambda act: self.register.invalidate(
                act.who, act.purposes, reason="found to be none", at=self.at
            ),
            "age": lambda act: self.register.record_age(
                act.who, list(AgeBand)[act.number % 6], at=self.at
            ),
            "guardian": lambda act: self.register.record_guardian(
                act.who, reference="file 7", at=self.at
            ),
            "request": self._request,
            "merge": self._merge,
            "notice": self._publish,
            "erase": lambda act: self.register.erase(act.who, at=self.at),
        }
        special[act.kind](act)

    def agree(self, people: Collection[str] = PEOPLE) -> None:
        """Let some people agree to everything for long, each purpose in an act of its own."""
        self.register.record_many(
            [
                ConsentChoice(
                    subject_id=who,
                    given=frozenset({purpose}),
                    notice=self.notice,
                    channel="app",
                    expressed_at=self.at,
                    until=self.at + 10**6,
                    separate=True,
                )
                for who in people
                for purpose in Purpose
            ],
            at=self.at,
        )

    def _withdraw(self, act: Act) -> None:
        everything = act.number % 8 == 0
        self.register.withdraw(act.who, None if everything else act.purposes, at=self.at)

    def _request(self, act: Act) -> None:
        with contextlib.suppress(AskedTooSoon):
            self.register.request(
                act.who, act.purposes, notice=self.notice, channel="app", at=self.at
            )

    def _merge(self, act: Act) -> None:
        other = PEOPLE[act.number % len(PEOPLE)]
        with contextlib.suppress(ValueError):
            self.register.merge(act.who, other, at=self.at)

    def _publish(self, _act: Act) -> None:
        self.version += 1
        self.register.publish_notice(self.notice, oldest_accepted=self.version - 1, at=self.at)

    @property
    def notice(self) -> Notice:
        """The newest version of the one notice."""
        return Notice(id="privacy", version=self.version, language="en", sha256="ab" * 32)

    def give(self, act: Act) -> None:
        """Record a choice; the number decides what is refused, how old it is and how long."""
        number = act.number
        refused = act.purposes if number % 7 == 0 else frozenset(list(act.purposes)[: number % 2])
        said_at = self.at - number // 8 % 60
        self.register.record(
            act.who,
            given=act.purposes - refused,
            refused=refused,
            notice=self.notice,
            channel="app",
            expressed_at=said_at,
            at=self.at,
            until=self.at + 1 + number % 2_003,
            separate=len(act.purposes) == 1 and number % 4 > 0,
            age=list(AgeBand)[number % 6] if number % 31 == 0 else None,
        )

    def cosigned(self) -> str:
        """Let the coordinator cosign the present head, and return the note."""
        note = cosign(self.log.checkpoint(), COORDINATOR, at=self.at)
        self.log.accept_cosigned(note, POLICY)
        return note

    def ref(self, who: str) -> SubjectRef:
        """Return a person's pseudonym."""
        return self.register.subject_ref(who)

    def masks(self, *, at: int | None = None) -> dict[Purpose, list[bool]]:
        """Return what the register permits, for everybody and every purpose."""
        at = self.at if at is None else at
        return {p: self.register.mask(PEOPLE, p, at=at).tolist() for p in Purpose}

    def through_the_gate(self) -> dict[Purpose, list[bool]]:
        """Return what the gate opens; a refusal opens nobody."""
        opened = {}
        for purpose in Purpose:
            opened[purpose] = [False] * len(PEOPLE)
            with contextlib.suppress(Refused):
                opened[purpose] = self.gate.open(purpose, PEOPLE, use=USE, at=self.at).mask.tolist()
        return opened


@contextlib.contextmanager
def new_world(profile: Profile = Profile.EU_GDPR) -> Iterator[World]:
    """Give a world in which nothing has happened."""
    with new_log() as log:
        yield World(log, profile)


def rules_of(profile: Profile) -> dict[str, Any]:
    """Return what the profile's file says, read without the package."""
    path = resources.files("consent").joinpath("profiles", f"{profile}.toml")
    return tomllib.loads(path.read_text("utf-8"))


def opened_events(log: Log) -> list[dict[str, Any]]:
    """Return every event that can still be opened, in the order of the log."""
    found = []
    for entry in log.entries():
        with contextlib.suppress(SealError):
            found.append({**log.opened(entry.index), "index": entry.index})
    return found


@dataclass
class Cell:
    """What one person said last about one purpose: nothing, told, yes or no."""

    word: str = "nothing"
    said: int = 0
    until: int = 0
    alone: bool = False
    versions: frozenset[int] = frozenset()


@dataclass
class Someone:
    """All that was heard of one person."""

    cells: dict[str, Cell] = field(default_factory=lambda: {p.value: Cell() for p in Purpose})
    objections: set[str] = field(default_factory=set)
    restrictions: set[str] = field(default_factory=set)
    age: int | None = None
    guardian: bool = False


class PlainReading:
    """The events of a log, taken in one by one as a person would."""

    def __init__(self, world: World) -> None:
        self.rules = rules_of(world.profile)
        self.oldest = 0
        self.people: dict[str, Someone] = {}
        for event in opened_events(world.log):
            self._hear(event)
        self._refs = {who: world.ref(who) for who in PEOPLE}

    def masks(self, *, at: int) -> dict[Purpose, list[bool]]:
        """Return who may be used for what, as the rules say it."""
        people = [self.people.get(self._refs[who]) for who in PEOPLE]
        return {
            purpose: [one is not None and self._may(one, purpose.value, at) for one in people]
            for purpose in Purpose
        }

    def _may(self, one: Someone, name: str, at: int) -> bool:
        rules, cell = self.rules["purposes"][name], one.cells[name]
        minor = one.age is not None and one.age < self.rules["children"]["age_of_consent"]
        return (
            cell.word == "yes"
            and at < cell.until
            and rules["allowed"]
            and (cell.alone or not rules["separate"])
            and min(cell.versions) >= self.oldest
            and name not in one.objections | one.restrictions
            and (one.guardian or not minor)
            and all(self._may(one, needed, at) for needed in rules["prerequisites"])
        )

    def _hear(self, event: dict[str, Any]) -> None:
        kind = event["type"]
        if kind == "notice.published":
            self.oldest = max(self.oldest, event["oldest_accepted"])
        if "subject" not in event:
            return
        one = self.people.setdefault(event["subject"], Someone())
        match kind.split("."):
            case ["consent", "recorded"]:
                self._choice(one, event)
            case ["consent", _]:
                self._other_word(one, event)
            case ["objection" | "restriction", step]:
                flags = one.objections if kind.startswith("objection") else one.restrictions
                (flags.update if step == "set" else flags.difference_update)(event["purposes"])
            case ["guardian", _]:
                one.guardian = True
            case ["subject", "age_recorded"]:
                one.age = _age(event["age"], one.age)
            case ["subject", "merged"]:
                self._merge(one, self.people.setdefault(event["other"], Someone()))

    def _choice(self, one: Someone, event: dict[str, Any]) -> None:
        for name in event["given"] + event["refused"]:
            if event["expressed_at"] >= one.cells[name].said:
                one.cells[name] = Cell(
                    "yes" if name in event["given"] else "no",
                    event["expressed_at"],
                    event["until"],
                    event["separate"],
                    frozenset({event["notice"]["version"]}),
                )
        one.age = _age(event["age"], one.age)

    def _other_word(self, one: Someone, event: dict[str, Any]) -> None:
        kind, at = event["type"], event["at"]
        for name in event["purposes"]:
            cell = one.cells[name]
            is_over = cell.word == "yes" and cell.until <= at
            if kind == "consent.withdrawn" or (
                kind == "consent.invalidated" and cell.word in {"yes", "told"}
            ):
                one.cells[name] = Cell("no", max(cell.said, at))
            elif kind == "consent.requested" and (cell.word == "nothing" or is_over):
                one.cells[name] = Cell("told", cell.said)

    def _merge(self, one: Someone, two: Someone) -> None:
        for name in one.cells:
            one.cells[name] = _both(one.cells[name], two.cells[name])
        one.objections |= two.objections
        one.restrictions |= two.restrictions
        one.age = min((age for age in (one.age, two.age) if age is not None), default=None)
        one.guardian = one.guardian and two.guardian
        # From now on either pseudonym means the same person.
        for ref in [ref for ref, known in self.people.items() if known is two]:
            self.people[ref] = one


def _both(one: Cell, two: Cell) -> Cell:
    words, said = {one.word, two.word}, max(one.said, two.said)
    if "no" in words:
        return Cell("no", said)
    if "nothing" in words:
        return Cell("nothing", said)
    if "told" in words:
        return Cell("told", said)
    return Cell(
        "yes",
        said,
        min(one.until, two.until),
        one.alone and two.alone,
        one.versions | two.versions,
    )


def _age(text: str | None, before: int | None) -> int | None:
    return before if text is None else int(text.partition("-")[0].removesuffix("+"))
