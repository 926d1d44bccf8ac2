import base64
import hashlib
import json
import runpy
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consent import (
    Identity,
    JsonValue,
    Log,
    LogError,
    Notice,
    Profile,
    Purpose,
    Register,
    SealError,
    Witness,
    ladder_of,
)
from consent.canonical import format_canonical
from consent.checkpoint import Checkpoint, sign_checkpoint
from consent.identity import PublicIdentity
from consent.merkle import leaf_hash
from consent.proof import TlogProof, format_proof, prove_opened
from consent.receipt import (
    Receipt,
    ReceiptError,
    ReceiptStatus,
    finalise_receipt,
    issue_receipt,
    verify_receipt,
)
from consent.register import ConsentRecord
from consent.sealed import sealed_leaf
from consent.trust import TrustPolicy
from tests.conftest import Stores

FOLDER = Path(__file__).parents[1] / "vectors" / "receipt"
VECTORS = sorted(FOLDER.glob("*.json"))
MAKE = runpy.run_path(str(FOLDER / "make.py"))
LOG: Identity = MAKE["LOG"]
RECORD: ConsentRecord = MAKE["RECORD"]
POLICY = TrustPolicy.parse(MAKE["POLICY"])
PENDING: str = MAKE["issued"]()
FINAL = finalise_receipt(PENDING, issuer=LOG, proof=format_proof(MAKE["prove"](RECORD)))


@pytest.fixture
def stores() -> Stores:
    """In which engine a log is makes no difference here."""
    return lambda: None


def test_the_script_makes_the_stored_vectors() -> None:
    made = {name: MAKE["format_vector"](case) for name, case in MAKE["vectors"]().items()}

    assert made == {path.stem: path.read_text() for path in VECTORS}


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_receipt_vectors(path: Path) -> None:
    """Each file is one case, named after its fault; `why` says it in words."""
    case = json.loads(path.read_text())
    issuer = PublicIdentity.parse(case["issuer"])
    policy = None if case["policy"] is None else TrustPolicy.parse(case["policy"])

    if case["error"] is None:
        receipt = verify_receipt(case["receipt"], issuer, policy)
        assert receipt.status.value in path.stem
        assert [line.purpose for line in receipt.given] == [Purpose.CONTACT, Purpose.RECOMMENDATION]
    else:
        with pytest.raises(ReceiptError) as caught:
            verify_receipt(case["receipt"], issuer, policy)
        assert case["error"] in str(caught.value), case["why"]


def test_a_receipt_says_everything_in_both_languages() -> None:
    receipt = verify_receipt(PENDING, LOG.public)

    assert receipt.status is ReceiptStatus.PENDING
    assert (receipt.record_id, receipt.index) == (RECORD.record_id, RECORD.index)
    assert receipt.controller == MAKE["CONTROLLER"]
    assert receipt.notice == RECORD.notice
    contact = receipt.given[0]
    assert contact.until == RECORD.until
    assert contact.description.en.startswith("We write to you")
    assert contact.data[0].zh == "联系方式"
    assert receipt.refused[0][0] is Purpose.CHURN_SCORING
    assert {right.id for right in receipt.rights} >= {"access", "erase", "object", "complain"}


def test_the_header_is_the_one_that_was_promised() -> None:
    header = json.loads(base64.urlsafe_b64decode(PENDING.split(".", maxsplit=1)[0] + "=="))

    assert header == {
        "alg": "Ed25519",
        "typ": "consent-receipt+jwt",
        "kid": LOG.public.fingerprint,
    }


def test_a_secret_is_in_no_description_of_a_receipt() -> None:
    receipt = verify_receipt(FINAL, LOG.public)

    assert receipt.subject_key == MAKE["SUBJECT_KEY"]
    assert receipt.subject_key not in repr(receipt)
    assert "tlog-proof" not in repr(receipt)


@pytest.mark.parametrize("text", [PENDING, FINAL], ids=["pending", "final"])
def test_every_changed_byte_of_a_receipt_is_refused(text: str) -> None:
    for place, character in enumerate(text):
        other = "B" if character == "A" else "A"
        with pytest.raises(ReceiptError):
            verify_receipt(text[:place] + other + text[place + 1 :], LOG.public)


