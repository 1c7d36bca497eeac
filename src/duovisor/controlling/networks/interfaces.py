"""The few requests that make a TAP and put it on a bridge, as ioctls; docs/decisions/018 says why these.

Sources: Linux ``if_tun.h``, ``sockios.h``, netdevice(7). All raise ``OSError``.
"""

from __future__ import annotations

import fcntl
import os
import socket
from contextlib import contextmanager
from struct import Struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME_MAX = 15  # IFNAMSIZ with its zero
TUN_PATH = "/dev/net/tun"
TUN_DEVICE = os.makedev(10, 200)

_TUNSETIFF, _TUNGETIFF = 0x400454CA, 0x800454D2
_TUNGETVNETHDRSZ, _TUNSETVNETHDRSZ = 0x800454D7, 0x400454D8
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR, _IFF_TUN_EXCL = 0x0002, 0x1000, 0x4000, 0x8000
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _SIOCSIFHWADDR = 0x8913, 0x8914, 0x8924
_SIOCGIFMTU, _SIOCSIFMTU, _SIOCBRADDIF = 0x8921, 0x8922, 0x89A2
_IFF_UP, _ARPHRD_ETHER = 1, 1

# struct ifreq: the name, and 24 bytes of which each request has its own understanding
_FLAGS = Struct("=16sH22x")
_NUMBER = Struct("=16si20x")
_ADDRESS = Struct("=16sH6s16x")
_HEADER_BYTES = Struct("=i")


def create_tap(name: str, header_bytes: int) -> int:
    """A new TAP whose frames have a virtio-net header; it lives as long as a descriptor of it.

    Raises ``OSError``: EBUSY when the name is taken.
    """
    descriptor = os.open(TUN_PATH, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR | _IFF_TUN_EXCL
        fcntl.ioctl(descriptor, _TUNSETIFF, _FLAGS.pack(name.encode(), flags))
        fcntl.ioctl(descriptor, _TUNSETVNETHDRSZ, _HEADER_BYTES.pack(header_bytes))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_tap_name(descriptor: int) -> str:
    """The name of the TAP behind a descriptor."""
    answer = fcntl.ioctl(descriptor, _TUNGETIFF, bytes(_FLAGS.size))
    return answer[:16].rstrip(b"\0").decode()


def read_header_bytes(descriptor: int) -> int:
    """The size of the virtio-net header before each frame, as the reader of a TAP has chosen it."""
    size: int = _HEADER_BYTES.unpack(fcntl.ioctl(descriptor, _TUNGETVNETHDRSZ, bytes(_HEADER_BYTES.size)))[0]
    return size


def set_address(name: str, mac: bytes) -> None:
    """Give an interface a MAC address of 6 bytes."""
    _request(_SIOCSIFHWADDR, _ADDRESS.pack(name.encode(), _ARPHRD_ETHER, mac))


def copy_mtu(source: str, name: str) -> None:
    """Give an interface the largest frame of another one."""
    _, mtu = _NUMBER.unpack(_request(_SIOCGIFMTU, _NUMBER.pack(source.encode(), 0)))
    _request(_SIOCSIFMTU, _NUMBER.pack(name.encode(), mtu))


def bring_up(name: str) -> None:
    """Switch an interface on."""
    _, flags = _FLAGS.unpack(_request(_SIOCGIFFLAGS, _FLAGS.pack(name.encode(), 0)))
    _request(_SIOCSIFFLAGS, _FLAGS.pack(name.encode(), flags | _IFF_UP))


def add_to_bridge(bridge: str, name: str) -> None:
    """Make an interface a port of a bridge. EOPNOTSUPP: ``bridge`` is none."""
    index = socket.if_nametoindex(name)
    _request(_SIOCBRADDIF, _NUMBER.pack(bridge.encode(), index))


def disable_ipv6(name: str) -> None:
    """The host itself shall not speak on this interface; where there is no IPv6, it does not."""
    try:
        with open(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6", "w") as file:
            file.write("1")
    except OSError:  # no IPv6 here, or this container may not configure it: it speaks to nobody
        return


def _request(number: int, argument: bytes) -> bytes:
    with _control() as control:
        return fcntl.ioctl(control, number, argument)


@contextmanager
def _control() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        yield control
