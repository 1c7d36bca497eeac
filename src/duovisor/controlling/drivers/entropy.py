"""virtio-rng: what the guest offers is filled with the host kernel's random numbers (virtio 1.2, 5.4)."""

from __future__ import annotations

import os

from duovisor.channel.device import VirtioDevice
from duovisor.channel.errors import QueueError
from duovisor.controlling.drivers.errors import DriverError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from duovisor.channel.chain import Chain

DEVICE_ID = 4
MAX_REQUEST_BYTES = 64 * 1024  # a guest that offers more gets as much: nobody waits for the rest


class EntropyDevice(VirtioDevice):
    """An entropy source."""

    device_id = DEVICE_ID

    def handle_request(self, chain: Chain) -> int:
        """Fill what the guest offers, up to 64 KiB."""
        if chain.readable:
            raise QueueError("a request for entropy has a part that a device would read")
        left = MAX_REQUEST_BYTES
        for piece in chain.writable:
            part = piece[:left]
            part[:] = os.urandom(len(part))
            left -= len(part)
        return MAX_REQUEST_BYTES - left


def create_entropy_device(words: list[str], descriptors: dict[str, int]) -> VirtioDevice:
    """The entropy source of a partition: it needs nothing. Raises ``DriverError``."""
    if words or descriptors:
        raise DriverError("the entropy driver has no use for options or descriptors")
    return EntropyDevice()
