"""Check a published log offline, with public keys only, and say what was not proved.

What is proved: the entries are exactly those whose root hash the log signed and the quorum
cosigned, each is in its only spelling, and releases follow their permits and charges. What is
not: that everything that happened was declared.
"""

import contextlib
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

from consent.canonical import CanonicalError, JsonValue, parse_canonical
from consent.checkpoint import Checkpoint, verify_checkpoint
from consent.event import CLOCK_TOLERANCE_MS, SEALED, LogError, is_count, is_version
from consent.merkle import HASH_SIZE_BYTES, Frontier, ProofError
from consent.published import Publication, ReadingCopy
from consent.sealed import MINUTE_MS, commitment_of
from consent.tiles import HEIGHT, WIDTH, Tiles, subtree_rows, tile_path
from consent.trust import TrustPolicy

_DECIMAL = re.compile(r"[0-9]{1,30}(\.[0-9]{1,60})?")
_SEALED_LINE = re.compile(rb'\{"c":"[0-9a-f]{64}","k":"sealed","t":(0|[1-9][0-9]{0,14}),"v":1\}\n')
_SEALED_BYTES = len(b'{"c":"","k":"sealed","t":,"v":1}\n') + 64
_Use = tuple[str, int, int]

EachBundle: TypeAlias = Callable[[int, list[bytes]], None]
"""Is given the index of the first entry of a bundle, and the entries of the bundle."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was proved about a published log.

    Attributes:
        origin: The log.
        entries: Number of entries, all covered by the signature.
        root_hash: 64 hex digits.
        cosigners: Time of each cosignature in epoch milliseconds, by the policy's name.
        events: Number of entries by type; sealed entries count as "sealed".
    """

    origin: str
    entries: int
    root_hash: str
    cosigners: Mapping[str, int]
    events: Mapping[str, int]


def verify_published(folder: Path, policy: TrustPolicy) -> Verdict:
    """Return what a published log proves, or raise at the first rule that it breaks.

    Entries are read from the bundles; hash tiles and the copy for people are held against them.

    Raises:
        NoteError: The checkpoint is malformed, forged, of an unknown log, or lacks the quorum.
        LogError: A file is missing, malformed or not a true copy, or an entry breaks a rule;
            `index` says which entry.
        ProofError: The entries do not give the signed root hash, or a tile not its entries.
    """
    publication = Publication.of_folder(folder)
    with contextlib.closing(ReadingCopy(folder, publication.head.tree_size)) as copy:

        def compare(first: int, leaves: list[bytes]) -> None:
            copy.compare(first, b"\n".join(leaves) + b"\n")

        verdict = verify_publication(publication, policy, each=compare)
        copy.finish()
    return verdict


def verify_publication(
    publication: Publication, policy: TrustPolicy, *, each: EachBundle | None = None
) -> Verdict:
    """Return what a log proves, wherever its tiles come from.

    Args:
        publication: The note and the tiles of a log.
        policy: Logs and witnesses to believe.
        each: Is given the entries in their order, bundle by bundle, each read once; they count
            only after this function has returned. A `LogError` of it is judged like a rule's.

    Raises:
        NoteError: The checkpoint is malformed, forged, of an unknown log, or lacks the quorum.
        LogError: A file is missing or malformed, or an entry breaks a rule.
        ProofError: The entries do not give the signed root hash, or a tile not its entries.
    """
    verified = verify_checkpoint(publication.note, policy)
    rules = _Rules()
    _verify_entries(publication.tiles, verified.checkpoint, rules, each)
    return Verdict(
        origin=verified.checkpoint.origin,
        entries=verified.checkpoint.tree_size,
        root_hash=verified.checkpoint.root_hash.hex(),
        cosigners=MappingProxyType(dict(verified.cosigners)),
        events=MappingProxyType(dict(rules.events)),
    )


