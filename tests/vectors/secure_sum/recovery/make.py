"""Write the vectors of the sum with recovery: `python tests/vectors/secure_sum/recovery/make.py`.

Each file is one case at the member `birch`, named after its fault; `why` says it in words. Keys
are fixed and public, so they protect nothing. A case has the state that the member starts from,
a `step`, its request, and either the reply or the sentence of the refusal. ML-KEM ciphertexts
are random, so the set-up ends with secrets that are fixed by hand.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from privacy import (
    AgreementKey,
    MemberCard,
    Party,
    Roster,
    SumMember,
    SumRound,
    SumTerms,
    make_card,
)
from privacy.roster import pack
from privacy.sum_wire import Kind, Survivors, format_bundle, sign_message, unpack

FOLDER = Path(__file__).parent
COHORT = ("birch", "cedar", "hazel", "maple", "rowan")
ME, PEER, LAST = "birch", "cedar", "rowan"
VALUES = {name: [place, -place, 1000 - place] for place, name in enumerate(COHORT)}


def digest(text: str) -> bytes:
    """32 bytes that everybody knows."""
    return hashlib.sha256(text.encode()).digest()


def identity(name: str) -> Ed25519PrivateKey:
    """The identity of a member in these vectors."""
    return Ed25519PrivateKey.from_private_bytes(digest(f"identity key of {name}"))


def signer(name: str) -> Callable[[str, bytes], bytes]:
    """Sign as an identity does: the context first, then a zero byte."""
    return lambda context, message: identity(name).sign(f"tillpact/{context}\0".encode() + message)


def agreement(name: str) -> AgreementKey:
    """The agreement key of a member in these vectors."""
    return AgreementKey(X25519PrivateKey.from_private_bytes(digest(f"agreement key of {name}")))


def card(name: str) -> MemberCard:
    """A well signed card."""
    public = identity(name).public_key().public_bytes_raw()
    return make_card(name, signer(name), identity=public, agreement=agreement(name).public)


ROSTER = Roster(card(name) for name in (*COHORT, "sorrel"))
TERMS = SumTerms(
    run="june",
    roster_digest=ROSTER.digest,
    plan_digest=digest("plan"),
    cohort=COHORT,
    threshold=4,
    ring_bits=32,
    max_abs=1000,
)
ASKED = SumRound(round=4, attempt=0, dimension=3, question_digest=digest("question"))


def fresh_state(name: str, *, settled: bool) -> bytes:
    """What a member remembers before its first message, or after the set-up."""
    state = {
        "name": name.encode(),
        "terms": TERMS.digest,
        "round_seed": digest(f"round seed of {name}"),
    }
    if settled:
        state |= {"settled": digest("set-up"), "settled.request": digest("set-up")}
        for peer in COHORT:
            if peer != name:
                pair = " and ".join(sorted((name, peer)))
                state[f"pair/{peer}"] = digest(f"secret of {pair}")
    else:
        state["key_seed"] = digest(f"key seed of {name}")
    entries = [part for key in sorted(state) for part in (key.encode(), state[key])]
    return pack(b"tillpact sum state 1", str(len(state)).encode(), *entries)


def ignore(record: bytes) -> None:
    """Nothing outlives these members."""


def member(name: str, state: bytes) -> SumMember:
    """A member as its state left it."""
    party = Party(name, agreement(name), ROSTER)
    return SumMember(party, TERMS, sign=signer(name), persist=ignore, state=state)


def values(name: str) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """What a member sends."""
    return np.array(VALUES[name], dtype=np.int64)


def resigned(
    kind: Kind, data: bytes, changes: Mapping[int, bytes], *, signer_name: str | None = None
) -> bytes:
    """The message with some fields changed, signed again by its own sender or another."""
    name, *fields = unpack(unpack(data)[0])
    for place, value in changes.items():
        fields[place] = value
    sender = name.decode()
    return sign_message(kind, sender, fields, signer(signer_name or sender))


def flipped(data: bytes) -> bytes:
    """The same with its first bit changed."""
    return bytes([data[0] ^ 1]) + data[1:]


class Story:
    """One honest run, up to each step, from which the lies are made."""

    def __init__(self, *, alive: tuple[str, ...] = COHORT) -> None:
        """Run it; members that are not `alive` deal and then fall silent."""
        early = {name: member(name, fresh_state(name, settled=False)) for name in COHORT}
        self.hellos = {name: one.hello() for name, one in early.items()}
        self.greeted = early[ME].state
        self.settled = fresh_state(ME, settled=True)
        members = {name: member(name, fresh_state(name, settled=True)) for name in COHORT}
        self.deals = {name: one.deal(ASKED) for name, one in members.items()}
        self.dealt = members[ME].state
        bundle = format_bundle(self.deals)
        self.masked = {name: members[name].mask(bundle, values(name)) for name in alive}
        self.sent = members[ME].state
        self.survivors = Survivors(
            round_digest=ASKED.digest(TERMS),
            deals_digest=hashlib.sha256(bundle).digest(),
            alive=alive,
            dropped=tuple(name for name in COHORT if name not in alive),
        )
        said = self.survivors.format()
        self.statements = {name: members[name].confirm(said) for name in alive}
        self.signed = members[ME].state
        statements = format_bundle(self.statements)
        self.reveals = {name: members[name].unmask(statements) for name in alive}

    def deal_with(self, place: int, change: Callable[[bytes], bytes]) -> bytes:
        """All deals, with one field of cedar's changed and signed by cedar."""
        field = unpack(unpack(self.deals[PEER])[0])[1 + place]
        deal = resigned(Kind.DEAL, self.deals[PEER], {place: change(field)})
        return format_bundle(self.deals | {PEER: deal})

    def said(self, alive: Iterable[str], dropped: Iterable[str] = ()) -> bytes:
        """A set of survivors of this round, true or not."""
        return dataclasses.replace(
            self.survivors, alive=tuple(sorted(alive)), dropped=tuple(sorted(dropped))
        ).format()


