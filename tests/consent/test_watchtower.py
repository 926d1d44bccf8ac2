"""A witness judges heads, keeps what convicts, and does not speak with a memory put back."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consent import (
    Checkpoint,
    Convicted,
    Evidence,
    Identity,
    Log,
    LogError,
    NoteError,
    OtherSize,
    TrustPolicy,
    UnknownLog,
    Watchtower,
    sign_checkpoint,
    verify_consistency,
    verify_cosignatures,
)
from consent.submission import Submission
from consent.watchtower import SEEN_ELSEWHERE

NOW = 1_795_000_000_000
OWN, PEER = Identity.generate("own"), Identity.generate("peer")
POLICY = TrustPolicy(
    logs=(PEER.public, OWN.public), witnesses={"own": OWN.public}, groups={}, quorum="own"
)


@pytest.fixture
def tower(tmp_path: Path) -> Iterator[Watchtower]:
    with Log.create(tmp_path / "own" / "log", OWN) as log:
        log.append({"type": "test.first", "v": 1, "at": NOW})
        tower = Watchtower(tmp_path / "own", OWN, log, clock=lambda: NOW)
        yield tower
        tower.close()


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Log]:
    with Log.create(tmp_path / "peer", PEER) as log:
        grow(log, 5)
        yield log


def grow(log: Log, count: int, *, kind: str = "test.happened") -> None:
    log.append_many([{"type": kind, "v": 1, "at": NOW}] * count)


def shown(log: Log, old: int) -> Submission:
    proof = tuple(log.consistency_proof(old)) if old else ()
    return Submission(old_size=old, proof=proof, note=log.checkpoint())


def forked(log: Log) -> str:
    """Another head of the same size, signed by the same key."""
    return sign_checkpoint(Checkpoint(log.origin, log.tree_size, b"f" * 32), PEER)


def test_a_head_that_extends_the_known_one_is_cosigned(tower: Watchtower, peer: Log) -> None:
    for old in (0, 5, 5):
        note = peer.checkpoint() + tower.judge(shown(peer, old), POLICY)
        assert verify_cosignatures(note, POLICY).cosigners == {"own": NOW}
    grow(peer, 3)
    tower.judge(shown(peer, 5), POLICY)

    assert tower.known_sizes(POLICY) == {"peer": 8, "own": 0}
    newest = tower.newest("peer")
    assert newest is not None
    assert verify_cosignatures(newest, POLICY).checkpoint.tree_size == 8


def test_who_does_not_know_the_last_size_is_told(tower: Watchtower, peer: Log) -> None:
    tower.judge(shown(peer, 0), POLICY)
    grow(peer, 1)

    with pytest.raises(OtherSize, match="cosigned size 5 last; nothing was cosigned"):
        tower.judge(shown(peer, 2), POLICY)
    with pytest.raises(ValueError, match=r"old_size must be in \[0, 6\]"):
        tower.judge(Submission(old_size=7, proof=(), note=peer.checkpoint()), POLICY)


def test_logs_that_nobody_named_are_not_cosigned(tower: Watchtower, peer: Log) -> None:
    with pytest.raises(UnknownLog, match="no log is watched, and not 'peer'"):
        tower.judge(shown(peer, 0), None)
    with pytest.raises(UnknownLog, match="the log 'peer' is not watched; nothing was cosigned"):
        tower.judge(shown(peer, 0), TrustPolicy(logs=(), witnesses={}, groups={}, quorum="none"))


def test_two_heads_convict_a_log_for_good(tower: Watchtower, peer: Log, tmp_path: Path) -> None:
    tower.judge(shown(peer, 0), POLICY)
    with pytest.raises(OtherSize):
        tower.judge(Submission(old_size=0, proof=(), note=forked(peer)), POLICY)

    with pytest.raises(Convicted, match="'peer' signed two different heads of one size"):
        tower.judge(shown(peer, 5), POLICY)
    (path,) = (tmp_path / "own" / "evidence").glob("*.json")
    assert Evidence.parse(path.read_bytes()) == tower.convicted["peer"]
    tower.close()
    with Log.create(tmp_path / "spare", OWN) as log:
        again = Watchtower(tmp_path / "own", OWN, log, clock=lambda: NOW)
        assert list(again.convicted) == ["peer"]
        again.close()


def test_evidence_that_somebody_shows_convicts_once(tower: Watchtower, peer: Log) -> None:
    evidence = Evidence(log=PEER.public, known=peer.checkpoint(), shown=forked(peer))

    assert tower.convict(evidence)
    assert not tower.convict(evidence)
    with pytest.raises(UnknownLog, match="the log 'other' is not convicted; nothing was changed"):
        tower.release("other")
    tower.release("peer")
    assert not tower.convicted


def test_a_smaller_head_convicts_nobody(tower: Watchtower, peer: Log) -> None:
    old = peer.checkpoint()
    grow(peer, 1)
    with pytest.raises(NoteError, match="a smaller head after a larger one convicts nobody"):
        tower.convict(Evidence(log=PEER.public, known=peer.checkpoint(), shown=old))


def test_a_relay_gets_no_line_for_what_is_stale_foreign_or_forged(
    tower: Watchtower, peer: Log
) -> None:
    stale = shown(peer, 0).format()
    grow(peer, 2)
    tower.judge(shown(peer, 0), POLICY)
    stranger = Identity.generate("peer")
    forged = sign_checkpoint(Checkpoint("peer", 9, b"x" * 32), stranger)
    unproved = sign_checkpoint(Checkpoint("peer", 9, b"x" * 32), PEER)
    relayed = [
        stale,
        Submission(old_size=7, proof=(), note=forged).format(),
        Submission(old_size=7, proof=(bytes(32),), note=unproved).format(),
        Submission(old_size=0, proof=(), note=unproved).format(),
        "old 7\n\nnonsense",
    ]

    assert [each.line for each in tower.judge_relayed(relayed, POLICY)] == [""] * 5
    assert tower.size_of("peer") == 7
    assert not tower.convicted


def test_a_log_older_than_its_own_witness_signs_nothing(tmp_path: Path, peer: Log) -> None:
    folder = tmp_path / "own"
    with Log.create(folder / "log", OWN) as log:
        grow(log, 2)
        with_old = folder / "old"
        Watchtower(folder, OWN, log, clock=lambda: NOW).close()
    shutil.copytree(folder / "log", with_old)
    with Log.open(folder / "log", OWN) as log:
        grow(log, 1)
        tower = Watchtower(folder, OWN, log, clock=lambda: NOW)
        tower.cosign_own()
        tower.close()
    shutil.rmtree(folder / "log")
    with_old.rename(folder / "log")

    with Log.open(folder / "log", OWN) as log:
        tower = Watchtower(folder, OWN, log, clock=lambda: NOW)
        for act in (
            tower.cosign_own,
            tower.verify_not_put_back,
            lambda: tower.judge(shown(peer, 0), POLICY),
        ):
            with pytest.raises(
                LogError, match=r"holds 2 entries .* head of 3 .* its own witness has seen: it was"
            ):
                act()
        grow(log, 5, kind="test.other")  # Grown past it on another history.
        with pytest.raises(LogError, match="put back from an older copy"):
            tower.cosign_own()
        tower.close()


def test_only_the_own_signature_tells_of_a_head_seen_elsewhere(
    tower: Watchtower, tmp_path: Path
) -> None:
    with pytest.raises(NoteError):
        tower.remember_elsewhere(sign_checkpoint(Checkpoint("peer", 9, bytes(32)), PEER))
    assert not (tmp_path / "own" / SEEN_ELSEWHERE).exists()
    tower.verify_not_put_back()

    tower.remember_elsewhere(sign_checkpoint(Checkpoint("own", 9, bytes(32)), OWN))

    with pytest.raises(LogError, match="another witness has seen"):
        tower.cosign_own()


steps = st.lists(
    st.tuples(
        st.sampled_from(["main", "fork"]), st.integers(0, 3), st.integers(0, 12), st.booleans()
    ),
    max_size=8,
)


@given(steps)
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_two_cosigned_heads_ever_contradict_each_other(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int, bool]]
) -> None:
    """Whatever a relay makes of two histories of one key, with any old size it likes."""
    folder = tmp_path_factory.mktemp("histories")
    cosigned: list[tuple[str, int]] = []
    with (
        Log.create(folder / "main", PEER) as main,
        Log.create(folder / "fork", PEER) as fork,
        Log.create(folder / "own" / "log", OWN) as own,
    ):
        for log in (main, fork):
            grow(log, 2)
        grow(fork, 1, kind="test.other")
        tower = Watchtower(folder / "own", OWN, own, clock=lambda: NOW)
        logs = {"main": main, "fork": fork}
        for which, more, old, honest in steps:
            log = logs[which]
            if more:
                grow(log, more)
            claimed = tower.size_of("peer") if honest else old
            known = min(claimed, log.tree_size)
            (answer,) = tower.judge_relayed([shown(log, known).format()], POLICY)
            if answer.line:
                cosigned.append((which, log.tree_size))
        tower.close()
        for one, (which, size) in enumerate(cosigned):
            for other, later in cosigned[one:]:
                assert later >= size
                verify_consistency(
                    old_size=size,
                    new_size=later,
                    old_root=logs[which].root_at(size),
                    new_root=logs[other].root_at(later),
                    proof=logs[other].consistency_proof(size, later),
                )
