"""The commands for witnesses: ask them, judge what convicts a log, serve the coordinator's."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tillpact.answers import NO, WRONG, complain, print_json, read_policy, say, tell_operator

if TYPE_CHECKING:
    from consent.cosigning import Pass

coordinator_app = typer.Typer(help="The coordinator's log and witness.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document for machines.")]
CoordinatorFolder = Annotated[Path, typer.Argument(help="The coordinator's folder.")]


def audit_witness(
    config: Annotated[
        Path, typer.Argument(help="A participant.toml, or the coordinator's folder.")
    ],
    as_json: Json = False,  # noqa: FBT002 - a flag is how a command line says yes
) -> None:
    """Ask every witness once to cosign the newest head; exit 1 when the quorum was not met."""
    from consent import LogError, NoteError  # noqa: PLC0415
    from participant.config import ConfigError  # noqa: PLC0415
    from participant.node import NodeError  # noqa: PLC0415

    try:
        done = _ask_for(config)
    except LogError as error:
        complain(error)
        raise typer.Exit(NO) from error
    except (ConfigError, NodeError, NoteError) as error:
        complain(error)
        raise typer.Exit(WRONG) from error
    document = {
        "met": done.is_met,
        "tree_size": done.tree_size,
        "cosigners": dict(done.cosigners),
        "refused": dict(done.refused),
    }
    if not print_json("audit.witness", document, wanted=as_json):
        for name in sorted(done.cosigners):
            say(f"cosigned  {name}")
        for name, reason in sorted(done.refused.items()):
            say(f"NOT       {name}: {reason}")
        word = "met" if done.is_met else "not met"
        say(f"The quorum is {word} for the head of {done.tree_size} entries.")
    if not done.is_met:
        raise typer.Exit(NO)


def audit_equivocation(
    file: Annotated[Path, typer.Argument(help="The evidence that a witness wrote.")],
    policy: Annotated[Path, typer.Option(help="The consortium's trust.policy: public keys.")],
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Judge a witness's evidence with public keys only; exit 0 when it convicts the log."""
    from consent import Evidence, EvidenceKind, NoteError  # noqa: PLC0415
    from consent.equivocation import LONGEST_EVIDENCE_BYTES, WHY  # noqa: PLC0415

    trust = read_policy(policy)
    try:
        with file.open("rb") as stream:
            data = stream.read(LONGEST_EVIDENCE_BYTES + 1)
    except OSError as error:
        complain(f"the evidence {file} cannot be read; nothing was verified")
        raise typer.Exit(WRONG) from error
    try:
        evidence = Evidence.parse(data)
        if trust.log(evidence.log.name) != evidence.log:
            raise NoteError("the evidence is against another key than the policy's for this log")
    except NoteError as error:
        print_json("audit.equivocation", {"convicts": False, "reason": str(error)}, wanted=as_json)
        complain(f"Convicts nobody: {error}")
        raise typer.Exit(NO) from error
    convicts = evidence.kind is EvidenceKind.TWO_HEADS
    document = {
        "convicts": convicts,
        "origin": evidence.log.name,
        "kind": evidence.kind.value,
        "reason": WHY[evidence.kind],
    }
    if not print_json("audit.equivocation", document, wanted=as_json):
        verdict = "Convicted" if convicts else "Convicts nobody"
        say(f"{verdict}: the log of {evidence.log.name}. {WHY[evidence.kind]}")
    if not convicts:
        raise typer.Exit(NO)


@coordinator_app.command("serve")
def coordinator_serve(  # noqa: PLR0917 - a command line has options, not parameters
    folder: CoordinatorFolder,
    host: Annotated[str, typer.Option(help="Address; beyond loopback it needs TLS.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 8470,
    tls_certificate: Annotated[Path | None, typer.Option(help="Certificate chain, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key, PEM.")] = None,
    insecure_listen: Annotated[  # noqa: FBT002
        bool, typer.Option("--insecure-listen", help="Serve a network without TLS.")
    ] = False,
) -> None:
    """Serve the coordinator's log and its witness over HTTP, until SIGTERM."""
    from consent import IdentityError, LogError, NoteError  # noqa: PLC0415
    from consent.serving import Listening, ServiceError  # noqa: PLC0415
    from coordinator.host import Host  # noqa: PLC0415
    from coordinator.service import serve  # noqa: PLC0415

    try:
        listening = Listening(
            host=host,
            port=port,
            certificate=tls_certificate,
            key=tls_key,
            is_insecure=insecure_listen,
        )
        tell_operator()
        with Host(folder) as opened:
            name = opened.identity.name
            serve(opened, listening, on_start=lambda url: say(f"Serving {name} on {url}"))
    except (IdentityError, LogError, NoteError, ServiceError) as error:
        complain(error)
        raise typer.Exit(WRONG) from error


@coordinator_app.command("release")
def coordinator_release(
    folder: CoordinatorFolder,
    name: Annotated[str, typer.Argument(help="The member that is quarantined.")],
    reason: Annotated[str, typer.Option(help="Why; it goes into the coordinator's log.")],
) -> None:
    """Let a member take part again whose log was convicted; exit 1 when none of that name is."""
    from consent import IdentityError, LogError, NoteError, UnknownLog  # noqa: PLC0415
    from coordinator.host import Host  # noqa: PLC0415

    try:
        with Host(folder) as opened:
            opened.release(name, reason=reason)
    except UnknownLog as error:
        complain(error)
        raise typer.Exit(NO) from error
    except (IdentityError, LogError, NoteError) as error:
        complain(error)
        raise typer.Exit(WRONG) from error
    say(f"Released: {name} may take part again; the evidence is kept beside it.")


def _ask_for(config: Path) -> "Pass":
    from coordinator.host import Host  # noqa: PLC0415
    from coordinator.service import cosigner_of  # noqa: PLC0415
    from participant import cosigning  # noqa: PLC0415
    from participant.config import load  # noqa: PLC0415
    from participant.node import Node  # noqa: PLC0415

    if config.is_dir():
        with Host(config) as host:
            return cosigner_of(host).ask()
    with Node.open(load(config)) as node:
        return cosigning.cosigner_of(node).ask()
