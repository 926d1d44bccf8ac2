"""Take back what a person takes back: record it, queue its notices, start its clocks, at once.

All three are one durable commit, so that no withdrawal is recorded whose recipients are never
told. Whoever takes consent back goes through here and not to the register.
"""

from collections.abc import Callable, Collection, Iterable

from consent import Log, Outbox, Purpose, Register
from consent.fold import SAID_NO
from participant.shared_handles import SharedHandles
from participant.versions import Versions


class Withdrawals:
    """The one door for acts that narrow what a person agreed to."""

    def __init__(
        self,
        log: Log,
        register: Register,
        *,
        outbox: Outbox,
        handles: SharedHandles,
        versions: Versions,
    ) -> None:
        """Take the parts of one node."""
        self._log = log
        self._register = register
        self._outbox = outbox
        self._handles = handles
        self._versions = versions

    def withdraw(
        self, subject_id: str, purposes: Iterable[Purpose] | None = None, *, at: int
    ) -> int:
        """Take consent back, for some purposes or for everything, and return the log's entry.

        Raises:
            ValueError: No purpose at all was named; nothing was withdrawn.
            LogError: The log cannot be written; nothing was withdrawn and nobody is told.
        """
        return self._take(self._register.withdraw, subject_id, purposes, at=at)

    def object(self, subject_id: str, purposes: Iterable[Purpose] | None = None, *, at: int) -> int:
        """Record an objection, as `withdraw` records a withdrawal."""
        return self._take(self._register.set_objection, subject_id, purposes, at=at)

    def restrict(
        self, subject_id: str, purposes: Iterable[Purpose] | None = None, *, at: int
    ) -> int:
        """Record that processing is restricted, as `withdraw` records a withdrawal."""
        return self._take(self._register.set_restriction, subject_id, purposes, at=at)

    def invalidate(
        self, subject_id: str, purposes: Iterable[Purpose], *, reason: str, at: int
    ) -> int:
        """Take a consent out of force that was found to be none, and tell it on."""
        taken = frozenset(purposes)
        with self._log.transaction():
            index = self._register.invalidate(subject_id, taken, reason=reason, at=at)
            self.spread(index, subject_id, taken, at=at)
        return index

    def follow(
        self, subject_id: str, purposes: Iterable[Purpose], *, told_by: str, at: int
    ) -> None:
        """Withdraw what another brand says was withdrawn there, and tell it on, but not back.

        What the person took back or refused here before is not recorded again: two brands that
        tell each other would never come to an end.

        Raises:
            LogError: The log cannot be written; nothing was withdrawn.
        """
        with self._log.transaction():
            known = self._register.state(subject_id)
            new = {p for p in purposes if p not in known or known[p].status not in SAID_NO}
            if new:
                index = self._register.withdraw(subject_id, new, at=at)
                self.spread(index, subject_id, new, at=at, but=told_by)

    def erase(self, subject_id: str, *, at: int) -> int:
        """Destroy what is held about a person, after everybody who got it will be told.

        The first commit takes everything back and queues the notices; the second destroys. A
        crash in between leaves a person who has withdrawn from everything: erase them again.

        Returns:
            The open entry that says so.

        Raises:
            LogError: The log cannot be written; see above for what holds then.
        """
        with self._log.transaction():
            self.withdraw(subject_id, at=at)
            self._handles.forget(self._register.subject_ref(subject_id))
        return self._register.erase(subject_id, at=at)

    def spread(
        self,
        index: int,
        subject_id: str,
        purposes: Collection[Purpose] | None,
        *,
        at: int,
        but: str = "",
    ) -> None:
        """Tell on what an entry of the log took back; for a caller who wrote that entry itself.

        Call it in the transaction that holds the entry.

        Args:
            index: The entry.
            subject_id: Whose it is.
            purposes: What was taken back; None for everything.
            at: Epoch milliseconds.
            but: A recipient that knows already; empty for none.

        Raises:
            LogError: The log cannot be written.
        """
        taken = self._with_dependents(frozenset(Purpose if purposes is None else purposes))
        known = self._handles.of(self._register.subject_ref(subject_id))
        known.pop(but, None)
        self._outbox.enqueue(
            index,
            taken,
            # Who has no name for the person holds nothing about them, and is not told.
            handles={
                name: " ".join(known[name]) if name in known else None
                for name in self._outbox.concerned(taken)
            },
            at=at,
        )
        self._versions.begin_remedies(self._register.rows_of(subject_id), taken, at=at)

    def _take(
        self,
        write: Callable[..., int],
        subject_id: str,
        purposes: Iterable[Purpose] | None,
        *,
        at: int,
    ) -> int:
        taken = None if purposes is None else frozenset(purposes)
        with self._log.transaction():
            index = write(subject_id, taken, at=at)
            self.spread(index, subject_id, taken, at=at)
        return index

    def _with_dependents(self, taken: frozenset[Purpose]) -> frozenset[Purpose]:
        """A purpose has no effect without those it needs: it falls with them."""
        rules = self._register.ladder.rules
        while more := {p for p in rules if rules[p].prerequisites & taken} - taken:
            taken |= more
        return taken
