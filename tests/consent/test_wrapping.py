"""The wrapping key: what it keeps shut, how it changes, and what a crash in between leaves."""

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from consent import Identity, Log, LogError, SealError, SubjectRef
from consent.sealed import SubjectKeys, connect
from consent.wrapping import WrappingError, WrappingKeys

from .test_faults import _Calls, _event, _fail, _faulty, _in_child, _kill, _opened_again, _ref

KEY = bytes(range(32))
STEPS = [(os, "open"), (os, "write"), (os, "fsync"), (Path, "replace"), (os, "pwrite")]
NO_KEY = r"are wrapped under another key than the one in wrapping\.key"


@pytest.fixture
def folder(tmp_path: Path, identity: Identity, store: str | None) -> Path:
    """A closed log with three people's events in it."""
    with Log.create(tmp_path / "log", identity, store=store) as log:
        for number in range(3):
            log.append_sealed(_ref(number), _event())
    return tmp_path / "log"


def _wrapped(folder: Path) -> list[tuple[str, bytes, str]]:
    connection = connect(folder / "keys.sqlite")
    rows = connection.execute("SELECT * FROM subject_key ORDER BY subject_ref").fetchall()
    connection.close()
    return rows


def test_a_wrapped_key_opens_for_its_owner_and_under_its_id_only(tmp_path: Path) -> None:
    wrapping = WrappingKeys(tmp_path / "key")
    wrapping.create()
    wrapped, key_id = wrapping.wrap(KEY, owner="anna")
    flipped = bytes([*wrapped[:-1], wrapped[-1] ^ 1])

    assert wrapping.unwrap(wrapped, owner="anna", key_id=key_id) == KEY
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    for bad, owner, by in [
        (wrapped, "ben", key_id),
        (wrapped, "anna", "0" * 32),
        (flipped, "anna", key_id),
        (b"short", "anna", key_id),
    ]:
        with pytest.raises(WrappingError, match="the key of a data subject cannot be unwrapped"):
            wrapping.unwrap(bad, owner=owner, key_id=by)


def test_after_a_change_only_the_new_key_is_on_disk_and_wraps(tmp_path: Path) -> None:
    wrapping = WrappingKeys(tmp_path / "key")
    wrapping.create()
    old, (wrapped, old_id) = (tmp_path / "key").read_bytes(), wrapping.wrap(KEY, owner="anna")
    promised = wrapping.successor()
    wrapping.begin()
    both = WrappingKeys(tmp_path / "key")
    found = both.unwrap(wrapped, owner="anna", key_id=old_id)
    wrapping.finish()

    assert found == KEY
    assert both.is_changing
    assert both.current == both.successor() == wrapping.current == promised != old_id
    assert not wrapping.knows(old_id)
    assert [path.name for path in tmp_path.iterdir()] == ["key"]
    assert (tmp_path / "key").read_bytes() != old


def test_the_older_key_stays_when_the_newer_one_is_not_on_disk(tmp_path: Path) -> None:
    wrapping = WrappingKeys(tmp_path / "key")
    wrapping.create()
    old = (tmp_path / "key").read_bytes()
    wrapping.begin()
    (tmp_path / "key.next").unlink()

    with pytest.raises(OSError, match=r"key.next does not hold the newer wrapping key"):
        wrapping.finish()

    assert (tmp_path / "key").read_bytes() == old


@pytest.mark.parametrize(("data", "mode"), [(bytes(31), 0o600), (KEY, 0o640)])
def test_a_wrapping_key_that_is_damaged_or_open_to_others_is_refused(
    tmp_path: Path, data: bytes, mode: int
) -> None:
    (tmp_path / "key").write_bytes(data)
    (tmp_path / "key").chmod(mode)

    with pytest.raises(
        LogError, match=f"by its owner only, got {len(data)} bytes and mode {mode:o}"
    ):
        WrappingKeys(tmp_path / "key")


def test_a_key_that_was_destroyed_never_wraps_again(tmp_path: Path) -> None:
    (tmp_path / "wrapping.key").touch(mode=0o600)
    (tmp_path / "wrapping.key").write_bytes(bytes(32))

    SubjectKeys(tmp_path / "keys.sqlite").close()

    assert any((tmp_path / "wrapping.key").read_bytes())


