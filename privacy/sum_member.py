"""A member's side of a secure sum that survives dropped members: bytes in, bytes or refusal out.

The order of one run, and of each round in it:

    hello     its keys of the run, signed with all terms          once a run
    meeting   ML-KEM ciphertexts for the peers behind it          once a run
    deal      commitments, sealed shares, its box of pair seeds   each round
    mask      its values under a self-mask and a mask per peer
    confirm   its signature under the set of survivors
    unmask    one share of each survivor's self-mask, or of a dropped member's box, never both

What it checks itself, whatever the coordinator says: identities against the pinned roster; that
all signed the terms that it was given, with its threshold and floor; that all dealt for this
round after this set-up; that it is in the sum; that at least `threshold` members signed one and
the same set of survivors before a share leaves.

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
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from privacy.masks import apply_masks, word_type
from privacy.roster import pack
from privacy.secure_sum import Party, SumRefused, check_values
from privacy.sum_deal import DEAL_FIELDS, Deal, deal
from privacy.sum_keys import (
    RoundSecrets,
    RunKeys,
    encapsulate,
    exchange,
    mask_seed,
    pair_secret,
    pair_seed,
)
from privacy.sum_terms import SumRound, SumTerms
from privacy.sum_wire import (
    Kind,
    Sign,
    Survivors,
    format_masked,
    open_bundle,
    sign_message,
    unpack,
)

HELLO_FIELDS: Final = 9
STATEMENT_FIELDS: Final = 4
_WHOLE: Final = b"tillpact sum state 1"
_MORE: Final = b"tillpact sum entries 1"
_TERMS: Final = (
    "run",
    "roster_digest",
    "plan_digest",
    "cohort",
    "threshold",
    "ring_bits",
    "max_abs",
)

Persist = Callable[[bytes], None]


def is_whole(record: bytes) -> bool:
    """Whether a record replaces all before it, which should then be deleted."""
    return record[8 : 8 + len(_WHOLE)] == _WHOLE


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
        _check_terms(party, terms)
        self._party, self._terms = party, terms
        self._sign, self._persist = sign, persist
        self._state = _fresh(party, terms) if state is None else _read(state, party, terms)
        self._is_kept = state is not None

    @property
    def state(self) -> bytes:
        """All that it must remember, as one record; secret."""
        return _record(_WHOLE, self._state)

    @property
    def name(self) -> str:
        """This member's name."""
        return self._party.name

    def hello(self) -> bytes:
        """Introduce the keys of this run."""
        stored = self._state.get("hello")
        if stored is not None:
            return stored
        keys = RunKeys.of(self._state["key_seed"])
        fields = (*self._terms.fields, *keys.public)
        return self._keep("hello", sign_message(Kind.HELLO, self.name, fields, self._sign))

    def meet(self, hellos: bytes) -> bytes:
        """Check everybody's keys, and send a secret to each peer behind this one in the order.

        Args:
            hellos: The bundle from the whole cohort.

        Raises:
            SumRefused: A hello is missing, forged, from somebody else, or signed for other
                terms; or this member met others before.
        """
        stored = self._again("meeting", hellos, "met others before")
        if stored is not None:
            return stored
        publics = self._read_hellos(hellos)
        own = RunKeys.of(self._state["key_seed"])
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
        return self._keep("meeting", reply, request=hellos, also=secrets)

    def settle(self, meetings: bytes) -> None:
        """Compute what this member shares with each other, and destroy the keys of the run.

        Args:
            meetings: The bundle from the whole cohort.

        Raises:
            SumRefused: A meeting is missing, forged, after other hellos, or without a
                ciphertext for this member; or this member settled on others before.
        """
        if self._again("settled", meetings, "settled on others before") is not None:
            return
        if "meeting" not in self._state:
            raise SumRefused(f"{self.name} has not met the others; nothing was settled")
        carried = self._read_meetings(meetings)
        keys = RunKeys.of(self._state["key_seed"])
        kept = {
            name: value
            for name, value in self._state.items()
            if not name.startswith(("dh/", "kem/")) and name != "key_seed"
        }
        for peer in self._peers:
            pinned, fresh = unpack(self._state[f"dh/{peer}"])
            try:
                if self.name < peer:
                    shared, ciphertext = self._state[f"kem/{peer}"], carried[self.name][peer]
                else:
                    ciphertext = carried[peer][self.name]
                    shared = keys.encapsulation.decapsulate(ciphertext)
            except (KeyError, ValueError) as error:
                raise SumRefused(
                    f"the meeting of {peer} carries no secret for {self.name}; nothing was settled"
                ) from error
            pair = (min(self.name, peer), max(self.name, peer))
            seen = pack(self._state["meeting.request"], hashlib.sha256(ciphertext).digest())
            kept[f"pair/{peer}"] = pair_secret(
                self._terms, secrets=(pinned, fresh, shared), pair=pair, seen=seen
            )
        setup = hashlib.sha256(meetings).digest()
        self._replace(kept | {"settled": setup, "settled.request": setup})

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
            return self._state["round.deal"]
        digest = asked.digest(self._terms)
        secrets = RoundSecrets.of(
            self._state["round_seed"], round_digest=digest, threshold=self._terms.threshold
        )
        dealing = deal(
            self.name,
            self._terms,
            secrets=secrets,
            pairs={peer: self._state[f"pair/{peer}"] for peer in self._peers},
            digests=(digest, self._state["settled"]),
        )
        reply = sign_message(Kind.DEAL, self.name, dealing.fields, self._sign)
        return self._open(
            asked, {"round.deal": reply, f"round.share/{self.name}": b"".join(dealing.own_shares)}
        )

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
        stored = self._again("round.masked", deals, "masked its values for other deals")
        if stored is not None:
            return stored
        if "round.deal" not in self._state:
            raise SumRefused(f"{self.name} has not dealt in a round; nothing was masked")
        terms, dimension = self._terms, int.from_bytes(self._state["round.dimension"], "big")
        dealt = self._read_deals(deals)
        check_values(
            values,
            dimension=dimension,
            ring_bits=terms.ring_bits,
            members=len(terms.cohort),
            max_abs=terms.max_abs,
        )
        digest, deals_digest = self._state["round.digest"], hashlib.sha256(deals).digest()
        received: dict[str, bytes] = {}
        seeds: dict[str, bytes] = {}
        for peer, its in dealt.items():
            if peer == self.name:
                continue
            secret = self._state[f"pair/{peer}"]
            seed = pair_seed(secret, digest)
            its.verify_pair(seed, self.name)
            received[f"round.share/{peer}"] = b"".join(its.open_shares(secret, self.name))
            seeds[peer] = mask_seed(seed, deals_digest)
        own = RoundSecrets.of(
            self._state["round_seed"], round_digest=digest, threshold=terms.threshold
        )
        ring = values.astype(word_type(terms.ring_bits))
        apply_masks(
            ring,
            added=[
                mask_seed(own.self_seed, deals_digest),
                *(seed for peer, seed in seeds.items() if self.name < peer),
            ],
            subtracted=[seed for peer, seed in seeds.items() if self.name > peer],
        )
        reply = format_masked(digest, deals_digest, ring)
        received["round.dealers"] = pack(*(name.encode() for name in dealt))
        return self._keep("round.masked", reply, request=deals, also=received)

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
            return self._state["round.masked"]
        check_values(
            values,
            dimension=asked.dimension,
            ring_bits=terms.ring_bits,
            members=len(terms.cohort),
            max_abs=terms.max_abs,
        )
        digest, setup = asked.digest(terms), self._state["settled"]
        seeds = {
            peer: mask_seed(pair_seed(self._state[f"pair/{peer}"], digest), setup)
            for peer in self._peers
        }
        ring = values.astype(word_type(terms.ring_bits))
        apply_masks(
            ring,
            added=[seed for peer, seed in seeds.items() if self.name < peer],
            subtracted=[seed for peer, seed in seeds.items() if self.name > peer],
        )
        return self._open(asked, {"round.masked": format_masked(digest, setup, ring)})

    def confirm(self, survivors: bytes) -> bytes:
        """Sign the set of survivors, once.

        Args:
            survivors: Who sent values and who only dealt, as the coordinator says.

        Raises:
            SumRefused: This member sent no values in that round, is not among the survivors,
                they are too few, somebody is in both lists or in none; or it signed another set.
        """
        said = Survivors.parse(survivors)
        self._check_survivors(said)
        stored = self._again("round.statement", survivors, "signed another set of survivors")
        if stored is not None:
            return stored
        reply = sign_message(Kind.STATEMENT, self.name, said.fields, self._sign)
        return self._keep("round.statement", reply, request=survivors)

    def unmask(self, statements: bytes) -> bytes:
        """Reveal one share of each member that dealt, once enough signed the same survivors.

        Args:
            statements: The bundle of signed sets.

        Raises:
            SumRefused: This member signed no set; or one of these is forged, by somebody who
                did not survive, or over another set; or they are too few.
        """
        own = self._state.get("round.statement")
        if own is None:
            raise SumRefused(f"{self.name} has signed no set of survivors; nothing was revealed")
        said = self._read_statements(statements, own)
        stored = self._state.get("round.reveal")
        if stored is not None:
            return stored
        size = len(self._state[f"round.share/{self.name}"]) // 2
        shares = [self._state[f"round.share/{name}"][:size] for name in said.alive]
        boxes = [self._state[f"round.share/{name}"][size:] for name in said.dropped]
        fields = (said.digest, b"".join(shares), b"".join(boxes))
        reply = sign_message(Kind.REVEAL, self.name, fields, self._sign)
        return self._keep("round.reveal", reply)

    @property
    def _peers(self) -> tuple[str, ...]:
        return tuple(member for member in self._terms.cohort if member != self.name)

    @property
    def _least(self) -> int:
        return max(self._terms.threshold, self._party.floor)

    def _read_hellos(self, hellos: bytes) -> dict[str, tuple[bytes, bytes]]:
        messages = open_bundle(Kind.HELLO, hellos, roster=self._party.roster, size=HELLO_FIELDS)
        _check_senders(tuple(messages), self._terms.cohort, Kind.HELLO)
        for sender, message in messages.items():
            for what, agreed, found in zip(
                _TERMS, self._terms.fields, message.fields, strict=False
            ):
                if agreed != found:
                    raise SumRefused(
                        f"{sender} signed another {what} than {self.name} agreed to; "
                        "nothing was sent"
                    )
        if pack(*messages[self.name].fields[-2:]) != pack(
            *RunKeys.of(self._state["key_seed"]).public
        ):
            raise SumRefused(f"the hello of {self.name} is not what it sent; nothing was sent")
        return {
            name: (message.fields[-2], message.fields[-1]) for name, message in messages.items()
        }

    def _read_meetings(self, meetings: bytes) -> dict[str, dict[str, bytes]]:
        messages = open_bundle(Kind.MEETING, meetings, roster=self._party.roster, size=2)
        _check_senders(tuple(messages), self._terms.cohort, Kind.MEETING)
        carried: dict[str, dict[str, bytes]] = {}
        for sender, message in messages.items():
            if message.fields[0] != self._state["meeting.request"]:
                raise SumRefused(f"{sender} met others than {self.name}; nothing was settled")
            try:
                parts = unpack(message.fields[1])
                names = [part.decode() for part in parts[::2]]
                carried[sender] = dict(zip(names, parts[1::2], strict=True))
            except ValueError as error:
                raise SumRefused(
                    f"the meeting of {sender} cannot be read; nothing was settled"
                ) from error
        return carried

    def _read_deals(self, deals: bytes) -> dict[str, Deal]:
        messages = open_bundle(Kind.DEAL, deals, roster=self._party.roster, size=DEAL_FIELDS)
        dealt = {name: Deal.of(message, self._terms) for name, message in messages.items()}
        if len(dealt) < self._least:
            raise SumRefused(
                f"{len(dealt)} members dealt, at least {self._least} must; nothing was masked"
            )
        for name, its in dealt.items():
            if its.round_digest != self._state["round.digest"]:
                raise SumRefused(f"the deal of {name} is for another round; nothing was masked")
            if its.setup_digest != self._state["settled"]:
                raise SumRefused(f"the deal of {name} follows another set-up; nothing was masked")
        if self._state["round.deal"] not in unpack(deals):
            raise SumRefused(f"the deal of {self.name} is not among the deals; nothing was masked")
        return dealt

    def _check_survivors(self, said: Survivors) -> None:
        if "round.masked" not in self._state or "round.dealers" not in self._state:
            raise SumRefused(f"{self.name} has sent no values in a round; nothing was signed")
        if said.round_digest != self._state["round.digest"]:
            raise SumRefused("the survivors are of another round; nothing was signed")
        if said.deals_digest != self._state["round.masked.request"]:
            raise SumRefused("the survivors masked for other deals; nothing was signed")
        both = sorted(set(said.alive) & set(said.dropped))
        if both:
            raise SumRefused(f"{both[0]} is said to be alive and dropped; nothing was signed")
        dealers = {name.decode() for name in unpack(self._state["round.dealers"])}
        if set(said.alive) | set(said.dropped) != dealers:
            raise SumRefused(
                "the survivors and dropped are not those who dealt; nothing was signed"
            )
        if self.name not in said.alive:
            raise SumRefused(f"{self.name} sent values and is called dropped; nothing was signed")
        if len(said.alive) < self._least:
            raise SumRefused(
                f"{len(said.alive)} members survive, at least {self._least} must; "
                "nothing was signed"
            )

    def _read_statements(self, statements: bytes, own: bytes) -> Survivors:
        roster = self._party.roster
        messages = open_bundle(Kind.STATEMENT, statements, roster=roster, size=STATEMENT_FIELDS)
        fields = unpack(unpack(own)[0])[1:]
        said = Survivors.of(fields)
        for sender, message in messages.items():
            if sender not in said.alive:
                raise SumRefused(f"{sender} is no survivor and signed; nothing was revealed")
            if message.fields != fields:
                raise SumRefused(
                    f"{sender} signed another set of survivors than {self.name}; "
                    "nothing was revealed"
                )
        if len(messages) < self._least:
            raise SumRefused(
                f"{len(messages)} members signed the survivors, at least {self._least} must; "
                "nothing was revealed"
            )
        return said

    def _is_open(self, asked: SumRound) -> bool:
        """Whether this very round is the newest; refuse an older one, or another under its name."""
        if "settled" not in self._state:
            raise SumRefused(f"{self.name} has not settled its keys; nothing was opened")
        newest = self._state.get("round.order", b"")
        if asked.order < newest:
            raise SumRefused(f"{asked} is over for {self.name}; nothing was opened")
        if asked.order > newest:
            return False
        if asked.digest(self._terms) != self._state["round.digest"]:
            raise SumRefused(f"{asked} was opened by {self.name} as another; nothing was opened")
        return True

    def _open(self, asked: SumRound, entries: Mapping[str, bytes]) -> bytes:
        kept = {name: value for name, value in self._state.items() if not name.startswith("round.")}
        self._replace(
            kept
            | {
                "round.order": asked.order,
                "round.digest": asked.digest(self._terms),
                "round.dimension": asked.dimension.to_bytes(4, "big"),
                **entries,
            }
        )
        return next(iter(entries.values()))

    def _again(self, step: str, request: bytes, other: str) -> bytes | None:
        """The stored reply of a step, if this is the request that it answered."""
        stored = self._state.get(f"{step}.request")
        if stored is None:
            return None
        if stored != hashlib.sha256(request).digest():
            raise SumRefused(f"{self.name} {other}; nothing was sent")
        return self._state[step]

    def _keep(
        self,
        step: str,
        reply: bytes,
        *,
        request: bytes | None = None,
        also: Mapping[str, bytes] | None = None,
    ) -> bytes:
        entries = {step: reply, **(also or {})}
        if request is not None:
            entries[f"{step}.request"] = hashlib.sha256(request).digest()
        # Durable first: a reply that left and was forgotten could be followed by another. The
        # first record holds the seeds as well; later ones what was added.
        state = {**self._state, **entries}
        self._persist(_record(_MORE, entries) if self._is_kept else _record(_WHOLE, state))
        self._state, self._is_kept = state, True
        return reply

    def _replace(self, state: dict[str, bytes]) -> None:
        self._persist(_record(_WHOLE, state))
        self._state, self._is_kept = state, True


