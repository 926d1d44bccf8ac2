"""Own the key that the keys of data subjects are wrapped under: its file, and how it is changed.

The file stands beside the database of those keys, so that a copy of the database alone opens
nothing. While the key is being changed there are two files, and whatever either of them wrapped
can be opened. The older one is destroyed only by `finish`. What is wrapped is not known here.
"""

import contextlib
import hashlib
import os
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from consent.durable import sync_folder
from consent.event import LogError

_KEY_BYTES = 32
_NONCE_BYTES = 12


class WrappingError(Exception):
    """A wrapped key does not open with any wrapping key there is."""


class WrappingKeys:
    """The wrapping key of one log, and its successor while it is being changed.

    Trusted: whoever has the file and the database can open every sealed event of the node.
    """

    def __init__(self, path: Path) -> None:
        """Read what is there; there may be nothing yet.

        Raises:
            LogError: A file is damaged, or others than its owner can read it.
        """
        self._path = path
        self._next_path = path.with_name(f"{path.name}.next")
        self._ciphers: dict[str, AESGCM] = {}
        self._current = ""
        self._drafted: bytes | None = None
        for file in (self._path, self._next_path):
            key = _read(file)
            # The successor comes last: what is wrapped from its making on is wrapped under it.
            if key is not None:
                self._use(key)
        self._is_changing = self._next_path.exists()

    @property
    def current(self) -> str:
        """Return the id of the key that wraps now; empty when there is none."""
        return self._current

    @property
    def is_changing(self) -> bool:
        """Whether a change was begun and not finished."""
        return self._is_changing

    def knows(self, key_id: str) -> bool:
        """Tell whether the key of an id is there."""
        return key_id in self._ciphers

    def create(self) -> None:
        """Make the first key, durably."""
        key = AESGCM.generate_key(bit_length=8 * _KEY_BYTES)
        _write(self._path, key)
        self._use(key)

    def wrap(self, key: bytes, *, owner: str) -> tuple[bytes, str]:
        """Return a key as it may stand on disk, and the id of what it is wrapped under.

        The first is nonce || AES-256-GCM, with owner and id as associated data.
        """
        nonce = os.urandom(_NONCE_BYTES)
        cipher = self._ciphers[self._current]
        return nonce + cipher.encrypt(nonce, key, _context(owner, self._current)), self._current

    def unwrap(self, wrapped: bytes, *, owner: str, key_id: str) -> bytes:
        """Return a key again.

        Raises:
            WrappingError: The wrapping key is gone, or this is not what it wrapped for the owner.
        """
        nonce, body = wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:]
        try:
            return self._ciphers[key_id].decrypt(nonce, body, _context(owner, key_id))
        except (KeyError, InvalidTag, ValueError) as error:
            raise WrappingError("the key of a data subject cannot be unwrapped") from error

    def successor(self) -> str:
        """Return the id of the key that `begin` puts in place; nothing is written yet."""
        if self._is_changing:
            return self._current
        if self._drafted is None:
            self._drafted = AESGCM.generate_key(bit_length=8 * _KEY_BYTES)
        return _id_of(self._drafted)

    def begin(self) -> None:
        """Put the successor beside the key, durably; from now on it wraps."""
        if not self._is_changing:
            self.successor()
            assert self._drafted is not None  # noqa: S101 - `successor` drafts
            _write(self._next_path, self._drafted)
            self._is_changing = True
            self._use(self._drafted)
            self._drafted = None

    def finish(self) -> None:
        """Destroy the older key; nothing may be wrapped under it any more.

        Raises:
            OSError: Something could not be written, or the newer key is not on disk any more, in
                which case the older one stays.
        """
        newer = _read(self._next_path)
        if newer is None or _id_of(newer) != self._current:
            raise OSError(f"{self._next_path.name} does not hold the newer wrapping key")
        with contextlib.suppress(FileNotFoundError):
            # Overwritten in place first: its bytes would stay on the disk under no name.
            descriptor = os.open(self._path, os.O_WRONLY)
            try:
                os.pwrite(descriptor, bytes(_KEY_BYTES), 0)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        self._next_path.replace(self._path)
        sync_folder(self._path.parent)
        self._is_changing = False
        self._ciphers = {self._current: self._ciphers[self._current]}

    def _use(self, key: bytes) -> None:
        self._current = _id_of(key)
        self._ciphers[self._current] = AESGCM(key)


def _id_of(key: bytes) -> str:
    # The key is 32 random bytes: its hash tells nothing of it.
    return hashlib.sha256(b"tillpact wrapping key\n" + key).hexdigest()[:32]


def _context(owner: str, key_id: str) -> bytes:
    return f"{owner}\n{key_id}".encode()


def _read(path: Path) -> bytes | None:
    """Return a key, or None when there is no file or its key was destroyed."""
    try:
        key = path.read_bytes()
    except FileNotFoundError:
        return None
    if len(key) != _KEY_BYTES or path.stat().st_mode & 0o077:
        raise LogError(
            f"the file {path.name} of the log must hold {_KEY_BYTES} bytes and be readable by its "
            f"owner only, got {len(key)} bytes and mode {path.stat().st_mode & 0o777:o}"
        )
    return key if any(key) else None


def _write(path: Path, key: bytes) -> None:
    draft = path.with_name(f"{path.name}.draft")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(descriptor, key)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    draft.replace(path)
    sync_folder(path.parent)
