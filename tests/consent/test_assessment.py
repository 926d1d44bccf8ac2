from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consent import Identity, JsonValue, Log, LogError, Profile, Purpose, Refused
from consent.access import AccessDenied, AccessGrant, Action, Role
from consent.assessment import (
    Assessment,
    AssessmentError,
    Assessments,
    AssessmentState,
    NotAssessed,
    needing_assessment,
    verify_assessed,
)
from consent.purpose import is_separate, ladder_of

Granting = Callable[..., AccessGrant]
TRAINING = Purpose.FEDERATED_TRAINING
NEEDED = needing_assessment(ladder_of(Profile.EU_GDPR))
DOCUMENT = "ab" * 32
DRAFT, APPROVED, EXPIRED = AssessmentState


@pytest.fixture
def assessments(log: Log) -> Assessments:
    return Assessments(log, needed=NEEDED)


def draft(
    assessments: Assessments, grant: Granting, name: str = "pia-1", *, document: str = DOCUMENT
) -> Assessment:
    allowed = grant(Role.POLICY_AUTHOR, Action.DRAFT_ASSESSMENT, name, at=10, actor="ann")
    return assessments.draft(name, TRAINING, document, grant=allowed, at=10)


def approval(
    grant: Granting, name: str = "pia-1", *, actor: str = "bo", author: str = "ann"
) -> AccessGrant:
    return grant(
        Role.POLICY_APPROVER, Action.APPROVE_ASSESSMENT, name, at=20, actor=actor, author=author
    )


def test_a_purpose_is_refused_until_its_assessment_is_approved(
    assessments: Assessments, grant: Granting, log: Log
) -> None:
    with pytest.raises(NotAssessed, match=r"needs an approved impact assessment, found: none$"):
        assessments.verify_purpose(TRAINING, at=5)
    draft(assessments, grant)
    with pytest.raises(Refused, match=r"found: draft$"):
        assessments.verify_purpose(TRAINING, at=15)
    approved = assessments.approve("pia-1", valid_until=100, grant=approval(grant), at=20)

    assessments.verify_purpose(TRAINING, at=20)
    assessments.verify_purpose(TRAINING, at=99)
    with pytest.raises(NotAssessed, match=r"found: expired$"):
        assessments.verify_purpose(TRAINING, at=100)
    assert assessments.all() == Assessments(log, needed=NEEDED).all() == [approved]
    assert (approved.approver, approved.document) == ("bo", DOCUMENT)


def test_an_assessment_of_one_purpose_opens_no_other(
    assessments: Assessments, grant: Granting
) -> None:
    draft(assessments, grant)
    assessments.approve("pia-1", valid_until=100, grant=approval(grant), at=20)
    with pytest.raises(NotAssessed, match="lookalike needs an approved impact assessment"):
        assessments.verify_purpose(Purpose.LOOKALIKE, at=20)


def test_an_assessment_can_be_ended_early(assessments: Assessments, grant: Granting) -> None:
    draft(assessments, grant)
    assessments.approve("pia-1", valid_until=100, grant=approval(grant), at=20)
    ended = assessments.expire("pia-1", grant=approval(grant), at=50)

    assert ended.state(at=49) is APPROVED
    assert ended.state(at=50) is EXPIRED
    with pytest.raises(NotAssessed):
        assessments.verify_purpose(TRAINING, at=50)
    with pytest.raises(AssessmentError, match="the assessment pia-1 was ended before"):
        assessments.expire("pia-1", grant=approval(grant), at=51)


def test_a_draft_that_was_ended_is_not_approved(assessments: Assessments, grant: Granting) -> None:
    draft(assessments, grant)
    assert assessments.expire("pia-1", grant=approval(grant), at=20).state(at=20) is EXPIRED
    with pytest.raises(AssessmentError, match="the assessment pia-1 is not a draft"):
        assessments.approve("pia-1", valid_until=100, grant=approval(grant), at=21)


def test_an_assessment_is_approved_by_another_than_its_author(
    assessments: Assessments, grant: Granting
) -> None:
    draft(assessments, grant)
    own = approval(grant, actor="ann", author="somebody")
    with pytest.raises(AssessmentError, match="must be approved by another than its author"):
        assessments.approve("pia-1", valid_until=100, grant=own, at=20)
    lie = approval(grant, author="somebody")
    with pytest.raises(AssessmentError, match="the grant names another author than the assess"):
        assessments.approve("pia-1", valid_until=100, grant=lie, at=20)
    with pytest.raises(AccessDenied, match="by second-person"):
        approval(grant, actor="ann")


