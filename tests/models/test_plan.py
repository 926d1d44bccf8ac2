import contextlib
import dataclasses
import hashlib
import json
import math
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consent import Identity, PublicIdentity, Purpose, format_canonical
from models.churn import ChurnLogistic
from models.plan import Plan, PlanError, SignedPlan, code_digest
from models.recommendation import ItemGram
from models.sums import Query
from privacy import Budget, compose, epsilon_of

FOLDER = Path(__file__).parents[1] / "vectors" / "plan"
VECTORS = sorted(FOLDER.glob("*.json"))
NAMES = ("birch", "cedar", "maple", "oak", "优衣集团")
KEYS = {name: Identity.generate(name) for name in NAMES}
PUBLIC = {name: key.public for name, key in KEYS.items()}
BUDGET = Budget(epsilon=3.0, delta=1e-5)

numbers = st.floats(1e-6, 1e6)
digests = st.text("0123456789abcdef", max_size=64)
titles = st.text(
    st.characters(categories=["L", "N", "P", "Zs"], max_codepoint=0x2000), min_size=1, max_size=100
).filter(lambda text: text.isprintable() and text.isascii())
churn_recipes = st.builds(
    ChurnLogistic,
    n_features=st.integers(1, 100),
    snapshot_days=st.lists(st.integers(0, 30_000), max_size=5).map(tuple),
    horizon_days=st.integers(1, 400),
    expected_customers=st.integers(1, 10**6),
    second_moment_noise_multiplier=numbers,
    gradient_noise_multiplier=numbers,
    gradient_rounds=st.integers(1, 30),
    momentum=st.floats(0, 0.9),
    ridge=numbers,
    gradient_clip=st.floats(1e-6, 1e3),
    row_norm=st.floats(1e-6, 64),
)
item_recipes = st.builds(
    ItemGram,
    n_items=st.integers(100, 10**6),
    catalogue_digest=digests,
    as_of_day=st.integers(0, 30_000),
    catalogue_size=st.integers(2, 100),
    popularity_noise_multiplier=numbers,
    gram_noise_multiplier=numbers,
    popularity_weight=st.floats(-10, 10),
)
plans = st.builds(
    Plan,
    name=titles,
    recipe=st.one_of(churn_recipes, item_recipes),
    purpose=st.sampled_from(Purpose),
    budget=st.builds(
        Budget, epsilon=numbers, delta=st.floats(0, 1, exclude_min=True, exclude_max=True)
    ),
    members=st.lists(st.sampled_from(NAMES), unique=True, min_size=3).map(
        lambda names: tuple(sorted(names))
    ),
    roster_digest=digests,
    cohort_floor=st.just(3),
    colluders=st.integers(0, 1),
    attempts=st.integers(1, 10),
    ring_bits=st.sampled_from([32, 64]),
    recipients=st.lists(st.sampled_from(NAMES)).map(tuple),
    code_digest=digests,
    policies=digests.map(lambda digest: (digest,)),
    expires_at=st.integers(-(2**53) + 1, 2**53 - 1),
)


def churn_plan(**changes: Any) -> Plan:  # noqa: ANN401 - fields are of several types
    recipe = ChurnLogistic.for_budget(
        BUDGET,
        n_features=36,
        snapshot_days=(14_000, 14_090),
        horizon_days=90,
        expected_customers=5000,
        members=4,
    )
    fields: dict[str, Any] = {
        "name": "Who leaves",
        "recipe": recipe,
        "purpose": Purpose.FEDERATED_TRAINING,
        "budget": BUDGET,
        "members": NAMES[:4],
        "roster_digest": "0" * 64,
        "cohort_floor": 3,
        "colluders": 1,
        "attempts": 1,
        "ring_bits": 32,
        "recipients": NAMES[:4],
        "code_digest": "0" * 64,
        "policies": ("0" * 64,),
        "expires_at": 1_795_293_098_800,
    }
    return Plan(**fields | changes)