def _check_terms(party: Party, terms: SumTerms) -> None:
    try:
        terms.verify_roster(party.roster)
    except ValueError as error:
        raise SumRefused(f"{error}; nothing was begun") from error
    if party.name not in terms.cohort:
        raise SumRefused(f"{party.name} is not in the cohort; nothing was begun")
    if len(terms.cohort) < party.floor:
        raise SumRefused(
            f"the cohort has {len(terms.cohort)} members, the floor is {party.floor}; "
            "nothing was begun"
        )


def _check_senders(senders: tuple[str, ...], cohort: tuple[str, ...], kind: Kind) -> None:
    for sender in senders:
        if sender not in cohort:
            raise SumRefused(f"{sender} is not in the cohort; nothing was done")
    for member in cohort:
        if member not in senders:
            raise SumRefused(f"the {kind} of {member} is missing; nothing was done")


def _fresh(party: Party, terms: SumTerms) -> dict[str, bytes]:
    return {
        "name": party.name.encode(),
        "terms": terms.digest,
        "key_seed": os.urandom(32),
        "round_seed": os.urandom(32),
    }


def _record(kind: bytes, entries: Mapping[str, bytes]) -> bytes:
    parts: list[bytes] = [kind, str(len(entries)).encode()]
    for name in sorted(entries):
        parts += (name.encode(), entries[name])
    return pack(*parts)


def _read(data: bytes, party: Party, terms: SumTerms) -> dict[str, bytes]:
    state: dict[str, bytes] = {}
    try:
        parts = unpack(data)
        if not parts or parts[0] != _WHOLE:
            raise ValueError("it does not begin with a whole record")
        place = 0
        while place < len(parts):
            kind, count = parts[place], int(parts[place + 1])
            entries = parts[place + 2 : place + 2 + 2 * count]
            if kind not in {_WHOLE, _MORE} or count < 0 or len(entries) != 2 * count:
                raise ValueError("a record is cut short")
            names = [name.decode() for name in entries[::2]]
            found = dict(zip(names, entries[1::2], strict=True))
            state = found if kind == _WHOLE else state | found
            place += 2 + 2 * count
    except (ValueError, IndexError) as error:
        raise SumRefused("the state of a sum cannot be read; nothing was begun") from error
    if (state.get("name"), state.get("terms")) != (party.name.encode(), terms.digest):
        raise SumRefused("the state is of another member or other terms; nothing was begun")
    return state
