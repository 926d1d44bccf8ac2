"""Own what PostgreSQL needs to hold a node's database as safely as a file: one schema, one writer.

A commit returns after the server's fsync. The right to write is an advisory lock of the session,
so that it ends with the connection. Needs the extra `tillpact[postgresql]`.
"""

import contextlib
import functools
import hashlib
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import RawCursor, sql
from psycopg.pq import TransactionStatus
from psycopg.types.numeric import Int8BinaryDumper

from consent.address import StoreAddress, parse_address
from consent.event import LogError
from consent.migrations import creation
from consent.store import Connection, Store, first_line

if TYPE_CHECKING:
    from sqlalchemy import Engine

_COPY_FROM_ROWS = 8
_NOTHING_LOST = "SET synchronous_commit TO on"

_LOCK_PATIENCE_S = 1.0


class PostgresqlConnection:
    """A connection that takes `?` marks and says each statement to the server as it is."""

    def __init__(self, raw: "psycopg.Connection[Any]") -> None:
        self.raw = raw

    def execute(self, sql: str, parameters: Sequence[Any] = (), /) -> "psycopg.Cursor[Any]":
        """Run one statement."""
        cursor = self.raw.cursor(binary=True)
        return cursor.execute(_numbered(sql), parameters or None)

    def executemany(
        self, sql: str, parameters: Iterable[Sequence[Any]], /
    ) -> "psycopg.Cursor[Any]":
        """Run one statement for each row of values, in one round trip."""
        cursor = self.raw.cursor(binary=True)
        cursor.executemany(_numbered(sql), parameters)
        return cursor


