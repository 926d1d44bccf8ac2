"""Remember what a node did, so that nobody, the node included, can change it unseen.

One writer, one append-only RFC 6962 tree, one durable commit per transaction, which callers in
several threads share. What people did is sealed (`sealed`) and chained (`chain`), what the node
did is open. Times are read from the events, never from a
clock. Not seen from here: a log that was put back together with its anchor, or that never
recorded a thing; the first is what witnesses are for.
"""

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from consent import merkle
from consent.canonical import JsonValue
from consent.chain import Opening
from consent.checkpoint import (
    Checkpoint,
    VerifiedCheckpoint,
    merge_cosignatures,
    sign_checkpoint,
    verify_checkpoint,
    verify_cosignatures,
)
from consent.durable import Anchor, FolderLock, Head, sync_folder
from consent.entries import Entry, LogTransaction, create_tables, upgrade_tables
from consent.event import SEALED, Event, LogError
from consent.identity import Identity
from consent.merkle import Frontier
from consent.published import StoredTree, write_published
from consent.sealed import (
    SealError,
    SubjectKeys,
    SubjectRef,
    commitment_of,
    connect,
    unseal,
)
from consent.trust import TrustPolicy

if TYPE_CHECKING:
    import sqlite3
else:
    from pysqlite3 import dbapi2 as sqlite3

__all__ = ["Entry", "Event", "Log", "LogError", "LogTransaction"]

_DATABASE, _KEYS, _ANCHOR, _LOCK = "log.sqlite", "keys.sqlite", "anchor", "lock"

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

    append: Callable[[LogTransaction], int]
    is_done: bool = False
    index: int = -1
    error: Exception | None = None
    follower: "_Request | None" = None
    _sleep: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._sleep.acquire()

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


