"""The commands about one person's consent, their requests and their receipts.

They open the node themselves and go through the same desk as its HTTP service, so that both
follow the same rules. A person's id can come from stdin or a file: a command line is read by
everybody on the host and kept in a history.
"""

import contextlib
import hashlib
import secrets
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import typer

from tillpact.answers import NO, WRONG, complain, print_json, read_text, say
from tillpact.staff import As, Code, CodeFile, TokenFile, hint_of, sign_in

if TYPE_CHECKING:
    from consent import Notice, Purpose, SubjectRef
    from participant.config import ParticipantConfig
    from participant.node import Node
    from participant.rights import OpenRequest
    from participant.subject import Act, SubjectDesk

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document for machines.")]
Config = Annotated[Path, typer.Argument(help="The node's participant.toml.")]
Subject = Annotated[
    str | None, typer.Option("--subject", help="The brand's id of the person; - reads stdin.")
]
SubjectFile = Annotated[
    Path | None, typer.Option("--subject-file", help="A file that holds the id and nothing else.")
]
Purposes = Annotated[list[str] | None, typer.Option("--purpose", help="Only this; repeatable.")]
Lang = Annotated[Literal["en", "zh"], typer.Option(help="English or Chinese.")]

Made = TypeVar("Made")
CONSENT_DAYS = 365
_LOCKED = "open for writing elsewhere"


def consent_ladder(
    config: Annotated[
        Path | None, typer.Argument(help="A participant.toml, for a profile of its own.")
    ] = None,
    *,
    profile: Annotated[Literal["eu-gdpr", "cn-pipl"], typer.Option(help="Without CONFIG.")] = (
        "eu-gdpr"
    ),
    lang: Lang = "en",
    as_json: Json = False,
) -> None:
    """Show every purpose in plain words, with its tier and whether it needs an act of its own."""
    from consent import Language, Profile, ladder_of, parse_ladder, wording  # noqa: PLC0415

    found = (
        ladder_of(Profile(profile))
        if config is None
        else parse_ladder(load_config(config).read_profile())
    )
    if as_json:
        from participant.subject_api import describe_ladder  # noqa: PLC0415

        print_json("consent.ladder", describe_ladder(found, Language(lang)), wanted=True)
        return
    heads = {
        "en": ("purpose", "tier", "own act", "days kept", "rests on"),
        "zh": ("目的", "档位", "单独同意", "保存天数", "依据"),
    }
    say(" | ".join(heads[lang]))
    tag = "en" if lang == "en" else "zh-CN"
    for purpose, rules in found.rules.items():
        title = wording.title(purpose).say(Language(lang))
        tier = "-" if rules.tier is None else rules.tier
        own = "x" if rules.separate else "-"
        say(f"{purpose} ({title}) | {tier} | {own} | {rules.retention_days} | {rules.basis}")
        say(f"    {rules.description[tag]}")
    for name, terms in found.essential.items():
        say(f"{name} | - | - | {terms.retention_days} | {terms.basis}")
        say(f"    {terms.description[tag]}")


def consent_state(
    config: Config,
    *,
    subject: Subject = None,
    subject_file: SubjectFile = None,
    as_json: Json = False,
) -> None:
    """Show where a person stands now, purpose by purpose."""
    who = read_subject(subject, subject_file)
    with open_desk(config) as (node, desk):
        document = desk.state(node.register.subject_ref(who))
    if not print_json("consent.state", document, wanted=as_json):
        for each in _rows(document["purposes"]):
            flags = [name for name in ("objected", "restricted") if each[name]]
            yes = "yes" if each["permitted"] else "no "
            say(f"{yes}  {each['purpose']:<22} {each['status']:<12} {' '.join(flags)}".rstrip())


