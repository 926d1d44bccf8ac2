"""Remember who agreed to what, refused, objected, or took it back.

Every act is a sealed entry of the log; the tables here are derived from those entries and
change in the same durable commit. Times are passed in and never read from a clock. What the
tables answer is in `reader`, what an event does to a person in `fold`.
"""

import contextlib
import secrets
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from consent.act import ConsentChoice, ConsentRecord, Notice
from consent.canonical import JsonValue
from consent.changes import Changes
from consent.circumstances import NOTHING_TOLD, Circumstances, format_circumstances
from consent.event import LogError
from consent.fold import (
    AGE,
    CONFIRMED,
    GUARDIAN,
    INVALIDATED,
    MERGED,
    OBJECTED,
    OBJECTION_CLEARED,
    RECORDED,
    RENEWED,
    REQUESTED,
    RESTRICTED,
    RESTRICTION_CLEARED,
    WITHDRAWN,
    Change,
    Standing,
    Status,
)
from consent.ladder import AgeBand, Ladder, Profile, Purpose, Tier
from consent.log import Log, LogTransaction
from consent.reader import EVERYBODY, RegisterReader
from consent.sealed import SealError, SubjectRef
from consent.state import ConsentState
from consent.topic import Topic

__all__ = [
    "AskedTooSoon",
    "ConsentChoice",
    "ConsentRecord",
    "Notice",
    "Register",
    "Standing",
    "Status",
]

NOTICE_PUBLISHED = "notice.published"

_PUT_NOTICE = (
    "INSERT INTO consent_notice VALUES (?, ?)"
    " ON CONFLICT (notice_id) DO UPDATE SET oldest = excluded.oldest"
)


class AskedTooSoon(Exception):  # noqa: N818 - an answer, named for the answer
    """A person said no and must not be asked again yet; nothing was recorded.

    Attributes:
        purpose: What they would have been asked for.
    """

    def __init__(self, purpose: Purpose, *, days: int) -> None:
        super().__init__(
            f"a person who said no to {purpose} must not be asked again for {days} days; "
            "nothing was recorded"
        )
        self.purpose = purpose