def signed(plan: Plan) -> SignedPlan:
    result = SignedPlan(plan=plan, signatures={})
    for name in plan.members:
        result = result.signed_by(KEYS[name])
    return result


def pinned(*names: str) -> dict[str, PublicIdentity]:
    return {name: PUBLIC[name] for name in names}


def read(case: dict[str, Any]) -> Plan:
    """What a node does with a document before it believes it."""
    data = case["document"].encode()
    if case["step"] == "plan":
        plan = Plan.parse(data)
        plan.verify_cost()
        return plan
    approved = SignedPlan.parse(data)
    signers = {name: PublicIdentity.parse(key) for name, key in case["signers"].items()}
    approved.verify(signers)
    return approved.plan


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_plan_vectors(path: Path) -> None:
    """Each file is one case, named after its fault; `why` says it in words."""
    case = json.loads(path.read_text())

    if case["error"] is None:
        plan = read(case)
        assert plan.digest == case["digest"]
    else:
        with pytest.raises(PlanError) as refusal:
            read(case)
        assert str(refusal.value) == case["error"], case["why"]


def test_the_vectors_are_what_the_script_writes() -> None:
    script = runpy.run_path(str(FOLDER / "make.py"))
    made = {fault: script["format_case"](case) for fault, case in script["cases"]().items()}

    assert made == {path.stem: path.read_text() for path in VECTORS}


@given(plans)
@settings(max_examples=100)
def test_a_plan_reads_back_as_it_was(plan: Plan) -> None:
    again = Plan.parse(plan.format())

    assert again == plan
    assert again.format() == plan.format()
    assert again.digest == plan.digest


@given(plans)
@settings(max_examples=20)
def test_a_signed_plan_reads_back_with_its_signatures(plan: Plan) -> None:
    approved = signed(plan)

    again = SignedPlan.parse(approved.format())

    assert again == approved
    again.verify(pinned(*plan.members))


def test_numbers_are_written_by_what_they_are_declared_as() -> None:
    """Budget(epsilon=3) means 3.0, and NumPy's floats are floats."""
    plain = churn_plan()
    recipe = dataclasses.replace(plain.recipe, ridge=np.float64(plain.recipe.ridge))

    other = churn_plan(budget=Budget(epsilon=3, delta=1e-5), recipe=recipe)

    assert other.format() == plain.format()
    assert Plan.parse(other.format()) == plain


@given(place=st.integers(0, 10**6), change=st.integers(1, 255))
@settings(max_examples=300)
def test_a_plan_with_one_changed_byte_is_no_plan_or_another_one(place: int, change: int) -> None:
    approved = signed(churn_plan())
    data = bytearray(approved.plan.format())
    data[place % len(data)] ^= change

    try:
        other = Plan.parse(bytes(data))
    except PlanError:
        return
    assert other.digest != approved.plan.digest
    assert other != approved.plan
    moved = SignedPlan(plan=other, signatures=approved.signatures)
    for name in set(other.members) & set(NAMES):
        with pytest.raises(PlanError):
            moved.verify(pinned(name))


def test_every_digit_of_a_plan_that_is_changed_makes_the_signatures_void() -> None:
    """Digits are what somebody would change: noise, rounds, epsilon, floors, digests."""
    approved = signed(churn_plan())
    data = approved.plan.format()
    survived = 0
    for place in [place for place, byte in enumerate(data) if chr(byte).isdigit()]:
        digit = str((int(chr(data[place])) + 1) % 10).encode()
        try:
            other = Plan.parse(data[:place] + digit + data[place + 1 :])
        except PlanError:
            continue
        survived += 1
        with pytest.raises(PlanError, match="the signature of birch is not for plan 'Who leaves'"):
            SignedPlan(plan=other, signatures=approved.signatures).verify(pinned("birch"))

    assert survived > 150


@given(place=st.integers(0, 10**6), change=st.integers(1, 255))
@settings(max_examples=200)
def test_a_signed_plan_with_one_changed_byte_is_refused(place: int, change: int) -> None:
    approved = signed(churn_plan())
    data = bytearray(approved.format())
    data[place % len(data)] ^= change

    with pytest.raises(PlanError):
        SignedPlan.parse(bytes(data)).verify(pinned(*NAMES[:4]))


