import csv
import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consent import (
    EvidenceError,
    Identity,
    JsonValue,
    Log,
    LogError,
    NoteError,
    ProofError,
    Purpose,
    SubjectRef,
    TrustPolicy,
    build_evidence,
    cosign,
    format_canonical,
    format_csv,
    parse_canonical,
    verify_evidence_pack,
)
from consent import evidence as module
from consent.listing import COLUMNS, EntryRow, RowReader, safe_text
from consent.published import Publication
from tests.conftest import Stores

DAY = 86_400_000
START = 20_000 * DAY
USE: dict[str, JsonValue] = {
    "kind": "train",
    "run": "=run",
    "round": 1,
    "attempt": 0,
    "recipients": ["coordinator", "@harbour"],
}
Files = dict[str, bytes]


@pytest.fixture
def stores() -> Stores:
    """In which engine a log is makes no difference here."""
    return lambda: None


def permit(at: int, purpose: str = "federated_training") -> dict[str, JsonValue]:
    return {
        "type": "permit.issued",
        "v": 1,
        "at": at,
        "permit": "p1",
        "purpose": purpose,
        "use": USE,
        "policy": "d",
        "state_seq": 1,
        "mask_root": "m",
        "included": "128",
        "excluded": "<64",
    }


@pytest.fixture
def folder(tmp_path: Path, log: Log, coordinator: Identity, policy: TrustPolicy) -> Path:
    log.append({"type": "node.created", "v": 1, "at": START, "name": "a"})
    log.append_sealed(
        SubjectRef("ab" * 32),
        {"type": "consent.recorded", "v": 1, "at": START + DAY, "subject": "ab" * 32},
    )
    log.append(permit(START + DAY))
    about: dict[str, JsonValue] = {"v": 1, "run": "=run", "round": 1, "attempt": 0}
    charge: dict[str, JsonValue] = {
        "type": "budget.charged",
        "at": START + DAY,
        "purpose": "federated_training",
        "epsilon_spent": "1.0",
        "epsilon_budget": "2.0",
        "ledger_head": "h",
    }
    log.append({**about, **charge})
    release: dict[str, JsonValue] = {
        "type": "release.sent",
        "at": START + DAY,
        "permit": "p1",
        "kind": "sum",
        "size_bytes": 8,
        "sha256": "s",
    }
    log.append({**about, **release})
    for number in range(300):
        log.append({"type": "late", "v": 1, "at": START + 3 * DAY + number})
    log.accept_cosigned(cosign(log.checkpoint(), coordinator, at=START + 4 * DAY), policy)
    log.publish(tmp_path / "audit")
    return tmp_path / "audit"


@pytest.fixture
def pack(folder: Path, policy: TrustPolicy) -> bytes:
    return build_evidence(folder, policy, since=START, until=START + 2 * DAY)


def unzip(data: bytes) -> Files:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def seal_manifest(files: Files, *, schema: str = "tillpact.evidence/2") -> bytes:
    """Zip files as a forger would who also puts the manifest right."""
    rest = {name: content for name, content in files.items() if name != "manifest.json"}
    sums: dict[str, JsonValue] = {
        name: hashlib.sha256(content).hexdigest() for name, content in rest.items()
    }
    manifest: dict[str, JsonValue] = {"schema": schema, "sha256": sums}
    return module._format_zip({**rest, "manifest.json": format_canonical(manifest) + b"\n"})


def test_a_pack_proves_its_period_and_its_log(pack: bytes, policy: TrustPolicy) -> None:
    verdict = verify_evidence_pack(pack, policy)

    assert (verdict.origin, verdict.entries, verdict.rows) == ("brand-a.example/log", 305, 5)
    assert verdict.cosigners == {"coordinator": START + 4 * DAY}
    assert verdict.events["sealed"] == 1
    assert verdict.differences == ()


def test_the_same_log_and_period_give_the_same_bytes(
    pack: bytes, folder: Path, policy: TrustPolicy
) -> None:
    assert build_evidence(folder, policy, since=START, until=START + 2 * DAY) == pack


def test_the_table_holds_the_period_in_plain_cells(pack: bytes) -> None:
    rows = list(csv.DictReader(io.StringIO(unzip(pack)["entries.csv"].decode())))

    assert [row["type"] for row in rows] == [
        "node.created",
        "sealed",
        "permit.issued",
        "budget.charged",
        "release.sent",
    ]
    assert rows[2]["recipients"] == "coordinator @harbour"
    assert (rows[2]["included"], rows[2]["excluded"], rows[2]["run"]) == ("128", "<64", "'=run")
    assert rows[4]["purpose"] == "federated_training"


