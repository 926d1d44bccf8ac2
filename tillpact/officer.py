"""The commands of a compliance officer: look into a published log, and take evidence away.

They read published files and public keys only; no node is needed and nothing is sent.
"""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tillpact.answers import NO, WRONG, complain, print_json, read_policy, say

if TYPE_CHECKING:
    from collections.abc import Mapping

    from consent import EntryRow, EvidenceVerdict, Publication, Purpose, TrustPolicy
    from consent.verify import EachBundle

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document for machines.")]
Folder = Annotated[Path, typer.Argument(help="A node's published audit folder.")]
Index = Annotated[int, typer.Argument(help="Number of the entry, from 0.")]
Policy = Annotated[Path, typer.Option(help="The consortium's trust.policy: public keys.")]
MaybePolicy = Annotated[
    Path | None, typer.Option(help="A trust.policy; the log is then verified first.")
]
_PERIOD = "A day, which counts whole and in UTC, or a moment with its offset."
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_UNVERIFIED = "Not verified: this is what the files say; --policy PATH verifies the log first."


def audit_ls(
    folder: Folder,
    *,
    kind: Annotated[str | None, typer.Option("--type", help="Only this type of entry.")] = None,
    since: Annotated[str | None, typer.Option("--from", help=_PERIOD)] = None,
    until: Annotated[str | None, typer.Option("--to", help=_PERIOD)] = None,
    policy: MaybePolicy = None,
    as_json: Json = False,
) -> None:
    """List the entries of a published log; exit 1 when it cannot be read or does not hold."""
    from consent import RowReader  # noqa: PLC0415

    low = 0 if since is None else parse_moment(since, end=False)
    high = None if until is None else parse_moment(until, end=True)
    trust = None if policy is None else read_policy(policy)
    publication = _publication(folder)
    reader, rows = RowReader(), list["EntryRow"]()

    def collect(first: int, leaves: list[bytes]) -> None:
        for index, leaf in enumerate(leaves, start=first):
            row = reader.read(index, leaf)
            if kind in (None, row.kind) and low <= row.at and (high is None or row.at < high):
                rows.append(row)

    _read(publication, trust, collect)
    document = {
        "verified": trust is not None,
        "origin": publication.head.origin,
        "entries": [_describe(row) for row in rows],
    }
    if not print_json("audit.ls", document, wanted=as_json):
        for row in rows:
            say(_line(row))


