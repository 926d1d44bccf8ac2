"""The commands that make a node, show others who it is, and publish its log."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tillpact.answers import NO, WRONG, complain, print_json, say
from tillpact.consenting import load_config
from tillpact.staff import Config, Json, open_node

if TYPE_CHECKING:
    from consent import PublicIdentity


def node_create(config: Config, *, as_json: Json = False) -> None:
    """Make a node's keys, ledger and log in its new folder; exit 1 when there is one already."""
    from consent import IdentityError, LogError  # noqa: PLC0415
    from participant.config import ConfigError  # noqa: PLC0415
    from participant.node import Node, NodeError  # noqa: PLC0415
    from privacy import LedgerError  # noqa: PLC0415

    read = load_config(config)
    try:
        with Node.create(read) as node:
            public = node.identity.public
    except NodeError as error:
        complain(error)
        raise typer.Exit(NO) from error
    except (ConfigError, IdentityError, LedgerError, LogError) as error:
        complain(error)
        raise typer.Exit(WRONG) from error
    document = {
        "name": public.name,
        "folder": str(read.folder),
        "fingerprint": _grouped(public),
    }
    if not print_json("node.create", document, wanted=as_json):
        say(f"Made: {read.folder}. Back it up; whoever reads it can sign for {public.name}.")
        say(f"Fingerprint of {public.name}: {_grouped(public)}")
        say("Read it to the other members by telephone. Next: tillpact account add.")


def node_card(
    config: Config,
    *,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="A new folder for the files that others need."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show who a node is; with --out write its card, its key, and a policy for its own log.

    Reads the node's keys only: it works while the node is served.
    """
    from consent import Identity, IdentityError, TrustPolicy  # noqa: PLC0415
    from privacy import AgreementKey, Roster, RosterError, make_card  # noqa: PLC0415

    read = load_config(config)
    try:
        identity = Identity.load(read.folder / "identity.key")
        agreement = AgreementKey.load(read.folder / "agreement.key")
        card = make_card(
            identity.name,
            identity.sign,
            identity=identity.public.key,
            agreement=agreement.public,
        )
    except (IdentityError, RosterError) as error:
        complain(f"there is no usable node in {read.folder} ({error}); nothing was written")
        raise typer.Exit(WRONG) from error
    public = identity.public
    policy = TrustPolicy(logs=(public,), witnesses={}, groups={}, quorum="none")
    if out is not None:
        if out.exists():
            complain(f"{out} exists already; nothing was written")
            raise typer.Exit(WRONG)
        out.mkdir(parents=True)
        (out / "card").write_bytes(Roster([card]).format())
        (out / "issuer.vkey").write_text(public.format() + "\n", encoding="utf-8")
        (out / "trust.policy").write_text(policy.format(), encoding="utf-8")
    document = {"name": public.name, "fingerprint": _grouped(public), "key": public.format()}
    if not print_json("node.card", document, wanted=as_json):
        say(f"Fingerprint of {public.name}: {_grouped(public)}")
        say(f"Public key: {public.format()}")
        if out is not None:
            say(f"Written to {out}: card, issuer.vkey, trust.policy (no witness yet).")


def audit_publish(config: Config, *, as_json: Json = False) -> None:
    """Write the node's log as files for whoever checks it; a served node does it by itself."""
    with open_node(config) as node:
        folder, entries = node.publish(), node.log.tree_size
    if not print_json("audit.publish", {"folder": str(folder), "entries": entries}, wanted=as_json):
        say(f"Published: {folder}")


def _grouped(public: "PublicIdentity") -> str:
    """Return the fingerprint in groups of four, to be read aloud."""
    text = public.fingerprint
    return " ".join(text[start : start + 4] for start in range(0, len(text), 4))
