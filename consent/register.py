"""Remember who agreed to what, and answer for any list of people who may be used for what.

Every act is a sealed entry of the log; the tables here are derived from those entries and
change in the same durable commit. Subject ids are turned into keyed pseudonyms at the door and
are stored nowhere. Times are passed in and never read from a clock.
"""

import hmac
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from consent.canonical import JsonValue
from consent.event import LogError
from consent.log import Log, LogTransaction
from consent.purpose import Profile, Purpose, Tier
from consent.sealed import SealError, SubjectRef
from consent.state import RECORDED, WITHDRAWN, ConsentState, Standing, Status

if TYPE_CHECKING:
    import sqlite3

__all__ = ["ConsentChoice", "ConsentRecord", "Notice", "Register", "Standing", "Status"]

_TABLES = (
    """CREATE TABLE IF NOT EXISTS consent_subject
    (row_no INTEGER PRIMARY KEY, subject_ref TEXT UNIQUE)""",
    """CREATE TABLE IF NOT EXISTS consent_standing
    (row_no INTEGER NOT NULL, purpose TEXT NOT NULL, status TEXT NOT NULL,
    said_at INTEGER NOT NULL, effective_at INTEGER NOT NULL, until INTEGER NOT NULL,
    separate INTEGER NOT NULL, PRIMARY KEY (row_no, purpose)) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS consent_seq
    (one INTEGER PRIMARY KEY CHECK (one = 1), state_seq INTEGER NOT NULL,
    narrowed_seq INTEGER NOT NULL)""",
    "INSERT OR IGNORE INTO consent_seq VALUES (1, 0, 0)",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """The text a person was shown.

    Attributes:
        id: Which notice.
        version: Which version of it, from 1.
        language: BCP 47 tag of the text.
        sha256: 64 hex digits over the exact text.
    """

    id: str
    version: int
    language: str
    sha256: str

    def __post_init__(self) -> None:
        if len(self.sha256) != 64 or not set(self.sha256) <= set("0123456789abcdef"):
            raise ValueError("the sha256 of a notice must be 64 lower-case hex digits")
        if self.version < 1:
            raise ValueError(f"the version of a notice must be at least 1, got {self.version}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsentChoice:
    """What one person said in one act, as it reaches the register.

    Attributes:
        subject_id: The brand's own id of the person; stored nowhere.
        given: Purposes agreed to.
        refused: Purposes refused; purposes in neither set keep their standing.
        notice: What the person was shown.
        channel: Where it happened, such as "app", "till", "call centre".
        expressed_at: When the person said it, epoch milliseconds.
        until: When it expires, epoch milliseconds.
        tier: Preset that was shown; information, never a permission.
        separate: Whether the act asked for one purpose and nothing else.
    """

    subject_id: str
    given: frozenset[Purpose]
    refused: frozenset[Purpose] = frozenset()
    notice: Notice
    channel: str
    expressed_at: int
    until: int
    tier: Tier | None = None
    separate: bool = False

    def __post_init__(self) -> None:
        if self.given & self.refused:
            raise ValueError("a purpose must not be given and refused in one act")
        if self.separate and len(self.given | self.refused) != 1:
            raise ValueError("a separate act must be about exactly one purpose")
        if not 0 <= self.expressed_at < self.until:
            raise ValueError("a consent must expire after it was expressed")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsentRecord:
    """One act as the node keeps it (ISO/IEC TS 27560, the fields that apply so far).

    Attributes:
        record_id: Random id of the record.
        subject_ref: Pseudonym of the person.
        given: Purposes agreed to.
        refused: Purposes refused.
        notice: What the person was shown.
        channel: Where it happened.
        profile: The law the node followed.
        expressed_at: When the person said it, epoch milliseconds.
        effective_at: When the node committed it.
        until: When it expires.
        tier: Preset that was shown; information, never a permission.
        separate: Whether the act asked for one purpose and nothing else.
        index: Entry of the log that commits to the record.
    """

    record_id: str
    subject_ref: SubjectRef
    given: frozenset[Purpose]
    refused: frozenset[Purpose]
    notice: Notice
    channel: str
    profile: Profile
    expressed_at: int
    effective_at: int
    until: int
    tier: Tier | None
    separate: bool
    index: int


class Register:
    """The consent register of one node."""

    def __init__(self, log: Log, *, pseudonym_key: bytes, profile: Profile) -> None:
        """Read the register's tables in the log's database, or make them.

        Args:
            log: The node's log, open for writing.
            pseudonym_key: At least 32 secret bytes; with another key nobody is known.
            profile: The law the node follows.

        Raises:
            LogError: The log is closed or cannot be read.
        """
        if len(pseudonym_key) < 32:
            raise ValueError(f"a pseudonym key must have 32 bytes, got {len(pseudonym_key)}")
        self._log = log
        self._key = pseudonym_key
        self._profile = profile
        self._state, self._rows = ConsentState(), dict[str, int]()
        self._next_row, self._seq, self._narrowed = 0, -1, 0
        with log.transaction() as transaction:
            for statement in _TABLES:
                transaction.connection.execute(statement)
        self._refresh()

    @property
    def profile(self) -> Profile:
        """Return the law the node follows."""
        return self._profile

    @property
    def state_seq(self) -> int:
        """Return the number of acts so far; any act makes it grow."""
        self._refresh()
        return self._seq

    @property
    def narrowed_seq(self) -> int:
        """Return the `state_seq` of the last act that took back or replaced something given."""
        self._refresh()
        return self._narrowed

    def subject_ref(self, subject_id: str) -> SubjectRef:
        """Return the pseudonym of a person: HMAC-SHA256 of the id under the node's key."""
        if not isinstance(subject_id, str) or not subject_id:
            raise ValueError("a subject id must be a non-empty string")
        message = b"subject\0" + subject_id.encode()
        return SubjectRef(hmac.digest(self._key, message, "sha256").hex())

    def record(
        self,
        subject_id: str,
        *,
        given: Iterable[Purpose],
        refused: Iterable[Purpose] = (),
        notice: Notice,
        channel: str,
        expressed_at: int,
        at: int,
        until: int,
        tier: Tier | None = None,
        separate: bool = False,
    ) -> ConsentRecord:
        """Record one act durably; the arguments are those of `ConsentChoice`."""
        choice = ConsentChoice(
            subject_id=subject_id,
            given=frozenset(given),
            refused=frozenset(refused),
            notice=notice,
            channel=channel,
            expressed_at=expressed_at,
            until=until,
            tier=tier,
            separate=separate,
        )
        return self.record_many([choice], at=at)[0]

    def record_many(self, choices: Iterable[ConsentChoice], *, at: int) -> list[ConsentRecord]:
        """Record many acts in one durable commit, in their order.

        Args:
            choices: What people said.
            at: When the node commits them, epoch milliseconds; not before they were expressed.

        Raises:
            ValueError: An act was expressed after `at`; nothing was recorded.
            LogError: The log cannot be written; nothing was recorded.
        """
        chosen = list(choices)
        if any(choice.expressed_at > at for choice in chosen):
            raise ValueError("an act must not be recorded before it was expressed")
        with self._log.transaction() as transaction:
            return [self._record(transaction, choice, at=at) for choice in chosen]

    def withdraw(
        self, subject_id: str, purposes: Iterable[Purpose] | None = None, *, at: int
    ) -> int:
        """Take consent back, for some purposes or for everything, and return the log's entry.

        It counts at once, also for a person who is not known yet.

        Raises:
            LogError: The log cannot be written; nothing was withdrawn.
        """
        taken = sorted(Purpose if purposes is None else set(purposes))
        event: dict[str, JsonValue] = {
            "type": WITHDRAWN,
            "v": 1,
            "at": at,
            "subject": self.subject_ref(subject_id),
            "purposes": [str(purpose) for purpose in taken],
        }
        with self._log.transaction() as transaction:
            return self._append(transaction, self.subject_ref(subject_id), event)

    def erase(self, subject_id: str, *, at: int) -> int:
        """Destroy what is held about a person, and return the open entry that says so.

        All purposes are denied from now on. Leaves and root hashes stay as they are; the
        person's sealed events can never be opened again.
        """
        subject_ref = self.subject_ref(subject_id)
        self._refresh()
        with self._log.transaction() as transaction:
            index = transaction.append({"type": "subject.erased", "v": 1, "at": at})
            row = self._rows.get(subject_ref)
            if row is not None:
                connection = transaction.connection
                connection.execute("DELETE FROM consent_standing WHERE row_no = ?", (row,))
                # The row number stays taken: packed memberships of old permits count on it.
                connection.execute(
                    "UPDATE consent_subject SET subject_ref = NULL WHERE row_no = ?", (row,)
                )
            connection = transaction.connection
            connection.execute(
                "UPDATE consent_seq SET state_seq = state_seq + 1, narrowed_seq = state_seq + 1"
            )
        self._log.erase_subject(subject_ref)
        return index

    def state(self, subject_id: str) -> dict[Purpose, Standing]:
        """Return where a person stands; purposes they never spoke about are missing."""
        self._refresh()
        row = self._rows.get(self.subject_ref(subject_id))
        if row is None:
            return {}
        standings = ((purpose, self._state.standing(row, purpose)) for purpose in Purpose)
        return {purpose: standing for purpose, standing in standings if standing is not None}

    def rows(self, subject_ids: Sequence[str]) -> NDArray[np.int64]:
        """Return the row number of each person, -1 for an unknown one, shape (n,)."""
        self._refresh()
        find, ref = self._rows.get, self.subject_ref
        return np.fromiter((find(ref(i), -1) for i in subject_ids), np.int64, len(subject_ids))

    def mask(self, subject_ids: Sequence[str], purpose: Purpose, *, at: int) -> NDArray[np.bool_]:
        """Tell for each person whether they may be used for a purpose at a time.

        Unknown, refused, withdrawn, expired, not yet effective, a prerequisite missing, or a
        separate purpose given in a bundled act: no.

        Returns:
            A new mask, shape (n,).
        """
        return self.permitted(self.rows(subject_ids), purpose, at=at)

    def permitted(self, rows: NDArray[np.int64], purpose: Purpose, *, at: int) -> NDArray[np.bool_]:
        """Do the same for row numbers, as `rows` gives them."""
        return self._state.permitted(rows, purpose, profile=self._profile, at=at)

    def earliest_until(self, rows: NDArray[np.int64], purpose: Purpose) -> int:
        """Return when the first of some permitted people expires, epoch milliseconds."""
        return self._state.earliest_until(rows, purpose)

    def verify_replay(self) -> None:
        """Open every sealed event again and raise `LogError` unless it gives the same state.

        Erased people are left out on both sides.
        """
        self._refresh()
        replayed, refs = ConsentState(), dict[str, int]()
        for entry in self._log.entries():
            try:
                event = self._log.opened(entry.index)
            except SealError:
                continue
            if event["type"] in (RECORDED, WITHDRAWN):
                ref = str(event["subject"])
                replayed.apply(refs.setdefault(ref, len(refs)), event)
        for ref in refs.keys() | self._rows.keys():
            for purpose in Purpose:
                stored = self._state.standing(self._rows.get(ref, 2**62), purpose)
                if stored != replayed.standing(refs.get(ref, 2**62), purpose):
                    raise LogError(
                        f"the consent tables of {self._log.origin!r} are not what its log adds "
                        f"up to, first for {purpose}"
                    )

    def _record(
        self, transaction: LogTransaction, choice: ConsentChoice, *, at: int
    ) -> ConsentRecord:
        record_id, ref = secrets.token_hex(16), self.subject_ref(choice.subject_id)
        event: dict[str, JsonValue] = {
            "type": RECORDED,
            "v": 1,
            "at": at,
            "record": record_id,
            "subject": ref,
            "given": [str(purpose) for purpose in sorted(choice.given)],
            "refused": [str(purpose) for purpose in sorted(choice.refused)],
            "notice": {
                "id": choice.notice.id,
                "version": choice.notice.version,
                "language": choice.notice.language,
                "sha256": choice.notice.sha256,
            },
            "channel": choice.channel,
            "profile": str(self._profile),
            "expressed_at": choice.expressed_at,
            "until": choice.until,
            "tier": None if choice.tier is None else str(choice.tier),
            "separate": choice.separate,
        }
        return ConsentRecord(
            record_id=record_id,
            subject_ref=ref,
            given=choice.given,
            refused=choice.refused,
            notice=choice.notice,
            channel=choice.channel,
            profile=self._profile,
            expressed_at=choice.expressed_at,
            effective_at=at,
            until=choice.until,
            tier=choice.tier,
            separate=choice.separate,
            index=self._append(transaction, ref, event),
        )

    def _append(
        self, transaction: LogTransaction, ref: SubjectRef, event: dict[str, JsonValue]
    ) -> int:
        self._refresh()
        connection = transaction.connection
        try:
            index = transaction.append_sealed(ref, event)
            row = self._row(connection, ref)
            changes = self._state.apply(row, event)
            connection.executemany(
                "INSERT OR REPLACE INTO consent_standing VALUES (?, ?, ?, ?, ?, ?, ?)",
                [_format_standing(row, purpose, new) for purpose, new, _ in changes],
            )
            self._seq += 1
            if any(was_given for _, _, was_given in changes):
                self._narrowed = self._seq
            connection.execute(
                "UPDATE consent_seq SET state_seq = ?, narrowed_seq = ?",
                (self._seq, self._narrowed),
            )
        except BaseException:
            self._seq = -1  # what is in memory may be ahead of the tables: read them again
            raise
        return index

    def _row(self, connection: "sqlite3.Connection", ref: SubjectRef) -> int:
        row = self._rows.get(ref)
        if row is None:
            row = self._next_row
            connection.execute("INSERT INTO consent_subject VALUES (?, ?)", (row, ref))
            self._rows[ref] = row
            self._next_row += 1
        return row

    def _refresh(self) -> None:
        """Read the tables again when a rolled-back or foreign transaction left memory behind."""
        with self._log.reading() as connection:
            seq, narrowed = connection.execute(
                "SELECT state_seq, narrowed_seq FROM consent_seq"
            ).fetchone()
            if seq == self._seq:
                return
            subjects = connection.execute("SELECT row_no, subject_ref FROM consent_subject")
            numbered = subjects.fetchall()
            self._rows = {str(ref): row for row, ref in numbered if ref is not None}
            self._next_row = max((row for row, _ in numbered), default=-1) + 1
            self._state = ConsentState()
            for row, purpose, *values in connection.execute("SELECT * FROM consent_standing"):
                self._state.put(row, Purpose(purpose), _parse_standing(values))
            self._seq, self._narrowed = seq, narrowed


def _format_standing(row: int, purpose: Purpose, standing: Standing) -> tuple[int | str, ...]:
    return (
        row,
        str(purpose),
        str(standing.status),
        standing.said_at,
        standing.effective_at,
        standing.until,
        int(standing.separate),
    )


def _parse_standing(values: list[object]) -> Standing:
    match values:
        case [str(status), int(said_at), int(effective_at), int(until), int(separate)]:
            return Standing(Status(status), said_at, effective_at, until, bool(separate))
    raise LogError("a row of the consent tables cannot be read")
