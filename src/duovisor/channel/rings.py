"""The queues of one connection: what the front end says about each ring, and when it starts and stops."""

from __future__ import annotations

import os

from duovisor.channel.errors import ProtocolError
from duovisor.channel.features import LOG_ALL, PROTOCOL_FEATURES
from duovisor.channel.inflight import create_inflight, map_inflight
from duovisor.channel.messages import Request, build_vring_state, parse_vring_state
from duovisor.channel.requests import parse_vring_address, parse_vring_descriptor
from duovisor.channel.ring import Ring, capture_ring, check_event, check_ring, close_descriptor, region_of
from duovisor.channel.virtqueue import MAX_QUEUE_SIZE, Virtqueue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from duovisor.channel.connection import Message
    from duovisor.channel.dirty_log import DirtyLog
    from duovisor.channel.inflight import InflightLog, QueueInflight
    from duovisor.channel.memory import GuestMemory
    from duovisor.channel.ring_state import RingState

    class QueueEvents(Protocol):
        """Who works on the queues."""

        def queue_started(self, ring: Ring) -> None:
            """The queue runs; its kick descriptor may be waited for."""

        def queue_stopping(self, ring: Ring) -> None:
            """Finish what is in flight and let go of the kick descriptor, which is closed afterwards."""


class Rings:
    """All queues of a device. The session sets ``features`` and ``inflight`` when they are negotiated."""

    def __init__(self, count: int, memory: GuestMemory, events: QueueEvents) -> None:
        self.all = [Ring(Virtqueue(index, memory)) for index in range(count)]
        self.features = 0
        self.inflight: InflightLog | None = None
        self._log: DirtyLog | None = None
        self._events = events
        self.to_start: list[Ring] = []

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
            ring.close()

    # Succession

    def capture(self) -> list[RingState]:
        """What is known about each ring."""
        return [capture_ring(ring) for ring in self.all]

    def restore(self, states: list[RingState], log: DirtyLog | None) -> None:
        """Take over what ``capture`` returned elsewhere, and its descriptors; start nothing.

        Raises ``ProtocolError``, and takes nothing, for what cannot be.
        """
        if len(states) != len(self.all):
            raise ProtocolError(f"the predecessor has {len(states)} queues, this device {len(self.all)}")
        own_logs = [check_ring(state) for state in states]
        self._log = log
        for ring, state, own_log in zip(self.all, states, own_logs, strict=True):
            ring.address, ring.size, ring.base = state.address, state.size, state.base
            ring.enabled, ring.failed = state.enabled, state.failed
            ring.kick_descriptor, ring.queue.call_descriptor = state.kick, state.call
            ring.error_descriptor, ring.own_log_descriptor = state.error, state.own_log
            ring.own_log = own_log
        self.to_start = [ring for ring, state in zip(self.all, states, strict=True) if state.running]

    def take_restored(self) -> list[Ring]:
        """The rings that ran at the capture, for ``start_restored``."""
        rings, self.to_start = self.to_start, []
        return rings

    def start_restored(self, ring: Ring) -> None:
        """Start a ring again, and signal the guest: the predecessor may have died just before it could."""
        self._start(ring, self._find_log(ring) or region_of(ring.own_log))
        ring.queue.notify()

    def restart(self, ring: Ring) -> None:
        """Begin again with a running queue, as a successor would: with what its log says is in flight."""
        self._events.queue_stopping(ring)
        ring.queue.stop()
        self.start_restored(ring)

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
            close_descriptor(descriptor)
        ring.kick_descriptor = ring.queue.call_descriptor = None
        return build_vring_state(index, ring.base)

    def _take_descriptor(self, message: Message) -> tuple[Ring, int | None]:
        index, present = parse_vring_descriptor(message.payload)
        ring = self._ring(index)
        message.expect_descriptors(1 if present else 0)
        if not present:
            return ring, None
        check_event(message.descriptors[0], index)
        return ring, message.take_descriptor()

    def _set_kick(self, message: Message) -> None:
        ring, descriptor = self._take_descriptor(message)
        if descriptor is None:
            raise ProtocolError("the front end wants its queues polled; only kick descriptors are supported")
        self.stop(ring)
        close_descriptor(ring.kick_descriptor)
        ring.kick_descriptor = descriptor
        self._start_when_ready(ring)

    def _set_call(self, message: Message) -> None:
        ring, descriptor = self._take_descriptor(message)
        close_descriptor(ring.queue.call_descriptor)
        ring.queue.call_descriptor = descriptor
        if ring.queue.running:
            ring.queue.notify()  # what was published before this descriptor came

    def _set_error(self, message: Message) -> None:
        ring, descriptor = self._take_descriptor(message)
        close_descriptor(ring.error_descriptor)
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
        if not ring.size:
            raise ProtocolError(f"queue {ring.queue.index} shall start, but has size 0")
        self._start(ring, self._find_log(ring) or self._make_own_log(ring))

    def _start(self, ring: Ring, region: QueueInflight | None) -> None:
        if ring.address is None:
            raise ProtocolError(f"queue {ring.queue.index} has no addresses")
        ring.queue.start(ring.size, ring.address, self.features, ring.base, region)
        ring.queue.set_log(self._log, self.features)
        ring.queue.log_used_ring()
        self._events.queue_started(ring)

    def _make_own_log(self, ring: Ring) -> QueueInflight | None:
        """A fresh log of ours for a queue for which the front end holds none: a successor gets it from us."""
        close_descriptor(ring.own_log_descriptor)
        ring.own_log_descriptor, description = create_inflight(1, ring.size)
        ring.own_log = map_inflight(description, ring.own_log_descriptor, 1)
        return region_of(ring.own_log)

    def _find_log(self, ring: Ring) -> QueueInflight | None:
        """The front end's log of a queue; ``None`` for one that the guest made larger than the log.

        SeaBIOS does that (256 entries on a queue of 128). It has one request in flight, for which the index
        that the front end sends on a new connection is as exact as a log.
        """
        if self.inflight is None:
            return None
        index = ring.queue.index
        if index >= self.inflight.queues:
            raise ProtocolError(f"the in-flight log has {self.inflight.queues} queues, no queue {index}")
        return self.inflight.regions[index] if ring.size <= self.inflight.queue_size else None
