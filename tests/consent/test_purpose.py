import pytest

from consent.purpose import TERMS, Profile, Purpose, Tier, is_separate, policy_digest, preset


def test_the_bits_are_those_of_stored_masks() -> None:
    assert [purpose.bit for purpose in Purpose] == list(range(12))
    assert Purpose.FEDERATED_TRAINING.bit == 6
    assert Purpose.SENSITIVE.bit == 11


def test_every_purpose_has_terms_in_plain_words() -> None:
    assert set(TERMS) == set(Purpose)
    assert all(terms.description.endswith(".") and terms.data for terms in TERMS.values())


@pytest.mark.parametrize("profile", Profile)
@pytest.mark.parametrize("tier", Tier)
def test_a_preset_never_holds_a_separate_purpose(tier: Tier, profile: Profile) -> None:
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
    for tier in Tier:
        offered = preset(tier, profile=profile)
        assert all(TERMS[purpose].prerequisites <= offered for purpose in offered)


def test_a_policy_digest_names_one_profile_and_stays_the_same() -> None:
    eu, cn = policy_digest(Profile.EU_GDPR), policy_digest(Profile.CN_PIPL)

    assert eu == policy_digest(Profile.EU_GDPR)
    assert eu != cn
    assert len(eu) == 64
