import base64
import hashlib
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from consent import (
    Checkpoint,
    Identity,
    Log,
    LogError,
    NoteError,
    SealError,
    SubjectRef,
    TrustPolicy,
    cosign,
    format_canonical,
    sign_checkpoint,
    verify_checkpoint,
    verify_consistency,
    verify_inclusion,
    verify_published,
)
from consent.event import Event
from consent.merkle import leaf_hash, tree_root
from consent.note import Note
from tests.conftest import Backup, Stores

ANNA = SubjectRef("a" * 64)
BEN = SubjectRef("b" * 64)
ROOT = Path(__file__).parents[2]


def _event(at: int) -> Event:
    return {"type": "test.happened", "at": at, "v": 1}


def _head(note: str) -> Checkpoint:
    return Checkpoint.parse(Note.parse(note).text)


def _run(code: str, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


def test_an_empty_log_has_the_root_of_the_empty_tree(log: Log) -> None:
    assert (log.tree_size, log.root_hash) == (0, hashlib.sha256().digest())
    assert log.origin == "brand-a.example/log"


def test_an_open_entry_is_its_canonical_event(log: Log) -> None:
    index = log.append(_event(5))

    assert log.entry(index).leaf == b'{"at":5,"type":"test.happened","v":1}'
    assert log.entry(index).value == log.opened(index) == _event(5)


def test_many_events_are_one_commit(log: Log) -> None:
    log.append(_event(1))

    assert log.append_many([_event(at) for at in (2, 3, 4)]) == range(1, 4)
    assert log.root_hash == tree_root([entry.hash for entry in log.entries()])


def test_proofs_of_a_growing_log_verify(log: Log) -> None:
    roots = [log.root_hash]
    for at in range(20):
        log.append(_event(at))
        roots.append(log.root_hash)

    for new in range(1, 21):
        assert log.root_at(new) == roots[new]
        for old in range(1, new + 1):
            proof = log.consistency_proof(old, new)
            verify_consistency(
                old_size=old, new_size=new, old_root=roots[old], new_root=roots[new], proof=proof
            )
        for index in range(new):
            verify_inclusion(
                log.entry(index).hash,
                index=index,
                tree_size=new,
                proof=log.inclusion_proof(index, new),
                root=roots[new],
            )


def test_a_sealed_entry_shows_a_commitment_and_a_minute_only(log: Log) -> None:
    index = log.append_sealed(ANNA, {**_event(125_000), "name": "Anna"})

    leaf = log.entry(index).value
    assert set(leaf) == {"v", "k", "t", "c"}
    assert (leaf["k"], leaf["t"]) == ("sealed", 2)
    assert log.opened(index)["name"] == "Anna"


def test_two_seals_of_one_event_cannot_be_told_to_be_equal(log: Log) -> None:
    first, second = log.append_sealed(ANNA, _event(1)), log.append_sealed(ANNA, _event(1))

    assert log.entry(first).leaf != log.entry(second).leaf


def test_erasure_makes_one_subject_unreadable_and_changes_no_root(log: Log, tmp_path: Path) -> None:
    anna = log.append_sealed(ANNA, {**_event(1), "name": "Anna-the-canary"})
    ben = log.append_sealed(BEN, _event(2))
    root = log.root_hash
    (key,) = log._writer.keys._connection.execute(
        "SELECT wrapped FROM subject_key WHERE subject_ref = ?", (ANNA,)
    ).fetchone()

    log.erase_subject(ANNA)

    assert log.root_hash == root
    assert log.opened(ben) == _event(2)
    with pytest.raises(SealError, match=f"the content of sealed entry {anna} was destroyed"):
        log.opened(anna)
    files = [path.read_bytes() for path in (tmp_path / "log").iterdir()]
    assert not any(key in data or b"Anna-the-canary" in data for data in files)


@pytest.mark.parametrize("step", ["erase", "rotate"])
def test_an_open_transaction_is_not_committed_halfway_by_a_step_on_keys(
    log: Log, step: str
) -> None:
    log.append_sealed(ANNA, _event(1))

    def act() -> None:
        with log.transaction() as transaction:
            transaction.append(_event(2))
            if step == "erase":
                log.erase_subject(ANNA)
            else:
                log.rotate_wrapping_key(at=2)

    with pytest.raises(LogError, match="inside an open transaction, half of which would be comm"):
        act()

    assert log.tree_size == 1
    assert log.opened(0) == _event(1)


def test_nothing_a_person_did_is_readable_in_the_files_without_their_key(
    log: Log, tmp_path: Path
) -> None:
    log.append_sealed(ANNA, {**_event(1), "name": "Anna-the-canary"})

    files = [path.read_bytes() for path in (tmp_path / "log").iterdir()]
    assert not any(b"canary" in data for data in files)


def test_a_failed_transaction_leaves_nothing(log: Log) -> None:
    log.append(_event(1))
    before = log.root_hash

    def fail() -> None:
        with log.transaction() as transaction:
            transaction.append(_event(2))
            transaction.append_sealed(ANNA, _event(3))
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fail()

    assert (log.tree_size, log.root_hash) == (1, before)
    assert log.append(_event(2)) == 1
    with pytest.raises(SealError, match="the key of a data subject does not exist"):
        log._writer.keys.key(ANNA)


def test_a_transaction_inside_another_joins_it(log: Log) -> None:
    def fail() -> None:
        with log.transaction() as transaction:
            transaction.append(_event(1))
            assert log.append(_event(2)) == 1
            assert log.append_many([_event(3)]) == range(2, 3)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()

    assert log.tree_size == 0


def test_a_transaction_whose_entry_failed_cannot_commit(log: Log) -> None:
    def fail() -> None:
        with log.transaction() as transaction:
            transaction.connection.execute("INSERT INTO entry VALUES (0, ?, 0)", (b"x",))
            transaction.append(_event(1))
            with pytest.raises(log._writer.store.errors, match=r"(?i)unique constraint"):
                transaction.connection.execute("SELECT 1")

    with pytest.raises(LogError, match="an entry of this transaction failed"):
        fail()
    assert log.tree_size == 0


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ({}, "an event must have a type"),
        ({"type": "x", "v": 1}, "the time of a x event must be epoch milliseconds"),
        ({"type": "x", "v": 1, "at": -1}, "must be epoch milliseconds"),
        ({"type": "x", "v": 1, "at": True}, "must be epoch milliseconds"),
        ({"type": "x", "v": True, "at": 1}, "the version of a x event must be 1"),
        ({"type": "x", "v": 1, "at": 1, "k": "sealed"}, "must not pass for a sealed leaf"),
        ({"type": "x", "v": 1, "at": 1, "y": 0.5}, "got float"),
    ],
)
def test_a_malformed_event_is_refused(log: Log, event: Event, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        log.append(event)
    assert log.tree_size == 0


def test_time_must_not_go_back_by_more_than_five_minutes(log: Log) -> None:
    log.append(_event(1_000_000))
    log.append(_event(700_000))

    with pytest.raises(LogError, match="the time of an event must not go back: 699999 is more"):
        log.append(_event(699_999))
    assert log.latest == 1_000_000


def test_asking_for_what_is_not_there_is_refused(log: Log) -> None:
    log.append(_event(1))
    with pytest.raises(LogError, match="holds 1 entries, not 1"):
        log.entry(1)
    with pytest.raises(ValueError, match=r"tree_size must be in \[0, 1\], got 2"):
        log.root_at(2)


def test_a_reopened_log_continues(tmp_path: Path, identity: Identity, store: str | None) -> None:
    with Log.create(tmp_path / "log", identity, store=store) as log:
        log.append_many([_event(at) for at in range(5)])
        root = log.root_hash
    with Log.open(tmp_path / "log", identity, store=store) as log:
        assert (log.tree_size, log.root_hash, log.latest) == (5, root, 4)
        assert log.append(_event(5)) == 5


def test_create_never_replaces_a_log(
    log: Log, tmp_path: Path, identity: Identity, store: str | None
) -> None:
    log.append(_event(1))
    log.close()
    with pytest.raises(LogError, match="holds a log already; nothing was changed"):
        Log.create(tmp_path / "log", identity, store=store)
    with Log.open(tmp_path / "log", identity, store=store) as reopened:
        assert reopened.tree_size == 1


def test_create_names_a_folder_it_cannot_make(tmp_path: Path, identity: Identity) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LogError, match="could not be created"):
        Log.create(tmp_path / "file" / "log", identity)