@settings(max_examples=200)
@given(st.data())
def test_a_receipt_with_bytes_put_in_taken_out_or_exchanged_is_refused(data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(PENDING)))
    length = data.draw(st.integers(0, 3))
    put = data.draw(st.text("Az09-_.=\n \0é", max_size=3))
    changed = PENDING[:place] + put + PENDING[place + length :]

    if changed != PENDING:
        with pytest.raises(ReceiptError):
            verify_receipt(changed, LOG.public)


@given(st.text() | st.text("AB-_.", max_size=60))
def test_garbage_raises_only_a_receipt_error(text: str) -> None:
    with pytest.raises(ReceiptError):
        verify_receipt(text, LOG.public)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**53 - 1) | st.text("ab01é中", max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc"), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200)
@given(json_values)
def test_signed_garbage_raises_only_a_receipt_error(value: JsonValue) -> None:
    with pytest.raises(ReceiptError):
        verify_receipt(MAKE["forge"](format_canonical(value)), LOG.public)


@settings(max_examples=300)
@given(st.data(), json_values)
def test_a_signed_payload_with_one_field_exchanged_is_read_or_refused(
    data: st.DataObject, value: JsonValue
) -> None:
    payload = MAKE["payload_of"](FINAL)
    inside = payload
    while True:
        key = data.draw(st.sampled_from(sorted(inside)))
        found = inside[key]
        if isinstance(found, list) and found and isinstance(found[0], dict):
            found = found[0]
        if not isinstance(found, dict) or data.draw(st.booleans()):
            break
        inside = found
    inside[key] = value
    text = MAKE["forge"](format_canonical(payload))

    said = ""
    try:
        verify_receipt(text, LOG.public, POLICY)
    except ReceiptError as error:
        said = str(error)

    assert MAKE["SUBJECT_KEY"] not in said


def test_a_receipt_is_nobody_elses() -> None:
    stranger = Identity.generate("brand-b.example/log")
    with pytest.raises(ReceiptError, match="signed with another key than that of brand-b"):
        verify_receipt(PENDING, stranger.public)


def test_a_receipt_cannot_pass_for_a_note_or_for_a_message_with_a_context() -> None:
    signed = PENDING.rpartition(".")[0].encode()

    assert b"\n" not in signed
    assert b"\0" not in signed
    assert signed.isascii()


@pytest.fixture
def have_cosigned(
    tmp_path: Path, log: Log, identity: Identity, coordinator: Identity, policy: TrustPolicy
) -> Iterator[Callable[[], object]]:
    """Have the log's present head cosigned by a real witness, and kept."""
    with Witness(tmp_path / "witness.sqlite", coordinator) as witness:

        def cosign() -> object:
            note = witness.cosign(log.checkpoint(), log=identity.public, proof=(), at=80_000)
            return log.accept_cosigned(note, policy)

        yield cosign


@pytest.fixture
def record(register: Register, notice: Notice) -> ConsentRecord:
    return register.record(
        "anna",
        given={Purpose.CONTACT, Purpose.RECOMMENDATION},
        refused={Purpose.CHURN_SCORING},
        notice=notice,
        channel="till",
        expressed_at=5,
        at=70_000,
        until=10**12,
    )


def issue_for(record: ConsentRecord, identity: Identity) -> str:
    return issue_receipt(
        record,
        issuer=identity,
        controller=MAKE["CONTROLLER"],
        ladder=MAKE["LADDER"],
        receipt_id=MAKE["RECEIPT_ID"],
        subject_key=MAKE["SUBJECT_KEY"],
    )


def test_a_register_a_log_and_a_receipt_agree(
    log: Log,
    record: ConsentRecord,
    identity: Identity,
    have_cosigned: Callable[[], object],
    policy: TrustPolicy,
) -> None:
    pending = issue_for(record, identity)
    log.append({"type": "node.created", "v": 1, "at": 70_001})
    have_cosigned()
    proof = prove_opened(log, record.index)
    final = finalise_receipt(pending, issuer=identity, proof=proof)

    receipt = verify_receipt(final, identity.public, policy)
    assert receipt.status is ReceiptStatus.FINAL
    assert receipt.proof == proof
    assert receipt.subject_key == verify_receipt(pending, identity.public).subject_key
    again = finalise_receipt(final, issuer=identity, proof=proof)
    assert again == final


def test_a_renewal_is_proved_by_a_later_link_of_the_same_chain(
    log: Log,
    register: Register,
    record: ConsentRecord,
    identity: Identity,
    have_cosigned: Callable[[], object],
) -> None:
    register.withdraw("anna", at=70_001)
    renewed = register.record(
        "anna",
        given={Purpose.CONTACT},
        notice=record.notice,
        channel="till",
        expressed_at=70_001,
        at=70_002,
        until=10**12,
    )
    have_cosigned()
    final = finalise_receipt(
        issue_for(renewed, identity), issuer=identity, proof=prove_opened(log, renewed.index)
    )

    assert verify_receipt(final, identity.public).index == renewed.index
    link = log.opening(renewed.index).link
    assert (link.subject_seq, link.subject) == (3, renewed.subject_ref)
    with pytest.raises(ReceiptError, match=f"the proof is of entry 0, not of {renewed.index}"):
        finalise_receipt(final, issuer=identity, proof=prove_opened(log, record.index))


def test_every_changed_byte_of_a_receipt_from_a_real_log_is_refused(
    log: Log,
    record: ConsentRecord,
    identity: Identity,
    have_cosigned: Callable[[], object],
    policy: TrustPolicy,
) -> None:
    have_cosigned()
    pending, proof = issue_for(record, identity), prove_opened(log, record.index)
    final = finalise_receipt(pending, issuer=identity, proof=proof).encode()
    for place in range(len(final)):
        flipped = bytearray(final)
        flipped[place] ^= 1
        with pytest.raises(ReceiptError):
            verify_receipt(flipped.decode(), identity.public, policy)
    for place in range(len(proof.encode())):
        flipped = bytearray(proof.encode())
        flipped[place] ^= 1
        changed = flipped.decode(errors="surrogateescape")
        # Whose cosignatures count is the verifier's policy: the issuer has none.
        with pytest.raises(ReceiptError):
            verify_receipt(
                finalise_receipt(pending, issuer=identity, proof=changed), identity.public, policy
            )


def test_another_log_of_the_same_policy_cannot_vouch_for_a_receipt() -> None:
    other = Identity.generate("brand-b.example/log")
    proof: TlogProof = MAKE["prove"](RECORD)
    head = Checkpoint.parse(proof.note.partition("\n\n")[0] + "\n")
    note = sign_checkpoint(replace(head, origin=other.name), other)
    policy = TrustPolicy.parse(
        f"log {LOG.public.format()}\nlog {other.public.format()}\nquorum none\n"
    )
    claim: JsonValue = {
        "origin": LOG.name,
        "index": RECORD.index,
        "status": "final",
        "proof": format_proof(replace(proof, note=note)),
    }
    text = MAKE["changed"](PENDING, lambda payload: payload.update({"log": claim}))

    with pytest.raises(ReceiptError, match="knows no log with the origin 'brand-b"):
        verify_receipt(text, LOG.public, policy)


def test_an_erased_person_s_receipt_cannot_be_finalised_any_more(
    log: Log, register: Register, record: ConsentRecord
) -> None:
    register.erase("anna", at=70_001)

    with pytest.raises(SealError):
        prove_opened(log, record.index)


def test_an_entry_that_no_note_covers_yet_has_no_proof(
    log: Log, register: Register, record: ConsentRecord, have_cosigned: Callable[[], object]
) -> None:
    have_cosigned()
    register.withdraw("anna", at=70_001)

    with pytest.raises(LogError, match="the newest note covers 1 entries, not entry 1"):
        prove_opened(log, 1)


def test_a_proof_that_shows_nothing_is_not_signed() -> None:
    proof: TlogProof = MAKE["prove"](RECORD)
    for wrong in (
        replace(proof, extra=b""),
        replace(proof, hashes=proof.hashes[:-1]),
        MAKE["prove"](replace(RECORD, separate=True)),
    ):
        with pytest.raises(ReceiptError):
            finalise_receipt(PENDING, issuer=LOG, proof=format_proof(wrong))


def test_an_opened_entry_that_is_no_event_proves_nothing() -> None:
    extra = bytes(32) + b"{"
    leaf = sealed_leaf(hashlib.sha256(extra).digest(), at=RECORD.effective_at)
    note = sign_checkpoint(Checkpoint(LOG.name, 1, leaf_hash(leaf)), LOG)
    pending = MAKE["issued"](replace(RECORD, index=0))
    proof = TlogProof(index=0, hashes=(), note=note, extra=extra)

    with pytest.raises(ReceiptError, match="the proof opens no event"):
        finalise_receipt(pending, issuer=LOG, proof=format_proof(proof))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"record_id": "r1"}, "must be 32 hex digits"),
        ({"channel": "app\nweb"}, "the channel of a receipt must be one printable line"),
        ({"given": frozenset(), "refused": frozenset()}, "must name at least one purpose"),
        ({"effective_at": 1}, "the times of a receipt must be in order"),
        ({"until": 10**15}, "the times of a receipt must be in order and before the year 10000"),
        (
            {"notice": Notice(id="a\tb", version=1, language="en", sha256="0" * 64)},
            "the notice of a receipt must be named on one printable line",
        ),
    ],
)
def test_a_record_that_cannot_be_printed_is_not_signed(
    change: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        MAKE["issued"](replace(RECORD, **change))  # type: ignore[arg-type]


def test_a_short_subject_key_is_not_signed() -> None:
    with pytest.raises(ValueError, match="must be 43 to 128 base64url characters"):
        issue_receipt(
            RECORD,
            issuer=LOG,
            controller=MAKE["CONTROLLER"],
            ladder=MAKE["LADDER"],
            receipt_id=MAKE["RECEIPT_ID"],
            subject_key="1234",
        )


def test_a_receipt_that_would_be_too_long_is_not_signed() -> None:
    proof: TlogProof = MAKE["prove"](RECORD)
    filler = "— stranger.example " + base64.b64encode(bytes(900)).decode() + "\n"

    with pytest.raises(ValueError, match="a receipt must have at most 65536 characters"):
        finalise_receipt(
            PENDING,
            issuer=LOG,
            proof=format_proof(replace(proof, note=proof.note + filler * 60)),
        )


def test_a_receipt_is_in_the_words_and_the_name_that_its_record_names() -> None:
    wrong = [
        (replace(RECORD, policy="00" * 32), {}, "must be in the words of the profile that its"),
        (RECORD, {"ladder": ladder_of(Profile.CN_PIPL)}, "must be in the words of the profile"),
        (
            RECORD,
            {"controller": replace(MAKE["CONTROLLER"], name="Brand B")},
            "must name the controller that its record names",
        ),
    ]
    for record, changes, message in wrong:
        asked = {"controller": MAKE["CONTROLLER"], "ladder": MAKE["LADDER"], **changes}
        with pytest.raises(ValueError, match=message):
            issue_receipt(record, issuer=LOG, receipt_id="0f" * 16, subject_key="k" * 43, **asked)


def test_a_receipt_names_the_recipients_of_what_was_given_and_how_long_it_is_kept() -> None:
    receipt = verify_receipt(PENDING, LOG.public)
    contact, recommendation = receipt.given

    assert (contact.retention_days, recommendation.retention_days) == (730, 90)
    (named,) = receipt.controller.on(Purpose.RECOMMENDATION).recipients
    assert (named.country, named.filing) == ("US", "SCC-2026-11")
    assert receipt.circumstances == MAKE["TOLD"]
    assert receipt.policy == MAKE["LADDER"].digest


def _with(**changes: object) -> Callable[[], object]:
    return lambda: replace(MAKE["CONTROLLER"], **changes)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_with(name="A\u202eB"), "the name of a controller must be printable and not empty"),
        (_with(email=" "), "the email of a controller must be printable and not empty"),
        (_with(id="Brand A"), "the id of a controller must be lower-case letters"),
        (_with(country="Germany"), "the country of a controller must be an ISO 3166 code"),
        (_with(storage_location="de"), "the storage_location of a controller must be an ISO 3166"),
        (_with(retention="6 months"), "must be an ISO 8601 duration like P6M"),
        (_with(withdraw_steps=4), "must not need more steps than giving it: 4 against 3"),
        (_with(withdraw_steps=0), "must not need more steps than giving it: 0 against 3"),
    ],
)
def test_a_controller_that_breaks_a_rule_is_refused(
    make: Callable[[], object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("profile", Profile)
def test_a_receipt_can_be_issued_for_every_purpose_under_every_profile(profile: Profile) -> None:
    ladder = ladder_of(profile)
    record = replace(RECORD, given=frozenset(Purpose), refused=frozenset(), profile=profile)
    text = MAKE["issued"](replace(record, policy=ladder.digest), ladder=ladder)
    receipt: Receipt = verify_receipt(text, LOG.public)

    assert [line.purpose for line in receipt.given] == list(Purpose)
    assert len(text) < 16_384
