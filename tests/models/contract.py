"""What every recipe must pass, on data whose right answer is known by construction.

A recipe joins by adding one `Case`; the tests of the contract are in `test_sums.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from models.churn import ChurnLogistic, ChurnRows
from models.evaluation import auc
from models.recommendation import ItemGram, ItemRows
from models.sums import Recipe
from privacy import Budget

N_FEATURES = 3
N_ITEMS = 16
SNAPSHOT_DAYS = (19_000, 19_090)
EASY = Budget(epsilon=3.0, delta=1e-5)


@dataclass(frozen=True, kw_only=True, repr=False)
class Case:
    """One recipe with data that it must understand.

    Attributes:
        for_budget: The default recipe at a budget, for so many `members`.
        quiet: A recipe whose planned noise is next to nothing, for training without noise.
        known: Rows whose right answer is known by construction.
        draw: Rows of so many customers, anything goes; customers in ascending order.
        pick: The rows of the customers at these positions, in this order.
        pooled: Rows of several brands as one table.
        shapes: Announced shape of every parameter of a trained model.
        understood: Share of right answers of a trained model on `known`, in [0, 1].
    """

    for_budget: Callable[..., Recipe[Any]]
    quiet: Recipe[Any]
    known: Any
    draw: Callable[[np.random.Generator, int], Any]
    pick: Callable[[Any, Sequence[int]], Any]
    pooled: Callable[[Sequence[Any]], Any]
    shapes: Mapping[str, tuple[int, ...]]
    understood: Callable[[Recipe[Any], Mapping[str, NDArray[np.float64]]], float]


def one_feature_decides(customers: int = 400) -> ChurnRows:
    """Who has a first feature above one half churns; the other features are noise."""
    generator = np.random.default_rng(0)
    features = generator.random((2 * customers, N_FEATURES))
    return ChurnRows(
        customer=np.repeat(np.arange(customers), 2),
        features=features,
        day=np.tile(np.array(SNAPSHOT_DAYS), customers),
        churned=(features[:, 0] > 0.5).astype(np.float64),
    )


def draw_churn(generator: np.random.Generator, customers: int) -> ChurnRows:
    """Customers with one to five snapshots, some features far outside [0, 1]."""
    snapshots = generator.integers(1, 6, size=customers)
    n_rows = int(snapshots.sum())
    wild = 10.0 ** generator.integers(-3, 4, size=(n_rows, 1))
    return ChurnRows(
        customer=np.repeat(np.arange(customers), snapshots),
        features=generator.standard_normal((n_rows, N_FEATURES)) * wild,
        day=generator.integers(15_000, 20_000, size=n_rows),
        churned=generator.integers(0, 2, size=n_rows).astype(np.float64),
    )


def pick_churn(rows: ChurnRows, customers: Sequence[int]) -> ChurnRows:
    """Rows of these customers, numbered anew from 0 as another brand would."""
    places = [np.flatnonzero(rows.customer == customer) for customer in customers]
    kept = np.concatenate([np.zeros(0, dtype=np.intp), *places])
    return ChurnRows(
        customer=np.repeat(np.arange(len(places)), [len(place) for place in places]),
        features=rows.features[kept],
        day=rows.day[kept],
        churned=rows.churned[kept],
    )


def item_rows(histories: Sequence[Mapping[int, float]], *, n_items: int = N_ITEMS) -> ItemRows:
    """Customers' items with weights as compressed rows."""
    return ItemRows(
        start=np.cumsum([0, *map(len, histories)], dtype=np.int64),
        item=np.array([item for history in histories for item in history], dtype=np.int64),
        weight=np.array([w for history in histories for w in history.values()], dtype=np.float64),
        n_items=n_items,
    )