@pytest.mark.parametrize("fault", ["missing", "another"])
def test_a_log_without_its_wrapping_key_does_not_open_and_makes_no_other(
    folder: Path, identity: Identity, store: str | None, fault: str
) -> None:
    key = (folder / "wrapping.key").read_bytes()
    (folder / "wrapping.key").unlink()
    if fault == "another":
        WrappingKeys(folder / "wrapping.key").create()
    with pytest.raises(LogError, match=NO_KEY):
        Log.open(folder, identity, store=store)

    assert (folder / "wrapping.key").exists() == (fault == "another")
    (folder / "wrapping.key").write_bytes(key)
    (folder / "wrapping.key").chmod(0o600)
    with Log.open(folder, identity, store=store) as log:
        assert log.opened(0) == _event()


def test_a_key_that_was_moved_to_another_person_opens_nothing_and_takes_nothing(
    folder: Path, identity: Identity, store: str | None
) -> None:
    (_, wrapped, _), *_ = _wrapped(folder)
    connection = connect(folder / "keys.sqlite")
    connection.execute(
        "UPDATE subject_key SET wrapped = ? WHERE subject_ref = ?", (wrapped, _ref(1))
    )
    connection.close()
    with Log.open(folder, identity, store=store) as log:
        with pytest.raises(SealError, match="cannot be unwrapped; nothing was opened"):
            log.opened(1)
        with pytest.raises(LogError, match="cannot be unwrapped; nothing was appended"):
            log.append_sealed(_ref(1), _event())
        with pytest.raises(LogError, match="cannot be unwrapped; the older wrapping key was kept"):
            log.rotate_wrapping_key(at=1)

        assert log.tree_size == 3
        assert log.append_sealed(_ref(2), _event()) == 3
    with Log.open(folder, identity, store=store) as again:
        assert again.opened(0) == again.opened(3) == _event()


def test_a_rotation_rewraps_every_key_and_tells_it(
    folder: Path, identity: Identity, store: str | None
) -> None:
    before, old = _wrapped(folder), (folder / "wrapping.key").read_bytes()
    with Log.open(folder, identity, store=store) as log:
        leaves = [entry.leaf for entry in log.entries()]
        key_id = log.rotate_wrapping_key(at=7)

        assert [entry.leaf for entry in log.entries()[:3]] == leaves
        assert log.entry(3).value == {
            "type": "key.rotated",
            "v": 1,
            "at": 7,
            "kind": "wrapping",
            "id": key_id,
        }
        assert [log.opened(index) for index in range(3)] == [_event()] * 3
    after = _wrapped(folder)
    assert {by for _, _, by in after} == {key_id}
    assert not {key for _, key, _ in before} & {key for _, key, _ in after}
    files = [path.read_bytes() for path in folder.iterdir()]
    assert not any(old in data or key in data for data in files for _, key, _ in before)
    assert not (folder / "wrapping.key.next").exists()


def test_either_half_of_a_backup_opens_nothing_with_the_other_half_of_another_day(
    tmp_path: Path, folder: Path, identity: Identity, store: str | None
) -> None:
    shutil.copy(folder / "wrapping.key", tmp_path / "old.key")
    shutil.copy(folder / "keys.sqlite", tmp_path / "old.sqlite")
    with Log.open(folder, identity, store=store) as log:
        log.rotate_wrapping_key(at=1)
    for keys, wrapping in [
        (folder / "keys.sqlite", tmp_path / "old.key"),
        (tmp_path / "old.sqlite", folder / "wrapping.key"),
    ]:
        half = tmp_path / f"half-{keys.name}"
        half.mkdir()
        shutil.copy(keys, half / "keys.sqlite")
        shutil.copy(wrapping, half / "wrapping.key")
        with pytest.raises(LogError, match=NO_KEY):
            SubjectKeys(half / "keys.sqlite")


def test_a_rotation_of_a_time_long_past_changes_nothing(
    folder: Path, identity: Identity, store: str | None
) -> None:
    before = _wrapped(folder)
    with Log.open(folder, identity, store=store) as log:
        log.append({"type": "x", "at": 10**9, "v": 1})
        with pytest.raises(LogError, match="must not go back"):
            log.rotate_wrapping_key(at=1)

        assert log.tree_size == 4
    assert _wrapped(folder) == before
    assert not (folder / "wrapping.key.next").exists()


