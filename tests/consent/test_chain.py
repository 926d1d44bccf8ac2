import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pysqlite3 import dbapi2 as sqlite3

from consent import Identity, Log, LogError, SubjectRef, TrustPolicy, cosign
from consent.canonical import format_canonical, parse_canonical
from consent.chain import ChainHead, Link, format_link, parse_link
from consent.dossier import DossierError, build_dossier, verify_dossier
from consent.event import Event
from consent.sealed import SubjectKeys, commitment_of, seal, sealed_leaf
from consent.statetree import append_state_root

ANNA, BEN = SubjectRef("a" * 64), SubjectRef("b" * 64)


def _event(at: int) -> Event:
    return {"type": "x", "at": at, "v": 1}


def test_the_log_chains_each_subjects_events(log: Log) -> None:
    indices = [log.append_sealed(ref, _event(at)) for at, ref in enumerate([ANNA, BEN, ANNA, ANNA])]

    links = [log.opening(index).link for index in indices]
    assert [link.subject_seq for link in links] == [1, 1, 2, 3]
    assert [link.subject for link in links] == [ANNA, BEN, ANNA, ANNA]
    commitments = [log.opening(index).commitment for index in indices]
    assert [link.prev for link in links] == [None, None, commitments[0], commitments[2]]
    assert [log.opening(index).leaf for index in indices] == [e.leaf for e in log.entries()]


def test_a_chain_goes_on_in_a_reopened_log(
    log: Log, tmp_path: Path, identity: Identity, store: str | None
) -> None:
    log.append_sealed(ANNA, _event(1))
    log.close()
    with Log.open(tmp_path / "log", identity, store=store) as reopened:
        assert reopened.opening(reopened.append_sealed(ANNA, _event(2))).link.subject_seq == 2


def test_a_transaction_that_failed_leaves_no_gap_in_a_chain(log: Log) -> None:
    def fail() -> None:
        with log.transaction() as transaction:
            transaction.append_sealed(ANNA, _event(1))
            raise RuntimeError

    log.append_sealed(ANNA, _event(1))
    with pytest.raises(RuntimeError):
        fail()

    assert log.opening(log.append_sealed(ANNA, _event(2))).link.subject_seq == 2


def test_an_erased_subject_begins_a_new_chain(log: Log) -> None:
    log.append_sealed(ANNA, _event(1))
    log.erase_subject(ANNA)

    assert log.opening(log.append_sealed(ANNA, _event(2))).link.prev is None


def test_an_open_entry_has_no_opening(log: Log) -> None:
    log.append(_event(1))
    with pytest.raises(LogError, match="entry 0 is not sealed"):
        log.opening(0)


def test_an_event_that_is_too_deep_to_be_read_back_is_not_sealed(log: Log) -> None:
    deep: list[object] = []
    for _ in range(31):
        deep = [deep]
    event = {**_event(1), "deep": deep}
    with pytest.raises(ValueError, match="nested at most 32 deep"):
        log.append_sealed(ANNA, event)  # type: ignore[arg-type]
    assert log.tree_size == 0


events = st.dictionaries(st.text("abc", min_size=1), st.integers(0, 99), max_size=3).map(
    lambda more: {**more, "type": "x", "at": 1, "v": 1}
)


@given(events, st.integers(1, 2**52), st.binary(min_size=32, max_size=32))
def test_a_link_reads_back_as_it_was(event: Event, seq: int, commitment: bytes) -> None:
    content = format_link(event, subject="s", before=ChainHead(seq, commitment))

    assert parse_link(content) == Link(dict(event), "s", seq + 1, commitment)
    assert parse_link(format_link(event, subject="s", before=None)).prev is None


def test_content_of_version_one_is_the_event_itself() -> None:
    assert parse_link(format_canonical(dict(_event(1)))) == Link(dict(_event(1)), None, None, None)


GOOD = {"event": {"at": 1, "type": "x", "v": 1}, "prev": None, "subject": "s", "subject_seq": 1}


@pytest.mark.parametrize(
    "value",
    [
        {**GOOD, "v": 3},
        {**GOOD, "v": 2, "more": 1},
        {**GOOD, "v": 2, "subject_seq": 2},
        {**GOOD, "v": 2, "subject_seq": True},
        {**GOOD, "v": 2, "prev": "00" * 32},
        {**GOOD, "v": 2, "subject_seq": 2, "prev": "00"},
        {**GOOD, "v": 2, "event": {"at": True}},
        {"type": "x", "at": -1, "v": 1},
        {"type": "x", "at": 1, "v": True},
        [],
    ],
)
def test_content_that_is_neither_version_is_refused(value: object) -> None:
    with pytest.raises(LogError, match="is neither a chained nor a bare event"):
        parse_link(format_canonical(value))  # type: ignore[arg-type]


@given(st.binary(max_size=60))
def test_garbled_content_raises_only_a_log_error(data: bytes) -> None:
    with pytest.raises(LogError):
        parse_link(data)


