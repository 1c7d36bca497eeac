"""The guest's memory as the front end shares it: mapped regions and bounds-checked translation.

Two address spaces lead into a region: *guest* (physical) addresses, which descriptors hold, and *user*
addresses of the front end, which describe where the rings lie. Nothing here trusts a number: a range is
handed out as a slice of the mapping it was checked against, and Python checks a slice's bounds again at
every access.

One limit: a file that shrinks below a mapping ends this process with SIGBUS at the next access. A memory
file that can be sealed against that is sealed here; for one that cannot, such as a named file on a tmpfs, the
harm stays with the one device whose memory it is.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import stat
from itertools import pairwise

from duovisor.channel.errors import GuestMemoryError, ProtocolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from duovisor.channel.messages import RegionDescription

MAX_MEMORY_SLOTS = 64  # what GET_MAX_MEM_SLOTS answers; QEMU itself stops at 509
ADDRESS_LIMIT = 1 << 64


class MemoryRegion:
    """One mapped region; ``view`` is its bytes."""

    __slots__ = ("guest_end", "guest_start", "user_end", "user_start", "view")

    def __init__(self, guest_start: int, user_start: int, view: memoryview) -> None:
        self.guest_start = guest_start
        self.guest_end = guest_start + len(view)
        self.user_start = user_start
        self.user_end = user_start + len(view)
        self.view = view


def map_file(descriptor: int, offset: int, size: int, what: str) -> mmap.mmap:
    """Map a peer's file from its beginning to ``offset + size`` bytes; the caller keeps the descriptor.

    The beginning, because an offset inside it need not be a multiple of a huge page's size. Raises
    ``ProtocolError``, with ``what`` as its subject, when the descriptor is no file that can be shared and
    written, or the file ends earlier.
    """
    try:
        # A descriptor that only names a file (O_PATH) has no seals to ask for: it fails in mmap.
        _seal_against_shrinking(descriptor)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ProtocolError(f"{what} is not in a file that can be shared")
        if offset + size > status.st_size:
            raise ProtocolError(f"{what} ends at {offset + size:#x}, its file at {status.st_size:#x}")
        return mmap.mmap(descriptor, offset + size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    except (OSError, ValueError, OverflowError) as error:
        raise ProtocolError(f"{what} cannot be mapped: {error}") from error


def _seal_against_shrinking(descriptor: int) -> None:
    """Before its size is looked at, so that what is mapped afterwards stays; not every file allows it."""
    try:
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    except OSError:
        pass  # no memory file, or its maker has settled for which seals it has


def map_region(description: RegionDescription, descriptor: int) -> MemoryRegion:
    """Map a region; the caller keeps the descriptor and closes it.

    Raises ``ProtocolError`` when the region is empty, wraps around, or lies beyond the end of its file.
    """
    size, offset = description.size, description.mmap_offset
    what = f"the memory region at {description.guest_address:#x}"
    if not size:
        raise ProtocolError(f"{what} is empty")
    if max(description.guest_address, description.user_address) + size > ADDRESS_LIMIT:
        raise ProtocolError(f"{what} with {size:#x} bytes passes the end of the address space")
    view = memoryview(map_file(descriptor, offset, size, what))
    return MemoryRegion(description.guest_address, description.user_address, view[offset : offset + size])


class GuestMemory:
    """All regions of one guest, none overlapping another.

    ``main_start``, ``main_size`` and ``main_view`` are those of the largest region, for the data path: nearly
    every buffer lies there.
    """

    __slots__ = ("main_size", "main_start", "main_view", "regions")

    def __init__(self, regions: list[MemoryRegion] | None = None) -> None:
        self.replace(regions or [])

    def replace(self, regions: list[MemoryRegion]) -> None:
        """Take a new set of regions; raises ``ProtocolError`` if two of them overlap."""
        regions = sorted(regions, key=lambda region: region.guest_start)
        by_user = sorted(regions, key=lambda region: region.user_start)
        for first, second in pairwise(regions):
            if second.guest_start < first.guest_end:
                raise ProtocolError(f"memory regions overlap at guest address {second.guest_start:#x}")
        for first, second in pairwise(by_user):
            if second.user_start < first.user_end:
                raise ProtocolError(f"memory regions overlap at user address {second.user_start:#x}")
        self.regions = regions
        largest = max(regions, key=lambda region: len(region.view), default=None)
        self.main_view = largest.view if largest else memoryview(b"")
        self.main_start = largest.guest_start if largest else 0
        self.main_size = len(self.main_view)

    def add(self, region: MemoryRegion) -> None:
        """Add one region (ADD_MEM_REG)."""
        if len(self.regions) >= MAX_MEMORY_SLOTS:
            raise ProtocolError(f"more than {MAX_MEMORY_SLOTS} memory regions")
        self.replace([*self.regions, region])

    def remove(self, description: RegionDescription) -> None:
        """Drop one region (REM_MEM_REG), named by its addresses and size."""
        for region in self.regions:
            if (region.guest_start, region.user_start, len(region.view)) == (
                description.guest_address,
                description.user_address,
                description.size,
            ):
                self.replace([other for other in self.regions if other is not region])
                return
        raise ProtocolError(f"there is no memory region at {description.guest_address:#x} to remove")

    @property
    def guest_end(self) -> int:
        """The first guest address behind all regions."""
        return self.regions[-1].guest_end if self.regions else 0

    def slices(self, address: int, length: int) -> list[memoryview]:
        """The bytes of a guest range, in as many pieces as it touches regions.

        Raises ``GuestMemoryError`` if any byte is outside.
        """
        if length <= 0:
            raise GuestMemoryError(f"a buffer at {address:#x} has {length} bytes")
        pieces: list[memoryview] = []
        position, end = address, address + length
        for region in self.regions:
            if region.guest_start <= position < region.guest_end:
                stop = min(end, region.guest_end)
                pieces.append(region.view[position - region.guest_start : stop - region.guest_start])
                position = stop
                if position == end:
                    return pieces
        raise GuestMemoryError(f"{length} bytes at {address:#x} are not in the guest's memory")

    def user_slice(self, address: int, length: int) -> memoryview:
        """The bytes of a range of the front end's addresses, which must lie in one region."""
        for region in self.regions:
            if region.user_start <= address < region.user_end and address + length <= region.user_end:
                offset = address - region.user_start
                return region.view[offset : offset + length]
        raise GuestMemoryError(f"{length} bytes at user address {address:#x} are not in one memory region")
