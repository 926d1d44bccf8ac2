"""What a ledger remembers: a chain of events, and what follows from them.

Pure data and one fold. Events say what was reserved, settled and released, in
sensitivities and noise, never in epsilons, so that a better bound can be applied
to an old history. Each event's head hashes everything before it. Nothing here
touches a file; `privacy.ledger` keeps the events.
"""

import hashlib
import json
import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from privacy.accounting import Composition, GaussianRelease, compose, delta_of, epsilon_of
from privacy.budget import Budget, BudgetExhausted, Spent

_GENESIS: Final = hashlib.sha256(b"tillpact privacy ledger, version 1").hexdigest()


class LedgerError(Exception):
    """The ledger cannot be used or does not hold together; nothing may be released."""


class Replayed(LedgerError):  # noqa: N818 - an answer, not a fault
    """A round was asked for again with something else than the first time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseKey:
    """Names one release: an attempt at one round of one run.

    Attributes:
        run: Identifier of the run; not empty.
        round: Number of the round; at least 0.
        attempt: How often the round was voided before; at least 0.
    """

    run: str
    round: int
    attempt: int

    def __post_init__(self) -> None:
        if not self.run:
            raise ValueError("run must not be empty")
        if self.round < 0 or self.attempt < 0:
            raise ValueError(
                f"round and attempt must be at least 0, got {self.round} and {self.attempt}"
            )

    def __str__(self) -> str:
        return f"run {self.run} round {self.round} attempt {self.attempt}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """Permission, paid for, to draw noise once and release one sum.

    Attributes:
        key: What it is for.
        purpose: Whose budget it was taken from.
        release: The cost at the time of reserving.
        request_digest: Hash of the request that it answers; 32 bytes.
    """

    key: ReleaseKey
    purpose: str
    release: GaussianRelease
    request_digest: bytes


class EventKind(StrEnum):
    """What can happen to a ledger."""

    BUDGET = "budget"
    RESERVED = "reserved"
    SETTLED = "settled"
    RELEASED = "released"


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEvent:
    """One row of a ledger.

    Attributes:
        kind: What happened.
        purpose: Whose budget it concerns.
        budget: With `budget`, the budget; else None.
        key: Else, which release.
        release: With `reserved` and `settled`, the cost from now on.
        digest: With `reserved`, hex of the request's hash; with `released`, hex
            SHA-256 of the reply; else empty.
    """

    kind: EventKind
    purpose: str
    budget: Budget | None = None
    key: ReleaseKey | None = None
    release: GaussianRelease | None = None
    digest: str = ""

    def format(self) -> str:
        """One line of JSON with floats in hexadecimal, so that no bit is lost."""
        fields: dict[str, str | int] = {"kind": self.kind.value, "purpose": self.purpose}
        if self.budget is not None:
            fields["epsilon"] = float(self.budget.epsilon).hex()
            fields["delta"] = float(self.budget.delta).hex()
        if self.key is not None:
            fields |= {"run": self.key.run, "round": self.key.round, "attempt": self.key.attempt}
        if self.release is not None:
            fields["sensitivity"] = float(self.release.sensitivity).hex()
            fields["noise_std"] = float(self.release.noise_std).hex()
            fields["slack_delta"] = float(self.release.slack_delta).hex()
        if self.digest:
            fields["digest"] = self.digest
        return json.dumps(fields, sort_keys=True, separators=(",", ":"))

    @classmethod
    def parse(cls, text: str) -> "LedgerEvent":
        """Read what `format` wrote.

        Raises:
            LedgerError: The text is anything else.
        """
        try:
            fields = json.loads(text)
            event = cls(
                kind=EventKind(fields["kind"]),
                purpose=fields["purpose"],
                budget=_parse_budget(fields) if "epsilon" in fields else None,
                key=_parse_key(fields) if "run" in fields else None,
                release=_parse_release(fields) if "noise_std" in fields else None,
                digest=fields.get("digest", ""),
            )
            if event.format() != text:
                raise ValueError("it is not in the canonical form")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise LedgerError(f"a ledger event cannot be read ({error})") from error
        return event


def _parse_budget(fields: dict[str, str]) -> Budget:
    return Budget(epsilon=float.fromhex(fields["epsilon"]), delta=float.fromhex(fields["delta"]))


def _parse_key(fields: dict[str, str]) -> ReleaseKey:
    return ReleaseKey(run=fields["run"], round=int(fields["round"]), attempt=int(fields["attempt"]))


def _parse_release(fields: dict[str, str]) -> GaussianRelease:
    return GaussianRelease(
        sensitivity=float.fromhex(fields["sensitivity"]),
        noise_std=float.fromhex(fields["noise_std"]),
        slack_delta=float.fromhex(fields["slack_delta"]),
    )


def next_head(head: str, body: str) -> str:
    """Hash of an event and, through the head before it, of all earlier ones."""
    return hashlib.sha256(bytes.fromhex(head) + body.encode()).hexdigest()


class History:
    """The fold of a ledger's events; it only ever grows by `append`."""

    def __init__(self) -> None:
        self.head = _GENESIS
        self.heads: dict[str, None] = {}
        self.events: list[LedgerEvent] = []
        self.budgets: dict[str, Budget] = {}
        self.reservations: dict[ReleaseKey, Reservation] = {}
        self.replies: dict[ReleaseKey, str] = {}
        # By purpose; the mu of a release is needed at each admission, so it is kept.
        self._costs: dict[str, dict[ReleaseKey, tuple[float, float]]] = {}
        self._releases: dict[ReleaseKey, GaussianRelease] = {}

    def append(self, body: str, head: str) -> None:
        """Check one more stored event against the chain and take it in.

        Raises:
            LedgerError: The event cannot follow what came before.
        """
        if next_head(self.head, body) != head:
            raise LedgerError(f"event {len(self.events) + 1} does not continue the hash chain")
        event = LedgerEvent.parse(body)
        self._apply(event)
        self.head = head
        self.heads[head] = None
        self.events.append(event)

    def _apply(self, event: LedgerEvent) -> None:
        if event.kind is EventKind.BUDGET and event.budget is not None:
            self.budgets[event.purpose] = event.budget
            self._costs.setdefault(event.purpose, {})
            return
        if event.purpose not in self.budgets or event.key is None:
            raise LedgerError(f"event {len(self.events) + 1} concerns nothing that is known")
        if event.release is not None:
            self._costs[event.purpose][event.key] = (event.release.mu, event.release.slack_delta)
            self._releases[event.key] = event.release
        if event.kind is EventKind.RESERVED and event.release is not None:
            self.reservations[event.key] = Reservation(
                key=event.key,
                purpose=event.purpose,
                release=event.release,
                request_digest=bytes.fromhex(event.digest),
            )
        elif event.kind is EventKind.RELEASED:
            self.replies[event.key] = event.digest

    def budget(self, purpose: str) -> Budget:
        """The budget of a purpose.

        Raises:
            LedgerError: It has none.
        """
        if purpose not in self.budgets:
            raise LedgerError(f"purpose {purpose} has no budget; nothing was released")
        return self.budgets[purpose]

    def reservation(self, key: ReleaseKey) -> Reservation:
        """What was reserved for a key.

        Raises:
            LedgerError: Nothing was.
        """
        if key not in self.reservations:
            raise LedgerError(f"nothing is reserved for {key}; nothing was released")
        return self.reservations[key]

    def composition(self, purpose: str) -> Composition:
        """Cost of everything reserved or released for a purpose."""
        costs = self._costs[purpose].values()
        return Composition(
            mu=math.sqrt(math.fsum(mu * mu for mu, _ in costs)),
            slack_delta=math.fsum(slack for _, slack in costs),
        )

    def spent(self, purpose: str) -> Spent:
        """Cost of everything reserved or released, at the budget's delta."""
        delta = self.budget(purpose).delta
        total = self.composition(purpose)
        epsilon = epsilon_of(total.mu, delta=delta, slack_delta=total.slack_delta)
        return Spent(epsilon=epsilon, delta=delta, releases=len(self._costs[purpose]))

    def admit(self, purpose: str, release: GaussianRelease) -> None:
        """Check that one more release stays within the budget.

        Raises:
            BudgetExhausted: It does not.
            LedgerError: The purpose has no budget.
        """
        budget = self.budget(purpose)
        spent = self.composition(purpose)
        extra = compose([release])
        mu = math.hypot(spent.mu, extra.mu)
        slack_delta = spent.slack_delta + extra.slack_delta
        if delta_of(mu, epsilon=budget.epsilon, slack_delta=slack_delta) > budget.delta:
            raise BudgetExhausted(
                budget,
                purpose=purpose,
                spent=self.spent(purpose).epsilon,
                after=epsilon_of(mu, delta=budget.delta, slack_delta=slack_delta),
            )

    def admit_settling(self, key: ReleaseKey, release: GaussianRelease) -> None:
        """Check that a reservation may be settled at this cost.

        Raises:
            LedgerError: It was released already, or the cost is not smaller.
        """
        now = self._releases[self.reservation(key).key]
        if key in self.replies:
            raise LedgerError(f"{key} was released already and cannot be settled")
        if release.mu > now.mu or release.slack_delta > now.slack_delta:
            raise LedgerError(
                f"{key} can only be settled downwards: mu is {now.mu:.4g}, got {release.mu:.4g}"
            )

    def same(self, reservation: Reservation) -> bool:
        """Whether exactly this was reserved before; False when nothing was.

        Raises:
            Replayed: Something else was reserved under the same key.
        """
        earlier = self.reservations.get(reservation.key)
        if earlier is None:
            return False
        if earlier != reservation:
            raise Replayed(
                f"{reservation.key} was reserved for another request; nothing was released"
            )
        return True
