"""Hide where a node's database is: a SQLite file in its folder, or PostgreSQL by URL.

Statements are the same for both: `?` marks a value, texts are TEXT, numbers have 64 bits, bytes
come back as bytes. Keys of data subjects never go here (`sealed`). One process writes; others
may read.
"""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from consent.event import LogError
from consent.migrations import HEAD, REVISIONS, creation, upgrade
from consent.sealed import connect

if TYPE_CHECKING:
    import sqlite3

    from sqlalchemy import Engine
else:
    from pysqlite3 import dbapi2 as sqlite3

DATABASE = "log.sqlite"
_BUSY_MS = 250


class Cursor(Protocol):
    """The answer to a statement, as DB-API 2.0 has it."""

    @property
    def rowcount(self) -> int:
        """Return how many rows the statement changed."""
        ...

    def fetchone(self) -> Any:  # noqa: ANN401 - a row is whatever the question asks for
        """Return the next row, or None."""
        ...

    def fetchall(self) -> list[Any]:
        """Return all rows that are left."""
        ...

    def __iter__(self) -> Iterator[Any]: ...


class Connection(Protocol):
    """A database, as DB-API 2.0 has it; values are marked with `?`."""

    def execute(self, sql: str, parameters: Sequence[Any] = ..., /) -> Cursor:
        """Run one statement."""
        ...

    def executemany(self, sql: str, parameters: Iterable[Sequence[Any]], /) -> Cursor:
        """Run one statement for each row of values."""
        ...


class Store(ABC):
    """One node's database, open.

    Attributes:
        connection: For statements that both engines understand.
        errors: What the database raises.
        where: The database in words, without a secret.
        dialect: "sqlite" or "postgresql".
    """

    connection: Connection
    errors: tuple[type[Exception], ...]
    where: str
    dialect: str

    @property
    @abstractmethod
    def in_transaction(self) -> bool:
        """Tell whether a transaction is open."""

    @property
    @abstractmethod
    def is_lost(self) -> bool:
        """Tell whether the database went away, so that only opening it again can help."""

    @abstractmethod
    def begin(self) -> None:
        """Begin a transaction that will write."""

    @abstractmethod
    def commit(self) -> None:
        """Make the transaction durable, or raise."""

    def rollback(self) -> None:
        """Take the transaction back, if there is one."""
        if self.in_transaction:
            self.connection.execute("ROLLBACK")

    @abstractmethod
    def insert(self, table: str, rows: Sequence[Sequence[Any]]) -> None:
        """Add whole rows to a table, in the order of its columns."""

    @abstractmethod
    def snapshot(self) -> contextlib.AbstractContextManager[Connection]:
        """Give a connection on which all questions see one state."""

    @abstractmethod
    def forget(self) -> None:
        """Overwrite what was deleted, as far as the database can."""

    @abstractmethod
    def version(self) -> str:
        """Return name and version of the engine."""

    @abstractmethod
    def close(self) -> None:
        """Close the connection; what was not committed is lost."""

    @abstractmethod
    def engine(self) -> "Engine":
        """Return SQLAlchemy's way to a new connection, for revisions of the schema."""

    @abstractmethod
    def has_table(self, name: str) -> bool:
        """Tell whether there is a table."""

    def make_tables(self) -> None:
        """Make the tables of an empty database, in the transaction that is open."""
        for statement in creation(self.dialect):
            self.connection.execute(statement)

    def check_revision(self) -> bool:
        """Tell whether the tables are of today's revision.

        Raises:
            LogError: They name no revision, or one that this version does not know.
        """
        rows = []
        if not self.has_table("owner"):
            raise LogError(f"the database {self.where} could not be opened: it holds no log")
        if self.has_table("alembic_version"):
            rows = self.connection.execute("SELECT version_num FROM alembic_version").fetchall()
        found = [str(name) for (name,) in rows]
        if len(found) != 1:
            raise LogError(
                f"the database {self.where} could not be opened: it names no revision of the "
                "tables; nothing was changed"
            )
        if found[0] not in REVISIONS:
            raise LogError(
                f"the database {self.where} has the revision {found[0]} and this version knows "
                f"{REVISIONS[0]} to {HEAD}; it was not opened, and nothing was changed"
            )
        return found[0] == HEAD

    def upgrade(self) -> None:
        """Bring the tables to today's revision, all of it or nothing.

        Raises:
            LogError: A step failed; nothing was changed.
        """
        if self.check_revision():
            return
        from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415 - old databases only

        try:
            upgrade(self.engine())
        except SQLAlchemyError as error:
            raise LogError(
                f"the tables of {self.where} could not be brought to the revision {HEAD}; nothing "
                f"was changed ({first_line(error)})"
            ) from error


