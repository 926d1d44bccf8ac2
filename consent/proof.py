"""Own the text that proves one entry of a log to somebody who has public keys only.

The format is C2SP tlog-proof: the entry's index, the hashes up to the root, and a checkpoint.
The entry itself travels apart; for a sealed one `extra` carries salt and content, from which
the leaf follows. Source: https://c2sp.org/tlog-proof
"""

import base64
import binascii
from dataclasses import dataclass

from consent.chain import Opening
from consent.checkpoint import Checkpoint, VerifiedCheckpoint, verify_checkpoint
from consent.event import LogError
from consent.log import Log
from consent.merkle import ProofError, leaf_hash, verify_inclusion
from consent.note import Note
from consent.published import Publication
from consent.trust import TrustPolicy

_FIRST_LINE = "c2sp.org/tlog-proof@v1"
_SALT_BYTES = 32
LONGEST_PROOF_BYTES = 1 << 24
MOST_HASHES = 63


@dataclass(frozen=True, slots=True, kw_only=True)
class TlogProof:
    """What one proof says; nothing in it is believed yet.

    Attributes:
        index: Position of the entry, below 2^63.
        hashes: Inclusion proof of RFC 6962, from the leaf's sibling up.
        note: Checkpoint of the log with its signatures.
        extra: Data of the application, not covered by any signature.
    """

    index: int
    hashes: tuple[bytes, ...]
    note: str
    extra: bytes = b""

    def __post_init__(self) -> None:
        if not 0 <= self.index < 2**63:
            raise ProofError(f"the index of a proof must be in [0, 2^63), got {self.index}")
        if len(self.hashes) > MOST_HASHES:
            raise ProofError(f"a proof must hold at most {MOST_HASHES} hashes")


def format_proof(proof: TlogProof) -> str:
    """Write a proof; `parse_proof` gives an equal one back."""
    lines = [_FIRST_LINE]
    if proof.extra:
        lines.append(f"extra {base64.b64encode(proof.extra).decode()}")
    lines.append(f"index {proof.index}")
    lines += [base64.b64encode(value).decode() for value in proof.hashes]
    return "\n".join([*lines, "", proof.note])


def parse_proof(text: str) -> TlogProof:
    """Read a proof without believing it.

    Raises:
        ProofError: The text is not a proof in its only spelling.
    """
    if len(text) > LONGEST_PROOF_BYTES:
        raise ProofError(f"a proof must have at most {LONGEST_PROOF_BYTES} bytes")
    head, blank, note = text.partition("\n\n")
    lines = head.split("\n")
    if not blank or lines.pop(0) != _FIRST_LINE:
        raise ProofError(f"a proof must begin with {_FIRST_LINE!r} and end with a checkpoint")
    extra = b""
    if lines and lines[0].startswith("extra "):
        extra = _decode(lines.pop(0).removeprefix("extra "))
    index = lines.pop(0).removeprefix("index ") if lines else ""
    if not (index.isascii() and index.isdecimal() and len(index) < 20):
        raise ProofError("a proof must have a line with the index of its entry")
    hashes = tuple(_decode(line) for line in lines)
    if any(len(value) != 32 for value in hashes):
        raise ProofError("each hash of a proof must be 32 bytes in base64")
    proof = TlogProof(index=int(index), hashes=hashes, note=note, extra=extra)
    if format_proof(proof) != text:
        raise ProofError("a proof must be in its only canonical spelling")
    return proof


def verify_proof(text: str, *, leaf: bytes, policy: TrustPolicy) -> VerifiedCheckpoint:
    """Return the checkpoint that covers a leaf.

    Args:
        text: The proof.
        leaf: Canonical bytes of the entry, as the log commits to them.
        policy: Logs and witnesses to believe.

    Raises:
        ProofError: The text is no proof, or does not lead from the leaf to the signed root.
        NoteError: The checkpoint does not satisfy the policy.
    """
    proof = parse_proof(text)
    verified = verify_checkpoint(proof.note, policy)
    verify_inclusion(
        leaf_hash(leaf),
        index=proof.index,
        tree_size=verified.checkpoint.tree_size,
        proof=proof.hashes,
        root=verified.checkpoint.root_hash,
    )
    return verified


def format_opening(opening: Opening) -> bytes:
    """Return the extra data that opens a sealed leaf: the salt, then the content."""
    return opening.salt + opening.content


def verify_opened_proof(text: str, *, policy: TrustPolicy) -> Opening:
    """Return the opening that a proof of a sealed entry carries, once it is proved.

    Raises:
        ProofError: The proof carries no opening, or not the one that its leaf commits to.
        NoteError: The checkpoint does not satisfy the policy.
    """
    extra = parse_proof(text).extra
    if len(extra) <= _SALT_BYTES:
        raise ProofError("the proof of a sealed entry must carry a salt and the content")
    opening = Opening(extra[:_SALT_BYTES], extra[_SALT_BYTES:])
    try:
        leaf = opening.leaf
    except LogError as error:
        raise ProofError(f"the proof opens no event: {error}") from error
    verify_proof(text, leaf=leaf, policy=policy)
    return opening


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ProofError("a line of the proof is not base64") from error


def prove(log: Log, index: int) -> str:
    """Return the proof of one entry under the log's newest note.

    Raises:
        LogError: The newest note does not cover the entry yet, or there is none.
    """
    return format_proof(_proof(log, index, extra=b""))


def prove_published(publication: Publication, index: int) -> str:
    """Return the proof of one entry of a published log; it is as good as the files it is from.

    Raises:
        ValueError: The checkpoint covers no such entry.
        LogError: A tile is missing or has another length.
    """
    hashes = publication.tiles.inclusion_proof(index)
    return format_proof(TlogProof(index=index, hashes=tuple(hashes), note=publication.note))


def prove_opened(log: Log, index: int) -> str:
    """Return the proof of a sealed entry together with what opens it.

    Raises:
        SealError: The subject's key was destroyed.
        LogError: The entry is not sealed, or the newest note does not cover it yet.
    """
    return format_proof(_proof(log, index, extra=format_opening(log.opening(index))))


def _proof(log: Log, index: int, *, extra: bytes) -> TlogProof:
    note = log.newest_note()
    size = Checkpoint.parse(Note.parse(note).text).tree_size
    if not 0 <= index < size:
        raise LogError(f"the newest note covers {size} entries, not entry {index}")
    return TlogProof(
        index=index, hashes=tuple(log.inclusion_proof(index, size)), note=note, extra=extra
    )
