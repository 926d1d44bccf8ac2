"""Cost of releases of several kinds together, when not all of them are Gaussian sums.

Which bound holds depends on when the releases were chosen, so each purpose of a ledger says it
once and for good (`privacy.budget.Accounting`). Privacy loss distributions are the tightest,
and hold only for releases whose parameters were fixed before anything was seen. A Rényi filter
holds however they are chosen, because its order follows from the budget alone. Gaussian sums
need neither: see `privacy.accounting`.

What is not used, and why: Opacus's `gdp` accountant follows a central limit theorem and is
below the truth (epsilon 0.28 instead of 3.1 at noise_multiplier 0.5, sampling_rate 0.001, 100
steps), and Opacus's RDP orders end at 63, which makes small epsilons up to twenty times too
large.

Sources: Rényi differential privacy, Mironov 2017, https://arxiv.org/abs/1702.07476; of the
sampled Gaussian, Mironov, Talwar, Zhang 2019, https://arxiv.org/abs/1908.10530; filter,
Feldman, Zrnic 2021, https://arxiv.org/abs/2008.11193; conversion to (epsilon, delta), Canonne,
Kamath, Steinke 2020, https://arxiv.org/abs/2004.00010, Proposition 12; privacy loss
distributions, Doroshenko et al. 2022, https://arxiv.org/abs/2207.04380.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, TypeAlias

import numpy as np
from scipy.special import gammaln, logsumexp

from privacy.accounting import (
    MIN_NOISE_STD,
    ROUNDING_VARIANCE,
    GaussianRelease,
    compose,
    epsilon_of,
    slack_cost,
)
from privacy.budget import Budget

MAX_LAPLACE_SENSITIVITY: Final = 4096
_LARGEST_ORDER: Final = 1024
_MAX_STEPS: Final = 10_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledGaussianRelease:
    """Steps of DP-SGD: noisy sums over customers who were drawn anew for each step.

    Attributes:
        sensitivity: L2 bound on what one data subject adds to one sum, in integer units;
            positive.
        noise_std: Parameter of the noise in each sum, in the same units; at least 30.
        sampling_rate: Chance that a data subject is in a step, independent of all others; in
            (0, 1].
        steps: How many sums were released; 1 to 10^7.
        slack_delta: Total variation distance between the noise as sampled and its law, over
            all steps; in [0, 1).
    """

    sensitivity: int | float
    noise_std: float
    sampling_rate: float
    steps: int
    slack_delta: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.sensitivity < math.inf:
            raise ValueError(f"sensitivity must be positive and finite, got {self.sensitivity}")
        if not MIN_NOISE_STD <= self.noise_std < math.inf:
            raise ValueError(
                f"noise_std must be finite and at least {MIN_NOISE_STD:g} for discrete noise "
                f"to be accounted as Gaussian, got {self.noise_std}"
            )
        if not 0 < self.sampling_rate <= 1:
            raise ValueError(f"sampling_rate must be in (0, 1], got {self.sampling_rate}")
        if not 1 <= self.steps <= _MAX_STEPS:
            raise ValueError(f"steps must be 1 to {_MAX_STEPS}, got {self.steps}")
        if not 0 <= self.slack_delta < 1:
            raise ValueError(f"slack_delta must be in [0, 1), got {self.slack_delta}")

    @property
    def noise_multiplier(self) -> float:
        """Noise std over sensitivity, after what discrete noise loses to rounding."""
        return math.sqrt(self.noise_std**2 - ROUNDING_VARIANCE) / self.sensitivity


@dataclass(frozen=True, slots=True, kw_only=True)
class LaplaceRelease:
    """Integers, such as counts, released under discrete Laplace noise.

    Attributes:
        sensitivity: L1 bound on what one data subject adds, over all the integers; 1 to 4096.
        scale: Parameter t of the law P(k) ~ exp(-|k| / t); positive.
        slack_delta: Total variation distance between the noise as sampled and its law.
    """

    sensitivity: int
    scale: float
    slack_delta: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.sensitivity <= MAX_LAPLACE_SENSITIVITY:
            raise ValueError(
                f"sensitivity must be 1 to {MAX_LAPLACE_SENSITIVITY}, got {self.sensitivity}"
            )
        if not 0 < self.scale < math.inf:
            raise ValueError(f"scale must be positive and finite, got {self.scale}")
        if not 0 <= self.slack_delta < 1:
            raise ValueError(f"slack_delta must be in [0, 1), got {self.slack_delta}")

    @property
    def epsilon(self) -> float:
        """Cost of this release alone, with delta 0: sensitivity / scale."""
        return self.sensitivity / self.scale


Release: TypeAlias = GaussianRelease | SampledGaussianRelease | LaplaceRelease


def renyi_order(budget: Budget) -> int:
    """The order at which a budget is filtered: the best one for Gaussian sums.

    It follows from the budget alone, which is what makes the filter hold for releases that are
    chosen after seeing earlier ones.
    """
    return _best_order(budget.epsilon, budget.delta)


def renyi_cost(release: Release, *, order: int) -> float:
    """Rényi divergence of a release at an integer order, in nats.

    Args:
        release: What was released.
        order: At least 2.

    Raises:
        ValueError: The order is below 2.
    """
    if order < 2:
        raise ValueError(f"order must be at least 2, got {order}")
    match release:
        case GaussianRelease():
            return order * release.mu**2 / 2
        case LaplaceRelease():
            return _laplace(order, release.sensitivity, release.scale)
        case SampledGaussianRelease():
            step = _sampled_gaussian(order, release.noise_multiplier, release.sampling_rate)
            return release.steps * step


def renyi_limit(budget: Budget, *, slack_delta: float = 0.0) -> float:
    """The largest total of `renyi_cost` at `renyi_order` that a budget pays for.

    Returns:
        Nats; below 0 when the slack alone is past the budget.
    """
    order = renyi_order(budget)
    left = budget.delta - slack_cost(slack_delta, budget.epsilon)
    return -math.inf if left <= 0 else budget.epsilon - _gap(order, left)


def epsilon_filtered(cost: float, budget: Budget, *, slack_delta: float = 0.0) -> float:
    """Epsilon at the budget's delta of releases with this total of `renyi_cost`.

    Returns:
        Nats; 0 for no cost, `inf` where the slack is past delta.
    """
    if cost == 0 and slack_delta == 0:
        return 0.0
    epsilon = cost + _gap(renyi_order(budget), budget.delta)
    # The slack takes more of delta at a larger epsilon: a few passes from below settle it.
    for _ in range(40):
        left = budget.delta - slack_cost(slack_delta, epsilon)
        if left <= 0:
            return math.inf
        raised = cost + _gap(renyi_order(budget), left)
        if raised <= epsilon * (1 + 1e-12):
            return epsilon
        epsilon = raised * (1 + 1e-12)
    return math.inf


def epsilon_planned(releases: Iterable[Release], *, delta: float) -> float:
    """Epsilon of releases whose parameters were fixed beforehand, rounded up.

    Args:
        releases: Of any kind, in any order; none costs nothing.
        delta: Chance that the bound fails; in (0, 1).

    Returns:
        Nats; exact for Gaussian sums alone, else from privacy loss distributions whose grid
        is at most a thousandth of the answer. `inf` where the slack is past delta.

    Raises:
        ValueError: delta is not in (0, 1).
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta must be in (0, 1), got {delta}")
    released = tuple(releases)
    gaussian = [release for release in released if isinstance(release, GaussianRelease)]
    if len(gaussian) == len(released):
        total = compose(gaussian)
        return epsilon_of(total.mu, delta=delta, slack_delta=total.slack_delta)
    slack_delta = math.fsum(release.slack_delta for release in released)
    epsilon = 0.0
    for _ in range(40):
        left = delta - slack_cost(slack_delta, epsilon)
        if left <= 0:
            return math.inf
        raised = _distribution_epsilon(released, left)
        if raised <= epsilon or slack_delta == 0:
            return raised
        epsilon = raised * (1 + 1e-9)
    return math.inf


