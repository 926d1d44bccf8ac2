"""Own the receipt: what a person holds in their hand after they chose, and can check offline.

A receipt is a JWS in compact form (RFC 7515) with the algorithm `Ed25519` (RFC 9864). It is
pending when the node has committed the act, and final when it carries the proof that the act is
in the log. It holds a bearer secret of its owner: it is never logged and never shown on a page.

The node signs receipts with the key of its log, without a context, as JWS asks. No receipt can
pass for a signed note or the reverse: what a note signs ends in a newline and has several lines,
while a JWS signs base64url, one dot and base64url, in which there is no newline. Nor can it pass
for a message with a context, which holds a zero byte.
"""

import base64
import binascii
import re
from dataclasses import dataclass, field, replace
from enum import StrEnum

from consent import wording
from consent.canonical import CanonicalError, JsonValue, format_canonical, parse_canonical
from consent.circumstances import (
    NOTHING_TOLD,
    Circumstances,
    format_circumstances,
    parse_circumstances,
)
from consent.controller import (
    Controller,
    digest_of_controller,
    format_controller,
    parse_controller,
)
from consent.fields import Fields
from consent.identity import Identity, PublicIdentity, SignatureError
from consent.instant import LATEST_MS
from consent.merkle import ProofError
from consent.note import NoteError
from consent.proof import parse_proof, verify_opened_proof
from consent.purpose import Ladder, Profile, Purpose
from consent.register import ConsentRecord, Notice
from consent.trust import NO_QUORUM, TrustPolicy
from consent.wording import Right, Words

__all__ = [
    "GivenPurpose",
    "Receipt",
    "ReceiptError",
    "ReceiptStatus",
    "finalise_receipt",
    "issue_receipt",
    "verify_receipt",
]

ALGORITHM, TYPE, SCHEMA = "Ed25519", "consent-receipt+jwt", "tillpact.consent-receipt/1"
MOST_CHARACTERS = 65_536
_ACTS = ("consent.recorded", "consent.renewed")
_TOKEN = re.compile(r"[A-Za-z0-9_-]{43,128}")
_ID = re.compile(r"[0-9a-f]{32}")


class ReceiptError(Exception):
    """A text is not a receipt that this issuer signed, or it claims what is not proved."""