def test_steps_that_make_no_sense_are_refused(assessments: Assessments, grant: Granting) -> None:
    with pytest.raises(AssessmentError, match="there is no assessment pia-1"):
        assessments.approve("pia-1", valid_until=100, grant=approval(grant), at=20)
    with pytest.raises(ValueError, match="must be given by 64 lower-case hex digits of SHA-256"):
        draft(assessments, grant, document="x")
    draft(assessments, grant)
    with pytest.raises(AssessmentError, match="there is an assessment pia-1 already"):
        draft(assessments, grant)
    for until in (20, True):
        with pytest.raises(ValueError, match="must be valid for some time after its approval"):
            assessments.approve("pia-1", valid_until=until, grant=approval(grant), at=20)
    with pytest.raises(AccessDenied, match="the grant is not one to approve_assessment"):
        assessments.approve("pia-1", valid_until=99, grant=approval(grant, "pia-2"), at=20)


def test_assessments_survive_a_restart(
    assessments: Assessments,
    grant: Granting,
    log: Log,
    tmp_path: Path,
    identity: Identity,
    store: str | None,
) -> None:
    draft(assessments, grant)
    assessments.approve("pia-1", valid_until=100, grant=approval(grant), at=20)
    log.close()
    with Log.open(tmp_path / "log", identity, store=store) as reopened:
        Assessments(reopened, needed=NEEDED).verify_purpose(TRAINING, at=30)


def test_a_log_that_cannot_be_read_opens_nothing(assessments: Assessments, log: Log) -> None:
    log.close()
    with pytest.raises(LogError, match="is closed"):
        assessments.verify_purpose(TRAINING, at=30)
    assessments.verify_purpose(Purpose.CONTACT, at=30)


BEGUN: dict[str, JsonValue] = {
    "type": "assessment.drafted",
    "purpose": "lookalike",
    "document": DOCUMENT,
    "author": "ann",
}
SEEN: dict[str, JsonValue] = {
    "type": "assessment.approved",
    "approver": "bo",
    "valid_until": 9,
}


@pytest.mark.parametrize(
    "said",
    [
        [{"type": "assessment.expired"}],
        [SEEN],
        [BEGUN, BEGUN],
        [BEGUN, {**SEEN, "approver": "ann"}],
    ],
)
def test_a_step_that_could_not_have_been_taken_is_not_believed(
    assessments: Assessments, said: list[dict[str, JsonValue]]
) -> None:
    for event in said:
        assessments._topic.append({"v": 1, "at": 1, "assessment": "pia-1", **event})
    with pytest.raises(LogError, match=f"entry {len(said) - 1} is a step of an assessment that"):
        assessments.all()


@pytest.mark.parametrize("profile", Profile)
def test_what_needs_an_act_of_its_own_needs_an_assessment(profile: Profile) -> None:
    separate = {purpose for purpose in Purpose if is_separate(purpose, profile=profile)}

    assert separate <= needing_assessment(ladder_of(profile)) | {Purpose.CROSS_BORDER}
    assert Purpose.CROSS_BORDER in needing_assessment(ladder_of(Profile.CN_PIPL))


times = st.integers(0, 9)
known = st.builds(
    Assessment,
    assessment_id=st.just("pia"),
    purpose=st.sampled_from([TRAINING, Purpose.LOOKALIKE]),
    document=st.just(DOCUMENT),
    author=st.just("ann"),
    approver=st.sampled_from([None, "bo"]),
    approved_at=times,
    valid_until=times,
    ended_at=st.none() | times,
)


@given(st.lists(known, max_size=3), times, st.sampled_from([TRAINING, Purpose.CONTACT]))
def test_a_purpose_is_open_exactly_while_an_assessment_is_in_force(
    found: list[Assessment], at: int, purpose: Purpose
) -> None:
    in_force = purpose not in NEEDED or any(
        one.purpose == purpose
        and one.approver is not None
        and one.approved_at <= at < one.valid_until
        and (one.ended_at is None or at < one.ended_at)
        for one in found
    )
    try:
        verify_assessed(purpose, at, assessments=found, needed=NEEDED)
    except NotAssessed:
        assert not in_force
    else:
        assert in_force
