"""Sum integer vectors of 3 to 50 parties so that only the sum can be read.

Each pair of parties derives a mask from keys that were pinned beforehand; the
lower name adds it, the higher subtracts it, and in the sum of the whole cohort
all masks are gone. What one party sends is uniform without the others. Everything
here is a pure state machine: bytes in, bytes or a refusal out, one message from
each party in a round. If a member is missing the attempt is void, and the next
one, with a smaller cohort, is a new noise draw and a new charge.

What this does not do:
- The sum itself is revealed; only the noise already in the values protects it.
- All other members together learn the last one's (noised) value.
- A party can send anything: nothing proves that its values were clipped.
- `Party` remembers answered rounds while it lives. Across restarts the ledger
  must: commit the masked bytes before sending them, and send those again.
- X25519 is not post-quantum: whoever records today may unmask one day.

`Party` and `total` are the protocol of one exchange: every member answers, or the attempt is
void. The protocol in which dropped members cost only their own values, with keys made for each
run and ML-KEM beside X25519, is `privacy.sum_member` and `privacy.sum_coordinator`.

Sources: pairwise masks, Bonawitz et al. 2017, https://eprint.iacr.org/2017/281;
one set-up for many rounds, Ma et al. 2023 (Flamingo), https://eprint.iacr.org/2023/486.
"""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from numpy.typing import NDArray

from privacy.masks import RING_BITS, Ring, RingBits, apply_masks, derive, signed, word_type
from privacy.roster import AgreementKey, Roster, RosterError, pack

MIN_FLOOR: Final = 3
MAX_COHORT: Final = 50
MAX_DIMENSION: Final = 1 << 27
_MAGIC: Final = b"tillpact sum 1\0\0"
_HEADER_BYTES: Final = len(_MAGIC) + 64


class SumRefused(Exception):  # noqa: N818 - an answer, not a fault
    """A step of a secure sum was refused; nothing was masked or summed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What one attempt at one round is about; every member derives masks from it.

    Attributes:
        run: Identifier of the run; not empty.
        round: Number of the round; at least 0.
        attempt: How often the round was voided before; at least 0.
        cohort: Names of the members, sorted, each once; at most 50.
        terms_digest: Hash of everything else that was agreed; 32 bytes.
        dimension: Length of the vectors; 1 to 2^27.
        ring_bits: Sums are modulo 2^16, 2^32 or 2^64.
    """

    run: str
    round: int
    attempt: int
    cohort: tuple[str, ...]
    terms_digest: bytes
    dimension: int
    ring_bits: RingBits

    def __post_init__(self) -> None:
        if not self.run:
            raise ValueError("run must not be empty")
        if self.round < 0 or self.attempt < 0:
            raise ValueError(
                f"round and attempt must be at least 0, got {self.round} and {self.attempt}"
            )
        if not 0 < len(self.cohort) <= MAX_COHORT:
            raise ValueError(f"a cohort has 1 to {MAX_COHORT} members, got {len(self.cohort)}")
        if list(self.cohort) != sorted(set(self.cohort)):
            raise ValueError("a cohort must be sorted and name each member once")
        if len(self.terms_digest) != 32:
            raise ValueError(f"terms_digest must have 32 bytes, got {len(self.terms_digest)}")
        if not 1 <= self.dimension <= MAX_DIMENSION:
            raise ValueError(f"dimension must be in [1, 2^27], got {self.dimension}")
        if self.ring_bits not in RING_BITS:
            raise ValueError(f"ring_bits must be 16, 32 or 64, got {self.ring_bits}")

    @property
    def context(self) -> bytes:
        """All fields with their lengths; equal only for equal sessions."""
        return pack(
            self.run.encode(),
            str(self.round).encode(),
            str(self.attempt).encode(),
            pack(*(member.encode() for member in self.cohort)),
            self.terms_digest,
            str(self.dimension).encode(),
            str(self.ring_bits).encode(),
        )

    @property
    def digest(self) -> bytes:
        """SHA-256 of `context`."""
        return hashlib.sha256(self.context).digest()

    @property
    def _word(self) -> np.dtype[np.unsignedinteger]:
        return word_type(self.ring_bits)