def test_open_names_a_folder_without_a_log(
    tmp_path: Path, identity: Identity, store: str | None
) -> None:
    with pytest.raises(LogError, match="holds no log"):
        Log.open(tmp_path, identity, store=store)


def test_open_refuses_another_owner(
    log: Log, tmp_path: Path, coordinator: Identity, store: str | None
) -> None:
    log.close()
    with pytest.raises(LogError, match="belongs to another key"):
        Log.open(tmp_path / "log", coordinator, store=store)


def test_open_refuses_a_file_that_is_no_database(
    plain_log: Log, tmp_path: Path, identity: Identity
) -> None:
    plain_log.close()
    (tmp_path / "log" / "log.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(LogError, match=r"could not be opened \(file is not a database\)"):
        Log.open(tmp_path / "log", identity)


def test_two_writers_are_refused(
    log: Log, tmp_path: Path, identity: Identity, store: str | None
) -> None:
    with pytest.raises(LogError, match="is open for writing elsewhere"):
        Log.open(tmp_path / "log", identity, store=store)
    log.close()
    Log.open(tmp_path / "log", identity, store=store).close()


def test_a_writer_in_another_process_is_refused(
    plain_log: Log, tmp_path: Path, identity: Identity
) -> None:
    identity.save(tmp_path / "key")
    code = (
        "import sys; from pathlib import Path; from consent import Identity, Log, LogError\n"
        "try: Log.open(Path(sys.argv[1]), Identity.load(Path(sys.argv[2])))\n"
        "except LogError as error: print(error)"
    )

    said, _ = _run(code, str(tmp_path / "log"), str(tmp_path / "key")).communicate()

    assert "is open for writing elsewhere" in said


def test_a_closed_log_says_so(log: Log) -> None:
    log.close()
    with pytest.raises(LogError, match=r"the log 'brand-a.example/log' is closed"):
        log.append(_event(1))


def test_a_log_put_back_from_a_copy_is_noticed(
    log: Log, tmp_path: Path, identity: Identity, store: str | None, backup: Backup
) -> None:
    folder = tmp_path / "log"
    log.append_many([_event(at) for at in range(37)])
    log.close()
    put_back = backup(folder, store)
    with Log.open(folder, identity, store=store) as newer:
        newer.append_many([_event(at) for at in range(37, 52)])
    put_back()

    with pytest.raises(LogError, match="holds 37 entries but its anchor says 52: it was put back"):
        Log.open(folder, identity, store=store)


def test_another_history_of_the_same_length_is_noticed(
    log: Log, tmp_path: Path, identity: Identity, stores: Stores
) -> None:
    log.append(_event(1))
    log.close()
    another = stores()
    with Log.create(tmp_path / "other", identity, store=another) as other:
        other.append(_event(2))
    if another is None:
        shutil.copy(tmp_path / "other" / "log.sqlite", tmp_path / "log" / "log.sqlite")

    with pytest.raises(LogError, match="is not the one its anchor was written for"):
        Log.open(tmp_path / "log", identity, store=another)


def test_a_missing_anchor_is_noticed(
    log: Log, tmp_path: Path, identity: Identity, store: str | None
) -> None:
    log.close()
    (tmp_path / "log" / "anchor").unlink()
    with pytest.raises(LogError, match=r"could not be opened .*anchor"):
        Log.open(tmp_path / "log", identity, store=store)


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("DELETE FROM entry WHERE idx = 1", "is damaged: an entry is missing"),
        ("DELETE FROM node WHERE level = 0 AND position = 2", "a stored hash is missing"),
    ],
)
def test_a_damaged_database_is_noticed(
    log: Log,
    tmp_path: Path,
    identity: Identity,
    store: str | None,
    disarm: Callable[[Log], None],
    statement: str,
    message: str,
) -> None:
    log.append_many([_event(at) for at in range(3)])
    disarm(log)
    with log.transaction() as transaction:
        transaction.connection.execute(statement)
    log.close()

    with pytest.raises(LogError, match=message):
        Log.open(tmp_path / "log", identity, store=store)


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM owner",
        "DELETE FROM entry",
        "DELETE FROM node",
        "DELETE FROM signed",
        "UPDATE owner SET origin = 'x'",
        "UPDATE entry SET latest = 9",
        "UPDATE node SET position = 9",
        "UPDATE signed SET note = 'x'",
    ],
)
def test_the_database_itself_refuses_changes(log: Log, statement: str) -> None:
    log.append(_event(1))
    log.checkpoint()
    with (
        pytest.raises(LogError, match="is append-only"),
        log.transaction() as transaction,
    ):
        transaction.connection.execute(statement)


