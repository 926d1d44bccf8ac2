"""Prove with few hashes that an entry is in a log and that a log only grew (RFC 6962).

Pure functions of hashes and sizes. A proof is the same list that transparency-dev/merkle and
C2SP tlog-proof carry. Nothing is stored here: a caller that keeps millions of entries passes
a `Node` look-up instead of all leaf hashes.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

EMPTY_ROOT = hashlib.sha256(b"").digest()
HASH_SIZE_BYTES = 32

Node: TypeAlias = Callable[[int, int], bytes]
"""Hash of the full subtree at (level, position): leaves position << level and on."""


class ProofError(Exception):
    """A proof does not show what it claims."""


def leaf_hash(data: bytes) -> bytes:
    """Hash an entry. Source: RFC 6962 section 2.1."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash two subtrees into their parent. Source: RFC 6962 section 2.1."""
    return hashlib.sha256(b"\x01" + left + right).digest()


@dataclass(slots=True)
class Frontier:
    """The right edge of a growing tree: enough to append in O(log n) and to name the root.

    Attributes:
        size: Number of leaves so far.
        hashes: Roots of the full subtrees, largest first; one per set bit of `size`.
    """

    size: int = 0
    hashes: list[bytes] = field(default_factory=list)

    def copy(self) -> "Frontier":
        """Return an independent frontier of the same tree."""
        return Frontier(self.size, list(self.hashes))

    def append(self, leaf: bytes, *, level: int = 0) -> list[tuple[int, int, bytes]]:
        """Add one leaf hash, or one full subtree of a level that the size is a multiple of.

        Returns:
            Every full subtree that is complete now and was not, as (level, position, hash).

        Raises:
            ValueError: The size is no multiple of the subtree's.
        """
        grown = self.size + (1 << level)
        position, rest = divmod(self.size, 1 << level)
        if rest:
            raise ValueError(f"a subtree of level {level} does not fit at size {self.size}")
        current = leaf
        made = [(level, position, current)]
        while position & 1:
            current = node_hash(self.hashes.pop(), current)
            level, position = level + 1, position >> 1
            made.append((level, position, current))
        self.hashes.append(current)
        self.size = grown
        return made

    def root(self) -> bytes:
        """Return the root hash of the tree as it is now."""
        if not self.hashes:
            return EMPTY_ROOT
        root = self.hashes[-1]
        for left in reversed(self.hashes[:-1]):
            root = node_hash(left, root)
        return root


def tree_root(leaf_hashes: Sequence[bytes]) -> bytes:
    """Return the root hash over all leaf hashes."""
    frontier = Frontier()
    for leaf in leaf_hashes:
        frontier.append(leaf)
    return frontier.root()


def inclusion_proof(leaf_hashes: Sequence[bytes], index: int) -> list[bytes]:
    """Return the proof that leaf `index` is in the tree over all leaf hashes.

    Raises:
        ValueError: There is no such leaf.
    """
    return prove_inclusion(_nodes(leaf_hashes), index=index, tree_size=len(leaf_hashes))


def consistency_proof(leaf_hashes: Sequence[bytes], old_size: int) -> list[bytes]:
    """Return the proof that the tree over all leaf hashes extends its first `old_size`.

    Raises:
        ValueError: `old_size` is negative or larger than the tree.
    """
    return prove_consistency(_nodes(leaf_hashes), old_size=old_size, new_size=len(leaf_hashes))


def prove_inclusion(node: Node, *, index: int, tree_size: int) -> list[bytes]:
    """Return the inclusion proof from stored full subtrees. Source: RFC 6962 section 2.1.1."""
    if not 0 <= index < tree_size:
        raise ValueError(f"index must be in [0, {tree_size}), got {index}")
    low, high = 0, tree_size
    proof: list[bytes] = []
    while high - low > 1:
        middle = low + _split(high - low)
        if index < middle:
            proof.append(subtree_root(node, low=middle, high=high))
            high = middle
        else:
            proof.append(subtree_root(node, low=low, high=middle))
            low = middle
    return proof[::-1]


def prove_consistency(node: Node, *, old_size: int, new_size: int) -> list[bytes]:
    """Return the consistency proof from stored full subtrees. Source: RFC 6962 section 2.1.2."""
    if not 0 <= old_size <= new_size:
        raise ValueError(f"old_size must be in [0, {new_size}], got {old_size}")
    if old_size in (0, new_size):
        return []
    low, high = 0, new_size
    proof: list[bytes] = []
    while high != old_size:
        middle = low + _split(high - low)
        if old_size <= middle:
            proof.append(subtree_root(node, low=middle, high=high))
            high = middle
        else:
            proof.append(subtree_root(node, low=low, high=middle))
            low = middle
    # The verifier knows the old root already, so it is sent only as a part of the tree.
    if low > 0:
        proof.append(subtree_root(node, low=low, high=high))
    return proof[::-1]


