"""Is joining worth it? Local, joint and central models on the same held-back customers.

Central pools the rows of all brands. That is possible here only because the sample is public;
in a consortium nobody can do it. Every row is read through a permitted view.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from consent import PermittedView, Purpose, Use, UseKind
from models.churn import ChurnLogistic, ChurnRows
from models.evaluation import Measure, auc_measure, mean_measure, recall_at
from models.recommendation import ItemGram, ItemRows, text_similarity
from models.sums import Parameters, fit
from participant.node import Node
from privacy import Budget, NoiseSource

LIST_LENGTH = 20
OVERALL = "overall"

Scorer = Callable[[str], Parameters]
Recipe_contra = TypeVar("Recipe_contra", contravariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Measures by brand, and under `OVERALL` for all brands' customers together."""

    local: Mapping[str, Measure]
    joint: Mapping[str, Measure]
    central: Mapping[str, Measure]


class Trial(Protocol[Recipe_contra]):
    """The held-back test of one kind of model."""

    @property
    def brands(self) -> tuple[str, ...]:
        """The brands whose rows are here."""

    def local(
        self, brand: str, budget: Budget, recipe: Recipe_contra, source: NoiseSource
    ) -> Parameters:
        """One brand's own model, with as much privacy as the joint one has."""

    def central(self, recipe: Recipe_contra) -> Parameters:
        """The model of all rows in one place, without noise."""

    def measure(self, recipe: Recipe_contra, model_of: Scorer) -> dict[str, Measure]:
        """Quality for each brand's customers and for all, under the model that each has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChurnTrial:
    """Training rows and held-back rows of each brand.

    Attributes:
        train: Customers who agreed to federated training, by brand.
        test: Customers who agreed to churn scoring, on the test day, by brand.
    """

    train: Mapping[str, ChurnRows]
    test: Mapping[str, ChurnRows]

    @classmethod
    def of(cls, nodes: Sequence[Node], recipe: ChurnLogistic, *, test_day: int) -> "ChurnTrial":
        """Read the rows of each brand through its gate."""
        train, test = {}, {}
        for node in nodes:
            train[node.name] = node.table.churn_rows(
                _view(node, Purpose.FEDERATED_TRAINING),
                snapshot_days=recipe.snapshot_days,
                horizon_days=recipe.horizon_days,
            )
            test[node.name] = node.table.churn_rows(
                _view(node, Purpose.CHURN_SCORING),
                snapshot_days=(test_day,),
                horizon_days=recipe.horizon_days,
            )
        return cls(train=train, test=test)

    @property
    def brands(self) -> tuple[str, ...]:
        """The brands whose rows are here."""
        return tuple(self.train)

    def local_recipe(self, brand: str, budget: Budget, recipe: ChurnLogistic) -> ChurnLogistic:
        """The same recipe for one brand alone, at the same budget."""
        customers = len(np.unique(self.train[brand].customer))
        return ChurnLogistic.for_budget(
            budget,
            n_features=recipe.n_features,
            snapshot_days=recipe.snapshot_days,
            horizon_days=recipe.horizon_days,
            expected_customers=max(100, round(customers, -2)),
            members=1,
        )

    def local(
        self, brand: str, budget: Budget, recipe: ChurnLogistic, source: NoiseSource
    ) -> Parameters:
        """One brand's own model, with as much privacy as the joint one has."""
        own = self.local_recipe(brand, budget, recipe)
        return fit(own, self.train[brand], source=source)

    def central(self, recipe: ChurnLogistic) -> Parameters:
        """The model of all rows in one place, without noise."""
        return fit(recipe, ChurnRows.pooled(list(self.train.values())), source=None)

    def score(self, brand: str, recipe: ChurnLogistic, model: Parameters) -> NDArray[np.float64]:
        """Churn probability of a brand's held-back customers."""
        rows = self.test[brand]
        return recipe.probability(model, rows.features, rows.day)

    def measure(self, recipe: ChurnLogistic, model_of: Scorer) -> dict[str, Measure]:
        """AUC of each brand's customers and of all, under the model that each brand has."""
        happened = {brand: rows.churned for brand, rows in self.test.items()}
        score = {brand: self.score(brand, recipe, model_of(brand)) for brand in self.test}
        measures = {brand: auc_measure(happened[brand], score[brand]) for brand in self.test}
        measures[OVERALL] = auc_measure(
            np.concatenate(list(happened.values())), np.concatenate(list(score.values()))
        )
        return measures


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemTrial:
    """Histories and held-back purchases of each brand.

    Attributes:
        train: Histories of customers who agreed to federated training, by brand.
        history: Histories of customers who agreed to recommendations, by brand.
        seen: What those bought before the test day, by brand.
        bought: What they bought from the test day on, by brand.
        text: Similarity of items by public description.
    """

    train: Mapping[str, ItemRows]
    history: Mapping[str, ItemRows]
    seen: Mapping[str, NDArray[np.bool_]]
    bought: Mapping[str, NDArray[np.bool_]]
    text: sparse.csr_array

    @classmethod
    def of(cls, nodes: Sequence[Node], recipe: ItemGram, *, horizon_days: int) -> "ItemTrial":
        """Read the rows of each brand through its gate."""
        day = recipe.as_of_day
        train, history, seen, bought = {}, {}, {}, {}
        for node in nodes:
            train[node.name] = node.table.item_rows(
                _view(node, Purpose.FEDERATED_TRAINING),
                before_day=day,
                half_life_days=recipe.half_life_days,
            )
            view = _view(node, Purpose.RECOMMENDATION)
            history[node.name] = node.table.item_rows(
                view, before_day=day, half_life_days=recipe.half_life_days
            )
            seen[node.name] = node.table.bought(view, first_day=None, before_day=day)
            bought[node.name] = node.table.bought(
                view, first_day=day, before_day=day + horizon_days
            )
        text = text_similarity(nodes[0].catalogue.descriptions)
        return cls(train=train, history=history, seen=seen, bought=bought, text=text)

    @property
    def brands(self) -> tuple[str, ...]:
        """The brands whose rows are here."""
        return tuple(self.train)

    def local_recipe(self, brand: str, budget: Budget, recipe: ItemGram) -> ItemGram:
        """The same recipe for one brand alone, at the same budget."""
        return ItemGram.for_budget(
            budget,
            n_items=recipe.n_items,
            catalogue_digest=recipe.catalogue_digest,
            as_of_day=recipe.as_of_day,
            expected_customers=max(100, round(self.train[brand].n_customers, -2)),
            members=1,
        )

    def local(
        self, brand: str, budget: Budget, recipe: ItemGram, source: NoiseSource
    ) -> Parameters:
        """One brand's own model, with as much privacy as the joint one has."""
        own = self.local_recipe(brand, budget, recipe)
        return fit(own, self.train[brand], source=source)

    def central(self, recipe: ItemGram) -> Parameters:
        """The model of all rows in one place, without noise."""
        return fit(recipe, ItemRows.pooled(list(self.train.values())), source=None)

    def recall(self, brand: str, recipe: ItemGram, model: Parameters) -> NDArray[np.float64]:
        """Recall of new items for each of a brand's customers who bought something new."""
        scores = recipe.scores(model, self.history[brand], self.text)
        return recall_at(LIST_LENGTH, scores, seen=self.seen[brand], bought=self.bought[brand])

    def measure(self, recipe: ItemGram, model_of: Scorer) -> dict[str, Measure]:
        """Mean recall of each brand's customers and of all, under each brand's model."""
        recall = {brand: self.recall(brand, recipe, model_of(brand)) for brand in self.train}
        measures = {brand: mean_measure(values) for brand, values in recall.items()}
        measures[OVERALL] = mean_measure(np.concatenate(list(recall.values())))
        return measures


def compare(
    trial: Trial[Recipe_contra], recipe: Recipe_contra, budget: Budget, joint: Parameters
) -> Comparison:
    """Measure the joint model against each brand's own and against all rows in one place."""
    local = {brand: trial.local(brand, budget, recipe, NoiseSource()) for brand in trial.brands}
    central = trial.central(recipe)
    return Comparison(
        local=trial.measure(recipe, lambda brand: local[brand]),
        joint=trial.measure(recipe, lambda _brand: joint),
        central=trial.measure(recipe, lambda _brand: central),
    )


def _view(node: Node, purpose: Purpose) -> PermittedView:
    use = Use(kind=UseKind.EVALUATE, recipients=(node.name,))
    return node.gate.open(purpose, node.table.subjects, use=use, at=node.clock())
