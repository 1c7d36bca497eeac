"""The driver SDK: a virtio device is a class derived from ``VirtioDevice``.

The least one has to write is ``device_id`` and ``handle_request``; see docs/channel.md for a whole driver.
"""

from __future__ import annotations

from duovisor.channel.errors import ProtocolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from duovisor.channel.chain import Chain
    from duovisor.channel.virtqueue import Virtqueue


class VirtioDevice:
    """What a back end asks of a device. Every method runs in the one thread of the back end.

    ``device_id`` is virtio's number of the device type, ``features`` the type's own feature bits (the channel
    adds those of rings and transport), ``queues`` how many queues there are at most.
    """

    device_id = 0
    features = 0
    queues = 1
    completion_descriptor: int | None = None
    """Readable when requests finished elsewhere (an eventfd); ``reap`` is called then."""

    def read_config(self) -> bytes:
        """The configuration space; what lies behind its end reads as zeros."""
        return b""

    def write_config(self, offset: int, data: bytes, *, migrating: bool) -> None:
        """The guest, or a migration, writes to the configuration space. By default nothing is writable."""
        if not migrating:
            raise ProtocolError(f"{len(data)} bytes at {offset} of the configuration space are read-only")

    def set_features(self, features: int) -> None:
        """The guest has chosen from the offered features."""

    def save_state(self) -> bytes:
        """Up to 48 bytes that a successor must know after a crash; asked for after each ``write_config``."""
        return b""

    def load_state(self, state: bytes) -> None:
        """What the predecessor saved."""

    def reset(self) -> None:
        """Return to the state of a device that no guest has touched."""

    def handle(self, queue: Virtqueue, chains: list[Chain]) -> None:
        """Work on chains: ``queue.complete`` each, now or later. What is complete at the return is published.

        May raise ``QueueError`` for a chain that no correct guest sends; the queue ends.
        """
        for chain in chains:
            queue.complete(chain, self.handle_request(chain))

    def handle_request(self, chain: Chain) -> int:
        """Do one request at once; return how many bytes were written to its writable part."""
        raise NotImplementedError

    def holds_buffers(self, queue: int) -> bool:
        """Whether the device may keep what the guest makes available on this queue, as a network card keeps
        empty buffers: that nothing completes there says nothing about its health."""
        return False

    def needs_kicks(self, queue: int) -> bool:
        """Whether the guest shall tell of the next chains on this queue; asked when there are none left.

        Without, the queue is looked at after each ``reap``: a network card with empty buffers enough need not
        be interrupted for more.
        """
        return True

    def reap(self) -> None:
        """Complete and publish what finished elsewhere."""

    def drain(self) -> None:
        """Wait for, complete and publish everything in flight; forget what cannot be finished.

        Whoever works on the queue next gets that again.
        """

    def stop_queue(self, queue: Virtqueue) -> None:
        """The queue stops, after ``drain``: ``queue.give_back`` what the device keeps of it."""

    def statistics(self) -> dict[str, object]:
        """What the device counts of its own, as plain JSON."""
        return {}

    def abandon(self) -> None:
        """The front end is gone: wait for what is in flight, touch no ring; a successor submits it again."""

    def close(self) -> None:
        """Release what the device holds."""
