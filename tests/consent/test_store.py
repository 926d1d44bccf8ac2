"""The database behind a log: schema, revisions, and what only PostgreSQL can suffer."""

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from pysqlite3 import dbapi2 as sqlite3
from sqlalchemy import inspect

from consent import Identity, Log, LogError, Profile, Register, SubjectRef, parse_address
from consent.event import Event
from consent.merkle import tree_root
from consent.migrations import HEAD, REVISIONS, upgrade
from consent.postgresql import PostgresqlStore
from consent.sealed import connect
from consent.store import SqliteStore, Store
from consent.tables import METADATA
from tests.conftest import Stores
from tests.postgresql import Server

ANNA = SubjectRef("a" * 64)
_numbers = itertools.count(1)


def _event(at: int = 1) -> Event:
    return {"type": "x", "at": at, "v": 1}


@pytest.fixture
def postgresql(server: Server, request: pytest.FixtureRequest) -> str:
    """Where one log can be kept on the server that all tests share."""
    return server.url(schema=f"store_{abs(hash(request.node.name))}")


def _empty(folder: Path, store: str | None, server: Server) -> Store:
    """Return an open store with no tables in it."""
    if store is None:
        path = folder / "log.sqlite"
        return SqliteStore(path, connect(path))
    schema = store.rpartition("=")[2]
    with server.connect() as connection:
        connection.execute(f"CREATE SCHEMA {schema}".encode())
    return PostgresqlStore.connect(store, writes=True)


def _triggers(store: Store) -> list[tuple[Any, ...]]:
    questions = {
        "sqlite": "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' ORDER BY name",
        "postgresql": "SELECT tgname, replace(pg_get_triggerdef(oid), current_schema() || '.', '')"
        " FROM pg_trigger WHERE NOT tgisinternal"
        " AND tgrelid::regclass::text NOT LIKE '%.%' ORDER BY tgname",
    }
    return [tuple(row) for row in store.connection.execute(questions[store.dialect]).fetchall()]


def _shape(store: Store) -> dict[str, object]:
    """Return what the database itself says of its tables."""
    with store.engine().connect() as connection:
        seen = inspect(connection)
        return {
            table: (
                [(c["name"], str(c["type"]), c["nullable"]) for c in seen.get_columns(table)],
                seen.get_pk_constraint(table)["constrained_columns"],
                [(i["name"], i["column_names"], i["unique"]) for i in seen.get_indexes(table)],
                [f["constrained_columns"] for f in seen.get_foreign_keys(table)],
                [(c["name"], c["sqltext"]) for c in seen.get_check_constraints(table)],
                [(u["name"], u["column_names"]) for u in seen.get_unique_constraints(table)],
            )
            for table in sorted(seen.get_table_names())
        }


def test_all_revisions_together_give_the_schema_of_a_new_database(
    tmp_path: Path, identity: Identity, stores: Stores, server: Server
) -> None:
    Log.create(tmp_path / "log", identity, store=(made_at := stores())).close()
    made = (
        SqliteStore(tmp_path / "log" / "log.sqlite", connect(tmp_path / "log" / "log.sqlite"))
        if made_at is None
        else PostgresqlStore.connect(made_at, writes=False)
    )
    upgraded = _empty(tmp_path, stores(), server)
    upgrade(upgraded.engine())

    with upgraded.engine().connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
    assert _shape(upgraded) == _shape(made)
    assert _triggers(upgraded) == _triggers(made) != []
    for one in (made, upgraded):
        counts = one.connection.execute("SELECT * FROM consent_seq").fetchall()
        assert [tuple(row) for row in counts] == [(1, 0, 0, 0)]
        one.close()


def test_the_constant_names_the_revisions_that_there_are() -> None:
    folder = Path(upgrade.__code__.co_filename).parent
    found = [str(one.revision) for one in ScriptDirectory(str(folder)).walk_revisions()]

    assert tuple(reversed(found)) == REVISIONS


def _at_first_revision(folder: Path, store: str | None, server: Server, owner: Identity) -> None:
    """Make what the first revision left behind: a log, and neither register nor services."""
    Log.create(folder / "log", owner).close()  # For keys, anchor and lock.
    (folder / "log" / "log.sqlite").unlink()
    old = _empty(folder / "log", store, server)
    upgrade(old.engine(), to=REVISIONS[0])
    old.insert("owner", [(owner.name, owner.public.format())])
    old.close()


def test_an_older_database_is_brought_up_to_date_when_it_is_opened(
    tmp_path: Path, identity: Identity, store: str | None, server: Server
) -> None:
    _at_first_revision(tmp_path, store, server, identity)
    with pytest.raises(LogError, match="is of an older revision; open the node once to bring it"):
        Register.open_readonly(
            tmp_path / "log", pseudonym_key=bytes(32), profile=Profile.EU_GDPR, store=store
        )

    with Log.open(tmp_path / "log", identity, store=store) as log:
        register = Register(log, pseudonym_key=bytes(32), profile=Profile.EU_GDPR)
        register.withdraw("anna", at=5)

        assert log._writer.store.check_revision()
        assert register.state_seq == 1