def consent_record(
    config: Config,
    *,
    subject: Subject = None,
    subject_file: SubjectFile = None,
    give: Annotated[list[str] | None, typer.Option(help="A purpose agreed to; repeatable.")] = None,
    refuse: Annotated[list[str] | None, typer.Option(help="A purpose refused; repeatable.")] = None,
    notice: Annotated[str, typer.Option(help="Id of the published notice they were shown.")],
    language: Annotated[
        str | None, typer.Option(help="Its language, if there are several.")
    ] = None,
    channel: Annotated[str, typer.Option(help="Where it happened, such as: till.")],
    separate: Annotated[
        bool, typer.Option("--separate", help="They were asked this alone.")
    ] = False,
    act: Annotated[str | None, typer.Option(help="How they said it, such as: signature.")] = None,
    operator: Annotated[str | None, typer.Option(help="Account of who helped them.")] = None,
    as_json: Json = False,
) -> None:
    """Record what a person agreed to and refused just now; exit 1 when it is not accepted."""
    from consent import ActKind, Circumstances  # noqa: PLC0415

    given, refused = purposes_of(give), purposes_of(refuse)
    if not given | refused or given & refused:
        raise wrong("name at least one purpose, and none as both given and refused")
    who = read_subject(subject, subject_file)
    with open_desk(config) as (node, desk):
        told = checked(
            lambda: Circumstances(act=None if act is None else ActKind(act), operator=operator)
        )
        answer = desk.choose(
            act_now(node, who),
            given=given,
            refused=refused,
            notice=_published(desk, notice, language),
            channel=channel,
            separate=separate,
            told=told,
        )
    _tell_done("consent.record", answer, as_json=as_json)


def consent_withdraw(
    config: Config,
    *,
    subject: Subject = None,
    subject_file: SubjectFile = None,
    purpose: Purposes = None,
    as_json: Json = False,
) -> None:
    """Take a person's consent back, for some purposes or for everything."""
    chosen, who = purposes_of(purpose), read_subject(subject, subject_file)
    with open_desk(config) as (node, desk):
        answer = desk.withdraw(act_now(node, who), chosen or None)
    _tell_done("consent.withdraw", answer, as_json=as_json)


def consent_object(
    config: Config,
    *,
    subject: Subject = None,
    subject_file: SubjectFile = None,
    purpose: Purposes = None,
    clear: Annotated[bool, typer.Option("--clear", help="They take it back.")] = False,
    as_json: Json = False,
) -> None:
    """Record a person's objection, which wins over every consent until it is cleared."""
    chosen, who = purposes_of(purpose), read_subject(subject, subject_file)
    with open_desk(config) as (node, desk):
        write = desk.clear_objection if clear else desk.object
        answer = write(act_now(node, who), chosen or None)
    _tell_done("consent.object", answer, as_json=as_json)


def consent_restrict(
    config: Config,
    *,
    subject: Subject = None,
    subject_file: SubjectFile = None,
    purpose: Purposes = None,
    clear: Annotated[bool, typer.Option("--clear", help="The restriction ends.")] = False,
    as_json: Json = False,
) -> None:
    """Restrict the processing of a person's data, until it is cleared."""
    chosen, who = purposes_of(purpose), read_subject(subject, subject_file)
    with open_desk(config) as (node, desk):
        write = desk.clear_restriction if clear else desk.restrict
        answer = write(act_now(node, who), chosen or None)
    _tell_done("consent.restrict", answer, as_json=as_json)


def consent_ask(
    config: Config,
    *,
    subject: Subject = None,
    subject_file: SubjectFile = None,
    purpose: Annotated[list[str], typer.Option(help="What they will be asked; repeatable.")],
    notice: Annotated[str, typer.Option(help="Id of the published notice they will be shown.")],
    language: Annotated[
        str | None, typer.Option(help="Its language, if there are several.")
    ] = None,
    channel: Annotated[str, typer.Option(help="Where they will be asked.")],
    as_json: Json = False,
) -> None:
    """Tell whether a person may be asked, and record that they are; exit 1 when they may not."""
    from consent import AskedTooSoon  # noqa: PLC0415

    chosen, who = purposes_of(purpose), read_subject(subject, subject_file)
    with open_desk(config) as (node, desk):
        shown = _published(desk, notice, language)
        try:
            index = node.register.request(
                who, chosen, notice=shown, channel=channel, at=node.clock()
            )
        except AskedTooSoon as error:
            document: dict[str, object] = {"may_ask": False, "purpose": str(error.purpose)}
            print_json("consent.ask", document, wanted=as_json)
            complain(error)
            raise typer.Exit(NO) from error
    if not print_json("consent.ask", {"may_ask": True, "log_index": index}, wanted=as_json):
        say(f"They may be asked; recorded as entry {index}.")


