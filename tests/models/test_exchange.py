import dataclasses
import hashlib
import pickle
import zipfile
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from models.exchange import (
    Delivery,
    Growth,
    ReadyRequest,
    Refusal,
    Reply,
    RoundRequest,
    Testimony,
    WireError,
    Witnessed,
    WitnessRequest,
    parse_reply,
    size_bytes,
)

Message = ReadyRequest | RoundRequest | Delivery | WitnessRequest | Reply | Refusal

WITNESSED = Witnessed(tree_size=7, note="brand/log\n7\nroot\n\n— brand sig\n", sizes=(3, 5))
ROUND = RoundRequest(
    plan_digest="ab" * 32,
    round=2,
    attempt=1,
    cohort=("birch", "cedar", "优衣集团"),
    announced={"weights": np.array([0.5, -1.0]), "directions": np.eye(2)},
    witnessed=WITNESSED,
)
MESSAGES: list[Message] = [
    ReadyRequest(signed_plan=b'{"plan":"e30="}', witnessed=WITNESSED),
    ROUND,
    Delivery(plan_digest="cd" * 32, parameters=ROUND.announced, witnessed=WITNESSED),
    WitnessRequest(
        witnessed=Witnessed(tree_size=0, note=""), relayed=("old 0\n\nhead\n", "old 3\nAA==\n\nx\n")
    ),
    Reply(
        name="优衣集团",
        checkpoint="head\n",
        proof=(b"\x00" * 32, b"\xff" * 32),
        masked=b"masked",
        signature=b"s" * 64,
        growth=(
            Growth(old_size=3, proof=(b"\x01" * 32, b"\x02" * 32)),
            Growth(old_size=5, proof=()),
        ),
        testimony=Testimony(
            known={"birch": 7, "优衣集团": 0},
            cosigned=(("birch", "— 优衣集团 line\n"),),
            evidence=(b"{}",),
        ),
    ),
    Reply(name="birch", checkpoint="head\n", proof=()),
    Refusal(name="cedar", reason="the plan has expired"),
]
READERS: dict[type, Callable[[RecordDict], Message]] = {
    ReadyRequest: ReadyRequest.from_record,
    RoundRequest: RoundRequest.from_record,
    Delivery: Delivery.from_record,
    WitnessRequest: WitnessRequest.from_record,
    Reply: parse_reply,
    Refusal: parse_reply,
}
# By the type that a field has: what it must not be.
WRONG: dict[type, list[Any]] = {
    str: [True, 1, 1.5, b"bytes", ["text"]],
    bytes: [True, 1, 1.5, "text", [b"bytes"]],
    int: [True, -1, 1.5, "1", b"1", [1]],
    list: [True, 1, 1.5, "text", b"bytes", [1], [1.5], [True]],
}

NUMBERS = {"witnessed_sizes", "growth_sizes", "known_sizes"}

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
counts = st.integers(0, 2**63 - 1)
heads = st.builds(
    Witnessed, tree_size=counts, note=texts, sizes=st.lists(counts, max_size=3).map(tuple)
)
growths = st.builds(
    Growth,
    old_size=counts,
    proof=st.lists(st.binary(min_size=32, max_size=32), max_size=2).map(tuple),
)
testimonies = st.builds(
    Testimony,
    known=st.dictionaries(texts, counts, max_size=3),
    cosigned=st.lists(st.tuples(texts, texts), max_size=2).map(tuple),
    evidence=st.lists(st.binary(), max_size=2).map(tuple),
)
tables = st.dictionaries(
    st.text(st.characters(max_codepoint=127), min_size=1, max_size=8),
    arrays.arrays(np.float64, arrays.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=4)),
    max_size=3,
)
messages = st.one_of(
    st.builds(ReadyRequest, signed_plan=st.binary(), witnessed=heads),
    st.builds(
        RoundRequest,
        plan_digest=texts,
        round=counts,
        attempt=counts,
        cohort=st.lists(texts, max_size=5).map(tuple),
        announced=tables,
        witnessed=heads,
    ),
    st.builds(Delivery, plan_digest=texts, parameters=tables, witnessed=heads),
    st.builds(WitnessRequest, witnessed=heads, relayed=st.lists(texts, max_size=2).map(tuple)),
    st.builds(
        Reply,
        name=texts,
        checkpoint=texts,
        proof=st.lists(st.binary(), max_size=3).map(tuple),
        masked=st.binary(),
        signature=st.binary(),
        growth=st.lists(growths, max_size=2).map(tuple),
        testimony=testimonies,
    ),
    st.builds(Refusal, name=texts, reason=texts),
)


