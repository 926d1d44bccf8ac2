"""The command `tillpact`: nouns, then verbs.

Exit 0: yes. Exit 1: the answer is no (a proof is invalid, nothing is left, a check failed).
Exit 2: usage, configuration or data. Answers go to stdout, complaints to stderr.
"""

import logging
import os
import sys
from collections.abc import Callable
from importlib.metadata import version as package_version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tillpact import (
    auditing,
    consenting,
    exchanging,
    governing,
    nodes,
    officer,
    spreading,
    staff,
    witnessing,
)
from tillpact.answers import (
    NO,
    WRONG,
    complain,
    print_json,
    read_policy,
    read_text,
    say,
    tell_operator,
)

if TYPE_CHECKING:
    from consent import PublicIdentity, Receipt
    from privacy import Budget, Ledger

_MOST_COUNTS = 10_000

app = typer.Typer(
    help="Retail brands learn together without pooling their customers' data.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
audit_app = typer.Typer(help="Check what nodes did, offline.", no_args_is_help=True)
app.add_typer(audit_app, name="audit")
audit_app.command("ls")(officer.audit_ls)
audit_app.command("show")(officer.audit_show)
audit_app.command("proof")(officer.audit_proof)
audit_app.command("publish")(nodes.audit_publish)
audit_app.command("witness")(witnessing.audit_witness)
audit_app.command("equivocation")(witnessing.audit_equivocation)
app.add_typer(witnessing.coordinator_app, name="coordinator")
audit_app.command("dossier")(staff.audit_dossier)
audit_app.command("dossier-verify")(staff.audit_dossier_verify)
account_app = typer.Typer(help="Accounts of a node's staff and services.", no_args_is_help=True)
app.add_typer(account_app, name="account")
account_app.command("add")(staff.account_add)
account_app.command("approve")(staff.account_approve)
account_app.command("ls")(staff.account_ls)
account_app.command("roles")(staff.account_roles)
account_app.command("revoke")(staff.account_revoke)
account_app.command("renew")(staff.account_renew)
policy_app = typer.Typer(help="The access rules of a node.", no_args_is_help=True)
app.add_typer(policy_app, name="policy")
policy_app.command("ls")(governing.policy_ls)
policy_app.command("propose")(governing.policy_propose)
policy_app.command("approve")(governing.policy_approve)
policy_app.command("activate")(governing.policy_activate)
assessment_app = typer.Typer(help="Impact assessments of purposes.", no_args_is_help=True)
app.add_typer(assessment_app, name="assessment")
assessment_app.command("ls")(governing.assessment_ls)
assessment_app.command("draft")(governing.assessment_draft)
assessment_app.command("approve")(governing.assessment_approve)
plan_app = typer.Typer(help="What a brand signs before a run.", no_args_is_help=True)
app.add_typer(plan_app, name="plan")
plan_app.command("show")(governing.plan_show)
plan_app.command("approve")(governing.plan_approve)
case_app = typer.Typer(help="Why an officer may see one dossier.", no_args_is_help=True)
app.add_typer(case_app, name="case")
case_app.command("open")(staff.case_open)
case_app.command("approve")(staff.case_approve)
case_app.command("ls")(staff.case_ls)
evidence_app = typer.Typer(help="What an officer takes away, as one file.", no_args_is_help=True)
app.add_typer(evidence_app, name="evidence")
evidence_app.command("build")(officer.evidence_build)
evidence_app.command("verify")(officer.evidence_verify)
consent_app = typer.Typer(help="What customers agreed to.", no_args_is_help=True)
app.add_typer(consent_app, name="consent")
consent_app.command("deliver")(spreading.consent_deliver)
consent_app.command("overdue")(spreading.consent_overdue)
consent_app.command("lineage")(spreading.consent_lineage)
receipt_app = typer.Typer(help="A customer's receipt, checked offline.", no_args_is_help=True)
consent_app.add_typer(receipt_app, name="receipt")
auditor_app = typer.Typer(help="Encrypted counts, added up.", no_args_is_help=True)
app.add_typer(auditor_app, name="auditor")
auditor_app.command("keygen")(auditing.auditor_keygen)
auditor_app.command("decrypt")(auditing.auditor_decrypt)
model_app = typer.Typer(help="The models that a node keeps.", no_args_is_help=True)
app.add_typer(model_app, name="model")
model_app.command("ls")(spreading.model_ls)
model_app.command("retire")(spreading.model_retire)
notice_app = typer.Typer(help="What people are shown.", no_args_is_help=True)
consent_app.add_typer(notice_app, name="notice")
consent_app.command("ladder")(consenting.consent_ladder)
consent_app.command("state")(consenting.consent_state)
consent_app.command("record")(consenting.consent_record)
consent_app.command("withdraw")(consenting.consent_withdraw)
consent_app.command("object")(consenting.consent_object)
consent_app.command("restrict")(consenting.consent_restrict)
consent_app.command("ask")(consenting.consent_ask)
consent_app.command("request")(consenting.consent_request)
consent_app.command("requests")(consenting.consent_requests)
consent_app.command("answer")(consenting.consent_answer)
consent_app.command("refuse")(consenting.consent_refuse)
consent_app.command("erase")(governing.consent_erase)
consent_app.command("handle-token")(consenting.consent_handle_token)
consent_app.command("import")(exchanging.consent_import)
consent_app.command("export")(exchanging.consent_export)
consent_app.command("import-27560")(exchanging.consent_import_27560)
consent_app.command("processing")(exchanging.consent_processing)
notice_app.command("publish")(consenting.notice_publish)
receipt_app.command("issue")(consenting.receipt_issue)
receipt_app.command("finalise")(consenting.receipt_finalise)
node_app = typer.Typer(help="One brand's node.", no_args_is_help=True)
app.add_typer(node_app, name="node")
node_app.command("rotate-keys")(staff.node_rotate_keys)
node_app.command("create")(nodes.node_create)
node_app.command("card")(nodes.node_card)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document for machines.")]
ReceiptFile = Annotated[Path, typer.Argument(help="The receipt as the customer got it.")]
IssuerFile = Annotated[Path, typer.Option(help="The issuer's public key: name+hash+base64.")]


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="Where nodes and report go.")] = Path("demo"),
) -> None:
    """Train two joint models with five sample brands, and report what joining brought."""
    from rich.console import Console  # noqa: PLC0415 - help must stay light

    from tillpact.demo import FAULTS, run_demo  # noqa: PLC0415
    from tillpact.report import show, write  # noqa: PLC0415

    console = Console()
    try:
        result = run_demo(folder, console)
    except FAULTS as error:
        complain(error)
        raise typer.Exit(WRONG) from error
    show(result, console)
    _, page = write(result, folder)
    console.print(f"Report: {page}  Nodes: {folder / 'nodes'}")
    if not (result.audit.tamper_found and not result.withdrawal.rounds_used_after):
        raise typer.Exit(NO)


