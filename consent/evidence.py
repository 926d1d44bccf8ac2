"""Put a published log and a table of one period into one file that proves itself offline.

A pack is a zip with one spelling: the same log, policy and period give the same bytes on every
machine, uncompressed, so that nothing has to be unpacked before it is judged. Everything in it
but the log and the policy follows from these; `verify_evidence_pack` makes it again and compares.

The whole log goes in, not only the period: one signature covers all entries, only all of them
show that no entry of the period is left out, and a release is judged by the permit and the
charge before it. About people the log holds commitments alone.
"""

import base64
import hashlib
import io
import re
import stat
import struct
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from consent.canonical import CanonicalError, JsonValue, format_canonical, parse_canonical
from consent.checkpoint import Checkpoint, verify_log_signature
from consent.event import LogError
from consent.evidence_readme import format_readme
from consent.instant import LATEST_MS, format_instant, parse_instant
from consent.listing import EntryRow, RowReader, format_csv
from consent.merkle import ProofError, verify_consistency
from consent.note import Note, NoteError
from consent.published import CHECKPOINT, Publication
from consent.purpose import Purpose
from consent.trust import TrustPolicy
from consent.verify import Verdict, verify_publication

LARGEST_PACK_BYTES = 1 << 29
MOST_ENTRIES = 1 << 22
_MOST_FILES = 1 << 16
# Version 1 had another README and knew no earlier pack; such packs still verify.
_SCHEMAS = {1: "tillpact.evidence/1", 2: "tillpact.evidence/2"}
_VERSIONS = {schema: version for version, schema in _SCHEMAS.items()}
_README, _SUMMARY, _TABLE = "README.txt", "summary.json", "entries.csv"
_POLICY, _LOG, _MANIFEST = "trust.policy", "log/", "manifest.json"
_PREVIOUS, _GROWTH = "previous/checkpoint", "previous/consistency"
_FIRST = (_README, _SUMMARY, _TABLE, _POLICY, _LOG + CHECKPOINT)
_NAME = re.compile(r"[A-Za-z0-9]+([._/][A-Za-z0-9]+)*")
_DATE = (1980, 1, 1, 0, 0, 0)
_MODE = (stat.S_IFREG | 0o644) << 16