def _verify_entries(
    tiles: Tiles, head: Checkpoint, rules: "_Rules", each: EachBundle | None
) -> None:
    """Hash and check every entry in one pass; the tree is judged before the rules."""
    tree = _HashedTree()
    broken: LogError | None = None
    for index in range(-(-head.tree_size // WIDTH)):
        leaves = tiles.leaves(index)
        tree.add(leaves, tile=tiles.tile(0, index))
        if broken is None:
            try:
                if each is not None:
                    each(index * WIDTH, leaves)
                rules.check(index * WIDTH, leaves, b"\n".join(leaves) + b"\n")
            except LogError as error:
                broken = error
    tree.verify(tiles, head)
    if broken is not None:
        raise broken


class _HashedTree:
    """The tree that the entries give, and where the published hashes first disagree with it."""

    def __init__(self) -> None:
        self._frontier = Frontier()
        self._roots: list[bytes] = []
        self._differs: int | None = None

    def add(self, leaves: list[bytes], *, tile: bytes) -> None:
        """Add the entries of one bundle and compare their hashes with the tile."""
        hashes = [sha256(b"\x00" + leaf).digest() for leaf in leaves]
        if self._differs is None and b"".join(hashes) != tile:
            size = HASH_SIZE_BYTES
            self._differs = self._frontier.size + next(
                number
                for number, value in enumerate(hashes)
                if value != tile[number * size : (number + 1) * size]
            )
        if len(hashes) < WIDTH:
            for value in hashes:
                self._frontier.append(value)
        else:
            top = subtree_rows(hashes)[-1][0]
            self._roots.append(top)
            self._frontier.append(top, level=HEIGHT)

    def verify(self, tiles: Tiles, head: Checkpoint) -> None:
        """Raise `ProofError` unless entries, tiles and the signed root hash agree."""
        if self._frontier.root() != head.root_hash:
            if self._differs is not None and tiles.root() == head.root_hash:
                raise ProofError(f"entry {self._differs} is not the one whose hash was signed")
            raise ProofError(
                f"the {self._frontier.size} entries do not give the signed root hash: at least "
                "one byte was changed; one hash covers them all, so no entry was proved and it "
                "cannot say which"
            )
        if self._differs is not None:
            raise ProofError(f"the hash of entry {self._differs} in its tile is not that entry's")
        level, roots = 1, self._roots
        while roots:
            above = []
            for first in range(0, len(roots), WIDTH):
                hashes = roots[first : first + WIDTH]
                if b"".join(hashes) != tiles.tile(level, first // WIDTH):
                    name = tile_path(level, first // WIDTH)
                    raise ProofError(f"the tile {name!r} does not hold the hashes of its entries")
                if len(hashes) == WIDTH:
                    above.append(subtree_rows(hashes)[-1][0])
            level, roots = level + 1, above


class _Rules:
    """What must hold from each entry to the next."""

    def __init__(self) -> None:
        self.events: Counter[str] = Counter()
        self._latest = 0
        self._permits: dict[str, tuple[JsonValue, str]] = {}
        self._charged: dict[_Use, set[str]] = {}
        self._spent: dict[str, Decimal] = {}

    def check(self, first: int, leaves: list[bytes], lines: bytes) -> None:
        """Raise `LogError` when one of the next entries breaks a rule.

        Args:
            first: Index of the first entry.
            leaves: The entries.
            lines: The same, each followed by a newline.
        """
        minutes = sealed_minutes(lines, len(leaves))
        if minutes is not None and self._are_in_time(minutes):
            self.events[SEALED] += len(minutes)
            return
        for index, leaf in enumerate(leaves, start=first):
            self._check_leaf(index, leaf)

    def _are_in_time(self, minutes: list[int]) -> bool:
        """Tell whether no order of these sealed leaves could break the rule about time."""
        latest = max(self._latest, max(minutes) * MINUTE_MS)
        if (min(minutes) + 1) * MINUTE_MS - 1 < latest - CLOCK_TOLERANCE_MS:
            return False
        self._latest = latest
        return True

    def _check_leaf(self, index: int, leaf: bytes) -> None:
        minutes = sealed_minutes(leaf + b"\n", 1)
        if minutes is not None:
            self.events[SEALED] += 1
            self._check_time(index, earliest=minutes[0] * MINUTE_MS, width=MINUTE_MS)
            return
        try:
            value = parse_canonical(leaf)
        except CanonicalError as error:
            raise LogError(f"entry {index} is not canonical: {error}", index=index) from error
        if not isinstance(value, dict):
            raise LogError(f"entry {index} must be an object", index=index)
        if value.get("k") == SEALED:
            self._check_sealed(index, value)
        else:
            self._check_open(index, value)

    def _check_sealed(self, index: int, value: dict[str, JsonValue]) -> None:
        minute = value.get("t")
        if commitment_of(value) is None or not isinstance(minute, int):
            raise LogError(f"entry {index} is not a well-formed sealed leaf", index=index)
        self.events[SEALED] += 1
        self._check_time(index, earliest=minute * MINUTE_MS, width=MINUTE_MS)

    def _check_open(self, index: int, event: dict[str, JsonValue]) -> None:
        kind, at = event.get("type"), event.get("at")
        if not (isinstance(kind, str) and kind and is_version(event.get("v")) and is_count(at)):
            raise LogError(f"entry {index} must have a type, a time and version 1", index=index)
        assert isinstance(at, int)  # noqa: S101 - is_count has refused everything else
        for name, is_valid in _REQUIRED.get(kind, {}).items():
            if not is_valid(event.get(name)):
                raise LogError(f"entry {index}, {kind}, has no valid field {name!r}", index=index)
        self.events[kind] += 1
        self._check_time(index, earliest=at, width=1)
        if kind == "permit.issued":
            self._permits[str(event["permit"])] = event["use"], str(event["purpose"])
        elif kind == "budget.charged":
            self._check_charge(index, event)
        elif kind == "release.sent":
            self._check_release(index, event)

    def _check_time(self, index: int, *, earliest: int, width: int) -> None:
        if earliest + width - 1 < self._latest - CLOCK_TOLERANCE_MS:
            raise LogError(
                f"the time of entry {index} is more than five minutes before an earlier entry's",
                index=index,
            )
        self._latest = max(self._latest, earliest)

    def _check_charge(self, index: int, event: dict[str, JsonValue]) -> None:
        purpose = str(event["purpose"])
        spent, budget = Decimal(str(event["epsilon_spent"])), Decimal(str(event["epsilon_budget"]))
        if spent < self._spent.get(purpose, Decimal(0)):
            raise LogError(
                f"entry {index}: epsilon spent for {purpose} falls from {self._spent[purpose]} "
                f"to {spent}",
                index=index,
            )
        if spent > budget:
            raise LogError(
                f"entry {index}: epsilon spent for {purpose} is {spent}, the budget is {budget}",
                index=index,
            )
        self._spent[purpose] = spent
        self._charged.setdefault(_use(event), set()).add(purpose)

    def _check_release(self, index: int, event: dict[str, JsonValue]) -> None:
        permit = self._permits.get(str(event["permit"]))
        if permit is None:
            raise LogError(
                f"entry {index}: a release was sent without an earlier permit", index=index
            )
        run, number, attempt = use = _use(event)
        if use not in self._charged:
            raise LogError(
                f"entry {index}: a release was sent without an earlier charge for run {run!r}, "
                f"round {number}, attempt {attempt}",
                index=index,
            )
        permitted, purpose = permit
        if not isinstance(permitted, dict) or any(
            permitted.get(name) != event[name] for name in _ROUND
        ):
            raise LogError(
                f"entry {index}: a release was sent under a permit for another use than run "
                f"{run!r}, round {number}, attempt {attempt}",
                index=index,
            )
        if purpose not in self._charged[use]:
            charged = ", ".join(sorted(self._charged[use]))
            raise LogError(
                f"entry {index}: a release was sent under a permit for {purpose}, but it was "
                f"charged to {charged}",
                index=index,
            )


def sealed_minutes(lines: bytes, count: int) -> list[int] | None:
    """Return the minutes of `count` sealed leaves, or None when not all lines are such leaves.

    Exactly what parsing each line would say, but for minutes of sixteen digits, which are left
    to the parser: matching bytes is many times cheaper.

    Args:
        lines: Leaves, each followed by a newline.
        count: How many leaves there are.
    """
    found = _SEALED_LINE.findall(lines)
    # The lengths add up only when the matches touch each other and no leaf holds a newline.
    if len(found) != count or len(lines) != count * _SEALED_BYTES + sum(map(len, found)):
        return None
    return list(map(int, found))


def _use(event: dict[str, JsonValue]) -> _Use:
    number, attempt = event["round"], event["attempt"]
    assert isinstance(number, int)  # noqa: S101 - checked as required fields
    assert isinstance(attempt, int)  # noqa: S101
    return str(event["run"]), number, attempt


def _is_text(value: JsonValue) -> bool:
    return isinstance(value, str) and bool(value)


def _is_decimal(value: JsonValue) -> bool:
    return isinstance(value, str) and _DECIMAL.fullmatch(value) is not None


def _is_object(value: JsonValue) -> bool:
    return isinstance(value, dict)


_ROUND: dict[str, Callable[[JsonValue], bool]] = {
    "run": _is_text,
    "round": is_count,
    "attempt": is_count,
}
_PERMIT: dict[str, Callable[[JsonValue], bool]] = {
    "purpose": _is_text,
    "use": _is_object,
    "policy": _is_text,
}
_REQUIRED: dict[str, dict[str, Callable[[JsonValue], bool]]] = {
    "permit.issued": {
        **_PERMIT,
        "permit": _is_text,
        "state_seq": is_count,
        "mask_root": _is_text,
        "included": _is_text,
        "excluded": _is_text,
    },
    "permit.denied": {**_PERMIT, "reason": _is_text},
    "budget.charged": {
        **_ROUND,
        "purpose": _is_text,
        "epsilon_spent": _is_decimal,
        "epsilon_budget": _is_decimal,
        "ledger_head": _is_text,
    },
    "release.sent": {
        **_ROUND,
        "permit": _is_text,
        "kind": _is_text,
        "size_bytes": is_count,
        "sha256": _is_text,
    },
    "message.refused": {"kind": _is_text, "reason": _is_text},
}
