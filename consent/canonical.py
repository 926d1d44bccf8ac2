"""Own what bytes are signed or hashed: a strict JSON profile with one spelling per value.

The profile is the part of RFC 8785 that needs no floats: ASCII keys, NFC strings, integers
below 2^53, booleans, null, lists, dicts. In it `format_canonical` gives exactly the bytes of
RFC 8785, and the bytes never hold a newline, so that one line of a file is one value.
"""

import json
import unicodedata
from typing import NoReturn, TypeAlias

JsonValue: TypeAlias = bool | int | str | list["JsonValue"] | dict[str, "JsonValue"] | None

LARGEST_INTEGER = 2**53 - 1
DEEPEST_NESTING = 32
_ENCODER = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"))


class CanonicalError(ValueError):
    """A value or a text is outside the strict JSON profile."""


def format_canonical(value: JsonValue) -> bytes:
    """Write a value in its only canonical spelling, as UTF-8 without a newline byte.

    Raises:
        CanonicalError: The value holds a float, an integer of 2^53 or more, a string that is
            not NFC, a key that is not ASCII, another type, or is nested too deeply.

    Source: RFC 8785; ASCII keys make code point order and UTF-16 order the same.
    """
    _check(value, depth=0)
    return _ENCODER.encode(value).encode()


def parse_canonical(data: bytes) -> JsonValue:
    """Read canonical bytes back and refuse every other spelling of the same value.

    Raises:
        CanonicalError: The bytes are not what `format_canonical` would write.
    """
    try:
        value: JsonValue = json.loads(
            data.decode(),
            object_pairs_hook=_unique_keys,
            parse_int=_short_integer,
            parse_float=_refuse_number,
            parse_constant=_refuse_number,
        )
    except CanonicalError:
        raise
    except (ValueError, RecursionError) as error:
        raise CanonicalError("text must be canonical JSON, this cannot be read as JSON") from error
    if format_canonical(value) != data:
        raise CanonicalError("text must be canonical JSON, this is another spelling of its value")
    return value


def _check(value: object, *, depth: int) -> None:
    if depth > DEEPEST_NESTING:
        raise CanonicalError(f"a value must be nested at most {DEEPEST_NESTING} deep")
    if value is None or isinstance(value, bool):
        return
    if isinstance(value, str):
        _check_text(value)
    elif isinstance(value, int):
        _check_integer(value)
    elif isinstance(value, list):
        for item in value:
            _check(item, depth=depth + 1)
    elif isinstance(value, dict):
        for key, item in value.items():
            if not (isinstance(key, str) and key.isascii()):
                raise CanonicalError("every key must be an ASCII string")
            # Most values are plain text or a small integer: no call for those.
            kind = type(item)
            if depth < DEEPEST_NESTING and (
                (kind is str and item.isascii())
                or (kind is int and -LARGEST_INTEGER <= item <= LARGEST_INTEGER)
            ):
                continue
            _check(item, depth=depth + 1)
    else:
        raise CanonicalError(
            f"a value must be null, bool, int, str, list or dict, got {type(value).__name__}"
        )


def _check_integer(number: int) -> None:
    if abs(number) > LARGEST_INTEGER:
        raise CanonicalError("an integer must be below 2^53; write larger ones as a string")


def _check_text(text: str) -> None:
    if text.isascii():
        return
    if not unicodedata.is_normalized("NFC", text):
        raise CanonicalError("a string must be in Unicode normal form C")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise CanonicalError("a string must not hold half of a surrogate pair") from error


def _unique_keys(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise CanonicalError("a key must occur once in an object")
    return value


def _short_integer(text: str) -> int:
    # Seventeen characters hold every integer of the profile; int() of more is wasted work.
    if len(text) > 17:
        raise CanonicalError("an integer must be below 2^53; write larger ones as a string")
    return int(text)


def _refuse_number(_text: str) -> NoReturn:
    raise CanonicalError("a number must be an integer; write fractions as a decimal string")
