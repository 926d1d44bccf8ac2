"""Check a published log offline, with public keys only, and say what was not proved.

What is proved: the entries are exactly those whose root hash the log signed and the quorum
cosigned, each is in its only spelling, and releases follow their permits and charges. What is
not: that everything that happened was declared.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType

from consent.canonical import CanonicalError, JsonValue, parse_canonical
from consent.checkpoint import Checkpoint, verify_checkpoint
from consent.event import CLOCK_TOLERANCE_MS, SEALED, LogError, is_count, is_version
from consent.merkle import Frontier, ProofError, leaf_hash
from consent.published import read_leaves, read_note
from consent.sealed import MINUTE_MS, commitment_of
from consent.trust import TrustPolicy

_DECIMAL = re.compile(r"[0-9]{1,30}(\.[0-9]{1,60})?")
_Use = tuple[str, int, int]


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

    Raises:
        NoteError: The checkpoint is malformed, forged, of an unknown log, or lacks the quorum.
        LogError: A file is missing, the number of entries is not the signed one, or an entry
            breaks a rule; `index` says which entry.
        ProofError: The entries do not give the signed root hash.
    """
    verified = verify_checkpoint(read_note(folder), policy)
    rules = _Rules()
    _verify_entries(folder, verified.checkpoint, rules)
    return Verdict(
        origin=verified.checkpoint.origin,
        entries=verified.checkpoint.tree_size,
        root_hash=verified.checkpoint.root_hash.hex(),
        cosigners=MappingProxyType(dict(verified.cosigners)),
        events=MappingProxyType(dict(rules.events)),
    )


def _verify_entries(folder: Path, head: Checkpoint, rules: "_Rules") -> None:
    """Hash and check every entry in one pass; the tree is judged before the rules."""
    frontier = Frontier()
    broken: LogError | None = None
    for index, leaf in enumerate(read_leaves(folder)):
        frontier.append(leaf_hash(leaf))
        if broken is None:
            try:
                rules.check(index, leaf)
            except LogError as error:
                broken = error
    if frontier.size != head.tree_size:
        kind = "the log was cut short" if frontier.size < head.tree_size else "the rest is unsigned"
        raise LogError(
            f"the log holds {frontier.size} entries but the checkpoint signs {head.tree_size}: "
            f"{kind}; no entry was proved"
        )
    if frontier.root() != head.root_hash:
        raise ProofError(
            f"the {frontier.size} entries do not give the signed root hash: at least one byte was "
            "changed; one hash covers them all, so no entry was proved and it cannot say which"
        )
    if broken is not None:
        raise broken


class _Rules:
    """What must hold from each entry to the next."""

    def __init__(self) -> None:
        self.events: Counter[str] = Counter()
        self._latest = 0
        self._permits: set[str] = set()
        self._charged: set[_Use] = set()
        self._spent: dict[str, Decimal] = {}

    def check(self, index: int, leaf: bytes) -> None:
        """Raise `LogError` when an entry breaks a rule."""
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
            self._permits.add(str(event["permit"]))
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
        self._charged.add(_use(event))

    def _check_release(self, index: int, event: dict[str, JsonValue]) -> None:
        if event["permit"] not in self._permits:
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
    "round.refused": {"run": _is_text, "round": is_count, "reason": _is_text},
}