def _finish(folder: Path, identity: Identity, store: str | None) -> str:
    """Open what an interruption left, open all in it, rotate again, and open all once more."""
    with _opened_again(folder, identity, store) as log:
        leaves = [entry.leaf for entry in log.entries()]
        for index in range(log.tree_size):
            log.opened(index)
        log.append_sealed(_ref(9), _event())
        key_id = log.rotate_wrapping_key(at=1)
        assert [entry.leaf for entry in log.entries()[: len(leaves)]] == leaves
    with Log.open(folder, identity, store=store) as log:
        for index in range(log.tree_size):
            log.opened(index)
    assert {by for _, _, by in _wrapped(folder)} == {key_id}
    assert not (folder / "wrapping.key.next").exists()
    return key_id


@pytest.mark.parametrize("fault", [_kill, _fail], ids=["killed", "I/O error"])
@pytest.mark.parametrize(("module", "name"), STEPS, ids=str)
def test_a_rotation_that_ends_at_any_file_step_is_finished_by_the_next(
    folder: Path,
    identity: Identity,
    store: str | None,
    module: object,
    name: str,
    fault: Callable[[], None],
) -> None:
    hits = 0
    for at in range(1, 7):

        def act(say: Callable[[str], None], at: int = at) -> None:
            with (
                Log.open(folder, identity, store=store) as log,
                _faulty(module, name, _Calls(at, fault)),
            ):
                try:
                    log.rotate_wrapping_key(at=1)
                except LogError as error:
                    say(str(error))

        said, status = _in_child(act)
        assert os.WIFSIGNALED(status) or status == 0
        hits += os.WIFSIGNALED(status) or bool(said)
        _finish(folder, identity, store)
    assert hits > 0


def test_kill_9_at_every_statement_of_a_rotation_loses_nobodys_key(
    folder: Path, identity: Identity, store: str | None
) -> None:
    deaths = 0
    for at in range(1, 16):

        def act(_say: Callable[[str], None], at: int = at) -> None:
            with Log.open(folder, identity, store=store) as log:
                log._writer.keys._connection.set_trace_callback(_Calls(at, _kill))
                log.rotate_wrapping_key(at=1)

        _, status = _in_child(act)
        deaths += os.WIFSIGNALED(status)
        _finish(folder, identity, store)
    assert deaths > 5


def test_a_rotation_that_was_interrupted_goes_on_with_the_key_it_had_made(
    folder: Path, identity: Identity, store: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    with Log.open(folder, identity, store=store) as log:
        with (
            _faulty(os, "pwrite", _Calls(2, _fail)),
            pytest.raises(LogError, match="could not be changed completely; rotate again"),
        ):
            log.rotate_wrapping_key(at=1)
        told = log.entry(log.tree_size - 1).value["id"]

    assert _finish(folder, identity, store) == told
    assert "a change of the wrapping key was interrupted; rotate the keys again" in caplog.text


def test_keys_of_the_time_before_wrapping_are_wrapped_when_they_are_opened(tmp_path: Path) -> None:
    connection = connect(tmp_path / "keys.sqlite")
    connection.execute(
        "CREATE TABLE subject_key (subject_ref TEXT PRIMARY KEY, key BLOB NOT NULL) WITHOUT ROWID"
    )
    bare = {_ref(number): os.urandom(32) for number in range(500)}
    connection.executemany("INSERT INTO subject_key VALUES (?, ?)", bare.items())
    connection.close()

    keys = SubjectKeys(tmp_path / "keys.sqlite")

    assert {ref: keys.key(SubjectRef(ref)) for ref in bare} == bare
    files = [path.read_bytes() for path in tmp_path.iterdir()]
    assert not any(key in data for key in bare.values() for data in files)


def test_many_keys_are_rewrapped_in_one_transaction(tmp_path: Path) -> None:
    keys = SubjectKeys(tmp_path / "keys.sqlite")
    made = {_ref(number): keys.make_key(_ref(number)) for number in range(2_500)}
    keys.commit()
    begun: list[str] = []
    keys._connection.set_trace_callback(begun.append)

    keys.rewrap()
    keys.commit()
    keys.finish_rewrapping()

    assert {ref: keys.key(SubjectRef(ref)) for ref in made} == made
    assert sum(text.startswith("BEGIN") for text in begun) == 1
    assert sum(text == "COMMIT" for text in begun) == 1
