import copy
import dataclasses
import json
import re
import runpy
from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consent import AgeBand, JsonValue, Notice, Profile, Purpose, Tier
from consent.circumstances import ActKind, Circumstances, Screen, Source
from consent.controller import (
    Controller,
    NamedRecipient,
    PurposeDeclaration,
    TransferMechanism,
)
from consent.instant import LATEST_MS
from consent.interchange import (
    InterchangeError,
    format_27560_receipt,
    format_27560_record,
    format_kantara,
    parse_27560,
)
from consent.purpose import ladder_of, parse_ladder
from consent.register import ConsentRecord
from consent.sealed import SubjectRef
from consent.vocabulary import CONTEXT
from consent.wording import Words

FOLDER = Path(__file__).parents[1] / "vectors" / "receipt"
MAKE = runpy.run_path(str(FOLDER / "make.py"))
RECORD: ConsentRecord = MAKE["RECORD"]
CONTROLLER: Controller = MAKE["CONTROLLER"]
TEXT = format_27560_record(RECORD, CONTROLLER)
RECEIPT = format_27560_receipt(RECORD, CONTROLLER, receipt_id="r1")

UNUSED = {
    Profile.EU_GDPR: {"cn-pipl"},
    Profile.CN_PIPL: {"eu-gdpr", "legal-eu", "dpv-27560"},
}

words = st.text('aé中 .<"', min_size=1, max_size=12).filter(lambda text: bool(text.strip()))


circumstances = st.builds(
    Circumstances,
    source=st.sampled_from(Source),
    act=st.none() | st.sampled_from(ActKind),
    screen=st.none() | st.just(Screen(version="8.4.1", sha256="5c" * 32)),
    shown_at=st.none() | st.integers(0, LATEST_MS),
    operator=st.none() | st.just("staff/17"),
    guardian=st.none() | st.just("file:2026/88"),
    controller=st.none() | st.just("c0" * 32),
    supersedes=st.none() | st.just("ab" * 16),
)


@st.composite
def records(draw: st.DrawFn) -> ConsentRecord:
    separate = draw(st.booleans())
    said = draw(
        st.lists(
            st.sampled_from(list(Purpose)), unique=True, min_size=1, max_size=1 if separate else 12
        )
    )
    given_count = draw(st.integers(0, len(said)))
    expressed_at = draw(st.integers(0, LATEST_MS - 1))
    return ConsentRecord(
        record_id=draw(words),
        subject_ref=SubjectRef(draw(words)),
        given=frozenset(said[:given_count]),
        refused=frozenset(said[given_count:]),
        notice=Notice(
            id=draw(words),
            version=draw(st.integers(1, 2**53 - 1)),
            language=draw(words),
            sha256="0f" * 32,
        ),
        channel=draw(words),
        profile=draw(st.sampled_from(list(Profile))),
        expressed_at=expressed_at,
        effective_at=draw(st.integers(expressed_at, LATEST_MS)),
        until=draw(st.integers(expressed_at + 1, LATEST_MS)),
        tier=draw(st.none() | st.sampled_from(list(Tier))),
        separate=separate,
        terms={purpose: draw(words) for purpose in said[:given_count]},
        age=draw(st.none() | st.sampled_from(list(AgeBand))),
        index=draw(st.integers(0, 2**53 - 1)),
        policy=draw(st.sampled_from(["", "0f" * 32])),
        circumstances=draw(circumstances),
    )


PARTNER = NamedRecipient(
    name="Partner Ltd",
    contact="privacy@partner.example",
    method="stores and compares",
    data=("contact",),
    country="SG",
    mechanism=TransferMechanism.STANDARD_CONTRACT,
    filing="SCC-1",
)
controllers = st.builds(
    replace,
    st.just(CONTROLLER),
    name=words,
    address=words,
    contact=words,
    email=words,
    phone=words,
    authority=words,
    notice_url=words,
    withdraw=st.builds(Words, en=words, zh=words),
    withdraw_steps=st.integers(1, 3),
    country=st.sampled_from(["DE", "CN", "US-CA"]),
    storage_location=st.sampled_from(["DE", "CN-31"]),
    retention=st.sampled_from(["P6M", "P30D", "P2Y"]),
    officer=words,
    security=words,
    joint=st.sampled_from([(), ("Brand B", "Brand C")]),
    purposes=st.dictionaries(
        st.sampled_from(Purpose),
        st.sampled_from(
            [
                PurposeDeclaration(retention_days=1),
                PurposeDeclaration(recipients=(PARTNER, replace(PARTNER, name="Other"))),
                PurposeDeclaration(
                    categories=("precise location",),
                    necessity=Words(en="to find the shop", zh="用于查找门店"),
                    impact=Words(en="shows where you are", zh="会显示您的位置"),
                ),
            ]
        ),
    ),
)


