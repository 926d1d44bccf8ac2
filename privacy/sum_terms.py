"""What members of a secure sum agree on before any of them masks a value.

Two records, each known by a digest that every message signs: the terms of a run and, under
them, one attempt at one round. Nothing in them is secret.
"""

import hashlib
from dataclasses import dataclass
from typing import Final

from privacy.masks import RING_BITS, RingBits
from privacy.roster import Roster, pack
from privacy.secure_sum import MAX_COHORT, MAX_DIMENSION, MIN_FLOOR

SMALLEST_WITH_RECOVERY: Final = 5


def least_threshold(members: int) -> int:
    """The fewest members that must survive a round.

    floor(2n/3) + 1 for n >= 5: two sets of survivors that were both signed by so many have
    more than a third of the cohort in common, and an honest member signs one set only.
    All of them for n = 3 and 4, where one dropped member voids the attempt.
    """
    return 2 * members // 3 + 1 if members >= SMALLEST_WITH_RECOVERY else members


@dataclass(frozen=True, slots=True, kw_only=True)
class SumTerms:
    """What holds for all secure sums of one run; every member signs it with its keys.

    Attributes:
        run: Identifier of the run; not empty.
        roster_digest: Of the roster that everybody pins; 32 bytes.
        plan_digest: Hash of whatever else was agreed for the run; 32 bytes.
        cohort: Names of the members, sorted, each once; 3 to 50.
        threshold: Members that must survive each round; `least_threshold` to all.
        ring_bits: Sums are modulo 2^16, 2^32 or 2^64.
        max_abs: Largest magnitude that one member may send; times the cohort it is
            below 2^(ring_bits - 1), so that no sum can wrap.
    """

    run: str
    roster_digest: bytes
    plan_digest: bytes
    cohort: tuple[str, ...]
    threshold: int
    ring_bits: RingBits
    max_abs: int

    def __post_init__(self) -> None:
        members = len(self.cohort)
        if not self.run:
            raise ValueError("run must not be empty")
        for what in ("roster_digest", "plan_digest"):
            if len(getattr(self, what)) != 32:
                raise ValueError(f"{what} must have 32 bytes, got {len(getattr(self, what))}")
        if not MIN_FLOOR <= members <= MAX_COHORT:
            raise ValueError(f"a cohort has {MIN_FLOOR} to {MAX_COHORT} members, got {members}")
        if list(self.cohort) != sorted(set(self.cohort)):
            raise ValueError("a cohort must be sorted and name each member once")
        least = least_threshold(members)
        if not least <= self.threshold <= members:
            raise ValueError(
                f"threshold must be in [{least}, {members}] for {members} members, "
                f"got {self.threshold}"
            )
        if self.ring_bits not in RING_BITS:
            raise ValueError(f"ring_bits must be 16, 32 or 64, got {self.ring_bits}")
        most = (2 ** (self.ring_bits - 1) - 1) // members
        if not 1 <= self.max_abs <= most:
            raise ValueError(
                f"max_abs must be in [1, {most}] so that the sum cannot wrap, got {self.max_abs}"
            )

    @property
    def recovers(self) -> bool:
        """Whether a dropped member costs only its own values, and not the attempt."""
        return len(self.cohort) >= SMALLEST_WITH_RECOVERY

    @property
    def colluders(self) -> int:
        """Members that may side with the coordinator before an honest one's values show.

        With recovery: 2 threshold - n - 1. One more could sign two sets of survivors, have
        each signed by a threshold, and so collect both secrets of one member. Never more than
        n - 2: all others together learn the last one's from the sum in any protocol.
        """
        members = len(self.cohort)
        most = 2 * self.threshold - members - 1 if self.recovers else members - 2
        return min(most, members - 2)

    @property
    def fields(self) -> tuple[bytes, ...]:
        """All fields as bytes, in the order of the class."""
        return (
            self.run.encode(),
            self.roster_digest,
            self.plan_digest,
            format_names(self.cohort),
            str(self.threshold).encode(),
            str(self.ring_bits).encode(),
            str(self.max_abs).encode(),
        )

    @property
    def digest(self) -> bytes:
        """SHA-256 of all fields with their lengths."""
        return hashlib.sha256(pack(b"sum-terms/v1", *self.fields)).digest()

    def verify_roster(self, roster: Roster) -> None:
        """Check that this is the roster meant and that it pins the whole cohort.

        Raises:
            ValueError: It is another roster, or a member is not in it.
        """
        if roster.digest != self.roster_digest:
            raise ValueError("the terms are for another roster")
        for member in self.cohort:
            if roster.card(member) is None:
                raise ValueError(f"{member} is not pinned in the roster")


@dataclass(frozen=True, slots=True, kw_only=True)
class SumRound:
    """One attempt at one round of a run.

    Attributes:
        round: Number of the round; at least 0.
        attempt: How often it was tried before; at least 0.
        dimension: Length of the vectors; 1 to 2^27.
        question_digest: Hash of what is asked in this round; 32 bytes.
    """

    round: int
    attempt: int
    dimension: int
    question_digest: bytes

    def __post_init__(self) -> None:
        if not (0 <= self.round < 2**32 and 0 <= self.attempt < 2**32):
            raise ValueError(
                f"round and attempt must be in [0, 2^32), got {self.round} and {self.attempt}"
            )
        if not 1 <= self.dimension <= MAX_DIMENSION:
            raise ValueError(f"dimension must be in [1, 2^27], got {self.dimension}")
        if len(self.question_digest) != 32:
            raise ValueError(f"question_digest must have 32 bytes, got {len(self.question_digest)}")

    @property
    def order(self) -> bytes:
        """Round and attempt as bytes that sort as they do, 8 bytes."""
        return self.round.to_bytes(4, "big") + self.attempt.to_bytes(4, "big")

    def digest(self, terms: SumTerms) -> bytes:
        """SHA-256 of all fields and of the terms they stand under."""
        return hashlib.sha256(
            pack(
                b"sum-round/v1",
                terms.digest,
                self.order,
                str(self.dimension).encode(),
                self.question_digest,
            )
        ).digest()

    def __str__(self) -> str:
        return f"round {self.round} attempt {self.attempt}"


def format_names(names: tuple[str, ...]) -> bytes:
    """Names with their lengths."""
    return pack(*(name.encode() for name in names))
