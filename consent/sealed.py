"""Seal a person's events: the log holds a salted commitment, the content can be destroyed.

Content and salt are encrypted under a key of the data subject that lives, wrapped, in a file of
its own. Destroying that key makes every sealed event of the subject unreadable, here and in every
copy of the log, while no leaf and no root hash changes. Backups of the key file must be
short-lived, or they undo an erasure.
"""

import contextlib
import hashlib
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from consent.canonical import JsonValue
from consent.event import LogError, is_count, is_version
from consent.wrapping import WrappingError, WrappingKeys

if TYPE_CHECKING:
    import sqlite3
else:
    from pysqlite3 import dbapi2 as sqlite3


class SubjectRef(str):
    """Pseudonym of a data subject: 64 hex digits of a keyed hash, useless without the key.

    A type of its own, so that who is known by pseudonym is never taken for somebody whose id of
    the brand's happens to read so.
    """

    __slots__ = ()


_HEX = re.compile(r"[0-9a-f]{64}")
_SALT_BYTES = 32
_NONCE_BYTES = 12
_AT_ONCE = 64
_TABLE = (
    "CREATE TABLE IF NOT EXISTS subject_key (subject_ref TEXT PRIMARY KEY,"
    " wrapped BLOB NOT NULL, wrapping_id TEXT NOT NULL) WITHOUT ROWID"
)
_PUT_KEY = "INSERT INTO subject_key VALUES (?, ?, ?)"
_MANY_KEYS = (
    "SELECT subject_ref, wrapped, wrapping_id FROM subject_key WHERE subject_ref IN"  # noqa: S608
    f" ({', '.join('?' * _AT_ONCE)})"
)
_OLDER = (
    "SELECT subject_ref, wrapped, wrapping_id FROM subject_key"
    " WHERE wrapping_id <> ? AND subject_ref > ? ORDER BY subject_ref LIMIT 1000"
)
WRAPPING_KEY = "wrapping.key"
MINUTE_MS = 60_000
_log = logging.getLogger(__name__)


class SealError(Exception):
    """A sealed event cannot be opened: its key is destroyed, or its content was changed."""


def connect(path: Path) -> sqlite3.Connection:
    """Open a database that is durable at each commit and forgets what is deleted.

    Only its owner can read the file.
    """
    path.touch(mode=0o600)
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
        "secure_delete=ON",
        "trusted_schema=OFF",
    ):
        connection.execute(f"PRAGMA {pragma}")
    return connection


