"""Masks: keystreams that are added to a vector in a ring, a chunk at a time.

A mask is the AES-256-CTR keystream of a seed that serves once, read as little-endian words.
It is never held whole: 256 KiB of it are made and added while they are still in the cache.
"""

from collections.abc import Iterable
from typing import Final, Literal

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

RingBits = Literal[16, 32, 64]
Ring = NDArray[np.unsignedinteger]

RING_BITS: Final = (16, 32, 64)
CHUNK_BYTES: Final = 256 * 1024
_ZEROS: Final = bytes(CHUNK_BYTES)


def word_type(ring_bits: int) -> np.dtype[np.unsignedinteger]:
    """How a value of the ring lies in memory and on the wire: unsigned, little-endian."""
    return np.dtype(f"<u{ring_bits // 8}")


def signed(ring: Ring) -> NDArray[np.int64]:
    """Read values of a ring as numbers around 0, shape as given."""
    return ring.view(ring.dtype.str.replace("u", "i")).astype(np.int64)


def derive(secret: bytes, info: bytes, *, salt: bytes | None = None, size: int = 32) -> bytes:
    """HKDF-SHA256 (RFC 5869): `size` bytes that say nothing about the secret or each other."""
    return HKDF(algorithm=hashes.SHA256(), length=size, salt=salt, info=info).derive(secret)


def apply_masks(
    ring: Ring, *, added: Iterable[bytes] = (), subtracted: Iterable[bytes] = ()
) -> None:
    """Add some masks to a vector, and subtract others, in place.

    Args:
        ring: The vector, of a `word_type`; unsigned arithmetic wraps, which is the ring's.
        added: Seeds of masks to add, 32 bytes each.
        subtracted: Seeds of masks to subtract.
    """
    streams: list[tuple[np.ufunc, CipherContext]] = [(np.add, _keystream(seed)) for seed in added]
    streams += [(np.subtract, _keystream(seed)) for seed in subtracted]
    # `update_into` wants room for one more block, less a byte.
    buffer = np.empty(CHUNK_BYTES + 15, dtype=np.uint8)
    words = buffer[:CHUNK_BYTES].view(ring.dtype)
    step = CHUNK_BYTES // ring.dtype.itemsize
    for start in range(0, ring.size, step):
        chunk = ring[start : start + step]
        zeros = memoryview(_ZEROS)[: chunk.nbytes]
        mask = words[: chunk.size]
        for combine, stream in streams:
            stream.update_into(zeros, buffer.data)
            combine(chunk, mask, out=chunk)


def _keystream(seed: bytes) -> CipherContext:
    # A seed is a new key for each use, so the nonce may be constant.
    return Cipher(algorithms.AES256(seed), modes.CTR(bytes(16))).encryptor()
