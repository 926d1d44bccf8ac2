"""Write the secure-sum vectors again: `python tests/vectors/secure_sum/make.py`.

Each file is one case, named after its fault; `why` says it in words. Keys are
fixed and public, so they protect nothing. A case has a `step` (parse, mask or
total), what goes in, and either what comes out or the sentence of the refusal.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from privacy import AgreementKey, MemberCard, Party, Roster, Session, make_card, total

FOLDER = Path(__file__).parent
COHORT = ("birch", "cedar", "maple")
VALUES = {"birch": [3, -1, 2000], "cedar": [-5, 0, 7], "maple": [1, 1, -(2**20)]}
MAX_ABS = 2**24
SESSION: dict[str, Any] = {
    "run": "june",
    "round": 4,
    "attempt": 0,
    "cohort": list(COHORT),
    "terms_digest": hashlib.sha256(b"terms").hexdigest(),
    "dimension": 3,
    "ring_bits": 32,
}


def signer(key: Ed25519PrivateKey) -> Callable[[str, bytes], bytes]:
    """Sign as an identity does: the context first, then a zero byte."""
    return lambda context, message: key.sign(f"tillpact/{context}\0".encode() + message)


def secret(name: str, use: str) -> bytes:
    """A key that everybody knows."""
    return hashlib.sha256(f"{use} key of {name}".encode()).digest()


def agreement_key(name: str) -> AgreementKey:
    """The agreement key of a member in these vectors."""
    return AgreementKey(X25519PrivateKey.from_private_bytes(secret(name, "agreement")))


def card(
    name: str, *, agreement_of: str | None = None, identity_of: str | None = None
) -> MemberCard:
    """A well signed card, on request with somebody else's keys."""
    identity = Ed25519PrivateKey.from_private_bytes(secret(identity_of or name, "identity"))
    return make_card(
        name,
        signer(identity),
        identity=identity.public_key().public_bytes_raw(),
        agreement=agreement_key(agreement_of or name).public,
    )


def session(**changes: object) -> dict[str, Any]:
    """The session of the happy path with some fields changed, as JSON holds it."""
    return SESSION | changes


def read_session(fields: dict[str, Any]) -> Session:
    """A session from its JSON form."""
    return Session(
        **fields
        | {
            "cohort": tuple(fields["cohort"]),
            "terms_digest": bytes.fromhex(fields["terms_digest"]),
        }
    )


def contribution(name: str, fields: dict[str, Any], roster: Roster) -> str:
    """What a member sends in a session, in hex."""
    values = np.array(VALUES[name], dtype=np.int64)
    party = Party(name, agreement_key(name), roster)
    return party.mask(read_session(fields), values, max_abs=MAX_ABS).hex()


def parse_case(why: str, refused: str, cards: list[dict[str, str]]) -> dict[str, Any]:
    """A roster that arrives as text."""
    lines = (json.dumps(one, separators=(",", ":"), sort_keys=True) + "\n" for one in cards)
    return {"why": why, "step": "parse", "roster": "".join(lines), "refused": refused}


def mask_case(why: str, refused: str, *, roster: Roster, **changes: object) -> dict[str, Any]:
    """A session that arrives at the party `birch`, perhaps after an earlier one."""
    case = {
        "why": why,
        "step": "mask",
        "roster": roster.format().decode(),
        "party": {"name": "birch", "agreement": secret("birch", "agreement").hex(), "floor": 3},
        "before": [],
        "session": session(),
        "values": VALUES["birch"],
        "max_abs": MAX_ABS,
        "refused": refused,
    }
    return case | changes


def total_case(why: str, refused: str, sent: dict[str, str]) -> dict[str, Any]:
    """Contributions that arrive at whoever adds them up."""
    return {
        "why": why,
        "step": "total",
        "session": session(),
        "contributions": sent,
        "refused": refused,
    }


def fields_of(one: MemberCard) -> dict[str, str]:
    """A card as a roster's line holds it."""
    return {
        "agreement": one.agreement.hex(),
        "identity": one.identity.hex(),
        "name": one.name,
        "signature": one.signature.hex(),
    }


def parse_cases(cards: list[dict[str, str]]) -> dict[str, dict[str, Any]]:
    """Every way for a roster to be wrong."""
    swapped = cards[1] | {"agreement": agreement_key("mallory").public.hex()}
    renamed = cards[2] | {"name": "myrtle"}
    return {
        "swapped_key": parse_case(
            "A coordinator replaced cedar's agreement key by its own to read birch's masks.",
            "the card of cedar is not signed by its own key",
            [cards[0], swapped, cards[2]],
        ),
        "renamed_card": parse_case(
            "A card is shown under a name that its owner did not sign.",
            "the card of myrtle is not signed by its own key",
            [cards[0], cards[1], renamed],
        ),
        "same_identity_twice": parse_case(
            "One member enrolled under two names to count twice towards the floor.",
            "two cards of the roster have the same identity",
            [cards[0], cards[1], fields_of(card("clone", identity_of="cedar"))],
        ),
        "unsorted_roster": parse_case(
            "The same cards in another order would give another digest.",
            "the roster cannot be read; it is not in the canonical form",
            [cards[1], cards[0], cards[2]],
        ),
    }


