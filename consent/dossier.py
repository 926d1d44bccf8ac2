"""Hand out everything a log holds about one data subject, and prove that it is everything.

A dossier is one canonical JSON document: the subject's events, opened, each with its inclusion
proof under one checkpoint, and the newest state root with the proof of the subject's last event
in it. The chain shows that nothing between is missing, the state root that nothing at the end is.
Events after that root are shown as well; that they are all of them is proved by the next root.
Whoever holds a dossier can read the subject's events: it is as secret as they are.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

from consent.canonical import CanonicalError, JsonValue, format_canonical, parse_canonical
from consent.chain import ChainHead, Link, Opening
from consent.checkpoint import Checkpoint, verify_checkpoint
from consent.event import CLOCK_TOLERANCE_MS, LogError, is_count
from consent.log import Log
from consent.merkle import ProofError, leaf_hash, verify_inclusion
from consent.note import Note
from consent.sealed import SubjectRef
from consent.statetree import (
    STATE_ROOT,
    StateLeaf,
    StateProof,
    StateRoot,
    load_state_tree,
    verify_state,
)
from consent.trust import TrustPolicy

EPOCH_MS = 24 * 60 * 60 * 1000
LONGEST_DOSSIER_BYTES = 1 << 26
_Object = dict[str, JsonValue]


class DossierError(Exception):
    """A dossier is malformed, or does not prove what a dossier must.

    Attributes:
        number: Which of the subject's events is at fault, from 1, where one is.
    """

    def __init__(self, message: str, *, number: int | None = None) -> None:
        super().__init__(message)
        self.number = number


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvedDossier:
    """What a dossier proves.

    Attributes:
        origin: The log.
        subject: Pseudonym of the data subject at the log's node.
        events: The subject's events in their order, as they were given to the log.
        complete: How many of them the state root covers: up to `complete_until` there are
            no others.
        complete_until: Time of that root, epoch milliseconds.
        cosigners: Time of each cosignature in epoch milliseconds, by the policy's name.
    """

    origin: str
    subject: str
    events: tuple[_Object, ...]
    complete: int
    complete_until: int
    cosigners: dict[str, int]


@dataclass(frozen=True, slots=True)
class _Entry:
    """One opened event of a dossier, read but not believed."""

    index: int
    hashes: list[bytes]
    opening: Opening


def build_dossier(log: Log, subject_ref: SubjectRef, *, at: int) -> bytes:
    """Return the dossier of a subject under the log's newest note.

    Args:
        log: The node's log.
        subject_ref: Pseudonym of the subject; one without events gets a proof of that.
        at: When the dossier is made, epoch milliseconds.

    Raises:
        LogError: No state root is covered by the newest note yet; log one and have it cosigned.
        ProofError: The tree of the newest covered root is not kept any more.
        SealError: The subject was erased while the dossier was made.
    """
    note = log.newest_note()
    size = Checkpoint.parse(Note.parse(note).text).tree_size
    with log.reading() as connection:
        row = connection.execute(
            "SELECT MAX(idx) FROM state_tree WHERE idx < ?", (size,)
        ).fetchone()
        indices = connection.execute(
            "SELECT idx FROM sealed WHERE subject_ref = ? AND idx < ? ORDER BY idx",
            (subject_ref, size),
        ).fetchall()
    if row[0] is None:
        raise LogError("no state root is covered by the log's newest note; nothing was handed out")
    tree = load_state_tree(log, row[0])
    document: _Object = {
        "type": "dossier",
        "v": 1,
        "at": at,
        "subject": subject_ref,
        "note": note,
        "root": {
            "index": row[0],
            "event": log.entry(row[0]).value,
            "proof": _format_hashes(log.inclusion_proof(row[0], size)),
        },
        "state": _format_state(tree.prove(subject_ref)),
        "events": [_format_entry(log, index, size) for (index,) in indices],
    }
    return format_canonical(document)


def verify_dossier(data: bytes, policy: TrustPolicy) -> ProvedDossier:
    """Return what a dossier proves, with public keys only.

    Raises:
        DossierError: An event is missing, in another order, altered or logged late, the state
            root is too old, or the document is malformed.
        ProofError: A hash does not lead where it must.
        NoteError: The checkpoint does not satisfy the policy.
    """
    document = _parse(data)
    verified = verify_checkpoint(document.note, policy)
    head = verified.checkpoint
    _verify_entry(document.root_leaf, document.root_index, document.root_hashes, head)
    root = StateRoot.parse(document.root_event)
    if root.log_size > document.root_index:
        raise DossierError("the state root claims to cover entries that were logged after it")
    if not root.at <= document.at + CLOCK_TOLERANCE_MS:
        raise DossierError("the state root is dated after the dossier")
    if document.at - root.at > EPOCH_MS + CLOCK_TOLERANCE_MS:
        raise DossierError("the state root is older than a day: a later event may be hidden")
    links = list(_proved_links(document, head))
    complete = _verify_state(document, root, links)
    return ProvedDossier(
        origin=head.origin,
        subject=document.subject,
        events=tuple(link.event for link in links),
        complete=complete,
        complete_until=root.at,
        cosigners=dict(verified.cosigners),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Document:
    at: int
    subject: str
    note: str
    root_index: int
    root_event: _Object
    root_hashes: list[bytes]
    state: StateProof
    entries: list[_Entry]

    @property
    def root_leaf(self) -> bytes:
        return format_canonical(self.root_event)


def _proved_links(document: _Document, head: Checkpoint) -> Iterator[Link]:
    """Give each event after checking its proof and its place behind the one before."""
    before: ChainHead | None = None
    last, is_chained = -1, False
    for number, entry in enumerate(document.entries, start=1):
        if entry.index <= last:
            raise DossierError(f"event {number} is not in the order of the log", number=number)
        last = entry.index
        try:
            link, leaf = entry.opening.link, entry.opening.leaf
        except LogError as error:
            raise DossierError(f"event {number} cannot be read: {error}", number=number) from error
        try:
            _verify_entry(leaf, entry.index, entry.hashes, head)
        except ProofError as error:
            raise DossierError(
                f"event {number} is not the one that was logged as entry {entry.index}: {error}",
                number=number,
            ) from error
        _verify_place(link, number, document.subject, before, is_chained=is_chained)
        is_chained = link.subject_seq is not None
        before = ChainHead(number, entry.opening.commitment)
        yield link


def _verify_place(
    link: Link, number: int, subject: str, before: ChainHead | None, *, is_chained: bool
) -> None:
    if link.subject_seq is None:
        # An event from before chains: only the subject that it names itself can be compared.
        if link.event.get("subject", subject) != subject:
            raise DossierError(f"event {number} is about another subject", number=number)
        if is_chained:
            raise DossierError(
                f"event {number} has no number although an earlier one has", number=number
            )
        return
    if link.subject != subject:
        raise DossierError(f"event {number} is about another subject", number=number)
    if link.subject_seq != number:
        raise DossierError(
            f"event {number} is missing: the chain goes on with event {link.subject_seq}",
            number=number,
        )
    if link.prev != (None if before is None else before.commitment):
        raise DossierError(
            f"event {number} does not follow from the one that is shown before it", number=number
        )


def _verify_state(document: _Document, root: StateRoot, links: Sequence[Link]) -> int:
    covered = sum(entry.index < root.log_size for entry in document.entries)
    head = None
    if covered:
        head = ChainHead(covered, document.entries[covered - 1].opening.commitment)
    try:
        verify_state(document.state, root, subject_ref=document.subject, head=head)
    except ProofError as error:
        raise DossierError(
            f"the {covered} events that are shown up to the state root are not all: {error}",
            number=covered or None,
        ) from error
    for number, link in enumerate(links[covered:], start=covered + 1):
        at = link.event["at"]
        assert isinstance(at, int)  # noqa: S101 - parse_link has refused everything else
        if at < root.at - CLOCK_TOLERANCE_MS:
            raise DossierError(
                f"event {number} happened at {at} but was logged after the state root of "
                f"{root.at}: it was late",
                number=number,
            )
    return covered


def _verify_entry(leaf: bytes, index: int, hashes: list[bytes], head: Checkpoint) -> None:
    verify_inclusion(
        leaf_hash(leaf),
        index=index,
        tree_size=head.tree_size,
        proof=hashes,
        root=head.root_hash,
    )


def _format_entry(log: Log, index: int, size: int) -> _Object:
    opening = log.opening(index)
    return {
        "index": index,
        "proof": _format_hashes(log.inclusion_proof(index, size)),
        "salt": opening.salt.hex(),
        "content": opening.content.decode(),
    }


def _format_state(proof: StateProof) -> _Object:
    return {
        "pseudonym_key": proof.pseudonym_key.hex(),
        "leaf_key": proof.leaf_key.hex(),
        "leaves": [
            {"index": leaf.index, "leaf": leaf.leaf.hex(), "proof": _format_hashes(leaf.hashes)}
            for leaf in proof.leaves
        ],
    }


def _format_hashes(hashes: Sequence[bytes]) -> list[JsonValue]:
    return [value.hex() for value in hashes]


def _parse(data: bytes) -> _Document:
    if len(data) > LONGEST_DOSSIER_BYTES:
        raise DossierError(f"a dossier must have at most {LONGEST_DOSSIER_BYTES} bytes")
    try:
        value = parse_canonical(data)
    except CanonicalError as error:
        raise DossierError(f"a dossier must be canonical JSON: {error}") from error
    document = _fields(value, "type", "v", "at", "subject", "note", "root", "state", "events")
    if document["type"] != "dossier" or _count(document["v"]) != 1:
        raise DossierError("the document must be a dossier of version 1")
    root = _fields(document["root"], "index", "event", "proof")
    if not isinstance(root["event"], dict) or root["event"].get("type") != STATE_ROOT:
        raise DossierError("a dossier must hold the event of its state root")
    return _Document(
        at=_count(document["at"]),
        subject=_text(document["subject"]),
        note=_text(document["note"]),
        root_index=_count(root["index"]),
        root_event=root["event"],
        root_hashes=_hashes(root["proof"]),
        state=_parse_state(document["state"]),
        entries=[_parse_entry(item) for item in _items(document["events"])],
    )


def _parse_entry(value: JsonValue) -> _Entry:
    fields = _fields(value, "index", "proof", "salt", "content")
    content = _text(fields["content"]).encode()
    return _Entry(
        _count(fields["index"]),
        _hashes(fields["proof"]),
        Opening(_bytes(fields["salt"], length=32), content),
    )


def _parse_state(value: JsonValue) -> StateProof:
    fields = _fields(value, "pseudonym_key", "leaf_key", "leaves")
    leaf_key = _text(fields["leaf_key"])
    leaves = [_fields(item, "index", "leaf", "proof") for item in _items(fields["leaves"])]
    return StateProof(
        pseudonym_key=_bytes(fields["pseudonym_key"], length=32),
        leaf_key=_bytes(leaf_key, length=32) if leaf_key else b"",
        leaves=tuple(
            StateLeaf(
                index=_count(leaf["index"]),
                leaf=_bytes(leaf["leaf"], length=64),
                hashes=tuple(_hashes(leaf["proof"])),
            )
            for leaf in leaves
        ),
    )


def _fields(value: JsonValue, *names: str) -> _Object:
    if not isinstance(value, dict) or value.keys() != set(names):
        raise DossierError(f"a part of the dossier must have the fields {', '.join(names)}")
    return value


def _items(value: JsonValue) -> list[JsonValue]:
    if not isinstance(value, list):
        raise DossierError("a part of the dossier must be a list")
    return value


def _text(value: JsonValue) -> str:
    if not isinstance(value, str):
        raise DossierError("a part of the dossier must be text")
    return value


def _count(value: JsonValue) -> int:
    if not is_count(value):
        raise DossierError("a part of the dossier must be a count")
    return cast("int", value)


def _hashes(value: JsonValue) -> list[bytes]:
    return [_bytes(item, length=32) for item in _items(value)]


def _bytes(value: JsonValue, *, length: int) -> bytes:
    text = _text(value)
    if len(text) != 2 * length or not set(text) <= set("0123456789abcdef"):
        raise DossierError(f"a part of the dossier must be {length} bytes in hex")
    return bytes.fromhex(text)
