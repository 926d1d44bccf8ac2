"""Keys of a secure sum: from pinned keys to a secret of each pair, and from that to each round.

Once a run, each pair agrees on a secret from three sources, of which one must hold:
- X25519 of the two pinned keys, which people compared when the roster was made;
- X25519 of two keys made for this run and destroyed after the set-up, so that a pinned key
  that is stolen later opens no earlier run;
- ML-KEM-768 (FIPS 203), so that somebody who records today does not unmask when X25519 falls.
What each side sent is signed by its pinned identity and goes into the derivation.

From there everything is HKDF-SHA256 with the digest of the round: a pair's seed of one round
says nothing about the pair's secret or about another round.
"""

import hashlib
from dataclasses import dataclass, field
from typing import Final, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from privacy.masks import derive
from privacy.roster import pack
from privacy.shamir import WIDE_BYTES, reduced
from privacy.sum_terms import SumTerms

TAG_BYTES: Final = 16
# Each AEAD key serves one message, so the nonce may be constant.
_NONCE: Final = bytes(12)


@dataclass(frozen=True, slots=True)
class RunKeys:
    """One member's two secret keys of a run; gone once the pairs have their secrets.

    Attributes:
        agreement: X25519.
        encapsulation: ML-KEM-768.
    """

    agreement: X25519PrivateKey = field(repr=False)
    encapsulation: MLKEM768PrivateKey = field(repr=False)

    @classmethod
    def of(cls, seed: bytes) -> Self:
        """Both keys from 32 secret bytes."""
        return cls(
            X25519PrivateKey.from_private_bytes(derive(seed, b"x25519")),
            MLKEM768PrivateKey.from_seed_bytes(derive(seed, b"ml-kem-768", size=64)),
        )

    @property
    def public(self) -> tuple[bytes, bytes]:
        """The public halves: 32 and 1,184 bytes."""
        return (
            self.agreement.public_key().public_bytes_raw(),
            self.encapsulation.public_key().public_bytes_raw(),
        )


def encapsulate(public: bytes) -> tuple[bytes, bytes]:
    """A fresh secret for the owner of an ML-KEM-768 key, and the ciphertext that carries it.

    Raises:
        ValueError: The key is malformed.
    """
    return MLKEM768PublicKey.from_public_bytes(public).encapsulate()


def exchange(private: X25519PrivateKey, public: bytes) -> bytes:
    """X25519.

    Raises:
        ValueError: The public key is malformed, or so weak that the secret would be zero.
    """
    return private.exchange(X25519PublicKey.from_public_bytes(public))


def pair_secret(
    terms: SumTerms, *, secrets: tuple[bytes, bytes, bytes], pair: tuple[str, str], seen: bytes
) -> bytes:
    """What two members share for a run, 32 bytes.

    Args:
        terms: Of the run.
        secrets: Pinned X25519, the run's X25519, ML-KEM.
        pair: Both names, the lower first.
        seen: Digest of the hellos and of the ciphertext, which both have seen alike.
    """
    info = pack(b"pair", pair[0].encode(), pair[1].encode(), seen)
    return derive(pack(*secrets), info, salt=terms.digest)


def pair_seed(secret: bytes, round_digest: bytes) -> bytes:
    """What two members share for one round, 32 bytes."""
    return derive(secret, pack(b"seed", round_digest))


def mask_seed(seed: bytes, deals_digest: bytes) -> bytes:
    """The seed of a mask; bound to the deals, so that members shown others do not cancel."""
    return derive(seed, pack(b"mask", deals_digest))


@dataclass(frozen=True, slots=True)
class RoundSecrets:
    """One member's own secrets of one round; from its seed, so that a retry finds them again.

    Attributes:
        self_seed: Hides what it sends until it is known to be in the sum.
        box_key: Opens the box with its pair seeds once it is known not to be.
        randomness: Of the two sharing polynomials.
    """

    self_seed: bytes = field(repr=False)
    box_key: bytes = field(repr=False)
    randomness: tuple[bytes, bytes] = field(repr=False)

    @classmethod
    def of(cls, seed: bytes, *, round_digest: bytes, threshold: int) -> Self:
        """All of them from 32 secret bytes and the round."""

        def fresh(what: bytes, size: int) -> bytes:
            return derive(seed, pack(what, round_digest), size=size)

        size = WIDE_BYTES * (threshold - 1)
        return cls(
            reduced(fresh(b"self", WIDE_BYTES)),
            reduced(fresh(b"box", WIDE_BYTES)),
            (fresh(b"self polynomial", size), fresh(b"box polynomial", size)),
        )


def commitment(what: str, round_digest: bytes, *parts: bytes) -> bytes:
    """Hash that binds to a secret and, as every secret here is uniform, hides it; 32 bytes."""
    return hashlib.sha256(pack(b"sum-commitment/v1", what.encode(), round_digest, *parts)).digest()


def seal(key: bytes, plaintext: bytes, *, about: bytes) -> bytes:
    """AES-256-GCM under a key that serves once; 16 bytes longer than the plaintext."""
    return AESGCM(derive(key, pack(b"seal", about))).encrypt(_NONCE, plaintext, about)


def unseal(key: bytes, ciphertext: bytes, *, about: bytes) -> bytes:
    """Open what `seal` closed.

    Raises:
        ValueError: Key, subject or ciphertext differ.
    """
    try:
        return AESGCM(derive(key, pack(b"seal", about))).decrypt(_NONCE, ciphertext, about)
    except InvalidTag as error:
        raise ValueError("a sealed text does not open") from error


def share_subject(round_digest: bytes, sender: str, recipient: str) -> bytes:
    """What the sealed shares of one member for another are about."""
    return pack(b"shares", round_digest, sender.encode(), recipient.encode())


def box_subject(round_digest: bytes, sender: str) -> bytes:
    """What a member's box of pair seeds is about."""
    return pack(b"box", round_digest, sender.encode())
