"""Attack a release as well as anybody could, and say what privacy it cannot have.

An audit gives a lower bound on epsilon, with a confidence. Below the promised epsilon it proves
nothing; above, the code that made the release is wrong, and the release must not be promoted.
One run is enough: many made-up data subjects (canaries) each own one coordinate of the sum and
are put in or left out by fair coins; whoever guesses the coins better than the promise allows
has refuted it. Such canaries find wrong noise, sampling and accounting. They do not find a
missing clip, so a huge contribution is released as well (`audit_clip`).

Nothing here knows how a release is made: it is handed in, real code and not a model of it.

Sources: Steinke, Nasr, Jagielski 2023, https://arxiv.org/abs/2305.08846, theorem 5.2 for pure
guesses; Mahloujifar, Melis, Chaudhuri 2024, https://arxiv.org/abs/2410.22235, algorithm 3 for
the bound by trade-off functions.
"""

import math
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri
from scipy.stats import binom

from privacy.accounting import epsilon_of
from privacy.budget import Budget

_SHARES_GUESSED: Final = (0.02, 0.05, 0.1, 0.2, 0.4)
_SMALLEST_MU: Final = 1e-3


class AuditFailed(Exception):  # noqa: N818 - an answer, not a fault
    """A release gives away more than it promises; it must not be promoted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guesses:
    """How well somebody told canaries that were in from canaries that were not.

    Attributes:
        canaries: How many there were; at least 1.
        made: How many guesses were made, the surest ones.
        correct: How many of these were right.
    """

    canaries: int
    made: int
    correct: int

    def __post_init__(self) -> None:
        if not 0 <= self.correct <= self.made <= self.canaries or self.canaries < 1:
            raise ValueError(
                "guesses must be correct <= made <= canaries, got "
                f"{self.correct}, {self.made} and {self.canaries}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """What an audit found.

    Attributes:
        promised: The guarantee that was tested.
        epsilon_bound: With this confidence, the release has no smaller epsilon at the promised
            delta; 0 when nothing could be shown.
        confidence: Chance that the bound holds.
        guesses: What it rests on.
    """

    promised: Budget
    epsilon_bound: float
    confidence: float
    guesses: Guesses

    def verify(self) -> None:
        """Raise `AuditFailed` when the bound is above the promise."""
        if self.epsilon_bound > self.promised.epsilon:
            raise AuditFailed(
                f"the release was promised epsilon {self.promised.epsilon:.4g} at delta "
                f"{self.promised.delta:.1g}; {self.guesses.correct} of {self.guesses.made} right "
                f"guesses show at least {self.epsilon_bound:.4g} with confidence "
                f"{self.confidence:.4g}; it must not be promoted"
            )


def audit_release(
    release: Callable[[NDArray[np.bool_]], NDArray[np.float64]],
    promised: Budget,
    *,
    canaries: int = 2000,
    confidence: float = 0.95,
) -> AuditReport:
    """Release once with random canaries, and bound epsilon from below.

    Args:
        release: Takes which canaries are in, shape (canaries,), and returns their coordinates
            of each real, noised sum, shape (sums, canaries).
        promised: What the release is said to cost one data subject.
        canaries: How many; at least 100.
        confidence: Chance that the bound holds; in (0.5, 1).

    Raises:
        ValueError: An argument is out of range, or there is no value for each canary.
    """
    if canaries < 100:
        raise ValueError(f"canaries must be at least 100, got {canaries}")
    if not 0.5 < confidence < 1:
        raise ValueError(f"confidence must be in (0.5, 1), got {confidence}")
    # Fair coins that nobody can predict, or a wrong release could be made to pass.
    coins = np.frombuffer(secrets.token_bytes(canaries), np.uint8) & 1 == 1
    released = np.asarray(release(coins), np.float64)
    if released.shape[1:] != (canaries,) or not np.isfinite(released).all():
        raise ValueError(
            f"a release must give finite sums of shape (sums, {canaries}), got {released.shape}"
        )
    scores = score(released)
    # Several shares of guesses are tried: each gets its part of the doubt.
    doubt = (1 - confidence) / len(_SHARES_GUESSED)
    best = (-1.0, Guesses(canaries=canaries, made=0, correct=0))
    for share in _SHARES_GUESSED:
        guesses = guess(scores, coins, share=share)
        bound = epsilon_bound(guesses, delta=promised.delta, doubt=doubt)
        best = max(best, (bound, guesses), key=lambda found: found[0])
    return AuditReport(
        promised=promised, epsilon_bound=best[0], confidence=confidence, guesses=best[1]
    )


def audit_clip(
    release: Callable[[float], NDArray[np.float64]], *, clip_norm: float, noise_std: float
) -> float:
    """Release a contribution that is far too large, and measure what came through.

    Args:
        release: Takes the length of one data subject's contribution, all of it in the first
            coordinate and in the units of `clip_norm`, and returns the noised sum.
        clip_norm: What it must be cut down to; positive.
        noise_std: Of the released sum, in the same units.

    Returns:
        The first coordinate of the release.

    Raises:
        AuditFailed: It is more than `clip_norm` and nine standard deviations: the clip is off.
    """
    if not (0 < clip_norm < math.inf and 0 <= noise_std < math.inf):
        raise ValueError(
            f"clip_norm must be positive and noise_std at least 0, got {clip_norm} and {noise_std}"
        )
    seen = float(release(1e6 * (clip_norm + noise_std))[0])
    if not seen <= clip_norm + 9 * noise_std:
        raise AuditFailed(
            f"a contribution that must be clipped to {clip_norm:.4g} came through as {seen:.4g} "
            f"under noise of {noise_std:.4g}; it must not be promoted"
        )
    return seen


def score(released: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how surely each canary was in, as the sums say together.

    Args:
        released: Coordinates of the canaries in each sum, shape (sums, canaries).

    Returns:
        Shape (canaries,). A sum counts by the inverse of its variance over the canaries, which
        anybody can see: one with too little noise outweighs all others.
    """
    variance = released.var(axis=1, keepdims=True)  # (sums, 1)
    scores: NDArray[np.float64] = (released / np.maximum(variance, 1e-12)).sum(axis=0)
    return scores


