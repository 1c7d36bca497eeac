"""CD-ROM drives: SATA drives of QEMU's in both designs, so that any firmware and any guest knows them.

What differs is behind them. The monolithic VMM opens the image itself. In the microkernelized design it knows
no image: it reads from a media server, a process of the controlling layer, over NBD on a socket, and connects
again by itself when that one has been replaced.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from duovisor.hypervisor.qemu.boot_order import build_boot_index
from duovisor.spec.cdrom import BootDevice
from duovisor.spec.vm import Design

if TYPE_CHECKING:
    from duovisor.spec.vm import VirtualMachineSpec

SANDBOX_MEDIA = "/media"
# For how long the guest's requests wait for the next media server; QEMU looks for it after 1, 2, 4 … 16 s.
RECONNECT_S = 3600


def build_cdroms(spec: VirtualMachineSpec) -> list[str]:
    """Arguments for all CD-ROM drives."""
    arguments = []
    for index, cdrom in enumerate(spec.cdroms):
        name = cdrom_name(index)
        properties = [f"ide-cd,id={name},bus=ide.{index}"]
        if not cdrom.is_empty:
            arguments += ["-blockdev", json.dumps(build_medium(spec.design, index, cdrom.path))]
            properties.append(f"drive={medium_node(index)}")
        properties += build_boot_index(spec, BootDevice.CDROM, index)
        arguments += ["-device", ",".join(properties)]
    return arguments


def build_medium(design: Design, index: int, path: str) -> dict[str, Any]:
    """The block node that is the medium of drive ``index``."""
    if design is Design.MONOLITHIC:
        return {"driver": "file", "node-name": medium_node(index), "filename": path, "read-only": True}
    return {
        "driver": "nbd",
        "node-name": medium_node(index),
        "server": {"type": "unix", "path": f"{SANDBOX_MEDIA}/{medium_socket(index)}"},
        "export": cdrom_name(index),
        "read-only": True,
        "reconnect-delay": RECONNECT_S,
    }


def cdrom_name(index: int) -> str:
    """The name of drive ``index``."""
    return f"cdrom{index}"


def medium_node(index: int) -> str:
    """The name of the block node that is the medium of drive ``index``."""
    return f"{cdrom_name(index)}-medium"


def medium_socket(index: int) -> str:
    """The file of the socket on which the media server of drive ``index`` listens."""
    return f"{cdrom_name(index)}.sock"
