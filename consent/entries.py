"""Own how an entry gets into a log and how the head of one is read back.

Entries, stored subtree hashes and signed heads are only ever added; the database itself refuses
to change or delete them. What one transaction adds is gathered and written together. When a
transaction begins, commits or fails is decided in `commit`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from consent.canonical import JsonValue, parse_canonical
from consent.chain import ChainHead, format_link
from consent.event import CLOCK_TOLERANCE_MS, Event, LogError, check_event, check_fields
from consent.merkle import Frontier, leaf_hash
from consent.sealed import (
    SubjectKeys,
    SubjectRef,
    seal,
    sealed_leaf,
)
from consent.store import Connection, Cursor, Store
from consent.tiles import LARGEST_ENTRY_BYTES

_HEADS_AT_ONCE = 64
_HEADS = (
    "SELECT subject_ref, subject_seq, commitment FROM subject_head WHERE subject_ref IN"  # noqa: S608
    f" ({', '.join('?' * _HEADS_AT_ONCE)})"
)
_HEAD = "SELECT subject_seq, commitment FROM subject_head WHERE subject_ref = ?"
_PUT_HEAD = (
    "INSERT INTO subject_head VALUES (?, ?, ?) ON CONFLICT (subject_ref) DO UPDATE SET"
    " subject_seq = excluded.subject_seq, commitment = excluded.commitment"
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry as everybody may see it.

    Attributes:
        index: Position in the log, from 0.
        leaf: Canonical bytes that the tree commits to.
    """

    index: int
    leaf: bytes

    @property
    def value(self) -> dict[str, JsonValue]:
        """Return the open event, or the commitment of a sealed one."""
        value = parse_canonical(self.leaf)
        if not isinstance(value, dict):
            raise LogError(f"entry {self.index} is not an object")
        return value

    @property
    def hash(self) -> bytes:
        """Return the leaf hash."""
        return leaf_hash(self.leaf)


class OwnWrites:
    """A connection that sees what its transaction has gathered: it is written first."""

    def __init__(self, connection: Connection, flush: Callable[[], None]) -> None:
        self._connection = connection
        self._flush = flush

    def execute(self, sql: str, parameters: Sequence[Any] = (), /) -> Cursor:
        """Run one statement."""
        self._flush()
        return self._connection.execute(sql, parameters)

    def executemany(self, sql: str, parameters: Iterable[Sequence[Any]], /) -> Cursor:
        """Run one statement for each row of values."""
        self._flush()
        return self._connection.executemany(sql, parameters)