def _age(folder: Path, contents: dict[int, Event]) -> None:
    """Make a log what the first version of this project wrote: no chains, content bare."""
    keys = SubjectKeys(folder / "keys.sqlite")
    from consent.merkle import Frontier, leaf_hash

    connection = sqlite3.connect(folder / "log.sqlite", isolation_level=None)
    for trigger in ("entry_no_update", "entry_no_delete", "node_no_delete", "node_no_update"):
        connection.execute(f"DROP TRIGGER {trigger}")
    for index, event in contents.items():
        ref = connection.execute("SELECT subject_ref FROM sealed WHERE idx = ?", (index,))
        content = format_canonical(dict(event))
        commitment, ciphertext = seal(content, key=keys.key(ref.fetchone()[0]))
        at = event["at"]
        assert isinstance(at, int)
        connection.execute(
            "UPDATE entry SET leaf = ? WHERE idx = ?", (sealed_leaf(commitment, at=at), index)
        )
        connection.execute("UPDATE sealed SET content = ? WHERE idx = ?", (ciphertext, index))
    connection.execute("DELETE FROM node")
    frontier = Frontier()
    for (leaf,) in connection.execute("SELECT leaf FROM entry ORDER BY idx").fetchall():
        connection.executemany(
            "INSERT INTO node VALUES (?, ?, ?)", frontier.append(leaf_hash(leaf))
        )
    for ref, leaf in connection.execute(
        "SELECT subject_ref, leaf FROM sealed JOIN entry USING (idx) ORDER BY idx"
    ).fetchall():
        connection.execute(
            "UPDATE subject_head SET commitment = ? WHERE subject_ref = ?",
            (commitment_of(parse_canonical(leaf)), ref),
        )
    connection.close()
    keys.close()
    from consent.durable import Anchor, Head

    (folder / "anchor").unlink()
    Anchor(folder / "anchor").create(Head(frontier.size, frontier.root()))


def test_a_log_from_before_chains_is_read_and_goes_on(
    plain_log: Log, tmp_path: Path, identity: Identity, coordinator: Identity, policy: TrustPolicy
) -> None:
    log, old = plain_log, {0: _event(1), 2: _event(2)}
    log.append_sealed(ANNA, old[0])
    log.append_sealed(BEN, _event(1))
    log.append_sealed(ANNA, old[2])
    log.close()
    _age(tmp_path / "log", {**old, 1: _event(1)})

    with Log.open(tmp_path / "log", identity) as upgraded:
        assert upgraded.opened(0) == old[0]
        assert upgraded.opening(2).link.subject_seq is None
        index = upgraded.append_sealed(ANNA, _event(3))
        assert upgraded.opening(index).link.subject_seq == 3
        assert upgraded.opening(index).link.prev == upgraded.opening(2).commitment
        append_state_root(upgraded, at=9)
        upgraded.accept_cosigned(cosign(upgraded.checkpoint(), coordinator, at=9), policy)
        dossier = build_dossier(upgraded, ANNA, at=9)
    Log.open(tmp_path / "log", identity).close()

    assert len(verify_dossier(dossier, policy).events) == 3
    bare = build_with(dossier, lambda events: events[:2])
    with pytest.raises(DossierError, match=r"the 2 events that are shown .* are not all"):
        verify_dossier(bare, policy)


def build_with(dossier: bytes, change: object) -> bytes:
    import json

    document = json.loads(dossier)
    document["events"] = change(document["events"])  # type: ignore[operator]
    return format_canonical(document)


def test_a_bare_event_after_a_chained_one_is_refused(
    plain_log: Log, tmp_path: Path, identity: Identity, coordinator: Identity, policy: TrustPolicy
) -> None:
    log = plain_log
    for number in range(3):
        log.append_sealed(ANNA, _event(number))
    log.close()
    shutil.copytree(tmp_path / "log", tmp_path / "aged")
    for folder, contents, message in (
        (tmp_path / "log", {2: _event(2)}, "event 3 has no number although an earlier one has"),
        (
            tmp_path / "aged",
            {2: {**_event(2), "subject": BEN}},
            "event 3 is about another subject",
        ),
    ):
        _age(folder, contents)
        with Log.open(folder, identity) as aged:
            append_state_root(aged, at=9)
            aged.accept_cosigned(cosign(aged.checkpoint(), coordinator, at=9), policy)
            dossier = build_dossier(aged, ANNA, at=9)
        with pytest.raises(DossierError, match=message):
            verify_dossier(dossier, policy)


def test_an_event_of_another_chain_does_not_fit(
    log: Log, coordinator: Identity, policy: TrustPolicy
) -> None:
    log.append_sealed(ANNA, _event(0))
    log.erase_subject(ANNA)
    with log.transaction() as transaction:  # a log that makes a second event number two
        transaction.append_sealed(ANNA, _event(1))
        first = transaction.connection.execute("SELECT * FROM subject_head").fetchone()
        transaction.append_sealed(ANNA, _event(2))
        transaction.connection.execute(
            "UPDATE subject_head SET subject_seq = ?, commitment = ?", tuple(first)[1:]
        )
        transaction.append_sealed(ANNA, _event(3))
    append_state_root(log, at=9)
    log.accept_cosigned(cosign(log.checkpoint(), coordinator, at=9), policy)
    with pytest.raises(DossierError, match="event 3 is missing: the chain goes on with event 2"):
        verify_dossier(build_dossier(log, ANNA, at=9), policy)


def test_a_second_event_that_names_another_first_one_does_not_follow(
    log: Log, coordinator: Identity, policy: TrustPolicy
) -> None:
    with log.transaction() as transaction:
        transaction.append_sealed(ANNA, _event(1))
        transaction.connection.execute("UPDATE subject_head SET commitment = ?", (bytes(32),))
        transaction.append_sealed(ANNA, _event(2))
    append_state_root(log, at=9)
    log.accept_cosigned(cosign(log.checkpoint(), coordinator, at=9), policy)
    with pytest.raises(DossierError, match="event 2 does not follow from the one that is shown"):
        verify_dossier(build_dossier(log, ANNA, at=9), policy)