def test_one_size_is_signed_once(log: Log, identity: Identity) -> None:
    log.append(_event(1))
    note = log.checkpoint()

    assert log.checkpoint() == note
    assert _head(note) == Checkpoint(log.origin, 1, log.root_hash)


def test_a_cosigned_note_is_kept_and_published(
    log: Log, tmp_path: Path, coordinator: Identity, policy: TrustPolicy
) -> None:
    log.append(_event(1))
    note = cosign(log.checkpoint(), coordinator, at=9_000)
    assert log.accept_cosigned(note, policy).cosigners == {"coordinator": 9_000}
    log.append(_event(2))

    assert log.publish(tmp_path / "published").tree_size == 1
    assert verify_published(tmp_path / "published", policy).entries == 1


def test_a_note_of_another_tree_is_not_kept(
    log: Log, identity: Identity, coordinator: Identity, policy: TrustPolicy
) -> None:
    log.append(_event(1))
    for size, root in ((1, bytes(32)), (2, log.root_hash)):
        note = cosign(
            sign_checkpoint(Checkpoint(log.origin, size, root), identity), coordinator, at=1
        )
        with pytest.raises(LogError, match=f"the note of size {size} signs a tree this log never"):
            log.accept_cosigned(note, policy)
    with pytest.raises(NoteError, match="is not met"):
        log.accept_cosigned(log.checkpoint(), policy)