def over_the_network(record: RecordDict) -> RecordDict:
    """To the bytes that Flower sends and back, by Flower's own code."""
    data = recorddict_to_proto(record).SerializeToString()
    return recorddict_from_proto(ProtoRecordDict.FromString(data))


def as_inflatable(record: RecordDict) -> RecordDict:
    """Through the content-addressed objects in which Flower 1.41 stores messages."""
    records = {}
    for name, part in record.items():
        if isinstance(part, ArrayRecord):
            children = {array.object_id: _inflated(array) for array in part.values()}
            records[name] = ArrayRecord.inflate(part.deflate(), children)
        else:
            records[name] = type(part).inflate(part.deflate())
    objects = {part.object_id: part for part in records.values()}
    return RecordDict.inflate(record.deflate(), objects)


def _inflated(array: Array) -> Array:
    return Array.inflate(array.deflate(), array.children)


def same(one: object, other: object) -> bool:
    """Equal in every field; arrays bit by bit, so that NaN equals NaN and -0.0 not 0.0."""
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return (one.shape, one.dtype, one.tobytes()) == (other.shape, other.dtype, other.tobytes())
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if dataclasses.is_dataclass(one):
        fields = [field.name for field in dataclasses.fields(one)]
        return all(same(getattr(one, name), getattr(other, name)) for name in fields)
    return one == other


def read(message: Message, record: RecordDict) -> Message:
    return READERS[type(message)](record)


def fields_of(record: RecordDict) -> dict[str, Any]:
    return dict(record["fields"])


def with_fields(record: RecordDict, fields: dict[str, Any]) -> RecordDict:
    return RecordDict({**record, "fields": ConfigRecord(fields)})


@pytest.mark.parametrize("carry", [lambda record: record, over_the_network, as_inflatable])
@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_every_message_arrives_as_it_was_sent(
    message: Message, carry: Callable[[RecordDict], RecordDict]
) -> None:
    assert same(read(message, carry(message.to_record())), message)


@given(messages)
@settings(max_examples=150)
def test_any_message_arrives_as_it_was_sent(message: Message) -> None:
    arrived = read(message, over_the_network(message.to_record()))

    assert same(arrived, message)


def test_arrays_in_any_memory_layout_arrive_and_have_one_digest() -> None:
    table = np.arange(6.0).reshape(2, 3)
    layouts = [table, np.asfortranarray(table), np.arange(12.0)[::2].reshape(2, 3) / 2]
    requests = [dataclasses.replace(ROUND, announced={"t": layout}) for layout in layouts]

    arrived = [RoundRequest.from_record(over_the_network(one.to_record())) for one in requests]

    assert all(np.array_equal(one.announced["t"], table) for one in arrived)
    assert {one.digest for one in [*requests, *arrived]} == {requests[0].digest}


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_without_one_of_its_fields_is_dropped(message: Message) -> None:
    record = message.to_record()
    for missing in fields_of(record):
        if missing == "refused":
            continue
        rest = {name: value for name, value in fields_of(record).items() if name != missing}

        with pytest.raises(WireError, match=rf"^field {missing} must be .* was dropped$"):
            read(message, with_fields(record, rest))


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_field_of_another_type_is_dropped(message: Message) -> None:
    record = message.to_record()
    for name, good in fields_of(record).items():
        for wrong in WRONG[type(good)]:
            if wrong == [1] and name in NUMBERS:
                continue  # A list of one number is of the right type there.
            with pytest.raises(WireError, match=rf"^field {name} must be .* was dropped$"):
                read(message, with_fields(record, {**fields_of(record), name: wrong}))


