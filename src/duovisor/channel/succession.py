"""The active driver's side of succession: who gets a snapshot of every change, and who takes over.

Nothing here waits for a successor, except for the answer to a probe: one that does not read is dropped, by
closing its socket. It cannot take over by mistake, for its snapshot no longer bears the page's serial.
"""

from __future__ import annotations

import select

from duovisor.channel.snapshot import ANSWER, Kind, send_snapshot

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from duovisor.channel.snapshot import Snapshot

PROBE_TIMEOUT_S = 0.5


class Successors:
    """Those who could go on, by name; ``report`` is told in one line of each that is dropped."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self._sockets: dict[str, socket.socket] = {}
        self._report = report

    @property
    def names(self) -> list[str]:
        return list(self._sockets)

    def __bool__(self) -> bool:
        return bool(self._sockets)

    def add(self, name: str, sock: socket.socket, snapshot: Snapshot) -> bool:
        """Add a successor, in place of one with the same name; False if it could not even be told once."""
        self._drop(name)
        sock.setblocking(False)
        self._sockets[name] = sock
        return self._send(name, snapshot, Kind.UPDATE)

    def tell(self, snapshot: Snapshot) -> None:
        """Send a snapshot to everyone."""
        for name in self.names:
            self._send(name, snapshot, Kind.UPDATE)

    def probe(self, name: str, snapshot: Snapshot) -> bool:
        """Whether a successor says in time that it could go on from this snapshot."""
        sock = self._sockets.get(name)
        if sock is None or not self._send(name, snapshot, Kind.PROBE):
            return False
        poller = select.poll()
        poller.register(sock, select.POLLIN)
        answer = b""
        if poller.poll(PROBE_TIMEOUT_S * 1000):
            try:
                answer = sock.recv(len(ANSWER) + 1)
            except OSError:
                pass  # no answer, as below
        if answer != ANSWER:
            self._report(f"the successor {name!r} does not answer")
            self._drop(name)
        return answer == ANSWER

    def let_go(self, name: str, snapshot: Snapshot) -> bool:
        """Send the final snapshot: if that worked, the successor has everything and we have nothing."""
        return self._send(name, snapshot, Kind.FINAL)

    def close(self) -> None:
        """Close every socket."""
        for name in self.names:
            self._drop(name)

    def _send(self, name: str, snapshot: Snapshot, kind: Kind) -> bool:
        try:
            send_snapshot(self._sockets[name], snapshot, kind)
        except OSError as error:
            self._report(f"the successor {name!r} is dropped: {error.strerror}")
            self._drop(name)
            return False
        return True

    def _drop(self, name: str) -> None:
        sock = self._sockets.pop(name, None)
        if sock is not None:
            sock.close()
