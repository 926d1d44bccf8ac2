"""Every reader of bytes from outside: whatever arrives, one of our errors or a value.

One table names the readers, a valid sample of each and the errors it may raise. The properties
break the samples: flipped bits, cuts, copies, splices, huge numbers and lengths, deep nesting,
broken Unicode, and valid JSON or TOML with one value exchanged. Where a signature or a checksum
stands before the reader, the broken content is signed again, as a malicious owner of the key
would do. No reader may raise anything else, take seconds, or take much memory.
"""

import base64
import contextlib
import functools
import io
import json
import resource
import runpy
import signal
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consent import (
    Acknowledgement,
    CanonicalError,
    Checkpoint,
    DossierError,
    Evidence,
    EvidenceError,
    Identity,
    IdentityError,
    InterchangeError,
    JsonValue,
    LadderError,
    Log,
    LogError,
    NoteError,
    NoticeError,
    OptInError,
    ProofError,
    Publication,
    PublicIdentity,
    Purpose,
    ReceiptError,
    RowReader,
    StateRoot,
    SubjectRef,
    TrustPolicy,
    WithdrawalNotice,
    append_state_root,
    build_dossier,
    build_evidence,
    cosign,
    finalise_receipt,
    format_27560_receipt,
    format_27560_record,
    format_canonical,
    format_proof,
    parse_27560,
    parse_canonical,
    parse_ladder,
    parse_mapping,
    parse_proof,
    prove,
    prove_opened,
    read_opt_ins,
    sign_checkpoint,
    verify_checkpoint,
    verify_dossier,
    verify_evidence_pack,
    verify_opened_proof,
    verify_proof,
    verify_publication,
    verify_receipt,
)
from consent import evidence as packs
from consent.access import AccessRequest
from consent.chain import parse_link
from consent.gate import Use
from consent.instant import parse_instant
from consent.merkle import leaf_hash, tree_root
from consent.note import Note
from consent.sealed import commitment_of
from consent.tiles import WIDTH, bundle_path, format_bundle, parse_bundle, subtree_rows, tile_path
from consent.witnessing import Submission
from models.exchange import (
    Delivery,
    ReadyRequest,
    RoundRequest,
    WireError,
    WitnessRequest,
    parse_reply,
)
from models.plan import Plan, PlanError, SignedPlan
from participant.config import ConfigError
from participant.config import load as load_config
from privacy import (
    EventKind,
    GaussianRelease,
    LedgerError,
    LedgerEvent,
    ReleaseKey,
    Roster,
    RosterError,
)

VECTORS = Path(__file__).parents[1] / "vectors"
RECEIPTS = runpy.run_path(str(VECTORS / "receipt" / "make.py"))
ISSUER: Identity = RECEIPTS["LOG"]
WITNESS: Identity = RECEIPTS["COORDINATOR"]
POLICY = TrustPolicy.parse(RECEIPTS["POLICY"])
ANYBODY = TrustPolicy.parse(f"log {ISSUER.public.format()}\nquorum none\n")
DAY = 86_400_000
START = 20_000 * DAY
ANNA = SubjectRef("a" * 64)

LONGEST_S = 5.0
MOST_MEMORY_KIB = 256 * 1024


class Hang(BaseException):
    """A reader took more CPU time than any input of this size may take."""


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Fail when the block takes seconds, or hundreds of megabytes."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise Hang(f"more than {LONGEST_S} s of CPU time")

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    old = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, LONGEST_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, old)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < MOST_MEMORY_KIB, f"{grown} KiB for one input"


@dataclass(frozen=True, kw_only=True)
class Reader:
    """One reader.

    Attributes:
        sample: Gives bytes that the reader accepts.
        read: Reads bytes.
        errors: All that it may raise.
        encode: Writes a JSON value as the reader wants it; None when it reads no JSON.
    """

    sample: Callable[[], bytes]
    read: Callable[[bytes], object]
    errors: tuple[type[Exception], ...]
    encode: Callable[[Any], bytes] | None = None


def text(data: bytes) -> str:
    """Return bytes as text; what is no UTF-8 becomes lone surrogates."""
    return data.decode("utf-8", "surrogateescape")


# --- samples --------------------------------------------------------------------------------


