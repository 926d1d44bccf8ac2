"""Add up counts of brands that never meet: encrypted for an auditor who adds the noise.

Each brand encrypts small non-negative integers under the auditor's Paillier key, whoever likes
carries them, and the auditor adds them, decrypts the sum, adds discrete Gaussian noise and
charges its own ledger, before anybody sees a number. Many integers share one ciphertext, in
slots that the largest sum cannot overflow. There are no rounds, so a brand may come late; for
vectors of a model and wherever brands can answer together, use `privacy.secure_sum`.

Who is trusted with what: the carrier with nothing. The auditor sees the exact sum, and could
decrypt single contributions if it wanted to: it is the consortium's notary, and must not be the
one who carries. A contributor can lie about its own counts, also beyond the range it agreed to:
what gives an impossible sum is refused, what gives a possible one is not noticed.

Own keys, because randomness by short exponents needs primes that are 3 modulo 4 and share no
factor; decryption is phe's, which is GPL-3 and an extra: `pip install tillpact[paillier]`.

Sources: Paillier 1999, https://doi.org/10.1007/3-540-48910-X_16; randomness with exponents of
half the length, Damgard, Jurik, Nielsen 2010, https://doi.org/10.1007/s10207-010-0119-9, 4.1.
"""

import hashlib
import json
import math
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import numpy as np
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from numpy.typing import NDArray

from privacy.accounting import GaussianRelease
from privacy.budget import Budget
from privacy.history import ReleaseKey
from privacy.ledger import Ledger
from privacy.noise import NoiseSource, discrete_gaussian, sampler_slack
from privacy.roster import pack

try:
    import gmpy2
    from phe import paillier as _phe
except ImportError as error:
    raise ImportError(
        "sums under Paillier need phe and gmpy2: pip install 'tillpact[paillier]' (phe is GPL-3)"
    ) from error

KEY_BITS: Final = 3072
GUARD_BITS: Final = 12
MIN_CONTRIBUTORS: Final = 3
MAX_CELLS: Final = 1000
PURPOSE: Final = "audited.counts"
_CONTEXT: Final = "audited-count/v1"
_MAGIC: Final = b"tillpact count 1\n"
_SIGNATURE_BYTES: Final = 64
_WINDOW_BITS: Final = 8
_PRIMALITY_ROUNDS: Final = 40


class CountRefused(Exception):  # noqa: N818 - an answer, not a fault
    """A contribution or a question is not what it must be; nothing was decrypted."""


class KeyFileError(Exception):
    """The auditor's key cannot be read or written; nothing was changed."""


@dataclass(frozen=True, slots=True)
class PublicKey:
    """The auditor's public key.

    Attributes:
        n: Modulus of 3072 bits.
    """

    n: int

    def __post_init__(self) -> None:
        if self.n.bit_length() != KEY_BITS or self.n % 2 == 0:
            raise ValueError(f"an auditor's modulus must be odd and have {KEY_BITS} bits")

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 of the modulus, for people to compare out of band."""
        return hashlib.sha256(self.n.to_bytes(KEY_BITS // 8, "big")).hexdigest()

    def format(self) -> str:
        """Write the key as one line of hexadecimal."""
        return f"{self.n:x}\n"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what `format` wrote; raise `ValueError` for anything else."""
        if len(text) > KEY_BITS // 4 + 1 or text != text.lower():
            raise ValueError("an auditor's key must be one line of lower-case hexadecimal")
        key = cls(int(text, 16))
        if key.format() != text:
            raise ValueError("an auditor's key must be one line of lower-case hexadecimal")
        return key