def checkerboard(customers: int = 400) -> ItemRows:
    """Even customers buy even items, odd customers odd ones; four of their group's eight each."""
    generator = np.random.default_rng(0)
    histories = [
        dict.fromkeys((2 * generator.permutation(N_ITEMS // 2)[:4] + customer % 2).tolist(), 1.0)
        for customer in range(customers)
    ]
    return item_rows(histories)


def draw_items(generator: np.random.Generator, customers: int) -> ItemRows:
    """Customers with none to all of the items, some bought long ago."""
    histories = []
    for _ in range(customers):
        items = generator.permutation(N_ITEMS)[: generator.integers(0, N_ITEMS + 1)]
        weights = 2.0 ** -generator.integers(0, 600, size=items.size).astype(np.float64)
        histories.append(dict(zip(items.tolist(), weights.tolist(), strict=True)))
    return item_rows(histories)


def pick_items(rows: ItemRows, customers: Sequence[int]) -> ItemRows:
    """Rows of these customers."""
    histories = []
    for customer in customers:
        these = slice(rows.start[customer], rows.start[customer + 1])
        items, weights = rows.item[these].tolist(), rows.weight[these].tolist()
        histories.append(dict(zip(items, weights, strict=True)))
    return item_rows(histories, n_items=rows.n_items)


def _ranks_who_churns(recipe: Recipe[Any], parameters: Mapping[str, NDArray[np.float64]]) -> float:
    assert isinstance(recipe, ChurnLogistic)
    rows = one_feature_decides()
    return auc(rows.churned, recipe.probability(parameters, rows.features, rows.day))


def _recommends_the_own_group(
    recipe: Recipe[Any], parameters: Mapping[str, NDArray[np.float64]]
) -> float:
    assert isinstance(recipe, ItemGram)
    rows = checkerboard()
    no_text = sparse.csr_array((N_ITEMS, N_ITEMS))
    scores = recipe.scores(parameters, rows, no_text)
    scores[rows.unit().toarray() > 0] = -np.inf
    best = np.argsort(-scores, axis=1)[:, :4]  # (customers, 4): all that is new in the group
    return float((best % 2 == np.arange(rows.n_customers)[:, None] % 2).mean())


CHURN = Case(
    for_budget=lambda budget, members=50: ChurnLogistic.for_budget(
        budget,
        n_features=N_FEATURES,
        snapshot_days=SNAPSHOT_DAYS,
        horizon_days=90,
        expected_customers=400,
        members=members,
    ),
    quiet=ChurnLogistic(
        n_features=N_FEATURES,
        snapshot_days=SNAPSHOT_DAYS,
        horizon_days=90,
        expected_customers=400,
        second_moment_noise_multiplier=1e-9,
        gradient_noise_multiplier=1e-9,
    ),
    known=one_feature_decides(),
    draw=draw_churn,
    pick=pick_churn,
    pooled=ChurnRows.pooled,
    shapes={"weights": (6,), "velocity": (6,), "curvature": (6,), "directions": (6, 6)},
    understood=_ranks_who_churns,
)

ITEMS = Case(
    for_budget=lambda budget, members=50: ItemGram.for_budget(
        budget,
        n_items=N_ITEMS,
        catalogue_digest="00",
        as_of_day=19_000,
        expected_customers=400,
        members=members,
    ),
    quiet=ItemGram(
        n_items=N_ITEMS,
        catalogue_digest="00",
        as_of_day=19_000,
        catalogue_size=N_ITEMS,
        popularity_noise_multiplier=1e-9,
        gram_noise_multiplier=1e-9,
    ),
    known=checkerboard(),
    draw=draw_items,
    pick=pick_items,
    pooled=ItemRows.pooled,
    shapes={
        "popularity": (N_ITEMS,),
        "catalogue": (N_ITEMS,),
        "direction": (N_ITEMS,),
        "item_weights": (N_ITEMS, N_ITEMS),
    },
    understood=_recommends_the_own_group,
)

CASES = {ChurnLogistic.KIND: CHURN, ItemGram.KIND: ITEMS}
