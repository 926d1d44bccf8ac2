"""Remember what a node did, so that nobody, the node included, can change it unseen.

One writer, one append-only RFC 6962 tree, one durable commit per transaction, which callers in
several threads share (`commit`). What people did is sealed (`sealed`) and chained (`chain`), what
the node did is open. Times are read from the events, never from a clock. Not seen from here: a
log that was put back together with its anchor, or that never recorded a thing; the first is what
witnesses are for.
"""

import contextlib
import threading
from collections.abc import Iterator, Sequence
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
from consent.commit import Writer
from consent.durable import Anchor, FolderLock, Head, sync_folder
from consent.entries import Entry, LogTransaction, read_hashes
from consent.event import SEALED, Event, LogError
from consent.identity import Identity
from consent.published import StoredTree, write_published
from consent.sealed import (
    WRAPPING_KEY,
    SealError,
    SubjectKeys,
    SubjectRef,
    commitment_of,
    unseal,
)
from consent.store import (
    DATABASE,
    Connection,
    Store,
    create_store,
    first_line,
    is_store_there,
    open_store,
)
from consent.trust import TrustPolicy

if TYPE_CHECKING:
    import sqlite3
else:
    from pysqlite3 import dbapi2 as sqlite3

__all__ = ["Entry", "Event", "Log", "LogError", "LogTransaction"]

_KEYS, _ANCHOR, _LOCK = "keys.sqlite", "anchor", "lock"
_PUT_NOTE = (
    "INSERT INTO {} VALUES (?, ?) ON CONFLICT (tree_size) DO UPDATE SET note = excluded.note"
)


