import dataclasses
import tomllib
from importlib import resources
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consent.ladder import Basis, Period
from consent.purpose import (
    LadderError,
    Profile,
    Purpose,
    Tier,
    is_separate,
    ladder_of,
    load_ladder,
    parse_ladder,
    policy_digest,
    preset,
)

OUTSIDE = None
# The ladder as a table: bit, tier, data, needs an act of its own (EU, China).
TABLE = {
    "service_statistics": (0, Tier.BASIC, {"purchases", "membership"}, False, False),
    "aggregate_benchmark": (1, Tier.BASIC, {"purchases in total"}, False, False),
    "contact": (2, Tier.BASIC, {"contact"}, False, False),
    "recommendation": (3, Tier.STANDARD, {"purchases", "browsing", "responses"}, False, False),
    "churn_scoring": (4, Tier.STANDARD, {"purchases", "browsing", "service history"}, False, False),
    "automated_marketing": (5, Tier.STANDARD, {"scores"}, False, False),
    "federated_training": (
        6,
        Tier.ADVANCED,
        {"purchases", "browsing", "service history"},
        False,
        True,
    ),
    "lookalike": (7, Tier.ADVANCED, {"model output"}, True, True),
    "audience_overlap": (8, OUTSIDE, {"hashed contact"}, True, True),
    "third_party_sharing": (9, OUTSIDE, {"listed fields"}, True, True),
    "cross_border": (10, OUTSIDE, {"listed fields", "model updates"}, True, True),
    "sensitive": (11, OUTSIDE, {"listed sensitive categories"}, True, True),
}


def text_of(profile: Profile) -> str:
    path = resources.files("consent").joinpath("profiles", f"{profile}.toml")
    return path.read_text(encoding="utf-8")


EU_TEXT = text_of(Profile.EU_GDPR)


def test_the_bits_are_those_of_stored_masks() -> None:
    assert [purpose.bit for purpose in Purpose] == list(range(12))
    assert Purpose.FEDERATED_TRAINING.bit == 6
    assert Purpose.SENSITIVE.bit == 11


@pytest.mark.parametrize("profile", Profile)
def test_each_profile_says_what_the_table_says(profile: Profile) -> None:
    rules = ladder_of(profile).rules

    assert {
        str(purpose): (
            *(purpose.bit, known.tier, set(known.data)),
            *(is_separate(purpose, profile=law) for law in Profile),
        )
        for purpose, known in rules.items()
    } == TABLE
    assert rules[Purpose.AUTOMATED_MARKETING].prerequisites == {Purpose.CONTACT}
    assert rules[Purpose.LOOKALIKE].prerequisites == {Purpose.FEDERATED_TRAINING}
    assert all(known.allowed and known.basis is Basis.CONSENT for known in rules.values())
    assert {known.retention_days > 0 for known in rules.values()} == {True}


@pytest.mark.parametrize("profile", Profile)
def test_impact_assessments_are_asked_for_where_the_law_does(profile: Profile) -> None:
    rules = ladder_of(profile).rules
    needs = {purpose for purpose, known in rules.items() if known.assessment}

    assert needs >= {purpose for purpose in Purpose if purpose.bit >= 4}
    assert (Purpose.RECOMMENDATION in needs) is (profile is Profile.CN_PIPL)


def test_each_law_has_its_age_its_clocks_and_its_bases() -> None:
    eu, cn = ladder_of(Profile.EU_GDPR), ladder_of(Profile.CN_PIPL)

    assert (eu.age_of_consent, cn.age_of_consent) == (16, 14)
    assert (eu.no_asking_days, cn.no_asking_days) == (180, 180)
    assert eu.clocks.answer == Period(count=1, unit="months")  # type: ignore[arg-type]
    assert eu.clocks.extension == Period(count=2, unit="months")  # type: ignore[arg-type]
    assert eu.clocks.breach == Period(count=72, unit="hours")  # type: ignore[arg-type]
    assert cn.clocks.answer == Period(count=15, unit="working_days")  # type: ignore[arg-type]
    assert Basis.LEGITIMATE_INTEREST in eu.bases
    assert cn.bases == {Basis.CONSENT}


@pytest.mark.parametrize("profile", Profile)
def test_people_can_read_it_in_both_languages(profile: Profile) -> None:
    ladder = ladder_of(profile)
    texts = [
        ladder.guardian_rule,
        *(service.description for service in ladder.essential.values()),
        *(known.description for known in ladder.rules.values()),
    ]

    for text in texts:
        assert text["en"].endswith(".")
        assert text["en"].isascii()
        assert text["zh-CN"].endswith("。")
        assert len(text["zh-CN"]) < len(text["en"])


