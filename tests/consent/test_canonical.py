import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consent.canonical import CanonicalError, JsonValue, format_canonical, parse_canonical

texts = st.text(st.characters(codec="utf-8")).map(lambda text: unicodedata.normalize("NFC", text))
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | texts,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(max_codepoint=127), max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(values)
def test_what_is_written_reads_back_as_the_same_value(value: JsonValue) -> None:
    data = format_canonical(value)

    assert parse_canonical(data) == value
    assert format_canonical(parse_canonical(data)) == data


@given(values)
def test_one_value_is_one_line(value: JsonValue) -> None:
    assert b"\n" not in format_canonical(value)


@given(
    st.binary(max_size=40) | st.text(max_size=40).map(lambda text: text.encode("utf-8", "replace"))
)
def test_garbage_raises_only_a_canonical_error(data: bytes) -> None:
    try:
        value = parse_canonical(data)
    except CanonicalError:
        return

    assert format_canonical(value) == data


@given(values)
def test_other_spellings_of_a_value_are_refused(value: JsonValue) -> None:
    spaced = json.dumps([value, value], ensure_ascii=False).encode()

    with pytest.raises(CanonicalError):
        parse_canonical(spaced)


def test_the_example_of_rfc_8785_without_its_floats() -> None:
    # RFC 8785 section 3.2.2, input; the numbers are left out, the profile has no floats.
    value: JsonValue = {
        "string": '€$\u000f\nA\'B"\\\\"/',
        "literals": [None, True, False],
    }
    expected = r'{"literals":[null,true,false],"string":"€$\u000f\nA' + "'" + r'B\"\\\\\"/"}'

    assert format_canonical(value) == expected.encode()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (1.0, "a value must be null, bool, int, str, list or dict, got float"),
        ((1,), "got tuple"),
        (2**53, "an integer must be below 2\\^53"),
        ({"é": 1}, "every key must be an ASCII string"),
        ({1: 1}, "every key must be an ASCII string"),
        ("e\u0301", "a string must be in Unicode normal form C"),
        ("\ud800", "a string must not hold half of a surrogate pair"),
    ],
)
def test_format_refuses_what_has_no_canonical_spelling(value: JsonValue, message: str) -> None:
    with pytest.raises(CanonicalError, match=message):
        format_canonical(value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "this cannot be read as JSON"),
        (b"\xff", "this cannot be read as JSON"),
        (b"[" * 100_000, "this cannot be read as JSON"),
        (b"[" * 40 + b"]" * 40, "a value must be nested at most 32 deep"),
        (b"1.5", "a number must be an integer"),
        (b"1e3", "a number must be an integer"),
        (b"NaN", "a number must be an integer"),
        (b"9007199254740992", "an integer must be below"),
        (b"1" * 5000, "an integer must be below"),
        (b'{"a":1,"a":1}', "a key must occur once"),
        (b'{"b":1,"a":1}', "another spelling of its value"),
        (b'"\\u0041"', "another spelling of its value"),
        (b"-0", "another spelling of its value"),
        (b" 1", "another spelling of its value"),
        (b"1\n", "another spelling of its value"),
    ],
)
def test_parse_refuses_every_other_spelling(data: bytes, message: str) -> None:
    with pytest.raises(CanonicalError, match=message):
        parse_canonical(data)
