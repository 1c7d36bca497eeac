"""Network cards: QEMU's virtio-net in both designs, with the same properties; what differs is behind it.

User networking is QEMU's own (monolithic), or a network helper's behind a socket. A card on a bridge has a
TAP that QEMU reads and writes itself (monolithic), or a driver behind a vhost-user channel.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from duovisor.hypervisor.errors import PlanError
from duovisor.hypervisor.qemu.boot_order import build_boot_index
from duovisor.hypervisor.qemu.machine import read_machine_version
from duovisor.hypervisor.qemu.pci import NIC_SLOTS, at_pluggable
from duovisor.spec.cdrom import BootDevice
from duovisor.spec.vm import Accelerator, Design

if TYPE_CHECKING:
    from duovisor.hardware.qemu import QemuAbilities
    from duovisor.spec.vm import NicSpec, PortForward, VirtualMachineSpec

# On a bridge: what a TAP of QEMU's and our driver both have. Without the last two lines QEMU would offer what
# only the one or the other can, depending on the kernel and on QEMU's version.
BRIDGED = (
    "mq=off,rx_queue_size=256,tx_queue_size=256,mrg_rxbuf=on,csum=on,guest_csum=on,"
    "guest_tso4=on,guest_tso6=on,guest_ecn=on,host_tso4=on,host_tso6=on,host_ecn=on,"
    "guest_ufo=off,host_ufo=off,ctrl_guest_offloads=off"
)
SANDBOX_CHANNELS = "/channels"
SEGMENTED_UDP = "guest_uso4=off,guest_uso6=off,host_uso=off"
HAS_SEGMENTED_UDP = (8, 2, 0)
# QEMU 7.2 without KVM ends with SIGSEGV when a guest uses MSI-X on a vhost-user network card: it unmasks a
# vector through irqfds that only KVM has. Such guests get their interrupts over a line, and keep that when a
# newer QEMU takes over: what counts is the machine that they booted on.
HAS_VECTORS_ON_TCG = (9, 0)


def build_nics(spec: VirtualMachineSpec, qemu: QemuAbilities, accelerator: Accelerator) -> list[str]:
    """Arguments for all network cards. Raises ``PlanError`` for what the design cannot do."""
    arguments = []
    inside = spec.design is Design.MONOLITHIC
    for index, nic in spec.numbered_nics():
        name = nic_socket(index)
        device = [f"virtio-net-pci,id={name},netdev={nic_backend(name)},{at_pluggable(NIC_SLOTS[index])}"]
        device.append(f"mac={mac_of(spec.name, index, nic)}")
        boot = build_boot_index(spec, BootDevice.NETWORK, index)
        device += boot or ["romfile="]  # without one SeaBIOS has nothing to start from it with
        if nic.is_bridged:
            arguments += _build_bridged_inside(name, nic) if inside else _build_channel(name)
            device += _bridged_properties(qemu, accelerator)
        else:
            arguments += ["-netdev", _build_inside(name, nic) if inside else _build_outside(name)]
        arguments += ["-device", ",".join(device)]
    return arguments


def find_unbridged(spec: VirtualMachineSpec) -> tuple[str, ...]:
    """The names of the other cards."""
    bridged = find_bridged(spec)
    return tuple(
        name for name in (nic_socket(slot) for slot, _ in spec.numbered_nics()) if name not in bridged
    )


def find_bridged(spec: VirtualMachineSpec) -> tuple[str, ...]:
    """The names of the cards that are on a bridge."""
    return tuple(nic_socket(index) for index, nic in spec.numbered_nics() if nic.is_bridged)


def nic_socket(index: int) -> str:
    """The name of card ``index``, and of the socket on which its driver or network helper serves."""
    return f"nic{index}"


def nic_backend(name: str) -> str:
    """The id of what is behind a card in QEMU."""
    return f"{name}-net"


def mac_of(name: str, index: int, nic: NicSpec) -> str:
    """The card's MAC address: the specified one, or one in QEMU's range that stays the same for this VM."""
    if nic.mac:
        return nic.mac
    digest = zlib.crc32(f"{name}/{index}".encode()) & 0xFFFFFF
    return f"52:54:00:{digest >> 16:02x}:{digest >> 8 & 255:02x}:{digest & 255:02x}"


def _build_inside(name: str, nic: NicSpec) -> str:
    forwards = "".join(f",hostfwd={_hostfwd(forward)}" for forward in nic.forward)
    return f"user,id={nic_backend(name)},net=10.0.2.0/24{forwards}"


def _hostfwd(forward: PortForward) -> str:
    return f"{forward.protocol}:{forward.host_address}:{forward.host_port}-:{forward.guest_port}"


def _bridged_properties(qemu: QemuAbilities, accelerator: Accelerator) -> list[str]:
    properties = [BRIDGED]
    if accelerator is Accelerator.TCG and read_machine_version(qemu.q35_machine) < HAS_VECTORS_ON_TCG:
        properties.append("vectors=0")
    if qemu.version >= HAS_SEGMENTED_UDP:
        properties.append(SEGMENTED_UDP)
    if qemu.virtio_blk_queue_reset:  # a property of every virtio device; our channel has none
        properties.append("queue_reset=off")
    return properties


def _build_bridged_inside(name: str, nic: NicSpec) -> list[str]:
    """The driver is part of the VMM: it reads and writes the TAP itself."""
    if nic.mac_filter:
        raise PlanError(
            f"{name}: the monolithic design cannot filter what a guest sends by its MAC address",
            remedy="leave mac_filter out, or use the microkernelized design",
        )
    return ["-netdev", f"tap,id={nic_backend(name)},fd=@{name}@,vhost=off"]


def _build_channel(name: str) -> list[str]:
    """The driver is elsewhere: the VMM holds a listening socket and no TAP.

    It binds the socket itself: QEMU takes no inherited one here ("chardev does not support FD passing").
    """
    return [
        "-chardev", f"socket,id={name}-channel,path={SANDBOX_CHANNELS}/{name}.sock,server=on,wait=off",
        "-netdev", f"vhost-user,id={nic_backend(name)},chardev={name}-channel,queues=1",
    ]  # fmt: skip


def _build_outside(name: str) -> str:
    # the VMM is the server, so that a successor of the helper can connect (netdev stream: QEMU 7.2)
    return f"stream,id={nic_backend(name)},server=on,addr.type=fd,addr.str=@{name}@"
