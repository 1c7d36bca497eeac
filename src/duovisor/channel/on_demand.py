"""Guest memory that comes on demand: who maps it registers his mapping with the pager before he touches it.

From then on each touch of a page that is not there waits (userfaultfd) until the pager has filled it; with
the pager gone it waits for ever, for this process keeps the descriptor, too. Nobody may map such memory
otherwise: a page that is missing would become one of zeros, for all.
Sources: Documentation/admin-guide/mm/userfaultfd.rst, linux/userfaultfd.h.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
from struct import Struct

from duovisor.channel.errors import GuestMemoryError

USERFAULTFD_IOC_NEW = 0xAA00
MAPPING = Struct("=QQQ")  # address, size, offset in the memory's file
REGISTERED, DONE = b"r", b"d"  # what the pager says


class OnDemand:
    """``maker`` is /dev/userfaultfd, ``pager`` a connection to the pager; both are kept from now on."""

    def __init__(self, maker: int, pager: int) -> None:
        self.pager = socket.socket(fileno=pager)
        self.held = [maker]
        self.is_done = False

    def register(self, view: memoryview, offset: int) -> None:
        """Have the pager fill what is missing of a mapping. Raises ``GuestMemoryError`` when it is gone."""
        try:
            faults = fcntl.ioctl(self.held[0], USERFAULTFD_IOC_NEW, os.O_CLOEXEC | os.O_NONBLOCK)
            self.held.append(faults)
            address = ctypes.addressof(ctypes.c_char.from_buffer(view))
            socket.send_fds(self.pager, [MAPPING.pack(address, len(view), offset)], [faults])
            while (answer := self.pager.recv(1)) == DONE:
                self.is_done = True
        except OSError as error:
            raise GuestMemoryError(f"memory cannot come on demand: {error.strerror}") from error
        if answer != REGISTERED and not self.is_done:
            raise GuestMemoryError("the pager of the guest's memory is gone")
