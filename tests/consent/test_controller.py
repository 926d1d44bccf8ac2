import runpy
from dataclasses import replace
from pathlib import Path

import pytest

from consent import Purpose
from consent.circumstances import (
    ActKind,
    Circumstances,
    Screen,
    format_circumstances,
    parse_circumstances,
)
from consent.controller import (
    Controller,
    NamedRecipient,
    PurposeDeclaration,
    TransferMechanism,
    digest_of_controller,
    format_controller,
    parse_controller,
)
from consent.fields import Fields
from consent.wording import Words

CONTROLLER: Controller = runpy.run_path(
    str(Path(__file__).parents[1] / "vectors" / "receipt" / "make.py")
)["CONTROLLER"]
PARTNER = CONTROLLER.on(Purpose.RECOMMENDATION).recipients[0]
WORDS = Words(en="needed", zh="必要")


def test_a_controller_reads_back_as_it_was() -> None:
    fields = Fields(format_controller(CONTROLLER), where="the controller")

    assert parse_controller(fields) == CONTROLLER


def test_a_digest_covers_all_that_a_controller_says() -> None:
    others = [
        replace(CONTROLLER, security="less"),
        replace(CONTROLLER, joint=("Brand B",)),
        CONTROLLER.about(()),
    ]

    assert len({digest_of_controller(one) for one in (CONTROLLER, *others)}) == 4


def test_a_brand_keeps_data_for_less_time_than_the_profile_and_never_for_more() -> None:
    longer = replace(
        CONTROLLER, purposes={Purpose.CONTACT: PurposeDeclaration(retention_days=99_999)}
    )

    assert CONTROLLER.days_kept(Purpose.RECOMMENDATION, most=730) == 90
    assert CONTROLLER.days_kept(Purpose.CONTACT, most=730) == 730
    assert longer.days_kept(Purpose.CONTACT, most=730) == 730


def test_only_what_is_said_about_the_given_purposes_is_kept() -> None:
    silent = replace(CONTROLLER, purposes={Purpose.CONTACT: PurposeDeclaration()})

    assert CONTROLLER.about({Purpose.CONTACT}).purposes == {}
    assert CONTROLLER.about(Purpose) == CONTROLLER
    assert silent.about(Purpose).purposes == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": " "}, "the name of a recipient must be printable and not empty"),
        ({"data": ()}, "must get at least one category of data"),
        ({"data": ("\n",)}, "the data of a recipient must be printable"),
        ({"country": None}, "must have a country and a mechanism, others none"),
        ({"country": "usa"}, "the country of a recipient must be an ISO 3166 code"),
        ({"filing": None}, "the mechanism standard_contract must have a filing number"),
        ({"filing": ""}, "the filing of a recipient must be printable"),
    ],
)
def test_a_recipient_must_be_one_that_a_person_can_reach(
    changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        replace(PARTNER, **changes)  # type: ignore[arg-type]


def test_an_adequacy_decision_has_no_filing_number() -> None:
    found = replace(PARTNER, mechanism=TransferMechanism.ADEQUACY, filing=None)

    assert isinstance(found, NamedRecipient)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"retention_days": 0}, r"retention_days must be in \[1, 99999\], got 0"),
        ({"data_subjects": ()}, "must be about at least one category of people"),
        ({"data_subjects": ("",)}, "a category must be printable"),
        ({"necessity": WORDS}, "must be declared with their necessity and their impact"),
        ({"categories": ("location",)}, "must be declared with their necessity"),
    ],
)
def test_a_declaration_is_whole(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PurposeDeclaration(**changes)  # type: ignore[arg-type]


def test_joint_controllers_and_security_are_said_in_words() -> None:
    with pytest.raises(ValueError, match="a joint controller must be printable"):
        replace(CONTROLLER, joint=("",))
    with pytest.raises(ValueError, match="the security of a controller must be printable"):
        replace(CONTROLLER, security="x" * 1001)


def test_circumstances_read_back_as_they_were() -> None:
    told = Circumstances(
        act=ActKind.SPOKEN,
        screen=Screen(version="1", sha256="ab" * 32),
        shown_at=5,
        operator="staff/17",
        guardian="file:1",
        controller="cd" * 32,
        supersedes="ef" * 16,
    )
    for one in (told, Circumstances()):
        fields = Fields(format_circumstances(one), where="the circumstances")
        assert parse_circumstances(fields) == one


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"operator": "Anna Li"}, "the operator of an act must be an opaque reference"),
        ({"guardian": "a@b"}, "the guardian of an act must be an opaque reference"),
        ({"controller": "00"}, "must be a digest of 64 hex digits"),
        ({"supersedes": "00"}, "must be named by 32 hex digits"),
        ({"shown_at": -1}, "a notice must not be shown before 1970"),
    ],
)
def test_circumstances_hold_no_names(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Circumstances(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": "a b"}, "the version of a screen must be up to 60 letters"),
        ({"sha256": "AB" * 32}, "the sha256 of a screen must be 64 lower-case hex digits"),
    ],
)
def test_a_screen_is_named_by_its_digest(changes: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Screen(**{"version": "1", "sha256": "ab" * 32, **changes})
