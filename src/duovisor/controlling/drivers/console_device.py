"""virtio-console: the console, port 0, and ports with names beside it (virtio 1.2, section 5.3).

What the guest prints on the console goes to a log and to whoever is connected; a viewer that does not read
misses what its socket has no room for, for a guest waits until its output is taken and must never wait for a
person. On the other ports it waits for a client that is slow, and is told whether there is one.

Which ports the guest knows and has opened is what a successor must know: it is saved at each change.
"""

from __future__ import annotations

from struct import Struct

from duovisor.channel.device import VirtioDevice
from duovisor.controlling.drivers import console_control as control
from duovisor.controlling.drivers.console_port import Port, Sockets

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from duovisor.channel.chain import Chain
    from duovisor.channel.virtqueue import Virtqueue

DEVICE_ID = 3
FEATURE_MULTIPORT = 1 << 1
RECEIVE, TRANSMIT, CONTROL_RECEIVE, CONTROL_TRANSMIT = range(4)
PORTS_MAX = 31
_CONFIG = Struct("<HHII")  # columns, rows, ports, the register for emergencies
_STATE = Struct("<BII")  # whether the guest has begun; ports that it knows; ports that are open


class NamedPort:
    """A port beside the console: its name in the guest, and its socket if somebody may connect."""

    __slots__ = ("name", "sock")

    def __init__(self, name: str, sock: socket.socket | None) -> None:
        self.name = name
        self.sock = sock


class ConsoleDevice(VirtioDevice):
    """A console whose ``viewers`` come to a listening socket, or are on a connected one.

    ``log`` is a descriptor that all it prints is appended to. Without sockets everything is dropped.
    """

    device_id = DEVICE_ID

    def __init__(
        self, viewers: socket.socket | None, log: int | None, named: Sequence[NamedPort] = ()
    ) -> None:
        self._sockets = Sockets()
        self._sockets.changed = self._client_changed
        self.completion_descriptor = self._sockets.events.fileno()
        self.ports = [Port(0, "", viewers, self._sockets, patient=False, log=log)]
        self.ports += [
            Port(number, each.name, each.sock, self._sockets, patient=True)
            for number, each in enumerate(named, start=1)
        ]
        self._messages = control.ControlMessages()
        self._begun = False
        self._control_queue: Virtqueue | None = None
        self._several = True
        self._saved = b""
        if named:
            self.features = FEATURE_MULTIPORT
            self.queues = 2 * (len(self.ports) + 1)  # two of them for control (5.3.2)
        else:
            self.queues = 2
        self.set_features(0)

    # Configuration and state

    def read_config(self) -> bytes:
        """No size of a screen, the number of ports, and nothing for emergencies (5.3.4)."""
        return _CONFIG.pack(0, 0, len(self.ports), 0)

    def set_features(self, features: int) -> None:
        """Without several ports nobody says that the console is open: it is."""
        several = bool(features & FEATURE_MULTIPORT & self.features)
        if several != self._several:
            self._several = several
            self.ports[0].open = not several

    def save_state(self) -> bytes:
        """What the guest has said."""
        known, opened = (
            sum(1 << port.number for port in self.ports if getattr(port, name)) for name in ("ready", "open")
        )
        return _STATE.pack(self._begun, known, opened)

    def load_state(self, state: bytes) -> None:
        """What the guest has said to a predecessor, who may have died before it could answer: do so again."""
        if len(state) != _STATE.size:
            return
        begun, known, opened = _STATE.unpack(state)
        self._begun = bool(begun)
        for port in self.ports:
            port.ready, port.open = bool(known >> port.number & 1), bool(opened >> port.number & 1)
        if self._begun:
            self._introduce_all()

    def reset(self) -> None:
        """No guest knows any port."""
        self._begun = False
        self._messages.forget()
        for port in self.ports:
            port.reset()
        self._several = True
        self.set_features(0)

    def holds_buffers(self, queue: int) -> bool:
        """Empty buffers wait for somebody to type, and what was sent for somebody to read."""
        return queue not in (TRANSMIT, CONTROL_TRANSMIT)

    def statistics(self) -> dict[str, object]:
        """For each port, bytes in each direction, and those that a viewer had no room for."""
        return {
            port.name or "console": {
                "printed": port.printed_bytes,
                "missed": port.missed_bytes,
                "typed": port.typed_bytes,
                "connected": port.client is not None,
                "open": port.open,
            }
            for port in self.ports
        }

    # Queues

    def handle(self, queue: Virtqueue, chains: list[Chain]) -> None:
        """Serve a port, or take part in what is said about them."""
        index = queue.index
        if index == CONTROL_RECEIVE:
            self._control_queue = queue
            self._messages.post(chains)
        elif index == CONTROL_TRANSMIT:
            for chain in chains:
                self._obey(*control.parse_message(chain.readable))
                queue.complete(chain, 0)
        else:
            self._port_of(index).handle(queue, chains, from_guest=bool(index & 1))
        self._publish_control()

    def reap(self) -> None:
        """Somebody came, sent, read or left."""
        for port, events in self._sockets.poll():
            port.wake(events)

    def stop_queue(self, queue: Virtqueue) -> None:
        """Give back what waits."""
        if queue.index == CONTROL_RECEIVE:
            self._messages.stop_queue(queue)
        elif queue.index != CONTROL_TRANSMIT:
            self._port_of(queue.index).stop_queue(queue, from_guest=bool(queue.index & 1))

    def abandon(self) -> None:
        """The front end is gone, and its buffers with it."""
        self._messages.abandon()
        self._control_queue = None
        for port in self.ports:
            port.abandon()

    def close(self) -> None:
        """Let go of log and sockets."""
        for port in self.ports:
            port.close()
        self._sockets.events.close()

    def _port_of(self, index: int) -> Port:
        """Queues 0 and 1 are port 0's, 4 and 5 port 1's, and so on (5.3.2)."""
        return self.ports[0 if index < CONTROL_RECEIVE else index // 2 - 1]

    def _publish_control(self) -> None:
        if self._control_queue is not None and self._control_queue.running:
            self._control_queue.publish()

    # Control

    def _obey(self, number: int, event: int, value: int) -> None:
        """What the guest says; of a port that there is not, nothing."""
        if event == control.DEVICE_READY:
            self._begun = value == 1
            if self._begun:
                self._introduce_all()
        elif number < len(self.ports):
            port = self.ports[number]
            if event == control.PORT_READY and value == 1:
                port.ready = True
                self._introduce(port)
            elif event == control.PORT_OPEN:
                port.open = bool(value)
                port.wake(0)
        state = self.save_state()
        if state != self._saved:
            self._saved = state
            self.remember()

    def _introduce_all(self) -> None:
        for port in self.ports:
            self._introduce(port)

    def _introduce(self, port: Port) -> None:
        """Tell the guest that there is a port or, when it knows, what port. Doing it twice is harmless."""
        if not port.ready:
            self._messages.tell(port.number, control.PORT_ADD)
            return
        if port.name:
            self._messages.tell(port.number, control.PORT_NAME, text=port.name.encode())
        else:
            self._messages.tell(port.number, control.CONSOLE_PORT)
        self._tell_open(port)

    def _tell_open(self, port: Port) -> None:
        """A console is always open on this side: there is a log."""
        there = port.client is not None or not port.name
        self._messages.tell(port.number, control.PORT_OPEN, int(there))

    def _client_changed(self, port: Port) -> None:
        if port.ready and port.name:
            self._tell_open(port)
            self._publish_control()
