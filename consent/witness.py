"""Watch other nodes' logs: cosign a head only when it extends the last one that was cosigned.

The last head of each log is durable before its cosignature is given away, so that a witness
never cosigns two histories of one log, also not after a crash.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from consent.checkpoint import Checkpoint, cosign, verify_log_signature
from consent.equivocation import Evidence
from consent.event import LogError
from consent.identity import Identity, PublicIdentity
from consent.merkle import ProofError, verify_consistency
from consent.note import Note, NoteError
from consent.sealed import connect

if TYPE_CHECKING:
    import sqlite3
else:
    from pysqlite3 import dbapi2 as sqlite3

_PUT_SEEN = (
    "INSERT INTO seen VALUES (?, ?, ?)"
    " ON CONFLICT (origin) DO UPDATE SET vkey = excluded.vkey, note = excluded.note"
)


class EquivocationError(Exception):
    """A log showed a head that does not follow from the one it showed before.

    Attributes:
        known: The note that was cosigned before.
        shown: The note that was refused.
    """

    def __init__(self, message: str, *, known: str, shown: str) -> None:
        super().__init__(message)
        self.known, self.shown = known, shown

    def evidence(self, log: PublicIdentity) -> Evidence:
        """Return what to hand on to others about this log."""
        return Evidence(log=log, known=self.known, shown=self.shown)


class Witness:
    """The memory of one witness."""

    def __init__(self, path: Path, identity: Identity) -> None:
        """Open the memory, or begin one.

        Raises:
            LogError: The file cannot be opened or written.
        """
        self._identity = identity
        with _storage():
            self._connection = connect(path)
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS seen (origin TEXT PRIMARY KEY, vkey TEXT NOT NULL,"
                " note TEXT NOT NULL) WITHOUT ROWID"
            )

    def close(self) -> None:
        """Close the memory."""
        self._connection.close()

    def __enter__(self) -> "Witness":
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    @property
    def public(self) -> PublicIdentity:
        """Return the key that cosigns."""
        return self._identity.public

    def size_of(self, origin: str) -> int:
        """Return the tree size that was cosigned last, 0 for an unknown log."""
        with _storage():
            seen = self._seen(origin)
        return 0 if seen is None else _head(seen[1]).tree_size

    def seen(self, origin: str) -> str | None:
        """Return the note that was cosigned last, as its log signed it; None for an unknown log."""
        with _storage():
            row = self._seen(origin)
        return None if row is None else row[1]

    def cosign(self, note: str, *, log: PublicIdentity, proof: Sequence[bytes], at: int) -> str:
        """Cosign a head that extends the one known.

        Args:
            note: A checkpoint, signed by its log.
            log: The key this log is known by; pinned at the first cosignature.
            proof: Consistency proof from `size_of(log.name)`; empty for an unknown log and
                for the size known already.
            at: Epoch milliseconds.

        Raises:
            NoteError: The note is not a checkpoint signed by this log.
            ProofError: The proof does not show that the log only grew.
            EquivocationError: A smaller head, or another root of the same size.
            LogError: The memory cannot be written; nothing was cosigned.
        """
        shown = verify_log_signature(note, log)
        with self._remembering():
            seen = self._seen(log.name)
            if seen is not None:
                self._check_key(seen[0], log)
                _check_growth(seen[1], note, proof=proof)
            elif proof:
                raise ProofError("the proof for a log that is not known yet must be empty")
            if seen is None or shown.tree_size > _head(seen[1]).tree_size:
                self._connection.execute(_PUT_SEEN, (log.name, log.format(), note))
        return cosign(note, self._identity, at=at)

    @contextlib.contextmanager
    def _remembering(self) -> Iterator[None]:
        with _storage():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def _seen(self, origin: str) -> tuple[str, str] | None:
        row = self._connection.execute(
            "SELECT vkey, note FROM seen WHERE origin = ?", (origin,)
        ).fetchone()
        return None if row is None else (str(row[0]), str(row[1]))

    def _check_key(self, vkey: str, log: PublicIdentity) -> None:
        if vkey != log.format():
            raise NoteError(f"the log {log.name!r} was known by another key before")


def _check_growth(known: str, shown: str, *, proof: Sequence[bytes]) -> None:
    old, new = _head(known), _head(shown)
    if new.tree_size < old.tree_size:
        raise EquivocationError(
            f"the log {new.origin!r} shows {new.tree_size} entries after {old.tree_size}",
            known=known,
            shown=shown,
        )
    if new.tree_size == old.tree_size and new.root_hash != old.root_hash:
        raise EquivocationError(
            f"the log {new.origin!r} signed two different heads of size {new.tree_size}",
            known=known,
            shown=shown,
        )
    if old.tree_size == 0:
        if proof:
            raise ProofError("the proof from an empty log must be empty")
        return
    verify_consistency(
        old_size=old.tree_size,
        new_size=new.tree_size,
        old_root=old.root_hash,
        new_root=new.root_hash,
        proof=proof,
    )


def _head(note: str) -> Checkpoint:
    return Checkpoint.parse(Note.parse(note).text)


@contextlib.contextmanager
def _storage() -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise LogError(
            f"the witness's memory cannot be used; nothing was cosigned ({error})"
        ) from error
