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
    sign_checkpoint,
    verify_checkpoint,
    verify_equivocation,
)
from consent.event import Event


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
