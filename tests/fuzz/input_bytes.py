"""Turns a fuzzer's bytes into numbers; behind their end everything is zero."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

T = TypeVar("T")

# Where programs go wrong: the ends of every width, and their neighbours.
EDGES = tuple(
    sorted(
        {0, 1, 2, 3, 4, 7, 8, 12, 15, 16, 17, 24, 255, 256, 4095, 4096}
        | {(1 << bits) + offset for bits in (15, 16, 31, 32, 40, 62, 63, 64) for offset in (-16, -1, 0, 1)}
    )
)


class InputBytes:
    """Reads an input from front to back."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    @property
    def remaining(self) -> int:
        return max(len(self._data) - self._position, 0)

    def take(self, count: int) -> bytes:
        """The next bytes, filled up with zeros."""
        piece = self._data[self._position : self._position + count]
        self._position += count
        return piece.ljust(count, b"\0")

    def number(self, size: int) -> int:
        """The next ``size`` bytes as a number."""
        return int.from_bytes(self.take(size), "little")

    def choose(self, choices: Sequence[T]) -> T:
        """One of up to 256."""
        return choices[self.number(1) % len(choices)]

    def edge(self, bits: int, near: Sequence[int] = (0,)) -> int:
        """A number of so many bits: one of ``near`` with a small offset, an edge, or any."""
        kind = self.number(1)
        if kind < 128:
            found = near[kind % len(near)] + self.number(1) - 4 if kind & 64 else near[kind % len(near)]
        elif kind < 224:
            found = self.choose(EDGES)
        else:
            found = self.number(bits // 8)
        return found & ((1 << bits) - 1)
