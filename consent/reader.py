"""Answer who may be used for what, in any process of the node, and never write.

The tables belong to the `register`; what they hold is kept in memory and only what changed is
read again. Subject ids are turned into keyed pseudonyms at the door. Times are passed in.
"""

import contextlib
import hmac
import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from consent.event import LogError
from consent.fold import SAID_NO, Person, Standing, Status
from consent.ladder import AgeBand, Ladder, Profile, Purpose
from consent.purpose import ladder_of
from consent.sealed import SubjectRef
from consent.state import ConsentState
from consent.store import Connection, first_line, open_readonly

_DAY_MS = 86_400_000
_MANY = 20_000
_CHUNK = 1 << 16
EVERYBODY = -1
"""Row number of a change that is about no single person."""


class Database(Protocol):
    """Where the tables are."""

    @property
    def origin(self) -> str:
        """Return the name of the node's log."""
        ...

    def reading(self) -> contextlib.AbstractContextManager[Connection]:
        """Give the database to a reader."""
        ...

    def snapshot(self) -> contextlib.AbstractContextManager[Connection]:
        """Do the same, and let all questions see one state."""
        ...


class ReadOnlyDatabase:
    """The database of another process's log, which this process cannot change."""

    def __init__(self, folder: Path, *, store: str | None = None) -> None:
        """Open the database.

        Raises:
            LogError: There is none, or it cannot be read.
            ValueError: `store` is not a URL that can be used.
        """
        self.origin = str(folder)
        self._mutex = threading.RLock()
        self._closed = False
        self._store = open_readonly(folder, store)

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """Give the database to a reader."""
        with self._mutex:
            if self._closed:
                raise LogError(f"the consent state in {self.origin} is closed")
            try:
                yield self._store.connection
            except self._store.errors as error:
                raise LogError(
                    f"the consent state in {self.origin} could not be read ({first_line(error)})"
                ) from error

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """Do the same, and let all questions see one state."""
        with self.reading() as connection, self._store.snapshot():
            yield connection

    def close(self) -> None:
        """Close the database."""
        with self._mutex:
            self._closed = True
            self._store.close()


class _Asked(NamedTuple):
    """The people who were asked for last, their pseudonyms, and where they stood in a state."""

    subject_ids: Sequence[str]
    refs: list[SubjectRef]
    state: tuple[int, int]
    rows: NDArray[np.int64]


