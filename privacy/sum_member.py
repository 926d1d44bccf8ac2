"""A member's side of a secure sum that survives dropped members: bytes in, bytes or refusal out.

The order of one run, and of each round in it:

    hello     its keys of the run, signed with all terms          once a run
    meeting   ML-KEM ciphertexts for the peers behind it          once a run
    deal      commitments, sealed shares, its box of pair seeds   each round
    mask      its values under a self-mask and a mask per peer
    confirm   its signature under the set of survivors
    unmask    one share of each survivor's self-mask, or of a dropped member's box, never both

What it checks itself, whatever the coordinator says (`privacy.sum_checks`): identities against
the pinned roster; that all signed the terms that it was given, with its threshold and floor;
that all dealt for this round after this set-up; that it is in the sum; that at least `threshold`
members signed one and the same set of survivors before a share leaves.

Memory. Before a reply leaves, `persist` is called with a record and must return only once that is
durable behind those before; if it raises, nothing is sent. Restored from all records the member
sends the same bytes again, and it answers nothing else for that step, nor anything for an older
round. A record for which `is_whole` holds replaces all before it, which must then be deleted:
they hold keys that nobody needs any more. A state put back from an older copy could mask other
values under the same seeds: whoever keeps it must notice that, as the node does for its ledger.
Records hold secrets: whoever reads them can strip this member's masks.

Why no contribution shows, and what does show, is in `docs/explanation/secure-sum.md`.

Sources: double masks, shares, survivor set, Bonawitz et al. 2017,
https://eprint.iacr.org/2017/281; one set-up for many rounds, Ma et al. 2023 (Flamingo),
https://eprint.iacr.org/2023/486.
"""

import hashlib
import os
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from privacy.roster import pack
from privacy.secure_sum import Party, SumRefused, check_values
from privacy.sum_checks import SumChecks
from privacy.sum_deal import deal
from privacy.sum_keys import (
    RoundSecrets,
    RunKeys,
    encapsulate,
    exchange,
    mask_seed,
    pair_secret,
    pair_seed,
)
from privacy.sum_memory import Memory, Persist
from privacy.sum_terms import SumRound, SumTerms
from privacy.sum_wire import Kind, Sign, Survivors, format_masked, sign_message, unpack


