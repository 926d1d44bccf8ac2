"""Own the files that must survive a crash: whole or not at all, and known to be on disk."""

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from consent.canonical import CanonicalError, format_canonical, parse_canonical

_SLOT_BYTES = 512
_MOST_SINGLE_SYNCS = 32


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Put whole new files in place of old ones, durably and in the order given.

    Args:
        folder: Where the files stand.
        files: Content by path inside the folder; missing folders are made.

    Raises:
        OSError: A new file could not be written; the old ones are as they were.
    """
    drafts = {folder / name: folder / (name + ".new") for name in files}
    folders = dict.fromkeys([folder, *_folders_between(folder, drafts)])
    for needed in folders:
        needed.mkdir(parents=True, exist_ok=True)
    try:
        for draft, data in zip(drafts.values(), files.values(), strict=True):
            with draft.open("wb") as file:
                file.write(data)
                file.flush()
                if len(drafts) <= _MOST_SINGLE_SYNCS:
                    os.fsync(file.fileno())
        if len(drafts) > _MOST_SINGLE_SYNCS:
            # One sync of everything is cheaper than hundreds of single ones.
            os.sync()
        for path, draft in drafts.items():
            draft.replace(path)
    except OSError:
        for draft in drafts.values():
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)
        raise
    for changed in folders:
        sync_folder(changed)


def _folders_between(folder: Path, paths: Iterable[Path]) -> list[Path]:
    """Return every folder under `folder` on the way to some paths, outer ones first."""
    inside = {parent for path in paths for parent in path.parents if folder in parent.parents}
    return sorted(inside)


class FolderLock:
    """The right to write in a folder, held by one process until it closes or dies."""

    def __init__(self, path: Path) -> None:
        """Take the lock.

        Raises:
            BlockingIOError: Another writer holds it.
        """
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._descriptor)
            raise

    def release(self) -> None:
        """Give the lock back; the file stays."""
        os.close(self._descriptor)


@dataclass(frozen=True, slots=True)
class Head:
    """Size and root hash of a tree."""

    tree_size: int
    root_hash: bytes


class Anchor:
    """The last durable head, in a small file outside the database.

    A database that was put back from a copy is smaller than its anchor. The file holds two
    slots that are overwritten in turn and never grow: a full disk cannot stop it, and a torn
    write leaves the other slot. It cannot help when it is put back together with the database;
    against that there are witnesses.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._turn = 0

    def create(self, head: Head) -> None:
        """Write a new anchor file."""
        replace_files(self._path.parent, {self._path.name: _format_slot(head) * 2})

    def load(self) -> Head:
        """Return the newest head.

        Raises:
            OSError: The file is missing or no slot can be read.
        """
        data = self._path.read_bytes()
        heads = [_parse_slot(data[at : at + _SLOT_BYTES]) for at in (0, _SLOT_BYTES)]
        known = [(head.tree_size, slot) for slot, head in enumerate(heads) if head is not None]
        if not known:
            raise OSError("no slot of the anchor can be read")
        slot = max(known)[1]
        self._turn = 1 - slot
        head = heads[slot]
        assert head is not None  # noqa: S101 - `known` holds only readable slots
        return head

    def save(self, head: Head) -> None:
        """Overwrite the older slot and wait until it is on disk."""
        descriptor = os.open(self._path, os.O_WRONLY)
        try:
            os.pwrite(descriptor, _format_slot(head), self._turn * _SLOT_BYTES)
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)
        self._turn = 1 - self._turn


def _format_slot(head: Head) -> bytes:
    line = format_canonical({"root": head.root_hash.hex(), "size": head.tree_size})
    check = hashlib.sha256(line).hexdigest().encode()
    return (check + b" " + line).ljust(_SLOT_BYTES - 1) + b"\n"


def _parse_slot(slot: bytes) -> Head | None:
    check, _, line = slot.rstrip().partition(b" ")
    if hashlib.sha256(line).hexdigest().encode() != check:
        return None
    try:
        value = parse_canonical(line)
    except CanonicalError:
        return None
    match value:
        case {"root": str(root), "size": int(size)}:
            return Head(size, bytes.fromhex(root))
    return None