def test_a_table_of_one_purpose_leaves_the_rest_out(folder: Path, policy: TrustPolicy) -> None:
    data = build_evidence(
        folder, policy, since=START, until=START + 9 * DAY, purpose=Purpose.FEDERATED_TRAINING
    )

    verdict = verify_evidence_pack(data, policy)

    assert dict(verdict.events) == {"permit.issued": 1, "budget.charged": 1, "release.sent": 1}
    assert verdict.purpose is Purpose.FEDERATED_TRAINING


def test_the_log_in_a_pack_is_one_that_other_tools_read(
    pack: bytes, policy: TrustPolicy, tmp_path: Path
) -> None:
    with zipfile.ZipFile(io.BytesIO(pack)) as archive:
        archive.extractall(tmp_path / "out")

    assert Publication.of_folder(tmp_path / "out" / "log").head.tree_size == 305


def test_the_readme_of_version_1_never_changes() -> None:
    text = module.format_readme(origin="o", since="s", until="u", purpose=None)

    assert hashlib.sha256(text).hexdigest() == README_SHA256
    assert "What it does NOT prove" in text.decode()
    assert "它不能证明什么" in text.decode()


def test_the_readme_of_version_2_never_changes_and_names_articles() -> None:
    text = module.format_readme(origin="o", since="s", until="u", purpose=None, version=2)

    assert hashlib.sha256(text).hexdigest() == README_2_SHA256
    assert "WHICH PART FOR WHICH ARTICLE" in text.decode()
    assert "各部分对应的条款" in text.decode()


def test_a_pack_of_version_1_still_verifies(pack: bytes, policy: TrustPolicy) -> None:
    files = unzip(pack)
    first = {name: content for name, content in files.items() if name != "manifest.json"}
    first["README.txt"] = first["README.txt"].split(b"\nWHICH PART")[0]
    first["summary.json"] = first["summary.json"].replace(b"evidence/2", b"evidence/1")

    old = seal_manifest(first, schema="tillpact.evidence/1")
    assert verify_evidence_pack(old, policy).rows == 5


@pytest.fixture
def later(folder: Path, log: Log, coordinator: Identity, policy: TrustPolicy) -> Path:
    """The same log with more entries, published again."""
    for number in range(40):
        log.append({"type": "later", "v": 1, "at": START + 5 * DAY + number})
    log.accept_cosigned(cosign(log.checkpoint(), coordinator, at=START + 6 * DAY), policy)
    log.publish(folder)
    return folder


def test_a_pack_proves_to_continue_the_last_one(
    pack: bytes, later: Path, policy: TrustPolicy
) -> None:
    last = verify_evidence_pack(pack, policy)
    new = build_evidence(later, policy, since=START, until=START + 9 * DAY, last_pack=pack)
    verdict = verify_evidence_pack(new, policy)

    assert verdict.entries == 345
    assert verdict.previous == (305, last.root_hash)
    assert last.previous is None


def test_a_log_that_lost_entries_since_the_last_pack_is_not_packed(
    pack: bytes, folder: Path, later: Path, policy: TrustPolicy, tmp_path: Path
) -> None:
    longer = build_evidence(later, policy, since=START, until=START + 9 * DAY)
    with zipfile.ZipFile(io.BytesIO(pack)) as archive:
        archive.extractall(tmp_path / "short")

    with pytest.raises(ProofError, match="the last pack has 345 entries and the log has 305"):
        build_evidence(
            tmp_path / "short" / "log",
            policy,
            since=START,
            until=START + 2 * DAY,
            last_pack=longer,
        )


def test_a_pack_cannot_pretend_to_continue_another(
    pack: bytes, later: Path, policy: TrustPolicy, identity: Identity
) -> None:
    new = build_evidence(later, policy, since=START, until=START + 9 * DAY, last_pack=pack)
    files = unzip(new)
    forged = drop("previous/consistency")(files)
    other = swap("previous/checkpoint", b"305", b"304")(files)
    text = put("previous/checkpoint", b"\xff")(files)
    moved = put("previous/consistency", b"")(files)

    for data, message in (
        (forged, "the file previous/consistency is not what"),
        (other, "the log in the pack does not hold: .*signature"),
        (text, "the file previous/checkpoint is not UTF-8 text"),
        (moved, "the file previous/consistency is not what"),
    ):
        with pytest.raises(EvidenceError, match=message):
            verify_evidence_pack(data, policy)


