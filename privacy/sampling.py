"""Choose who is in a batch: each customer alone, with the same chance, from secret randomness.

Poisson sampling is what the accounting of sampled steps assumes. Shuffled batches
of one size are something else, and charging them as if they were sampled reports
too little (https://arxiv.org/abs/2403.17673). A batch may be empty.

Instead of one coin for each customer, the size of the batch is drawn from the
binomial law and then that many customers uniformly: the same law, at a cost of
the batch and not of all customers.
"""

import math
from decimal import Decimal, localcontext
from typing import Final

import numpy as np
from numpy.typing import NDArray

from privacy.noise import NoiseSource

# What one draw of the size may differ from the binomial law: the table's edges.
_TAIL: Final = Decimal(2) ** -80
_MAX_CUSTOMERS: Final = 2**40


class PoissonSampler:
    """Draws batches in which each customer is with the same chance, independently.

    Attributes:
        n_customers: How many customers there are; 0 to 2^40.
        sampling_rate: Chance that a customer is in a batch; in (0, 1].
    """

    def __init__(self, n_customers: int, sampling_rate: float) -> None:
        if not 0 <= n_customers <= _MAX_CUSTOMERS:
            raise ValueError(f"n_customers must be in [0, 2^40], got {n_customers}")
        if not 0 < sampling_rate <= 1:
            raise ValueError(f"sampling_rate must be in (0, 1], got {sampling_rate}")
        self.n_customers, self.sampling_rate = n_customers, sampling_rate
        self._first, self._edges = _binomial_edges(n_customers, sampling_rate)

    @property
    def slack(self) -> float:
        """Total variation distance of one batch's size from the binomial law."""
        return (self._edges.size + 2) * 2.0**-64

    def draw(self, source: NoiseSource) -> NDArray[np.int64]:
        """One batch: numbers of customers, rising, shape (batch,); often another length."""
        word = source.uniform64(1)
        size = self._first + int(np.searchsorted(self._edges, word[0], side="right"))
        if 2 * size <= self.n_customers:
            return _subset(self.n_customers, size, source)
        # The complement of a uniform subset is one as well, and here it is smaller.
        outside = _subset(self.n_customers, self.n_customers - size, source)
        inside = np.ones(self.n_customers, dtype=np.bool_)
        inside[outside] = False
        return np.flatnonzero(inside)


def _subset(population: int, size: int, source: NoiseSource) -> NDArray[np.int64]:
    """`size` different numbers below `population`, each such set as likely as any other.

    Drawing one number after the other, and dropping those drawn before, until there
    are enough: done in rounds that never draw more than are still missing.
    """
    chosen = np.empty(0, dtype=np.int64)
    while chosen.size < size:
        more = _below(population, size - chosen.size, source)
        drawn = np.sort(np.concatenate([chosen, more]))
        chosen = drawn[np.append(True, drawn[1:] != drawn[:-1])]
    return chosen


def _below(bound: int, n: int, source: NoiseSource) -> NDArray[np.int64]:
    """At most `n` independent numbers, each uniform over [0, bound).

    The words past the last whole multiple of `bound` are dropped; no number is
    then likelier than another.
    """
    words = source.uniform64(n)
    spare = 2**64 % bound
    if spare:
        words = words[words < np.uint64(2**64 - spare)]
    return (words % np.uint64(bound)).astype(np.int64)


def _binomial_edges(n: int, rate: float) -> tuple[int, NDArray[np.uint64]]:
    """The smallest size, and floor(2^64 P(size <= k)) for it and the following ones.

    Sizes that are rarer than 2^-80 of the commonest one are cut off at either end;
    together they weigh less than 2^-64.
    """
    if n == 0 or rate == 1:
        return n, np.empty(0, dtype=np.uint64)
    with localcontext(prec=50):
        chance = Decimal(rate)
        odds = chance / (1 - chance)
        mode = math.floor((n + 1) * rate)
        above, below = [Decimal(1)], list[Decimal]()
        for k in range(mode, n):  # P(k + 1) / P(k)
            above.append(above[-1] * (n - k) / (k + 1) * odds)
            if above[-1] < _TAIL:
                break
        weight = Decimal(1)
        for k in range(mode, 0, -1):
            weight = weight * k / ((n - k + 1) * odds)
            below.append(weight)
            if weight < _TAIL:
                break
        weights = below[::-1] + above
        total, running = sum(weights, Decimal(0)), Decimal(0)
        edges = []
        for weight in weights[:-1]:
            running += weight
            edges.append(int(running * 2**64 / total))
    return mode - len(below), np.array(edges, dtype=np.uint64)
