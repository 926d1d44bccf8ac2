"""Bound one customer's part of a sum, then hide it under integer noise.

Contributions are clipped and put on an integer grid, noise is integer too, and
their sum is exact: no float plus float noise ever leaves a node, because the
rounding of such an addition betrays what was added (Mironov 2012,
https://www.microsoft.com/en-us/research/publication/on-significance-of-the-least-significant-bits-for-differential-privacy/).
All randomness comes from a `NoiseSource` that the operating system has keyed;
no seed from a configuration, NumPy or PyTorch can reach it. The arrays passed in
are never changed. What the noise costs is for `privacy.accounting`.

Not promised: constant time. The sampler reads a table at random places, so
somebody who measures this process's caches could learn about the noise.
"""

import math
import os
from dataclasses import dataclass
from decimal import Decimal, localcontext
from functools import lru_cache
from typing import Final, Self

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

SLACK_PER_VALUE: Final = 2.0**-48
_ZEROS: Final = bytes(1 << 16)
_BATCH: Final = 1 << 15
_AROUND_BATCH: Final = 1 << 15
_WIDE_BATCH: Final = 1 << 14
_NARROW: Final = 256.0
_UNDECIDED: Final = -(2**15)
_MAX_DISTINCT: Final = 64


class NoiseSource:
    """Uniform random words: an AES-256-CTR keystream under a key from the system.

    One source is for one thread of one process. After a fork the child must make
    its own, since both would draw the same noise; the child's first draw says so.

    Attributes:
        is_secret: Whether nobody knows the key; a release must demand it.
    """

    def __init__(self) -> None:
        self._start(os.urandom(32), is_secret=True)

    @classmethod
    def deterministic(cls, key: bytes) -> Self:
        """A source that repeats itself, for tests and benchmarks; never for a release.

        Args:
            key: 32 bytes. Whoever has them can subtract the noise.
        """
        if len(key) != 32:
            raise ValueError(f"key must have 32 bytes, got {len(key)}")
        source = cls.__new__(cls)
        source._start(key, is_secret=False)
        return source

    def _start(self, key: bytes, *, is_secret: bool) -> None:
        # One key per source and never a second stream under it: no nonce is needed.
        self._stream = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
        self._process = os.getpid()
        self.is_secret = is_secret

    def uniform64(self, n: int) -> NDArray[np.uint64]:
        """Draw `n` independent words, each uniform over [0, 2^64)."""
        if os.getpid() != self._process:
            raise RuntimeError("a noise source cannot be used after a fork; make a new one")
        size_bytes = 8 * n
        # `update_into` wants room for one more block, less a byte.
        buffer = np.empty(size_bytes + 15, dtype=np.uint8)
        room = buffer.data
        for start in range(0, size_bytes, len(_ZEROS)):
            zeros = memoryview(_ZEROS)[: size_bytes - start]
            self._stream.update_into(zeros, room[start : start + len(zeros) + 15])
        return buffer[:size_bytes].view("<u8").astype(np.uint64, copy=False)


@dataclass(frozen=True, slots=True, eq=False)
class _HalfNormal:
    """Table of P(h) ~ exp(-h^2 / (2 ratio^2)) over h >= 0, whole steps of wide noise.

    Attributes:
        ratio: noise_std in steps; the sampler fills the gaps between the steps.
        edges: floor(2^64 P(H <= h)) for h = 0, 1, ..., shape (n_values - 1,).
        guide: By the word's top 16 bits: h, or -1 where those bits do not decide.
        sure: By h: a word whose lower 48 bits are below this is accepted whatever
            its offset, shape (n_values + 1,); 0 for h = 0 and for undecided words.
    """

    ratio: float
    edges: NDArray[np.uint64]
    guide: NDArray[np.int16]
    sure: NDArray[np.uint64]


