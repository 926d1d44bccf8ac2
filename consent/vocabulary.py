"""Own what purposes, data, recipients, rights and legal bases are called in W3C DPV 2.

Terms come from https://w3id.org/dpv (2.x) and its extensions for personal data and for the GDPR.
DPV has no module for mainland China: the terms under `cn-pipl` are our own and name articles of
the Personal Information Protection Law. Counsel should confirm both mappings.
"""

from collections.abc import Mapping
from types import MappingProxyType

from consent.circumstances import Source
from consent.ladder import PurposeRules
from consent.purpose import Profile, Purpose

CONTEXT: Mapping[str, str] = MappingProxyType(
    {
        "cn-pipl": "https://tillpact.example/ns/cn-pipl#",
        "dct": "http://purl.org/dc/terms/",
        "dpv": "https://w3id.org/dpv#",
        "dpv-27560": "https://w3id.org/dpv/schema/dpv-27560#",
        "eu-gdpr": "https://w3id.org/dpv/legal/eu/gdpr#",
        "legal-eu": "https://w3id.org/dpv/legal/eu#",
        "loc": "https://w3id.org/dpv/loc#",
        "pd": "https://w3id.org/dpv/pd#",
        "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
        "rdfs": "http://www.w3.org/2000/01/rdf-schema#",
        "skos": "http://www.w3.org/2004/02/skos/core#",
        "tillpact": "https://tillpact.example/ns#",
    }
)

PURPOSES: Mapping[Purpose, str] = MappingProxyType(
    {
        Purpose.SERVICE_STATISTICS: "dpv:ServiceUsageAnalytics",
        Purpose.AGGREGATE_BENCHMARK: "dpv:ServiceOptimisation",
        Purpose.CONTACT: "dpv:CommunicationForCustomerCare",
        Purpose.RECOMMENDATION: "dpv:ProvidePersonalisedRecommendations",
        Purpose.CHURN_SCORING: "dpv:CustomerRelationshipManagement",
        Purpose.AUTOMATED_MARKETING: "dpv:DirectMarketing",
        Purpose.FEDERATED_TRAINING: "dpv:ResearchAndDevelopment",
        Purpose.LOOKALIKE: "dpv:TargetedAdvertising",
        Purpose.AUDIENCE_OVERLAP: "dpv:Marketing",
        Purpose.THIRD_PARTY_SHARING: "dpv:Marketing",
        Purpose.CROSS_BORDER: "dpv:CommercialPurpose",
        Purpose.SENSITIVE: "dpv:Personalisation",
    }
)

PROCESSING: Mapping[Purpose, tuple[str, ...]] = MappingProxyType(
    {
        Purpose.SERVICE_STATISTICS: ("dpv:Analyse", "dpv:Anonymise"),
        Purpose.AGGREGATE_BENCHMARK: ("dpv:Analyse", "dpv:Anonymise", "dpv:Share"),
        Purpose.CONTACT: ("dpv:Use",),
        Purpose.RECOMMENDATION: ("dpv:Analyse", "dpv:Profiling"),
        Purpose.CHURN_SCORING: ("dpv:Analyse", "dpv:Profiling"),
        Purpose.AUTOMATED_MARKETING: ("dpv:Use", "dpv:Profiling"),
        Purpose.FEDERATED_TRAINING: ("dpv:Analyse", "dpv:Anonymise", "dpv:Share"),
        Purpose.LOOKALIKE: ("dpv:Profiling", "dpv:Share"),
        Purpose.AUDIENCE_OVERLAP: ("dpv:Match", "dpv:Share"),
        Purpose.THIRD_PARTY_SHARING: ("dpv:Share",),
        Purpose.CROSS_BORDER: ("dpv:Transfer",),
        Purpose.SENSITIVE: ("dpv:Use",),
    }
)

_DATA: Mapping[str, str] = MappingProxyType(
    {
        "purchases": "pd:PurchasesAndSpendingHabit",
        "purchases in total": "pd:PurchasesAndSpendingHabit",
        "contact": "pd:Contact",
        "hashed contact": "pd:Contact",
        "browsing": "pd:BrowsingBehaviour",
        "service history": "pd:ServiceConsumptionBehaviour",
    }
)

# Which article asks for consent of its own, by purpose: provision to others, transfer abroad,
# sensitive information. Federated training is held to the first of them by caution.
_PIPL_SEPARATE: Mapping[Purpose, str] = MappingProxyType(
    {
        Purpose.CROSS_BORDER: "cn-pipl:separate-consent-art-39",
        Purpose.SENSITIVE: "cn-pipl:separate-consent-art-29",
    }
)
_PIPL_PROVISION = "cn-pipl:separate-consent-art-23"

RECORD_SCHEMAS: Mapping[Profile, str] = MappingProxyType(
    {
        Profile.EU_GDPR: "dpv-27560:record-eu-gdpr",
        # Names under the prefix dpv-27560 are reserved for the DPV community group.
        Profile.CN_PIPL: "tillpact:record-cn-pipl",
    }
)

RECEIPT_SCHEMAS: Mapping[Profile, str] = MappingProxyType(
    {
        Profile.EU_GDPR: "dpv-27560:receipt-eu-gdpr",
        Profile.CN_PIPL: "tillpact:receipt-cn-pipl",
    }
)

LAWS: Mapping[Profile, str] = MappingProxyType(
    {Profile.EU_GDPR: "legal-eu:law-GDPR", Profile.CN_PIPL: "cn-pipl:law-PIPL"}
)

RIGHTS: Mapping[Profile, tuple[str, ...]] = MappingProxyType(
    {
        Profile.EU_GDPR: tuple(
            f"eu-gdpr:{term}"
            for term in ("A7-3", "A15", "A16", "A17", "A18", "A20", "A21", "A22", "A77")
        ),
        Profile.CN_PIPL: tuple(
            f"cn-pipl:art-{article}" for article in ("15", "24", "44", "45", "46", "47", "48", "65")
        ),
    }
)


SOURCES: Mapping[Source, str] = MappingProxyType(
    {
        Source.PERSON: "dpv:DataSubjectDataSource",
        Source.SYSTEM: "dpv:DataControllerDataSource",
        Source.TABLE: "dpv:DataControllerDataSource",
    }
)


def data_term(phrase: str) -> str:
    """Return the DPV concept that a category of data falls under."""
    return _DATA.get(phrase, "dpv:PersonalData")


def data_type(purpose: Purpose) -> str:
    """Return whether the data of a purpose is sensitive."""
    return "dpv:SensitivePersonalData" if purpose is Purpose.SENSITIVE else "dpv:PersonalData"


def legal_bases(rules: PurposeRules, *, profile: Profile, separate: bool) -> list[str]:
    """Return the legal basis of a purpose that was given, with the article that grants it.

    Args:
        rules: What the profile says of the purpose.
        profile: The law.
        separate: Whether the act asked for this purpose and nothing else.
    """
    purpose = rules.purpose
    if profile is Profile.EU_GDPR:
        kind = "explicit-consent" if separate else "non-explicit-consent"
        basis = ["dpv:Consent", f"eu-gdpr:A6-1-a-{kind}"]
        return [*basis, "eu-gdpr:A9-2-a"] if purpose is Purpose.SENSITIVE and separate else basis
    basis = ["dpv:Consent", "cn-pipl:consent-art-13"]
    if separate and rules.separate:
        basis.append(_PIPL_SEPARATE.get(purpose, _PIPL_PROVISION))
    return basis
