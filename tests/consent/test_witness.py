import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from consent import (
    Checkpoint,
    EquivocationError,
    Identity,
    Log,
    LogError,
    NoteError,
    ProofError,
    TrustPolicy,
    Witness,
    cosign,
    sign_checkpoint,
    verify_checkpoint,
    verify_equivocation,
)
from consent.checkpoint import merge_cosignatures, verify_cosignatures
from consent.event import Event
from consent.identity import COSIGNATURE
from consent.note import Note, NoteSignature
from tests.conftest import Stores


@pytest.fixture
def stores() -> Stores:
    """In which engine a log is makes no difference here."""
    return lambda: None


def _events(count: int) -> list[Event]:
    return [{"type": "x", "at": 1, "v": 1}] * count


def test_a_witness_follows_a_log_that_only_grows(
    tmp_path: Path, log: Log, identity: Identity, coordinator: Identity, policy: TrustPolicy
) -> None:
    for _ in range(4):
        with Witness(tmp_path / "witness", coordinator) as witness:
            old = witness.size_of(log.origin)
            proof = log.consistency_proof(old)
            note = witness.cosign(log.checkpoint(), log=identity.public, proof=proof, at=5_000)
            log.accept_cosigned(note, policy)
            assert witness.size_of(log.origin) == log.tree_size
        log.append_many(_events(3))

    assert verify_checkpoint(log.newest_note(), policy).cosigners == {"coordinator": 5_000}


def test_a_head_known_already_is_cosigned_again(
    tmp_path: Path, log: Log, identity: Identity, coordinator: Identity
) -> None:
    log.append_many(_events(2))
    with Witness(tmp_path / "witness", coordinator) as witness:
        first = witness.cosign(log.checkpoint(), log=identity.public, proof=[], at=1_000)
        again = witness.cosign(log.checkpoint(), log=identity.public, proof=[], at=1_000)

    assert first == again


def test_two_heads_of_one_size_convict_the_log(
    tmp_path: Path, identity: Identity, coordinator: Identity
) -> None:
    notes = [
        sign_checkpoint(Checkpoint(identity.name, 3, bytes([number]) * 32), identity)
        for number in (1, 2)
    ]
    with Witness(tmp_path / "witness", coordinator) as witness:
        witness.cosign(notes[0], log=identity.public, proof=[], at=1)
    with (
        Witness(tmp_path / "witness", coordinator) as restarted,
        pytest.raises(EquivocationError, match="signed two different heads of size 3") as caught,
    ):
        restarted.cosign(notes[1], log=identity.public, proof=[], at=2)

    assert (caught.value.known, caught.value.shown) == (notes[0], notes[1])
    verify_equivocation(caught.value.known, caught.value.shown, identity.public)


def test_a_smaller_head_is_refused_and_shown(
    tmp_path: Path, log: Log, identity: Identity, coordinator: Identity
) -> None:
    small = log.checkpoint()
    log.append_many(_events(5))
    with Witness(tmp_path / "witness", coordinator) as witness:
        witness.cosign(log.checkpoint(), log=identity.public, proof=[], at=1)
        with pytest.raises(EquivocationError, match="shows 0 entries after 5") as caught:
            witness.cosign(small, log=identity.public, proof=[], at=2)
        assert witness.size_of(log.origin) == 5

    with pytest.raises(NoteError, match="of different sizes do not convict without a proof"):
        verify_equivocation(caught.value.known, caught.value.shown, identity.public)
    with pytest.raises(NoteError, match="the two notes sign the same head"):
        verify_equivocation(small, small, identity.public)


def test_nobody_is_convicted_by_a_forged_note(identity: Identity, coordinator: Identity) -> None:
    forger = Identity.generate(identity.name)
    mine = sign_checkpoint(Checkpoint(identity.name, 3, bytes(32)), identity)
    forged = sign_checkpoint(Checkpoint(identity.name, 3, b"x" * 32), forger)
    with pytest.raises(NoteError, match="is not signed by its log"):
        verify_equivocation(mine, forged, identity.public)


