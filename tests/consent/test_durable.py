from pathlib import Path

import pytest

from consent.durable import Anchor, Head, replace_files

FIRST, SECOND = Head(1, b"1" * 32), Head(2, b"2" * 32)


def test_an_anchor_remembers_the_newest_head(tmp_path: Path) -> None:
    anchor = Anchor(tmp_path / "anchor")
    anchor.create(FIRST)
    anchor.save(SECOND)

    assert Anchor(tmp_path / "anchor").load() == SECOND


@pytest.mark.parametrize("torn_at", [0, 1, 40, 70, 200, 511])
def test_a_torn_write_leaves_the_other_head(tmp_path: Path, torn_at: int) -> None:
    path = tmp_path / "anchor"
    anchor = Anchor(path)
    anchor.create(FIRST)
    before = path.read_bytes()
    anchor.save(SECOND)
    after = path.read_bytes()
    path.write_bytes(after[:torn_at] + before[torn_at:])

    # A write that was torn in its padding is complete; one torn in its text is not believed.
    assert Anchor(path).load() in (FIRST, SECOND)


def test_a_loaded_anchor_goes_on_in_turn(tmp_path: Path) -> None:
    path = tmp_path / "anchor"
    Anchor(path).create(Head(0, bytes(32)))
    for size in range(1, 6):
        anchor = Anchor(path)
        anchor.load()
        anchor.save(Head(size, bytes(32)))

        assert Anchor(path).load().tree_size == size
        assert path.stat().st_size == 1024


def test_an_anchor_without_a_readable_slot_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "anchor").write_bytes(b"x" * 1024)
    with pytest.raises(OSError, match="no slot of the anchor can be read"):
        Anchor(tmp_path / "anchor").load()


def test_files_are_replaced_together_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "b.new").mkdir()

    with pytest.raises(OSError, match=r"b\.new"):
        replace_files(tmp_path, {"a": b"new", "b": b"new"})
    assert (tmp_path / "a").read_bytes() == b"old"
    assert not (tmp_path / "a.new").exists()


def test_a_file_that_cannot_be_made_durable_does_not_replace_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"old")

    def fail(_descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        replace_files(tmp_path, {"a": b"new"})
    assert (tmp_path / "a").read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


def test_many_files_are_made_durable_by_one_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr("os.sync", lambda: synced.append("everything"))
    files = {f"folder/{number}/file": b"%d" % number for number in range(40)}

    replace_files(tmp_path, files)

    assert synced == ["everything"]
    assert {name: (tmp_path / name).read_bytes() for name in files} == files
