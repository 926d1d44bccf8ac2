"""The coordinator's side of a secure sum: collect, verify, hand round, add up, rebuild.

Two state machines that hold no secret: `SumSetup` once a run, `SumTally` once an attempt. Each
message is checked when it arrives and refused by itself, so that one member's fault is named
and costs the others nothing. An attempt ends in the sum of the survivors' values, or in
`SumVoid`; a new attempt is a new draw of noise and a new charge at every member.

The members do not rely on any of this: `privacy.sum_member` checks everything again. What is
checked here saves an honest coordinator from handing round what they would refuse.
"""

import hashlib
from typing import Final

import numpy as np
from numpy.typing import NDArray

from privacy.masks import Ring, apply_masks, signed, word_type
from privacy.roster import Roster
from privacy.secure_sum import SumRefused
from privacy.shamir import ELEMENT_BYTES, combine
from privacy.sum_checks import HELLO_FIELDS, STATEMENT_FIELDS
from privacy.sum_deal import DEAL_FIELDS, Deal
from privacy.sum_keys import mask_seed
from privacy.sum_terms import SumRound, SumTerms
from privacy.sum_wire import (
    Kind,
    Survivors,
    format_bundle,
    open_message,
    parse_masked,
)

_REVEAL_FIELDS: Final = 3


class SumVoid(Exception):  # noqa: N818 - an answer, not a fault
    """An attempt cannot end in a sum; no member's values can be read from what was sent."""


class SumSetup:
    """Collects the two messages of a run's set-up; all members must take part."""

    def __init__(self, terms: SumTerms, roster: Roster) -> None:
        """Begin.

        Raises:
            ValueError: The terms are for another roster or name somebody not in it.
        """
        terms.verify_roster(roster)
        self._terms, self._roster = terms, roster
        self._hellos: dict[str, bytes] = {}
        self._meetings: dict[str, bytes] = {}

    def take_hello(self, data: bytes) -> None:
        """Take a member's hello.

        Raises:
            SumRefused: It is forged, from outside, for other terms, or a second one.
        """
        message = open_message(Kind.HELLO, data, roster=self._roster, size=HELLO_FIELDS)
        if message.fields[:-2] != self._terms.fields:
            raise SumRefused(f"{message.sender} signed other terms; its hello was not taken")
        _take(self._hellos, message.sender, data, terms=self._terms)

    def hellos(self) -> bytes:
        """All hellos, for every member.

        Raises:
            SumVoid: One is missing.
        """
        return _whole(self._hellos, self._terms)

    def take_meeting(self, data: bytes) -> None:
        """Take a member's meeting.

        Raises:
            SumRefused: It is forged, from outside, after other hellos, or a second one.
        """
        message = open_message(Kind.MEETING, data, roster=self._roster, size=2)
        if message.fields[0] != hashlib.sha256(self.hellos()).digest():
            raise SumRefused(f"{message.sender} met others; its meeting was not taken")
        _take(self._meetings, message.sender, data, terms=self._terms)

    def meetings(self) -> bytes:
        """All meetings, for every member.

        Raises:
            SumVoid: One is missing.
        """
        return _whole(self._meetings, self._terms)

    @property
    def digest(self) -> bytes:
        """Of the finished set-up, 32 bytes; rounds name it."""
        return hashlib.sha256(self.meetings()).digest()