def test_a_last_pack_without_a_head_is_refused(folder: Path, policy: TrustPolicy) -> None:
    empty = seal_manifest({"README.txt": b"hello"})

    with pytest.raises(EvidenceError, match="the last pack holds no readable checkpoint"):
        build_evidence(folder, policy, since=START, until=START + DAY, last_pack=empty)


README_SHA256 = "9a7994552bad9bca64044116e51c972f018e852b60459effe2ed02f62206452a"
README_2_SHA256 = "112608e0a7b6cddf58a2f51908f24db40f152703ce57a5d9845769a4670691ae"


def test_differing_policies_are_named_and_the_verifiers_decides(
    pack: bytes, policy: TrustPolicy, identity: Identity
) -> None:
    other = Identity.generate("other.example")
    extra = Identity.generate("witness.example")
    own = TrustPolicy.parse(
        policy.format().replace("quorum coordinator\n", "")
        + f"log {other.public.format()}\nwitness w {extra.public.format_witness()}\n"
        + "group g 1 coordinator w\nquorum g\n"
    )

    assert verify_evidence_pack(pack, own).differences == (
        "your policy names the log other.example, the one in the pack does not",
        "your policy names the witness w, the one in the pack does not",
        "your policy names the group g, the one in the pack does not",
        "the quorum is coordinator in the pack's policy and g in yours",
    )


def test_another_key_in_the_packs_policy_is_named(pack: bytes, policy: TrustPolicy) -> None:
    files = unzip(pack)
    stranger = Identity.generate("coordinator.example").public
    unknown = Identity.generate("unknown.example").public
    shown = replace(policy, witnesses={"coordinator": stranger}, logs=(*policy.logs, unknown))
    files["trust.policy"] = shown.format().encode()

    assert verify_evidence_pack(seal_manifest(files), policy).differences == (
        "the policy in the pack names the log unknown.example, yours does not",
        "the witness coordinator is another one in the pack's policy than in yours",
    )


def test_a_policy_that_does_not_know_the_log_refuses_the_pack(
    pack: bytes, coordinator: Identity
) -> None:
    stranger = TrustPolicy.parse(
        f"log {Identity.generate('x.example').public.format()}\nquorum none\n"
    )

    with pytest.raises(EvidenceError, match="does not hold: the trust policy knows no log"):
        verify_evidence_pack(pack, stranger)


def drop(name: str) -> Callable[[Files], bytes]:
    return lambda files: seal_manifest({k: v for k, v in files.items() if k != name})


def put(name: str, content: bytes) -> Callable[[Files], bytes]:
    return lambda files: seal_manifest({**files, name: content})


def swap(name: str, old: bytes, new: bytes) -> Callable[[Files], bytes]:
    def change(files: Files) -> bytes:
        assert old in files[name]
        return seal_manifest({**files, name: files[name].replace(old, new, 1)})

    return change


def unsealed(name: str, content: bytes) -> Callable[[Files], bytes]:
    return lambda files: module._format_zip({**files, name: content})