def test_lists_of_another_type_are_dropped() -> None:
    request, reply = ROUND.to_record(), MESSAGES[4].to_record()

    with pytest.raises(WireError, match="field cohort must be a list of str; it was dropped"):
        RoundRequest.from_record(with_fields(request, {**fields_of(request), "cohort": [b"a"]}))
    with pytest.raises(WireError, match="field proof must be a list of bytes; it was dropped"):
        parse_reply(with_fields(reply, {**fields_of(reply), "proof": ["a"]}))


@pytest.mark.parametrize("name", ["round", "attempt", "witnessed_size"])
@pytest.mark.parametrize("wrong", [-1, -(2**63), True, 1.0, "1"])
def test_what_is_no_count_is_dropped(name: str, wrong: object) -> None:
    record = ROUND.to_record()

    with pytest.raises(WireError, match=f"field {name} must be a count; the message was dropped"):
        RoundRequest.from_record(with_fields(record, {**fields_of(record), name: wrong}))


@pytest.mark.parametrize(
    ("name", "instead", "message"),
    [
        ("growth_sizes", [3], "field growth_proofs must be as long as growth_sizes; it was"),
        ("growth_sizes", [3, -1], "field growth_sizes must be counts; it was dropped"),
        ("known_sizes", [3], "field known_sizes must be as long as known_origins; it was"),
        ("known_sizes", [3, -1], "field known_sizes must be counts; it was dropped"),
        ("known_origins", ["a", "a"], "field known_origins must name each log once; it was"),
        ("cosigned_lines", [], "field cosigned_lines must be as long as cosigned_origins"),
    ],
)
def test_lists_that_do_not_belong_together_are_dropped(
    name: str, instead: list[Any], message: str
) -> None:
    record = MESSAGES[4].to_record()

    with pytest.raises(WireError, match=message):
        parse_reply(with_fields(record, {**fields_of(record), name: instead}))


def test_asked_sizes_that_are_no_counts_are_dropped() -> None:
    record = ROUND.to_record()

    with pytest.raises(WireError, match="field witnessed_sizes must be counts; the message was"):
        RoundRequest.from_record(
            with_fields(record, {**fields_of(record), "witnessed_sizes": [-1]})
        )


@pytest.mark.parametrize("reader", READERS.values(), ids=[kind.__name__ for kind in READERS])
@pytest.mark.parametrize(
    "record",
    [
        RecordDict(),
        RecordDict({"fields": ArrayRecord({"x": Array(np.ones(1))})}),
        RecordDict({"fields": MetricRecord({"round": 1})}),
        RecordDict({"other": ConfigRecord({"name": "birch"})}),
    ],
    ids=["nothing", "arrays", "metrics", "another-name"],
)
def test_a_message_without_fields_is_dropped(
    reader: Callable[[RecordDict], Message], record: RecordDict
) -> None:
    with pytest.raises(WireError, match="a message must have fields; it was dropped"):
        reader(record)


@pytest.mark.parametrize("message", [ROUND, MESSAGES[2]], ids=["round", "delivery"])
@pytest.mark.parametrize("instead", [None, ConfigRecord({"weights": [1.0]})])
def test_a_message_without_its_arrays_is_dropped(message: Message, instead: Any) -> None:  # noqa: ANN401
    record = message.to_record()
    parts = {"fields": record["fields"]} | ({} if instead is None else {"arrays": instead})

    with pytest.raises(WireError, match="the message must carry arrays; it was dropped"):
        read(message, RecordDict(parts))


def arrays_from(data: bytes, *, stype: str = "numpy.ndarray", name: str = "x") -> RecordDict:
    """A round whose array claims to be float64 and has these bytes."""
    array = Array("float64", (1,), stype, data)
    return RecordDict({**ROUND.to_record(), "arrays": ArrayRecord({name: array})})


