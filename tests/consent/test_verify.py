import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consent import (
    Checkpoint,
    Identity,
    JsonValue,
    LogError,
    NoteError,
    ProofError,
    TrustPolicy,
    cosign,
    format_canonical,
    sign_checkpoint,
    verify_published,
)
from consent.canonical import parse_canonical
from consent.merkle import Frontier, leaf_hash, tree_root
from consent.published import StoredTree, bundle_file, write_published
from consent.sealed import commitment_of
from consent.tiles import format_bundle, parse_bundle
from consent.verify import sealed_minutes

LOG = Identity.generate("brand-a.example/log")
COORDINATOR = Identity.generate("coordinator.example")
POLICY = TrustPolicy.parse(
    f"log {LOG.public.format()}\n"
    f"witness coordinator {COORDINATOR.public.format_witness()}\n"
    "quorum coordinator\n"
)
ROUND: dict[str, JsonValue] = {"run": "run-1", "round": 0, "attempt": 0}
SEALED: dict[str, JsonValue] = {"v": 1, "k": "sealed", "t": 0, "c": "0f" * 32}


def _event(kind: str, /, **fields: JsonValue) -> dict[str, JsonValue]:
    return {"type": kind, "at": 1000, "v": 1, **fields}


PERMIT = _event(
    "permit.issued",
    permit="p1",
    purpose="federated_training",
    use={**ROUND, "kind": "train", "recipients": []},
    state_seq=1,
    policy="sha256:00",
    mask_root="00",
    included="<64",
    excluded="<64",
)
CHARGE = _event(
    "budget.charged",
    **ROUND,
    purpose="federated_training",
    epsilon_spent="1.5",
    epsilon_budget="3",
    ledger_head="00",
)
RELEASE = _event("release.sent", **ROUND, permit="p1", kind="update", size_bytes=10, sha256="00")
REFUSAL = _event("message.refused", kind="train.round", reason="the plan is not known")
GOOD = [_event("node.created"), SEALED, PERMIT, CHARGE, RELEASE, _event("something.else")]


def _tree(leaves: list[bytes]) -> StoredTree:
    frontier, made = Frontier(), {}
    for leaf in leaves:
        for level, position, value in frontier.append(leaf_hash(leaf)):
            made[level, position] = value
    return StoredTree(
        leaves=lambda start, end: leaves[start:end],
        hashes=lambda level, start, end: [made[level, at] for at in range(start, end)],
    )


def _publish(folder: Path, leaves: list[bytes]) -> str:
    root = tree_root([leaf_hash(leaf) for leaf in leaves])
    note = sign_checkpoint(Checkpoint(LOG.name, len(leaves), root), LOG)
    note = cosign(note, COORDINATOR, at=7_000)
    shutil.rmtree(folder, ignore_errors=True)
    write_published(folder, tree=_tree(leaves), note=note)
    return note


def _leaves(events: list[dict[str, JsonValue]]) -> list[bytes]:
    return [format_canonical(event) for event in events]


def test_a_good_log_is_told_what_was_proved(tmp_path: Path) -> None:
    _publish(tmp_path, _leaves(GOOD))

    verdict = verify_published(tmp_path, POLICY)

    assert (verdict.origin, verdict.entries) == (LOG.name, 6)
    assert verdict.cosigners == {"coordinator": 7_000}
    assert verdict.root_hash == tree_root([leaf_hash(leaf) for leaf in _leaves(GOOD)]).hex()
    assert verdict.events == {
        "node.created": 1,
        "sealed": 1,
        "permit.issued": 1,
        "budget.charged": 1,
        "release.sent": 1,
        "something.else": 1,
    }


def test_an_empty_log_is_a_log(tmp_path: Path) -> None:
    _publish(tmp_path, [])

    assert verify_published(tmp_path, POLICY).entries == 0


FILES = ("entries.jsonl", "checkpoint", "tile/0/000.p/3", "tile/entries/000.p/3")


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_bit_is_refused(tmp_path: Path, name: str) -> None:
    _publish(tmp_path, _leaves(GOOD[:3]))
    data = (tmp_path / name).read_bytes()
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        (tmp_path / name).write_bytes(flipped)
        with pytest.raises((ProofError, NoteError, LogError)):
            verify_published(tmp_path, POLICY)


def _change(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, 1))


def test_a_changed_entry_is_named_when_the_hashes_still_hold(tmp_path: Path) -> None:
    _publish(tmp_path, _leaves(GOOD))
    _change(tmp_path / "tile/entries/000.p/6", b"else", b"elsE")
    with pytest.raises(ProofError, match="entry 5 is not the one whose hash was signed"):
        verify_published(tmp_path, POLICY)


