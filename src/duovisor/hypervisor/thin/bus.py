"""An address space of registers: finds whose an address is; for memory-mapped registers and for I/O ports.

A guest that touches what nobody owns reads all ones and writes into nothing, as on a PC's buses. It is
counted, never logged: a guest can do it a million times a second.
"""

from __future__ import annotations

import threading
from bisect import bisect_right

TYPE_CHECKING = False
if TYPE_CHECKING:
    from duovisor.hypervisor.thin.ports import Region


class Bus:
    """An address space; any thread. A look-up takes no lock: the table is replaced as a whole."""

    def __init__(self) -> None:
        self._table: tuple[list[int], list[tuple[int, int, Region]]] = ([], [])
        self._lock = threading.Lock()
        self.unclaimed = 0

    def add(self, base: int, size: int, region: Region) -> None:
        """Give ``size`` addresses from ``base`` on to a region. Raises ``ValueError`` if one is taken."""
        with self._lock:
            entries = self._table[1]
            if any(base < end and start < base + size for start, end, _ in entries):
                raise ValueError(f"{base:#x} to {base + size:#x} is taken")
            self._set([*entries, (base, base + size, region)])

    def remove(self, base: int) -> None:
        """Take back the region that begins at ``base``, if one does."""
        with self._lock:
            self._set([entry for entry in self._table[1] if entry[0] != base])

    def _set(self, entries: list[tuple[int, int, Region]]) -> None:
        entries.sort(key=lambda entry: entry[0])
        self._table = ([entry[0] for entry in entries], entries)

    def _find(self, address: int) -> tuple[int, Region] | None:
        bases, entries = self._table
        place = bisect_right(bases, address) - 1
        if place >= 0 and address < entries[place][1]:
            return address - entries[place][0], entries[place][2]
        self.unclaimed += 1
        return None

    def read(self, address: int, size: int) -> int:
        """What the guest reads: ``size`` bytes as a little-endian number."""
        found = self._find(address)
        ones = (1 << 8 * size) - 1
        return ones if found is None else found[1].read(found[0], size) & ones

    def write(self, address: int, size: int, value: int) -> None:
        """What the guest writes."""
        found = self._find(address)
        if found is not None:
            found[1].write(found[0], size, value)
