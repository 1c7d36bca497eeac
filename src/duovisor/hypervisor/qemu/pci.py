"""Where each device sits on the guest's PCI buses: the same in both designs, and for ever.

A guest recognises its devices by these addresses, and a live switch of designs needs them unchanged.
``pcie.0``, the root bus of QEMU's q35, has slots 0x01 to 0x1e free; 0x1f is the chipset's. What is there at
the start stays there: q35 plugs nothing into its root bus. So disks and network cards sit behind a bridge,
into which it does, by ACPI (decision 024).
"""

from __future__ import annotations

from duovisor.spec.vm import MAX_DEVICES, MAX_DISKS, MAX_NICS

SCREEN_SLOT, TABLET_SLOT = 0x01, 0x1D
SERIAL_PORTS_SLOT = 0x02
DEVICE_SLOTS = range(0x03, 0x03 + MAX_DEVICES)
NIC_SLOTS = range(0x08, 0x08 + MAX_NICS)
DISK_SLOTS = range(0x10, 0x10 + MAX_DISKS)


HOT_PLUG_BUS = "pluggable"
_HOT_PLUG_BRIDGE_SLOT = 0x1E


def build_hot_plug_bus() -> list[str]:
    """The bridge to the bus on which devices can come and go; 0x01 to 0x1f are its slots."""
    place = f"bus=pcie.0,addr={_HOT_PLUG_BRIDGE_SLOT:#x}"
    return ["-device", f"pcie-pci-bridge,id={HOT_PLUG_BUS},{place}"]


def at_pluggable(slot: int) -> str:
    """As ``at``, on the bus on which devices can come and go."""
    return f"bus={HOT_PLUG_BUS},addr={slot:#x},disable-legacy=on"


def at(slot: int) -> str:
    """The properties that place a virtio device; virtio 1 only: guests since 2014 know it."""
    return f"bus=pcie.0,addr={slot:#x},disable-legacy=on"
