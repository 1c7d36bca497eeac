"""Where each device sits on the guest's PCI root bus: the same in both designs, and for ever.

A guest recognises its devices by these addresses, and a live switch of designs needs them unchanged.
``pcie.0`` of QEMU's q35 has slots 0x01 to 0x1e free; 0x1f is the chipset's.
"""

from __future__ import annotations

from duovisor.spec.vm import MAX_DEVICES, MAX_DISKS, MAX_NICS

SERIAL_PORTS_SLOT = 0x02
DEVICE_SLOTS = range(0x03, 0x03 + MAX_DEVICES)
NIC_SLOTS = range(0x08, 0x08 + MAX_NICS)
DISK_SLOTS = range(0x10, 0x10 + MAX_DISKS)


def at(slot: int) -> str:
    """The properties that place a virtio device; virtio 1 only: guests since 2014 know it."""
    return f"bus=pcie.0,addr={slot:#x},disable-legacy=on"
