"""Charge every release before it is made, so that a crash cannot make it free.

One SQLite file at the node holds an append-only chain of events. A reservation
is durable before `reserve` returns, and it counts from then on: a process that
dies afterwards has lost budget, never privacy. There is no cancelling. The order
that keeps the promise is reserve, draw noise, `commit` the reply, send; a retry
sends the stored reply again, because fresh noise would be a second release.

The file is trusted: whoever can edit it can spend the budget twice. The chain
finds accidents and half-careful edits, and `head`, kept elsewhere, finds an older
copy that was put back.
"""

import hashlib
import os
import secrets
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from privacy.account import Account
from privacy.budget import Accounting, Budget, Remaining, Spent
from privacy.composition import Release
from privacy.history import (
    EventKind,
    History,
    LedgerError,
    LedgerEvent,
    ReleaseKey,
    Replayed,
    Reservation,
    next_head,
)

if TYPE_CHECKING:
    import sqlite3
else:
    from pysqlite3 import dbapi2 as sqlite3

__all__ = ["Ledger", "LedgerError", "LedgerEvent", "ReleaseKey", "Replayed", "Reservation"]

_APPLICATION: Final = 0x54504C31
_BUSY_TIMEOUT_S: Final = 30.0
_SCHEMA: Final = (
    f"PRAGMA application_id = {_APPLICATION}",
    "CREATE TABLE event (seq INTEGER PRIMARY KEY, body TEXT NOT NULL, head TEXT NOT NULL)",
    "CREATE TABLE reply (digest TEXT PRIMARY KEY, bytes BLOB NOT NULL)",
    *(
        f"CREATE TRIGGER {table}_{change} BEFORE {change} ON {table} "
        "BEGIN SELECT RAISE(ABORT, 'a ledger is append-only'); END"
        for table in ("event", "reply")
        for change in ("update", "delete")
    ),
)