def test_a_rewritten_history_is_refused(
    tmp_path: Path, log: Log, identity: Identity, coordinator: Identity
) -> None:
    log.append_many(_events(3))
    with (
        Log.create(tmp_path / "other", identity) as other,
        Witness(tmp_path / "witness", coordinator) as witness,
    ):
        witness.cosign(log.checkpoint(), log=identity.public, proof=[], at=1)
        other.append_many([{"type": "y", "at": 1, "v": 1}] * 6)
        with pytest.raises(ProofError, match="does not lead to the root of size 3"):
            witness.cosign(
                other.checkpoint(), log=identity.public, proof=other.consistency_proof(3), at=2
            )
        assert witness.size_of(log.origin) == 3


def test_proofs_from_nothing_must_be_empty(
    tmp_path: Path, log: Log, identity: Identity, coordinator: Identity
) -> None:
    with Witness(tmp_path / "witness", coordinator) as witness:
        with pytest.raises(ProofError, match="a log that is not known yet must be empty"):
            witness.cosign(log.checkpoint(), log=identity.public, proof=[bytes(32)], at=1)
        witness.cosign(log.checkpoint(), log=identity.public, proof=[], at=1)
        log.append_many(_events(1))
        with pytest.raises(ProofError, match="the proof from an empty log must be empty"):
            witness.cosign(log.checkpoint(), log=identity.public, proof=[bytes(32)], at=1)


def test_a_log_cannot_change_its_key(
    tmp_path: Path, log: Log, identity: Identity, coordinator: Identity
) -> None:
    other = Identity.generate(identity.name)
    note = sign_checkpoint(Checkpoint(other.name, 0, log.root_hash), other)
    with Witness(tmp_path / "witness", coordinator) as witness:
        witness.cosign(log.checkpoint(), log=identity.public, proof=[], at=1)
        with pytest.raises(NoteError, match="was known by another key before"):
            witness.cosign(note, log=other.public, proof=[], at=1)


def test_a_witness_without_memory_cosigns_nothing(tmp_path: Path, coordinator: Identity) -> None:
    with pytest.raises(LogError, match="the witness's memory cannot be used; nothing was cosigned"):
        Witness(tmp_path / "missing" / "witness", coordinator)


COSIGNS_AND_DIES = """
import os, sys
from pathlib import Path
from consent import Identity, PublicIdentity, Witness
witness = Witness(Path(sys.argv[1]), Identity.load(Path(sys.argv[2])))
note = bytes.fromhex(sys.argv[4]).decode()
print(witness.cosign(note, log=PublicIdentity.parse(sys.argv[3]), proof=[], at=1), flush=True)
os.kill(os.getpid(), 9)
"""


def test_a_killed_witness_remembers_what_it_cosigned(
    tmp_path: Path, identity: Identity, coordinator: Identity
) -> None:
    coordinator.save(tmp_path / "key")
    first, second = (
        sign_checkpoint(Checkpoint(identity.name, 3, bytes([number]) * 32), identity)
        for number in (1, 2)
    )
    arguments = [tmp_path / "witness", tmp_path / "key", identity.public.format()]
    died = subprocess.run(
        [sys.executable, "-c", COSIGNS_AND_DIES, *arguments, first.encode().hex()],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )

    assert died.returncode == -9
    assert died.stdout.startswith(first)
    with (
        Witness(tmp_path / "witness", coordinator) as witness,
        pytest.raises(EquivocationError),
    ):
        witness.cosign(second, log=identity.public, proof=[], at=2)


def _federation(log: Log, identity: Identity) -> tuple[list[Identity], TrustPolicy]:
    witnesses = [Identity.generate(f"witness-{number}.example") for number in range(4)]
    lines = [f"log {identity.public.format()}"]
    lines += [
        f"witness w{number} {witness.public.format_witness()}"
        for number, witness in enumerate(witnesses)
    ]
    lines += ["group peers 2 w1 w2 w3", "group all all w0 peers", "quorum all"]
    return witnesses, TrustPolicy.parse("\n".join(lines) + "\n")