def case(step: str, why: str, refused: str, *, state: bytes, request: bytes) -> dict[str, Any]:
    """A request that arrives at `birch`; the reply is what it answers, if it does."""
    reply = "" if refused else run(step, state, request).hex()
    return {
        "why": why,
        "step": step,
        "roster": ROSTER.format().decode(),
        "agreement": digest(f"agreement key of {ME}").hex(),
        "identity": digest(f"identity key of {ME}").hex(),
        "state": state.hex(),
        "request": request.hex(),
        "refused": refused,
        "reply": reply,
    }


def asked(fields: bytes) -> SumRound:
    """The round that a request to deal names."""
    number, attempt, dimension, question = unpack(fields)
    return SumRound(
        round=int(number), attempt=int(attempt), dimension=int(dimension), question_digest=question
    )


def asking(one: SumRound) -> bytes:
    """A request to deal."""
    numbers = (str(number).encode() for number in (one.round, one.attempt, one.dimension))
    return pack(*numbers, one.question_digest)


def run(step: str, state: bytes, request: bytes) -> bytes:
    """What `birch` answers."""
    me = member(ME, state)
    match step:
        case "hello":
            return me.hello()
        case "deal":
            return me.deal(asked(request))
        case "mask":
            return me.mask(request, values(ME))
        case "confirm":
            return me.confirm(request)
        case "unmask":
            return me.unmask(request)
        case _:
            return me.meet(request)


def meet_cases(story: Story) -> dict[str, dict[str, Any]]:
    """Every way for the keys of a run to be wrong."""

    def refused(why: str, sentence: str, hellos: Mapping[str, bytes]) -> dict[str, Any]:
        request = format_bundle(hellos)
        return case("meet", why, sentence, state=story.greeted, request=request)

    def other(what: str, place: int, value: bytes) -> dict[str, Any]:
        hello = resigned(Kind.HELLO, story.hellos[PEER], {place: value})
        return refused(
            f"Cedar signed with another {what} than birch agreed to.",
            f"cedar signed another {what} than birch agreed to; nothing was sent",
            story.hellos | {PEER: hello},
        )

    own = resigned(Kind.HELLO, story.hellos[PEER], {7: digest("mine")}, signer_name="mallory")
    fields = unpack(unpack(story.hellos[PEER])[0])[1:]
    mallory = sign_message(Kind.HELLO, "mallory", fields, signer("mallory"))
    sorrel = sign_message(Kind.HELLO, "sorrel", fields, signer("sorrel"))
    missing = {name: data for name, data in story.hellos.items() if name != PEER}
    happy = case(
        "hello", "Everything is in order.", "", state=fresh_state(ME, settled=False), request=b""
    )
    return {
        "happy_hello": happy,
        "swapped_key": refused(
            "The coordinator put its own key into cedar's hello to read birch's masks.",
            "the hello of cedar is not signed by it; nothing was done",
            story.hellos | {PEER: own},
        ),
        "invented_member": refused(
            "The coordinator adds a member nobody enrolled.",
            "a hello is from 'mallory', who is not pinned; nothing was done",
            story.hellos | {"mallory": mallory},
        ),
        "member_outside_the_cohort": refused(
            "Sorrel is pinned but no member of this run.",
            "sorrel is not in the cohort; nothing was done",
            story.hellos | {"sorrel": sorrel},
        ),
        "missing_member": refused(
            "A smaller cohort than was agreed.",
            "the hello of cedar is missing; nothing was done",
            missing,
        ),
        "other_run": other("run", 0, b"july"),
        "other_roster": other("roster_digest", 1, digest("roster")),
        "other_plan": other("plan_digest", 2, digest("other plan")),
        "other_threshold": other("threshold", 4, b"3"),
        "other_ring": other("ring_bits", 5, b"64"),
        "other_bound": other("max_abs", 6, b"1001"),
    }