def subtree_root(node: Node, *, low: int, high: int) -> bytes:
    """Return the root over leaves [low, high), where `low` is aligned as RFC 6962 splits."""
    if low == high:
        return EMPTY_ROOT
    width = high - low
    if width & (width - 1) == 0:
        level = width.bit_length() - 1
        return node(level, low >> level)
    middle = low + _split(width)
    right = subtree_root(node, low=middle, high=high)
    return node_hash(subtree_root(node, low=low, high=middle), right)


def verify_inclusion(
    leaf: bytes, *, index: int, tree_size: int, proof: Sequence[bytes], root: bytes
) -> None:
    """Raise `ProofError` unless the proof leads from the leaf hash at `index` to the root."""
    if not 0 <= index < tree_size:
        raise ProofError(f"index must be in [0, {tree_size}), got {index}")
    inner, border = _shape(index, tree_size)
    _check_hashes([leaf, root, *proof])
    _check_length(proof, inner + border)
    result = _climb(leaf, proof[:inner], index)
    if _climb_border(result, proof[inner:]) != root:
        raise ProofError(f"the inclusion proof of entry {index} leads to another root hash")


def verify_consistency(
    *, old_size: int, new_size: int, old_root: bytes, new_root: bytes, proof: Sequence[bytes]
) -> None:
    """Raise `ProofError` unless the proof shows that the new tree extends the old one.

    An old size of zero is refused, because every tree extends the empty one and the proof
    would say nothing. Source: transparency-dev/merkle, proof/verify.go.
    """
    if not 0 <= old_size <= new_size:
        raise ProofError(f"old_size must be in [0, {new_size}], got {old_size}")
    if old_size == 0:
        raise ProofError("every tree extends the empty one; the proof would say nothing")
    _check_hashes(proof)
    if old_size == new_size:
        _check_length(proof, 0)
        if old_root != new_root:
            raise ProofError(f"two root hashes of one size {old_size} differ")
        return
    _verify_growth(old_size, new_size, old_root, new_root, proof)


def _verify_growth(
    old_size: int, new_size: int, old_root: bytes, new_root: bytes, proof: Sequence[bytes]
) -> None:
    inner, border = _shape(old_size - 1, new_size)
    shift = (old_size & -old_size).bit_length() - 1
    inner -= shift
    # A power of two is one full subtree: the old root itself is where both climbs begin.
    start = 0 if old_size == 1 << shift else 1
    _check_length(proof, start + inner + border)
    seed = proof[0] if start else old_root
    sides, tops = proof[start : start + inner], proof[start + inner :]
    path = (old_size - 1) >> shift
    if _climb_border(_climb_left(seed, sides, path), tops) != old_root:
        raise ProofError(f"the consistency proof does not lead to the root of size {old_size}")
    if _climb_border(_climb(seed, sides, path), tops) != new_root:
        raise ProofError(f"the consistency proof does not lead to the root of size {new_size}")


def _nodes(leaf_hashes: Sequence[bytes]) -> Node:
    frontier = Frontier()
    made = {
        (level, position): value
        for leaf in leaf_hashes
        for level, position, value in frontier.append(leaf)
    }
    return lambda level, position: made[level, position]


def _split(width: int) -> int:
    """Return the largest power of two below `width`."""
    return 1 << ((width - 1).bit_length() - 1)


def _shape(index: int, tree_size: int) -> tuple[int, int]:
    inner = (index ^ (tree_size - 1)).bit_length()
    return inner, (index >> inner).bit_count()


def _climb(seed: bytes, proof: Sequence[bytes], index: int) -> bytes:
    for level, sibling in enumerate(proof):
        right = (index >> level) & 1
        seed = node_hash(sibling, seed) if right else node_hash(seed, sibling)
    return seed


def _climb_left(seed: bytes, proof: Sequence[bytes], index: int) -> bytes:
    for level, sibling in enumerate(proof):
        if (index >> level) & 1:
            seed = node_hash(sibling, seed)
    return seed


def _climb_border(seed: bytes, proof: Sequence[bytes]) -> bytes:
    for sibling in proof:
        seed = node_hash(sibling, seed)
    return seed


def _check_hashes(hashes: Sequence[bytes]) -> None:
    for value in hashes:
        if len(value) != HASH_SIZE_BYTES:
            raise ProofError(f"a hash must have 32 bytes, got {len(value)}")


def _check_length(proof: Sequence[bytes], expected: int) -> None:
    if len(proof) != expected:
        raise ProofError(f"the proof must hold {expected} hashes, got {len(proof)}")
