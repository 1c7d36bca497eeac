"""Stand-ins for a disk whose drivers kept dying: it is still there, but nobody works on its image.

One answers every request with an error; the other leaves the requests to whoever comes next. Neither looks
at what the guest asks for, so what killed the drivers does not kill them.
"""

from __future__ import annotations

from duovisor.controlling.drivers import block_layout as layout
from duovisor.controlling.drivers.block_protocol import BlockProtocol, reframe
from duovisor.controlling.drivers.errors import DriverError
from duovisor.controlling.drivers.image import open_image
from duovisor.controlling.drivers.options import build_disk, parse_block_options
from duovisor.controlling.drivers.resting import RestingDevice, restore_device

TYPE_CHECKING = False
if TYPE_CHECKING:
    from duovisor.channel.chain import Chain
    from duovisor.channel.device import VirtioDevice
    from duovisor.channel.virtqueue import Virtqueue


class FailingDevice(BlockProtocol):
    """Answers every request with VIRTIO_BLK_S_IOERR (virtio 1.2, 5.2.6)."""

    def handle(self, queue: Virtqueue, chains: list[Chain]) -> None:
        """Fail them all."""
        fail_all(queue, chains)


class ParkedDevice(BlockProtocol):
    """Keeps every request in flight, for its successor to submit again."""

    def handle(self, queue: Virtqueue, chains: list[Chain]) -> None:
        """Leave them: the in-flight log names them."""

    def holds_buffers(self, queue: int) -> bool:
        """Nothing is expected to be finished."""
        return True


class FailingOwnDisk(RestingDevice):
    """The same in the place of a user's own driver, of which only its last words are known."""

    def handle(self, queue: Virtqueue, chains: list[Chain]) -> None:
        """Fail them all."""
        fail_all(queue, chains)


def fail_all(queue: Virtqueue, chains: list[Chain]) -> None:
    """Answer each request with an error."""
    for chain in chains:
        reframe(chain)
        chain.writable[-1][0] = layout.STATUS_IO_ERROR
        queue.complete(chain, 1)


def create_failing_device(words: list[str], descriptors: dict[str, int]) -> VirtioDevice:
    """From the words and descriptors of the storage driver. Raises ``DriverError``."""
    return _create(FailingDevice, words, descriptors)


def create_parked_device(words: list[str], descriptors: dict[str, int]) -> VirtioDevice:
    """From the words and descriptors of the storage driver. Raises ``DriverError``."""
    return _create(ParkedDevice, words, descriptors)


def create_failing_own_disk(words: list[str], _: dict[str, int]) -> VirtioDevice:
    """From what the last driver told of its disk. Raises ``DriverError``."""
    return restore_device(FailingOwnDisk, words)


def _create(kind: type[BlockProtocol], words: list[str], descriptors: dict[str, int]) -> VirtioDevice:
    options = parse_block_options(words)
    size = options.size_bytes
    if not size:
        if "image" not in descriptors:
            raise DriverError("neither a size nor an image is given")
        size = open_image(descriptors["image"], read_only=options.read_only, direct=False).size
    return kind(build_disk(options), size)
