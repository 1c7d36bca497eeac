"""The back end's side of a vhost-user connection: each request, and the state that it changes.

Knows messages, features, memory and logs; ``rings`` knows the queues, and ``backend`` runs the event loop
around both.
"""

from __future__ import annotations

import os

from duovisor.channel.connection import request_name
from duovisor.channel.device import check_device, read_device_config
from duovisor.channel.dirty_log import map_dirty_log
from duovisor.channel.errors import ChannelError, DeviceError, ProtocolError
from duovisor.channel.features import (
    CHANNEL_FEATURES,
    CHANNEL_PROTOCOL_FEATURES,
    LOG_ALL,
    PROTOCOL_CONFIG,
    REFUSED_FEATURES,
)
from duovisor.channel.holdings import Holdings
from duovisor.channel.inflight import create_inflight, map_inflight
from duovisor.channel.memory import MAX_MEMORY_SLOTS, GuestMemory, map_region
from duovisor.channel.messages import (
    Request,
    build_config,
    build_inflight,
    build_u64,
    parse_config,
    parse_inflight,
    parse_u64,
)
from duovisor.channel.requests import parse_log, parse_memory_region, parse_memory_table
from duovisor.channel.rings import Rings
from duovisor.channel.snapshot import Snapshot
from duovisor.channel.virtqueue import MAX_QUEUE_SIZE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from duovisor.channel.connection import Connection, Message
    from duovisor.channel.device import VirtioDevice
    from duovisor.channel.dirty_log import DirtyLog
    from duovisor.channel.memory import MemoryRegion
    from duovisor.channel.messages import RegionDescription
    from duovisor.channel.ring import Ring
    from duovisor.channel.rings import QueueEvents

CONFIG_MIGRATION = 1
# After these a snapshot would say what the last one said.
_ONLY_ASKING = frozenset(
    {
        Request.GET_FEATURES,
        Request.SET_OWNER,
        Request.RESET_OWNER,
        Request.GET_PROTOCOL_FEATURES,
        Request.GET_QUEUE_NUM,
        Request.GET_CONFIG,
        Request.GET_INFLIGHT_FD,
        Request.GET_MAX_MEM_SLOTS,
        Request.GET_STATUS,
    }
)


def _ignore() -> None:
    """Tell nobody."""


def _ignore_line(_: str) -> None:
    """Report nothing."""