class Ledger:
    """The releases of one node, charged to budgets by purpose.

    Any number of processes may open one file, each after it was forked; threads may
    share one object. Each operation is one transaction.
    Every method raises `LedgerError` when the file cannot be read or written, and
    has then recorded nothing.
    """

    @classmethod
    def create(
        cls,
        path: Path,
        budgets: Mapping[str, Budget],
        *,
        accounting: Mapping[str, Accounting] | None = None,
    ) -> Self:
        """Make a new ledger with these budgets and open it.

        Args:
            path: Where nothing is yet.
            budgets: Most that each purpose may spend.
            accounting: How the releases of a purpose are counted, for good; those that are not
                named pay for Gaussian sums only.

        Raises:
            LedgerError: Something is at `path` already, there is no budget, or the
                file cannot be written; nothing is left behind.
        """
        if not budgets:
            raise LedgerError("a ledger needs at least one budget; none was created")
        draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        try:
            _write_new(draft, budgets, accounting or {})
            draft.chmod(0o600)
            # A link appears at once and complete, and never replaces a file.
            os.link(draft, path)
            _sync_folder(path.parent)
        except FileExistsError as error:
            raise LedgerError(f"something is at {path} already; it was left as it is") from error
        except (sqlite3.Error, OSError) as error:
            raise LedgerError(f"no ledger could be created at {path}: {error}") from error
        finally:
            for suffix in ("", "-wal", "-shm", "-journal"):
                draft.with_name(draft.name + suffix).unlink(missing_ok=True)
        return cls.open(path, budgets, accounting=accounting)

    @classmethod
    def open(
        cls,
        path: Path,
        budgets: Mapping[str, Budget],
        *,
        accounting: Mapping[str, Accounting] | None = None,
    ) -> Self:
        """Open an existing ledger and check its whole chain.

        Args:
            path: The file.
            budgets: What the configuration says. A new purpose is recorded; another
                budget for a known purpose is refused, because raising a budget is
                an act of policy (`renew`) and not of opening a file.
            accounting: As for `create`.

        Raises:
            LedgerError: The file is missing, damaged or not a ledger, or a budget
                or its accounting differs from the recorded one.
        """
        ledger = cls._opened(path, writable=True)
        try:
            ledger._adopt(budgets, accounting or {})
        except LedgerError:
            ledger.close()
            raise
        return ledger

    @classmethod
    def open_readonly(cls, path: Path) -> Self:
        """Open a ledger to look at it, and check its whole chain; writing raises `LedgerError`.

        Raises:
            LedgerError: The file is missing, damaged or not a ledger.
        """
        ledger = cls._opened(path, writable=False)
        try:
            # Nothing to adopt: what is recorded counts, and nothing is added.
            ledger._adopt({}, {})
        except LedgerError:
            ledger.close()
            raise
        return ledger

    @classmethod
    def _opened(cls, path: Path, *, writable: bool) -> Self:
        if not path.is_file():
            raise LedgerError(f"there is no ledger at {path}")
        ledger = cls.__new__(cls)
        ledger._path = path
        ledger._lock = threading.RLock()
        ledger._history = History()
        with ledger._guarded():
            ledger._connection = _connect(path, mode="rw" if writable else "ro")
        return ledger

    _path: Path
    _lock: threading.RLock
    _history: History
    _connection: "sqlite3.Connection"

    def _adopt(self, budgets: Mapping[str, Budget], accounting: Mapping[str, Accounting]) -> None:
        with self._guarded():
            found = self._connection.execute("PRAGMA application_id").fetchone()[0]
        if found != _APPLICATION:
            raise LedgerError(f"the file {self._path} is not a ledger")
        unused = sorted(accounting.keys() - budgets.keys())
        if unused:
            raise LedgerError(f"an accounting was given for {unused[0]}, which has no budget")
        wanted = {
            purpose: (budget, accounting.get(purpose, Accounting.GAUSSIAN))
            for purpose, budget in budgets.items()
        }
        with self._reading() as history:
            new = [purpose for purpose in wanted if purpose not in history.accounts]
            for purpose, (budget, counted) in wanted.items():
                if purpose not in new:
                    _verify_recorded(history.account(purpose), budget, counted, purpose=purpose)
        if new:
            with self._writing() as history:
                for purpose in new:
                    if purpose not in history.accounts:
                        self._append(_budget_event(purpose, *wanted[purpose]))

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        with self._lock, self._guarded():
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def reserve(
        self, key: ReleaseKey, *, purpose: str, release: Release, request_digest: bytes
    ) -> Reservation:
        """Charge one release, durably, before any of its noise is drawn.

        Args:
            key: Names the release.
            purpose: Whose budget pays.
            release: What it costs.
            request_digest: SHA-256 of the request that it will answer.

        Returns:
            The reservation; the earlier one, charged once, if exactly the same was
            reserved before.

        Raises:
            BudgetExhausted: The total would be past the budget; nothing is written.
            Replayed: The key was reserved for another request.
            LedgerError: The purpose has no budget, or the file failed.
        """
        if len(request_digest) != 32:
            raise ValueError(f"request_digest must have 32 bytes, got {len(request_digest)}")
        reservation = Reservation(
            key=key, purpose=purpose, release=release, request_digest=request_digest
        )
        with self._writing() as history:
            if not history.same(reservation):
                history.admit(purpose, release)
                self._append(
                    LedgerEvent(
                        kind=EventKind.RESERVED,
                        purpose=purpose,
                        key=key,
                        release=release,
                        digest=request_digest.hex(),
                    )
                )
        return reservation

    def settle_down(self, key: ReleaseKey, release: Release) -> None:
        """Lower what a reservation costs, before its reply is committed.

        Raises:
            LedgerError: Nothing is reserved, it was released, or the cost is larger.
        """
        with self._writing() as history:
            history.admit_settling(key, release)
            purpose = history.reservation(key).purpose
            self._append(
                LedgerEvent(kind=EventKind.SETTLED, purpose=purpose, key=key, release=release)
            )

    def renew(self, purpose: str, budget: Budget, *, act: bytes) -> None:
        """Begin a new window of a purpose's budget; nothing ever does this by itself.

        Releases of earlier windows count no more against the budget; they still happened, and
        `spent_ever` says what they cost together with the later ones.

        Args:
            purpose: Whose budget begins anew.
            budget: The most that the new window may spend.
            act: SHA-256 of the signed act of policy that renews it; 32 bytes. The same act
                renews once.

        Raises:
            Replayed: The act renewed another budget before.
            LedgerError: The purpose has no budget, or the file failed.
        """
        if len(act) != 32:
            raise ValueError(f"act must have 32 bytes, got {len(act)}")
        event = LedgerEvent(
            kind=EventKind.RENEWED, purpose=purpose, budget=budget, digest=act.hex()
        )
        with self._writing() as history:
            history.account(purpose)
            earlier = history.renewals.get(event.digest)
            if earlier is not None and earlier != event:
                raise Replayed("this act renewed another budget before; nothing was renewed")
            if earlier is None:
                self._append(event)

    def commit(self, key: ReleaseKey, reply: bytes) -> None:
        """Store the exact bytes of the reply, durably, before they are sent.

        Raises:
            Replayed: Other bytes were committed for this key.
            LedgerError: Nothing is reserved for it, or the file failed.
        """
        digest = hashlib.sha256(reply).hexdigest()
        with self._writing() as history:
            purpose = history.reservation(key).purpose
            earlier = history.replies.get(key)
            if earlier not in (None, digest):
                raise Replayed(f"{key} was answered with other bytes; nothing was released")
            if earlier is None:
                self._connection.execute(
                    "INSERT OR IGNORE INTO reply VALUES (?, ?)", (digest, reply)
                )
                self._append(
                    LedgerEvent(kind=EventKind.RELEASED, purpose=purpose, key=key, digest=digest)
                )

    def reply(self, key: ReleaseKey) -> bytes | None:
        """The bytes committed for a key, to send again; None if there are none yet."""
        with self._reading() as history:
            digest = history.replies.get(key)
            if digest is None:
                return None
            row = self._connection.execute(
                "SELECT bytes FROM reply WHERE digest = ?", (digest,)
            ).fetchone()
        if row is None or hashlib.sha256(row[0]).hexdigest() != digest:
            raise LedgerError(f"the stored reply for {key} is damaged; nothing was released")
        return bytes(row[0])

    def request_digest(self, key: ReleaseKey) -> bytes:
        """SHA-256 of the request that a reservation answers.

        Raises:
            LedgerError: Nothing is reserved for the key.
        """
        with self._reading() as history:
            return history.reservation(key).request_digest

    def spent(self, purpose: str) -> Spent:
        """What everything reserved or released for a purpose has cost in its present window."""
        with self._reading() as history:
            return history.account(purpose).spent()

    def spent_ever(self, purpose: str) -> Spent:
        """What all windows of a purpose have cost together."""
        with self._reading() as history:
            return history.spent_ever(purpose)

    def remaining(self, purpose: str) -> Remaining:
        """What the budget of a purpose still pays for."""
        with self._reading() as history:
            return history.account(purpose).remaining()

    def affordable(self, purpose: str, release: Release, *, most: int = 10_000) -> int:
        """How many more releases like this one a purpose's budget pays for, up to `most`.

        Raises:
            ValueError: The budget does not pay for releases of this kind.
        """
        with self._reading() as history:
            return history.account(purpose).affordable(release, most=most)

    def verify_budgets(self, budgets: Mapping[str, Budget]) -> None:
        """Raise `LedgerError` where a recorded budget is not the one that is given."""
        with self._reading() as history:
            for purpose, budget in budgets.items():
                account = history.accounts.get(purpose)
                if account is not None:
                    _verify_recorded(account, budget, account.accounting, purpose=purpose)

    def budgets(self) -> dict[str, Budget]:
        """The present budgets by purpose."""
        with self._reading() as history:
            return {purpose: account.budget for purpose, account in history.accounts.items()}

    def history(self) -> list[LedgerEvent]:
        """All events in their order."""
        with self._reading() as history:
            return list(history.events)

    @property
    def head(self) -> str:
        """Hex hash over all events, for the audit log to hold."""
        with self._reading() as history:
            return history.head

    def contains_head(self, head: str) -> bool:
        """Whether this ledger once had that head; an older copy put back had not."""
        with self._reading() as history:
            return head in history.heads

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise LedgerError(
                f"the ledger {self._path} cannot be used: {error}; nothing may be released"
            ) from error

    @contextmanager
    def _reading(self) -> Iterator[History]:
        with self._lock, self._guarded():
            self._catch_up()
            yield self._history

    @contextmanager
    def _writing(self) -> Iterator[History]:
        """One transaction that holds the write lock; any exception undoes it."""
        with self._lock, self._guarded():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                self._catch_up()
                yield self._history
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
            # What was just written is remembered only now that it is durable.
            self._catch_up()

    def _catch_up(self) -> None:
        """Take in the events that this process has not seen yet."""
        seen = len(self._history.events)
        rows = self._connection.execute(
            "SELECT seq, body, head FROM event WHERE seq >= ? ORDER BY seq", (max(seen, 1),)
        ).fetchall()
        if seen:
            if not rows or rows[0][2] != self._history.head:
                raise LedgerError(f"the ledger {self._path} lost events while it was open")
            rows = rows[1:]
        for number, (seq, body, head) in enumerate(rows, start=seen + 1):
            if seq != number:
                raise LedgerError(f"the ledger {self._path} has no event {number}")
            self._history.append(body, head)
        if not self._history.events:
            raise LedgerError(f"the ledger {self._path} has no events")

    def _append(self, event: LedgerEvent) -> None:
        _insert(self._connection, event)


