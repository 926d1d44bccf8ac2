"""Share durable commits among threads: who commits, who waits, and what a failure takes back.

Whoever comes while a transaction is open joins its group, and the last one commits for all.
Single entries go further: one caller leads and appends for everybody who waits. Nobody is told
that an entry is there before its commit has returned. What an entry is, is not known here.
"""

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from consent.durable import Anchor, Head
from consent.entries import LogTransaction, read_head
from consent.event import Event, LogError
from consent.merkle import Frontier
from consent.sealed import SubjectKeys, SubjectRef
from consent.store import Connection, Store, first_line

if TYPE_CHECKING:
    import sqlite3
else:
    from pysqlite3 import dbapi2 as sqlite3

_MOST_MEMBERS = 1024
_LONGEST_GROUP_S = 0.02
_GATHERING_S = 0.002
_LONGEST_SLEEP_S = 0.1

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Group:
    """Transactions of several threads that become durable together.

    The last one that comes commits for all: nobody waits for a group that nobody joins. How
    long it has been open is the one thing here that is read from a clock.
    """

    frontier: Frontier
    latest: int
    members: int = 0
    begun_s: float = field(default_factory=time.monotonic)
    done: threading.Event = field(default_factory=threading.Event)
    error: str | None = None


@dataclass(slots=True, eq=False)
class _Request:
    """One entry that waits for a leader, and afterwards what became of it."""

    subject_ref: SubjectRef | None
    event: Event
    is_done: bool = False
    index: int = -1
    error: Exception | None = None
    follower: "_Request | None" = None
    _sleep: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._sleep.acquire()

    def append_to(self, transaction: LogTransaction) -> int:
        """Add the entry, sealed when it is about a person."""
        if self.subject_ref is None:
            return transaction.append(self.event)
        return transaction.append_sealed(self.subject_ref, self.event)

    def wait(self) -> None:
        """Sleep until somebody wakes this request, or has done so since it last slept.

        One that should have passed the waking on may have been interrupted, so nobody sleeps
        for long without looking.
        """
        self._sleep.acquire(timeout=_LONGEST_SLEEP_S)

    def wake(self) -> None:
        """Wake the request, now or when it next goes to sleep."""
        # A lock is several times cheaper than an Event; two wakers at once count as one.
        with contextlib.suppress(RuntimeError):
            self._sleep.release()


