"""The 256 bytes of configuration space of one PCI function, and who may write which bits of them.

Source: PCI Local Bus 3.0, chapter 6. A write changes the writable bits and no others; what that means is for
the owner of the function, which is called back.
"""

from __future__ import annotations

CONFIG_BYTES = 256
COMMAND = 0x04
STATUS = 0x06
FIRST_BAR = 0x10
SUBSYSTEM = 0x2C
CAPABILITIES_POINTER = 0x34
FIRST_CAPABILITY = 0x40

COMMAND_MEMORY = 1 << 1
COMMAND_BUS_MASTER = 1 << 2
COMMAND_NO_INTX = 1 << 10
STATUS_CAPABILITIES = 1 << 4
_COMMAND_WRITABLE = COMMAND_MEMORY | COMMAND_BUS_MASTER | COMMAND_NO_INTX
_BAR_FLAGS = 0xF  # of a memory BAR: 32 bits wide, not prefetchable


class ConfigSpace:
    """A function of type 0; ``class_code`` has 24 bits: class, subclass, interface."""

    def __init__(
        self,
        vendor: int,
        device: int,
        class_code: int,
        *,
        revision: int = 0,
        subsystem: tuple[int, int] = (0, 0),
    ) -> None:
        self.data = bytearray(CONFIG_BYTES)
        self._writable = bytearray(CONFIG_BYTES)
        self._last_link = CAPABILITIES_POINTER
        self._free = FIRST_CAPABILITY
        self.put(0x00, 2, vendor)
        self.put(0x02, 2, device)
        self.put(0x08, 4, class_code << 8 | revision)
        self.put(SUBSYSTEM, 2, subsystem[0])
        self.put(SUBSYSTEM + 2, 2, subsystem[1])
        self.allow(COMMAND, 2, _COMMAND_WRITABLE)

    # What the owner does

    def get(self, offset: int, size: int) -> int:
        """The value of a field."""
        return int.from_bytes(self.data[offset : offset + size], "little")

    def put(self, offset: int, size: int, value: int) -> None:
        """Set a field, writable or not."""
        self.data[offset : offset + size] = value.to_bytes(size, "little")

    def allow(self, offset: int, size: int, mask: int) -> None:
        """Let the guest write these bits of a field."""
        self._writable[offset : offset + size] = mask.to_bytes(size, "little")

    def add_bar(self, index: int, size: int, address: int) -> None:
        """A memory BAR of 32 bits; ``size`` is a power of two of at least 16 bytes (6.2.5.1)."""
        offset = FIRST_BAR + 4 * index
        self.put(offset, 4, address)
        self.allow(offset, 4, 0xFFFFFFFF & ~(size - 1) & ~_BAR_FLAGS)

    def bar(self, index: int) -> int | None:
        """Where a BAR lies, ``None`` while the guest has memory accesses switched off."""
        if not self.get(COMMAND, 2) & COMMAND_MEMORY:
            return None
        return self.get(FIRST_BAR + 4 * index, 4) & ~_BAR_FLAGS

    def add_capability(self, identifier: int, body: bytes, writable: bytes = b"") -> int:
        """Link a capability with these bytes behind its two-byte head (6.7); return where it begins."""
        offset = self._free
        self.data[self._last_link] = offset
        self.data[offset] = identifier
        self._last_link = offset + 1
        self.data[offset + 2 : offset + 2 + len(body)] = body
        self._writable[offset + 2 : offset + 2 + len(writable)] = writable
        self._free = (offset + 2 + len(body) + 3) & ~3
        self.put(STATUS, 2, STATUS_CAPABILITIES)
        return offset

    # What the guest does

    def read(self, offset: int, size: int) -> int:
        """Any bytes; behind the end there are none."""
        return self.get(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """Change what may be changed of the bytes inside."""
        end = min(offset + size, CONFIG_BYTES)
        for place in range(offset, end):
            mask = self._writable[place]
            self.data[place] = self.data[place] & ~mask | value & 0xFF & mask
            value >>= 8

    # Snapshots

    def save(self) -> str:
        """All bytes, as hexadecimal digits."""
        return self.data.hex()

    def restore(self, saved: str) -> None:
        """Take the writable bits of what ``save`` returned; raises ``ValueError`` for what is none."""
        data = bytes.fromhex(saved)
        if len(data) != CONFIG_BYTES:
            raise ValueError(f"a configuration space of {len(data)} bytes")
        self.write(0, CONFIG_BYTES, int.from_bytes(data, "little"))
