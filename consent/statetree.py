"""Prove which event of a data subject is the newest one, or that there is none.

At a moment the heads of all chains are put in order of a pseudonym that is new for each tree,
and the root over them is logged as `state.root`. A leaf is 64 bytes: the pseudonym, then a keyed
commitment to the head. A neighbour that is shown to prove an absence tells nothing about its
person. One proof believes that the leaves are in order; `verify_order` checks that for a whole
tree, and the leaves hold nothing personal, so that a log can give them to whoever wants to.
"""

import bisect
import hashlib
import hmac
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from consent.canonical import JsonValue
from consent.chain import ChainHead
from consent.entries import LogTransaction
from consent.event import is_count
from consent.log import Log
from consent.merkle import (
    Frontier,
    ProofError,
    inclusion_proof,
    leaf_hash,
    tree_root,
    verify_inclusion,
)
from consent.sealed import SubjectRef

STATE_ROOT = "state.root"
KEPT_TREES = 7
_LEAF_BYTES = 64
_HALF = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class StateRoot:
    """What an open `state.root` event says.

    Attributes:
        at: Epoch milliseconds.
        root_hash: Root over the leaves, RFC 6962.
        subjects: Number of leaves.
        log_size: Entries of the log that the heads are of.
        key_hash: sha256 of the key that makes the tree's pseudonyms.
    """

    at: int
    root_hash: bytes
    subjects: int
    log_size: int
    key_hash: bytes

    def format(self) -> dict[str, JsonValue]:
        """Return the event."""
        return {
            "type": STATE_ROOT,
            "v": 1,
            "at": self.at,
            "root": self.root_hash.hex(),
            "subjects": self.subjects,
            "log_size": self.log_size,
            "key_hash": self.key_hash.hex(),
        }

    @classmethod
    def parse(cls, event: JsonValue) -> "StateRoot":
        """Read the event.

        Raises:
            ProofError: It is not a state root in its only form.
        """
        match event:
            case {
                "type": "state.root",
                "at": int(at),
                "root": str(root),
                "subjects": int(subjects),
                "log_size": int(log_size),
                "key_hash": str(key_hash),
            } if is_count(at) and is_count(subjects) and is_count(log_size):
                try:
                    found = cls(
                        at=at,
                        root_hash=bytes.fromhex(root),
                        subjects=subjects,
                        log_size=log_size,
                        key_hash=bytes.fromhex(key_hash),
                    )
                except ValueError as error:
                    raise ProofError("a state root must hold its hashes in hex") from error
                if found.format() == event:
                    return found
        raise ProofError("the entry is not a state root with its fields")


@dataclass(frozen=True, slots=True, kw_only=True)
class StateLeaf:
    """One leaf with its place in the tree.

    Attributes:
        index: Place in the order of pseudonyms.
        leaf: 64 bytes, pseudonym and commitment.
        hashes: Inclusion proof.
    """

    index: int
    leaf: bytes
    hashes: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StateProof:
    """Where a data subject stands in a tree, or between whom they would stand.

    Attributes:
        pseudonym_key: Key that makes the tree's pseudonyms from subject references.
        leaf_key: Opens the subject's own leaf; empty for an absence.
        leaves: The subject's leaf, or the neighbours around their place: two, one at an edge,
            none in an empty tree.
    """

    pseudonym_key: bytes
    leaf_key: bytes
    leaves: tuple[StateLeaf, ...]


class StateTree:
    """All heads at one moment, in the order of their pseudonyms."""

    def __init__(self, leaves: Sequence[bytes], *, secret: bytes) -> None:
        """Take leaves that are in order."""
        self._leaves = leaves
        self._secret = secret

    @classmethod
    def of_heads(cls, heads: Mapping[str, ChainHead], *, secret: bytes) -> "StateTree":
        """Make the tree of the heads by subject reference."""
        key = _pseudonym_key(secret)
        leaves = []
        for subject_ref, head in heads.items():
            pseudonym = _pseudonym(key, subject_ref)
            leaves.append(pseudonym + _commit(_leaf_key(secret, pseudonym), head))
        return cls(sorted(leaves), secret=secret)

    @property
    def leaves(self) -> Sequence[bytes]:
        """Return the leaves in order."""
        return self._leaves

    def root(self, *, log_size: int, at: int) -> StateRoot:
        """Return what is to be logged about the tree."""
        return StateRoot(
            at=at,
            root_hash=tree_root([leaf_hash(leaf) for leaf in self._leaves]),
            subjects=len(self._leaves),
            log_size=log_size,
            key_hash=hashlib.sha256(_pseudonym_key(self._secret)).digest(),
        )

    def prove(self, subject_ref: SubjectRef) -> StateProof:
        """Return the proof of a subject's head, or of their absence."""
        key = _pseudonym_key(self._secret)
        pseudonym = _pseudonym(key, subject_ref)
        place = bisect.bisect_left(self._leaves, pseudonym)
        is_there = place < len(self._leaves) and self._leaves[place][:_HALF] == pseudonym
        places = [place] if is_there else [place - 1, place]
        hashes = [leaf_hash(leaf) for leaf in self._leaves]
        return StateProof(
            pseudonym_key=key,
            leaf_key=_leaf_key(self._secret, pseudonym) if is_there else b"",
            leaves=tuple(
                StateLeaf(
                    index=index,
                    leaf=self._leaves[index],
                    hashes=tuple(inclusion_proof(hashes, index)),
                )
                for index in places
                if 0 <= index < len(self._leaves)
            ),
        )


