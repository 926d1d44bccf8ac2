"""What a model trained on sums is: a fixed schedule of bounded sums, and the arithmetic between.

A recipe says beforehand which sums it will ask for, how far one data subject can move each,
and how much noise hides that. The same recipe then runs on one brand's rows, on pooled rows,
or over a federation; only where the sum comes from differs. Nothing here draws noise for a
release: `fit` serves models that stay where the rows are.
"""

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from privacy import (
    Budget,
    GaussianRelease,
    NoiseSource,
    discrete_gaussian,
    mu_for,
    sampler_slack,
    symmetric_noise_std,
)

# The accounted noise is sqrt(noise_std^2 - 9) (see privacy.accounting); one part in 10^7 more
# keeps the planned epsilon at or under its budget for every noise_std above 6,800.
_ROUNDING_MARGIN = 1 + 1e-7

Parameters = Mapping[str, NDArray[np.float64]]
Rows_contra = TypeVar("Rows_contra", contravariant=True)


class Layout(StrEnum):
    """How a sum is laid out as one vector."""

    VECTOR = "vector"
    SYMMETRIC = "symmetric"


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One sum over customers, as every participant can price it before any data is opened.

    Attributes:
        name: What is summed, for people and for the audit log.
        dimension: Length of the vector; for a symmetric m x m matrix m * (m + 1) / 2.
        clip_norm: Bound on one data subject's L2 (for a matrix: Frobenius) norm; > 0.
        scale: Integer steps per 1.0, so that sums are exact; > 0.
        noise_multiplier: Total noise std / clip_norm, a ratio; > 0.
        layout: Whether the vector is the upper triangle of a symmetric matrix.
    """

    name: str
    dimension: int
    clip_norm: float
    scale: int
    noise_multiplier: float
    layout: Layout = Layout.VECTOR

    def __post_init__(self) -> None:
        if self.dimension < 1 or self.scale < 1:
            raise ValueError(
                f"dimension and scale must be at least 1, got {self.dimension} and {self.scale}"
            )
        for field in ("clip_norm", "noise_multiplier"):
            value = getattr(self, field)
            if not 0 < value < math.inf:
                raise ValueError(f"{field} must be positive and finite, got {value}")

    @property
    def total_noise_std(self) -> float:
        """Noise that hides one data subject in this sum, in integer steps."""
        return self.noise_multiplier * self.clip_norm * self.scale

    def noise_std(self, *, fraction: float) -> NDArray[np.float64] | float:
        """Std of the noise on each coordinate when a node draws `fraction` of the total."""
        std = self.total_noise_std * fraction
        if self.layout is Layout.VECTOR:
            return std
        return symmetric_noise_std(matrix_size(self.dimension), std)

    def release(self, *, shares: int) -> GaussianRelease:
        """This sum as the ledger charges it, its noise drawn by that many nodes."""
        return GaussianRelease(
            sensitivity=self.clip_norm * self.scale,
            noise_std=self.total_noise_std,
            slack_delta=sampler_slack(self.dimension, shares=shares),
        )


class Recipe(Protocol[Rows_contra]):
    """A model that is trained on a fixed schedule of sums."""

    @property
    def queries(self) -> tuple[Query, ...]:
        """The sums, in the order they are asked for."""

    def begin(self) -> Parameters:
        """Public starting parameters."""

    def announce(self, step: int, parameters: Parameters) -> Parameters:
        """The part of `parameters` that a participant needs to answer `step`."""

    def answer(self, step: int, announced: Parameters, rows: Rows_contra) -> NDArray[np.int64]:
        """The exact integer sum over `rows`, each data subject within the query's bound."""

    def advance(self, step: int, parameters: Parameters, total: NDArray[np.float64]) -> Parameters:
        """New parameters after the noised sum of `step`, in the statistic's own units."""


def fit(
    recipe: Recipe[Rows_contra],
    rows: Rows_contra,
    *,
    source: NoiseSource | None,
    noise_share: float = 1.0,
) -> Parameters:
    """Run a recipe where the rows are: one brand alone, or a pooled public sample.

    Args:
        recipe: The schedule and its arithmetic.
        rows: All rows the model may use.
        source: Draws the noise of every query; None trains without privacy.
        noise_share: Noise drawn, as a multiple of the planned std. A secure sum of n brands
            that tolerates t colluders carries sqrt(n / (n - t)).

    Returns:
        The parameters after the last query.
    """
    parameters = recipe.begin()
    for step, query in enumerate(recipe.queries):
        total = recipe.answer(step, recipe.announce(step, parameters), rows)
        if source is not None:
            noise_std = query.noise_std(fraction=noise_share)
            total = total + discrete_gaussian(noise_std, total.size, source=source)
        parameters = recipe.advance(step, parameters, total / query.scale)
    return parameters


def noise_multiplier(
    budget: Budget, *, share: float, queries: int = 1, slack_delta: float = 1e-9
) -> float:
    """Noise per query when `queries` equal queries take `share` of a budget.

    mu-GDP adds in squares, so a share s of the squared budget over k queries leaves each
    mu * sqrt(s / k), and the multiplier is its inverse.

    Args:
        budget: For all queries of the plan together.
        share: Part of the squared budget, in (0, 1].
        queries: How many equal queries have that share.
        slack_delta: Distance of the sampler from its law over the whole plan, from
            `privacy.sampler_slack`; the default is enough for 5 brands and 56,000 values.

    Source: Dong, Roth, Su 2022, Gaussian Differential Privacy, Corollary 3.3.
    """
    whole = mu_for(budget, slack_delta=slack_delta)
    return _ROUNDING_MARGIN * math.sqrt(queries / share) / whole


def verify_ranges(recipe: object, ranges: Mapping[str, tuple[float, float]]) -> None:
    """Refuse a recipe with a constant out of its range; NaN is in none.

    Raises:
        ValueError: the first such field, its range and its value.
    """
    for name, (low, high) in ranges.items():
        value = getattr(recipe, name)
        if not low <= value <= high:
            raise ValueError(f"{name} must be {low:g} to {high:g}, got {value}")


def format_parameters(parameters: Parameters) -> bytes:
    """Parameters as the bytes of an npz file; nothing in it is pickled."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **parameters)
    return buffer.getvalue()


def matrix_size(dimension: int) -> int:
    """The m of a symmetric m x m matrix whose upper triangle has `dimension` entries."""
    size = (math.isqrt(8 * dimension + 1) - 1) // 2
    if size * (size + 1) // 2 != dimension:
        raise ValueError(f"{dimension} entries are no upper triangle; nothing was reshaped")
    return size


def upper_triangle(matrix: NDArray[np.int64]) -> NDArray[np.int64]:
    """A symmetric matrix as one vector, row by row from the diagonal."""
    return matrix[np.triu_indices(len(matrix))]


def symmetric(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    """The symmetric matrix of an upper triangle."""
    size = matrix_size(vector.size)
    matrix = np.zeros((size, size))
    matrix[np.triu_indices(size)] = vector
    return matrix + np.triu(matrix, 1).T


def checked(announced: Parameters, name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """An announced array, refused unless it has the recipe's shape and is finite."""
    array = announced.get(name)
    if array is None or array.shape != shape or not np.isfinite(array).all():
        found = "nothing" if array is None else f"shape {array.shape}"
        raise ValueError(
            f"the recipe needs a finite {name} of shape {shape}, got {found}; nothing was summed"
        )
    return array