class Register(RegisterReader):
    """The consent register of one node, to be asked and to be written."""

    def __init__(self, log: Log, *, pseudonym_key: bytes, profile: Profile | Ladder) -> None:
        """Read the register's tables in the log's database.

        Args:
            log: The node's log, open for writing.
            pseudonym_key: At least 32 secret bytes; with another key nobody is known.
            profile: The law the node follows, or a profile file that was read.

        Raises:
            LogError: The log is closed or cannot be read.
        """
        self._log = log
        self._notices = Topic(log, (NOTICE_PUBLISHED,))
        super().__init__(log, pseudonym_key=pseudonym_key, profile=profile)
        self._terms = {purpose: rules.terms for purpose, rules in self._ladder.rules.items()}

    @staticmethod
    def open_readonly(
        folder: Path,
        *,
        pseudonym_key: bytes,
        profile: Profile | Ladder,
        store: str | None = None,
    ) -> RegisterReader:
        """Open the register of a log that another process writes, to ask and never to write.

        Args:
            folder: The folder of the log.
            pseudonym_key: As the writer has it.
            profile: As the writer has it.
            store: As `Log.open` has it.

        Raises:
            LogError: The folder holds no log with a register, or it cannot be read.
        """
        return RegisterReader.open_folder(
            folder, pseudonym_key=pseudonym_key, profile=profile, store=store
        )

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
        age: AgeBand | None = None,
        circumstances: Circumstances = NOTHING_TOLD,
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
            age=age,
            circumstances=circumstances,
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
        with self._log.transaction() as transaction, self._changing(transaction) as changes:
            transaction.expect(self.subject_ref(choice.subject_id) for choice in chosen)
            return [
                self._record(transaction, changes, choice, RECORDED, at=at) for choice in chosen
            ]

    def renew(self, choice: ConsentChoice, *, at: int) -> ConsentRecord:
        """Record that a person agreed again, on the notice and the terms of today.

        Raises:
            ValueError: Something was not agreed to before, or the act is of the future; nothing
                was recorded.
            LogError: The log cannot be written; nothing was recorded.
        """
        known = self.state(choice.subject_id)
        agreed = {Status.GIVEN, Status.CONFIRMED}
        new = [p for p in choice.given if p not in known or known[p].status not in agreed]
        if new or not choice.given or choice.refused:
            raise ValueError("a renewal must be about purposes that were agreed to, and no others")
        if choice.expressed_at > at:
            raise ValueError("an act must not be recorded before it was expressed")
        with self._log.transaction() as transaction, self._changing(transaction) as changes:
            return self._record(transaction, changes, choice, RENEWED, at=at)

    def request(
        self,
        subject_id: str,
        purposes: Iterable[Purpose],
        *,
        notice: Notice,
        channel: str,
        at: int,
    ) -> int:
        """Record that a person was asked and shown a notice, and return the log's entry.

        It is no consent. A purpose that rests on a legitimate interest has effect from here on,
        because the person was told.

        Raises:
            AskedTooSoon: They said no lately; nothing was recorded, and they must not be asked.
            LogError: The log cannot be written; nothing was recorded.
        """
        asked = _some(purposes)
        with self._log.transaction() as transaction:
            for purpose in asked:
                if not self.may_ask(subject_id, purpose, at=at):
                    raise AskedTooSoon(purpose, days=self._ladder.no_asking_days)
            return self._tell(
                transaction,
                subject_id,
                REQUESTED,
                at=at,
                more={
                    "purposes": _names(asked),
                    "terms": {str(p): self._terms[p] for p in asked},
                    "notice": _format_notice(notice),
                    "channel": channel,
                },
            )

    def confirm(self, subject_id: str, purposes: Iterable[Purpose], *, at: int) -> int:
        """Record that a person confirmed what they gave, and return the log's entry."""
        return self._about(subject_id, CONFIRMED, purposes, at=at)

    def withdraw(
        self, subject_id: str, purposes: Iterable[Purpose] | None = None, *, at: int
    ) -> int:
        """Take consent back, for some purposes or for everything, and return the log's entry.

        It counts at once, also for a person who is not known yet.

        Raises:
            LogError: The log cannot be written; nothing was withdrawn.
        """
        return self._about(subject_id, WITHDRAWN, purposes, at=at)

    def invalidate(
        self, subject_id: str, purposes: Iterable[Purpose], *, reason: str, at: int
    ) -> int:
        """Take a consent out of force that the brand or an authority found to be none."""
        with self._log.transaction() as transaction:
            more: dict[str, JsonValue] = {"purposes": _names(_some(purposes)), "reason": reason}
            return self._tell(transaction, subject_id, INVALIDATED, at=at, more=more)

    def set_objection(
        self, subject_id: str, purposes: Iterable[Purpose] | None = None, *, at: int
    ) -> int:
        """Record an objection; it wins over every consent until it is cleared."""
        return self._about(subject_id, OBJECTED, purposes, at=at)

    def clear_objection(
        self, subject_id: str, purposes: Iterable[Purpose] | None = None, *, at: int
    ) -> int:
        """Record that a person takes an objection back; what they agreed to counts again."""
        return self._about(subject_id, OBJECTION_CLEARED, purposes, at=at)

    def set_restriction(
        self, subject_id: str, purposes: Iterable[Purpose] | None = None, *, at: int
    ) -> int:
        """Record that processing is restricted; it wins over every consent until cleared."""
        return self._about(subject_id, RESTRICTED, purposes, at=at)

    def clear_restriction(
        self, subject_id: str, purposes: Iterable[Purpose] | None = None, *, at: int
    ) -> int:
        """Record that a restriction ended."""
        return self._about(subject_id, RESTRICTION_CLEARED, purposes, at=at)

    def record_age(self, subject_id: str, age: AgeBand, *, at: int) -> int:
        """Record how old a person is; a minor needs a verified guardian for everything."""
        with self._log.transaction() as transaction:
            return self._tell(transaction, subject_id, AGE, at=at, more={"age": str(age)})

    def record_guardian(self, subject_id: str, *, reference: str, at: int) -> int:
        """Record that the guardian of a minor was verified.

        Args:
            subject_id: The minor.
            reference: Where the verification is filed; never a name.
            at: Epoch milliseconds.
        """
        with self._log.transaction() as transaction:
            more: dict[str, JsonValue] = {"reference": reference}
            return self._tell(transaction, subject_id, GUARDIAN, at=at, more=more)

    def merge(self, subject_id: str, other_id: str, *, at: int) -> int:
        """Record that two ids are one person, for good, and return the log's entry.

        What both agreed to stays agreed, any objection or restriction of one is of both, and
        from now on either id means the same person.

        Raises:
            ValueError: They are one person already; nothing was recorded.
            LogError: The log cannot be written; nothing was merged.
        """
        ref, other_ref = self.subject_ref(subject_id), self.subject_ref(other_id)
        with self._log.transaction() as transaction, self._changing(transaction) as changes:
            row, other = self._row(changes, ref), self._row(changes, other_ref)
            if row == other:
                raise ValueError("the two ids mean one person already; nothing was merged")
            event: dict[str, JsonValue] = {
                "type": MERGED,
                "v": 1,
                "at": at,
                "subject": ref,
                "other": other_ref,
            }
            index = transaction.append_sealed(ref, event)
            known = len(self._state.lines)
            change = self._state.apply(row, event, other=other)
            connection = transaction.connection
            changes.write(transaction)
            connection.execute("DELETE FROM consent_standing WHERE row_no = ?", (other,))
            connection.execute(
                "UPDATE consent_subject SET merged_into = ? WHERE merged_into = ? OR row_no = ?",
                (row, other, other),
            )
            connection.execute("UPDATE consent_ref SET row_no = ? WHERE row_no = ?", (row, other))
            for name in [name for name, number in self._rows.items() if number == other]:
                self._rows[name] = row
            self._keep(changes, row, change, known_lines=known)
            self._advance(changes, other, narrows=True, renamed=True)
            self._advance(changes, row, narrows=True, renamed=True)
        return index

    def publish_notice(self, notice: Notice, *, oldest_accepted: int, at: int) -> int:
        """Record a notice, and from which version on a consent may rest on it.

        Consents that rest on an older version have no effect until they are renewed.

        Raises:
            ValueError: Versions that were out of force would be in force again, or the notice
                itself would not be accepted; nothing was recorded.
            LogError: The log cannot be written; nothing was recorded.
        """
        with self._log.transaction() as transaction, self._changing(transaction) as changes:
            oldest = self._state.oldest.get(notice.id, 1)
            if not oldest <= oldest_accepted <= notice.version:
                raise ValueError(
                    f"the oldest accepted version must be in [{oldest}, {notice.version}], got "
                    f"{oldest_accepted}; nothing was recorded"
                )
            index = self._notices.append(
                {
                    "type": NOTICE_PUBLISHED,
                    "v": 1,
                    "at": at,
                    "notice": _format_notice(notice),
                    "oldest_accepted": oldest_accepted,
                }
            )
            self._state.raise_notice(notice.id, oldest=oldest_accepted)
            transaction.connection.execute(_PUT_NOTICE, (notice.id, oldest_accepted))
            self._advance(changes, EVERYBODY, narrows=oldest_accepted > oldest)
        return index

    def erase(self, subject_id: str, *, at: int) -> int:
        """Destroy what is held about a person, and return the open entry that says so.

        All purposes are denied from now on, for every id that was merged into theirs. Leaves
        and root hashes stay as they are; the person's sealed events can never be opened again.
        """
        refs = [self.subject_ref(subject_id)]
        with self._log.transaction() as transaction, self._changing(transaction) as changes:
            index = transaction.append({"type": "subject.erased", "v": 1, "at": at})
            row = self._rows.get(refs[0])
            if row is None:
                self._advance(changes, EVERYBODY, narrows=True)
            else:
                connection = transaction.connection
                refs = [SubjectRef(ref) for ref, known in self._rows.items() if known == row]
                connection.execute("DELETE FROM consent_standing WHERE row_no = ?", (row,))
                connection.execute("DELETE FROM consent_ref WHERE row_no = ?", (row,))
                # The row number stays taken: packed memberships of old permits count on it.
                connection.execute(
                    "UPDATE consent_subject SET objected = 0, restricted = 0, age = NULL,"
                    " guardian = 0 WHERE row_no = ?",
                    (row,),
                )
                for ref in refs:
                    del self._rows[ref]
                self._state.forget(row)
                self._advance(changes, row, narrows=True, renamed=True)
        for ref in refs:
            self._log.erase_subject(ref)
        return index

    def verify_replay(self) -> None:
        """Open every sealed event again and raise `LogError` unless it gives the same state.

        Erased people are left out on both sides.
        """
        self._refresh()
        replayed, refs, count = ConsentState(self._ladder), dict[str, int](), 0
        for entry in self._log.entries():
            try:
                event = self._log.opened(entry.index)
            except SealError:
                continue
            match event:
                case {"type": "notice.published", "notice": {"id": str(notice_id)}, **rest}:
                    replayed.raise_notice(notice_id, oldest=int(str(rest["oldest_accepted"])))
                case {"type": kind, "subject": str(ref)} if kind in _FOLDED:
                    count += ref not in refs
                    row, other = refs.setdefault(ref, count), None
                    if kind == MERGED:
                        other_ref = str(event["other"])
                        count += other_ref not in refs
                        other = refs.setdefault(other_ref, count)
                        refs = {known: row if at == other else at for known, at in refs.items()}
                    replayed.apply(row, event, other=other)
        self._compare(replayed, refs)

    def _compare(self, replayed: ConsentState, refs: Mapping[str, int]) -> None:
        sentence = (
            f"the consent tables of {self._log.origin!r} are not what its log adds up to, first for"
        )
        if replayed.oldest != self._state.oldest:
            raise LogError(f"{sentence} the accepted notices")
        for ref in refs.keys() | self._rows.keys():
            stored, again = self._rows.get(ref, 2**62), refs.get(ref, 2**62)
            for purpose in Purpose:
                if self._state.standing(stored, purpose) != replayed.standing(again, purpose):
                    raise LogError(f"{sentence} {purpose}")
            if self._state.person(stored) != replayed.person(again):
                raise LogError(f"{sentence} the flags of a data subject")
        self._state.verify_column()

    def _record(
        self,
        transaction: LogTransaction,
        changes: Changes,
        choice: ConsentChoice,
        kind: str,
        *,
        at: int,
    ) -> ConsentRecord:
        record_id, ref = secrets.token_hex(16), self.subject_ref(choice.subject_id)
        terms = {purpose: self._terms[purpose] for purpose in sorted(choice.given)}
        more: dict[str, JsonValue] = {
            "record": record_id,
            "given": _names(choice.given),
            "refused": _names(choice.refused),
            "terms": {str(purpose): digest for purpose, digest in terms.items()},
            "notice": _format_notice(choice.notice),
            "channel": choice.channel,
            "profile": str(self.profile),
            "expressed_at": choice.expressed_at,
            "until": choice.until,
            "tier": None if choice.tier is None else str(choice.tier),
            "separate": choice.separate,
            "age": None if choice.age is None else str(choice.age),
            "policy": self._ladder.digest,
        }
        if choice.circumstances != NOTHING_TOLD:
            more["circumstances"] = format_circumstances(choice.circumstances)
        return ConsentRecord(
            record_id=record_id,
            subject_ref=ref,
            given=choice.given,
            refused=choice.refused,
            notice=choice.notice,
            channel=choice.channel,
            profile=self.profile,
            expressed_at=choice.expressed_at,
            effective_at=at,
            until=choice.until,
            tier=choice.tier,
            separate=choice.separate,
            terms=terms,
            age=choice.age,
            policy=self._ladder.digest,
            circumstances=choice.circumstances,
            index=self._fold_in(transaction, changes, ref, kind, at=at, more=more),
        )

    def _about(
        self, subject_id: str, kind: str, purposes: Iterable[Purpose] | None, *, at: int
    ) -> int:
        names = _names(Purpose if purposes is None else _some(purposes))
        with self._log.transaction() as transaction:
            return self._tell(transaction, subject_id, kind, at=at, more={"purposes": names})

    def _tell(
        self,
        transaction: LogTransaction,
        subject_id: str,
        kind: str,
        *,
        at: int,
        more: dict[str, JsonValue],
    ) -> int:
        """Append one event about one person and fold it in."""
        ref = self.subject_ref(subject_id)
        with self._changing(transaction) as changes:
            return self._fold_in(transaction, changes, ref, kind, at=at, more=more)

    def _fold_in(
        self,
        transaction: LogTransaction,
        changes: Changes,
        ref: SubjectRef,
        kind: str,
        *,
        at: int,
        more: dict[str, JsonValue],
    ) -> int:
        event: dict[str, JsonValue] = {"type": kind, "v": 1, "at": at, "subject": ref, **more}
        index = transaction.append_sealed(ref, event)
        row = self._row(changes, ref)
        known = len(self._state.lines)
        change = self._state.apply(row, event)
        self._keep(changes, row, change, known_lines=known)
        self._advance(changes, row, narrows=change.narrows)
        return index

    @contextlib.contextmanager
    def _changing(self, transaction: LogTransaction) -> Iterator[Changes]:
        """Give what gathers the changes of some acts; they are written at the end."""
        self._refresh()
        changes = Changes()
        try:
            yield changes
            changes.write(transaction)
        except BaseException:
            # What is in memory may be ahead of the tables: read them again.
            self._clear()
            raise

    def _keep(self, changes: Changes, row: int, change: Change, *, known_lines: int) -> None:
        cells = [
            self._state.cell(row, purpose, standing)
            for purpose, standing in change.standings.items()
        ]
        changes.put_cells(cells)
        changes.add_terms(dict(enumerate(self._state.lines[known_lines:], known_lines)))
        if change.person is not None:
            changes.put_person(row, change.person)

    def _advance(self, changes: Changes, row: int, *, narrows: bool, renamed: bool = False) -> None:
        self._seq += 1
        self._token = secrets.randbits(62)
        if narrows:
            self._narrowed = self._seq
        changes.add_act(self._seq, self._token, row, narrowed=self._narrowed, renamed=renamed)

    def _row(self, changes: Changes, ref: SubjectRef) -> int:
        row = self._rows.get(ref)
        if row is None:
            row = self._next_row
            changes.add_ref(ref, row)
            self._rows[ref] = row
            self._next_row += 1
        return row


_FOLDED = frozenset(
    {
        *(RECORDED, RENEWED, WITHDRAWN, REQUESTED, CONFIRMED, INVALIDATED, AGE, GUARDIAN),
        *(OBJECTED, OBJECTION_CLEARED, RESTRICTED, RESTRICTION_CLEARED, MERGED),
    }
)


def _some(purposes: Iterable[Purpose]) -> frozenset[Purpose]:
    some = frozenset(purposes)
    if not some:
        raise ValueError("an act must be about at least one purpose")
    return some


def _names(purposes: Iterable[Purpose]) -> list[JsonValue]:
    return [str(purpose) for purpose in sorted(purposes)]


def _format_notice(notice: Notice) -> dict[str, JsonValue]:
    return {
        "id": notice.id,
        "version": notice.version,
        "language": notice.language,
        "sha256": notice.sha256,
    }
