"""Write a consent record for other systems, and read one back without guessing.

ISO/IEC TS 27560:2023 as JSON-LD with W3C DPV terms goes out and comes in; Kantara Consent
Receipt 1.1 only goes out, for systems that know nothing newer. A document is read only when it
says exactly what this version says about the same record: if data, recipients or terms of a
purpose differ, it is not the same consent, and the person has to be asked again.

Sources: DPV guide "Consent records and receipts as per ISO/IEC TS 27560:2023" at
https://w3id.org/dpv/guides/consent-27560; Kantara CR 1.1.0 of 2018. The ISO text is not public:
the fields are those that the DPV guide states.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass

from consent import vocabulary
from consent.canonical import JsonValue, format_canonical
from consent.circumstances import format_circumstances, parse_circumstances
from consent.controller import (
    SILENT,
    Controller,
    NamedRecipient,
    format_declaration,
    parse_declaration,
)
from consent.fields import Fields
from consent.instant import format_instant, parse_instant
from consent.ladder import AgeBand, Ladder, PurposeRules
from consent.purpose import Profile, Purpose, Tier, ladder_of
from consent.register import ConsentRecord, Notice
from consent.sealed import SubjectRef
from consent.wording import Words

__all__ = [
    "ConsentDocument",
    "InterchangeError",
    "format_27560_receipt",
    "format_27560_record",
    "format_kantara",
    "parse_27560",
]

STANDARD, SCHEMA_VERSION = "ISO/IEC TS 27560:2023", "1"
MOST_CHARACTERS = 262_144
_SUBJECT = "tillpact:data-subject"


class InterchangeError(Exception):
    """A document is not a consent record or receipt that can be taken over as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsentDocument:
    """What a 27560 document says.

    Attributes:
        record: The record; its times, ids and purposes are those of the system that wrote it.
        controller: Who answers for the data.
        receipt_id: Id of the receipt, or None when the document is a record.
    """

    record: ConsentRecord
    controller: Controller
    receipt_id: str | None


def format_27560_record(
    record: ConsentRecord, controller: Controller, *, ladder: Ladder | None = None
) -> str:
    """Write a record as JSON-LD under the 27560 record profile of its law.

    Args:
        record: The record.
        controller: Who answers; what it says of purposes that the record is not about is left
            out.
        ladder: The profile whose words are used; the one that comes with the package if None.

    Raises:
        ValueError: A value of the record cannot be written, such as a time after 9999.
    """
    return _format(_record(record, controller, _ladder(record, ladder)))


def format_27560_receipt(
    record: ConsentRecord,
    controller: Controller,
    *,
    receipt_id: str,
    ladder: Ladder | None = None,
) -> str:
    """Write a receipt, which is an id and the whole record, under the receipt profile.

    Raises:
        ValueError: A value cannot be written.
    """
    return _format(_receipt(record, controller, receipt_id, _ladder(record, ladder)))


def parse_27560(text: str, *, ladder: Ladder | None = None) -> ConsentDocument:
    """Read what the two functions above wrote with the same profile.

    Raises:
        InterchangeError: The text is no JSON, a mandatory field is missing, a field is unknown or
            of the wrong kind, or the document describes a purpose in another way than this
            version; the message names the field and never its value.
    """
    document = _parse_json(text)
    try:
        found = _read(Fields(document, where="the document"))
        words = _ladder(found.record, ladder)
        if found.receipt_id is None:
            expected = _record(found.record, found.controller, words)
        else:
            expected = _receipt(found.record, found.controller, found.receipt_id, words)
        difference = _difference(expected, document, path="")
    except (ValueError, KeyError) as error:
        raise InterchangeError(f"the document cannot be read: {error}") from error
    if difference is not None:
        raise InterchangeError(difference)
    return found


