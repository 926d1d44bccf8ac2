"""Make the receipt vectors again: one file per fault, from fixed keys, salts and times.

Run `python tests/vectors/receipt/make.py` to rewrite them; a test compares. What tests of
receipts share, a record and its controller among it, is here as well.
"""

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from consent import (
    Checkpoint,
    Identity,
    Ladder,
    Notice,
    Profile,
    Purpose,
    TrustPolicy,
    cosign,
    ladder_of,
    sign_checkpoint,
)
from consent.canonical import JsonValue, format_canonical, parse_canonical
from consent.chain import Opening, format_link
from consent.circumstances import ActKind, Circumstances, Screen, format_circumstances
from consent.controller import (
    Controller,
    NamedRecipient,
    PurposeDeclaration,
    TransferMechanism,
    digest_of_controller,
)
from consent.merkle import inclusion_proof, leaf_hash, tree_root
from consent.proof import TlogProof, format_opening, format_proof
from consent.receipt import finalise_receipt, issue_receipt
from consent.register import ConsentRecord
from consent.sealed import SubjectRef
from consent.wording import Words

ORIGIN = "brand-a.example/log"
AT = 1_795_293_098_800
SALT = bytes(range(32))
CONTROLLER = Controller(
    id="brand-a.example",
    name="Brand A Retail",
    address="1 Market Street, 10115 Berlin",
    country="DE",
    contact="Data protection officer",
    email="privacy@brand-a.example",
    phone="+49 30 0000000",
    officer="dpo@brand-a.example",
    authority="Berlin Commissioner for Data Protection",
    notice_url="https://brand-a.example/privacy",
    withdraw=Words(
        en="In the app: Me › Privacy › switch it off", zh="应用内：我的 › 隐私 › 关闭开关"
    ),
    withdraw_steps=2,
    give_steps=3,
    storage_location="DE",
    retention="P6M",
    security="Keys at the node only, sealed entries, noise on everything that leaves it.",
    purposes={
        Purpose.RECOMMENDATION: PurposeDeclaration(
            retention_days=90,
            recipients=(
                NamedRecipient(
                    name="Letter Shop Ltd",
                    contact="privacy@letters.example",
                    method="prints and posts",
                    data=("contact",),
                    country="US",
                    mechanism=TransferMechanism.STANDARD_CONTRACT,
                    filing="SCC-2026-11",
                ),
            ),
        )
    },
)
LADDER = ladder_of(Profile.EU_GDPR)
TOLD = Circumstances(
    act=ActKind.SWITCH,
    screen=Screen(version="8.4.1", sha256="5c" * 32),
    shown_at=AT - 9000,
    controller=digest_of_controller(CONTROLLER),
)
RECORD = ConsentRecord(
    record_id="ab" * 16,
    subject_ref=SubjectRef("5e" * 32),
    given=frozenset({Purpose.CONTACT, Purpose.RECOMMENDATION}),
    refused=frozenset({Purpose.CHURN_SCORING}),
    notice=Notice(id="privacy", version=7, language="de", sha256="c0" * 32),
    channel="app",
    profile=Profile.EU_GDPR,
    expressed_at=AT - 300,
    effective_at=AT,
    until=AT + 365 * 86_400_000,
    tier=None,
    separate=False,
    terms={Purpose.CONTACT: "1c" * 16, Purpose.RECOMMENDATION: "2d" * 16},
    age=None,
    index=3,
    policy=LADDER.digest,
    circumstances=TOLD,
)
RECEIPT_ID = "0f" * 16
SUBJECT_KEY = "k" * 43
HEADER: dict[str, JsonValue] = {"alg": "Ed25519", "typ": "consent-receipt+jwt"}

Vector = dict[str, str | None]


def named(name: str, seed: str) -> Identity:
    """Return an identity whose key follows from a seed; for vectors only."""
    key = hashlib.sha256(seed.encode()).digest()
    return Identity(name, Ed25519PrivateKey.from_private_bytes(key))


LOG, COORDINATOR = named(ORIGIN, "log"), named("coordinator.example", "coord")
OTHER = named(ORIGIN, "another log key")
HEADER["kid"] = LOG.public.fingerprint
POLICY = (
    f"log {LOG.public.format()}\n"
    f"witness coordinator {COORDINATOR.public.format_witness()}\n"
    "quorum coordinator\n"
)


