"""Own what is sealed: an event and its place in the chain of one data subject.

Content of version 2 holds the event as it was given, the subject, its number among the
subject's events and the commitment of the one before. Content of version 1 is the bare event:
logs from before chains stay readable, their events simply have no number. The first event that
is chained after such ones counts them and names the last of them.
"""

import hashlib
import re
from dataclasses import dataclass

from consent.canonical import CanonicalError, JsonValue, format_canonical, parse_canonical
from consent.event import Event, LogError, is_count, is_version
from consent.sealed import sealed_leaf

_HEX = re.compile(r"[0-9a-f]{64}")
_CHAINED = 2


@dataclass(frozen=True, slots=True)
class ChainHead:
    """The newest event of one data subject.

    Attributes:
        subject_seq: Number of the subject's events so far, at least 1.
        commitment: Commitment of the newest one, 32 bytes.
    """

    subject_seq: int
    commitment: bytes


@dataclass(frozen=True, slots=True)
class Link:
    """An opened event with its place in the chain.

    Attributes:
        event: As it was given to the log.
        subject: Pseudonym of the data subject; None in content of version 1.
        subject_seq: Number among the subject's events, from 1; None in content of version 1.
        prev: Commitment of the event before; None for the first one and in version 1.
    """

    event: dict[str, JsonValue]
    subject: str | None
    subject_seq: int | None
    prev: bytes | None


@dataclass(frozen=True, slots=True)
class Opening:
    """What shows a sealed leaf to somebody without the subject's key.

    Attributes:
        salt: 32 bytes.
        content: Canonical bytes; sha256 of both is the commitment in the leaf.
    """

    salt: bytes
    content: bytes

    @property
    def link(self) -> Link:
        """Return the event and its place in the chain; raise `LogError` when there is none."""
        return parse_link(self.content)

    @property
    def commitment(self) -> bytes:
        """Return what the leaf must commit to."""
        return hashlib.sha256(self.salt + self.content).digest()

    @property
    def leaf(self) -> bytes:
        """Return the leaf that this opens."""
        at = self.link.event["at"]
        assert isinstance(at, int)  # noqa: S101 - parse_link has refused everything else
        return sealed_leaf(self.commitment, at=at)


def format_link(event: Event, *, subject: str, before: ChainHead | None) -> bytes:
    """Return the content to seal for the next event of a subject.

    Raises:
        CanonicalError: The event is not canonical JSON, or is nested too deeply.
    """
    return format_canonical(
        {
            "event": dict(event),
            "prev": None if before is None else before.commitment.hex(),
            "subject": subject,
            "subject_seq": 1 if before is None else before.subject_seq + 1,
            "v": _CHAINED,
        }
    )


def parse_link(content: bytes) -> Link:
    """Read sealed content of either version.

    Raises:
        LogError: The content is neither a chained nor a bare event.
    """
    try:
        value = parse_canonical(content)
    except CanonicalError as error:
        raise LogError(f"the content of a sealed entry is not canonical: {error}") from error
    match value:
        case {
            "event": dict(event),
            "prev": prev,
            "subject": str(subject),
            "subject_seq": int(subject_seq),
            "v": 2,
            **rest,
        } if not rest and is_count(subject_seq) and is_count(event.get("at")):
            if prev is None and subject_seq == 1:
                return Link(event, subject, subject_seq, None)
            if isinstance(prev, str) and subject_seq > 1 and _HEX.fullmatch(prev):
                return Link(event, subject, subject_seq, bytes.fromhex(prev))
        case {"type": str(), "at": at, "v": version} if is_version(version) and is_count(at):
            assert isinstance(value, dict)  # noqa: S101 - the pattern is one of objects
            return Link(value, None, None, None)
    raise LogError("the content of a sealed entry is neither a chained nor a bare event")
