"""A VM's screen over QMP: a VNC connection for who looks, and a picture.

No socket is bound for it. One end of a pair goes to the VMM (``getfd``, ``add_client``), or a descriptor to
write the picture to (``add-fd``), so that a VMM in a sandbox needs no path. Tried with QEMU 7.2.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

from duovisor.hypervisor.errors import QmpError

if TYPE_CHECKING:
    from duovisor.hypervisor.qmp import Qmp

MAX_PICTURE_BYTES = 64 << 20
PNG = b"\x89PNG\r\n\x1a\n"
_NAME = "screen"
_SET = 7001  # of file descriptors; the console's log has another


async def open_screen(qmp: Qmp) -> socket.socket:
    """A connection to the VMM's VNC server, at its beginning (RFC 6143), which the caller closes.

    Raises ``QmpError``, ``QmpTimeoutError`` or ``VmmGoneError``.
    """
    ours, theirs = socket.socketpair()
    try:
        with theirs:
            await qmp.getfd(_NAME, theirs.fileno())
            await qmp.execute("add_client", protocol="vnc", fdname=_NAME, skipauth=True)
    except BaseException:
        ours.close()
        raise
    return ours


async def take_picture(qmp: Qmp) -> bytes:
    """What the screen shows, as PNG. Raises as ``open_screen``."""
    reading = os.memfd_create("screen", os.MFD_CLOEXEC)
    try:
        # QEMU takes from a set only what is open as it would open the file itself (monitor/fds.c)
        writing = os.open(f"/proc/self/fd/{reading}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            await qmp.add_fd(_SET, writing)
        finally:
            os.close(writing)
        try:
            await qmp.execute("screendump", filename=f"/dev/fdset/{_SET}", format="png")
        finally:
            await qmp.execute("remove-fd", **{"fdset-id": _SET})
        picture = os.pread(reading, MAX_PICTURE_BYTES, 0)
    finally:
        os.close(reading)
    if not picture.startswith(PNG):
        raise QmpError(f"{qmp.name}: the VMM drew no picture")
    return picture
