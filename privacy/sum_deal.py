"""A deal: what a member commits to and shares in a round, before it masks anything.

Each round has its own secrets, because what is recovered for a dropped member becomes known to
the coordinator. Sharing the key of the run instead would betray the past: the coordinator has
rebuilt the self-masks of every round in which that member survived, so together with all its
pair seeds it could strip both masks from each of those vectors. Here a dealer shares
- the seed of its self-mask of this round, and
- the key of a box with its pair seeds of this round, which were derived one way.
Of one member and round at most one of the two is ever rebuilt, and neither says anything about
another round.

Commitments make lies visible before they cost anything: both ends of a pair commit to their
seed, and a dealer to each share, so that a wrong share has an author. Seeds and shares are
uniform and 255 bits or longer, so that a hash hides them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from privacy.secure_sum import SumRefused
from privacy.shamir import ELEMENT_BYTES, split
from privacy.sum_keys import (
    TAG_BYTES,
    RoundSecrets,
    box_subject,
    commitment,
    pair_seed,
    seal,
    share_subject,
    unseal,
)
from privacy.sum_terms import SumTerms
from privacy.sum_wire import SumMessage

DEAL_FIELDS: Final = 8
_HASH_BYTES: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Deal:
    """What one member dealt, its lengths checked.

    Attributes:
        sender: Who.
        round_digest: For which round.
        setup_digest: After which set-up.
        secrets: Commitments to the self-mask's seed and to the box's key.
        pairs: Commitments to its seed with each other member.
        shares: Commitments to the shares of both secrets, by the member who gets them.
        box: Its pair seeds, sealed.
        sealed: Both shares for each other member, sealed.
    """

    sender: str
    round_digest: bytes
    setup_digest: bytes
    secrets: tuple[bytes, bytes]
    pairs: Mapping[str, bytes]
    shares: Mapping[str, tuple[bytes, bytes]]
    box: bytes
    sealed: Mapping[str, bytes]

    @classmethod
    def of(cls, message: SumMessage, terms: SumTerms) -> "Deal":
        """Read a deal out of a message whose signature held.

        Raises:
            SumRefused: Its sender is not in the cohort, or a part has another length.
        """
        if message.sender not in terms.cohort:
            raise SumRefused(f"{message.sender} is not in the cohort; nothing was done")
        round_digest, setup_digest, secrets, pairs, selves, boxes, box, sealed = message.fields
        others = _others(terms, message.sender)
        try:
            selves_, boxes_ = _cut(selves, terms.cohort), _cut(boxes, terms.cohort)
            if len(secrets) != 2 * _HASH_BYTES or len(box) != _HASH_BYTES * len(others) + TAG_BYTES:
                raise ValueError("a part has another length")
            return cls(
                sender=message.sender,
                round_digest=round_digest,
                setup_digest=setup_digest,
                secrets=(secrets[:_HASH_BYTES], secrets[_HASH_BYTES:]),
                pairs=_cut(pairs, others),
                shares={name: (selves_[name], boxes_[name]) for name in terms.cohort},
                box=box,
                sealed=_cut(sealed, others, size=2 * ELEMENT_BYTES + TAG_BYTES),
            )
        except ValueError as error:
            raise SumRefused(
                f"the deal of {message.sender} cannot be read; nothing was done"
            ) from error

    def open_shares(self, secret: bytes, recipient: str) -> tuple[bytes, bytes]:
        """The recipient's shares of the self-mask's seed and of the box's key.

        Args:
            secret: What sender and recipient share for the run.
            recipient: Who opens.

        Raises:
            SumRefused: They are not for it, or not those that the dealer committed to.
        """
        subject = share_subject(self.round_digest, self.sender, recipient)
        try:
            plain = unseal(secret, self.sealed[recipient], about=subject)
        except ValueError as error:
            raise SumRefused(
                f"the shares of {self.sender} for {recipient} do not open; nothing was masked"
            ) from error
        shares = plain[:ELEMENT_BYTES], plain[ELEMENT_BYTES:]
        for position in (0, 1):
            self.verify_share(shares[position], recipient, position=position)
        return shares

    def verify_share(self, share: bytes, holder: str, *, position: int) -> None:
        """Check a share against its commitment.

        Args:
            share: 32 bytes.
            holder: Whose share it is.
            position: 0 for the self-mask's seed, 1 for the box's key.

        Raises:
            SumRefused: It is another.
        """
        if commitment(_SHARE[position], self.round_digest, share) != self.shares[holder][position]:
            raise SumRefused(
                f"the share of {self.sender} that {holder} holds is not the one dealt; "
                "it was not used"
            )

    def verify_secret(self, secret: bytes, *, position: int) -> None:
        """Check a rebuilt secret against its commitment.

        Raises:
            SumRefused: The dealer shared something else.
        """
        if commitment(_SECRET[position], self.round_digest, secret) != self.secrets[position]:
            raise SumRefused(f"the shares that {self.sender} dealt do not fit; nothing was summed")

    def verify_pair(self, seed: bytes, peer: str) -> None:
        """Check a pair's seed against what this dealer committed to.

        Raises:
            SumRefused: They differ.
        """
        if commitment("pair", self.round_digest, seed) != self.pairs[peer]:
            raise SumRefused(f"{self.sender} and {peer} do not share a seed; nothing was done")

    def open_box(self, key: bytes, terms: SumTerms) -> dict[str, bytes]:
        """Its seeds with all other members, by their names.

        Raises:
            SumRefused: The box does not open, or holds other seeds than were committed to.
        """
        try:
            plain = unseal(key, self.box, about=box_subject(self.round_digest, self.sender))
        except ValueError as error:
            raise SumRefused(
                f"the box of {self.sender} does not open; nothing was summed"
            ) from error
        seeds = _cut(plain, _others(terms, self.sender))
        for peer, seed in seeds.items():
            self.verify_pair(seed, peer)
        return seeds


@dataclass(frozen=True, slots=True, kw_only=True)
class Dealing:
    """What a dealer keeps and what it sends.

    Attributes:
        fields: Of the message.
        own_shares: Its own shares of its two secrets.
    """

    fields: tuple[bytes, ...]
    own_shares: tuple[bytes, bytes]


def deal(
    sender: str,
    terms: SumTerms,
    *,
    secrets: RoundSecrets,
    pairs: Mapping[str, bytes],
    digests: tuple[bytes, bytes],
) -> Dealing:
    """Share a member's secrets of one round.

    Args:
        sender: Its name.
        terms: Of the run.
        secrets: Of the round.
        pairs: The secrets of the run with each other member.
        digests: Of the round and of the set-up.
    """
    round_digest, setup_digest = digests
    shares = [
        split(secret, threshold=terms.threshold, places=len(terms.cohort), randomness=randomness)
        for secret, randomness in zip(
            (secrets.self_seed, secrets.box_key), secrets.randomness, strict=True
        )
    ]
    own = terms.cohort.index(sender)
    others = _others(terms, sender)
    seeds = [pair_seed(pairs[peer], round_digest) for peer in others]
    sealed = [
        seal(
            pairs[peer],
            shares[0][terms.cohort.index(peer)] + shares[1][terms.cohort.index(peer)],
            about=share_subject(round_digest, sender, peer),
        )
        for peer in others
    ]
    return Dealing(
        fields=(
            round_digest,
            setup_digest,
            commitment(_SECRET[0], round_digest, secrets.self_seed)
            + commitment(_SECRET[1], round_digest, secrets.box_key),
            b"".join(commitment("pair", round_digest, seed) for seed in seeds),
            b"".join(commitment(_SHARE[0], round_digest, share) for share in shares[0]),
            b"".join(commitment(_SHARE[1], round_digest, share) for share in shares[1]),
            seal(secrets.box_key, b"".join(seeds), about=box_subject(round_digest, sender)),
            b"".join(sealed),
        ),
        own_shares=(shares[0][own], shares[1][own]),
    )


_SECRET: Final = ("self", "box")
_SHARE: Final = ("self share", "box share")


def _others(terms: SumTerms, name: str) -> tuple[str, ...]:
    return tuple(member for member in terms.cohort if member != name)


def _cut(data: bytes, names: tuple[str, ...], *, size: int = _HASH_BYTES) -> dict[str, bytes]:
    if len(data) != size * len(names):
        raise ValueError("a part has another length")
    return {name: data[size * place : size * (place + 1)] for place, name in enumerate(names)}
