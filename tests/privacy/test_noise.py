"""Noise is tested as a distribution, from a fixed keystream.

Each chi-squared test raises a false alarm for one key in a million; with the key
fixed here it either always passes or always fails.
"""

import math
import multiprocessing
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from scipy.stats import chi2

from privacy import (
    NoiseSource,
    clip,
    discrete_gaussian,
    discrete_gaussian_around,
    discrete_laplace,
    quantise,
    sampler_slack,
    share_std,
    symmetric_noise_std,
)

FALSE_ALARM = 1e-6
SCALES = [0.5, 1.0, 4.0, 30.0, 64.0, 256.0, 256.1, 600.0, 1e5]

numbers = st.floats(-1e200, 1e200, allow_subnormal=True)
vectors = arrays.arrays(np.float64, st.integers(1, 20), elements=numbers)
tables = arrays.arrays(np.float64, arrays.array_shapes(min_dims=2, max_dims=2), elements=numbers)


def source() -> NoiseSource:
    return NoiseSource.deterministic(bytes(range(32)))


def chi_squared(counts: NDArray[np.int64], law: NDArray[np.float64]) -> float:
    """Chance of counts at least this far from the law; bins below 20 are joined."""
    expected = law * counts.sum()
    bins = np.floor(np.cumsum(expected) / max(20.0, expected.sum() / 400)).astype(np.int64)
    seen = np.bincount(bins, weights=counts)
    wanted = np.bincount(bins, weights=expected)
    used = wanted > 0
    statistic = ((seen[used] - wanted[used]) ** 2 / wanted[used]).sum()
    return float(chi2.sf(statistic, used.sum() - 1))


def histogram_p(values: NDArray[np.int64], noise_std: float) -> float:
    """How well a sample fits P(k) ~ exp(-k^2 / 2s^2), in its shape."""
    reach = math.ceil(12 * noise_std)
    grid = np.arange(-reach, reach + 1, dtype=np.float64)
    weights = np.exp(-(grid**2) / (2 * noise_std**2))
    counts = np.bincount(values + reach, minlength=2 * reach + 1)
    return chi_squared(counts, weights / weights.sum())


def low_bits_p(values: NDArray[np.int64]) -> float:
    """How evenly a sample falls on the residues modulo 64; wide noise must."""
    return chi_squared(np.bincount(values & 63, minlength=64), np.full(64, 1 / 64))


@pytest.mark.parametrize("noise_std", SCALES)
def test_noise_has_the_exact_discrete_gaussian_law(noise_std: float) -> None:
    values = discrete_gaussian(noise_std, 1_000_000, source=source())

    assert histogram_p(values, noise_std) > FALSE_ALARM
    if noise_std >= 63:
        assert low_bits_p(values) > FALSE_ALARM


@pytest.mark.parametrize("scale", SCALES)
def test_noise_for_counts_has_the_exact_discrete_laplace_law(scale: float) -> None:
    values = discrete_laplace(scale, 1_000_000, source=source())

    reach = math.ceil(40 * scale)
    weights = np.exp(-np.abs(np.arange(-reach, reach + 1)) / scale)
    counts = np.bincount(values + reach, minlength=2 * reach + 1)
    assert chi_squared(counts, weights / weights.sum()) > FALSE_ALARM
    if scale >= 1e4:
        assert low_bits_p(values) > FALSE_ALARM


def test_noise_for_counts_that_is_one_percent_too_small_is_caught() -> None:
    values = discrete_laplace(99.0, 1_000_000, source=source())

    weights = np.exp(-np.abs(np.arange(-4000, 4001)) / 100.0)
    counts = np.bincount(values + 4000, minlength=8001)
    assert chi_squared(counts, weights / weights.sum()) < FALSE_ALARM


def test_the_widest_noise_has_the_right_spread_and_low_bits() -> None:
    values = discrete_gaussian(2.0**40, 200_000, source=source())

    assert histogram_p(values >> 30, 2.0**10) > FALSE_ALARM
    assert low_bits_p(values) > FALSE_ALARM