def event_of(record: ConsentRecord) -> dict[str, JsonValue]:
    """Return the event that a register logs for a record."""
    return {
        "type": "consent.recorded",
        "v": 1,
        "at": record.effective_at,
        "record": record.record_id,
        "subject": record.subject_ref,
        "given": [*sorted(record.given)],
        "refused": [*sorted(record.refused)],
        "notice": {
            "id": record.notice.id,
            "version": record.notice.version,
            "language": record.notice.language,
            "sha256": record.notice.sha256,
        },
        "channel": record.channel,
        "profile": str(record.profile),
        "expressed_at": record.expressed_at,
        "until": record.until,
        "tier": None,
        "separate": record.separate,
        "policy": record.policy,
        "circumstances": format_circumstances(record.circumstances),
    }


def prove(
    record: ConsentRecord,
    *,
    index: int = 3,
    signer: Identity = LOG,
    cosigned: bool = True,
    kind: str = "consent.recorded",
) -> TlogProof:
    """Return the proof of a record's entry in a log of six entries."""
    event = {**event_of(record), "type": kind}
    opening = Opening(SALT, format_link(event, subject=record.subject_ref, before=None))
    hashes = [leaf_hash(b"entry %d" % number) for number in range(6)]
    hashes[index] = leaf_hash(opening.leaf)
    note = sign_checkpoint(Checkpoint(ORIGIN, 6, tree_root(hashes)), signer)
    if cosigned:
        note = cosign(note, COORDINATOR, at=AT + 5000)
    path = tuple(inclusion_proof(hashes, index))
    return TlogProof(index=index, hashes=path, note=note, extra=format_opening(opening))


def encode(data: bytes) -> str:
    """Write base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def decode(segment: str) -> bytes:
    """Read base64url without padding."""
    return base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))


def forge(payload: bytes, *, header: dict[str, JsonValue] | bytes = HEADER) -> str:
    """Sign any header and payload with the log's key, as a receipt is signed."""
    head = header if isinstance(header, bytes) else format_canonical(header)
    signed = f"{encode(head)}.{encode(payload)}"
    return f"{signed}.{encode(LOG.sign_text(signed.encode()))}"


def issued(
    record: ConsentRecord = RECORD,
    controller: Controller = CONTROLLER,
    ladder: Ladder = LADDER,
) -> str:
    """Return a pending receipt."""
    return issue_receipt(
        record,
        issuer=LOG,
        controller=controller,
        ladder=ladder,
        receipt_id=RECEIPT_ID,
        subject_key=SUBJECT_KEY,
    )


def payload_of(text: str) -> dict[str, JsonValue]:
    """Return the payload of a receipt."""
    value = parse_canonical(decode(text.split(".")[1]))
    assert isinstance(value, dict)
    return value


def changed(text: str, change: Callable[[dict[str, JsonValue]], object]) -> str:
    """Return a receipt that the issuer signed after a change of its payload."""
    payload = payload_of(text)
    change(payload)
    return forge(format_canonical(payload))