def _distribution_epsilon(releases: Sequence[Release], delta: float) -> float:
    # On a coarse grid first: rounding is upwards, so a finer one can only lower the answer.
    epsilon = _pld_epsilon(releases, delta, interval=1e-3)
    return epsilon if epsilon >= 1 else _pld_epsilon(releases, delta, interval=1e-4)


def _pld_epsilon(releases: Sequence[Release], delta: float, *, interval: float) -> float:
    # Heavy, and only needed where not everything is a Gaussian sum.
    import dp_accounting  # noqa: PLC0415
    from dp_accounting.pld.pld_privacy_accountant import PLDAccountant  # noqa: PLC0415

    accountant = PLDAccountant(value_discretization_interval=interval)
    total = compose(each for each in releases if isinstance(each, GaussianRelease))
    if total.mu > 0:
        accountant.compose(dp_accounting.GaussianDpEvent(1 / total.mu))
    # Equal releases are composed at once: a year of daily counts costs what one does.
    for release, times in Counter(releases).items():
        match release:
            case LaplaceRelease():
                counts = dp_accounting.dp_event.DiscreteLaplaceDpEvent(
                    noise_parameter=1 / release.scale, sensitivity=release.sensitivity
                )
                accountant.compose(counts, times)
            case SampledGaussianRelease():
                step = dp_accounting.PoissonSampledDpEvent(
                    release.sampling_rate, dp_accounting.GaussianDpEvent(release.noise_multiplier)
                )
                accountant.compose(step, times * release.steps)
    return float(accountant.get_epsilon(delta))


