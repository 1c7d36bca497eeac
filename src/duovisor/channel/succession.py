"""The active driver's side of succession: who gets a snapshot of every change, and who takes over.

Nothing here waits for a successor, except for the answer to a probe: one that does not read is dropped, by
closing its socket. It may still hold a snapshot and see us die, beside the one that takes its place. So the
page's serial moves on with each drop: what the dropped one holds is out of date.
"""

from __future__ import annotations

import select

from duovisor.channel.snapshot import ANSWER, Kind, send_snapshot

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from duovisor.channel.page import Page
    from duovisor.channel.snapshot import Snapshot

PROBE_TIMEOUT_S = 0.5


class Successors:
    """Those who could go on, by name, with what ``capture`` returns.

    ``report`` is told in one line of each that is dropped.
    """

    def __init__(self, page: Page, capture: Callable[[], Snapshot], report: Callable[[str], None]) -> None:
        self._sockets: dict[str, socket.socket] = {}
        self._page = page
        self._capture = capture
        self._report = report

    @property
    def names(self) -> list[str]:
        return list(self._sockets)

    def tell(self) -> None:
        """Something changed: send a snapshot to everyone, and drop whoever does not take it."""
        self._page.count_change()
        failed = [name for name in self._sockets if not self._send(name, Kind.UPDATE)]
        if failed:
            self._drop(failed)

    def add(self, name: str, sock: socket.socket) -> bool:
        """Add a successor, in place of one with the same name; False if it could not even be told once."""
        if name in self._sockets:
            self._drop([name])
        sock.setblocking(False)
        self._sockets[name] = sock
        if not self._send(name, Kind.UPDATE):
            self._drop([name])
            return False
        return True

    def probe(self, name: str) -> bool:
        """Whether a successor says in time that it could go on from here; it is dropped if it does not."""
        sock = self._sockets.get(name)
        if sock is None:
            return False
        if self._send(name, Kind.PROBE) and _is_answered(sock):
            return True
        self._report(f"the successor {name!r} does not answer")
        self._drop([name])
        return False

    def let_go(self, name: str) -> bool:
        """Send the final snapshot: if that worked, the successor has everything and we have nothing."""
        if self._send(name, Kind.FINAL):
            return True
        self._drop([name])
        return False

    def close(self) -> None:
        """Close every socket; what was sent stays valid."""
        for sock in self._sockets.values():
            sock.close()
        self._sockets = {}

    def _send(self, name: str, kind: Kind) -> bool:
        snapshot = self._capture()
        snapshot.serial = self._page.serial
        try:
            send_snapshot(self._sockets[name], snapshot, kind)
        except OSError as error:
            self._report(f"the successor {name!r} cannot be told: {error.strerror}")
            return False
        return True

    def _drop(self, names: list[str]) -> None:
        for name in names:
            self._sockets.pop(name).close()
        self.tell()


def _is_answered(sock: socket.socket) -> bool:
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    if not poller.poll(PROBE_TIMEOUT_S * 1000):
        return False
    try:
        return sock.recv(len(ANSWER) + 1) == ANSWER
    except OSError:
        return False
