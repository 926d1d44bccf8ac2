"""Who takes part in secure sums: cards of public keys that everybody pins beforehand.

A card binds a name to an Ed25519 identity, which people compare out of band, and to an X25519
key, from which masks come. A coordinator that swaps a key changes the roster's digest.
"""

import hashlib
import json
import os
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

_CARD_CONTEXT: Final = "member-card/v1"


class RosterError(Exception):
    """A card, key or roster cannot be trusted as it stands."""


def pack(*parts: bytes) -> bytes:
    """Concatenate with lengths, so that no two lists give the same bytes."""
    # Lengths and parts are joined once: a part may be a vector of megabytes.
    return b"".join(piece for part in parts for piece in (len(part).to_bytes(8, "big"), part))


def _check_name(name: str) -> None:
    if not (
        0 < len(name) <= 64
        and name.isprintable()
        and name == name.strip()
        and unicodedata.is_normalized("NFC", name)
    ):
        raise RosterError(f"a name must be 1 to 64 printable characters, got {name!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberCard:
    """One member's public keys, signed by the member.

    Attributes:
        name: What the others call it; unique in a roster.
        identity: Ed25519 public key, 32 bytes; compared by people, out of band.
        agreement: X25519 public key for masks, 32 bytes.
        signature: By `identity`, over both keys and the name, 64 bytes.
    """

    name: str
    identity: bytes
    agreement: bytes
    signature: bytes

    def verify(self) -> None:
        """Check the name and the signature.

        Raises:
            RosterError: Either does not hold.
        """
        _check_name(self.name)
        try:
            message = _card_message(self.name, self.identity, self.agreement)
            signed = b"tillpact/" + _CARD_CONTEXT.encode() + b"\0" + message
            Ed25519PublicKey.from_public_bytes(self.identity).verify(self.signature, signed)
            X25519PublicKey.from_public_bytes(self.agreement)
        except (InvalidSignature, ValueError) as error:
            raise RosterError(f"the card of {self.name} is not signed by its own key") from error


def _card_message(name: str, identity: bytes, agreement: bytes) -> bytes:
    return pack(name.encode(), identity, agreement)


def make_card(
    name: str, sign: Callable[[str, bytes], bytes], *, identity: bytes, agreement: bytes
) -> MemberCard:
    """Sign a card with whatever holds the identity's private key.

    Args:
        name: What the others will call this member.
        sign: Takes a context and a message, and signs b"tillpact/" + context + zero byte +
            message with Ed25519, so that no signature can serve for something else.
        identity: Ed25519 public key, 32 bytes.
        agreement: X25519 public key, 32 bytes.

    Raises:
        RosterError: The name is not allowed, or `sign` does not belong to `identity`.
    """
    _check_name(name)
    signature = sign(_CARD_CONTEXT, _card_message(name, identity, agreement))
    card = MemberCard(name=name, identity=identity, agreement=agreement, signature=signature)
    card.verify()
    return card


@dataclass(frozen=True, slots=True)
class Roster:
    """The members that everybody pins: sorted by name, unique, every card verified.

    Attributes:
        cards: In the order of their names, in whatever order they were given.

    Raises:
        RosterError: A card does not verify, or a name or key appears twice.
    """

    cards: tuple[MemberCard, ...]

    def __init__(self, cards: Iterable[MemberCard]) -> None:
        ordered = tuple(sorted(cards, key=lambda card: card.name))
        for card in ordered:
            card.verify()
        for what in ("name", "identity", "agreement"):
            if len({getattr(card, what) for card in ordered}) != len(ordered):
                raise RosterError(f"two cards of the roster have the same {what}")
        object.__setattr__(self, "cards", ordered)

    def card(self, name: str) -> MemberCard | None:
        """The card pinned under a name, or None."""
        return next((card for card in self.cards if card.name == name), None)

    @property
    def digest(self) -> bytes:
        """SHA-256 of the whole roster: 32 bytes for people and plans to compare."""
        return hashlib.sha256(self.format()).digest()

    def format(self) -> bytes:
        """Canonical JSON lines, one card each."""
        return b"".join(
            json.dumps(
                {
                    "agreement": card.agreement.hex(),
                    "identity": card.identity.hex(),
                    "name": card.name,
                    "signature": card.signature.hex(),
                },
                ensure_ascii=False,
                separators=(",", ":"),
            ).encode()
            + b"\n"
            for card in self.cards
        )

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read what `format` wrote, and verify it.

        Raises:
            RosterError: The bytes are anything else, or the roster does not hold.
        """
        try:
            lines = [json.loads(line) for line in data.decode().split("\n")[:-1]]
            roster = cls(
                MemberCard(
                    name=line["name"],
                    identity=bytes.fromhex(line["identity"]),
                    agreement=bytes.fromhex(line["agreement"]),
                    signature=bytes.fromhex(line["signature"]),
                )
                for line in lines
            )
            if roster.format() != data:
                raise ValueError("it is not in the canonical form")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise RosterError(
                "the roster cannot be read; it is not in the canonical form"
            ) from error
        return roster


@dataclass(frozen=True, slots=True)
class AgreementKey:
    """A party's secret X25519 key, from which its masks come.

    Attributes:
        private: The key; never shown, never sent.
    """

    private: X25519PrivateKey = field(repr=False)

    @classmethod
    def generate(cls) -> Self:
        """Make a new key from the system's randomness."""
        return cls(X25519PrivateKey.generate())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a key that `save` wrote.

        Raises:
            RosterError: The file is missing, readable by others, or not such a key.
        """
        try:
            if path.stat().st_mode & 0o077:
                raise RosterError(f"the key file {path} is open to other users; chmod it to 600")
            key = serialization.load_pem_private_key(path.read_bytes(), password=None)
        except (OSError, ValueError, TypeError) as error:
            raise RosterError(f"no agreement key can be read from {path}") from error
        if not isinstance(key, X25519PrivateKey):
            raise RosterError(f"no agreement key can be read from {path}")
        return cls(key)

    def save(self, path: Path) -> None:
        """Write the key to a new file that only its owner can read.

        Raises:
            RosterError: The file exists or cannot be written; nothing was replaced.
        """
        data = self.private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(descriptor)
        except OSError as error:
            raise RosterError(f"no agreement key can be written to {path}: {error}") from error

    @property
    def public(self) -> bytes:
        """The X25519 public key, 32 bytes."""
        return self.private.public_key().public_bytes_raw()
