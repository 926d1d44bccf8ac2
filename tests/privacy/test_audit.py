"""The audit is itself tested as an attack: planted bugs must fail it, correct code must pass.

The coins are the system's, so each audit of correct code can raise a false alarm: here once in
ten thousand runs at most.
"""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from privacy import (
    Budget,
    GaussianRelease,
    NoiseSource,
    compose,
    discrete_gaussian,
    epsilon_of,
    quantise,
)
from privacy.audit import (
    AuditFailed,
    Guesses,
    audit_clip,
    audit_release,
    epsilon_bound,
    is_gaussian_possible,
    p_value,
)

DELTA = 1e-6
SCALE = 100
ROUNDS = 20
CANARIES = 2000
NOISE_STD = 2.6 * SCALE * math.sqrt(ROUNDS)

Noise = Callable[[int], float]


def promised(rounds: int = ROUNDS) -> Budget:
    release = GaussianRelease(sensitivity=SCALE, noise_std=NOISE_STD)
    return Budget(epsilon=epsilon_of(compose([release] * rounds).mu, delta=DELTA), delta=DELTA)


def sums(noise_of: Noise, *, rounds: int = ROUNDS) -> Callable[..., NDArray[np.float64]]:
    """Real sums: clipped, on the integer grid, under integer noise."""

    def release(coins: NDArray[np.bool_]) -> NDArray[np.float64]:
        # Each canary owns one coordinate and says in it as much as it may.
        most = quantise(np.full((1, 1), 1e9), clip_norm=1.0, scale=SCALE)[0, 0]
        noise = [
            discrete_gaussian(noise_of(number), coins.size, source=NoiseSource())
            for number in range(rounds)
        ]
        return (most * coins + np.stack(noise)).astype(np.float64)

    return release


def test_correct_sums_pass_their_promise() -> None:
    release = sums(lambda _: NOISE_STD)
    report = audit_release(release, promised(), canaries=CANARIES, confidence=0.9999)

    report.verify()
    assert 0 < report.epsilon_bound < promised().epsilon < 3
    assert report.guesses.canaries == CANARIES


@pytest.mark.parametrize(
    "noise_of",
    [lambda _: NOISE_STD / 4, lambda number: 0.5 if number == 7 else NOISE_STD],
    ids=["a quarter of the noise", "no noise in every twentieth round"],
)
def test_wrong_noise_fails(noise_of: Noise) -> None:
    report = audit_release(sums(noise_of), promised(), canaries=CANARIES)

    with pytest.raises(AuditFailed, match=r"right guesses show at least .* must not be promoted"):
        report.verify()


def test_rounds_that_nobody_charged_fail() -> None:
    release = sums(lambda _: NOISE_STD, rounds=12 * ROUNDS)
    report = audit_release(release, promised(), canaries=CANARIES)

    with pytest.raises(AuditFailed):
        report.verify()


def one_contribution(*, clip_norm: float) -> Callable[[float], NDArray[np.float64]]:
    def release(length: float) -> NDArray[np.float64]:
        rows = quantise(np.array([[length, 0.0]]), clip_norm=clip_norm, scale=SCALE)
        noise = discrete_gaussian(NOISE_STD, 2, source=NoiseSource())
        return (rows.sum(axis=0) + noise) / SCALE

    return release


def test_a_clip_that_works_passes_and_one_that_is_off_fails() -> None:
    noise_std = NOISE_STD / SCALE

    seen = audit_clip(one_contribution(clip_norm=1.0), clip_norm=1.0, noise_std=noise_std)

    assert abs(seen) < 1 + 9 * noise_std
    with pytest.raises(AuditFailed, match="must be clipped to 1 came through as"):
        audit_clip(one_contribution(clip_norm=1e6), clip_norm=1.0, noise_std=noise_std)
    with pytest.raises(AuditFailed, match="came through as nan"):
        audit_clip(lambda _: np.array([math.nan]), clip_norm=1.0, noise_std=noise_std)


@pytest.mark.parametrize("mu", [0.5, 1.0, 2.0])
def test_the_bound_by_trade_off_functions_is_not_above_the_truth(mu: float) -> None:
    """The surest guesses that an exact Gaussian allows prove no more than it costs."""
    rng = np.random.default_rng(5)
    coins = rng.random(200_000) < 0.5
    scores = rng.normal(size=coins.size) + mu * coins
    each = coins.size // 20
    order = np.argsort(scores)
    right = coins[order[-each:]].sum() + (~coins[order[:each]]).sum()
    guesses = Guesses(canaries=coins.size, made=2 * each, correct=int(right))

    bound = epsilon_bound(guesses, delta=DELTA, doubt=0.05)

    truth = epsilon_of(mu, delta=DELTA)
    assert 0.6 * truth < bound <= truth


def test_the_tail_is_that_of_a_naive_sum() -> None:
    guesses = Guesses(canaries=50, made=12, correct=9)
    chance = math.e / (1 + math.e)
    law = [math.comb(12, k) * chance**k * (1 - chance) ** (12 - k) for k in range(13)]

    def tail(k: int) -> float:
        return math.fsum(law[max(0, k) :])

    naive = max((tail(9 - i) - tail(9)) / i for i in range(1, 10))
    delta = 1e-3

    assert p_value(guesses, epsilon=1.0, delta=0.0) == pytest.approx(tail(9))
    assert p_value(guesses, epsilon=1.0, delta=delta) == pytest.approx(
        tail(9) + 2 * 50 * delta * naive
    )


@given(st.integers(1, 300), st.data(), st.floats(0.01, 5), st.floats(1.01, 3))
def test_a_larger_promise_is_easier_to_keep(
    made: int, data: st.DataObject, mu: float, factor: float
) -> None:
    guesses = Guesses(canaries=400, made=made, correct=data.draw(st.integers(0, made)))

    if is_gaussian_possible(guesses, mu=mu, doubt=0.05):
        assert is_gaussian_possible(guesses, mu=mu * factor, doubt=0.05)
    assert p_value(guesses, epsilon=mu, delta=0) <= p_value(guesses, epsilon=factor * mu, delta=0)


def test_guesses_no_better_than_coins_prove_nothing() -> None:
    guesses = Guesses(canaries=2000, made=400, correct=200)

    assert epsilon_bound(guesses, delta=DELTA, doubt=0.05) == 0


def test_bad_arguments_are_refused_in_words() -> None:
    honest = sums(lambda _: NOISE_STD)
    guesses = Guesses(canaries=9, made=5, correct=3)

    with pytest.raises(ValueError, match="canaries must be at least 100, got 99"):
        audit_release(honest, promised(), canaries=99)
    with pytest.raises(ValueError, match=r"confidence must be in \(0.5, 1\), got 1"):
        audit_release(honest, promised(), confidence=1)
    with pytest.raises(ValueError, match=r"shape \(sums, 100\), got \(2, 3\)"):
        audit_release(lambda _: np.zeros((2, 3)), promised(), canaries=100)
    with pytest.raises(ValueError, match="correct <= made <= canaries, got 4, 3 and 9"):
        Guesses(canaries=9, made=3, correct=4)
    with pytest.raises(ValueError, match=r"delta must be in \(0, 1\), got 0"):
        epsilon_bound(guesses, delta=0, doubt=0.05)
    with pytest.raises(ValueError, match=r"doubt must be in \(0, 0.5\), got 0.5"):
        epsilon_bound(guesses, delta=DELTA, doubt=0.5)
    with pytest.raises(ValueError, match="clip_norm must be positive and noise_std at least 0"):
        audit_clip(one_contribution(clip_norm=1.0), clip_norm=0, noise_std=1)
