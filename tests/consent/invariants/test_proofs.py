"""I16 and I18: one flipped bit is refused by every verifier, and every value has one spelling."""

import functools
from collections.abc import Callable

import pytest
from hypothesis import example, given, reject, settings
from hypothesis import strategies as st

from consent import (
    CanonicalError,
    Checkpoint,
    DossierError,
    Evidence,
    EvidenceError,
    JsonValue,
    LogError,
    NoteError,
    Profile,
    ProofError,
    Purpose,
    ReceiptError,
    SealError,
    SignedMessage,
    WithdrawalNotice,
    append_state_root,
    build_dossier,
    build_evidence,
    finalise_receipt,
    format_canonical,
    issue_receipt,
    ladder_of,
    parse_canonical,
    prove,
    prove_opened,
    sign_checkpoint,
    verify_checkpoint,
    verify_dossier,
    verify_evidence_pack,
    verify_notice,
    verify_opened_proof,
    verify_proof,
    verify_published,
    verify_receipt,
)
from consent.controller import Controller
from consent.sealed import commitment_of, verify_commitment
from consent.withdrawal import NOTICE, NoticeError
from consent.wording import Words

from .worlds import IDENTITY, POLICY, SOME, START, USE, Act, new_folder, new_world

ERRORS = (
    *(NoteError, ProofError, LogError, ReceiptError, DossierError, EvidenceError),
    *(SealError, NoticeError, CanonicalError, UnicodeDecodeError),
)
CONTROLLER = Controller(
    id="brand-a.example",
    name="Brand A",
    address="1 Market Street",
    country="DE",
    contact="Officer",
    email="privacy@brand-a.example",
    phone="+49 30 0000000",
    officer="dpo@brand-a.example",
    authority="Commissioner",
    notice_url="https://brand-a.example/privacy",
    withdraw=Words(en="Switch it off", zh="关闭"),
    withdraw_steps=1,
    give_steps=1,
    storage_location="DE",
    retention="P6M",
    security="Keys at the node only.",
)


@functools.cache
def proofs() -> dict[str, bytes]:
    """Make one of everything that somebody verifies."""
    with new_folder() as folder, new_world() as world:
        log = world.log
        record = world.register.record(
            "anna",
            given=[Purpose.CONTACT],
            notice=world.notice,
            channel="app",
            expressed_at=START,
            at=START,
            until=START + 10**9,
        )
        world.do(Act("withdraw", "ben", frozenset({Purpose.CONTACT}), 1, 1))
        world.gate.open(Purpose.CONTACT, ["anna"], use=USE, at=START + 5)
        append_state_root(log, at=START + 10)
        world.cosigned()
        log.publish(folder / "audit")
        heads = [Checkpoint(log.origin, 9, bytes([byte]) * 32) for byte in (1, 2)]
        notes = [sign_checkpoint(head, IDENTITY) for head in heads]
        pending = issue_receipt(
            record,
            issuer=IDENTITY,
            controller=CONTROLLER,
            ladder=ladder_of(Profile.EU_GDPR),
            receipt_id="0f" * 16,
            subject_key="k" * 43,
        )
        opening = log.opening(0)
        notice = WithdrawalNotice(
            notice_id="ab" * 16,
            sender=IDENTITY.name,
            recipient="b.example",
            handle="h",
            purposes=frozenset({Purpose.CONTACT}),
            at=START,
        ).format()
        files = {
            f"published {path.relative_to(folder / 'audit')}": path.read_bytes()
            for path in sorted((folder / "audit").rglob("*"))
            if path.is_file()
        }
        return {
            "note": log.newest_note().encode(),
            "proof": prove(log, 2).encode(),
            "opened proof": prove_opened(log, 0).encode(),
            "leaf": log.entry(2).leaf,
            "salt": opening.salt,
            "sealed event": opening.content,
            "pending receipt": pending.encode(),
            "final receipt": finalise_receipt(
                pending, issuer=IDENTITY, proof=prove_opened(log, 0)
            ).encode(),
            "dossier": build_dossier(log, world.ref("anna"), at=START + 11),
            "pack": build_evidence(folder / "audit", POLICY, since=START, until=START + 10**6),
            "equivocation": Evidence(log=IDENTITY.public, known=notes[0], shown=notes[1]).format(),
            "withdrawal notice": notice,
            "signature of a notice": IDENTITY.sign(NOTICE, notice),
            **files,
        }


def _published(name: str) -> Callable[[bytes], object]:
    def verify(data: bytes) -> object:
        with new_folder() as folder:
            for other, content in proofs().items():
                if other.startswith("published "):
                    path = folder / other.removeprefix("published ")
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(data if other == name else content)
            return verify_published(folder, POLICY)

    return verify


def _commitment() -> bytes:
    found = commitment_of(parse_canonical(sealed_leaf()))
    assert found is not None
    return found


def sealed_leaf() -> bytes:
    """Return the first entry of the published log: the first lines are the entries."""
    return proofs()["published entries.jsonl"].split(b"\n")[0]


def _sealed(*, salt: bytes = b"", event: bytes = b"") -> None:
    verify_commitment(
        _commitment(), salt=salt or proofs()["salt"], event=event or proofs()["sealed event"]
    )


def _notice(*, message: bytes = b"", signature: bytes = b"") -> object:
    signed = SignedMessage(
        message or proofs()["withdrawal notice"], signature or proofs()["signature of a notice"]
    )
    return verify_notice(signed, sender=IDENTITY.public, recipient="b.example")


