"""Reads the PCI devices with their drivers and IOMMU groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from duovisor.hardware.attributes import find_link_name, list_folders, read_int, read_text

if TYPE_CHECKING:
    from pathlib import Path

# PCI Code and ID Assignment Specification 1.11, chapter 1: the base and sub classes that matter to a VM host
CLASS_NAMES = {
    "0100": "SCSI controller", "0104": "RAID controller", "0106": "SATA controller",
    "0107": "SAS controller", "0108": "NVMe controller", "0180": "storage controller",
    "0200": "Ethernet controller", "0207": "InfiniBand controller", "0280": "network controller",
    "0300": "VGA controller", "0302": "3D controller",
    "0600": "host bridge", "0601": "ISA bridge", "0604": "PCI bridge", "0c03": "USB controller",
}  # fmt: skip
BASE_CLASS_NAMES = {
    "00": "unclassified", "ff": "unassigned",
    "01": "storage", "02": "network", "03": "display", "04": "multimedia", "05": "memory", "06": "bridge",
    "07": "communication", "08": "system", "0c": "serial bus", "0d": "wireless", "0e": "intelligent I/O",
    "10": "encryption", "11": "signal processing", "12": "accelerator",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class PciDevice:
    """Ids are four hexadecimal digits, ``class_code`` six: base class, sub class, programming interface.

    Without an IOMMU there is no group.
    """

    address: str
    vendor_id: str
    device_id: str
    class_code: str
    driver: str | None
    iommu_group: int | None
    numa_node: int | None

    @property
    def ids(self) -> str:
        """``vendor:device`` as lspci writes it."""
        return f"{self.vendor_id}:{self.device_id}"

    @property
    def class_name(self) -> str:
        name = CLASS_NAMES.get(self.class_code[:4]) or BASE_CLASS_NAMES.get(self.class_code[:2])
        return name or f"class {self.class_code[:4]}"


def read_pci_devices(root: Path) -> tuple[PciDevice, ...]:
    """Every PCI device, by address."""
    return tuple(map(_read_device, list_folders(root / "sys/bus/pci/devices")))


def _read_device(folder: Path) -> PciDevice:
    group = find_link_name(folder / "iommu_group")
    numa_node = read_int(folder / "numa_node", -1)
    return PciDevice(
        address=folder.name,
        vendor_id=_read_hex(folder / "vendor"),
        device_id=_read_hex(folder / "device"),
        class_code=_read_hex(folder / "class"),
        driver=find_link_name(folder / "driver"),
        iommu_group=int(group) if group and group.isdigit() else None,
        numa_node=numa_node if numa_node >= 0 else None,
    )


def _read_hex(path: Path) -> str:
    return read_text(path).removeprefix("0x")
