"""Own what consent events add up to: who stands where for each purpose.

A fold over events and nothing else: no clock, no database. One row per data subject, one
column per purpose, so that a mask over millions of people is a few array operations.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from consent.canonical import JsonValue
from consent.purpose import TERMS, Profile, Purpose, is_separate

RECORDED, WITHDRAWN = "consent.recorded", "consent.withdrawn"


class Status(StrEnum):
    """What a person last said about one purpose."""

    GIVEN = "given"
    REFUSED = "refused"
    WITHDRAWN = "withdrawn"


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a person stands for one purpose.

    Attributes:
        status: What was said last.
        said_at: When the person said it, epoch milliseconds.
        effective_at: When the node committed it.
        until: When it expires; it has no effect at this millisecond any more.
        separate: Whether it was given in an act of its own.
    """

    status: Status
    said_at: int
    effective_at: int
    until: int
    separate: bool


class ConsentState:
    """Standings of all subjects of one node, by row number."""

    def __init__(self) -> None:
        self._status: NDArray[np.int8] = np.zeros((0, len(Purpose)), np.int8)
        self._said: NDArray[np.int64] = np.zeros((0, len(Purpose)), np.int64)
        self._effective: NDArray[np.int64] = np.zeros((0, len(Purpose)), np.int64)
        self._until: NDArray[np.int64] = np.zeros((0, len(Purpose)), np.int64)
        self._separate: NDArray[np.bool_] = np.zeros((0, len(Purpose)), np.bool_)

    def standing(self, row: int, purpose: Purpose) -> Standing | None:
        """Return where a row stands, or None when it never said anything."""
        bit = purpose.bit
        if row >= len(self._status) or self._status[row, bit] == 0:
            return None
        return Standing(
            status=_STATUSES[int(self._status[row, bit]) - 1],
            said_at=int(self._said[row, bit]),
            effective_at=int(self._effective[row, bit]),
            until=int(self._until[row, bit]),
            separate=bool(self._separate[row, bit]),
        )

    def put(self, row: int, purpose: Purpose, standing: Standing) -> None:
        """Set where a row stands."""
        self._grow(row + 1)
        at = row, purpose.bit
        self._status[at] = _STATUSES.index(standing.status) + 1
        self._said[at] = standing.said_at
        self._effective[at] = standing.effective_at
        self._until[at] = standing.until
        self._separate[at] = standing.separate

    def forget(self, row: int) -> None:
        """Set a row back to having never said anything."""
        if row < len(self._status):
            self._status[row] = 0

    def apply(
        self, row: int, event: Mapping[str, JsonValue]
    ) -> list[tuple[Purpose, Standing, bool]]:
        """Fold one consent event in.

        An act that was expressed before the one that counts for a purpose changes nothing
        there, however late it arrives; a withdrawal always counts.

        Returns:
            What changed, as (purpose, new standing, whether the purpose was given before).
        """
        changes = []
        for purpose, standing in _said_in(event):
            old = self.standing(row, purpose)
            new = standing
            if old is not None and new.said_at < old.said_at:
                if new.status is not Status.WITHDRAWN:
                    continue
                new = Standing(Status.WITHDRAWN, old.said_at, new.effective_at, 0, separate=False)
            self.put(row, purpose, new)
            changes.append((purpose, new, old is not None and old.status is Status.GIVEN))
        return changes

    def permitted(
        self, rows: NDArray[np.int64], purpose: Purpose, *, profile: Profile, at: int
    ) -> NDArray[np.bool_]:
        """Tell for each row whether the purpose is permitted at a time.

        Args:
            rows: Row numbers, -1 for an unknown subject, shape (n,).
            purpose: The purpose; its prerequisites are asked as well.
            profile: The law that says which purposes need a separate act.
            at: Epoch milliseconds.

        Returns:
            A new mask, shape (n,).
        """
        permitted = (rows >= 0) & (rows < len(self._status))
        known, bit = rows[permitted], purpose.bit
        given = self._status[known, bit] == _GIVEN
        given &= (self._effective[known, bit] <= at) & (at < self._until[known, bit])
        if is_separate(purpose, profile=profile):
            given &= self._separate[known, bit]
        permitted[permitted] = given
        for needed in TERMS[purpose].prerequisites:
            permitted &= self.permitted(rows, needed, profile=profile, at=at)
        return permitted

    def earliest_until(self, rows: NDArray[np.int64], purpose: Purpose) -> int:
        """Return when the first of these rows expires for a purpose or a prerequisite."""
        needed = [self.earliest_until(rows, other) for other in TERMS[purpose].prerequisites]
        return min([int(self._until[rows, purpose.bit].min()), *needed])

    def _grow(self, rows: int) -> None:
        if rows <= len(self._status):
            return
        more = ((0, max(rows, 2 * len(self._status), 64) - len(self._status)), (0, 0))
        self._status = np.pad(self._status, more)
        self._said = np.pad(self._said, more)
        self._effective = np.pad(self._effective, more)
        self._until = np.pad(self._until, more)
        self._separate = np.pad(self._separate, more)


_STATUSES = list(Status)
_GIVEN = _STATUSES.index(Status.GIVEN) + 1


def _said_in(event: Mapping[str, JsonValue]) -> Iterator[tuple[Purpose, Standing]]:
    match event:
        case {
            "type": "consent.recorded",
            "at": int(at),
            "expressed_at": int(said_at),
            "until": int(until),
            "given": list(given),
            "refused": list(refused),
            "separate": bool(separate),
        }:
            for name in given:
                yield Purpose(str(name)), Standing(Status.GIVEN, said_at, at, until, separate)
            for name in refused:
                yield Purpose(str(name)), Standing(Status.REFUSED, said_at, at, 0, separate=False)
        case {"type": "consent.withdrawn", "at": int(at), "purposes": list(purposes)}:
            for name in purposes:
                yield Purpose(str(name)), Standing(Status.WITHDRAWN, at, at, 0, separate=False)
        case _:
            raise ValueError("a consent event must be a record or a withdrawal with its fields")
