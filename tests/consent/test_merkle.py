import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consent.merkle import (
    EMPTY_ROOT,
    Frontier,
    ProofError,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    node_hash,
    prove_consistency,
    prove_inclusion,
    subtree_root,
    tree_root,
    verify_consistency,
    verify_inclusion,
)

PUBLISHED = json.loads(
    (Path(__file__).parents[1] / "vectors/merkle/merkle-proofs.json").read_text()
)
LARGEST = 130
LEAVES = [leaf_hash(bytes([number])) for number in range(LARGEST)]


def _nodes(leaves: list[bytes]) -> dict[tuple[int, int], bytes]:
    frontier = Frontier()
    return {(lv, at): value for leaf in leaves for lv, at, value in frontier.append(leaf)}


NODES = _nodes(LEAVES)


def _node(level: int, position: int) -> bytes:
    return NODES[level, position]


# The reference: RFC 6962 section 2.1 word by word, as slow as it is there.
def _mth(leaves: list[bytes]) -> bytes:
    if not leaves:
        return hashlib.sha256().digest()
    if len(leaves) == 1:
        return leaves[0]
    k = _split(len(leaves))
    return node_hash(_mth(leaves[:k]), _mth(leaves[k:]))


def _path(m: int, leaves: list[bytes]) -> list[bytes]:
    if len(leaves) == 1:
        return []
    k = _split(len(leaves))
    if m < k:
        return [*_path(m, leaves[:k]), _mth(leaves[k:])]
    return [*_path(m - k, leaves[k:]), _mth(leaves[:k])]


def _subproof(m: int, leaves: list[bytes], *, whole: bool) -> list[bytes]:
    if m == len(leaves):
        return [] if whole else [_mth(leaves)]
    k = _split(len(leaves))
    if m <= k:
        return [*_subproof(m, leaves[:k], whole=whole), _mth(leaves[k:])]
    return [*_subproof(m - k, leaves[k:], whole=False), _mth(leaves[:k])]


def _split(n: int) -> int:
    k = 1
    while 2 * k < n:
        k *= 2
    return k


def _decode(case: dict[str, Any], name: str) -> bytes:
    return base64.b64decode(case[name] or "")


def _proof(case: dict[str, Any]) -> list[bytes]:
    return [base64.b64decode(value) for value in case["proof"] or []]


def test_all_published_cases_are_here() -> None:
    assert len(PUBLISHED["inclusion"]) == len(PUBLISHED["consistency"]) == 98


@pytest.mark.parametrize("case", PUBLISHED["inclusion"], ids=lambda case: case["case"])
def test_inclusion_agrees_with_the_published_vectors(case: dict[str, Any]) -> None:
    try:
        verify_inclusion(
            _decode(case, "leafHash"),
            index=case["leafIdx"],
            tree_size=case["treeSize"],
            proof=_proof(case),
            root=_decode(case, "root"),
        )
        refused = False
    except ProofError:
        refused = True

    assert refused == case["wantErr"], case["desc"]


@pytest.mark.parametrize("case", PUBLISHED["consistency"], ids=lambda case: case["case"])
def test_consistency_agrees_with_the_published_vectors(case: dict[str, Any]) -> None:
    try:
        verify_consistency(
            old_size=case["size1"],
            new_size=case["size2"],
            old_root=_decode(case, "root1"),
            new_root=_decode(case, "root2"),
            proof=_proof(case),
        )
        refused = False
    except ProofError:
        refused = True

    assert refused == case["wantErr"], case["desc"]


def test_roots_agree_with_the_reference_at_every_size() -> None:
    for size in range(LARGEST + 1):
        assert tree_root(LEAVES[:size]) == _mth(LEAVES[:size])
        assert subtree_root(_node, low=0, high=size) == _mth(LEAVES[:size])


def test_inclusion_proofs_agree_with_the_reference_at_every_size() -> None:
    for size in range(1, LARGEST + 1):
        root = tree_root(LEAVES[:size])
        for index in range(0, size, 1 if size < 40 else 7):
            proof = prove_inclusion(_node, index=index, tree_size=size)
            assert proof == _path(index, LEAVES[:size])
            verify_inclusion(LEAVES[index], index=index, tree_size=size, proof=proof, root=root)