documents = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**53) + 1, 2**53 - 1), st.text("ab10.e")),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text("ab"), inner, max_size=3)
    ),
    max_leaves=5,
)


@given(st.one_of(st.binary(max_size=60), documents.map(format_canonical)))
@settings(max_examples=200)
def test_garbage_raises_only_a_plan_error(data: bytes) -> None:
    for parse in (Plan.parse, SignedPlan.parse):
        with pytest.raises(PlanError):
            parse(data)


@given(field=st.integers(0, 100), value=documents)
@settings(max_examples=300)
def test_any_other_value_in_any_field_is_refused_or_another_plan(field: int, value: Any) -> None:  # noqa: ANN401
    plan = churn_plan()
    fields = json.loads(plan.format())
    parts = [fields, fields["recipe"], fields["budget"]]
    places = [(part, name) for part in parts for name in part]
    part, name = places[field % len(places)]
    part[name] = value
    data = format_canonical(fields)

    try:
        other = Plan.parse(data)
    except PlanError:
        return
    assert (other == plan) == (data == plan.format())
    with contextlib.suppress(PlanError):
        other.verify_cost()


def test_a_plan_costs_what_its_queries_cost_together() -> None:
    plan = churn_plan()

    cost = compose(query.release(shares=4) for query in plan.queries)

    assert plan.queries == plan.recipe.queries
    assert plan.releases() == tuple(query.release(shares=4) for query in plan.queries)
    assert plan.epsilon() == epsilon_of(cost.mu, delta=1e-5, slack_delta=cost.slack_delta)
    assert 2.999 < plan.epsilon() <= 3.0
    plan.verify_cost()


@pytest.mark.parametrize("field", ["second_moment_noise_multiplier", "gradient_noise_multiplier"])
@pytest.mark.parametrize("share", [0.999999, 0.9, 0.1])
def test_a_plan_whose_noise_was_lowered_is_not_approved(field: str, share: float) -> None:
    plan = churn_plan()
    recipe = dataclasses.replace(plan.recipe, **{field: share * getattr(plan.recipe, field)})

    with pytest.raises(
        PlanError, match=r"promises epsilon 3 but its noise gives .*; nothing was approved"
    ):
        churn_plan(recipe=recipe).verify_cost()


@pytest.mark.parametrize(
    "change", [{"gradient_rounds": 9}, {"gradient_clip": 1e-9}, {"row_norm": 1e-9}]
)
def test_more_rounds_or_noise_off_the_grid_are_not_approved(change: dict[str, Any]) -> None:
    recipe = dataclasses.replace(churn_plan().recipe, **change)

    with pytest.raises(PlanError, match="nothing was approved"):
        churn_plan(recipe=recipe).verify_cost()


def test_the_default_recipe_is_affordable_for_a_large_consortium() -> None:
    """The sampler's slack grows with brands and catalogue, and is paid from the budget."""
    members = tuple(f"brand-{number:02d}" for number in range(50))
    recipe = ItemGram.for_budget(
        BUDGET, n_items=10_000, catalogue_digest="0", as_of_day=1, expected_customers=100_000
    )

    plan = churn_plan(recipe=recipe, members=members)

    assert recipe.catalogue_size == 1933
    assert 2.99 < plan.epsilon() <= 3.0
    plan.verify_cost()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": ""}, "a plan's name must be 1 to 100 printable characters: ''"),
        ({"name": "x" * 101}, "a plan's name must be 1 to 100 printable characters: 'xxx"),
        ({"name": "two\nlines"}, r"a plan's name must be 1 to 100 printable characters: 'two"),
        ({"members": ("b", "a", "c")}, "members must be distinct and ascending, got"),
        ({"members": ("a", "a", "c")}, "members must be distinct and ascending, got"),
        ({"members": ("a", "b")}, "cohort_floor must be 3 to 2 members, got 3"),
        ({"cohort_floor": 5}, "cohort_floor must be 3 to 4 members, got 5"),
        ({"colluders": -1}, "colluders must be 0 to cohort_floor - 2, got -1 of 3"),
        ({"colluders": 2}, "colluders must be 0 to cohort_floor - 2, got 2 of 3"),
        ({"attempts": 0}, "attempts must be at least 1 and ring_bits 32 or 64, got 0 and 32"),
        ({"ring_bits": 33}, "attempts must be at least 1 and ring_bits 32 or 64, got 1 and 33"),
    ],
)
def test_a_plan_that_cannot_be_kept_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        churn_plan(**changes)


