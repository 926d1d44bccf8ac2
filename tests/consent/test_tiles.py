from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consent import Log, LogError, merkle
from consent.event import Event
from consent.merkle import Frontier, leaf_hash, tree_root
from consent.tiles import (
    Tiles,
    bundle_path,
    format_bundle,
    new_tiles,
    parse_bundle,
    tile_path,
)

LEAVES = [leaf_hash(b"%d" % number) for number in range(66_000)]


def _events(first: int, count: int) -> list[Event]:
    return [{"type": "x", "at": 1, "v": 1, "number": first + number} for number in range(count)]


def _fetch(size: int) -> Callable[[str], bytes]:
    """Serve the tiles of the first `size` leaves from memory."""
    frontier, made = Frontier(), dict[tuple[int, int], bytes]()
    for leaf in LEAVES[:size]:
        made |= {(level, at): value for level, at, value in frontier.append(leaf)}
    files = {
        tile_path(level, index, width=width): b"".join(
            made[8 * level, index * 256 + at] for at in range(width)
        )
        for level, index, width in new_tiles(0, size)
    }

    def fetch(path: str) -> bytes:
        try:
            return files[path]
        except KeyError as error:
            raise FileNotFoundError(path) from error

    return fetch


def test_paths_are_those_of_the_specification() -> None:
    # https://c2sp.org/tlog-tiles: index 1234067 is encoded as x001/x234/067
    assert tile_path(0, 1_234_067) == "tile/0/x001/x234/067"
    assert tile_path(3, 7, width=112) == "tile/3/007.p/112"
    assert bundle_path(273, width=112) == "tile/entries/273.p/112"
    assert bundle_path(1000) == "tile/entries/x001/000"


def test_the_example_tree_of_the_specification_has_its_tiles() -> None:
    # A tree of size 70,000: 273 full and one partial tile at level 0, and so on.
    made = list(new_tiles(0, 70_000))

    assert sum(level == 0 and width == 256 for level, _, width in made) == 273
    assert [tile for tile in made if tile[2] < 256] == [(0, 273, 112), (1, 1, 17), (2, 0, 1)]
    assert list(new_tiles(0, 256)) == [(0, 0, 256), (1, 0, 1)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tile_path(64, 0), r"the level of a tile must be in \[0, 64\), got 64"),
        (lambda: tile_path(0, -1), "the index of a tile must not be negative, got -1"),
        (lambda: bundle_path(0, width=0), r"the width of a tile must be in \[1, 256\], got 0"),
        (lambda: Tiles(_fetch(0), -1), "tree_size must not be negative, got -1"),
        (lambda: Tiles(_fetch(0), 5).tile(1, 0), "a tree of size 5 has no tile 0 at level 1"),
    ],
)
def test_what_is_no_tile_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_the_tiles_of_a_grown_tree_are_the_old_and_the_new_ones(old: int, more: int) -> None:
    whole = set(new_tiles(0, old + more))

    assert set(new_tiles(old, old + more)) <= whole
    assert whole - set(new_tiles(old, old + more)) <= set(new_tiles(0, old))


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 511, 513, 65_535, 65_536, 65_999])
def test_roots_and_proofs_from_tiles_are_those_from_leaves(size: int) -> None:
    tiles = Tiles(_fetch(size), size)

    assert tiles.tree_size == size
    assert tiles.root() == tree_root(LEAVES[:size])
    for index in {0, size // 3, size - 1}:
        assert tiles.inclusion_proof(index) == merkle.inclusion_proof(LEAVES[:size], index)
    for old in {0, 1, size // 2, size}:
        assert tiles.consistency_proof(old) == merkle.consistency_proof(LEAVES[:size], old)


def test_a_reader_of_an_older_tree_takes_the_full_tile_where_the_partial_one_is_gone() -> None:
    assert Tiles(_fetch(300), 200).root() == tree_root(LEAVES[:200])


def test_only_some_hundred_tiles_stay_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consent.tiles._CACHED_TILES", 3)
    tiles = Tiles(_fetch(5000), 5000)
    for index in range(0, 5000, 100):
        tiles.inclusion_proof(index)

    assert len(tiles._cache) == 3


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=256))
def test_a_bundle_reads_back_as_it_was(leaves: list[bytes]) -> None:
    assert parse_bundle(format_bundle(leaves), width=len(leaves)) == leaves


