"""Own what an event is: something that happened, at a time, with a type and a version."""

from collections.abc import Mapping
from typing import TypeAlias

from consent.canonical import JsonValue, format_canonical

Event: TypeAlias = Mapping[str, JsonValue]
"""At least `type` (text), `at` (epoch milliseconds) and `v` (1)."""

CLOCK_TOLERANCE_MS = 300_000
SEALED = "sealed"


class LogError(Exception):
    """A log cannot be read or written as asked, or is not what it must be.

    Attributes:
        index: The entry at fault, where one entry is.
    """

    def __init__(self, message: str, *, index: int | None = None) -> None:
        super().__init__(message)
        self.index = index


def check_event(event: Event) -> bytes:
    """Return the canonical bytes of an event.

    Raises:
        ValueError: `type`, `at` or `v` is missing or wrong, or the event is not canonical JSON.
    """
    check_fields(event)
    return format_canonical(dict(event))


def check_fields(event: Event) -> None:
    """Raise `ValueError` unless an event has a type, a time and a version."""
    kind, at, version = event.get("type"), event.get("at"), event.get("v")
    if not (isinstance(kind, str) and kind):
        raise ValueError("an event must have a type")
    if not is_count(at):
        raise ValueError(f"the time of a {kind} event must be epoch milliseconds")
    if not is_version(version):
        raise ValueError(f"the version of a {kind} event must be 1")
    if event.get("k") == SEALED:
        raise ValueError(f"a {kind} event must not pass for a sealed leaf")


def is_version(value: JsonValue) -> bool:
    """Tell whether a value is the one version of events there is; `true` is not."""
    return value == 1 and not isinstance(value, bool)


def is_count(value: JsonValue) -> bool:
    """Tell whether a value is an integer of at least zero, and not a bool."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
