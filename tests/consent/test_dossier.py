import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consent import Identity, Log, LogError, NoteError, ProofError, SubjectRef, TrustPolicy, cosign
from consent.canonical import format_canonical
from consent.dossier import DossierError, ProvedDossier, build_dossier, verify_dossier
from consent.event import Event
from consent.statetree import append_state_root

ANNA, BEN, NOBODY = (SubjectRef(letter * 64) for letter in "abc")
DAY = 24 * 60 * 60 * 1000
Document = dict[str, Any]


def _event(at: int, **more: str) -> Event:
    return {"type": "consent.recorded", "at": at, "v": 1, **more}


def _cosign(log: Log, coordinator: Identity, policy: TrustPolicy) -> None:
    log.accept_cosigned(cosign(log.checkpoint(), coordinator, at=9_000), policy)


@pytest.fixture
def dossier(log: Log, coordinator: Identity, policy: TrustPolicy) -> bytes:
    """Four events of Anna before the state root and one after, among others."""
    for number in range(4):
        log.append_sealed(ANNA, _event(1000 * number, said=f"anna {number}"))
        log.append_sealed(BEN, _event(1000 * number))
        log.append(_event(1000 * number))
    append_state_root(log, at=DAY)
    log.append_sealed(ANNA, _event(DAY + 1, said="anna 4"))
    _cosign(log, coordinator, policy)
    return build_dossier(log, ANNA, at=DAY + 2)


def _changed(dossier: bytes, change: Callable[[Document], object]) -> bytes:
    document = json.loads(dossier)
    change(document)
    return format_canonical(document)


def test_a_dossier_proves_everything_up_to_the_state_root(
    dossier: bytes, policy: TrustPolicy
) -> None:
    proved = verify_dossier(dossier, policy)

    assert isinstance(proved, ProvedDossier)
    assert [event["said"] for event in proved.events] == [f"anna {n}" for n in range(5)]
    assert (proved.origin, proved.subject) == ("brand-a.example/log", ANNA)
    assert (proved.complete, proved.complete_until) == (4, DAY)
    assert proved.cosigners == {"coordinator": 9_000}


def test_a_dossier_shows_nothing_of_other_people(log: Log, dossier: bytes) -> None:
    assert BEN.encode() not in dossier
    assert log.opening(1).commitment.hex().encode() not in dossier


def test_the_absence_of_a_person_is_proved(log: Log, dossier: bytes, policy: TrustPolicy) -> None:
    for letter in "0123456789cdef":
        proved = verify_dossier(build_dossier(log, SubjectRef(letter * 64), at=DAY), policy)
        assert (proved.events, proved.complete) == ((), 0)


def test_nobody_is_in_an_empty_log(log: Log, coordinator: Identity, policy: TrustPolicy) -> None:
    append_state_root(log, at=1)
    _cosign(log, coordinator, policy)

    assert verify_dossier(build_dossier(log, NOBODY, at=1), policy).events == ()


def _drop(number: int) -> Callable[[Document], object]:
    return lambda document: document["events"].pop(number)


def _swap(document: Document) -> None:
    events = document["events"]
    events[1], events[2] = events[2], events[1]


def _swap_places(document: Document) -> None:
    _swap(document)
    first, second = document["events"][1:3]
    first["index"], second["index"] = second["index"], first["index"]


def _alter(document: Document) -> None:
    event = document["events"][1]
    event["content"] = event["content"].replace("anna 1", "anna 9")


