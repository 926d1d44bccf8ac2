"""Write the plan vectors again: `python tests/vectors/plan/make.py`.

Each file is one case, named after its fault; `why` says it in words. Keys are fixed and public,
so they protect nothing. A case has a `step`: `plan` reads the document as a plan and checks its
price, `signed` reads it as a signed plan and demands the signatures of the pinned `signers`. It
has the `digest` of what was read, or the sentence of the refusal.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from consent import Identity, Purpose, format_canonical
from models.plan import Plan, SignedPlan
from models.recommendation import ItemGram
from privacy import Budget

FOLDER = Path(__file__).parent
MEMBERS = ("birch", "cedar", "maple", "优衣集团")

Change = Callable[[dict[str, Any]], object]


def identity(name: str, *, seed: str | None = None) -> Identity:
    """A key that everybody knows, on request of somebody else."""
    key = hashlib.sha256(f"identity key of {seed or name}".encode()).digest()
    return Identity(name, Ed25519PrivateKey.from_private_bytes(key))


def plan() -> Plan:
    """A plan with nothing wrong; every number is written out, so that no default moves it."""
    return Plan(
        name="What goes together, June",
        recipe=ItemGram(
            n_items=500,
            catalogue_digest=hashlib.sha256(b"catalogue").hexdigest(),
            as_of_day=15_000,
            catalogue_size=40,
            popularity_noise_multiplier=3.6,
            gram_noise_multiplier=1.51,
            half_life_days=90,
            ridge=5.0,
            popularity_weight=0.3,
            text_weight=1.0,
        ),
        purpose=Purpose.FEDERATED_TRAINING,
        budget=Budget(epsilon=3.0, delta=1e-5),
        members=MEMBERS,
        roster_digest=hashlib.sha256(b"roster").hexdigest(),
        cohort_floor=3,
        colluders=1,
        attempts=2,
        ring_bits=32,
        recipients=MEMBERS,
        code_digest=hashlib.sha256(b"code").hexdigest(),
        policies=(hashlib.sha256(b"policy").hexdigest(),),
        expires_at=1_795_293_098_800,
    )


def plan_case(why: str, document: bytes, error: str | None) -> dict[str, Any]:
    """A document that is read as a plan."""
    return {"why": why, "step": "plan", "document": document.decode(), "error": error}


def changed_case(why: str, change: Change, error: str) -> dict[str, Any]:
    """The good plan with one thing changed, in canonical bytes again."""
    fields = json.loads(plan().format())
    change(fields)
    return plan_case(why, format_canonical(fields), error)


def spelled_case(why: str, old: str, new: str, error: str) -> dict[str, Any]:
    """The good plan's bytes with one piece replaced."""
    document = plan().format().decode()
    if document.count(old) != 1:
        raise ValueError(f"the plan holds {old!r} {document.count(old)} times")
    return plan_case(why, document.replace(old, new).encode(), error)


