"""Commands of the consortium's auditor, who adds up encrypted counts and adds the noise."""

from pathlib import Path
from typing import Annotated

import typer

from tillpact.answers import NO, WRONG, complain, print_json, read_text, say

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document for machines.")]
AuditorFolder = Annotated[Path, typer.Argument(help="The auditor's folder: key and ledger.")]


def auditor_keygen(
    folder: AuditorFolder,
    epsilon: Annotated[float, typer.Option(help="Most that all answers together may cost.")] = 1.0,
    delta: Annotated[float, typer.Option(help="Chance that this bound fails.")] = 1e-6,
    as_json: Json = False,  # noqa: FBT002 - a flag is how a command line says yes
) -> None:
    """Make the auditor's key and ledger in a new folder, and print the fingerprint to compare."""
    from privacy import Budget, LedgerError  # noqa: PLC0415 - help must stay light

    try:
        from privacy.paillier import Auditor, KeyFileError  # noqa: PLC0415
    except ImportError as error:
        complain(error)
        raise typer.Exit(WRONG) from error
    try:
        with Auditor.create(folder, Budget(epsilon=epsilon, delta=delta)) as auditor:
            fingerprint = auditor.public.fingerprint
    except (KeyFileError, LedgerError, ValueError) as error:
        complain(error)
        raise typer.Exit(WRONG) from error
    document = {"fingerprint": fingerprint, "public_key": str(folder / "auditor.pub")}
    if not print_json("auditor.keygen", document, wanted=as_json):
        say(f"Public key for the members: {folder / 'auditor.pub'}")
        say(f"Fingerprint, to compare with them by voice or on paper: {fingerprint}")


def auditor_decrypt(
    folder: AuditorFolder,
    question: Annotated[Path, typer.Argument(help="What was agreed to be counted, as JSON.")],
    contributions: Annotated[list[Path], typer.Argument(help="One file of each member.")],
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Add up contributions and print the sums with noise; exit 1 when that is refused.

    The same question is answered once: asked again, it gets the same numbers.
    """
    from privacy import BudgetExhausted, LedgerError  # noqa: PLC0415

    try:
        from privacy.paillier import Auditor, CountRefused, KeyFileError, Question  # noqa: PLC0415
    except ImportError as error:
        complain(error)
        raise typer.Exit(WRONG) from error
    try:
        asked = Question.parse(read_text(question, "the question"))
        with Auditor.open(folder) as auditor:
            sums = auditor.answer(asked, [path.read_bytes() for path in contributions])
    except (BudgetExhausted, CountRefused) as error:
        print_json("auditor.decrypt", {"answered": False, "reason": str(error)}, wanted=as_json)
        complain(error)
        raise typer.Exit(NO) from error
    except (KeyFileError, LedgerError) as error:
        complain(error)
        raise typer.Exit(WRONG) from error
    document = {"answered": True, "question": asked.id, "sums": sums.tolist()}
    if not print_json("auditor.decrypt", document, wanted=as_json):
        say(f"{asked.id}: {len(contributions)} members, noise of {asked.noise_std:g} in each sum")
        say(" ".join(str(value) for value in sums.tolist()))
