"""Take over consent from elsewhere: a retailer's table, or records of another system.

Nothing is taken that the node's own profile, notices or controller contradict, and nothing that
the node knows already: taking over the same thing twice changes nothing and is told.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from consent import (
    Circumstances,
    ConsentChoice,
    ConsentDocument,
    OptInMapping,
    Source,
)
from consent.circumstances import NOTHING_TOLD
from participant.node import Node

_PSEUDONYM = re.compile(r"[0-9a-f]{64}")


class TakeoverError(Exception):
    """What is to be taken over contradicts the node; nothing was recorded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Takeover:
    """What became of the acts that were to be taken over.

    Attributes:
        recorded: Acts that were recorded, or would be.
        known: Acts that are not newer than what the node knows of the same purposes.
    """

    recorded: int
    known: int


def verify_mapping(node: Node, mapping: OptInMapping) -> None:
    """Hold a mapping of a table to the node's own rules.

    Raises:
        TakeoverError: It is for another law, or maps a purpose that the node's profile forbids
            or wants asked for alone.
    """
    ladder = node.ladder
    if mapping.profile is not ladder.profile:
        raise TakeoverError(
            f"the mapping is for {mapping.profile}, the node follows {ladder.profile}; nothing "
            "was recorded"
        )
    for column in mapping.columns:
        rules = ladder.rules[column.purpose]
        if not rules.allowed:
            raise TakeoverError(f"the profile forbids {column.purpose}; nothing was recorded")
        if not node.declared.names_all(column.purpose):
            raise TakeoverError(
                f"[controller] does not name who gets the data of {column.purpose}, or why it is "
                "needed; nothing was recorded"
            )
        if rules.separate and not column.separate_act:
            raise TakeoverError(
                f"{column.purpose} needs an act of its own under the node's profile: say "
                "separate_act = true if it was one, or leave the column out; nothing was recorded"
            )


def take_over(
    node: Node, choices: Iterable[ConsentChoice], *, at: int, is_rehearsal: bool
) -> Takeover:
    """Record acts that people made elsewhere, all in one durable commit.

    Args:
        node: The open node.
        choices: What people said, as `read_opt_ins` read it.
        at: Epoch milliseconds.
        is_rehearsal: Whether only to say what would be recorded.

    Raises:
        LogError: The log cannot be written; nothing was recorded.
    """
    told = Circumstances(source=Source.TABLE, controller=node.declared.controller_digest)
    offered = [
        replace(choice, circumstances=told) if choice.circumstances == NOTHING_TOLD else choice
        for choice in choices
    ]
    new = [choice for choice in offered if not _is_known(node, choice)]
    if not is_rehearsal:
        node.register.record_many(new, at=at)
    return Takeover(recorded=len(new), known=len(offered) - len(new))


def choice_of(
    node: Node, document: ConsentDocument, *, at: int, subject_of: Callable[[str], str | None]
) -> ConsentChoice:
    """Return the act of a record of another system.

    Args:
        node: The open node.
        document: What `parse_27560` read.
        at: The time of the import, epoch milliseconds.
        subject_of: The brand's own id of whom the record calls so; None for nobody.

    Raises:
        TakeoverError: Nobody is known by that name, it was given to another controller or on
            other terms, it is of the future or expired, or it bundles what needs an act of its
            own. The message names no person.
    """
    record, ladder = document.record, node.ladder
    purposes = record.given | record.refused
    subject_id = subject_of(record.subject_ref)
    if subject_id is None:
        raise TakeoverError("the list of ids does not say whose record it is")
    if node.declared.controller.about(purposes) != document.controller:
        raise TakeoverError("it was given to another controller, or that one said something else")
    for purpose in record.given:
        rules = ladder.rules[purpose]
        if record.terms[purpose] not in {rules.terms, *rules.accepted_terms}:
            raise TakeoverError(f"it was given on other terms of {purpose}")
        if not rules.allowed or (rules.separate and not record.separate):
            raise TakeoverError(f"the profile does not allow {purpose} in an act like this")
    if not record.expressed_at <= at < record.until:
        raise TakeoverError("it is of the future, or has expired")
    return ConsentChoice(
        subject_id=subject_id,
        given=record.given,
        refused=record.refused,
        notice=record.notice,
        channel=record.channel,
        expressed_at=record.expressed_at,
        until=record.until,
        tier=record.tier,
        separate=record.separate,
        age=record.age,
        circumstances=replace(
            record.circumstances,
            source=Source.SYSTEM,
            controller=node.declared.controller_digest,
            supersedes=None,
        ),
    )


def by_list(pairs: Mapping[str, str]) -> Callable[[str], str | None]:
    """Return a function that finds the brand's id of a person in a list.

    Without a list a name is taken for the brand's id, unless it is a pseudonym of some node.
    """
    if pairs:
        return pairs.get
    return lambda name: None if _PSEUDONYM.fullmatch(name) else name


def _is_known(node: Node, choice: ConsentChoice) -> bool:
    """Tell whether the person has said something at that time or later about all of it."""
    standings = node.register.state(choice.subject_id)
    return all(
        purpose in standings and standings[purpose].said_at >= choice.expressed_at
        for purpose in choice.given | choice.refused
    )
