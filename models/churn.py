"""Who will not buy again within the horizon: logistic regression by DP-Newton on two kinds of sum.

One noisy second-moment matrix fixes the step of every direction; noisy gradients do the rest.
A customer counts once, as the mean over that customer's snapshots. Every constant is public.

Source: Newton's method with a fixed Hessian bound (Boehning and Lindsay 1988: H <= Z'Z / 4);
noisy second moments as in Dwork et al. 2014, "Analyze Gauss".
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.sums import (
    Layout,
    Parameters,
    Query,
    checked,
    noise_multiplier,
    symmetric,
    upper_triangle,
    verify_ranges,
)
from privacy import Budget, quantise, sampler_slack

_YEAR_DAYS = 365.25
_CENTRE = 0.45  # Public middle of the scaled features, so that columns are nearly orthogonal.
_GRADIENT_ROUNDS = 8
_SEASON = 2  # Sine and cosine of the snapshot day.
_RANGES = {
    "n_features": (1, 4096),
    "horizon_days": (1, 36_500),
    "expected_customers": (1, 2**31),
    "second_moment_noise_multiplier": (1e-12, 1e12),
    "gradient_noise_multiplier": (1e-12, 1e12),
    "gradient_rounds": (1, 1000),
    "momentum": (0, 0.999),
    "ridge": (1e-12, 1e12),
    "gradient_clip": (1e-12, 2**14),  # On the grid below 2^30, see privacy.quantise.
    "row_norm": (1e-12, 64),  # Second moments of 2^25 such customers are exact in float64.
    "curvature_floor": (0, 1e12),
    "season_weight": (0, 1e12),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ChurnRows:
    """Snapshots of customers, sorted by customer.

    Attributes:
        customer: Customer of each row, ascending, shape (n_rows,).
        features: Scaled to [0, 1], shape (n_rows, n_features).
        day: Days since 1970-01-01, shape (n_rows,).
        churned: 1 or 0, shape (n_rows,).
    """

    customer: NDArray[np.int64]
    features: NDArray[np.float64]
    day: NDArray[np.int64]
    churned: NDArray[np.float64]

    @staticmethod
    def pooled(parts: Sequence["ChurnRows"]) -> "ChurnRows":
        """Rows of several brands as one table; customers stay distinct."""
        offsets = np.cumsum([0, *(int(part.customer.max(initial=-1)) + 1 for part in parts)])
        return ChurnRows(
            customer=np.concatenate(
                [part.customer + offset for part, offset in zip(parts, offsets, strict=False)]
            ),
            features=np.concatenate([part.features for part in parts]),
            day=np.concatenate([part.day for part in parts]),
            churned=np.concatenate([part.churned for part in parts]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ChurnLogistic:
    """The recipe `churn.logistic`; every field is part of the signed plan.

    Attributes:
        n_features: Columns of `ChurnRows.features`.
        snapshot_days: Days on which customers are described, since 1970-01-01.
        horizon_days: Churned means no purchase within this many days.
        expected_customers: Agreed size of the cohort's data, for the ridge; not a count.
        second_moment_noise_multiplier: Noise on the second-moment matrix, std / clip norm.
        gradient_noise_multiplier: Noise on each gradient, std / clip norm.
        gradient_rounds: Number of gradient sums.
        momentum: Share of the last move that is repeated; in [0, 1).
        ridge: Curvature added in every direction, per expected customer. It slows what the
            data say little about; it is no penalty, so it does not move the optimum.
        gradient_clip: L2 bound on one customer's gradient.
        row_norm: L2 bound on one design row.
        curvature_floor: Least curvature, as a share of the largest eigenvalue of pure noise.
        season_weight: Length of the season's two columns.
    """

    n_features: int
    snapshot_days: tuple[int, ...]
    horizon_days: int
    expected_customers: int
    second_moment_noise_multiplier: float
    gradient_noise_multiplier: float
    gradient_rounds: int = _GRADIENT_ROUNDS
    momentum: float = 0.5
    ridge: float = 2e-4
    gradient_clip: float = 0.5
    row_norm: float = 2.5
    curvature_floor: float = 0.5
    season_weight: float = 0.5

    KIND = "churn.logistic"
    _ROW_SCALE = 256
    _GRADIENT_SCALE = 2**16

    def __post_init__(self) -> None:
        verify_ranges(self, _RANGES)

    @classmethod
    def for_budget(
        cls,
        budget: Budget,
        *,
        n_features: int,
        snapshot_days: tuple[int, ...],
        horizon_days: int,
        expected_customers: int,
        members: int = 50,
    ) -> "ChurnLogistic":
        """The default recipe with as much noise as `budget` demands.

        30 % of the squared budget goes to the second moments, the rest to eight gradients.
        More `members` than the plan has cost a hair of the budget; fewer make it too dear.
        """
        rounds = _GRADIENT_ROUNDS
        d = 1 + n_features + _SEASON
        slack_delta = sampler_slack(d * (d + 1) // 2 + rounds * d, shares=members)
        return cls(
            n_features=n_features,
            snapshot_days=snapshot_days,
            horizon_days=horizon_days,
            expected_customers=expected_customers,
            second_moment_noise_multiplier=noise_multiplier(
                budget, share=0.3, slack_delta=slack_delta
            ),
            gradient_noise_multiplier=noise_multiplier(
                budget, share=0.7, queries=rounds, slack_delta=slack_delta
            ),
        )

    @property
    def dimension(self) -> int:
        """Columns of the design matrix: intercept, features, season."""
        return 1 + self.n_features + _SEASON

    @property
    def queries(self) -> tuple[Query, ...]:
        """One second-moment matrix, then the gradients."""
        d = self.dimension
        moments = Query(
            name="second moments",
            dimension=d * (d + 1) // 2,
            clip_norm=self.row_norm**2,
            scale=self._ROW_SCALE**2,
            noise_multiplier=self.second_moment_noise_multiplier,
            layout=Layout.SYMMETRIC,
        )
        gradients = (
            Query(
                name=f"gradient {step}",
                dimension=d,
                clip_norm=self.gradient_clip,
                scale=self._GRADIENT_SCALE,
                noise_multiplier=self.gradient_noise_multiplier,
            )
            for step in range(1, self.gradient_rounds + 1)
        )
        return (moments, *gradients)

    def begin(self) -> Parameters:
        """Zero weights: everybody churns with probability one half."""
        return {"weights": np.zeros(self.dimension), "velocity": np.zeros(self.dimension)}

    def announce(self, step: int, parameters: Parameters) -> Parameters:
        """Gradients need the weights; the second moments need nothing."""
        return {} if step == 0 else {"weights": parameters["weights"]}

    def answer(self, step: int, announced: Parameters, rows: ChurnRows) -> NDArray[np.int64]:
        """Sum second moments (step 0) or gradients over customers.

        Raises:
            ValueError: the rows have other columns than the plan, or the weights other shape.
        """
        if not rows.customer.size:
            return np.zeros(self.queries[step].dimension, dtype=np.int64)
        design = self.design(rows.features, rows.day)
        first, snapshots_each = _customers(rows.customer)
        if step == 0:
            return self._second_moments(design, snapshots_each)
        weights = checked(announced, "weights", (self.dimension,))
        error = (_sigmoid(design @ weights) - rows.churned) / snapshots_each
        gradient = np.add.reduceat(design * error[:, None], first, axis=0)  # (customers, d)
        steps = quantise(gradient, clip_norm=self.gradient_clip, scale=self._GRADIENT_SCALE)
        total: NDArray[np.int64] = steps.sum(axis=0)
        return total

    def _second_moments(
        self, design: NDArray[np.float64], snapshots_each: NDArray[np.float64]
    ) -> NDArray[np.int64]:
        # With k rows of norm <= row_norm / sqrt(k) each, a customer's integer matrix R'R has
        # Frobenius norm <= trace <= (row_norm * scale)^2: rounding is inside the bound.
        rows = np.empty(design.shape, dtype=np.int64)
        for k in np.unique(snapshots_each):
            these = snapshots_each == k
            root = np.sqrt(k) * (1 + 1e-12)  # k times the bound must not round upwards.
            rows[these] = quantise(
                design[these] / root, clip_norm=self.row_norm / root, scale=self._ROW_SCALE
            )
        return upper_triangle(_exact_gram(rows))

    def advance(self, step: int, parameters: Parameters, total: NDArray[np.float64]) -> Parameters:
        """Fix the step of every direction (step 0), or move along a noisy gradient."""
        if step == 0:
            values, vectors = np.linalg.eigh(symmetric(total))
            # Largest eigenvalue of pure symmetric noise: std * sqrt(2 d) (semicircle law).
            # Directions under it are not dropped but walked slowly; see docs.
            noise_std = self.second_moment_noise_multiplier * self.row_norm**2
            floor = self.curvature_floor * noise_std * np.sqrt(2 * self.dimension)
            curvature = np.maximum(values, floor) / 4 + self.ridge * self.expected_customers
            return {**parameters, "curvature": curvature, "directions": vectors}
        directions = parameters["directions"]
        move = directions @ ((directions.T @ total) / parameters["curvature"])
        velocity = self.momentum * parameters["velocity"] - move
        return {
            **parameters,
            "velocity": velocity,
            "weights": parameters["weights"] + velocity,
        }

    def design(self, features: NDArray[np.float64], day: NDArray[np.int64]) -> NDArray[np.float64]:
        """Intercept, centred features and season, each row at most `row_norm` long."""
        if features.ndim != 2 or features.shape[1] != self.n_features:
            raise ValueError(
                f"the plan names {self.n_features} features, the rows have shape "
                f"{features.shape}; nothing was summed"
            )
        angle = 2 * np.pi * day / _YEAR_DAYS
        season = self.season_weight * np.stack([np.sin(angle), np.cos(angle)], axis=1)
        rows = np.concatenate([np.ones((len(features), 1)), features - _CENTRE, season], axis=1)
        norm = np.linalg.norm(rows, axis=1, keepdims=True)
        design: NDArray[np.float64] = rows * np.minimum(1.0, self.row_norm / norm)
        return design

    def probability(
        self, parameters: Parameters, features: NDArray[np.float64], day: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Chance that each described customer buys nothing within the horizon."""
        return _sigmoid(self.design(features, day) @ parameters["weights"])


def _customers(customer: NDArray[np.int64]) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """First row of each customer, and for every row the number of that customer's rows."""
    if np.any(np.diff(customer) < 0):
        raise ValueError("rows must be sorted by customer; nothing was summed")
    first = np.flatnonzero(np.r_[True, np.diff(customer) > 0])
    counts = np.diff(np.r_[first, customer.size])
    return first, np.repeat(counts, counts).astype(np.float64)


def _exact_gram(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    # Products of integers below 2^53 are exact in float64, and BLAS is much faster there.
    floats = rows.astype(np.float64)
    return np.rint(floats.T @ floats).astype(np.int64)


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return 0.5 * (1.0 + np.tanh(0.5 * x))