def test_a_sampler_that_draws_zero_twice_as_often_is_caught() -> None:
    values = np.abs(discrete_gaussian(30.0, 1_000_000, source=source()))
    folded = values[: values.size // 2] * np.where(np.arange(values.size // 2) % 2, 1, -1)
    doubled = np.concatenate([folded, np.zeros((folded == 0).sum(), dtype=np.int64)])

    assert histogram_p(folded, 30.0) > FALSE_ALARM
    assert histogram_p(doubled, 30.0) < FALSE_ALARM


def test_a_sampler_that_adds_two_scaled_draws_is_caught() -> None:
    """The trap of research: spread right within .2 %, law clumped."""
    fine = discrete_gaussian(30.0, 1_000_000, source=source())
    coarse = discrete_gaussian(30.0, 1_000_000, source=NoiseSource.deterministic(bytes(32)))
    values = fine + 333 * coarse
    wanted_std = 30 * math.hypot(1, 333)

    assert np.std(values) == pytest.approx(wanted_std, rel=3e-3)
    assert (
        chi_squared(np.bincount(values % 333, minlength=333), np.full(333, 1 / 333)) < FALSE_ALARM
    )


def test_noise_that_is_one_percent_too_small_is_caught() -> None:
    values = discrete_gaussian(594.0, 1_000_000, source=source())

    assert histogram_p(values, 600.0) < FALSE_ALARM


def test_each_value_gets_its_own_parameter() -> None:
    stds = np.tile([2.0, 900.0, 30.0], 100_000)

    values = discrete_gaussian(stds, stds.size, source=source())

    for place, noise_std in enumerate([2.0, 900.0, 30.0]):
        assert histogram_p(values[place::3], noise_std) > FALSE_ALARM


@pytest.mark.parametrize("centre", [0.0, 0.5, -0.25, 1e6 + 0.375, -3.9])
def test_noise_around_a_centre_has_the_exact_law(centre: float) -> None:
    values = discrete_gaussian_around(np.full(1_000_000, centre), 32.0, source=source())

    moved = values - round(centre)
    grid = np.arange(-400, 401)
    weights = np.exp(-((grid - (centre - round(centre))) ** 2) / (2 * 32.0**2))
    counts = np.bincount(moved + 400, minlength=801)
    assert chi_squared(counts, weights / weights.sum()) > FALSE_ALARM


def test_noise_that_ignores_the_fraction_of_its_centre_is_caught() -> None:
    values = discrete_gaussian(32.0, 1_000_000, source=source())

    weights = np.exp(-((np.arange(-400, 401) - 0.5) ** 2) / (2 * 32.0**2))
    counts = np.bincount(values + 400, minlength=801)
    assert chi_squared(counts, weights / weights.sum()) < FALSE_ALARM


@pytest.mark.parametrize(
    ("centre", "noise_std", "message"),
    [
        (0.0, 29.9, r"noise_std must be in \[30, 256\], got 29.9"),
        (0.0, 257.0, r"noise_std must be in \[30, 256\], got 257.0"),
        (math.nan, 64.0, "centres must be finite and below 2\\^50 in size; nothing was drawn"),
        (2.0**50, 64.0, "centres must be finite"),
    ],
)
def test_noise_around_a_centre_refuses_what_it_cannot_draw(
    centre: float, noise_std: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        discrete_gaussian_around(np.array([centre]), noise_std, source=source())


def test_noise_of_symmetric_matrices_is_smaller_off_the_diagonal() -> None:
    stds = symmetric_noise_std(20, 600.0)
    rows, columns = np.triu_indices(20)
    draws = discrete_gaussian(np.tile(stds, 2_000), stds.size * 2_000, source=source())
    matrices = draws.reshape(2_000, stds.size)

    assert histogram_p(matrices[:, rows == columns].ravel(), 600.0) > FALSE_ALARM
    assert (
        histogram_p(matrices[:, rows != columns].ravel(), math.sqrt((600**2 + 9) / 2)) > FALSE_ALARM
    )


@given(arrays.arrays(np.float64, (5, 5), elements=st.floats(-100, 100)), st.floats(30, 1e5))
def test_a_symmetric_change_costs_its_frobenius_norm(
    square: NDArray[np.float64], noise_std: float
) -> None:
    change = square + square.T
    upper = change[np.triu_indices(5)]

    cost = (upper**2 / (symmetric_noise_std(5, noise_std) ** 2 - 9)).sum()

    assert cost == pytest.approx((change**2).sum() / (noise_std**2 - 9))


def test_the_keystream_is_aes_256_in_counter_mode() -> None:
    """Known answer: AES-256 of the zero block under the zero key, NIST AESAVS."""
    first = NoiseSource.deterministic(bytes(32)).uniform64(2)

    assert first.astype("<u8").tobytes().hex() == "dc95c078a2408989ad48a21492842087"


@given(st.lists(st.integers(0, 20_000), min_size=1, max_size=5))
@settings(max_examples=20)
def test_words_do_not_depend_on_how_they_are_asked_for(sizes: list[int]) -> None:
    one, other = source(), source()

    parts = np.concatenate([one.uniform64(size) for size in sizes])

    assert np.array_equal(parts, other.uniform64(sum(sizes)))


def test_two_sources_share_nothing_and_only_the_unseeded_is_secret() -> None:
    first, second = NoiseSource(), NoiseSource()

    assert not np.intersect1d(first.uniform64(1000), second.uniform64(1000)).size
    assert first.is_secret
    assert not source().is_secret


def _draw_in_child(inherited: NoiseSource, answer: "multiprocessing.Queue[str]") -> None:
    try:
        inherited.uniform64(1)
    except RuntimeError as error:
        answer.put(str(error))


def test_a_source_refuses_to_draw_after_a_fork() -> None:
    context = multiprocessing.get_context("fork")
    answer: multiprocessing.Queue[str] = context.Queue()
    child = context.Process(target=_draw_in_child, args=(NoiseSource(), answer))
    child.start()

    assert answer.get(timeout=20) == ("a noise source cannot be used after a fork; make a new one")
    child.join()


def test_shares_add_up_to_the_total_without_the_colluders() -> None:
    share = share_std(120.0, cohort=5, colluders=1)

    assert share == 60.0
    assert math.sqrt(4 * share**2) == 120.0


def test_slack_counts_every_value_of_every_share() -> None:
    assert sampler_slack(1_000, shares=4) == 4_000 * 2.0**-48


@given(vectors, st.floats(1e-3, 1e3))
def test_no_update_leaves_clip_longer_than_the_bound(
    update: NDArray[np.float64], clip_norm: float
) -> None:
    before = update.copy()

    clipped = clip(update, clip_norm=clip_norm)

    assert np.linalg.norm(clipped) <= clip_norm * (1 + 1e-12)
    assert np.array_equal(update, before)
    assert np.all(np.sign(clipped) * np.sign(update) >= 0)


def test_clip_leaves_a_short_update_as_it_is() -> None:
    update = np.array([0.3, -0.4])

    assert np.array_equal(clip(update, clip_norm=0.5), update)


@given(tables, st.floats(1e-2, 1e3), st.integers(1, 10**6))
@settings(max_examples=300)
def test_no_quantised_row_is_longer_than_the_integer_bound(
    contributions: NDArray[np.float64], clip_norm: float, scale: int
) -> None:
    numerator, denominator = (clip_norm * scale).as_integer_ratio()

    rows = quantise(contributions, clip_norm=clip_norm, scale=scale)

    for row in rows.tolist():
        assert sum(value * value for value in row) * denominator**2 <= numerator**2


@given(arrays.arrays(np.float64, (4, 3), elements=st.floats(-10, 10)))
def test_quantising_moves_no_value_by_more_than_one_step(
    contributions: NDArray[np.float64],
) -> None:
    rows = quantise(contributions, clip_norm=8.0, scale=1000)

    clipped = np.array([clip(row, clip_norm=8.0) for row in contributions])
    assert np.abs(rows - clipped * 1000).max() < 1 + 1e-6


def test_nobody_contributes_nothing() -> None:
    assert quantise(np.zeros((0, 3)), clip_norm=1.0, scale=10).shape == (0, 3)


def test_the_edge_of_the_bound_is_reached_and_not_passed() -> None:
    rows = quantise(np.array([[3.0, 4.0], [30.0, 40.0]]), clip_norm=5.0, scale=1)

    assert rows.tolist() == [[3, 4], [3, 4]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: discrete_gaussian(0.4, 1, source=source()), "noise_std must be in .* got 0.4"),
        (
            lambda: discrete_gaussian(np.ones(3), 2, source=source()),
            r"noise_std must have shape \(2,\), got \(3,\)",
        ),
        (
            lambda: discrete_gaussian(np.arange(1.0, 66.0), 65, source=source()),
            "noise_std may have 64 distinct values, got 65",
        ),
        (lambda: NoiseSource.deterministic(b"short"), "key must have 32 bytes, got 5"),
        (lambda: sampler_slack(-1), "n_coordinates must be at least 0 .* got -1 and 1"),
        (lambda: share_std(30.0, cohort=2, colluders=0), "cohort must be 3 to 50 parties, got 2"),
        (lambda: share_std(30.0, cohort=3, colluders=3), "colluders must be 0 to 2, got 3"),
        (
            lambda: share_std(5.0, cohort=4, colluders=0),
            "a noise share must be finite and at least 4, got 2.5",
        ),
        (lambda: symmetric_noise_std(0, 30.0), "size_m must be at least 1, got 0"),
        (lambda: clip(np.ones(2), clip_norm=0), "clip_norm must be positive, got 0"),
        (
            lambda: clip(np.array([np.nan]), clip_norm=1),
            "update must be finite, got a value that is not",
        ),
        (
            lambda: quantise(np.ones(2), clip_norm=1, scale=1),
            "contributions must have two axes, got 1",
        ),
        (
            lambda: quantise(np.ones((1, 1)), clip_norm=2.0, scale=2**30),
            "scale must be at least 1 and clip_norm .* got 1073741824",
        ),
    ],
)
def test_bad_arguments_are_refused_in_words(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
