"""The commands that take consent over from elsewhere, write it for others, and account for it."""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tillpact.answers import NO, complain, print_json, read_text, say
from tillpact.consenting import (
    Config,
    Json,
    Subject,
    SubjectFile,
    checked,
    open_desk,
    read_subject,
    write_secret,
    wrong,
)
from tillpact.staff import As, Code, CodeFile, TokenFile, sign_in

if TYPE_CHECKING:
    from consent import OptIns, SubjectRef
    from participant.node import Node

_LARGEST_BYTES = 1 << 30
_LARGEST_CHARACTERS = 1 << 28
_DAY = timedelta(days=1)


def consent_import(
    config: Config,
    table: Annotated[Path, typer.Argument(help="The table of opt-ins, CSV.")],
    *,
    mapping: Annotated[Path, typer.Option(help="What each column means, TOML.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Read and report only.")] = False,
    quarantine: Annotated[
        Path | None, typer.Option(help="Where to list what was not taken, as CSV.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Take over opt-ins from a table; whatever is in doubt is not given. Exit 1: nobody gave."""
    from consent import OptInError, parse_mapping, read_opt_ins  # noqa: PLC0415
    from participant.takeover import TakeoverError, take_over, verify_mapping  # noqa: PLC0415

    meaning = checked(lambda: parse_mapping(read_text(mapping, "the mapping")))
    data = _read_bytes(table)
    try:
        with open_desk(config) as (node, _):
            verify_mapping(node, meaning)
            at = node.clock()
            found = read_opt_ins(data, meaning, at=at)
            done = take_over(node, found.choices, at=at, is_rehearsal=dry_run)
    except (OptInError, TakeoverError) as error:
        raise wrong(error) from error
    if quarantine is not None:
        write_secret(quarantine, _format_remarks(found))
    reasons = Counter(str(remark.reason) for remark in found.remarks)
    document = {
        "dry_run": dry_run,
        "rows": found.rows,
        "given": found.given,
        "not_given": found.not_given,
        "quarantined": found.quarantined,
        "acts_recorded": done.recorded,
        "acts_known": done.known,
        "reasons": dict(sorted(reasons.items())),
    }
    if not print_json("consent.import", document, wanted=as_json):
        say(
            f"{found.rows} rows: {found.given} gave something, {found.not_given} gave nothing, "
            f"{found.quarantined} name nobody without doubt."
        )
        for reason, count in sorted(reasons.items()):
            say(f"  {count:>7}  {reason}")
        verb = "would be recorded" if dry_run else "recorded"
        say(f"{done.recorded} acts {verb}, {done.known} were known already.")
    if not found.given:
        raise typer.Exit(NO)


def consent_export(
    config: Config,
    *,
    form: Annotated[Literal["27560", "kantara"], typer.Option("--format", help="Which form.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="JSON Lines: one record a line.")],
    subject: Subject = None,
    subject_file: SubjectFile = None,
) -> None:
    """Write consent records for other systems, of one person or of everybody."""
    one = subject is not None or subject_file is not None
    who = read_subject(subject, subject_file) if one else None
    with open_desk(config) as (node, _):
        refs = _everybody(node) if who is None else [node.register.subject_ref(who)]
        lines = list(_documents(node, refs, form))
    write_secret(out, "".join(f"{line}\n" for line in lines))
    say(f"{len(lines)} records: {out}")


def consent_import_27560(
    config: Config,
    file: Annotated[Path, typer.Argument(help="One document, or JSON Lines.")],
    *,
    subjects: Annotated[
        Path | None, typer.Option(help="CSV: name in the records, the brand's id. No header.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Read and report only.")] = False,
    as_json: Json = False,
) -> None:
    """Take over records of another system; exit 1 when one was refused, which is named by line."""
    from consent import InterchangeError, parse_27560  # noqa: PLC0415
    from participant.takeover import (  # noqa: PLC0415
        TakeoverError,
        by_list,
        choice_of,
        take_over,
    )

    texts = _split(read_text(file, "the records", most_characters=_LARGEST_CHARACTERS))
    subject_of = by_list({} if subjects is None else _pairs(subjects))
    choices, refused = [], dict[int, str]()
    with open_desk(config) as (node, _):
        at = node.clock()
        for number, text in enumerate(texts, start=1):
            try:
                document = parse_27560(text, ladder=node.ladder)
                choices.append(choice_of(node, document, at=at, subject_of=subject_of))
            except (InterchangeError, TakeoverError) as error:
                refused[number] = str(error)
        choices.sort(key=lambda choice: choice.expressed_at)
        done = take_over(node, choices, at=at, is_rehearsal=dry_run)
    told = {
        "dry_run": dry_run,
        "records": len(texts),
        "acts_recorded": done.recorded,
        "acts_known": done.known,
        "refused": {str(number): why for number, why in refused.items()},
    }
    if not print_json("consent.import-27560", told, wanted=as_json):
        say(f"{done.recorded} recorded, {done.known} known already, {len(refused)} refused.")
    for number, why in refused.items():
        complain(f"record {number}: {why}")
    if refused:
        raise typer.Exit(NO)


def consent_processing(
    config: Config,
    *,
    days: Annotated[int, typer.Option(help="Count the uses of so many days until now.")] = 365,
    form: Annotated[
        Literal["table", "json", "csv"], typer.Option("--format", help="How to write it.")
    ] = "table",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Where it goes; stdout without it.")
    ] = None,
    as_account: As = None,
    token_file: TokenFile = None,
    code: Code = None,
    code_file: CodeFile = None,
) -> None:
    """Write the register of processing activities (GDPR 30, PIPL 56); the read is in the log."""
    from consent import Action, register_processing  # noqa: PLC0415

    if days < 1:
        raise wrong(f"days must be at least 1, got {days}")
    with open_desk(config) as (node, _):
        controller, at = node.declared.controller, node.clock()
        session = sign_in(node, as_account, token_file, code, code_file, asks=False)
        grant = node.accounts.authorize(session, Action.READ_REGISTER, about="processing", at=at)
        found = register_processing(
            node.log,
            controller,
            ladder=node.ladder,
            assessments=node.assessments.all(),
            grant=grant,
            window=(max(0, at - days * int(_DAY / timedelta(milliseconds=1))), at),
        )
    if form == "table":
        lines = [f"{found.controller.name}: {found.controller.contact}, {found.controller.email}"]
        for line in found.activities:
            used = "-" if line.last_used_day is None else _day(line.last_used_day)
            lines.append(f"{line.purpose} | {line.legal_basis} | {line.retention_days} days")
            lines.append(f"    {', '.join(line.data)} -> {', '.join(line.recipients)}")
            lines.append(
                f"    used {line.uses or '-'}, refused {line.refusals or '-'}, last {used}, "
                f"assessment {line.assessment or '-'}, abroad {'; '.join(line.transfers) or '-'}"
            )
        text = "\n".join(lines) + "\n"
    else:
        text = found.format_json() if form == "json" else found.format_csv()
    if out is None:
        typer.echo(text, nl=False)
    else:
        out.write_text(text, encoding="utf-8")
        say(f"Register of processing: {out}")


def _documents(node: "Node", refs: "list[SubjectRef]", form: str) -> Iterator[str]:
    from consent import format_27560_record, format_kantara  # noqa: PLC0415
    from participant.records import records_of  # noqa: PLC0415

    for ref in refs:
        for record in records_of(node, ref):
            controller = node.declared.controller_of(record.circumstances.controller)
            ladder = node.declared.ladder_of(record.policy)
            if form == "27560":
                text = format_27560_record(record, controller, ladder=ladder)
            elif record.given:
                text = format_kantara(record, controller, ladder=ladder)
            else:
                # The format has no word for a refusal.
                continue
            yield json.dumps(json.loads(text), ensure_ascii=False)


def _everybody(node: "Node") -> "list[SubjectRef]":
    from consent import SubjectRef  # noqa: PLC0415

    with node.log.reading() as connection:
        rows = connection.execute(
            "SELECT MIN(subject_ref) FROM consent_ref GROUP BY row_no ORDER BY row_no"
        ).fetchall()
    return [SubjectRef(str(ref)) for (ref,) in rows]


def _split(text: str) -> list[str]:
    """Return the documents of a file that holds one, or one a line."""
    try:
        json.loads(text)
    except ValueError:
        return [line for line in text.splitlines() if line.strip()]
    return [text]


def _pairs(path: Path) -> dict[str, str]:
    text = read_text(path, "the list of ids", most_characters=_LARGEST_CHARACTERS)
    rows = list(csv.reader(io.StringIO(text)))
    if not rows or any(len(row) != 2 for row in rows) or len({row[0] for row in rows}) < len(rows):
        raise wrong(f"{path} must have two columns and no name twice; nothing was recorded")
    return dict(rows)


def _format_remarks(found: "OptIns") -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", "column", "reason"])
    for remark in found.remarks:
        writer.writerow([remark.row, remark.column or "", str(remark.reason)])
    return text.getvalue()


def _read_bytes(path: Path) -> bytes:
    try:
        if path.stat().st_size > _LARGEST_BYTES:
            raise wrong(f"{path} is larger than 1 GiB: split it; nothing was recorded")
        return path.read_bytes()
    except OSError as error:
        raise wrong(f"the table {path} cannot be read; nothing was recorded") from error


def _day(at: int) -> str:
    return f"{datetime.fromtimestamp(at / 1000, tz=UTC):%Y-%m-%d}"
