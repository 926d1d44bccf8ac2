import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consent import Log, ProofError, SubjectRef
from consent.chain import ChainHead
from consent.statetree import (
    StateLeaf,
    StateProof,
    StateRoot,
    StateTree,
    append_state_root,
    load_state_tree,
    verify_order,
    verify_state,
)

REFS = [SubjectRef(f"{number:064x}") for number in range(40)]
HEADS = {ref: ChainHead(number + 1, bytes([number]) * 32) for number, ref in enumerate(REFS[:20])}
TREE = StateTree.of_heads(HEADS, secret=bytes(32))
ROOT = TREE.root(log_size=99, at=5)


@settings(max_examples=30)
@given(st.integers(0, 20), st.binary(min_size=32, max_size=32))
def test_everybody_is_proved_to_be_there_or_not(people: int, secret: bytes) -> None:
    heads = {ref: HEADS[ref] for ref in REFS[:people]}
    tree = StateTree.of_heads(heads, secret=secret)
    root = tree.root(log_size=1, at=1)

    for ref in REFS:
        verify_state(tree.prove(ref), root, subject_ref=ref, head=heads.get(ref))
    verify_order(tree.leaves, root)


def test_another_head_is_not_proved() -> None:
    proof = TREE.prove(REFS[3])
    for head in (ChainHead(3, HEADS[REFS[3]].commitment), ChainHead(4, bytes(32))):
        with pytest.raises(ProofError, match=r"does not say that event . is the subject's newest"):
            verify_state(proof, ROOT, subject_ref=REFS[3], head=head)
    with pytest.raises(ProofError, match="the neighbours do not show that the subject is not"):
        verify_state(proof, ROOT, subject_ref=REFS[3], head=None)


def test_neighbours_that_are_not_beside_each_other_prove_nothing() -> None:
    keys = {"pseudonym_key": TREE.prove(REFS[0]).pseudonym_key, "leaf_key": b""}
    leaves = {leaf.index: leaf for ref in REFS for leaf in TREE.prove(ref).leaves}
    there = REFS[0]
    place = TREE.prove(there).leaves[0].index
    for shown in (
        [leaves[i] for i in (place - 1, place + 1) if i in leaves],
        [leaves[0]],
        [leaves[19]],
        [leaves[index] for index in (4, 5)],
        [],
    ):
        proof = StateProof(leaves=tuple(shown), **keys)  # type: ignore[arg-type]
        with pytest.raises(ProofError, match="the neighbours do not show"):
            verify_state(proof, ROOT, subject_ref=there, head=None)


def test_a_leaf_of_another_length_is_refused() -> None:
    short = dataclasses.replace(
        TREE.prove(REFS[0]), leaves=(StateLeaf(index=0, leaf=b"x", hashes=()),)
    )
    with pytest.raises(ProofError, match="a leaf of a state tree must have 64 bytes"):
        verify_state(short, ROOT, subject_ref=REFS[0], head=None)


def test_leaves_out_of_order_are_noticed_by_whoever_has_them_all() -> None:
    leaves = list(TREE.leaves)
    for wrong in (leaves[::-1], [*leaves[:1], *leaves], [b"short"]):
        with pytest.raises(ProofError, match="must be in order, each subject once"):
            verify_order(wrong, ROOT)
    with pytest.raises(ProofError, match="the leaves do not give the state root"):
        verify_order(leaves[:-1], ROOT)


def test_a_state_root_reads_back_as_it_was() -> None:
    assert StateRoot.parse(ROOT.format()) == ROOT


@pytest.mark.parametrize(
    "change",
    [{"root": "xy"}, {"key_hash": "x"}],
)
def test_a_state_root_holds_hashes(change: dict[str, str]) -> None:
    with pytest.raises(ProofError, match="a state root must hold its hashes in hex"):
        StateRoot.parse({**ROOT.format(), **change})


@pytest.mark.parametrize(
    "change", [{"v": 2}, {"at": -1}, {"subjects": True}, {"more": 1}, {"root": "AB" * 32}]
)
def test_an_entry_that_is_no_state_root_is_refused(change: dict[str, int]) -> None:
    with pytest.raises(ProofError, match="the entry is not a state root with its fields"):
        StateRoot.parse({**ROOT.format(), **change})


def test_a_log_keeps_its_last_trees(log: Log) -> None:
    log.append_sealed(REFS[0], {"type": "x", "at": 1, "v": 1})
    indices = [append_state_root(log, at=number) for number in range(1, 10)]

    root = StateRoot.parse(log.entry(indices[-1]).value)
    assert (root.subjects, root.log_size, root.at) == (1, 9, 9)
    verify_order(load_state_tree(log, indices[-1]).leaves, root)
    assert load_state_tree(log, indices[2]).leaves
    with pytest.raises(ProofError, match="the state tree of entry 2 is not kept"):
        load_state_tree(log, indices[1])


def test_pseudonyms_of_two_trees_cannot_be_joined(log: Log) -> None:
    log.append_sealed(REFS[0], {"type": "x", "at": 1, "v": 1})
    first, second = (load_state_tree(log, append_state_root(log, at=1)).leaves for _ in range(2))

    assert first[0][:32] != second[0][:32]
    assert first[0][32:] != second[0][32:]