CHANGES: list[tuple[Callable[[Document], object], str]] = [
    (_drop(0), "event 1 is missing: the chain goes on with event 2"),
    (_drop(2), "event 3 is missing: the chain goes on with event 4"),
    (_drop(4), ""),
    (lambda d: d.update(events=d["events"][:3]), "the 3 events .* are not all: the state root"),
    (lambda d: d.update(events=[]), "the 0 events .* are not all: the neighbours do not show"),
    (_swap, "event 2 is missing: the chain goes on with event 3"),
    (lambda d: d["events"].insert(1, d["events"][0]), "event 2 is not in the order of the log"),
    (_swap_places, "event 2 is not the one that was logged as entry 3: the inclusion proof"),
    (_alter, "event 2 is not the one that was logged as entry 3: the inclusion proof of entry 3"),
    (lambda d: d["events"][1].update(salt="00" * 32), "event 2 is not the one that was logged"),
    (lambda d: d["events"][1].update(content="{}"), "event 2 cannot be read: .* neither a chained"),
    (lambda d: d["events"][1].update(content="?"), "event 2 cannot be read: .* not canonical"),
    (lambda d: d.update(subject=BEN), "event 1 is about another subject"),
    (lambda d: d.update(at=DAY + DAY + 300_001), "the state root is older than a day"),
    (lambda d: d.update(at=DAY - 300_001), "the state root is dated after the dossier"),
    (lambda d: d["root"].update(event={"type": "x"}), "must hold the event of its state root"),
    (lambda d: d["root"]["event"].update(root="00" * 32), "inclusion proof of entry 12 leads to"),
    (lambda d: d["state"].update(leaf_key="00" * 32), "the 4 events .* not say that event 4 is"),
    (lambda d: d["state"].update(pseudonym_key="00" * 32), "pseudonyms .* made with another key"),
    (lambda d: d["state"].update(leaves=[]), "the 4 events .* not say that event 4 is"),
    (lambda d: d["state"]["leaves"][0].update(leaf="00" * 64), "inclusion proof of entry"),
    (lambda d: d.update(type="x"), "the document must be a dossier of version 1"),
    (lambda d: d.update(v=True), "a part of the dossier must be a count"),
    (lambda d: d.update(v=2), "the document must be a dossier of version 1"),
    (lambda d: d.update(more=1), "must have the fields type, v, at, subject, note, root, state"),
    (lambda d: d.update(events={}), "a part of the dossier must be a list"),
    (lambda d: d.update(subject=1), "a part of the dossier must be text"),
    (lambda d: d["root"].update(proof=["00"]), "a part of the dossier must be 32 bytes in hex"),
    (lambda d: d.update(note=d["note"].replace("brand-a", "brand-b")), "knows no log with the"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES, ids=lambda value: str(value)[:40])
def test_a_changed_dossier_is_refused(
    dossier: bytes, policy: TrustPolicy, change: Callable[[Document], object], message: str
) -> None:
    changed = _changed(dossier, change)
    if not message:
        # Events after the state root are proved to be all of them by the next root only.
        assert verify_dossier(changed, policy).complete == 4
        return
    with pytest.raises((DossierError, ProofError, NoteError), match=message):
        verify_dossier(changed, policy)


def test_every_flipped_bit_of_a_dossier_is_refused_or_says_the_same(
    dossier: bytes, policy: TrustPolicy
) -> None:
    proved = verify_dossier(dossier, policy)
    for bit in range(0, 8 * len(dossier), 7):
        flipped = bytearray(dossier)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            again = verify_dossier(bytes(flipped), policy)
        except (DossierError, ProofError, NoteError):
            continue
        # Only the time of the dossier itself is nobody's signature; a few digits of it may change.
        assert again == proved


def test_a_late_event_is_noticed(log: Log, coordinator: Identity, policy: TrustPolicy) -> None:
    log.append_sealed(ANNA, _event(DAY - 600_000))
    log.append({"type": "x", "at": DAY - 600_000, "v": 1})
    append_state_root(log, at=DAY - 290_000)
    log.append_sealed(ANNA, _event(DAY - 590_000))
    _cosign(log, coordinator, policy)
    assert verify_dossier(build_dossier(log, ANNA, at=DAY), policy).complete == 1


def test_an_event_that_was_held_back_is_late(
    tmp_path: Path,
    identity: Identity,
    coordinator: Identity,
    policy: TrustPolicy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # An honest log refuses to go back in time, so this one is made to.
    monkeypatch.setattr("consent.entries.CLOCK_TOLERANCE_MS", 10 * DAY)
    with Log.create(tmp_path / "log2", identity) as log:
        append_state_root(log, at=DAY)
        log.append_sealed(ANNA, _event(5))
        _cosign(log, coordinator, policy)
        dossier = build_dossier(log, ANNA, at=DAY)
    with pytest.raises(DossierError, match=r"event 1 happened at 5 but was logged after .* late"):
        verify_dossier(dossier, policy)


def test_a_state_root_that_covers_what_comes_after_it_is_refused(
    log: Log, coordinator: Identity, policy: TrustPolicy, dossier: bytes
) -> None:
    root = json.loads(dossier)["root"]["event"]
    index = log.append({**root, "log_size": 99})
    _cosign(log, coordinator, policy)
    document = json.loads(build_dossier(log, ANNA, at=DAY))
    document["root"] = {
        "index": index,
        "event": log.entry(index).value,
        "proof": [value.hex() for value in log.inclusion_proof(index)],
    }
    with pytest.raises(DossierError, match="claims to cover entries that were logged after it"):
        verify_dossier(format_canonical(document), policy)


def test_a_dossier_waits_for_a_state_root(log: Log, policy: TrustPolicy) -> None:
    log.append_sealed(ANNA, _event(1))
    with pytest.raises(LogError, match="no state root is covered by the log's newest note"):
        build_dossier(log, ANNA, at=1)


def test_a_tree_that_is_not_kept_gives_no_dossier(log: Log, dossier: bytes) -> None:
    for number in range(7):
        append_state_root(log, at=2 * DAY + number)
    with pytest.raises(LogError, match="no state root is covered by the log's newest note"):
        build_dossier(log, ANNA, at=3 * DAY)


def test_an_erased_person_has_no_events_left(
    log: Log, dossier: bytes, coordinator: Identity, policy: TrustPolicy
) -> None:
    log.erase_subject(ANNA)
    append_state_root(log, at=DAY + 5)
    _cosign(log, coordinator, policy)

    assert verify_dossier(build_dossier(log, ANNA, at=DAY + 6), policy).events == ()
    assert verify_dossier(dossier, policy).complete == 4


@given(st.binary(max_size=100))
def test_garbage_raises_only_a_dossier_error(data: bytes) -> None:
    with pytest.raises(DossierError, match=r"must be canonical JSON|must have the fields"):
        verify_dossier(data, TrustPolicy.parse("quorum none\n"))


def test_a_dossier_has_a_longest_length() -> None:
    with pytest.raises(DossierError, match="a dossier must have at most 67108864 bytes"):
        verify_dossier(bytes((1 << 26) + 1), TrustPolicy.parse("quorum none\n"))