def format_kantara(
    record: ConsentRecord, controller: Controller, *, ladder: Ladder | None = None
) -> str:
    """Write a Kantara Consent Receipt 1.1, which knows no refusals: they are left out.

    What the format has no field for stands under `tillpact`, which its readers may skip.

    Raises:
        ValueError: Nothing was given, so that there is nothing the format could say.
    """
    given = sorted(record.given, key=lambda purpose: purpose.bit)
    if not given:
        raise ValueError("a Kantara receipt must hold at least one purpose that was given")
    words, sensitive = _ladder(record, ladder), Purpose.SENSITIVE in record.given
    categories = controller.on(Purpose.SENSITIVE).categories
    document: dict[str, JsonValue] = {
        "version": "KI-CR-v1.1.0",
        "jurisdiction": controller.country,
        "consentTimestamp": record.expressed_at // 1000,
        "collectionMethod": record.channel,
        "consentReceiptID": record.record_id,
        "language": record.notice.language,
        "piiPrincipalId": str(record.subject_ref),
        "piiControllers": [
            {
                "piiController": controller.name,
                "onBehalf": False,
                "contact": controller.contact,
                "address": {
                    "streetAddress": controller.address,
                    "addressCountry": controller.country,
                },
                "email": controller.email,
                "phone": controller.phone,
            }
        ],
        "policyUrl": controller.notice_url,
        "services": [
            {
                "service": controller.name,
                "purposes": [
                    _kantara_purpose(words.rules[purpose], controller, record.until)
                    for purpose in given
                ],
            }
        ],
        "sensitive": sensitive,
        "spiCat": [*(categories or words.rules[Purpose.SENSITIVE].data)] if sensitive else [],
        "tillpact": {
            "circumstances": format_circumstances(record.circumstances),
            "officer": controller.officer,
            "joint": [*controller.joint],
            "authority": controller.authority,
            "storageLocation": controller.storage_location,
            "rights": [*vocabulary.RIGHTS[record.profile]],
            "withdraw": {"en": controller.withdraw.en, "zh": controller.withdraw.zh},
            "declared": _declared(controller, record.given),
            "logIndex": record.index,
            "noticeSha256": record.notice.sha256,
            "policy": record.policy or None,
            "separate": record.separate,
        },
    }
    return _format(document)


def _kantara_purpose(rules: PurposeRules, controller: Controller, until: int) -> JsonValue:
    named = [one.name for one in controller.on(rules.purpose).recipients]
    others = [*(name for name in rules.recipients if name != "this brand"), *named]
    document: dict[str, JsonValue] = {
        "purpose": rules.description["en"],
        "purposeCategory": [rules.purpose.value],
        "consentType": "EXPLICIT",
        "piiCategory": [*rules.data],
        "primaryPurpose": False,
        "termination": format_instant(until),
        "thirdPartyDisclosure": bool(others),
    }
    if others:
        document["thirdPartyName"] = "; ".join(others)
    return document


def _ladder(record: ConsentRecord, ladder: Ladder | None) -> Ladder:
    words = ladder_of(record.profile) if ladder is None else ladder
    if words.profile is not record.profile:
        raise ValueError(f"a record under {record.profile} cannot be said by {words.profile}")
    return words


def _declared(controller: Controller, purposes: Iterable[Purpose]) -> dict[str, JsonValue]:
    return {
        purpose.value: format_declaration(controller.on(purpose)) for purpose in sorted(purposes)
    }


def _record(record: ConsentRecord, controller: Controller, ladder: Ladder) -> dict[str, JsonValue]:
    party = _party(controller)
    purposes = sorted(record.given | record.refused, key=lambda purpose: purpose.bit)
    # Everything of the record that DPV has no word for stays under our own prefix.
    return {
        "@context": dict(vocabulary.CONTEXT),
        "@type": ["dpv:ConsentRecord"],
        "dct:conformsTo": vocabulary.RECORD_SCHEMAS[record.profile],
        "tillpact:standard": STANDARD,
        "tillpact:schemaVersion": SCHEMA_VERSION,
        "dpv:hasIdentifier": record.record_id,
        "dpv:hasDataSubject": {
            "@id": _SUBJECT,
            "@type": ["dpv:DataSubject"],
            "dpv:hasIdentifier": str(record.subject_ref),
        },
        "dct:created": format_instant(record.effective_at),
        "dct:creator": party,
        "dct:language": "en",
        "dpv:hasJurisdiction": f"loc:{controller.country}",
        "dpv:hasApplicableLaw": vocabulary.LAWS[record.profile],
        "dpv:hasNotice": [
            {
                "@type": ["dpv:ConsentNotice"],
                "dpv:hasIdentifier": record.notice.id,
                "dct:hasVersion": record.notice.version,
                "dct:language": record.notice.language,
                "dpv:hasLocation": controller.notice_url,
                "tillpact:sha256": record.notice.sha256,
            }
        ],
        "dpv:hasEntity": _entities(controller, [ladder.rules[purpose] for purpose in purposes]),
        "dpv:hasProcess": [
            _process(ladder.rules[purpose], record, controller) for purpose in purposes
        ],
        "tillpact:separateAct": record.separate,
        "tillpact:tier": None if record.tier is None else record.tier.value,
        "tillpact:terms": {purpose.value: terms for purpose, terms in record.terms.items()},
        "tillpact:age": None if record.age is None else record.age.value,
        "tillpact:logIndex": record.index,
        "tillpact:expressedAt": format_instant(record.expressed_at),
        "tillpact:until": format_instant(record.until),
        "tillpact:channel": record.channel,
        "tillpact:policy": record.policy or None,
        "tillpact:circumstances": format_circumstances(record.circumstances),
        "tillpact:declared": _declared(controller, purposes),
    }