def vectors() -> dict[str, Vector]:
    """Return every case by its name: why, receipt, issuer, policy, and the error or null."""
    pending = issued()
    final = finalise_receipt(pending, issuer=LOG, proof=format_proof(prove(RECORD)))
    head, body, signature = pending.split(".")
    payload = decode(body)

    def case(why: str, receipt: str, error: str | None, policy: str | None = POLICY) -> Vector:
        return {
            "why": why,
            "receipt": receipt,
            "issuer": LOG.public.format(),
            "policy": policy,
            "error": error,
        }

    def header(**fields: JsonValue) -> str:
        return forge(payload, header={**HEADER, **fields})

    def proved(proof: TlogProof) -> str:
        def put(payload: dict[str, JsonValue]) -> None:
            log: JsonValue = {
                "origin": ORIGIN,
                "index": 3,
                "status": "final",
                "proof": format_proof(proof),
            }
            payload["log"] = log

        return changed(pending, put)

    def put(key: str, value: JsonValue) -> str:
        return changed(pending, lambda payload: payload.update({key: value}))

    def drop(key: str) -> str:
        return changed(pending, lambda payload: payload.pop(key))

    stranger = issue_receipt(
        RECORD,
        issuer=OTHER,
        controller=CONTROLLER,
        ladder=LADDER,
        receipt_id=RECEIPT_ID,
        subject_key=SUBJECT_KEY,
    )
    unsigned = encode(format_canonical({**HEADER, "alg": "none"}))
    more = replace(RECORD, given=RECORD.given | {Purpose.LOOKALIKE})
    spaced = json.dumps(json.loads(payload)).encode()
    signature_bytes = bytearray(decode(signature))
    signature_bytes[40] ^= 1
    # 64 bytes leave four unused bits in the last character.
    last = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    loose = signature[:-1] + last[last.index(signature[-1]) + 1]
    uncosigned = proved(prove(RECORD, cosigned=False))
    policy_of_another = TrustPolicy.parse(
        POLICY.replace(LOG.public.format(), OTHER.public.format())
    )
    return {
        "happy-pending": case("issued and not yet in a signed tree", pending, None),
        "happy-final": case("in the log, cosigned by the quorum", final, None),
        "happy-final-without-policy": case(
            "only the issuer's key is known", uncosigned, None, None
        ),
        "algorithm-none": case(
            "the token says that it needs no signature",
            f"{unsigned}.{body}.",
            "must be signed with Ed25519",
        ),
        "algorithm-hmac": case(
            "the public key would be taken for a shared secret",
            header(alg="HS256"),
            "must be signed with Ed25519",
        ),
        "algorithm-eddsa": case(
            "the older name, which also stands for Ed448",
            header(alg="EdDSA"),
            "must be signed with Ed25519",
        ),
        "header-crit": case(
            "asks for an extension", header(crit=["b64"]), "alg, kid and typ and nothing else"
        ),
        "header-brings-its-own-key": case(
            "a key inside the token vouches for nothing",
            header(jwk={"kty": "OKP"}),
            "alg, kid and typ and nothing else",
        ),
        "header-without-kid": case(
            "no key named",
            forge(payload, header={key: HEADER[key] for key in ("alg", "typ")}),
            "alg, kid and typ and nothing else",
        ),
        "header-another-type": case(
            "a token for something else", header(typ="JWT"), "the type of a receipt must be"
        ),
        "header-another-key": case(
            "kid of another key", header(kid="0" * 16), "signed with another key than that of"
        ),
        "header-not-canonical": case(
            "a space in the header",
            forge(payload, header=json.dumps(HEADER).encode()),
            "the header of a receipt must be canonical JSON",
        ),
        "signed-by-another-key": case(
            "same name, another key", stranger, "signed with another key than that of"
        ),
        "signature-flipped": case(
            "one bit of the signature",
            f"{head}.{body}.{encode(bytes(signature_bytes))}",
            "the signature on the receipt is not one of",
        ),
        "signature-cut": case(
            "63 bytes",
            f"{head}.{body}.{encode(bytes(signature_bytes[:63]))}",
            "the signature on the receipt is not one of",
        ),
        "signature-missing": case(
            "two parts", f"{head}.{body}", "three parts of base64url with a dot"
        ),
        "signature-second-spelling": case(
            "unused bits are set", f"{head}.{body}.{loose}", "in its only base64url spelling"
        ),
        "padded": case(
            "base64 with padding", f"{head}.{body}.{signature}==", "in its only base64url spelling"
        ),
        "not-base64url": case(
            "standard alphabet", f"{head}.{body[:-1]}*.{signature}", "is not base64url"
        ),
        "newline-after": case("one more byte", pending + "\n", "is not base64url"),
        "too-long": case("a huge token", "A" * 65_537, "at most 65536 characters"),
        "payload-of-another-receipt": case(
            "payload exchanged under a good signature",
            f"{head}.{issued(more).split('.')[1]}.{signature}",
            "the signature on the receipt is not one of",
        ),
        "payload-not-canonical": case(
            "signed, with spaces", forge(spaced), "this is another spelling of its value"
        ),
        "payload-not-an-object": case("signed list", forge(b"[]"), "the receipt must be an object"),
        "schema-unknown": case(
            "a later version",
            put("schema", "tillpact.consent-receipt/2"),
            "its schema must be tillpact.consent-receipt/1",
        ),
        "field-missing": case("no channel", drop("channel"), "channel of the receipt is missing"),
        "field-unknown": case(
            "one field too many", put("note", "x"), "the receipt holds an unknown field 'note'"
        ),
        "field-of-another-kind": case(
            "a time as text",
            put("effective_at", "now"),
            "effective_at of the receipt must be an integer",
        ),
        "purpose-unknown": case(
            "a purpose nobody knows",
            changed(pending, lambda payload: payload["refused"][0].update({"purpose": "spying"})),  # type: ignore[index, union-attr, call-overload]
            "is not a valid Purpose",
        ),
        "purpose-twice": case(
            "given and refused at once",
            changed(
                pending,
                lambda payload: payload["refused"][0].update({"purpose": "contact"}),  # type: ignore[index, union-attr, call-overload]
            ),
            "must name at least one purpose, and each of them once",
        ),
        "withdrawing-harder-than-giving": case(
            "ten steps to take it back",
            changed(pending, lambda payload: payload["controller"].update({"withdraw_steps": 10})),  # type: ignore[union-attr]
            "must not need more steps than giving it: 10 against 3",
        ),
        "issuer-another": case(
            "the payload names another issuer",
            changed(
                pending,
                lambda payload: payload.update(
                    {
                        "iss": "brand-b.example/log",
                        "log": {
                            "origin": "brand-b.example/log",
                            "index": 3,
                            "status": "pending",
                            "proof": None,
                        },
                    }
                ),
            ),
            "the receipt names the issuer 'brand-b.example/log'",
        ),
        "status-claims-final": case(
            "final without a proof",
            changed(pending, lambda payload: payload["log"].update({"status": "final"})),  # type: ignore[union-attr]
            "its status or its origin contradicts its other fields",
        ),
        "proof-not-cosigned": case("the quorum is not met", uncosigned, "cosigned by nobody"),
        "proof-of-another-log": case(
            "the policy knows another key for the log",
            final,
            "the trust policy has another key",
            policy_of_another.format(),
        ),
        "proof-signed-by-another-key": case(
            "a checkpoint of the same name", proved(prove(RECORD, signer=OTHER)), "is not signed by"
        ),
        "proof-signed-by-another-key-without-policy": case(
            "a checkpoint of the same name, and only the issuer's key is known",
            proved(prove(RECORD, signer=OTHER)),
            "is not signed by",
            None,
        ),
        "proof-of-another-entry": case(
            "index 4 of the same log", proved(prove(RECORD, index=4)), "is of entry 4, not of 3"
        ),
        "proof-of-another-act": case(
            "the log says more than the receipt",
            proved(prove(more)),
            "the entry of the log says another given than the receipt",
        ),
        "proof-of-another-kind-of-event": case(
            "the log says that it was taken back",
            proved(prove(RECORD, kind="consent.withdrawn")),
            "the entry of the log is not about a choice of a person",
        ),
        "happy-final-renewed": case(
            "the act renewed an older one", proved(prove(RECORD, kind="consent.renewed")), None
        ),
        "proof-of-a-longer-consent": case(
            "the log says another end",
            proved(prove(replace(RECORD, until=RECORD.until + 1))),
            "the entry of the log says another until than the receipt",
        ),
        "proof-opening-changed": case(
            "another salt",
            proved(replace(prove(RECORD), extra=bytes(32) + prove(RECORD).extra[32:])),
            "leads to another root hash",
        ),
        "proof-garbage": case(
            "no proof at all",
            changed(
                pending,
                lambda payload: payload["log"].update({"status": "final", "proof": "trust us"}),  # type: ignore[union-attr]
            ),
            "a proof must begin with 'c2sp.org/tlog-proof@v1'",
        ),
    }


def format_vector(case: Vector) -> str:
    """Write one case as its file holds it."""
    return json.dumps(case, indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    for stem, content in vectors().items():
        Path(__file__).with_name(f"{stem}.json").write_text(format_vector(content))
