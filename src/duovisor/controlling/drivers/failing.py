"""Stand-ins for a disk whose drivers kept dying: it is still there, but nobody works on its image.

One answers every request with an error; the other leaves the requests to whoever comes next. Neither looks
at what the guest asks for, so what killed the drivers does not kill them.
"""

from __future__ import annotations

from duovisor.controlling.drivers import block_layout as layout
from duovisor.controlling.drivers.block_device import BlockDevice, reframe
from duovisor.controlling.drivers.errors import DriverError
from duovisor.controlling.drivers.image import Image, open_image
from duovisor.controlling.drivers.options import parse_block_options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from duovisor.channel.chain import Chain
    from duovisor.channel.virtqueue import Virtqueue


class FailingDevice(BlockDevice):
    """Answers every request with VIRTIO_BLK_S_IOERR (virtio 1.2, 5.2.6)."""

    def handle(self, queue: Virtqueue, chains: list[Chain]) -> None:
        """Fail them all."""
        for chain in chains:
            reframe(chain)
            chain.writable[-1][0] = layout.STATUS_IO_ERROR
            queue.complete(chain, 1)


class ParkedDevice(BlockDevice):
    """Keeps every request in flight, for its successor to submit again."""

    def handle(self, queue: Virtqueue, chains: list[Chain]) -> None:
        """Leave them: the in-flight log names them."""

    def holds_buffers(self, queue: int) -> bool:
        """Nothing is expected to be finished."""
        return True


def create_failing_device(words: list[str], descriptors: dict[str, int]) -> BlockDevice:
    """From the words and descriptors of the storage driver. Raises ``DriverError``."""
    return _create(FailingDevice, words, descriptors)


def create_parked_device(words: list[str], descriptors: dict[str, int]) -> BlockDevice:
    """From the words and descriptors of the storage driver. Raises ``DriverError``."""
    return _create(ParkedDevice, words, descriptors)


def _create(device: type[BlockDevice], words: list[str], descriptors: dict[str, int]) -> BlockDevice:
    options = parse_block_options(words)
    size = options.size_bytes
    if not size:
        if "image" not in descriptors:
            raise DriverError("neither a size nor an image is given")
        size = open_image(descriptors["image"], read_only=options.read_only, direct=False).size
    return device(
        Image(-1, size, is_device=False, direct=False, read_only=options.read_only),
        serial=options.serial,
        queues=options.queues,
        queue_size=options.queue_size,
        block_bytes=options.block_bytes,
    )