def member(name: str, *, mode: int = 0o100644, method: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        info.compress_type = method
        archive.writestr(info, b"0" * 100_000)
    return stream.getvalue()


def twice(_files: Files) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in ("README.txt", "README.tx_"):
            info = zipfile.ZipInfo(name)
            info.external_attr = 0o100644 << 16
            archive.writestr(info, b"a")
    return stream.getvalue().replace(b"README.tx_", b"README.txt")


def overlapping(_files: Files) -> bytes:
    """Let several names of the directory share one stored file."""
    data = member("a.txt")
    at = data.index(b"PK\x01\x02")
    record, end = data[at : data.index(b"PK\x05\x06")], bytearray(data[-22:])
    records = b"".join(record.replace(b"a.txt", b"%c.txt" % (97 + n)) for n in range(9))
    end[8:12] = (9).to_bytes(2, "little") * 2
    end[12:16] = len(records).to_bytes(4, "little")
    return data[:at] + records + bytes(end)


CHANGES: dict[str, tuple[Callable[[Files], bytes], str]] = {
    "no zip": (lambda _: b"PK", "the pack cannot be read as a zip"),
    "traversal": (lambda _: member("../evil"), r"the name '../evil' must not stand in a pack"),
    "absolute": (lambda _: member("/etc/passwd"), "the name '/etc/passwd' must not stand"),
    "backslash": (lambda _: member("a\\b"), "must not stand in a pack"),
    "twice": (twice, "the file README.txt is in the pack twice"),
    "symlink": (lambda _: member("a", mode=0o120777), "a must be a plain file, not a link"),
    "bomb": (
        lambda _: member("a", method=zipfile.ZIP_DEFLATED),
        "the file a must not be compressed",
    ),
    "overlap": (overlapping, "the files of the pack must not be larger than the pack"),
    "comment": (lambda files: module._format_zip(files) + b"x", "cannot be read|packed again"),
    "prefix": (lambda files: b"x" + module._format_zip(files), "it was packed again"),
    "no manifest": (
        lambda files: module._format_zip({"README.txt": files["README.txt"]}),
        "the file manifest.json is missing",
    ),
    "manifest": (unsealed("manifest.json", b"{ }"), "manifest.json must be canonical JSON"),
    "manifest list": (unsealed("manifest.json", b"[]"), "manifest.json must be an object"),
    "schema": (unsealed("manifest.json", b"{}"), "manifest.json must be one of tillpact.evid"),
    "changed": (unsealed("entries.csv", b"x"), "the file entries.csv was changed: its SHA-256"),
    "unlisted": (unsealed("evil.txt", b"x"), "the file 'evil.txt' is not listed"),
    "unthere": (
        lambda files: module._format_zip({k: files[k] for k in files if k != "README.txt"}),
        "the file 'README.txt' is listed and not there",
    ),
    "missing": (drop("README.txt"), "the file README.txt is missing from the pack"),
    "no checkpoint": (drop("log/checkpoint"), "the file log/checkpoint is missing"),
    "extra": (put("log/evil.exe", b"x"), "the file log/evil.exe does not belong in the pack"),
    "readme": (put("README.txt", b"trust me"), "the file README.txt is not what the proved"),
    "csv": (swap("entries.csv", b'"128"', b'"256"'), "the file entries.csv is not what the"),
    "count": (swap("summary.json", b'"rows":5', b'"rows":6'), "the file summary.json is not"),
    "period": (swap("summary.json", b"2024-10-06", b"2024-10-07"), "is not what the proved"),
    "no period": (put("summary.json", b"{}"), "summary.json must say since, until and purpose"),
    "wrong period": (
        put("summary.json", b'{"purpose":null,"since":"x","until":"y"}'),
        "summary.json cannot be used: a time must read like",
    ),
    "policy": (put("trust.policy", b"hello"), "the trust.policy in the pack cannot be read"),
    "policy text": (swap("trust.policy", b"log ", b"log  "), "must be in its only spelling"),
    "entry": (
        swap("log/tile/entries/000", b'"name":"a"', b'"name":"b"'),
        "the log in the pack does not hold: entry 0 is not the one whose hash was signed",
    ),
    "entries": (drop("log/tile/entries/000"), "the published log has no readable file"),
    "tile": (drop("log/tile/0/000"), "the published log has no readable file 'tile/0/000'"),
    "note": (put("log/checkpoint", b"\xff"), "the file 'checkpoint' is not UTF-8 text"),
    "signature": (swap("log/checkpoint", b"305", b"306"), "the log in the pack does not hold"),
    "order": (
        lambda files: module._format_zip(dict(reversed(files.items()))),
        "the files of the pack must be in their only order",
    ),
}


@pytest.mark.parametrize("case", CHANGES, ids=str)
def test_a_pack_that_is_not_as_it_was_made_is_refused(
    case: str, pack: bytes, policy: TrustPolicy
) -> None:
    change, message = CHANGES[case]

    with pytest.raises(EvidenceError, match=message):
        verify_evidence_pack(change(unzip(pack)), policy)


def test_a_pack_has_bounds(
    pack: bytes, folder: Path, policy: TrustPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build() -> bytes:
        return build_evidence(folder, policy, since=START, until=START + DAY)

    monkeypatch.setattr(module, "_MOST_FILES", 3)
    with pytest.raises(EvidenceError, match="a pack must hold at most 3 files, got"):
        verify_evidence_pack(pack, policy)
    monkeypatch.setattr(module, "MOST_ENTRIES", 300)
    with pytest.raises(EvidenceError, match="at most 300 entries, the log has 305"):
        build()
    monkeypatch.setattr(module, "MOST_ENTRIES", 305)
    monkeypatch.setattr(module, "LARGEST_PACK_BYTES", 26_000)
    with pytest.raises(EvidenceError, match="the pack is larger than 26000 bytes; choose less"):
        build()
    monkeypatch.setattr(module, "LARGEST_PACK_BYTES", 1_000)
    with pytest.raises(EvidenceError, match="the log is larger than 1000 bytes; no pack"):
        build()
    with pytest.raises(EvidenceError, match="a pack must have at most 1000 bytes"):
        verify_evidence_pack(pack, policy)


def test_an_empty_period_is_a_callers_mistake(folder: Path, policy: TrustPolicy) -> None:
    with pytest.raises(ValueError, match="a period must begin before it ends"):
        build_evidence(folder, policy, since=START, until=START)


def test_no_pack_is_made_of_a_log_that_does_not_hold(folder: Path, policy: TrustPolicy) -> None:
    stranger = replace(policy, witnesses={"coordinator": Identity.generate("c").public})

    with pytest.raises(NoteError, match="the quorum 'coordinator' is not met"):
        build_evidence(folder, stranger, since=START, until=START + DAY)


@settings(
    max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(
    changes=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4
    ),
    part=st.sampled_from(["anywhere", "directory"]),
)
def test_any_changed_byte_raises_only_our_error(
    pack: bytes, policy: TrustPolicy, changes: list[tuple[float, int]], part: str
) -> None:
    data = bytearray(pack)
    start = pack.index(b"PK\x01\x02") if part == "directory" else 0
    for place, byte in changes:
        data[start + int(place * (len(data) - start))] = byte
    if bytes(data) == pack:
        return

    with pytest.raises(EvidenceError):
        verify_evidence_pack(bytes(data), policy)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=300))