class EvidenceError(Exception):
    """An evidence pack cannot be made, or does not prove what a pack must."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceVerdict:
    """What an evidence pack proves under the verifier's own policy.

    Attributes:
        origin: The log.
        entries: Number of entries of the log, all covered by the signature.
        root_hash: 64 hex digits.
        cosigners: Time of each cosignature in epoch milliseconds, by the policy's name.
        since: Start of the period, epoch milliseconds.
        until: End of the period, epoch milliseconds; the moment itself is outside.
        purpose: The one purpose of the table; None when it holds all entries of the period.
        rows: Number of entries in the table.
        events: Number of rows by type; sealed entries count as "sealed".
        differences: How the policy in the pack differs from the verifier's, one sentence each.
        previous: Entries and root hash (64 hex digits) of the earlier pack that this one proves
            to continue; None when it names none.
    """

    origin: str
    entries: int
    root_hash: str
    cosigners: Mapping[str, int]
    since: int
    until: int
    purpose: Purpose | None
    rows: int
    events: Mapping[str, int]
    differences: tuple[str, ...]
    previous: tuple[int, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Choice:
    """Which entries the table of a pack holds, and which earlier pack it continues."""

    since: int
    until: int
    purpose: Purpose | None
    version: int = max(_SCHEMAS)
    previous: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.since < self.until <= LATEST_MS:
            raise ValueError("a period must begin before it ends, between the years 1970 and 9999")

    def holds(self, row: EntryRow) -> bool:
        return self.since <= row.at < self.until and self.purpose in (None, row.purpose)


def build_evidence(
    published_folder: Path,
    policy: TrustPolicy,
    *,
    since: int,
    until: int,
    purpose: Purpose | None = None,
    last_pack: bytes | None = None,
) -> bytes:
    """Return the pack of a published log, after verifying the log.

    Args:
        published_folder: Where the node published its log.
        policy: Logs and witnesses to believe; it goes into the pack.
        since: Start of the period of the table, epoch milliseconds.
        until: End of the period; the moment itself is outside.
        purpose: Only entries that name this purpose go into the table; None for all.
        last_pack: A pack of the same log that was handed over before: this one then proves that
            nothing which stood in it was changed or taken out since.

    Returns:
        A zip; the same arguments and log give the same bytes.

    Raises:
        ValueError: The period is empty.
        EvidenceError: The log is too large for one pack, or the last pack cannot be read.
        LogError, NoteError, ProofError: The published log does not hold, or does not continue
            the last pack.
    """
    previous = None if last_pack is None else _note_of(last_pack)
    choice = _Choice(since=since, until=until, purpose=purpose, previous=previous)
    source = Publication.of_folder(published_folder)
    _check_entries(source)
    log: dict[str, bytes] = {}
    size = 0
    for name, content in source.files():
        size += len(content)
        if size > LARGEST_PACK_BYTES:
            raise EvidenceError(f"the log is larger than {LARGEST_PACK_BYTES} bytes; no pack")
        log[_LOG + name] = content
    _, files = _derive(log, policy, choice, policy_text=policy.format().encode())
    data = _format_zip(files)
    if len(data) > LARGEST_PACK_BYTES:
        raise EvidenceError(f"the pack is larger than {LARGEST_PACK_BYTES} bytes; choose less")
    return data


def verify_evidence_pack(data: bytes, policy: TrustPolicy) -> EvidenceVerdict:
    """Return what a pack proves, with the public keys of the verifier's own policy.

    Raises:
        EvidenceError: The pack is not in its only spelling, a file was changed, added or left
            out, the log in it does not hold under the policy, or the table is not what the
            proved entries give.
    """
    files = _parse_zip(data)
    version = _verify_manifest(files)
    missing = [name for name in _FIRST if name not in files]
    if missing:
        raise EvidenceError(f"the file {missing[0]} is missing from the pack")
    choice = _parse_choice(files[_SUMMARY], version=version, previous=files.get(_PREVIOUS))
    shown = _parse_policy(files[_POLICY])
    log = {name: content for name, content in files.items() if name.startswith(_LOG)}
    try:
        verdict, derived = _derive(log, policy, choice, policy_text=files[_POLICY])
    except (LogError, NoteError, ProofError) as error:
        raise EvidenceError(f"the log in the pack does not hold: {error}") from error
    _compare(files, derived)
    summary = _object(derived[_SUMMARY], _SUMMARY)
    rows, events = summary["rows"], summary["events"]
    assert isinstance(rows, int)  # noqa: S101 - written by _derive a moment ago
    assert isinstance(events, dict)  # noqa: S101
    return EvidenceVerdict(
        origin=verdict.origin,
        entries=verdict.entries,
        root_hash=verdict.root_hash,
        cosigners=verdict.cosigners,
        since=choice.since,
        until=choice.until,
        purpose=choice.purpose,
        rows=rows,
        events=MappingProxyType({kind: int(str(count)) for kind, count in events.items()}),
        differences=tuple(_differences(shown, policy)),
        previous=None if choice.previous is None else _head(choice.previous),
    )


def _derive(
    log: Mapping[str, bytes], policy: TrustPolicy, choice: _Choice, *, policy_text: bytes
) -> tuple[Verdict, dict[str, bytes]]:
    """Verify the files of a log and return every file of its pack, in the pack's order."""

    def fetch(path: str) -> bytes:
        try:
            return log[_LOG + path]
        except KeyError as error:
            raise FileNotFoundError(path) from error

    try:
        note = log[_LOG + CHECKPOINT].decode()
    except UnicodeDecodeError as error:
        raise LogError(f"the file {CHECKPOINT!r} is not UTF-8 text") from error
    publication = Publication(note, fetch)
    _check_entries(publication)
    reader, rows = RowReader(), list[EntryRow]()

    def collect(first: int, leaves: list[bytes]) -> None:
        read = (reader.read(index, leaf) for index, leaf in enumerate(leaves, start=first))
        rows.extend(row for row in read if choice.holds(row))

    verdict = verify_publication(publication, policy, each=collect)
    files: dict[str, bytes] = {
        _README: format_readme(
            origin=verdict.origin,
            since=format_instant(choice.since),
            until=format_instant(choice.until),
            purpose=None if choice.purpose is None else choice.purpose.value,
            version=choice.version,
        ),
        _SUMMARY: _format_summary(verdict, choice, rows),
        _TABLE: format_csv(rows),
        _POLICY: policy_text,
        **{_LOG + name: content for name, content in publication.files()},
    }
    if choice.previous is not None and choice.version > 1:
        files[_PREVIOUS] = choice.previous.encode()
        files[_GROWTH] = _prove_growth(choice.previous, publication, policy)
    return verdict, {**files, _MANIFEST: _format_manifest(files, version=choice.version)}