class SqliteStore(Store):
    """A file in the node's folder: WAL, synchronous FULL, deleted content overwritten."""

    connection: "sqlite3.Connection"

    def __init__(self, path: Path, connection: "sqlite3.Connection") -> None:
        """Use `create_store`, `open_store` or `open_readonly`."""
        self.connection = connection
        self.errors = (sqlite3.Error,)
        self.where = str(path)
        self.dialect = "sqlite"
        self._path = path

    @property
    def in_transaction(self) -> bool:
        """Tell whether a transaction is open."""
        return self.connection.in_transaction

    @property
    def is_lost(self) -> bool:
        """Return False: a file does not go away."""
        return False

    def begin(self) -> None:
        """Begin a transaction that will write."""
        self.connection.execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        """Make the transaction durable, or raise."""
        self.connection.execute("COMMIT")

    def insert(self, table: str, rows: Sequence[Sequence[Any]]) -> None:
        """Add whole rows to a table, in the order of its columns."""
        marks = ", ".join("?" * len(rows[0]))
        self.connection.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)  # noqa: S608

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """Give a connection on which all questions see one state."""
        # A savepoint does it, inside a transaction and outside.
        self.connection.execute("SAVEPOINT snapshot")
        try:
            yield self.connection
        finally:
            self.connection.execute("RELEASE snapshot")

    def forget(self) -> None:
        """Move the write-ahead file into the database, which overwrites what was deleted."""
        self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def version(self) -> str:
        """Return name and version of the engine."""
        return f"SQLite {sqlite3.sqlite_version}"

    def close(self) -> None:
        """Close the file."""
        self.connection.close()

    def engine(self) -> "Engine":
        """Return SQLAlchemy's way to a new connection."""
        from sqlalchemy import NullPool, create_engine  # noqa: PLC0415 - rarely needed

        return create_engine(
            "sqlite://", module=sqlite3, creator=lambda: connect(self._path), poolclass=NullPool
        )

    def has_table(self, name: str) -> bool:
        """Tell whether there is a table."""
        row = self.connection.execute(
            "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", (name,)
        ).fetchone()
        return row is not None


def is_store_there(folder: Path, url: str | None) -> bool:
    """Tell whether a folder's database exists; for PostgreSQL only opening it can tell."""
    return url is not None or (folder / DATABASE).exists()


def create_store(folder: Path, url: str | None) -> Store:
    """Make an empty database and leave its transaction open, so that it is all or nothing.

    Raises:
        LogError: There is one already, or it does not answer; nothing was changed.
        ValueError: The URL is not one that can be used.
    """
    store = _open(folder, url)
    with _closing_on_error(store, f"the database {store.where} could not be made"):
        store.begin()
        store.make_tables()
    return store


def open_store(folder: Path, url: str | None) -> Store:
    """Open a database for its only writer.

    Raises:
        LogError: It is missing, of an unknown revision, or another process writes in it.
        ValueError: The URL is not one that can be used.
    """
    store = _open(folder, url)
    with _closing_on_error(store, f"the database {store.where} could not be opened"):
        store.check_revision()
    return store


def open_readonly(folder: Path, url: str | None) -> Store:
    """Open a database that another process writes; it cannot be changed from here.

    Raises:
        LogError: It is missing, of another revision, or does not answer.
        ValueError: The URL is not one that can be used.
    """
    store = _open_postgresql(url, writes=False) if url else _open_file(folder / DATABASE)
    with _closing_on_error(store, f"the database {store.where} could not be opened"):
        if not store.check_revision():
            raise LogError(
                f"the database {store.where} is of an older revision; open the node once to "
                "bring it up to date"
            )
    return store


def first_line(error: BaseException) -> str:
    """Return what a database says, without the lines in which some quote rows."""
    return str(error).strip().split("\n", 1)[0]


@contextlib.contextmanager
def _closing_on_error(store: Store, sentence: str) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        store.close()
        if isinstance(error, store.errors):
            raise LogError(f"{sentence} ({first_line(error)})") from error
        raise


def _open(folder: Path, url: str | None) -> Store:
    if url is not None:
        return _open_postgresql(url, writes=True)
    path = folder / DATABASE
    return SqliteStore(path, connect(path))


def _open_file(path: Path) -> Store:
    try:
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=ro",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
        )
        connection.execute("PRAGMA query_only=ON")
        connection.execute(f"PRAGMA busy_timeout={_BUSY_MS}")
    except sqlite3.Error as error:
        raise LogError(f"the database {path} could not be opened ({error})") from error
    return SqliteStore(path, connection)


def _open_postgresql(url: str, *, writes: bool) -> Store:
    try:
        from consent.postgresql import PostgresqlStore  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise LogError(
            "a store in PostgreSQL needs the extra tillpact[postgresql], which is not installed; "
            "nothing was opened"
        ) from error
    return PostgresqlStore.connect(url, writes=writes)