def mask_cases(roster: Roster) -> dict[str, dict[str, Any]]:
    """Every way for a session to be refused by a party."""
    before = [{"session": session(), "values": VALUES["birch"]}]
    answered = (
        "run june round 4 attempt 0 was answered with another cohort, other terms "
        "or other values; nothing was masked"
    )
    four = ["aspen", *COHORT]
    return {
        "happy_mask": mask_case("Everything is in order.", "", roster=roster)
        | {"contribution": contribution("birch", session(), roster)},
        "identical_retry": mask_case("The same again.", "", roster=roster, before=before)
        | {"contribution": contribution("birch", session(), roster)},
        "invented_member": mask_case(
            "The coordinator adds a member nobody enrolled, whose masks it knows.",
            "mallory is not pinned in the roster; nothing was masked",
            roster=roster,
            session=session(cohort=["birch", "cedar", "mallory"]),
        ),
        "me_absent": mask_case(
            "The cohort does not name the party that is asked.",
            "birch is not in the cohort; nothing was masked",
            roster=roster,
            session=session(cohort=["aspen", "cedar", "maple"]),
        ),
        "too_small_a_group": mask_case(
            "Of two, each can subtract its own value and read the other's.",
            "the cohort has 2 members, the floor is 3; nothing was masked",
            roster=roster,
            session=session(cohort=["birch", "cedar"]),
        ),
        "below_own_floor": mask_case(
            "The party asked for at least four and three are offered.",
            "the cohort has 3 members, the floor is 4; nothing was masked",
            roster=roster,
            party={"name": "birch", "agreement": secret("birch", "agreement").hex(), "floor": 4},
        ),
        "replayed_round_with_another_cohort": mask_case(
            "The difference of two sums over different cohorts is one member's value.",
            answered,
            roster=roster,
            before=before,
            session=session(cohort=four),
        ),
        "other_terms": mask_case(
            "The same round again under terms that the party has not answered.",
            answered,
            roster=roster,
            before=before,
            session=session(terms_digest=hashlib.sha256(b"other terms").hexdigest()),
        ),
        "other_values": mask_case(
            "The same masks over other values would reveal the difference.",
            answered,
            roster=roster,
            before=before,
            values=[4, -1, 2000],
        ),
        "wrong_dimension": mask_case(
            "The values are longer than the session says.",
            "values must have shape (3,), got (4,); nothing was masked",
            roster=roster,
            values=[3, -1, 2000, 0],
        ),
        "bound_that_could_wrap": mask_case(
            "Three times this bound does not fit the ring.",
            "max_abs must be in [1, 715827882] so that the sum cannot wrap, got 1073741824; "
            "nothing was masked",
            roster=roster,
            max_abs=2**30,
        ),
        "value_past_the_bound": mask_case(
            "One value is larger than was agreed.",
            "a value is larger than max_abs 1999; nothing was masked",
            roster=roster,
            max_abs=1999,
        ),
    }


def total_cases(roster: Roster, larger: Roster) -> dict[str, dict[str, Any]]:
    """Every way for contributions not to add up."""
    sent = {name: contribution(name, session(), roster) for name in COHORT}
    missing = {name: data for name, data in sent.items() if name != "maple"}
    other = contribution("cedar", session(round=5), roster)
    elsewhere = contribution("cedar", session(), larger)
    summed = total(read_session(session()), {n: bytes.fromhex(d) for n, d in sent.items()})
    return {
        "happy_total": total_case("Everything is in order.", "", sent) | {"total": summed.tolist()},
        "missing_member": total_case(
            "One contribution never came, so its masks do not cancel.",
            "the contribution of maple is missing; nothing was summed",
            missing,
        ),
        "uninvited_member": total_case(
            "Somebody outside the cohort sent something.",
            "aspen is not in the cohort; nothing was summed",
            sent | {"aspen": sent["birch"]},
        ),
        "truncated_contribution": total_case(
            "The last byte was lost.",
            "the contribution of cedar must have 92 bytes, got 91; nothing was summed",
            sent | {"cedar": sent["cedar"][:-2]},
        ),
        "unreadable_contribution": total_case(
            "The bytes are something else altogether.",
            "the contribution of cedar cannot be read; nothing was summed",
            sent | {"cedar": "00" * 92},
        ),
        "contribution_of_another_session": total_case(
            "Cedar's answer to round 5 is offered in round 4.",
            "the contribution of cedar is for another session; nothing was summed",
            sent | {"cedar": other},
        ),
        "contribution_under_another_roster": total_case(
            "Cedar pins a roster that the others do not.",
            "the contributions were masked under different rosters; nothing was summed",
            sent | {"cedar": elsewhere},
        ),
    }


def cases() -> dict[str, dict[str, Any]]:
    """All vectors by the name of their fault."""
    roster = Roster([card(name) for name in ("aspen", *COHORT)])
    larger = Roster([card(name) for name in ("alder", "aspen", *COHORT)])
    trio = [fields_of(card(name)) for name in COHORT]
    return parse_cases(trio) | mask_cases(roster) | total_cases(roster, larger)


def format_case(case: dict[str, Any]) -> str:
    """The text of one file."""
    return json.dumps(case, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for fault, case in cases().items():
        (FOLDER / f"{fault}.json").write_text(format_case(case))
