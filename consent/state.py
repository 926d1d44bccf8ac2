"""Own who may be used for what, for all people of a node at once: one mask column.

One row per person, one column per purpose. From the standings and flags of a row follow 16 bits
that say for which purposes it may be used now, and until when they hold. They are worked out
again only for rows that an event or an expiry touched, so that a question about ten million
people is one pass over two bytes each. A question about an earlier time is answered exactly as
well, from the standings and more slowly.
"""

import threading
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from consent.canonical import JsonValue
from consent.event import is_count
from consent.fold import (
    AGREED,
    NEVER,
    TOLD,
    Change,
    Person,
    Standing,
    Status,
    fold,
    merge,
    parse_terms,
)
from consent.ladder import AgeBand, Basis, Ladder, Purpose

__all__ = ["ConsentState", "Person", "Standing", "Status"]

_PURPOSES = tuple(Purpose)
_AGES = tuple(AgeBand)
# Codes of statuses in the columns and in the database; they never change.
_STORED = (
    None,
    Status.REQUESTED,
    Status.REFUSED,
    Status.GIVEN,
    Status.CONFIRMED,
    Status.WITHDRAWN,
    Status.INVALIDATED,
    Status.UNKNOWN,
)
_CODES = {status: code for code, status in enumerate(_STORED)}
_CHUNK = 1 << 16
_DAY_MS = 86_400_000


