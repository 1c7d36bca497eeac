"""Network cards. User networking: QEMU's own (monolithic), or a network helper behind a socket."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from duovisor.hypervisor.qemu.pci import NIC_SLOTS, at
from duovisor.spec.vm import Design

if TYPE_CHECKING:
    from duovisor.spec.vm import NicSpec, PortForward, VirtualMachineSpec


def build_nics(spec: VirtualMachineSpec) -> list[str]:
    """Arguments for all network cards; the device model is QEMU's virtio-net in both designs."""
    arguments = []
    for index, nic in enumerate(spec.nics):
        name = nic_socket(index)
        inside = spec.design is Design.MONOLITHIC
        netdev = _build_inside(name, nic) if inside else _build_outside(name)
        device = f"virtio-net-pci,id={name},netdev={name}-net,{at(NIC_SLOTS[index])}"
        arguments += ["-netdev", netdev]
        arguments += ["-device", f"{device},mac={mac_of(spec.name, index, nic)},romfile="]
    return arguments


def nic_socket(index: int) -> str:
    """The name of the socket on which the network helper of card ``index`` serves."""
    return f"nic{index}"


def mac_of(name: str, index: int, nic: NicSpec) -> str:
    """The card's MAC address: the specified one, or one in QEMU's range that stays the same for this VM."""
    if nic.mac:
        return nic.mac
    digest = zlib.crc32(f"{name}/{index}".encode()) & 0xFFFFFF
    return f"52:54:00:{digest >> 16:02x}:{digest >> 8 & 255:02x}:{digest & 255:02x}"


def _build_inside(name: str, nic: NicSpec) -> str:
    forwards = "".join(f",hostfwd={_hostfwd(forward)}" for forward in nic.forward)
    return f"user,id={name}-net,net=10.0.2.0/24{forwards}"


def _hostfwd(forward: PortForward) -> str:
    return f"{forward.protocol}:{forward.host_address}:{forward.host_port}-:{forward.guest_port}"


def _build_outside(name: str) -> str:
    # the VMM is the server, so that a successor of the helper can connect (netdev stream: QEMU 7.2)
    return f"stream,id={name}-net,server=on,addr.type=fd,addr.str=@{name}@"