def round_cases(story: Story) -> dict[str, dict[str, Any]]:
    """Every way for a round, its deals and its values to be wrong."""

    def opened(why: str, sentence: str, one: SumRound) -> dict[str, Any]:
        return case("deal", why, sentence, state=story.dealt, request=asking(one))

    def refused(why: str, sentence: str, request: bytes) -> dict[str, Any]:
        return case("mask", why, sentence, state=story.dealt, request=request)

    bundle = format_bundle(story.deals)
    forged = resigned(Kind.DEAL, story.deals[PEER], {}, signer_name="mallory")
    three = {name: story.deals[name] for name in COHORT[:3]}
    without_me = {name: data for name, data in story.deals.items() if name != ME}
    without_last = {name: data for name, data in story.deals.items() if name != LAST}
    happy = "Everything is in order."
    return {
        "happy_deal": case("deal", happy, "", state=story.settled, request=asking(ASKED)),
        "happy_mask": case("mask", happy, "", state=story.dealt, request=bundle),
        "identical_retry": case("mask", "The same again.", "", state=story.sent, request=bundle),
        "replayed_round": opened(
            "An old round is asked again.",
            "round 3 attempt 0 is over for birch; nothing was opened",
            dataclasses.replace(ASKED, round=3),
        ),
        "other_question": opened(
            "The same round again under another question.",
            "round 4 attempt 0 was opened by birch as another; nothing was opened",
            dataclasses.replace(ASKED, question_digest=digest("other question")),
        ),
        "too_few_deals": refused(
            "With three the threshold of four cannot be met.",
            "3 members dealt, at least 4 must; nothing was masked",
            format_bundle(three),
        ),
        "forged_deal": refused(
            "A deal under cedar's name that cedar did not sign.",
            "the deal of cedar is not signed by it; nothing was done",
            format_bundle(story.deals | {PEER: forged}),
        ),
        "deal_of_another_round": refused(
            "Cedar's deal of an earlier round.",
            "the deal of cedar is for another round; nothing was masked",
            story.deal_with(0, flipped),
        ),
        "deal_after_another_set_up": refused(
            "Cedar was shown other meetings.",
            "the deal of cedar follows another set-up; nothing was masked",
            story.deal_with(1, flipped),
        ),
        "own_deal_missing": refused(
            "Birch would mask what nobody can unmask.",
            "the deal of birch is not among the deals; nothing was masked",
            format_bundle(without_me),
        ),
        "unequal_pair": refused(
            "Cedar commits to a seed that birch does not share.",
            "cedar and birch do not share a seed; nothing was done",
            story.deal_with(3, flipped),
        ),
        "tampered_share": refused(
            "A bit of the shares for birch was changed.",
            "the shares of cedar for birch do not open; nothing was masked",
            story.deal_with(7, flipped),
        ),
        "share_of_another_recipient": refused(
            "Birch is given the shares that cedar sealed for hazel.",
            "the shares of cedar for birch do not open; nothing was masked",
            story.deal_with(7, lambda sealed: sealed[80:160] + sealed[:80] + sealed[160:]),
        ),
        "share_not_committed_to": refused(
            "Cedar dealt birch another share than it committed to.",
            "the share of cedar that birch holds is not the one dealt; it was not used",
            story.deal_with(4, flipped),
        ),
        "other_deals": case(
            "mask",
            "The values were sent; now masks for a smaller group are asked.",
            "birch masked its values for other deals; nothing was sent",
            state=story.sent,
            request=format_bundle(without_last),
        ),
    }


