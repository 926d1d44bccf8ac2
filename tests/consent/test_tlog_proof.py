import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consent import Checkpoint, Identity, ProofError, sign_checkpoint
from consent.merkle import inclusion_proof, leaf_hash, tree_root
from consent.tlog_proof import LogProof

LOG = Identity.generate("example.com/log")
LEAVES = [leaf_hash(b"%d" % number) for number in range(11)]
NOTE = sign_checkpoint(Checkpoint(LOG.name, 11, tree_root(LEAVES)), LOG)
PROOF = LogProof(index=5, hashes=tuple(inclusion_proof(LEAVES, 5)), checkpoint=NOTE, extra=b"salt")


def test_a_proof_has_the_lines_of_the_specification() -> None:
    lines = PROOF.format().split("\n")

    assert lines[0] == "c2sp.org/tlog-proof@v1"
    assert lines[1] == "extra c2FsdA=="
    assert lines[2] == "index 5"
    assert [base64.b64decode(line) for line in lines[3:7]] == list(PROOF.hashes)
    assert "\n".join(lines[8:]) == NOTE


hashes = st.lists(st.binary(min_size=32, max_size=32), max_size=63)


@given(st.integers(0, 2**63 - 1), hashes, st.text(), st.binary())
def test_a_proof_reads_back_as_it_was(
    index: int, path: list[bytes], checkpoint: str, extra: bytes
) -> None:
    proof = LogProof(index=index, hashes=tuple(path), checkpoint=checkpoint, extra=extra)

    assert LogProof.parse(proof.format()) == proof


def test_the_proof_of_every_entry_leads_to_the_root_and_no_other_does() -> None:
    for index, leaf in enumerate(LEAVES):
        path = tuple(inclusion_proof(LEAVES, index))
        proof = LogProof(index=index, hashes=path, checkpoint=NOTE)
        proof.verify(leaf)
        with pytest.raises(ProofError, match="leads to another root hash"):
            proof.verify(leaf_hash(b"other"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("@v1", "@v2", "must begin with c2sp.org/tlog-proof@v1"),
        ("\n\n" + NOTE, "\n", "end with a checkpoint"),
        ("index 5", "index 05", "only canonical spelling"),
        ("index 5", "index ٥", r"must be in \[0, 2\^63\)"),
        ("index 5", f"index {2**63}", r"must be in \[0, 2\^63\)"),
        ("index 5", "place 5", "must name the index"),
        ("extra c2FsdA==", "extra c2FsdA", "is not base64"),
        ("extra c2FsdA==", "extra c2FsdB==", "only canonical spelling"),
        ("index 5\n", "index 5\nc2FsdA==\n", "at most 63 hashes of 32 bytes"),
        ("index 5\n", "index 5\n" + "c2FsdA==\n" * 64, "at most 63 hashes of 32 bytes"),
    ],
)
def test_a_proof_has_one_spelling(old: str, new: str, message: str) -> None:
    with pytest.raises(ProofError, match=message):
        LogProof.parse(PROOF.format().replace(old, new, 1))


def test_a_proof_without_a_readable_checkpoint_proves_nothing() -> None:
    proof = LogProof(index=0, hashes=(), checkpoint="believe me\n")
    with pytest.raises(ProofError, match="the checkpoint of a log proof cannot be read"):
        proof.verify(LEAVES[0])


@given(
    st.text() | st.text("c2sp.org/tlog-proof@v1\nindex 5=").map("c2sp.org/tlog-proof@v1".__add__)
)
def test_garbage_raises_only_a_proof_error(text: str) -> None:
    try:
        LogProof.parse(text)
    except ProofError:
        return
    assert LogProof.parse(text).format() == text
