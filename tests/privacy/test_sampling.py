"""Batches are tested as a distribution, from a fixed keystream; false alarms one in a million."""

import numpy as np
import pytest
from scipy.stats import binom, chi2

from privacy import NoiseSource
from privacy.sampling import PoissonSampler

FALSE_ALARM = 1e-6


def source() -> NoiseSource:
    return NoiseSource.deterministic(bytes(range(32)))


@pytest.mark.parametrize(("n", "rate"), [(40, 0.1), (30, 0.7), (1000, 0.01)])
def test_the_size_of_a_batch_is_binomial(n: int, rate: float) -> None:
    sampler, stream = PoissonSampler(n, rate), source()
    sizes = np.array([sampler.draw(stream).size for _ in range(20_000)])

    law = binom.pmf(np.arange(n + 1), n, rate)
    is_common = law * sizes.size >= 20
    seen = np.bincount(sizes, minlength=n + 1)
    observed = np.append(seen[is_common], seen[~is_common].sum())
    expected = np.append(law[is_common], law[~is_common].sum()) * sizes.size
    statistic = ((observed - expected) ** 2 / expected).sum()
    assert chi2.sf(statistic, observed.size - 1) > FALSE_ALARM


@pytest.mark.parametrize(("n", "rate"), [(12, 0.2), (12, 0.8)])
def test_each_pair_of_customers_is_drawn_independently(n: int, rate: float) -> None:
    sampler, stream, draws = PoissonSampler(n, rate), source(), 20_000
    drawn = np.zeros((draws, n))
    for turn in range(draws):
        drawn[turn, sampler.draw(stream)] = 1

    together = drawn.T @ drawn / draws
    wanted = np.where(np.eye(n) == 1, rate, rate**2)
    deviation = np.abs(together - wanted) / np.sqrt(wanted * (1 - wanted) / draws)
    assert deviation.max() < 5.6  # of 78 cells none beyond, but for one key in a million


def test_a_batch_names_each_customer_once_and_in_order() -> None:
    sampler, stream = PoissonSampler(5000, 0.3), source()

    for _ in range(20):
        batch = sampler.draw(stream)
        assert (np.diff(batch) > 0).all()
        assert 0 <= batch.min() <= batch.max() < 5000


def test_a_rate_of_one_takes_everybody_and_nobody_gives_an_empty_batch() -> None:
    assert PoissonSampler(7, 1.0).draw(source()).tolist() == list(range(7))
    assert PoissonSampler(0, 0.5).draw(source()).size == 0


def test_what_the_size_may_be_off_by_is_told() -> None:
    assert 0 < PoissonSampler(1_000_000, 0.01).slack < 2.0**-48


@pytest.mark.parametrize(
    ("n", "rate", "message"),
    [
        (-1, 0.5, r"n_customers must be in \[0, 2\^40\], got -1"),
        (5, 0.0, r"sampling_rate must be in \(0, 1\], got 0.0"),
        (5, 1.5, r"sampling_rate must be in \(0, 1\], got 1.5"),
    ],
)
def test_a_sampler_refuses_what_is_no_chance(n: int, rate: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PoissonSampler(n, rate)
