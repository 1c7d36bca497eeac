"""A warm successor: everything mapped, nothing touched, until the active driver dies or lets go.

It may go on with the predecessor's connection when the page says that no message was being answered and that
its snapshot is the newest. Otherwise it ends that connection, so that the front end makes a new one.
"""

from __future__ import annotations

import os
import socket
import time
from enum import StrEnum

from duovisor.channel.backend import Backend
from duovisor.channel.errors import PeerClosedError
from duovisor.channel.event_loop import EventLoop
from duovisor.channel.hang_probe import HangProbe
from duovisor.channel.snapshot import ANSWER, SnapshotReceiver

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from duovisor.channel.device import VirtioDevice
    from duovisor.channel.page import Page
    from duovisor.channel.snapshot import Snapshot

# A killed process closes its sockets first and is gone only when its last thread left the kernel.
DEATH_TIMEOUT_S = 10.0


class Outcome(StrEnum):
    """How ``Standby.run`` came to its end."""

    TOOK_OVER = "took-over"
    """``backend`` goes on with the predecessor's connection."""
    INTERRUPTED = "interrupted"
    """The predecessor died where nobody can go on; its connection is shut down, a new one is needed."""
    CLOSED = "closed"
    """The front end had closed the connection: there is nothing left to serve."""
    STOPPED = "stopped"
    """``stop`` was called."""
    DROPPED = "dropped"
    """Nobody sends snapshots any more, and nobody died."""


def _ignore(_: str) -> None:
    """Report nothing."""


class Standby:
    """Waits on ``succession``, which it closes at the end, like ``active``, the pidfd of the active driver.

    Without ``active`` only a final snapshot makes it take over. ``on_hang`` is told of a queue (``None``: the
    connection) that made no progress for ``hang_s`` seconds; 0 never looks. The other arguments are those
    of ``Backend``.
    """

    def __init__(
        self,
        device: VirtioDevice,
        *,
        page: Page,
        succession: socket.socket,
        on_hang: Callable[[int | None, float], None],
        active: int | None = None,
        hang_s: float = 0.0,
        poll_us: int = 0,
        report: Callable[[str], None] = _ignore,
        loop: EventLoop | None = None,
    ) -> None:
        self.backend: Backend | None = None
        self._device = device
        self._page = page
        self._succession = succession
        self._receiver = SnapshotReceiver(succession)
        self._active = active
        self._probe = HangProbe(hang_s, on_hang) if hang_s else None
        self._poll_us = poll_us
        self._report = report
        self._owns_loop = loop is None
        self._loop = loop or EventLoop()
        self._outcome: Outcome | None = None
        self._warm: Backend | None = None
        self._serial = 0
        self._deadline_s: float | None = None

    @property
    def ready(self) -> bool:
        """Whether it holds a snapshot."""
        return self._warm is not None

    def stop(self) -> None:
        """Let ``run`` return without taking over; may be called from a signal handler."""
        self._outcome = self._outcome or Outcome.STOPPED
        self._loop.wake()

    def run(self) -> Outcome:
        """Wait until there is something to do, or nothing any more.

        Raises ``ChannelError`` for a snapshot that cannot be or does not fit the device.
        """
        self._loop.watch(self._succession.fileno(), self._receive)
        if self._active is not None:
            self._loop.watch(self._active, self._take_over)
        try:
            while self._outcome is None:
                self._loop.turn(self._patience_s())
                self._look()
            return self._outcome
        finally:
            self._close()

    def _patience_s(self) -> float | None:
        if self._deadline_s is not None:
            return max(0.0, self._deadline_s - time.monotonic())
        return self._probe.interval_s if self._probe is not None and self._warm is not None else None

    def _look(self) -> None:
        now_s = time.monotonic()
        if self._deadline_s is not None:
            if now_s >= self._deadline_s and self._outcome is None:
                self._outcome = Outcome.DROPPED
        elif self._probe is not None and self._warm is not None and self._outcome is None:
            waits = self._page.busy or bool(self._peek(self._warm))
            self._probe.look(now_s, connection_waits=waits)

    # Snapshots

    def _receive(self) -> None:
        """Take in what was sent; only the last snapshot counts."""
        newest: Snapshot | None = None
        probed = False
        try:
            while (snapshot := self._receiver.receive()) is not None:
                if newest is not None:
                    newest.close()
                newest = snapshot
                probed |= snapshot.probe
        except PeerClosedError:
            self._loop.unwatch(self._succession.fileno())
            patience_s = 0.0 if self._active is None else DEATH_TIMEOUT_S
            self._deadline_s = time.monotonic() + patience_s
        if newest is not None:
            self._warm_up(newest)
            if probed:
                self._answer()
            if newest.final:
                self._decide()

    def _warm_up(self, snapshot: Snapshot) -> None:
        if self._warm is not None and snapshot.serial == self._serial:
            snapshot.close()  # nothing has changed
            return
        self._cool_down()
        self._serial = snapshot.serial
        self._warm = Backend.resume(
            snapshot, self._device,
            poll_us=self._poll_us, report=self._report, page=self._page, loop=self._loop,
        )  # fmt: skip
        if self._probe is not None:
            self._probe.watch(self._warm.session)

    def _cool_down(self) -> None:
        if self._probe is not None:
            self._probe.forget()
        if self._warm is not None:
            self._warm.close()
            self._warm = None

    def _answer(self) -> None:
        try:
            self._succession.send(ANSWER, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError:
            pass  # whoever asked is gone; its end is noticed elsewhere

    # Taking over

    def _take_over(self) -> None:
        """The predecessor is gone, with all its threads; what it sent last may still be unread."""
        if self._deadline_s is None:
            self._receive()
        if self._outcome is None:
            self._decide()

    def _decide(self) -> None:
        warm = self._warm
        if warm is None:
            self._outcome = Outcome.INTERRUPTED
        elif self._page.busy or self._page.serial != self._serial:
            warm.connection.shut_down()
            self._outcome = Outcome.INTERRUPTED
        elif self._peek(warm) == b"":
            self._outcome = Outcome.CLOSED
        else:
            self._outcome = Outcome.TOOK_OVER
            self.backend, self._warm = warm, None
            warm.owns_loop = self._owns_loop

    def _peek(self, warm: Backend) -> bytes | None:
        """The first unread byte of the connection, none at its end, ``None`` when nothing is there."""
        try:
            return warm.connection.socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def _close(self) -> None:
        self._cool_down()
        self._receiver.close()
        self._loop.unwatch(self._succession.fileno())
        self._succession.close()
        if self._active is not None:
            self._loop.unwatch(self._active)
            os.close(self._active)
        if self._owns_loop and self.backend is None:
            self._loop.close()
