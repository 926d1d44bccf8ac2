import hashlib
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consent.canonical import JsonValue
from consent.sealed import (
    SealError,
    SubjectKeys,
    SubjectRef,
    commitment_of,
    connect,
    seal,
    unseal,
    verify_commitment,
)

KEY = bytes(range(32))


@given(st.binary(max_size=200))
def test_what_is_sealed_opens_and_fits_its_commitment(event: bytes) -> None:
    commitment, ciphertext = seal(event, key=KEY)

    salt, opened = unseal(ciphertext, key=KEY, commitment=commitment)
    assert opened == event
    assert hashlib.sha256(salt + event).digest() == commitment


def test_every_flipped_bit_is_refused() -> None:
    commitment, ciphertext = seal(b"event", key=KEY)
    for bit in range(8 * len(ciphertext)):
        flipped = bytearray(ciphertext)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(SealError, match="does not open with the key of its subject"):
            unseal(bytes(flipped), key=KEY, commitment=commitment)


def test_content_moved_to_another_entry_is_refused() -> None:
    (_, first), (other, _) = seal(b"event", key=KEY), seal(b"event", key=KEY)
    with pytest.raises(SealError):
        unseal(first, key=KEY, commitment=other)
    with pytest.raises(SealError):
        unseal(b"short", key=KEY, commitment=other)


def test_an_opened_event_must_be_the_one_committed_to() -> None:
    with pytest.raises(SealError, match="is not the one its leaf commits to"):
        verify_commitment(bytes(32), salt=bytes(32), event=b"event")


@pytest.mark.parametrize(
    "leaf",
    [
        None,
        {"v": 1, "k": "sealed", "t": 1},
        {"v": 1, "k": "sealed", "t": 1, "c": "00"},
        {"v": 1, "k": "sealed", "t": 1, "c": "G" * 64},
        {"v": 1, "k": "sealed", "t": 1, "c": "A" * 64},
        {"v": 1, "k": "sealed", "t": -1, "c": "a" * 64},
        {"v": 1, "k": "sealed", "t": True, "c": "a" * 64},
        {"v": True, "k": "sealed", "t": 1, "c": "a" * 64},
        {"v": 1, "k": "sealed", "t": 1, "c": "a" * 64, "name": "Anna"},
    ],
)
def test_only_a_whole_sealed_leaf_has_a_commitment(leaf: JsonValue) -> None:
    assert commitment_of(leaf) is None


def test_a_destroyed_key_is_gone_from_the_files(tmp_path: Path) -> None:
    keys = SubjectKeys(tmp_path / "keys")
    key = keys.make_key(SubjectRef("a"))
    keys.commit()
    (wrapped,) = keys._connection.execute("SELECT wrapped FROM subject_key").fetchone()
    assert any(wrapped in path.read_bytes() for path in tmp_path.iterdir())
    assert not any(key in path.read_bytes() for path in tmp_path.iterdir())

    keys.destroy(SubjectRef("a"))

    assert not any(wrapped in path.read_bytes() for path in tmp_path.iterdir())
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o600


def test_a_database_is_durable_at_each_commit_and_forgets_what_is_deleted(tmp_path: Path) -> None:
    connection = connect(tmp_path / "database")
    names = ("journal_mode", "synchronous", "foreign_keys", "secure_delete")
    values = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names]
    connection.close()

    assert values == ["wal", 2, 1, 1]  # 2 is FULL