@settings(max_examples=60)
@given(records(), controllers)
def test_a_record_reads_back_as_it_was(record: ConsentRecord, controller: Controller) -> None:
    found = parse_27560(format_27560_record(record, controller))

    assert (found.record, found.receipt_id) == (record, None)
    assert found.controller == controller.about(record.given | record.refused)


@settings(max_examples=30)
@given(records(), controllers, words)
def test_a_receipt_reads_back_as_it_was(
    record: ConsentRecord, controller: Controller, receipt_id: str
) -> None:
    found = parse_27560(format_27560_receipt(record, controller, receipt_id=receipt_id))

    assert found.record == record
    assert found.controller == controller.about(record.given | record.refused)
    assert found.receipt_id == receipt_id


def test_no_field_of_a_record_is_lost_on_the_way() -> None:
    """A field that a record gains must be added to the exchange format before this passes."""
    assert {field.name for field in dataclasses.fields(ConsentRecord)} == {
        "record_id",
        "subject_ref",
        "given",
        "refused",
        "notice",
        "channel",
        "profile",
        "expressed_at",
        "effective_at",
        "until",
        "tier",
        "separate",
        "terms",
        "age",
        "index",
        "policy",
        "circumstances",
    }


def test_a_record_holds_the_mandatory_fields_of_the_standard() -> None:
    document = json.loads(TEXT)

    assert document["dct:conformsTo"] == "dpv-27560:record-eu-gdpr"
    assert document["tillpact:standard"] == "ISO/IEC TS 27560:2023"
    assert document["tillpact:schemaVersion"] == "1"
    assert document["dpv:hasIdentifier"] == RECORD.record_id
    assert document["dpv:hasDataSubject"]["dpv:hasIdentifier"] == RECORD.subject_ref
    assert document["dpv:hasNotice"][0]["tillpact:sha256"] == RECORD.notice.sha256
    states = {
        process["dpv:hasIdentifier"]: process["dpv:hasConsentStatus"][0]["@type"][0]
        for process in document["dpv:hasProcess"]
    }
    assert states == {
        "contact": "dpv:ConsentGiven",
        "recommendation": "dpv:ConsentGiven",
        "churn_scoring": "dpv:ConsentRefused",
    }
    for process in document["dpv:hasProcess"]:
        for key in (
            "dpv:hasPurpose",
            "dpv:hasPersonalData",
            "dpv:hasProcessing",
            "dpv:hasDataController",
            "dpv:hasDataSource",
            "dpv:hasStorageCondition",
            "dpv:hasRecipient",
            "dpv:hasLegalBasis",
            "dpv:hasRight",
            "dpv:hasConsentControl",
        ):
            assert process[key], key
        assert all(party in document["dpv:hasEntity"] for party in process["dpv:hasRecipient"])
        assert "eu-gdpr:A6-1-a-non-explicit-consent" in process["dpv:hasLegalBasis"]
    party = document["dpv:hasEntity"][document["dct:creator"]]
    assert {"dpv:hasName", "dpv:hasAddress", "dpv:hasContact"} <= party.keys()


def test_a_chinese_record_names_the_articles_of_its_own_law() -> None:
    def basis(purpose: Purpose, *, separate: bool) -> list[str]:
        record = replace(
            RECORD,
            profile=Profile.CN_PIPL,
            given=frozenset({purpose}),
            refused=frozenset(),
            separate=separate,
        )
        document = json.loads(format_27560_record(record, CONTROLLER))
        assert document["dct:conformsTo"] == "tillpact:record-cn-pipl"
        assert document["dpv:hasApplicableLaw"] == "cn-pipl:law-PIPL"
        process = document["dpv:hasProcess"][0]
        assert process["tillpact:needsSeparateConsent"] is (purpose is not Purpose.CONTACT)
        found: list[str] = process["dpv:hasLegalBasis"]
        return found[2:]

    assert basis(Purpose.CROSS_BORDER, separate=True) == ["cn-pipl:separate-consent-art-39"]
    assert basis(Purpose.SENSITIVE, separate=True) == ["cn-pipl:separate-consent-art-29"]
    assert basis(Purpose.FEDERATED_TRAINING, separate=True) == ["cn-pipl:separate-consent-art-23"]
    assert basis(Purpose.FEDERATED_TRAINING, separate=False) == []
    assert basis(Purpose.CONTACT, separate=True) == []


def test_sensitive_data_names_article_nine() -> None:
    record = replace(
        RECORD, given=frozenset({Purpose.SENSITIVE}), refused=frozenset(), separate=True
    )
    process = json.loads(format_27560_record(record, CONTROLLER))["dpv:hasProcess"][0]

    assert "eu-gdpr:A9-2-a" in process["dpv:hasLegalBasis"]
    assert process["dpv:hasPersonalData"][0]["@type"] == ["dpv:SensitivePersonalData"]