def saved(array: np.ndarray[Any, Any], *, allow_pickle: bool = False) -> bytes:
    file = BytesIO()
    np.save(file, array, allow_pickle=allow_pickle)
    return file.getvalue()


def header(text: str, *, version: bytes = b"\x01\x00") -> bytes:
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text.encode()


def header_of(shape: str, *, descr: str = "'<f8'") -> bytes:
    return header(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n")


def archive() -> bytes:
    file = BytesIO()
    np.savez(file, np.ones(2))
    return file.getvalue()


def broken_archive() -> bytes:
    file = BytesIO()
    with zipfile.ZipFile(file, "w") as zipped:
        zipped.writestr("x.npy", saved(np.ones(1)))
    return file.getvalue()[:-10]


class _Bomb:
    """What a pickle could do to somebody who loads it."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return _explode, ("a pickle was run",)


def _explode(message: str) -> None:
    raise AssertionError(message)


UNREADABLE = {
    "nothing": b"",
    "noise": b"\x00\x01\x02\x03",
    "pickle": pickle.dumps(np.ones(1)),
    "pickled-bomb": pickle.dumps(_Bomb()),
    "object-array": saved(np.array([_Bomb()], dtype=object), allow_pickle=True),
    "truncated": saved(np.ones(4))[:-1],
    "broken-archive": broken_archive(),
    "claims-to-be-huge": header_of("(1000000000000000,)"),
    "claims-to-be-larger-than-any-number": header_of("(1" + "0" * 40 + ",)"),
    "negative-shape": header_of("(-1,)"),
    "unfinished-header": header("(((("),
    "badly-indented-header": header("  {\n {\n   }"),
    "nested-header": header("[" * 5000),
    "unknown-version": header("{}", version=b"\x09\x00"),
    "odd-dtype": header_of("(1,)", descr="'<q9'"),
}


@pytest.mark.parametrize("data", UNREADABLE.values(), ids=UNREADABLE)
def test_arrays_that_cannot_be_read_are_dropped(data: bytes) -> None:
    with pytest.raises(WireError, match=r"^array x cannot be read; the message was dropped$"):
        RoundRequest.from_record(over_the_network(arrays_from(data)))


def test_arrays_in_another_serialisation_are_dropped() -> None:
    with pytest.raises(WireError, match="array x cannot be read; the message was dropped"):
        RoundRequest.from_record(arrays_from(saved(np.ones(1)), stype="pickle"))


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (saved(np.ones(2, dtype=np.float32)), "float32"),
        (saved(np.ones(2, dtype=np.int64)), "int64"),
        (saved(np.ones(2, dtype=np.complex128)), "complex128"),
        (saved(np.ones(2, dtype=">f8")), ">f8"),
        (saved(np.array(["text"])), "<U4"),
        (saved(np.zeros(1, dtype=[("a", "<f8")])), r"\[\('a', '<f8'\)\]"),
        (archive(), "NpzFile"),
    ],
)
def test_arrays_of_another_type_are_dropped_whatever_they_claim(data: bytes, found: str) -> None:
    with pytest.raises(WireError, match=rf"array x must be float64, got {found}; it was dropped"):
        RoundRequest.from_record(arrays_from(data))


def test_an_array_that_the_digest_could_not_name_is_dropped() -> None:
    with pytest.raises(
        WireError, match="an array must have an ASCII name; the message was dropped"
    ):
        RoundRequest.from_record(arrays_from(saved(np.ones(1)), name="重量"))


@given(st.binary(max_size=200), st.sampled_from([b"", b"\x93NUMPY\x01\x00", b"PK\x03\x04"]))
@settings(max_examples=150)
def test_garbage_in_an_array_raises_only_a_wire_error(data: bytes, start: bytes) -> None:
    with pytest.raises(WireError):
        RoundRequest.from_record(arrays_from(start + data))


@given(place=st.integers(0, 10**6), change=st.integers(1, 255))
@settings(max_examples=200)
def test_a_changed_byte_of_an_array_raises_only_a_wire_error(place: int, change: int) -> None:
    data = bytearray(saved(np.arange(3.0)))
    data[place % len(data)] ^= change

    try:
        request = RoundRequest.from_record(arrays_from(bytes(data)))
    except WireError:
        return
    assert request.announced["x"].dtype == np.float64


values = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    texts,
    st.binary(),
    st.lists(st.integers(-5, 5), max_size=2),
    st.lists(texts, max_size=2),
    st.lists(st.binary(), max_size=2),
)


@given(
    st.dictionaries(
        st.sampled_from(sorted({name for one in MESSAGES for name in fields_of(one.to_record())})),
        values,
    )
)
@settings(max_examples=150)
def test_any_fields_are_read_or_raise_a_wire_error(fields: dict[str, Any]) -> None:
    record = with_fields(ROUND.to_record(), fields)
    for reader in READERS.values():
        try:
            message = reader(record)
        except WireError:
            continue
        # Fields of other kinds are ignored; what was read is what was sent.
        assert fields_of(message.to_record()).items() <= fields.items()


@pytest.mark.parametrize(
    "change",
    [
        {"plan_digest": "ac" * 32},
        {"round": 3},
        {"attempt": 2},
        {"cohort": ("birch", "cedar")},
        {"cohort": ("cedar", "birch", "优衣集团")},
        {"announced": {}},
        {"announced": {"weights": np.array([0.5, -1.0])}},
        {"announced": {"weights": np.array([0.5, np.nextafter(-1, 0)]), "directions": np.eye(2)}},
        {"announced": {"weight": np.array([0.5, -1.0]), "directions": np.eye(2)}},
        {"announced": {"weights": np.array([[0.5, -1.0]]), "directions": np.eye(2)}},
        {"announced": {"weights": np.array([0.5, -1.0]), "directions": np.eye(2).ravel()}},
        {"announced": {"weights": np.eye(2), "directions": np.array([0.5, -1.0])}},
    ],
    ids=str,
)
def test_the_digest_changes_with_everything_that_decides_the_answer(change: dict[str, Any]) -> None:
    assert dataclasses.replace(ROUND, **change).digest != ROUND.digest


def test_the_digest_tells_a_scalar_from_a_list_of_one_and_zero_from_minus_zero() -> None:
    forms = [np.array(0.0), np.array([0.0]), np.array([[0.0]]), np.array([-0.0]), np.zeros(0)]
    requests = [dataclasses.replace(ROUND, announced={"x": form}) for form in forms]

    assert len({request.digest for request in requests}) == len(forms)


def test_the_digest_does_not_depend_on_what_was_witnessed_nor_on_the_order_of_arrays() -> None:
    later = dataclasses.replace(ROUND, witnessed=Witnessed(tree_size=9, note="later"))
    reordered = dataclasses.replace(ROUND, announced=dict(reversed(ROUND.announced.items())))

    assert later.digest == reordered.digest == ROUND.digest
    assert len(ROUND.digest) == 32


def test_a_participant_signs_the_request_together_with_its_own_answer() -> None:
    signed = Reply.signed_bytes(ROUND.digest, b"masked")

    assert signed == ROUND.digest + hashlib.sha256(b"masked").digest()
    assert signed != Reply.signed_bytes(ROUND.digest, b"masker")


@pytest.mark.parametrize(
    ("answer", "size"),
    [
        (Refusal(name="birch", reason="no"), 7),
        (Refusal(name="优衣", reason="né"), 6 + 3),
        (Reply(name="birch", checkpoint="head", proof=()), 9),
        (
            Reply(name="b", checkpoint="é", proof=(b"12", b"345"), masked=b"x" * 9, signature=b"s"),
            18,
        ),
    ],
)
def test_the_size_is_that_of_the_content(answer: Reply | Refusal, size: int) -> None:
    assert size_bytes(answer) == size
