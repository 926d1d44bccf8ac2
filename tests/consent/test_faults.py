"""Kill, starve and deceive the log at every step of the append path; nothing acknowledged is lost.

Children are forked, so that a hundred deaths cost a few seconds. Each test was seen to fail
without the guard that it is about.
"""

import contextlib
import os
import re
import resource
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from consent import Identity, Log, LogError, NoteError, ProofError, SubjectRef, TrustPolicy
from consent.event import Event
from consent.merkle import tree_root
from consent.verify import verify_published

Say = Callable[[str], None]


def _event(at: int = 1) -> Event:
    return {"type": "x", "at": at, "v": 1}


def _ref(number: int) -> SubjectRef:
    return SubjectRef(f"{number:064x}")


@pytest.fixture
def folder(tmp_path: Path, identity: Identity) -> Path:
    """A closed log in SQLite."""
    Log.create(tmp_path / "log", identity).close()
    return tmp_path / "log"


@pytest.fixture
def either(tmp_path: Path, identity: Identity, store: str | None) -> Path:
    """A closed log in either engine; to be opened with `store`."""
    Log.create(tmp_path / "log", identity, store=store).close()
    return tmp_path / "log"


def _trace(log: Log, see: Callable[[str], None]) -> None:
    """Let somebody see each statement before the log's database does."""
    store = log._writer.store
    if store.dialect == "sqlite":
        store.connection.set_trace_callback(see)
        return
    for owner, name in (
        (store, "begin"),
        (store, "commit"),
        (store, "insert"),
        (store.connection, "execute"),
        (store.connection, "executemany"),
    ):
        real = getattr(owner, name)

        def traced(*given: object, name: str = name, real: Callable[..., object] = real) -> object:
            see(str(given[0]) if given else name.upper())
            return real(*given)

        setattr(owner, name, traced)


@pytest.fixture
def anybody(identity: Identity) -> TrustPolicy:
    return TrustPolicy.parse(f"log {identity.public.format()}\nquorum none\n")