class SumTally:
    """One attempt at one round."""

    def __init__(self, terms: SumTerms, roster: Roster, *, asked: SumRound, setup: bytes) -> None:
        """Begin.

        Args:
            terms: Of the run.
            roster: The pinned identities.
            asked: The round.
            setup: Digest of the run's set-up.
        """
        self._terms, self._roster, self._asked, self._setup = terms, roster, asked, setup
        self._digest = asked.digest(terms)
        self._deals: dict[str, Deal] = {}
        self._sent: dict[Kind, dict[str, bytes]] = {kind: {} for kind in Kind}
        self._deals_digest = b"" if terms.recovers else setup
        self._alive: list[str] = []
        self._ring: Ring = np.zeros(asked.dimension, dtype=word_type(terms.ring_bits))
        self._survivors: Survivors | None = None
        self._shares: dict[str, dict[int, bytes]] = {}

    def take_deal(self, data: bytes) -> None:
        """Take a member's deal.

        Raises:
            SumRefused: It is forged, from outside, for another round or set-up, does not fit
                a deal that came before, is a second one, or the deals were handed round.
        """
        message = open_message(Kind.DEAL, data, roster=self._roster, size=DEAL_FIELDS)
        found = Deal.of(message, self._terms)
        if (found.round_digest, found.setup_digest) != (self._digest, self._setup):
            raise SumRefused(f"the deal of {found.sender} is for another round; it was not taken")
        for name, other in self._deals.items():
            if name != found.sender and other.pairs[found.sender] != found.pairs[name]:
                raise SumRefused(
                    f"{name} and {found.sender} do not share a seed; the deal was not taken"
                )
        if self._deals_digest:
            raise SumRefused(f"the deal of {found.sender} came too late; it was not taken")
        _take(self._sent[Kind.DEAL], found.sender, data, terms=self._terms)
        self._deals[found.sender] = found

    def deals(self) -> bytes:
        """All deals, for every member that dealt; no further one is taken.

        Raises:
            SumVoid: Too few dealt.
        """
        self._need(len(self._deals), "dealt")
        bundle = format_bundle(self._sent[Kind.DEAL])
        self._deals_digest = hashlib.sha256(bundle).digest()
        return bundle

    def take_masked(self, sender: str, data: bytes) -> None:
        """Take a member's masked values.

        Args:
            sender: Who sent them, as the transport has verified.
            data: What it sent.

        Raises:
            SumRefused: It did not deal, the values are for another round or have another
                length, are a second answer, or came after the survivors were named.
        """
        expected = self._deals if self._terms.recovers else self._terms.cohort
        if sender not in expected:
            raise SumRefused(f"{sender} did not deal; its values were not summed")
        if sender in self._alive:
            raise SumRefused(f"{sender} sent its values before; nothing was summed")
        if self._survivors is not None:
            raise SumRefused(f"the values of {sender} came too late; they were not summed")
        ring = parse_masked(
            data,
            sender=sender,
            head=(self._digest, self._deals_digest),
            dimension=self._asked.dimension,
            ring_bits=self._terms.ring_bits,
        )
        np.add(self._ring, ring, out=self._ring)
        self._alive.append(sender)

    def survivors(self) -> bytes:
        """Who sent values and who only dealt, for every survivor to sign.

        Raises:
            SumVoid: Too few sent values.
        """
        self._need(len(self._alive), "sent values")
        alive = tuple(sorted(self._alive))
        self._survivors = Survivors(
            round_digest=self._digest,
            deals_digest=self._deals_digest,
            alive=alive,
            dropped=tuple(sorted(set(self._deals) - set(alive))),
        )
        return self._survivors.format()

    def take_statement(self, data: bytes) -> None:
        """Take a survivor's signature under the set.

        Raises:
            SumRefused: It is forged, of somebody dropped, over another set, or a second one.
        """
        message = open_message(Kind.STATEMENT, data, roster=self._roster, size=STATEMENT_FIELDS)
        said = self._named()
        if message.sender not in said.alive or message.fields != said.fields:
            raise SumRefused(f"{message.sender} signed other survivors; it was not taken")
        _take(self._sent[Kind.STATEMENT], message.sender, data, terms=self._terms)

    def statements(self) -> bytes:
        """All signatures, for every survivor.

        Raises:
            SumVoid: Too few signed.
        """
        self._need(len(self._sent[Kind.STATEMENT]), "signed the survivors")
        return format_bundle(self._sent[Kind.STATEMENT])

    def take_reveal(self, data: bytes) -> None:
        """Take a survivor's shares, each checked against its dealer's commitment.

        Raises:
            SumRefused: It is forged, for another set, a second one, or holds a wrong share.
        """
        message = open_message(Kind.REVEAL, data, roster=self._roster, size=_REVEAL_FIELDS)
        said, holder = self._named(), message.sender
        digest, selves, boxes = message.fields
        sizes = (ELEMENT_BYTES * len(said.alive), ELEMENT_BYTES * len(said.dropped))
        if holder not in said.alive or digest != said.digest or (len(selves), len(boxes)) != sizes:
            raise SumRefused(f"the shares of {holder} are for other survivors; none was taken")
        shares = _by_dealer(said.alive, selves) | _by_dealer(said.dropped, boxes)
        for dealer, share in shares.items():
            position = 0 if dealer in said.alive else 1
            self._deals[dealer].verify_share(share, holder, position=position)
        _take(self._sent[Kind.REVEAL], holder, data, terms=self._terms)
        place = self._terms.cohort.index(holder) + 1
        for dealer, share in shares.items():
            self._shares.setdefault(dealer, {})[place] = share

    def total(self) -> NDArray[np.int64]:
        """The sum of the survivors' values, shape (dimension,).

        Raises:
            SumVoid: Too few revealed shares, or, without recovery, somebody sent no values.
            SumRefused: A dealer shared something else than it committed to.
        """
        ring = self._ring.copy()
        if self._terms.recovers:
            added, subtracted = self._masks_left()
            # What is left in the sum comes off again: the other way round.
            apply_masks(ring, added=subtracted, subtracted=added)
        else:
            self._need(len(self._alive), "sent values")
        return signed(ring)

    def _masks_left(self) -> tuple[list[bytes], list[bytes]]:
        """Seeds of the masks that were added to the sum, and of those subtracted from it."""
        said = self._named()
        self._need(len(self._sent[Kind.REVEAL]), "revealed their shares")
        added = [
            mask_seed(self._rebuilt(name, position=0), self._deals_digest) for name in said.alive
        ]
        subtracted: list[bytes] = []
        for name in said.dropped:
            seeds = self._deals[name].open_box(self._rebuilt(name, position=1), self._terms)
            for peer in said.alive:
                self._deals[peer].verify_pair(seeds[peer], name)
                # The survivor's view: it adds the mask if its name is the lower.
                (added if peer < name else subtracted).append(
                    mask_seed(seeds[peer], self._deals_digest)
                )
        return added, subtracted

    def _rebuilt(self, dealer: str, *, position: int) -> bytes:
        chosen = sorted(self._shares[dealer].items())[: self._terms.threshold]
        secret = combine(dict(chosen))
        self._deals[dealer].verify_secret(secret, position=position)
        return secret

    def _named(self) -> Survivors:
        if self._survivors is None:
            raise SumRefused("the survivors are not named yet; nothing was taken")
        return self._survivors

    def _need(self, found: int, what: str) -> None:
        if found < self._terms.threshold:
            raise SumVoid(
                f"{self._asked} is void: {found} of {len(self._terms.cohort)} members {what}, "
                f"at least {self._terms.threshold} must; a new attempt is a new charge"
            )


def _take(taken: dict[str, bytes], sender: str, data: bytes, *, terms: SumTerms) -> None:
    if sender not in terms.cohort:
        raise SumRefused(f"{sender} is not in the cohort; its message was not taken")
    if taken.setdefault(sender, data) != data:
        raise SumRefused(f"{sender} sent two different answers; the second was not taken")


def _whole(taken: dict[str, bytes], terms: SumTerms) -> bytes:
    missing = [member for member in terms.cohort if member not in taken]
    if missing:
        raise SumVoid(f"the set-up is void: nothing came from {', '.join(missing)}")
    return format_bundle(taken)


def _by_dealer(names: tuple[str, ...], data: bytes) -> dict[str, bytes]:
    return {
        name: data[ELEMENT_BYTES * place : ELEMENT_BYTES * (place + 1)]
        for place, name in enumerate(names)
    }
