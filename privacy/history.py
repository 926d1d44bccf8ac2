"""What a ledger remembers: a chain of events, and what follows from them.

Pure data and one fold. Events say what was reserved, settled and released, in
sensitivities and noise, never in epsilons, so that a better bound can be applied
to an old history. Each event's head hashes everything before it. What a purpose
has spent is in `privacy.account`; nothing here touches a file, `privacy.ledger`
keeps the events.
"""

import hashlib
import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from privacy.account import Account
from privacy.accounting import GaussianRelease
from privacy.budget import Accounting, Budget, Spent
from privacy.composition import LaplaceRelease, Release, SampledGaussianRelease

_UNREADABLE: Final = (
    *(ValueError, KeyError, TypeError, AttributeError),
    *(OverflowError, RecursionError),
)
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
    release: Release
    request_digest: bytes


class EventKind(StrEnum):
    """What can happen to a ledger."""

    BUDGET = "budget"
    RENEWED = "renewed"
    RESERVED = "reserved"
    SETTLED = "settled"
    RELEASED = "released"


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEvent:
    """One row of a ledger.

    Attributes:
        kind: What happened.
        purpose: Whose budget it concerns.
        budget: With `budget` and `renewed`, the budget from now on; else None.
        accounting: With `budget`, how its releases are counted.
        key: Else, which release.
        release: With `reserved` and `settled`, the cost from now on.
        digest: With `renewed`, hex SHA-256 of the signed act; with `reserved`, hex of
            the request's hash; with `released`, hex SHA-256 of the reply; else empty.
    """

    kind: EventKind
    purpose: str
    budget: Budget | None = None
    accounting: Accounting = Accounting.GAUSSIAN
    key: ReleaseKey | None = None
    release: Release | None = None
    digest: str = ""

    def format(self) -> str:
        """One line of JSON with floats in hexadecimal, so that no bit is lost."""
        fields: dict[str, str | int] = {"kind": self.kind.value, "purpose": self.purpose}
        if self.budget is not None:
            fields["epsilon"] = float(self.budget.epsilon).hex()
            fields["delta"] = float(self.budget.delta).hex()
        if self.accounting is not Accounting.GAUSSIAN:
            fields["accounting"] = self.accounting.value
        if self.key is not None:
            fields |= {"run": self.key.run, "round": self.key.round, "attempt": self.key.attempt}
        if self.release is not None:
            fields |= _format_release(self.release)
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
                accounting=Accounting(fields.get("accounting", Accounting.GAUSSIAN)),
                key=_parse_key(fields) if "run" in fields else None,
                release=_parse_release(fields) if "sensitivity" in fields else None,
                digest=fields.get("digest", ""),
            )
            if event.format() != text:
                raise ValueError("it is not in the canonical form")
        except _UNREADABLE as error:
            raise LedgerError(f"a ledger event cannot be read ({error})") from error
        return event


def _parse_budget(fields: dict[str, str]) -> Budget:
    return Budget(epsilon=float.fromhex(fields["epsilon"]), delta=float.fromhex(fields["delta"]))


def _parse_key(fields: dict[str, str]) -> ReleaseKey:
    return ReleaseKey(run=fields["run"], round=int(fields["round"]), attempt=int(fields["attempt"]))


def _format_release(release: Release) -> dict[str, str | int]:
    slack = float(release.slack_delta).hex()
    match release:
        case GaussianRelease():
            return {
                "sensitivity": float(release.sensitivity).hex(),
                "noise_std": float(release.noise_std).hex(),
                "slack_delta": slack,
            }
        case SampledGaussianRelease():
            return {
                "sensitivity": float(release.sensitivity).hex(),
                "noise_std": float(release.noise_std).hex(),
                "sampling_rate": float(release.sampling_rate).hex(),
                "steps": release.steps,
                "slack_delta": slack,
            }
        case LaplaceRelease():
            return {
                "sensitivity": release.sensitivity,
                "scale": float(release.scale).hex(),
                "slack_delta": slack,
            }


def _parse_release(fields: dict[str, str]) -> Release:
    slack = float.fromhex(fields["slack_delta"])
    if "scale" in fields:
        return LaplaceRelease(
            sensitivity=int(fields["sensitivity"]),
            scale=float.fromhex(fields["scale"]),
            slack_delta=slack,
        )
    sensitivity = float.fromhex(fields["sensitivity"])
    noise_std = float.fromhex(fields["noise_std"])
    if "steps" in fields:
        return SampledGaussianRelease(
            sensitivity=sensitivity,
            noise_std=noise_std,
            sampling_rate=float.fromhex(fields["sampling_rate"]),
            steps=int(fields["steps"]),
            slack_delta=slack,
        )
    return GaussianRelease(sensitivity=sensitivity, noise_std=noise_std, slack_delta=slack)