class SumMember:
    """One member in one run; see the module for the order of its methods."""

    def __init__(
        self,
        party: Party,
        terms: SumTerms,
        *,
        sign: Sign,
        persist: Persist,
        state: bytes | None = None,
    ) -> None:
        """Begin a run, or go on with it.

        Args:
            party: Name, keys, pinned roster and floor.
            terms: What this member agreed to; nobody's message can change it.
            sign: Signs with its identity, as in `privacy.roster.make_card`.
            persist: Makes the record that it is given durable, or raises.
            state: All records of this run, one behind the other, or None if there were none.

        Raises:
            SumRefused: The terms are for another roster, name nobody pinned, leave this
                member out, or are below its floor; or the state is another run's.
        """
        self._checks = SumChecks(party, terms)
        self._party, self._terms, self._sign = party, terms, sign
        mine = {"name": party.name.encode(), "terms": terms.digest}
        if state is None:
            seeds = {"key_seed": os.urandom(32), "round_seed": os.urandom(32)}
            self._memory = Memory(mine | seeds, persist)
            return
        self._memory = Memory.restored(state, persist)
        if {what: self._memory.get(what) for what in mine} != mine:
            raise SumRefused("the state is of another member or other terms; nothing was begun")

    @property
    def state(self) -> bytes:
        """All that it must remember, as one record; secret."""
        return self._memory.state

    @property
    def name(self) -> str:
        """This member's name."""
        return self._party.name

    def hello(self) -> bytes:
        """Introduce the keys of this run."""
        stored = self._memory.get("hello")
        if stored is not None:
            return stored
        keys = RunKeys.of(self._memory["key_seed"])
        fields = (*self._terms.fields, *keys.public)
        return self._memory.keep("hello", sign_message(Kind.HELLO, self.name, fields, self._sign))

    def meet(self, hellos: bytes) -> bytes:
        """Check everybody's keys, and send a secret to each peer behind this one in the order.

        Args:
            hellos: The bundle from the whole cohort.

        Raises:
            SumRefused: A hello is missing, forged, from somebody else, or signed for other
                terms; or this member met others before.
        """
        stored = self._memory.answered("meeting", hellos, other=f"{self.name} met others before")
        if stored is not None:
            return stored
        own = RunKeys.of(self._memory["key_seed"])
        publics = self._checks.hellos(hellos, own=own.public)
        secrets: dict[str, bytes] = {}
        sent: dict[str, bytes] = {}
        for peer in self._peers:
            x25519, kem = publics[peer]
            try:
                pinned = self._party.pinned_secret(peer)
                fresh = exchange(own.agreement, x25519)
                if self.name < peer:
                    shared, sent[peer] = encapsulate(kem)
                    secrets[f"kem/{peer}"] = shared
            except ValueError as error:
                raise SumRefused(f"the keys of {peer} give no secret; nothing was sent") from error
            secrets[f"dh/{peer}"] = pack(pinned, fresh)
        seen = hashlib.sha256(hellos).digest()
        fields = (
            seen,
            pack(*(part for peer in sorted(sent) for part in (peer.encode(), sent[peer]))),
        )
        reply = sign_message(Kind.MEETING, self.name, fields, self._sign)
        return self._memory.keep("meeting", reply, request=hellos, also=secrets)

    def settle(self, meetings: bytes) -> None:
        """Compute what this member shares with each other, and destroy the keys of the run.

        Args:
            meetings: The bundle from the whole cohort.

        Raises:
            SumRefused: A meeting is missing, forged, after other hellos, or without a
                ciphertext for this member; or this member settled on others before.
        """
        settled = f"{self.name} settled on others before"
        if self._memory.answered("settled", meetings, other=settled) is not None:
            return
        if "meeting" not in self._memory:
            raise SumRefused(f"{self.name} has not met the others; nothing was settled")
        carried = self._checks.meetings(meetings, hellos_digest=self._memory["meeting.request"])
        keys = RunKeys.of(self._memory["key_seed"])
        setup = hashlib.sha256(meetings).digest()
        agreed = {"settled": setup, "settled.request": setup}
        for peer in self._peers:
            pinned, fresh = unpack(self._memory[f"dh/{peer}"])
            try:
                if self.name < peer:
                    shared, ciphertext = self._memory[f"kem/{peer}"], carried[self.name][peer]
                else:
                    ciphertext = carried[peer][self.name]
                    shared = keys.encapsulation.decapsulate(ciphertext)
            except (KeyError, ValueError) as error:
                raise SumRefused(
                    f"the meeting of {peer} carries no secret for {self.name}; nothing was settled"
                ) from error
            pair = (min(self.name, peer), max(self.name, peer))
            seen = pack(self._memory["meeting.request"], hashlib.sha256(ciphertext).digest())
            agreed[f"pair/{peer}"] = pair_secret(
                self._terms, secrets=(pinned, fresh, shared), pair=pair, seen=seen
            )
        self._memory.replace(without=("dh/", "kem/", "key_seed"), added=agreed)

    def deal(self, asked: SumRound) -> bytes:
        """Open a round: commit to its secrets and share them.

        Args:
            asked: What the round is about, as this member's own plan says it.

        Raises:
            SumRefused: The set-up is not done, the cohort is too small to recover anybody,
                the round is older than one answered, or was opened with other contents.
        """
        if not self._terms.recovers:
            raise SumRefused(
                f"a cohort of {len(self._terms.cohort)} has no recovery; nothing was dealt"
            )
        if self._is_open(asked):
            return self._memory["round.deal"]
        digest = asked.digest(self._terms)
        secrets = RoundSecrets.of(
            self._memory["round_seed"], round_digest=digest, threshold=self._terms.threshold
        )
        dealing = deal(
            self.name,
            self._terms,
            secrets=secrets,
            pairs={peer: self._memory[f"pair/{peer}"] for peer in self._peers},
            digests=(digest, self._memory["settled"]),
        )
        reply = sign_message(Kind.DEAL, self.name, dealing.fields, self._sign)
        shares = b"".join(dealing.own_shares)
        self._open(asked, {"round.deal": reply, f"round.share/{self.name}": shares})
        return reply

    def mask(self, deals: bytes, values: NDArray[np.int64]) -> bytes:
        """Hide the values under a self-mask and a mask for each peer that dealt.

        Args:
            deals: The bundle of all who dealt.
            values: Noised integers, shape (dimension,). If this bundle was answered before,
                the stored bytes are sent again and these are not looked at.

        Raises:
            SumRefused: No round is open; too few dealt; a deal is forged, for another round
                or set-up, or does not fit; the values do; or another bundle was answered.
        """
        stored = self._memory.answered(
            "round.masked", deals, other=f"{self.name} masked its values for other deals"
        )
        if stored is not None:
            return stored
        if "round.deal" not in self._memory:
            raise SumRefused(f"{self.name} has not dealt in a round; nothing was masked")
        terms, dimension = self._terms, int.from_bytes(self._memory["round.dimension"], "big")
        dealt = self._checks.deals(
            deals,
            own=self._memory["round.deal"],
            round_digest=self._memory["round.digest"],
            setup_digest=self._memory["settled"],
        )
        check_values(
            values,
            dimension=dimension,
            ring_bits=terms.ring_bits,
            members=len(terms.cohort),
            max_abs=terms.max_abs,
        )
        digest, deals_digest = self._memory["round.digest"], hashlib.sha256(deals).digest()
        received: dict[str, bytes] = {}
        seeds: dict[str, bytes] = {}
        for peer, its in dealt.items():
            if peer == self.name:
                continue
            secret = self._memory[f"pair/{peer}"]
            seed = pair_seed(secret, digest)
            its.verify_pair(seed, self.name)
            received[f"round.share/{peer}"] = b"".join(its.open_shares(secret, self.name))
            seeds[peer] = mask_seed(seed, deals_digest)
        own = RoundSecrets.of(
            self._memory["round_seed"], round_digest=digest, threshold=terms.threshold
        )
        reply = format_masked(
            values,
            head=(digest, deals_digest),
            ring_bits=terms.ring_bits,
            added=[
                mask_seed(own.self_seed, deals_digest),
                *(seed for peer, seed in seeds.items() if self.name < peer),
            ],
            subtracted=[seed for peer, seed in seeds.items() if self.name > peer],
        )
        received["round.dealers"] = pack(*(name.encode() for name in dealt))
        return self._memory.keep("round.masked", reply, request=deals, also=received)

    def mask_without_recovery(self, asked: SumRound, values: NDArray[np.int64]) -> bytes:
        """Hide the values in a cohort of 3 or 4: no shares, and all must send.

        Args:
            asked: What the round is about, as this member's own plan says it.
            values: As for `mask`.

        Raises:
            SumRefused: As for `deal` and `mask`; or the cohort has recovery, which this
                would leave without self-masks.
        """
        terms = self._terms
        if terms.recovers:
            raise SumRefused(
                f"a cohort of {len(terms.cohort)} must deal before it masks; nothing was masked"
            )
        if self._is_open(asked):
            return self._memory["round.masked"]
        check_values(
            values,
            dimension=asked.dimension,
            ring_bits=terms.ring_bits,
            members=len(terms.cohort),
            max_abs=terms.max_abs,
        )
        digest, setup = asked.digest(terms), self._memory["settled"]
        seeds = {
            peer: mask_seed(pair_seed(self._memory[f"pair/{peer}"], digest), setup)
            for peer in self._peers
        }
        reply = format_masked(
            values,
            head=(digest, setup),
            ring_bits=terms.ring_bits,
            added=[seed for peer, seed in seeds.items() if self.name < peer],
            subtracted=[seed for peer, seed in seeds.items() if self.name > peer],
        )
        self._open(asked, {"round.masked": reply})
        return reply

    def confirm(self, survivors: bytes) -> bytes:
        """Sign the set of survivors, once.

        Args:
            survivors: Who sent values and who only dealt, as the coordinator says.

        Raises:
            SumRefused: This member sent no values in that round, is not among the survivors,
                they are too few, somebody is in both lists or in none; or it signed another set.
        """
        said = Survivors.parse(survivors)
        if "round.dealers" not in self._memory:
            raise SumRefused(f"{self.name} has sent no values in a round; nothing was signed")
        self._checks.survivors(
            said,
            round_digest=self._memory["round.digest"],
            deals_digest=self._memory["round.masked.request"],
            dealers={name.decode() for name in unpack(self._memory["round.dealers"])},
        )
        stored = self._memory.answered(
            "round.statement", survivors, other=f"{self.name} signed another set of survivors"
        )
        if stored is not None:
            return stored
        reply = sign_message(Kind.STATEMENT, self.name, said.fields, self._sign)
        return self._memory.keep("round.statement", reply, request=survivors)

    def unmask(self, statements: bytes) -> bytes:
        """Reveal one share of each member that dealt, once enough signed the same survivors.

        Args:
            statements: The bundle of signed sets.

        Raises:
            SumRefused: This member signed no set; or one of these is forged, by somebody who
                did not survive, or over another set; or they are too few.
        """
        own = self._memory.get("round.statement")
        if own is None:
            raise SumRefused(f"{self.name} has signed no set of survivors; nothing was revealed")
        said = self._checks.statements(statements, own=own)
        stored = self._memory.get("round.reveal")
        if stored is not None:
            return stored
        size = len(self._memory[f"round.share/{self.name}"]) // 2
        shares = [self._memory[f"round.share/{name}"][:size] for name in said.alive]
        boxes = [self._memory[f"round.share/{name}"][size:] for name in said.dropped]
        fields = (said.digest, b"".join(shares), b"".join(boxes))
        reply = sign_message(Kind.REVEAL, self.name, fields, self._sign)
        return self._memory.keep("round.reveal", reply)

    @property
    def _peers(self) -> tuple[str, ...]:
        return tuple(member for member in self._terms.cohort if member != self.name)

    def _is_open(self, asked: SumRound) -> bool:
        """Whether this very round is the newest; refuse an older one, or another under its name."""
        if "settled" not in self._memory:
            raise SumRefused(f"{self.name} has not settled its keys; nothing was opened")
        newest = self._memory.get("round.order") or b""
        if asked.order < newest:
            raise SumRefused(f"{asked} is over for {self.name}; nothing was opened")
        if asked.order > newest:
            return False
        if asked.digest(self._terms) != self._memory["round.digest"]:
            raise SumRefused(f"{asked} was opened by {self.name} as another; nothing was opened")
        return True

    def _open(self, asked: SumRound, entries: Mapping[str, bytes]) -> None:
        about = {
            "round.order": asked.order,
            "round.digest": asked.digest(self._terms),
            "round.dimension": asked.dimension.to_bytes(4, "big"),
        }
        self._memory.replace(without=("round.",), added={**about, **entries})
