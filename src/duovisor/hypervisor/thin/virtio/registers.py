"""The registers of a virtio device, without a transport's addresses: status, features, queues.

Source: virtio 1.2, 4.1.4.3 (layout of the common configuration), 3.1 (initialization) and 2.1 (status). What
the guest writes out of turn changes nothing.
"""

from __future__ import annotations

import os
from struct import Struct

from duovisor.channel.features import RING_EVENT_IDX, RING_INDIRECT_DESC, VERSION_1
from duovisor.hypervisor.thin.pci.msix import NO_VECTOR
from duovisor.hypervisor.thin.virtio.queue import is_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    from duovisor.hypervisor.thin.pci.msix import Msix
    from duovisor.hypervisor.thin.virtio.queue import Queue

    class Device(Protocol):
        """What the registers are the registers of."""

        queues: list[Queue]
        generation: int

        @property
        def offered(self) -> int:
            """The features that the device offers now."""

        def start(self, features: int) -> bool:
            """Begin to work with these features; False when a queue cannot be."""

        def reset(self) -> None:
            """Stop, and forget the guest."""


FEATURES_OK, DRIVER_OK, NEEDS_RESET = 8, 4, 64
_GUEST_STATUS = 0x8F  # ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, FAILED
# Features of device types (6: bits 0 to 23 and 50 upwards), and of the rings those that the channel has.
PASSED_FEATURES = (1 << 24) - 1 | (1 << 64) - (1 << 50) | RING_INDIRECT_DESC | RING_EVENT_IDX
COMMON_BYTES = 64
_COMMON = Struct("<IIIIHHBBHHHHHQQQHH4x")
_FEATURE_SELECT, _DRIVER_SELECT, _DRIVER_FEATURE, _CONFIG_VECTOR = 0x00, 0x08, 0x0C, 0x10
_STATUS, _QUEUE_SELECT, _QUEUE_SIZE, _QUEUE_VECTOR, _QUEUE_ENABLE = 0x14, 0x16, 0x18, 0x1A, 0x1C
_ADDRESSES = {0x20: "descriptors", 0x28: "available", 0x30: "used"}