class ConsentState:
    """Standings of all people of one node under one profile, by row number."""

    def __init__(self, ladder: Ladder) -> None:
        """Start with nobody.

        Args:
            ladder: The profile that says what a standing permits.
        """
        self.ladder = ladder
        self._rules = _Rules(ladder)
        self._lock = threading.RLock()
        self._size = 0
        self._status = np.zeros((len(_PURPOSES), 0), np.int8)
        self._said = np.zeros((len(_PURPOSES), 0), np.int64)
        self._effective = np.zeros((len(_PURPOSES), 0), np.int64)
        self._until = np.zeros((len(_PURPOSES), 0), np.int64)
        self._separate = np.zeros((len(_PURPOSES), 0), np.bool_)
        self._terms = np.zeros((len(_PURPOSES), 0), np.int32)
        self._asked = np.zeros((len(_PURPOSES), 0), np.int64)
        self._objected = np.zeros(0, np.uint16)
        self._restricted = np.zeros(0, np.uint16)
        self._age = np.zeros(0, np.int8)
        self._guardian = np.zeros(0, np.bool_)
        # The column everything is about, and until when each of its rows holds.
        self._mask = np.zeros(0, np.uint16)
        self._holds = np.zeros(0, np.int64)
        self._lines: list[tuple[str, ...]] = [()]
        self._line_ids: dict[tuple[str, ...], int] = {(): 0}
        self._accepted = np.zeros((len(_PURPOSES), 1), np.bool_)
        self._oldest: dict[str, int] = {}
        # The mask holds at every time in [_now, _next_due), once no row is dirty.
        self._now = self._latest = self._next_due = 0
        self._horizon = 0
        self._soon = np.zeros(0, np.int64)
        self._dirty: set[int] = set()
        self._all_dirty = False

    @property
    def size(self) -> int:
        """Return the number of rows."""
        return self._size

    @property
    def oldest(self) -> Mapping[str, int]:
        """Return the oldest version of each notice that a grant may rest on."""
        return dict(self._oldest)

    @property
    def lines(self) -> list[tuple[str, ...]]:
        """Return what grants rest on, by the number that a cell holds."""
        return self._lines

    def standing(self, row: int, purpose: Purpose) -> Standing | None:
        """Return where a row stands, or None when nothing ever happened."""
        bit = purpose.bit
        if not 0 <= row < self._size:
            return None
        status = _STORED[self._status.item(bit, row)]
        if status is None:
            return None
        return Standing(
            status,
            self._said.item(bit, row),
            self._effective.item(bit, row),
            self._until.item(bit, row),
            self._separate.item(bit, row),
            self._lines[self._terms.item(bit, row)],
            self._asked.item(bit, row),
        )

    def person(self, row: int) -> Person:
        """Return the flags of a row."""
        if not 0 <= row < self._size:
            return Person()
        age = self._age.item(row)
        return Person(
            objected=self._objected.item(row),
            restricted=self._restricted.item(row),
            age=_AGES[age - 1] if age else None,
            guardian=self._guardian.item(row),
        )

    def put(self, row: int, purpose: Purpose, standing: Standing) -> None:
        """Set where a row stands."""
        with self._lock:
            self._grow(row + 1)
            at = purpose.bit, row
            self._status[at] = _CODES[standing.status]
            self._said[at] = standing.said_at
            self._effective[at] = standing.effective_at
            self._until[at] = standing.until
            self._separate[at] = standing.separate
            self._terms[at] = self.intern(standing.terms)
            self._asked[at] = standing.asked_at
            self._latest = max(self._latest, standing.effective_at)
            self._dirty.add(row)

    def put_person(self, row: int, person: Person) -> None:
        """Set the flags of a row."""
        with self._lock:
            self._grow(row + 1)
            self._objected[row] = person.objected
            self._restricted[row] = person.restricted
            self._age[row] = 0 if person.age is None else _AGES.index(person.age) + 1
            self._guardian[row] = person.guardian
            self._dirty.add(row)

    def forget(self, row: int) -> None:
        """Set a row back to nothing ever having happened."""
        with self._lock:
            if row < self._size:
                self._status[:, row] = 0
                self.put_person(row, Person())

    def apply(
        self, row: int, event: Mapping[str, JsonValue], *, other: int | None = None
    ) -> Change:
        """Fold one event about a person in.

        Args:
            row: Row of the person.
            event: What happened.
            other: Row of the identity that the event merges into `row`; it is forgotten.

        Returns:
            What changed for `row`.

        Raises:
            ValueError: The event cannot be folded; nothing changed.
        """
        with self._lock:
            if other is None:
                change = fold(event, lambda purpose: self.standing(row, purpose), self.person(row))
            else:
                change = merge(
                    lambda purpose: self.standing(row, purpose),
                    lambda purpose: self.standing(other, purpose),
                    (self.person(row), self.person(other)),
                    at=_time(event),
                )
                self.forget(other)
            for purpose, standing in change.standings.items():
                self.put(row, purpose, standing)
            if change.person is not None:
                self.put_person(row, change.person)
            return change

    def raise_notice(self, notice_id: str, *, oldest: int) -> None:
        """Accept only grants that rest on at least this version of a notice from now on."""
        with self._lock:
            self._oldest[notice_id] = max(oldest, self._oldest.get(notice_id, 0))
            self._accepted = np.stack([self._accepted_for(lines) for lines in self._lines], axis=1)
            self._all_dirty = True

    def intern(self, lines: tuple[str, ...]) -> int:
        """Return the number under which cells hold what a grant rests on."""
        known = self._line_ids.get(lines)
        if known is None:
            known = self._line_ids[lines] = len(self._lines)
            self._lines.append(lines)
            column = self._accepted_for(lines)[:, None]
            self._accepted = np.concatenate([self._accepted, column], axis=1)
        return known

    def load(self, cells: NDArray[np.int64]) -> None:
        """Set many standings at once, as `cell` writes them, shape (n, 9)."""
        with self._lock:
            if not len(cells):
                return
            rows, bits = cells[:, 0], cells[:, 1]
            self._grow(int(rows.max()) + 1)
            columns: tuple[NDArray[np.generic], ...] = (
                self._status,
                self._said,
                self._effective,
                self._until,
                self._separate,
                self._terms,
                self._asked,
            )
            for column, values in zip(columns, cells.T[2:], strict=True):
                column[bits, rows] = values
            self._latest = max(self._latest, int(cells[:, 4].max()))
            self._dirty.update(rows.tolist())

    def cell(self, row: int, purpose: Purpose, standing: Standing) -> tuple[int, ...]:
        """Return a standing as nine numbers, as the database holds it."""
        return (
            row,
            purpose.bit,
            _CODES[standing.status],
            standing.said_at,
            standing.effective_at,
            standing.until,
            int(standing.separate),
            self.intern(standing.terms),
            standing.asked_at,
        )

    def permitted(self, rows: NDArray[np.int64], purpose: Purpose, *, at: int) -> NDArray[np.bool_]:
        """Tell for each row whether the purpose is permitted at a time.

        Permitted is what was agreed to, or told and never objected to where the profile knows
        a legitimate interest; unexpired; on a notice and terms that are still accepted; in an
        act of its own where that is needed; with its prerequisites; not objected to, not
        restricted; for a minor only with a verified guardian; where the profile allows it.

        Args:
            rows: Row numbers, -1 for an unknown person, shape (n,).
            purpose: The purpose.
            at: Epoch milliseconds.

        Returns:
            A new mask, shape (n,).
        """
        bit = np.uint16(1 << purpose.bit)
        # A negative number becomes a huge one, so that one comparison finds both kinds.
        known = rows.astype(np.int64, copy=False).view(np.uint64) < self._size
        if not self._holds_at(at):
            mask = np.zeros(len(rows), np.bool_)
            mask[known] = self.bits(rows[known], at=at) & bit != 0
            return mask
        if not self._size:
            return known
        bits = self._mask.take(rows, mode="clip")
        bits &= bit
        permitted: NDArray[np.bool_] = bits != 0
        permitted &= known
        return permitted

    def aligned(self, purpose: Purpose, *, at: int) -> NDArray[np.bool_]:
        """Do the same for all rows in their order, shape (size,)."""
        bit = np.uint16(1 << purpose.bit)
        holds = self._holds_at(at)
        bits = self._mask[: self._size] if holds else self.bits(np.arange(self._size), at=at)
        permitted: NDArray[np.bool_] = (bits & bit) != 0
        return permitted

    def is_permitted(self, row: int, purpose: Purpose, *, at: int) -> bool:
        """Tell it for one row, in a few microseconds."""
        if self._dirty or self._all_dirty or not self._now <= at < self._next_due:
            return bool(self.permitted(np.array([row]), purpose, at=at)[0])
        return 0 <= row < self._size and bool(self._mask.item(row) >> purpose.bit & 1)

    def bits(self, rows: NDArray[np.int64], *, at: int) -> NDArray[np.uint16]:
        """Work out from the standings for which purposes each row may be used at a time."""
        with self._lock:
            parts = [
                self._work_out(rows[start : start + _CHUNK], at=at)[0]
                for start in range(0, len(rows), _CHUNK)
            ]
        return np.concatenate(parts) if parts else np.zeros(0, np.uint16)

    def status(self, row: int, purpose: Purpose, *, at: int) -> Status:
        """Return what a person would be told: a flag before an expiry before what they said."""
        person, standing = self.person(row), self.standing(row, purpose)
        if person.restricted >> purpose.bit & 1:
            return Status.RESTRICTED
        if person.objected >> purpose.bit & 1:
            return Status.OBJECTED
        if standing is None:
            return Status.UNKNOWN
        if standing.status in TOLD and standing.until <= at:
            return Status.EXPIRED
        return standing.status

    def earliest_until(self, rows: NDArray[np.int64], purpose: Purpose) -> int:
        """Return when the first of these rows expires for a purpose or a prerequisite."""
        prerequisites = self.ladder.rules[purpose].prerequisites
        needed = [self.earliest_until(rows, other) for other in prerequisites]
        return min([int(self._until[purpose.bit, rows].min()), *needed])

    def verify_column(self) -> None:
        """Raise `ValueError` unless the mask column is what the standings add up to."""
        with self._lock:
            self._holds_at(self._now)
            if (self.bits(np.arange(self._size), at=self._now) != self._mask[: self._size]).any():
                raise ValueError("the mask column is not what the standings add up to")

    def _holds_at(self, at: int) -> bool:
        """Bring the mask to a time and tell whether it holds there; it never goes back."""
        if not (self._dirty or self._all_dirty) and self._now <= at < self._next_due:
            return True
        with self._lock:
            self._settle(max(at, self._now, self._latest))
            return at >= self._now

    def _settle(self, at: int) -> None:
        if self._all_dirty:
            rows = np.arange(self._size)
        else:
            rows = np.fromiter(self._dirty, np.int64, len(self._dirty))
        due = self._due(at)
        self._now = at
        self._dirty.clear()
        self._all_dirty = False
        for touched in (due, rows):
            for start in range(0, len(touched), _CHUNK):
                chunk = touched[start : start + _CHUNK]
                self._mask[chunk], self._holds[chunk] = self._work_out(chunk, at=at)
        if at >= self._horizon or len(rows) > _CHUNK:
            self._horizon = min(at + _DAY_MS, NEVER)
            self._soon = np.flatnonzero(self._holds[: self._size] < self._horizon)
        else:
            soon = np.concatenate([self._soon, due, rows])
            self._soon = np.unique(soon[self._holds[soon] < self._horizon])
        first = int(self._holds[self._soon].min()) if len(self._soon) else self._horizon
        self._next_due = min(first, self._horizon)

    def _due(self, at: int) -> NDArray[np.int64]:
        """Return the rows of which something expired since the mask was brought to its time."""
        if at < self._next_due:
            return np.zeros(0, np.int64)
        if at >= self._horizon:
            return np.flatnonzero(self._holds[: self._size] <= at)
        return self._soon[self._holds[self._soon] <= at]

    def _work_out(
        self, rows: NDArray[np.int64], *, at: int
    ) -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
        """Return the permitted bits of rows at a time, and when the first of them expires."""
        rules = self._rules
        until = self._until[:, rows]  # (purposes, rows)
        counts = rules.counts[rules.column, self._status[:, rows]]
        counts &= self._effective[:, rows] <= at
        counts &= at < until
        counts &= self._separate[:, rows] | rules.bundled
        counts &= self._accepted[rules.column, self._terms[:, rows]]
        bits = np.zeros(len(rows), np.uint16)
        for bit in range(len(_PURPOSES)):
            bits |= counts[bit].astype(np.uint16) << np.uint16(bit)
        bits &= rules.allowed & ~(self._objected[rows] | self._restricted[rows])
        bits[rules.minor[self._age[rows]] & ~self._guardian[rows]] = 0
        for purpose, needed in rules.prerequisites:
            bits[bits & needed != needed] &= ~purpose
        counts &= (bits >> rules.column.astype(np.uint16) & np.uint16(1)).astype(np.bool_)
        return bits, np.where(counts, until, NEVER).min(axis=0)

    def _accepted_for(self, lines: tuple[str, ...]) -> NDArray[np.bool_]:
        """Tell for each purpose whether a grant may rest on these lines, shape (purposes,)."""
        accepted = np.full(len(_PURPOSES), bool(lines))
        for line in lines:
            digest, version, notice_id = parse_terms(line)
            current = version >= self._oldest.get(notice_id, 0)
            accepted &= [current and digest in terms for terms in self._rules.terms]
        return accepted

    def _grow(self, rows: int) -> None:
        if rows > len(self._mask):
            capacity = max(rows, 2 * len(self._mask), 64)
            for name in (
                *("_status", "_said", "_effective", "_until", "_separate", "_terms", "_asked"),
                *("_objected", "_restricted", "_age", "_guardian", "_mask", "_holds"),
            ):
                old: NDArray[np.generic] = getattr(self, name)
                # Untouched pages of zeros cost no memory until somebody writes there.
                new = np.zeros((*old.shape[:-1], capacity), old.dtype)
                new[..., : self._size] = old[..., : self._size]
                setattr(self, name, new)
            self._holds[self._size :] = NEVER
        self._size = max(self._size, rows)


