"""A virtqueue as the transport knows it: what the guest wrote, and the eventfds for both directions."""

from __future__ import annotations

import os

from duovisor.hypervisor.thin.pci.msix import NO_VECTOR

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from duovisor.hypervisor.thin.ports import GuestMemory, MemoryPiece

# virtio 1.2, 2.7: alignment of the three parts, in bytes
_ALIGNMENTS = (16, 2, 4)
_SAVED = ("size", "enabled", "descriptors", "available", "used", "vector", "base")


class Queue:
    """Guest addresses of its parts, and ``base``: where in the available ring a back end is to begin.

    ``base`` is ``None`` while a back end works on the queue, for only that one knows.
    """

    __slots__ = (
        "available", "base", "call", "descriptors", "enabled", "index", "kick", "max_size", "size", "used",
        "vector",
    )  # fmt: skip

    def __init__(self, index: int, max_size: int) -> None:
        self.index = index
        self.max_size = max_size
        self.kick = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.call = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.vector = NO_VECTOR
        self.base: int | None = 0
        self.reset()

    def reset(self) -> None:
        """As before a guest touched it; the vector is its owner's matter."""
        self.size = self.max_size
        self.enabled = False
        self.descriptors = self.available = self.used = 0
        self.base = 0

    def parts(self) -> tuple[tuple[int, int], ...]:
        """Guest address and length in bytes of descriptor table, available ring and used ring (2.7)."""
        return (
            (self.descriptors, 16 * self.size),
            (self.available, 6 + 2 * self.size),
            (self.used, 6 + 8 * self.size),
        )

    def is_sound(self, memory: GuestMemory) -> bool:
        """Whether each part is aligned and lies in one piece of the guest's memory."""
        return all(
            not address % alignment and find_piece(memory, address, length) is not None
            for (address, length), alignment in zip(self.parts(), _ALIGNMENTS, strict=True)
        )

    def read_used_index(self, memory: GuestMemory) -> int:
        """The index up to which requests are done; for a queue that is sound."""
        piece = find_piece(memory, self.used, 4)
        if piece is None:
            return 0
        place = piece.file_offset + self.used + 2 - piece.guest_address
        return int.from_bytes(os.pread(memory.descriptor, 2, place), "little")

    def close(self) -> None:
        """Close the eventfds."""
        os.close(self.kick)
        os.close(self.call)

    def save(self) -> dict[str, Any]:
        """All that is not the same for ever."""
        return {name: getattr(self, name) for name in _SAVED}

    def restore(self, saved: dict[str, Any]) -> None:
        """Take what ``save`` returned, but for the vector; raises ``ValueError`` for what cannot be."""
        size = int(saved["size"])
        if not is_size(size, self.max_size):
            raise ValueError(f"queue {self.index} of {size} entries")
        self.size, self.enabled = size, bool(saved["enabled"])
        self.descriptors, self.available, self.used = (int(saved[name]) for name in _SAVED[2:5])
        self.base = None if saved["base"] is None else int(saved["base"]) & 0xFFFF


def is_size(size: int, max_size: int) -> bool:
    """Whether a queue can have so many entries: a power of two (2.7)."""
    return 0 < size <= max_size and not size & (size - 1)


def find_piece(memory: GuestMemory, address: int, length: int) -> MemoryPiece | None:
    """The piece of memory that holds a whole guest range."""
    for piece in memory.pieces:
        if piece.guest_address <= address and address + length <= piece.guest_address + piece.size:
            return piece
    return None