@audit_app.command("verify")
def audit_verify(
    folder: Annotated[Path, typer.Argument(help="A node's published audit folder.")],
    policy: Annotated[Path, typer.Option(help="The consortium's trust.policy: public keys.")],
    as_json: Json = False,  # noqa: FBT002 - a flag is how a command line says yes
) -> None:
    """Verify a node's published log with public keys only; exit 1 when it does not hold."""
    from consent import (  # noqa: PLC0415
        LogError,
        NoteError,
        ProofError,
        verify_published,
    )

    trust = read_policy(policy)
    if not folder.is_dir():
        complain(f"there is no folder {folder}; nothing was verified")
        raise typer.Exit(WRONG)
    try:
        verdict = verify_published(folder, trust)
    except (LogError, NoteError, ProofError) as error:
        print_json("audit.verify", {"verified": False, "reason": str(error)}, wanted=as_json)
        complain(f"Does not match: {error}")
        raise typer.Exit(NO) from error
    document = {
        "verified": True,
        "origin": verdict.origin,
        "entries": verdict.entries,
        "root_hash": verdict.root_hash,
        "cosigners": dict(verdict.cosigners),
        "events": dict(verdict.events),
    }
    if not print_json("audit.verify", document, wanted=as_json):
        say(f"Verified: the log of {verdict.origin} holds {verdict.entries} entries, unchanged.")
        cosigners = ", ".join(verdict.cosigners) or "nobody"
        say(f"Cosigned by {cosigners}. Root hash {verdict.root_hash}.")
        for kind, count in sorted(verdict.events.items()):
            say(f"  {count:>7}  {kind}")
        say("This proves what was declared and in which order, not that nothing was hidden.")


