"""Find the open events of some types again without reading the whole log.

A table beside the log names the entries; it changes in the same durable commit as the log, and
what stands in an event is always read from its entry. Whoever keeps state by replay keeps it
on a topic.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from consent.canonical import JsonValue, parse_canonical
from consent.event import Event, LogError
from consent.log import Log


@dataclass(frozen=True, slots=True)
class Told:
    """An open event and where it stands.

    Attributes:
        index: Entry of the log.
        event: What happened.
    """

    index: int
    event: dict[str, JsonValue]

    def text(self, key: str) -> str:
        """Return a field that must be text; raise `LogError` when it is not."""
        value = self.event.get(key)
        if not isinstance(value, str):
            raise LogError(f"entry {self.index} holds no text {key!r}", index=self.index)
        return value

    def number(self, key: str) -> int:
        """Return a field that must be an integer; raise `LogError` when it is not."""
        value = self.event.get(key)
        if not isinstance(value, int) or isinstance(value, bool):
            raise LogError(f"entry {self.index} holds no number {key!r}", index=self.index)
        return value


class Topic:
    """The open events of some types in one log, oldest first."""

    def __init__(self, log: Log, kinds: Iterable[str]) -> None:
        """Read a topic; events of these types must go through `append`."""
        self._log = log
        self._kinds = tuple(sorted(kinds))

    def append(self, event: Event) -> int:
        """Append an event of one of the types durably and return its entry."""
        if event.get("type") not in self._kinds:
            raise ValueError(f"this topic holds no events of the type {event.get('type')}")
        with self._log.transaction() as transaction:
            index = transaction.append(event)
            transaction.connection.execute(
                "INSERT INTO topic VALUES (?, ?)", (index, event["type"])
            )
            return index

    def events(self, start: int = 0) -> list[Told]:
        """Return every event of the types, from an entry of the log on."""
        marks = ", ".join("?" * len(self._kinds))
        with self._log.reading() as connection:
            rows = connection.execute(
                "SELECT entry.idx, leaf, kind FROM topic JOIN entry ON entry.idx = topic.idx"  # noqa: S608
                f" WHERE kind IN ({marks}) AND topic.idx >= ? ORDER BY entry.idx",
                (*self._kinds, start),
            ).fetchall()
        return [_read(*row) for row in rows]

    def latest(self, kind: str) -> Told | None:
        """Return the last event of a type; None when there is none."""
        with self._log.reading() as connection:
            row = connection.execute(
                "SELECT entry.idx, leaf, kind FROM topic JOIN entry ON entry.idx = topic.idx"
                " WHERE kind = ? ORDER BY entry.idx DESC LIMIT 1",
                (kind,),
            ).fetchone()
        return None if row is None else _read(*row)

    def verify(self) -> None:
        """Read the whole log and raise `LogError` unless the table names exactly its events."""
        found = [
            (entry.index, entry.value)
            for entry in self._log.entries()
            if entry.value.get("type") in self._kinds
        ]
        if found != [(told.index, told.event) for told in self.events()]:
            raise LogError(
                f"the tables of {self._log.origin!r} do not name the events that its log holds"
            )


def _read(index: int, leaf: bytes, kind: str) -> Told:
    event = parse_canonical(bytes(leaf))
    # The table is no authority: an event that it calls something else is not believed.
    if not (isinstance(event, dict) and event.get("type") == kind):
        raise LogError(f"entry {index} is not the {kind} that the tables say", index=index)
    return Told(index, event)