def test_what_every_profile_must_agree_on_for_the_terms_is_the_same() -> None:
    eu, cn = ladder_of(Profile.EU_GDPR).rules, ladder_of(Profile.CN_PIPL).rules

    for purpose in Purpose:
        assert eu[purpose].terms == cn[purpose].terms
        assert eu[purpose].description == cn[purpose].description
        assert eu[purpose].prerequisites == cn[purpose].prerequisites


@pytest.mark.parametrize("profile", Profile)
@pytest.mark.parametrize("tier", Tier)
def test_i4_a_preset_never_holds_a_separate_purpose(tier: Tier, profile: Profile) -> None:
    assert not any(is_separate(p, profile=profile) for p in preset(tier, profile=profile))


@pytest.mark.parametrize("profile", Profile)
def test_each_tier_holds_the_one_before(profile: Profile) -> None:
    basic, standard, advanced = (preset(tier, profile=profile) for tier in Tier)

    assert basic < standard <= advanced


def test_federated_training_is_separate_in_china_only() -> None:
    federated = Purpose.FEDERATED_TRAINING

    assert federated in preset(Tier.ADVANCED, profile=Profile.EU_GDPR)
    assert federated not in preset(Tier.ADVANCED, profile=Profile.CN_PIPL)
    assert is_separate(federated, profile=Profile.CN_PIPL)


@pytest.mark.parametrize("profile", Profile)
def test_a_preset_holds_the_prerequisites_of_what_it_offers(profile: Profile) -> None:
    rules = ladder_of(profile).rules
    for tier in Tier:
        offered = preset(tier, profile=profile)
        assert all(rules[purpose].prerequisites <= offered for purpose in offered)


@pytest.mark.parametrize("profile", Profile)
def test_i5_what_is_essential_is_no_purpose_that_anybody_could_refuse(profile: Profile) -> None:
    essential = ladder_of(profile).essential

    assert set(essential) == {"order", "fraud"}
    assert not set(essential) & set(Purpose)
    assert {service.basis for service in essential.values()} == {Basis.CONTRACT}


def test_a_forbidden_purpose_is_in_no_preset() -> None:
    head, tail = EU_TEXT.split("[purposes.contact]")
    forbids = parse_ladder(head + "[purposes.contact]" + tail.replace("true", "false", 1))

    assert Purpose.CONTACT not in forbids.preset(Tier.BASIC)


def test_a_policy_digest_names_one_profile_and_covers_all_it_says() -> None:
    eu, cn = policy_digest(Profile.EU_GDPR), policy_digest(Profile.CN_PIPL)
    ladder = parse_ladder(EU_TEXT)
    spaced = parse_ladder("# another remark\n" + EU_TEXT)
    reworded = parse_ladder(EU_TEXT.replace("We count purchases", "We count all purchases"))
    longer = parse_ladder(EU_TEXT.replace("no_asking_days = 180", "no_asking_days = 181"))

    assert eu == policy_digest(Profile.EU_GDPR) == policy_digest(ladder) == spaced.digest
    assert len({eu, cn, reworded.digest, longer.digest}) == 4
    assert len(eu) == 64


def test_a_profile_file_can_be_read_from_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(EU_TEXT.replace("age_of_consent = 16", "age_of_consent = 13"), "utf-8")

    assert load_ladder(path).age_of_consent == 13
    with pytest.raises(LadderError, match=r"the profile .*none.toml could not be read"):
        load_ladder(tmp_path / "none.toml")