class Writer:
    """The only writer of one log: its database, its keys, its anchor and the durable head.

    Attributes:
        store: The database.
        keys: Keys of data subjects.
    """

    def __init__(
        self,
        store: Store,
        keys: SubjectKeys,
        anchor: Anchor,
        *,
        origin: str,
        on_close: Callable[[], None],
    ) -> None:
        """Take over what is open; `on_close` is called once, after it was closed."""
        self.store = store
        self.keys = keys
        # The keys are in SQLite whatever the log is in.
        self._faults: tuple[type[Exception], ...] = (*store.errors, sqlite3.Error, OSError)
        self._anchor = anchor
        self._origin = origin
        self._on_close = on_close
        self._mutex = threading.RLock()
        self._door = threading.Lock()
        self._arriving = self._depth = self._holder = 0
        self._leading = threading.Lock()
        self._requests: deque[_Request] = deque()
        self._crowd = 1
        self._active: LogTransaction | None = None
        self._group: _Group | None = None
        self._closed = False
        self._frontier = Frontier()
        self._latest = 0

    @property
    def frontier(self) -> Frontier:
        """Return the tree over all durable entries."""
        return self._frontier

    @property
    def latest(self) -> int:
        """Return the latest time of any durable entry, epoch milliseconds."""
        return self._latest

    @property
    def connection(self) -> Connection:
        """Return the database with all that the open transaction has gathered."""
        return self.store.connection if self._active is None else self._active.connection

    def close(self) -> None:
        """Commit what is open, and close everything; a second time does nothing."""
        with self.held():
            if not self._closed:
                self.settle()
            if not self._closed:
                self._closed = True
                self.store.close()
                self.keys.close()
                self._on_close()

    def check_open(self) -> None:
        """Raise `LogError` after `close`."""
        if self._closed:
            raise LogError(f"the log {self._origin!r} is closed")

    def check_no_transaction(self, refusal: str) -> None:
        """Raise `LogError` inside a transaction of this thread; the log must be held."""
        if self._active is not None:
            raise LogError(
                f"{refusal} inside an open transaction, half of which would be committed; "
                "nothing was done"
            )

    def load_head(self) -> None:
        """Read tree and latest time from the database.

        Raises:
            LogError: Something is missing there.
        """
        self._frontier, self._latest = read_head(self.store.connection, origin=self._origin)

    def save_anchor(self) -> None:
        """Write the durable head beside the database; when that fails, the log is closed.

        Raises:
            LogError: It could not be written.
        """
        try:
            self._anchor.save(Head(self._frontier.size, self._frontier.root()))
        except OSError as error:
            self.close()
            raise LogError(
                f"entry {self._frontier.size - 1} is durable but the anchor could not be written; "
                "the log was closed"
            ) from error

    @contextlib.contextmanager
    def storage(self, sentence: str) -> Iterator[None]:
        """Turn whatever the disk or the database says into one sentence."""
        try:
            yield
        except self._faults as error:
            raise LogError(f"{sentence} ({first_line(error)})") from error

    @contextlib.contextmanager
    def closing_when_lost(self) -> Iterator[None]:
        """Close the log when it turns out that its database went away; the log must be held."""
        try:
            yield
        except BaseException:
            if self.store.is_lost and not self._closed:
                if self._group is not None:
                    self._abandon(self._group, LogError(self._unwritten))
                self.close()
            raise

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep every other thread out."""
        with self._mutex:
            self._depth += 1
            self._holder = threading.get_ident()
            try:
                yield
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self._holder = 0

    @contextlib.contextmanager
    def transaction(self) -> Iterator[LogTransaction]:
        """Give a transaction that commits durably at the end of the block, or not at all.

        Transactions of several threads that come together share one commit; each block ends only
        after that commit, and one that fails takes back nothing but its own. A transaction inside
        another one of the same thread joins it.

        Raises:
            LogError: The log is closed or cannot be written; nothing was appended.
        """
        with self._arrived():
            self.check_open()
            if self._active is not None:
                yield self._active
                return
            group = self._open_group()
            try:
                with self._member(group) as transaction:
                    yield transaction
            finally:
                self._commit_when_last(group)
        group.done.wait()
        if group.error is not None:
            raise LogError(group.error)

    def append(self, event: Event, *, subject_ref: SubjectRef | None) -> int:
        """Append one entry in a transaction that whoever leads makes for everybody waiting.

        Args:
            event: What happened.
            subject_ref: Whose chain it belongs to; None for an open event.
        """
        request = _Request(subject_ref, event)
        if self._holder == threading.get_ident():
            with self.transaction() as transaction:
                return request.append_to(transaction)
        self._requests.append(request)
        while not request.is_done:
            if self._leading.acquire(blocking=False):
                try:
                    if not request.is_done:
                        self._lead()
                finally:
                    self._leading.release()
                # Who came while the leading lock was taken waits to be told that it is free.
                with contextlib.suppress(IndexError):
                    self._requests[0].wake()
            else:
                request.wait()
        if request.follower is not None:
            request.follower.wake()
        if request.error is not None:
            raise request.error
        return request.index

    def _lead(self) -> None:
        # Those who were served together come back together: give them a moment to do so.
        if len(self._requests) < self._crowd:
            time.sleep(_GATHERING_S)
        batch = [self._requests.popleft() for _ in range(min(len(self._requests), _MOST_MEMBERS))]
        self._crowd = len(batch)
        try:
            with self.transaction() as transaction:
                refs = [one.subject_ref for one in batch if one.subject_ref is not None]
                if len(refs) > 1:
                    transaction.expect(refs)
                for request in batch:
                    try:
                        # It is refused before anything of it is added, or not at all.
                        request.index = request.append_to(transaction)
                    except (ValueError, LogError) as error:
                        request.error = error
        except BaseException as error:
            sentence = str(error) if isinstance(error, LogError) else self._unwritten
            for request in batch:
                request.error = request.error or LogError(sentence)
            if not isinstance(error, LogError):
                raise
        finally:
            # Each wakes the next: woken all at once, they would only wait for each other.
            for request, follower in zip(batch, [*batch[1:], None], strict=True):
                request.follower = follower
                request.is_done = True
            for request in batch[:1]:
                request.wake()

    @contextlib.contextmanager
    def _arrived(self) -> Iterator[None]:
        """Hold the log for one transaction; those still waiting for it are counted."""
        with self._door:
            self._arriving += 1
        with self.held():
            with self._door:
                self._arriving -= 1
            yield

    def _open_group(self) -> _Group:
        if self._group is None:
            with self.storage(self._unwritten), self.closing_when_lost():
                self.store.begin()
            self._group = _Group(self._frontier.copy(), self._latest)
        return self._group

    @contextlib.contextmanager
    def _member(self, group: _Group) -> Iterator[LogTransaction]:
        """Run one transaction in a group; when it fails, the others' work stays."""
        keys = self.keys.made
        connection = self.store.connection
        with self.storage(self._unwritten):
            if group.members:
                connection.execute("SAVEPOINT member")
            transaction = LogTransaction(self.store, self.keys, group.frontier.copy(), group.latest)
            self._active = transaction
            try:
                yield transaction
                transaction.flush()
                frontier, latest = transaction.head
                if group.members:
                    connection.execute("RELEASE member")
            except BaseException as error:
                self._take_back(group, keys, error)
                raise
            finally:
                self._active = None
        group.frontier, group.latest = frontier, latest
        group.members += 1

    def _take_back(self, group: _Group, keys: int, error: BaseException) -> None:
        if not group.members:
            self._abandon(group, error)
            return
        try:
            self.store.connection.execute("ROLLBACK TO member")
            self.store.connection.execute("RELEASE member")
            self.keys.unmake(keys)
        except self._faults:
            # The whole transaction is gone: the disk is full, or the server went away.
            self._abandon(group, error)

    def _commit_when_last(self, group: _Group) -> None:
        """Commit unless somebody is coming who will; a group never waits for long."""
        if self._group is not group:
            return
        is_last = self._arriving == 0 or self._depth > 1
        waited_s = time.monotonic() - group.begun_s
        if is_last or group.members >= _MOST_MEMBERS or waited_s > _LONGEST_GROUP_S:
            self._commit(group)

    def _commit(self, group: _Group) -> None:
        """Make a group durable, or fail all of it; each member raises for itself."""
        try:
            with self.storage(self._unwritten):
                # Keys first: an entry that nobody can open would be worse than a spare key.
                self.keys.commit()
                self.store.commit()
        except BaseException as error:
            self._abandon(group, LogError(self._uncertain) if self.store.is_lost else error)
            self._reload()
            if not isinstance(error, LogError):
                raise
            return
        grown = group.frontier.size > self._frontier.size
        self._frontier, self._latest = group.frontier, group.latest
        self._group = None
        try:
            if grown:
                self.save_anchor()
        except LogError as error:
            group.error = str(error)
        finally:
            group.done.set()

    def _abandon(self, group: _Group, error: BaseException) -> None:
        self._group = None
        try:
            if not self._closed:
                self.keys.rollback()
                self.store.rollback()
            if self.store.is_lost:
                self.close()
        except self._faults:
            _log.exception("the log %s cannot be taken back and was closed", self._origin)
            self.close()
        finally:
            sentence = str(error) if isinstance(error, LogError) else self._unwritten
            group.error = sentence if group.members else None
            group.done.set()

    def _reload(self) -> None:
        """Read the head again after a commit that failed, however far it came."""
        if self._closed:
            return
        try:
            with self.storage(self._unwritten):
                self.load_head()
        except LogError:
            _log.exception("the log %s cannot be read back and was closed", self._origin)
            self.close()

    def settle(self) -> None:
        """Commit the group that is open, if one is."""
        if self._group is not None:
            self._commit(self._group)

    @property
    def _unwritten(self) -> str:
        return f"the log {self._origin!r} could not be written; nothing was appended"

    @property
    def _uncertain(self) -> str:
        return (
            f"the database of the log {self._origin!r} went away; nothing was acknowledged, what "
            "was being committed may be there or not, and the log was closed"
        )