def append_state_root(log: Log, *, at: int) -> int:
    """Log the root over all heads as they are now, and return its index; meant to be daily.

    The tree is kept for `KEPT_TREES` more roots, so that proofs can be made from it.

    Raises:
        LogError: The log cannot be written; nothing was appended.
    """
    with log.transaction() as transaction:
        return _append(transaction, at=at)


def newest_state_root(log: Log) -> StateRoot | None:
    """Return the root that was logged last and whose tree is kept; None before the first one."""
    with log.reading() as connection:
        row = connection.execute("SELECT MAX(idx) FROM state_tree").fetchone()
    return None if row[0] is None else StateRoot.parse(log.entry(row[0]).value)


def load_state_tree(log: Log, index: int) -> StateTree:
    """Return the tree whose root is an entry of the log.

    Raises:
        ProofError: The tree is not kept any more, or never was.
    """
    with log.reading() as connection:
        row = connection.execute(
            "SELECT secret, leaves FROM state_tree WHERE idx = ?", (index,)
        ).fetchone()
    if row is None:
        raise ProofError(f"the state tree of entry {index} is not kept; only the last ones are")
    return StateTree(_split(bytes(row[1])), secret=bytes(row[0]))


def verify_state(
    proof: StateProof, root: StateRoot, *, subject_ref: str, head: ChainHead | None
) -> None:
    """Raise `ProofError` unless a subject's newest event is `head`; None means there is none."""
    if hashlib.sha256(proof.pseudonym_key).digest() != root.key_hash:
        raise ProofError("the pseudonyms of the state proof are made with another key")
    for leaf in proof.leaves:
        if len(leaf.leaf) != _LEAF_BYTES:
            raise ProofError(f"a leaf of a state tree must have {_LEAF_BYTES} bytes")
        verify_inclusion(
            leaf_hash(leaf.leaf),
            index=leaf.index,
            tree_size=root.subjects,
            proof=leaf.hashes,
            root=root.root_hash,
        )
    pseudonym = _pseudonym(proof.pseudonym_key, subject_ref)
    if head is None:
        _verify_absence(proof.leaves, pseudonym, subjects=root.subjects)
        return
    wanted = pseudonym + _commit(proof.leaf_key, head)
    if [leaf.leaf for leaf in proof.leaves] != [wanted]:
        raise ProofError(
            f"the state root does not say that event {head.subject_seq} is the subject's newest"
        )


def verify_order(leaves: Sequence[bytes], root: StateRoot) -> None:
    """Raise `ProofError` unless these are all leaves of a tree, in order and each person once."""
    frontier, last = Frontier(), b""
    for leaf in leaves:
        if len(leaf) != _LEAF_BYTES or leaf[:_HALF] <= last:
            raise ProofError("the leaves of a state tree must be in order, each subject once")
        last = leaf[:_HALF]
        frontier.append(leaf_hash(leaf))
    if frontier.size != root.subjects or frontier.root() != root.root_hash:
        raise ProofError("the leaves do not give the state root")


def _append(transaction: LogTransaction, *, at: int) -> int:
    connection = transaction.connection
    rows = connection.execute("SELECT subject_ref, subject_seq, commitment FROM subject_head")
    heads = {str(ref): ChainHead(seq, bytes(commitment)) for ref, seq, commitment in rows}
    secret = secrets.token_bytes(_HALF)
    tree = StateTree.of_heads(heads, secret=secret)
    root = tree.root(log_size=transaction.head[0].size, at=at)
    index = transaction.append(root.format())
    connection.execute(
        "INSERT INTO state_tree VALUES (?, ?, ?)", (index, secret, b"".join(tree.leaves))
    )
    connection.execute(
        "DELETE FROM state_tree WHERE idx NOT IN"
        " (SELECT idx FROM state_tree ORDER BY idx DESC LIMIT ?)",
        (KEPT_TREES,),
    )
    return index


def _verify_absence(leaves: Sequence[StateLeaf], pseudonym: bytes, *, subjects: int) -> None:
    match leaves:
        case [] if subjects == 0:
            return
        case [only] if only.index == 0 and pseudonym < only.leaf[:_HALF]:
            return
        case [only] if only.index == subjects - 1 and only.leaf[:_HALF] < pseudonym:
            return
        case [left, right] if left.index + 1 == right.index and (
            left.leaf[:_HALF] < pseudonym < right.leaf[:_HALF]
        ):
            return
    raise ProofError("the neighbours do not show that the subject is not in the state tree")


def _split(data: bytes) -> list[bytes]:
    return [data[at : at + _LEAF_BYTES] for at in range(0, len(data), _LEAF_BYTES)]


def _pseudonym_key(secret: bytes) -> bytes:
    return hmac.digest(secret, b"pseudonym", "sha256")


def _pseudonym(key: bytes, subject_ref: str) -> bytes:
    return hmac.digest(key, subject_ref.encode(), "sha256")


def _leaf_key(secret: bytes, pseudonym: bytes) -> bytes:
    return hmac.digest(secret, b"leaf" + pseudonym, "sha256")


def _commit(leaf_key: bytes, head: ChainHead) -> bytes:
    message = head.subject_seq.to_bytes(8, "big") + head.commitment
    return hmac.digest(leaf_key, message, "sha256")
