"""Own the folder that a log is published in: what a stranger needs to check it offline.

`tile/` is C2SP tlog-tiles, `checkpoint` the signed note, `entries.jsonl` a copy of the entries
for people, one canonical leaf per line. A new publication adds to an older one: entries first,
then hashes, the checkpoint last, so that every file that a checkpoint needs is there before it.
Whether the files are to be believed is decided in `verify`.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from consent.checkpoint import Checkpoint
from consent.durable import replace_files
from consent.event import LogError
from consent.merkle import HASH_SIZE_BYTES, Frontier, leaf_hash, subtree_root
from consent.note import Note, NoteError
from consent.tiles import (
    HEIGHT,
    WIDTH,
    Fetch,
    Tiles,
    bundle_path,
    folder_fetch,
    format_bundle,
    new_tiles,
    tile_path,
)

ENTRIES, CHECKPOINT = "entries.jsonl", "checkpoint"
LONGEST_NOTE_BYTES = 65_536
_CHUNK = 128 * WIDTH


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTree:
    """Where a publication takes its entries and hashes from.

    Attributes:
        leaves: Gives the entries [start, end).
        hashes: Gives the full subtrees [start, end) of a single level of the tree.
    """

    leaves: Callable[[int, int], list[bytes]]
    hashes: Callable[[int, int, int], list[bytes]]

    def node(self, level: int, position: int) -> bytes:
        """Return one full subtree."""
        return self.hashes(level, position, position + 1)[0]


def write_published(folder: Path, *, tree: StoredTree, note: str) -> Checkpoint:
    """Bring a folder up to the head of a note; only new and partial tiles are written.

    An older publication of the same log stays valid until the new checkpoint is in place, but
    for one moment: `entries.jsonl` grows in place, and a process that dies there leaves lines
    that no checkpoint covers. `verify_published` refuses those until the log is published again.

    Returns:
        The head that was published.

    Raises:
        LogError: The entries do not give the signed root hash; nothing was written.
        OSError: A file could not be written; an older publication is as it was.
    """
    head = Checkpoint.parse(Note.parse(note).text)
    old_size = _kept_size(folder, head, tree)
    start = old_size // WIDTH * WIDTH
    _check_root(tree, head, start=start)
    folder.mkdir(parents=True, exist_ok=True)
    _write_tiles(folder, tree, start=start, size=head.tree_size)
    with _copy_kept(folder, old_size, tree):
        _write_copy(folder, tree, start=old_size, size=head.tree_size)
        replace_files(folder, {CHECKPOINT: note.encode()})
    for index in range(start // WIDTH, head.tree_size // WIDTH):
        for full in (bundle_path(index), tile_path(0, index)):
            # A reader of an older checkpoint takes the full one where a partial one is gone.
            shutil.rmtree(folder / f"{full}.p", ignore_errors=True)
    return head


def read_note(folder: Path) -> str:
    """Return the published note.

    Raises:
        LogError: The file is missing, far too long, or not UTF-8.
    """
    try:
        with (folder / CHECKPOINT).open("rb") as file:
            data = file.read(LONGEST_NOTE_BYTES + 1)
    except OSError as error:
        raise LogError(f"the published log has no readable file {CHECKPOINT!r}") from error
    if len(data) > LONGEST_NOTE_BYTES:
        raise LogError(f"the file {CHECKPOINT!r} must have at most {LONGEST_NOTE_BYTES} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise LogError(f"the file {CHECKPOINT!r} is not UTF-8 text") from error


def bundle_file(folder: Path, index: int) -> Path:
    """Return the file from which a verifier reads an entry of a published log.

    Raises:
        LogError: The checkpoint cannot be read.
        NoteError: The checkpoint is malformed.
        ValueError: The checkpoint covers no such entry.
    """
    size = Checkpoint.parse(Note.parse(read_note(folder)).text).tree_size
    if not 0 <= index < size:
        raise ValueError(f"index must be in [0, {size}), got {index}")
    number = index // WIDTH
    return folder / bundle_path(number, width=min(WIDTH, size - number * WIDTH))


class Publication:
    """The note and the tiles of a published log, read one by one and not believed."""

    def __init__(self, note: str, fetch: Fetch) -> None:
        """Take a note and whatever gives the bytes under a path of the layout.

        Raises:
            NoteError: The note is malformed.
        """
        self.note = note
        self.head = Checkpoint.parse(Note.parse(note).text)
        self.tiles = Tiles(fetch, self.head.tree_size)

    @classmethod
    def of_folder(cls, folder: Path) -> "Publication":
        """Read from a published folder.

        Raises:
            LogError: The checkpoint cannot be read.
            NoteError: The checkpoint is malformed.
        """
        return cls(read_note(folder), folder_fetch(folder))

    def bundles(self) -> Iterator[tuple[int, list[bytes]]]:
        """Give the index of each bundle's first entry, and its entries."""
        for index in range(-(-self.head.tree_size // WIDTH)):
            yield index * WIDTH, self.tiles.leaves(index)

    def leaf(self, index: int) -> bytes:
        """Return one entry.

        Raises:
            ValueError: The checkpoint covers no such entry.
            LogError: Its bundle is missing or malformed.
        """
        if not 0 <= index < self.head.tree_size:
            raise ValueError(
                f"there is no entry {index}: the log holds {self.head.tree_size}, from 0"
            )
        return self.tiles.leaves(index // WIDTH)[index % WIDTH]

    def files(self) -> Iterator[tuple[str, bytes]]:
        """Give every file that the log needs, the checkpoint first.

        A partial tile or bundle stands under its partial name, also where a full one was read.
        """
        yield CHECKPOINT, self.note.encode()
        for first, leaves in self.bundles():
            yield bundle_path(first // WIDTH, width=len(leaves)), format_bundle(leaves)
        for level, index, width in new_tiles(0, self.head.tree_size):
            yield tile_path(level, index, width=width), self.tiles.tile(level, index)


class ReadingCopy:
    """The copy for people, held against the proved entries; it may be missing."""

    def __init__(self, folder: Path, tree_size: int) -> None:
        """Open the copy of that many entries.

        Raises:
            LogError: There is one and it cannot be read.
        """
        self._size = tree_size
        self._file: BinaryIO | None = None
        try:
            self._file = (folder / ENTRIES).open("rb")
        except FileNotFoundError:
            return
        except OSError as error:
            raise LogError(f"the published log has no readable file {ENTRIES!r}") from error

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def compare(self, first: int, lines: bytes) -> None:
        """Raise `LogError` unless the next lines are these.

        Args:
            first: Index of the first entry in them.
            lines: Entries as the bundles give them, each followed by a newline.
        """
        if self._file is None:
            return
        found = self._file.read(len(lines))
        if found != lines and lines.startswith(found):
            count = first + found.count(b"\n")
            raise LogError(
                f"in the file {ENTRIES!r} the log holds {count} entries but the checkpoint signs "
                f"{self._size}: it was cut short",
                index=count,
            )
        if found != lines:
            pairs = enumerate(zip(lines.split(b"\n"), found.split(b"\n"), strict=False))
            index = first + next((at for at, (one, two) in pairs if one != two), 0)
            raise LogError(
                f"the file {ENTRIES!r} is not a true copy of the proved entries, first at entry "
                f"{index}",
                index=index,
            )

    def finish(self) -> None:
        """Raise `LogError` when lines follow that no checkpoint covers."""
        if self._file is not None and self._file.read(1):
            raise LogError(
                f"the file {ENTRIES!r} holds more than the checkpoint signs: the rest is unsigned"
            )


def _kept_size(folder: Path, head: Checkpoint, tree: StoredTree) -> int:
    """Return how much of an older publication can stay: all of it, or nothing."""
    try:
        old = Checkpoint.parse(Note.parse(read_note(folder)).text)
    except (LogError, NoteError):
        return 0
    if old.origin != head.origin or old.tree_size > head.tree_size:
        return 0
    if subtree_root(tree.node, low=0, high=old.tree_size) != old.root_hash:
        return 0
    return old.tree_size if _is_whole(folder, old.tree_size, tree) else 0


def _is_whole(folder: Path, size: int, tree: StoredTree) -> bool:
    """Tell whether no full file below a size is missing or has another length."""
    try:
        for index in range(size // WIDTH):
            (folder / bundle_path(index)).stat()
            if (folder / tile_path(0, index)).stat().st_size != WIDTH * HASH_SIZE_BYTES:
                return False
        return (folder / ENTRIES).stat().st_size >= _copy_bytes(folder, size, tree)
    except OSError:
        return False


def _copy_bytes(folder: Path, size: int, tree: StoredTree) -> int:
    """Return the length of the first `size` lines of the copy, from the lengths of bundles.

    A bundle spends two bytes on a length where the copy spends one on a newline.
    """
    start = size // WIDTH * WIDTH
    full = (folder / bundle_path(index) for index in range(start // WIDTH))
    whole = sum(path.stat().st_size - WIDTH for path in full)
    return whole + sum(len(leaf) + 1 for leaf in tree.leaves(start, size))


def _check_root(tree: StoredTree, head: Checkpoint, *, start: int) -> None:
    frontier = _frontier(tree, start)
    for low, high in _chunks(start, head.tree_size):
        for leaf in tree.leaves(low, high):
            frontier.append(leaf_hash(leaf))
    if frontier.size != head.tree_size or frontier.root() != head.root_hash:
        raise LogError("the stored entries do not give the signed root; not published")


def _frontier(tree: StoredTree, size: int) -> Frontier:
    hashes, low = [], 0
    for level in reversed(range(size.bit_length())):
        if size >> level & 1:
            hashes.append(tree.node(level, low >> level))
            low += 1 << level
    return Frontier(size, hashes)


def _write_tiles(folder: Path, tree: StoredTree, *, start: int, size: int) -> None:
    for low, high in _chunks(start, size):
        bundles = {
            bundle_path(first // WIDTH, width=min(WIDTH, high - first)): format_bundle(
                tree.leaves(first, min(first + WIDTH, high))
            )
            for first in range(low, high, WIDTH)
        }
        replace_files(folder, bundles)
        _write_hashes(folder, tree, [tile for tile in new_tiles(low, high) if tile[2] == WIDTH])
    _write_hashes(folder, tree, [tile for tile in new_tiles(start, size) if tile[2] < WIDTH])


def _write_hashes(folder: Path, tree: StoredTree, tiles: list[tuple[int, int, int]]) -> None:
    replace_files(
        folder,
        {
            tile_path(level, index, width=width): b"".join(
                tree.hashes(HEIGHT * level, index * WIDTH, index * WIDTH + width)
            )
            for level, index, width in tiles
        },
    )


@contextlib.contextmanager
def _copy_kept(folder: Path, size: int, tree: StoredTree) -> Iterator[None]:
    """Take lines back that were added to the copy, when the checkpoint did not follow."""
    try:
        yield
    except OSError:
        with contextlib.suppress(OSError):
            (folder / (ENTRIES + ".new")).unlink(missing_ok=True)
            if size:
                os.truncate(folder / ENTRIES, _copy_bytes(folder, size, tree))
        raise


def _write_copy(folder: Path, tree: StoredTree, *, start: int, size: int) -> None:
    """Add lines to the copy, or write it whole beside the old one when nothing can stay."""
    path = folder / ENTRIES if start else folder / (ENTRIES + ".new")
    with path.open("ab") as file:
        file.truncate(_copy_bytes(folder, start, tree))
        for low, high in _chunks(start, size):
            file.write(b"".join(leaf + b"\n" for leaf in tree.leaves(low, high)))
        file.flush()
        os.fsync(file.fileno())
    if not start:
        path.replace(folder / ENTRIES)


def _chunks(start: int, end: int) -> Iterator[tuple[int, int]]:
    for low in range(start, end, _CHUNK):
        yield low, min(low + _CHUNK, end)
