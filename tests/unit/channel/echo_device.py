"""A device that turns each request round, and one that does so late and backwards; each in its own thread."""

from __future__ import annotations

import os
import socket
import threading
import time
from typing import TYPE_CHECKING

from duovisor.channel.backend import Backend
from duovisor.channel.device import VirtioDevice
from duovisor.channel.errors import ChannelError, QueueError

if TYPE_CHECKING:
    from duovisor.channel.chain import Chain
    from duovisor.channel.virtqueue import Virtqueue


class EchoDevice(VirtioDevice):
    """Answers with the request's bytes reversed; one that begins with ``!`` no guest may send."""

    device_id = 42
    features = 1 << 5

    def __init__(self, queues: int = 1) -> None:
        self.queues = queues
        self.switch = 0
        self.seen_features = 0
        self.resets = 0

    def read_config(self) -> bytes:
        return b"echo" + bytes([self.switch])

    def write_config(self, offset: int, data: bytes, *, migrating: bool) -> None:
        if (offset, len(data)) != (4, 1):
            super().write_config(offset, data, migrating=migrating)
        self.switch = data[0]

    def set_features(self, features: int) -> None:
        self.seen_features = features

    def save_state(self) -> bytes:
        return bytes([self.switch])

    def load_state(self, state: bytes) -> None:
        self.switch = state[0]

    def reset(self) -> None:
        self.resets += 1

    def handle_request(self, chain: Chain) -> int:
        data = b"".join(chain.readable)
        if data.startswith(b"!"):
            raise QueueError("the echo is offended")
        chain.writable[0][: len(data)] = data[::-1]
        return len(data)


class LateDevice(EchoDevice):
    """Keeps every request until it is told; then answers the last one first."""

    def __init__(self, queues: int = 1) -> None:
        super().__init__(queues)
        self.completion_descriptor = os.eventfd(0, os.EFD_NONBLOCK)
        self.kept: list[Chain] = []
        self.arrived = threading.Semaphore(0)

    def handle(self, queue: Virtqueue, chains: list[Chain]) -> None:
        self.kept += chains
        for _ in chains:
            self.arrived.release()

    def answer(self) -> None:
        """Let the device answer what it kept; callable from the test's thread."""
        assert self.completion_descriptor is not None
        os.eventfd_write(self.completion_descriptor, 1)

    def reap(self) -> None:
        while self.kept:
            chain = self.kept.pop()
            chain.queue.complete(chain, self.handle_request(chain))
            chain.queue.publish()

    def drain(self) -> None:
        self.reap()

    def abandon(self) -> None:
        self.kept.clear()

    def close(self) -> None:
        assert self.completion_descriptor is not None
        os.close(self.completion_descriptor)


class RunningBackend:
    """A back end in a thread; ``error`` is how it ended, ``reports`` what it said about queues."""

    def __init__(self, device: VirtioDevice, *, poll_us: int = 0) -> None:
        self.peer, ours = socket.socketpair()
        self.device = device
        self.reports: list[str] = []
        self.error: ChannelError | None = None
        self.failure: Exception | None = None
        try:
            self.backend = Backend(ours, device, poll_us=poll_us, report=self.reports.append)
        except ChannelError:
            self.peer.close()
            ours.close()
            raise
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.backend.run()
        except ChannelError as error:
            self.error = self.failure = error
        except Exception as error:
            self.failure = error

    def wait_report(self) -> None:
        """Wait until it has said something about a queue: kicks and requests come on two ways."""
        end = time.monotonic() + 10
        while not self.reports:
            assert time.monotonic() < end, "nothing is reported"
            time.sleep(0.001)

    def wait(self) -> ChannelError | None:
        """Wait for the end; how it ended."""
        self._thread.join(10)
        assert not self._thread.is_alive(), "the back end hangs"
        return self.error

    def close(self) -> ChannelError | None:
        self.peer.close()
        ended = self.wait()
        self.device.close()
        return ended
