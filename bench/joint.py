"""What joining brings: local, joint and central models of the sample's four joining brands.

The joint model is trained on pooled rows with exactly the noise that a secure sum of four
brands with one tolerated colluder carries. That this equals the federation is proved in the
tests (the integer sums are the same to the last digit); it lets each figure be the mean of
five noise seeds. The test window is never looked at in training.
"""

import dataclasses
import hashlib
import math
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bench.table import Figure, report
from models.churn import ChurnLogistic, ChurnRows
from models.evaluation import auc, auc_measure, bootstrap, mean_measure
from models.recommendation import ItemGram, ItemRows
from models.sums import Parameters, fit
from privacy import Budget, NoiseSource
from tillpact.comparison import ChurnTrial, ItemTrial
from tillpact.demo import Consortium, recipes
from tillpact.sample.consortium import (
    EXPECTED_CUSTOMERS,
    HORIZON_DAYS,
    TEST_DAY,
)

SEEDS = 5
SMALL_BRAND = "kontor"
DRAWS, DRAWN_CUSTOMERS = 40, 100
DELTA = 1e-5
BRANDS, COLLUDERS, MEMBERS = 4, 1, 5
JOINT_NOISE = math.sqrt(BRANDS / (BRANDS - COLLUDERS))


def main() -> int:
    """Measure, print, and write `bench/results/joint.json`."""
    with tempfile.TemporaryDirectory() as folder:
        consortium = Consortium.create(Path(folder) / "consortium")
        churn, items = recipes()
        churn_trial = ChurnTrial.of(consortium.joining, churn, test_day=TEST_DAY)
        item_trial = ItemTrial.of(consortium.joining, items, horizon_days=HORIZON_DAYS)
        consortium.close()
    figures = [
        *_churn_figures(churn_trial, churn),
        *_small_brand_figures(churn_trial, churn),
        *_item_figures(item_trial, items),
    ]
    return report("joint", figures)


def _churn_figures(trial: ChurnTrial, recipe: ChurnLogistic) -> list[Figure]:
    rows = ChurnRows.pooled(list(trial.train.values()))
    central = _auc(trial, recipe, trial.central(recipe))
    figures = [
        Figure(
            measure="churn AUC, central, no noise",
            value=central,
            how="all rows in one place, the same recipe without noise",
        )
    ]
    for epsilon, must, aim in ((3.0, 0.768, 0.772), (1.0, None, 0.768)):
        noisy = _with_epsilon(recipe, epsilon)
        started = time.process_time()
        values = [
            _auc(trial, noisy, fit(noisy, rows, source=_source(seed), noise_share=JOINT_NOISE))
            for seed in range(SEEDS)
        ]
        cpu = (time.process_time() - started) / SEEDS
        model = fit(noisy, rows, source=_source(0), noise_share=JOINT_NOISE)
        happened, score = _pooled_scores(trial, noisy, model)
        interval = auc_measure(happened, score)
        figures.append(
            Figure(
                measure=f"churn AUC, joint, epsilon {epsilon:g}",
                value=float(np.mean(values)),
                must=must,
                aim=aim,
                how=f"{_spread(values)}; 95 % over customers, seed 0: {interval.low:.3f} to "
                f"{interval.high:.3f}; {cpu:.1f} s CPU a training",
            )
        )
    return figures


def _small_brand_figures(trial: ChurnTrial, recipe: ChurnLogistic) -> list[Figure]:
    """What a brand with about 100 customers gains at epsilon 1, judged on its own customers.

    The sample's small brand has too few held-back customers for one AUC to say much, so the
    target is held against many brands of 100 customers drawn at random from all brands.
    """
    joint_recipe = _with_epsilon(recipe, 1.0)
    everybody = ChurnRows.pooled(list(trial.train.values()))
    joint = [
        fit(joint_recipe, everybody, source=_source(seed), noise_share=JOINT_NOISE)
        for seed in range(SEEDS)
    ]
    rows = _numbered(trial.train), _numbered(trial.test)
    drawn = [_drawn_gain(rows, recipe, joint[draw % SEEDS], draw) for draw in range(DRAWS)]
    low, high = np.quantile(_bootstrap_means(drawn), [0.025, 0.975])
    return [
        Figure(
            measure=f"AUC gain of a brand of {DRAWN_CUSTOMERS} customers, epsilon 1",
            value=float(np.mean(drawn)),
            must=0.02,
            aim=0.035,
            how=f"joint minus local on the brand's own held-back customers, {DRAWS} brands drawn "
            f"at random; 95 % {low:.3f} to {high:.3f}",
        ),
        _named_brand(trial, recipe, joint),
    ]


def _numbered(rows: Mapping[str, ChurnRows]) -> ChurnRows:
    """All brands' rows, each customer under one number in training and test."""
    parts = [
        dataclasses.replace(part, customer=part.customer + number * 10**6)
        for number, (_, part) in enumerate(sorted(rows.items()))
    ]
    return ChurnRows(
        **{
            field.name: np.concatenate([getattr(part, field.name) for part in parts])
            for field in dataclasses.fields(ChurnRows)
        }
    )


