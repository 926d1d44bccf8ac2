import json
import runpy
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consent.checkpoint import (
    Checkpoint,
    cosign,
    sign_checkpoint,
    verify_checkpoint,
    verify_log_signature,
)
from consent.identity import Identity
from consent.note import Note, NoteError
from consent.trust import TrustPolicy

FOLDER = Path(__file__).parents[1] / "vectors" / "checkpoint"
VECTORS = sorted(FOLDER.glob("*.json"))
HAPPY = json.loads((FOLDER / "happy-path.json").read_text())
POLICY = TrustPolicy.parse(HAPPY["policy"])
LOG, PEER = Identity.generate("brand-a.example/log"), Identity.generate("peer.example")


def test_the_script_makes_the_stored_vectors() -> None:
    make = runpy.run_path(str(FOLDER / "make.py"))
    made = {name: make["format_vector"](case) for name, case in make["vectors"]().items()}

    assert made == {path.stem: path.read_text() for path in VECTORS}


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_checkpoint_vectors(path: Path) -> None:
    """Each file is one case, named after its fault; `why` says it in words."""
    case = json.loads(path.read_text())
    policy = TrustPolicy.parse(case["policy"])

    if case["error"] is None:
        verified = verify_checkpoint(case["note"], policy)
        assert verified.checkpoint.tree_size == 52
        assert verified.cosigners == {"coordinator": 1_795_293_098_000, "peer": 1_795_293_103_000}
    else:
        with pytest.raises(NoteError) as caught:
            verify_checkpoint(case["note"], policy)
        assert case["error"] in str(caught.value), case["why"]


def test_the_example_of_the_signed_note_specification_reads_back() -> None:
    # https://c2sp.org/signed-note
    note = (
        "Ognuno sta solo sul cuor della terra\ntrafitto da un raggio di sole:\n\n"
        "ed è subito sera.\n\n— quasimodo.example/salvatore NnugSzTjtVAewIS+Z/iJhUPeFDkO/5QQ2i5dd"
        "nGITLlC+EhfLW9oJKONrMouFSQU0xMcXxj99ihAQwaqP3ZekRwNtIc=\n"
    )

    parsed = Note.parse(note)

    assert parsed.format() == note
    assert parsed.signatures[0].name == "quasimodo.example/salvatore"
    assert parsed.text.endswith("ed è subito sera.\n")


def test_every_flipped_bit_of_a_note_is_refused() -> None:
    data = HAPPY["note"].encode()
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(NoteError):
            verify_checkpoint(flipped.decode(errors="surrogateescape"), POLICY)


@given(st.text(max_size=80))
def test_garbage_raises_only_a_note_error(text: str) -> None:
    for read in (Note.parse, Checkpoint.parse, lambda text: verify_checkpoint(text, POLICY)):
        with pytest.raises(NoteError):
            read(text)


@given(
    st.text("abc.é/", min_size=1), st.integers(0, 2**63 - 1), st.binary(min_size=32, max_size=32)
)
def test_a_checkpoint_reads_back_as_it_was(origin: str, tree_size: int, root: bytes) -> None:
    checkpoint = Checkpoint(origin, tree_size, root)

    assert Checkpoint.parse(checkpoint.format()) == checkpoint


def test_a_second_cosignature_of_one_witness_replaces_the_first() -> None:
    note = sign_checkpoint(Checkpoint(LOG.name, 1, bytes(32)), LOG)
    twice = cosign(cosign(note, PEER, at=1000), PEER, at=9999)
    policy = TrustPolicy.parse(
        f"log {LOG.public.format()}\nwitness p {PEER.public.format()}\nquorum p\n"
    )

    assert len(Note.parse(twice).signatures) == 2
    assert verify_checkpoint(twice, policy).cosigners == {"p": 9000}


def test_nobody_signs_for_another_log() -> None:
    with pytest.raises(NoteError, match=r"'peer.example' cannot sign for the log 'brand-a.example"):
        sign_checkpoint(Checkpoint(LOG.name, 1, bytes(32)), PEER)


def test_a_cosignature_must_not_be_dated_before_the_epoch() -> None:
    with pytest.raises(NoteError, match="must not be negative, got -1"):
        cosign(HAPPY["note"], PEER, at=-1)


def test_a_note_of_another_log_is_named() -> None:
    note = sign_checkpoint(Checkpoint(LOG.name, 1, bytes(32)), LOG)
    with pytest.raises(NoteError, match=r"is of the log 'brand-a.example/log', not of 'peer"):
        verify_log_signature(note, PEER.public)


def test_a_cosignature_is_no_log_signature() -> None:
    note = Note.parse(cosign(sign_checkpoint(Checkpoint(LOG.name, 1, bytes(32)), LOG), LOG, at=0))
    only_cosigned = Note(note.text, note.signatures[1:]).format()

    with pytest.raises(NoteError, match="is not signed by its log"):
        verify_log_signature(only_cosigned, LOG.public)


@settings(max_examples=20)
@given(st.integers(0, 2**40))
def test_the_time_of_a_cosignature_is_kept_in_whole_seconds(at: int) -> None:
    note = cosign(sign_checkpoint(Checkpoint(LOG.name, 1, bytes(32)), LOG), PEER, at=at)
    policy = TrustPolicy.parse(
        f"log {LOG.public.format()}\nwitness p {PEER.public.format()}\nquorum p\n"
    )

    assert verify_checkpoint(note, policy).cosigners["p"] == at - at % 1000