def test_a_changed_byte_says_what_was_not_proved(tmp_path: Path) -> None:
    leaves = _leaves(GOOD)
    _publish(tmp_path, leaves)
    _change(tmp_path / "tile/entries/000.p/6", b"else", b"elsE")
    changed = leaves[-1].replace(b"else", b"elsE")
    _change(tmp_path / "tile/0/000.p/6", leaf_hash(leaves[-1]), leaf_hash(changed))
    with pytest.raises(
        ProofError, match=r"6 entries do not give the signed root .* cannot say whi"
    ):
        verify_published(tmp_path, POLICY)


def test_a_changed_hash_is_named(tmp_path: Path) -> None:
    _publish(tmp_path, _leaves(GOOD))
    _change(tmp_path / "tile/0/000.p/6", leaf_hash(_leaves(GOOD)[2]), bytes(32))
    with pytest.raises(ProofError, match="the hash of entry 2 in its tile is not that entry's"):
        verify_published(tmp_path, POLICY)


def test_a_changed_hash_of_a_higher_tile_is_named(tmp_path: Path) -> None:
    _publish(tmp_path, _leaves([_event("x", number=number) for number in range(600)]))
    (tmp_path / "tile/1/000.p/2").write_bytes(bytes(64))
    with pytest.raises(ProofError, match="the tile 'tile/1/000' does not hold the hashes of its"):
        verify_published(tmp_path, POLICY)


def test_a_truncated_log_says_how_much_is_missing(tmp_path: Path) -> None:
    leaves = _leaves([_event("x", number=number) for number in range(52)])
    _publish(tmp_path, leaves)
    (tmp_path / "tile/entries/000.p/52").write_bytes(format_bundle(leaves[:37]))
    with pytest.raises(LogError, match="an entry bundle must hold 52 entries, it holds 37"):
        verify_published(tmp_path, POLICY)


@pytest.mark.parametrize(("index", "width"), [(0, 256), (255, 256), (256, 44), (299, 44)])
def test_the_file_of_an_entry_is_found(tmp_path: Path, index: int, width: int) -> None:
    leaves = _leaves([_event("x", number=number) for number in range(300)])
    _publish(tmp_path, leaves)

    found = parse_bundle(bundle_file(tmp_path, index).read_bytes(), width=width)
    assert found[index % 256] == leaves[index]


@pytest.mark.parametrize("index", [-1, 6])
def test_an_entry_that_is_not_published_has_no_file(tmp_path: Path, index: int) -> None:
    _publish(tmp_path, _leaves(GOOD))
    with pytest.raises(ValueError, match=rf"index must be in \[0, 6\), got {index}"):
        bundle_file(tmp_path, index)


def test_a_bundle_cut_in_the_middle_is_named(tmp_path: Path) -> None:
    _publish(tmp_path, _leaves(GOOD))
    path = tmp_path / "tile/entries/000.p/6"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(LogError, match=r"ends in the middle of an entry \(tile/entries/000.p/6\)"):
        verify_published(tmp_path, POLICY)


def test_lines_after_the_checkpoint_are_refused(tmp_path: Path) -> None:
    _publish(tmp_path, _leaves(GOOD))
    with (tmp_path / "entries.jsonl").open("ab") as file:
        file.write(b"{}\n")
    with pytest.raises(LogError, match="holds more than the checkpoint signs: the rest is"):
        verify_published(tmp_path, POLICY)


@pytest.mark.parametrize(("at", "index"), [(0, 0), (-1, 5)])
def test_a_false_line_of_the_copy_is_named(tmp_path: Path, at: int, index: int) -> None:
    _publish(tmp_path, _leaves(GOOD))
    data = bytearray((tmp_path / "entries.jsonl").read_bytes())
    data[at] ^= 1
    (tmp_path / "entries.jsonl").write_bytes(data)
    with pytest.raises(LogError, match=f"not a true copy .* first at entry {index}") as caught:
        verify_published(tmp_path, POLICY)
    assert caught.value.index == index


@pytest.mark.parametrize("cut", [1, 5])
def test_a_copy_that_was_cut_short_says_how_much_is_missing(tmp_path: Path, cut: int) -> None:
    _publish(tmp_path, _leaves(GOOD))
    path = tmp_path / "entries.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(
        LogError, match="the log holds 5 entries but the checkpoint signs 6: it was cut short"
    ) as caught:
        verify_published(tmp_path, POLICY)
    assert caught.value.index == 5


def test_the_copy_for_people_may_be_left_out(tmp_path: Path) -> None:
    _publish(tmp_path, _leaves(GOOD))
    (tmp_path / "entries.jsonl").unlink()

    assert verify_published(tmp_path, POLICY).entries == 6


def test_a_copy_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    _publish(tmp_path, _leaves(GOOD))
    (tmp_path / "entries.jsonl").unlink()
    (tmp_path / "entries.jsonl").mkdir()
    with pytest.raises(LogError, match=r"has no readable file 'entries\.jsonl'"):
        verify_published(tmp_path, POLICY)