def _insert(connection: "sqlite3.Connection", event: LedgerEvent) -> None:
    last = connection.execute("SELECT seq, head FROM event ORDER BY seq DESC LIMIT 1").fetchone()
    seq, head = last or (0, History().head)
    body = event.format()
    connection.execute("INSERT INTO event VALUES (?, ?, ?)", (seq + 1, body, next_head(head, body)))


def _budget_event(purpose: str, budget: Budget, accounting: Accounting) -> LedgerEvent:
    return LedgerEvent(kind=EventKind.BUDGET, purpose=purpose, budget=budget, accounting=accounting)


def _verify_recorded(
    account: Account, budget: Budget, accounting: Accounting, *, purpose: str
) -> None:
    recorded = account.budget
    if recorded != budget:
        raise LedgerError(
            f"the budget of purpose {purpose} is recorded as epsilon {recorded.epsilon:g} and "
            f"delta {recorded.delta:g}, not {budget.epsilon:g} and {budget.delta:g}; the ledger "
            "was not opened"
        )
    if account.accounting is not accounting:
        raise LedgerError(
            f"the accounting of purpose {purpose} is recorded as {account.accounting}, not "
            f"{accounting}; the ledger was not opened"
        )


def _connect(path: Path, *, mode: str = "rw") -> "sqlite3.Connection":
    # No mode creates a file: a mistyped path is not an empty ledger.
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        timeout=_BUSY_TIMEOUT_S,
        isolation_level=None,
        check_same_thread=False,
    )
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def _write_new(
    draft: Path, budgets: Mapping[str, Budget], accounting: Mapping[str, Accounting]
) -> None:
    draft.touch(mode=0o600, exist_ok=False)
    connection = _connect(draft)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("BEGIN IMMEDIATE")
        for statement in _SCHEMA:
            connection.execute(statement)
        for purpose, budget in budgets.items():
            counted = accounting.get(purpose, Accounting.GAUSSIAN)
            _insert(connection, _budget_event(purpose, budget, counted))
        connection.execute("COMMIT")
    finally:
        connection.close()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
