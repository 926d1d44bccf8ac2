"""Own the ladder: for which purposes a person can be asked, and what each one means.

A tier is a preset that a screen offers. It is never a permission: only purposes are stored,
and a preset never holds a purpose that the law wants asked for separately.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from consent.canonical import JsonValue, format_canonical


class Purpose(StrEnum):
    """Why a person's data is used; each is given, refused and withdrawn on its own."""

    SERVICE_STATISTICS = "service_statistics"
    AGGREGATE_BENCHMARK = "aggregate_benchmark"
    CONTACT = "contact"
    RECOMMENDATION = "recommendation"
    CHURN_SCORING = "churn_scoring"
    AUTOMATED_MARKETING = "automated_marketing"
    FEDERATED_TRAINING = "federated_training"
    LOOKALIKE = "lookalike"
    AUDIENCE_OVERLAP = "audience_overlap"
    THIRD_PARTY_SHARING = "third_party_sharing"
    CROSS_BORDER = "cross_border"
    SENSITIVE = "sensitive"

    @property
    def bit(self) -> int:
        """Return the column of this purpose in a stored mask; it never changes."""
        return _BITS[self]


_BITS = {purpose: bit for bit, purpose in enumerate(Purpose)}


class Tier(StrEnum):
    """A preset over purposes, each tier with everything of the one before."""

    BASIC = "basic"
    STANDARD = "standard"
    ADVANCED = "advanced"


class Profile(StrEnum):
    """The law that a node follows."""

    EU_GDPR = "eu-gdpr"
    CN_PIPL = "cn-pipl"


@dataclass(frozen=True, slots=True, kw_only=True)
class PurposeTerms:
    """What a person is told before they choose.

    Attributes:
        description: One plain sentence for the person.
        tier: Lowest preset that offers the purpose; None when no preset ever does.
        data: Categories of data that are used.
        recipients: Who gets anything derived from it.
        separate: Profiles in which it needs an act of its own.
        prerequisites: Purposes without which it has no effect.
    """

    description: str
    tier: Tier | None
    data: tuple[str, ...]
    recipients: tuple[str, ...]
    separate: frozenset[Profile] = frozenset()
    prerequisites: frozenset[Purpose] = frozenset()


_EVERYWHERE = frozenset(Profile)

TERMS: Mapping[Purpose, PurposeTerms] = MappingProxyType(
    {
        Purpose.SERVICE_STATISTICS: PurposeTerms(
            description="We count purchases to run our shops; no figure is about you alone.",
            tier=Tier.BASIC,
            data=("purchases", "membership"),
            recipients=("this brand",),
        ),
        Purpose.AGGREGATE_BENCHMARK: PurposeTerms(
            description="Our totals, with noise added, are compared with those of other brands.",
            tier=Tier.BASIC,
            data=("purchases in total",),
            recipients=("the coordinator, as noisy sums",),
        ),
        Purpose.CONTACT: PurposeTerms(
            description="We write to you about your orders and the newsletters you chose.",
            tier=Tier.BASIC,
            data=("contact",),
            recipients=("this brand",),
        ),
        Purpose.RECOMMENDATION: PurposeTerms(
            description="We suggest products from what you bought and looked at with us.",
            tier=Tier.STANDARD,
            data=("purchases", "browsing", "responses"),
            recipients=("this brand",),
        ),
        Purpose.CHURN_SCORING: PurposeTerms(
            description="We estimate whether you may stop shopping with us; prices never depend "
            "on it.",
            tier=Tier.STANDARD,
            data=("purchases", "browsing", "service history"),
            recipients=("this brand",),
        ),
        Purpose.AUTOMATED_MARKETING: PurposeTerms(
            description="A computer decides which offers you get; you can object at any time.",
            tier=Tier.STANDARD,
            data=("scores",),
            recipients=("this brand", "the processor that sends messages"),
            prerequisites=frozenset({Purpose.CONTACT}),
        ),
        Purpose.FEDERATED_TRAINING: PurposeTerms(
            description="Your purchases help to train a model together with other brands; they "
            "stay here and only noisy sums leave.",
            tier=Tier.ADVANCED,
            data=("purchases", "browsing", "service history"),
            recipients=("the coordinator, as masked noisy sums", "the brands of the federation"),
            separate=frozenset({Profile.CN_PIPL}),
        ),
        Purpose.LOOKALIKE: PurposeTerms(
            description="The joint model looks for customers of other brands who are like you.",
            tier=Tier.ADVANCED,
            data=("model output",),
            recipients=("named brands",),
            separate=_EVERYWHERE,
            prerequisites=frozenset({Purpose.FEDERATED_TRAINING}),
        ),
        Purpose.AUDIENCE_OVERLAP: PurposeTerms(
            description="We count how many customers we share with one named partner.",
            tier=None,
            data=("hashed contact",),
            recipients=("one named partner, as a count",),
            separate=_EVERYWHERE,
        ),
        Purpose.THIRD_PARTY_SHARING: PurposeTerms(
            description="We give the listed fields about you to one named partner.",
            tier=None,
            data=("listed fields",),
            recipients=("one named partner",),
            separate=_EVERYWHERE,
        ),
        Purpose.CROSS_BORDER: PurposeTerms(
            description="The listed data about you is sent to a named entity in another country.",
            tier=None,
            data=("listed fields", "model updates"),
            recipients=("one named entity abroad",),
            separate=_EVERYWHERE,
        ),
        Purpose.SENSITIVE: PurposeTerms(
            description="We use a listed sensitive category, for the reason we tell you with it.",
            tier=None,
            data=("listed sensitive categories",),
            recipients=("this brand",),
            separate=_EVERYWHERE,
        ),
    }
)


def is_separate(purpose: Purpose, *, profile: Profile) -> bool:
    """Tell whether a purpose needs an act of its own under a profile."""
    return profile in TERMS[purpose].separate


def preset(tier: Tier, *, profile: Profile) -> frozenset[Purpose]:
    """Return the purposes that choosing a tier shows switched on, never a separate one."""
    tiers = list(Tier)
    offered = tiers[: tiers.index(tier) + 1]
    return frozenset(
        purpose
        for purpose, terms in TERMS.items()
        if terms.tier in offered and not is_separate(purpose, profile=profile)
    )


def policy_digest(profile: Profile) -> str:
    """Return the hex SHA-256 of the purposes and rules of one profile, as permits name them."""
    terms: list[JsonValue] = [
        {
            "purpose": purpose.value,
            "tier": None if known.tier is None else known.tier.value,
            "data": list(known.data),
            "recipients": list(known.recipients),
            "separate": is_separate(purpose, profile=profile),
            "prerequisites": [*sorted(needed.value for needed in known.prerequisites)],
        }
        for purpose, known in sorted(TERMS.items())
    ]
    document = format_canonical({"profile": profile.value, "terms": terms})
    return hashlib.sha256(document).hexdigest()