def _drawn_gain(
    rows: tuple[ChurnRows, ChurnRows], recipe: ChurnLogistic, joint: Parameters, draw: int
) -> float:
    train, test = rows
    known = np.unique(train.customer)
    own = np.random.default_rng(draw).choice(known, size=DRAWN_CUSTOMERS, replace=False)
    local_recipe = dataclasses.replace(
        _with_epsilon(recipe, 1.0), expected_customers=DRAWN_CUSTOMERS
    )
    local = fit(local_recipe, _only(train, own), source=_source(SEEDS + draw))
    judged = _only(test, own)
    gain = [
        auc(judged.churned, recipe.probability(model, judged.features, judged.day))
        for model in (joint, local)
    ]
    return gain[0] - gain[1]


def _only(rows: ChurnRows, customers: np.ndarray) -> ChurnRows:
    kept = np.isin(rows.customer, customers)
    return ChurnRows(
        **{field.name: getattr(rows, field.name)[kept] for field in dataclasses.fields(ChurnRows)}
    )


def _bootstrap_means(values: list[float]) -> list[float]:
    generator = np.random.default_rng(0)
    return [float(generator.choice(values, size=len(values)).mean()) for _ in range(1000)]


def _named_brand(trial: ChurnTrial, recipe: ChurnLogistic, joint: list[Parameters]) -> Figure:
    budget = Budget(epsilon=1.0, delta=DELTA)
    own = trial.test[SMALL_BRAND]
    pairs = [
        (
            trial.score(SMALL_BRAND, recipe, model),
            trial.score(
                SMALL_BRAND, recipe, trial.local(SMALL_BRAND, budget, recipe, _source(seed))
            ),
        )
        for seed, model in enumerate(joint)
    ]

    def gain(picked: np.ndarray) -> float:
        happened = own.churned[picked]
        return float(
            np.mean(
                [
                    auc(happened, both[picked]) - auc(happened, alone[picked])
                    for both, alone in pairs
                ]
            )
        )

    measure = bootstrap(gain, own.churned.size)
    customers = len(np.unique(trial.train[SMALL_BRAND].customer))
    return Figure(
        measure=f"AUC gain of {SMALL_BRAND}, epsilon 1",
        value=measure.value,
        how=f"{customers} training and only {own.churned.size} held-back customers, {SEEDS} seeds; "
        f"95 % {measure.low:.3f} to {measure.high:.3f}: too few to tell",
    )


def _item_figures(trial: ItemTrial, recipe: ItemGram) -> list[Figure]:
    rows = ItemRows.pooled(list(trial.train.values()))
    figures = [
        Figure(
            measure="discover recall@20, central, no noise",
            value=_recall(trial, recipe, trial.central(recipe)),
            how="all rows in one place, the same recipe without noise",
        )
    ]
    for epsilon, must, aim in ((3.0, 0.088, 0.092), (1.0, None, 0.086)):
        noisy = ItemGram.for_budget(
            Budget(epsilon=epsilon, delta=DELTA),
            n_items=recipe.n_items,
            catalogue_digest=recipe.catalogue_digest,
            as_of_day=recipe.as_of_day,
            expected_customers=EXPECTED_CUSTOMERS,
            members=MEMBERS,
        )
        models = [
            fit(noisy, rows, source=_source(seed), noise_share=JOINT_NOISE) for seed in range(SEEDS)
        ]
        values = [_recall(trial, noisy, model) for model in models]
        each = np.concatenate([trial.recall(brand, noisy, models[0]) for brand in trial.train])
        interval = mean_measure(each)
        figures.append(
            Figure(
                measure=f"discover recall@20, joint, epsilon {epsilon:g}",
                value=float(np.mean(values)),
                must=must,
                aim=aim,
                how=f"{_spread(values)}; 95 % over customers, seed 0: {interval.low:.3f} to "
                f"{interval.high:.3f}",
            )
        )
    return figures


def _with_epsilon(recipe: ChurnLogistic, epsilon: float) -> ChurnLogistic:
    return ChurnLogistic.for_budget(
        Budget(epsilon=epsilon, delta=DELTA),
        n_features=recipe.n_features,
        snapshot_days=recipe.snapshot_days,
        horizon_days=recipe.horizon_days,
        expected_customers=recipe.expected_customers,
        members=MEMBERS,
    )


def _auc(trial: ChurnTrial, recipe: ChurnLogistic, model: Parameters) -> float:
    return auc(*_pooled_scores(trial, recipe, model))


def _pooled_scores(
    trial: ChurnTrial, recipe: ChurnLogistic, model: Parameters
) -> tuple[np.ndarray, np.ndarray]:
    happened = np.concatenate([rows.churned for rows in trial.test.values()])
    return happened, np.concatenate([trial.score(brand, recipe, model) for brand in trial.test])


def _recall(trial: ItemTrial, recipe: ItemGram, model: Parameters) -> float:
    each = [trial.recall(brand, recipe, model) for brand in trial.train]
    return float(np.concatenate(each).mean())


def _source(seed: int) -> NoiseSource:
    return NoiseSource.deterministic(hashlib.sha256(f"bench joint {seed}".encode()).digest())


def _spread(values: list[float]) -> str:
    return f"mean {np.mean(values):.4f}, sd {np.std(values, ddof=1):.4f} over {len(values)} seeds"


if __name__ == "__main__":
    sys.exit(main())