def survivor_cases(story: Story, dropped: Story) -> dict[str, dict[str, Any]]:
    """Every way for a set of survivors to be wrong."""

    def refused(why: str, sentence: str, request: bytes) -> dict[str, Any]:
        return case("confirm", why, sentence, state=story.sent, request=request)

    honest = story.survivors
    happy = "Everything is in order."
    return {
        "happy_confirm": case(
            "confirm", happy, "", state=dropped.sent, request=dropped.survivors.format()
        ),
        "peer_in_both_lists": refused(
            "Both secrets of cedar are asked for.",
            "cedar is said to be alive and dropped; nothing was signed",
            story.said(COHORT, [PEER]),
        ),
        "invented_survivor": refused(
            "Somebody survives who never dealt.",
            "the survivors and dropped are not those who dealt; nothing was signed",
            story.said((*COHORT, "sorrel")),
        ),
        "me_dropped": refused(
            "Birch sent its values and is to help uncover them.",
            "birch sent values and is called dropped; nothing was signed",
            story.said(COHORT[1:], [ME]),
        ),
        "small_group": refused(
            "The sum of three would be read.",
            "3 members survive, at least 4 must; nothing was signed",
            story.said(COHORT[:3], COHORT[3:]),
        ),
        "survivors_of_another_round": refused(
            "A set of an earlier round.",
            "the survivors are of another round; nothing was signed",
            dataclasses.replace(honest, round_digest=digest("round")).format(),
        ),
        "survivors_of_other_deals": refused(
            "The others masked for another group.",
            "the survivors masked for other deals; nothing was signed",
            dataclasses.replace(honest, deals_digest=digest("deals")).format(),
        ),
        "second_set": case(
            "confirm",
            "Birch signed that all survived; now rowan is said to have dropped.",
            "birch signed another set of survivors; nothing was sent",
            state=story.signed,
            request=story.said(COHORT[:4], [LAST]),
        ),
    }


def reveal_cases(story: Story, dropped: Story) -> dict[str, dict[str, Any]]:
    """Every way for signatures under the survivors to be wrong."""

    def refused(why: str, sentence: str, signed: Mapping[str, bytes]) -> dict[str, Any]:
        request = format_bundle(signed)
        return case("unmask", why, sentence, state=story.signed, request=request)

    happy = "Everything is in order."
    bundle = format_bundle(story.statements)
    fields = dataclasses.replace(story.survivors, alive=COHORT[:4], dropped=(LAST,)).fields
    split = sign_message(Kind.STATEMENT, PEER, fields, signer(PEER))
    forged = resigned(Kind.STATEMENT, story.statements[PEER], {}, signer_name="mallory")
    outside = sign_message(Kind.STATEMENT, LAST, dropped.survivors.fields, signer(LAST))
    first = story.statements[ME]
    return {
        "happy_unmask": case("unmask", happy, "", state=story.signed, request=bundle),
        "happy_unmask_of_a_dropped_member": case(
            "unmask",
            happy,
            "",
            state=dropped.signed,
            request=format_bundle(dropped.statements),
        ),
        "too_few_statements": refused(
            "Three of four needed have signed.",
            "3 members signed the survivors, at least 4 must; nothing was revealed",
            {name: story.statements[name] for name in COHORT[:3]},
        ),
        "split_sets": refused(
            "Cedar was told that rowan dropped.",
            "cedar signed another set of survivors than birch; nothing was revealed",
            story.statements | {PEER: split},
        ),
        "forged_statement": refused(
            "A signature that is not cedar's.",
            "the statement of cedar is not signed by it; nothing was done",
            story.statements | {PEER: forged},
        ),
        "statement_of_the_dropped": case(
            "unmask",
            "Rowan dropped and signs all the same.",
            "rowan is no survivor and signed; nothing was revealed",
            state=dropped.signed,
            request=format_bundle(dropped.statements | {LAST: outside}),
        ),
        "one_statement_four_times": case(
            "unmask",
            "One signature is to count as four.",
            "a bundle of statements must be sorted and hold each sender once; nothing was done",
            state=story.signed,
            request=pack(first, first, first, first),
        ),
        "unsigned_myself": case(
            "unmask",
            "Birch has not signed any set.",
            "birch has signed no set of survivors; nothing was revealed",
            state=story.sent,
            request=bundle,
        ),
    }


def cases() -> dict[str, dict[str, Any]]:
    """All vectors by the name of their fault."""
    story, dropped = Story(), Story(alive=COHORT[:4])
    return (
        meet_cases(story)
        | round_cases(story)
        | survivor_cases(story, dropped)
        | reveal_cases(story, dropped)
    )


def format_case(one: dict[str, Any]) -> str:
    """The text of one file."""
    return json.dumps(one, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for fault, one in cases().items():
        (FOLDER / f"{fault}.json").write_text(format_case(one))