@pytest.mark.parametrize("name", ["checkpoint", "tile/0/000.p/6", "tile/entries/000.p/6"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    _publish(tmp_path, _leaves(GOOD))
    (tmp_path / name).unlink()
    with pytest.raises(LogError, match=f"has no readable file '{name}'"):
        verify_published(tmp_path, POLICY)


def _slow_minute(leaf: bytes) -> int | None:
    try:
        value = parse_canonical(leaf)
    except ValueError:
        return None
    if commitment_of(value) is None or not isinstance(value, dict):
        return None
    minute = value["t"]
    return minute if isinstance(minute, int) else None


LEAF = format_canonical(SEALED)


@pytest.mark.parametrize(
    "leaves",
    [[b"x" + LEAF], [LEAF + b"\n"], [LEAF + b"\n" + LEAF, b""], [b"\n" + LEAF], [b"x\n" + LEAF]],
)
def test_bytes_around_a_sealed_leaf_are_not_overlooked(leaves: list[bytes]) -> None:
    assert sealed_minutes(LEAF + b"\n", 1) == [0]
    assert sealed_minutes(b"".join(leaf + b"\n" for leaf in leaves), len(leaves)) is None


sealed_like = st.builds(
    lambda digits, minute, tail: b'{"c":"%s","k":"sealed","t":%s,"v":1}%s' % (digits, minute, tail),
    st.text("0123456789abcdef", min_size=64, max_size=64).map(str.encode)
    | st.text("0aFg", min_size=62, max_size=65).map(str.encode),
    st.from_regex(rb"\A-?[0-9]{1,17}\Z") | st.sampled_from([b"0", b"00", b"1.0", b"true", b"1e3"]),
    st.sampled_from([b"", b"", b"\n", b" ", b"\n{}"]),
)


@given(st.lists(sealed_like | st.binary(max_size=30), min_size=1, max_size=4))
def test_matching_bytes_says_of_a_sealed_leaf_what_parsing_says(leaves: list[bytes]) -> None:
    slow = [_slow_minute(leaf) for leaf in leaves]
    fast = sealed_minutes(b"".join(leaf + b"\n" for leaf in leaves), len(leaves))

    if fast is not None:
        assert fast == slow
    else:
        # What is left to the parser: no sealed leaf at all, or a minute of sixteen digits.
        assert any(minute is None or minute >= 10**15 for minute in slow)


@given(sealed_like, st.integers(0, 120), st.integers(0, 255))
def test_any_changed_byte_is_judged_alike(leaf: bytes, at: int, byte: int) -> None:
    changed = bytearray(leaf)
    changed[at % len(changed)] = byte
    slow = _slow_minute(bytes(changed))
    fast = sealed_minutes(bytes(changed) + b"\n", 1)

    assert fast == (None if slow is None or slow >= 10**15 else [slow])


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"\xff", "is not UTF-8 text"), (b"x" * 70_000, "must have at most 65536 bytes")],
)
def test_a_checkpoint_file_that_is_none_is_refused(
    tmp_path: Path, data: bytes, message: str
) -> None:
    _publish(tmp_path, _leaves(GOOD))
    (tmp_path / "checkpoint").write_bytes(data)
    with pytest.raises(LogError, match=message):
        verify_published(tmp_path, POLICY)


@pytest.mark.parametrize(
    ("forge", "message"),
    [
        (lambda note: note.rsplit("— ", 1)[0], "the quorum 'coordinator' is not met: .* nobody"),
        (lambda note: note.replace("brand-a", "brand-b"), "knows no log with the origin 'brand-b"),
        (lambda note: "".join(note.split("— ", 2)[::2]).replace("\n\n", "\n\n— "), "is not signed"),
        (lambda _note: "", "at least one signature line"),
    ],
)
def test_a_checkpoint_that_the_policy_does_not_believe(
    tmp_path: Path, forge: Callable[[str], str], message: str
) -> None:
    note = _publish(tmp_path, _leaves(GOOD))
    (tmp_path / "checkpoint").write_text(forge(note))
    with pytest.raises(NoteError, match=message):
        verify_published(tmp_path, POLICY)


def _without(event: dict[str, JsonValue], name: str) -> dict[str, JsonValue]:
    return {key: value for key, value in event.items() if key != name}


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        (b'{"v":1, "type":"x","at":1}', "entry 5 is not canonical: .* another spelling"),
        (b"", "entry 5 is not canonical: .* cannot be read as JSON"),
        (b"[]", "entry 5 must be an object"),
        (b"{}", "entry 5 must have a type, a time and version 1"),
        (b'{"at":1,"type":"x","v":true}', "entry 5 must have a type, a time and version 1"),
        (b'{"at":-1,"type":"x","v":1}', "entry 5 must have a type, a time and version 1"),
        (b'{"k":"sealed"}', "entry 5 is not a well-formed sealed leaf"),
    ],
)
def test_a_leaf_that_is_no_event_is_named(tmp_path: Path, leaf: bytes, message: str) -> None:
    _publish(tmp_path, [*_leaves(GOOD[:5]), leaf])
    with pytest.raises(LogError, match=message) as caught:
        verify_published(tmp_path, POLICY)
    assert caught.value.index == 5


