"""What a customer might buy next that is new to them: noisy item co-occurrence plus public text.

Two sums: how popular each item is, and how items of the popular part go together. The released
object is the item side; a customer's own list is made at the brand from it, the customer's own
history, and public product descriptions, which cost no privacy budget.

Source: EASE, Steck 2019, https://arxiv.org/abs/1905.03375; shrinkage of noisy eigenvalues:
Gavish and Donoho 2017; text: cosine of TF-IDF vectors.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

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

_CHUNK = 512  # Customers made dense at a time.
_TEXT_NEIGHBOURS = 50
_RANGES = {
    "n_items": (2, 2**27),
    "popularity_noise_multiplier": (1e-12, 1e12),
    "gram_noise_multiplier": (1e-12, 1e12),
    "half_life_days": (1, 36_500),
    "ridge": (1e-12, 1e12),
    "popularity_weight": (-1e12, 1e12),
    "text_weight": (-1e12, 1e12),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemRows:
    """Each customer's items with weights, as compressed rows.

    Attributes:
        start: Where each customer's items begin, shape (n_customers + 1,), ascending from 0.
        item: Item numbers of the public catalogue, shape (n_entries,).
        weight: How recent each item is, in (0, 1], shape (n_entries,).
        n_items: Size of the public catalogue.
    """

    start: NDArray[np.int64]
    item: NDArray[np.int64]
    weight: NDArray[np.float64]
    n_items: int

    @property
    def n_customers(self) -> int:
        """Number of customers, also those without items."""
        return len(self.start) - 1

    def unit(self) -> sparse.csr_array:
        """Rows of L2 norm one, so that a long history moves a sum no further than a short one."""
        # Relative to the customer's largest weight, because the square of an ancient purchase's
        # weight may be zero in floats; a customer with nothing larger has an empty row.
        each, first = np.diff(self.start), self.start[:-1]
        largest = np.repeat(np.maximum.reduceat(np.r_[self.weight, 0.0], first), each)
        weight = self.weight / np.where(largest > 0, largest, 1.0)
        norm = np.repeat(np.sqrt(np.add.reduceat(np.r_[weight**2, 0.0], first)), each)
        weight /= np.where(norm > 0, norm, 1.0)
        shape = (self.n_customers, self.n_items)
        return sparse.csr_array((weight, self.item, self.start), shape=shape)

    @staticmethod
    def pooled(parts: Sequence["ItemRows"]) -> "ItemRows":
        """Rows of several brands over the same catalogue as one table."""
        lengths = np.concatenate([np.diff(part.start) for part in parts])
        return ItemRows(
            start=np.concatenate([[0], np.cumsum(lengths)]),
            item=np.concatenate([part.item for part in parts]),
            weight=np.concatenate([part.weight for part in parts]),
            n_items=parts[0].n_items,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemGram:
    """The recipe `recommend.items`; every field is part of the signed plan.

    Attributes:
        n_items: Size of the public catalogue.
        catalogue_digest: Hex SHA-256 of the public catalogue that numbers the items.
        as_of_day: Only purchases before this day count, days since 1970-01-01.
        catalogue_size: How many of the most popular items get co-occurrence.
        popularity_noise_multiplier: Noise on popularity, std / clip norm.
        gram_noise_multiplier: Noise on co-occurrence, std / clip norm.
        half_life_days: Age at which a purchase counts half.
        ridge: EASE's lambda.
        popularity_weight: Weight of log popularity beside the standardised item score.
        text_weight: Weight of text similarity beside the standardised item score.
    """

    n_items: int
    catalogue_digest: str
    as_of_day: int
    catalogue_size: int
    popularity_noise_multiplier: float
    gram_noise_multiplier: float
    half_life_days: int = 90
    ridge: float = 5.0
    popularity_weight: float = 0.3
    text_weight: float = 1.0

    KIND = "recommend.items"
    _POPULARITY_SCALE = 2**16
    _ROW_SCALE = 256

    def __post_init__(self) -> None:
        verify_ranges(self, _RANGES)
        if not 1 < self.catalogue_size <= self.n_items:
            raise ValueError(
                f"catalogue_size must be in 2..{self.n_items}, got {self.catalogue_size}"
            )

    @classmethod
    def for_budget(
        cls,
        budget: Budget,
        *,
        n_items: int,
        catalogue_digest: str,
        as_of_day: int,
        expected_customers: int,
        members: int = 50,
    ) -> "ItemGram":
        """The default recipe with as much noise as `budget` demands.

        15 % of the squared budget finds the popular items, 85 % how they go together;
        the catalogue grows as (customers * epsilon) ^ 0.6. More `members` than the plan has
        cost a hair of the budget; fewer make it too dear.
        """
        size = min(max(int((expected_customers * budget.epsilon) ** 0.6), 2), n_items)
        slack_delta = sampler_slack(n_items + size * (size + 1) // 2, shares=members)
        return cls(
            n_items=n_items,
            catalogue_digest=catalogue_digest,
            as_of_day=as_of_day,
            catalogue_size=size,
            popularity_noise_multiplier=noise_multiplier(
                budget, share=0.15, slack_delta=slack_delta
            ),
            gram_noise_multiplier=noise_multiplier(budget, share=0.85, slack_delta=slack_delta),
        )

    @property
    def queries(self) -> tuple[Query, ...]:
        """Popularity of every item, then co-occurrence of the popular ones."""
        m = self.catalogue_size
        popularity = Query(
            name="item popularity",
            dimension=self.n_items,
            clip_norm=1.0,
            scale=self._POPULARITY_SCALE,
            noise_multiplier=self.popularity_noise_multiplier,
        )
        together = Query(
            name="items bought together",
            dimension=m * (m + 1) // 2,
            clip_norm=1.0,
            scale=self._ROW_SCALE**2,
            noise_multiplier=self.gram_noise_multiplier,
            layout=Layout.SYMMETRIC,
        )
        return (popularity, together)

    def begin(self) -> Parameters:
        """Nothing is known before the first sum."""
        return {}

    def announce(self, step: int, parameters: Parameters) -> Parameters:
        """Co-occurrence needs the released catalogue and its popularity direction."""
        if step == 0:
            return {}
        return {name: parameters[name] for name in ("catalogue", "direction")}

    def answer(self, step: int, announced: Parameters, rows: ItemRows) -> NDArray[np.int64]:
        """Sum popularity (step 0) or co-occurrence over customers.

        Raises:
            ValueError: the rows have another catalogue than the plan, or the announced
                catalogue or direction does not fit it.
        """
        if rows.n_items != self.n_items:
            raise ValueError(
                f"the plan numbers {self.n_items} items, the rows {rows.n_items}; "
                "nothing was summed"
            )
        unit = rows.unit()
        if step == 0:
            total = np.zeros(self.n_items, dtype=np.int64)
            for chunk in _chunks(unit):
                steps = quantise(chunk, clip_norm=1.0, scale=self._POPULARITY_SCALE)
                total += steps.sum(axis=0)
            return total
        return self._together(unit, *self._directions(announced))

    def _directions(self, announced: Parameters) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        shape = (self.catalogue_size,)
        catalogue = checked(announced, "catalogue", shape)
        direction = checked(announced, "direction", shape)
        inside = catalogue[0] >= 0 and catalogue[-1] < self.n_items
        if not inside or np.any(np.diff(catalogue) <= 0) or np.any(catalogue % 1):
            raise ValueError("the catalogue must be ascending item numbers; nothing was summed")
        return catalogue.astype(np.int64), direction

    def _together(
        self,
        unit: sparse.csr_array,
        catalogue: NDArray[np.int64],
        direction: NDArray[np.float64],
    ) -> NDArray[np.int64]:
        # Integer rows of norm <= scale have r r' of Frobenius norm <= scale^2, rounding
        # included, and sums of such products stay below 2^53: exact in float64.
        gram = np.zeros((len(catalogue), len(catalogue)))
        for chunk in _chunks(unit[:, catalogue]):
            rest = chunk - np.outer(chunk @ direction, direction)
            norm = np.linalg.norm(rest, axis=1, keepdims=True)
            rest = np.where(norm > 1e-9, rest / np.maximum(norm, 1e-9), 0.0)
            steps = quantise(rest, clip_norm=1.0, scale=self._ROW_SCALE).astype(np.float64)
            gram += steps.T @ steps
        return upper_triangle(np.rint(gram).astype(np.int64))

    def advance(self, step: int, parameters: Parameters, total: NDArray[np.float64]) -> Parameters:
        """Choose the catalogue (step 0), or solve for item-to-item weights."""
        if step == 0:
            catalogue = np.sort(np.argsort(-total, kind="stable")[: self.catalogue_size])
            positive = np.maximum(total[catalogue], 0.0)
            length = float(np.linalg.norm(positive))
            direction = positive / length if length > 0 else positive
            return {
                "popularity": total,
                "catalogue": catalogue.astype(np.float64),
                "direction": direction,
            }
        values, vectors = np.linalg.eigh(symmetric(total))
        edge = self.gram_noise_multiplier * np.sqrt(2 * self.catalogue_size)
        kept = (values + np.sqrt(np.maximum(values**2 - edge**2, 0.0))) / 2
        inverse = np.where(
            values > edge, 1.0 / (np.maximum(kept, 0.0) + self.ridge), 1 / self.ridge
        )
        precision = (vectors * inverse) @ vectors.T
        weights = -precision / np.diag(precision)[None, :]
        np.fill_diagonal(weights, 0.0)
        return {**parameters, "item_weights": weights}

    def scores(
        self, parameters: Parameters, rows: ItemRows, text: sparse.csr_array
    ) -> NDArray[np.float64]:
        """Rank every item for every customer; higher is better.

        Args:
            parameters: What training left.
            rows: The customers' own histories.
            text: Similarity of items by public description, from `text_similarity`.

        Returns:
            Shape (n_customers, n_items).
        """
        unit = rows.unit()
        catalogue = parameters["catalogue"].astype(np.int64)
        items = np.zeros((rows.n_customers, self.n_items))
        items[:, catalogue] = unit[:, catalogue] @ parameters["item_weights"]
        popularity = np.log(np.maximum(parameters["popularity"], 1.0))
        return (
            _standardised(items)
            + self.popularity_weight * _standardised(popularity[None, :])
            + self.text_weight * _standardised((unit @ text).toarray())
        )


def text_similarity(descriptions: Sequence[str]) -> sparse.csr_array:
    """How alike items are by their public descriptions: cosine of TF-IDF, nearest 50 kept.

    Args:
        descriptions: One per item of the catalogue, in catalogue order.

    Returns:
        Shape (n_items, n_items), zero diagonal; entries in [0, 1].
    """
    words = [Counter(re.findall(r"[a-z]{2,}", text.lower())) for text in descriptions]
    vocabulary = {word: number for number, word in enumerate(sorted(set().union(*words)))}
    n_items = len(words)
    rows = np.repeat(np.arange(n_items), [len(counts) for counts in words])
    columns = np.array([vocabulary[word] for counts in words for word in counts], dtype=np.int64)
    counted = np.array([count for counts in words for count in counts.values()], dtype=np.float64)
    documents = np.bincount(columns, minlength=len(vocabulary))
    rarity = np.log((1 + n_items) / (1 + documents)) + 1
    weight = (1 + np.log(counted)) * rarity[columns]
    norm = np.sqrt(np.bincount(rows, weight**2, minlength=n_items))
    shape = (n_items, len(vocabulary))
    vectors = sparse.csr_array((weight / norm[rows], (rows, columns)), shape=shape)
    return sparse.csr_array(sparse.vstack([_nearest(part, vectors) for part in _parts(vectors)]))


def _parts(vectors: sparse.csr_array) -> Iterator[tuple[int, sparse.csr_array]]:
    for first in range(0, vectors.shape[0], _CHUNK):
        yield first, vectors[first : first + _CHUNK]


def _nearest(part: tuple[int, sparse.csr_array], vectors: sparse.csr_array) -> sparse.csr_array:
    first, rows = part
    alike = (rows @ vectors.T).toarray()
    alike[np.arange(len(alike)), first + np.arange(len(alike))] = 0.0
    keep = min(_TEXT_NEIGHBOURS, alike.shape[1] - 1)
    least = np.partition(alike, -keep, axis=1)[:, [-keep]]
    return sparse.csr_array(np.where(alike >= least, alike, 0.0))


def _chunks(rows: sparse.csr_array) -> Iterator[NDArray[np.float64]]:
    for first in range(0, rows.shape[0], _CHUNK):
        yield rows[first : first + _CHUNK].toarray()


def _standardised(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    centred = scores - scores.mean(axis=1, keepdims=True)
    return np.asarray(centred / np.maximum(scores.std(axis=1, keepdims=True), 1e-12))