class Log:
    """The durable log of one node; its origin is the name of the node's identity."""

    def __init__(self, folder: Path, identity: Identity, lock: FolderLock) -> None:
        """Use `create` or `open`."""
        self._folder = folder
        self._identity = identity
        self._lock = lock
        self._mutex = threading.RLock()
        self._publishing = threading.Lock()
        self._door = threading.Lock()
        self._arriving = self._depth = self._holder = 0
        self._leading = threading.Lock()
        self._requests: deque[_Request] = deque()
        self._crowd = 1
        self._active: LogTransaction | None = None
        self._group: _Group | None = None
        self._closed = False
        self._anchor = Anchor(folder / _ANCHOR)
        self._connection = connect(folder / _DATABASE)
        try:
            self._keys = SubjectKeys(folder / _KEYS)
        except (sqlite3.Error, OSError):
            self._connection.close()
            raise
        self._frontier = Frontier()
        self._latest = 0

    @classmethod
    def create(cls, folder: Path, identity: Identity) -> "Log":
        """Make an empty log in a folder that holds none, and open it.

        Raises:
            LogError: There is a log already, or the folder cannot be written; nothing is left.
        """
        with _storage(f"the log in {folder} could not be created"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = _take_lock(folder)
        if (folder / _DATABASE).exists():
            lock.release()
            raise LogError(f"the folder {folder} holds a log already; nothing was changed")
        try:
            with _storage(f"the log in {folder} could not be created"):
                create_tables(folder / _DATABASE, identity)
                Anchor(folder / _ANCHOR).create(Head(0, merkle.EMPTY_ROOT))
                log = cls(folder, identity, lock)
                sync_folder(folder)
                return log
        except LogError:
            lock.release()
            _remove(folder)
            raise

    @classmethod
    def open(cls, folder: Path, identity: Identity) -> "Log":
        """Open a log for writing and compare it with its anchor.

        Raises:
            LogError: No log, another writer, another owner, a damaged database, or one that
                is older than its anchor says.
        """
        if not (folder / _DATABASE).exists():
            raise LogError(f"the folder {folder} holds no log")
        lock = _take_lock(folder)
        log: Log | None = None
        try:
            with _storage(f"the log in {folder} could not be opened"):
                log = cls(folder, identity, lock)
                log._check_owner()
                upgrade_tables(log._connection)
                log._load_head()
                log._check_anchor()
                return log
        except LogError:
            if log is not None:
                log.close()
            else:
                lock.release()
            raise

    def close(self) -> None:
        """Close the log and let another process write."""
        with self._held():
            if not self._closed:
                self._settle()
            if not self._closed:
                self._closed = True
                self._connection.close()
                self._keys.close()
                self._lock.release()

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    @property
    def origin(self) -> str:
        """Return the name under which the log signs."""
        return self._identity.name

    @property
    def tree_size(self) -> int:
        """Return the number of durable entries."""
        return self._frontier.size

    @property
    def root_hash(self) -> bytes:
        """Return the root hash over all durable entries."""
        return self._frontier.root()

    @property
    def latest(self) -> int:
        """Return the latest time of any entry, epoch milliseconds; 0 for an empty log."""
        return self._latest

    def append(self, event: Event) -> int:
        """Append one open event durably and return its index."""
        return self._share(lambda transaction: transaction.append(event))

    def append_many(self, events: Sequence[Event]) -> range:
        """Append open events in one durable commit and return their indices."""
        with self.transaction() as transaction:
            first = transaction.head[0].size
            for event in events:
                transaction.append(event)
            return range(first, first + len(events))

    def append_sealed(self, subject_ref: SubjectRef, event: Event) -> int:
        """Append one sealed event durably and return its index."""
        return self._share(lambda transaction: transaction.append_sealed(subject_ref, event))

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
            self._check_open()
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

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Give the database to a reader while nobody writes.

        What is read may still be waiting for its commit; whatever is appended after it commits
        with it or later.
        """
        with self._held(), _storage(f"the log {self.origin!r} could not be read"):
            self._check_open()
            yield self._connection

    def entry(self, index: int) -> Entry:
        """Return one entry; raise `LogError` when there is none."""
        for entry in self.entries(index, index + 1):
            return entry
        raise LogError(f"the log {self.origin!r} holds {self.tree_size} entries, not {index}")

    def entries(self, start: int = 0, end: int | None = None) -> list[Entry]:
        """Return the entries [start, end), up to the last one."""
        with self.reading() as connection:
            rows = connection.execute(
                "SELECT idx, leaf FROM entry WHERE idx >= ? AND idx < ? ORDER BY idx",
                (start, self.tree_size if end is None else min(end, self.tree_size)),
            )
            return [Entry(index, bytes(leaf)) for index, leaf in rows]

    def opened(self, index: int) -> dict[str, JsonValue]:
        """Return the event of an entry, a sealed one opened with its subject's key.

        Raises:
            SealError: The subject's key was destroyed, or the content was changed.
            LogError: There is no such entry.
        """
        value = self.entry(index).value
        if value.get("k") != SEALED:
            return value
        return self.opening(index).link.event

    def opening(self, index: int) -> Opening:
        """Return what shows a sealed entry to somebody without its subject's key.

        Raises:
            SealError: The subject's key was destroyed, or the content was changed.
            LogError: There is no such entry, or it is not sealed.
        """
        commitment = commitment_of(self.entry(index).value)
        if commitment is None:
            raise LogError(f"entry {index} is not sealed", index=index)
        with self.reading() as connection:
            row = connection.execute(
                "SELECT subject_ref, content FROM sealed WHERE idx = ?", (index,)
            ).fetchone()
            if row is None:
                raise SealError(f"the content of sealed entry {index} was destroyed")
            key = self._keys.key(row[0])
        return Opening(*unseal(bytes(row[1]), key=key, commitment=commitment))

    def erase_subject(self, subject_ref: SubjectRef) -> None:
        """Destroy the key, then the content, of every sealed event of a subject.

        No leaf and no root hash changes. What is lost here cannot be brought back.
        """
        with self._held(), _storage("a data subject could not be erased completely; try again"):
            self._check_open()
            self._settle()
            self._keys.destroy(subject_ref)
            for table in ("sealed", "subject_head"):
                self._connection.execute(
                    f"DELETE FROM {table} WHERE subject_ref = ?",  # noqa: S608 - names above
                    (subject_ref,),
                )
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def inclusion_proof(self, index: int, tree_size: int | None = None) -> list[bytes]:
        """Return the proof that an entry is in the tree of a size; the present one if None."""
        with self._held():
            size = self._check_size(self.tree_size if tree_size is None else tree_size)
            return merkle.prove_inclusion(self._node, index=index, tree_size=size)

    def consistency_proof(self, old: int, new: int | None = None) -> list[bytes]:
        """Return the proof that the tree of size `new` extends that of size `old`."""
        with self._held():
            size = self._check_size(self.tree_size if new is None else new)
            return merkle.prove_consistency(self._node, old_size=old, new_size=size)

    def root_at(self, tree_size: int) -> bytes:
        """Return the root hash that the tree had at a size."""
        with self._held():
            size = self._check_size(tree_size)
            return merkle.subtree_root(self._node, low=0, high=size)

    def checkpoint(self) -> str:
        """Return the signed present head; it is signed once and stored before it is returned."""
        with self.transaction() as transaction:
            head = Checkpoint(self.origin, self.tree_size, self.root_hash)
            row = transaction.connection.execute(
                "SELECT note FROM signed WHERE tree_size = ?", (head.tree_size,)
            ).fetchone()
            if row is not None:
                return str(row[0])
            note = sign_checkpoint(head, self._identity)
            transaction.connection.execute(
                "INSERT INTO signed VALUES (?, ?)", (head.tree_size, note)
            )
            return note

    def accept_cosigned(self, note: str, policy: TrustPolicy) -> VerifiedCheckpoint:
        """Keep a note that witnesses cosigned, merged with what others cosigned before.

        Raises:
            NoteError: A signature is wrong, or the quorum is still not met; in the latter case
                the cosignatures are kept all the same.
            LogError: The note is of another log or signs a tree that this log never had.
        """
        return verify_checkpoint(self.collect(note, policy), policy)

    def collect(self, note: str, policy: TrustPolicy) -> str:
        """Keep the cosignatures of a note and return it with all that its head has by now.

        Witnesses may answer one by one; the first note that meets the quorum becomes the newest.

        Raises:
            NoteError: The policy's log did not sign the note, or a witness's line is wrong.
            LogError: The note is of another log or signs a tree that this log never had.
        """
        head = verify_cosignatures(note, policy).checkpoint
        if head.origin != self.origin:
            raise LogError(f"the note is of the log {head.origin!r}, not of {self.origin!r}")
        with self.transaction() as transaction:
            if head.tree_size > self.tree_size or self.root_at(head.tree_size) != head.root_hash:
                raise LogError(f"the note of size {head.tree_size} signs a tree this log never had")
            connection = transaction.connection
            row = connection.execute(
                "SELECT note FROM collected WHERE tree_size = ?", (head.tree_size,)
            ).fetchone()
            merged = merge_cosignatures(note if row is None else str(row[0]), note, policy)
            connection.execute(
                "INSERT OR REPLACE INTO collected VALUES (?, ?)", (head.tree_size, merged)
            )
            if policy.is_quorum(verify_cosignatures(merged, policy).cosigners):
                connection.execute(
                    "INSERT OR REPLACE INTO cosigned VALUES (?, ?)", (head.tree_size, merged)
                )
                connection.execute("DELETE FROM collected WHERE tree_size < ?", (head.tree_size,))
        return merged

    def newest_note(self) -> str:
        """Return the newest cosigned note, or the own checkpoint when nobody has cosigned."""
        with self.reading() as connection:
            row = connection.execute(
                "SELECT note FROM cosigned ORDER BY tree_size DESC LIMIT 1"
            ).fetchone()
        return self.checkpoint() if row is None else str(row[0])

    @property
    def tree(self) -> StoredTree:
        """Return where a publication takes the entries and hashes from."""
        return StoredTree(
            leaves=lambda start, end: [entry.leaf for entry in self.entries(start, end)],
            hashes=self._hashes,
        )

    def publish(self, folder: Path) -> Checkpoint:
        """Write what a stranger needs to verify the log offline, up to the newest note.

        Returns:
            The checkpoint that was published; later entries wait for the next one.

        Raises:
            LogError: The stored entries do not give the signed root hash, or the folder cannot
                be written; an older publication is as it was.
        """
        note = self.newest_note()
        with self._publishing, _storage(f"the log could not be published in {folder}"):
            return write_published(folder, tree=self.tree, note=note)

    def _share(self, append: Callable[[LogTransaction], int]) -> int:
        """Append one entry in a transaction that whoever leads makes for everybody waiting.

        `append` must raise `ValueError` or `LogError` before its first write, or not at all.
        """
        if self._holder == threading.get_ident():
            with self.transaction() as transaction:
                return append(transaction)
        request = _Request(append)
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
                for request in batch:
                    try:
                        request.index = request.append(transaction)
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
    def _held(self) -> Iterator[None]:
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
    def _arrived(self) -> Iterator[None]:
        """Hold the log for one transaction; those still waiting for it are counted."""
        with self._door:
            self._arriving += 1
        with self._held():
            with self._door:
                self._arriving -= 1
            yield

    def _open_group(self) -> "_Group":
        if self._group is None:
            with _storage(self._unwritten):
                self._connection.execute("BEGIN IMMEDIATE")
            self._group = _Group(self._frontier.copy(), self._latest)
        return self._group

    @contextlib.contextmanager
    def _member(self, group: "_Group") -> Iterator[LogTransaction]:
        """Run one transaction in a group; when it fails, the others' work stays."""
        keys = self._keys.made
        with _storage(self._unwritten):
            if group.members:
                self._connection.execute("SAVEPOINT member")
            transaction = LogTransaction(
                self._connection, self._keys, group.frontier.copy(), group.latest
            )
            self._active = transaction
            try:
                yield transaction
                frontier, latest = transaction.head
                if group.members:
                    self._connection.execute("RELEASE member")
            except BaseException as error:
                self._take_back(group, keys, error)
                raise
            finally:
                self._active = None
        group.frontier, group.latest = frontier, latest
        group.members += 1

    def _take_back(self, group: "_Group", keys: int, error: BaseException) -> None:
        if not group.members:
            self._abandon(group, error)
            return
        try:
            self._connection.execute("ROLLBACK TO member")
            self._connection.execute("RELEASE member")
            self._keys.unmake(keys)
        except sqlite3.Error:
            # SQLite has given up the whole transaction, as it may when the disk is full.
            self._abandon(group, error)

    def _commit_when_last(self, group: "_Group") -> None:
        """Commit unless somebody is coming who will; a group never waits for long."""
        if self._group is not group:
            return
        is_last = self._arriving == 0 or self._depth > 1
        waited_s = time.monotonic() - group.begun_s
        if is_last or group.members >= _MOST_MEMBERS or waited_s > _LONGEST_GROUP_S:
            self._commit(group)

    def _commit(self, group: "_Group") -> None:
        """Make a group durable, or fail all of it; each member raises for itself."""
        try:
            with _storage(self._unwritten):
                # Keys first: an entry that nobody can open would be worse than a spare key.
                self._keys.commit()
                self._connection.execute("COMMIT")
        except BaseException as error:
            self._abandon(group, error)
            self._reload()
            if not isinstance(error, LogError):
                raise
            return
        grown = group.frontier.size > self._frontier.size
        self._frontier, self._latest = group.frontier, group.latest
        self._group = None
        try:
            if grown:
                self._save_anchor()
        except LogError as error:
            group.error = str(error)
        finally:
            group.done.set()

    def _abandon(self, group: "_Group", error: BaseException) -> None:
        self._group = None
        try:
            self._keys.rollback()
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        except sqlite3.Error:
            _log.exception("the log %s cannot be taken back and was closed", self.origin)
            self.close()
        finally:
            sentence = str(error) if isinstance(error, LogError) else self._unwritten
            group.error = sentence if group.members else None
            group.done.set()

    def _reload(self) -> None:
        """Read the head again after a commit that failed, however far it came."""
        try:
            self._load_head()
        except (sqlite3.Error, LogError):
            _log.exception("the log %s cannot be read back and was closed", self.origin)
            self.close()

    def _settle(self) -> None:
        if self._group is not None:
            self._commit(self._group)

    @property
    def _unwritten(self) -> str:
        return f"the log {self.origin!r} could not be written; nothing was appended"

    def _save_anchor(self) -> None:
        try:
            self._anchor.save(Head(self.tree_size, self.root_hash))
        except OSError as error:
            self.close()
            raise LogError(
                f"entry {self.tree_size - 1} is durable but the anchor could not be written; "
                "the log was closed"
            ) from error

    def _node(self, level: int, position: int) -> bytes:
        return self._hashes(level, position, position + 1)[0]

    def _hashes(self, level: int, start: int, end: int) -> list[bytes]:
        with self.reading() as connection:
            rows = connection.execute(
                "SELECT hash FROM node WHERE level = ? AND position >= ? AND position < ?"
                " ORDER BY position",
                (level, start, end),
            ).fetchall()
        if len(rows) != end - start:
            raise LogError(f"the log {self.origin!r} is damaged: a stored hash is missing")
        return [bytes(row[0]) for row in rows]

    def _load_head(self) -> None:
        count, last, latest = self._connection.execute(
            "SELECT COUNT(*), COALESCE(MAX(idx), -1), COALESCE(MAX(latest), 0) FROM entry"
        ).fetchone()
        if count != last + 1:
            raise LogError(f"the log {self.origin!r} is damaged: an entry is missing")
        hashes, low = [], 0
        for level in reversed(range(count.bit_length())):
            if count >> level & 1:
                hashes.append(self._node(level, low >> level))
                low += 1 << level
        self._frontier, self._latest = Frontier(count, hashes), latest

    def _check_owner(self) -> None:
        row = self._connection.execute("SELECT origin, vkey FROM owner").fetchone()
        if row != (self.origin, self._identity.public.format()):
            raise LogError(f"the log in {self._folder} belongs to another key than the one given")

    def _check_anchor(self) -> None:
        anchor = self._anchor.load()
        if anchor.tree_size > self.tree_size:
            raise LogError(
                f"the log {self.origin!r} holds {self.tree_size} entries but its anchor says "
                f"{anchor.tree_size}: it was put back from an older copy and was not opened"
            )
        if self.root_at(anchor.tree_size) != anchor.root_hash:
            raise LogError(
                f"the log {self.origin!r} is not the one its anchor was written for: the first "
                f"{anchor.tree_size} entries give another root hash, and it was not opened"
            )
        if anchor.tree_size < self.tree_size:
            self._anchor.save(Head(self.tree_size, self.root_hash))

    def _check_size(self, tree_size: int) -> int:
        if not 0 <= tree_size <= self.tree_size:
            raise ValueError(f"tree_size must be in [0, {self.tree_size}], got {tree_size}")
        return tree_size

    def _check_open(self) -> None:
        if self._closed:
            raise LogError(f"the log {self.origin!r} is closed")


@contextlib.contextmanager
def _storage(sentence: str) -> Iterator[None]:
    """Turn whatever the disk or the database says into one sentence."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise LogError(f"{sentence} ({error})") from error


def _take_lock(folder: Path) -> FolderLock:
    try:
        return FolderLock(folder / _LOCK)
    except BlockingIOError as error:
        raise LogError(f"the log in {folder} is open for writing elsewhere") from error
    except OSError as error:
        raise LogError(f"the log in {folder} could not be locked ({error})") from error


def _remove(folder: Path) -> None:
    for name in (_DATABASE, _KEYS):
        for suffix in ("", "-wal", "-shm"):
            (folder / (name + suffix)).unlink(missing_ok=True)
    (folder / _ANCHOR).unlink(missing_ok=True)