def document_cases() -> dict[str, dict[str, Any]]:
    """Ways to be no plan at all, although the JSON is fine or nearly so."""
    no, end = "this is no plan (", "); nothing was approved"
    canonical = f"{no}text must be canonical JSON, this is another spelling of its value{end}"
    unreadable = f"{no}text must be canonical JSON, this cannot be read as JSON{end}"
    foreign = "the plan has fields that no plan has; nothing was approved"
    return {
        "unknown_field": changed_case(
            "a field that no plan has", lambda fields: fields.update(extra=1), foreign
        ),
        "unknown_recipe_field": changed_case(
            "a constant that the recipe does not have",
            lambda fields: fields["recipe"].update(seed=1),
            foreign,
        ),
        "unknown_budget_field": changed_case(
            "a third number of a guarantee",
            lambda fields: fields["budget"].update(mu="1.0"),
            foreign,
        ),
        "next_version": changed_case(
            "another version of the document", lambda fields: fields.update(v=2), foreign
        ),
        "other_type": changed_case(
            "another type of document", lambda fields: fields.update(type="note"), foreign
        ),
        "weaker_unit": changed_case(
            "privacy of a receipt line, not of a person",
            lambda fields: fields.update(unit="one receipt line"),
            foreign,
        ),
        "missing_field": changed_case(
            "no expiry", lambda fields: fields.pop("expires_at"), f"{no}'expires_at'{end}"
        ),
        "missing_recipe_field": changed_case(
            "a constant left to the reader's default",
            lambda fields: fields["recipe"].pop("ridge"),
            f"{no}'ridge'{end}",
        ),
        "unknown_recipe": changed_case(
            "a kind of model that nobody here has",
            lambda fields: fields["recipe"].update(kind="recommend.oracle"),
            f"{no}'recommend.oracle'{end}",
        ),
        "unknown_purpose": changed_case(
            "a purpose that nobody was asked about",
            lambda fields: fields.update(purpose="anything"),
            f"{no}'anything' is not a valid Purpose{end}",
        ),
        "float_as_number": spelled_case(
            "epsilon as a JSON number",
            '"epsilon":"3.0"',
            '"epsilon":3.0',
            f"{no}a number must be an integer; write fractions as a decimal string{end}",
        ),
        "float_as_integer": changed_case(
            "epsilon as a JSON integer",
            lambda fields: fields["budget"].update(epsilon=3),
            f"{no}expected text, found int{end}",
        ),
        "float_in_another_spelling": changed_case(
            "epsilon with a zero more",
            lambda fields: fields["budget"].update(epsilon="3.00"),
            foreign,
        ),
        "float_that_is_none": changed_case(
            "a weight that is no number",
            lambda fields: fields["recipe"].update(text_weight="nan"),
            f"{no}text_weight must be -1e+12 to 1e+12, got nan{end}",
        ),
        "integer_as_text": changed_case(
            "a floor in quotes",
            lambda fields: fields.update(cohort_floor="3"),
            f"{no}expected an integer, found str{end}",
        ),
        "integer_as_boolean": changed_case(
            "attempts: yes",
            lambda fields: fields.update(attempts=True),
            f"{no}expected an integer, found bool{end}",
        ),
        "members_as_text": changed_case(
            "one name in place of a list",
            lambda fields: fields.update(members="birch"),
            f"{no}expected a list, found str{end}",
        ),
        "budget_as_list": changed_case(
            "two numbers without names",
            lambda fields: fields.update(budget=["3.0", "1e-05"]),
            f"{no}expected an object, found list{end}",
        ),
        "with_a_space": spelled_case("pretty-printed", '"v":1', '"v": 1', canonical),
        "key_twice": spelled_case(
            "the later of two floors would count",
            '"cohort_floor":3',
            '"cohort_floor":2,"cohort_floor":3',
            f"{no}a key must occur once in an object{end}",
        ),
        "truncated": plan_case("half of it", plan().format()[:200], unreadable),
        "empty": plan_case("nothing", b"", unreadable),
        "list": plan_case("another shape", b"[]", f"{no}expected an object, found list{end}"),
    }


def value_cases() -> dict[str, dict[str, Any]]:
    """Well-formed plans that promise what cannot be."""
    no, end = "this is no plan (", "); nothing was approved"
    return {
        "lowered_noise": changed_case(
            "a tenth less noise than the promised epsilon needs",
            lambda fields: fields["recipe"].update(gram_noise_multiplier="1.36"),
            "the plan promises epsilon 3 but its noise gives 3.31947 (delta 1e-05); "
            "nothing was approved",
        ),
        "noise_below_the_grid": changed_case(
            "so little noise that it has no price",
            lambda fields: fields["recipe"].update(popularity_noise_multiplier="1e-06"),
            "the plan has no price (noise_std must be finite and at least 30 for discrete noise "
            "to be accounted as Gaussian, got 0.065536); nothing was approved",
        ),
        "negative_budget": changed_case(
            "epsilon below zero",
            lambda fields: fields["budget"].update(epsilon="-3.0"),
            f"{no}epsilon must be positive and finite, got -3.0{end}",
        ),
        "empty_name": changed_case(
            "nobody could speak of it",
            lambda fields: fields.update(name=""),
            f"{no}a plan's name must be 1 to 100 printable characters: ''{end}",
        ),
        "unsorted_members": changed_case(
            "the same members in another order",
            lambda fields: fields["members"].reverse(),
            f"{no}members must be distinct and ascending, got {tuple(reversed(MEMBERS))}{end}",
        ),
        "floor_of_two": changed_case(
            "the other of two brands could subtract its own part",
            lambda fields: fields.update(cohort_floor=2),
            f"{no}cohort_floor must be 3 to 4 members, got 2{end}",
        ),
        "everybody_else_colludes": changed_case(
            "no honest noise would be left but one's own",
            lambda fields: fields.update(colluders=2),
            f"{no}colluders must be 0 to cohort_floor - 2, got 2 of 3{end}",
        ),
        "odd_ring": changed_case(
            "a width that nobody masks in",
            lambda fields: fields.update(ring_bits=16),
            f"{no}attempts must be at least 1 and ring_bits 32 or 64, got 2 and 16{end}",
        ),
        "catalogue_past_all_items": changed_case(
            "more popular items than items",
            lambda fields: fields["recipe"].update(catalogue_size=501),
            f"{no}catalogue_size must be in 2..500, got 501{end}",
        ),
    }


