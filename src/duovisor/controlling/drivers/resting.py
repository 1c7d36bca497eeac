"""A stand-in for any device whose drivers keep dying: it is still there, and keeps what the guest asks."""

from __future__ import annotations

import json

from duovisor.channel.device import VirtioDevice
from duovisor.controlling.drivers.errors import DriverError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from duovisor.channel.chain import Chain
    from duovisor.channel.virtqueue import Virtqueue


class RestingDevice(VirtioDevice):
    """Keeps every request in flight, for its successor to submit again."""

    def __init__(self, device_id: int, features: int, queues: int, config: bytes) -> None:
        self.device_id = device_id
        self.features = features
        self.queues = queues
        self._config = config
        self._state = b""

    def read_config(self) -> bytes:
        """What the last driver told of it."""
        return self._config

    def write_config(self, offset: int, data: bytes, *, migrating: bool) -> None:
        """Nobody is there to take note."""

    def save_state(self) -> bytes:
        """What the last driver saved, for the next one."""
        return self._state

    def load_state(self, state: bytes) -> None:
        """Keep it."""
        self._state = state

    def handle(self, queue: Virtqueue, chains: list[Chain]) -> None:
        """Leave them: the in-flight log names them."""

    def holds_buffers(self, queue: int) -> bool:
        """Nothing is expected to be finished."""
        return True


def describe_device(device: VirtioDevice) -> dict[str, Any]:
    """What a stand-in must know of a device, as plain JSON."""
    return {
        "device_id": device.device_id,
        "features": device.features,
        "queues": device.queues,
        "config": device.read_config().hex(),
    }


def create_resting_device(words: list[str], _: dict[str, int]) -> VirtioDevice:
    """From what ``describe_device`` said, the last word, in JSON. Raises ``DriverError``."""
    return restore_device(RestingDevice, words)


def restore_device(kind: type[RestingDevice], words: list[str]) -> RestingDevice:
    """A stand-in of a ``kind`` from what ``describe_device`` said, the last word. Raises ``DriverError``."""
    try:
        facts = json.loads(words[-1])
        device_id, features, queues = (int(facts[name]) for name in ("device_id", "features", "queues"))
        return kind(device_id, features, queues, bytes.fromhex(facts["config"]))
    except (LookupError, TypeError, ValueError) as error:
        raise DriverError(f"nothing is known of the device: {error!r}") from error
