"""Own the tables of a log and how an entry gets into them.

Entries, stored subtree hashes and signed heads are only ever added; the database itself refuses
to change or delete them. When a transaction begins, commits or fails is decided in `log`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from consent.canonical import JsonValue, parse_canonical
from consent.chain import ChainHead, format_link
from consent.event import CLOCK_TOLERANCE_MS, Event, LogError, check_event, check_fields
from consent.identity import Identity
from consent.merkle import Frontier, leaf_hash
from consent.sealed import (
    SubjectKeys,
    SubjectRef,
    commitment_of,
    connect,
    seal,
    sealed_leaf,
)
from consent.tiles import LARGEST_ENTRY_BYTES

if TYPE_CHECKING:
    import sqlite3
else:
    from pysqlite3 import dbapi2 as sqlite3

_SCHEMA = """
CREATE TABLE owner (origin TEXT NOT NULL, vkey TEXT NOT NULL);
CREATE TABLE entry (idx INTEGER PRIMARY KEY, leaf BLOB NOT NULL, latest INTEGER NOT NULL);
CREATE TABLE node (level INTEGER, position INTEGER, hash BLOB NOT NULL,
    PRIMARY KEY (level, position)) WITHOUT ROWID;
CREATE TABLE sealed (idx INTEGER PRIMARY KEY REFERENCES entry (idx),
    subject_ref TEXT NOT NULL, content BLOB NOT NULL);
CREATE INDEX sealed_subject ON sealed (subject_ref);
CREATE TABLE signed (tree_size INTEGER PRIMARY KEY, note TEXT NOT NULL);
CREATE TABLE cosigned (tree_size INTEGER PRIMARY KEY, note TEXT NOT NULL);
"""
_SINCE_CHAINS = (
    """CREATE TABLE subject_head (subject_ref TEXT PRIMARY KEY, subject_seq INTEGER NOT NULL,
    commitment BLOB NOT NULL) WITHOUT ROWID""",
    """CREATE TABLE state_tree (idx INTEGER PRIMARY KEY REFERENCES entry (idx),
    secret BLOB NOT NULL, leaves BLOB NOT NULL)""",
    "CREATE TABLE collected (tree_size INTEGER PRIMARY KEY, note TEXT NOT NULL)",
)
_APPEND_ONLY = ("owner", "entry", "node", "signed")


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


class LogTransaction:
    """Several entries and changes of a caller's own tables in one durable commit.

    Attributes:
        connection: The log's database, for tables that are derived from the log.
    """

    def __init__(
        self, connection: sqlite3.Connection, keys: SubjectKeys, frontier: Frontier, latest: int
    ) -> None:
        self.connection = connection
        self._keys = keys
        self._frontier = frontier
        self._latest = latest
        self._broken = False

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
        return self._append_leaf(leaf, at=_time(event))

    def append_sealed(self, subject_ref: SubjectRef, event: Event) -> int:
        """Add an event about a person, of which the log shows a commitment; return its index.

        What is sealed also says which of the person's events it is and commits to the one before.
        """
        check_fields(event)
        at = _time(event)
        self._check_time(at)
        row = self.connection.execute(
            "SELECT subject_seq, commitment FROM subject_head WHERE subject_ref = ?",
            (subject_ref,),
        ).fetchone()
        before = None if row is None else ChainHead(row[0], bytes(row[1]))
        content = format_link(event, subject=subject_ref, before=before)
        commitment, ciphertext = seal(content, key=self._keys.make_key(subject_ref))
        index = self._append_leaf(sealed_leaf(commitment, at=at), at=at)
        self._broken = True
        self.connection.execute(
            "INSERT INTO sealed VALUES (?, ?, ?)", (index, subject_ref, ciphertext)
        )
        self.connection.execute(
            "INSERT OR REPLACE INTO subject_head VALUES (?, ?, ?)",
            (subject_ref, 1 if before is None else before.subject_seq + 1, commitment),
        )
        self._broken = False
        return index

    def _check_time(self, at: int) -> None:
        if at < self._latest - CLOCK_TOLERANCE_MS:
            raise LogError(
                f"the time of an event must not go back: {at} is more than five minutes before "
                f"{self._latest}; nothing was appended"
            )

    def _append_leaf(self, leaf: bytes, *, at: int) -> int:
        self._check_time(at)
        self._latest = max(self._latest, at)
        index = self._frontier.size
        self._broken = True
        self.connection.execute("INSERT INTO entry VALUES (?, ?, ?)", (index, leaf, self._latest))
        self.connection.executemany(
            "INSERT INTO node VALUES (?, ?, ?)", self._frontier.append(leaf_hash(leaf))
        )
        self._broken = False
        return index


def create_tables(path: Path, identity: Identity) -> None:
    """Make the tables of an empty log, with triggers that refuse every later change."""
    connection = connect(path)
    try:
        connection.executescript(_SCHEMA)
        upgrade_tables(connection)
        for table in _APPEND_ONLY:
            for action in ("UPDATE", "DELETE"):
                connection.execute(
                    f"CREATE TRIGGER {table}_no_{action.lower()} BEFORE {action} ON {table}"
                    f" BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
                )
        connection.execute(
            "INSERT INTO owner VALUES (?, ?)", (identity.name, identity.public.format())
        )
    finally:
        connection.close()


def upgrade_tables(connection: sqlite3.Connection) -> None:
    """Make the tables that older logs lack, and count their sealed events into chains."""
    has_heads = connection.execute(
        "SELECT 1 FROM sqlite_master WHERE name = 'subject_head'"
    ).fetchone()
    if has_heads is not None:
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        for statement in _SINCE_CHAINS:
            connection.execute(statement)
        rows = connection.execute(
            "SELECT sealed.subject_ref, entry.leaf FROM sealed JOIN entry USING (idx) ORDER BY idx"
        )
        heads: dict[str, ChainHead] = {}
        for subject_ref, leaf in rows:
            commitment = commitment_of(parse_canonical(bytes(leaf)))
            if commitment is None:
                raise LogError("a sealed entry of an older log has no commitment")
            before = heads.get(subject_ref)
            seq = 1 if before is None else before.subject_seq + 1
            heads[subject_ref] = ChainHead(seq, commitment)
        connection.executemany(
            "INSERT INTO subject_head VALUES (?, ?, ?)",
            [(ref, head.subject_seq, head.commitment) for ref, head in heads.items()],
        )
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def _time(event: Event) -> int:
    at = event["at"]
    assert isinstance(at, int)  # noqa: S101 - check_event has refused everything else
    return at