class RegisterReader:
    """The consent state of one node, to be asked."""

    _seq: int
    _token: int
    _last_asked: _Asked

    def __init__(
        self, database: Database, *, pseudonym_key: bytes, profile: Profile | Ladder
    ) -> None:
        """Read the tables.

        Args:
            database: Where they are.
            pseudonym_key: At least 32 secret bytes; with another key nobody is known.
            profile: The law the node follows, or a profile file that was read.

        Raises:
            LogError: They are not there or cannot be read.
        """
        if len(pseudonym_key) < 32:
            raise ValueError(f"a pseudonym key must have 32 bytes, got {len(pseudonym_key)}")
        self._database = database
        self._key = pseudonym_key
        self._ladder = profile if isinstance(profile, Ladder) else ladder_of(profile)
        self._refreshed_at: int | None = None
        self._clear()
        self._refresh()

    @classmethod
    def open_folder(
        cls,
        folder: Path,
        *,
        pseudonym_key: bytes,
        profile: Profile | Ladder,
        store: str | None = None,
    ) -> "RegisterReader":
        """Read the tables beside a log that another process writes; the log is not locked."""
        database = ReadOnlyDatabase(folder, store=store)
        try:
            return RegisterReader(database, pseudonym_key=pseudonym_key, profile=profile)
        except BaseException:
            database.close()
            raise

    def close(self) -> None:
        """Close a database of its own; one that was lent stays open."""
        if isinstance(self._database, ReadOnlyDatabase):
            self._database.close()

    @property
    def profile(self) -> Profile:
        """Return the law the node follows."""
        return self._ladder.profile

    @property
    def ladder(self) -> Ladder:
        """Return the profile with all it says."""
        return self._ladder

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

    @property
    def refreshed_at(self) -> int | None:
        """Return the latest time at which memory was compared with the tables."""
        return self._refreshed_at

    def refresh(self, *, at: int) -> None:
        """Read what changed since the last time, and remember that this was done at `at`.

        Raises:
            LogError: The tables cannot be read; memory is as it was, or empty.
        """
        self._refresh()
        self._refreshed_at = max(at, self._refreshed_at or 0)

    def subject_ref(self, subject_id: str) -> SubjectRef:
        """Return the pseudonym of a person: HMAC-SHA256 of the id under the node's key.

        Wherever a person is named by the brand's own id, a pseudonym does as well, and is taken
        as it is: who showed a handle is known by nothing else.
        """
        if isinstance(subject_id, SubjectRef):
            return subject_id
        if not isinstance(subject_id, str) or not subject_id:
            raise ValueError("a subject id must be a non-empty string")
        message = b"subject\0" + subject_id.encode()
        return SubjectRef(hmac.digest(self._key, message, "sha256").hex())

    def state(self, subject_id: str) -> dict[Purpose, Standing]:
        """Return where a person stands; purposes of which nothing is known are missing."""
        row = self._row_of(subject_id)
        standings = ((purpose, self._state.standing(row, purpose)) for purpose in Purpose)
        return {purpose: standing for purpose, standing in standings if standing is not None}

    def person(self, subject_id: str) -> Person:
        """Return the objections, restrictions, age band and guardian of a person."""
        return self._state.person(self._row_of(subject_id))

    def status(self, subject_id: str, purpose: Purpose, *, at: int) -> Status:
        """Return where a person stands at a time, expiry and flags included."""
        return self._state.status(self._row_of(subject_id), purpose, at=at)

    def may_ask(self, subject_id: str, purpose: Purpose, *, at: int) -> bool:
        """Tell whether a person may be asked for a purpose, without nagging.

        Not while an objection stands, and not for the profile's days after a refusal, a
        withdrawal, or a question that came after one.
        """
        return at >= self._not_before(self._row_of(subject_id), purpose)

    def rows(self, subject_ids: Sequence[str]) -> NDArray[np.int64]:
        """Return the row number of each person, -1 for an unknown one, shape (n,)."""
        self._refresh()
        # A table asks for the same people before every round; pseudonyms never change.
        asked, state = self._last_asked, (self._seq, self._token)
        if asked.subject_ids is not subject_ids:
            refs = [self.subject_ref(subject_id) for subject_id in subject_ids]
        elif asked.state == state:
            return asked.rows.copy()
        else:
            refs = asked.refs
        find = self._rows.get
        found = np.fromiter((find(ref, -1) for ref in refs), np.int64, len(refs))
        if isinstance(subject_ids, tuple):
            self._last_asked = _Asked(subject_ids, refs, state, found)
        return found.copy()

    def rows_of(self, subject_id: str) -> list[int]:
        """Return every row that was ever this person's: their own and those merged into it."""
        row = self._row_of(subject_id)
        if row < 0:
            return []
        with self._database.reading() as connection:
            merged = connection.execute(
                "SELECT row_no FROM consent_subject WHERE merged_into = ? ORDER BY row_no", (row,)
            )
            return [row, *(int(other) for (other,) in merged)]

    def mask(self, subject_ids: Sequence[str], purpose: Purpose, *, at: int) -> NDArray[np.bool_]:
        """Tell for each person whether they may be used for a purpose at a time.

        Returns:
            A new mask, shape (n,); `ConsentState.permitted` says what permitted means.
        """
        return self.permitted(self.rows(subject_ids), purpose, at=at)

    def permitted(self, rows: NDArray[np.int64], purpose: Purpose, *, at: int) -> NDArray[np.bool_]:
        """Do the same for row numbers, as `rows` gives them, from memory."""
        return self._state.permitted(rows, purpose, at=at)

    def is_permitted(self, row: int, purpose: Purpose, *, at: int) -> bool:
        """Do the same for one row, from memory."""
        return self._state.is_permitted(row, purpose, at=at)

    def earliest_until(self, rows: NDArray[np.int64], purpose: Purpose) -> int:
        """Return when the first of some permitted people expires, epoch milliseconds."""
        return self._state.earliest_until(rows, purpose)

    def _row_of(self, subject_id: str) -> int:
        self._refresh()
        return self._rows.get(self.subject_ref(subject_id), -1)

    def _not_before(self, row: int, purpose: Purpose) -> int:
        if self._state.person(row).objected >> purpose.bit & 1:
            return 2**62
        standing = self._state.standing(row, purpose)
        if standing is None or standing.status not in SAID_NO:
            return 0
        last = max(standing.said_at, standing.asked_at)
        return last + self._ladder.no_asking_days * _DAY_MS

    def _clear(self) -> None:
        self._state = ConsentState(self._ladder)
        self._rows: dict[str, int] = {}
        self._last_asked = _Asked((), [], (-1, 0), np.zeros(0, np.int64))
        self._next_row, self._seq, self._token, self._narrowed = 0, -1, 0, 0

    def _refresh(self) -> None:
        """Compare memory with the tables, and read again what is different."""
        with self._database.reading() as connection:
            head = connection.execute("SELECT state_seq, token FROM consent_seq").fetchone()
            if head != (self._seq, self._token):
                self._catch_up()

    def _catch_up(self) -> None:
        try:
            with self._database.snapshot() as connection:
                seq, narrowed, token = connection.execute(
                    "SELECT state_seq, narrowed_seq, token FROM consent_seq"
                ).fetchone()
                if not self._follow(connection, seq):
                    self._clear()
                    self._read_everything(connection)
                self._seq, self._narrowed, self._token = seq, narrowed, token
        except BaseException:
            self._clear()
            raise

    def _follow(self, connection: Connection, seq: int) -> bool:
        """Read the people that changed; False when memory is no earlier state of the tables."""
        mine = connection.execute(
            "SELECT 1 FROM consent_change WHERE seq = ? AND token = ?", (self._seq, self._token)
        ).fetchone()
        if mine is None or seq - self._seq > _MANY:
            return False
        changes = connection.execute(
            "SELECT row_no, MAX(renamed) FROM consent_change WHERE seq > ? GROUP BY row_no",
            (self._seq,),
        ).fetchall()
        renamed = {row for row, flag in changes if flag}
        if renamed:
            gone = [ref for ref, row in self._rows.items() if row in renamed]
            for ref in gone:
                del self._rows[ref]
        self._read_terms(connection)
        for row, _ in changes:
            if row != EVERYBODY:
                self._state.forget(row)
                self._read_people(connection, row, row + 1)
        return True

    def _read_everything(self, connection: Connection) -> None:
        self._read_terms(connection)
        (last,) = connection.execute(
            "SELECT COALESCE(MAX(row_no), -1) FROM consent_subject"
        ).fetchone()
        for start in range(0, last + 1, _CHUNK):
            self._read_people(connection, start, min(start + _CHUNK, last + 1))

    def _read_terms(self, connection: Connection) -> None:
        known = len(self._state.lines)
        for number, text in connection.execute(
            "SELECT id, lines FROM consent_terms WHERE id >= ? ORDER BY id", (known,)
        ):
            if self._state.intern(tuple(json.loads(text))) != number:
                raise LogError(_UNREADABLE)
        for notice_id, oldest in connection.execute("SELECT notice_id, oldest FROM consent_notice"):
            if self._state.oldest.get(notice_id) != oldest:
                self._state.raise_notice(notice_id, oldest=oldest)

    def _read_people(self, connection: Connection, start: int, end: int) -> None:
        people, refs, cells = (connection.execute(question, (start, end)) for question in _PEOPLE)
        try:
            for row, objected, restricted, age, guardian in people:
                self._next_row = max(self._next_row, row + 1)
                if objected or restricted or age is not None or guardian:
                    person = Person(
                        objected=objected,
                        restricted=restricted,
                        age=None if age is None else AgeBand(age),
                        guardian=bool(guardian),
                    )
                    self._state.put_person(row, person)
            self._rows.update(refs)
            chunk = cells.fetchall()
            if chunk:
                self._state.load(np.array(chunk, np.int64))
        except (ValueError, TypeError, IndexError, OverflowError) as error:
            raise LogError(_UNREADABLE) from error


_PEOPLE = (
    (
        "SELECT row_no, objected, restricted, age, guardian FROM consent_subject"
        " WHERE row_no >= ? AND row_no < ?"
    ),
    "SELECT subject_ref, row_no FROM consent_ref WHERE row_no >= ? AND row_no < ?",
    "SELECT * FROM consent_standing WHERE row_no >= ? AND row_no < ?",
)
_UNREADABLE = "a row of the consent tables cannot be read"
