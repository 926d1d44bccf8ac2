from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.shamir import (
    PRIME,
    WIDE_BYTES,
    combine,
    element,
    evaluate,
    interpolate,
    reduced,
    split,
)

elements = st.integers(0, PRIME - 1).map(lambda value: value.to_bytes(32, "big"))


@st.composite
def sharings(draw: st.DrawFn) -> tuple[bytes, int, tuple[bytes, ...]]:
    places = draw(st.integers(1, 20))
    threshold = draw(st.integers(1, places))
    secret = draw(elements)
    size = WIDE_BYTES * (threshold - 1)
    randomness = draw(st.binary(min_size=size, max_size=size))
    shares = split(secret, threshold=threshold, places=places, randomness=randomness)
    return secret, threshold, shares


@given(sharings(), st.data())
def test_any_threshold_of_shares_gives_the_secret_back(
    sharing: tuple[bytes, int, tuple[bytes, ...]], data: st.DataObject
) -> None:
    secret, threshold, shares = sharing
    places = data.draw(st.permutations(range(1, len(shares) + 1)))[:threshold]

    assert combine({place: shares[place - 1] for place in places}) == secret


@given(sharings(), elements, st.data())
@settings(max_examples=50)
def test_one_share_less_fits_every_other_secret_just_as_well(
    sharing: tuple[bytes, int, tuple[bytes, ...]], other: bytes, data: st.DataObject
) -> None:
    """The missing share that would make any other secret out of them exists, and only one."""
    _, threshold, shares = sharing
    places = data.draw(st.permutations(range(1, len(shares) + 1)))[:threshold]
    known = {place: element(shares[place - 1]) for place in places[1:]}

    # Through the known shares and the other secret at 0 runs one polynomial.
    points = known | {0: element(other)}
    shifted = {place - places[0]: value for place, value in points.items()}
    missing = interpolate(shifted, prime=PRIME)

    assert interpolate(known | {places[0]: missing}, prime=PRIME) == element(other)


def test_the_known_answer_of_a_worked_example() -> None:
    """Wikipedia, "Shamir's secret sharing": 1234 + 166 x + 94 x^2 modulo 1613."""
    known = {1: 1494, 2: 329, 3: 965, 4: 176, 5: 1188, 6: 775}

    assert {x: evaluate([1234, 166, 94], at=x, prime=1613) for x in known} == known
    assert interpolate({2: 1942 % 1613, 4: 3402 % 1613, 5: 4414 % 1613}, prime=1613) == 1234


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=6))
def test_interpolation_agrees_with_rational_arithmetic(values: list[int]) -> None:
    points = dict(enumerate(values, start=1))
    exact = sum(
        Fraction(value)
        * _product(Fraction(other, other - place) for other in points if other != place)
        for place, value in points.items()
    )

    assert interpolate(points, prime=PRIME) == exact.numerator * pow(
        exact.denominator, -1, PRIME
    ) % (PRIME)


def _product(factors: object) -> Fraction:
    result = Fraction(1)
    for factor in factors:  # type: ignore[attr-defined]
        result *= factor
    return result


def test_the_modulus_is_a_prime() -> None:
    """Lucas: 2 has order p - 1; the last factor of p - 1 is taken for a prime."""
    factors = (
        2,
        3,
        65147,
        74058212732561358302231226437062788676166966415465897661863160754340907,
    )
    left = PRIME - 1
    for factor in factors:
        while left % factor == 0:
            left //= factor

    assert left == 1
    assert pow(2, PRIME - 1, PRIME) == 1
    assert all(pow(2, (PRIME - 1) // factor, PRIME) != 1 for factor in factors)


def test_wide_bytes_are_reduced_into_the_field() -> None:
    assert reduced(PRIME.to_bytes(64, "big")) == bytes(32)
    assert reduced((PRIME + 7).to_bytes(64, "big")) == (7).to_bytes(32, "big")


@pytest.mark.parametrize("data", [b"", bytes(31), bytes(33), PRIME.to_bytes(32, "big")])
def test_bytes_that_are_no_field_element_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"a share must be 32 bytes below 2\^255 - 19"):
        element(data)


def test_sharing_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match=r"threshold must be in \[1, 3\], got 4"):
        split(bytes(32), threshold=4, places=3, randomness=bytes(192))
    with pytest.raises(ValueError, match="randomness must have 128 bytes, got 64"):
        split(bytes(32), threshold=3, places=3, randomness=bytes(64))
    with pytest.raises(ValueError, match="shares must be given, at places from 1"):
        combine({})
    with pytest.raises(ValueError, match="shares must be given, at places from 1"):
        combine({0: bytes(32)})
