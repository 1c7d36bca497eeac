"""A network card's place on a bridge: a TAP of its own, made before the VM starts and gone after it.

Nothing has to be removed: a TAP lives as long as a process holds a descriptor of it, also after a SIGKILL of
everybody.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import zlib
from typing import TYPE_CHECKING

from duovisor.controlling.errors import HostLacksError, NetworkError
from duovisor.controlling.networks import interfaces
from duovisor.controlling.networks.bridge_ports import set_access_vlan
from duovisor.controlling.networks.card_filter import install_filter

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from duovisor.spec.vm import NicSpec

HEADER_BYTES = 12  # struct virtio_net_hdr_v1
NAMES_MAX = 64
# Of the MACs on a bridge without an address of its own, it takes the lowest: it must never be a VM's.
HIGH_BYTE = 0xFE


def open_bridged_tap(vm: str, index: int, nic: NicSpec, mac: str) -> int:
    """A TAP on the bridge of card ``index`` of a VM, with its rules, up; the caller closes the descriptor.

    ``mac`` is the card's own address. Raises ``NetworkError`` or ``HostLacksError``; nothing is left then but
    rules, which ``sweep_filters`` finds.
    """
    bridge = require_bridge(nic)
    check_bridge(bridge)
    descriptor = _create(vm, index)
    try:
        name = interfaces.read_tap_name(descriptor)
        interfaces.set_address(name, bytes([HIGH_BYTE]) + bytes.fromhex(mac.replace(":", ""))[1:])
        interfaces.disable_ipv6(name)
        interfaces.copy_mtu(bridge, name)
        if nic.is_filtered or nic.is_limited:
            install_filter(name, mac, nic)
        interfaces.add_to_bridge(bridge, name)
        if nic.vlan is not None:
            set_access_vlan(bridge, name, nic.vlan)
        interfaces.bring_up(name)
    except OSError as error:
        os.close(descriptor)
        raise _explain(bridge, error) from error
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def require_bridge(nic: NicSpec) -> str:
    """The bridge of a card that is on one. Raises ``NetworkError`` for a managed network's."""
    if nic.bridge is None:
        raise NetworkError(
            f"network {nic.network} belongs to the service, and this VM does not",
            remedy="duovisor vm create --start, or --nic bridge=NAME",
        )
    return nic.bridge


def check_bridge(bridge: str) -> None:
    """Raises ``NetworkError`` when the host has no interface of that name."""
    try:
        socket.if_nametoindex(bridge)
    except OSError as error:
        raise NetworkError(
            f"bridge {bridge} does not exist on this host",
            remedy=f"ip link add {bridge} type bridge && ip link set {bridge} up, "
            "and add a NIC of the host to it; or use network: user",
        ) from error


def build_tap_names(vm: str, index: int) -> Iterator[str]:
    """Names for the TAP of a card, the first one the best: they tell the VM, and have up to 15 characters.

    Others are for a VM of the same name that another service runs.
    """
    stem = re.sub("[^A-Za-z0-9]", "", vm)[:6].lower() or "vm"
    for attempt in range(NAMES_MAX):
        digest = zlib.crc32(f"{vm}/{attempt}".encode()) & 0xFFFF
        yield f"{stem}-{digest:04x}-{index}"


def is_tap(link: Path) -> bool:
    """Whether a link in /proc/PID/fd leads to a TAP."""
    return link.stat().st_rdev == interfaces.TUN_DEVICE


def _create(vm: str, index: int) -> int:
    for name in build_tap_names(vm, index):
        try:
            return interfaces.create_tap(name, HEADER_BYTES)
        except FileNotFoundError as error:
            raise HostLacksError(
                f"a bridged network card needs {interfaces.TUN_PATH}, which this host lacks",
                remedy="modprobe tun",
            ) from error
        except PermissionError as error:
            raise _lacks_permission() from error
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.EEXIST):
                raise NetworkError(f"cannot make the TAP {name}: {error.strerror}") from error
    raise NetworkError(f"every name for the TAP of card {index} of {vm} is taken")


def _explain(bridge: str, error: OSError) -> NetworkError | HostLacksError:
    if error.errno == errno.EPERM:
        return _lacks_permission()
    if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):  # which one depends on the kernel
        return NetworkError(
            f"{bridge} is an interface, but no Linux bridge",
            remedy="name a bridge; `ip -br link show type bridge` lists them",
        )
    return NetworkError(f"cannot put a TAP on bridge {bridge}: {error.strerror}")


def _lacks_permission() -> HostLacksError:
    return HostLacksError(
        "a bridged network card needs the right to make TAPs (CAP_NET_ADMIN)",
        remedy="let the service run as root, or use network: user",
    )
