"""Sign the head of a log, cosign somebody else's, and tell which heads to believe.

A checkpoint is a C2SP signed note of origin, size and root hash. The log signs it (type 0x01),
witnesses add a time and their cosignature (type 0x04). Times are epoch milliseconds here and
whole seconds on the wire. Sources: https://c2sp.org/tlog-checkpoint,
https://c2sp.org/tlog-cosignature
"""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass

from consent.identity import COSIGNATURE, ED25519, Identity, PublicIdentity, SignatureError
from consent.note import Note, NoteError, NoteSignature
from consent.trust import TrustPolicy

__all__ = [
    "Checkpoint",
    "NoteError",
    "TrustPolicy",
    "VerifiedCheckpoint",
    "cosign",
    "merge_cosignatures",
    "sign_checkpoint",
    "verify_checkpoint",
    "verify_cosignatures",
    "verify_log_signature",
]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A tree head: what a log claims to hold.

    Attributes:
        origin: Identity of the log, one printable line.
        tree_size: Number of entries; below 2^63.
        root_hash: 32 bytes of RFC 6962.
    """

    origin: str
    tree_size: int
    root_hash: bytes

    def __post_init__(self) -> None:
        if not self.origin or not self.origin.isprintable():
            raise NoteError("the origin of a checkpoint must be one printable line")
        if not 0 <= self.tree_size < 2**63:
            raise NoteError("the tree size of a checkpoint must be in [0, 2^63)")
        if len(self.root_hash) != 32:
            raise NoteError("the root hash of a checkpoint must have 32 bytes")

    def format(self) -> str:
        """Write the three lines that are signed."""
        root = base64.b64encode(self.root_hash).decode()
        return f"{self.origin}\n{self.tree_size}\n{root}\n"

    @classmethod
    def parse(cls, text: str) -> "Checkpoint":
        """Read the signed text of a note.

        Raises:
            NoteError: The text is not three canonical lines. Extension lines are refused,
                because nobody could audit what they say.
        """
        lines = text.split("\n")
        if len(lines) != 4 or lines[3]:
            raise NoteError("a checkpoint must be three lines: origin, tree size, root hash")
        if not (lines[1].isascii() and lines[1].isdecimal() and len(lines[1]) < 20):
            raise NoteError("the tree size of a checkpoint must be in [0, 2^63)")
        try:
            root_hash = base64.b64decode(lines[2], validate=True)
        except (binascii.Error, ValueError) as error:
            raise NoteError("the root hash of a checkpoint must be base64") from error
        checkpoint = cls(lines[0], int(lines[1]), root_hash)
        if checkpoint.format() != text:
            raise NoteError("a checkpoint must be in its only canonical spelling")
        return checkpoint


@dataclass(frozen=True, slots=True)
class VerifiedCheckpoint:
    """A checkpoint that the policy's log signed and the policy's quorum cosigned.

    Attributes:
        checkpoint: What was signed.
        cosigners: Time of each valid cosignature in epoch milliseconds (whole seconds), by
            the policy's name of the witness.
    """

    checkpoint: Checkpoint
    cosigners: Mapping[str, int]


def sign_checkpoint(checkpoint: Checkpoint, identity: Identity) -> str:
    """Sign a head as its log and return the note.

    Raises:
        NoteError: The identity's name is not the origin.
    """
    if identity.name != checkpoint.origin:
        raise NoteError(f"{identity.name!r} cannot sign for the log {checkpoint.origin!r}")
    text = checkpoint.format()
    signature = identity.sign_text(text.encode())
    key_id = identity.public.key_id(ED25519)
    return Note(text, (NoteSignature(identity.name, key_id, signature),)).format()


def cosign(note: str, identity: Identity, *, at: int) -> str:
    """Add a witness's cosignature to a note, without judging the note.

    Use `Witness.cosign`, which remembers and judges; this is the format only.

    Args:
        note: A signed checkpoint.
        identity: The witness.
        at: Time of the cosignature, epoch milliseconds; stored in whole seconds.

    Raises:
        NoteError: The note is no checkpoint, or the time is negative.
    """
    if at < 0:
        raise NoteError(f"the time of a cosignature must not be negative, got {at}")
    parsed = Note.parse(note)
    Checkpoint.parse(parsed.text)
    seconds = at // 1000
    signature = identity.sign_text(_cosigned_text(parsed.text, seconds))
    line = NoteSignature(
        identity.name,
        identity.public.key_id(COSIGNATURE),
        seconds.to_bytes(8, "big") + signature,
    )
    return parsed.with_signature(line).format()


def verify_log_signature(note: str, log: PublicIdentity) -> Checkpoint:
    """Return the checkpoint of a note that this log signed.

    Raises:
        NoteError: The note is malformed, of another origin, or not signed by the log.
    """
    parsed = Note.parse(note)
    checkpoint = Checkpoint.parse(parsed.text)
    if checkpoint.origin != log.name:
        raise NoteError(f"the note is of the log {checkpoint.origin!r}, not of {log.name!r}")
    line = parsed.find(log.name, log.key_id(ED25519))
    if line is None:
        raise NoteError(f"the checkpoint is not signed by its log {log.name!r}")
    try:
        log.verify_text(parsed.text.encode(), line.signature)
    except SignatureError as error:
        raise NoteError(f"the signature of the log {log.name!r} is not valid") from error
    return checkpoint


def verify_checkpoint(note: str, policy: TrustPolicy) -> VerifiedCheckpoint:
    """Return the checkpoint of a note that satisfies the policy.

    Raises:
        NoteError: The note is malformed, the origin unknown, a known key's signature wrong, or
            too few witnesses have cosigned.
    """
    verified = verify_cosignatures(note, policy)
    if not policy.is_quorum(verified.cosigners):
        found = ", ".join(verified.cosigners) or "nobody"
        raise NoteError(f"the quorum {policy.quorum!r} is not met: cosigned by {found}")
    return verified


def verify_cosignatures(note: str, policy: TrustPolicy) -> VerifiedCheckpoint:
    """Do the same without asking for the quorum: whoever has cosigned so far is told.

    Raises:
        NoteError: The note is malformed, the origin unknown, or a known key's signature wrong.
    """
    parsed = Note.parse(note)
    origin = Checkpoint.parse(parsed.text).origin
    checkpoint = verify_log_signature(note, policy.log(origin))
    cosigners: dict[str, int] = {}
    for name, witness in policy.witnesses.items():
        line = parsed.find(witness.name, witness.key_id(COSIGNATURE))
        if line is not None:
            cosigners[name] = _verify_cosignature(parsed.text, line.signature, witness)
    return VerifiedCheckpoint(checkpoint, cosigners)


def merge_cosignatures(known: str, shown: str, policy: TrustPolicy) -> str:
    """Return one note of a head with the newest cosignature of each witness from two notes.

    Lines of keys that the policy does not know are left out.

    Raises:
        NoteError: A note is not one that the policy's log signed, a known witness's cosignature
            is wrong, or the two notes are of different heads.
    """
    one, two = Note.parse(known), Note.parse(shown)
    if one.text != two.text:
        raise NoteError("cosignatures of two different heads cannot be merged")
    first, second = verify_cosignatures(known, policy), verify_cosignatures(shown, policy)
    log = policy.log(first.checkpoint.origin)
    lines = [line for line in [one.find(log.name, log.key_id(ED25519))] if line is not None]
    for name, witness in policy.witnesses.items():
        is_newer = second.cosigners.get(name, -1) > first.cosigners.get(name, -1)
        line = (two if is_newer else one).find(witness.name, witness.key_id(COSIGNATURE))
        if line is not None:
            lines.append(line)
    return Note(one.text, tuple(lines)).format()


def _verify_cosignature(text: str, signature: bytes, witness: PublicIdentity) -> int:
    seconds = int.from_bytes(signature[:8], "big")
    if len(signature) != 72 or seconds >= 2**63:
        raise NoteError(f"the cosignature of {witness.name!r} must be a time and 64 bytes")
    try:
        witness.verify_text(_cosigned_text(text, seconds), signature[8:])
    except SignatureError as error:
        raise NoteError(f"the cosignature of {witness.name!r} is not valid") from error
    return seconds * 1000


def _cosigned_text(text: str, seconds: int) -> bytes:
    return f"cosignature/v1\ntime {seconds}\n{text}".encode()