class Registers:
    """Registers of ``device``; ``config_call`` is the eventfd that tells of a changed configuration."""

    def __init__(self, device: Device, msix: Msix, config_call: int) -> None:
        self.status = 0
        self.features = 0
        self.config_vector = NO_VECTOR
        self._device = device
        self._msix = msix
        self._config_call = config_call
        self._feature_select = self._driver_select = self._queue_select = 0
        self._writers = {
            (_FEATURE_SELECT, 4): self._select_features,
            (_DRIVER_SELECT, 4): self._select_driver_features,
            (_DRIVER_FEATURE, 4): self._choose_features,
            (_CONFIG_VECTOR, 2): self._set_config_vector,
            (_STATUS, 1): self._set_status,
            (_QUEUE_SELECT, 2): self._select_queue,
            (_QUEUE_SIZE, 2): self._set_queue_size,
            (_QUEUE_VECTOR, 2): self._set_queue_vector,
            (_QUEUE_ENABLE, 2): self._enable_queue,
        }

    # What the guest reads

    def read(self, offset: int, size: int) -> int:
        """Any bytes of the common configuration."""
        return int.from_bytes(self._build_common()[offset : offset + size], "little")

    def _build_common(self) -> bytes:
        queue = self._queue()
        number = (0, NO_VECTOR, 0, 0, 0, 0, 0) if queue is None else (
            queue.size, queue.vector, queue.enabled, queue.index,
            queue.descriptors, queue.available, queue.used,
        )  # fmt: skip
        return _COMMON.pack(
            self._feature_select, _word(self._device.offered, self._feature_select),
            self._driver_select, _word(self.features, self._driver_select),
            self.config_vector, len(self._device.queues), self.status, self._device.generation & 0xFF,
            self._queue_select, *number, 0, 0,
        )  # fmt: skip

    def _queue(self) -> Queue | None:
        queues = self._device.queues
        return queues[self._queue_select] if self._queue_select < len(queues) else None

    # What the guest writes

    def write(self, offset: int, size: int, value: int) -> None:
        """A register in its own width; addresses also half by half (4.1.3.1)."""
        writer = self._writers.get((offset, size))
        if writer is not None:
            writer(value)
        elif offset & ~7 in _ADDRESSES and (size, offset % 8) in ((4, 0), (4, 4), (8, 0)):
            self._set_address(_ADDRESSES[offset & ~7], offset % 8 * 8, size, value)

    def _select_features(self, value: int) -> None:
        self._feature_select = value

    def _select_driver_features(self, value: int) -> None:
        self._driver_select = value

    def _select_queue(self, value: int) -> None:
        self._queue_select = value

    def _choose_features(self, value: int) -> None:
        if self._driver_select < 2 and not self.status & FEATURES_OK:
            shift = 32 * self._driver_select
            self.features = self.features & ~(0xFFFFFFFF << shift) | value << shift

    def _set_config_vector(self, value: int) -> None:
        self.config_vector = self._change_vector(self._config_call, self.config_vector, value)

    def _set_queue_vector(self, value: int) -> None:
        queue = self._queue()
        if queue is not None:
            queue.vector = self._change_vector(queue.call, queue.vector, value)

    def _change_vector(self, eventfd: int, old: int, new: int) -> int:
        """What reads back afterwards: a vector that does not exist reads as none (4.1.5.1.2)."""
        self._msix.disconnect(old, eventfd)
        if new >= len(self._msix.vectors):
            return NO_VECTOR
        self._msix.connect(new, eventfd)
        return new

    def _set_queue_size(self, value: int) -> None:
        queue = self._queue()
        if queue is not None and not queue.enabled and is_size(value, queue.max_size):
            queue.size = value

    def _set_address(self, name: str, shift: int, size: int, value: int) -> None:
        queue = self._queue()
        if queue is not None and not queue.enabled:
            mask = (1 << 8 * size) - 1 << shift
            setattr(queue, name, getattr(queue, name) & ~mask | value << shift)

    def _enable_queue(self, value: int) -> None:
        queue = self._queue()
        if queue is not None and value == 1 and not self.status & DRIVER_OK:
            queue.enabled = True

    def _set_status(self, value: int) -> None:
        """Zero resets; otherwise bits are only ever added (2.1.1)."""
        if value == 0:
            self.reset()
            return
        new = value & _GUEST_STATUS & ~self.status
        if new & FEATURES_OK and not self._are_features_sound():
            new &= ~FEATURES_OK
        self.status |= new
        if new & DRIVER_OK and self.status & FEATURES_OK and not self._device.start(self.features):
            self.fail()

    def _are_features_sound(self) -> bool:
        return bool(self.features & VERSION_1) and not self.features & ~self._device.offered

    # What happens besides

    @property
    def started(self) -> bool:
        """Whether the guest has set the device up, correctly."""
        wanted = FEATURES_OK | DRIVER_OK
        return self.status & (wanted | NEEDS_RESET) == wanted

    def fail(self) -> None:
        """The guest did what no device can follow: nothing more happens until it resets (2.1.2)."""
        self.status |= NEEDS_RESET
        os.eventfd_write(self._config_call, 1)

    def reset(self) -> None:
        """As the guest found it first."""
        self.status = self.features = 0
        self._feature_select = self._driver_select = self._queue_select = 0
        self._device.reset()
        self._set_config_vector(NO_VECTOR)
        for queue in self._device.queues:
            queue.vector = self._change_vector(queue.call, queue.vector, NO_VECTOR)
            queue.reset()

    def save(self) -> dict[str, Any]:
        """All that the guest can read back."""
        return {
            "status": self.status,
            "features": self.features,
            "selected": [self._feature_select, self._driver_select, self._queue_select],
            "config_vector": self.config_vector,
            "queues": [queue.save() for queue in self._device.queues],
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Take what ``save`` returned, in a device that was just made; start nothing.

        Raises ``ValueError``, ``KeyError`` or ``TypeError`` for what is none.
        """
        if len(saved["queues"]) != len(self._device.queues):
            raise ValueError(f"{len(saved['queues'])} queues, not {len(self._device.queues)}")
        for queue, entry in zip(self._device.queues, saved["queues"], strict=True):
            queue.restore(entry)
            queue.vector = self._change_vector(queue.call, queue.vector, int(entry["vector"]))
        self._set_config_vector(int(saved["config_vector"]))
        self.status, self.features = int(saved["status"]) & 0xFF, int(saved["features"])
        selected = (int(each) & 0xFFFFFFFF for each in saved["selected"])
        self._feature_select, self._driver_select, self._queue_select = selected
        self._queue_select &= 0xFFFF


def _word(features: int, select: int) -> int:
    """The 32 features that a selector shows."""
    return features >> 32 * select & 0xFFFFFFFF if select < 2 else 0
