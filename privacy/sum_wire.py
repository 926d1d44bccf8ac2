"""Messages of a secure sum as bytes: signed, canonical, and parsed without trust.

Each message but the masked vector is signed with the sender's pinned identity, under a context
that names its kind, so that none can pass for another. A bundle is what the coordinator hands
round: the messages of one kind, unchanged, in the order of their senders. The masked vector is
megabytes and travels in the transport's own signed envelope.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from numpy.typing import NDArray

from privacy.masks import Ring, apply_masks, word_type
from privacy.roster import Roster, pack
from privacy.secure_sum import MAX_COHORT, SumRefused
from privacy.sum_terms import format_names

Sign = Callable[[str, bytes], bytes]
# Names and ciphertexts of a full cohort, twice over.
MAX_PARTS: Final = 256
MASKED_MAGIC: Final = b"tillpact sum 2\0\0"
MASKED_HEADER_BYTES: Final = len(MASKED_MAGIC) + 64


class Kind(StrEnum):
    """What a message is; part of the context of its signature."""

    HELLO = "hello"
    MEETING = "meeting"
    DEAL = "deal"
    STATEMENT = "statement"
    REVEAL = "reveal"


@dataclass(frozen=True, slots=True, kw_only=True)
class SumMessage:
    """A message whose signature held.

    Attributes:
        sender: The member that signed it.
        fields: Its contents, not yet checked.
    """

    sender: str
    fields: tuple[bytes, ...]


def sign_message(kind: Kind, sender: str, fields: Iterable[bytes], sign: Sign) -> bytes:
    """Put a message together and sign it.

    Args:
        kind: What it is.
        sender: This member's own name.
        fields: Contents.
        sign: As in `privacy.roster.make_card`.
    """
    body = pack(sender.encode(), *fields)
    return pack(body, sign(_context(kind), body))


def open_message(kind: Kind, data: bytes, *, roster: Roster, size: int) -> SumMessage:
    """Check form and signature of a message.

    Args:
        kind: What it must be.
        data: What arrived.
        roster: The pinned identities.
        size: How many fields this kind has.

    Raises:
        SumRefused: The message cannot be read, or the sender's identity did not sign it.
    """
    try:
        body, signature = unpack(data)
        name, *fields = unpack(body)
        sender = name.decode()
        if len(fields) != size:
            raise ValueError(f"{len(fields)} fields")
    except ValueError as error:
        raise SumRefused(f"a {kind} cannot be read; nothing was done") from error
    card = roster.card(sender)
    if card is None:
        raise SumRefused(f"a {kind} is from {sender!r}, who is not pinned; nothing was done")
    signed = b"tillpact/" + _context(kind).encode() + b"\0" + body
    try:
        Ed25519PublicKey.from_public_bytes(card.identity).verify(signature, signed)
    except InvalidSignature as error:
        raise SumRefused(f"the {kind} of {sender} is not signed by it; nothing was done") from error
    return SumMessage(sender=sender, fields=tuple(fields))


def _context(kind: Kind) -> str:
    return f"secure-sum-{kind}/v1"


def format_bundle(messages: Mapping[str, bytes]) -> bytes:
    """Messages of one kind in the order of their senders."""
    return pack(*(messages[sender] for sender in sorted(messages)))


def open_bundle(kind: Kind, data: bytes, *, roster: Roster, size: int) -> dict[str, SumMessage]:
    """Check every message of a bundle.

    Raises:
        SumRefused: One does not hold, or senders are not sorted, each once.
    """
    try:
        parts = unpack(data)
        if not 0 < len(parts) <= MAX_COHORT:
            raise ValueError(f"{len(parts)} messages")
    except ValueError as error:
        raise SumRefused(f"a bundle of {kind}s cannot be read; nothing was done") from error
    messages = [open_message(kind, part, roster=roster, size=size) for part in parts]
    senders = [message.sender for message in messages]
    if senders != sorted(set(senders)):
        raise SumRefused(
            f"a bundle of {kind}s must be sorted and hold each sender once; nothing was done"
        )
    return {message.sender: message for message in messages}


def format_masked(
    values: NDArray[np.int64],
    *,
    head: tuple[bytes, bytes],
    ring_bits: int,
    added: Iterable[bytes],
    subtracted: Iterable[bytes],
) -> bytes:
    """Values under masks, after 80 bytes that say what they are for.

    Args:
        values: Checked numbers, shape (dimension,).
        head: Digests of the round and of the deals.
        ring_bits: Of the ring.
        added: Seeds of masks to add.
        subtracted: Seeds of masks to subtract.
    """
    word = word_type(ring_bits)
    message = bytearray(MASKED_HEADER_BYTES + values.size * word.itemsize)
    message[:MASKED_HEADER_BYTES] = MASKED_MAGIC + head[0] + head[1]
    # Masked in place, in the message: megabytes are written once less.
    ring: Ring = np.frombuffer(message, dtype=word, offset=MASKED_HEADER_BYTES)
    np.copyto(ring, values, casting="unsafe")
    apply_masks(ring, added=added, subtracted=subtracted)
    return bytes(message)


def parse_masked(
    data: bytes, *, sender: str, head: tuple[bytes, bytes], dimension: int, ring_bits: int
) -> Ring:
    """Read a masked vector without copying it.

    Args:
        data: What arrived.
        sender: Who sent it, for the sentence.
        head: Digests of the round and of the deals that it must be for.
        dimension: Values it must have.
        ring_bits: Bits of each.

    Raises:
        SumRefused: It is for something else or has another length.
    """
    word = word_type(ring_bits)
    expected = MASKED_HEADER_BYTES + dimension * word.itemsize
    if data[:MASKED_HEADER_BYTES] != MASKED_MAGIC + head[0] + head[1]:
        raise SumRefused(f"the values of {sender} are for another round; nothing was summed")
    if len(data) != expected:
        raise SumRefused(
            f"the values of {sender} must have {expected} bytes, got {len(data)}; "
            "nothing was summed"
        )
    ring: Ring = np.frombuffer(data, dtype=word, offset=MASKED_HEADER_BYTES)
    return ring


@dataclass(frozen=True, slots=True, kw_only=True)
class Survivors:
    """Who sent values in a round and who dealt but did not.

    Attributes:
        round_digest: The round.
        deals_digest: The bundle of deals from which everybody masked.
        alive: Members whose values are in the sum; sorted.
        dropped: Members that dealt and are not; sorted.
    """

    round_digest: bytes
    deals_digest: bytes
    alive: tuple[str, ...]
    dropped: tuple[str, ...]

    @property
    def fields(self) -> tuple[bytes, ...]:
        """As bytes, in the order of the class."""
        return (
            self.round_digest,
            self.deals_digest,
            format_names(self.alive),
            format_names(self.dropped),
        )

    def format(self) -> bytes:
        """The one text of these sets."""
        return pack(*self.fields)

    @property
    def digest(self) -> bytes:
        """SHA-256 of the text."""
        return hashlib.sha256(self.format()).digest()

    @classmethod
    def parse(cls, data: bytes) -> "Survivors":
        """Read what `format` wrote.

        Raises:
            SumRefused: The bytes are something else.
        """
        try:
            return cls.of(unpack(data))
        except ValueError as error:
            raise SumRefused("a set of survivors cannot be read; nothing was done") from error

    @classmethod
    def of(cls, fields: Sequence[bytes]) -> "Survivors":
        """From four fields.

        Raises:
            ValueError: There are not four, or a list of names is not sorted text.
        """
        round_digest, deals_digest, alive, dropped = fields
        return cls(
            round_digest=round_digest,
            deals_digest=deals_digest,
            alive=parse_names(alive),
            dropped=parse_names(dropped),
        )


def parse_names(data: bytes) -> tuple[str, ...]:
    """Read what `format_names` wrote.

    Raises:
        ValueError: It is no list of names, sorted, each once.
    """
    names = tuple(part.decode() for part in unpack(data))
    if list(names) != sorted(set(names)):
        raise ValueError("names must be sorted, each once")
    return names


def unpack(data: bytes, *, most: int = MAX_PARTS) -> tuple[bytes, ...]:
    """Read what `pack` wrote.

    Args:
        data: What arrived.
        most: How many parts are read; more are refused before they cost anything.

    Raises:
        ValueError: A part is cut short, or there are too many.
    """
    parts: list[bytes] = []
    place = 0
    while place < len(data):
        if len(parts) == most:
            raise ValueError(f"more than {most} parts")
        start = place + 8
        place = start + int.from_bytes(data[place:start], "big")
        if place > len(data) or start > len(data):
            raise ValueError("a part is cut short")
        parts.append(data[start:place])
    return tuple(parts)
