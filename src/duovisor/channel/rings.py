"""The queues of one connection: what the front end says about each ring, and when it starts and stops."""

from __future__ import annotations

import os
import select

from duovisor.channel.errors import ProtocolError
from duovisor.channel.features import LOG_ALL, PROTOCOL_FEATURES
from duovisor.channel.messages import (
    Request,
    build_vring_state,
    parse_vring_address,
    parse_vring_descriptor,
    parse_vring_state,
)
from duovisor.channel.virtqueue import MAX_QUEUE_SIZE, Virtqueue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from duovisor.channel.connection import Message
    from duovisor.channel.dirty_log import DirtyLog
    from duovisor.channel.inflight import InflightLog, QueueInflight
    from duovisor.channel.memory import GuestMemory
    from duovisor.channel.messages import VringAddress

    class QueueEvents(Protocol):
        """Who works on the queues."""

        def queue_started(self, ring: Ring) -> None:
            """The queue runs; its kick descriptor may be waited for."""

        def queue_stopping(self, ring: Ring) -> None:
            """Finish what is in flight and let go of the kick descriptor, which is closed afterwards."""


class Ring:
    """A queue and what the front end said about it."""

    __slots__ = (
        "address",
        "base",
        "enabled",
        "error_descriptor",
        "failed",
        "kick_descriptor",
        "queue",
        "size",
    )

    def __init__(self, queue: Virtqueue) -> None:
        self.queue = queue
        self.address: VringAddress | None = None
        self.size = 0
        self.base = 0
        self.enabled = False
        self.failed = False
        self.kick_descriptor: int | None = None
        self.error_descriptor: int | None = None


