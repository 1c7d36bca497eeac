"""A driver partition with a duty: what it has said about itself, and whether it is still there.

What a partition says is not trusted: it may run a guest's attacker by now. Numbers and texts from it are
checked here, and used for nothing but telling a person.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from typing import TYPE_CHECKING, Any

from duovisor.controlling.partitions.errors import PartitionGoneError
from duovisor.process import describe_exit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from duovisor.controlling.partitions.control import ControlConnection
    from duovisor.process import Process

MESSAGE_CHARACTERS = 500
LAST_WORDS_S = 0.05  # what it said before it died may still be on its way
EVENTS = ("serving", "hung", "interrupted", "failed", "queue_failed", "full", "loaded")


class Seat:
    """Owns ``process`` and ``control``; ``notify`` is called when something is new.

    ``code`` names the driver's code, ``control_name`` is the file of its control socket.
    """

    def __init__(
        self,
        process: Process,
        control: ControlConnection,
        code: str,
        control_name: str,
        notify: Callable[[], None],
    ) -> None:
        self.process = process
        self.code = code
        self.control_name = control_name
        self.served_since = 0.0
        self.died_at = 0.0
        self._ended = False
        self.hung_because = ""
        self._failure = ""
        self._control = control
        self._notify = notify
        self._said: set[str] = set()
        self._changed = asyncio.Event()
        self._listener = asyncio.create_task(self._listen())
        self._watcher = asyncio.create_task(self._watch())

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def has_ended(self) -> bool:
        """Whether it has ended, and all that is to be known about that is known."""
        return self._ended

    def has_said(self, event: str) -> bool:
        """Whether the partition has told this event."""
        return event in self._said

    async def wait_for(self, *events: str, timeout_s: float) -> bool:
        """Wait until one of the events was told; False when the partition ended or the time is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not self.has_ended and not self._said.intersection(events):
                    await self._changed.wait()
        return bool(self._said.intersection(events))

    async def request(
        self, order: str, descriptors: Mapping[str, int] | None = None, **fields: Any
    ) -> dict[str, Any]:
        """Give an order and wait for its answer. Raises ``PartitionError``: refused, ended or silent."""
        return await self._control.request(order, descriptors=descriptors, **fields)

    def take_event(self, event: str) -> bool:
        """Whether the partition has told this event since it was last asked."""
        was_told = event in self._said
        self._said.discard(event)
        return was_told

    def note(self, event: str) -> None:
        """It is known to be so, though it could not tell us."""
        self._said.add(event)

    def serves(self) -> None:
        """It is known to serve, though it could not tell us."""
        self._said.add("serving")
        self.served_since = time.monotonic()

    def describe(self) -> str:
        """The partition in words."""
        return f"{self.process.role} (pid {self.pid})"

    def describe_end(self) -> str:
        """Why it ended, as far as it or the kernel told."""
        status = self.process.returncode
        # the log is the device's: after a signal, its last words are another driver's
        words = self._failure or (self.process.last_words() if status is not None and status > 0 else "")
        said = describe_exit(status) + (f": {words}" if words else "")
        return f"{self.hung_because}; it {said}" if self.hung_because else said

    async def kill(self) -> None:
        """End the partition at once, and wait for it."""
        await self.process.kill()
        await self.close()

    async def stop(self) -> None:
        """End the partition in order: what is in flight is finished first."""
        await self.process.stop(grace_s=1.0)
        await self.close()

    async def close(self) -> None:
        """Let go of the partition, which may go on."""
        for task in (self._listener, self._watcher):
            task.cancel()
        await asyncio.gather(self._listener, self._watcher, return_exceptions=True)
        self._control.close()
        self.process.release()

    async def _watch(self) -> None:
        await self._note_death()
        await self.process.wait()
        await asyncio.wait({self._listener}, timeout=LAST_WORDS_S)
        self._ended = True
        self._tell_changed()

    async def _note_death(self) -> None:
        """Note the moment, before anything else is asked."""
        loop = asyncio.get_running_loop()
        died = asyncio.Event()
        pidfd = self.process.duplicate_pidfd()
        loop.add_reader(pidfd, died.set)
        try:
            await died.wait()
            self.died_at = time.monotonic()
        finally:
            loop.remove_reader(pidfd)
            os.close(pidfd)

    async def _listen(self) -> None:
        with contextlib.suppress(
            PartitionGoneError
        ):  # it ends, as the watcher will see, or has nothing to say
            while True:
                self._take(await self._control.next_event())

    def _take(self, message: dict[str, Any]) -> None:
        event = message.get("event")
        if event not in EVENTS:
            return
        self._said.add(event)
        if event == "serving":
            self.served_since = time.monotonic()
        elif event == "hung":
            self.hung_because = describe_hang(message)
        elif event in ("failed", "interrupted"):
            self._failure = str(message.get("message", ""))[:MESSAGE_CHARACTERS]
        self._tell_changed()

    def _tell_changed(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
        self._notify()


def describe_hang(message: dict[str, Any]) -> str:
    """A spare's observation in words."""
    queue, seconds = message.get("queue"), message.get("seconds")
    what = f"queue {queue}" if isinstance(queue, int) else "its channel"
    for_s = f" for {seconds:.1f} s" if isinstance(seconds, int | float) else ""
    return f"{what} made no progress{for_s}"
