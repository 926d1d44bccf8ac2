import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consent import Checkpoint, EquivocationError, Identity, NoteError, Witness, sign_checkpoint
from consent.canonical import format_canonical
from consent.equivocation import WHY, Evidence, EvidenceKind

LOG = Identity.generate("brand-a.example/log")


def _note(size: int, root: int, identity: Identity = LOG) -> str:
    return sign_checkpoint(Checkpoint(identity.name, size, bytes([root]) * 32), identity)


TWO_HEADS = Evidence(log=LOG.public, known=_note(3, 1), shown=_note(3, 2))


def test_a_witness_hands_on_two_heads_of_one_size(tmp_path: Path, coordinator: Identity) -> None:
    with Witness(tmp_path / "witness", coordinator) as witness:
        witness.cosign(_note(3, 1), log=LOG.public, proof=[], at=1)
        with pytest.raises(EquivocationError) as caught:
            witness.cosign(_note(3, 2), log=LOG.public, proof=[], at=1)

    handed_on = Evidence.parse(caught.value.evidence(LOG.public).format())
    assert handed_on == TWO_HEADS
    assert handed_on.kind is EvidenceKind.TWO_HEADS
    assert b"convicts it by its own signatures" in handed_on.format()


def test_a_smaller_head_is_handed_on_with_the_reason_why_it_convicts_nobody(
    tmp_path: Path, coordinator: Identity
) -> None:
    with Witness(tmp_path / "witness", coordinator) as witness:
        witness.cosign(_note(3, 1), log=LOG.public, proof=[], at=1)
        with pytest.raises(EquivocationError) as caught:
            witness.cosign(_note(2, 1), log=LOG.public, proof=[], at=1)

    handed_on = Evidence.parse(caught.value.evidence(LOG.public).format())
    assert handed_on.kind is EvidenceKind.SMALLER_HEAD
    assert WHY[handed_on.kind].encode() in handed_on.format()
    assert "convicts nobody" in WHY[handed_on.kind]


def _edit(**changes: object) -> Callable[[dict[str, object]], dict[str, object]]:
    return lambda value: {**value, **changes}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_edit(kind="smaller-head"), "evidence must hold a key, two notes and what they show"),
        (_edit(why="trust me"), "evidence must hold a key, two notes and what they show"),
        (_edit(more=1), "evidence must hold a key, two notes and what they show"),
        (_edit(known=1), "evidence must hold a key, two notes and what they show"),
        (_edit(log="x"), "evidence must name the key of its log"),
        (_edit(shown=TWO_HEADS.known), "the two notes sign the same head"),
        (_edit(shown=_note(4, 1)), "of different sizes do not convict without a proof"),
        (_edit(shown=_note(3, 2, Identity.generate(LOG.name))), "is not signed by its log"),
    ],
)
def test_changed_evidence_is_refused(
    change: Callable[[dict[str, object]], dict[str, object]], message: str
) -> None:
    data = format_canonical(change(json.loads(TWO_HEADS.format())))  # type: ignore[arg-type]
    with pytest.raises(NoteError, match=message):
        Evidence.parse(data)


def test_every_flipped_bit_of_evidence_is_refused() -> None:
    data = TWO_HEADS.format()
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(NoteError):
            Evidence.parse(bytes(flipped))


@given(st.binary(max_size=80))
def test_garbage_raises_only_a_note_error(data: bytes) -> None:
    with pytest.raises(NoteError):
        Evidence.parse(data)


def test_evidence_has_a_longest_length() -> None:
    with pytest.raises(NoteError, match="evidence must have at most 262144 bytes"):
        Evidence.parse(bytes((1 << 18) + 1))