def audit_show(
    folder: Folder,
    index: Index,
    policy: MaybePolicy = None,
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Show one entry of a published log, with the exact text that its proof is about."""
    from consent import LogError, RowReader, parse_entry  # noqa: PLC0415

    trust = None if policy is None else read_policy(policy)
    publication = _publication(folder)
    _check_index(publication, index)
    leaf = b""

    def collect(first: int, leaves: list[bytes]) -> None:
        nonlocal leaf
        if first <= index < first + len(leaves):
            leaf = leaves[index - first]

    try:
        if trust is None:
            complain(_UNVERIFIED)
            leaf = publication.leaf(index)
        else:
            _read(publication, trust, collect)
        event, row = parse_entry(index, leaf), RowReader().read(index, leaf)
    except LogError as error:
        raise _refused(error) from error
    document = {
        "verified": trust is not None,
        "origin": publication.head.origin,
        "index": index,
        "time": row.time,
        "type": row.kind,
        "entry": event,
        "text": leaf.decode(),
    }
    if not print_json("audit.show", document, wanted=as_json):
        say(f"Entry {index} of {_clean(publication.head.origin)}: {_clean(row.kind)}, {row.time}")
        for name, value in sorted(event.items()):
            say(f"  {name:<14} {_clean(str(value))}")
        say(f"Text: {_clean(leaf.decode())}")


def audit_proof(
    folder: Folder,
    index: Index,
    policy: Policy,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Where to write the proof.")
    ] = None,
) -> None:
    """Write the proof of one entry (C2SP tlog-proof), verified before it is written."""
    from consent import (  # noqa: PLC0415
        LogError,
        NoteError,
        ProofError,
        prove_published,
        verify_proof,
    )

    trust = read_policy(policy)
    publication = _publication(folder)
    _check_index(publication, index)
    try:
        leaf = publication.leaf(index)
        text = prove_published(publication, index)
        verified = verify_proof(text, leaf=leaf, policy=trust)
    except (LogError, NoteError, ProofError) as error:
        complain(f"Does not match: {error}; no proof was written")
        raise typer.Exit(NO) from error
    if out is None:
        typer.echo(text, nl=False)
    else:
        out.write_text(text, encoding="utf-8", newline="")
        say(f"Proof: {out}")
    tell = complain if out is None else say
    head = verified.checkpoint
    tell(
        f"It proves that the text of entry {index} is in the log of {_clean(head.origin)}, as "
        f"signed at {head.tree_size} entries and cosigned by {_names(verified.cosigners)}."
    )
    tell("It does not prove that the text is true, nor that nothing else happened.")
    tell("Hand the text on with it: `audit show` prints it as its last line.")


def evidence_build(
    folder: Folder,
    *,
    policy: Policy,
    since: Annotated[str, typer.Option("--from", help=_PERIOD)],
    until: Annotated[str, typer.Option("--to", help=_PERIOD)],
    out: Annotated[Path, typer.Option("--out", "-o", help="The pack to write, a zip.")],
    purpose: Annotated[
        str | None, typer.Option(help="Only entries that name this purpose.")
    ] = None,
    last_pack: Annotated[
        Path | None,
        typer.Option("--since", help="The last pack: prove that this log continues it."),
    ] = None,
) -> None:
    """Verify a published log and write it with a table of one period as one file."""
    from consent import (  # noqa: PLC0415
        EvidenceError,
        LogError,
        NoteError,
        ProofError,
        build_evidence,
        verify_evidence_pack,
    )

    low, high = parse_moment(since, end=False), parse_moment(until, end=True)
    if low >= high:
        complain(f"the period from {since} to {until} must not be empty; nothing was written")
        raise typer.Exit(WRONG)
    chosen = None if purpose is None else parse_purpose(purpose)
    trust = read_policy(policy)
    if not folder.is_dir():
        complain(f"there is no folder {folder}; nothing was verified")
        raise typer.Exit(WRONG)
    before = None if last_pack is None else _read_pack(last_pack)
    try:
        data = build_evidence(
            folder, trust, since=low, until=high, purpose=chosen, last_pack=before
        )
        verdict = verify_evidence_pack(data, trust)
    except (EvidenceError, LogError, NoteError, ProofError) as error:
        complain(f"Does not match: {error}; no pack was written")
        raise typer.Exit(NO) from error
    out.write_bytes(data)
    say(f"Pack: {out}, {len(data)} bytes, {verdict.rows} entries in its table.")
    say(f"Verified again from the pack alone: the log of {_clean(verdict.origin)}, unchanged.")


def evidence_verify(
    pack: Annotated[Path, typer.Argument(help="The pack as it was handed over.")],
    policy: Policy,
    last_pack: Annotated[
        Path | None,
        typer.Option("--since", help="A pack you have: this one must prove to continue it."),
    ] = None,
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Verify an evidence pack with your own trust policy; exit 1 when it does not hold."""
    from consent import EvidenceError, verify_evidence_pack  # noqa: PLC0415

    trust, data = read_policy(policy), _read_pack(pack)
    before = None if last_pack is None else _read_pack(last_pack)
    try:
        verdict = verify_evidence_pack(data, trust)
        if before is not None:
            _verify_continues(verdict, verify_evidence_pack(before, trust))
    except EvidenceError as error:
        document = {"verified": False, "reason": str(error)}
        print_json("evidence.verify", document, wanted=as_json)
        complain(f"Does not match: {error}")
        raise typer.Exit(NO) from error
    if not print_json("evidence.verify", _describe_verdict(verdict), wanted=as_json):
        _say_verdict(verdict)


def _read_pack(path: Path) -> bytes:
    from consent import LARGEST_PACK_BYTES  # noqa: PLC0415

    try:
        with path.open("rb") as file:
            return file.read(LARGEST_PACK_BYTES + 1)
    except OSError as error:
        complain(f"the pack {path} cannot be read; nothing was verified")
        raise typer.Exit(WRONG) from error


def _verify_continues(verdict: "EvidenceVerdict", last: "EvidenceVerdict") -> None:
    from consent import EvidenceError  # noqa: PLC0415

    if (last.origin, (last.entries, last.root_hash)) != (verdict.origin, verdict.previous):
        raise EvidenceError(
            "the pack does not prove that it continues the one you have; ask for one built with "
            "--since that pack"
        )


def _say_verdict(verdict: "EvidenceVerdict") -> None:
    from consent.instant import format_instant  # noqa: PLC0415

    say(
        f"Verified: the log of {_clean(verdict.origin)} holds {verdict.entries} entries, unchanged."
    )
    say(f"Cosigned by {_names(verdict.cosigners)}. Root hash {verdict.root_hash}.")
    which = "" if verdict.purpose is None else f" that name the purpose {verdict.purpose.value}"
    say(
        f"The table is complete: {verdict.rows} entries{which}, from "
        f"{format_instant(verdict.since)} until before {format_instant(verdict.until)}."
    )
    for kind, count in sorted(verdict.events.items()):
        say(f"  {count:>7}  {_clean(kind)}")
    if verdict.previous is not None:
        entries, root = verdict.previous
        say(f"It continues a pack of {entries} entries, root hash {root}: none of them changed.")
    for difference in verdict.differences:
        say(f"Note: {_clean(difference)}; yours decided.")
    say("This proves what was declared and in which order, not that nothing was hidden.")


def _describe_verdict(verdict: "EvidenceVerdict") -> dict[str, object]:
    return {
        "verified": True,
        "origin": verdict.origin,
        "entries": verdict.entries,
        "root_hash": verdict.root_hash,
        "cosigners": dict(verdict.cosigners),
        "since": verdict.since,
        "until": verdict.until,
        "purpose": None if verdict.purpose is None else verdict.purpose.value,
        "rows": verdict.rows,
        "events": dict(verdict.events),
        "differences": list(verdict.differences),
        "previous": None
        if verdict.previous is None
        else {"entries": verdict.previous[0], "root_hash": verdict.previous[1]},
    }


def _publication(folder: Path) -> "Publication":
    from consent import LogError, NoteError, Publication  # noqa: PLC0415

    if not folder.is_dir():
        complain(f"there is no folder {folder}; nothing was read")
        raise typer.Exit(WRONG)
    try:
        return Publication.of_folder(folder)
    except (LogError, NoteError) as error:
        raise _refused(error) from error


def _read(publication: "Publication", trust: "TrustPolicy | None", collect: "EachBundle") -> None:
    """Give every bundle to a function; with a policy in the pass that verifies the log."""
    from consent import LogError, NoteError, ProofError, verify_publication  # noqa: PLC0415

    try:
        if trust is not None:
            verify_publication(publication, trust, each=collect)
            return
        complain(_UNVERIFIED)
        for first, leaves in publication.bundles():
            collect(first, leaves)
    except (LogError, NoteError, ProofError) as error:
        raise _refused(error) from error


def _refused(error: Exception) -> typer.Exit:
    complain(f"Does not match: {error}")
    return typer.Exit(NO)


def _check_index(publication: "Publication", index: int) -> None:
    size = publication.head.tree_size
    if not 0 <= index < size:
        complain(f"there is no entry {index}: the log holds {size}, numbered from 0")
        raise typer.Exit(WRONG)


def parse_purpose(text: str) -> "Purpose":
    """Return the purpose of a name, or complain and exit 2."""
    from consent import Purpose  # noqa: PLC0415

    try:
        return Purpose(text)
    except ValueError as error:
        known = ", ".join(purpose.value for purpose in Purpose)
        complain(f"there is no purpose {text!r}; the purposes are {known}; nothing was written")
        raise typer.Exit(WRONG) from error


def parse_moment(text: str, *, end: bool) -> int:
    """Return epoch milliseconds; a day as an end means until that day is over."""
    try:
        if _DAY.fullmatch(text):
            moment = datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
            moment += timedelta(days=1 if end else 0)
        else:
            moment = datetime.fromisoformat(text)
        if moment.tzinfo is not None and moment >= _EPOCH:
            return (moment - _EPOCH) // timedelta(milliseconds=1)
    except (ValueError, OverflowError):
        pass
    complain(
        f"a time must read like 2026-11-21 or 2026-11-21T08:30:00Z, got {text!r}; nothing was read"
    )
    raise typer.Exit(WRONG)


def _line(row: "EntryRow") -> str:
    about = [_clean(part) for part in (row.purpose, row.run[:12]) if part]
    about += [f"round {row.round}"] if row.round else []
    about += [f"to {_clean(' '.join(row.recipients))}"] if row.recipients else []
    about += [f"included {_clean(row.included)}"] if row.included else []
    about += [f"excluded {_clean(row.excluded)}"] if row.excluded else []
    return f"{row.index:>8}  {row.time:<24}  {_clean(row.kind):<18}  {'; '.join(about)}".rstrip()


def _describe(row: "EntryRow") -> dict[str, object]:
    return {
        "index": row.index,
        "time": row.time,
        "type": row.kind,
        "purpose": row.purpose,
        "run": row.run,
        "round": row.round,
        "recipients": list(row.recipients),
        "included": row.included,
        "excluded": row.excluded,
    }


def _names(cosigners: "Mapping[str, int]") -> str:
    return ", ".join(map(_clean, cosigners)) or "nobody"


def _clean(text: str) -> str:
    """Return text of a log in which nothing controls a terminal."""
    from consent.listing import printable  # noqa: PLC0415

    return printable(text)