@functools.cache
def samples() -> dict[str, bytes]:
    """Make one valid document of each kind that only a log can make."""
    with tempfile.TemporaryDirectory() as folder, Log.create(Path(folder) / "log", ISSUER) as log:
        event: dict[str, JsonValue] = {"type": "consent.recorded", "v": 1, "subject": ANNA}
        for number in range(3):
            log.append_sealed(ANNA, {**event, "at": START + number})
            log.append({"type": "permit.denied", "v": 1, "at": START + number, **DENIED})
        append_state_root(log, at=START + DAY)
        log.accept_cosigned(cosign(log.checkpoint(), WITNESS, at=START + DAY), POLICY)
        log.publish(Path(folder) / "audit")
        pack = build_evidence(Path(folder) / "audit", POLICY, since=START, until=START + 2 * DAY)
        two = [Checkpoint(log.origin, 9, bytes([byte]) * 32) for byte in (1, 2)]
        notes = [sign_checkpoint(head, ISSUER) for head in two]
        return {
            "note": log.newest_note().encode(),
            "proof": prove(log, 1).encode(),
            "opened proof": prove_opened(log, 0).encode(),
            "dossier": build_dossier(log, ANNA, at=START + DAY),
            "pack": pack,
            "link": log.opening(2).content,
            "leaf": log.entry(1).leaf,
            "sealed leaf": log.entry(0).leaf,
            "state root": log.entry(6).leaf,
            "bundle": format_bundle([entry.leaf for entry in log.entries()]),
            "equivocation": Evidence(log=ISSUER.public, known=notes[0], shown=notes[1]).format(),
            "submission": Submission(
                old_size=2, proof=tuple(log.consistency_proof(2)), note=log.newest_note()
            )
            .format()
            .encode(),
        }


USE: dict[str, JsonValue] = {
    "kind": "train",
    "run": "r",
    "round": 1,
    "attempt": 0,
    "recipients": ["a", "b"],
}
DENIED: dict[str, JsonValue] = {
    "purpose": "contact",
    "use": USE,
    "policy": "ab",
    "reason": "nobody agreed",
}


def sample(name: str) -> Callable[[], bytes]:
    return lambda: samples()[name]


def of(content: bytes) -> Callable[[], bytes]:
    return lambda: content


PENDING: str = RECEIPTS["issued"]()
FINAL = finalise_receipt(
    PENDING, issuer=ISSUER, proof=format_proof(RECEIPTS["prove"](RECEIPTS["RECORD"]))
)


def payload_of(receipt: str) -> bytes:
    return base64.urlsafe_b64decode(receipt.split(".")[1] + "==")


def read_signed_payload(payload: bytes) -> object:
    """Sign any payload as the issuer would, and read that."""
    head = FINAL.split(".", maxsplit=1)[0]
    body = f"{head}.{base64.urlsafe_b64encode(payload).rstrip(b'=').decode()}"
    signature = base64.urlsafe_b64encode(ISSUER.sign_text(body.encode())).rstrip(b"=")
    return verify_receipt(f"{body}.{signature.decode()}", ISSUER.public)


def read_signed_checkpoint(head: bytes) -> object:
    """Let the log's own key sign any text, and read that."""
    plain = sign_checkpoint(Checkpoint(ISSUER.name, 1, bytes(32)), ISSUER)
    line = Note.parse(plain).signatures[0]
    # The signer itself refuses a zero byte; a forger's own code would not.
    signed = text(head).encode("utf-8", "surrogatepass").replace(b"\0", b"")
    signature = ISSUER.sign_text(signed)
    note = Note(text(head), (type(line)(line.name, line.key_id, signature),)).format()
    return verify_checkpoint(note, ANYBODY)


def read_signed_log(leaf: bytes) -> object:
    """Let the log's own key sign a tree in which any bytes stand as an entry."""
    return verify_publication(publish([b'{"at":1,"type":"x","v":1}', leaf[:60_000]]), ANYBODY)


def publish(leaves: list[bytes]) -> Publication:
    """Publish up to 256 leaves in memory, properly signed."""
    hashes = [leaf_hash(leaf) for leaf in leaves]
    note = sign_checkpoint(Checkpoint(ISSUER.name, len(leaves), tree_root(hashes)), ISSUER)
    files = {
        bundle_path(0, width=len(leaves)): format_bundle(leaves),
        tile_path(0, 0, width=len(leaves)): b"".join(hashes),
    }
    if len(leaves) == WIDTH:
        files[tile_path(1, 0, width=1)] = subtree_rows(hashes)[-1][0]

    def fetch(path: str) -> bytes:
        if path not in files:
            raise FileNotFoundError(path)
        return files[path]

    return Publication(note, fetch)


