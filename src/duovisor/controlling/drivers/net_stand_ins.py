"""Stand-ins for a network card whose drivers kept dying: neither looks at a frame.

Both hold the TAP, so that it, and its place on the bridge, outlive every driver.
"""

from __future__ import annotations

from duovisor.channel.device import VirtioDevice
from duovisor.controlling.drivers import net_layout as layout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from duovisor.channel.chain import Chain
    from duovisor.channel.virtqueue import Virtqueue
    from duovisor.controlling.drivers.tap import Tap


class ParkedNet(VirtioDevice):
    """Keeps every frame and buffer in flight, for its successor to submit again."""

    device_id = layout.DEVICE_ID
    features = layout.OFFERED_FEATURES
    queues = layout.QUEUES

    def __init__(self, tap: Tap) -> None:
        self._tap = tap
        self._kept: list[list[Chain]] = [[] for _ in range(self.queues)]

    def handle(self, queue: Virtqueue, chains: list[Chain]) -> None:
        """Leave them: the in-flight log names them."""
        self._kept[queue.index] += chains

    def holds_buffers(self, queue: int) -> bool:
        """Nothing is expected to be finished."""
        return True

    def stop_queue(self, queue: Virtqueue) -> None:
        """Give back what is kept."""
        queue.give_back(self._kept[queue.index])
        self._kept[queue.index] = []

    def close(self) -> None:
        """Close the TAP."""
        self._tap.close()


class DroppingNet(ParkedNet):
    """A card without a cable: what the guest sends is gone, and nothing comes."""

    def handle(self, queue: Virtqueue, chains: list[Chain]) -> None:
        """Drop frames, keep empty buffers."""
        if queue.index == layout.RECEIVE:
            super().handle(queue, chains)
            return
        for chain in chains:
            queue.complete(chain, 0)
