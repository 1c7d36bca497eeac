"""Lets a disk's requests through at a rate: so many in a second, so many bytes in a second.

A bucket of tokens for each, which fills as time goes by. What finds it empty waits, in flight, in the order
in which it came. A disk without a limit has no throttle, and pays nothing for what this could do.
"""

from __future__ import annotations

import os
import time
from collections import deque
from queue import SimpleQueue
from threading import Thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from duovisor.channel.chain import Chain
    from duovisor.channel.event_loop import EventLoop
    from duovisor.channel.virtqueue import Virtqueue
    from duovisor.controlling.drivers.block_protocol import BlockProtocol

BURST_S = 0.1  # for how long a rest is remembered
UNLIMITED = 1 << 62
OVERHEAD_BYTES = 17  # header and status of a request


class Bucket:
    """``rate`` tokens a second, none without a limit (0); a request may take more than there are, once."""

    __slots__ = ("_at", "_tokens", "rate")

    def __init__(self, rate: int, now_s: float) -> None:
        self.rate = rate
        self._tokens = rate * BURST_S
        self._at = now_s

    def wait_s(self, now_s: float) -> float:
        """For how long nothing may be taken."""
        if not self.rate:
            return 0.0
        self._tokens = min(self._tokens + (now_s - self._at) * self.rate, self.rate * BURST_S)
        self._at = now_s
        return max(0.0, -self._tokens / self.rate) if self._tokens <= 0 else 0.0

    def allow(self, now_s: float) -> int:
        """How many may be taken now; a lot without a limit."""
        if not self.rate:
            return UNLIMITED
        return max(1, int(self._tokens)) if not self.wait_s(now_s) else 0

    def take(self, tokens: int) -> None:
        """Take tokens, and owe what there is not."""
        if self.rate:
            self._tokens -= tokens


class Alarm:
    """Calls back in the thread of ``loop`` when a time is over; one at a time."""

    def __init__(self, loop: EventLoop, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._naps: SimpleQueue[float | None] = SimpleQueue()
        self._is_set = False
        self._woken = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._sleeper: Thread | None = None
        loop.watch(self._woken, self._wake, edge=True)

    def set(self, seconds: float) -> None:
        """Ring after so long, unless it is set already."""
        if self._is_set:
            return
        if self._sleeper is None:
            self._sleeper = Thread(target=self._nap, daemon=True)
            self._sleeper.start()
        self._is_set = True
        self._naps.put(seconds)

    def _nap(self) -> None:
        while (seconds := self._naps.get()) is not None:
            time.sleep(seconds)
            os.eventfd_write(self._woken, 1)

    def _wake(self) -> None:
        os.eventfd_read(self._woken)
        self._is_set = False
        self._ring()


class Throttle:
    """Stands between the queues of ``device`` and its ``handle``; ``set_rate`` may be called at any time."""

    def __init__(
        self, device: BlockProtocol, loop: EventLoop, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._device = device
        self._now = now
        self._handle, self._drain, self._abandon = device.handle, device.drain, device.abandon
        self._waiting: deque[tuple[Virtqueue, Chain]] = deque()
        self._requests = self._bytes = Bucket(0, now())
        self._alarm = Alarm(loop, self._wake)

    def set_rate(self, iops: int, bytes_per_s: int) -> None:
        """Other limits from now on; 0 is none."""
        now_s = self._now()
        self._requests, self._bytes = Bucket(iops, now_s), Bucket(bytes_per_s, now_s)
        device = self._device
        if iops or bytes_per_s:
            device.handle = self.handle  # type: ignore[method-assign]
            device.drain = self.drain  # type: ignore[method-assign]
            device.abandon = self.abandon  # type: ignore[method-assign]
        else:
            for name in ("handle", "drain", "abandon"):
                vars(device).pop(name, None)
        self._publish(self._release())

    def handle(self, queue: Virtqueue, chains: list[Chain]) -> None:
        """Let through what may go; the rest waits."""
        self._waiting.extend((queue, chain) for chain in chains)
        self._release()

    def drain(self) -> None:
        """What waits is forgotten: it stays in flight, for whoever starts the queue again."""
        self._waiting.clear()
        self._drain()

    def abandon(self) -> None:
        """As ``drain``."""
        self._waiting.clear()
        self._abandon()

    def _release(self) -> list[Virtqueue]:
        """Let through what may go, and come back when more may; the queues that had something."""
        queues: list[Virtqueue] = []
        waiting = self._waiting
        now_s = self._now()
        while waiting:
            wait_s = max(self._requests.wait_s(now_s), self._bytes.wait_s(now_s))
            if wait_s:
                self._alarm.set(wait_s)
                break
            queue, chain = waiting.popleft()
            self._requests.take(1)
            self._bytes.take(count_bytes(chain))
            self._handle(queue, [chain])
            if queue not in queues:
                queues.append(queue)
        return queues

    def _wake(self) -> None:
        self._publish(self._release())

    @staticmethod
    def _publish(queues: list[Virtqueue]) -> None:
        for queue in queues:
            queue.publish()


def count_bytes(chain: Chain) -> int:
    """How many bytes of data a request moves."""
    frame = chain.frame
    if frame is not None:
        return frame.middle_bytes
    whole = sum(map(len, chain.readable)) + sum(map(len, chain.writable))
    return max(0, whole - OVERHEAD_BYTES)