def consent_request(
    config: Config,
    *,
    subject: Subject = None,
    subject_file: SubjectFile = None,
    right: Annotated[str, typer.Option(help="access, portability, rectification, erasure, ...")],
    purpose: Purposes = None,
    details_file: Annotated[
        Path | None, typer.Option(help="What they asked, in their words; it is sealed.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Open a person's request about a right, and say until when it must be answered."""
    from participant.rights import RequestKind  # noqa: PLC0415

    details = "" if details_file is None else read_text(details_file, "the details").strip()
    chosen, who = purposes_of(purpose), read_subject(subject, subject_file)
    kind = checked(lambda: RequestKind(right))
    with open_desk(config) as (node, desk):
        answer = desk.ask(act_now(node, who), kind, purposes=chosen, details=details)
    if not print_json("consent.request", answer, wanted=as_json):
        due = answer["due_at"]
        done = "Done at once." if due is None else f"Request {answer['request']}: answer by "
        say(done if due is None else done + format_day(due))


def consent_requests(
    config: Config,
    *,
    subjects: Annotated[
        Path | None, typer.Option(help="Ids, one a line, to find whose they are; - reads stdin.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the open requests, the one that is due first on top; exit 1 when one is overdue."""
    ids = [] if subjects is None else _lines(subjects)
    with open_desk(config) as (node, desk):
        at, found = node.clock(), desk.rights.all_open()
        refs = {node.register.subject_ref(known): known for known in ids if known}
    late = any(request.is_overdue(at=at) for request in found)
    rows = [_describe(request, at=at, refs=refs) for request in found]
    if not print_json("consent.requests", {"requests": rows, "overdue": late}, wanted=as_json):
        for row in rows:
            mark = "LATE" if row["overdue"] else "    "
            whose = "" if row["subject"] is None else f"  {row['subject']}"
            due = format_day(row["due_at"])
            say(f"{mark}  {row['request']}  {row['right']:<13} by {due}{whose}")
        say(f"{len(rows)} open, {sum(bool(row['overdue']) for row in rows)} overdue.")
    if late:
        raise typer.Exit(NO)


def consent_answer(
    config: Config,
    request: Annotated[str, typer.Argument(help="Id of the request.")],
    *,
    text: Annotated[str, typer.Option(help="What was done; the person can read it.")],
    as_account: As = None,
    token_file: TokenFile = None,
    code: Code = None,
    code_file: CodeFile = None,
) -> None:
    """Close a request with what was done; exit 1 when the rules or the request forbid it."""
    from participant.governance import answer_request  # noqa: PLC0415

    with open_desk(config) as (node, _):
        session = sign_in(node, as_account, token_file, code, code_file, asks=False)
        answer_request(node, session, request, answer=text)
    say(f"Answered: {request}")


def consent_refuse(
    config: Config,
    request: Annotated[str, typer.Argument(help="Id of the request.")],
    *,
    reason: Annotated[str, typer.Option(help="Why it is not followed; the person can read it.")],
    as_account: As = None,
    token_file: TokenFile = None,
    code: Code = None,
    code_file: CodeFile = None,
) -> None:
    """Close a request with the reason why it is not followed; exit 1 when that is forbidden."""
    from participant.governance import answer_request  # noqa: PLC0415

    with open_desk(config) as (node, _):
        session = sign_in(node, as_account, token_file, code, code_file, asks=False)
        answer_request(node, session, request, reason=reason)
    say(f"Refused: {request}")


def notice_publish(
    config: Config,
    *,
    file: Annotated[Path, typer.Option(help="The exact text that people are shown.")],
    notice_id: Annotated[str, typer.Option("--id", help="Which notice.")],
    version: Annotated[int, typer.Option(help="Which version of it, from 1.")],
    language: Annotated[str, typer.Option(help="BCP 47 tag of the text, such as zh-CN.")],
    oldest_accepted: Annotated[
        int | None, typer.Option(help="Oldest version that still counts; as before without it.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Put a notice into force; the node keeps the text, and the log its hash."""
    from consent import Notice  # noqa: PLC0415
    from participant.governance import put_notice_in_force  # noqa: PLC0415

    data = _bytes(file, "the notice")
    digest = hashlib.sha256(data).hexdigest()
    notice = checked(
        lambda: Notice(id=notice_id, version=version, language=language, sha256=digest)
    )
    with open_desk(config) as (node, _):
        index = checked(
            lambda: put_notice_in_force(node, notice, data, oldest_accepted=oldest_accepted)
        )
    document = {"id": notice_id, "version": version, "sha256": digest, "log_index": index}
    if not print_json("consent.notice.publish", document, wanted=as_json):
        say(f"In force: {notice_id} version {version} ({language}), sha256 {digest}.")


def receipt_issue(
    config: Config,
    *,
    subject: Subject = None,
    subject_file: SubjectFile = None,
    record: Annotated[
        str | None, typer.Option(help="Id of the record; the newest one without it.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the receipt goes.")],
) -> None:
    """Write a person's receipt: final when a checkpoint covers the act, else pending."""
    from participant.records import records_of  # noqa: PLC0415

    who = read_subject(subject, subject_file)
    with open_desk(config) as (node, desk):
        ref = node.register.subject_ref(who)
        known = [each.record_id for each in records_of(node, ref)]
        if record is None and not known:
            complain("this person has no record; no receipt was issued")
            raise typer.Exit(NO)
        text = desk.receipt(ref, known[-1] if record is None else record)
        status = desk.read_receipt(text).status
    write_secret(out, text + "\n")
    say(f"Receipt ({status}): {out}")
    say("It holds a secret of the person: hand it to them and to nobody else.")


def receipt_finalise(
    config: Config,
    file: Annotated[Path, typer.Argument(help="The pending receipt.")],
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the final receipt goes.")],
) -> None:
    """Add the proof that the act is in the log; exit 1 when no checkpoint covers it yet."""
    from consent import LogError, ReceiptError, finalise_receipt, prove_opened  # noqa: PLC0415
    from consent.sealed import SealError  # noqa: PLC0415

    text = read_text(file, "the receipt", most_characters=100_000).strip()
    with open_desk(config) as (node, desk):
        try:
            index = desk.read_receipt(text).index
            proof = prove_opened(node.log, index)
            final = finalise_receipt(text, issuer=node.identity, proof=proof)
        except (LogError, ReceiptError, SealError) as error:
            complain(f"{error}; no receipt was written")
            raise typer.Exit(NO) from error
    write_secret(out, final + "\n")
    say(f"Receipt (final): {out}")


def consent_handle_token(config: Config, as_json: Json = False) -> None:  # noqa: FBT002
    """Make the secret with which a login system asks the served node for handles."""
    from participant.handle import make_issuer_token  # noqa: PLC0415
    from participant.node import NodeError  # noqa: PLC0415

    folder = load_config(config).folder
    if not folder.is_dir():
        raise wrong(f"there is no node in {folder}; nothing was made")
    try:
        path = make_issuer_token(folder)
    except NodeError as error:
        raise wrong(error) from error
    if not print_json("consent.handle-token", {"file": str(path)}, wanted=as_json):
        say(f"Token: {path} (give it to the login system; whoever reads it can be any customer)")


def load_config(path: Path) -> "ParticipantConfig":
    """Read a participant.toml, or complain and exit 2."""
    from participant.config import ConfigError, load  # noqa: PLC0415

    try:
        return load(path)
    except ConfigError as error:
        raise wrong(error) from error


@contextlib.contextmanager
def open_desk(path: Path) -> "Iterator[tuple[Node, SubjectDesk]]":
    """Open a node and its desk; a refusal is one sentence and exit 1, a fault exit 2."""
    from consent import AccessDenied, LogError  # noqa: PLC0415
    from consent.problems import RequestRefused  # noqa: PLC0415
    from participant.accounts import CodeRefused, NotSignedIn  # noqa: PLC0415
    from participant.declared import NotDeclared  # noqa: PLC0415
    from participant.handle import Handles  # noqa: PLC0415
    from participant.node import Node, NodeError  # noqa: PLC0415
    from participant.rights import RightsError  # noqa: PLC0415
    from participant.subject import SubjectDesk  # noqa: PLC0415

    config = load_config(path)
    try:
        with Node.open(config) as node:
            yield node, SubjectDesk(node, Handles.of(node), consent_days=CONSENT_DAYS)
    except AccessDenied as error:
        complain(f"Refused: {error.reason}{hint_of(error.reason)}")
        raise typer.Exit(NO) from error
    except (CodeRefused, NotDeclared, NotSignedIn, RequestRefused, RightsError) as error:
        complain(error)
        raise typer.Exit(NO) from error
    except (LogError, NodeError) as error:
        hint = ""
        if _LOCKED in str(error):
            hint = "; another process serves this node: use its HTTP API, or stop it first"
        raise wrong(f"{error}{hint}") from error


def act_now(node: "Node", subject_id: str) -> "Act":
    """Return an act of a person that is done once, now."""
    from participant.subject import Act  # noqa: PLC0415

    return Act(
        ref=node.register.subject_ref(subject_id), key=secrets.token_urlsafe(16), request="command"
    )


def read_subject(subject: str | None, file: Path | None) -> str:
    """Return the id of the person, or complain and exit 2."""
    if (subject is None) == (file is None):
        raise wrong("name the person with --subject or with --subject-file, and not with both")
    if file is not None:
        found = read_text(file, "the file of the id").rstrip("\r\n")
    else:
        found = sys.stdin.readline().rstrip("\r\n") if subject == "-" else subject or ""
    if not found:
        raise wrong("the id of the person is empty; nothing was done")
    return found


def purposes_of(names: list[str] | None) -> "frozenset[Purpose]":
    """Return the purposes of their names, or complain and exit 2."""
    from consent import Purpose  # noqa: PLC0415

    unknown = [name for name in names or () if name not in set(Purpose)]
    if unknown:
        raise wrong(f"there is no purpose {unknown[0]!r} (known: {', '.join(Purpose)})")
    return frozenset(Purpose(name) for name in names or ())


def write_secret(path: Path, text: str) -> None:
    """Write a file that its owner only can read."""
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_text(text, encoding="utf-8")


def wrong(message: object) -> typer.Exit:
    """Complain, and return what ends the command with exit 2."""
    complain(message)
    return typer.Exit(WRONG)


def format_day(at: object) -> str:
    """Return a time for people, to the minute, in UTC."""
    moment = datetime.fromtimestamp(int(str(at)) / 1000, tz=UTC)
    return f"{moment:%Y-%m-%d %H:%M} (UTC)"


def _published(desk: "SubjectDesk", notice_id: str, language: str | None) -> "Notice":
    """Return the newest accepted version of a notice as it was published."""
    from consent import Notice  # noqa: PLC0415

    versions = _rows(desk.notice(notice_id)["versions"])
    newest = max((int(str(each["version"])) for each in versions), default=0)
    found = {
        str(each["language"]): each
        for each in versions
        if each["version"] == newest and language in {None, each["language"]}
    }
    if len(found) != 1:
        known = ", ".join(sorted(found)) or "none"
        raise wrong(
            f"the notice {notice_id!r} must be published in one language that --language names "
            f"(found: {known}); nothing was recorded"
        )
    ((tag, each),) = found.items()
    return Notice(id=notice_id, version=newest, language=tag, sha256=str(each["sha256"]))


def _describe(
    request: "OpenRequest", *, at: int, refs: "dict[SubjectRef, str]"
) -> dict[str, object]:
    return {
        "request": request.request_id,
        "right": str(request.kind),
        "opened_at": request.opened_at,
        "due_at": request.due_at,
        "extended": request.is_extended,
        "overdue": request.is_overdue(at=at),
        "subject": refs.get(request.subject_ref),
    }


def _tell_done(command: str, answer: "dict[str, object] | object", *, as_json: bool) -> None:
    if isinstance(answer, dict) and not print_json(command, answer, wanted=as_json):
        record = f"record {answer['record']}, " if "record" in answer else ""
        say(f"Recorded: {record}entry {answer['log_index']} of the log.")


def checked(make: Callable[[], Made]) -> Made:
    """Return what a function makes; a value that breaks a rule is one sentence and exit 2."""
    try:
        return make()
    except ValueError as error:
        raise wrong(error) from error


def _rows(value: object) -> list[dict[str, object]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _lines(path: Path) -> list[str]:
    text = sys.stdin.read() if str(path) == "-" else read_text(path, "the list of ids")
    return text.splitlines()


def _bytes(path: Path, name: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise wrong(f"{name} {path} cannot be read; nothing was done") from error