def test_a_note_of_another_log_is_not_kept(log: Log, coordinator: Identity) -> None:
    other = sign_checkpoint(Checkpoint(coordinator.name, 0, bytes(32)), coordinator)
    policy = TrustPolicy.parse(f"log {coordinator.public.format()}\nquorum none\n")
    with pytest.raises(LogError, match=r"is of the log 'coordinator.example', not of 'brand-a"):
        log.accept_cosigned(other, policy)


def test_a_publication_holds_every_leaf_in_order(
    log: Log, tmp_path: Path, identity: Identity
) -> None:
    log.append(_event(1))
    log.append_sealed(ANNA, _event(2))
    log.publish(tmp_path / "published")
    log.append(_event(3))
    log.publish(tmp_path / "published")

    lines = (tmp_path / "published" / "entries.jsonl").read_bytes().splitlines()
    note = (tmp_path / "published" / "checkpoint").read_text()
    policy = TrustPolicy.parse(f"log {identity.public.format()}\nquorum none\n")
    assert lines == [entry.leaf for entry in log.entries()]
    assert verify_checkpoint(note, policy).checkpoint.root_hash == tree_root(
        [leaf_hash(line) for line in lines]
    )


def test_a_damaged_log_is_not_published(
    log: Log, tmp_path: Path, disarm: Callable[[Log], None]
) -> None:
    log.append(_event(1))
    disarm(log)
    with log.transaction() as transaction:
        transaction.connection.execute(
            "UPDATE entry SET leaf = ?", (format_canonical({"type": "forged"}),)
        )

    with pytest.raises(LogError, match="do not give the signed root; not published"):
        log.publish(tmp_path / "published")
    assert not (tmp_path / "published").exists()