@receipt_app.command("verify")
def receipt_verify(
    file: ReceiptFile,
    issuer: IssuerFile,
    policy: Annotated[Path | None, typer.Option(help="A trust.policy, for its quorum.")] = None,
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Verify a customer's receipt with public keys only; exit 1 when it does not hold."""
    from consent import ReceiptError, verify_receipt  # noqa: PLC0415

    text, key = _read_receipt(file), _read_issuer(issuer)
    trust = None if policy is None else read_policy(policy)
    try:
        receipt = verify_receipt(text, key, trust)
    except ReceiptError as error:
        document = {"verified": False, "reason": str(error)}
        print_json("consent.receipt.verify", document, wanted=as_json)
        complain(f"Does not match: {error}")
        raise typer.Exit(NO) from error
    if not print_json("consent.receipt.verify", _describe_receipt(receipt), wanted=as_json):
        say(f"Verified: receipt {receipt.receipt_id} was signed by {receipt.issuer}.")
        say(f"Given: {', '.join(line.purpose for line in receipt.given) or 'nothing'}.")
        say(f"Refused: {', '.join(purpose for purpose, _ in receipt.refused) or 'nothing'}.")
        if receipt.proof is None:
            say("Pending: the log does not prove it yet; ask the issuer for the final receipt.")
        elif trust is None:
            say(f"Final: entry {receipt.index} of the log says the same; no witness was asked for.")
        else:
            say(f"Final: entry {receipt.index} of the log says the same, and the quorum saw it.")


@receipt_app.command("page")
def receipt_page(
    file: ReceiptFile,
    issuer: IssuerFile,
    out: Annotated[Path, typer.Option("--out", "-o", help="The page to write, as HTML.")],
    lang: Annotated[Literal["en", "zh"], typer.Option(help="Which language comes first.")] = "en",
) -> None:
    """Write a page to read and print, in both languages; exit 1 when the receipt does not hold."""
    from consent import Language, ReceiptError, format_page, verify_receipt  # noqa: PLC0415

    text, key = _read_receipt(file), _read_issuer(issuer)
    try:
        page = format_page(verify_receipt(text, key), Language(lang))
    except ReceiptError as error:
        complain(f"Does not match: {error}; no page was written")
        raise typer.Exit(NO) from error
    out.write_text(page, encoding="utf-8")
    say(f"Page: {out}")


def _describe_receipt(receipt: "Receipt") -> dict[str, object]:
    """Return what may be printed: everything but the customer's secret and the opened entry."""
    return {
        "verified": True,
        "receipt": receipt.receipt_id,
        "record": receipt.record_id,
        "issuer": receipt.issuer,
        "status": receipt.status,
        "log_index": receipt.index,
        "profile": receipt.profile,
        "expressed_at": receipt.expressed_at,
        "effective_at": receipt.effective_at,
        "given": {line.purpose: line.until for line in receipt.given},
        "refused": [purpose for purpose, _ in receipt.refused],
        "notice_sha256": receipt.notice.sha256,
    }


def _read_receipt(path: Path) -> str:
    # Reading stops where no receipt is valid any more; a byte that is no text is a wrong receipt.
    text = read_text(path, "the receipt", most_characters=100_000, errors="replace")
    return text.removesuffix("\n").removesuffix("\r")


def _read_issuer(path: Path) -> "PublicIdentity":
    from consent import IdentityError, PublicIdentity  # noqa: PLC0415

    try:
        return PublicIdentity.parse(read_text(path, "the issuer's key").strip())
    except IdentityError as error:
        complain(f"the issuer's key {path} cannot be used ({error}); nothing was verified")
        raise typer.Exit(WRONG) from error


@app.command()
def budget(
    config: Annotated[Path, typer.Argument(help="The node's participant.toml.")],
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Show what each purpose has spent and what the rest still buys; exit 1 when nothing is left.

    Looks only: a purpose that is not in the ledger yet is not recorded by this.
    """
    from participant.config import ConfigError, load  # noqa: PLC0415
    from privacy import Ledger, LedgerError  # noqa: PLC0415

    try:
        node = load(config)
        planned = {purpose.value: most for purpose, most in node.budgets.items()}
        with Ledger.open_readonly(node.folder / "ledger.sqlite") as ledger:
            ledger.verify_budgets(planned)
            lines = {
                name: _describe_budget(ledger, name, most)
                for name, most in ledger.budgets().items()
            }
    except (ConfigError, LedgerError) as error:
        complain(error)
        raise typer.Exit(WRONG) from error
    if not print_json(
        "budget", {name: document for name, (document, _) in lines.items()}, wanted=as_json
    ):
        for _, sentence in lines.values():
            say(sentence)
        for name in planned.keys() - lines.keys():
            say(f"{name}: not in the ledger yet; it is recorded when the node is opened")
    if not any(document["epsilon_of_one_more_plan"] for document, _ in lines.values()):
        raise typer.Exit(NO)


def _describe_budget(
    ledger: "Ledger", name: str, most: "Budget"
) -> tuple[dict[str, float | int], str]:
    from privacy import GaussianRelease, epsilon_of  # noqa: PLC0415

    spent, ever = ledger.spent(name), ledger.spent_ever(name)
    left = epsilon_of(ledger.remaining(name).mu, delta=most.delta)
    # One customer changes a count by one; the least noise that is ever used is 30.
    count = GaussianRelease(sensitivity=1, noise_std=30.0)
    counts = ledger.affordable(name, count, most=_MOST_COUNTS)
    document = {
        "epsilon_spent": spent.epsilon,
        "epsilon_of_one_more_plan": left,
        "epsilon_budget": most.epsilon,
        "delta": most.delta,
        "releases": spent.releases,
        "counts_left": counts,
        "epsilon_spent_ever": ever.epsilon,
    }
    sentence = (
        f"{name}: epsilon {spent.epsilon:.3f} of {most.epsilon:.3f} spent in {spent.releases} "
        f"releases. The rest buys one more plan of epsilon {left:.3f}, or "
        f"{counts}{' or more' if counts == _MOST_COUNTS else ''} counts of customers that are off "
        f"by at most 59, 19 times in 20 (delta {most.delta:g}, one customer with everything they "
        "did)."
    )
    if ever.releases > spent.releases:
        sentence += f" All windows together: epsilon {ever.epsilon:.3f}."
    return document, sentence


@node_app.command("serve")
def node_serve(  # noqa: PLR0917 - a command line has options, not parameters
    config: Annotated[Path, typer.Argument(help="The node's participant.toml.")],
    host: Annotated[str, typer.Option(help="Address; beyond loopback it needs TLS.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 8480,
    peers: Annotated[
        Path | None, typer.Option(help="A trust.policy whose logs this node cosigns.")
    ] = None,
    tls_certificate: Annotated[Path | None, typer.Option(help="Certificate chain, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key, PEM.")] = None,
    insecure_listen: Annotated[  # noqa: FBT002
        bool, typer.Option("--insecure-listen", help="Serve a network without TLS.")
    ] = False,
) -> None:
    """Serve a node's data subjects, staff, services, log and peers over HTTP, until SIGTERM."""
    from consent import LogError, NoteError  # noqa: PLC0415
    from consent.serving import Listening, ServiceError  # noqa: PLC0415
    from participant.config import ConfigError, load  # noqa: PLC0415
    from participant.node import Node, NodeError  # noqa: PLC0415
    from participant.service import ServiceSettings, serve  # noqa: PLC0415

    try:
        listening = Listening(
            host=host,
            port=port,
            certificate=tls_certificate,
            key=tls_key,
            is_insecure=insecure_listen,
        )
        settings = ServiceSettings(peers=None if peers is None else read_policy(peers))
        tell_operator()
        with Node.open(load(config)) as node:
            serve(
                node,
                settings,
                listening,
                on_start=lambda url: say(f"Serving {node.name} on {url}"),
            )
    except (ConfigError, LogError, NodeError, NoteError, ServiceError) as error:
        complain(error)
        raise typer.Exit(WRONG) from error


@app.command()
def doctor(
    folder: Annotated[Path, typer.Argument(help="Where a node's state would go.")] = Path(),
    config: Annotated[
        Path | None, typer.Option(help="Also read this participant.toml, its data and its store.")
    ] = None,
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Check Python, pins, SQLite, disk, clock, and that Flower calls nobody; exit 1 if not."""
    from tillpact.doctor import examine, examine_data, examine_store  # noqa: PLC0415

    checks = examine(folder)
    if config is not None:
        from participant.config import ConfigError, load  # noqa: PLC0415
        from participant.customers import DataError  # noqa: PLC0415

        try:
            read = load(config)
            checks += [examine_data(read), examine_store(read)]
        except (ConfigError, DataError) as error:
            complain(error)
            raise typer.Exit(WRONG) from error
    document = {check.name: {"passed": check.passed, "found": check.found} for check in checks}
    if not print_json("doctor", document, wanted=as_json):
        for check in checks:
            say(f"{'ok ' if check.passed else 'NOT'}  {check.name:<20} {check.found}")
    if not all(check.passed for check in checks):
        raise typer.Exit(NO)


@app.command()
def version(
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Print the version."""
    found = package_version("tillpact")
    if not print_json("version", {"version": found}, wanted=as_json):
        say(f"tillpact {found}")


def main() -> None:
    """Run the command; every fault that is ours to foresee is one sentence."""
    # Before anything imports Flower: it would report usage and look for updates.
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    # What a command has to say it says itself; a service sets its own log up.
    logging.getLogger().addHandler(logging.NullHandler())
    guarded(app)


def guarded(run: Callable[[], object]) -> None:
    """Run a command; a refusal of the operating system becomes one sentence and exit 2."""
    try:
        run()
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        complain(f"the system refused{where}: {error.strerror}; what was written so far is whole")
        sys.exit(WRONG)