@lru_cache(maxsize=256)
def _half_normal(ratio: float) -> _HalfNormal:
    with localcontext(prec=60):
        factor = (-1 / (2 * Decimal(ratio) ** 2)).exp()
        square = factor * factor
        weight, total = Decimal(1), Decimal(0)
        sums = []
        # Below 1e-24 the whole tail is under 64 * 1e-24, less than 2^-64.
        while weight > Decimal("1e-24"):
            total += weight
            sums.append(total)
            weight *= factor  # exp(-(h+1)^2 c) = exp(-h^2 c) * exp(-(2h+1) c)
            factor *= square
        edges = np.array([int(part * 2**64 / total) for part in sums[:-1]], dtype=np.uint64)
    first = np.arange(1 << 16, dtype=np.uint64) << np.uint64(48)
    low = np.searchsorted(edges, first, side="right")
    high = np.searchsorted(edges, first + np.uint64(2**48 - 1), side="right")
    # The least chance that any offset of step h is accepted with, rounded down to 12 bits.
    least = np.exp(-(2 * np.arange(edges.size + 2) + 1) / (2 * ratio * ratio)) * (1 - 2.0**-30)
    least[[0, -1]] = 0
    sure = np.floor(least * 2**12).astype(np.uint64) << np.uint64(36)
    return _HalfNormal(ratio, edges, np.where(low == high, low, -1).astype(np.int16), sure)


@dataclass(frozen=True, slots=True, eq=False)
class _WholeNormal:
    """Table of P(k) ~ exp(-k^2 / (2 noise_std^2)) over all integers, narrow noise.

    Attributes:
        reach: The largest value.
        edges: floor(2^64 P(K <= k)) for k = -reach, ..., reach - 1.
        guide: By the word's top 16 bits: k, or _UNDECIDED.
    """

    reach: int
    edges: NDArray[np.uint64]
    guide: NDArray[np.int16]


@lru_cache(maxsize=64)
def _whole_normal(noise_std: float) -> _WholeNormal:
    with localcontext(prec=60):
        factor = (-1 / (2 * Decimal(noise_std) ** 2)).exp()
        square, weight, weights = factor * factor, Decimal(1), list[Decimal]()
        # Below 1e-24 the whole tail is under 256 * 1e-24 at either end, less than 2^-64.
        while weight > Decimal("1e-24"):
            weights.append(weight)
            weight *= factor  # exp(-(k+1)^2 c) = exp(-k^2 c) * exp(-(2k+1) c)
            factor *= square
        reach = len(weights) - 1
        total, running, edges = 2 * sum(weights) - 1, Decimal(0), []
        for weight in (weights[:0:-1] + weights)[:-1]:
            running += weight
            edges.append(int(running * 2**64 / total))
    words = np.array(edges, dtype=np.uint64)
    first = np.arange(1 << 16, dtype=np.uint64) << np.uint64(48)
    low = np.searchsorted(words, first, side="right")
    high = np.searchsorted(words, first + np.uint64(2**48 - 1), side="right")
    guide = np.where(low == high, low - reach, _UNDECIDED).astype(np.int16)
    return _WholeNormal(reach, words, guide)


def discrete_gaussian(
    noise_std: float | NDArray[np.float64], size: int, *, source: NoiseSource
) -> NDArray[np.int64]:
    """Draw integers with the law P(k) ~ exp(-k^2 / (2 noise_std^2)).

    Args:
        noise_std: One parameter, or one for each value, shape (size,), with at
            most 64 distinct ones; each in [0.5, 2^40].
        size: How many values.
        source: Where the randomness comes from.

    Returns:
        Independent values, shape (size,), within `sampler_slack(size)` of the law.

    Raises:
        ValueError: A parameter is out of range, or the shapes disagree.

    Method: up to 256 a table of 64-bit edges, of which 16 bits nearly always decide;
    above it a multiple of a power of two from a half-normal table of such edges
    (noise_std / step in [32, 64)), a uniform offset below that power, rejection
    for the rest of the exponent (about 1 in 100), and a sign. It is the exact law:
    adding two scaled draws instead would not be. One random word gives all four;
    the 4 in 100 that its bits do not settle draw more.
    """
    if np.ndim(noise_std) == 0:
        return _draw(_checked_std(float(noise_std)), size, source)
    stds, which = np.unique(np.asarray(noise_std, dtype=np.float64), return_inverse=True)
    if which.shape != (size,):
        raise ValueError(f"noise_std must have shape ({size},), got {which.shape}")
    if stds.size > _MAX_DISTINCT:
        raise ValueError(f"noise_std may have {_MAX_DISTINCT} distinct values, got {stds.size}")
    values = np.empty(size, dtype=np.int64)
    for index, std in enumerate(stds):
        places = np.flatnonzero(which == index)
        values[places] = _draw(_checked_std(float(std)), places.size, source)
    return values


@dataclass(frozen=True, slots=True, eq=False)
class _Geometric:
    """Table of P(h) ~ exp(-h step / scale) over h >= 0.

    Attributes:
        step: Power of two; the sampler fills the gaps between multiples of it.
        edges: floor(2^64 P(H <= h)) for h = 0, 1, ..., shape (n_values - 1,).
        guide: By the word's top 16 bits: h, or _UNDECIDED.
    """

    step: int
    edges: NDArray[np.uint64]
    guide: NDArray[np.int16]


