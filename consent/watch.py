"""Answer only from consent state that is fresh: compare it with the tables, or deny.

It works in every process of a node, the one that writes the log and those that only read.
Times are passed in; one that goes back is answered as if it had stood still, and refused when
it goes back further than clocks do.
"""

import numpy as np
from numpy.typing import NDArray

from consent.event import CLOCK_TOLERANCE_MS, LogError
from consent.ladder import Purpose
from consent.reader import RegisterReader

POLL_MS = 250


class Refused(Exception):  # noqa: N818 - an answer, named for the answer
    """Data was not opened.

    Attributes:
        reason: Why, in words; never holds anything about a person.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Watch:
    """Consent state that one process keeps fresh while it works."""

    def __init__(self, register: RegisterReader, *, max_staleness_ms: int) -> None:
        """Watch a register.

        Args:
            register: The state, as this process reads it.
            max_staleness_ms: Age of the state, in milliseconds, from which all is denied when
                it cannot be compared with the tables; at least 1.
        """
        if max_staleness_ms < 1:
            raise ValueError(f"max_staleness_ms must be at least 1, got {max_staleness_ms}")
        self._register = register
        self._max_staleness_ms = max_staleness_ms
        self._poll_at = 0

    @property
    def refreshed_at(self) -> int | None:
        """Return the latest time at which the state was compared with the tables."""
        return self._register.refreshed_at

    def permitted(self, rows: NDArray[np.int64], purpose: Purpose, *, at: int) -> NDArray[np.bool_]:
        """Tell for each row whether it may be used now; the tables are asked each time.

        Raises:
            Refused: The state is too old and cannot be renewed, or the clock went back.
        """
        return self._register.permitted(rows, purpose, at=self._refresh(at))

    def is_permitted(self, row: int, purpose: Purpose, *, at: int) -> bool:
        """Tell it for one row; the tables are asked when the last time was 250 ms ago.

        Raises:
            Refused: The state is too old and cannot be renewed, or the clock went back.
        """
        if not self._poll_at - POLL_MS <= at < self._poll_at:
            at = self._refresh(at)
            limit = (self._register.refreshed_at or 0) + self._max_staleness_ms
            self._poll_at = min(at + POLL_MS, limit)
        return self._register.is_permitted(row, purpose, at=at)

    def _refresh(self, at: int) -> int:
        """Renew the state, and return the time to judge by."""
        last = self._register.refreshed_at
        if last is not None and at < last - CLOCK_TOLERANCE_MS:
            raise Refused("the clock went back by more than five minutes, which is a refusal")
        try:
            self._register.refresh(at=at)
        except LogError as error:
            if last is None or at - last >= self._max_staleness_ms:
                raise Refused(
                    f"the consent state is older than {self._max_staleness_ms} ms and cannot be "
                    "renewed, which is a refusal"
                ) from error
        return at if last is None else max(at, last)