def _receipt(
    record: ConsentRecord, controller: Controller, receipt_id: str, ladder: Ladder
) -> dict[str, JsonValue]:
    return {
        "@context": dict(vocabulary.CONTEXT),
        "@type": ["dpv:ConsentReceipt"],
        "dct:conformsTo": vocabulary.RECEIPT_SCHEMAS[record.profile],
        "tillpact:standard": STANDARD,
        "tillpact:schemaVersion": SCHEMA_VERSION,
        "dpv:hasIdentifier": receipt_id,
        "dct:hasPart": _record(record, controller, ladder),
    }


def _party(controller: Controller) -> str:
    return f"tillpact:party-{controller.id}"


def _group(recipient: str) -> str:
    words = "".join(letter if letter.isalnum() else " " for letter in recipient).split()
    return f"tillpact:recipient-{'-'.join(words)}"


def _entities(controller: Controller, asked: list[PurposeRules]) -> dict[str, JsonValue]:
    authority = "tillpact:authority"
    entities: dict[str, JsonValue] = {
        _party(controller): {
            "@type": ["dpv:DataController"],
            "dpv:hasIdentifier": controller.id,
            "dpv:hasName": controller.name,
            "dpv:hasAddress": controller.address,
            "dpv:hasLocation": f"loc:{controller.country}",
            "dpv:hasContact": controller.contact,
            "tillpact:email": controller.email,
            "tillpact:phone": controller.phone,
            "dpv:hasAuthority": authority,
            "dpv:hasDataProtectionOfficer": controller.officer,
            "dpv:hasJointDataControllers": [*controller.joint],
            "dpv:hasTechnicalOrganisationalMeasure": controller.security,
        },
        authority: {
            "@type": ["dpv:DataProtectionAuthority"],
            "dpv:hasName": controller.authority,
        },
    }
    for rules in asked:
        for recipient in rules.recipients:
            entities[_group(recipient)] = {
                "@type": ["dpv:Entity"],
                "rdfs:subClassOf": ["dpv:Recipient"],
                "skos:prefLabel": recipient,
            }
        for one in controller.on(rules.purpose).recipients:
            entities[_group(one.name)] = {
                "@type": ["dpv:ThirdParty" if one.country is None else "dpv:DataImporter"],
                "dpv:hasName": one.name,
                "dpv:hasContact": one.contact,
                "dpv:hasLocation": None if one.country is None else f"loc:{one.country}",
            }
    return entities


def _process(rules: PurposeRules, record: ConsentRecord, controller: Controller) -> JsonValue:
    purpose, profile, declared = rules.purpose, record.profile, controller.on(rules.purpose)
    told = record.circumstances
    given = purpose in record.given
    kind = "dpv:ExplicitlyExpressedConsent" if record.separate else "dpv:ExpressedConsent"
    state = "dpv:ConsentGiven" if given else "dpv:ConsentRefused"
    status: dict[str, JsonValue] = {
        "@type": [state, kind],
        "dpv:isIndicatedAtTime": format_instant(record.expressed_at),
        "dpv:isIndicatedBy": _SUBJECT,
        "dpv:isExercisedAt": record.channel,
        "tillpact:act": None if told.act is None else told.act.value,
        "dpv:hasDuration": {
            "@type": ["dpv:UntilTimeDuration"],
            "rdf:value": format_instant(record.until),
        },
    }
    return {
        "@type": ["dpv:Process"],
        "dpv:hasIdentifier": purpose.value,
        "dpv:hasPurpose": [
            {
                "@type": ["dpv:Purpose"],
                "skos:broader": vocabulary.PURPOSES[purpose],
                "skos:prefLabel": rules.description["en"],
            }
        ],
        "dpv:hasPersonalData": [
            {
                "@type": [vocabulary.data_type(purpose)],
                "skos:broader": [vocabulary.data_term(phrase)],
                "skos:prefLabel": phrase,
            }
            for phrase in (*rules.data, *declared.categories)
        ],
        "tillpact:method": rules.method,
        "dpv:hasProcessing": [*vocabulary.PROCESSING[purpose]],
        "dpv:hasDataController": [_party(controller)],
        "dpv:hasDataSource": [vocabulary.SOURCES[told.source]],
        "dpv:hasStorageCondition": [
            {
                "@type": ["dpv:StorageLocation"],
                "dpv:hasLocation": f"loc:{controller.storage_location}",
            },
            {
                "@type": ["dpv:StorageDuration"],
                "dpv:hasDuration": {
                    "@type": "dpv:TemporalDuration",
                    "rdf:value": controller.retention,
                },
            },
        ],
        "tillpact:retentionDays": controller.days_kept(purpose, most=rules.retention_days),
        "dpv:hasRecipient": [
            _group(name) for name in (*rules.recipients, *(one.name for one in declared.recipients))
        ],
        "tillpact:transfers": [_transfer(one) for one in declared.recipients if one.country],
        "tillpact:necessity": None
        if declared.necessity is None
        else {"en": declared.necessity.en, "zh": declared.necessity.zh},
        "dpv:hasLegalBasis": [
            *vocabulary.legal_bases(rules, profile=profile, separate=record.separate)
        ],
        "dpv:hasRight": [*vocabulary.RIGHTS[profile]],
        "tillpact:needsSeparateConsent": rules.separate,
        "dpv:hasConsentControl": [
            {
                "@type": ["dpv:WithdrawConsent"],
                "skos:prefLabel": {"en": controller.withdraw.en, "zh": controller.withdraw.zh},
                "tillpact:steps": controller.withdraw_steps,
                "tillpact:stepsToGive": controller.give_steps,
            }
        ],
        "dpv:hasConsentStatus": [status],
    }


