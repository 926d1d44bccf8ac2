"""Own what acts change in the register's tables: gathered in memory, written together.

A thousand acts in one commit are then a few statements and not ten thousand.
"""

import json
from collections.abc import Mapping, Sequence

from consent.entries import LogTransaction
from consent.fold import Person

_PUT_PERSON = (
    "INSERT INTO consent_subject VALUES (?, ?, ?, ?, ?, NULL) ON CONFLICT (row_no)"
    " DO UPDATE SET objected = excluded.objected, restricted = excluded.restricted,"
    " age = excluded.age, guardian = excluded.guardian"
)
_PUT_STANDING = (
    "INSERT INTO consent_standing VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (row_no, bit)"
    " DO UPDATE SET status = excluded.status, said_at = excluded.said_at,"
    " effective_at = excluded.effective_at, until = excluded.until,"
    " separate = excluded.separate, terms = excluded.terms, asked_at = excluded.asked_at"
)


class Changes:
    """Changes of the register's tables that wait to be written, in the order of their acts."""

    def __init__(self) -> None:
        self._people: dict[int, Person] = {}
        self._refs: list[tuple[str, int]] = []
        self._terms: list[tuple[int, str]] = []
        self._standings: dict[tuple[int, int], tuple[int, ...]] = {}
        self._acts: list[tuple[int, int, int, int]] = []
        self._narrowed = 0

    def add_ref(self, subject_ref: str, row: int) -> None:
        """Give a new person a row."""
        self._people[row] = Person()
        self._refs.append((subject_ref, row))

    def put_person(self, row: int, person: Person) -> None:
        """Set the flags of a row."""
        self._people[row] = person

    def put_cells(self, cells: Sequence[tuple[int, ...]]) -> None:
        """Set standings, as `ConsentState.cell` gives them."""
        self._standings.update({(cell[0], cell[1]): cell for cell in cells})

    def add_terms(self, lines: Mapping[int, Sequence[str]]) -> None:
        """Keep what new grants rest on, under its number."""
        self._terms += [(number, json.dumps(line)) for number, line in lines.items()]

    def add_act(self, seq: int, token: int, row: int, *, narrowed: int, renamed: bool) -> None:
        """Count an act: which row it changed, and when something given was last taken back."""
        self._acts.append((seq, token, row, int(renamed)))
        self._narrowed = narrowed

    def write(self, transaction: LogTransaction) -> None:
        """Write what was gathered since the last time."""
        people = [
            (
                row,
                person.objected,
                person.restricted,
                None if person.age is None else str(person.age),
                int(person.guardian),
            )
            for row, person in self._people.items()
        ]
        new = {row for _, row in self._refs}
        transaction.insert("consent_subject", [(*one, None) for one in people if one[0] in new])
        transaction.insert("consent_ref", self._refs)
        transaction.insert("consent_terms", self._terms)
        transaction.insert(
            "consent_standing", [cell for at, cell in self._standings.items() if at[0] in new]
        )
        transaction.insert("consent_change", self._acts)
        connection = transaction.connection
        for statement, rows in (
            (_PUT_PERSON, [one for one in people if one[0] not in new]),
            (_PUT_STANDING, [cell for at, cell in self._standings.items() if at[0] not in new]),
        ):
            if rows:
                connection.executemany(statement, rows)
        if self._acts:
            seq, token, *_ = self._acts[-1]
            connection.execute(
                "UPDATE consent_seq SET state_seq = ?, narrowed_seq = ?, token = ?",
                (seq, self._narrowed, token),
            )
        Changes.__init__(self)
