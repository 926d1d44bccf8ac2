"""What a member of a secure sum remembers: entries by name, durable before a reply leaves.

A record is some entries as bytes. One that is whole replaces all before it; others add to it.
The state of a member is its records one behind the other, oldest first.
"""

import hashlib
from collections.abc import Callable, Mapping
from typing import Final, Self

from privacy.roster import pack
from privacy.secure_sum import SumRefused
from privacy.sum_wire import unpack

Persist = Callable[[bytes], None]
_MAX_PARTS: Final = 1 << 16
_WHOLE: Final = b"tillpact sum state 1"
_MORE: Final = b"tillpact sum entries 1"


def is_whole(record: bytes) -> bool:
    """Whether a record replaces all before it, which should then be deleted."""
    return record[8 : 8 + len(_WHOLE)] == _WHOLE


class Memory:
    """Entries of one member in one run."""

    def __init__(self, entries: Mapping[str, bytes], persist: Persist) -> None:
        """Begin with entries that are not durable yet.

        Args:
            entries: What is known at the start.
            persist: Makes a record durable behind those before, or raises.
        """
        self._entries, self._persist, self._is_kept = dict(entries), persist, False

    @classmethod
    def restored(cls, state: bytes, persist: Persist) -> Self:
        """Read records again.

        Raises:
            SumRefused: They are cut short, or something else altogether.
        """
        try:
            memory = cls(_fold(unpack(state, most=_MAX_PARTS)), persist)
        except (ValueError, IndexError) as error:
            raise SumRefused("the state of a sum cannot be read; nothing was begun") from error
        memory._is_kept = True
        return memory

    @property
    def state(self) -> bytes:
        """All entries as one whole record."""
        return _record(_WHOLE, self._entries)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def __getitem__(self, name: str) -> bytes:
        return self._entries[name]

    def get(self, name: str) -> bytes | None:
        """An entry, or None."""
        return self._entries.get(name)

    def answered(self, step: str, request: bytes, *, other: str) -> bytes | None:
        """The reply that a step gave to this request, or None if it gave none.

        Args:
            step: Name of the step.
            request: What is asked now.
            other: What was done if something else was asked then, for the sentence.

        Raises:
            SumRefused: The step answered another request.
        """
        stored = self._entries.get(f"{step}.request")
        if stored is None:
            return None
        if stored != hashlib.sha256(request).digest():
            raise SumRefused(f"{other}; nothing was sent")
        return self._entries[step]

    def keep(
        self,
        step: str,
        reply: bytes,
        *,
        request: bytes | None = None,
        also: Mapping[str, bytes] | None = None,
    ) -> bytes:
        """Make a reply durable, and give it back for sending.

        Args:
            step: Name of the step.
            reply: What will be sent.
            request: What it answers, if the same step must refuse anything else.
            also: Entries that are added with it.
        """
        added = {step: reply, **(also or {})}
        if request is not None:
            added[f"{step}.request"] = hashlib.sha256(request).digest()
        entries = {**self._entries, **added}
        # Durable first: a reply that left and was forgotten could be followed by another. The
        # first record of all holds what was there at the start as well.
        self._persist(_record(_MORE, added) if self._is_kept else _record(_WHOLE, entries))
        self._entries, self._is_kept = entries, True
        return reply

    def replace(self, *, without: tuple[str, ...], added: Mapping[str, bytes]) -> None:
        """Make a whole record durable that lacks some entries.

        Args:
            without: Beginnings of the names that are dropped.
            added: Entries that are added.
        """
        kept = {
            name: value for name, value in self._entries.items() if not name.startswith(without)
        }
        entries = {**kept, **added}
        self._persist(_record(_WHOLE, entries))
        self._entries, self._is_kept = entries, True


def _record(kind: bytes, entries: Mapping[str, bytes]) -> bytes:
    parts: list[bytes] = [kind, str(len(entries)).encode()]
    for name in sorted(entries):
        parts += (name.encode(), entries[name])
    return pack(*parts)


def _fold(parts: tuple[bytes, ...]) -> dict[str, bytes]:
    if not parts or parts[0] != _WHOLE:
        raise ValueError("it does not begin with a whole record")
    state: dict[str, bytes] = {}
    place = 0
    while place < len(parts):
        kind, count = parts[place], int(parts[place + 1])
        fields = parts[place + 2 : place + 2 + 2 * count]
        if kind not in {_WHOLE, _MORE} or count < 0 or len(fields) != 2 * count:
            raise ValueError("a record is cut short")
        names = [name.decode() for name in fields[::2]]
        found = dict(zip(names, fields[1::2], strict=True))
        state = found if kind == _WHOLE else state | found
        place += 2 + 2 * count
    return state