class ReceiptStatus(StrEnum):
    """How much of a receipt is proved by the log."""

    PENDING = "pending"
    FINAL = "final"


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenPurpose:
    """One purpose that a person agreed to, in the words of the day.

    Attributes:
        purpose: Which purpose.
        description: What is done, in one plain sentence.
        data: Categories of data.
        recipients: Who gets anything derived from it.
        retention_days: Days until the data is deleted.
        until: When the consent expires, epoch milliseconds.
    """

    purpose: Purpose
    description: Words
    data: tuple[Words, ...]
    recipients: tuple[Words, ...]
    retention_days: int
    until: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What a receipt says.

    Attributes:
        receipt_id: Random id of the receipt, 32 hex digits.
        record_id: Record of the act at the node, 32 hex digits.
        issuer: Name of the node, which is also the origin of its log.
        subject_key: Bearer secret with which its owner withdraws; never printed.
        profile: The law the node follows.
        policy: Digest of the profile file in force.
        controller: Who answers, how consent is taken back, and whom the brand itself names as
            getting data for the purposes that were agreed to.
        notice: What the person was shown.
        channel: Where it happened.
        expressed_at: When the person said it, epoch milliseconds.
        effective_at: When the node committed it.
        separate: Whether the act asked for one purpose and nothing else.
        given: What was agreed to.
        refused: What was refused, with its description.
        circumstances: How the choice was made.
        rights: What the person may ask for, and under which article.
        index: Entry of the log.
        proof: C2SP tlog-proof of that entry; None while pending.
    """

    receipt_id: str
    record_id: str
    issuer: str
    subject_key: str = field(repr=False)
    profile: Profile
    policy: str
    controller: Controller
    notice: Notice
    channel: str
    expressed_at: int
    effective_at: int
    separate: bool
    given: tuple[GivenPurpose, ...]
    refused: tuple[tuple[Purpose, Words], ...]
    circumstances: Circumstances
    rights: tuple[Right, ...]
    index: int
    # The proof opens the sealed entry, so that it belongs to the person like the key.
    proof: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not (_ID.fullmatch(self.receipt_id) and _ID.fullmatch(self.record_id)):
            raise ValueError("the ids of a receipt and of its record must be 32 hex digits")
        if not _TOKEN.fullmatch(self.subject_key):
            raise ValueError("the subject key of a receipt must be 43 to 128 base64url characters")
        if not (self.channel.isprintable() and len(self.channel) <= 100):
            raise ValueError("the channel of a receipt must be one printable line")
        if not (self.notice.id.isprintable() and self.notice.language.isprintable()):
            raise ValueError("the notice of a receipt must be named on one printable line")
        purposes = [line.purpose for line in self.given] + [said for said, _ in self.refused]
        if not purposes or len(set(purposes)) != len(purposes):
            raise ValueError("a receipt must name at least one purpose, and each of them once")
        times = (self.expressed_at, self.effective_at, *(line.until for line in self.given))
        if not all(0 <= at <= LATEST_MS for at in times) or self.expressed_at > self.effective_at:
            raise ValueError("the times of a receipt must be in order and before the year 10000")

    @property
    def status(self) -> ReceiptStatus:
        """Return whether the act is proved to be in the log."""
        return ReceiptStatus.PENDING if self.proof is None else ReceiptStatus.FINAL


def issue_receipt(
    record: ConsentRecord,
    *,
    issuer: Identity,
    controller: Controller,
    ladder: Ladder,
    receipt_id: str,
    subject_key: str,
) -> str:
    """Sign the pending receipt of a record.

    Args:
        record: The act as the node's register returned it.
        issuer: Identity of the node's log.
        controller: Who answered for the data when the record was made.
        ladder: The profile that was in force then.
        receipt_id: 32 hex digits that nobody can guess.
        subject_key: With what this person withdraws.

    Raises:
        ValueError: A value cannot be written on a receipt, or the record was made under another
            profile or controller; nothing was signed.
    """
    if record.policy not in {"", ladder.digest} or record.profile is not ladder.profile:
        raise ValueError("a receipt must be in the words of the profile that its record names")
    if record.circumstances.controller not in {None, digest_of_controller(controller)}:
        raise ValueError("a receipt must name the controller that its record names")
    receipt = Receipt(
        receipt_id=receipt_id,
        record_id=record.record_id,
        issuer=issuer.name,
        subject_key=subject_key,
        profile=record.profile,
        policy=record.policy,
        controller=controller.about(record.given),
        notice=record.notice,
        channel=record.channel,
        expressed_at=record.expressed_at,
        effective_at=record.effective_at,
        separate=record.separate,
        given=tuple(
            GivenPurpose(
                purpose=purpose,
                description=wording.describe(ladder, purpose),
                data=wording.data_of(ladder, purpose),
                recipients=wording.recipients_of(ladder, purpose),
                retention_days=controller.days_kept(
                    purpose, most=ladder.rules[purpose].retention_days
                ),
                until=record.until,
            )
            for purpose in _in_order(record.given)
        ),
        refused=tuple(
            (purpose, wording.describe(ladder, purpose)) for purpose in _in_order(record.refused)
        ),
        circumstances=record.circumstances,
        rights=wording.RIGHTS[record.profile],
        index=record.index,
    )
    return _sign(receipt, issuer)


def finalise_receipt(text: str, *, issuer: Identity, proof: str) -> str:
    """Sign a receipt again, now with the proof that its act is in the log.

    Args:
        text: The pending receipt, or an older final one.
        issuer: Identity that signed it.
        proof: What `prove_opened` returned for its entry: the proof, and what opens the entry.

    Raises:
        ReceiptError: The receipt is not this issuer's, or the proof does not show that the log
            holds what the receipt says; nothing was signed.
    """
    pending = verify_receipt(text, issuer.public)
    final = replace(pending, proof=proof)
    _verify_logged(final, issuer.public, policy=None)
    return _sign(final, issuer)


def verify_receipt(text: str, issuer: PublicIdentity, policy: TrustPolicy | None = None) -> Receipt:
    """Return what a receipt says, once the issuer's signature and any log proof hold.

    Args:
        text: The compact JWS, nothing before or after it.
        issuer: Public key of the node, known from elsewhere.
        policy: When given, the checkpoint of a final receipt must satisfy its quorum too.

    Raises:
        ReceiptError: One byte is not as it was signed, the header asks for anything but
            Ed25519, a field is missing or unknown, or the proof shows something else.

    Source: RFC 7515 section 5.2; RFC 8725 section 3.1 on algorithms that a token chooses itself.
    """
    payload = _verify_signature(text, issuer)
    receipt = _parse_payload(payload)
    if receipt.issuer != issuer.name:
        raise ReceiptError(f"the receipt names the issuer {receipt.issuer!r}, not {issuer.name!r}")
    if receipt.proof is not None:
        _verify_logged(receipt, issuer, policy=policy)
    return receipt


def _sign(receipt: Receipt, issuer: Identity) -> str:
    header = format_canonical(_header(issuer.public))
    signed = f"{_encode(header)}.{_encode(format_canonical(_payload(receipt)))}"
    text = f"{signed}.{_encode(issuer.sign_text(signed.encode()))}"
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"a receipt must have at most {MOST_CHARACTERS} characters")
    return text


def _verify_signature(text: str, issuer: PublicIdentity) -> bytes:
    if len(text) > MOST_CHARACTERS:
        raise ReceiptError(f"a receipt must have at most {MOST_CHARACTERS} characters")
    segments = text.split(".")
    if len(segments) != 3:
        raise ReceiptError("a receipt must be three parts of base64url with a dot between them")
    header, payload, signature = (_decode(segment) for segment in segments)
    _check_header(header, issuer)
    try:
        issuer.verify_text(f"{segments[0]}.{segments[1]}".encode(), signature)
    except SignatureError as error:
        raise ReceiptError(f"the signature on the receipt is not one of {issuer.name}") from error
    return payload


def _check_header(header: bytes, issuer: PublicIdentity) -> None:
    try:
        found = parse_canonical(header)
    except CanonicalError as error:
        raise ReceiptError("the header of a receipt must be canonical JSON") from error
    expected = _header(issuer)
    if not isinstance(found, dict) or found.keys() != expected.keys():
        raise ReceiptError("the header of a receipt must hold alg, kid and typ and nothing else")
    if found["alg"] != ALGORITHM:
        raise ReceiptError(f"a receipt must be signed with {ALGORITHM}; no other is accepted")
    if found["typ"] != TYPE:
        raise ReceiptError(f"the type of a receipt must be {TYPE}")
    if found["kid"] != expected["kid"]:
        raise ReceiptError(f"the receipt is signed with another key than that of {issuer.name}")


def _header(issuer: PublicIdentity) -> dict[str, JsonValue]:
    return {"alg": ALGORITHM, "typ": TYPE, "kid": issuer.fingerprint}


def _verify_logged(receipt: Receipt, issuer: PublicIdentity, policy: TrustPolicy | None) -> None:
    """Raise `ReceiptError` unless the log's own entry says what the receipt says."""
    proof = receipt.proof or ""
    try:
        index = parse_proof(proof).index
        if index != receipt.index:
            raise ProofError(f"the proof is of entry {index}, not of {receipt.index}")
        # The leaf is rebuilt from what it commits to: a proof of any other entry fails here.
        opening = verify_opened_proof(proof, policy=_policy_for(issuer, policy))
    except (ProofError, NoteError) as error:
        raise ReceiptError(f"the log does not prove the receipt: {error}") from error
    _check_event(receipt, opening.link.event)


