"""Own the C2SP tlog-tiles layout: where a tree's hashes and entries stand, and proofs from them.

A tile holds 256 hashes of one level, a bundle 256 entries; the last of each may be partial.
Nothing here believes what it reads: a root or a proof is as good as the signed root it is held
against. Source: https://c2sp.org/tlog-tiles
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

from consent import merkle
from consent.event import LogError
from consent.merkle import HASH_SIZE_BYTES, node_hash

HEIGHT = 8
WIDTH = 1 << HEIGHT
LARGEST_ENTRY_BYTES = 65_535
_LARGEST_BUNDLE_BYTES = WIDTH * (LARGEST_ENTRY_BYTES + 2)
_CACHED_TILES = 512
_LEVELS = frozenset(map(str, range(8)))

Fetch: TypeAlias = Callable[[str], bytes]
"""Gives the bytes under a path of the layout; raises OSError when there are none."""


def tile_path(level: int, index: int, *, width: int = WIDTH) -> str:
    """Return the path of a hash tile; `level` counts tiles of height 8, not single levels."""
    if not 0 <= level < 64:
        raise ValueError(f"the level of a tile must be in [0, 64), got {level}")
    return f"tile/{level}/{_index_path(index, width)}"


def bundle_path(index: int, *, width: int = WIDTH) -> str:
    """Return the path of an entry bundle."""
    return f"tile/entries/{_index_path(index, width)}"


def parse_tile_path(path: str) -> tuple[int | None, int, int]:
    """Read what stands after `tile/`: the level (None for entries), the index and the width.

    Raises:
        ValueError: It is no path of the layout, in its only spelling.
    """
    first, _, rest = path.partition("/")
    number, is_partial, last = rest.partition(".p/")
    width = int(last) if is_partial and last.isdecimal() and len(last) < 4 else WIDTH
    parts = number.split("/")
    digits = "".join(part.removeprefix("x") for part in parts)
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= 15):
        raise ValueError("the index of a tile must be groups of three digits")
    level = None if first == "entries" else int(first) if first in _LEVELS else -1
    index = int(digits)
    expected = (
        bundle_path(index, width=width) if level is None else tile_path(level, index, width=width)
    )
    if expected != f"tile/{path}":
        raise ValueError("a path of a tile must be in its only spelling")
    return level, index, width


def new_tiles(old_size: int, new_size: int) -> Iterator[tuple[int, int, int]]:
    """Give (level, index, width) of every tile that a grown tree has and the old one had not."""
    level = 0
    while new_size >> HEIGHT * level:
        old, new = old_size >> HEIGHT * level, new_size >> HEIGHT * level
        if new > old:
            for index in range(old // WIDTH, (new - 1) // WIDTH + 1):
                yield level, index, min(WIDTH, new - index * WIDTH)
        level += 1


def format_bundle(leaves: Iterable[bytes]) -> bytes:
    """Write entries, each after its length in two bytes.

    Raises:
        LogError: An entry is longer than a bundle can say.
    """
    parts = []
    for leaf in leaves:
        if len(leaf) > LARGEST_ENTRY_BYTES:
            raise LogError(f"an entry must have at most {LARGEST_ENTRY_BYTES} bytes")
        parts += [len(leaf).to_bytes(2, "big"), leaf]
    return b"".join(parts)


def parse_bundle(data: bytes, *, width: int) -> list[bytes]:
    """Read the first `width` entries of a bundle.

    Raises:
        LogError: The bundle holds fewer, ends inside an entry, or holds more than 256.
    """
    leaves = []
    at, end = 0, len(data)
    while at < end:
        start = at + 2
        at = start + int.from_bytes(data[at:start], "big")
        if start > end or at > end:
            raise LogError("an entry bundle ends in the middle of an entry")
        leaves.append(data[start:at])
    if not width <= len(leaves) <= WIDTH:
        raise LogError(f"an entry bundle must hold {width} entries, it holds {len(leaves)}")
    return leaves[:width]


def folder_fetch(folder: Path) -> Fetch:
    """Return what reads the files of a published folder."""
    return lambda path: _read(folder / path)


class Tiles:
    """The tree of one size, read tile by tile; a few hundred tiles stay in memory."""

    def __init__(self, fetch: Fetch, tree_size: int) -> None:
        """Read from anything that gives bytes for a path.

        Raises:
            ValueError: The size is negative.
        """
        if tree_size < 0:
            raise ValueError(f"tree_size must not be negative, got {tree_size}")
        self._fetch = fetch
        self._size = tree_size
        self._cache: OrderedDict[tuple[int, int], list[list[bytes]]] = OrderedDict()

    @classmethod
    def of_folder(cls, folder: Path, tree_size: int) -> "Tiles":
        """Read from a published folder."""
        return cls(folder_fetch(folder), tree_size)

    @property
    def tree_size(self) -> int:
        """Return the number of leaves."""
        return self._size

    def root(self) -> bytes:
        """Return the root hash that the tiles give."""
        return merkle.subtree_root(self.node, low=0, high=self._size)

    def inclusion_proof(self, index: int) -> list[bytes]:
        """Return the proof that an entry is in the tree.

        Raises:
            ValueError: There is no such entry.
            LogError: A tile is missing or has another length.
        """
        return merkle.prove_inclusion(self.node, index=index, tree_size=self._size)

    def consistency_proof(self, old_size: int) -> list[bytes]:
        """Return the proof that the tree extends its first `old_size` entries."""
        return merkle.prove_consistency(self.node, old_size=old_size, new_size=self._size)

    def node(self, level: int, position: int) -> bytes:
        """Return the hash of a full subtree at a single level of the tree."""
        above, within = divmod(level, HEIGHT)
        index = position >> HEIGHT - within
        return self._tile(above, index)[within][position - (index << HEIGHT - within)]

    def tile(self, level: int, index: int) -> bytes:
        """Return the bytes of a tile, as many hashes as the tree has there.

        Raises:
            LogError: The tile is missing or has another length.
        """
        width = self._width(level, index)
        wanted = width * HASH_SIZE_BYTES
        data = self._either(
            tile_path(level, index, width=width), tile_path(level, index), width=width
        )
        if len(data) not in (wanted, WIDTH * HASH_SIZE_BYTES):
            raise LogError(
                f"the tile {tile_path(level, index, width=width)!r} must have {wanted} bytes, "
                f"got {len(data)}"
            )
        return data[:wanted]

    def leaves(self, index: int) -> list[bytes]:
        """Return the entries of one bundle.

        Raises:
            LogError: The bundle is missing, malformed, or holds another number of entries.
        """
        width = self._width(0, index)
        name = bundle_path(index, width=width)
        data = self._either(name, bundle_path(index), width=width)
        try:
            return parse_bundle(data, width=width)
        except LogError as error:
            raise LogError(f"{error} ({name})") from error

    def _width(self, level: int, index: int) -> int:
        width = min(WIDTH, (self._size >> HEIGHT * level) - index * WIDTH)
        if width <= 0:
            raise ValueError(f"a tree of size {self._size} has no tile {index} at level {level}")
        return width

    def _either(self, name: str, full_name: str, *, width: int) -> bytes:
        """Read a partial resource, or the full one that has replaced it."""
        try:
            return self._fetch(name)
        except OSError as error:
            if width < WIDTH:
                try:
                    return self._fetch(full_name)
                except OSError:
                    pass
            raise LogError(f"the published log has no readable file {name!r}") from error

    def _tile(self, level: int, index: int) -> list[list[bytes]]:
        """Return a tile's rows: its own hashes, then every full subtree above them."""
        rows = self._cache.get((level, index))
        if rows is None:
            data = self.tile(level, index)
            rows = subtree_rows(
                [data[at : at + HASH_SIZE_BYTES] for at in range(0, len(data), HASH_SIZE_BYTES)]
            )
            self._cache[level, index] = rows
            if len(self._cache) > _CACHED_TILES:
                self._cache.popitem(last=False)
        else:
            self._cache.move_to_end((level, index))
        return rows


def subtree_rows(hashes: Sequence[bytes]) -> list[list[bytes]]:
    """Return the hashes and, row by row, the full subtrees above them, eight rows up at most."""
    rows = [list(hashes)]
    for _ in range(HEIGHT):
        below = rows[-1]
        rows.append(list(map(node_hash, below[0::2], below[1::2])))
    return rows


def _index_path(index: int, width: int) -> str:
    if index < 0:
        raise ValueError(f"the index of a tile must not be negative, got {index}")
    if not 1 <= width <= WIDTH:
        raise ValueError(f"the width of a tile must be in [1, {WIDTH}], got {width}")
    path = f"{index % 1000:03d}"
    while index >= 1000:
        index //= 1000
        path = f"x{index % 1000:03d}/{path}"
    return path if width == WIDTH else f"{path}.p/{width}"


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(_LARGEST_BUNDLE_BYTES + 1)
    if len(data) > _LARGEST_BUNDLE_BYTES:
        raise OSError(f"the file {path.name} is longer than any tile or bundle")
    return data
