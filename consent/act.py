"""Own the words of one act of consent: what was shown, what was said, what is kept of it."""

from collections.abc import Mapping
from dataclasses import dataclass

from consent.circumstances import NOTHING_TOLD, Circumstances
from consent.ladder import AgeBand, Profile, Purpose, Tier
from consent.sealed import SubjectRef


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """The text a person was shown.

    Attributes:
        id: Which notice.
        version: Which version of it, from 1.
        language: BCP 47 tag of the text.
        sha256: 64 hex digits over the exact text.
    """

    id: str
    version: int
    language: str
    sha256: str

    def __post_init__(self) -> None:
        if len(self.sha256) != 64 or not set(self.sha256) <= set("0123456789abcdef"):
            raise ValueError("the sha256 of a notice must be 64 lower-case hex digits")
        if self.version < 1:
            raise ValueError(f"the version of a notice must be at least 1, got {self.version}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsentChoice:
    """What one person said in one act, as it reaches the register.

    Attributes:
        subject_id: The brand's own id of the person; stored nowhere.
        given: Purposes agreed to.
        refused: Purposes refused; purposes in neither set keep their standing.
        notice: What the person was shown.
        channel: Where it happened, such as "app", "till", "call centre".
        expressed_at: When the person said it, epoch milliseconds.
        until: When it expires, epoch milliseconds.
        tier: Preset that was shown; information, never a permission.
        separate: Whether the act asked for one purpose and nothing else.
        age: Age band that was told with it; None leaves what is known.
        circumstances: How it was said.
    """

    subject_id: str
    given: frozenset[Purpose]
    refused: frozenset[Purpose] = frozenset()
    notice: Notice
    channel: str
    expressed_at: int
    until: int
    tier: Tier | None = None
    separate: bool = False
    age: AgeBand | None = None
    circumstances: Circumstances = NOTHING_TOLD

    def __post_init__(self) -> None:
        if self.given & self.refused:
            raise ValueError("a purpose must not be given and refused in one act")
        if self.separate and len(self.given | self.refused) != 1:
            raise ValueError("a separate act must be about exactly one purpose")
        if not 0 <= self.expressed_at < self.until:
            raise ValueError("a consent must expire after it was expressed")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsentRecord:
    """One act as the node keeps it (ISO/IEC TS 27560, with what `Controller` and `Ladder` say).

    Attributes:
        record_id: Random id of the record.
        subject_ref: Pseudonym of the person.
        given: Purposes agreed to.
        refused: Purposes refused.
        notice: What the person was shown.
        channel: Where it happened.
        profile: The law the node followed.
        expressed_at: When the person said it, epoch milliseconds.
        effective_at: When the node committed it.
        until: When it expires.
        tier: Preset that was shown; information, never a permission.
        separate: Whether the act asked for one purpose and nothing else.
        terms: Digest of the terms of each purpose agreed to.
        age: Age band that was told with it.
        index: Entry of the log that commits to the record.
        policy: Digest of the profile file in force; empty in records from before it was kept.
        circumstances: How it was said.
    """

    record_id: str
    subject_ref: SubjectRef
    given: frozenset[Purpose]
    refused: frozenset[Purpose]
    notice: Notice
    channel: str
    profile: Profile
    expressed_at: int
    effective_at: int
    until: int
    tier: Tier | None
    separate: bool
    terms: Mapping[Purpose, str]
    age: AgeBand | None
    index: int
    policy: str = ""
    circumstances: Circumstances = NOTHING_TOLD