def _policy_for(issuer: PublicIdentity, policy: TrustPolicy | None) -> TrustPolicy:
    """Return the policy narrowed to the issuer's log: no other log can vouch for its receipts."""
    if policy is None:
        return TrustPolicy(logs=(issuer,), witnesses={}, groups={}, quorum=NO_QUORUM)
    if policy.log(issuer.name).key != issuer.key:
        raise NoteError(f"the trust policy has another key for {issuer.name!r}")
    return replace(policy, logs=(issuer,))


def _check_event(receipt: Receipt, said: dict[str, JsonValue]) -> None:
    if said.get("type") not in _ACTS:
        raise ReceiptError("the entry of the log is not about a choice of a person")
    for key, value in _event_fields(receipt).items():
        if said.get(key) != value:
            raise ReceiptError(f"the entry of the log says another {key} than the receipt")


def _event_fields(receipt: Receipt) -> dict[str, JsonValue]:
    """Return what the register must have logged for this receipt."""
    fields: dict[str, JsonValue] = {
        "at": receipt.effective_at,
        "record": receipt.record_id,
        "given": [*sorted(line.purpose.value for line in receipt.given)],
        "refused": [*sorted(purpose.value for purpose, _ in receipt.refused)],
        "notice": _format_notice(receipt.notice),
        "channel": receipt.channel,
        "profile": receipt.profile.value,
        "expressed_at": receipt.expressed_at,
        "separate": receipt.separate,
    }
    # Records from before these two were kept say nothing of them.
    if receipt.policy:
        fields["policy"] = receipt.policy
    if receipt.circumstances != NOTHING_TOLD:
        fields["circumstances"] = format_circumstances(receipt.circumstances)
    if receipt.given:
        fields["until"] = receipt.given[0].until
    return fields


