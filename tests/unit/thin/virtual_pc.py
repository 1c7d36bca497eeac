"""A machine without processors: buses, interrupts and memory around real devices, and a guest on top.

The event loop runs in a thread of its own, as the VMM's main thread; the test is a vCPU.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import socket
import threading
import time
from typing import TYPE_CHECKING

from tests.unit.channel.echo_device import EchoDevice

from duovisor.channel.backend import Backend
from duovisor.channel.errors import ChannelError
from duovisor.channel.event_loop import EventLoop
from duovisor.channel.frontend import make_memory_file
from duovisor.channel.frontend_queue import FrontEndQueue, ring_bytes
from duovisor.hypervisor.thin.bus import Bus
from duovisor.hypervisor.thin.devices import VirtioDevice
from duovisor.hypervisor.thin.pci.bus import CONFIG_PORTS, CONFIG_PORTS_BYTES, PciBus
from duovisor.hypervisor.thin.ports import DeviceConfig, GuestMemory, MemoryPiece, Platform

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from duovisor.channel.device import VirtioDevice as DriverDevice

SLOT = 0x10
MEMORY_BYTES = 1 << 20
HIGH = 1 << 32
QUEUE_SIZE = 8
TIMEOUT_S = 60.0
COMMON, DEVICE, NOTIFY, TABLE, PENDING = 0x0000, 0x2000, 0x3000, 0x4000, 0x5000
ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET = 1, 2, 4, 8, 64
MESSAGE = 0xFEE00000


class FakeInterrupts:
    """Does with eventfds what KVM does: one that is attached sends its message, then or later."""

    def __init__(self) -> None:
        self.routes: dict[int, tuple[int, int]] = {}
        self.attached: set[tuple[int, int]] = set()
        self._next = 24

    def allocate(self) -> int:
        self._next += 1
        return self._next - 1

    def route(self, gsi: int, address: int, data: int) -> None:
        self.routes[gsi] = (address, data)

    def unroute(self, gsi: int) -> None:
        del self.routes[gsi]

    def attach(self, gsi: int, eventfd: int) -> None:
        assert gsi in self.routes, "what waits would be lost"
        assert eventfd not in {each for _, each in self.attached}
        self.attached.add((gsi, eventfd))

    def detach(self, gsi: int, eventfd: int) -> None:
        self.attached.remove((gsi, eventfd))

    def take(self, timeout_s: float = TIMEOUT_S) -> list[int]:
        """The data of the messages that were sent, waiting for the first one."""
        poller = select.poll()
        gsis = {eventfd: gsi for gsi, eventfd in self.attached}
        for eventfd in gsis:
            poller.register(eventfd, select.POLLIN)
        sent = []
        for eventfd, _ in poller.poll(timeout_s * 1000):
            os.eventfd_read(eventfd)
            sent.append(self.routes[gsis[eventfd]][1])
        return sorted(sent)


class FakeNotifications:
    """Addresses whose writes are counted."""

    def __init__(self) -> None:
        self.attached: dict[int, int] = {}

    def attach(self, address: int, eventfd: int) -> None:
        assert address not in self.attached
        self.attached[address] = eventfd

    def detach(self, address: int, eventfd: int) -> None:
        assert self.attached.pop(address) == eventfd


class Pc:
    """A machine with one device in slot ``SLOT``; its memory lies in two pieces of ``MEMORY_BYTES``."""

    def __init__(
        self, folder: Path, config: DeviceConfig | None = None, *, memory: int | None = None
    ) -> None:
        self.path = folder / f"device{next(_numbers)}.sock"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.path))
        listener.listen()
        self.descriptor = make_memory_file("guest", 2 * MEMORY_BYTES) if memory is None else os.dup(memory)
        self.memory = memoryview(mmap.mmap(self.descriptor, 2 * MEMORY_BYTES))
        self.space, self.ports = Bus(), Bus()
        self.interrupts, self.notifications = FakeInterrupts(), FakeNotifications()
        self.loop = EventLoop()
        self.told: list[str] = []
        pieces = MemoryPiece(0, MEMORY_BYTES, 0), MemoryPiece(HIGH, MEMORY_BYTES, MEMORY_BYTES)
        platform = Platform(
            self.space, self.ports, self.interrupts, self.notifications,
            GuestMemory(self.descriptor, pieces), self.loop, lambda _, what: self.told.append(what),
        )  # fmt: skip
        wanted = config or DeviceConfig("echo", EchoDevice.device_id, -1, SLOT, 2, QUEUE_SIZE)
        self.bus = PciBus(self.space)
        self.ports.add(CONFIG_PORTS, CONFIG_PORTS_BYTES, self.bus)
        self.device = VirtioDevice(wanted._replace(socket=listener.detach()), platform, self.bus)
        self._ends = False
        self._thread = threading.Thread(target=self._run)

    def connect(self, device: DriverDevice) -> RunningDriver:
        """The first driver; from now on the main thread runs."""
        driver = RunningDriver(self, device)
        self.device.wait_driver(TIMEOUT_S)
        self.run()
        return driver

    def run(self) -> None:
        """Begin with the main thread."""
        self._thread.start()

    def _run(self) -> None:
        while not self._ends:
            self.loop.turn()

    def close(self) -> None:
        self._ends = True
        self.loop.wake()
        if self._thread.ident is not None:
            self._thread.join(TIMEOUT_S)
        assert not self._thread.is_alive()
        self.device.close()
        self.loop.close()
        assert not self.notifications.attached
        os.close(self.descriptor)

    def wait(self, condition: Callable[[], bool]) -> None:
        """Let the main thread go on until something holds."""
        deadline_s = time.monotonic() + TIMEOUT_S
        while not condition() and time.monotonic() < deadline_s:
            time.sleep(0.001)
        assert condition()

    # Configuration space

    def read_pci(self, offset: int, size: int = 4, *, slot: int = SLOT) -> int:
        self.ports.write(CONFIG_PORTS, 4, 1 << 31 | slot << 11 | offset & 0xFC)
        return self.ports.read(CONFIG_PORTS + 4 + (offset & 3), size)

    def write_pci(self, offset: int, size: int, value: int, *, slot: int = SLOT) -> None:
        self.ports.write(CONFIG_PORTS, 4, 1 << 31 | slot << 11 | offset & 0xFC)
        self.ports.write(CONFIG_PORTS + 4 + (offset & 3), size, value)

    def capabilities(self) -> list[tuple[int, int]]:
        """Identifier and place of each capability."""
        found, place = [], self.read_pci(0x34, 1)
        while place:
            found.append((self.read_pci(place, 1), place))
            place = self.read_pci(place + 1, 1)
        return found

    def device_base(self) -> int:
        """Where the BAR is mapped, as the queues' notifications tell."""
        return min(self.notifications.attached) - NOTIFY

    @property
    def base(self) -> int:
        return self.read_pci(0x10) & ~0xF

    def enable(self) -> None:
        """Switch on memory accesses and MSI-X, with one message for each vector."""
        self.write_pci(4, 2, 6)
        place = dict(self.capabilities())[0x11]
        for vector in range((self.read_pci(place + 2, 2) & 0x7FF) + 1):
            self.set_message(vector, 0x40 + vector)
        self.write_pci(place + 2, 2, 0x8000)

    def set_message(self, vector: int, data: int, *, masked: bool = False) -> None:
        entry = TABLE + 16 * vector
        for offset, value in ((0, MESSAGE), (4, 0), (8, data), (12, int(masked))):
            self.write(entry + offset, 4, value)

    # The BAR

    def read(self, offset: int, size: int) -> int:
        return self.space.read(self.base + offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        self.space.write(self.base + offset, size, value)

    def notify(self, index: int) -> None:
        """Kick a queue as KVM does it."""
        os.eventfd_write(self.notifications.attached[self.base + NOTIFY + 4 * index], 1)

    @property
    def status(self) -> int:
        return self.read(0x14, 1)


class GuestDriver:
    """A guest's driver of the echo device: sets it up, sends, and takes the answers."""

    def __init__(self, pc: Pc, *, queues: int = 2, high: bool = False) -> None:
        self.pc = pc
        self.start = HIGH if high else 0
        self.view = pc.memory[MEMORY_BYTES:] if high else pc.memory[:MEMORY_BYTES]
        self.queues = []
        for index in range(queues):
            place = 0x1000 * (index + 1)
            view = self.view[place : place + ring_bytes(QUEUE_SIZE)]
            self.queues.append(FrontEndQueue(index, QUEUE_SIZE, view, self.start + place))
        self._next = 0x8000

    def close(self) -> None:
        for queue in self.queues:
            queue.close()

    def negotiate(self, *, features: int | None = None) -> int:
        """Steps 1 to 6 of virtio 1.2, 3.1.1; the features that were offered."""
        pc = self.pc
        pc.write(0x14, 1, 0)
        assert pc.status == 0
        pc.write(0x14, 1, ACKNOWLEDGE)
        pc.write(0x14, 1, ACKNOWLEDGE | DRIVER)
        offered = 0
        for select_word in range(2):
            pc.write(0x00, 4, select_word)
            offered |= pc.read(0x04, 4) << 32 * select_word
        chosen = offered if features is None else features
        for select_word in range(2):
            pc.write(0x08, 4, select_word)
            pc.write(0x0C, 4, chosen >> 32 * select_word & 0xFFFFFFFF)
        pc.write(0x14, 1, ACKNOWLEDGE | DRIVER | FEATURES_OK)
        for queue in self.queues:
            queue.set_features(chosen)
        return offered

    def set_up(self, *, features: int | None = None) -> None:
        """The whole of 3.1.1."""
        pc = self.pc
        self.negotiate(features=features)
        assert pc.status & FEATURES_OK
        pc.write(0x10, 2, 0)
        for queue in self.queues:
            pc.write(0x16, 2, queue.index)
            pc.write(0x18, 2, QUEUE_SIZE)
            pc.write(0x1A, 2, queue.index + 1)
            for offset, address in (
                (0x20, queue.guest_address), (0x28, queue.available_address), (0x30, queue.used_address)
            ):  # fmt: skip
                pc.write(offset, 4, address & 0xFFFFFFFF)
                pc.write(offset + 4, 4, address >> 32)
            pc.write(0x1C, 2, 1)
        pc.write(0x14, 1, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK)

    def submit(self, data: bytes, *, queue: int = 0) -> memoryview:
        """Send a request; the memory where the answer will be."""
        side, place = self.queues[queue], self._next
        self._next += 2 * len(data)
        self.view[place : place + len(data)] = data
        answer = self.view[place + len(data) : place + 2 * len(data)]
        address = self.start + place
        side.submit(side.prepare([(address, len(data))], [(address + len(data), len(data))]))
        return answer

    def reap(self, *, queue: int = 0) -> int:
        """Take what is done, waiting for an interrupt of the queue; how many requests that is."""
        side, deadline_s = self.queues[queue], time.monotonic() + TIMEOUT_S
        while not (side.has_used() or side.enable_interrupts()):
            assert time.monotonic() < deadline_s
            self.pc.interrupts.take(0.01)
        reaped = side.reap()
        for head, _ in reaped:
            side.release(head)
        return len(reaped)

    def echo(self, data: bytes, *, queue: int = 0) -> bytes:
        """Send a request and wait for its answer."""
        answer = self.submit(data, queue=queue)
        self.pc.notify(queue)
        assert self.reap(queue=queue) == 1
        return bytes(answer)


class RunningDriver:
    """A driver that connects to a device's socket and serves it in a thread."""

    def __init__(self, pc: Pc, device: DriverDevice) -> None:
        self.device = device
        self.error: ChannelError | None = None
        self._connected = socket.socket(socket.AF_UNIX)
        self._connected.connect(str(pc.path))
        self._keep = self._connected.dup()
        self.backend = Backend(self._connected, device)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.backend.run()
        except ChannelError as error:
            self.error = error

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def kill(self) -> None:
        """End the connection, as the death of the process does."""
        with contextlib.suppress(OSError):
            self._keep.shutdown(socket.SHUT_RDWR)
        self.join()

    def stop(self) -> None:
        """Finish and end."""
        self.backend.stop()
        self.join()

    def join(self) -> None:
        self._thread.join(TIMEOUT_S)
        assert not self._thread.is_alive(), "the driver hangs"
        self._keep.close()


def count_up() -> Iterator[int]:
    number = 0
    while True:
        yield number
        number += 1


_numbers = count_up()