@pytest.mark.parametrize(
    "event", [PERMIT, CHARGE, RELEASE, REFUSAL], ids=lambda event: event["type"]
)
def test_every_required_field_is_required(tmp_path: Path, event: dict[str, JsonValue]) -> None:
    for name in event.keys() - {"type", "at", "v"}:
        _publish(tmp_path, _leaves([*GOOD, _without(event, name)]))
        with pytest.raises(
            LogError, match=f"entry 6, {event['type']}, has no valid field '{name}'"
        ):
            verify_published(tmp_path, POLICY)


def test_a_refused_message_is_counted_like_any_event(tmp_path: Path) -> None:
    _publish(tmp_path, _leaves([*GOOD, REFUSAL]))

    assert verify_published(tmp_path, POLICY).events["message.refused"] == 1


@pytest.mark.parametrize("amount", ["", "-1", "1e3", "NaN", "1.", ".5", "１", 1])
def test_an_amount_must_be_a_plain_decimal(tmp_path: Path, amount: JsonValue) -> None:
    _publish(tmp_path, _leaves([{**CHARGE, "epsilon_spent": amount}]))
    with pytest.raises(LogError, match="has no valid field 'epsilon_spent'"):
        verify_published(tmp_path, POLICY)


BROKEN_RULES: list[tuple[list[dict[str, JsonValue]], str]] = [
    (
        [CHARGE, RELEASE],
        "entry 1: a release was sent without an earlier permit",
    ),
    (
        [CHARGE, {**PERMIT, "permit": "p2"}, RELEASE],
        "entry 2: a release was sent without an earlier permit",
    ),
    (
        [PERMIT, RELEASE, CHARGE],
        "entry 1: a release was sent without an earlier charge for run 'run-1', round 0, attempt 0",
    ),
    (
        [PERMIT, CHARGE, {**RELEASE, "attempt": 1}],
        "entry 2: a release was sent without an earlier charge .* attempt 1",
    ),
    *(
        (
            [{**PERMIT, "use": {**ROUND, name: other}}, CHARGE, RELEASE],
            "entry 2: a release was sent under a permit for another use than run 'run-1', round 0",
        )
        for name, other in (("run", "run-2"), ("round", 1), ("attempt", 1), ("attempt", None))
    ),
    (
        [{**PERMIT, "purpose": "aggregate_benchmark"}, CHARGE, RELEASE],
        "entry 2: a release was sent under a permit for aggregate_benchmark, but it was charged to",
    ),
    (
        [CHARGE, {**CHARGE, "epsilon_spent": "1.4999"}],
        "entry 1: epsilon spent for federated_training falls from 1.5 to 1.4999",
    ),
    (
        [{**CHARGE, "epsilon_spent": "3.0000000001"}],
        "entry 0: epsilon spent for federated_training is 3.0000000001, the budget is 3",
    ),
    (
        [{**SEALED, "t": 100}, _event("x")],
        "the time of entry 1 is more than five minutes before an earlier entry's",
    ),
    (
        [_event("x", at=6_060_000), {**SEALED, "t": 94}],
        "the time of entry 1 is more than five minutes before an earlier entry's",
    ),
]


@pytest.mark.parametrize(("events", "message"), BROKEN_RULES, ids=lambda value: str(value)[:30])
def test_a_broken_rule_is_named_with_its_entry(
    tmp_path: Path, events: list[dict[str, JsonValue]], message: str
) -> None:
    _publish(tmp_path, _leaves(events))
    with pytest.raises(LogError, match=message):
        verify_published(tmp_path, POLICY)


@pytest.mark.parametrize(
    "events",
    [
        [CHARGE, {**CHARGE, "epsilon_spent": "1.50"}, {**CHARGE, "epsilon_spent": "3.0"}],
        [{**CHARGE, "epsilon_spent": "2"}, {**CHARGE, "purpose": "aggregate_benchmark"}],
        [_event("x", at=6_060_000), {**SEALED, "t": 96}, _event("x", at=5_760_000)],
    ],
    ids=["spending grows", "purposes are apart", "a clock may be five minutes off"],
)
def test_what_the_rules_allow(tmp_path: Path, events: list[dict[str, JsonValue]]) -> None:
    _publish(tmp_path, _leaves(events))

    assert verify_published(tmp_path, POLICY).entries == len(events)
