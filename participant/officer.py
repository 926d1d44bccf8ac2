"""What staff read of a node: open events, its health, and evidence packs of a period.

Every answer was asked of `Access` by a signed-in account and is in the log before it is given.
Of people there is nothing here; a person's dossier is a matter of `cases`.
"""

import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from consent import (
    Action,
    JsonValue,
    NoteError,
    ProofError,
    Purpose,
    TrustPolicy,
    build_evidence,
    newest_state_root,
    verify_cosignatures,
)
from consent.durable import replace_files
from consent.event import SEALED, LogError
from consent.topic import Told, Topic
from participant.accounts import Session
from participant.cases import Cases, NotProvableYet
from participant.governance import erase_subject
from participant.kept import KeptAnswers
from participant.node import Node, NodeError

MOST_EVENTS = 200
MOST_SCANNED = 20_000
EXPORT_MADE = "export.made"
_CHUNK = 1000


class NoExport(Exception):  # noqa: N818 - an answer, named for the answer
    """There is no evidence pack of this id, or its file is not the one that was made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventFilter:
    """Which open events somebody wants to see.

    Attributes:
        kind: Type; None for all.
        since: Epoch milliseconds of the first.
        until: Epoch milliseconds before which the last one is; None for no end.
        start: First entry to look at.
        end: Entry before which to stop; None for the end of the log.
        limit: Most events at once.
    """

    kind: str | None = None
    since: int = 0
    until: int | None = None
    start: int = 0
    end: int | None = None
    limit: int = MOST_EVENTS

    def holds(self, event: dict[str, JsonValue]) -> bool:
        """Tell whether an entry is one of them; sealed entries never are."""
        at = event.get("at")
        return (
            event.get("k") != SEALED
            and isinstance(at, int)
            and self.kind in {None, event.get("type")}
            and self.since <= at
            and (self.until is None or at < self.until)
        )


class OfficerDesk:
    """Serves the staff of one node."""

    def __init__(
        self,
        node: Node,
        *,
        seek_cosignatures: Callable[[], None] = lambda: None,
        count_overdue: Callable[[], int] | None = None,
    ) -> None:
        """Take an open node.

        Args:
            node: The node.
            seek_cosignatures: As `Cases` takes it.
            count_overdue: How many notices of a withdrawal wait longer than they may; None when
                this node sends none.

        Raises:
            LogError: The log cannot be written.
        """
        self.node = node
        self.kept = KeptAnswers(node)
        self.cases = Cases(node, seek_cosignatures=seek_cosignatures)
        self._count_overdue = count_overdue
        self._exports = Topic(node.log, (EXPORT_MADE,))

    def events(self, session: Session, chosen: EventFilter) -> dict[str, JsonValue]:
        """Return open events, oldest first, and where to go on; None at the end.

        At most `MOST_SCANNED` entries are looked at for one answer.

        Raises:
            AccessDenied: No role of the account reads the log.
            LogError: The log cannot be read.
        """
        node = self.node
        # The size before the question: an answer that shows its own question never ends.
        size = node.log.tree_size
        node.accounts.authorize(session, Action.READ_LOG, about="events", at=node.clock())
        stop = size if chosen.end is None else min(size, chosen.end)
        last = min(stop, chosen.start + MOST_SCANNED)
        found: list[JsonValue] = []
        for first in range(chosen.start, last, _CHUNK):
            for entry in node.log.entries(first, min(last, first + _CHUNK)):
                event = entry.value
                if chosen.holds(event):
                    if len(found) == chosen.limit:
                        return {"events": found, "next": entry.index, "size": size}
                    found.append({"index": entry.index, **event})
        return {"events": found, "next": last if last < stop else None, "size": size}

    def erase(self, session: Session, key: str, subject_id: str) -> dict[str, JsonValue]:
        """Erase a person, also from the files of cases, once for each Idempotency-Key.

        Raises:
            AccessDenied: Only an operator with a fresh second factor may.
            LogError: Not everything could be destroyed; try again.
        """
        request: dict[str, JsonValue] = {"address": "erasures", "body": {"subject": subject_id}}
        kept = self.kept.find(session, key, request)
        if kept is not None:
            return kept
        # Outside of a transaction: what destroys keys cannot be taken back with it.
        index = erase_subject(self.node, session, subject_id)
        return self.kept.once(session, key, request, lambda: {"log_index": index})

    def export(
        self,
        session: Session,
        key: str,
        *,
        since: int,
        until: int,
        purpose: Purpose | None,
    ) -> dict[str, JsonValue]:
        """Make an evidence pack of a period, once for each Idempotency-Key.

        Raises:
            AccessDenied: Only an officer with a fresh second factor may.
            NotProvableYet: The log was not cosigned as the node's own trust policy asks.
            ValueError: The period is empty.
            EvidenceError: The log is too large for one pack.
            LogError: The log cannot be used; nothing was made.
        """
        node = self.node
        request: dict[str, JsonValue] = {
            "address": "exports",
            "since": since,
            "until": until,
            "purpose": None if purpose is None else str(purpose),
        }
        kept = self.kept.find(session, key, request)
        if kept is not None:
            return kept
        name, at = f"export-{secrets.token_hex(8)}", node.clock()
        node.accounts.authorize(session, Action.EXPORT_EVIDENCE, about=name, at=at)
        try:
            folder = node.publish()
            data = build_evidence(folder, self._policy(), since=since, until=until, purpose=purpose)
        except (NoteError, ProofError) as error:
            raise NotProvableYet(
                "the published log is not cosigned as the node's trust policy asks; no pack"
            ) from error
        digest = hashlib.sha256(data).hexdigest()
        replace_files(self._folder, {f"{name}.zip": data})

        def tell() -> dict[str, JsonValue]:
            event: dict[str, JsonValue] = {
                **request,
                "type": EXPORT_MADE,
                "v": 1,
                "at": at,
                "export": name,
                "by": session.account,
                "sha256": digest,
                "size_bytes": len(data),
            }
            event.pop("address")
            self._exports.append(event)
            return {"export": name, "sha256": digest, "size_bytes": len(data)}

        return self.kept.once(session, key, request, tell)

    def pack(self, session: Session, export: str) -> bytes:
        """Return an evidence pack that was made.

        Raises:
            NoExport: There is none of this id, or its file was changed.
            AccessDenied: Only an officer with a fresh second factor may.
        """
        told = self._find_export(export)
        at = self.node.clock()
        self.node.accounts.authorize(session, Action.EXPORT_EVIDENCE, about=export, at=at)
        try:
            data = (self._folder / f"{export}.zip").read_bytes()
        except OSError as error:
            raise NoExport("the file of this pack is not there") from error
        if hashlib.sha256(data).hexdigest() != told.text("sha256"):
            raise NoExport("the file of this pack is not the one that was made")
        return data

    def health(self, session: Session) -> dict[str, JsonValue]:
        """Return how the node stands, without any secret; asked again and again, logged once.

        Raises:
            AccessDenied: No role of the account reads the log.
            LogError: The log cannot be read.
        """
        node = self.node
        at = node.clock()
        node.accounts.authorize_standing(session, Action.READ_LOG, about="health", at=at)
        root = newest_state_root(node.log)
        budgets: dict[str, JsonValue] = {
            name: {
                "epsilon_spent": f"{node.ledger.spent(name).epsilon:.6f}",
                "epsilon_left": f"{node.ledger.remaining(name).epsilon:.6f}",
            }
            for name in node.ledger.budgets()
        }
        return {
            "at": at,
            "entries": node.log.tree_size,
            "checkpoint": self._checkpoint(at=at),
            "state_root_age_s": None if root is None else max(0, at - root.at) // 1000,
            "overdue_notices": None if self._count_overdue is None else self._count_overdue(),
            "budgets": budgets,
            "rules": node.rulebook.active_digest(),
            "consent_policy": node.register.ladder.digest,
        }

    def purposes(self, session: Session) -> dict[str, JsonValue]:
        """Return every purpose of the node's profile with its rules and its assessments.

        Raises:
            AccessDenied: No role of the account reads the log.
        """
        node = self.node
        at = node.clock()
        node.accounts.authorize(session, Action.READ_LOG, about="purposes", at=at)
        assessments = node.assessments.all()
        purposes: list[JsonValue] = [
            {
                "purpose": str(purpose),
                "tier": None if rules.tier is None else str(rules.tier),
                "allowed": rules.allowed,
                "separate": rules.separate,
                "basis": str(rules.basis),
                "needs_assessment": rules.assessment,
                "assessments": [
                    {
                        "assessment": known.assessment_id,
                        "state": str(known.state(at=at)),
                        "document": known.document,
                        "author": known.author,
                        "approver": known.approver,
                        "valid_until": known.valid_until,
                    }
                    for known in assessments
                    if known.purpose is purpose
                ],
            }
            for purpose, rules in node.register.ladder.rules.items()
        ]
        return {"profile": str(node.register.profile), "purposes": purposes}

    def recipients(self, session: Session) -> dict[str, JsonValue]:
        """Return whom a withdrawal reaches: who gets data about people from this node.

        Raises:
            AccessDenied: No role of the account reads the log.
        """
        self._ask_to_read(session, "recipients")
        found: list[JsonValue] = [
            {
                "recipient": name,
                "purposes": [str(purpose) for purpose in sorted(one.purposes)],
                "handle": str(one.handle),
            }
            for name, one in sorted(self.node.config.spreading.recipients.items())
        ]
        return {"recipients": found}

    def policies(self, session: Session) -> dict[str, JsonValue]:
        """Return every proposal of access rules, and the digest of those in force.

        Raises:
            AccessDenied: No role of the account reads the log.
        """
        node = self.node
        self._ask_to_read(session, "policies")
        proposals: list[JsonValue] = [
            {
                "proposal": known.index,
                "digest": known.digest,
                "author": known.author,
                "approver": known.approver,
                "activated_at": known.activated_at,
            }
            for known in node.rulebook.proposals()
        ]
        return {"in_force": node.rulebook.active_digest(), "proposals": proposals}

    def accounts(self, session: Session) -> dict[str, JsonValue]:
        """Return every account by its opaque id.

        Raises:
            AccessDenied: No role of the account reads the log.
        """
        self._ask_to_read(session, "accounts")
        return {"accounts": [known.format() for known in self.node.accounts.all()]}

    def list_cases(self, session: Session) -> dict[str, JsonValue]:
        """Return every case; nothing in it leads to a person.

        Raises:
            AccessDenied: No role of the account reads the log.
        """
        self._ask_to_read(session, "cases")
        return {"cases": [case.format() for case in self.cases.all()]}

    def _ask_to_read(self, session: Session, about: str) -> None:
        """Before the first rules are in force their author and approver must see proposals."""
        node = self.node
        if about == "policies" and node.rulebook.active_digest() is None:
            node.accounts.roles(session)
            return
        node.accounts.authorize(session, Action.READ_LOG, about=about, at=node.clock())

    @property
    def _folder(self) -> Path:
        return self.node.config.folder / "exports"

    def _find_export(self, export: str) -> Told:
        for told in self._exports.events():
            if told.text("export") == export:
                return told
        raise NoExport("there is no evidence pack of this id")

    def _policy(self) -> TrustPolicy:
        try:
            return self.node.trust_policy
        except NodeError:
            return TrustPolicy(
                logs=(self.node.identity.public,), witnesses={}, groups={}, quorum="none"
            )

    def _checkpoint(self, *, at: int) -> JsonValue:
        try:
            verified = verify_cosignatures(self.node.log.newest_note(), self._policy())
        except NoteError as error:
            raise LogError("the newest checkpoint of the log does not verify") from error
        times = list(verified.cosigners.values())
        names: list[JsonValue] = [*sorted(verified.cosigners)]
        return {
            "entries": verified.checkpoint.tree_size,
            "cosigners": names,
            "cosigned_age_s": max(0, at - max(times)) // 1000 if times else None,
        }