def test_publishing_into_a_file_leaves_it_alone(log: Log, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(LogError, match="the log could not be published in"):
        log.publish(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_threads_share_a_log(log: Log) -> None:
    def append() -> None:
        for _ in range(10):
            log.append(_event(1))

    threads = [threading.Thread(target=append) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert log.tree_size == 40
    assert log.root_hash == tree_root([entry.hash for entry in log.entries()])


APPENDS_FOR_EVER = """
import base64, sys
from pathlib import Path
from consent import Identity, Log
with Log.open(Path(sys.argv[1]), Identity.load(Path(sys.argv[2]))) as log:
    while True:
        at = log.tree_size
        if at % 3 == 2:
            index = log.append_sealed("a" * 64, {"type": "x", "at": at, "v": 1})
        else:
            index = log.append({"type": "x", "at": at, "v": 1})
        print(index, base64.b64encode(log.root_hash).decode(), log.checkpoint().encode().hex(),
              flush=True)
"""


def test_what_was_acknowledged_survives_kill_9(tmp_path: Path, identity: Identity) -> None:
    folder = tmp_path / "log"
    identity.save(tmp_path / "key")
    Log.create(folder, identity).close()
    policy = TrustPolicy.parse(f"log {identity.public.format()}\nquorum none\n")
    notes: list[str] = []
    for kill_after in (1, 4, 9, 23, 40):
        child = _run(APPENDS_FOR_EVER, str(folder), str(tmp_path / "key"))
        assert child.stdout is not None
        acknowledged = [child.stdout.readline() for _ in range(kill_after)]
        child.kill()
        # What was still in the pipe was acknowledged as well; the last line may be torn.
        rest = child.stdout.read().split("\n")[:-1]
        child.wait()
        with Log.open(folder, identity) as log:
            for line in acknowledged + rest:
                index, root, note = line.split()
                assert log.root_at(int(index) + 1) == base64.b64decode(root)
                assert log.opened(int(index))["at"] == int(index)
                notes.append(bytes.fromhex(note).decode())
            log.publish(tmp_path / "published")
            verify_published(tmp_path / "published", policy)
            notes.append(log.checkpoint())
            heads = [verify_checkpoint(note, policy).checkpoint for note in notes]
            assert all(log.root_at(head.tree_size) == head.root_hash for head in heads)


FILLS_THE_DISK = """
import json, resource, sys
from pathlib import Path
from consent import Identity, Log, LogError
folder, key, limit = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
said = []
with Log.open(folder, Identity.load(key)) as log:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    while len(said) < 2:
        try:
            log.append({"type": "x", "at": 1, "v": 1, "text": "y" * 500})
        except LogError as error:
            said.append(str(error))
    size = log.tree_size
print(json.dumps({"said": said, "size": size}))
"""


@pytest.mark.parametrize("limit", [50_000, 131_072, 300_000])
def test_a_full_disk_is_one_clear_error_and_nothing_is_half_written(
    tmp_path: Path, identity: Identity, limit: int
) -> None:
    identity.save(tmp_path / "key")
    with Log.create(tmp_path / "log", identity) as log:
        log.append_many([{**_event(1), "text": "y" * 500} for _ in range(20 + limit // 800)])

    said, _ = _run(
        FILLS_THE_DISK, str(tmp_path / "log"), str(tmp_path / "key"), str(limit)
    ).communicate()

    report = json.loads(said)
    assert all("could not be written; nothing was appended" in text for text in report["said"])
    with Log.open(tmp_path / "log", identity) as log:
        assert log.tree_size == report["size"]
        log.append(_event(2))
        log.publish(tmp_path / "published")
    policy = TrustPolicy.parse(f"log {identity.public.format()}\nquorum none\n")
    assert verify_published(tmp_path / "published", policy).entries == report["size"] + 1


PUBLISHES_ON_A_FULL_DISK = """
import resource, sys
from pathlib import Path
from consent import Identity, Log, LogError
folder = Path(sys.argv[1])
with Log.open(folder, Identity.load(Path(sys.argv[2]))) as log:
    log.append({"type": "x", "at": 1, "v": 1})
    log.checkpoint()
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
    try:
        log.publish(folder.parent / "published")
    except LogError as error:
        print(error)
"""


def test_a_full_disk_leaves_the_older_publication(tmp_path: Path, identity: Identity) -> None:
    identity.save(tmp_path / "key")
    with Log.create(tmp_path / "log", identity) as log:
        log.append_many([_event(at) for at in range(10)])
        log.publish(tmp_path / "published")

    said, _ = _run(
        PUBLISHES_ON_A_FULL_DISK, str(tmp_path / "log"), str(tmp_path / "key")
    ).communicate()

    policy = TrustPolicy.parse(f"log {identity.public.format()}\nquorum none\n")
    assert "the log could not be published in" in said
    assert verify_published(tmp_path / "published", policy).entries == 10
    assert sorted(path.name for path in (tmp_path / "published").iterdir()) == [
        "checkpoint",
        "entries.jsonl",
        "tile",
    ]


def test_an_anchor_that_cannot_be_written_closes_the_log(
    log: Log, tmp_path: Path, identity: Identity, store: str | None
) -> None:
    anchor = tmp_path / "log" / "anchor"
    anchor.rename(tmp_path / "kept")
    with pytest.raises(LogError, match="entry 0 is durable but the anchor could not be written"):
        log.append(_event(1))
    with pytest.raises(LogError, match="is closed"):
        log.append(_event(2))

    (tmp_path / "kept").rename(anchor)
    with Log.open(tmp_path / "log", identity, store=store) as reopened:
        assert reopened.tree_size == 1


def test_a_folder_that_cannot_be_locked_is_named(
    log: Log, tmp_path: Path, identity: Identity, store: str | None
) -> None:
    log.close()
    (tmp_path / "log" / "lock").unlink()
    (tmp_path / "log" / "lock").mkdir()
    with pytest.raises(LogError, match="could not be locked"):
        Log.open(tmp_path / "log", identity, store=store)
