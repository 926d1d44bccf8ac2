"""The commands of a node's staff: accounts, keys, and cases up to a dossier.

They open the node themselves. While it is served, the same is done over HTTP. A token is read
from a file and never from the command line; a code may be typed.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tillpact.answers import NO, WRONG, complain, print_json, read_policy, read_text, say

if TYPE_CHECKING:
    from collections.abc import Mapping

    from consent import JsonValue, ProvedDossier, Role
    from participant.accounts import Account, Credentials, Session
    from participant.cases import Case
    from participant.node import Node

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document for machines.")]
Config = Annotated[Path, typer.Argument(help="The node's participant.toml.")]
AccountId = Annotated[str, typer.Argument(help="The opaque id of an account.")]
Roles = Annotated[list[str], typer.Option("--role", help="A role; may be given several times.")]
As = Annotated[
    str | None, typer.Option("--as", help="Your account's id; a token of another is refused.")
]
TokenFile = Annotated[Path | None, typer.Option(help="A file that holds your token.")]
Code = Annotated[str | None, typer.Option(help="Six digits of your authenticator.")]
CodeFile = Annotated[Path | None, typer.Option(help="A file that holds them.")]
Out = Annotated[
    Path | None, typer.Option("--out", "-o", help="Write the token here instead of printing it.")
]


def account_add(
    config: Config,
    *,
    role: Roles,
    as_account: As = None,
    token_file: TokenFile = None,
    code: Code = None,
    code_file: CodeFile = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Add an account; with --token-file it is proposed, and another operator approves it."""
    check_free(out)
    with open_node(config) as node:
        roles = _roles(role)
        if as_account is None and token_file is None:
            made = node.accounts.add_by_host(roles, at=node.clock())
            _give_out("account.add", made, out, as_json=as_json)
            return
        session = sign_in(node, as_account, token_file, code, code_file)
        name = node.accounts.propose(session, roles, at=node.clock())
        if not print_json("account.add", {"account": name, "proposed": True}, wanted=as_json):
            say(f"Proposed: account {name}. Another operator approves it: tillpact account approve")


