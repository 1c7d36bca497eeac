"""Signals that end a comparison: the first lets it clean up, a later one leaves that to the sweeper."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# a terminal and whoever runs this may each send one for the same wish
SAME_WISH_S = 1.0
INTERRUPTED = 130


class Interruption:
    """What signals do to a task. Cancelling it twice would cancel its cleaning up."""

    def __init__(
        self,
        task: asyncio.Task[None],
        leave: Callable[[int], object] = os._exit,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._task = task
        self._leave = leave
        self._clock = clock
        self._first_at: float | None = None

    def take(self) -> None:
        """A signal came."""
        now = self._clock()
        if self._first_at is None:
            self._first_at = now
            self._task.cancel()
        elif now - self._first_at > SAME_WISH_S:
            self._leave(INTERRUPTED)


def handle_signals() -> None:
    """Signals cancel the current task from now on, until its loop ends."""
    task = asyncio.current_task()
    assert task is not None
    interruption = Interruption(task)
    loop = asyncio.get_running_loop()
    for number in SIGNALS:
        loop.add_signal_handler(number, interruption.take)