def test_consistency_proofs_agree_with_the_reference_at_every_size() -> None:
    roots = [tree_root(LEAVES[:size]) for size in range(LARGEST + 1)]
    for new in range(1, LARGEST + 1):
        for old in range(1, new + 1, 1 if new < 40 else 7):
            proof = prove_consistency(_node, old_size=old, new_size=new)
            assert proof == _subproof(old, LEAVES[:new], whole=True)
            verify_consistency(
                old_size=old, new_size=new, old_root=roots[old], new_root=roots[new], proof=proof
            )


@given(st.data())
def test_a_flipped_bit_in_a_proof_is_refused(data: st.DataObject) -> None:
    size = data.draw(st.integers(2, LARGEST))
    index = data.draw(st.integers(0, size - 1))
    proof = inclusion_proof(LEAVES[:size], index)
    which = data.draw(st.integers(0, len(proof) - 1))
    bit = data.draw(st.integers(0, 255))
    flipped = bytearray(proof[which])
    flipped[bit // 8] ^= 1 << bit % 8
    proof[which] = bytes(flipped)

    with pytest.raises(ProofError, match="leads to another root hash"):
        verify_inclusion(
            LEAVES[index], index=index, tree_size=size, proof=proof, root=tree_root(LEAVES[:size])
        )


@given(st.data())
def test_a_flipped_bit_in_a_consistency_proof_is_refused(data: st.DataObject) -> None:
    new = data.draw(st.integers(2, LARGEST))
    old = data.draw(st.integers(1, new - 1))
    proof = consistency_proof(LEAVES[:new], old)
    which, bit = data.draw(st.integers(0, len(proof) - 1)), data.draw(st.integers(0, 255))
    flipped = bytearray(proof[which])
    flipped[bit // 8] ^= 1 << bit % 8
    proof[which] = bytes(flipped)

    with pytest.raises(ProofError, match="does not lead to the root of size"):
        verify_consistency(
            old_size=old,
            new_size=new,
            old_root=tree_root(LEAVES[:old]),
            new_root=tree_root(LEAVES[:new]),
            proof=proof,
        )


def test_a_frontier_never_holds_more_than_one_hash_per_bit() -> None:
    frontier = Frontier()
    for leaf in LEAVES:
        frontier.append(leaf)
        assert len(frontier.hashes) == frontier.size.bit_count()


def test_a_copied_frontier_grows_alone() -> None:
    frontier = Frontier()
    frontier.append(LEAVES[0])
    other = frontier.copy()
    other.append(LEAVES[1])

    assert (frontier.size, frontier.root()) == (1, LEAVES[0])
    assert Frontier().root() == EMPTY_ROOT


def test_proofs_of_what_is_not_there_are_a_callers_mistake() -> None:
    with pytest.raises(ValueError, match=r"index must be in \[0, 3\), got 3"):
        inclusion_proof(LEAVES[:3], 3)
    with pytest.raises(ValueError, match=r"old_size must be in \[0, 3\], got 4"):
        consistency_proof(LEAVES[:3], 4)


def test_the_verifier_says_which_rule_failed() -> None:
    root = tree_root(LEAVES[:3])
    with pytest.raises(ProofError, match=r"index must be in \[0, 3\), got 3"):
        verify_inclusion(LEAVES[0], index=3, tree_size=3, proof=[], root=root)
    with pytest.raises(ProofError, match="the proof must hold 2 hashes, got 0"):
        verify_inclusion(LEAVES[0], index=0, tree_size=3, proof=[], root=root)
    with pytest.raises(ProofError, match="a hash must have 32 bytes, got 1"):
        verify_inclusion(LEAVES[0], index=0, tree_size=3, proof=[b"x", b"y"], root=root)
    with pytest.raises(ProofError, match=r"old_size must be in \[0, 2\], got 3"):
        verify_consistency(old_size=3, new_size=2, old_root=root, new_root=root, proof=[])
    with pytest.raises(ProofError, match="two root hashes of one size 3 differ"):
        verify_consistency(old_size=3, new_size=3, old_root=root, new_root=LEAVES[0], proof=[])
    with pytest.raises(ProofError, match="every tree extends the empty one"):
        verify_consistency(old_size=0, new_size=3, old_root=EMPTY_ROOT, new_root=root, proof=[])
