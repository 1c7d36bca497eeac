"""A virtio device as a PCI function: capabilities, one BAR with all registers, and who answers where in it.

Source: virtio 1.2, 4.1 (virtio over PCI, modern devices only). The BAR's pages::

    0x0000  common configuration      0x3000  notifications: 4 bytes for each queue
    0x1000  ISR status                0x4000  MSI-X table
    0x2000  device configuration      0x5000  MSI-X pending bits

A write to a queue's notification address never arrives here while the BAR is mapped: KVM turns it into a
count in the queue's eventfd, which the driver holds.
"""

from __future__ import annotations

import os
from struct import Struct

from duovisor.hypervisor.thin.pci import config_space as pci
from duovisor.hypervisor.thin.pci import msix as messages
from duovisor.hypervisor.thin.virtio.registers import COMMON_BYTES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from threading import RLock
    from typing import Any

    from duovisor.hypervisor.thin.pci.bus import PciBus
    from duovisor.hypervisor.thin.pci.msix import Msix
    from duovisor.hypervisor.thin.ports import Notifications
    from duovisor.hypervisor.thin.virtio.channel_device import ChannelDevice
    from duovisor.hypervisor.thin.virtio.registers import Registers

VENDOR = 0x1AF4
FIRST_DEVICE = 0x1040  # plus the device type (4.1.2)
BAR = 0
BAR_BYTES = 0x8000
PAGE_SHIFT = 12
COMMON_PAGE, ISR_PAGE, DEVICE_PAGE, NOTIFY_PAGE, TABLE_PAGE, PENDING_PAGE = range(6)
NOTIFY_STEP = 4
MAX_QUEUES = 255  # whose vectors, with that of the configuration, fill the table's page
_VENDOR_CAPABILITY = 0x09
_COMMON, _NOTIFY, _ISR, _DEVICE, _WINDOW = 1, 2, 3, 4, 5
_CAPABILITY = Struct("<BBBBxxII")  # length, type, BAR, identifier, offset, length
_WINDOW_BAR, _WINDOW_OFFSET, _WINDOW_DATA = 4, 8, 16  # places in the capability of type 5
# PCI class by device type (Code and ID Assignment 1.11): storage, network, communication; else unassigned
_CLASSES = {1: 0x020000, 2: 0x010000, 3: 0x078000}
_OTHER_CLASS = 0x00FF00


