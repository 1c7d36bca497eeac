"""One ring: a queue and what the front end said about it, and both as a snapshot has them."""

from __future__ import annotations

import os
import select

from duovisor.channel.errors import ProtocolError
from duovisor.channel.inflight import CAPACITY_MIN, buffer_bytes, map_inflight
from duovisor.channel.messages import InflightDescription
from duovisor.channel.ring_state import RingState
from duovisor.channel.virtqueue import MAX_QUEUE_SIZE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from duovisor.channel.inflight import InflightLog, QueueInflight
    from duovisor.channel.messages import VringAddress
    from duovisor.channel.virtqueue import Virtqueue


class Ring:
    """A queue and what the front end said about it."""

    __slots__ = (
        "address",
        "base",
        "counted",
        "enabled",
        "error_descriptor",
        "failed",
        "kick_descriptor",
        "own_log",
        "own_log_descriptor",
        "queue",
        "size",
    )

    def __init__(self, queue: Virtqueue) -> None:
        self.queue = queue
        self.address: VringAddress | None = None
        self.size = 0
        self.base = 0
        self.counted = 0  # of the completed requests, those in the page
        self.enabled = False
        self.failed = False
        self.kick_descriptor: int | None = None
        self.error_descriptor: int | None = None
        self.own_log: InflightLog | None = None
        self.own_log_descriptor: int | None = None

    def close(self) -> None:
        """Close every descriptor."""
        for descriptor in (
            self.kick_descriptor, self.queue.call_descriptor, self.error_descriptor, self.own_log_descriptor
        ):  # fmt: skip
            close_descriptor(descriptor)
        self.kick_descriptor = self.queue.call_descriptor = None
        self.error_descriptor = self.own_log_descriptor = None
        self.own_log = None


def capture_ring(ring: Ring) -> RingState:
    """What is known about a ring; a queue that failed is as one that stopped, until it is set up anew."""
    queue, state = ring.queue, RingState()
    state.address, state.size = ring.address, ring.size
    state.base = queue.last_available if queue.running else ring.base
    state.enabled, state.failed = ring.enabled, ring.failed
    state.running = queue.running and not ring.failed
    state.kick, state.call = ring.kick_descriptor, queue.call_descriptor
    state.error, state.own_log = ring.error_descriptor, ring.own_log_descriptor
    return state


def check_ring(state: RingState) -> InflightLog | None:
    """Raise ``ProtocolError`` for a ring that cannot be; return its mapped log, if that is our own."""
    size, index = state.size, state.address.index if state.address is not None else 0
    if size > MAX_QUEUE_SIZE or size & (size - 1):
        raise ProtocolError(f"a snapshot says that queue {index} has size {size}")
    for descriptor in (state.kick, state.call, state.error):
        if descriptor is not None:
            check_event(descriptor, index)
    if state.own_log is None:
        return None
    made_for = max(size, CAPACITY_MIN)
    description = InflightDescription(buffer_bytes(1, made_for), 0, 1, made_for)
    return map_inflight(description, state.own_log, 1)


def region_of(log: InflightLog | None) -> QueueInflight | None:
    """The region of a log that was made for one ring."""
    return log.regions[0] if log is not None else None


def check_event(descriptor: int, index: int) -> None:
    """Raise ``ProtocolError`` for a descriptor that cannot be waited for; let it never make us wait."""
    if not _is_pollable(descriptor):
        raise ProtocolError(f"the descriptor for queue {index} is not an event descriptor")
    os.set_blocking(descriptor, False)


def _is_pollable(descriptor: int) -> bool:
    poller = select.epoll()
    try:
        poller.register(descriptor, select.EPOLLIN)
    except OSError:
        return False
    finally:
        poller.close()
    return True


def close_descriptor(descriptor: int | None) -> None:
    """Close a descriptor if there is one."""
    if descriptor is not None:
        os.close(descriptor)