@lru_cache(maxsize=64)
def _geometric(scale: float) -> _Geometric:
    step = 1 if scale < 64 else 1 << (math.frexp(scale)[1] - 6)
    with localcontext(prec=60):
        factor = (-Decimal(step) / Decimal(scale)).exp()
        weight, total, sums = Decimal(1), Decimal(0), []
        # Below 1e-24 the whole tail is under 64 * 1e-24, less than 2^-64.
        while weight > Decimal("1e-24"):
            total += weight
            sums.append(total)
            weight *= factor
        edges = np.array([int(part * 2**64 / total) for part in sums[:-1]], dtype=np.uint64)
    first = np.arange(1 << 16, dtype=np.uint64) << np.uint64(48)
    low = np.searchsorted(edges, first, side="right")
    high = np.searchsorted(edges, first + np.uint64(2**48 - 1), side="right")
    return _Geometric(step, edges, np.where(low == high, low, _UNDECIDED).astype(np.int16))


def discrete_laplace(scale: float, size: int, *, source: NoiseSource) -> NDArray[np.int64]:
    """Draw integers with the law P(k) ~ exp(-|k| / scale).

    Args:
        scale: Parameter in [0.5, 2^40]; counts of L1 sensitivity s cost s / scale.
        size: How many values.
        source: Where the randomness comes from.

    Returns:
        Independent values, shape (size,), within `sampler_slack(size)` of the law.

    Raises:
        ValueError: The parameter is out of range.

    Method: a multiple of a power of two from a geometric table of 64-bit edges (scale / step
    in [32, 64)), a uniform offset below that power, kept with a chance of exp(-offset / scale),
    which is above 0.96, and a sign.
    """
    if not 0.5 <= scale <= 2.0**40:
        raise ValueError(f"scale must be in [0.5, 2^40], got {scale}")
    table = _geometric(scale)
    values = np.empty(size, dtype=np.int64)
    filled = 0
    while filled < size:
        wanted = size - filled
        batch = _attempt_laplace(table, scale, min(_BATCH, wanted + wanted // 20 + 16), source)
        taken = min(batch.size, wanted)
        values[filled : filled + taken] = batch[:taken]
        filled += taken
    return values


def _attempt_laplace(
    table: _Geometric, scale: float, n: int, source: NoiseSource
) -> NDArray[np.int64]:
    """Draw `n` candidates and keep the accepted ones, in their order."""
    words = source.uniform64(n)
    magnitude = table.guide[(words >> np.uint64(48)).astype(np.int64)].astype(np.int64)  # (n,)
    undecided = np.flatnonzero(magnitude == _UNDECIDED)
    magnitude[undecided] = np.searchsorted(table.edges, words[undecided], side="right")
    negative = np.unpackbits(source.uniform64(n // 64 + 1).view(np.uint8), count=n) == 1
    keep = np.ones(n, dtype=np.bool_)
    if table.step > 1:
        offset = (source.uniform64(n) & np.uint64(table.step - 1)).astype(np.int64)
        magnitude = magnitude * table.step + offset
        keep = _chances(n, source) < np.exp(-offset / scale)
    # Zero has no sign: keeping -0 as well would draw it twice as often.
    keep &= (magnitude != 0) | ~negative
    kept: NDArray[np.int64] = np.where(negative, -magnitude, magnitude)[keep]
    return kept


def discrete_gaussian_around(
    centres: NDArray[np.float64], noise_std: float, *, source: NoiseSource
) -> NDArray[np.int64]:
    """Draw integers with the law P(k) ~ exp(-(k - centre)^2 / (2 noise_std^2)).

    This adds noise to a number that is no integer and rounds it, in one draw: what
    comes out is a randomised rounding of the centre plus a continuous Gaussian
    (`privacy.accounting`), so the rounding adds nothing to the sensitivity.

    Args:
        centres: One for each value, any shape; finite, below 2^50 in size.
        noise_std: Parameter, in [30, 256].
        source: Where the randomness comes from.

    Returns:
        Independent values in the shape of `centres`.

    Raises:
        ValueError: An argument is out of range.

    Method: a draw around 0, moved by the nearest integer and kept with a chance of
    exp(fraction * draw / noise_std^2), scaled to be at most 1; at least 7 in 10 are.
    """
    if not 30 <= noise_std <= _NARROW:
        raise ValueError(f"noise_std must be in [30, {_NARROW:g}], got {noise_std}")
    flat = centres.reshape(-1)
    if flat.size and not -(2.0**50) < flat.min() <= flat.max() < 2.0**50:
        raise ValueError("centres must be finite and below 2^50 in size; nothing was drawn")
    table = _whole_normal(noise_std)
    values = np.empty(flat.size, dtype=np.int64)
    for start in range(0, flat.size, _AROUND_BATCH):
        part = slice(start, start + _AROUND_BATCH)
        whole = np.rint(flat[part])
        slope = flat[part] - whole
        slope *= 1 / noise_std**2
        drawn, missing = _attempt_around(table, slope, source)
        while missing.size:
            # Four candidates for each, so that a third round is rare.
            candidates, refused = _attempt_around(table, np.tile(slope[missing], 4), source)
            kept = np.ones(candidates.size, dtype=np.bool_)
            kept[refused] = False
            which = kept.reshape(4, -1).argmax(axis=0) * missing.size + np.arange(missing.size)
            drawn[missing] = candidates[which]
            missing = missing[~kept[which]]
        whole += drawn
        values[part] = whole
    return values.reshape(centres.shape)


def sampler_slack(n_coordinates: int, *, shares: int = 1) -> float:
    """Total variation distance of that many sampled values from their exact law.

    Each value is granted 2^-48. What it uses: at most 5,500 table edges, each
    rounded down by less than 2^-64, and a tail cut of 2^-64, together under 2^-51;
    and an acceptance probability in [0.7, 1] from float64 arithmetic, off by
    under six units of 2^-53, which moves the accepted law by no more than 2^-49.
    The law's own distance from a rounded Gaussian (`privacy.accounting`, below
    1e-37 even for shares of parameter 3) disappears beside it. That AES in counter
    mode is indistinguishable from random words is assumed, not charged.

    Args:
        n_coordinates: Values in the release; at least 0.
        shares: Honest parties whose noise the release sums; at least 1.
    """
    if n_coordinates < 0 or shares < 1:
        raise ValueError(
            f"n_coordinates must be at least 0 and shares at least 1, "
            f"got {n_coordinates} and {shares}"
        )
    return n_coordinates * shares * SLACK_PER_VALUE


def share_std(total_std: float, *, cohort: int, colluders: int) -> float:
    """Each party's part of the noise, when that many others may subtract theirs.

    Args:
        total_std: Noise that must remain in the sum, integer units.
        cohort: Parties in the sum; 3 to 50.
        colluders: Parties that may pool what they know; 0 to cohort - 1.

    Returns:
        total_std / sqrt(cohort - colluders).

    Raises:
        ValueError: An argument is out of range, or the share would be below 4,
            where sums of discrete Gaussians are no longer Gaussian enough.
    """
    if not 3 <= cohort <= 50:
        raise ValueError(f"cohort must be 3 to 50 parties, got {cohort}")
    if not 0 <= colluders < cohort:
        raise ValueError(f"colluders must be 0 to {cohort - 1}, got {colluders}")
    share = total_std / math.sqrt(cohort - colluders)
    if not 4 <= share < math.inf:
        raise ValueError(f"a noise share must be finite and at least 4, got {share:.4g}")
    return share


def symmetric_noise_std(size_m: int, noise_std: float) -> NDArray[np.float64]:
    """Noise for each cell of a symmetric matrix, of which the upper half is sent.

    Args:
        size_m: Rows of the matrix.
        noise_std: Parameter on the diagonal, integer units.

    Returns:
        Shape (size_m (size_m + 1) / 2,), row by row as in `numpy.triu_indices`:
        noise_std on the diagonal, sqrt((noise_std^2 + 9) / 2) off it.

    One customer changes the matrix by a symmetric D of Frobenius norm C at most.
    A discrete Gaussian of variance v costs what a Gaussian of variance v - 9 does,
    so with w = noise_std^2 - 9 the diagonal costs sum d_ii^2 / w, and the cells off
    it, of variance (w + 18) / 2 = w / 2 + 9, cost sum over i < j of 2 d_ij^2 / w.
    As D is symmetric these add up to mu^2 = |D|_F^2 / w <= C^2 / w: the cost of
    `GaussianRelease(sensitivity=C, noise_std=noise_std)`, although noise off the
    diagonal is smaller by sqrt(2). Made of a share's parameter, the sum of n
    shares has 9 (n - 1) / 2 more variance off the diagonal than this needs.
    """
    if size_m < 1:
        raise ValueError(f"size_m must be at least 1, got {size_m}")
    rows, columns = np.triu_indices(size_m)
    off_diagonal = math.sqrt((noise_std**2 + 9) / 2)
    return np.where(rows == columns, noise_std, off_diagonal)


def clip(update: NDArray[np.float64], *, clip_norm: float) -> NDArray[np.float64]:
    """Scale an update down until its L2 norm is at most `clip_norm`.

    Args:
        update: Change of all parameters as one vector, shape (n_parameters,).
        clip_norm: Bound on the L2 norm, in parameter units; > 0.

    Returns:
        A new vector of the same shape and direction.

    Raises:
        ValueError: `clip_norm` is not positive, or `update` is not finite.

    Source: flat clipping, McMahan et al. 2018, https://arxiv.org/abs/1710.06963
    """
    clipped: NDArray[np.float64] = _clip_rows(update[np.newaxis], clip_norm)[0]
    return clipped


def quantise(
    contributions: NDArray[np.float64], *, clip_norm: float, scale: int
) -> NDArray[np.int64]:
    """Put each customer's clipped contribution on the integer grid.

    Args:
        contributions: One row for each customer, shape (n, d); n may be 0.
        clip_norm: Bound on a row's L2 norm, in the rows' units; > 0.
        scale: Grid steps in one unit; >= 1, with clip_norm * scale at most 2^30.

    Returns:
        Shape (n, d), about contributions * scale. The squared norm of each row is
        at most floor((clip_norm * scale)^2), verified in integers, so the L2
        sensitivity of the sum of rows is clip_norm * scale, rounding included.

    Raises:
        ValueError: An argument is out of range, or a contribution is not finite.
    """
    if contributions.ndim != 2:
        raise ValueError(f"contributions must have two axes, got {contributions.ndim}")
    clipped = _clip_rows(contributions, clip_norm)
    if scale < 1 or clip_norm * scale > 2**30:
        raise ValueError(
            f"scale must be at least 1 and clip_norm * scale at most 2^30, got {scale}"
        )
    numerator, denominator = float(clip_norm * scale).as_integer_ratio()
    bound = numerator**2 // denominator**2
    exact = clipped * scale
    rows = np.rint(exact).astype(np.int64)
    too_long = np.flatnonzero(_squared_norms(rows) > bound)
    while too_long.size:
        # Toward zero a row cannot grow. Only where the float product was itself a
        # last bit too long is a second pass needed, on a row that much shorter.
        rows[too_long] = np.trunc(exact[too_long]).astype(np.int64)
        exact[too_long] *= 1 - 2.0**-30
        too_long = too_long[_squared_norms(rows[too_long]) > bound]
    return rows


def _clip_rows(rows: NDArray[np.float64], clip_norm: float) -> NDArray[np.float64]:
    if not 0 < clip_norm < math.inf:
        raise ValueError(f"clip_norm must be positive, got {clip_norm}")
    if not np.isfinite(rows).all():
        raise ValueError("update must be finite, got a value that is not")
    largest = np.abs(rows).max(axis=1, initial=0.0, keepdims=True)  # (n, 1)
    # Squares of huge or tiny values leave the range of floats; of ratios never.
    unit = rows / np.where(largest > 0, largest, 1.0)
    norms = largest * np.linalg.norm(unit, axis=1, keepdims=True)  # (n, 1)
    factor = clip_norm / np.maximum(norms, clip_norm)
    clipped: NDArray[np.float64] = rows * factor
    return clipped


def _squared_norms(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    squares: NDArray[np.int64] = np.einsum("nd,nd->n", rows, rows)
    return squares


def _checked_std(noise_std: float) -> float:
    if not 0.5 <= noise_std <= 2.0**40:
        raise ValueError(f"noise_std must be in [0.5, 2^40], got {noise_std}")
    return noise_std


def _draw(noise_std: float, size: int, source: NoiseSource) -> NDArray[np.int64]:
    values = np.empty(size, dtype=np.int64)
    if noise_std > _NARROW:
        shift = math.frexp(noise_std)[1] - 6
        _fill(values, _half_normal(math.ldexp(noise_std, -shift)), shift, source)
        return values
    table = _whole_normal(noise_std)
    for start in range(0, size, _BATCH):
        batch = values[start : start + _BATCH]
        batch[:] = _draw_narrow(table, batch.size, source)
    return values


def _draw_narrow(table: _WholeNormal, n: int, source: NoiseSource) -> NDArray[np.int16]:
    """Four values a word; those whose 16 bits do not decide draw 48 more."""
    tops = source.uniform64((n + 3) // 4).view(np.uint16)[:n]
    values: NDArray[np.int16] = table.guide.take(tops)
    undecided = np.flatnonzero(values == _UNDECIDED)
    longer = tops[undecided].astype(np.uint64) << np.uint64(48)
    longer |= source.uniform64(undecided.size) >> np.uint64(16)
    values[undecided] = np.searchsorted(table.edges, longer, side="right") - table.reach
    return values


def _attempt_around(
    table: _WholeNormal, slope: NDArray[np.float64], source: NoiseSource
) -> tuple[NDArray[np.int16], NDArray[np.int64]]:
    """Draw k for each slope, and say which are not kept; chance exp(slope k - |slope| reach)."""
    drawn = _draw_narrow(table, slope.size, source)
    # No chance is below this: 16 bits accept most draws before any exponential is taken.
    steepest = max(slope.max(initial=0.0), -slope.min(initial=0.0))
    least = math.floor(2**16 * math.exp(-2 * table.reach * steepest) * (1 - 2.0**-30))
    tops = source.uniform64((slope.size + 3) // 4).view(np.uint16)[: slope.size]
    unsure = np.flatnonzero(tops >= least)
    steep = slope[unsure]
    accepted = np.exp(steep * drawn[unsure] - np.abs(steep) * table.reach)
    passed = least * 2.0**-16
    refused = _chances(unsure.size, source) * (1 - passed) >= accepted - passed
    return drawn, unsure[refused]


def _fill(values: NDArray[np.int64], table: _HalfNormal, shift: int, source: NoiseSource) -> None:
    """Fill `values` with wide noise, batch by batch that stays in the cache."""
    filled = 0
    while filled < values.size:
        batch = values[filled : filled + _WIDE_BATCH]
        # A surplus stands in for the refused ones: all are independent and alike.
        drawn, refused = _attempt_wide(table, shift, batch.size + batch.size // 40 + 8, source)
        n_places = int(np.searchsorted(refused, batch.size))
        places = refused[:n_places]
        spare = np.delete(np.arange(batch.size, drawn.size), refused[n_places:] - batch.size)
        taken = min(places.size, spare.size)
        drawn[places[:taken]] = drawn[spare[:taken]]
        whole = batch.size if taken == places.size else int(places[taken])
        batch[:whole] = drawn[:whole]
        filled += whole


def _attempt_wide(
    table: _HalfNormal, shift: int, n: int, source: NoiseSource
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw `n` candidates, and say which places were refused.

    A word's bits: 16 for the multiple, 12 that accept at once, then the sign above
    `shift` bits of offset.
    """
    words = source.uniform64(n)
    multiple = table.guide.take((words >> np.uint64(48)).view(np.int64))  # (n,)
    lower = words & np.uint64(2**48 - 1)
    unsure = np.flatnonzero(lower >= table.sure.take(multiple))
    bits = lower.view(np.int64)
    negative = bits >> shift
    negative &= 1
    step = 1 << shift
    bits &= step - 1
    offset = bits[unsure] / step
    taken = multiple[unsure].astype(np.int64)
    passed = table.sure.take(taken) * 2.0**-48  # the chance that did not take these
    undecided = np.flatnonzero(taken < 0)
    # Their top bits stay as they are, those below are drawn now.
    longer = words[unsure[undecided]] & ~np.uint64(2**48 - 1)
    longer |= source.uniform64(undecided.size) >> np.uint64(16)
    taken[undecided] = np.searchsorted(table.edges, longer, side="right")
    multiple[unsure] = taken
    accepted = np.exp(-offset * (2 * taken + offset) / (2 * table.ratio**2))
    refused = _chances(unsure.size, source) * (1 - passed) >= accepted - passed
    # Zero has no sign: keeping -0 as well would draw it twice as often.
    refused |= (taken == 0) & (offset == 0) & (negative[unsure] == 1)
    bits += multiple.astype(np.int64) << shift
    np.negative(negative, out=negative)
    bits ^= negative
    bits -= negative
    return bits, unsure[refused]


def _chances(n: int, source: NoiseSource) -> NDArray[np.float64]:
    chances = (source.uniform64(n) >> np.uint64(11)).astype(np.float64)
    chances *= 2.0**-53
    return chances
