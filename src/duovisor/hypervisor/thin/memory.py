"""The guest's memory: one shared file, mapped here and given to KVM in one or two slots.

The file is made by the VMM's owner (``hypervisor/memory.py``); the drivers map the same one.
"""

from __future__ import annotations

import ctypes
import mmap
import os

from duovisor.hypervisor.thin.errors import ThinConfigError
from duovisor.hypervisor.thin.ports import HIGH_MEMORY_START, WINDOW_START, GuestMemory, MemoryPiece

TYPE_CHECKING = False
if TYPE_CHECKING:
    from duovisor.hypervisor.thin.kvm import VirtualMachine

PAGE_BYTES = 4096
_DIRTY_ONES = tuple(tuple(bit for bit in range(8) if byte >> bit & 1) for byte in range(256))


def build_pieces(size: int) -> tuple[MemoryPiece, ...]:
    """Where ``size`` bytes lie for the guest: below the window of devices, and the rest from 4 GiB on."""
    low = min(size, WINDOW_START)
    pieces = [MemoryPiece(0, low, 0)]
    if size > low:
        pieces.append(MemoryPiece(HIGH_MEMORY_START, size - low, low))
    return tuple(pieces)


class Memory:
    """The mapped memory. ``low`` is what lies from guest address 0 on: there the kernel is loaded."""

    def __init__(self, descriptor: int, size: int) -> None:
        if os.fstat(descriptor).st_size < size:
            raise ThinConfigError(f"the memory file is smaller than {size >> 20} MiB")
        self._mapping = mmap.mmap(descriptor, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self.view = memoryview(self._mapping)
        self.size = size
        self.shared = GuestMemory(descriptor, build_pieces(size))
        self.low = self.view[: self.shared.pieces[0].size]
        self._host_address = ctypes.addressof(ctypes.c_char.from_buffer(self._mapping))

    def attach(self, vm: VirtualMachine, *, log_dirty: bool = False) -> None:
        """Give it to the guest; again with ``log_dirty`` to begin or end the log of written pages."""
        for slot, piece in enumerate(self.shared.pieces):
            host = self._host_address + piece.file_offset
            vm.set_memory(slot, piece.guest_address, piece.size, host, log_dirty=log_dirty)

    def take_dirty_offsets(self, vm: VirtualMachine) -> list[int]:
        """Offsets in the file of the pages that vCPUs wrote since the last call or the log's beginning."""
        offsets = []
        for slot, piece in enumerate(self.shared.pieces):
            for place, byte in enumerate(vm.take_dirty_log(slot, piece.size)):
                if byte:
                    first = piece.file_offset + place * 8 * PAGE_BYTES
                    offsets += [first + bit * PAGE_BYTES for bit in _DIRTY_ONES[byte]]
        return offsets
