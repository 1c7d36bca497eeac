"""A device on trial: a back end in a thread, and a front end that asks it, for the tests of a driver.

The device meets here what it meets under a VMM: shared memory, queues, notifications.
"""

from __future__ import annotations

import contextlib
import socket
import time
from threading import Thread

from duovisor.channel.backend import Backend
from duovisor.channel.errors import ChannelError
from duovisor.channel.frontend import FrontEnd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from duovisor.channel.device import VirtioDevice

LOOK_S = 0.02  # how soon a driver that ended is noticed


class Trial:
    """Serves ``device`` from the beginning of a ``with`` block to its end; ``front`` is the other side."""

    def __init__(self, device: VirtioDevice, *, queue_size: int = 64, timeout_s: float = 5.0) -> None:
        self.device = device
        self.timeout_s = timeout_s
        self.reports: list[str] = []
        ours, self._theirs = socket.socketpair()
        self.backend = Backend(ours, device, report=self.reports.append)
        self.front = FrontEnd(queues=device.queues, queue_size=queue_size, timeout_s=timeout_s)
        self._failure: Exception | None = None
        self._thread = Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Trial:
        self._thread.start()
        self.front.connect(self._theirs)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.front.close()
        self._thread.join(self.timeout_s)
        self.device.close()
        if kind is None and self._failure is not None:
            raise self._failure
        if kind is None and self._thread.is_alive():
            raise ChannelError("the driver does not come to an end")

    def ask(self, data: bytes = b"", *, room: int = 0, queue: int = 0) -> bytes:
        """Do one request: ``data`` to read, ``room`` bytes to write; return what was written.

        Raises what the driver raised, ``ChannelError`` when it does not answer in time.
        """
        address, view = self.front.allocate(len(data) + room)
        view[: len(data)] = data
        readable = [(address, len(data))] if data else []
        writable = [(address + len(data), room)] if room else []
        side = self.front.queues[queue]
        head = side.prepare(readable, writable)
        side.submit(head)
        side.kick()
        deadline = time.monotonic() + self.timeout_s
        while not side.has_used():
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise self._failure or ChannelError("; ".join(self.reports) or "the driver does not answer")
            with contextlib.suppress(ChannelError):
                side.wait_used(LOOK_S)
        [(_, written)] = side.reap()
        side.release(head)
        return bytes(view[len(data) : len(data) + written])

    def _serve(self) -> None:
        try:
            self.backend.run()
        except Exception as error:
            self._failure = error