def test_garbage_raises_only_our_error(policy: TrustPolicy, data: bytes) -> None:
    with pytest.raises(EvidenceError):
        verify_evidence_pack(data, policy)
    with pytest.raises(EvidenceError):
        verify_evidence_pack(seal_manifest({"summary.json": data, "trust.policy": data}), policy)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    name=st.sampled_from(["summary.json", "trust.policy", "log/checkpoint", "log/tile/0/000"]),
    content=st.binary(max_size=80) | st.text(max_size=80).map(str.encode),
)
def test_any_file_under_a_right_manifest_raises_only_our_error(
    pack: bytes, policy: TrustPolicy, name: str, content: bytes
) -> None:
    with pytest.raises(EvidenceError):
        verify_evidence_pack(seal_manifest({**unzip(pack), name: content}), policy)


@given(st.text())
def test_no_cell_is_a_formula_or_ends_a_line(text: str) -> None:
    cell = safe_text(text)

    assert not cell.strip().startswith(("=", "+", "-", "@"))
    assert len(cell.splitlines()) <= 1


def test_a_formula_behind_a_separator_is_no_formula_either() -> None:
    assert safe_text("a;=1+1") == "a;'=1+1"
    assert safe_text("\uff1dcmd") == "'\uff1dcmd"


def test_a_table_begins_with_its_columns() -> None:
    table = format_csv([EntryRow(index=3, at=0, kind="x")])

    assert table.decode().splitlines()[0] == ",".join(f'"{name}"' for name in COLUMNS)
    assert table.decode().splitlines()[1].startswith('"3","1970-01-01T00:00:00.000Z","x"')


def test_a_time_past_the_calendar_stays_a_number() -> None:
    assert EntryRow(index=0, at=2**53 - 1, kind="x").time == str(2**53 - 1)


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        (b"{ }", "entry 4 is not canonical"),
        (b"[]", "entry 4 must be an object"),
        (b'{"type":"x"}', "entry 4 does not say when it was"),
        (b'{"k":"sealed","t":true}', "entry 4 does not say when it was"),
    ],
)
def test_a_leaf_that_is_no_entry_has_no_row(leaf: bytes, message: str) -> None:
    with pytest.raises(LogError, match=message):
        RowReader().read(4, leaf)


def test_a_row_of_strange_fields_is_read_without_believing_them() -> None:
    event = parse_canonical(b'{"at":1,"purpose":7,"recipients":[1,"a"],"round":-1,"use":{"run":2}}')

    row = RowReader().read(0, format_canonical(event))

    assert (row.purpose, row.recipients, row.round, row.run) == ("", ("a",), "", "")


def test_a_single_recipient_is_shown() -> None:
    event: dict[str, JsonValue] = {"type": "propagation.queued", "at": 1, "recipient": "b"}

    assert RowReader().read(0, format_canonical(event)).recipients == ("b",)


def test_a_manifest_lists_every_other_file(pack: bytes) -> None:
    files = unzip(pack)

    listed = json.loads(files["manifest.json"])["sha256"]

    assert set(listed) == set(files) - {"manifest.json"}
