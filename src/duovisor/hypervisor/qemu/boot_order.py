"""In which order firmware tries the devices from which a guest may start."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from duovisor.spec.cdrom import BootDevice
    from duovisor.spec.vm import VirtualMachineSpec

_STEP = 100  # more than there can be of a kind


def build_boot_index(spec: VirtualMachineSpec, kind: BootDevice, index: int) -> list[str]:
    """The property of device ``index`` of its kind; nothing for what is not started from.

    With the usual order a disk's is its number and one more, as it always was.
    """
    if kind not in spec.boot_order:
        return []
    return [f"bootindex={spec.boot_order.index(kind) * _STEP + index + 1}"]