def files_of(pack: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(pack)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def read_in_pack(name: str) -> Callable[[bytes], object]:
    """Put content in a pack under a right manifest, and read that."""

    def read(content: bytes) -> object:
        files = files_of(samples()["pack"])
        del files["manifest.json"]
        files[name] = content
        files["manifest.json"] = packs._format_manifest(files, version=2)
        return verify_evidence_pack(packs._format_zip(files), POLICY)

    return read


def in_pack(name: str) -> Callable[[], bytes]:
    return lambda: files_of(samples()["pack"])[name]


def json_lines(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


def canonical(value: object) -> bytes:
    return format_canonical(value)  # type: ignore[arg-type]


def canonical_line(value: object) -> bytes:
    return canonical(value) + b"\n"


NOTICE = WithdrawalNotice(
    notice_id="ab" * 16,
    sender=ISSUER.name,
    recipient="b.example",
    handle="h",
    purposes=frozenset({Purpose.CONTACT, Purpose.LOOKALIKE}),
    at=START,
)
ACK = Acknowledgement(notice_id="ab" * 16, recipient="b.example", sha256="cd" * 32, at=START)
MAPPING = b"""profile = "eu-gdpr"
subject_column = "id"
date_column = "date"
date_format = "%Y-%m-%d"
utc_offset = "+01:00"
valid_days = 730
channel = "web"
encoding = "utf-8"
delimiter = ","

[notice]
id = "privacy"
version = 3
language = "de"
sha256 = "abababababababababababababababababababababababababababababababab"

[[columns]]
column = "news"
purpose = "contact"
given = ["Y"]
refused = ["N"]
separate_act = false
"""
TABLE = b"id,date,news\r\nanna,2024-01-02,Y\r\nben,2024-02-03,N\r\ncleo,,\r\n"
LADDER = resources.files("consent").joinpath("profiles", "cn-pipl.toml").read_bytes()


def vector_text(name: str, field: str) -> Callable[[], bytes]:
    """Give a field of a stored test vector."""
    document: str = json.loads((VECTORS / f"{name}.json").read_text("utf-8"))[field]
    return of(document.encode())


def read_policy(data: bytes) -> object:
    return TrustPolicy.parse(text(data)).is_quorum({"coordinator"})


def read_plan(data: bytes) -> object:
    plan = Plan.parse(data)
    plan.verify_cost()
    return plan.digest, plan.queries


def fields_from(data: bytes) -> RecordDict | None:
    """Make a message's fields of JSON; None when Flower itself carries no such record."""
    fields = json.loads(data)
    try:
        return RecordDict({"fields": ConfigRecord({key: binary(v) for key, v in fields.items()})})
    except (TypeError, ValueError, AttributeError):
        return None


def binary(value: Any) -> Any:  # noqa: ANN401 - JSON of any shape
    """Return the value with text that begins with `hex:` as bytes."""
    if isinstance(value, str) and value.startswith("hex:"):
        return bytes.fromhex(value[4:])
    return [binary(item) for item in value] if isinstance(value, list) else value


def read_message(data: bytes) -> object:
    """Read one set of fields as every kind of message."""
    record = fields_from(data)
    if record is None:
        return None
    readers: list[Callable[[RecordDict], object]] = [
        ReadyRequest.from_record,
        WitnessRequest.from_record,
        RoundRequest.from_record,
        Delivery.from_record,
        parse_reply,
    ]
    for reader in readers:
        with contextlib.suppress(WireError):
            reader(record)
    return None


def read_array(data: bytes) -> object:
    """Read a delivery whose array is any bytes."""
    array = Array(dtype="float64", shape=(2,), stype="numpy.ndarray", data=data)
    fields = ConfigRecord(
        {"plan_digest": "ab", "witnessed_size": 0, "witnessed_note": "", "witnessed_sizes": [0]}
    )
    return Delivery.from_record(RecordDict({"fields": fields, "arrays": ArrayRecord({"w": array})}))


def npy() -> bytes:
    import numpy as np

    stream = io.BytesIO()
    np.save(stream, np.array([1.0, 2.0]))
    return stream.getvalue()


MESSAGE = {
    "signed_plan": "hex:7b7d",
    "witnessed_size": 3,
    "witnessed_note": "n",
    "plan_digest": "ab" * 32,
    "round": 1,
    "attempt": 1,
    "cohort": ["a", "b"],
    "name": "a",
    "checkpoint": "c",
    "proof": ["hex:00"],
    "masked": "hex:00",
    "leaves": ["hex:7b7d"],
    "indexes": [3],
    "inclusions": ["hex:" + "00" * 64],
    "signature": "hex:00",
}
REQUEST: dict[str, JsonValue] = {
    "actor": "ann",
    "role": "scientist",
    "action": "start_run",
    "about": "run-1",
    "owner": "",
    "author": "",
    "masked": False,
    "mfa_age_s": 3,
}


def read_leaf(data: bytes) -> object:
    return RowReader().read(0, data)


LOG_ERRORS = (LogError, NoteError, ProofError)
SIGNED_PLAN = vector_text("plan/happy_signed", "document")()
RESERVED = LedgerEvent(
    kind=EventKind.RESERVED,
    purpose="churn",
    key=ReleaseKey(run="june", round=1, attempt=0),
    release=GaussianRelease(sensitivity=3.0, noise_std=90.0, slack_delta=1e-9),
    digest="ab" * 32,
)
READERS: dict[str, Reader] = {
    "canonical JSON": Reader(
        sample=of(canonical({"a": [1, None, True, {"b": "é中"}], "c": -7})),
        read=parse_canonical,
        errors=(CanonicalError,),
        encode=canonical,
    ),
    "note": Reader(
        sample=sample("note"), read=lambda data: Note.parse(text(data)), errors=(NoteError,)
    ),
    "cosigned note": Reader(
        sample=sample("note"),
        read=lambda data: verify_checkpoint(text(data), POLICY),
        errors=(NoteError,),
    ),
    "checkpoint": Reader(
        sample=of(Checkpoint(ISSUER.name, 7, bytes(range(32))).format().encode()),
        read=lambda data: Checkpoint.parse(text(data)),
        errors=(NoteError,),
    ),
    "signed checkpoint": Reader(
        sample=of(Checkpoint(ISSUER.name, 7, bytes(range(32))).format().encode()),
        read=read_signed_checkpoint,
        errors=(NoteError,),
    ),
    "tlog-proof": Reader(
        sample=sample("proof"), read=lambda data: parse_proof(text(data)), errors=(ProofError,)
    ),
    "proof of an entry": Reader(
        sample=sample("proof"),
        read=lambda data: verify_proof(text(data), leaf=samples()["leaf"], policy=POLICY),
        errors=(ProofError, NoteError),
    ),
    "opened proof": Reader(
        sample=sample("opened proof"),
        read=lambda data: verify_opened_proof(text(data), policy=POLICY),
        errors=(ProofError, NoteError),
    ),
    "trust policy": Reader(
        sample=of(POLICY.format().encode()), read=read_policy, errors=(NoteError,)
    ),
    "verifier key": Reader(
        sample=of(ISSUER.public.format().encode()),
        read=lambda data: PublicIdentity.parse(text(data)),
        errors=(IdentityError,),
    ),
    "witness key": Reader(
        sample=of(WITNESS.public.format_witness().encode()),
        read=lambda data: PublicIdentity.parse_witness(text(data)),
        errors=(IdentityError,),
    ),
    "equivocation": Reader(
        sample=sample("equivocation"),
        read=Evidence.parse,
        errors=(NoteError,),
        encode=canonical,
    ),
    "submission": Reader(
        sample=sample("submission"),
        read=lambda data: Submission.parse(text(data)),
        errors=(ValueError,),
    ),
    "receipt": Reader(
        sample=of(FINAL.encode()),
        read=lambda data: verify_receipt(text(data), ISSUER.public, POLICY),
        errors=(ReceiptError,),
    ),
    "payload of a receipt": Reader(
        sample=of(payload_of(FINAL)),
        read=read_signed_payload,
        errors=(ReceiptError,),
        encode=canonical,
    ),
    "payload of a pending receipt": Reader(
        sample=of(payload_of(PENDING)),
        read=read_signed_payload,
        errors=(ReceiptError,),
        encode=canonical,
    ),
    "dossier": Reader(
        sample=sample("dossier"),
        read=lambda data: verify_dossier(data, POLICY),
        errors=(DossierError, ProofError, NoteError),
        encode=canonical,
    ),
    "evidence pack": Reader(
        sample=sample("pack"),
        read=lambda data: verify_evidence_pack(data, POLICY),
        errors=(EvidenceError,),
    ),
    "summary in a pack": Reader(
        sample=in_pack("summary.json"),
        read=read_in_pack("summary.json"),
        errors=(EvidenceError,),
        encode=canonical_line,
    ),
    "policy in a pack": Reader(
        sample=in_pack("trust.policy"),
        read=read_in_pack("trust.policy"),
        errors=(EvidenceError,),
    ),
    "checkpoint in a pack": Reader(
        sample=in_pack("log/checkpoint"),
        read=read_in_pack("log/checkpoint"),
        errors=(EvidenceError,),
    ),
    "tile in a pack": Reader(
        sample=in_pack("log/tile/0/000.p/7"),
        read=read_in_pack("log/tile/0/000.p/7"),
        errors=(EvidenceError,),
    ),
    "entries in a pack": Reader(
        sample=in_pack("log/tile/entries/000.p/7"),
        read=read_in_pack("log/tile/entries/000.p/7"),
        errors=(EvidenceError,),
    ),
    "entry bundle": Reader(
        sample=sample("bundle"),
        read=lambda data: parse_bundle(data, width=7),
        errors=(LogError,),
    ),
    "entry of a log": Reader(
        sample=sample("leaf"), read=read_leaf, errors=(LogError,), encode=canonical
    ),
    "entry of a signed log": Reader(
        sample=sample("leaf"), read=read_signed_log, errors=LOG_ERRORS, encode=canonical
    ),
    "sealed entry of a signed log": Reader(
        sample=sample("sealed leaf"), read=read_signed_log, errors=LOG_ERRORS, encode=canonical
    ),
    "sealed leaf": Reader(
        sample=sample("sealed leaf"),
        read=lambda data: commitment_of(parse_canonical(data)),
        errors=(CanonicalError,),
        encode=canonical,
    ),
    "state root": Reader(
        sample=sample("state root"),
        read=lambda data: StateRoot.parse(parse_canonical(data)),
        errors=(ProofError, CanonicalError),
        encode=canonical,
    ),
    "link of a chain": Reader(
        sample=sample("link"), read=parse_link, errors=(LogError,), encode=canonical
    ),
    "use of a permit": Reader(
        sample=of(canonical(USE)),
        read=lambda data: Use.parse(parse_canonical(data)),
        errors=(ValueError,),
        encode=canonical,
    ),
    "access request": Reader(
        sample=of(canonical(REQUEST)),
        read=lambda data: AccessRequest.parse(as_object(data)),
        errors=(ValueError,),
        encode=canonical,
    ),
    "withdrawal notice": Reader(
        sample=of(NOTICE.format()),
        read=WithdrawalNotice.parse,
        errors=(NoticeError,),
        encode=canonical,
    ),
    "acknowledgement": Reader(
        sample=of(ACK.format()),
        read=Acknowledgement.parse,
        errors=(NoticeError,),
        encode=canonical,
    ),
    "opt-ins": Reader(
        sample=of(TABLE),
        read=lambda data: read_opt_ins(data, parse_mapping(text(MAPPING)), at=START),
        errors=(OptInError,),
    ),
    "mapping of opt-ins": Reader(
        sample=of(MAPPING), read=lambda data: parse_mapping(text(data)), errors=(ValueError,)
    ),
    "profile": Reader(
        sample=of(LADDER), read=lambda data: parse_ladder(text(data)), errors=(LadderError,)
    ),
    "ISO 27560 record": Reader(
        sample=of(format_27560_record(RECEIPTS["RECORD"], RECEIPTS["CONTROLLER"]).encode()),
        read=lambda data: parse_27560(text(data)),
        errors=(InterchangeError,),
        encode=json_lines,
    ),
    "ISO 27560 receipt": Reader(
        sample=of(
            format_27560_receipt(
                RECEIPTS["RECORD"], RECEIPTS["CONTROLLER"], receipt_id="r1"
            ).encode()
        ),
        read=lambda data: parse_27560(text(data)),
        errors=(InterchangeError,),
        encode=json_lines,
    ),
    "moment": Reader(
        sample=of(b"2026-11-21T20:31:38.800Z"),
        read=lambda data: parse_instant(text(data)),
        errors=(ValueError,),
    ),
    "plan": Reader(
        sample=of(base64.b64decode(json.loads(SIGNED_PLAN)["plan"])),
        read=read_plan,
        errors=(PlanError,),
        encode=canonical,
    ),
    "signed plan": Reader(
        sample=of(SIGNED_PLAN),
        read=SignedPlan.parse,
        errors=(PlanError,),
        encode=canonical,
    ),
    "fields of a message": Reader(
        sample=of(json_lines(MESSAGE)),
        read=read_message,
        # Flower hands over fields; that the bytes are JSON is a means of this test.
        errors=(WireError, ValueError, RecursionError, AttributeError),
        encode=json_lines,
    ),
    "array of a message": Reader(sample=npy, read=read_array, errors=(WireError,)),
    "roster": Reader(
        sample=vector_text("secure_sum/happy_mask", "roster"),
        read=Roster.parse,
        errors=(RosterError,),
    ),
}


def as_object(data: bytes) -> dict[str, JsonValue]:
    value = parse_canonical(data)
    return value if isinstance(value, dict) else {}


# --- what is done to a sample ---------------------------------------------------------------

POISON: list[bytes] = [
    b"[" * 50_000,
    b'{"a":' * 20_000,
    b"((((" * 5_000,
    b"9" * 5_000,
    b"-1",
    b"1e400",
    b"NaN",
    b"true",
    b"null",
    b"0x1p99999",
    b"1_000",
    b"\x00",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"\\ud800",
    b"\\u0000",
    "e\u0301".encode(),
    "\u2028\u202e".encode(),
    "\u0661\u00b2".encode(),
    b"\r\n",
    b"\n" * 1_000,
    b"\n\n",
    b'"',
    b"=" * 3,
    b"A" * 200_000,
    b"[[columns]]\n",
    b"[a.b.c]\n" + b"a = [" * 3_000,
    b"1979-05-27T07:32:00Z",
    b"inf",
    b"{}",
]
WEIRD: list[object] = [
    *(None, True, False, 0, 1, -1, 2**53 - 1, 1 - 2**53, 2**31, 2**62 % (2**53)),
    *("", " ", "x", "0", "-0", "nan", "inf", "1e400", "1e-400", "1e308", "0x1p99999", "9" * 5_000),
    *(
        "\0",
        "a\nb",
        "\u202e",
        "\u0661",
        "é",
        "x" * 70_000,
        "../../x",
        "ab" * 32,
        "hex:" + "00" * 99,
    ),
    *([], {}, [[]], [None], [1] * 3_000, {"a": 1}, [{}], {"": ""}),
    functools.reduce(lambda inner, _: [inner], range(20), 1),
]
edits = st.one_of(
    st.tuples(st.just("flip"), st.floats(0, 1), st.integers(0, 7)),
    st.tuples(st.just("cut"), st.floats(0, 1), st.integers(0, 10**6)),
    st.tuples(st.just("drop"), st.floats(0, 1), st.integers(1, 60)),
    st.tuples(st.just("copy"), st.floats(0, 1), st.integers(1, 400)),
    st.tuples(st.just("move"), st.floats(0, 1), st.integers(1, 40)),
    st.tuples(st.just("random"), st.floats(0, 1), st.binary(min_size=1, max_size=12)),
    st.tuples(st.just("poison"), st.floats(0, 1), st.sampled_from(POISON)),
    st.tuples(st.just("value"), st.floats(0, 1), st.sampled_from(POISON)),
)


def edited(data: bytes, changes: Sequence[tuple[str, float, Any]]) -> bytes:
    """Break bytes; every edit stands at a share of the length."""
    for kind, share, what in changes:
        at = min(int(share * len(data)), max(len(data) - 1, 0))
        match kind:
            case "flip" if data:
                data = data[:at] + bytes([data[at] ^ 1 << what]) + data[at + 1 :]
            case "cut":
                data = data[:at]
            case "drop":
                data = data[:at] + data[at + what :]
            case "copy":
                data = data[: at + what] + data[at:]
            case "move":
                data = data[at : at + what] + data[:at] + data[at + what :]
            case "random" | "poison":
                data = data[:at] + what + data[at:]
            case "value":
                data = with_value(data, at, what)
    return data


def with_value(data: bytes, at: int, value: bytes) -> bytes:
    """Exchange what stands after the next colon or equals sign, up to the end of its value."""
    places = [place for place in (data.find(b": ", at), data.find(b"= ", at)) if place >= 0]
    if not places:
        places = [place for place in (data.find(b":", at),) if place >= 0]
    if not places:
        return data
    start = min(places) + 1
    ends = [end for end in (data.find(b"\n", start), data.find(b",", start)) if end >= 0]
    return data[:start] + b" " + value + data[min(ends, default=len(data)) :]


def places_of(value: object, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Give the path of every value in a JSON document, itself among them."""
    yield path
    parts: Any = ()
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, list):
        parts = enumerate(value)
    for key, inner in parts:
        yield from places_of(inner, (*path, key))


def exchanged(value: Any, path: tuple[Any, ...], kind: str, new: object) -> Any:  # noqa: ANN401
    """Return a document in which one value is another, gone, twice there, or has a new field."""
    if path:
        copy = dict(value) if isinstance(value, dict) else list(value)
        key = path[0]
        if len(path) == 1 and kind == "drop":
            del copy[key]
        elif len(path) == 1 and kind == "twice" and isinstance(copy, list):
            copy.insert(key, copy[key])
        elif len(path) == 1 and kind == "rename" and isinstance(copy, dict):
            copy[f"{key}2"] = copy.pop(key)
        else:
            copy[key] = exchanged(value[key], path[1:], kind, new)
        return copy
    if kind == "field" and isinstance(value, dict):
        return {**value, "surprise": new}
    if kind == "many" and isinstance(value, list):
        return value * 300
    return new


def check(reader: Reader, data: bytes) -> None:
    """Read bytes: a value, or one of the reader's own errors with a sentence, soon."""
    with warnings.catch_warnings(), bounded():
        warnings.simplefilter("ignore")
        try:
            reader.read(data)
        except reader.errors as error:
            said = str(error)
        else:
            said = "read"
    assert said


FUZZ = settings(
    max_examples=70,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.mark.parametrize("name", READERS)
def test_every_reader_accepts_its_sample(name: str) -> None:
    reader = READERS[name]

    reader.read(reader.sample())


@pytest.mark.parametrize("name", READERS)
@FUZZ
@given(data=st.binary(max_size=200) | st.sampled_from(POISON) | st.text().map(str.encode))
def test_garbage_raises_only_the_readers_own_errors(name: str, data: bytes) -> None:
    check(READERS[name], data)


@pytest.mark.parametrize("name", READERS)
@FUZZ
@given(changes=st.lists(edits, min_size=1, max_size=4))
def test_a_broken_sample_raises_only_the_readers_own_errors(
    name: str, changes: list[tuple[str, float, Any]]
) -> None:
    reader = READERS[name]

    check(reader, edited(reader.sample(), changes))


@pytest.mark.parametrize("name", READERS)
def test_no_poison_anywhere_raises_another_error(name: str) -> None:
    """Put each piece of poison at the start, in the middle and at the end, and as a value."""
    reader = READERS[name]
    for poison in POISON:
        for share in (0.0, 0.5, 1.0):
            check(reader, edited(reader.sample(), [("poison", share, poison)]))
        check(reader, edited(reader.sample(), [("value", 0.3, poison)]))


@pytest.mark.parametrize("name", [name for name in READERS if READERS[name].encode])
@FUZZ
@given(data=st.data())
def test_one_exchanged_value_raises_only_the_readers_own_errors(
    name: str, data: st.DataObject
) -> None:
    reader = READERS[name]
    assert reader.encode is not None
    document = json.loads(reader.sample())
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from(list(places_of(document))))
        kind = data.draw(st.sampled_from(["value", "drop", "twice", "rename", "field", "many"]))
        document = exchanged(document, path, kind, data.draw(st.sampled_from(WEIRD)))
    try:
        broken = reader.encode(document)
    except ValueError:
        return

    check(reader, broken)


@pytest.mark.parametrize("name", [name for name in READERS if READERS[name].encode])
def test_no_value_of_another_kind_raises_another_error(name: str) -> None:
    """Exchange every value of the sample in turn for a few that break most readers."""
    reader = READERS[name]
    assert reader.encode is not None
    document = json.loads(reader.sample())
    paths = list(places_of(document))
    step = -(-len(paths) // 150)
    for path in paths[::step]:
        for new in (None, True, -1, 2**53 - 1, "", "nan", "1e308", "0x1p99999", [], {}, [1]):
            check(reader, reader.encode(exchanged(document, path, "value", new)))


# --- what no edit of a sample would find -----------------------------------------------------


def test_groups_in_groups_are_counted_at_any_depth() -> None:
    lines = [f"witness w {WITNESS.public.format_witness()}", "group g0 1 w"]
    lines += [f"group g{number} 1 g{number - 1}" for number in range(1, 5_000)]
    policy = TrustPolicy.parse("\n".join([*lines, "quorum g4999\n"]))

    assert policy.is_quorum({"w"})
    assert not policy.is_quorum(set())


@pytest.mark.parametrize("kind", ["log", "witness"])
def test_a_long_trust_policy_is_read_in_linear_time(kind: str) -> None:
    keys = [PublicIdentity(f"k{n}", n.to_bytes(32, "big")) for n in range(20_000)]
    lines = [
        f"log {key.format()}" if kind == "log" else f"witness {key.name} {key.format_witness()}"
        for key in keys
    ]

    with bounded():
        TrustPolicy.parse("\n".join([*lines, "quorum none\n"]))


def test_a_profile_with_an_endless_number_is_no_profile() -> None:
    broken = LADDER.decode().replace("age_of_consent = 14", "age_of_consent = " + "9" * 5_000)

    assert broken != LADDER.decode()
    with pytest.raises(LadderError, match="the profile could not be read as TOML"):
        parse_ladder(broken)


def test_a_mapping_with_an_endless_number_is_no_mapping() -> None:
    broken = MAPPING.decode().replace("valid_days = 730", "valid_days = " + "9" * 5_000)

    with pytest.raises(ValueError, match="the mapping must be TOML"):
        parse_mapping(broken)


def test_a_ledger_event_with_a_number_past_all_floats_is_no_event() -> None:
    with pytest.raises(LedgerError):
        LedgerEvent.parse(RESERVED.format().replace("0x1.68", "0x1p9999", 1))


@pytest.mark.parametrize("value", ["9" * 5_000, "[" * 5_000], ids=["digits", "nesting"])
def test_a_configuration_that_is_endless_is_no_configuration(tmp_path: Path, value: str) -> None:
    path = tmp_path / "participant.toml"
    path.write_text(f"name = {value}\n")

    with pytest.raises(ConfigError):
        load_config(path)


NAMES = [
    *("README.txt", "manifest.json", "log/checkpoint", "../evil", "/etc/passwd", "a\\b", "a/../b"),
    *("C:evil", "", ".", "a//b", "ü", "a\nb", "x" * 60_000, "log/", "a\u202eb"),
]
members = st.tuples(
    st.sampled_from(NAMES),
    st.sampled_from([0o100644, 0o120777, 0o040755, 0o104755, 0]),
    st.sampled_from(
        [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
    ),
    st.sampled_from([b"", b"x", b"\0" * 20_000_000]),
    st.sampled_from([b"", b"\x01\x00\x08\x00" + b"\xff" * 8, b"\x75\x70\x01\x00\x01"]),
    st.booleans(),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(members, max_size=4), st.binary(max_size=20), st.lists(edits, max_size=2))
def test_no_zip_swells_escapes_or_raises_another_error(
    listed: list[tuple[str, int, int, bytes, bytes, bool]],
    comment: bytes,
    changes: list[tuple[str, float, Any]],
) -> None:
    stream = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(stream, "w") as archive:
        warnings.simplefilter("ignore")
        for name, mode, method, content, extra, encrypted in listed:
            member = zipfile.ZipInfo(name)
            member.external_attr = mode << 16
            member.compress_type = method
            member.extra = extra
            # Twenty megabytes of zeros only where they are a few kilobytes of the zip.
            longest = None if method == zipfile.ZIP_DEFLATED else 1_000
            archive.writestr(member, content[:longest])
            member.flag_bits |= int(encrypted)
        archive.comment = comment

    with pytest.raises(EvidenceError), bounded():
        verify_evidence_pack(edited(stream.getvalue(), changes), POLICY)