def _time(event: Mapping[str, JsonValue]) -> int:
    at = event.get("at")
    if not (isinstance(at, int) and is_count(at)):
        raise ValueError("the time of a merge must be epoch milliseconds")
    return at


class _Rules:
    """A profile as arrays over purposes."""

    def __init__(self, ladder: Ladder) -> None:
        self.column = np.arange(len(_PURPOSES))[:, None]
        self.counts = np.zeros((len(_PURPOSES), len(_STORED)), np.bool_)
        self.bundled = np.zeros((len(_PURPOSES), 1), np.bool_)
        self.allowed = np.uint16(0)
        self.prerequisites: list[tuple[np.uint16, np.uint16]] = []
        self.terms: list[frozenset[str]] = []
        for bit, purpose in enumerate(_PURPOSES):
            rules = ladder.rules[purpose]
            informed = rules.basis is Basis.LEGITIMATE_INTEREST
            for status in TOLD if informed else AGREED:
                self.counts[bit, _CODES[status]] = True
            self.bundled[bit] = not rules.separate
            self.allowed |= np.uint16(rules.allowed << bit)
            self.terms.append(rules.accepted_terms | {rules.terms})
            if rules.prerequisites:
                needed = sum(1 << other.bit for other in rules.prerequisites)
                self.prerequisites.append((np.uint16(1 << bit), np.uint16(needed)))
        # Lower bits first: a prerequisite is decided before what needs it.
        self.prerequisites.sort()
        self.minor = np.array([False, *(ladder.is_minor(age) for age in _AGES)])
