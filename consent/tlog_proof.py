"""Own the C2SP tlog-proof: a text that shows offline that one entry is in a log.

Only the format and the climb to the root are here. Whose checkpoint is believed is decided by
the caller. Source: https://c2sp.org/tlog-proof
"""

import base64
import binascii
from dataclasses import dataclass

from consent.checkpoint import Checkpoint
from consent.event import LogError
from consent.log import Log
from consent.merkle import ProofError, verify_inclusion
from consent.note import Note, NoteError

_FIRST_LINE = "c2sp.org/tlog-proof@v1"
MOST_HASHES = 63
"""A tree of fewer than 2^63 entries is never higher."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogProof:
    """An entry's place in a tree, and the signed head of that tree.

    Attributes:
        index: Place of the entry, from 0.
        hashes: Inclusion proof, from the sibling of the leaf up.
        checkpoint: Signed note of the tree, word for word.
        extra: Bytes that help to rebuild the leaf; nothing vouches for them.
    """

    index: int
    hashes: tuple[bytes, ...]
    checkpoint: str
    extra: bytes = b""

    def __post_init__(self) -> None:
        if not 0 <= self.index < 2**63:
            raise ProofError("the index of a log proof must be in [0, 2^63)")
        if len(self.hashes) > MOST_HASHES or any(len(value) != 32 for value in self.hashes):
            raise ProofError(f"a log proof must hold at most {MOST_HASHES} hashes of 32 bytes")

    def format(self) -> str:
        """Write the proof."""
        extra = [f"extra {_encode(self.extra)}"] if self.extra else []
        lines = [_FIRST_LINE, *extra, f"index {self.index}", *map(_encode, self.hashes)]
        return "\n".join([*lines, "", self.checkpoint])

    @classmethod
    def parse(cls, text: str) -> "LogProof":
        """Read a proof without believing it.

        Raises:
            ProofError: The text is not a proof in its only spelling.
        """
        head, blank, checkpoint = text.partition("\n\n")
        lines = head.split("\n")
        if not blank or lines[0] != _FIRST_LINE:
            raise ProofError(f"a log proof must begin with {_FIRST_LINE} and end with a checkpoint")
        extra = b""
        if len(lines) > 1 and lines[1].startswith("extra "):
            extra = _decode(lines.pop(1).removeprefix("extra "))
        if len(lines) < 2 or not lines[1].startswith("index "):
            raise ProofError("a log proof must name the index of its entry")
        number = lines[1].removeprefix("index ")
        if not (number.isascii() and number.isdecimal() and len(number) < 20):
            raise ProofError("the index of a log proof must be in [0, 2^63)")
        if len(lines) - 2 > MOST_HASHES:
            raise ProofError(f"a log proof must hold at most {MOST_HASHES} hashes of 32 bytes")
        hashes = tuple(_decode(line) for line in lines[2:])
        proof = cls(index=int(number), hashes=hashes, checkpoint=checkpoint, extra=extra)
        if proof.format() != text:
            raise ProofError("a log proof must be in its only canonical spelling")
        return proof

    def verify(self, leaf_hash: bytes) -> None:
        """Raise `ProofError` unless the proof leads from this leaf to the checkpoint's root.

        The checkpoint's signatures are not looked at.
        """
        try:
            head = Checkpoint.parse(Note.parse(self.checkpoint).text)
        except NoteError as error:
            raise ProofError(f"the checkpoint of a log proof cannot be read: {error}") from error
        verify_inclusion(
            leaf_hash,
            index=self.index,
            tree_size=head.tree_size,
            proof=self.hashes,
            root=head.root_hash,
        )


def prove_entry(log: Log, index: int, *, extra: bytes = b"") -> LogProof:
    """Return the proof of one entry under the log's newest note.

    Raises:
        LogError: The newest note is older than the entry; ask again after the next one.
    """
    note = log.newest_note()
    tree_size = Checkpoint.parse(Note.parse(note).text).tree_size
    if not 0 <= index < tree_size:
        raise LogError(f"the newest note covers {tree_size} entries, not entry {index} yet")
    hashes = tuple(log.inclusion_proof(index, tree_size))
    return LogProof(index=index, hashes=hashes, checkpoint=note, extra=extra)


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ProofError("a line of a log proof is not base64") from error
