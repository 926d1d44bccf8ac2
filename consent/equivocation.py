"""Own the file in which a witness hands on what it holds against a log.

Two heads of one size that the log signed convict it: anybody can check them with its public key.
A smaller head after a larger one does not, and the file says why; it is handed on because the
log has to answer for it.
"""

from dataclasses import dataclass
from enum import StrEnum

from consent.canonical import CanonicalError, format_canonical, parse_canonical
from consent.checkpoint import verify_log_signature
from consent.identity import IdentityError, PublicIdentity
from consent.note import NoteError

LONGEST_EVIDENCE_BYTES = 1 << 18


class EvidenceKind(StrEnum):
    """What two notes show together."""

    TWO_HEADS = "two-heads"
    SMALLER_HEAD = "smaller-head"


WHY = {
    EvidenceKind.TWO_HEADS: (
        "The log signed two different root hashes for one size. No honest log can: this file "
        "convicts it by its own signatures."
    ),
    EvidenceKind.SMALLER_HEAD: (
        "The log showed a smaller head after a larger one, and the witness refused it. That alone "
        "convicts nobody: an honest log signs each size it passes, and a signature does not say "
        "when it was shown, so that somebody may have replayed an old note. A log that was put "
        "back from a copy looks the same. The log must show a head that extends the larger one."
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Two notes of one log and what they show.

    Attributes:
        log: Key of the log.
        known: The note that a witness had cosigned.
        shown: The note that it refused.
    """

    log: PublicIdentity
    known: str
    shown: str

    @property
    def kind(self) -> EvidenceKind:
        """Return what the notes show, after checking the log's signatures on both.

        Raises:
            NoteError: A note is not signed by the log, or the two show nothing.
        """
        known = verify_log_signature(self.known, self.log)
        shown = verify_log_signature(self.shown, self.log)
        if shown.tree_size < known.tree_size:
            return EvidenceKind.SMALLER_HEAD
        verify_equivocation(self.known, self.shown, self.log)
        return EvidenceKind.TWO_HEADS

    def format(self) -> bytes:
        """Write the file, with the reason in words.

        Raises:
            NoteError: The notes show nothing, so that there is nothing to hand on.
        """
        kind = self.kind
        return format_canonical(
            {
                "type": "log.evidence",
                "v": 1,
                "kind": str(kind),
                "why": WHY[kind],
                "log": self.log.format(),
                "known": self.known,
                "shown": self.shown,
            }
        )

    @classmethod
    def parse(cls, data: bytes) -> "Evidence":
        """Read a file and check it; only the key of the log is left to be compared by hand.

        Raises:
            NoteError: The file is malformed, or its notes do not show what it says.
        """
        if len(data) > LONGEST_EVIDENCE_BYTES:
            raise NoteError(f"evidence must have at most {LONGEST_EVIDENCE_BYTES} bytes")
        try:
            value = parse_canonical(data)
        except CanonicalError as error:
            raise NoteError(f"evidence must be canonical JSON: {error}") from error
        match value:
            case {"log": str(vkey), "known": str(known), "shown": str(shown)}:
                try:
                    evidence = cls(log=PublicIdentity.parse(vkey), known=known, shown=shown)
                except IdentityError as error:
                    raise NoteError(f"evidence must name the key of its log: {error}") from error
                if evidence.format() == data:
                    return evidence
        raise NoteError("evidence must hold a key, two notes and what they show")


def verify_equivocation(note_a: str, note_b: str, log: PublicIdentity) -> None:
    """Return when two notes convict a log of signing two histories; public keys are enough.

    Raises:
        NoteError: A note is not signed by the log, or the two do not contradict each other.
    """
    first, second = verify_log_signature(note_a, log), verify_log_signature(note_b, log)
    if first.tree_size != second.tree_size:
        raise NoteError("two heads of different sizes do not convict without a proof")
    if first.root_hash == second.root_hash:
        raise NoteError("the two notes sign the same head")