def _in_child(act: Callable[[Say], None]) -> tuple[list[str], int]:
    """Run in a forked process; return what it said before it ended, and how it ended."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        status = 1
        try:
            act(lambda line: os.write(writer, f"{line}\n".encode()) and None)
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with open(reader, encoding="utf-8") as said:  # noqa: PTH123 - a descriptor
        lines = said.read().split("\n")[:-1]
    return lines, os.waitpid(child, 0)[1]


class _Calls:
    """Counts calls and does something at the n-th."""

    def __init__(self, at: int, act: Callable[[], None]) -> None:
        self._left, self._act = at, act

    def __call__(self, *_arguments: object) -> None:
        self._left -= 1
        if self._left == 0:
            self._act()


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _fail() -> None:
    raise OSError(5, "Input/output error")


def _append_some(log: Log, say: Say) -> None:
    """Append in every way there is, and say what is acknowledged."""

    def acknowledge(index: int) -> None:
        say(f"{index} {log.root_at(index + 1).hex()}")

    size = log.tree_size
    acknowledge(log.append(_event()))
    acknowledge(log.append_sealed(_ref(size), _event()))
    acknowledge(log.append_sealed(_ref(0), _event()))
    with log.transaction() as transaction:
        transaction.append(_event())
        last = transaction.append_sealed(_ref(size), _event())
    acknowledge(last)
    say(log.checkpoint().split("\n")[1] + " " + log.root_hash.hex())


def _refusal(log: Log, say: Say) -> str:
    try:
        _append_some(log, say)
    except LogError as error:
        return str(error)
    return ""


def _verify_survivor(log: Log, said: list[str], known: dict[int, str]) -> None:
    """Everything acknowledged is there, no size ever had two roots, and all can be opened."""
    leaves = [entry.hash for entry in log.entries()]
    for line in said:
        index, root = line.split()
        size = int(index) + 1 if line != said[-1] or len(said) < 5 else int(index)
        assert known.setdefault(size, root) == root
    for size, root in known.items():
        assert tree_root(leaves[:size]).hex() == root == log.root_at(size).hex()
    for entry in log.entries():
        log.opened(entry.index)


def test_kill_9_at_every_statement_loses_nothing_that_was_acknowledged(
    either: Path, identity: Identity, store: str | None, anybody: TrustPolicy
) -> None:
    known: dict[int, str] = {}
    deaths = 0
    for at in range(1, 60):

        def act(say: Say, at: int = at) -> None:
            with Log.open(either, identity, store=store) as log:
                calls = _Calls(at, _kill)
                _trace(log, calls)
                log._writer.keys._connection.set_trace_callback(calls)
                _append_some(log, say)

        said, status = _in_child(act)
        deaths += os.WIFSIGNALED(status)
        with _opened_again(either, identity, store) as log:
            _verify_survivor(log, said, known)
            known[log.tree_size] = log.root_hash.hex()
            log.append_sealed(_ref(0), _event())
    with Log.open(either, identity, store=store) as log:
        log.publish(either.parent / "published")
    assert deaths > 35
    assert verify_published(either.parent / "published", anybody).entries > 100


def _opened_again(folder: Path, identity: Identity, store: str | None) -> Log:
    """Open a log whose writer has just died, as soon as the server has noticed."""
    for _ in range(1500):
        try:
            return Log.open(folder, identity, store=store)
        except LogError as error:
            if "is open for writing elsewhere" not in str(error):
                raise
            time.sleep(0.02)
    raise AssertionError("the right to write never came back")


@contextlib.contextmanager
def _faulty(module: object, name: str, calls: _Calls) -> Iterator[None]:
    real = getattr(module, name)

    def wrapped(*arguments: object, **options: object) -> object:
        calls()
        return real(*arguments, **options)

    setattr(module, name, wrapped)
    try:
        yield
    finally:
        setattr(module, name, real)


WRITES = [(os, "pwrite"), (os, "fdatasync"), (os, "open")]


@pytest.mark.parametrize(("module", "name"), WRITES, ids=str)
@pytest.mark.parametrize("at", [1, 2, 4])
def test_an_anchor_that_fails_or_dies_at_any_write_loses_nothing(
    either: Path, identity: Identity, store: str | None, module: object, name: str, at: int
) -> None:
    known: dict[int, str] = {}
    for fault in (_kill, _fail):

        def act(say: Say, fault: Callable[[], None] = fault) -> None:
            with (
                Log.open(either, identity, store=store) as log,
                _faulty(module, name, _Calls(at, fault)),
            ):
                refusal = _refusal(log, say)
                assert "is durable but the anchor could not be written" in refusal
                with pytest.raises(LogError, match="is closed"):
                    log.append(_event())

        said, status = _in_child(act)
        assert status == (signal.SIGKILL if fault is _kill else 0)
        with _opened_again(either, identity, store) as log:
            _verify_survivor(log, said, known)
            known[log.tree_size] = log.root_hash.hex()


def test_a_disk_that_fills_at_any_page_costs_nothing_that_was_acknowledged(
    folder: Path, identity: Identity
) -> None:
    known: dict[int, str] = {}
    refusals = 0
    for step in range(40):

        def act(say: Say, step: int = step) -> None:
            with Log.open(folder, identity) as log:
                limit = 4096 * step + 512 * (step % 8)
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
                for _ in range(3):
                    refusal = _refusal(log, say)
                    assert re.match("^$|.* nothing was appended|.* is closed", refusal), refusal
                    if refusal:
                        say("refused")

        said, status = _in_child(act)
        assert status == 0
        refusals += said.count("refused")
        with Log.open(folder, identity) as log:
            leaves = [entry.hash for entry in log.entries()]
            for line in said:
                if line != "refused":
                    number, root = line.split()
                    roots = {tree_root(leaves[: int(number) + more]).hex() for more in (0, 1)}
                    assert root in roots
            for size, root in known.items():
                assert tree_root(leaves[:size]).hex() == root
            known[log.tree_size] = log.root_hash.hex()
            assert log.root_hash == tree_root(leaves)
            for entry in log.entries():
                log.opened(entry.index)
    assert refusals > 10


def test_a_disk_that_is_full_refuses_everybody_who_shares_the_commit(plain_log: Log) -> None:
    log = plain_log
    log.append_sealed(_ref(0), _event())
    connection = log._writer.store.connection
    size, pages = log.tree_size, connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count={pages}")
    said: list[str] = []
    barrier = threading.Barrier(8)

    def act(number: int) -> None:
        barrier.wait()
        try:
            if number % 2:
                log.append({**_event(), "text": "y" * 9000})
            else:
                with log.transaction() as transaction:
                    transaction.append({**_event(), "text": "y" * 9000})
        except LogError as error:
            said.append(str(error))

    _together([lambda number=number: act(number) for number in range(8)])

    assert len(said) == 8
    assert all("could not be written; nothing was appended" in text for text in said)
    assert log.tree_size == size
    connection.execute("PRAGMA max_page_count=1000000")
    assert log.append(_event()) == size
    assert log.root_hash == tree_root([entry.hash for entry in log.entries()])


@pytest.mark.usefixtures("patient")
def test_a_commit_that_fails_refuses_everybody_who_shares_it(plain_log: Log) -> None:
    log = plain_log
    said: list[str] = []
    inside, go_on = threading.Event(), threading.Event()

    def act(*, breaks: bool) -> None:
        try:
            with log.transaction() as transaction:
                transaction.append_sealed(_ref(1), _event())
                inside.set()
                go_on.wait()
                if breaks:  # a foreign key that is asked for only at the commit
                    transaction.connection.execute("PRAGMA defer_foreign_keys=ON")
                    transaction.connection.execute("INSERT INTO sealed VALUES (99, 'x', x'00')")
        except LogError as error:
            said.append(str(error))

    first = threading.Thread(target=lambda: act(breaks=False))
    second = threading.Thread(target=lambda: act(breaks=True))
    first.start()
    inside.wait()
    second.start()
    while log._writer._arriving == 0:
        pass
    go_on.set()
    first.join()
    second.join()

    assert len(said) == 2
    assert all(re.search(r"nothing was appended \(FOREIGN KEY constr", text) for text in said)
    assert log.tree_size == 0
    assert log.append_sealed(_ref(1), _event()) == 0
    assert log.opening(0).link.subject_seq == 1


def _together(acts: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=act) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_callers_that_come_together_share_commits_and_keep_their_own_errors(log: Log) -> None:
    log.append(_event(10_000_000))
    commits: list[str] = []
    _trace(log, lambda statement: commits.append(statement) if statement == "COMMIT" else None)
    acknowledged: list[int] = []
    refused: list[str] = []
    barrier = threading.Barrier(32)

    def act(number: int) -> None:
        barrier.wait()
        for step in range(10):
            kind = (number + step) % 4
            try:
                if kind == 0:
                    acknowledged.append(log.append(_event(10_000_000)))
                elif kind == 1:
                    acknowledged.append(log.append_sealed(_ref(number), _event(10_000_000)))
                elif kind == 2:
                    with log.transaction() as transaction:
                        acknowledged.append(
                            transaction.append_sealed(_ref(900), _event(10_000_000))
                        )
                elif step % 2:
                    log.append_sealed(_ref(1000 + number), _event(1))
                else:
                    with log.transaction() as transaction:
                        transaction.append_sealed(_ref(1000 + number), _event(10_000_000))
                        raise RuntimeError("on purpose")
            except (LogError, RuntimeError) as error:
                refused.append(str(error))

    _together([lambda number=number: act(number) for number in range(32)])

    assert sorted(acknowledged) == list(range(1, log.tree_size)) == list(range(1, 241))
    assert len(refused) == 80
    assert len(commits) < 240
    assert log.root_hash == tree_root([entry.hash for entry in log.entries()])
    links = [log.opening(n).link for n in acknowledged if b"sealed" in log.entry(n).leaf]
    shared = sorted(link.subject_seq or 0 for link in links if link.subject == _ref(900))
    assert shared == list(range(1, 81))
    keys = log._writer.keys._connection.execute("SELECT subject_ref FROM subject_key").fetchall()
    assert not {ref for (ref,) in keys} & {_ref(1000 + number) for number in range(32)}


@pytest.mark.usefixtures("patient")
def test_an_acknowledgement_waits_for_the_commit_it_shares(log: Log) -> None:
    order: list[str] = []
    _trace(log, lambda statement: order.append(statement) if statement == "COMMIT" else None)
    inside, go_on = threading.Event(), threading.Event()

    def first() -> None:
        with log.transaction() as transaction:
            transaction.append(_event())
            inside.set()
            go_on.wait()
        order.append("first acknowledged")

    def second() -> None:
        inside.wait()
        with log.transaction() as transaction:
            order.append("second begins")
            transaction.append(_event())
        order.append("second acknowledged")

    threads = [threading.Thread(target=act) for act in (first, second)]
    for thread in threads:
        thread.start()
    inside.wait()
    while log._writer._arriving == 0:
        pass
    go_on.set()
    for thread in threads:
        thread.join()

    assert order[:2] == ["second begins", "COMMIT"]
    assert set(order[2:]) == {"first acknowledged", "second acknowledged"}


@pytest.mark.usefixtures("patient")
def test_a_member_that_ends_the_shared_transaction_is_everybodys_loss(log: Log) -> None:
    said: list[str] = []
    inside, go_on = threading.Event(), threading.Event()

    def act(*, breaks: bool) -> None:
        try:
            with log.transaction() as transaction:
                transaction.append_sealed(_ref(1), _event())
                inside.set()
                go_on.wait()
                if breaks:  # as SQLite itself may do when the disk is full
                    transaction.connection.execute("ROLLBACK")
                    raise LogError("the disk is full")
        except LogError as error:
            said.append(str(error))

    threads = [threading.Thread(target=lambda b=b: act(breaks=b)) for b in (False, True)]
    threads[0].start()
    inside.wait()
    threads[1].start()
    while log._writer._arriving == 0:
        pass
    go_on.set()
    for thread in threads:
        thread.join()

    assert said == ["the disk is full"] * 2
    assert log.append_sealed(_ref(1), _event()) == 0


def test_appending_while_reading_does_not_wait_for_oneself(log: Log) -> None:
    indices: list[int] = []

    def read_and_append() -> None:
        with log.reading():
            threading.Thread(target=log.append, args=(_event(),)).start()
            while log._writer._arriving == 0:
                pass
            indices.append(log.append(_event()))
            indices.append(log.append_sealed(_ref(1), _event()))

    reader = threading.Thread(target=read_and_append, daemon=True)
    reader.start()
    reader.join(timeout=10)

    assert indices == [0, 1]


def test_two_writers_that_got_past_the_lock_cannot_both_commit_an_index(
    folder: Path, identity: Identity
) -> None:
    with Log.open(folder, identity) as one:
        (folder / "lock").unlink()
        with Log.open(folder, identity) as two:
            assert one.append(_event(1)) == 0
            with pytest.raises(LogError, match=r"nothing was appended \(UNIQUE constraint failed"):
                two.append(_event(2))
            assert one.append(_event(3)) == 1
        assert one.root_hash == tree_root([entry.hash for entry in one.entries()])


@pytest.mark.parametrize("share", [0, 1, 3, 5, 7, 9])
def test_a_truncated_write_ahead_file_is_noticed(
    tmp_path: Path, folder: Path, identity: Identity, share: int
) -> None:
    with Log.open(folder, identity) as log:
        for at in range(30):
            log.append_sealed(_ref(at), _event(at))
        shutil.copytree(folder, tmp_path / "copy")
        root = log.root_hash
    wal = tmp_path / "copy" / "log.sqlite-wal"
    os.truncate(wal, wal.stat().st_size * share // 10)
    with pytest.raises(LogError, match=r"put back from an older copy|could not be opened"):
        Log.open(tmp_path / "copy", identity)
    with Log.open(folder, identity) as whole:
        assert whole.root_hash == root


@pytest.mark.parametrize("pages", [0, 1, 2, 5, 9])
def test_a_truncated_database_is_noticed(folder: Path, identity: Identity, pages: int) -> None:
    with Log.open(folder, identity) as log:
        log.append_many([{**_event(), "text": "y" * 500}] * 200)
    os.truncate(folder / "log.sqlite", 4096 * pages)
    with pytest.raises(LogError):
        Log.open(folder, identity).publish(folder.parent / "published")


PUBLISHING = [(os, "fsync"), (os, "sync"), (Path, "replace"), (Path, "open"), (Path, "mkdir")]


def _verified(published: Path, policy: TrustPolicy) -> int | str:
    try:
        return verify_published(published, policy).entries
    except LogError as error:
        return str(error)


@pytest.mark.parametrize("fault", [_kill, _fail], ids=["killed", "I/O error"])
@pytest.mark.parametrize(("module", "name"), PUBLISHING, ids=str)
def test_a_publication_that_ends_at_any_step_leaves_one_that_verifies(
    folder: Path,
    identity: Identity,
    anybody: TrustPolicy,
    module: object,
    name: str,
    fault: Callable[[], None],
) -> None:
    published = folder.parent / "published"
    with Log.open(folder, identity) as log:
        log.append_many([{**_event(), "number": number} for number in range(500)])
        log.publish(published)
    sizes = {500}
    for at in (*range(1, 24), 30, 40):

        def act(_say: Say, at: int = at) -> None:
            with Log.open(folder, identity) as log:
                log.append_many([_event()] * 300)
                log.checkpoint()
                with (
                    _faulty(module, name, _Calls(at, fault)),
                    contextlib.suppress(LogError),
                ):
                    log.publish(published)

        _, status = _in_child(act)
        sizes.add(500 + 300 * len(sizes))
        assert os.WIFSIGNALED(status) or status == 0
        found = _verified(published, anybody)
        # The one moment that is known: lines of the copy that no checkpoint covers yet.
        assert found in sizes or (fault is _kill and "the rest is unsigned" in str(found))
    with Log.open(folder, identity) as log:
        log.publish(published)
        assert verify_published(published, anybody).entries == log.tree_size


def test_a_flipped_bit_in_the_database_is_never_published(
    folder: Path, identity: Identity, anybody: TrustPolicy
) -> None:
    with Log.open(folder, identity) as log:
        log.append_many([{**_event(), "number": number} for number in range(100)])
    data = (folder / "log.sqlite").read_bytes()
    for at in range(0, len(data), 997):
        flipped = bytearray(data)
        flipped[at] ^= 4
        (folder / "log.sqlite").write_bytes(flipped)
        published = folder.parent / f"published-{at}"
        with contextlib.suppress(LogError, NoteError, ProofError):
            with Log.open(folder, identity) as log:
                log.publish(published)
            assert verify_published(published, anybody).entries == 100
