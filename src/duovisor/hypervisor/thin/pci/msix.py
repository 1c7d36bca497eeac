"""MSI-X: the table of messages, and eventfds that send them without anybody's help.

Source: PCI Local Bus 3.0, 6.8.2. A vector is *live* when nothing masks it: then its eventfds are attached to
its message (irqfd). A masked vector's eventfds are detached and keep what is written to them, which is what
the specification calls pending; attaching them again delivers it.
"""

from __future__ import annotations

import os
import select

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from duovisor.hypervisor.thin.ports import Interrupts

NO_VECTOR = 0xFFFF
CAPABILITY = 0x11
CONTROL_ENABLE = 1 << 15
CONTROL_MASK_ALL = 1 << 14
ENTRY_BYTES = 16
_MASKED = 1
# Intel SDM volume 3, 10.11.1: messages to local APICs go to 0xFEExxxxx; others would write to memory
_APIC_PAGE = 0xFEE


class Vector:
    """One entry of the table, the eventfds that use it, and the message for which they are attached."""

    __slots__ = ("address", "data", "gsi", "live", "masked", "sources")

    def __init__(self, gsi: int) -> None:
        self.gsi = gsi
        self.address = self.data = 0
        self.masked = True
        self.sources: list[int] = []
        self.live: tuple[int, int] | None = None


class Msix:
    """The table of one function, ``count`` vectors long. Its owner locks."""

    def __init__(self, count: int, interrupts: Interrupts) -> None:
        self._interrupts = interrupts
        self._control = 0
        self.vectors = [Vector(interrupts.allocate()) for _ in range(count)]

    def set_control(self, control: int) -> None:
        """The guest has written the capability's control word."""
        self._control = control
        self._update_all()

    def connect(self, number: int, eventfd: int) -> None:
        """Let an eventfd send the message of a vector; with ``NO_VECTOR`` it sends none."""
        if number < len(self.vectors):
            vector = self.vectors[number]
            vector.sources.append(eventfd)
            if vector.live is not None:
                self._interrupts.attach(vector.gsi, eventfd)
            else:
                self._update(vector)

    def disconnect(self, number: int, eventfd: int) -> None:
        """The opposite."""
        if number < len(self.vectors):
            vector = self.vectors[number]
            vector.sources.remove(eventfd)
            if vector.live is not None:
                self._interrupts.detach(vector.gsi, eventfd)
            self._update(vector)

    def reset(self) -> None:
        """As after power-on, but for the sources."""
        self._control = 0
        for vector in self.vectors:
            vector.address = vector.data = 0
            vector.masked = True
        self._update_all()

    # Registers

    def read(self, offset: int, size: int) -> int:
        """Bytes of the table."""
        index, place = divmod(offset, ENTRY_BYTES)
        if index >= len(self.vectors):
            return 0
        vector = self.vectors[index]
        entry = vector.address | vector.data << 64 | (_MASKED if vector.masked else 0) << 96
        return entry >> 8 * place & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """One double word of an entry, or two at once; other accesses are undefined."""
        index, place = divmod(offset, ENTRY_BYTES)
        if index >= len(self.vectors) or size not in (4, 8) or place % size:
            return
        vector = self.vectors[index]
        for part in range(place // 4, (place + size) // 4):
            self._write_word(vector, part, value & 0xFFFFFFFF)
            value >>= 32
        self._update(vector)

    def _write_word(self, vector: Vector, part: int, value: int) -> None:
        if part == 0:
            vector.address = vector.address & ~0xFFFFFFFF | value & ~3
        elif part == 1:
            vector.address = vector.address & 0xFFFFFFFF | value << 32
        elif part == 2:
            vector.data = value
        else:
            vector.masked = bool(value & _MASKED)

    def read_pending(self, offset: int, size: int) -> int:
        """Bytes of the pending bits."""
        pending = 0
        for place in range(8 * size):
            index = 8 * offset + place
            if index < len(self.vectors) and _is_pending(self.vectors[index]):
                pending |= 1 << place
        return pending

    # Snapshots

    def save(self) -> dict[str, Any]:
        """What a guest knows of it. What waits is not told: after ``restore`` everything is sent once."""
        entries = [[vector.address, vector.data, vector.masked] for vector in self.vectors]
        return {"control": self._control, "vectors": entries}

    def restore(self, saved: dict[str, Any]) -> None:
        """Take what ``save`` returned, when all sources are connected; raises ``ValueError``.

        Each source sends its message once: an interrupt without a reason is harmless, a lost one is not.
        """
        if len(saved["vectors"]) != len(self.vectors):
            raise ValueError(f"a table of {len(saved['vectors'])} vectors, not {len(self.vectors)}")
        for vector, (address, data, masked) in zip(self.vectors, saved["vectors"], strict=True):
            vector.address, vector.data, vector.masked = int(address), int(data), bool(masked)
            for eventfd in vector.sources:
                os.eventfd_write(eventfd, 1)
        self._control = int(saved["control"])
        self._update_all()

    # Delivery

    def _update_all(self) -> None:
        for vector in self.vectors:
            self._update(vector)

    def _update(self, vector: Vector) -> None:
        """Attach, detach or attach anew what the masks and the message say."""
        wanted = (vector.address, vector.data) if self._may_send(vector) else None
        if wanted == vector.live:
            return
        if vector.live is not None:
            for eventfd in vector.sources:
                self._interrupts.detach(vector.gsi, eventfd)
            self._interrupts.unroute(vector.gsi)
        vector.live = wanted
        if wanted is not None:
            self._interrupts.route(vector.gsi, *wanted)
            for eventfd in vector.sources:
                self._interrupts.attach(vector.gsi, eventfd)

    def _may_send(self, vector: Vector) -> bool:
        open_gate = self._control & (CONTROL_ENABLE | CONTROL_MASK_ALL) == CONTROL_ENABLE
        return open_gate and not vector.masked and bool(vector.sources) and vector.address >> 20 == _APIC_PAGE


def _is_pending(vector: Vector) -> bool:
    """Whether an eventfd of a vector that is not live holds a count."""
    if vector.live is not None or not vector.sources:
        return False
    poller = select.poll()
    for eventfd in vector.sources:
        poller.register(eventfd, select.POLLIN)
    return bool(poller.poll(0))
