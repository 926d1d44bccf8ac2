"""Write the register of processing activities from what is asked of people and what was done.

What a purpose means, on what it rests and how long its data is kept comes from the profile; who
answers and who gets data by name from the controller; and what really happened from the open
events of the log, in rounded counts: the register can be shown to an authority and never tells
how a person stands.

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
from consent.controller import SILENT, Controller, format_controller
from consent.event import LogError
from consent.gate import bucket
from consent.ladder import EssentialTerms, Ladder, PurposeRules
from consent.log import Log
from consent.purpose import Purpose

_DAY_MS = 86_400_000
_CHUNK = 4096
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """One line of the register.

    Attributes:
        purpose: Why: a purpose of the ladder, or a service that an order needs.
        description: What people are told.
        legal_basis: Why it is lawful, with the articles.
        data_subjects: Categories of people.
        data: Categories of data.
        recipients: Who may get anything derived from it, and whom the brand names.
        transfers: Countries outside, each with its recipient, its safeguard and its filing.
        retention_days: How long the data is kept for it.
        assessment: Id of the impact assessment in force; empty when there is none.
        uses: Permits in the window, rounded down to a power of two; "<64" below 64.
        refusals: Refusals in the window, rounded in the same way.
        last_used_day: Start of the UTC day of the last use, epoch milliseconds; None: not used.
        seen_recipients: Who was named in the permits of the window.
    """

    purpose: str
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
            "purpose": self.purpose,
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
        profile: Digest of the profile file.
        activities: One line a purpose, in the order of the ladder, and one for each service.
        since: Begin of the window, epoch milliseconds.
        at: End of the window.
        tree_size: Entries of the log that were read up to.
    """

    controller: Controller
    profile: str
    activities: tuple[Activity, ...]
    since: int
    at: int
    tree_size: int

    def format_json(self) -> str:
        """Write the register as JSON with a newline at the end."""
        document = {
            "controller": format_controller(self.controller.about(())),
            "profile": self.profile,
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
            "address": f"{self.controller.address}, {self.controller.country}",
            "contact": f"{self.controller.contact}, {self.controller.email}",
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
    ladder: Ladder,
    assessments: list[Assessment],
    grant: AccessGrant,
    window: tuple[int, int],
) -> ProcessingRegister:
    """Put the register together.

    Args:
        log: The node's log.
        controller: Who answers.
        ladder: The profile of the node; purposes that it forbids are left out.
        assessments: `Assessments.all()`.
        grant: To read the register; about "processing".
        window: Begin and end, epoch milliseconds, of the events that are counted.

    Raises:
        ValueError: The window is empty, or the log shows a use of a purpose that the profile
            forbids: the register would hide it.
        AccessDenied: The grant is for something else or too old.
        LogError: The log cannot be read.
    """
    since, at = window
    grant.verify(Action.READ_REGISTER, about="processing", at=at)
    if not 0 <= since < at:
        raise ValueError("the window of a register of processing must begin before it ends")
    seen, tree_size = {purpose: _Seen() for purpose in Purpose}, log.tree_size
    for event in _events(log, since=since, end=tree_size):
        _count(seen, event, since=since, at=at)
    asked = [rules for rules in ladder.rules.values() if rules.allowed]
    forgotten = [p for p in Purpose if seen[p].uses and not ladder.rules[p].allowed]
    if forgotten:
        raise ValueError(f"{forgotten[0]} was used, and the profile forbids it")
    lines = [
        _activity(
            rules,
            controller,
            seen[rules.purpose],
            assessment=_in_force(assessments, rules.purpose, at=at),
        )
        for rules in asked
    ]
    services = [_service(name, terms) for name, terms in ladder.essential.items()]
    return ProcessingRegister(
        controller=controller,
        profile=ladder.digest,
        activities=(*lines, *services),
        since=since,
        at=at,
        tree_size=tree_size,
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
    rules: PurposeRules, controller: Controller, seen: _Seen, *, assessment: str
) -> Activity:
    declared = controller.on(rules.purpose)
    return Activity(
        purpose=str(rules.purpose),
        description=rules.description["en"],
        legal_basis=_basis(rules),
        data_subjects=declared.data_subjects,
        data=(*rules.data, *declared.categories),
        recipients=(*rules.recipients, *(one.name for one in declared.recipients)),
        transfers=tuple(
            ", ".join(filter(None, (one.country, one.name, one.mechanism, one.filing)))
            for one in declared.recipients
            if one.country is not None
        ),
        retention_days=controller.days_kept(rules.purpose, most=rules.retention_days),
        assessment=assessment,
        uses=bucket(seen.uses),
        refusals=bucket(seen.refusals),
        last_used_day=None if seen.last is None else seen.last - seen.last % _DAY_MS,
        seen_recipients=tuple(sorted(seen.recipients)),
    )


def _service(name: str, terms: EssentialTerms) -> Activity:
    """Return the line of what an order needs: no gate stands before it, so no use is counted."""
    return Activity(
        purpose=name,
        description=terms.description["en"],
        legal_basis=_basis(terms),
        data_subjects=SILENT.data_subjects,
        data=terms.data,
        recipients=terms.recipients,
        transfers=(),
        retention_days=terms.retention_days,
        assessment="",
        uses="",
        refusals="",
        last_used_day=None,
        seen_recipients=(),
    )


def _basis(terms: PurposeRules | EssentialTerms) -> str:
    return f"{terms.basis}: {', '.join(terms.articles)}"


def _in_force(assessments: list[Assessment], purpose: Purpose, *, at: int) -> str:
    found = [
        known.assessment_id
        for known in assessments
        if known.purpose == purpose and known.state(at=at) == "approved"
    ]
    return found[-1] if found else ""


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
