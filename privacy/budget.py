"""What a data subject may lose, what was lost, and the refusal in between.

The unit everywhere in this package is one data subject with everything they
ever did: the guarantee compares two worlds that differ by adding or removing
one customer with all of their purchases, never by one receipt line. This module
holds numbers only; `privacy.accounting` computes them.
"""

import math
from dataclasses import dataclass
from enum import StrEnum


class Accounting(StrEnum):
    """How the releases of a budget may be chosen, and by which bound they are then counted."""

    GAUSSIAN = "gaussian"
    """Only Gaussian sums, chosen in any way; the bound is exact."""

    ADAPTIVE = "adaptive"
    """Releases of any kind, chosen in any way, also after seeing earlier ones: a Rényi filter."""

    PLANNED = "planned"
    """Releases of any kind whose parameters were fixed before the first: the tightest bound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The most one data subject may lose to all releases for one purpose.

    Attributes:
        epsilon: Privacy loss bound, in nats; positive and finite.
        delta: Chance that the bound fails; in (0, 1), far below 1 / subjects.
    """

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        if not 0 < self.epsilon < math.inf:
            raise ValueError(f"epsilon must be positive and finite, got {self.epsilon}")
        if not 0 < self.delta < 1:
            raise ValueError(f"delta must be in (0, 1), got {self.delta}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What one data subject has lost so far for one purpose.

    Attributes:
        epsilon: Privacy loss of all releases together, in nats; `inf` if the
            samplers' slack alone is larger than delta.
        delta: Where epsilon was evaluated; the budget's own delta.
        releases: Number of releases counted, those still only reserved included.
    """

    epsilon: float
    delta: float
    releases: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Remaining:
    """What is left of a budget.

    Attributes:
        epsilon: Budget minus spent, in nats; at least 0. Epsilons do not add up:
            two releases of half of it each cost less than all of it.
        mu: The largest Gaussian `mu` that one further sum may have. These do
            add up, in squares.
    """

    epsilon: float
    mu: float


class BudgetExhausted(Exception):  # noqa: N818 - an answer, not a fault
    """A release was refused: it would take the total past the budget.

    Raised before any noise is drawn, so nothing has left the node.
    """

    def __init__(self, budget: Budget, *, purpose: str, spent: float, after: float) -> None:
        super().__init__(
            f"purpose {purpose}: epsilon would be {after:.4g}, the budget is "
            f"{budget.epsilon:.4g} and {spent:.4g} is spent (delta {budget.delta:.1g}); "
            "nothing was released"
        )
        self.budget, self.purpose, self.spent, self.after = budget, purpose, spent, after
