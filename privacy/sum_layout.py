"""Where each quantity lies in the one vector that is summed: weights and metrics are masked too.

A count or a loss sent in clear beside a masked vector betrays what the masks hide. Everything a
member contributes is therefore a coordinate of the same vector: it is noised, charged and masked
with the rest, and only its sum is read.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from privacy.roster import pack


@dataclass(frozen=True, slots=True, kw_only=True)
class SumLayout:
    """Named parts of a vector, one behind the other.

    Attributes:
        parts: Name and length of each, in their order; names once, lengths at least 1.
            A weighted mean is two parts: `weight * update` and `weight`, of length 1.
    """

    parts: tuple[tuple[str, int], ...]

    def __post_init__(self) -> None:
        names = [name for name, _ in self.parts]
        if not names or len(set(names)) != len(names) or not all(names):
            raise ValueError("a layout must have parts, each with a name of its own")
        for name, length in self.parts:
            if length < 1:
                raise ValueError(f"part {name} must have at least 1 coordinate, got {length}")

    @property
    def dimension(self) -> int:
        """Length of the vector."""
        return sum(length for _, length in self.parts)

    @property
    def digest(self) -> bytes:
        """SHA-256 of names and lengths, for the digest of a round's question."""
        fields = (field for name, length in self.parts for field in (name, str(length)))
        return hashlib.sha256(pack(*(field.encode() for field in fields))).digest()

    def join(self, values: Mapping[str, NDArray[np.int64]]) -> NDArray[np.int64]:
        """One vector of all parts, shape (dimension,).

        Args:
            values: By name, noised integers of shape (length,).

        Raises:
            ValueError: A part is missing, unknown, of another type or of another shape.
        """
        unknown = sorted(set(values) - {name for name, _ in self.parts})
        if unknown:
            raise ValueError(f"part {unknown[0]} is not in the layout")
        for name, length in self.parts:
            if name not in values:
                raise ValueError(f"part {name} is missing")
            found = values[name]
            if found.dtype != np.int64 or found.shape != (length,):
                raise ValueError(
                    f"part {name} must be int64 of shape ({length},), "
                    f"got {found.dtype} of {found.shape}"
                )
        return np.concatenate([values[name] for name, _ in self.parts])

    def split(self, total: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
        """The parts of a vector by name; views of it.

        Raises:
            ValueError: The vector has another shape.
        """
        if total.shape != (self.dimension,):
            raise ValueError(f"a total must have shape ({self.dimension},), got {total.shape}")
        parts, start = {}, 0
        for name, length in self.parts:
            parts[name] = total[start : start + length]
            start += length
        return parts