class PrivateKey:
    """The auditor's private key. Trusted: whoever has it reads every contribution."""

    def __init__(self, p: int, q: int) -> None:
        """Take two primes; `generate` and `load` make them."""
        self.public = PublicKey(p * q)
        self._primes = (p, q)
        self._phe = _phe.PaillierPrivateKey(_phe.PaillierPublicKey(p * q), p, q)

    @classmethod
    def generate(cls) -> Self:
        """Make a key of 3072 bits from the system's randomness; takes some seconds."""
        while True:
            p, q = _prime(KEY_BITS // 2), _prime(KEY_BITS // 2)
            if p != q and math.gcd(p - 1, q - 1) == 2:
                return cls(p, q)

    def save(self, path: Path) -> None:
        """Write the key to a new file that only its owner can read.

        Raises:
            KeyFileError: Something is there already, or it cannot be written.
        """
        text = "".join(f"{prime:x}\n" for prime in self._primes)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise KeyFileError(
                f"the auditor's key cannot be written to {path} ({error.strerror})"
            ) from error

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a key that `save` wrote.

        Raises:
            KeyFileError: There is none, others can read it, or it is no key.
        """
        try:
            if path.stat().st_mode & 0o077:
                raise KeyFileError(f"{path} can be read by others than its owner; not used")
            p, q = (int(line, 16) for line in path.read_text(encoding="ascii").split())
            return cls(p, q)
        except OSError as error:
            raise KeyFileError(f"there is no readable key at {path}") from error
        except ValueError as error:
            raise KeyFileError(f"the file {path} holds no auditor's key") from error

    def decrypt(self, ciphertext: int) -> int:
        """Return the plaintext, in [0, n)."""
        return int(self._phe.raw_decrypt(int(ciphertext)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What everybody agreed to count, before anybody counted.

    Attributes:
        id: Name of the question; asked once.
        cells: How many integers; 1 to 1000.
        largest: Most that one contributor may say for one integer.
        members: Ed25519 public key of each who may contribute, by name.
        min_contributors: Fewest contributions that are added up; at least 3.
        sensitivity: L2 bound on what one data subject changes of all integers.
        noise_std: Parameter of the auditor's noise; at least 30.
        auditor: Fingerprint of the key it is encrypted under.
    """

    id: str
    cells: int
    largest: int
    members: Mapping[str, bytes]
    min_contributors: int
    sensitivity: float
    noise_std: float
    auditor: str

    def __post_init__(self) -> None:
        if not (0 < len(self.id) <= 100 and self.id.isprintable()):
            raise ValueError("the id of a question must be 1 to 100 printable characters")
        if not 1 <= self.cells <= MAX_CELLS:
            raise ValueError(f"cells must be 1 to {MAX_CELLS}, got {self.cells}")
        if not 1 <= self.largest < 2**40:
            raise ValueError(f"largest must be 1 to 2^40 - 1, got {self.largest}")
        if not MIN_CONTRIBUTORS <= self.min_contributors <= len(self.members):
            raise ValueError(
                f"min_contributors must be {MIN_CONTRIBUTORS} to the {len(self.members)} members, "
                f"got {self.min_contributors}"
            )
        if len(set(self.members.values())) != len(self.members):
            raise ValueError("two members of a question have the same key")
        # Bounds of the noise and of the sensitivity are those of what will be charged.
        _ = self.release

    @property
    def release(self) -> GaussianRelease:
        """What the answer costs one data subject."""
        slack = sampler_slack(self.cells)
        return GaussianRelease(
            sensitivity=self.sensitivity, noise_std=self.noise_std, slack_delta=slack
        )

    @property
    def slot_bits(self) -> int:
        """Bits of one integer in a plaintext: the largest sum, and guard bits above it."""
        return (self.largest * len(self.members)).bit_length() + GUARD_BITS

    @property
    def slots(self) -> int:
        """Integers in one ciphertext."""
        return (KEY_BITS - 1) // self.slot_bits

    @property
    def ciphertexts(self) -> int:
        """Ciphertexts in one contribution."""
        return -(-self.cells // self.slots)

    @property
    def digest(self) -> bytes:
        """SHA-256 over all of it."""
        return hashlib.sha256(self.format().encode()).digest()

    def format(self) -> str:
        """Write the question as canonical JSON."""
        fields = {
            "id": self.id,
            "cells": self.cells,
            "largest": self.largest,
            "members": {name: key.hex() for name, key in self.members.items()},
            "min_contributors": self.min_contributors,
            "sensitivity": float(self.sensitivity).hex(),
            "noise_std": float(self.noise_std).hex(),
            "auditor": self.auditor,
        }
        return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what `format` wrote.

        Raises:
            CountRefused: The text is anything else.
        """
        try:
            fields = json.loads(text)
            question = cls(
                id=fields["id"],
                cells=fields["cells"],
                largest=fields["largest"],
                members={name: bytes.fromhex(key) for name, key in fields["members"].items()},
                min_contributors=fields["min_contributors"],
                sensitivity=float.fromhex(fields["sensitivity"]),
                noise_std=float.fromhex(fields["noise_std"]),
                auditor=fields["auditor"],
            )
            if question.format() != text.rstrip("\n"):
                raise ValueError("it is not in the canonical form")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CountRefused(f"the question cannot be read ({error})") from error
        return question


class Encryptor:
    """Encrypts under one key; powers of its base are tabled once, 38 MB and about a second."""

    def __init__(self, key: PublicKey) -> None:
        """Make the table."""
        self.key = key
        self._n = gmpy2.mpz(key.n)
        self._square = self._n * self._n
        self._exponent_bits = KEY_BITS // 2
        unit = gmpy2.mpz(secrets.randbelow(key.n - 2) + 2)
        base = gmpy2.powmod(-(unit * unit) % self._n, self._n, self._square)
        self._table = _powers(base, self._square, self._exponent_bits)
        self._pool: list[gmpy2.mpz] = []

    def prepare(self, count: int) -> None:
        """Draw the randomness of that many encryptions now; each is used once."""
        self._pool += [self._obfuscator() for _ in range(count)]

    def encrypt(self, plaintext: int) -> int:
        """Encrypt an integer in [0, n).

        Raises:
            ValueError: It is not in that range.
        """
        if not 0 <= plaintext < self.key.n:
            raise ValueError("a plaintext must be in [0, n)")
        obfuscator = self._pool.pop() if self._pool else self._obfuscator()
        return int((1 + plaintext * self._n) * obfuscator % self._square)

    def _obfuscator(self) -> "gmpy2.mpz":
        exponent = secrets.token_bytes(self._exponent_bits // _WINDOW_BITS)
        result = gmpy2.mpz(1)
        for powers, window in zip(self._table, exponent, strict=True):
            result = result * powers[window] % self._square
        return result


def contribute(
    values: NDArray[np.int64],
    question: Question,
    encryptor: Encryptor,
    *,
    name: str,
    sign: Callable[[str, bytes], bytes],
) -> bytes:
    """Encrypt and sign one member's integers.

    Args:
        values: Shape (cells,), each in [0, largest].
        question: What is counted.
        encryptor: Under the auditor's key.
        name: The member.
        sign: Ed25519 over b"tillpact/" + context + zero byte + message, as for `make_card`.

    Raises:
        ValueError: A value, the key or the name is not what the question says; nothing was
            encrypted.
    """
    if encryptor.key.fingerprint != question.auditor:
        raise ValueError("the question is for another auditor's key; nothing was encrypted")
    if name not in question.members:
        raise ValueError(f"{name!r} is no member of the question; nothing was encrypted")
    if values.shape != (question.cells,):
        raise ValueError(f"values must have shape ({question.cells},), got {values.shape}")
    if values.min() < 0 or values.max() > question.largest:
        raise ValueError(f"each value must be in [0, {question.largest}]; nothing was encrypted")
    body = b"".join(
        encryptor.encrypt(plaintext).to_bytes(KEY_BITS // 4, "big")
        for plaintext in _pack_slots(values, question)
    )
    message = pack(name.encode(), question.digest, body)
    return _MAGIC + message + sign(_CONTEXT, message)


class Auditor:
    """Answers questions once each, with noise, from at least as many members as agreed."""

    def __init__(self, key: PrivateKey, ledger: Ledger) -> None:
        """Answer under a key.

        Args:
            key: Decrypts.
            ledger: Is charged before anything is decrypted; budget of `PURPOSE`.
        """
        self._key = key
        self._ledger = ledger

    @classmethod
    def create(cls, folder: Path, budget: Budget) -> Self:
        """Make a key and a ledger in a new folder.

        Raises:
            KeyFileError: The folder exists already, or cannot be written.
            LedgerError: The ledger cannot be made.
        """
        try:
            folder.mkdir(mode=0o700, parents=True)
        except OSError as error:
            raise KeyFileError(f"{folder} cannot be made ({error.strerror})") from error
        key = PrivateKey.generate()
        key.save(folder / "auditor.key")
        (folder / "auditor.pub").write_text(key.public.format(), encoding="ascii")
        return cls(key, Ledger.create(folder / "ledger.sqlite", {PURPOSE: budget}))

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open what `create` made.

        Raises:
            KeyFileError: There is no key.
            LedgerError: There is no ledger, or it is damaged.
        """
        key = PrivateKey.load(folder / "auditor.key")
        return cls(key, Ledger.open(folder / "ledger.sqlite", {}))

    def close(self) -> None:
        """Close the ledger."""
        self._ledger.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def public(self) -> PublicKey:
        """The key that members encrypt under."""
        return self._key.public

    def answer(self, question: Question, contributions: Sequence[bytes]) -> NDArray[np.int64]:
        """Add up, decrypt, and add noise; the same question gets the same answer again.

        Args:
            question: What was counted.
            contributions: One of each member that counted.

        Returns:
            Noisy sums, shape (cells,); they can be negative.

        Raises:
            CountRefused: A contribution is of nobody on the list, comes twice, is for another
                question, is too large, or there are too few; nothing was decrypted.
            BudgetExhausted: The auditor's budget does not pay for it; nothing was decrypted.
            Replayed: The question was answered before, from other contributions.
            LedgerError: The ledger cannot be used; nothing was decrypted.
        """
        if question.auditor != self.public.fingerprint:
            raise CountRefused("the question is for another auditor's key; nothing was decrypted")
        opened = dict(_open(contribution, question) for contribution in contributions)
        if len(opened) != len(contributions):
            raise CountRefused("a member contributed twice; nothing was decrypted")
        if len(opened) < question.min_contributors:
            raise CountRefused(
                f"{len(opened)} members contributed, the question needs "
                f"{question.min_contributors}; nothing was decrypted"
            )
        for name, body in opened.items():
            self._check_units(name, body)
        key = ReleaseKey(run=f"question {question.digest.hex()}", round=0, attempt=0)
        asked = hashlib.sha256(pack(*(opened[name] for name in sorted(opened)))).digest()
        self._ledger.reserve(key, purpose=PURPOSE, release=question.release, request_digest=asked)
        stored = self._ledger.reply(key)
        if stored is None:
            sums = self._decrypt(question, list(opened.values()))
            noise = discrete_gaussian(question.noise_std, question.cells, source=NoiseSource())
            stored = (sums + noise).astype("<i8").tobytes()
            self._ledger.commit(key, stored)
        return np.frombuffer(stored, dtype="<i8").astype(np.int64)

    def _check_units(self, name: str, body: bytes) -> None:
        size, n = KEY_BITS // 4, self.public.n
        for start in range(0, len(body), size):
            ciphertext = int.from_bytes(body[start : start + size], "big")
            if not 0 < ciphertext < n * n or math.gcd(ciphertext, n) != 1:
                raise CountRefused(
                    f"the contribution of {name} holds what is no ciphertext; nothing was decrypted"
                )

    def _decrypt(self, question: Question, bodies: Sequence[bytes]) -> NDArray[np.int64]:
        square = gmpy2.mpz(self.public.n) ** 2
        size = KEY_BITS // 4
        slots: list[int] = []
        for start in range(0, question.ciphertexts * size, size):
            product = gmpy2.mpz(1)
            for body in bodies:
                product = product * int.from_bytes(body[start : start + size], "big") % square
            slots += _unpack_slots(self._key.decrypt(int(product)), question)
        most = question.largest * len(bodies)
        if any(slot > most for slot in slots):
            raise CountRefused(
                "a sum is larger than the members could have said together, so one of them did "
                "not keep to the question; the budget is spent and nothing was released"
            )
        return np.array(slots[: question.cells], dtype=np.int64)


def _open(contribution: bytes, question: Question) -> tuple[str, bytes]:
    """Return (member, ciphertexts) of a contribution that is signed and of the right shape."""
    if not contribution.startswith(_MAGIC) or len(contribution) > 1 << 24:
        raise CountRefused("a contribution cannot be read; nothing was decrypted")
    message = contribution[len(_MAGIC) : -_SIGNATURE_BYTES]
    signature = contribution[-_SIGNATURE_BYTES:]
    body_bytes = question.ciphertexts * KEY_BITS // 4
    for name, key in question.members.items():
        body = message[-body_bytes:]
        # One spelling: whatever else was packed would not give the same bytes.
        if message != pack(name.encode(), question.digest, body) or len(body) != body_bytes:
            continue
        try:
            signed = b"tillpact/" + _CONTEXT.encode() + b"\0" + message
            Ed25519PublicKey.from_public_bytes(key).verify(signature, signed)
        except (InvalidSignature, ValueError) as error:
            raise CountRefused(
                f"the contribution of {name} is not signed by its key; nothing was decrypted"
            ) from error
        return name, body
    raise CountRefused(
        "a contribution is of no member, for another question, or of another shape; nothing was "
        "decrypted"
    )


def _pack_slots(values: NDArray[np.int64], question: Question) -> list[int]:
    plaintexts = []
    for start in range(0, question.cells, question.slots):
        plaintext = 0
        for value in values[start : start + question.slots].tolist():
            plaintext = plaintext << question.slot_bits | value
        # The last one is padded, so that all are read in the same way.
        missing = question.slots - len(values[start : start + question.slots])
        plaintexts.append(plaintext << question.slot_bits * missing)
    return plaintexts


def _unpack_slots(plaintext: int, question: Question) -> list[int]:
    bits, mask = question.slot_bits, (1 << question.slot_bits) - 1
    if plaintext >> bits * question.slots:
        # Above the highest slot there is nothing, or somebody overflowed it.
        return [mask] * question.slots
    return [plaintext >> bits * place & mask for place in reversed(range(question.slots))]


def _prime(bits: int) -> int:
    """A random prime that is 3 modulo 4, with its two highest bits set."""
    top = 3 << (bits - 2)
    while True:
        candidate = secrets.randbits(bits) | top | 3
        if gmpy2.is_prime(candidate, _PRIMALITY_ROUNDS):
            return candidate


def _powers(base: "gmpy2.mpz", modulus: "gmpy2.mpz", bits: int) -> list[list["gmpy2.mpz"]]:
    """Table of base^(digit * 256^i) by i and digit, for every byte i of an exponent."""
    table = []
    for _ in range(bits // _WINDOW_BITS):
        row = [gmpy2.mpz(1)]
        for _ in range((1 << _WINDOW_BITS) - 1):
            row.append(row[-1] * base % modulus)
        table.append(row)
        base = row[-1] * base % modulus
    return table
