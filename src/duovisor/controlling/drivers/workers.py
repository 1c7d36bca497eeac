"""A few threads for requests that may wait for a medium; the rest is done where it is received.

``preadv``, ``pwritev`` and ``fdatasync`` let go of the interpreter while they work, so they overlap with each
other and with the loop. Threads start with the first request that needs them.
"""

from __future__ import annotations

import os
import select
from collections import deque
from errno import EIO
from queue import SimpleQueue
from threading import Thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from duovisor.channel.chain import Chain


class Job:
    """One request on its way: what to call, and what to tell the guest afterwards.

    ``error`` is the number of the system's error that it met.
    """

    __slots__ = ("arguments", "call", "chain", "error", "status", "written")

    def __init__(
        self,
        chain: Chain,
        status: memoryview,
        written: int,
        call: Callable[..., None],
        arguments: tuple[object, ...],
    ) -> None:
        self.chain = chain
        self.status = status
        self.written = written
        self.call = call
        self.arguments = arguments
        self.error = 0


class WorkerPool:
    """``threads`` threads. ``descriptor`` is an eventfd, written each time ``done`` gets a job."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.outstanding = 0
        self.done: deque[Job] = deque()
        self.descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._started: list[Thread] = []

    def submit(self, job: Job, threads: int | None = None) -> None:
        """Hand over a job, starting up to ``threads`` threads for it; it comes back through ``done``."""
        self.outstanding += 1
        if len(self._started) < min(threads or self.threads, self.outstanding):
            thread = Thread(target=self._work, daemon=True)
            thread.start()
            self._started.append(thread)
        self._jobs.put(job)

    def wait(self) -> None:
        """Sleep until ``done`` holds something; returns at once when nothing is outstanding."""
        poller = select.poll()
        poller.register(self.descriptor, select.POLLIN)
        while self.outstanding and not self.done:
            poller.poll()
            os.eventfd_read(self.descriptor)

    def close(self) -> None:
        """End the threads after the jobs they were given."""
        for _ in self._started:
            self._jobs.put(None)
        for thread in self._started:
            thread.join()
        self._started = []
        os.close(self.descriptor)

    def _work(self) -> None:
        jobs, done = self._jobs, self.done
        while (job := jobs.get()) is not None:
            try:
                job.call(*job.arguments)
            except OSError as error:
                job.error = error.errno or EIO
            done.append(job)
            os.eventfd_write(self.descriptor, 1)
