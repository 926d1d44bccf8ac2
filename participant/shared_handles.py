"""Own the random names under which another brand knows a person, in both directions.

A name is drawn when data about a person first goes to a recipient, is different for each
recipient, and says nothing. Nothing here is ever in the log.
"""

import secrets

from consent import Log, Purpose, SubjectRef

# A merged person has several pseudonyms, and what is known under each is about them.
_REFS = """(SELECT ? UNION SELECT other.subject_ref FROM consent_ref AS mine
    JOIN consent_ref AS other ON other.row_no = mine.row_no WHERE mine.subject_ref = ?)"""


class SharedHandles:
    """The shared names of one node."""

    def __init__(self, log: Log) -> None:
        """Keep them in the log's database, beside the register.

        Raises:
            LogError: The log cannot be written.
        """
        self._log = log

    def give(self, recipient: str, ref: SubjectRef) -> str:
        """Return the name of a person for a recipient, the same every time."""
        with self._log.transaction() as transaction:
            known = self.of(ref).get(recipient)
            if known:
                return known[0]
            handle = secrets.token_hex(16)
            transaction.connection.execute(
                "INSERT INTO shared_handle VALUES (?, ?, ?)", (recipient, ref, handle)
            )
        return handle

    def of(self, ref: SubjectRef) -> dict[str, list[str]]:
        """Return the names of a person by recipient; more than one after a merge."""
        found: dict[str, list[str]] = {}
        with self._log.reading() as connection:
            rows = connection.execute(
                "SELECT recipient, handle FROM shared_handle WHERE subject_ref IN "  # noqa: S608
                f"{_REFS} ORDER BY recipient, handle",
                (ref, ref),
            ).fetchall()
        for recipient, handle in rows:
            found.setdefault(recipient, []).append(handle)
        return found

    def learn(self, sender: str, handle: str, ref: SubjectRef) -> frozenset[Purpose]:
        """Keep as whom a sender's name is known here.

        Returns:
            What was withdrawn under that name before it was known; it is no longer waiting,
            so withdraw it in the same transaction.

        Raises:
            ValueError: The name is somebody else's already; nothing was kept.
        """
        with self._log.transaction() as transaction:
            connection = transaction.connection
            known = self.whose(sender, handle)
            if known not in {None, ref}:
                raise ValueError(f"{sender} uses this handle for somebody else; nothing was kept")
            connection.execute(
                "INSERT INTO known_handle VALUES (?, ?, ?) ON CONFLICT (sender, handle) DO NOTHING",
                (sender, handle, ref),
            )
            waiting = connection.execute(
                "SELECT purpose FROM waiting_withdrawal WHERE sender = ? AND handle = ?",
                (sender, handle),
            ).fetchall()
            connection.execute(
                "DELETE FROM waiting_withdrawal WHERE sender = ? AND handle = ?", (sender, handle)
            )
        return frozenset(Purpose(purpose) for (purpose,) in waiting)

    def whose(self, sender: str, handle: str) -> SubjectRef | None:
        """Return who a sender's name means here; None for nobody."""
        with self._log.reading() as connection:
            row = connection.execute(
                "SELECT subject_ref FROM known_handle WHERE sender = ? AND handle = ?",
                (sender, handle),
            ).fetchone()
        return None if row is None else SubjectRef(row[0])

    def wait(self, sender: str, handle: str, purposes: frozenset[Purpose]) -> None:
        """Keep what was withdrawn under a name that is not known yet."""
        with self._log.transaction() as transaction:
            transaction.connection.executemany(
                "INSERT INTO waiting_withdrawal VALUES (?, ?, ?)"
                " ON CONFLICT (sender, handle, purpose) DO NOTHING",
                [(sender, handle, str(purpose)) for purpose in sorted(purposes)],
            )

    def forget(self, ref: SubjectRef) -> None:
        """Destroy every name of a person, theirs here and theirs elsewhere."""
        with self._log.transaction() as transaction:
            for table in ("shared_handle", "known_handle"):
                transaction.connection.execute(
                    f"DELETE FROM {table} WHERE subject_ref IN {_REFS}",  # noqa: S608
                    (ref, ref),
                )
