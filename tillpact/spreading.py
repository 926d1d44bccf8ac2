"""The commands about what travels after a withdrawal: notices, lineage, models that must go.

Each opens the node by itself, for cron or for a person at the machine, so the node must not be
served meanwhile; `consent overdue` reads beside a served node.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tillpact.answers import NO, WRONG, complain, print_json, read_text, say

if TYPE_CHECKING:
    from consent import AffectedModel, Overdue
    from participant.node import Node
    from participant.versions import PersonLineage, SavedModel

Config = Annotated[Path, typer.Argument(help="The node's participant.toml.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document for machines.")]
Version = Annotated[str, typer.Argument(help="The model: digest of its plan.")]
_MOST_CHARACTERS = 1000


def consent_deliver(config: Config, as_json: Json = False) -> None:  # noqa: FBT002
    """Send the notices of withdrawal that are due, once; exit 1 when any is not acknowledged."""
    from participant.propagating import Courier  # noqa: PLC0415

    with _opened(config) as node:
        trip = Courier(node).deliver()
    document = {"acked": trip.acked, "failed": trip.failed, "raised": len(trip.raised)}
    if not print_json("consent.deliver", document, wanted=as_json):
        say(f"{trip.acked} notices were acknowledged, {trip.failed} were not and are tried again.")
        for late in trip.raised:
            say(f"Overdue from now on: {_describe(late)}")
    if trip.failed:
        raise typer.Exit(NO)


def consent_overdue(config: Config, as_json: Json = False) -> None:  # noqa: FBT002
    """List the notices that nobody acknowledged in time; exit 1 when there is one."""
    from consent import LogError  # noqa: PLC0415
    from consent.propagation import overdue_in  # noqa: PLC0415
    from consent.reader import ReadOnlyDatabase  # noqa: PLC0415
    from participant.config import ConfigError, load  # noqa: PLC0415
    from participant.node import system_clock  # noqa: PLC0415

    try:
        found = load(config)
        database = ReadOnlyDatabase(found.folder / "log", store=found.store)
        try:
            limit_ms = found.spreading.propagation.limit_ms
            overdue = overdue_in(database, at=system_clock(), limit_ms=limit_ms)
        finally:
            database.close()
    except (ConfigError, LogError) as error:
        complain(error)
        raise typer.Exit(WRONG) from error
    document = {
        "overdue": [
            {
                "notice": late.notice_id,
                "recipient": late.recipient,
                "queued_at": late.queued_at,
                "attempts": late.attempts,
            }
            for late in overdue
        ]
    }
    if not print_json("consent.overdue", document, wanted=as_json):
        hours = found.spreading.propagation.ack_within_hours
        for late in overdue:
            say(_describe(late))
        if not overdue:
            say(f"No notice waits longer than {hours} hours for its acknowledgement.")
    if overdue:
        raise typer.Exit(NO)


def consent_lineage(
    config: Config,
    subject: Annotated[
        Path, typer.Option(help="A file with the brand's own id of the person; - is stdin.")
    ],
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Tell which runs, rounds and models used a person, and what is to be done about it."""
    # Not as an option's value: other users of a machine can read those.
    name = sys.stdin if str(subject) == "-" else None
    text = read_text(subject, "the subject's id") if name is None else name.read(_MOST_CHARACTERS)
    subject_id = text.strip()
    if not subject_id:
        complain("no id of a person was given; nothing was looked up")
        raise typer.Exit(WRONG)
    with _opened(config) as node:
        lineage, at = node.lineage(subject_id), node.clock()
    if not print_json("consent.lineage", _document(lineage), wanted=as_json):
        _say_lineage(lineage, at=at)