def test_one_signature_more_leaves_the_others() -> None:
    first = SignedPlan(plan=churn_plan(), signatures={}).signed_by(KEYS["birch"])

    second = first.signed_by(KEYS["maple"])

    assert list(first.signatures) == ["birch"]
    assert list(second.signatures) == ["birch", "maple"]
    second.verify(pinned("birch", "maple"))


def test_a_member_who_has_not_signed_has_not_approved() -> None:
    partly = SignedPlan(plan=churn_plan(), signatures={}).signed_by(KEYS["birch"])

    with pytest.raises(PlanError, match=r"^cedar has not approved plan 'Who leaves'$"):
        partly.verify(pinned("birch", "cedar"))


def test_a_signer_who_is_no_member_is_refused_although_the_signature_is_good() -> None:
    approved = signed(churn_plan()).signed_by(KEYS["优衣集团"])

    with pytest.raises(PlanError, match=r"^优衣集团 is no member of plan 'Who leaves'$"):
        approved.verify(pinned("优衣集团"))


def test_a_stranger_with_a_members_name_is_refused() -> None:
    forged = signed(churn_plan()).signed_by(Identity.generate("cedar"))

    with pytest.raises(PlanError, match=r"^the signature of cedar is not for plan 'Who leaves'$"):
        forged.verify(pinned("cedar"))


def test_signatures_swapped_between_two_plans_are_refused() -> None:
    one, other = signed(churn_plan()), signed(churn_plan(name="Who stays"))
    swapped = SignedPlan(plan=one.plan, signatures=other.signatures)

    with pytest.raises(PlanError, match=r"^the signature of birch is not for plan 'Who leaves'$"):
        swapped.verify(pinned("birch"))
    one.verify(pinned(*NAMES[:4]))


def test_signatures_swapped_between_two_members_are_refused() -> None:
    good = signed(churn_plan()).signatures
    swapped = {**good, "birch": good["cedar"], "cedar": good["birch"]}

    with pytest.raises(PlanError, match="the signature of birch is not for plan"):
        SignedPlan(plan=churn_plan(), signatures=swapped).verify(pinned("birch"))


def test_a_signed_document_around_a_bad_plan_is_refused() -> None:
    with pytest.raises(PlanError, match="this is no signed plan"):
        SignedPlan.parse(format_canonical({"plan": "not base64!", "signatures": []}))
    with pytest.raises(PlanError, match="this is no plan"):
        SignedPlan.parse(format_canonical({"plan": "e30=", "signatures": []}))


def test_the_code_digest_is_of_every_governed_source() -> None:
    """The same sources hashed another way: names and lengths first, then the bytes."""
    root = Path(__file__).parents[2]
    governed = ("consent", "privacy", "models", "participant")
    expected = hashlib.sha256()
    for package in governed:
        for path in sorted((root / package).rglob("*.py"), key=lambda path: path.as_posix()):
            name = path.relative_to(root).as_posix()
            expected.update(f"{name}\0{path.stat().st_size}\0".encode() + path.read_bytes())

    assert code_digest() == expected.hexdigest()


def test_every_round_has_its_query() -> None:
    queries = churn_plan().queries

    assert len(queries) == 9
    assert all(isinstance(query, Query) for query in queries)
    assert all(math.isfinite(query.total_noise_std) for query in queries)