def _prove_growth(previous: str, publication: Publication, policy: TrustPolicy) -> bytes:
    """Return the proof that a log continues an earlier head of its own, a hash a line.

    Who cosigned the earlier head is not asked again: its pack said so.
    """
    head = publication.head
    old = verify_log_signature(previous, policy.log(head.origin))
    if old.tree_size > head.tree_size:
        raise ProofError(
            f"the last pack has {old.tree_size} entries and the log has {head.tree_size}: "
            "something was taken out"
        )
    proof = publication.tiles.consistency_proof(old.tree_size)
    verify_consistency(
        old_size=old.tree_size,
        new_size=head.tree_size,
        old_root=old.root_hash,
        new_root=head.root_hash,
        proof=proof,
    )
    return b"".join(base64.b64encode(each) + b"\n" for each in proof)


def _note_of(pack: bytes) -> str:
    """Return the note of the head that a pack was made of."""
    files = _parse_zip(pack)
    _verify_manifest(files)
    try:
        return files[_LOG + CHECKPOINT].decode()
    except (KeyError, UnicodeDecodeError) as error:
        raise EvidenceError("the last pack holds no readable checkpoint") from error


def _head(note: str) -> tuple[int, str]:
    """Return size and root of a note that was verified before."""
    head = Checkpoint.parse(Note.parse(note).text)
    return head.tree_size, head.root_hash.hex()


def _format_summary(verdict: Verdict, choice: _Choice, rows: list[EntryRow]) -> bytes:
    return _json(
        {
            "schema": _SCHEMAS[choice.version],
            "origin": verdict.origin,
            "entries": verdict.entries,
            "root_hash": verdict.root_hash,
            "log_events": dict(verdict.events),
            "since": format_instant(choice.since),
            "until": format_instant(choice.until),
            "purpose": None if choice.purpose is None else choice.purpose.value,
            "rows": len(rows),
            "events": dict(Counter(row.kind for row in rows)),
        }
    )


def _format_manifest(files: Mapping[str, bytes], *, version: int) -> bytes:
    sums: dict[str, JsonValue] = {
        name: hashlib.sha256(content).hexdigest() for name, content in files.items()
    }
    return _json({"schema": _SCHEMAS[version], "sha256": sums})


def _parse_choice(data: bytes, *, version: int, previous: bytes | None) -> _Choice:
    try:
        note = None if previous is None else previous.decode()
    except UnicodeDecodeError as error:
        raise EvidenceError(f"the file {_PREVIOUS} is not UTF-8 text") from error
    match _object(data, _SUMMARY):
        case {"since": str(since), "until": str(until), "purpose": str() | None as purpose}:
            try:
                return _Choice(
                    since=parse_instant(since),
                    until=parse_instant(until),
                    purpose=None if purpose is None else Purpose(purpose),
                    version=version,
                    previous=note,
                )
            except ValueError as error:
                raise EvidenceError(f"{_SUMMARY} cannot be used: {error}") from error
    raise EvidenceError(f"{_SUMMARY} must say since, until and purpose")


def _parse_policy(data: bytes) -> TrustPolicy:
    try:
        policy = TrustPolicy.parse(data.decode())
    except (UnicodeDecodeError, NoteError) as error:
        raise EvidenceError(f"the {_POLICY} in the pack cannot be read: {error}") from error
    if policy.format().encode() != data:
        raise EvidenceError(f"the {_POLICY} in the pack must be in its only spelling")
    return policy


def _verify_manifest(files: Mapping[str, bytes]) -> int:
    """Compare every file with the manifest; return the version of the pack."""
    if _MANIFEST not in files:
        raise EvidenceError(f"the file {_MANIFEST} is missing from the pack")
    manifest = _object(files[_MANIFEST], _MANIFEST)
    sums, version = manifest.get("sha256"), _VERSIONS.get(str(manifest.get("schema")))
    if version is None or not isinstance(sums, dict):
        raise EvidenceError(f"{_MANIFEST} must be one of {' or '.join(_VERSIONS)}")
    listed, found = set(sums), set(files) - {_MANIFEST}
    if listed != found:
        name = min(listed ^ found)
        what = "is listed and not there" if name in listed else "is not listed"
        raise EvidenceError(f"the file {_shown(name)} {what}: the pack is not as it was made")
    for name, value in sums.items():
        if hashlib.sha256(files[name]).hexdigest() != value:
            raise EvidenceError(f"the file {name} was changed: its SHA-256 is not the listed one")
    return version


