"""The pager: fills a guest's memory from a saved one while the guest already runs (userfaultfd, Linux 6.1).

Whoever maps the memory registers his mapping here first (``channel/on_demand.py``). A page that he touches
and that is missing makes him wait, and the pager hears of it: it fills the block around the page and wakes
him. In between it fills the rest, going on from where it was last asked. It fills through a mapping of its
own, with UFFDIO_COPY, which never replaces a page; a page of the file is then there for everybody. What is a
hole in the saved memory stays one until it is touched.
Sources: Documentation/admin-guide/mm/userfaultfd.rst, ioctl_userfaultfd(2), linux/userfaultfd.h.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import math
import mmap
import os
import socket
import time
from struct import Struct
from struct import error as StructError

from duovisor.channel.on_demand import DONE, MAPPING, REGISTERED, USERFAULTFD_IOC_NEW
from duovisor.controlling.drivers.errors import DriverError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from duovisor.channel.event_loop import EventLoop
    from duovisor.controlling.drivers.control import Packet

PAGE_BYTES = 4096
BLOCK_BYTES = 64 << 10
PIECE_BLOCKS = 4  # of what is filled unasked: who waits for another page waits no longer than that takes
EVENTS_PER_READ = 64
MAPPINGS_MAX = 64
PACE_MAX_S = 3600
_HOLE, _WANTED, _THERE = 0, 1, 2

# linux/userfaultfd.h
API, REGISTER, UNREGISTER, WAKE, COPY, ZEROPAGE = (
    0xC018AA3F, 0xC020AA00, 0x8010AA01, 0x8010AA02, 0xC028AA03, 0xC020AA04,
)  # fmt: skip
_API = Struct("=QQQ")  # api, features, ioctls
_RANGE = Struct("=QQ")
_REGISTER = Struct("=QQQQ")  # range, mode, ioctls
_COPY = Struct("=QQQQq")  # to, from, length, mode, what was done
_ZEROPAGE = Struct("=QQQq")  # range, mode, what was done
_EVENT = Struct("=B7xQQ8x")  # event, flags, address
_API_VERSION, _MODE_MISSING, _PAGEFAULT = 0xAA, 1, 0x12

_MADV_POPULATE_READ = 22  # asm-generic/mman-common.h, Linux 5.14
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


class Mapping:
    """A mapping of the memory in another process, whose faults come by ``descriptor``."""

    __slots__ = ("address", "descriptor", "offset", "size")

    def __init__(self, descriptor: int, address: int, size: int, offset: int) -> None:
        self.descriptor = descriptor
        self.address = address
        self.size = size
        self.offset = offset

    def wake(self, offset: int, size: int) -> None:
        """Let those go on who wait for a page of this part of the file."""
        start = max(offset, self.offset)
        end = min(offset + size, self.offset + self.size)
        if start < end:
            address = self.address + start - self.offset
            fcntl.ioctl(self.descriptor, WAKE, _RANGE.pack(address, end - start))


class Pager:
    """Fills ``memory`` from ``source``, two files of one size; owns its descriptors until ``close``.

    ``pace_s``: it waits so long after each piece that nobody has asked for, and does what it is asked to. The
    ``vmm``'s end is its own. ``tell`` is called when all is there. Raises ``OSError``.
    """

    def __init__(
        self, loop: EventLoop, given: dict[str, int], pace_s: float, tell: Callable[[], None]
    ) -> None:
        self._loop = loop
        self.pace_s = pace_s
        self._tell = tell
        self._source_file = given["source"]
        self._size = os.fstat(self._source_file).st_size
        if os.fstat(given["memory"]).st_size != self._size:
            raise DriverError("the saved memory has not the size of the guest's")
        self._clients: list[socket.socket] = []
        self._mappings: list[Mapping] = []
        self.vmm_is_gone = False
        self.faults = 0
        self._position = 0
        self._blocks = find_blocks(self._source_file, self._size)
        self._total = self._left = self._blocks.count(_WANTED)
        self._source = _libc.mmap(None, self._size, mmap.PROT_READ, mmap.MAP_SHARED, self._source_file, 0)
        if self._source in (None, ctypes.c_void_p(-1).value):
            raise DriverError(f"the saved memory cannot be mapped: {os.strerror(ctypes.get_errno())}")
        own = mmap.mmap(given["memory"], self._size)
        self._memory = ctypes.addressof(ctypes.c_char.from_buffer(own))
        self._own: mmap.mmap | None = own
        self._faults = open_userfaultfd(given["userfault"])
        _register(self._faults, self._memory, self._size)
        self.add(given["vmm"], is_vmm=True)

    def add(self, connection: int, *, is_vmm: bool = False) -> None:
        """Serve who registers his mappings on a connection, which is ours now."""
        client = socket.socket(fileno=connection)
        client.setblocking(False)
        self._clients.append(client)
        found: list[Mapping] = []
        self._loop.watch(client.fileno(), lambda: self._meet(client, found, is_vmm=is_vmm))

    def report(self) -> dict[str, Any]:
        """How far it has come, in bytes, and how often somebody waited for it."""
        there = (self._total - self._left) * BLOCK_BYTES
        return {"role": "pager", "total": self._total * BLOCK_BYTES, "there": there, "faults": self.faults}

    def run(self, is_stopped: Callable[[], bool]) -> None:
        """Fill the memory, and be there until the VMM is gone or somebody stops it. Raises ``OSError``."""
        filled_at = -math.inf
        while not (self.vmm_is_gone or is_stopped()):
            if not self._left:
                if self._own is not None:
                    self._finish()
                self._loop.turn()
            elif (wait_s := filled_at + self.pace_s - time.monotonic()) > 0:
                self._loop.turn(wait_s)
            else:
                self._fill_next()
                self._loop.turn(0)
                filled_at = time.monotonic()

    # Who maps the memory

    def _meet(self, client: socket.socket, found: list[Mapping], *, is_vmm: bool) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(client, MAPPING.size, 4)
        except BlockingIOError:
            return
        except OSError:
            data, descriptors = b"", []
        try:
            address, size, offset = MAPPING.unpack(data)
            self._take(Mapping(descriptors.pop(), address, size, offset), found)
            client.send(REGISTERED)
        except (StructError, IndexError, OSError, DriverError):  # it has ended, or is not what it should be
            self._part(client, found)
            self.vmm_is_gone |= is_vmm
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _take(self, mapping: Mapping, found: list[Mapping]) -> None:
        found.append(mapping)
        if len(found) > MAPPINGS_MAX:
            raise DriverError("too many mappings")
        if self._own is None:
            return  # all is there
        os.set_blocking(mapping.descriptor, False)
        _open_api(mapping.descriptor)
        _register(mapping.descriptor, mapping.address, mapping.size)
        self._mappings.append(mapping)
        self._loop.watch(mapping.descriptor, lambda: self._answer(mapping))

    def _part(self, client: socket.socket, found: list[Mapping]) -> None:
        self._loop.unwatch(client.fileno())
        self._clients.remove(client)
        client.close()
        for mapping in found:
            self._loop.unwatch(mapping.descriptor)
            os.close(mapping.descriptor)
            if mapping in self._mappings:
                self._mappings.remove(mapping)

    # Filling

    def _answer(self, mapping: Mapping) -> None:
        """Somebody waits for pages."""
        try:
            events = os.read(mapping.descriptor, EVENTS_PER_READ * _EVENT.size)
        except BlockingIOError:
            return
        except OSError:  # its process has ended
            self._loop.unwatch(mapping.descriptor)
            return
        for event, _, address in _EVENT.iter_unpack(events):
            offset = address - mapping.address + mapping.offset
            if event == _PAGEFAULT and 0 <= offset < self._size:
                self.faults += 1
                self._provide(mapping, offset)

    def _provide(self, mapping: Mapping, offset: int) -> None:
        block = offset // BLOCK_BYTES
        if self._blocks[block] == _HOLE:
            self._zero(offset - offset % PAGE_BYTES)
        else:
            if self._blocks[block] == _WANTED:
                self._fill(block, 1)
            self._position = block + 1
        mapping.wake(block * BLOCK_BYTES, BLOCK_BYTES)

    def _fill_next(self) -> None:
        """The next piece that nobody has asked for."""
        first = self._blocks.find(_WANTED, self._position)
        if first < 0:
            first = self._blocks.find(_WANTED)
        count = 1
        while count < PIECE_BLOCKS and self._blocks[first + count : first + count + 1] == b"\1":
            count += 1
        self._fill(first, count)
        self._position = first + count

    def _fill(self, first: int, count: int) -> None:
        start = first * BLOCK_BYTES
        end = min(start + count * BLOCK_BYTES, self._size)
        _libc.madvise(self._source + start, end - start, _MADV_POPULATE_READ)  # or COPY reads page by page
        while start < end:
            order = bytearray(_COPY.pack(self._memory + start, self._source + start, end - start, 0, 0))
            start += _do(self._faults, COPY, order, _COPY)
        for block in range(first, first + count):
            self._blocks[block] = _THERE
        self._left -= count

    def _zero(self, start: int) -> None:
        order = bytearray(_ZEROPAGE.pack(self._memory + start, PAGE_BYTES, 0, 0))
        while not _do(self._faults, ZEROPAGE, order, _ZEROPAGE):
            pass

    def _finish(self) -> None:
        """All is there: what is missing now are holes, which the kernel fills by itself."""
        for mapping in self._mappings:
            try:  # wakes who waits
                fcntl.ioctl(mapping.descriptor, UNREGISTER, _RANGE.pack(mapping.address, mapping.size))
            except OSError:  # unmapped, or its process has ended
                pass
            self._loop.unwatch(mapping.descriptor)
        self._mappings.clear()
        for client in self._clients:
            try:
                client.send(DONE)
            except OSError:  # it has ended, or does not read
                pass
        os.close(self._faults)
        self._own = None
        _libc.munmap(self._source, self._size)
        self._tell()


def parse_load(packet: Packet) -> tuple[dict[str, int], float]:
    """An order to load: its descriptors, by name, and the pace. Raises ``DriverError``."""
    pace_s = parse_pace(packet)
    given = packet.take_descriptors()
    if missing := {"source", "memory", "userfault", "vmm", "listener"} - set(given):
        raise DriverError(f"descriptors are missing: {', '.join(sorted(missing))}")
    return given, pace_s


def parse_pace(packet: Packet) -> float:
    """How long to wait after each piece, in seconds. Raises ``DriverError``."""
    pace_s = packet.message.get("pace_s", 0.0)
    if type(pace_s) not in (int, float) or not 0 <= pace_s <= PACE_MAX_S:
        raise DriverError(f"pace_s is {pace_s!r}, not a number from 0 to {PACE_MAX_S}")
    return float(pace_s)


def find_blocks(source: int, size: int) -> bytearray:
    """Which blocks of a saved memory have content: a byte for each."""
    blocks = bytearray(-(-size // BLOCK_BYTES))
    end = 0
    while end < size:
        try:
            start = os.lseek(source, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # a hole up to the end
                break
            raise
        end = os.lseek(source, start, os.SEEK_HOLE)
        first, last = start // BLOCK_BYTES, (end - 1) // BLOCK_BYTES
        blocks[first : last + 1] = bytes((_WANTED,)) * (last + 1 - first)
        end = (last + 1) * BLOCK_BYTES
    return blocks


def open_userfaultfd(maker: int) -> int:
    """One of this process's own, of the descriptor of /dev/userfaultfd. Raises ``OSError``."""
    descriptor = fcntl.ioctl(maker, USERFAULTFD_IOC_NEW, os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        _open_api(descriptor)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _open_api(descriptor: int) -> None:
    fcntl.ioctl(descriptor, API, bytearray(_API.pack(_API_VERSION, 0, 0)))


def _register(descriptor: int, address: int, size: int) -> None:
    fcntl.ioctl(descriptor, REGISTER, bytearray(_REGISTER.pack(address, size, _MODE_MISSING, 0)))


def _do(descriptor: int, request: int, order: bytearray, form: Struct) -> int:
    """Fill pages; how many bytes are there now, from the first. Raises ``OSError``."""
    try:
        fcntl.ioctl(descriptor, request, order)
    except OSError as error:
        if error.errno == errno.EEXIST:
            return PAGE_BYTES  # that page is there already
        if error.errno != errno.EAGAIN:  # it was interrupted, perhaps half-way
            raise
    return max(int(form.unpack(order)[-1]), 0)
