"""Own how a command answers: on which stream, in which form, and with which exit code.

It decides nothing; every command says what it found through these few functions.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from consent import TrustPolicy

NO, WRONG = 1, 2


def say(line: str) -> None:
    """Print one line of the answer."""
    typer.echo(line)


def complain(message: object) -> None:
    """Print one line that is not part of the answer."""
    typer.echo(str(message), err=True)


def tell_operator() -> None:
    """Let a service say on stderr what goes wrong while it runs; ids and counts, no customers."""
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING)
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    logging.getLogger("consent.cosigning").addHandler(handler)


def print_json(command: str, document: Mapping[str, object], *, wanted: bool) -> bool:
    """Print the answer for machines if that is wanted, and tell whether it was."""
    if wanted:
        say(json.dumps({"schema": f"tillpact.{command}/1", "data": document}, indent=2))
    return wanted


def read_policy(path: Path) -> "TrustPolicy":
    """Read a trust policy, or complain and exit 2."""
    from consent import NoteError, TrustPolicy  # noqa: PLC0415

    try:
        return TrustPolicy.parse(read_text(path, "the trust policy"))
    except NoteError as error:
        complain(f"the trust policy {path} cannot be used ({error}); nothing was verified")
        raise typer.Exit(WRONG) from error


def read_text(
    path: Path, name: str, *, most_characters: int = 1_000_000, errors: str = "strict"
) -> str:
    """Read a text file as it is, up to a length, or complain and exit 2."""
    try:
        with path.open(encoding="utf-8", errors=errors, newline="") as file:
            return file.read(most_characters)
    except (OSError, UnicodeDecodeError) as error:
        complain(f"{name} {path} cannot be read; nothing was verified")
        raise typer.Exit(WRONG) from error