def _compare(files: Mapping[str, bytes], derived: Mapping[str, bytes]) -> None:
    extra = [name for name in files if name not in derived]
    if extra:
        raise EvidenceError(f"the file {extra[0]} does not belong in the pack")
    for name, content in derived.items():
        if files.get(name) != content:
            raise EvidenceError(f"the file {name} is not what the proved entries give")
    if list(files) != list(derived):
        raise EvidenceError("the files of the pack must be in their only order")


def _differences(shown: TrustPolicy, own: TrustPolicy) -> list[str]:
    """Say how the policy in a pack differs from the verifier's."""
    parts = (
        ("log", {log.name: log for log in shown.logs}, {log.name: log for log in own.logs}),
        ("witness", dict(shown.witnesses), dict(own.witnesses)),
        ("group", dict(shown.groups), dict(own.groups)),
    )
    said = []
    for what, theirs, ours in parts:
        for name in sorted(theirs.keys() | ours.keys()):
            if name not in ours:
                said.append(f"the policy in the pack names the {what} {name}, yours does not")
            elif name not in theirs:
                said.append(f"your policy names the {what} {name}, the one in the pack does not")
            elif theirs[name] != ours[name]:
                said.append(f"the {what} {name} is another one in the pack's policy than in yours")
    if shown.quorum != own.quorum:
        said.append(f"the quorum is {shown.quorum} in the pack's policy and {own.quorum} in yours")
    return said


def _parse_zip(data: bytes) -> dict[str, bytes]:
    """Return the files of a pack, which must be byte for byte what `_format_zip` writes."""
    if len(data) > LARGEST_PACK_BYTES:
        raise EvidenceError(f"a pack must have at most {LARGEST_PACK_BYTES} bytes")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            _check_members(members, len(data))
            files = {member.filename: archive.read(member) for member in members}
    except (
        zipfile.BadZipFile,
        struct.error,
        EOFError,
        IndexError,
        LookupError,
        NotImplementedError,
        OSError,
        OverflowError,
        RuntimeError,
        ValueError,
    ) as error:
        raise EvidenceError("the pack cannot be read as a zip") from error
    if _format_zip(files) != data:
        raise EvidenceError("the pack holds something beside its files: it was packed again")
    return files


def _check_members(members: list[zipfile.ZipInfo], size: int) -> None:
    if len(members) > _MOST_FILES:
        raise EvidenceError(f"a pack must hold at most {_MOST_FILES} files, got {len(members)}")
    names = set()
    for member in members:
        name = member.filename
        if not _NAME.fullmatch(name) or name != member.orig_filename:
            raise EvidenceError(f"the name {_shown(name)} must not stand in a pack")
        if name in names:
            raise EvidenceError(f"the file {name} is in the pack twice")
        names.add(name)
        if member.external_attr != _MODE:
            raise EvidenceError(f"{name} must be a plain file, not a link or a folder")
        if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
            raise EvidenceError(f"the file {name} must not be compressed")
    # Stored files that do not overlap are together smaller than the pack: nothing can swell.
    if sum(member.file_size for member in members) > size:
        raise EvidenceError("the files of the pack must not be larger than the pack")


def _format_zip(files: Mapping[str, bytes]) -> bytes:
    # No compression: what a deflater writes differs from one version of it to the next.
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, content in files.items():
            member = zipfile.ZipInfo(name, _DATE)
            member.create_system = 3
            member.external_attr = _MODE
            archive.writestr(member, content)
    return stream.getvalue()


def _check_entries(publication: Publication) -> None:
    size = publication.head.tree_size
    if size > MOST_ENTRIES:
        raise EvidenceError(f"a pack must hold at most {MOST_ENTRIES} entries, the log has {size}")


def _json(value: dict[str, JsonValue]) -> bytes:
    return format_canonical(value) + b"\n"


def _object(data: bytes, name: str) -> dict[str, JsonValue]:
    try:
        value = parse_canonical(data.removesuffix(b"\n"))
    except CanonicalError as error:
        raise EvidenceError(f"{name} must be canonical JSON") from error
    if not isinstance(value, dict):
        raise EvidenceError(f"{name} must be an object")
    return value


def _shown(name: str) -> str:
    return ascii(name[:100])
