"""Share a secret so that `threshold` shares give it back and fewer say nothing at all.

A secret is an element of the field of 2^255 - 19 and so is each share; both are 32 bytes. A
polynomial of degree threshold - 1 has the secret as its value at 0, its other coefficients are
uniform, and the share of the member at place x is its value at x. Through any threshold - 1
shares there is exactly one such polynomial for every secret: those shares fit all secrets alike.

Not promised: that shares are right. A wrong share gives a wrong secret and no error, so whoever
combines them must hold a commitment to each share and to the secret.

Source: Shamir 1979, "How to share a secret", https://doi.org/10.1145/359168.359176
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final

PRIME: Final = 2**255 - 19
ELEMENT_BYTES: Final = 32
# Reducing this many uniform bytes is off from uniform by less than 2^-256.
WIDE_BYTES: Final = 64


def split(secret: bytes, *, threshold: int, places: int, randomness: bytes) -> tuple[bytes, ...]:
    """Compute one share for each of the places 1, 2, ..., `places`.

    Args:
        secret: A field element, 32 bytes.
        threshold: Shares that give the secret back; 1 to `places`.
        places: How many shares; at least 1.
        randomness: 64 (threshold - 1) uniform bytes, never used for anything else.

    Returns:
        The shares in the order of their places, 32 bytes each.

    Raises:
        ValueError: An argument is out of range.
    """
    if not 1 <= threshold <= places:
        raise ValueError(f"threshold must be in [1, {places}], got {threshold}")
    if len(randomness) != WIDE_BYTES * (threshold - 1):
        raise ValueError(
            f"randomness must have {WIDE_BYTES * (threshold - 1)} bytes, got {len(randomness)}"
        )
    starts = range(0, len(randomness), WIDE_BYTES)
    rest = [reduced(randomness[start : start + WIDE_BYTES]) for start in starts]
    coefficients = [element(secret), *(element(part) for part in rest)]
    return tuple(
        evaluate(coefficients, at=place, prime=PRIME).to_bytes(ELEMENT_BYTES, "big")
        for place in range(1, places + 1)
    )


def combine(shares: Mapping[int, bytes]) -> bytes:
    """Give the secret back from exactly as many shares as the threshold says.

    Args:
        shares: By place, from 1; 32 bytes each.

    Raises:
        ValueError: No share, a place below 1, or a share that is no field element.
    """
    if not shares or min(shares) < 1:
        raise ValueError("shares must be given, at places from 1")
    points = {place: element(share) for place, share in shares.items()}
    return interpolate(points, prime=PRIME).to_bytes(ELEMENT_BYTES, "big")


def reduced(uniform: bytes) -> bytes:
    """A uniform field element, 32 bytes, from 64 uniform bytes."""
    return (int.from_bytes(uniform, "big") % PRIME).to_bytes(ELEMENT_BYTES, "big")


def element(data: bytes) -> int:
    """Read a field element.

    Raises:
        ValueError: The bytes are too few, too many, or 2^255 - 19 or more.
    """
    value = int.from_bytes(data, "big")
    if len(data) != ELEMENT_BYTES or value >= PRIME:
        raise ValueError("a share must be 32 bytes below 2^255 - 19")
    return value


def evaluate(coefficients: Sequence[int], *, at: int, prime: int) -> int:
    """Value of a polynomial, lowest coefficient first, by Horner's rule."""
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * at + coefficient) % prime
    return value


def interpolate(points: Mapping[int, int], *, prime: int) -> int:
    """Value at 0 of the one polynomial of least degree through the points (Lagrange)."""
    weights = _weights(tuple(points), prime)
    return sum(share * weight for share, weight in zip(points.values(), weights, strict=True)) % (
        prime
    )


@lru_cache(maxsize=64)
def _weights(places: tuple[int, ...], prime: int) -> tuple[int, ...]:
    """How much each place counts at 0; one round asks for the same places many times."""
    weights = []
    for place in places:
        above, below = 1, 1
        for other in places:
            if other != place:
                above = above * other % prime
                below = below * (other - place) % prime
        weights.append(above * pow(below, -1, prime) % prime)
    return tuple(weights)