def _payload(receipt: Receipt) -> dict[str, JsonValue]:
    given: list[JsonValue] = [
        {
            "purpose": line.purpose.value,
            "words": _format_words(line.description),
            "data": [_format_words(words) for words in line.data],
            "recipients": [_format_words(words) for words in line.recipients],
            "retention_days": line.retention_days,
            "until": line.until,
        }
        for line in receipt.given
    ]
    refused: list[JsonValue] = [
        {"purpose": purpose.value, "words": _format_words(words)}
        for purpose, words in receipt.refused
    ]
    return {
        "schema": SCHEMA,
        "iss": receipt.issuer,
        "jti": receipt.receipt_id,
        "record": receipt.record_id,
        "subject_key": receipt.subject_key,
        "profile": receipt.profile.value,
        "policy": receipt.policy or None,
        "controller": format_controller(receipt.controller),
        "rights": [
            {
                "right": right.id,
                "words": _format_words(right.words),
                "law": _format_words(right.law),
            }
            for right in receipt.rights
        ],
        "notice": _format_notice(receipt.notice),
        "channel": receipt.channel,
        "expressed_at": receipt.expressed_at,
        "effective_at": receipt.effective_at,
        "separate": receipt.separate,
        "given": given,
        "refused": refused,
        "circumstances": format_circumstances(receipt.circumstances),
        "log": {
            "origin": receipt.issuer,
            "index": receipt.index,
            "status": receipt.status.value,
            "proof": receipt.proof,
        },
    }


def _parse_payload(data: bytes) -> Receipt:
    try:
        value = parse_canonical(data)
        receipt = _read_payload(Fields(value, where="the receipt"))
        if _payload(receipt) != value:
            raise ValueError("its status or its origin contradicts its other fields")
    except (ValueError, NoteError) as error:
        raise ReceiptError(f"the receipt is signed but cannot be read: {error}") from error
    return receipt


def _read_payload(fields: Fields) -> Receipt:
    if fields.text("schema") != SCHEMA:
        raise ValueError(f"its schema must be {SCHEMA}")
    log = fields.inner("log")
    receipt = Receipt(
        receipt_id=fields.text("jti"),
        record_id=fields.text("record"),
        issuer=fields.text("iss"),
        subject_key=fields.text("subject_key"),
        profile=Profile(fields.text("profile")),
        policy=fields.optional_text("policy") or "",
        controller=parse_controller(fields.inner("controller")),
        notice=_parse_notice(fields.inner("notice")),
        channel=fields.text("channel"),
        expressed_at=fields.count("expressed_at"),
        effective_at=fields.count("effective_at"),
        separate=fields.flag("separate"),
        given=tuple(_parse_given(line) for line in fields.each("given")),
        refused=tuple(_parse_refused(line) for line in fields.each("refused")),
        circumstances=parse_circumstances(fields.inner("circumstances")),
        rights=tuple(_parse_right(right) for right in fields.each("rights")),
        index=log.count("index"),
        proof=log.optional_text("proof"),
    )
    # What these say follows from other fields; the caller compares the whole document.
    for key in ("origin", "status"):
        log.text(key)
    log.finish()
    fields.finish()
    return receipt


def _parse_given(fields: Fields) -> GivenPurpose:
    line = GivenPurpose(
        purpose=Purpose(fields.text("purpose")),
        description=_parse_words(fields.inner("words")),
        data=tuple(_parse_words(words) for words in fields.each("data")),
        recipients=tuple(_parse_words(words) for words in fields.each("recipients")),
        retention_days=fields.count("retention_days"),
        until=fields.count("until"),
    )
    fields.finish()
    return line


def _parse_refused(fields: Fields) -> tuple[Purpose, Words]:
    purpose = Purpose(fields.text("purpose"))
    words = _parse_words(fields.inner("words"))
    fields.finish()
    return purpose, words


def _parse_right(fields: Fields) -> Right:
    words = _parse_words(fields.inner("words"))
    law = _parse_words(fields.inner("law"))
    right = Right(id=fields.text("right"), words=words, law=law)
    fields.finish()
    return right


def _parse_words(fields: Fields) -> Words:
    words = Words(en=fields.text("en"), zh=fields.text("zh"))
    fields.finish()
    return words


def _format_words(words: Words) -> dict[str, JsonValue]:
    return {"en": words.en, "zh": words.zh}


def _format_notice(notice: Notice) -> dict[str, JsonValue]:
    return {
        "id": notice.id,
        "version": notice.version,
        "language": notice.language,
        "sha256": notice.sha256,
    }


def _parse_notice(fields: Fields) -> Notice:
    notice = Notice(
        id=fields.text("id"),
        version=fields.count("version"),
        language=fields.text("language"),
        sha256=fields.text("sha256"),
    )
    fields.finish()
    return notice


def _in_order(purposes: frozenset[Purpose]) -> list[Purpose]:
    return sorted(purposes, key=lambda purpose: purpose.bit)


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(segment: str) -> bytes:
    try:
        data = base64.b64decode(segment + "=" * (-len(segment) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise ReceiptError("a part of the receipt is not base64url") from error
    # Unused bits of the last character must be zero, or one receipt had two spellings.
    if _encode(data) != segment:
        raise ReceiptError("a part of the receipt is not in its only base64url spelling")
    return data
