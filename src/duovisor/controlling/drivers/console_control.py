"""The control queues of a console device with several ports: who there is, and who has opened what.

Source: virtio 1.2, 5.3.6.2. What the guest is to be told waits here until it has a buffer for it: one message
for each port and event, the latest, so that a guest which gives no buffers has no more than that wait.
"""

from __future__ import annotations

from collections import deque
from struct import Struct

from duovisor.channel.errors import QueueError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from duovisor.channel.chain import Chain
    from duovisor.channel.virtqueue import Virtqueue

DEVICE_READY, PORT_ADD, PORT_READY, CONSOLE_PORT, PORT_OPEN, PORT_NAME = 0, 1, 3, 4, 6, 7
MESSAGE = Struct("<IHH")  # port, event, value


class ControlMessages:
    """Messages to the guest, and its empty buffers for them."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[int, int], bytes] = {}
        self._posted: deque[Chain] = deque()

    def tell(self, port: int, event: int, value: int = 1, text: bytes = b"") -> None:
        """Let the guest know; the answer, if there is one, comes on the other queue."""
        self._waiting[port, event] = MESSAGE.pack(port, event, value) + text
        self._deliver()

    def post(self, chains: list[Chain]) -> None:
        """The guest's buffers. Raises ``QueueError`` for what is none."""
        for chain in chains:
            if chain.readable:
                raise QueueError("a buffer for control messages has a part that a device would read")
            self._posted.append(chain)
        self._deliver()

    def stop_queue(self, queue: Virtqueue) -> None:
        """Give the buffers back."""
        queue.give_back(list(self._posted))
        self._posted.clear()

    def abandon(self) -> None:
        """The front end is gone, and its buffers with it."""
        self._posted.clear()

    def forget(self) -> None:
        """Nothing is to be told any more."""
        self._waiting.clear()

    def _deliver(self) -> None:
        while self._posted and self._waiting:
            chain = self._posted.popleft()
            message = self._waiting.pop(next(iter(self._waiting)))
            written = 0
            for piece in chain.writable:
                part = message[written : written + len(piece)]
                piece[: len(part)] = part
                written += len(part)
            chain.queue.complete(chain, written)


def parse_message(pieces: list[memoryview]) -> tuple[int, int, int]:
    """Port, event and value of what the guest says. Raises ``QueueError`` when that is too short."""
    head = b"".join(bytes(piece[: MESSAGE.size]) for piece in pieces)[: MESSAGE.size]
    if len(head) < MESSAGE.size:
        raise QueueError(f"a control message of {len(head)} bytes")
    port, event, value = MESSAGE.unpack(head)
    return port, event, value
