import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy import SumLayout
from privacy.masks import apply_masks, signed, word_type
from tests.privacy.consortium import NAMES, asked_for, run_round, set_up, terms_for

LAYOUT = SumLayout(parts=(("weighted update", 3), ("weight", 1), ("loss", 1)))


def test_weight_and_metrics_are_summed_under_the_same_masks() -> None:
    cohort = set_up(terms_for(5, max_abs=10**6))
    weights = {name: 10 * (place + 1) for place, name in enumerate(NAMES[:5])}
    values = {
        name: LAYOUT.join(
            {
                "weighted update": weight * np.array([1, 2, -3]),
                "weight": np.array([weight]),
                "loss": np.array([7]),
            }
        )
        for name, weight in weights.items()
    }

    asked = asked_for(dimension=LAYOUT.dimension)
    _, total = run_round(cohort, asked, values, silent={"mask": [NAMES[4]]})
    parts = LAYOUT.split(total)

    assert parts["weight"].tolist() == [100]
    assert (parts["weighted update"] / parts["weight"]).tolist() == [1.0, 2.0, -3.0]
    assert parts["loss"].tolist() == [28]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=5))
def test_what_is_joined_is_split_again(lengths: list[int]) -> None:
    layout = SumLayout(parts=tuple((f"part {n}", length) for n, length in enumerate(lengths)))
    values = {
        name: np.arange(length, dtype=np.int64) + 100 * place
        for place, (name, length) in enumerate(layout.parts)
    }

    parts = layout.split(layout.join(values))

    assert {name: part.tolist() for name, part in parts.items()} == {
        name: part.tolist() for name, part in values.items()
    }


def test_layouts_differ_in_their_digest_when_names_or_lengths_do() -> None:
    others = [(("ab", 1),), (("a", 1), ("b", 1)), (("ab", 2),), (("b", 1), ("a", 1))]

    assert len({SumLayout(parts=parts).digest for parts in others}) == 4


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ((), "a layout must have parts, each with a name of its own"),
        ((("a", 1), ("a", 2)), "a layout must have parts, each with a name of its own"),
        ((("", 1),), "a layout must have parts, each with a name of its own"),
        ((("a", 0),), "part a must have at least 1 coordinate, got 0"),
    ],
)
def test_a_layout_that_is_none_is_refused(
    parts: tuple[tuple[str, int], ...], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        SumLayout(parts=parts)


def test_values_that_do_not_fit_the_layout_are_refused() -> None:
    good = {
        "weighted update": np.zeros(3, dtype=np.int64),
        "weight": np.ones(1, dtype=np.int64),
        "loss": np.ones(1, dtype=np.int64),
    }

    with pytest.raises(ValueError, match="part accuracy is not in the layout"):
        LAYOUT.join(good | {"accuracy": np.ones(1, dtype=np.int64)})
    with pytest.raises(ValueError, match="part weight is missing"):
        LAYOUT.join({name: part for name, part in good.items() if name != "weight"})
    with pytest.raises(ValueError, match=r"part loss must be int64 of shape \(1,\), got float64"):
        LAYOUT.join(good | {"loss": np.ones(1)})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match=r"a total must have shape \(5,\), got \(4,\)"):
        LAYOUT.split(np.zeros(4, dtype=np.int64))


@given(
    st.sampled_from([16, 32, 64]),
    st.integers(1, 70_000),
    st.lists(st.binary(min_size=32, max_size=32), max_size=3),
)
def test_a_mask_that_was_added_comes_off_again(
    ring_bits: int, size: int, seeds: list[bytes]
) -> None:
    ring = np.arange(size).astype(word_type(ring_bits))
    masked = ring.copy()

    apply_masks(masked, added=seeds)
    apply_masks(masked, subtracted=seeds)

    assert np.array_equal(masked, ring)


@pytest.mark.parametrize("ring_bits", [16, 32, 64])
def test_a_ring_reads_back_numbers_around_zero(ring_bits: int) -> None:
    largest = 2 ** (ring_bits - 1) - 1
    values = np.array([0, -1, largest, -largest - 1])

    assert signed(values.astype(word_type(ring_bits))).tolist() == values.tolist()