@lru_cache(maxsize=1024)
def _best_order(epsilon: float, delta: float) -> int:
    # A Gaussian sum costs order mu^2 / 2, so this order leaves room for the largest mu.
    orders = range(2, _LARGEST_ORDER + 1)
    return max(orders, key=lambda order: (epsilon - _gap(order, delta)) / order)


def _gap(order: int, delta: float) -> float:
    """What the conversion to (epsilon, delta) adds to a Rényi divergence."""
    return math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)


@lru_cache(maxsize=4096)
def _sampled_gaussian(order: int, noise_multiplier: float, sampling_rate: float) -> float:
    """One step at an integer order: Mironov, Talwar, Zhang 2019, section 3.3."""
    if sampling_rate == 1:
        return order / (2 * noise_multiplier**2)
    k = np.arange(order + 1, dtype=np.float64)
    choose = gammaln(order + 1) - gammaln(k + 1) - gammaln(order - k + 1)
    drawn = k * math.log(sampling_rate) + (order - k) * math.log1p(-sampling_rate)
    moments = choose + drawn + (k * k - k) / (2 * noise_multiplier**2)
    return max(0.0, float(logsumexp(moments))) / (order - 1)


@lru_cache(maxsize=4096)
def _laplace(order: int, sensitivity: int, scale: float) -> float:
    """E_Q[(P/Q)^order] for laws that are `sensitivity` apart, summed over all integers.

    Of all contributions of this L1 norm, one that is all in one integer costs most: the cost of
    a shift, divided by the shift, only grows.
    """
    rate = 1 / scale
    log_mass = math.log(math.tanh(rate / 2))
    log_tail = log_mass - math.log(-math.expm1(-rate))
    k = np.arange(1, sensitivity, dtype=np.float64)
    between = order * rate * (sensitivity - 2 * k) + log_mass - rate * (sensitivity - k)
    tails = [
        (order - 1) * rate * sensitivity + log_tail,
        -order * rate * sensitivity + log_tail,
    ]
    return max(0.0, float(logsumexp(np.concatenate([tails, between])))) / (order - 1)
