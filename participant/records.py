"""Find what the log holds about one person: their events, their records, and all of it as a file.

Nothing is stored here: every answer is opened from sealed entries when it is asked for, so that
after an erasure there is nothing to find.
"""

import json
from collections.abc import Iterator, Mapping

from consent import (
    ConsentRecord,
    JsonValue,
    Purpose,
    Register,
    SealError,
    SubjectRef,
    format_27560_record,
    is_record,
    read_record,
)
from participant.node import Node

# A merged person has several pseudonyms, and the acts under each are theirs.
_OWN = """SELECT idx FROM sealed WHERE idx >= ? AND subject_ref IN
    (SELECT ? UNION SELECT other.subject_ref FROM consent_ref AS mine
    JOIN consent_ref AS other USING (row_no) WHERE mine.subject_ref = ?)"""
_SHOWN = frozenset(
    {
        *("type", "at", "given", "refused", "purposes", "notice", "channel", "expressed_at"),
        *("until", "tier", "separate", "age", "reason", "record", "circumstances", "policy"),
        *("request", "right", "details", "due_at", "answer"),
    }
)
RECORDS = frozenset({"consent.recorded", "consent.renewed"})
GUARDIANS = frozenset({"guardian.verified"})
_OLDEST_FIRST, _NEWEST_FIRST = " ORDER BY idx LIMIT ?", " ORDER BY idx DESC LIMIT ?"
_MOST = 2**31


def refs_of(node: Node, ref: SubjectRef) -> list[SubjectRef]:
    """Return every pseudonym of a person, their own first; merged ids have several."""
    with node.log.reading() as connection:
        rows = connection.execute(
            "SELECT other.subject_ref FROM consent_ref AS mine JOIN consent_ref AS other"
            " USING (row_no) WHERE mine.subject_ref = ? ORDER BY other.subject_ref",
            (ref,),
        ).fetchall()
    return [ref, *(SubjectRef(str(other)) for (other,) in rows if other != ref)]


def own_entries(node: Node, ref: SubjectRef, *, start: int = 0, most: int = _MOST) -> list[int]:
    """Return the entries about a person from one on, oldest first, at most so many.

    Raises:
        LogError: The log cannot be read.
    """
    return _entries(node, ref, start=start, most=most, order=_OLDEST_FIRST)


def own_events(
    node: Node, ref: SubjectRef, entries: list[int] | None = None
) -> Iterator[tuple[int, dict[str, JsonValue]]]:
    """Give a person's events, opened, each with its entry; those of `entries`, else all."""
    for index in own_entries(node, ref) if entries is None else entries:
        try:
            yield index, node.log.opened(index)
        except SealError:
            # The key was destroyed between the question and this line.
            continue


def records_of(node: Node, ref: SubjectRef) -> list[ConsentRecord]:
    """Return a person's consent records, oldest first."""
    return [
        read_record(event, index=index)
        for index, event in own_events(node, ref)
        if is_record(event)
    ]


def find_record(node: Node, ref: SubjectRef, record_id: str) -> ConsentRecord | None:
    """Return one record of a person; None when it is not theirs or was erased."""
    return next((r for r in records_of(node, ref) if r.record_id == record_id), None)


def newest_text(node: Node, ref: SubjectRef, kinds: frozenset[str], field: str) -> str | None:
    """Return a field of a person's newest event of some types; None when there is none."""
    newest_first = _entries(node, ref, start=0, most=_MOST, order=_NEWEST_FIRST)
    for _, event in own_events(node, ref, newest_first):
        if event.get("type") in kinds:
            value = event.get(field)
            return value if isinstance(value, str) else None
    return None


def format_records(node: Node, ref: SubjectRef) -> list[str]:
    """Return a person's records as ISO/IEC TS 27560 documents, in the words of their day.

    Raises:
        NotDeclared: The node does not know who answered for the data.
    """
    return [
        format_27560_record(
            record,
            node.declared.controller_of(record.circumstances.controller),
            ladder=node.declared.ladder_of(record.policy),
        )
        for record in records_of(node, ref)
    ]


def shown(event: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Return what a person may read of an event of theirs: all but the pseudonyms in it."""
    return {name: value for name, value in event.items() if name in _SHOWN}


def state_of(node: Node, register: Register, ref: SubjectRef) -> dict[str, JsonValue]:
    """Return where a person stands now, purpose by purpose.

    Args:
        node: The open node.
        register: Its register, asked by pseudonym.
        ref: Who.
    """
    at = node.clock()
    # Nobody writes meanwhile: all purposes are of one moment.
    with node.log.reading():
        standings, person = register.state(ref), register.person(ref)
        purposes: list[JsonValue] = []
        for purpose in Purpose:
            standing = standings.get(purpose)
            permitted = bool(register.mask([ref], purpose, at=at)[0])
            purposes.append(
                {
                    "purpose": str(purpose),
                    "status": str(register.status(ref, purpose, at=at)),
                    "permitted": permitted,
                    "since": None if standing is None else standing.effective_at,
                    "until": None if standing is None else standing.until,
                    "separate": None if standing is None else standing.separate,
                    "objected": bool(person.objected >> purpose.bit & 1),
                    "restricted": bool(person.restricted >> purpose.bit & 1),
                }
            )
    return {"at": at, "profile": str(register.profile), "purposes": purposes}


def export_person(
    node: Node, register: Register, ref: SubjectRef, *, requests: list[JsonValue]
) -> dict[str, JsonValue]:
    """Return everything a node's register knows of a person: state, acts, records, requests.

    Purchases and whatever else the brand holds are not in it; the node knows them as rows only.

    Raises:
        NotDeclared: The node does not know who answered for the data.
        LogError: The log cannot be read.
    """
    history: list[JsonValue] = [
        {"log_index": index, **shown(event)} for index, event in own_events(node, ref)
    ]
    return {
        "schema": "tillpact.subject-export/1",
        "node": node.name,
        "pseudonym": ref,
        "state": state_of(node, register, ref),
        "history": history,
        "records": [json.loads(text) for text in format_records(node, ref)],
        "requests": requests,
    }


def _entries(node: Node, ref: SubjectRef, *, start: int, most: int, order: str) -> list[int]:
    with node.log.reading() as connection:
        rows = connection.execute(_OWN + order, (start, ref, ref, most)).fetchall()
        # What is still waiting for its commit is not there yet.
        return [int(index) for (index,) in rows if index < node.log.tree_size]
