"""A partition's side of its control connections: its birth connection, and those that come to its listener.

An owner may come and go; each connection is served alike. Nothing here ever waits for a peer.
"""

from __future__ import annotations

from duovisor.controlling.drivers.control import receive_packet, send_packet
from duovisor.controlling.drivers.errors import DriverError
from duovisor.errors import DuovisorError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from typing import Any

    from duovisor.channel.event_loop import EventLoop
    from duovisor.controlling.drivers.control import Packet

MAX_CONNECTIONS = 16


class ControlServer:
    """Answers each packet with what ``obey`` returns; ``abandoned`` is called when no connection is left."""

    def __init__(
        self,
        loop: EventLoop,
        birth: socket.socket,
        obey: Callable[[Packet], dict[str, Any]],
        abandoned: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._obey = obey
        self._abandoned = abandoned
        self._connections: list[socket.socket] = []
        self._listener: socket.socket | None = None
        self._add(birth)

    def listen(self, listener: socket.socket) -> None:
        """Accept connections there from now on."""
        self._listener = listener
        listener.setblocking(False)
        self._loop.watch(listener.fileno(), self._accept)

    def announce(self, event: str, **fields: Any) -> None:
        """Tell every connection; one that does not read is closed."""
        for connection in tuple(self._connections):
            self._send(connection, {"event": event, **fields})

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return  # it hung up before we came to it
        if len(self._connections) < MAX_CONNECTIONS:
            self._add(connection)
        else:
            connection.close()

    def _add(self, connection: socket.socket) -> None:
        self._connections.append(connection)
        self._loop.watch(connection.fileno(), lambda: self._serve(connection))

    def _drop(self, connection: socket.socket) -> None:
        self._connections.remove(connection)
        self._loop.unwatch(connection.fileno())
        connection.close()
        if not self._connections:
            self._abandoned()

    def _serve(self, connection: socket.socket) -> None:
        try:
            packet = receive_packet(connection)
        except (EOFError, OSError, DriverError):
            self._drop(connection)
            return
        if packet is None:
            return
        order = packet.message
        answer = {"reply": order.get("do"), "id": order.get("id")}
        try:
            answer |= {"ok": True, **self._obey(packet)}
        except DuovisorError as error:
            answer |= {"ok": False, "message": str(error)}
        finally:
            packet.close()
        self._send(connection, answer)

    def _send(self, connection: socket.socket, message: dict[str, Any]) -> None:
        try:
            send_packet(connection, message)
        except (OSError, DriverError):
            if connection in self._connections:
                self._drop(connection)