class Session:
    """The state of one connection; ``close`` releases all of it.

    ``changed`` is called after each message that changed the state, before its answer; ``report`` is told of
    a device that cannot say what its configuration is. Raises ``DeviceError`` for one that cannot be.
    """

    def __init__(
        self,
        connection: Connection,
        device: VirtioDevice,
        events: QueueEvents,
        changed: Callable[[], None] = _ignore,
        report: Callable[[str], None] = _ignore_line,
    ) -> None:
        check_device(device)
        self._config = read_device_config(device)
        self._report = report
        self.connection = connection
        self.device = device
        self.memory = GuestMemory()
        self.rings = Rings(device.queues, self.memory, events)
        self.status = 0
        self._changed = changed
        self._holdings = Holdings()
        self._protocol_features = 0
        self._log: DirtyLog | None = None
        self._device_state = b""
        self._handlers: dict[int, Callable[[Message], bytes | None]] = {
            **self.rings.handlers(),
            Request.GET_FEATURES: lambda _: build_u64(self.offered_features),
            Request.SET_FEATURES: self._set_features,
            Request.SET_OWNER: lambda _: None,
            Request.RESET_OWNER: lambda _: None,  # "recommended that back-ends ignore this message"
            Request.SET_MEM_TABLE: self._set_memory_table,
            Request.SET_LOG_BASE: self._set_log_base,
            Request.SET_LOG_FD: self._set_log_descriptor,
            Request.GET_PROTOCOL_FEATURES: lambda _: build_u64(CHANNEL_PROTOCOL_FEATURES),
            Request.SET_PROTOCOL_FEATURES: self._set_protocol_features,
            Request.GET_QUEUE_NUM: lambda _: build_u64(device.queues),
            Request.GET_CONFIG: self._get_config,
            Request.SET_CONFIG: self._set_config,
            Request.GET_INFLIGHT_FD: self._get_inflight,
            Request.SET_INFLIGHT_FD: self._set_inflight,
            Request.RESET_DEVICE: lambda _: self._reset_device(),
            Request.GET_MAX_MEM_SLOTS: lambda _: build_u64(MAX_MEMORY_SLOTS),
            Request.ADD_MEM_REG: self._add_memory_region,
            Request.REM_MEM_REG: self._remove_memory_region,
            Request.SET_STATUS: self._set_status,
            Request.GET_STATUS: lambda _: build_u64(self.status),
        }

    @property
    def offered_features(self) -> int:
        return CHANNEL_FEATURES | self.device.features

    def serve_message(self, message: Message) -> None:
        """Do what a message asks and answer it; raises ``ChannelError`` when the connection cannot go on."""
        try:
            handler = self._handlers.get(message.request)
            if handler is None:
                raise ProtocolError(f"the front end sent request {message.request}, which was not offered")
            payload = handler(message)
            if message.request not in _ONLY_ASKING:
                self._changed()
        except ChannelError:
            if message.needs_reply:
                self.connection.acknowledge(message, success=False)
            raise
        except OSError as error:  # this process has no descriptors or memory left
            raise ProtocolError(f"{request_name(message.request)} failed: {error.strerror}") from error
        finally:
            message.close()
        if payload is not None:
            self.connection.reply(message, payload)
        elif message.needs_reply:
            self.connection.acknowledge(message, success=True)

    def close(self) -> None:
        """Close every descriptor and let go of all memory; nothing may be in flight."""
        self.rings.close()
        self.memory.replace([])
        self._log = None
        self._holdings.close()

    # Succession

    def capture(self) -> Snapshot:
        """The state as it is now; its descriptors stay the session's."""
        snapshot = Snapshot(self.connection.fileno(), self._holdings, self.rings.capture())
        snapshot.features = self.rings.features
        snapshot.protocol_features = self._protocol_features
        snapshot.status = self.status
        snapshot.device_state = self.device.save_state()
        return snapshot

    def restore(self, snapshot: Snapshot) -> None:
        """Take over a state in a fresh session and map all of it, touching nothing: ``begin`` goes on.

        The descriptors of the snapshot are the session's afterwards, except for the connection. Raises
        ``ChannelError``, and takes nothing, when the state cannot be or does not fit the device.
        """
        missing = snapshot.features & ~self.offered_features
        if missing:
            raise ProtocolError(f"the predecessor's front end uses features {missing:#x}, which are missing")
        held = snapshot.holdings
        self.memory.replace([self._map(region, descriptor) for region, descriptor in held.regions])
        if held.log is not None:
            size, offset, descriptor = held.log
            self._log = map_dirty_log(descriptor, size, offset)
        if held.inflight is not None:
            self.rings.inflight = map_inflight(*held.inflight, self.device.queues)
        self.rings.features = snapshot.features
        self._check_log()
        self.rings.restore(snapshot.rings, self._log)
        self._protocol_features = snapshot.protocol_features
        self.status = snapshot.status
        self._device_state = snapshot.device_state
        self._holdings = held
        snapshot.holdings, snapshot.rings = Holdings(), []

    def begin(self) -> list[Ring]:
        """Tell the device about the restored state; return the rings that ``rings.start_restored`` starts."""
        self.device.set_features(self.rings.features)
        self.device.load_state(self._device_state)
        return self.rings.take_restored()

    # Features and status

    def _set_features(self, message: Message) -> None:
        features = parse_u64(message.payload)
        if features & REFUSED_FEATURES:
            raise ProtocolError(f"the front end insists on features {features & REFUSED_FEATURES:#x}")
        # QEMU also passes on what it negotiated on its own account (RING_RESET, NOTIFY_ON_EMPTY): not ours.
        features &= self.offered_features
        self.device.set_features(features)
        self.rings.features = features
        self._check_log()
        self.rings.set_features(features)

    def _set_protocol_features(self, message: Message) -> None:
        features = parse_u64(message.payload)
        unknown = features & ~CHANNEL_PROTOCOL_FEATURES
        if unknown:
            raise ProtocolError(f"the front end insists on protocol features {unknown:#x}")
        self._protocol_features = features

    def _set_status(self, message: Message) -> None:
        """Zero stops the queues and no more: QEMU 7.2 sends it to pause, before it asks where they are."""
        self.status = parse_u64(message.payload) & 0xFF
        if self.status == 0:
            self.rings.stop_all()

    def _reset_device(self) -> None:
        self.rings.reset()
        self.status = 0
        self.device.reset()

    # Memory

    def _map(self, description: RegionDescription, descriptor: int) -> MemoryRegion:
        region = map_region(description, descriptor)
        if self.device.on_demand is not None:
            self.device.on_demand.register(region.view, description.mmap_offset)
        return region

    def _set_memory_table(self, message: Message) -> None:
        descriptions = parse_memory_table(message.payload)
        message.expect_descriptors(len(descriptions))
        pairs = list(zip(descriptions, message.descriptors, strict=True))
        self.memory.replace([self._map(description, descriptor) for description, descriptor in pairs])
        message.descriptors = []
        self._holdings.replace_regions(pairs)
        self._memory_changed()

    def _add_memory_region(self, message: Message) -> None:
        message.expect_descriptors(1)
        description = parse_memory_region(message.payload)
        self.memory.add(self._map(description, message.descriptors[0]))
        self._holdings.regions.append((description, message.take_descriptor()))
        self._memory_changed()

    def _remove_memory_region(self, message: Message) -> None:
        description = parse_memory_region(message.payload)
        self.memory.remove(description)
        self._holdings.remove_region(description)
        self._memory_changed()

    def _memory_changed(self) -> None:
        self._check_log()
        self.rings.rebind()

    # Dirty log

    def _set_log_base(self, message: Message) -> bytes:
        size, offset = parse_log(message.payload)
        message.expect_descriptors(1)
        self._log = map_dirty_log(message.descriptors[0], size, offset)
        self._holdings.replace_log(size, offset, message.take_descriptor())
        self._check_log()
        self.rings.set_log(self._log)
        return build_u64(0)

    def _check_log(self) -> None:
        log = self._log
        if log is not None and self.rings.features & LOG_ALL and log.guest_end < self.memory.guest_end:
            raise ProtocolError(f"the dirty log ends before the guest's memory, at {log.guest_end:#x}")

    def _set_log_descriptor(self, message: Message) -> None:
        self._holdings.replace_log_signal(
            message.take_descriptor()
        )  # never signalled: QEMU reads the log itself

    # Configuration space

    def _get_config(self, message: Message) -> bytes:
        offset, flags, data = parse_config(message.payload)
        try:
            self._config = read_device_config(self.device)
        except DeviceError as error:  # ending here, in the middle of a message, would cost the connection
            self._report(f"{error.message}; the front end is told what it was before")
        return build_config(offset, flags, self._config[offset : offset + len(data)])

    def _set_config(self, message: Message) -> None:
        if not self._protocol_features & PROTOCOL_CONFIG:
            raise ProtocolError("the front end writes to the configuration space, which it did not negotiate")
        offset, flags, data = parse_config(message.payload)
        self.device.write_config(offset, data, migrating=bool(flags & CONFIG_MIGRATION))
        self.save_device_state()

    def save_device_state(self) -> None:
        """Keep what the device wants to be remembered for a successor on another connection."""
        if self.rings.inflight is not None:
            self.rings.inflight.save_device_state(self.device.save_state())

    # Requests in flight

    def _get_inflight(self, message: Message) -> None:
        wanted = parse_inflight(message.payload)
        if not 0 < wanted.queues <= self.device.queues or not 0 < wanted.queue_size <= MAX_QUEUE_SIZE:
            raise ProtocolError(f"an in-flight log for {wanted.queues} queues of {wanted.queue_size} entries")
        descriptor, description = create_inflight(wanted.queues, wanted.queue_size)
        try:
            payload = build_inflight(description)[: len(message.payload)]
            self.connection.reply(message, payload, (descriptor,))
        finally:
            os.close(descriptor)
        message.flags = 0  # answered with a descriptor, which no acknowledgement may follow

    def _set_inflight(self, message: Message) -> None:
        description = parse_inflight(message.payload)
        message.expect_descriptors(1)
        if self.rings.any_running:
            raise ProtocolError("the front end changes the in-flight log while queues run")
        inflight = map_inflight(description, message.descriptors[0], self.device.queues)
        self._holdings.replace_inflight(description, message.take_descriptor())
        self.rings.inflight = inflight
        state = inflight.load_device_state()
        if state is None:
            inflight.save_device_state(self.device.save_state())
        else:
            self.device.load_state(state)
