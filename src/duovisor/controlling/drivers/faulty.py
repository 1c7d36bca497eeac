"""A storage driver with faults on demand, for tests of whatever must live with them; no VM can ask for it.

The descriptor ``faults`` is a file that holds a JSON object: ::

    latency_ms     each request takes so much longer
    error_sectors  requests that begin at one of these fail; error_rate: so many of all others do (0 to 1)
    poison         a request that begins at this sector ends every driver that meets it
    crash_at       every driver ends at its so many-th request; hang_at: hangs there
    torn           of a write that ends the driver, the first half was done
    forget_dirty   nothing that is written to the guest's memory is marked in the dirty log
"""

from __future__ import annotations

import json
import os
import random
import time

from duovisor.controlling.drivers import block_layout as layout
from duovisor.controlling.drivers.block_protocol import reframe
from duovisor.controlling.drivers.errors import DriverError
from duovisor.controlling.drivers.image import open_image
from duovisor.controlling.drivers.image_device import ImageDevice
from duovisor.controlling.drivers.options import build_disk, parse_block_options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from duovisor.channel.chain import Chain
    from duovisor.channel.device import VirtioDevice
    from duovisor.channel.virtqueue import Virtqueue
    from duovisor.controlling.drivers.block_protocol import Disk
    from duovisor.controlling.drivers.image import Image

MAX_FAULTS_BYTES = 4096
CRASH_STATUS = 66


class Faults:
    """What goes wrong, and when; see above."""

    __slots__ = (
        "crash_at", "error_rate", "error_sectors", "forget_dirty", "hang_at", "latency_ms", "poison", "torn",
    )  # fmt: skip

    def __init__(
        self,
        *,
        latency_ms: float = 0.0,
        error_sectors: tuple[int, ...] = (),
        error_rate: float = 0.0,
        poison: int = -1,
        crash_at: int = 0,
        hang_at: int = 0,
        torn: bool = False,
        forget_dirty: bool = False,
    ) -> None:
        self.latency_ms = latency_ms
        self.error_sectors = frozenset(error_sectors)
        self.error_rate = error_rate
        self.poison = poison
        self.crash_at = crash_at
        self.hang_at = hang_at
        self.torn = torn
        self.forget_dirty = forget_dirty


class FaultyDevice(ImageDevice):
    """A disk on which things go wrong."""

    def __init__(self, image: Image, disk: Disk, faults: Faults) -> None:
        super().__init__(image, disk)
        self._faults = faults
        self._requests = 0
        self._random = random.Random(0)

    def handle(self, queue: Virtqueue, chains: list[Chain]) -> None:
        """Do each request in turn, with what goes wrong."""
        if self._faults.forget_dirty:
            queue.set_log(None, 0)  # again each time: a front end may have begun another migration
        for chain in chains:
            reframe(chain)
            kind, _, sector = layout.REQUEST_HEADER.unpack_from(chain.readable[0])
            self._requests += 1
            if self._fails(kind, sector, chain):
                chain.writable[-1][0] = layout.STATUS_IO_ERROR
                queue.complete(chain, 1)
            else:
                self.serve(chain)
            queue.publish()

    def statistics(self) -> dict[str, object]:
        """How many requests this driver met."""
        return {"requests": self._requests}

    def _fails(self, kind: int, sector: int, chain: Chain) -> bool:
        """Whether the guest is told of an error; does not return where the driver ends or hangs."""
        faults, moves_data = self._faults, kind in (layout.REQUEST_IN, layout.REQUEST_OUT)
        time.sleep(faults.latency_ms / 1000)
        if (moves_data and sector == faults.poison) or self._requests == faults.crash_at:
            if faults.torn and kind == layout.REQUEST_OUT:
                data = b"".join(chain.readable[1:])
                os.pwrite(self.image.descriptor, data[: len(data) // 2], sector << layout.SECTOR_SHIFT)
            os._exit(CRASH_STATUS)
        if self._requests == faults.hang_at:
            while True:
                time.sleep(1)
        return moves_data and (sector in faults.error_sectors or self._random.random() < faults.error_rate)


def create_faulty_device(words: list[str], descriptors: dict[str, int]) -> VirtioDevice:
    """From the words and descriptors of the storage driver, and the faults. Raises ``DriverError``."""
    options = parse_block_options(words)
    try:
        faults = Faults(**json.loads(os.pread(descriptors["faults"], MAX_FAULTS_BYTES, 0)))
        image = descriptors["image"]
    except (LookupError, TypeError, ValueError) as error:
        raise DriverError(f"faults or image cannot be: {error!r}") from error
    opened = open_image(image, read_only=options.read_only, direct=False)
    return FaultyDevice(opened, build_disk(options, opened), faults)
