"""Own what one purpose may spend and has spent, and say no before it is too much.

Charges are kept as running sums of exact integers, so that admitting the ten-thousandth release
costs what the first did and no order of charges changes the answer. Each charge is rounded up.
"""

import math
from collections import Counter
from fractions import Fraction
from typing import Final

from privacy.accounting import (
    ROUNDING_VARIANCE,
    GaussianRelease,
    delta_of,
    epsilon_of,
    mu_for,
)
from privacy.budget import Accounting, Budget, BudgetExhausted, Remaining, Spent
from privacy.composition import (
    Release,
    epsilon_filtered,
    epsilon_planned,
    renyi_cost,
    renyi_limit,
    renyi_order,
)

_UNIT: Final = 1 << 200
_PLANNED_STEPS: Final = 12
_STD_OF_THOUSAND: Final = math.sqrt(1e6 + ROUNDING_VARIANCE)
"""With this noise a sum costs a thousandth of its sensitivity."""


class Account:
    """One window of one purpose's budget.

    Attributes:
        budget: The most that may be spent.
        accounting: Which releases it pays for, and by which bound.
    """

    def __init__(self, budget: Budget, accounting: Accounting) -> None:
        """Begin with nothing spent."""
        self.budget = budget
        self.accounting = accounting
        self._order = renyi_order(budget)
        # In 2^-200: squared mu of the Gaussian sums, Rényi cost of everything, slack.
        self._mu_squared = self._renyi = self._slack = 0
        # Equal releases are composed at once: a year of daily counts is one entry.
        self._releases: Counter[Release] = Counter()

    def counts(self, release: Release) -> bool:
        """Tell whether this budget pays for releases of this kind."""
        return self.accounting is not Accounting.GAUSSIAN or isinstance(release, GaussianRelease)

    def charge(self, release: Release) -> None:
        """Add a release that was admitted."""
        self._add(release, 1)

    def settle(self, before: Release, after: Release) -> None:
        """Replace a charge by a smaller one."""
        self._add(before, -1)
        self._add(after, 1)

    def admit(self, purpose: str, release: Release) -> None:
        """Check that one more release stays within the budget.

        Raises:
            BudgetExhausted: It does not.
        """
        after = self._with(release)
        if not after._is_within():
            raise BudgetExhausted(
                self.budget,
                purpose=purpose,
                spent=self.spent().epsilon,
                after=after.spent().epsilon,
            )

    def spent(self) -> Spent:
        """Cost of everything charged, at the budget's delta."""
        delta, slack_delta = self.budget.delta, self._slack_delta
        match self.accounting:
            case Accounting.GAUSSIAN:
                epsilon = epsilon_of(self._mu, delta=delta, slack_delta=slack_delta)
            case Accounting.ADAPTIVE:
                cost = _up(self._renyi)
                epsilon = epsilon_filtered(cost, self.budget, slack_delta=slack_delta)
            case Accounting.PLANNED:
                epsilon = epsilon_planned(self._releases.elements(), delta=delta)
        return Spent(epsilon=epsilon, delta=delta, releases=self._releases.total())

    def remaining(self) -> Remaining:
        """What is left."""
        spent = self.spent()
        if spent.epsilon >= self.budget.epsilon:
            return Remaining(epsilon=0.0, mu=0.0)
        return Remaining(epsilon=self.budget.epsilon - spent.epsilon, mu=self._mu_left())

    def affordable(self, release: Release, *, most: int) -> int:
        """How many more releases like this one the budget pays for, up to `most`.

        Raises:
            ValueError: `most` is below 1, or the budget does not pay for this kind.
        """
        if most < 1:
            raise ValueError(f"most must be at least 1, got {most}")
        if not self.counts(release):
            raise ValueError(f"this budget does not pay for a {type(release).__name__}")
        low, high = 0, 1
        while high <= most and self._with(release, times=high)._is_within():
            low, high = high, high * 2
        high = min(high, most + 1)
        while high - low > 1:
            middle = (low + high) // 2
            fits = self._with(release, times=middle)._is_within()
            low, high = (middle, high) if fits else (low, middle)
        return low

    def _is_within(self) -> bool:
        budget, slack_delta = self.budget, self._slack_delta
        match self.accounting:
            case Accounting.GAUSSIAN:
                total = delta_of(self._mu, epsilon=budget.epsilon, slack_delta=slack_delta)
                return total <= budget.delta
            case Accounting.ADAPTIVE:
                return _up(self._renyi) <= renyi_limit(budget, slack_delta=slack_delta)
            case Accounting.PLANNED:
                # The running sum is a bound as well: far from the limit it is enough.
                if _up(self._renyi) <= renyi_limit(budget, slack_delta=slack_delta):
                    return True
                exact = epsilon_planned(self._releases.elements(), delta=budget.delta)
                return exact <= budget.epsilon

    def _mu_left(self) -> float:
        slack_delta = self._slack_delta
        match self.accounting:
            case Accounting.GAUSSIAN:
                most = mu_for(self.budget, slack_delta=slack_delta)
                return math.sqrt(max(0.0, (most - self._mu) * (most + self._mu)))
            case Accounting.ADAPTIVE:
                left = renyi_limit(self.budget, slack_delta=slack_delta) - _up(self._renyi)
                return math.sqrt(max(0.0, 2 * left / self._order))
            case Accounting.PLANNED:
                # By bisection, and rounded down: each look composes everything anew.
                low, high = 0.0, mu_for(self.budget, slack_delta=slack_delta)
                for _ in range(_PLANNED_STEPS):
                    middle = (low + high) / 2
                    extra = GaussianRelease(sensitivity=1e3 * middle, noise_std=_STD_OF_THOUSAND)
                    fits = self._with(extra)._is_within()
                    low, high = (middle, high) if fits else (low, middle)
                return low

    def _with(self, release: Release, *, times: int = 1) -> "Account":
        other = Account(self.budget, self.accounting)
        other._mu_squared, other._renyi = self._mu_squared, self._renyi
        other._slack, other._releases = self._slack, self._releases
        if self.accounting is Accounting.PLANNED:
            other._releases = self._releases.copy()
            other._add(release, times)
        else:
            other._add_sums(release, times)
        return other

    def _add(self, release: Release, times: int) -> None:
        self._add_sums(release, times)
        self._releases[release] += times
        if not self._releases[release]:
            del self._releases[release]

    def _add_sums(self, release: Release, times: int) -> None:
        if isinstance(release, GaussianRelease):
            self._mu_squared += times * _exactly_up(release.mu**2)
        if self.accounting is not Accounting.GAUSSIAN:
            self._renyi += times * _exactly_up(renyi_cost(release, order=self._order))
        self._slack += times * _exactly_up(release.slack_delta)

    @property
    def _mu(self) -> float:
        return math.sqrt(_up(self._mu_squared))

    @property
    def _slack_delta(self) -> float:
        return _up(self._slack)


def _exactly_up(value: float) -> int:
    return math.ceil(Fraction(value) * _UNIT)


def _up(total: int) -> float:
    """Return a sum as a float that is not below it."""
    value = total / _UNIT
    return value if Fraction(value) * _UNIT >= total else math.nextafter(value, math.inf)