def test_cosignatures_of_one_head_add_up_to_the_quorum(log: Log, identity: Identity) -> None:
    witnesses, policy = _federation(log, identity)
    log.append_many(_events(2))
    own = log.checkpoint()
    first, second, third = (cosign(own, witnesses[n], at=1000 * n) for n in (3, 0, 1))

    log.collect(first, policy)
    with pytest.raises(NoteError, match="the quorum 'all' is not met: cosigned by w0, w3"):
        log.accept_cosigned(second, policy)
    assert log.newest_note() == own
    log.append_many(_events(1))
    verified = log.accept_cosigned(third, policy)

    assert verified.cosigners == {"w0": 0, "w1": 1000, "w3": 3000}
    assert verify_checkpoint(log.newest_note(), policy).checkpoint.tree_size == 2


def test_collected_cosignatures_survive_a_restart(
    tmp_path: Path, log: Log, identity: Identity
) -> None:
    witnesses, policy = _federation(log, identity)
    own = log.checkpoint()
    for number in (0, 1):
        log.collect(cosign(own, witnesses[number], at=1000), policy)
    log.close()
    with Log.open(tmp_path / "log", identity) as reopened:
        note = cosign(own, witnesses[2], at=1000)
        assert set(reopened.accept_cosigned(note, policy).cosigners) == {"w0", "w1", "w2"}


def test_merging_keeps_the_newest_cosignature_and_no_stranger(log: Log, identity: Identity) -> None:
    witnesses, policy = _federation(log, identity)
    stranger = Identity.generate("stranger.example")
    own = log.checkpoint()
    log.collect(cosign(own, witnesses[0], at=5000), policy)
    merged = log.collect(cosign(cosign(own, stranger, at=1), witnesses[0], at=2000), policy)

    assert verify_cosignatures(merged, policy).cosigners == {"w0": 5000}
    assert "stranger" not in merged
    newer = log.collect(cosign(own, witnesses[0], at=9000), policy)
    assert verify_cosignatures(newer, policy).cosigners == {"w0": 9000}


def test_a_false_cosignature_is_not_collected(log: Log, identity: Identity) -> None:
    witnesses, policy = _federation(log, identity)
    forger = Identity.generate(witnesses[0].name)
    false = Note.parse(cosign(log.checkpoint(), forger, at=1))
    key_id = witnesses[0].public.key_id(COSIGNATURE)
    line = NoteSignature(witnesses[0].name, key_id, false.signatures[-1].signature)
    with pytest.raises(NoteError, match=r"cosignature of 'witness-0.example' is not valid"):
        log.collect(false.with_signature(line).format(), policy)


def test_heads_that_differ_cannot_be_merged(log: Log, identity: Identity) -> None:
    _, policy = _federation(log, identity)
    own = log.checkpoint()
    log.append_many(_events(1))
    with pytest.raises(NoteError, match="cosignatures of two different heads cannot be merged"):
        merge_cosignatures(own, log.checkpoint(), policy)


def test_a_log_put_back_together_with_its_anchor_is_found_by_its_witness(
    tmp_path: Path, log: Log, identity: Identity, coordinator: Identity
) -> None:
    log.append_many(_events(5))
    log.close()
    shutil.copytree(tmp_path / "log", tmp_path / "backup")
    with Witness(tmp_path / "witness", coordinator) as witness:
        with Log.open(tmp_path / "log", identity) as newer:
            newer.append_many(_events(4))
            witness.cosign(newer.checkpoint(), log=identity.public, proof=[], at=1)
        with Log.open(tmp_path / "backup", identity) as restored:  # its own guard sees nothing
            with pytest.raises(EquivocationError, match="shows 5 entries after 9"):
                witness.cosign(restored.checkpoint(), log=identity.public, proof=[], at=2)
            restored.append_many([{"type": "y", "at": 1, "v": 1}] * 4)
            with pytest.raises(EquivocationError, match="two different heads of size 9") as caught:
                witness.cosign(restored.checkpoint(), log=identity.public, proof=[], at=3)

    assert caught.value.evidence(identity.public).kind == "two-heads"