class Log:
    """The durable log of one node; its origin is the name of the node's identity."""

    def __init__(self, folder: Path, identity: Identity, store: Store, *, lock: FolderLock) -> None:
        """Use `create` or `open`."""
        self._folder = folder
        self._identity = identity
        self._publishing = threading.Lock()
        self._anchor = Anchor(folder / _ANCHOR)
        self._writer = Writer(
            store,
            SubjectKeys(folder / _KEYS),
            self._anchor,
            origin=identity.name,
            on_close=lock.release,
        )

    @classmethod
    def create(cls, folder: Path, identity: Identity, *, store: str | None = None) -> "Log":
        """Make an empty log in a folder that holds none, and open it.

        Args:
            folder: Where keys, anchor and lock are, and the database unless `store` is given.
            identity: Signs the log's heads.
            store: URL of a PostgreSQL database; None for a SQLite file in the folder.

        Raises:
            LogError: There is a log already, or folder or database cannot be written; nothing
                is left.
            ValueError: `store` is not a URL that can be used.
        """
        sentence = f"the log in {folder} could not be created"
        with _storage(sentence):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = _take_lock(folder)
        if any((folder / name).exists() for name in (DATABASE, _KEYS, WRAPPING_KEY, _ANCHOR)):
            lock.release()
            raise LogError(f"the folder {folder} holds a log already; nothing was changed")
        made: Store | None = None
        try:
            with _storage(sentence):
                made = create_store(folder, store)
                with _storage(sentence, *made.errors):
                    made.insert("owner", [(identity.name, identity.public.format())])
                    Anchor(folder / _ANCHOR).create(Head(0, merkle.EMPTY_ROOT))
                    log = cls(folder, identity, made, lock=lock)
                    made.commit()
                sync_folder(folder)
                return log
        except (LogError, ValueError):
            if made is not None:
                made.close()
            lock.release()
            _remove(folder)
            raise

    @classmethod
    def open(cls, folder: Path, identity: Identity, *, store: str | None = None) -> "Log":
        """Open a log for writing and compare it with its anchor.

        Args:
            folder: The folder that `create` was given.
            identity: The key that signs the log's heads.
            store: As `create` was given.

        Raises:
            LogError: No log, another writer, another owner, a damaged database, or one that
                is older than its anchor says.
            ValueError: `store` is not a URL that can be used.
        """
        if not is_store_there(folder, store):
            raise LogError(f"the folder {folder} holds no log")
        sentence = f"the log in {folder} could not be opened"
        lock = _take_lock(folder)
        opened: Store | None = None
        log: Log | None = None
        try:
            with _storage(sentence):
                opened = open_store(folder, store)
                with _storage(sentence, *opened.errors):
                    _check_owner(opened, folder, identity)
                    opened.upgrade()
                    log = cls(folder, identity, opened, lock=lock)
                    log._writer.load_head()
                    log._check_anchor()
                return log
        except (LogError, ValueError):
            if log is not None:
                log.close()
            else:
                if opened is not None:
                    opened.close()
                lock.release()
            raise

    def close(self) -> None:
        """Close the log and let another process write."""
        self._writer.close()

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
        return self._writer.frontier.size

    @property
    def root_hash(self) -> bytes:
        """Return the root hash over all durable entries."""
        return self._writer.frontier.root()

    @property
    def latest(self) -> int:
        """Return the latest time of any entry, epoch milliseconds; 0 for an empty log."""
        return self._writer.latest

    def append(self, event: Event) -> int:
        """Append one open event durably and return its index."""
        return self._writer.append(event, subject_ref=None)

    def append_many(self, events: Sequence[Event]) -> range:
        """Append open events in one durable commit and return their indices."""
        with self.transaction() as transaction:
            first = transaction.head[0].size
            for event in events:
                transaction.append(event)
            return range(first, first + len(events))

    def append_sealed(self, subject_ref: SubjectRef, event: Event) -> int:
        """Append one sealed event durably and return its index."""
        return self._writer.append(event, subject_ref=subject_ref)

    def transaction(self) -> contextlib.AbstractContextManager[LogTransaction]:
        """Give a transaction that commits durably at the end of the block, or not at all.

        Transactions of several threads that come together share one commit; each block ends only
        after that commit, and one that fails takes back nothing but its own. A transaction inside
        another one of the same thread joins it.

        Raises:
            LogError: The log is closed or cannot be written; nothing was appended.
        """
        return self._writer.transaction()

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """Give the database to a reader while nobody writes.

        What is read may still be waiting for its commit; whatever is appended after it commits
        with it or later.
        """
        with (
            self._writer.held(),
            self._writer.storage(f"the log {self.origin!r} could not be read"),
            self._writer.closing_when_lost(),
        ):
            self._writer.check_open()
            yield self._writer.connection

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """Do the same, and let all questions see one state."""
        with self.reading() as connection, self._writer.store.snapshot():
            yield connection

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
            key = self._writer.keys.key(row[0])
        return Opening(*unseal(bytes(row[1]), key=key, commitment=commitment))

    def erase_subject(self, subject_ref: SubjectRef) -> None:
        """Destroy the key, then the content, of every sealed event of a subject.

        No leaf and no root hash changes. What is lost here cannot be brought back.

        Raises:
            LogError: A transaction of this thread is open, or not everything could be destroyed.
        """
        writer = self._writer
        with (
            writer.held(),
            writer.storage("a data subject could not be erased completely; try again"),
        ):
            writer.check_open()
            writer.check_no_transaction("a data subject cannot be erased")
            writer.settle()
            writer.keys.destroy(subject_ref)
            for table in ("sealed", "subject_head"):
                writer.store.connection.execute(
                    f"DELETE FROM {table} WHERE subject_ref = ?",  # noqa: S608 - names above
                    (subject_ref,),
                )
            writer.store.forget()

    def rotate_wrapping_key(self, *, at: int) -> str:
        """Change the key that subjects' keys are wrapped under; return the id of the new one.

        No leaf and no root hash changes, and what could be opened can be opened. It is told by
        an event. Interrupted at any point it leaves a log that opens; a repeated call finishes,
        with the same new key, and may tell it again. Nobody appends meanwhile.

        Args:
            at: Epoch milliseconds.

        Raises:
            LogError: A transaction of this thread is open, some key cannot be unwrapped, or a
                file could not be written; rotate again.
            ValueError: The time is none.
        """
        writer = self._writer
        with (
            writer.held(),
            writer.storage("the wrapping key could not be changed completely; rotate again"),
        ):
            writer.check_open()
            writer.check_no_transaction("the wrapping key cannot be changed")
            writer.settle()
            with self.transaction() as transaction:
                key_id = writer.keys.successor()
                # First, because it may be refused; it commits with what it tells.
                transaction.append(
                    {"type": "key.rotated", "v": 1, "at": at, "kind": "wrapping", "id": key_id}
                )
                writer.keys.rewrap()
            writer.keys.finish_rewrapping()
        return key_id

    def inclusion_proof(self, index: int, tree_size: int | None = None) -> list[bytes]:
        """Return the proof that an entry is in the tree of a size; the present one if None."""
        with self._writer.held():
            size = self._check_size(self.tree_size if tree_size is None else tree_size)
            return merkle.prove_inclusion(self._node, index=index, tree_size=size)

    def consistency_proof(self, old: int, new: int | None = None) -> list[bytes]:
        """Return the proof that the tree of size `new` extends that of size `old`."""
        with self._writer.held():
            size = self._check_size(self.tree_size if new is None else new)
            return merkle.prove_consistency(self._node, old_size=old, new_size=size)

    def root_at(self, tree_size: int) -> bytes:
        """Return the root hash that the tree had at a size."""
        with self._writer.held():
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
            connection.execute(_PUT_NOTE.format("collected"), (head.tree_size, merged))
            if policy.is_quorum(verify_cosignatures(merged, policy).cosigners):
                connection.execute(_PUT_NOTE.format("cosigned"), (head.tree_size, merged))
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
        sentence = f"the log could not be published in {folder}"
        with self._publishing, self._writer.storage(sentence):
            return write_published(folder, tree=self.tree, note=note)

    def _node(self, level: int, position: int) -> bytes:
        return self._hashes(level, position, position + 1)[0]

    def _hashes(self, level: int, start: int, end: int) -> list[bytes]:
        with self.reading() as connection:
            return read_hashes(connection, level, start, end, origin=self.origin)

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


@contextlib.contextmanager
def _storage(sentence: str, *errors: type[Exception]) -> Iterator[None]:
    """Turn whatever the disk or the database says into one sentence."""
    faults: tuple[type[Exception], ...] = (sqlite3.Error, OSError, *errors)
    try:
        yield
    except faults as error:
        raise LogError(f"{sentence} ({first_line(error)})") from error


def _check_owner(store: Store, folder: Path, identity: Identity) -> None:
    row = store.connection.execute("SELECT origin, vkey FROM owner").fetchone()
    if row != (identity.name, identity.public.format()):
        raise LogError(f"the log in {folder} belongs to another key than the one given")


def _take_lock(folder: Path) -> FolderLock:
    try:
        return FolderLock(folder / _LOCK)
    except BlockingIOError as error:
        raise LogError(f"the log in {folder} is open for writing elsewhere") from error
    except OSError as error:
        raise LogError(f"the log in {folder} could not be locked ({error})") from error


def _remove(folder: Path) -> None:
    for name in (DATABASE, _KEYS):
        for suffix in ("", "-wal", "-shm"):
            (folder / (name + suffix)).unlink(missing_ok=True)
    for name in (WRAPPING_KEY, _ANCHOR):
        (folder / name).unlink(missing_ok=True)
