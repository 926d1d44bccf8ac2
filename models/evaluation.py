"""How good scores are, with intervals over customers. Pure functions of arrays."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One figure with its 95 % interval over customers.

    Attributes:
        value: On all customers.
        low: 2.5 % quantile of the bootstrap.
        high: 97.5 % quantile of the bootstrap.
        customers: How many customers stand behind it.
    """

    value: float
    low: float
    high: float
    customers: int


def auc(happened: NDArray[np.float64], score: NDArray[np.float64]) -> float:
    """Chance that somebody to whom it happened scores above somebody to whom it did not.

    Args:
        happened: 1 or 0, shape (n,); both must occur.
        score: Higher means likelier, shape (n,); ties count one half.

    Returns:
        Area under the ROC curve, in [0, 1].

    Raises:
        ValueError: only one outcome occurs.

    Source: Mann and Whitney 1947.
    """
    positive = int(happened.sum())
    negative = happened.size - positive
    if not positive or not negative:
        raise ValueError(f"AUC needs both outcomes, got {positive} and {negative}")
    ranks = rankdata(score)[happened > 0].sum()
    return float((ranks - positive * (positive + 1) / 2) / (positive * negative))


def recall_at(
    k: int, scores: NDArray[np.float64], *, seen: NDArray[np.bool_], bought: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Share of each customer's new purchases that the top k holds.

    Args:
        k: Length of the list.
        scores: Shape (n_customers, n_items); higher is better.
        seen: Items bought before, which are never recommended; same shape.
        bought: Items bought in the test window; those also `seen` are ignored; same shape.

    Returns:
        hits / min(k, new purchases) of each customer with at least one new purchase,
        shape (m,).

    Raises:
        ValueError: `k` is below 1.

    Source: recall as in Liang et al. 2018, https://arxiv.org/abs/1802.05814, section 4.2.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    new = bought & ~seen
    who = new.any(axis=1)
    masked = np.where(seen[who], -np.inf, scores[who])
    top = np.argpartition(-masked, min(k, masked.shape[1]) - 1, axis=1)[:, :k]
    hits = np.take_along_axis(new[who], top, axis=1).sum(axis=1)
    return np.asarray(hits / np.minimum(new[who].sum(axis=1), k))


def bootstrap(
    measure: Callable[[NDArray[np.intp]], float],
    customers: int,
    *,
    seed: int = 0,
    resamples: int = 300,
) -> Measure:
    """Give a figure its 95 % interval by drawing customers with replacement.

    Args:
        measure: The figure of the customers at these positions; a ValueError means that a
            resample cannot be measured, and it is left out.
        customers: Number of customers.
        seed: Of the resampling, which is no privacy mechanism.
        resamples: Number of draws.

    Source: Efron 1979, percentile interval.
    """
    generator = np.random.default_rng(seed)
    values = []
    for _ in range(resamples):
        try:
            values.append(measure(generator.integers(customers, size=customers)))
        except ValueError:
            continue
    low, high = np.quantile(values, [0.025, 0.975]) if values else (np.nan, np.nan)
    return Measure(
        value=measure(np.arange(customers)), low=float(low), high=float(high), customers=customers
    )


def auc_measure(happened: NDArray[np.float64], score: NDArray[np.float64]) -> Measure:
    """AUC with its interval."""
    return bootstrap(lambda picked: auc(happened[picked], score[picked]), happened.size)


def mean_measure(values: NDArray[np.float64]) -> Measure:
    """A mean over customers with its interval."""
    if not values.size:
        raise ValueError("the mean of no customer is not defined")
    return bootstrap(lambda picked: float(values[picked].mean()), values.size)