def account_approve(
    config: Config,
    account: AccountId,
    *,
    as_account: As = None,
    token_file: TokenFile = None,
    code: Code = None,
    code_file: CodeFile = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Approve what another operator proposed; a new account's token is given out once."""
    check_free(out)
    with open_node(config) as node:
        session = sign_in(node, as_account, token_file, code, code_file)
        known = node.accounts.account(account)
        if known.is_active and known.proposed is not None:
            known = node.accounts.approve(session, account, at=node.clock())
            if not print_json("account.approve", known.format(), wanted=as_json):
                say(_account_line(known))
            return
        if not known.is_active:
            node.accounts.approve(session, account, at=node.clock())
        # Also when it was approved before: who lost the answer asks again.
        made = node.accounts.enrol(session, account, at=node.clock())
        _give_out("account.approve", made, out, as_json=as_json)


def account_roles(
    config: Config,
    account: AccountId,
    *,
    role: Roles,
    as_account: As = None,
    token_file: TokenFile = None,
    code: Code = None,
    code_file: CodeFile = None,
    as_json: Json = False,
) -> None:
    """Propose other roles for an account; another operator approves them."""
    with open_node(config) as node:
        session = sign_in(node, as_account, token_file, code, code_file)
        node.accounts.propose(session, _roles(role), account=account, at=node.clock())
        known = node.accounts.account(account)
        if not print_json("account.roles", known.format(), wanted=as_json):
            say(f"Proposed for {account}: {', '.join(sorted(known.proposed or ()))}.")


def account_revoke(
    config: Config,
    account: AccountId,
    *,
    as_account: As = None,
    token_file: TokenFile = None,
    code: Code = None,
    code_file: CodeFile = None,
    as_json: Json = False,
) -> None:
    """Take an account out of use at once; without --token-file on the word of who has the host."""
    with open_node(config) as node:
        if as_account is None and token_file is None:
            node.accounts.revoke_by_host(account, at=node.clock())
        else:
            session = sign_in(node, as_account, token_file, code, code_file)
            node.accounts.revoke(session, account, at=node.clock())
        if not print_json("account.revoke", {"account": account, "revoked": True}, wanted=as_json):
            say(f"Revoked: account {account}.")


def account_renew(
    config: Config,
    *,
    as_account: As = None,
    token_file: TokenFile = None,
    code: Code = None,
    code_file: CodeFile = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Get a new token; the old one ends when the new one is first used."""
    check_free(out)
    with open_node(config) as node:
        session = sign_in(node, as_account, token_file, code, code_file)
        made = node.accounts.renew(session, at=node.clock())
        _give_out("account.renew", made, out, as_json=as_json)


def account_ls(config: Config, *, as_json: Json = False) -> None:
    """List the accounts of a node by their opaque ids."""
    with open_node(config) as node:
        known = node.accounts.all()
        document = {"accounts": [each.format() for each in known]}
        if not print_json("account.ls", document, wanted=as_json):
            for each in known:
                say(_account_line(each))


def node_rotate_keys(
    config: Config,
    *,
    as_account: As = None,
    token_file: TokenFile = None,
    code: Code = None,
    code_file: CodeFile = None,
    as_json: Json = False,
) -> None:
    """Change the key that the keys of data subjects are wrapped under; decisions stay."""
    from participant.governance import rotate_keys  # noqa: PLC0415

    with open_node(config) as node:
        session = sign_in(node, as_account, token_file, code, code_file)
        key_id = rotate_keys(node, session)
        if not print_json("node.rotate-keys", {"kind": "wrapping", "id": key_id}, wanted=as_json):
            say(f"Rotated: the wrapping key is {key_id}; the older one was destroyed.")
            say("Back up log/wrapping.key apart from log/keys.sqlite.")


def case_open(
    config: Config,
    *,
    reason: Annotated[str, typer.Option(help="Why; one of a closed list.")],
    subject_file: Annotated[
        Path, typer.Option(help="A file that holds the brand's own id of the person.")
    ],
    as_account: As = None,
    token_file: TokenFile = None,
    code: Code = None,
    code_file: CodeFile = None,
    as_json: Json = False,
) -> None:
    """Open a case about one person and ask to see their dossier."""
    from participant.cases import CaseReason, Cases  # noqa: PLC0415

    try:
        chosen = CaseReason(reason)
    except ValueError as error:
        known = ", ".join(each.value for each in CaseReason)
        complain(f"there is no reason {reason!r}; the reasons are {known}; nothing was opened")
        raise typer.Exit(WRONG) from error
    subject = read_text(subject_file, "the file of the person").strip()
    if not subject:
        complain(f"the file {subject_file} holds no id of a person; nothing was opened")
        raise typer.Exit(WRONG)
    with open_node(config) as node:
        session = sign_in(node, as_account, token_file, code, code_file, asks=False)
        cases = Cases(node)
        ref = node.register.subject_ref(subject)
        opened = cases.open(session, ref, reason=chosen)
        _say_case("case.open", cases.request(session, opened.case_id), as_json=as_json)


def case_approve(
    config: Config,
    case: Annotated[str, typer.Argument(help="The id of a case.")],
    *,
    as_account: As = None,
    token_file: TokenFile = None,
    code: Code = None,
    code_file: CodeFile = None,
    as_json: Json = False,
) -> None:
    """Approve as a second officer that the one who asked sees the dossier, for a day."""
    from participant.cases import Cases  # noqa: PLC0415

    with open_node(config) as node:
        session = sign_in(node, as_account, token_file, code, code_file)
        _say_case("case.approve", Cases(node).approve(session, case), as_json=as_json)


def case_ls(config: Config, *, as_json: Json = False) -> None:
    """List the cases of a node; nothing in them leads to a person."""
    from participant.cases import Cases  # noqa: PLC0415

    with open_node(config) as node:
        known = Cases(node).all()
        document = {"cases": [each.format() for each in known]}
        if not print_json("case.ls", document, wanted=as_json):
            for each in known:
                say(_case_line(each))


def audit_dossier(
    config: Config,
    *,
    case: Annotated[str, typer.Option(help="The id of an approved case.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The dossier to write, JSON.")],
    as_account: As = None,
    token_file: TokenFile = None,
    code: Code = None,
    code_file: CodeFile = None,
) -> None:
    """Write everything the log holds about the person of an approved case, with proofs."""
    check_free(out)
    from consent.instant import format_instant  # noqa: PLC0415
    from participant.cases import Cases  # noqa: PLC0415
    from participant.cosigning import seek_cosignatures  # noqa: PLC0415

    with open_node(config) as node:
        session = sign_in(node, as_account, token_file, code, code_file)
        made = Cases(node, seek_cosignatures=seek_cosignatures(node)).dossier(session, case)
        _write_secret(out, made.data)
        say(f"Dossier: {out}, {len(made.data)} bytes. Keep it as secret as the person's data.")
        say(f"It proves to be complete until {format_instant(made.complete_until)}.")
        if not made.is_cosigned:
            complain("No witness has cosigned this log: only the node's own signature is on it.")


def audit_dossier_verify(
    file: Annotated[Path, typer.Argument(help="The dossier as it was handed over.")],
    policy: Annotated[Path, typer.Option(help="Your own trust.policy: public keys.")],
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Verify a dossier offline and tell it in plain words; exit 1 when it does not hold."""
    from consent import DossierError, NoteError, ProofError, verify_dossier  # noqa: PLC0415
    from consent.dossier import LONGEST_DOSSIER_BYTES  # noqa: PLC0415

    trust = read_policy(policy)
    try:
        with file.open("rb") as stream:
            data = stream.read(LONGEST_DOSSIER_BYTES + 1)
    except OSError as error:
        complain(f"the dossier {file} cannot be read; nothing was verified")
        raise typer.Exit(WRONG) from error
    try:
        proved = verify_dossier(data, trust)
    except (DossierError, NoteError, ProofError) as error:
        document = {"verified": False, "reason": str(error)}
        print_json("audit.dossier-verify", document, wanted=as_json)
        complain(f"Does not match: {error}")
        raise typer.Exit(NO) from error
    document = {
        "verified": True,
        "origin": proved.origin,
        "events": list(proved.events),
        "complete": proved.complete,
        "complete_until": proved.complete_until,
        "cosigners": dict(proved.cosigners),
    }
    if not print_json("audit.dossier-verify", document, wanted=as_json):
        _say_dossier(proved)


def _say_dossier(proved: "ProvedDossier") -> None:
    from consent.instant import format_instant  # noqa: PLC0415

    cosigners = ", ".join(map(clean, proved.cosigners)) or "nobody"
    until = format_instant(proved.complete_until)
    say(f"Verified: the log of {clean(proved.origin)}, cosigned by {cosigners}.")
    for event in proved.events:
        say(f"  {_event_line(event)}")
    say(f"Complete: until {until} the log holds these {proved.complete} events and no other.")
    later = len(proved.events) - proved.complete
    if later:
        say(f"The last {later} came after that; that they are all is not proved yet.")
    say("This proves what was recorded, not that everything was recorded.")


_WORDS = {
    "consent.recorded": "chose",
    "consent.renewed": "agreed again",
    "consent.requested": "was asked",
    "consent.confirmed": "confirmed",
    "consent.withdrawn": "took consent back",
    "consent.invalidated": "consent was found to be none",
    "objection.set": "objected",
    "objection.cleared": "took an objection back",
    "restriction.set": "processing was restricted",
    "restriction.cleared": "a restriction ended",
    "subject.age_recorded": "age became known",
    "guardian.verified": "the guardian was verified",
    "subject.merged": "was found to be one person with another id",
}


def _event_line(event: "Mapping[str, JsonValue]") -> str:
    from consent.instant import LATEST_MS, format_instant  # noqa: PLC0415

    at, kind = event.get("at"), str(event.get("type"))
    is_instant = isinstance(at, int) and 0 <= at <= LATEST_MS
    said = [format_instant(at) if is_instant and isinstance(at, int) else str(at)]
    said.append(_WORDS.get(kind, clean(kind)))
    for name, word in (("given", "yes to"), ("refused", "no to"), ("purposes", "for")):
        value = event.get(name)
        if isinstance(value, list) and value:
            said.append(f"{word} {', '.join(clean(str(each)) for each in value)}")
    return "; ".join(said)


@contextmanager
def open_node(config: Path) -> "Iterator[Node]":
    """Open a node, and say in one sentence what was refused and what cannot be used."""
    from consent import AccessDenied, AssessmentError, LogError, PolicyError  # noqa: PLC0415
    from models.plan import PlanError  # noqa: PLC0415
    from participant.accounts import AccountError, CodeRefused, NotSignedIn  # noqa: PLC0415
    from participant.cases import CaseError  # noqa: PLC0415
    from participant.config import ConfigError, load  # noqa: PLC0415
    from participant.node import Node, NodeError  # noqa: PLC0415
    from participant.rights import RightsError  # noqa: PLC0415

    no = (AccountError, AssessmentError, CaseError, CodeRefused, NotSignedIn)
    try:
        with Node.open(load(config)) as node:
            yield node
    except AccessDenied as error:
        complain(f"Refused: {error.reason}{hint_of(error.reason)}")
        raise typer.Exit(NO) from error
    except (*no, PlanError, PolicyError, RightsError) as error:
        complain(f"Refused: {error}")
        raise typer.Exit(NO) from error
    except (ConfigError, LogError, NodeError) as error:
        complain(error)
        if "is open for writing elsewhere" in str(error):
            complain(
                "While a node is served, its staff use its HTTP addresses: /v1/accounts, "
                "/v1/cases and the others in docs/reference/http.md. Or stop it first."
            )
        raise typer.Exit(WRONG) from error


_HINTS = {
    "step-up": "show a code of your authenticator: --code, --code-file, or type it when asked",
    "second-person": "another account than the one that proposed or asked must do this",
    "no policy was activated": "rules must be in force first: tillpact policy propose",
}


def hint_of(reason: str) -> str:
    """Return what whoever was refused can do about it, if that is known."""
    found = next((hint for sign, hint in _HINTS.items() if sign in reason), "")
    return f" ({found})" if found else ""


def sign_in(
    node: "Node",
    account: str | None,
    token_file: Path | None,
    code: str | None,
    code_file: Path | None,
    *,
    asks: bool = True,
) -> "Session":
    """Sign in with the token of a file, and step up with a code if there is one.

    Args:
        node: An open node.
        account: Whose the token must be; anybody's without it.
        token_file: Where the token is.
        code: Six digits of the authenticator.
        code_file: A file that holds them.
        asks: Whether a missing code is asked for at a terminal, as for what needs a fresh one.
    """
    if token_file is None:
        complain("say who you are: --token-file FILE, a file with your token; nothing was done")
        raise typer.Exit(WRONG)
    token = read_text(token_file, "the token file").strip()
    session = node.accounts.sign_in(token, at=node.clock())
    if account is not None and session.account != account:
        complain(f"the token is not one of the account {account}; nothing was done")
        raise typer.Exit(WRONG)
    given = code if code_file is None else read_text(code_file, "the code file").strip()
    age = node.accounts.mfa_age_s(session, at=node.clock())
    if asks and given is None and (age is None or age > 240) and sys.stdin.isatty():
        given = typer.prompt(
            f"Code of the authenticator of {session.account} (empty for none)",
            default="",
            show_default=False,
            err=True,
        )
    if given:
        node.accounts.step_up(session, given, at=node.clock())
    return session


def _roles(names: list[str]) -> "list[Role]":
    from consent import Role  # noqa: PLC0415

    try:
        return [Role(name) for name in names]
    except ValueError as error:
        known = ", ".join(role.value for role in Role if role is not Role.SUBJECT)
        complain(f"{error}; the roles are {known}; nothing was changed")
        raise typer.Exit(WRONG) from error


def _give_out(command: str, made: "Credentials", out: Path | None, *, as_json: bool) -> None:
    """Show the secrets of an account, this once."""
    from consent.instant import format_instant  # noqa: PLC0415

    if out is not None:
        _write_secret(out, f"{made.token}\n".encode())
    document = {
        "account": made.account,
        "token": made.token if out is None else None,
        "uri": made.uri,
        "expires_at": made.expires_at,
    }
    if print_json(command, document, wanted=as_json):
        return
    say(f"Account: {made.account}")
    say(f"Token: {made.token if out is None else out}")
    if made.uri:
        say(f"Authenticator: {made.uri}")
    say(f"The token ends {format_instant(made.expires_at)}. Nothing of this is shown again.")


def check_free(out: Path | None) -> None:
    """Complain before anything is done that could not be written down."""
    if out is not None and (out.exists() or not out.parent.is_dir()):
        complain(f"{out} exists already or its folder does not; nothing was done")
        raise typer.Exit(WRONG)


def _write_secret(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)


def _say_case(command: str, case: "Case", *, as_json: bool) -> None:
    if not print_json(command, case.format(), wanted=as_json):
        say(_case_line(case))


def _case_line(case: "Case") -> str:
    from consent.instant import format_instant  # noqa: PLC0415

    state = "opened"
    if case.requester:
        state = f"asked for by {case.requester}, waits for another officer"
    if case.approver:
        until = format_instant(case.approved_until)
        state = f"asked for by {case.requester}, approved by {case.approver} until {until}"
    return f"{case.case_id}  {case.reason}  {state}  handed out {case.handed_out} times"


def _account_line(known: "Account") -> str:
    roles = ", ".join(sorted(known.roles)) or "not approved yet"
    state = "revoked" if known.revoked_at is not None else "active" if known.roles else "waits"
    wanted = "" if known.proposed is None else f"  proposed: {', '.join(sorted(known.proposed))}"
    return f"{known.account}  {state:<8}  {roles}{wanted}"


def clean(text: str) -> str:
    """Return text of somebody else in which nothing controls a terminal."""
    from consent.listing import printable  # noqa: PLC0415

    return printable(text)