class LogTransaction:
    """Several entries and changes of a caller's own tables in one durable commit.

    Attributes:
        connection: The log's database, for tables that are derived from the log.
    """

    def __init__(self, store: Store, keys: SubjectKeys, frontier: Frontier, latest: int) -> None:
        self.connection: Connection = OwnWrites(store.connection, self._settle)
        self._store = store
        self._keys = keys
        self._frontier = frontier
        self._latest = latest
        self._broken = False
        self._entries: list[tuple[int, bytes, int]] = []
        self._nodes: list[tuple[int, int, bytes]] = []
        self._sealed: list[tuple[int, str, bytes]] = []
        self._heads: dict[str, ChainHead | None] = {}
        self._changed: dict[str, ChainHead] = {}

    @property
    def head(self) -> tuple[Frontier, int]:
        """Return the tree and the latest time after this transaction.

        Raises:
            LogError: An entry failed half-way, so that nothing may be committed.
        """
        if self._broken:
            raise LogError("an entry of this transaction failed; nothing was appended")
        return self._frontier, self._latest

    def append(self, event: Event) -> int:
        """Add an open event, readable by every peer; return its index."""
        leaf = check_event(event)
        if len(leaf) > LARGEST_ENTRY_BYTES:
            raise ValueError(
                f"an open event must have at most {LARGEST_ENTRY_BYTES} bytes, got {len(leaf)}"
            )
        at = _time(event)
        self._check_time(at)
        self._broken = True
        index = self._append_leaf(leaf, at=at)
        self._broken = False
        return index

    def append_sealed(self, subject_ref: SubjectRef, event: Event) -> int:
        """Add an event about a person, of which the log shows a commitment; return its index.

        What is sealed also says which of the person's events it is and commits to the one before.
        """
        check_fields(event)
        at = _time(event)
        self._check_time(at)
        before = self._head_of(subject_ref)
        content = format_link(event, subject=subject_ref, before=before)
        commitment, ciphertext = seal(content, key=self._keys.make_key(subject_ref))
        seq = 1 if before is None else before.subject_seq + 1
        # What is interrupted from here on leaves the parts of an entry apart: never commit them.
        self._broken = True
        index = self._append_leaf(sealed_leaf(commitment, at=at), at=at)
        self._sealed.append((index, subject_ref, ciphertext))
        self._heads[subject_ref] = self._changed[subject_ref] = ChainHead(seq, commitment)
        self._broken = False
        return index

    def expect(self, subject_refs: Iterable[SubjectRef]) -> None:
        """Read the chains of several people at once, whose events are about to be added."""
        refs = [ref for ref in dict.fromkeys(subject_refs) if ref not in self._heads]
        self._keys.expect(refs)
        for start in range(0, len(refs), _HEADS_AT_ONCE):
            some = refs[start : start + _HEADS_AT_ONCE]
            # The same statement for any number of people, so that it is prepared once.
            marks = some + some[-1:] * (_HEADS_AT_ONCE - len(some))
            self._heads.update(dict.fromkeys(some))
            for ref, seq, commitment in self._store.connection.execute(_HEADS, marks):
                self._heads[ref] = ChainHead(seq, bytes(commitment))

    def insert(self, table: str, rows: Sequence[Sequence[Any]]) -> None:
        """Add whole rows to one of a caller's own tables, the fastest way there is."""
        self._settle()
        if rows:
            self._store.insert(table, rows)

    def flush(self) -> None:
        """Write what was gathered.

        Raises:
            Exception: What the database says; nothing of this transaction may be committed then.
        """
        if not self._entries:
            return
        entries, nodes, sealed = self._entries, self._nodes, self._sealed
        changed = self._changed
        self._entries, self._nodes, self._sealed, self._changed = [], [], [], {}
        self._broken = True
        self._store.insert("entry", entries)
        self._store.insert("node", nodes)
        if sealed:
            self._store.insert("sealed", sealed)
            self._store.connection.executemany(
                _PUT_HEAD,
                [(ref, head.subject_seq, head.commitment) for ref, head in changed.items()],
            )
        self._broken = False

    def _settle(self) -> None:
        """Write what was gathered before somebody else asks or changes something."""
        self.flush()
        self._heads.clear()

    def _head_of(self, subject_ref: SubjectRef) -> ChainHead | None:
        try:
            return self._heads[subject_ref]
        except KeyError:
            row = self._store.connection.execute(_HEAD, (subject_ref,)).fetchone()
            found = None if row is None else ChainHead(row[0], bytes(row[1]))
            self._heads[subject_ref] = found
            return found

    def _check_time(self, at: int) -> None:
        if at < self._latest - CLOCK_TOLERANCE_MS:
            raise LogError(
                f"the time of an event must not go back: {at} is more than five minutes before "
                f"{self._latest}; nothing was appended"
            )

    def _append_leaf(self, leaf: bytes, *, at: int) -> int:
        index = self._frontier.size
        self._latest = max(self._latest, at)
        self._entries.append((index, leaf, self._latest))
        self._nodes += self._frontier.append(leaf_hash(leaf))
        return index


def read_head(connection: Connection, *, origin: str) -> tuple[Frontier, int]:
    """Return the tree and the latest time that a database holds.

    Raises:
        LogError: An entry or a hash is missing.
    """
    count, last, latest = connection.execute(
        "SELECT COUNT(*), COALESCE(MAX(idx), -1), COALESCE(MAX(latest), 0) FROM entry"
    ).fetchone()
    if count != last + 1:
        raise LogError(f"the log {origin!r} is damaged: an entry is missing")
    hashes, low = [], 0
    for level in reversed(range(count.bit_length())):
        if count >> level & 1:
            at = low >> level
            hashes += read_hashes(connection, level, at, at + 1, origin=origin)
            low += 1 << level
    return Frontier(count, hashes), latest


def read_hashes(
    connection: Connection, level: int, start: int, end: int, *, origin: str
) -> list[bytes]:
    """Return the stored full subtrees [start, end) of a level of the tree.

    Raises:
        LogError: One is missing.
    """
    rows = connection.execute(
        "SELECT hash FROM node WHERE level = ? AND position >= ? AND position < ?"
        " ORDER BY position",
        (level, start, end),
    ).fetchall()
    if len(rows) != end - start:
        raise LogError(f"the log {origin!r} is damaged: a stored hash is missing")
    return [bytes(row[0]) for row in rows]


def _time(event: Event) -> int:
    at = event["at"]
    assert isinstance(at, int)  # noqa: S101 - check_event has refused everything else
    return at