def guess(scores: NDArray[np.float64], coins: NDArray[np.bool_], *, share: float) -> Guesses:
    """Guess the surest canaries: the highest scores as in, the lowest as out.

    Args:
        scores: One for each canary, shape (n,).
        coins: Which were in, shape (n,).
        share: Part of the canaries to guess; in (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], got {share}")
    each = max(1, int(share * scores.size / 2))
    order = np.argsort(scores, kind="stable")
    correct = int(coins[order[-each:]].sum()) + int((~coins[order[:each]]).sum())
    return Guesses(canaries=scores.size, made=2 * each, correct=correct)


def epsilon_bound(guesses: Guesses, *, delta: float, doubt: float) -> float:
    """The largest epsilon at `delta` that the guesses refute, by either of two bounds.

    The bound by trade-off functions assumes a Gaussian one, as every release here has or is
    below; the other assumes nothing. Each gets half of the doubt.

    Returns:
        Nats; 0 when they refute nothing.

    Raises:
        ValueError: delta is not in (0, 1), or doubt not in (0, 0.5).
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta must be in (0, 1), got {delta}")
    if not 0 < doubt < 0.5:
        raise ValueError(f"doubt must be in (0, 0.5), got {doubt}")
    plain = _largest(lambda epsilon: p_value(guesses, epsilon=epsilon, delta=delta) < doubt / 2)
    mu = _largest(
        lambda mu: mu > _SMALLEST_MU and not is_gaussian_possible(guesses, mu=mu, doubt=doubt / 2)
    )
    return max(plain, epsilon_of(mu, delta=delta) if mu else 0.0)


def p_value(guesses: Guesses, *, epsilon: float, delta: float) -> float:
    """Chance of this many right guesses, or more, if the release were (epsilon, delta)-DP.

    Returns:
        At most 1: beta(correct) + alpha * canaries * delta, where beta is the tail of a
        binomial with chance e^epsilon / (e^epsilon + 1) and alpha what delta can add to it.

    Source: Steinke, Nasr, Jagielski 2023, theorem 5.2 and its numerical form in appendix D.
    """
    made, correct = guesses.made, guesses.correct
    chance = 1 / (1 + math.exp(-epsilon))
    tail = float(binom.sf(correct - 1, made, chance))
    if delta == 0 or correct == 0:
        return tail
    # The mean of W over the i guesses just below: what delta can lift past the threshold.
    below = binom.pmf(np.arange(correct - 1, -1, -1), made, chance)  # (correct,)
    sums = np.cumsum(below)
    alpha = float((sums / np.arange(1, correct + 1)).max())
    return min(1.0, tail + 2 * guesses.canaries * delta * alpha)


def is_gaussian_possible(guesses: Guesses, *, mu: float, doubt: float) -> bool:
    """Tell whether a release with the trade-off function of N(0, 1) and N(mu, 1) can be guessed so.

    Args:
        guesses: What was guessed.
        mu: Cost of the release; positive.
        doubt: Chance to say no although it can.

    Source: Mahloujifar, Melis, Chaudhuri 2024, algorithm 3.
    """
    right = doubt * guesses.correct / guesses.canaries
    wrong = doubt * (guesses.made - guesses.correct) / guesses.canaries
    for i in range(guesses.correct - 1, -1, -1):
        raised = max(wrong, float(ndtr(ndtri(right) - mu)))
        right += i / (guesses.made - i) * (raised - wrong)
        wrong = raised
        if right + wrong > guesses.made / guesses.canaries:
            return False
    return True


def _largest(refuted: Callable[[float], bool]) -> float:
    """Bisect for the largest value that is still refuted; 0 when none is."""
    low, high = 0.0, 1.0
    while refuted(high):
        low, high = high, 2 * high
        if high > 1e3:
            return low
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low