class PostgresqlStore(Store):
    """One schema of a PostgreSQL database."""

    connection: PostgresqlConnection

    def __init__(self, address: StoreAddress, raw: "psycopg.Connection[Any]") -> None:
        """Use `connect`."""
        self.connection = PostgresqlConnection(raw)
        self.errors = (psycopg.Error,)
        self.where = address.words
        self.dialect = "postgresql"
        self._address = address
        self._raw = raw

    @classmethod
    def connect(cls, url: str, *, writes: bool) -> "PostgresqlStore":
        """Open a connection, and take the right to write where it is wanted.

        Raises:
            LogError: The database does not answer, would lose commits, or has another writer.
            ValueError: The URL is not one that can be used.
        """
        address = parse_address(url)
        try:
            raw = _connect(address)
        except psycopg.Error as error:
            raise LogError(
                f"the database {address.words} does not answer; nothing was opened "
                f"({first_line(error)})"
            ) from error
        try:
            store = cls(address, raw)
            if writes:
                store._claim()
            else:
                raw.execute("SET default_transaction_read_only TO on")
        except psycopg.Error as error:
            raw.close()
            raise LogError(
                f"the database {address.words} could not be opened ({first_line(error)})"
            ) from error
        except BaseException:
            raw.close()
            raise
        return store

    @property
    def in_transaction(self) -> bool:
        """Tell whether a transaction is open, also one that failed."""
        return self._raw.info.transaction_status in {
            TransactionStatus.INTRANS,
            TransactionStatus.INERROR,
            TransactionStatus.ACTIVE,
        }

    @property
    def is_lost(self) -> bool:
        """Tell whether the connection was closed or broke."""
        return self._raw.closed

    def begin(self) -> None:
        """Begin a transaction that will write."""
        self._raw.execute("BEGIN")

    def commit(self) -> None:
        """Make the transaction durable, or raise."""
        # A transaction in which a statement failed is rolled back by COMMIT without an error.
        done = self._raw.execute("COMMIT").statusmessage
        if done != "COMMIT":
            raise psycopg.errors.TransactionRollback("a statement of the transaction failed")

    def insert(self, table: str, rows: Sequence[Sequence[Any]]) -> None:
        """Add whole rows to a table, in the order of its columns."""
        if len(rows) < _COPY_FROM_ROWS:
            marks = ", ".join("?" * len(rows[0]))
            self.connection.executemany(
                f"INSERT INTO {table} VALUES ({marks})",  # noqa: S608 - names of our tables
                rows,
            )
            return
        statement = sql.SQL("COPY {} FROM STDIN (FORMAT BINARY)").format(sql.Identifier(table))
        with self._raw.cursor() as cursor, cursor.copy(statement) as copy:
            for row in rows:
                copy.write_row(row)

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """Give a connection on which all questions see one state."""
        if self.in_transaction:  # The only writer sees its own state, and no other changes.
            yield self.connection
            return
        self._raw.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        try:
            yield self.connection
        finally:
            self._raw.execute("ROLLBACK")

    def forget(self) -> None:
        """Do nothing: dead rows stay until the server's vacuum; the destroyed key counts."""

    def version(self) -> str:
        """Return name and version of the engine."""
        return f"PostgreSQL {self._raw.info.parameter_status('server_version')}"

    def close(self) -> None:
        """Close the connection, which gives the right to write back."""
        self._raw.close()

    def engine(self) -> "Engine":
        """Return SQLAlchemy's way to a new connection."""
        from sqlalchemy import NullPool, create_engine  # noqa: PLC0415 - rarely needed

        return create_engine(
            "postgresql+psycopg://",
            creator=lambda: _prepare(psycopg.connect(self._address.conninfo), self._address.schema),
            poolclass=NullPool,
        )

    def has_table(self, name: str) -> bool:
        """Tell whether there is a table."""
        row = self.connection.execute(
            "SELECT 1 FROM pg_tables WHERE schemaname = ? AND tablename = ?",
            (self._address.schema, name),
        ).fetchone()
        return row is not None

    def make_tables(self) -> None:
        """Make the schema where it is missing, and the tables.

        Raises:
            LogError: There are tables already.
        """
        schema = self._address.schema
        if self._first("SELECT to_regnamespace(?) IS NULL", schema):
            self._raw.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
        if self._first("SELECT EXISTS (SELECT 1 FROM pg_tables WHERE schemaname = ?)", schema):
            raise LogError(
                f"the database {self.where} holds a log or other tables already; nothing was "
                "changed"
            )
        self._raw.execute(";\n".join(creation("postgresql")).encode(), prepare=False)

    def _claim(self) -> None:
        """Take the right to write, and see that a commit of this server lasts."""
        if self._first("SELECT current_setting(?)", "fsync") != "on":
            raise LogError(
                f"the database {self.where} runs with fsync off and would lose what it "
                "acknowledges; nothing was opened"
            )
        digest = hashlib.sha256(b"tillpact/" + self._address.schema.encode()).digest()
        key = int.from_bytes(digest[:8], "big", signed=True)
        # The server gives the lock of a connection that ended free a moment after its end.
        until = time.monotonic() + _LOCK_PATIENCE_S
        while not self._first("SELECT pg_try_advisory_lock(?)", key):
            if time.monotonic() > until:
                raise LogError(f"the log in {self.where} is open for writing elsewhere")
            time.sleep(_LOCK_PATIENCE_S / 50)

    def _first(self, question: str, value: object) -> Any:  # noqa: ANN401
        (found,) = self.connection.execute(question, (value,)).fetchall()[0]
        return found


def _connect(address: StoreAddress) -> "psycopg.Connection[Any]":
    raw: psycopg.Connection[Any] = psycopg.connect(
        address.conninfo, autocommit=True, cursor_factory=RawCursor
    )
    # One type for all numbers: each statement is prepared once, not for each size of a number.
    raw.adapters.register_dumper(int, Int8BinaryDumper)
    return _prepare(raw, address.schema)


def _prepare(raw: "psycopg.Connection[Any]", schema: str) -> "psycopg.Connection[Any]":
    raw.execute(sql.SQL("SET search_path TO {}").format(sql.Identifier(schema)))
    raw.execute(_NOTHING_LOST)
    if not raw.autocommit:
        raw.commit()
    return raw


@functools.cache
def _numbered(statement: str) -> bytes:
    """Return a statement with `$1`, `$2` and so on for its `?` marks."""
    first, *rest = statement.split("?")
    parts = (f"${number}{part}" for number, part in enumerate(rest, 1))
    return "".join([first, *parts]).encode()