def sealed_leaf(commitment: bytes, *, at: int) -> bytes:
    """Return the leaf that stands for a sealed event: a commitment and the minute, no more."""
    # What format_canonical writes, in a tenth of the time.
    return b'{"c":"%s","k":"sealed","t":%d,"v":1}' % (commitment.hex().encode(), at // MINUTE_MS)


def seal(event: bytes, *, key: bytes) -> tuple[bytes, bytes]:
    """Return (commitment, ciphertext) of a canonical event under a subject's key.

    The commitment is sha256(salt || event); the ciphertext is nonce || AES-256-GCM of
    salt || event with the commitment as associated data.
    """
    salt = os.urandom(_SALT_BYTES)
    commitment = hashlib.sha256(salt + event).digest()
    nonce = os.urandom(_NONCE_BYTES)
    return commitment, nonce + AESGCM(key).encrypt(nonce, salt + event, commitment)


def unseal(ciphertext: bytes, *, key: bytes, commitment: bytes) -> tuple[bytes, bytes]:
    """Return (salt, event) and check them against the commitment.

    Raises:
        SealError: Key, ciphertext and commitment do not belong together.
    """
    nonce, body = ciphertext[:_NONCE_BYTES], ciphertext[_NONCE_BYTES:]
    try:
        content = AESGCM(key).decrypt(nonce, body, commitment)
    except (InvalidTag, ValueError) as error:
        raise SealError("a sealed event does not open with the key of its subject") from error
    salt, event = content[:_SALT_BYTES], content[_SALT_BYTES:]
    verify_commitment(commitment, salt=salt, event=event)
    return salt, event


def verify_commitment(commitment: bytes, *, salt: bytes, event: bytes) -> None:
    """Raise `SealError` unless salt and event are what the commitment was made from."""
    if len(salt) != _SALT_BYTES or hashlib.sha256(salt + event).digest() != commitment:
        raise SealError("an opened event is not the one its leaf commits to")


def commitment_of(leaf: JsonValue) -> bytes | None:
    """Return the commitment of a sealed leaf, or None for an open one."""
    match leaf:
        case {"v": version, "k": "sealed", "t": minute, "c": str(commitment), **rest} if not rest:
            if is_version(version) and is_count(minute) and _HEX.fullmatch(commitment):
                return bytes.fromhex(commitment)
    return None


class SubjectKeys:
    """One AES key per data subject, in a database of its own, each wrapped under one key.

    Trusted: whoever can read the database and the file `wrapping.key` beside it can open every
    sealed event of this node. Either of them alone opens nothing.
    """

    def __init__(self, path: Path) -> None:
        """Open the keys, or make a place for them; older ones that lie bare are wrapped.

        Raises:
            LogError: There are keys, and not the key that they are wrapped under.
        """
        self._connection = connect(path)
        self._made: list[SubjectRef] = []
        self._near: dict[str, bytes] = {}
        try:
            self._wrapping = WrappingKeys(path.with_name(WRAPPING_KEY))
            self._prepare()
        except BaseException:
            self._connection.close()
            raise

    @property
    def made(self) -> int:
        """Return how many keys were made since the last commit."""
        return len(self._made)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def key(self, subject_ref: SubjectRef) -> bytes:
        """Return the key of a subject.

        Raises:
            SealError: There is none, it was destroyed, or it cannot be unwrapped.
        """
        try:
            key = self._find(subject_ref)
        except WrappingError as error:
            raise SealError(f"{error}; nothing was opened") from error
        if key is None:
            raise SealError("the key of a data subject does not exist or was destroyed")
        return key

    def expect(self, subject_refs: Sequence[SubjectRef]) -> None:
        """Read the keys of several subjects at once; they are forgotten at the next commit."""
        for start in range(0, len(subject_refs), _AT_ONCE):
            some = list(subject_refs[start : start + _AT_ONCE])
            # The same statement for any number of subjects, so that it is prepared once.
            marks = some + some[-1:] * (_AT_ONCE - len(some))
            for ref, wrapped, key_id in self._connection.execute(_MANY_KEYS, marks):
                # One that cannot be unwrapped is an error of the entry that needs it.
                with contextlib.suppress(WrappingError):
                    self._near[ref] = self._wrapping.unwrap(wrapped, owner=ref, key_id=key_id)

    def make_key(self, subject_ref: SubjectRef) -> bytes:
        """Return the key of a subject, made now when there is none; durable after `commit`.

        Raises:
            LogError: There is one that cannot be unwrapped.
        """
        try:
            known = self._find(subject_ref)
        except WrappingError as error:
            raise LogError(f"{error}; nothing was appended") from error
        if known is not None:
            return known
        self._begin()
        key = AESGCM.generate_key(bit_length=256)
        self._connection.execute(_PUT_KEY, (subject_ref, *self._wrap(subject_ref, key)))
        self._made.append(subject_ref)
        self._near[subject_ref] = key
        return key

    def unmake(self, kept: int) -> None:
        """Forget all but the first `kept` keys that were made since the last commit."""
        self._near.clear()
        for subject_ref in self._made[kept:]:
            self._connection.execute(
                "DELETE FROM subject_key WHERE subject_ref = ?", (subject_ref,)
            )
        del self._made[kept:]

    def commit(self) -> None:
        """Make new keys durable; called before the log commits what they encrypt."""
        self._near.clear()
        if self._connection.in_transaction:
            self._connection.execute("COMMIT")
        self._made.clear()

    def rollback(self) -> None:
        """Forget new keys."""
        self._near.clear()
        self._made.clear()
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def destroy(self, subject_ref: SubjectRef) -> None:
        """Erase a key from the database and from its write-ahead file."""
        self._near.clear()
        self._connection.execute("DELETE FROM subject_key WHERE subject_ref = ?", (subject_ref,))
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def successor(self) -> str:
        """Return the id of the wrapping key that `rewrap` changes to."""
        return self._wrapping.successor()

    def rewrap(self) -> None:
        """Wrap every key under a new wrapping key; durable after `commit`.

        Until `finish_rewrapping` both wrapping keys are there, so that every key can be unwrapped
        whatever happens in between. After an interruption it goes on with the same new key.

        Raises:
            LogError: Some key cannot be unwrapped; then take it back with `rollback`.
            OSError: The new wrapping key could not be written.
        """
        self._wrapping.begin()
        self._begin()
        last = ""
        while some := self._connection.execute(_OLDER, (self._wrapping.current, last)).fetchall():
            try:
                self._connection.executemany(
                    "UPDATE subject_key SET wrapped = ?, wrapping_id = ? WHERE subject_ref = ?",
                    [
                        (*self._wrap(ref, self._wrapping.unwrap(old, owner=ref, key_id=by)), ref)
                        for ref, old, by in some
                    ],
                )
            except WrappingError as error:
                raise LogError(f"{error}; the older wrapping key was kept") from error
            last = some[-1][0]

    def finish_rewrapping(self) -> None:
        """Destroy the older wrapping key, after `rewrap` and `commit`.

        Raises:
            OSError: It could not be destroyed; do all of it again.
        """
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._wrapping.finish()

    def _find(self, subject_ref: str) -> bytes | None:
        near = self._near.get(subject_ref)
        if near is not None:
            return near
        row = self._connection.execute(
            "SELECT wrapped, wrapping_id FROM subject_key WHERE subject_ref = ?", (subject_ref,)
        ).fetchone()
        if row is None:
            return None
        return self._wrapping.unwrap(row[0], owner=subject_ref, key_id=row[1])

    def _wrap(self, subject_ref: str, key: bytes) -> tuple[bytes, str]:
        return self._wrapping.wrap(key, owner=subject_ref)

    def _begin(self) -> None:
        if not self._connection.in_transaction:
            self._connection.execute("BEGIN IMMEDIATE")

    def _prepare(self) -> None:
        columns = self._connection.execute("SELECT name FROM pragma_table_info('subject_key')")
        is_bare = ("key",) in columns.fetchall()
        if not is_bare:
            self._connection.execute(_TABLE)
        one = self._connection.execute("SELECT * FROM subject_key LIMIT 1").fetchone()
        if one is not None and not is_bare and not self._wrapping.knows(one[2]):
            raise LogError(
                f"the keys of data subjects are wrapped under another key than the one in "
                f"{WRAPPING_KEY}, or that file is missing; nothing was opened"
            )
        if not self._wrapping.current:
            self._wrapping.create()
        if is_bare:
            self._wrap_bare()
        if self._wrapping.is_changing:
            _log.warning("a change of the wrapping key was interrupted; rotate the keys again")

    def _wrap_bare(self) -> None:
        """Bring a database of the time before keys were wrapped up to date."""
        self._begin()
        self._connection.execute("ALTER TABLE subject_key RENAME TO bare_key")
        self._connection.execute(_TABLE)
        for ref, key in self._connection.execute("SELECT subject_ref, key FROM bare_key"):
            self._connection.execute(_PUT_KEY, (ref, *self._wrap(ref, key)))
        self._connection.execute("DROP TABLE bare_key")
        self.commit()
        # The bare keys must not stay in the write-ahead file either.
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