def test_a_step_that_fails_changes_nothing(
    tmp_path: Path, identity: Identity, store: str | None, server: Server
) -> None:
    _at_first_revision(tmp_path, store, server, identity)
    blocked = (
        SqliteStore(tmp_path / "log" / "log.sqlite", connect(tmp_path / "log" / "log.sqlite"))
        if store is None
        else PostgresqlStore.connect(store, writes=True)
    )
    # The last revision stumbles over it, long after the second one is done.
    blocked.connection.execute("CREATE TABLE handle_generation (mine INTEGER)")
    before = _shape(blocked)
    blocked.close()

    with pytest.raises(LogError, match=f"could not be brought to the revision {HEAD}; nothing was"):
        Log.open(tmp_path / "log", identity, store=store)
    again = (
        SqliteStore(tmp_path / "log" / "log.sqlite", connect(tmp_path / "log" / "log.sqlite"))
        if store is None
        else PostgresqlStore.connect(store, writes=True)
    )
    assert _shape(again) == before
    again.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("UPDATE alembic_version SET version_num = '9999'", "has the revision 9999 and this versi"),
        ("DELETE FROM alembic_version", "it names no revision of the tables; nothing was changed"),
        ("DROP TABLE alembic_version", "it names no revision of the tables; nothing was changed"),
    ],
)
def test_a_database_of_an_unknown_revision_is_left_alone(
    log: Log, tmp_path: Path, identity: Identity, store: str | None, change: str, message: str
) -> None:
    log.append(_event())
    with log.transaction() as transaction:
        transaction.connection.execute(change)
    log.close()

    with pytest.raises(LogError, match=message):
        Log.open(tmp_path / "log", identity, store=store)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://db/retail", "must be a URL such as postgresql://"),
        ("postgresql://db", "must be a URL such as postgresql://"),
        ("postgresql://db:x/retail", "must be a URL such as postgresql://"),
        ("postgresql://node:hunter2@db/retail", "must not hold a password: name a file"),
        ("postgresql://db/retail?password=hunter2", "must not hold a password: name a file"),
        ("postgresql://db/retail?options=-cfsync%3Doff", "has an unknown option: options"),
        ("postgresql://db/retail?schema=Amber", "the schema in a store's URL must be up to 63"),
        ("postgresql://db/retail?schema=pg_catalog", "and not begin with pg_"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_and_not_repeated(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse_address(url)

    assert "hunter2" not in str(caught.value)


def test_an_address_says_where_and_under_which_schema() -> None:
    address = parse_address("postgresql://node@db.example:5433/retail?schema=amber&passfile=/p")

    assert address.schema == "amber"
    assert address.words == "postgresql://db.example:5433/retail (schema amber)"
    assert "passfile=%2Fp" in address.conninfo
    assert "connect_timeout=10" in address.conninfo
    assert parse_address("postgresql:///retail").schema == "tillpact"


def test_a_server_that_does_not_answer_is_one_sentence(tmp_path: Path, identity: Identity) -> None:
    url = f"postgresql:///retail?host={tmp_path}"
    with pytest.raises(LogError, match="does not answer; nothing was opened"):
        Log.create(tmp_path / "log", identity, store=url)

    assert [path.name for path in (tmp_path / "log").iterdir()] == ["lock"]


def test_without_the_extra_the_refusal_says_which(
    tmp_path: Path, identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "psycopg", None)
    monkeypatch.delitem(__import__("sys").modules, "consent.postgresql")
    with pytest.raises(LogError, match=r"needs the extra tillpact\[postgresql\]"):
        Log.create(tmp_path / "log", identity, store="postgresql://db/retail")


def test_one_schema_holds_one_log(tmp_path: Path, identity: Identity, postgresql: str) -> None:
    with Log.create(tmp_path / "log", identity, store=postgresql) as log:
        log.append(_event())
    with pytest.raises(LogError, match="holds a log or other tables already; nothing was changed"):
        Log.create(tmp_path / "other", identity, store=postgresql)
    with Log.open(tmp_path / "log", identity, store=postgresql) as log:
        assert log.tree_size == 1


def test_a_second_host_is_refused_while_the_first_writes(
    tmp_path: Path, identity: Identity, postgresql: str
) -> None:
    """A second host has a folder and a lock of its own; the database has one writer."""
    import shutil

    with Log.create(tmp_path / "log", identity, store=postgresql) as one:
        shutil.copytree(tmp_path / "log", tmp_path / "copy")
        with pytest.raises(LogError, match="is open for writing elsewhere"):
            Log.open(tmp_path / "copy", identity, store=postgresql)
        one.append(_event())


def test_two_writers_that_got_past_both_locks_cannot_both_commit_an_index(
    tmp_path: Path, identity: Identity, postgresql: str
) -> None:
    with Log.create(tmp_path / "log", identity, store=postgresql) as one:
        (tmp_path / "log" / "lock").unlink()
        one._writer.store.connection.execute("SELECT pg_advisory_unlock_all()")
        with Log.open(tmp_path / "log", identity, store=postgresql) as two:
            assert one.append(_event(1)) == 0
            with pytest.raises(LogError, match=r"nothing was appended \(duplicate key value"):
                two.append(_event(2))
            assert one.append(_event(3)) == 1
        assert one.root_hash == tree_root([entry.hash for entry in one.entries()])


@pytest.mark.parametrize("table", ["owner", "entry", "node", "signed"])
def test_a_table_of_the_log_cannot_be_emptied(
    tmp_path: Path, identity: Identity, postgresql: str, table: str
) -> None:
    with (
        Log.create(tmp_path / "log", identity, store=postgresql) as log,
        pytest.raises(LogError, match=f"{table} is append-only"),
        log.transaction() as transaction,
    ):
        transaction.connection.execute(f"TRUNCATE {table} CASCADE")


def test_a_statement_that_failed_and_was_ignored_fails_the_commit(
    tmp_path: Path, identity: Identity, postgresql: str
) -> None:
    """PostgreSQL answers COMMIT with a quiet ROLLBACK; nothing may be acknowledged then."""
    with Log.create(tmp_path / "log", identity, store=postgresql) as log:

        def ignore() -> None:
            with log.transaction() as transaction:
                transaction.append(_event())
                with contextlib.suppress(psycopg.Error):
                    transaction.connection.execute("SELECT 1 / 0")

        with pytest.raises(LogError, match="nothing was appended"):
            ignore()
        assert log.tree_size == 0
        assert log.append(_event()) == 0


def _terminate(log: Log, server: Server) -> None:
    store = log._writer.store
    assert isinstance(store, PostgresqlStore)
    with server.connect() as connection:
        connection.execute("SELECT pg_terminate_backend(%s, 5000)", (store._raw.info.backend_pid,))


def test_a_connection_that_ends_in_a_transaction_acknowledges_nothing(
    tmp_path: Path, identity: Identity, postgresql: str, server: Server
) -> None:
    log = Log.create(tmp_path / "log", identity, store=postgresql)
    log.append_sealed(ANNA, _event())
    root = log.root_hash

    def lose() -> None:
        with log.transaction() as transaction:
            transaction.append_sealed(ANNA, _event())
            _terminate(log, server)

    with pytest.raises(LogError, match="could not be written; nothing was appended"):
        lose()
    with pytest.raises(LogError, match="is closed"):
        log.append(_event())
    with Log.open(tmp_path / "log", identity, store=postgresql) as again:
        assert (again.tree_size, again.root_hash) == (1, root)
        assert again.opening(again.append_sealed(ANNA, _event())).link.subject_seq == 2


@pytest.mark.usefixtures("patient")
def test_a_connection_that_ends_at_the_commit_refuses_everybody_who_shares_it(
    tmp_path: Path, identity: Identity, postgresql: str, server: Server
) -> None:
    log = Log.create(tmp_path / "log", identity, store=postgresql)
    store = log._writer.store
    real, said = store.commit, list[str]()
    inside, go_on = threading.Event(), threading.Event()

    def commit() -> None:
        _terminate(log, server)
        real()

    store.commit = commit  # type: ignore[method-assign]

    def act(*, waits: bool) -> None:
        try:
            with log.transaction() as transaction:
                transaction.append(_event())
                if waits:
                    inside.set()
                    go_on.wait()
        except LogError as error:
            said.append(str(error))

    threads = [threading.Thread(target=lambda waits=w: act(waits=waits)) for w in (True, False)]
    threads[0].start()
    inside.wait()
    threads[1].start()
    while log._writer._arriving == 0:
        pass
    go_on.set()
    for thread in threads:
        thread.join()

    assert len(said) == 2
    assert all("went away; nothing was acknowledged" in text for text in said)
    with Log.open(tmp_path / "log", identity, store=postgresql) as again:
        assert again.tree_size == 0


@pytest.fixture
def own_server(tmp_path_factory: pytest.TempPathFactory, server: Server) -> Iterator[Server]:
    """A server that this test may kill."""
    with Server(server.folder.parent / f"own-{next(_numbers)}") as started:
        yield started


def test_a_server_that_is_killed_loses_nothing_that_was_acknowledged(
    tmp_path: Path, identity: Identity, own_server: Server
) -> None:
    store = own_server.url(schema="killed")
    Log.create(tmp_path / "log", identity, store=store).close()
    roots: dict[int, bytes] = {}
    for kill_after in (1, 7):
        log = Log.open(tmp_path / "log", identity, store=store)
        for _ in range(kill_after):
            index = log.append_sealed(ANNA, _event())
            roots[index + 1] = log.root_hash
        own_server.kill()
        with pytest.raises(LogError):
            log.append(_event())
        with pytest.raises(LogError, match="is closed"):
            log.append(_event())
        own_server.start()
    with Log.open(tmp_path / "log", identity, store=store) as log:
        leaves = [entry.hash for entry in log.entries()]
        for size, root in roots.items():
            assert tree_root(leaves[:size]) == root == log.root_at(size)
        for index in range(log.tree_size):
            log.opened(index)


def test_a_server_that_would_lose_commits_is_refused(
    tmp_path: Path, identity: Identity, own_server: Server
) -> None:
    with own_server.connect() as connection:
        connection.execute("ALTER SYSTEM SET fsync TO off")
        connection.execute("SELECT pg_reload_conf()")
    own_server.kill()
    own_server.start()

    with pytest.raises(LogError, match="runs with fsync off and would lose what it acknowledges"):
        Log.create(tmp_path / "log", identity, store=own_server.url(schema="unsafe"))


def test_a_reader_sees_one_state_while_another_connection_writes(
    tmp_path: Path, identity: Identity, postgresql: str
) -> None:
    with Log.create(tmp_path / "log", identity, store=postgresql) as log:
        register = Register(log, pseudonym_key=bytes(32), profile=Profile.EU_GDPR)
        seen = PostgresqlStore.connect(postgresql, writes=False)
        with seen.snapshot() as connection:
            first = connection.execute("SELECT state_seq FROM consent_seq").fetchone()
            register.withdraw("anna", at=5)
            second = connection.execute("SELECT state_seq FROM consent_seq").fetchone()
        third = seen.connection.execute("SELECT state_seq FROM consent_seq").fetchone()
        seen.close()

    assert (first, second, third) == ((0,), (0,), (1,))


def test_creating_a_log_does_not_compile_its_tables_twice(
    tmp_path: Path, identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    Log.create(tmp_path / "one", identity).close()
    made: list[object] = []
    monkeypatch.setattr(METADATA, "create_all", lambda *_, **__: made.append(1))
    Log.create(tmp_path / "two", identity).close()

    assert made == []


def test_what_is_gathered_is_there_for_whoever_asks(log: Log) -> None:
    """Both ways to the database show what the transaction has added so far."""
    count: Callable[[Any], int] = lambda connection: connection.execute(  # noqa: E731
        "SELECT COUNT(*) FROM entry"
    ).fetchone()[0]
    with log.transaction() as transaction:
        kept = transaction.connection
        transaction.append(_event())
        assert count(kept) == 1
        transaction.append_sealed(ANNA, _event())
        with log.reading() as connection:
            assert count(connection) == 2
        transaction.append_sealed(ANNA, _event())

    assert [log.opening(index).link.subject_seq for index in (1, 2)] == [1, 2]


def test_the_file_has_the_same_place_for_revisions_as_alembic_makes(tmp_path: Path) -> None:
    path = tmp_path / "db"
    upgrade(SqliteStore(path, connect(path)).engine())
    with sqlite3.connect(path) as connection:
        rows = connection.execute("SELECT version_num FROM alembic_version").fetchall()

    assert rows == [(HEAD,)]


def test_a_node_runs_as_a_role_that_cannot_change_the_log(
    tmp_path: Path, identity: Identity, server: Server
) -> None:
    """The statements are those of the how-to, with this test's names."""
    page = Path(__file__).parents[2] / "docs" / "how-to" / "postgresql.md"
    (grants,) = [part for part in page.read_text().split("```") if "REVOKE UPDATE" in part]
    grants = grants.removeprefix("sql").replace("DATABASE retail", "DATABASE postgres")
    Log.create(tmp_path / "log", identity, store=server.url(schema="amber")).close()
    with server.connect() as connection:
        connection.execute(b"CREATE ROLE amber_node LOGIN")
        connection.execute(grants.encode())

    url = server.url(schema="amber").replace("postgres:@", "amber_node@")
    with Log.open(tmp_path / "log", identity, store=url) as log:
        log.append_sealed(ANNA, _event())
        log.append_many([_event()] * 20)
        log.checkpoint()
        Register(log, pseudonym_key=bytes(32), profile=Profile.EU_GDPR).withdraw("anna", at=5)
        log.erase_subject(ANNA)
        for table in ("owner", "entry", "node", "signed"):
            with (
                pytest.raises(LogError, match=f"permission denied for table {table}"),
                log.transaction() as transaction,
            ):
                transaction.connection.execute(f"DELETE FROM {table}")  # noqa: S608