def test_every_prefix_of_a_document_is_declared() -> None:
    for profile in Profile:
        record = replace(RECORD, profile=profile, given=frozenset(Purpose), refused=frozenset())
        text = format_27560_receipt(record, CONTROLLER, receipt_id="r")
        used = set(re.findall(r'"([a-z0-9-]+):[A-Za-z]', text))

        assert used == set(CONTEXT) - UNUSED[profile]


def _paths(value: JsonValue, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    found = [path] if path else []
    if isinstance(value, dict):
        for key, item in value.items():
            found += _paths(item, (*path, key))
    elif isinstance(value, list):
        for place, item in enumerate(value):
            found += _paths(item, (*path, place))
    return found


def _inside(document: JsonValue, path: tuple[str | int, ...]) -> dict[str | int, JsonValue]:
    for key in path:
        document = document[key]  # type: ignore[index, call-overload]
    return document  # type: ignore[return-value]


@pytest.mark.parametrize("text", [TEXT, RECEIPT], ids=["record", "receipt"])
def test_every_field_is_mandatory_and_no_other_is_known(text: str) -> None:
    document: JsonValue = json.loads(text)
    for path in _paths(document):
        if path[-2:-1] == ("dpv:hasProcess",):
            continue  # a record about fewer purposes is a record
        without = copy.deepcopy(document)
        del _inside(without, path[:-1])[path[-1]]
        with pytest.raises(InterchangeError):
            parse_27560(json.dumps(without))
        inside = _inside(document, path)
        if isinstance(inside, dict):
            more = copy.deepcopy(document)
            _inside(more, path)["extra"] = 1
            with pytest.raises(InterchangeError):
                parse_27560(json.dumps(more))


@settings(max_examples=300)
@given(
    st.sampled_from(_paths(json.loads(RECEIPT))),
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just([]) | st.just({}),
)
def test_a_document_with_one_value_exchanged_is_read_or_refused(
    path: tuple[str | int, ...], value: JsonValue
) -> None:
    document: JsonValue = json.loads(RECEIPT)
    _inside(document, path[:-1])[path[-1]] = value
    text = json.dumps(document)

    try:
        found = parse_27560(text)
    except InterchangeError:
        return
    again = format_27560_receipt(found.record, found.controller, receipt_id=str(found.receipt_id))
    assert json.loads(again) == document


@given(st.text() | st.text('{}[]":,0a', max_size=30))
def test_garbage_raises_only_an_interchange_error(text: str) -> None:
    with pytest.raises(InterchangeError):
        parse_27560(text)


def _changed(*path: str | int, to: JsonValue) -> str:
    document: JsonValue = json.loads(TEXT)
    _inside(document, path[:-1])[path[-1]] = to
    return json.dumps(document)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "is not strict JSON"),
        ('{"a": 1, "a": 2}', "a key occurs twice in one object"),
        ('{"a": 1.5}', "is not strict JSON: a value must be null"),
        ("[]", "the document must be an object"),
        ("{}", "dct:conformsTo of the document is missing"),
        (" " * 262_145, "a document must have at most 262144 characters"),
        (_changed("dct:conformsTo", to="x"), "must name one of the record and receipt profiles"),
        (_changed("tillpact:schemaVersion", to="2"), "tillpact:schemaVersion must be 1"),
        (_changed("dpv:hasProcess", to=[]), "must hold at least one purpose"),
        (_changed("dpv:hasNotice", to=[]), "dpv:hasNotice must hold exactly one object"),
        (_changed("tillpact:separateAct", to=True), "must be about exactly one purpose"),
        (
            _changed("tillpact:until", to="2020-01-01T00:00:00.000Z"),
            "must take effect and expire after it was expressed",
        ),
        (
            _changed("dpv:hasProcess", 0, "dpv:hasIdentifier", to="churn_scoring"),
            "must not be given and refused in one act",
        ),
        (
            _changed(
                "dpv:hasProcess", 0, "dpv:hasConsentStatus", 0, "@type", to=["dpv:ConsentUnknown"]
            ),
            "a consent status must be dpv:ConsentGiven or dpv:ConsentRefused",
        ),
        (
            _changed("dpv:hasProcess", 0, "dpv:hasStorageCondition", to=[]),
            "must hold a location and then a duration",
        ),
        (
            _changed("dpv:hasEntity", "tillpact:party-brand-a.example", "dpv:hasLocation", to="DE"),
            "a location must begin with loc:",
        ),
        (
            _changed("dpv:hasProcess", 0, "dpv:hasRecipient", to=["tillpact:everybody"]),
            "/dpv:hasProcess/0/dpv:hasRecipient/0 is not what this version says",
        ),
        (_changed("note", to="x"), "the field /'note' is unknown"),
        (_changed("dpv:hasProcess", 0, to={}), "is missing"),
    ],
)
def test_each_fault_of_a_document_is_one_sentence(text: str, message: str) -> None:
    with pytest.raises(InterchangeError, match=message):
        parse_27560(text)