class Party:
    """One member's side: it checks every rule itself and believes no coordinator."""

    def __init__(
        self, name: str, agreement_key: AgreementKey, roster: Roster, *, floor: int = MIN_FLOOR
    ) -> None:
        """Take the keys that were pinned at enrolment.

        Args:
            name: This party's own name.
            agreement_key: Its secret key.
            roster: Everybody's cards, its own included.
            floor: Smallest cohort it takes part in; at least 3.

        Raises:
            ValueError: `floor` is below 3: two could read each other's values.
            RosterError: The roster does not pin this key under this name.
        """
        if floor < MIN_FLOOR:
            raise ValueError(f"floor must be at least {MIN_FLOOR}, got {floor}")
        own = roster.card(name)
        if own is None or own.agreement != agreement_key.public:
            raise RosterError(f"the roster does not pin this agreement key for {name}")
        self.name, self.roster, self.floor = name, roster, floor
        self._roster_digest = roster.digest
        self._agreements = {card.name: card.agreement for card in roster.cards}
        self._key = agreement_key
        self._secrets: dict[str, bytes] = {}
        self._answered: dict[tuple[str, int, int], bytes] = {}

    def mask(self, session: Session, values: NDArray[np.int64], *, max_abs: int) -> bytes:
        """Check every rule, then hide the values under the cohort's masks.

        Args:
            session: What the round is about.
            values: Noised integers, shape (session.dimension,).
            max_abs: Largest magnitude that any member may send, agreed in the terms
                and generous towards the noise; times the cohort it must stay below
                2^(ring_bits - 1), so that the sum cannot wrap.

        Returns:
            The contribution; the same bytes for the same session and values.

        Raises:
            SumRefused: A rule does not hold, or this run, round and attempt was
                answered with another cohort, other terms or other values.
        """
        self.verify_session(session)
        check_values(
            values,
            dimension=session.dimension,
            ring_bits=session.ring_bits,
            members=len(session.cohort),
            max_abs=max_abs,
        )
        self._check_replay(session, values)
        ring = values.astype(session._word)
        peers = [peer for peer in session.cohort if peer != self.name]
        apply_masks(
            ring,
            added=[self._pair_seed(session, peer) for peer in peers if self.name < peer],
            subtracted=[self._pair_seed(session, peer) for peer in peers if self.name > peer],
        )
        return _MAGIC + session.digest + self._roster_digest + ring.tobytes()

    def verify_session(self, session: Session) -> None:
        """Check the cohort before any data is opened for it.

        Raises:
            SumRefused: This party is not in it, a member is not pinned, or it is too small.
        """
        if self.name not in session.cohort:
            raise SumRefused(f"{self.name} is not in the cohort; nothing was masked")
        for member in session.cohort:
            if member not in self._agreements:
                raise SumRefused(f"{member} is not pinned in the roster; nothing was masked")
        if len(session.cohort) < self.floor:
            raise SumRefused(
                f"the cohort has {len(session.cohort)} members, the floor is {self.floor}; "
                "nothing was masked"
            )

    def _check_replay(self, session: Session, values: NDArray[np.int64]) -> None:
        attempt = (session.run, session.round, session.attempt)
        answer = hashlib.sha256(session.digest + values.astype("<i8").tobytes()).digest()
        # The same masks over other values would reveal the difference.
        if not hmac.compare_digest(self._answered.setdefault(attempt, answer), answer):
            raise SumRefused(
                f"run {session.run} round {session.round} attempt {session.attempt} was answered "
                "with another cohort, other terms or other values; nothing was masked"
            )

    def _pair_seed(self, session: Session, peer: str) -> bytes:
        return derive(self.pinned_secret(peer), session.context, salt=self._roster_digest)

    def pinned_secret(self, peer: str) -> bytes:
        """X25519 of this party's pinned key and a peer's, 32 bytes; never shown, never sent.

        Raises:
            SumRefused: The peer's key is so weak that the secret would be zero.
        """
        if peer not in self._secrets:
            public = X25519PublicKey.from_public_bytes(self._agreements[peer])
            try:
                self._secrets[peer] = self._key.private.exchange(public)
            except ValueError as error:
                raise SumRefused(
                    f"the agreement key of {peer} gives no secret; nothing was masked"
                ) from error
        return self._secrets[peer]


def check_values(
    values: NDArray[np.int64], *, dimension: int, ring_bits: int, members: int, max_abs: int
) -> None:
    """Check values before they are masked.

    Args:
        values: Noised integers.
        dimension: How many there must be.
        ring_bits: Of the ring.
        members: Of the cohort.
        max_abs: Largest magnitude that each may have.

    Raises:
        SumRefused: Type, shape, bound or a value is not as it must be.
    """
    if values.dtype != np.int64:
        raise SumRefused(f"values must be int64, got {values.dtype}; nothing was masked")
    if values.shape != (dimension,):
        raise SumRefused(
            f"values must have shape ({dimension},), got {values.shape}; nothing was masked"
        )
    most = (2 ** (ring_bits - 1) - 1) // members
    if not 1 <= max_abs <= most:
        raise SumRefused(
            f"max_abs must be in [1, {most}] so that the sum cannot wrap, got {max_abs}; "
            "nothing was masked"
        )
    if int(values.max()) > max_abs or int(values.min()) < -max_abs:
        raise SumRefused(f"a value is larger than max_abs {max_abs}; nothing was masked")


def total(session: Session, contributions: Mapping[str, bytes]) -> NDArray[np.int64]:
    """Add up the contributions of the whole cohort; the masks cancel.

    Args:
        session: What the round is about.
        contributions: By member, exactly the cohort.

    Returns:
        The sum of all values, shape (session.dimension,).

    Raises:
        SumRefused: A member is missing or too many, or a contribution is not for
            this session, was masked under another roster, or has another length.
    """
    for member in session.cohort:
        if member not in contributions:
            raise SumRefused(f"the contribution of {member} is missing; nothing was summed")
    for member in contributions:
        if member not in session.cohort:
            raise SumRefused(f"{member} is not in the cohort; nothing was summed")
    rosters = {data[len(_MAGIC) + 32 : _HEADER_BYTES] for data in contributions.values()}
    ring: Ring = np.zeros(session.dimension, dtype=session._word)
    for member in session.cohort:
        np.add(ring, _parse_contribution(session, member, contributions[member]), out=ring)
    if len(rosters) != 1:
        raise SumRefused(
            "the contributions were masked under different rosters; nothing was summed"
        )
    return signed(ring)


def _parse_contribution(session: Session, member: str, data: bytes) -> Ring:
    expected = _HEADER_BYTES + session.dimension * session._word.itemsize
    if data[: len(_MAGIC)] != _MAGIC or len(data) < _HEADER_BYTES:
        raise SumRefused(f"the contribution of {member} cannot be read; nothing was summed")
    if data[len(_MAGIC) : len(_MAGIC) + 32] != session.digest:
        raise SumRefused(f"the contribution of {member} is for another session; nothing was summed")
    if len(data) != expected:
        raise SumRefused(
            f"the contribution of {member} must have {expected} bytes, got {len(data)}; "
            "nothing was summed"
        )
    words: Ring = np.frombuffer(data, dtype=session._word, offset=_HEADER_BYTES)
    return words
