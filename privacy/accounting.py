"""Exact cost of releasing sums under Gaussian noise.

Everything that leaves a node is a sum of integers with integer noise. Its cost
is one number, `mu`: telling the two neighbouring worlds apart is as hard as
telling N(0, 1) from N(mu, 1). These numbers compose exactly, as the root of the
sum of squares, also when a release is chosen after seeing the earlier ones, so
no bound is lost to composition and epsilon is computed once, at the end.

Discrete noise. A discrete Gaussian P(k) ~ exp(-k^2 / (2 s^2)) is accounted as
the continuous Gaussian of variance s^2 - 9, which is a bound and not an
approximation: draw x from N(0, s^2 - 9), then round x to an integer at random by
a discrete Gaussian of variance 9 centred at x. The result has the law of
variance s^2 up to a factor 1 +- 4 exp(-2 pi^2 9), under 1e-76, because the
normalising sum over the integers depends on the centre no more than that. Adding
an integer commutes with this rounding, so the discrete release is a
post-processing of the continuous one. A sum of discrete Gaussian shares, each of
parameter 4 or more, differs from the discrete Gaussian of the summed variance by
a factor of at most 1 +- 1e-67 for 50 shares. Both factors are far below the
2^-48 that `privacy.noise` grants its sampler for each value.

Sources: convolution theorem, Peikert 2010, Theorem 3.1,
https://eprint.iacr.org/2010/088; sums of shares, Kairouz, Liu, Steinke 2021,
https://arxiv.org/abs/2102.06387; Gaussian differential privacy, Dong, Roth, Su
2019, https://arxiv.org/abs/1905.02383; exact Gaussian profile, Balle, Wang 2018,
https://arxiv.org/abs/1805.06530.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from scipy.special import log_ndtr

from privacy.budget import Budget

MIN_NOISE_STD: Final = 30.0
ROUNDING_VARIANCE: Final = 9.0
# Planned noise is this much larger than needed, so that a plan that spends its
# budget to the last digit is not refused over the last bit of a square root.
_PLANNING_MARGIN: Final = 1e-9
_MAX_SENSITIVITY: Final = 2.0**53


@dataclass(frozen=True, slots=True, kw_only=True)
class GaussianRelease:
    """One sum of integer vectors, released under discrete Gaussian noise.

    Attributes:
        sensitivity: L2 bound on what one data subject adds to the sum, in integer
            units; in (0, 2^53].
        noise_std: Parameter of the noise in the released sum, in the same units;
            at least 30. Noise of tolerated colluders is not counted.
        slack_delta: Total variation distance between the noise as sampled and its
            law, over all coordinates and shares; in [0, 1).
    """

    sensitivity: int | float
    noise_std: float
    slack_delta: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.sensitivity <= _MAX_SENSITIVITY:
            raise ValueError(f"sensitivity must be in (0, 2^53], got {self.sensitivity}")
        if not MIN_NOISE_STD <= self.noise_std < math.inf:
            raise ValueError(
                f"noise_std must be finite and at least {MIN_NOISE_STD:g} for discrete noise "
                f"to be accounted as Gaussian, got {self.noise_std}"
            )
        if not 0 <= self.slack_delta < 1:
            raise ValueError(f"slack_delta must be in [0, 1), got {self.slack_delta}")

    @property
    def mu(self) -> float:
        """Cost of this release: sensitivity / sqrt(noise_std^2 - 9)."""
        return self.sensitivity / math.sqrt(self.noise_std**2 - ROUNDING_VARIANCE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Composition:
    """The cost of several releases together.

    Attributes:
        mu: Root of the sum of the squared costs.
        slack_delta: Sum of the slacks.
    """

    mu: float
    slack_delta: float


def compose(releases: Iterable[GaussianRelease]) -> Composition:
    """Cost of all releases together, in any order; none costs nothing."""
    costs = [(release.mu, release.slack_delta) for release in releases]
    return Composition(
        mu=math.sqrt(math.fsum(mu * mu for mu, _ in costs)),
        slack_delta=math.fsum(slack for _, slack in costs),
    )


def delta_of(mu: float, *, epsilon: float, slack_delta: float = 0.0) -> float:
    """The smallest delta at which a cost of `mu` is within `epsilon`.

    Args:
        mu: Gaussian cost; finite and at least 0.
        epsilon: Privacy loss bound, in nats; at least 0.
        slack_delta: Total variation distance of the noise from its law.

    Returns:
        Phi(-epsilon/mu + mu/2) - e^epsilon Phi(-epsilon/mu - mu/2), plus
        (1 + e^epsilon) slack_delta: a law that is off by t in either world moves
        the guarantee by t in one and by e^epsilon t in the other. At most 1.

    Raises:
        ValueError: An argument is out of its range.

    Source: Balle, Wang 2018, Theorem 8, https://arxiv.org/abs/1805.06530
    """
    _check_mu(mu)
    if not 0 <= epsilon < math.inf:
        raise ValueError(f"epsilon must be finite and at least 0, got {epsilon}")
    return min(1.0, _profile(mu, epsilon) + slack_cost(slack_delta, epsilon))


def epsilon_of(mu: float, *, delta: float, slack_delta: float = 0.0) -> float:
    """The smallest epsilon, rounded up, at which a cost of `mu` is within `delta`.

    Args:
        mu: Gaussian cost; finite and at least 0.
        delta: Chance that the bound fails; in (0, 1).
        slack_delta: Total variation distance of the noise from its law.

    Returns:
        Epsilon in nats, for mu above 1e-4 too large by at most 1e-9 of itself;
        `inf` where the slack is so large that no epsilon holds.

    Raises:
        ValueError: An argument is out of its range.
    """
    _check_mu(mu)
    if not 0 < delta < 1:
        raise ValueError(f"delta must be in (0, 1), got {delta}")
    epsilon = 0.0
    # The slack costs more at a larger epsilon. Starting from below, each pass
    # raises epsilon towards the smallest one that pays for its own slack, and adds
    # a growing hair, because the last digits of a profile near 0 are rounding.
    for attempt in range(40):
        left = delta - slack_cost(slack_delta, epsilon)
        if left <= 0:
            break
        exact = _epsilon_without_slack(mu, delta=left)
        hair = 1e-12 * 2.0**attempt if attempt else 0.0
        epsilon = exact + hair * (exact + 1e-6)
        if _profile(mu, epsilon) + slack_cost(slack_delta, epsilon) <= delta:
            return epsilon
    return math.inf


def mu_for(budget: Budget, *, slack_delta: float = 0.0) -> float:
    """The largest cost, rounded down, that a budget pays for.

    Args:
        budget: Epsilon and delta.
        slack_delta: Slack of all the releases that the budget is to pay for.

    Raises:
        ValueError: The slack alone is more than the budget's delta.
    """
    left = budget.delta - slack_cost(slack_delta, budget.epsilon)
    if left <= 0:
        raise ValueError(
            f"slack_delta {slack_delta:.2g} alone is past delta {budget.delta:.2g} "
            f"at epsilon {budget.epsilon:.4g}"
        )
    upper = 1.0
    while _profile(upper, budget.epsilon) <= left:
        upper *= 2
    return _last_true(lambda mu: _profile(mu, budget.epsilon) <= left, upper=upper)


def noise_std_of(mu: float, *, sensitivity: float) -> float:
    """The noise_std at which a sum of this sensitivity costs at most `mu`.

    Use it to split a budget: shares of `mu_for(budget)` whose squares add up to
    its square may be given to releases of different kinds.

    Raises:
        ValueError: An argument is not positive.
    """
    if not 0 < mu < math.inf:
        raise ValueError(f"mu must be positive and finite, got {mu}")
    if not 0 < sensitivity <= _MAX_SENSITIVITY:
        raise ValueError(f"sensitivity must be in (0, 2^53], got {sensitivity}")
    exact = math.hypot(sensitivity / mu, math.sqrt(ROUNDING_VARIANCE))
    return max(MIN_NOISE_STD, exact * (1 + _PLANNING_MARGIN))


def noise_std_for(
    budget: Budget, *, sensitivity: float, releases: int = 1, slack_delta: float = 0.0
) -> float:
    """The noise_std at which that many equal releases fit the budget.

    Args:
        budget: Epsilon and delta, for all of the releases together.
        sensitivity: L2 bound of one data subject's part of one sum, integer units.
        releases: How many sums; at least 1.
        slack_delta: Slack of one release.

    Raises:
        ValueError: An argument is out of range, or the slack is past delta.
    """
    if releases < 1:
        raise ValueError(f"releases must be at least 1, got {releases}")
    mu = mu_for(budget, slack_delta=releases * slack_delta)
    return noise_std_of(mu / math.sqrt(releases), sensitivity=sensitivity)


def _check_mu(mu: float) -> None:
    if not 0 <= mu < math.inf:
        raise ValueError(f"mu must be finite and at least 0, got {mu}")


def _profile(mu: float, epsilon: float) -> float:
    """Delta of the exact Gaussian trade-off; both terms in logarithms."""
    if mu == 0:
        return 0.0
    first = float(log_ndtr(mu / 2 - epsilon / mu))
    if first == -math.inf:
        return 0.0
    second = epsilon + float(log_ndtr(-mu / 2 - epsilon / mu))
    return -math.exp(first) * math.expm1(min(0.0, second - first))


def slack_cost(slack_delta: float, epsilon: float) -> float:
    """The part of delta that noise takes up by being off its law, in both worlds.

    Raises:
        ValueError: The slack is negative or not finite.
    """
    if not 0 <= slack_delta < math.inf:
        raise ValueError(f"slack_delta must be finite and at least 0, got {slack_delta}")
    if slack_delta == 0:
        return 0.0
    # Past e^600 any slack is past any delta; e^710 would not fit a float.
    return slack_delta * (1 + math.exp(min(epsilon, 600.0)))


def _epsilon_without_slack(mu: float, *, delta: float) -> float:
    # At this epsilon the first term of the profile alone is at most delta.
    upper = mu * mu / 2 + mu * math.sqrt(-2 * math.log(delta))
    if _profile(mu, 0.0) <= delta:
        return 0.0
    low = _last_true(lambda epsilon: _profile(mu, epsilon) > delta, upper=upper)
    return low * (1 + 1e-12)


def _last_true(holds: Callable[[float], bool], *, upper: float) -> float:
    """Bisect for the largest x in [0, upper) where a falling condition still holds."""
    low, high = 0.0, upper
    for _ in range(100):
        middle = (low + high) / 2
        if not low < middle < high or high - low <= 1e-13 * high:
            break
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