def signed_case(why: str, document: bytes, error: str | None) -> dict[str, Any]:
    """A document that is read as a signed plan, with the keys that are pinned for its members."""
    signers = {name: identity(name).public.format() for name in MEMBERS}
    return {
        "why": why,
        "step": "signed",
        "document": document.decode(),
        "signers": signers,
        "error": error,
    }


def everybody_signed(document: Plan) -> SignedPlan:
    """The plan with the signatures of all of its members."""
    signed = SignedPlan(plan=document, signatures={})
    for name in MEMBERS:
        signed = signed.signed_by(identity(name))
    return signed


def signed_cases() -> dict[str, dict[str, Any]]:
    """Ways not to be approved."""
    good = everybody_signed(plan())
    other = everybody_signed(dataclasses.replace(plan(), expires_at=plan().expires_at + 1))
    forged = identity("maple", seed="stranger")
    without = {name: good.signatures[name] for name in MEMBERS if name != "maple"}
    not_for = "the signature of {} is not for plan 'What goes together, June'"
    as_written = "the signed plan is not as it is written; nothing was approved"

    def rewritten(change: Change) -> bytes:
        fields = json.loads(good.format())
        change(fields)
        return format_canonical(fields)

    def with_signatures(signatures: dict[str, bytes]) -> bytes:
        return SignedPlan(plan=plan(), signatures=signatures).format()

    def move_padding(fields: dict[str, Any]) -> None:
        pair = fields["signatures"][0]
        text = pair[1].removesuffix("==")
        pair[1] = text[:-1] + chr(ord(text[-1]) + 1) + "=="

    context = identity("maple").sign("contribution/v1", plan().format())
    return {
        "happy_signed": signed_case("signed by every member", good.format(), None),
        "stranger_signed_as_a_member": signed_case(
            "somebody else's key under a member's name",
            SignedPlan(plan=plan(), signatures=without).signed_by(forged).format(),
            not_for.format("maple"),
        ),
        "not_approved": signed_case(
            "one member has not signed",
            with_signatures(without),
            "maple has not approved plan 'What goes together, June'",
        ),
        "changed_digit": signed_case(
            "one more attempt than was signed",
            SignedPlan(
                plan=dataclasses.replace(plan(), attempts=3), signatures=good.signatures
            ).format(),
            not_for.format("birch"),
        ),
        "signature_of_another_plan": signed_case(
            "cedar's signature of the plan that expires later",
            with_signatures({**good.signatures, "cedar": other.signatures["cedar"]}),
            not_for.format("cedar"),
        ),
        "signature_of_another_member": signed_case(
            "cedar's signature under maple's name",
            with_signatures({**good.signatures, "maple": good.signatures["cedar"]}),
            not_for.format("maple"),
        ),
        "signature_for_another_use": signed_case(
            "maple signed these bytes, but as a contribution",
            with_signatures({**without, "maple": context}),
            not_for.format("maple"),
        ),
        "signature_empty": signed_case(
            "no bytes of a signature",
            with_signatures({**without, "maple": b""}),
            not_for.format("maple"),
        ),
        "signatures_unsorted": signed_case(
            "the same signatures in another order",
            rewritten(lambda fields: fields["signatures"].reverse()),
            as_written,
        ),
        "signature_twice": signed_case(
            "one member twice",
            rewritten(lambda fields: fields["signatures"].append(fields["signatures"][-1])),
            as_written,
        ),
        "signature_padding_bits": signed_case(
            "another base64 of the same signature", rewritten(move_padding), as_written
        ),
        "signed_with_an_unknown_field": signed_case(
            "a note beside the plan",
            rewritten(lambda fields: fields.update(note="hello")),
            as_written,
        ),
        "signed_nothing": signed_case(
            "signatures of nothing",
            rewritten(lambda fields: fields.pop("plan")),
            "this is no signed plan ('plan'); nothing was approved",
        ),
        "signatures_as_object": signed_case(
            "names as keys",
            rewritten(lambda fields: fields.update(signatures={})),
            "this is no signed plan (expected a list, found dict); nothing was approved",
        ),
    }


def cases() -> dict[str, dict[str, Any]]:
    """All vectors by the name of their fault."""
    happy = {"happy_path": plan_case("everything as it must be", plan().format(), None)}
    made = happy | document_cases() | value_cases() | signed_cases()
    for case in made.values():
        if case["error"] is None:
            case["digest"] = plan().digest
    return made


def format_case(case: dict[str, Any]) -> str:
    """The text of one file."""
    return json.dumps(case, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for fault, case in cases().items():
        (FOLDER / f"{fault}.json").write_text(format_case(case))