def test_a_missing_mandatory_field_that_is_only_told_to_people_is_named() -> None:
    document = json.loads(TEXT)
    del document["dpv:hasProcess"][0]["dpv:hasRight"]
    with pytest.raises(InterchangeError, match="field /dpv:hasProcess/0/dpv:hasRight is missing"):
        parse_27560(json.dumps(document))


def test_false_is_not_zero() -> None:
    text = _changed("dpv:hasProcess", 1, "tillpact:needsSeparateConsent", to=0)
    with pytest.raises(InterchangeError, match="needsSeparateConsent is not what this version"):
        parse_27560(text)


def test_a_record_that_json_cannot_hold_is_not_written() -> None:
    with pytest.raises(ValueError, match="must be between the years 1970 and 9999"):
        format_27560_record(replace(RECORD, until=LATEST_MS + 1), CONTROLLER)


def test_kantara_says_what_was_given_and_leaves_refusals_out() -> None:
    document = json.loads(format_kantara(RECORD, CONTROLLER))

    assert document["version"] == "KI-CR-v1.1.0"
    assert document["consentTimestamp"] == RECORD.expressed_at // 1000
    assert document["piiControllers"][0]["piiController"] == CONTROLLER.name
    purposes = document["services"][0]["purposes"]
    assert [purpose["purposeCategory"] for purpose in purposes] == [["contact"], ["recommendation"]]
    assert [purpose["thirdPartyDisclosure"] for purpose in purposes] == [False, True]
    assert purposes[1]["thirdPartyName"] == "Letter Shop Ltd"
    assert document["tillpact"]["circumstances"]["screen"]["version"] == "8.4.1"
    assert document["sensitive"] is False


def test_kantara_names_third_parties_and_sensitive_data() -> None:
    record = replace(
        RECORD, given=frozenset({Purpose.SENSITIVE, Purpose.LOOKALIKE}), refused=frozenset()
    )
    document = json.loads(format_kantara(record, CONTROLLER))

    assert document["sensitive"] is True
    assert document["spiCat"] == ["listed sensitive categories"]
    lookalike = document["services"][0]["purposes"][0]
    assert lookalike["thirdPartyName"] == "named brands"


def test_a_record_names_who_gets_data_abroad_and_why_sensitive_data_is_needed() -> None:
    declared = {
        Purpose.CROSS_BORDER: PurposeDeclaration(recipients=(PARTNER,)),
        Purpose.SENSITIVE: PurposeDeclaration(
            categories=("precise location",),
            necessity=Words(en="to find the shop", zh="用于查找门店"),
            impact=Words(en="shows where you are", zh="会显示您的位置"),
        ),
    }
    record = replace(
        RECORD, given=frozenset(declared), refused=frozenset(), profile=Profile.CN_PIPL
    )
    text = format_27560_record(record, replace(CONTROLLER, purposes=declared))
    document = json.loads(text)
    abroad, sensitive = document["dpv:hasProcess"]

    (transfer,) = abroad["tillpact:transfers"]
    assert transfer["dpv:hasLocation"] == "loc:SG"
    assert (transfer["tillpact:mechanism"], transfer["tillpact:filing"]) == (
        "standard_contract",
        "SCC-1",
    )
    assert document["dpv:hasEntity"][transfer["dpv:hasRecipient"]]["dpv:hasName"] == "Partner Ltd"
    assert sensitive["tillpact:necessity"]["en"] == "to find the shop"
    assert sensitive["dpv:hasPersonalData"][-1]["skos:prefLabel"] == "precise location"
    assert sensitive["tillpact:retentionDays"] == 180


def test_a_document_is_read_with_the_profile_that_wrote_it() -> None:
    own = resources.files("consent").joinpath("profiles", "eu-gdpr.toml").read_text("utf-8")
    ladder = parse_ladder(own.replace("We write to you", "We may write to you"))
    text = format_27560_record(RECORD, CONTROLLER, ladder=ladder)

    assert "We may write to you" in text
    assert parse_27560(text, ladder=ladder).record == RECORD
    with pytest.raises(InterchangeError, match="is not what this version says"):
        parse_27560(text)
    with pytest.raises(ValueError, match="a record under eu-gdpr cannot be said by cn-pipl"):
        format_27560_record(RECORD, CONTROLLER, ladder=ladder_of(Profile.CN_PIPL))


def test_kantara_has_no_word_for_a_refusal() -> None:
    with pytest.raises(ValueError, match="must hold at least one purpose that was given"):
        format_kantara(replace(RECORD, given=frozenset()), CONTROLLER)
