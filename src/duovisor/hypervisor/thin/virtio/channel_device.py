"""A device whose driver is in another process: what the guest agrees on is passed on to it.

A driver connects to the device's listening socket. It gets the guest's memory, the log of requests in flight
and, for each queue, the two eventfds: the guest's notifications and its interrupts then pass this process by.
When the driver dies, the next one to connect is told the same, and goes on exactly where the log says.
"""

from __future__ import annotations

import os
import select
import socket
import time

from duovisor.channel import features as bits
from duovisor.channel.errors import ChannelError, PeerClosedError, ProtocolError
from duovisor.channel.frontend_link import FrontEndLink
from duovisor.channel.messages import MAX_CONFIG_BYTES, RegionDescription, VringAddress
from duovisor.hypervisor.thin.virtio.inflight_state import restore_inflight, save_inflight
from duovisor.hypervisor.thin.virtio.queue import Queue
from duovisor.hypervisor.thin.virtio.registers import PASSED_FEATURES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from threading import RLock
    from typing import Any

    from duovisor.channel.event_loop import EventLoop
    from duovisor.channel.frontend_link import Inflight
    from duovisor.hypervisor.thin.ports import DeviceConfig, GuestMemory

ANSWER_TIMEOUT_S = 10.0  # of each request: a driver that stops a queue finishes what is in flight first
_PROTOCOL_FEATURES = bits.CHANNEL_PROTOCOL_FEATURES & ~bits.PROTOCOL_STATUS
_LOG_USED_RING = 1  # VHOST_VRING_F_LOG
# What a guest may write of a device type's configuration: offset and bytes. A driver takes anything else
# from a guest as an offence and ends; virtio 1.2, 5.2.4 (virtio-blk): writeback.
_WRITABLE_CONFIG = {2: (32, 1)}


