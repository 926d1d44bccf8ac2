"""Seal a person's events: the log holds a salted commitment, the content can be destroyed.

Content and salt are encrypted under a key of the data subject that lives in a file of its own.
Destroying that key makes every sealed event of the subject unreadable, here and in every copy
of the log, while no leaf and no root hash changes. Backups of the key file must be short-lived,
or they undo an erasure.
"""

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from consent.canonical import JsonValue
from consent.event import is_count, is_version

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
_MANY_KEYS = (
    "SELECT subject_ref, key FROM subject_key WHERE subject_ref IN"  # noqa: S608 - marks only
    f" ({', '.join('?' * _AT_ONCE)})"
)
MINUTE_MS = 60_000


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
    """One AES key per data subject, in a database of its own.

    Trusted: whoever can read the file can open every sealed event of this node.
    """

    def __init__(self, path: Path) -> None:
        self._connection = connect(path)
        self._connection.execute(
            "CREATE TABLE IF NOT EXISTS subject_key"
            " (subject_ref TEXT PRIMARY KEY, key BLOB NOT NULL) WITHOUT ROWID"
        )
        self._made: list[SubjectRef] = []
        self._near: dict[str, bytes] = {}

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
            SealError: There is none, or it was destroyed.
        """
        near = self._near.get(subject_ref)
        if near is not None:
            return near
        row = self._connection.execute(
            "SELECT key FROM subject_key WHERE subject_ref = ?", (subject_ref,)
        ).fetchone()
        if row is None:
            raise SealError("the key of a data subject does not exist or was destroyed")
        return bytes(row[0])

    def expect(self, subject_refs: Sequence[SubjectRef]) -> None:
        """Read the keys of several subjects at once; they are forgotten at the next commit."""
        for start in range(0, len(subject_refs), _AT_ONCE):
            some = list(subject_refs[start : start + _AT_ONCE])
            # The same statement for any number of subjects, so that it is prepared once.
            marks = some + some[-1:] * (_AT_ONCE - len(some))
            self._near.update(self._connection.execute(_MANY_KEYS, marks))

    def make_key(self, subject_ref: SubjectRef) -> bytes:
        """Return the key of a subject, made now when there is none; durable after `commit`."""
        try:
            return self.key(subject_ref)
        except SealError:
            if not self._connection.in_transaction:
                self._connection.execute("BEGIN IMMEDIATE")
            key = AESGCM.generate_key(bit_length=256)
            self._connection.execute("INSERT INTO subject_key VALUES (?, ?)", (subject_ref, key))
            self._made.append(subject_ref)
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