def next_head(head: str, body: str) -> str:
    """Hash of an event and, through the head before it, of all earlier ones."""
    return hashlib.sha256(bytes.fromhex(head) + body.encode()).hexdigest()


class History:
    """The fold of a ledger's events; it only ever grows by `append`.

    Attributes:
        accounts: What each purpose may spend and has spent, in its present window.
    """

    def __init__(self) -> None:
        self.head = _GENESIS
        self.heads: dict[str, None] = {}
        self.events: list[LedgerEvent] = []
        self.accounts: dict[str, Account] = {}
        self.reservations: dict[ReleaseKey, Reservation] = {}
        self.replies: dict[ReleaseKey, str] = {}
        self.renewals: dict[str, LedgerEvent] = {}
        self._releases: dict[ReleaseKey, Release] = {}
        self._windows: dict[ReleaseKey, Account] = {}

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
            self.accounts[event.purpose] = Account(event.budget, event.accounting)
            return
        if event.purpose not in self.accounts:
            raise LedgerError(f"event {len(self.events) + 1} concerns nothing that is known")
        if event.kind is EventKind.RENEWED and event.budget is not None:
            account = self.accounts[event.purpose]
            self.accounts[event.purpose] = Account(event.budget, account.accounting)
            self.renewals[event.digest] = event
        elif event.key is not None:
            self._apply_release(event, event.key)
        else:
            raise LedgerError(f"event {len(self.events) + 1} concerns nothing that is known")

    def _apply_release(self, event: LedgerEvent, key: ReleaseKey) -> None:
        if event.kind is EventKind.RESERVED and event.release is not None:
            self._windows[key] = account = self.accounts[event.purpose]
            account.charge(event.release)
            self._releases[key] = event.release
            self.reservations[key] = Reservation(
                key=key,
                purpose=event.purpose,
                release=event.release,
                request_digest=bytes.fromhex(event.digest),
            )
        elif key not in self._windows:
            raise LedgerError(f"event {len(self.events) + 1} concerns nothing that is reserved")
        elif event.kind is EventKind.SETTLED and event.release is not None:
            self._windows[key].settle(self._releases[key], event.release)
            self._releases[key] = event.release
        elif event.kind is EventKind.RELEASED:
            self.replies[key] = event.digest

    def account(self, purpose: str) -> Account:
        """The account of a purpose.

        Raises:
            LedgerError: It has none.
        """
        if purpose not in self.accounts:
            raise LedgerError(f"purpose {purpose} has no budget; nothing was released")
        return self.accounts[purpose]

    def spent_ever(self, purpose: str) -> Spent:
        """Cost of everything reserved or released in all windows of a purpose together.

        A person who was a customer throughout has lost this much, whatever was renewed.
        """
        account = self.account(purpose)
        everything = Account(account.budget, account.accounting)
        for key, reservation in self.reservations.items():
            if reservation.purpose == purpose:
                everything.charge(self._releases[key])
        return everything.spent()

    def reservation(self, key: ReleaseKey) -> Reservation:
        """What was reserved for a key.

        Raises:
            LedgerError: Nothing was.
        """
        if key not in self.reservations:
            raise LedgerError(f"nothing is reserved for {key}; nothing was released")
        return self.reservations[key]

    def admit(self, purpose: str, release: Release) -> None:
        """Check that one more release stays within the budget.

        Raises:
            BudgetExhausted: It does not.
            LedgerError: The purpose has no budget, or one that does not pay for this kind.
        """
        account = self.account(purpose)
        if not account.counts(release):
            raise LedgerError(
                f"the budget of purpose {purpose} pays for Gaussian sums only, not for a "
                f"{type(release).__name__}; nothing was released"
            )
        account.admit(purpose, release)

    def admit_settling(self, key: ReleaseKey, release: Release) -> None:
        """Check that a reservation may be settled at this cost.

        Raises:
            LedgerError: It was released already, or the cost is not smaller.
        """
        now = self._releases[self.reservation(key).key]
        if key in self.replies:
            raise LedgerError(f"{key} was released already and cannot be settled")
        if not is_cheaper(release, now):
            raise LedgerError(
                f"{key} can only be settled downwards, to a release of the same kind that costs "
                f"no more than the {type(now).__name__} that was reserved"
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


def is_cheaper(release: Release, than: Release) -> bool:
    """Tell whether a release is of the same kind as another and costs no more in any way."""
    if release.slack_delta > than.slack_delta:
        return False
    match release, than:
        case GaussianRelease(), GaussianRelease():
            return release.mu <= than.mu
        case LaplaceRelease(), LaplaceRelease():
            return release.epsilon <= than.epsilon
        case SampledGaussianRelease(), SampledGaussianRelease():
            return (
                release.noise_multiplier >= than.noise_multiplier
                and release.sampling_rate <= than.sampling_rate
                and release.steps <= than.steps
            )
    return False