def model_ls(config: Config, as_json: Json = False) -> None:  # noqa: FBT002
    """List the models of a node and their clocks; exit 1 when one had to be out of use by now."""
    with _opened(config) as node:
        models, at = node.versions.all, node.clock()
        clocks = {late.version: late for late in node.versions.clocks(at=at)}
    document = {
        "models": [
            {**_model(model), "clocks": _clocks(clocks.get(model.version))} for model in models
        ]
    }
    if not print_json("model.ls", document, wanted=as_json):
        for model in models:
            say(f"{model.version}  {model.purpose}  {_standing(model, clocks.get(model.version))}")
        if not models:
            say("No model was saved here.")
    if any(at >= late.retire_by for late in clocks.values()):
        raise typer.Exit(NO)


def model_retire(
    config: Config,
    version: Version,
    replaced_by: Annotated[
        str, typer.Option(help="The model that takes its place; none without it.")
    ] = "",
) -> None:
    """Take a model out of use for good and stop its clocks; exit 1 when that may not be done."""
    from participant.versions import ModelOutOfUse  # noqa: PLC0415

    with _opened(config) as node:
        try:
            index = node.retire_model(version, replaced_by=replaced_by)
        except ModelOutOfUse as error:
            complain(error)
            raise typer.Exit(NO) from error
    say(f"Retired: {version}, entry {index} of the log.")


@contextmanager
def _opened(config: Path) -> "Iterator[Node]":
    from consent import LogError  # noqa: PLC0415
    from participant.config import ConfigError, load  # noqa: PLC0415
    from participant.node import Node, NodeError  # noqa: PLC0415

    try:
        with Node.open(load(config)) as node:
            yield node
    except (ConfigError, LogError, NodeError) as error:
        complain(error)
        raise typer.Exit(WRONG) from error


def _describe(late: "Overdue") -> str:
    return (
        f"{late.recipient}: notice {late.notice_id}, waiting since {_time(late.queued_at)}, "
        f"{late.attempts} attempts"
    )


def _say_lineage(lineage: "PersonLineage", *, at: int) -> None:
    if not lineage.rounds:
        say("No round used this person.")
    for used in lineage.rounds:
        what = (
            "a sum with them in it was sent"
            if used.is_sent
            else "their data was opened, and what was computed was thrown away"
        )
        say(f"Run {used.run}, round {used.round}: {what}.")
    for each in lineage.models:
        model, clocks = each.model, each.clocks
        say(f"Model {model.version} learned from them, {_standing(model, clocks)}.")
        if clocks is not None and at < clocks.retrain_by:
            say("  What to do: train a model without the people who withdrew, then retire this.")
        elif clocks is not None:
            say("  What to do: retire this model; the time to train another one has run out.")
    if lineage.models:
        say("Nobody is taken out of a trained model; what it says of one person epsilon bounds.")


def _standing(model: "SavedModel", clocks: "AffectedModel | None") -> str:
    if model.retired_at is not None:
        place = f", replaced by {model.replaced_by}" if model.replaced_by else ""
        return f"retired {_time(model.retired_at)}{place}"
    if clocks is None:
        return "in use, no clock runs"
    return (
        f"in use, to be trained again by {_time(clocks.retrain_by)} "
        f"and out of use by {_time(clocks.retire_by)}"
    )


def _document(lineage: "PersonLineage") -> dict[str, object]:
    return {
        "rounds": [
            {"run": used.run, "round": used.round, "sent": used.is_sent} for used in lineage.rounds
        ],
        "models": [
            {**_model(each.model), "clocks": _clocks(each.clocks)} for each in lineage.models
        ],
    }


def _model(model: "SavedModel") -> dict[str, object]:
    return {
        "model": model.version,
        "purpose": str(model.purpose),
        "released_at": model.released_at,
        "retired_at": model.retired_at,
        "replaced_by": model.replaced_by,
    }


def _clocks(clocks: "AffectedModel | None") -> dict[str, object] | None:
    if clocks is None:
        return None
    return {
        "remedy": str(clocks.remedy),
        "retrain_by": clocks.retrain_by,
        "retire_by": clocks.retire_by,
    }


def _time(at: int) -> str:
    return datetime.fromtimestamp(at / 1000, tz=UTC).strftime("%Y-%m-%d %H:%M UTC")
