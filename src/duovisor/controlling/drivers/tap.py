"""A TAP as a driver holds it: a descriptor that frames are read from and written to, a header before each.

Source: Linux ``Documentation/networking/tuntap.rst`` and ``if_tun.h``.
"""

from __future__ import annotations

import fcntl
import os
import stat
from struct import Struct

from duovisor.controlling.drivers.errors import DriverError

TUN_DEVICE = os.makedev(10, 200)
SET_OFFLOADS = 0x400454D0  # TUNSETOFFLOAD
SET_HEADER_BYTES = 0x400454D8  # TUNSETVNETHDRSZ
_INT = Struct("=i")


class Tap:
    """A TAP with a virtio-net header before each frame (IFF_VNET_HDR); the descriptor never blocks."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def set_offloads(self, offloads: int, header_bytes: int) -> None:
        """What the kernel may leave undone in frames for the guest, and the size of the header.

        Raises ``DriverError``.
        """
        try:
            fcntl.ioctl(self.descriptor, SET_HEADER_BYTES, _INT.pack(header_bytes))
            fcntl.ioctl(self.descriptor, SET_OFFLOADS, offloads)
        except OSError as error:
            raise DriverError(f"the TAP refuses offloads {offloads:#x}: {error.strerror}") from error

    def close(self) -> None:
        """Close the descriptor; without another, the TAP is gone."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def open_tap(descriptor: int) -> Tap:
    """The TAP behind a descriptor, which goes over to it. Raises ``DriverError`` when it is none."""
    status = os.fstat(descriptor)
    if not stat.S_ISCHR(status.st_mode) or status.st_rdev != TUN_DEVICE:
        raise DriverError("the descriptor tap is no TAP")
    os.set_blocking(descriptor, False)
    return Tap(descriptor)
