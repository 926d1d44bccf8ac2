"""Write the register of processing activities from what is asked of people and what was done.

What a purpose means comes from the ladder, how long data is kept and why that is lawful from the
brand, and what really happened from the open events of the log, in rounded counts: the register
can be shown to an authority and never tells how a person stands.

Source: GDPR art. 30(1); PIPL art. 56 asks for records of the same kind.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from consent.access import AccessGrant, Action
from consent.assessment import Assessment
from consent.canonical import JsonValue
from consent.event import LogError
from consent.gate import bucket
from consent.log import Log
from consent.purpose import TERMS, Purpose

_DAY_MS = 86_400_000
_CHUNK = 4096
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeping:
    """What a brand says about one purpose.

    Attributes:
        legal_basis: Such as "consent, GDPR art. 6(1)(a)".
        retention_days: How long the data is kept for it; positive.
        data_subjects: Categories of people.
        transfers: Countries outside, each with its safeguard.
    """

    legal_basis: str
    retention_days: int
    data_subjects: tuple[str, ...] = ("customers",)
    transfers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.legal_basis:
            raise ValueError("a purpose must have a legal basis")
        if self.retention_days < 1:
            raise ValueError(f"retention_days must be at least 1, got {self.retention_days}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Controller:
    """Who answers for the processing, and what they declare.

    Attributes:
        name: Of the brand.
        contact: How to reach it.
        officer: How to reach its data protection officer.
        joint: Names of joint controllers (GDPR art. 26).
        security: General description of the technical and organisational measures.
        keeping: What the brand says about each purpose it follows.
    """

    name: str
    contact: str
    officer: str
    joint: tuple[str, ...] = ()
    security: str
    keeping: Mapping[Purpose, Keeping]

    def __post_init__(self) -> None:
        if not all((self.name, self.contact, self.officer, self.security)):
            raise ValueError("a controller must have a name, a contact, an officer and measures")
        if not self.keeping:
            raise ValueError("a controller must declare at least one purpose")


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """One line of the register.

    Attributes:
        purpose: Why.
        description: What people are told.
        legal_basis: Why it is lawful.
        data_subjects: Categories of people.
        data: Categories of data.
        recipients: Who may get anything derived from it.
        transfers: Countries outside, each with its safeguard.
        retention_days: How long the data is kept for it.
        assessment: Id of the impact assessment in force; empty when there is none.
        uses: Permits in the window, rounded down to a power of two; "<64" below 64.
        refusals: Refusals in the window, rounded in the same way.
        last_used_day: Start of the UTC day of the last use, epoch milliseconds; None: not used.
        seen_recipients: Who was named in the permits of the window.
    """

    purpose: Purpose
    description: str
    legal_basis: str
    data_subjects: tuple[str, ...]
    data: tuple[str, ...]
    recipients: tuple[str, ...]
    transfers: tuple[str, ...]
    retention_days: int
    assessment: str
    uses: str
    refusals: str
    last_used_day: int | None
    seen_recipients: tuple[str, ...]

    def format(self) -> dict[str, JsonValue]:
        """Return the line as JSON."""
        return {
            "purpose": str(self.purpose),
            "description": self.description,
            "legal_basis": self.legal_basis,
            "data_subjects": list(self.data_subjects),
            "data": list(self.data),
            "recipients": list(self.recipients),
            "transfers": list(self.transfers),
            "retention_days": self.retention_days,
            "assessment": self.assessment,
            "uses": self.uses,
            "refusals": self.refusals,
            "last_used_day": self.last_used_day,
            "seen_recipients": list(self.seen_recipients),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessingRegister:
    """The register of one brand over a window of time.

    Attributes:
        controller: Who answers.
        activities: One line a purpose, in the order of the ladder.
        since: Begin of the window, epoch milliseconds.
        at: End of the window.
        tree_size: Entries of the log that were read up to.
    """

    controller: Controller
    activities: tuple[Activity, ...]
    since: int
    at: int
    tree_size: int

    def format_json(self) -> str:
        """Write the register as JSON with a newline at the end."""
        document = {
            "controller": {
                "name": self.controller.name,
                "contact": self.controller.contact,
                "officer": self.controller.officer,
                "joint": list(self.controller.joint),
                "security": self.controller.security,
            },
            "activities": [activity.format() for activity in self.activities],
            "since": self.since,
            "at": self.at,
            "tree_size": self.tree_size,
        }
        return json.dumps(document, ensure_ascii=False, indent=2) + "\n"

    def format_csv(self) -> str:
        """Write one line a purpose, lists joined by "; ", for a spreadsheet."""
        text = io.StringIO()
        who = {
            "controller": self.controller.name,
            "contact": self.controller.contact,
            "officer": self.controller.officer,
            "joint": "; ".join(self.controller.joint),
            "security": self.controller.security,
        }
        lines = [{**activity.format(), **who} for activity in self.activities]
        writer = csv.DictWriter(text, fieldnames=list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _cell(value) for key, value in line.items()} for line in lines)
        return text.getvalue()


def register_processing(
    log: Log,
    controller: Controller,
    *,
    assessments: list[Assessment],
    grant: AccessGrant,
    window: tuple[int, int],
) -> ProcessingRegister:
    """Put the register together.

    Args:
        log: The node's log.
        controller: Who answers; purposes that they do not declare are left out.
        assessments: `Assessments.all()`.
        grant: To read the register; about "processing".
        window: Begin and end, epoch milliseconds, of the events that are counted.

    Raises:
        ValueError: The window is empty, or the log shows a use of a purpose that the brand says
            nothing about: the register would hide it.
        AccessDenied: The grant is for something else or too old.
        LogError: The log cannot be read.
    """
    (since, at), keeping = window, controller.keeping
    grant.verify(Action.READ_REGISTER, about="processing", at=at)
    if not 0 <= since < at:
        raise ValueError("the window of a register of processing must begin before it ends")
    seen, tree_size = {purpose: _Seen() for purpose in Purpose}, log.tree_size
    for event in _events(log, since=since, end=tree_size):
        _count(seen, event, since=since, at=at)
    forgotten = [p for p in Purpose if seen[p].uses and p not in keeping]
    if forgotten:
        raise ValueError(f"{forgotten[0]} was used, and the register says nothing about it")
    lines = tuple(
        _activity(purpose, keeping[purpose], seen[purpose], assessments=assessments, at=at)
        for purpose in Purpose
        if purpose in keeping
    )
    return ProcessingRegister(
        controller=controller, activities=lines, since=since, at=at, tree_size=tree_size
    )


@dataclass(slots=True)
class _Seen:
    """What the log shows about one purpose while it is read."""

    uses: int = 0
    refusals: int = 0
    last: int | None = None
    recipients: Counter[str] = field(default_factory=Counter)


def _count(
    seen: Mapping[Purpose, _Seen], event: Mapping[str, JsonValue], *, since: int, at: int
) -> None:
    match event:
        case {"type": "permit.issued", "at": int(when), "purpose": str(name), "use": dict(use)}:
            if name not in set(Purpose):
                raise LogError("the log holds a permit for a purpose that is not known")
            if since <= when <= at:
                found = seen[Purpose(name)]
                found.uses += 1
                found.last = max(when, found.last or 0)
                recipients = use.get("recipients")
                if isinstance(recipients, list):
                    found.recipients.update(str(one) for one in recipients)
        case {"type": "permit.denied", "at": int(when), "purpose": str(name)}:
            # A refused purpose may be one that nobody was asked about: "unknown".
            if since <= when <= at and name in set(Purpose):
                seen[Purpose(name)].refusals += 1


def _activity(
    purpose: Purpose, kept: Keeping, seen: _Seen, *, assessments: list[Assessment], at: int
) -> Activity:
    in_force = [
        known.assessment_id
        for known in assessments
        if known.purpose == purpose and known.state(at=at) == "approved"
    ]
    terms = TERMS[purpose]
    return Activity(
        purpose=purpose,
        description=terms.description,
        legal_basis=kept.legal_basis,
        data_subjects=kept.data_subjects,
        data=terms.data,
        recipients=terms.recipients,
        transfers=kept.transfers,
        retention_days=kept.retention_days,
        assessment=in_force[-1] if in_force else "",
        uses=bucket(seen.uses),
        refusals=bucket(seen.refusals),
        last_used_day=None if seen.last is None else seen.last - seen.last % _DAY_MS,
        seen_recipients=tuple(sorted(seen.recipients)),
    )


def _events(log: Log, *, since: int, end: int) -> Iterator[dict[str, JsonValue]]:
    """Read the events from a time on; the latest time of an entry never falls, so bisect."""
    low, high = 0, end
    while low < high:
        middle = (low + high) // 2
        with log.reading() as connection:
            row = connection.execute("SELECT latest FROM entry WHERE idx = ?", (middle,)).fetchone()
        if row is None:
            raise LogError(f"the log {log.origin!r} is damaged: an entry is missing")
        low, high = (middle + 1, high) if row[0] < since else (low, middle)
    for start in range(low, end, _CHUNK):
        for entry in log.entries(start, min(start + _CHUNK, end)):
            yield entry.value


def _cell(value: JsonValue) -> str:
    text = (
        "; ".join(map(str, value))
        if isinstance(value, list)
        else str("" if value is None else value)
    )
    # A spreadsheet would run a cell that begins like a formula.
    return f"'{text}" if text.startswith(_FORMULA) else text