class ChannelDevice:
    """Serves the device that ``config`` describes. ``lock`` is held by who calls, but for the event loop.

    ``tell`` is called when a driver comes or goes, ``config_changed`` when the guest must look again.
    """

    def __init__(
        self,
        config: DeviceConfig,
        memory: GuestMemory,
        loop: EventLoop,
        lock: RLock,
        tell: Callable[[str], None],
    ) -> None:
        self.virtio_type = config.virtio_type
        self.queues = [Queue(index, config.queue_size) for index in range(config.queues)]
        self.config = config.config or bytes(MAX_CONFIG_BYTES)
        self.generation = 0
        self.known = False
        self.config_call = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._description = config
        self._memory = memory
        self._loop = loop
        self._lock = lock
        self._tell = tell
        self._listener = socket.socket(fileno=config.socket)
        self._listener.setblocking(False)
        self._link: FrontEndLink | None = None
        self._driver_features = 0
        self._features = 0
        self._started = False
        self._paused = False
        self._inflight: Inflight | None = None
        self._log: tuple[int, int] | None = None
        loop.watch(config.socket, self._accept)

    # What the guest agrees on

    @property
    def offered(self) -> int:
        """The driver's features that pass the transport, and the VMM's own."""
        passed = self._driver_features & PASSED_FEATURES & ~self._description.hidden_features
        return passed | self._description.own_features | bits.VERSION_1

    def start(self, features: int) -> bool:
        """The guest has set the device up. False for a queue that is not in its memory."""
        if not all(queue.is_sound(self._memory) for queue in self.queues if queue.enabled):
            return False
        self._features = features
        self._started = True
        self._with_link(self._start_queues)
        return True

    def reset(self) -> None:
        """The guest, or the machine, resets the device."""
        if self._started:
            self._started = False
            self._with_link(self._stop_and_reset)
        self._features = 0
        self._forget_inflight()

    def write_config(self, offset: int, data: bytes) -> None:
        """The guest writes to the configuration space."""
        if (offset, len(data)) == _WRITABLE_CONFIG.get(self.virtio_type):
            self._with_link(lambda link: self._write_config(link, offset, data))

    def _write_config(self, link: FrontEndLink, offset: int, data: bytes) -> None:
        link.set_config(offset, data)
        self._read_config(link)

    # Drivers come and go

    def wait_driver(self, timeout_s: float) -> None:
        """Wait for the first driver, and what it offers; raises ``ChannelError``."""
        deadline_s = time.monotonic() + timeout_s
        poller = select.poll()
        poller.register(self._listener, select.POLLIN)
        while not self.known:
            if not poller.poll(max(deadline_s - time.monotonic(), 0) * 1000):
                name = self._description.name
                raise ProtocolError(f"no driver of {name} was there within {timeout_s:g} s")
            self._accept()

    def _accept(self) -> None:
        with self._lock:
            try:
                connected, _ = self._listener.accept()
            except OSError:
                return  # whoever came has thought better of it
            self._loop.unwatch(self._listener.fileno())  # one at a time; the next one waits in the queue
            self._link = FrontEndLink(connected, ANSWER_TIMEOUT_S)
            self._loop.watch(connected.fileno(), self._look)
            if self._with_link(self._greet):
                self._tell("driver connected")

    def _greet(self, link: FrontEndLink) -> None:
        """Agree with a driver that has just connected, and let it go on where the last one was."""
        offered = link.negotiate(_PROTOCOL_FEATURES, len(self.queues))
        wanted = self._features & ~self._description.own_features
        if wanted & ~offered:
            raise ProtocolError(f"the driver lacks features {wanted & ~offered:#x}, which the guest uses")
        self._driver_features = offered
        pieces = self._memory.pieces
        link.set_memory(
            [RegionDescription(p.guest_address, p.size, p.guest_address, p.file_offset) for p in pieces],
            [self._memory.descriptor] * len(pieces),
        )
        self._read_config(link)
        self.known = True
        if self._started and not self._paused:
            self._start_queues(link)

    def _look(self) -> None:
        """Nothing is expected from a driver that was asked nothing: it is the end, or an offence."""
        with self._lock:
            if self._link is None:
                return
            try:
                said = self._link.connection.socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            except BlockingIOError:
                return  # a vCPU has read it meanwhile
            except OSError:
                said = b""
            self._drop("it says what nobody asked for" if said else "it closed the connection")

    def _drop(self, why: str) -> None:
        """Let go of a driver; the next one finds in the log what was in flight."""
        if self._link is None:
            return
        self._loop.unwatch(self._link.connection.fileno())
        self._link.connection.shut_down()
        self._link.close()
        self._link = None
        self._loop.watch(self._listener.fileno(), self._accept)
        self._tell(f"driver lost: {why}")

    def _with_link(self, work: Callable[[FrontEndLink], None]) -> bool:
        """Talk to the driver, if there is one; one that cannot follow is dropped. Whether all went well."""
        if self._link is None:
            return False
        try:
            work(self._link)
        except PeerClosedError:
            self._drop("it closed the connection")
        except ChannelError as error:
            self._drop(error.message)
        return self._link is not None

    def _read_config(self, link: FrontEndLink) -> None:
        """Ask what the device's configuration is now; tell the guest when it is another than before."""
        if self._description.config or not link.protocol_features & bits.PROTOCOL_CONFIG:
            return
        config = link.get_config(0, MAX_CONFIG_BYTES)
        if config != self.config:
            self.config = config
            self.generation += 1
            if self._started:
                os.eventfd_write(self.config_call, 1)

    def release(self) -> int | None:
        """Give the connection away, driver and all: another process goes on with it, by ``adopt``.

        For a paused device. The caller owns the descriptor; ``None`` when there is no driver.
        """
        link, self._link = self._link, None
        if link is None:
            return None
        self._loop.unwatch(link.connection.fileno())
        return link.connection.socket.detach()

    def adopt(self, descriptor: int, saved: dict[str, Any]) -> None:
        """Go on with a connection that another process, which saved this state, has released.

        The descriptor is the device's afterwards. Raises ``ValueError``, ``KeyError`` or ``TypeError``, and
        takes nothing.
        """
        driver_features = int(saved["driver"]["features"])
        protocol_features = int(saved["driver"]["protocol_features"])
        try:
            connected = socket.socket(fileno=descriptor)
        except OSError as error:
            raise ValueError(f"a connection that is no socket: {error.strerror}") from error
        if self._link is not None or connected.family != socket.AF_UNIX:
            connected.detach()
            raise ValueError("a driver is connected already, or this is none")
        self._loop.unwatch(self._listener.fileno())
        self._driver_features, self.known = driver_features, True
        self._link = FrontEndLink(connected, ANSWER_TIMEOUT_S)
        self._link.protocol_features = protocol_features
        self._loop.watch(descriptor, self._look)

    # Queues

    def _start_queues(self, link: FrontEndLink) -> None:
        link.begin_row()  # it may be in a guest's pause
        self._set_features(link)
        if self._inflight is None:
            self._inflight = link.get_inflight(len(self.queues), self._description.queue_size)
        if self._inflight is not None:
            link.set_inflight(self._inflight)
        for queue in self.queues:
            if queue.enabled:
                base = queue.read_used_index(self._memory) if queue.base is None else queue.base
                queue.base = None
                link.start_queue(self._address(queue), queue.size, base, queue.kick, queue.call)
                if self._driver_features & bits.PROTOCOL_FEATURES:
                    link.enable_queue(queue.index)
        link.end_row()

    def _set_features(self, link: FrontEndLink) -> None:
        if self._log is not None:
            link.set_log(*self._log)
        own = self._description.own_features
        features = self._features & ~own | self._driver_features & bits.PROTOCOL_FEATURES
        link.set_features(features | (bits.LOG_ALL if self._log is not None else 0))

    def _address(self, queue: Queue) -> VringAddress:
        """Where a ring lies; the addresses that this side calls its own are the guest's."""
        flags = _LOG_USED_RING if self._log is not None else 0
        return VringAddress(queue.index, flags, queue.descriptors, queue.used, queue.available, queue.used)

    def _stop_queues(self, link: FrontEndLink) -> None:
        for queue in self.queues:
            if queue.enabled and queue.base is None:
                queue.base = link.stop_queue(queue.index)

    def _stop_and_reset(self, link: FrontEndLink) -> None:
        self._stop_queues(link)
        link.reset_device()
        self._read_config(link)

    def _forget_inflight(self) -> None:
        if self._inflight is not None:
            os.close(self._inflight[0])
            self._inflight = None

    # The machine's life

    def pause(self) -> None:
        """Stop the queues; what is in flight is finished first, or stays in the log."""
        if self._started and not self._paused:
            self._with_link(self._stop_queues)
        self._paused = True

    def resume(self) -> None:
        """Let the queues go on."""
        self._paused = False
        if self._started:
            self._with_link(self._start_queues)

    def set_log(self, log: tuple[int, int] | None) -> None:
        """Let drivers note every page that they write, in a file of so many bytes, or no longer.

        ``log`` is size and descriptor: one bit for each page of 4 KiB of guest addresses from 0.
        """
        self._log = log
        if self._started and not self._paused:
            self._with_link(self._switch_log)

    def _switch_log(self, link: FrontEndLink) -> None:
        self._set_features(link)
        for queue in self.queues:
            if queue.enabled:
                link.set_address(self._address(queue))

    def close(self) -> None:
        """Close everything, the listening socket too."""
        with self._lock:
            self._drop("the machine ends")
            self._loop.unwatch(self._listener.fileno())
            self._listener.close()
            self._forget_inflight()
            os.close(self.config_call)
            for queue in self.queues:
                queue.close()

    def save(self) -> dict[str, Any]:
        """What a paused device knows beside its registers."""
        return {
            "config": self.config.hex(),
            "generation": self.generation,
            "inflight": None if self._inflight is None else save_inflight(self._inflight),
            "driver": {
                "features": self._driver_features,
                "protocol_features": 0 if self._link is None else self._link.protocol_features,
            },
        }

    def restore(self, saved: dict[str, Any], features: int, *, started: bool) -> None:
        """Take what ``save`` returned, in a device that was just made; it is paused afterwards.

        Raises ``ValueError``, ``KeyError`` or ``TypeError`` for what is none.
        """
        config = bytes.fromhex(saved["config"])
        if len(config) != len(self.config):
            raise ValueError(f"a configuration of {len(config)} bytes")
        if started and not all(queue.is_sound(self._memory) for queue in self.queues if queue.enabled):
            raise ValueError("a queue that is not in the guest's memory")
        if self.known and features & ~self.offered:
            raise ValueError(f"the driver lacks features {features & ~self.offered:#x}, which the guest uses")
        self._forget_inflight()
        if saved["inflight"] is not None:
            self._inflight = restore_inflight(saved["inflight"])
        self.generation = int(saved["generation"]) + (self.known and config != self.config)
        if not self.known:
            self.config = config
        self._features, self._started, self._paused = features, started, True