CONTACT = EU_TEXT[EU_TEXT.index("[purposes.contact]") : EU_TEXT.index("[purposes.recommendation]")]
FAULTS = {
    "no TOML": (EU_TEXT, "[", "the profile could not be read as TOML"),
    "unknown table": ("[asking]", "[nagging]\n[asking]", "has keys that nobody knows: nagging"),
    "unknown key": (CONTACT, CONTACT + "salt = 1\n", "purposes.contact has keys that nobody"),
    "missing purpose": (CONTACT, "", "purposes has no contact"),
    "missing key": ("no_asking_days = 180", "", "asking has no no_asking_days"),
    "moved bit": ("bit = 2\n", "bit = 3\n", "purposes.contact.bit must be 2 for good, got 3"),
    "no bit": ("bit = 1\n", "bit = true\n", "aggregate_benchmark.bit must be 1 for good, got True"),
    "tier": ('tier = "basic"', 'tier = "gold"', r"tier must be one of basic, .*got 'gold'"),
    "basis": (
        'basis = "consent"',
        'basis = "contract"',
        "must be one of profile.bases, got contract",
    ),
    "separate": (
        'separate = true\nbasis = "consent"',
        'separate = true\nbasis = "legitimate_interest"',
        "purposes.lookalike is separate and must rest on consent",
    ),
    "outside": (
        'tier = "none"\nallowed = true\nseparate = true',
        'tier = "none"\nallowed = true\nseparate = false',
        "purposes.audience_overlap is in no tier and must be separate",
    ),
    "not accepted": (
        "accepted_terms = []",
        'accepted_terms = ["AB"]',
        "accepted_terms must be digests of 32 lower-case hex digits",
    ),
    "need of a later one": (
        'prerequisites = ["contact"]',
        'prerequisites = ["lookalike"]',
        "automated_marketing.prerequisites must have lower bits, lookalike has not",
    ),
    "tier without its need": (
        'bit = 2\ntier = "basic"',
        'bit = 2\ntier = "advanced"',
        "automated_marketing is offered by a tier that does not offer contact",
    ),
    "no Chinese": ('"browsing" = "浏览记录"\n', "", "words must say 'browsing' in Chinese too"),
    "no words": ('"browsing" = "浏览记录"', '"browsing" = " "', "words.browsing must be a line"),
    "bases": ('bases = ["consent", ', 'bases = ["contract", ', "profile.bases must hold consent"),
    "age": ("age_of_consent = 16", "age_of_consent = 17", "must be one of .*, got 17"),
    "no number": (
        "no_asking_days = 180",
        "no_asking_days = -1",
        "must be a number from 0 to 99999",
    ),
    "no flag": (
        "allowed = true",
        "allowed = 1",
        "service_statistics.allowed must be true or false",
    ),
    "no text": (
        'jurisdiction = "European Union"',
        'jurisdiction = " "',
        "a line that says something",
    ),
    "no list": ('data = ["scores"]', 'data = "scores"', "data must be a list of texts"),
    "twice": (
        'data = ["scores"]',
        'data = ["scores", "scores"]',
        "not be empty or say a thing twice",
    ),
    "no table": ("[asking]\nno_asking_days = 180", "", "the profile has no asking"),
    "essential": (
        'basis = "contract"',
        'basis = "consent"',
        "essential.order must rest on the contract",
    ),
    "spelling": (
        "We count purchases",
        "We count purchase\u0301s",
        "holds text in an unusual spelling",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_profile_is_one_clear_error(fault: str) -> None:
    old, new, message = FAULTS[fault]
    assert old in EU_TEXT

    with pytest.raises(LadderError, match=message):
        parse_ladder(EU_TEXT.replace(old, new, 1))


def test_a_table_that_is_none_is_refused() -> None:
    with pytest.raises(LadderError, match="asking must be a table"):
        parse_ladder("asking = 1\n" + EU_TEXT.replace("[asking]\nno_asking_days = 180", ""))
    essential = EU_TEXT[EU_TEXT.index("[essential.order]") : EU_TEXT.index("[purposes.service")]
    with pytest.raises(LadderError, match="essential must be a table of at least one service"):
        parse_ladder("essential = 1\n" + EU_TEXT.replace(essential, ""))


def test_terms_change_with_what_a_person_agreed_to_and_with_nothing_else() -> None:
    rules = ladder_of(Profile.EU_GDPR).rules[Purpose.CONTACT]
    changed = [
        dataclasses.replace(rules, data=("contact", "purchases")),
        dataclasses.replace(rules, recipients=("everybody",)),
        dataclasses.replace(rules, method="telephone"),
        dataclasses.replace(rules, purpose=Purpose.SENSITIVE),
    ]
    same = dataclasses.replace(rules, description={}, retention_days=1, articles=())

    assert len({rules.terms, *(other.terms for other in changed)}) == 5
    assert same.terms == rules.terms


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_i20_garbage_in_a_profile_raises_only_our_error(data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(EU_TEXT) - 1))
    end = data.draw(st.integers(start, min(len(EU_TEXT), start + 60)))
    junk = data.draw(st.text(alphabet='ab"[]=#\n1 .,', max_size=8))
    text = EU_TEXT[:start] + junk + EU_TEXT[end:]

    try:
        ladder = parse_ladder(text)
    except LadderError:
        return

    assert set(ladder.rules) == set(Purpose)
    assert [known.purpose.bit for known in ladder.rules.values()] == list(range(12))
    assert tomllib.loads(text)