def _transfer(one: NamedRecipient) -> JsonValue:
    return {
        "@type": ["dpv:CrossBorderTransfer"],
        "dpv:hasRecipient": _group(one.name),
        "dpv:hasLocation": f"loc:{one.country}",
        "tillpact:mechanism": None if one.mechanism is None else one.mechanism.value,
        "tillpact:filing": one.filing,
    }


def _format(document: dict[str, JsonValue]) -> str:
    # The check refuses what another parser could read in another way, such as broken Unicode.
    format_canonical(document)
    return json.dumps(document, ensure_ascii=False, indent=1) + "\n"


def _parse_json(text: str) -> JsonValue:
    if len(text) > MOST_CHARACTERS:
        raise InterchangeError(f"a document must have at most {MOST_CHARACTERS} characters")
    try:
        document: JsonValue = json.loads(text, object_pairs_hook=_unique)
        format_canonical(document)
    except (ValueError, RecursionError) as error:
        raise InterchangeError(f"the document is not strict JSON: {error}") from error
    return document


def _unique(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key occurs twice in one object")
    return value


def _read(fields: Fields) -> ConsentDocument:
    schema = fields.text("dct:conformsTo")
    if fields.text("tillpact:schemaVersion") != SCHEMA_VERSION:
        raise ValueError(f"tillpact:schemaVersion must be {SCHEMA_VERSION}")
    for profile in Profile:
        if schema == vocabulary.RECORD_SCHEMAS[profile]:
            return _read_record(fields, profile, receipt_id=None)
        if schema == vocabulary.RECEIPT_SCHEMAS[profile]:
            inner = fields.inner("dct:hasPart")
            return _read_record(inner, profile, receipt_id=fields.text("dpv:hasIdentifier"))
    raise ValueError("dct:conformsTo must name one of the record and receipt profiles we know")


def _read_record(fields: Fields, profile: Profile, *, receipt_id: str | None) -> ConsentDocument:
    said: dict[str, set[Purpose]] = {"dpv:ConsentGiven": set(), "dpv:ConsentRefused": set()}
    processes = fields.each("dpv:hasProcess")
    if not processes:
        raise ValueError("dpv:hasProcess must hold at least one purpose")
    for process in processes:
        state = _only(process, "dpv:hasConsentStatus").texts("@type")[:1]
        if not state or state[0] not in said:
            raise ValueError("a consent status must be dpv:ConsentGiven or dpv:ConsentRefused")
        said[state[0]].add(Purpose(process.text("dpv:hasIdentifier")))
    notice = _only(fields, "dpv:hasNotice")
    tier, age = fields.optional_text("tillpact:tier"), fields.optional_text("tillpact:age")
    terms = fields.inner("tillpact:terms")
    given, refused = said["dpv:ConsentGiven"], said["dpv:ConsentRefused"]
    record = ConsentRecord(
        record_id=fields.text("dpv:hasIdentifier"),
        subject_ref=SubjectRef(fields.inner("dpv:hasDataSubject").text("dpv:hasIdentifier")),
        given=frozenset(given),
        refused=frozenset(refused),
        notice=Notice(
            id=notice.text("dpv:hasIdentifier"),
            version=notice.count("dct:hasVersion"),
            language=notice.text("dct:language"),
            sha256=notice.text("tillpact:sha256"),
        ),
        channel=fields.text("tillpact:channel"),
        profile=profile,
        expressed_at=parse_instant(fields.text("tillpact:expressedAt")),
        effective_at=parse_instant(fields.text("dct:created")),
        until=parse_instant(fields.text("tillpact:until")),
        tier=None if tier is None else Tier(tier),
        separate=fields.flag("tillpact:separateAct"),
        terms={purpose: terms.text(purpose.value) for purpose in given - refused},
        age=None if age is None else AgeBand(age),
        index=fields.count("tillpact:logIndex"),
        policy=fields.optional_text("tillpact:policy") or "",
        circumstances=parse_circumstances(fields.inner("tillpact:circumstances")),
    )
    _check_record(record)
    controller = _read_controller(fields, processes[0], notice_url=notice.text("dpv:hasLocation"))
    return ConsentDocument(record=record, controller=controller, receipt_id=receipt_id)


def _check_record(record: ConsentRecord) -> None:
    """Hold a foreign record to the rules that `ConsentChoice` holds our own to."""
    if record.given & record.refused:
        raise ValueError("a purpose must not be given and refused in one act")
    if record.separate and len(record.given | record.refused) != 1:
        raise ValueError("a separate act must be about exactly one purpose")
    if not record.expressed_at <= record.effective_at or not record.expressed_at < record.until:
        raise ValueError("a consent must take effect and expire after it was expressed")


def _read_controller(fields: Fields, process: Fields, *, notice_url: str) -> Controller:
    entities = fields.inner("dpv:hasEntity")
    party = entities.inner(fields.text("dct:creator"))
    storage = process.each("dpv:hasStorageCondition")
    if len(storage) != 2:
        raise ValueError("dpv:hasStorageCondition must hold a location and then a duration")
    withdraw = _only(process, "dpv:hasConsentControl")
    words = withdraw.inner("skos:prefLabel")
    declared = fields.inner("tillpact:declared")
    names = declared.keys()
    said = {Purpose(name): parse_declaration(declared.inner(name)) for name in names}
    return Controller(
        id=party.text("dpv:hasIdentifier"),
        name=party.text("dpv:hasName"),
        address=party.text("dpv:hasAddress"),
        country=_country(party.text("dpv:hasLocation")),
        contact=party.text("dpv:hasContact"),
        email=party.text("tillpact:email"),
        phone=party.text("tillpact:phone"),
        officer=party.text("dpv:hasDataProtectionOfficer"),
        joint=party.texts("dpv:hasJointDataControllers"),
        security=party.text("dpv:hasTechnicalOrganisationalMeasure"),
        # A purpose of which the brand says nothing is written out like all others.
        purposes={name: about for name, about in said.items() if about != SILENT},
        authority=entities.inner(party.text("dpv:hasAuthority")).text("dpv:hasName"),
        notice_url=notice_url,
        withdraw=Words(en=words.text("en"), zh=words.text("zh")),
        withdraw_steps=withdraw.count("tillpact:steps"),
        give_steps=withdraw.count("tillpact:stepsToGive"),
        storage_location=_country(storage[0].text("dpv:hasLocation")),
        retention=storage[1].inner("dpv:hasDuration").text("rdf:value"),
    )


def _only(fields: Fields, key: str) -> Fields:
    found = fields.each(key)
    if len(found) != 1:
        raise ValueError(f"{key} must hold exactly one object")
    return found[0]


def _country(text: str) -> str:
    if not text.startswith("loc:"):
        raise ValueError("a location must begin with loc:")
    return text.removeprefix("loc:")


def _difference(expected: JsonValue, found: JsonValue, *, path: str) -> str | None:
    """Return the first place where a document is not what it must be, or None."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in expected:
            if key not in found:
                return f"the mandatory field {path}/{key} is missing"
        for key in found:
            if key not in expected:
                return f"the field {path}/{key[:60]!r} is unknown"
        pairs = [(key, expected[key], found[key]) for key in expected]
    elif isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        pairs = [(str(n), *both) for n, both in enumerate(zip(expected, found, strict=True))]
    elif type(expected) is type(found) and expected == found:
        return None
    else:
        return f"the field {path} is not what this version says for such a record"
    for key, ours, theirs in pairs:
        difference = _difference(ours, theirs, path=f"{path}/{key}")
        if difference is not None:
            return difference
    return None
