"""Own the words of the ladder: purposes, tiers, legal bases, and what a profile says of each.

A tier is a preset that a screen offers. It is never a permission: only purposes are stored,
and a preset never holds a purpose that the law wants asked for separately. What the profiles
say stands in files that counsel edits; `purpose` reads them.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

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


class Basis(StrEnum):
    """Why the law lets a node use data.

    With consent a person must have said yes. With a legitimate interest a person must have
    been told and must not have objected. A contract is for what an order needs, and stands
    outside the ladder.
    """

    CONSENT = "consent"
    LEGITIMATE_INTEREST = "legitimate_interest"
    CONTRACT = "contract"


class AgeBand(StrEnum):
    """How old a person is, as coarse as the laws allow: every age limit is a boundary."""

    UNDER_13 = "0-12"
    AGE_13 = "13"
    AGE_14 = "14"
    AGE_15 = "15"
    AGE_16_17 = "16-17"
    ADULT = "18+"

    @property
    def youngest(self) -> int:
        """Return the lowest age of the band, in years."""
        return _YOUNGEST[self]


_YOUNGEST = dict(zip(AgeBand, (0, 13, 14, 15, 16, 18), strict=True))


class ClockUnit(StrEnum):
    """What an answer clock counts."""

    HOURS = "hours"
    DAYS = "days"
    WORKING_DAYS = "working_days"
    MONTHS = "months"


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """A time as a law counts it; 0 hours means at once.

    Attributes:
        count: How many; at least 0.
        unit: Of what.
    """

    count: int
    unit: ClockUnit


@dataclass(frozen=True, slots=True, kw_only=True)
class Clocks:
    """How fast a node must act.

    Attributes:
        answer: Answer to a person who uses a right.
        extension: How much longer a complex answer may take, when the person is told.
        breach: Report of a breach to the authority.
    """

    answer: Period
    extension: Period
    breach: Period


@dataclass(frozen=True, slots=True, kw_only=True)
class EssentialTerms:
    """What an order needs: it rests on the contract, and no choice on the ladder touches it.

    Attributes:
        description: One plain sentence by language tag.
        basis: Always `Basis.CONTRACT`.
        data: Categories of data that are used.
        recipients: Who gets anything derived from it.
        retention_days: Days until it is deleted.
        articles: Where the law says so.
    """

    description: Mapping[str, str]
    basis: Basis
    data: tuple[str, ...]
    recipients: tuple[str, ...]
    retention_days: int
    articles: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PurposeRules:
    """What one profile says about one purpose.

    Attributes:
        purpose: Which one.
        description: One plain sentence for the person, by language tag: "en" and "zh-CN".
        tier: Lowest preset that offers the purpose; None when no preset ever does.
        allowed: False when the profile forbids the purpose whatever a person says.
        separate: Whether it needs an act of its own.
        basis: Consent, or a legitimate interest where the profile knows it.
        prerequisites: Purposes without which it has no effect.
        data: Categories of data that are used.
        recipients: Who gets anything derived from it.
        method: How the data is processed.
        retention_days: Days until data and results for the purpose are deleted.
        assessment: Whether an approved impact assessment must exist before it is activated.
        articles: Where the law says so.
        accepted_terms: Digests of earlier terms that a grant may still rest on.
    """

    purpose: Purpose
    description: Mapping[str, str]
    tier: Tier | None
    allowed: bool
    separate: bool
    basis: Basis
    prerequisites: frozenset[Purpose]
    data: tuple[str, ...]
    recipients: tuple[str, ...]
    method: str
    retention_days: int
    assessment: bool
    articles: tuple[str, ...]
    accepted_terms: frozenset[str]

    @property
    def terms(self) -> str:
        """Return the digest of what a grant is tied to: purpose, data, recipients and method.

        32 hex digits of SHA-256. Another wording of the description does not change it.
        """
        document: dict[str, JsonValue] = {
            "purpose": str(self.purpose),
            "data": list(self.data),
            "recipients": list(self.recipients),
            "method": self.method,
        }
        return hashlib.sha256(format_canonical(document)).hexdigest()[:32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ladder:
    """One profile, as read from its file.

    Attributes:
        profile: The law.
        jurisdiction: Where it holds.
        age_of_consent: Age in years from which a person decides alone.
        guardian_rule: What is asked of a guardian below it, by language tag.
        no_asking_days: Days after a refusal or a withdrawal in which nobody asks again.
        clocks: How fast a node must act.
        bases: Legal bases that a purpose may rest on.
        essential: What stands outside the ladder, by name.
        rules: What is said about each purpose; all of them are there.
        words: Each category of data and each recipient in Chinese, by its English words.
        digest: Hex SHA-256 over all the file says; its comments and its spacing do not count.
    """

    profile: Profile
    jurisdiction: str
    age_of_consent: int
    guardian_rule: Mapping[str, str]
    no_asking_days: int
    clocks: Clocks
    bases: frozenset[Basis]
    essential: Mapping[str, EssentialTerms]
    rules: Mapping[Purpose, PurposeRules]
    words: Mapping[str, str]
    digest: str

    def preset(self, tier: Tier) -> frozenset[Purpose]:
        """Return the purposes that choosing a tier shows switched on, never a separate one."""
        tiers = list(Tier)
        offered = tiers[: tiers.index(tier) + 1]
        return frozenset(
            purpose
            for purpose, rules in self.rules.items()
            if rules.tier in offered and rules.allowed and not rules.separate
        )

    def is_minor(self, age: AgeBand | None) -> bool:
        """Tell whether a guardian must have been verified; an age nobody told is no minor's."""
        return age is not None and age.youngest < self.age_of_consent