VERIFIERS: dict[str, Callable[[bytes], object]] = {
    "note": lambda data: verify_checkpoint(data.decode(), POLICY),
    "proof": lambda data: verify_proof(data.decode(), leaf=proofs()["leaf"], policy=POLICY),
    "opened proof": lambda data: verify_opened_proof(data.decode(), policy=POLICY),
    "leaf": lambda data: verify_proof(proofs()["proof"].decode(), leaf=data, policy=POLICY),
    "salt": lambda data: _sealed(salt=data),
    "sealed event": lambda data: _sealed(event=data),
    "pending receipt": lambda data: verify_receipt(data.decode(), IDENTITY.public),
    "final receipt": lambda data: verify_receipt(data.decode(), IDENTITY.public, POLICY),
    "dossier": lambda data: verify_dossier(data, POLICY),
    "pack": lambda data: verify_evidence_pack(data, POLICY),
    "equivocation": Evidence.parse,
    "withdrawal notice": lambda data: _notice(message=data),
    "signature of a notice": lambda data: _notice(signature=data),
    **{
        name: _published(name)
        for name in (
            "published checkpoint",
            "published entries.jsonl",
            "published tile/0/000.p/4",
            "published tile/entries/000.p/4",
        )
    },
}
# Up to here every bit is flipped; of what is larger, a sample.
SMALL_BYTES = 1000


def flipped(data: bytes, bit: int) -> bytes:
    return data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :]


def check_flip(name: str, bit: int) -> None:
    """Verify with one bit flipped."""
    whole = proofs()[name]
    broken = flipped(whole, bit)
    try:
        said = VERIFIERS[name](broken)
    except ERRORS:
        return
    # The moment at which a dossier was made is nobody's word: what it proves is all the same.
    at = whole.index(b'"at":') + 5
    assert name == "dossier", f"bit {bit}"
    assert at <= bit // 8 < whole.index(b",", at), f"bit {bit}"
    assert said == VERIFIERS[name](whole)


def test_i16_everything_that_is_verified_is_tried() -> None:
    """I16: whoever adds a file to a publication or a kind of proof adds it here."""
    assert set(VERIFIERS) == set(proofs())
    for name, verify in VERIFIERS.items():
        verify(proofs()[name])


@pytest.mark.parametrize("name", VERIFIERS)
@settings(SOME, max_examples=120)
@given(data=st.data())
def test_i16_no_flipped_bit_is_believed(name: str, data: st.DataObject) -> None:
    """I16: a verifier rejects any single flipped bit in bundle, note, proof, salt and event."""
    check_flip(name, data.draw(st.integers(0, 8 * len(proofs()[name]) - 1)))


@pytest.mark.parametrize(
    "name", ["note", "proof", "salt", "leaf", "sealed event", "signature of a notice"]
)
def test_i16_of_what_is_small_every_bit_counts(name: str) -> None:
    """I16: the same, without a gap."""
    assert len(proofs()[name]) < SMALL_BYTES
    for bit in range(8 * len(proofs()[name])):
        check_flip(name, bit)


# --- I18 --------------------------------------------------------------------------------------

texts = st.text() | st.text('\0\x1f"\\/\b\f\n\r\té€\u2028\U0001f600\ufb33', max_size=8)
values: st.SearchStrategy[JsonValue] = st.recursive(
    st.none() | st.booleans() | st.integers(1 - 2**53, 2**53 - 1) | texts,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(max_codepoint=127), max_size=6), inner, max_size=4)
    ),
    max_leaves=12,
)
SHORT = {8: "\\b", 9: "\\t", 10: "\\n", 12: "\\f", 13: "\\r", 34: '\\"', 92: "\\\\"}


def rfc_8785(value: JsonValue) -> str:
    """Write a value as the RFC says, letter by letter; numbers here are integers."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case str():
            plain = {n: f"\\u{n:04x}" for n in range(32)} | SHORT
            return '"' + value.translate(plain) + '"'
        case list():
            return "[" + ",".join(map(rfc_8785, value)) + "]"
    # Keys are in the order of their UTF-16 code units.
    pairs = sorted(value.items(), key=lambda pair: pair[0].encode("utf-16-be"))
    return "{" + ",".join(f"{rfc_8785(key)}:{rfc_8785(inner)}" for key, inner in pairs) + "}"


@settings(SOME, max_examples=400)
@given(value=values)
@example(value={"": "\x7f\x1f", "\x00": ["\u2028"], "B": -1, "a": {"é": None}.get("é")})
def test_i18_a_value_has_one_spelling_and_it_is_that_of_the_rfc(value: JsonValue) -> None:
    """I18: canonical(parse(canonical(x))) == canonical(x), and equals RFC 8785."""
    try:
        written = format_canonical(value)
    except CanonicalError:
        # Outside the profile: text that is not in normal form C, or half of a surrogate pair.
        reject()

    assert format_canonical(parse_canonical(written)) == written
    assert parse_canonical(written) == value
    assert written == rfc_8785(value).encode()


@settings(SOME, max_examples=200)
@given(value=values, data=st.data())
def test_i18_no_other_bytes_are_read_as_a_value(value: JsonValue, data: st.DataObject) -> None:
    """I18: bytes that are read at all are the spelling of what was read."""
    try:
        written = bytearray(format_canonical(value))
    except CanonicalError:
        return
    at = data.draw(st.integers(0, len(written)))
    written[at:at] = data.draw(st.sampled_from([b" ", b"0", b",", b"-", b"\\u0041", b"\n", b"1"]))
    try:
        read = parse_canonical(bytes(written))
    except CanonicalError:
        return

    assert rfc_8785(read).encode() == bytes(written)