@given(st.binary(max_size=80), st.integers(1, 256))
def test_a_garbled_bundle_raises_only_a_log_error(data: bytes, width: int) -> None:
    try:
        leaves = parse_bundle(data, width=width)
    except LogError:
        return
    assert len(leaves) == width


@settings(max_examples=50)
@given(st.binary(max_size=200), st.integers(1, 300))
def test_garbled_tiles_raise_only_a_log_error(data: bytes, size: int) -> None:
    tiles = Tiles(lambda _path: data, size)
    for read in (lambda: tiles.inclusion_proof(0), lambda: tiles.leaves(0), tiles.root):
        try:
            read()
        except LogError:
            continue


def test_a_tile_of_another_length_is_named() -> None:
    with pytest.raises(LogError, match=r"'tile/0/000.p/2' must have 64 bytes, got 63"):
        Tiles(lambda _path: bytes(63), 2).root()


def test_an_entry_that_no_bundle_can_hold_is_refused(log: Log) -> None:
    with pytest.raises(LogError, match="an entry must have at most 65535 bytes"):
        format_bundle([bytes(65_536)])
    with pytest.raises(ValueError, match="an open event must have at most 65535 bytes, got 66"):
        log.append({"type": "x", "at": 1, "v": 1, "text": "y" * 66_000})
    assert log.tree_size == 0


def test_a_file_longer_than_any_tile_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "tile/0").mkdir(parents=True)
    (tmp_path / "tile/0/000.p").mkdir()
    with (tmp_path / "tile/0/000.p/2").open("wb") as file:
        file.truncate(20_000_000)
    with pytest.raises(LogError, match=r"no readable file 'tile/0/000.p/2'"):
        Tiles.of_folder(tmp_path, 2).root()


def _files(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_ino, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_second_publication_writes_only_what_is_new(log: Log, tmp_path: Path) -> None:
    log.append_many(_events(0, 600))
    log.publish(tmp_path / "published")
    before = _files(tmp_path / "published")
    log.append_many(_events(600, 200))
    log.publish(tmp_path / "published")
    after = _files(tmp_path / "published")

    changed = {name for name in after if before.get(name) != after[name]}
    assert changed == {
        "checkpoint",
        "entries.jsonl",
        "tile/0/002",
        "tile/0/003.p/32",
        "tile/1/000.p/3",
        "tile/entries/002",
        "tile/entries/003.p/32",
    }
    # A partial tile goes when its full one is there, and stays for older readers until then.
    assert before.keys() - after.keys() == {"tile/0/002.p/88", "tile/entries/002.p/88"}
    tiles = Tiles.of_folder(tmp_path / "published", 800)
    assert tiles.root() == log.root_hash
    assert tiles.inclusion_proof(777) == log.inclusion_proof(777)
    assert tiles.leaves(3) == [entry.leaf for entry in log.entries(768, 800)]


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(0, 400), min_size=1, max_size=5))
def test_growing_publications_are_what_one_publication_is(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int]
) -> None:
    from consent import Identity, TrustPolicy, verify_published

    folder = tmp_path_factory.mktemp("steps")
    identity = Identity.generate("brand-a.example/log")
    policy = TrustPolicy.parse(f"log {identity.public.format()}\nquorum none\n")
    with Log.create(folder / "log", identity) as log:
        for count in steps:
            log.append_many(_events(log.tree_size, count))
            log.publish(folder / "grown")
            assert verify_published(folder / "grown", policy).entries == log.tree_size
        log.publish(folder / "whole")
    grown, whole = _files(folder / "grown"), _files(folder / "whole")
    assert {name: data for name, (_, data) in grown.items() if name in whole} == {
        name: data for name, (_, data) in whole.items()
    }


@pytest.mark.parametrize("name", ["tile/0/000", "tile/entries/001", "entries.jsonl", "checkpoint"])
def test_a_damaged_publication_is_written_whole_again(log: Log, tmp_path: Path, name: str) -> None:
    log.append_many(_events(0, 600))
    log.publish(tmp_path / "published")
    good = {path: data for path, (_, data) in _files(tmp_path / "published").items()}
    path = tmp_path / "published" / name
    path.write_bytes(path.read_bytes()[:100])
    log.publish(tmp_path / "published")
    if name == "tile/entries/001":  # a bundle's length is not known beforehand, only its presence
        path.unlink()
        log.publish(tmp_path / "published")

    assert {path: data for path, (_, data) in _files(tmp_path / "published").items()} == good
