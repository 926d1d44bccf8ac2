"""The plan: the one document that everybody signs before any data is opened.

It fixes what is trained, for which purpose, at what privacy cost, with whom and until when.
A participant obeys the plan that it signed and nothing else, so its bytes are canonical: one
changed digit is another plan.
"""

import base64
import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from typing import TypeVar, get_type_hints

from consent import (
    CanonicalError,
    Identity,
    JsonValue,
    PublicIdentity,
    Purpose,
    SignatureError,
    format_canonical,
    parse_canonical,
)
from models.churn import ChurnLogistic
from models.recommendation import ItemGram
from models.sums import Query
from privacy import Budget, GaussianRelease, compose, epsilon_of

PlanRecipe = ChurnLogistic | ItemGram
Parsed = TypeVar("Parsed")

_VERSION = 1
_SIGNATURE_CONTEXT = "plan/v1"
_RECIPES: Mapping[str, type[ChurnLogistic] | type[ItemGram]] = {
    ChurnLogistic.KIND: ChurnLogistic,
    ItemGram.KIND: ItemGram,
}
# What runs on customers' rows or decides about them; the faces above may differ.
_GOVERNED_PACKAGES = ("consent", "privacy", "models", "participant")


class PlanError(ValueError):
    """A document is no valid plan, or not signed as it must be; nothing was run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run may do, in full.

    Attributes:
        name: For people, unique in the consortium; up to 100 printable characters.
        recipe: The model and every public constant of it.
        purpose: The purpose each used customer must have agreed to.
        budget: What one data subject with everything they ever did loses at most.
        members: Names of the participants that may take part, ascending.
        roster_digest: Hex SHA-256 of the pinned keys of the consortium.
        cohort_floor: Fewest brands in one sum; at least 3.
        colluders: Brands whose noise may be subtracted without harm; below the floor.
        attempts: Most attempts at one round; each is drawn and charged anew.
        ring_bits: Width of the masked integers, 32 or 64.
        recipients: Who receives the trained model.
        code_digest: Hex SHA-256 of the code that handles rows, from `code_digest()`.
        policies: Hex SHA-256 of each consent policy under which a member may take part,
            ascending; permits name the one in force.
        expires_at: After this nobody may run the plan, epoch milliseconds.
    """

    name: str
    recipe: PlanRecipe
    purpose: Purpose
    budget: Budget
    members: tuple[str, ...]
    roster_digest: str
    cohort_floor: int
    colluders: int
    attempts: int
    ring_bits: int
    recipients: tuple[str, ...]
    code_digest: str
    policies: tuple[str, ...]
    expires_at: int

    def __post_init__(self) -> None:
        if not 0 < len(self.name) <= 100 or not self.name.isprintable():
            raise PlanError(f"a plan's name must be 1 to 100 printable characters: {self.name!r}")
        if list(self.members) != sorted(set(self.members)):
            raise PlanError(f"members must be distinct and ascending, got {self.members}")
        if not 3 <= self.cohort_floor <= len(self.members):
            raise PlanError(
                f"cohort_floor must be 3 to {len(self.members)} members, got {self.cohort_floor}"
            )
        if not 0 <= self.colluders < self.cohort_floor - 1:
            raise PlanError(
                f"colluders must be 0 to cohort_floor - 2, got {self.colluders} of "
                f"{self.cohort_floor}"
            )
        if not self.policies or list(self.policies) != sorted(set(self.policies)):
            raise PlanError(f"policies must be distinct and ascending, got {self.policies}")
        if self.attempts < 1 or self.ring_bits not in {32, 64}:
            raise PlanError(
                "attempts must be at least 1 and ring_bits 32 or 64, "
                f"got {self.attempts} and {self.ring_bits}"
            )

    @property
    def digest(self) -> str:
        """Hex SHA-256 of the canonical bytes: the plan's identity."""
        return hashlib.sha256(self.format()).hexdigest()

    @property
    def queries(self) -> tuple[Query, ...]:
        """The sums of the plan; round r of the run is query r - 1."""
        return self.recipe.queries

    def releases(self) -> tuple[GaussianRelease, ...]:
        """What one successful attempt at every round costs."""
        return tuple(query.release(shares=len(self.members)) for query in self.queries)

    def epsilon(self) -> float:
        """Epsilon of the whole schedule at the budget's delta, computed from its noise."""
        cost = compose(self.releases())
        return epsilon_of(cost.mu, delta=self.budget.delta, slack_delta=cost.slack_delta)

    def verify_cost(self) -> None:
        """Refuse a plan whose noise does not keep the epsilon that it promises.

        Raises:
            PlanError: the schedule costs more than the budget, or cannot be priced.
        """
        try:
            epsilon = self.epsilon()
        except ValueError as error:
            raise PlanError(f"the plan has no price ({error}); nothing was approved") from error
        if epsilon > self.budget.epsilon:
            raise PlanError(
                f"the plan promises epsilon {self.budget.epsilon:g} but its noise gives "
                f"{epsilon:.6g} (delta {self.budget.delta:g}); nothing was approved"
            )

    def format(self) -> bytes:
        """Canonical bytes, the thing that is signed."""
        return format_canonical(
            {
                "v": _VERSION,
                "type": "plan",
                "name": self.name,
                "recipe": {"kind": self.recipe.KIND, **_format_fields(self.recipe)},
                "purpose": self.purpose.value,
                "unit": "one data subject with everything they ever did",
                "budget": _format_fields(self.budget),
                "members": list(self.members),
                "roster_digest": self.roster_digest,
                "cohort_floor": self.cohort_floor,
                "colluders": self.colluders,
                "attempts": self.attempts,
                "ring_bits": self.ring_bits,
                "recipients": list(self.recipients),
                "code_digest": self.code_digest,
                "policies": list(self.policies),
                "expires_at": self.expires_at,
            }
        )

    @classmethod
    def parse(cls, data: bytes) -> "Plan":
        """Read a plan; only the exact canonical bytes are one.

        Raises:
            PlanError: not canonical, an unknown or missing field, or a value out of range.
        """
        try:
            fields = _mapping(parse_canonical(data))
            recipe = _mapping(fields["recipe"])
            plan = cls(
                name=_text(fields["name"]),
                recipe=_parse_recipe(recipe),
                purpose=Purpose(_text(fields["purpose"])),
                budget=_parse_fields(Budget, _mapping(fields["budget"]), get_type_hints(Budget)),
                members=_texts(fields["members"]),
                roster_digest=_text(fields["roster_digest"]),
                cohort_floor=_integer(fields["cohort_floor"]),
                colluders=_integer(fields["colluders"]),
                attempts=_integer(fields["attempts"]),
                ring_bits=_integer(fields["ring_bits"]),
                recipients=_texts(fields["recipients"]),
                code_digest=_text(fields["code_digest"]),
                policies=_texts(fields["policies"]),
                expires_at=_integer(fields["expires_at"]),
            )
        except (CanonicalError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise PlanError(f"this is no plan ({error}); nothing was approved") from error
        if plan.format() != data:
            raise PlanError("the plan has fields that no plan has; nothing was approved")
        return plan


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedPlan:
    """A plan with the signatures it has so far.

    Attributes:
        plan: What is signed.
        signatures: Ed25519 signatures by member name.
    """

    plan: Plan
    signatures: Mapping[str, bytes]

    def signed_by(self, identity: Identity) -> "SignedPlan":
        """The same plan with one more signature."""
        signature = identity.sign(_SIGNATURE_CONTEXT, self.plan.format())
        return dataclasses.replace(self, signatures={**self.signatures, identity.name: signature})

    def verify(self, signers: Mapping[str, PublicIdentity]) -> None:
        """Demand a valid signature of each of `signers`, who must be members.

        Raises:
            PlanError: a signer is no member, did not sign, or signed another plan.
        """
        for name, public in signers.items():
            if name not in self.plan.members:
                raise PlanError(f"{name} is no member of plan {self.plan.name!r}")
            signature = self.signatures.get(name)
            if signature is None:
                raise PlanError(f"{name} has not approved plan {self.plan.name!r}")
            try:
                public.verify(_SIGNATURE_CONTEXT, self.plan.format(), signature)
            except SignatureError as error:
                raise PlanError(
                    f"the signature of {name} is not for plan {self.plan.name!r}"
                ) from error

    def format(self) -> bytes:
        """Canonical bytes for files and the wire."""
        # Pairs and not an object: canonical keys are ASCII, names are in any language.
        signatures: list[JsonValue] = [
            [name, base64.b64encode(signature).decode()]
            for name, signature in sorted(self.signatures.items())
        ]
        plan = base64.b64encode(self.plan.format()).decode()
        return format_canonical({"plan": plan, "signatures": signatures})

    @classmethod
    def parse(cls, data: bytes) -> "SignedPlan":
        """Read what `format` wrote.

        Raises:
            PlanError: the bytes are not that.
        """
        try:
            fields = _mapping(parse_canonical(data))
            plan = base64.b64decode(_text(fields["plan"]), validate=True)
            signatures = dict(map(_parse_signature, _items(fields["signatures"])))
        except (CanonicalError, KeyError, TypeError, ValueError) as error:
            raise PlanError(f"this is no signed plan ({error}); nothing was approved") from error
        signed = cls(plan=Plan.parse(plan), signatures=signatures)
        if signed.format() != data:
            raise PlanError("the signed plan is not as it is written; nothing was approved")
        return signed


@functools.cache
def code_digest() -> str:
    """Hex SHA-256 over the sources of every package that handles rows or decides about them.

    Read once, near the start: an update of the files under a running node changes nothing.
    """
    digest = hashlib.sha256()
    for package in _GOVERNED_PACKAGES:
        for path, data in sorted(_sources(resources.files(package), package)):
            digest.update(f"{path}\0{len(data)}\0".encode() + data)
    return digest.hexdigest()


def _sources(folder: Traversable, prefix: str) -> list[tuple[str, bytes]]:
    found = []
    for child in folder.iterdir():
        path = f"{prefix}/{child.name}"
        if child.is_dir():
            found += _sources(child, path)
        elif child.name.endswith(".py"):
            found.append((path, child.read_bytes()))
    return found


def _format_fields(value: PlanRecipe | Budget) -> dict[str, JsonValue]:
    """A frozen dataclass as JSON; floats become the shortest decimal that reads back."""
    result: dict[str, JsonValue] = {}
    for field in dataclasses.fields(value):
        item = getattr(value, field.name)
        if field.type is float:  # By declaration: Budget(epsilon=3) means 3.0.
            result[field.name] = repr(float(item))
        elif isinstance(item, tuple):
            result[field.name] = list(item)
        else:
            result[field.name] = item
    return result


def _parse_recipe(fields: dict[str, JsonValue]) -> PlanRecipe:
    kind = _RECIPES[_text(fields["kind"])]
    declared = {field.name for field in dataclasses.fields(kind)}
    hints = {name: hint for name, hint in get_type_hints(kind).items() if name in declared}
    make: Callable[..., PlanRecipe] = kind
    return _parse_fields(make, fields, hints)


def _parse_fields(
    kind: Callable[..., Parsed], fields: Mapping[str, JsonValue], hints: Mapping[str, object]
) -> Parsed:
    """Build a dataclass from JSON, each field by its declared type; none may be left out."""
    return kind(**{name: _parse_field(fields[name], hint) for name, hint in hints.items()})


def _parse_field(value: JsonValue, hint: object) -> int | float | str | tuple[int, ...]:
    if hint is float:
        return float(_text(value))
    if hint is int:
        return _integer(value)
    if hint is str:
        return _text(value)
    return tuple(_integer(item) for item in _items(value))


def _parse_signature(value: JsonValue) -> tuple[str, bytes]:
    name, signature = _items(value)
    return _text(name), base64.b64decode(_text(signature), validate=True)


def _items(value: JsonValue) -> list[JsonValue]:
    if not isinstance(value, list):
        raise TypeError(f"expected a list, found {type(value).__name__}")
    return value


def _mapping(value: JsonValue) -> dict[str, JsonValue]:
    if not isinstance(value, dict):
        raise TypeError(f"expected an object, found {type(value).__name__}")
    return dict(value)


def _text(value: JsonValue) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, found {type(value).__name__}")
    return value


def _texts(value: JsonValue) -> tuple[str, ...]:
    return tuple(_text(item) for item in _items(value))


def _integer(value: JsonValue) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"expected an integer, found {type(value).__name__}")
    return value
