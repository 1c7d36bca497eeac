"""The page that the drivers of one device share: is a message being answered, which state is the newest.

A driver sets ``busy`` before it reads a message and clears it when the answer, and a snapshot of what
changed, are out. ``serial`` counts the changes. Whoever finds the driver dead may go on with its connection
if ``busy`` is clear and the snapshot at hand bears the page's serial. Else the front end may be waiting for
an answer that will never come, and only a new connection helps.
"""

from __future__ import annotations

import fcntl
import mmap
import os

from duovisor.channel.errors import ChannelError

PAGE_BYTES = 4096


def create_page() -> int:
    """A descriptor of a new page in a memory file that cannot be resized; the caller closes it."""
    descriptor = os.memfd_create("duovisor-page", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, PAGE_BYTES)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return descriptor


class Page:
    """A page in ``view``: byte 0 is ``busy``, the words from byte 8 on are ``serial`` and ``completed``."""

    __slots__ = ("_view", "_words")

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._words = view.cast("Q")

    @classmethod
    def open(cls, descriptor: int) -> Page:
        """Map a page; the caller keeps the descriptor and closes it. Raises ``ChannelError``."""
        try:
            mapping = mmap.mmap(descriptor, PAGE_BYTES)
        except (OSError, ValueError) as error:
            raise ChannelError(f"descriptor {descriptor} is no page of a driver: {error}") from error
        return cls(memoryview(mapping))

    @classmethod
    def private(cls) -> Page:
        """A page that nobody shares, for a driver without a successor."""
        return cls(memoryview(bytearray(PAGE_BYTES)))

    @property
    def busy(self) -> bool:
        return bool(self._view[0])

    @busy.setter
    def busy(self, busy: bool) -> None:
        self._view[0] = busy

    @property
    def serial(self) -> int:
        serial: int = self._words[1]
        return serial

    @property
    def completed(self) -> int:
        """How many requests all drivers that had this page completed, up to the last turn of their loops."""
        completed: int = self._words[2]
        return completed

    def count_change(self) -> None:
        """Make every snapshot that was sent before an old one."""
        self._words[1] = (self._words[1] + 1) & 0xFFFFFFFFFFFFFFFF

    def count_completed(self, requests: int) -> None:
        """Note that so many more requests were completed."""
        self._words[2] = (self._words[2] + requests) & 0xFFFFFFFFFFFFFFFF