class VirtioFunction:
    """The function in one slot. ``lock`` is its device's: every access of the guest holds it."""

    def __init__(
        self,
        device: ChannelDevice,
        registers: Registers,
        msix: Msix,
        *,
        address: int,
        bus: PciBus,
        notifications: Notifications,
        lock: RLock,
    ) -> None:
        self._device = device
        self._registers = registers
        self._msix = msix
        self._bus = bus
        self._notifications = notifications
        self._lock = lock
        self._address = address
        self._mapped: int | None = None
        kind = device.virtio_type
        self._config = pci.ConfigSpace(
            VENDOR,
            FIRST_DEVICE + kind,
            _CLASSES.get(kind, _OTHER_CLASS),
            revision=1,
            subsystem=(VENDOR, FIRST_DEVICE + kind),
        )
        self._config.add_bar(BAR, BAR_BYTES, address)
        self._msix_place = self._add_msix_capability()
        self._window = self._add_virtio_capabilities()

    def _add_msix_capability(self) -> int:
        last = len(self._msix.vectors) - 1
        table, pending = TABLE_PAGE << PAGE_SHIFT | BAR, PENDING_PAGE << PAGE_SHIFT | BAR
        writable = (messages.CONTROL_ENABLE | messages.CONTROL_MASK_ALL).to_bytes(2, "little")
        return self._config.add_capability(
            messages.CAPABILITY, Struct("<HII").pack(last, table, pending), writable
        )

    def _add_virtio_capabilities(self) -> int:
        """The five structures of 4.1.4; where the last one, the window for configuration accesses, is."""
        queues = len(self._device.queues)
        for kind, page, length in (
            (_COMMON, COMMON_PAGE, COMMON_BYTES),
            (_ISR, ISR_PAGE, 1),
            (_DEVICE, DEVICE_PAGE, len(self._device.config)),
        ):
            self._config.add_capability(
                _VENDOR_CAPABILITY, _CAPABILITY.pack(16, kind, BAR, 0, page << PAGE_SHIFT, length)
            )
        notify = _CAPABILITY.pack(20, _NOTIFY, BAR, 0, NOTIFY_PAGE << PAGE_SHIFT, NOTIFY_STEP * queues)
        self._config.add_capability(_VENDOR_CAPABILITY, notify + NOTIFY_STEP.to_bytes(4, "little"))
        window = _CAPABILITY.pack(20, _WINDOW, 0, 0, 0, 0) + bytes(4)
        place = self._config.add_capability(_VENDOR_CAPABILITY, window)
        self._config.allow(place + _WINDOW_BAR, 1, 0xFF)
        self._config.allow(place + _WINDOW_OFFSET, 12, (1 << 96) - 1)  # offset, length and data
        return place

    # Configuration space

    def read_config(self, offset: int, size: int) -> int:
        """Bytes of the configuration space; through the window, of the BAR."""
        with self._lock:
            access = self._find_window(offset, size)
            if access is not None:
                value = self._read(*access)
                self._config.put(self._window + _WINDOW_DATA, access[1], value & (1 << 8 * access[1]) - 1)
            return self._config.read(offset, size)

    def write_config(self, offset: int, size: int, value: int) -> None:
        """Take bytes, and do what they ask for."""
        with self._lock:
            self._config.write(offset, size, value)
            if offset < pci.FIRST_BAR + 4 and offset + size > pci.COMMAND:
                self._place()
            if offset < self._msix_place + 4 and offset + size > self._msix_place + 2:
                self._msix.set_control(self._config.get(self._msix_place + 2, 2))
            access = self._find_window(offset, size)
            if access is not None:
                self._write(*access, self._config.get(self._window + _WINDOW_DATA, access[1]))

    def _find_window(self, offset: int, size: int) -> tuple[int, int] | None:
        """Offset and size of the access to the BAR that touching these bytes means (4.1.4.9)."""
        data = self._window + _WINDOW_DATA
        if not (offset < data + 4 and offset + size > data):
            return None
        bar = self._config.get(self._window + _WINDOW_BAR, 1)
        place = self._config.get(self._window + _WINDOW_OFFSET, 4)
        length = self._config.get(self._window + _WINDOW_OFFSET + 4, 4)
        if bar != BAR or length not in (1, 2, 4) or place % length or place >= BAR_BYTES:
            return None
        return place, length

    # Where the BAR lies

    def _place(self) -> None:
        """Map the BAR where the guest wants it now, and the queues' notifications with it."""
        wanted = self._config.bar(BAR)
        if wanted == self._mapped:
            return
        self._unmap()
        if wanted is not None and self._bus.map(wanted, BAR_BYTES, self):
            self._mapped = wanted
            for queue in self._device.queues:
                self._notifications.attach(_notify_address(wanted, queue.index), queue.kick)

    def _unmap(self) -> None:
        if self._mapped is not None:
            for queue in self._device.queues:
                self._notifications.detach(_notify_address(self._mapped, queue.index), queue.kick)
            self._bus.unmap(self._mapped)
            self._mapped = None

    # The BAR

    def read(self, offset: int, size: int) -> int:
        """Registers, for an exit of a vCPU."""
        with self._lock:
            return self._read(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """As ``read``."""
        with self._lock:
            self._write(offset, size, value)

    def _read(self, offset: int, size: int) -> int:
        page, place = offset >> PAGE_SHIFT, offset & (1 << PAGE_SHIFT) - 1
        if page == COMMON_PAGE:
            return self._registers.read(place, size)
        if page == DEVICE_PAGE:
            return int.from_bytes(self._device.config[place : place + size], "little")
        if page == TABLE_PAGE:
            return self._msix.read(place, size)
        if page == PENDING_PAGE:
            return self._msix.read_pending(place, size)
        return 0  # the ISR status, too: it is for interrupt pins, which there are none of

    def _write(self, offset: int, size: int, value: int) -> None:
        page, place = offset >> PAGE_SHIFT, offset & (1 << PAGE_SHIFT) - 1
        if page == COMMON_PAGE:
            self._registers.write(place, size, value)
        elif page == DEVICE_PAGE:
            self._device.write_config(place, value.to_bytes(size, "little"))
        elif page == TABLE_PAGE:
            self._msix.write(place, size, value)
        elif (
            page == NOTIFY_PAGE
            and not place % NOTIFY_STEP
            and place // NOTIFY_STEP < len(self._device.queues)
        ):
            os.eventfd_write(self._device.queues[place // NOTIFY_STEP].kick, 1)  # only through the window

    # Life

    def reset(self) -> None:
        """As after power-on."""
        self._unmap()
        self._registers.reset()
        self._msix.reset()
        self._config.write(0, pci.CONFIG_BYTES, 0)
        self._config.put(pci.FIRST_BAR + 4 * BAR, 4, self._address)

    def close(self) -> None:
        """Leave the address space."""
        self._unmap()

    def save(self) -> dict[str, Any]:
        """All that the guest can read back."""
        return {"pci": self._config.save(), "msix": self._msix.save(), "registers": self._registers.save()}

    def restore(self, saved: dict[str, Any]) -> None:
        """Take what ``save`` returned, in a function that was just made.

        Raises ``ValueError``, ``KeyError`` or ``TypeError`` for what is none.
        """
        self._registers.restore(saved["registers"])
        self._config.restore(saved["pci"])
        self._msix.restore(saved["msix"])
        self._place()


def _notify_address(base: int, index: int) -> int:
    return base + (NOTIFY_PAGE << PAGE_SHIFT) + NOTIFY_STEP * index
