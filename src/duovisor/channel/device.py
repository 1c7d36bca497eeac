"""The driver SDK: a virtio device is a class derived from ``VirtioDevice``.

The least one has to write is ``device_id`` and ``handle_request``; docs/write-a-driver.md begins there. A
driver that is wrong harms nobody else: what it raises ends it and lets its successor try, unless it says with
``fail_request`` what the guest is to be told.
"""

from __future__ import annotations

from duovisor.channel.errors import ChannelError, DeviceError, ProtocolError
from duovisor.channel.messages import MAX_CONFIG_BYTES
from duovisor.channel.snapshot_payload import MAX_RINGS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from duovisor.channel.chain import Chain
    from duovisor.channel.on_demand import OnDemand
    from duovisor.channel.virtqueue import Virtqueue

MAX_STATISTICS_BYTES = 8192


def _forget() -> None:
    """What ``remember`` does while there is no back end."""


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
    remember: Callable[[], None] = staticmethod(_forget)
    """To be called when ``save_state`` returns something new for another reason than ``write_config``."""
    on_demand: OnDemand | None = None
    """Where mappings of the guest's memory are registered, set by its partition while that still comes."""

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
            try:
                written = self.handle_request(chain)
            except (ChannelError, MemoryError):  # the back end has its own answers to these
                raise
            except Exception as error:
                written = self.fail_request(chain, error)
                queue.errors += 1
            queue.complete(chain, written)

    def handle_request(self, chain: Chain) -> int:
        """Do one request at once; return how many bytes were written to its writable part."""
        raise NotImplementedError

    def fail_request(self, chain: Chain, error: Exception) -> int:
        """``handle_request`` raised: write what the guest is to be told of it, return how many bytes that is.

        By default the error is raised again: the driver ends, and its successor gets the request.
        """
        raise error

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


def check_device(device: VirtioDevice) -> None:
    """Look at what a driver declares before a front end hears of it. Raises ``DeviceError``."""
    for name, lowest, highest in (
        ("device_id", 1, 63),
        ("features", 0, (1 << 64) - 1),
        ("queues", 1, MAX_RINGS),
        ("completion_descriptor", 0, 1 << 20),
    ):
        value = getattr(device, name)
        if value is None and name == "completion_descriptor":
            continue
        if value.__class__ is not int or not lowest <= value <= highest:
            raise DeviceError(
                f"{name} of a device is {value!r:.40}, not a number from {lowest} to {highest:#x}"
            )


def read_device_config(device: VirtioDevice) -> bytes:
    """The whole configuration space. Raises ``DeviceError``, whatever the driver does."""
    try:
        config = device.read_config()
        if isinstance(config, bytes | bytearray) and len(config) <= MAX_CONFIG_BYTES:
            return bytes(config).ljust(MAX_CONFIG_BYTES, b"\0")
    except Exception as error:
        raise DeviceError(f"read_config failed: {type(error).__name__}: {error}") from error
    raise DeviceError(f"read_config returned {config!r:.40}, not up to {MAX_CONFIG_BYTES} bytes")


def read_statistics(device: VirtioDevice) -> dict[str, object]:
    """What a driver tells of itself, if that is a small JSON object; whatever the driver does."""
    from json import dumps  # only who is asked needs it

    try:
        told = device.statistics()
        is_fine = isinstance(told, dict) and len(dumps(told)) <= MAX_STATISTICS_BYTES
        return told if is_fine else {}
    except Exception:
        return {}