class Rings:
    """All queues of a device. The session sets ``features`` and ``inflight`` when they are negotiated."""

    def __init__(self, count: int, memory: GuestMemory, events: QueueEvents) -> None:
        self.all = [Ring(Virtqueue(index, memory)) for index in range(count)]
        self.features = 0
        self.inflight: InflightLog | None = None
        self._log: DirtyLog | None = None
        self._events = events

    def handlers(self) -> dict[int, Callable[[Message], bytes | None]]:
        """The requests about queues."""
        return {
            Request.SET_VRING_NUM: self._set_size,
            Request.SET_VRING_ADDR: self._set_address,
            Request.SET_VRING_BASE: self._set_base,
            Request.GET_VRING_BASE: self._get_base,
            Request.SET_VRING_KICK: self._set_kick,
            Request.SET_VRING_CALL: self._set_call,
            Request.SET_VRING_ERR: self._set_error,
            Request.SET_VRING_ENABLE: self._set_enable,
        }

    @property
    def any_running(self) -> bool:
        return any(ring.queue.running for ring in self.all)

    def set_features(self, features: int) -> None:
        """Take what was negotiated; without protocol features a ring needs no message to be enabled."""
        self.features = features
        if not features & PROTOCOL_FEATURES:
            for ring in self.all:
                ring.enabled = True
        self.set_log(self._log)

    def set_log(self, log: DirtyLog | None) -> None:
        """Mark in ``log`` what the queues write, from the next completion on."""
        self._log = log
        for ring in self.all:
            ring.queue.set_log(log, self.features)
            self._start_when_ready(ring)

    def rebind(self) -> None:
        """Find running rings again after a change of memory; raises ``GuestMemoryError`` if one is gone."""
        for ring in self.all:
            if ring.queue.running and ring.address is not None:
                ring.queue.bind(ring.address)

    def stop(self, ring: Ring) -> None:
        """Finish what is in flight on a queue and let go of it."""
        if ring.queue.running:
            self._events.queue_stopping(ring)
            ring.base = ring.queue.stop()
        ring.failed = False

    def stop_all(self) -> None:
        """Finish what is in flight on every queue."""
        for ring in self.all:
            self.stop(ring)

    def reset(self) -> None:
        """Stop all queues and forget where they lie; they start when the front end sets them up again."""
        self.stop_all()
        for ring in self.all:
            ring.address = None
            ring.enabled = False

    def fail(self, ring: Ring) -> None:
        """The guest broke a queue: leave it alone until the front end sets it up again, and say so."""
        ring.failed = True
        if ring.error_descriptor is not None:
            try:
                os.eventfd_write(ring.error_descriptor, 1)
            except OSError:
                pass  # the front end gets no signal; whoever calls reports the failure all the same

    def close(self) -> None:
        """Close every descriptor and let go of the rings' memory; nothing may be in flight."""
        self._log = self.inflight = None
        for ring in self.all:
            ring.queue.set_log(None, 0)
            if ring.queue.running:
                ring.queue.stop()
            for descriptor in (ring.kick_descriptor, ring.queue.call_descriptor, ring.error_descriptor):
                _close(descriptor)
            ring.kick_descriptor = ring.queue.call_descriptor = ring.error_descriptor = None

    def _ring(self, index: int) -> Ring:
        if index >= len(self.all):
            raise ProtocolError(f"queue {index} does not exist; the device has {len(self.all)}")
        return self.all[index]

    def _stopped_ring(self, index: int) -> Ring:
        ring = self._ring(index)
        if ring.queue.running:
            raise ProtocolError(f"the front end changes queue {index} while it runs")
        return ring

    def _set_size(self, message: Message) -> None:
        index, size = parse_vring_state(message.payload)
        if not 0 < size <= MAX_QUEUE_SIZE or size & (size - 1):
            raise ProtocolError(f"queue {index} shall have size {size}, not a power of two up to 32768")
        self._stopped_ring(index).size = size

    def _set_base(self, message: Message) -> None:
        index, base = parse_vring_state(message.payload)
        if base > 0xFFFF:
            raise ProtocolError(f"queue {index} shall begin at {base}, which has more than 16 bits")
        self._stopped_ring(index).base = base

    def _set_address(self, message: Message) -> None:
        address = parse_vring_address(message.payload)
        ring = self._ring(address.index)
        ring.address = address
        if ring.queue.running:  # QEMU sends it again to switch logging of the used ring
            ring.queue.bind(address)

    def _get_base(self, message: Message) -> bytes:
        index, _ = parse_vring_state(message.payload)
        ring = self._ring(index)
        self.stop(ring)
        for descriptor in (ring.kick_descriptor, ring.queue.call_descriptor):
            _close(descriptor)
        ring.kick_descriptor = ring.queue.call_descriptor = None
        return build_vring_state(index, ring.base)

    def _take_descriptor(self, message: Message) -> tuple[Ring, int | None]:
        index, present = parse_vring_descriptor(message.payload)
        ring = self._ring(index)
        message.expect_descriptors(1 if present else 0)
        if not present:
            return ring, None
        if not _is_pollable(message.descriptors[0]):
            raise ProtocolError(f"the descriptor for queue {index} is not an event descriptor")
        os.set_blocking(message.descriptors[0], False)  # a peer must not be able to make us wait
        return ring, message.take_descriptor()

    def _set_kick(self, message: Message) -> None:
        ring, descriptor = self._take_descriptor(message)
        if descriptor is None:
            raise ProtocolError("the front end wants its queues polled; only kick descriptors are supported")
        self.stop(ring)
        _close(ring.kick_descriptor)
        ring.kick_descriptor = descriptor
        self._start_when_ready(ring)

    def _set_call(self, message: Message) -> None:
        ring, descriptor = self._take_descriptor(message)
        _close(ring.queue.call_descriptor)
        ring.queue.call_descriptor = descriptor
        if ring.queue.running:
            ring.queue.notify()  # what was published before this descriptor came

    def _set_error(self, message: Message) -> None:
        ring, descriptor = self._take_descriptor(message)
        _close(ring.error_descriptor)
        ring.error_descriptor = descriptor

    def _set_enable(self, message: Message) -> None:
        index, enable = parse_vring_state(message.payload)
        ring = self._ring(index)
        ring.enabled = bool(enable)
        if ring.enabled:
            self._start_when_ready(ring)
        else:
            self.stop(ring)

    def _start_when_ready(self, ring: Ring) -> None:
        """Start a queue as soon as it is enabled and its kick descriptor, size and addresses are known.

        During a migration QEMU starts the queues of a successor before it sends the log: they wait for it.
        """
        if ring.queue.running or not ring.enabled or ring.kick_descriptor is None or ring.address is None:
            return
        if self.features & LOG_ALL and self._log is None:
            return
        region = self._find_inflight(ring)
        ring.queue.start(ring.size, ring.address, self.features, ring.base, region)
        ring.queue.set_log(self._log, self.features)
        self._events.queue_started(ring)

    def _find_inflight(self, ring: Ring) -> QueueInflight | None:
        """The log of a queue; ``None`` for one that the guest made larger than the log.

        SeaBIOS does that (256 entries on a queue of 128). It has one request in flight, for which the index
        that the front end sends is as exact as a log.
        """
        if self.inflight is None:
            return None
        index = ring.queue.index
        if index >= self.inflight.queues:
            raise ProtocolError(f"the in-flight log has {self.inflight.queues} queues, no queue {index}")
        return self.inflight.regions[index] if ring.size <= self.inflight.queue_size else None


def _close(descriptor: int | None) -> None:
    if descriptor is not None:
        os.close(descriptor)


def _is_pollable(descriptor: int) -> bool:
    poller = select.epoll()
    try:
        poller.register(descriptor, select.EPOLLIN)
    except OSError:
        return False
    finally:
        poller.close()
    return True
