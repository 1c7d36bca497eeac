"""A guest writes what it likes; every chain is what a plain reading of the specification says, or refused."""

from __future__ import annotations

import struct

from tests.fuzz.input_bytes import InputBytes

from duovisor.channel.chain import INDIRECT, MAX_CHAIN_BYTES, MAX_CHAIN_LENGTH, NEXT, WRITE, Chain
from duovisor.channel.errors import ChannelError, QueueError
from duovisor.channel.features import RING_EVENT_IDX, RING_INDIRECT_DESC
from duovisor.channel.inflight import QueueInflight, region_bytes
from duovisor.channel.memory import GuestMemory, MemoryRegion
from duovisor.channel.messages import VringAddress
from duovisor.channel.virtqueue import Virtqueue

GUARD = 0x1000
MEMORY_BYTES = 0x6000
GUEST = 0x10000
USER = 0x7F0000000000
TABLE, AVAILABLE, USED, INDIRECT_TABLES, DATA = 0, 0x200, 0x400, 0x800, 0x2000
STEPS = 60
DESCRIPTOR = struct.Struct("=QIHH")
ADDRESSES = (GUEST + DATA, GUEST + INDIRECT_TABLES, GUEST, GUEST + 0x4000, GUEST + MEMORY_BYTES, 0)
LENGTHS = (16, 1, 512, 48, 32, 4096, 16 * MAX_CHAIN_LENGTH)
SIZES = (8, 4, 16, 1)


class RefusedError(Exception):
    """The specification, or a limit of ours, forbids this chain."""


class Sides:
    """Guest memory between two guards, and the device side of one queue."""

    def __init__(self, source: InputBytes) -> None:
        self.whole = bytearray(b"\xa5" * (MEMORY_BYTES + 2 * GUARD))
        self.view = memoryview(self.whole)[GUARD : GUARD + MEMORY_BYTES]
        self.view[:] = bytes(MEMORY_BYTES)
        cut = source.choose((0, 0x4000, DATA + 8, INDIRECT_TABLES + 40))
        parts = [(0, cut), (cut, MEMORY_BYTES)] if cut else [(0, MEMORY_BYTES)]
        self.memory = GuestMemory(
            [MemoryRegion(GUEST + low, USER + 2 * low, self.view[low:high]) for low, high in parts]
        )
        self.size = source.choose(SIZES)
        self.features = source.choose(
            (RING_INDIRECT_DESC | RING_EVENT_IDX, RING_INDIRECT_DESC, RING_EVENT_IDX, 0)
        )
        self.log = QueueInflight(memoryview(bytearray(region_bytes(self.size))), self.size)
        self.queue = Virtqueue(0, self.memory)
        self.taken: list[Chain] = []
        self.shared = bool(source.number(1) & 1)
        self.start(0)

    def start(self, base: int) -> None:
        """(Re)start the device side; requests that it had are forgotten, or in the log."""
        address = VringAddress(0, 0, USER + TABLE, USER + USED, USER + AVAILABLE, 0)
        self.taken = []
        if self.queue.running:
            self.queue.stop()
        self.queue = Virtqueue(0, self.memory)
        self.queue.start(self.size, address, self.features, base, self.log if self.shared else None)

    def word(self, offset: int) -> int:
        found: int = struct.unpack_from("=H", self.view, offset)[0]
        return found


def write_descriptor(sides: Sides, source: InputBytes) -> None:
    where = source.choose((TABLE, INDIRECT_TABLES, INDIRECT_TABLES + 0x100)) + 16 * (source.number(1) % 20)
    address, length = source.edge(64, ADDRESSES), source.edge(32, LENGTHS)
    flags, following = source.edge(16, (0, 1, 2, 3, 4, 5)), source.edge(16, (1, 2, 3, 0))
    DESCRIPTOR.pack_into(sides.view, where, address, length, flags, following)


def write_request(sides: Sides, source: InputBytes) -> None:
    """A storage request as guests make it, in an indirect table, with a number or two to taste."""
    head, table = source.number(1) % sides.size, INDIRECT_TABLES + 0x100 * (source.number(1) % 4)
    DESCRIPTOR.pack_into(sides.view, TABLE + 16 * head, GUEST + table, 48, INDIRECT, 0)
    kind = source.choose((NEXT | WRITE, NEXT))
    for place, (offset, length, flags) in enumerate(((0, 16, NEXT), (0x1000, 512, kind), (0x800, 1, WRITE))):
        DESCRIPTOR.pack_into(
            sides.view, table + 16 * place, GUEST + DATA + offset, length, flags, (place + 1) % 3
        )
    for _ in range(source.number(1) % 3):
        place = table + 16 * (source.number(1) % 3)
        address, length, flags, following = DESCRIPTOR.unpack_from(sides.view, place)
        field = source.number(1) % 4
        if field == 0:
            address = source.edge(64, ADDRESSES)
        elif field == 1:
            length = source.edge(32, LENGTHS)
        elif field == 2:
            flags = source.edge(16, (0, 1, 2, 3, 4, 5))
        else:
            following = source.edge(16, (0, 1, 2, 3))
        DESCRIPTOR.pack_into(sides.view, place, address, length, flags, following)
    submit_head(sides, head)


def submit_head(sides: Sides, head: int) -> None:
    index = sides.word(AVAILABLE + 2)
    struct.pack_into("=H", sides.view, AVAILABLE + 4 + 2 * (index & (sides.size - 1)), head)
    struct.pack_into("=H", sides.view, AVAILABLE + 2, (index + 1) & 0xFFFF)


def submit(sides: Sides, source: InputBytes) -> None:
    submit_head(sides, source.edge(16, tuple(range(sides.size))))


def write_bytes(sides: Sides, source: InputBytes) -> None:
    """Anything anywhere, most of all into the rings."""
    base = source.choose((TABLE, AVAILABLE, USED, INDIRECT_TABLES, DATA))
    data = source.take(source.number(1) % 32)
    offset = base + source.number(1)
    sides.view[offset : offset + len(data)] = data


def write_log(sides: Sides, source: InputBytes) -> None:
    offset = source.number(1) % (len(sides.log.states) - 16)
    data = source.take(source.number(1) % 16)
    sides.log.states[offset : offset + len(data)] = data


def restart(sides: Sides, source: InputBytes) -> None:
    sides.start(source.edge(16, (sides.word(AVAILABLE + 2), sides.queue.last_available)))


def pop(sides: Sides, source: InputBytes) -> None:
    """Fetch what there is, and compare it with the plain reading of the same memory."""
    queue, size = sides.queue, sides.size
    fresh = not queue._resubmit
    count = (sides.word(AVAILABLE + 2) - queue.last_available) & 0xFFFF
    first, busy = queue.last_available, {chain.head for chain in sides.taken}
    expected: list[tuple[bytes, int]] = []
    refused = count > size - queue.in_flight
    if fresh and not refused:
        for position in range(count):
            head = sides.word(AVAILABLE + 4 + 2 * ((first + position) & (size - 1)))
            try:
                if head >= size or head in busy:
                    raise RefusedError
                busy.add(head)
                expected.append(read_chain(sides, head))
            except RefusedError:
                refused = True
                break
    try:
        chains = queue.pop()
    except QueueError:
        assert refused or not fresh, "a correct chain was refused"
        raise
    if fresh:
        assert not refused, "a wrong chain was taken"
        assert [(b"".join(chain.readable), sum(map(len, chain.writable))) for chain in chains] == expected
    sides.taken += chains


def read_chain(sides: Sides, head: int) -> tuple[bytes, int]:
    """What a chain says, read slowly: its readable bytes, and how many are writable."""
    walked = walk(sides, read_table(bytes(sides.view), TABLE, sides.size), head, direct=True)
    readable, writable, pieces = b"", 0, 0
    for address, length, flags in walked:
        if not length or not GUEST <= address <= address + length <= GUEST + MEMORY_BYTES:
            raise RefusedError
        pieces += len(sides.memory.slices(address, length))
        if flags & WRITE:
            writable += length
        elif writable:
            raise RefusedError
        else:
            readable += bytes(sides.view[address - GUEST : address - GUEST + length])
    if pieces > MAX_CHAIN_LENGTH or sum(length for _, length, _ in walked) > MAX_CHAIN_BYTES:
        raise RefusedError
    return readable, writable


def read_table(memory: bytes, offset: int, count: int) -> list[tuple[int, int, int, int]]:
    return [DESCRIPTOR.unpack_from(memory, offset + 16 * index) for index in range(count)]


def walk(
    sides: Sides, table: list[tuple[int, int, int, int]], index: int, *, direct: bool
) -> list[tuple[int, int, int]]:
    """The buffers of a chain in order; raises ``RefusedError``."""
    found: list[tuple[int, int, int]] = []
    for _ in table:
        address, length, flags, following = table[index]
        if flags & INDIRECT:
            return found + walk_indirect(sides, address, length, flags, direct=direct)
        found.append((address, length, flags))
        if not flags & NEXT:
            return found
        if following >= len(table):
            raise RefusedError
        index = following
    raise RefusedError


def walk_indirect(
    sides: Sides, address: int, length: int, flags: int, *, direct: bool
) -> list[tuple[int, int, int]]:
    count, rest = divmod(length, 16)
    if not direct or flags & NEXT or not sides.features & RING_INDIRECT_DESC:
        raise RefusedError
    if rest or not 0 < count <= MAX_CHAIN_LENGTH:
        raise RefusedError
    if not GUEST <= address <= address + length <= GUEST + MEMORY_BYTES:
        raise RefusedError
    found = walk(sides, read_table(bytes(sides.view), address - GUEST, count), 0, direct=False)
    if len(found) > MAX_CHAIN_LENGTH:
        raise RefusedError
    return found


def complete(sides: Sides, source: InputBytes) -> None:
    """Answer some of what was fetched, in any order, touching every byte that a device may touch."""
    for _ in range(source.number(1) % 4):
        if sides.taken:
            chain = sides.taken.pop(source.number(1) % len(sides.taken))
            for piece in chain.writable:
                piece[:] = bytes(len(piece))
            sides.queue.complete(chain, sum(map(len, chain.writable)) & 0xFFFFFFFF)
    sides.queue.publish()


def notify(sides: Sides, source: InputBytes) -> None:
    if source.number(1) & 1:
        sides.queue.disable_notifications()
    else:
        sides.queue.enable_notifications()


ACTIONS = (
    write_request, write_descriptor, submit, pop, complete, pop, write_bytes, notify, restart, write_log
)  # fmt: skip


def run_one(data: bytes) -> None:
    """One life of a queue, up to the first thing that ends it."""
    source = InputBytes(data)
    sides = Sides(source)
    try:
        for _ in range(STEPS):
            if not source.remaining:
                break
            source.choose(ACTIONS)(sides, source)
            assert 0 <= sides.queue.in_flight <= sides.size
    except ChannelError:
        pass  # the queue has ended
    guards = sides.whole[:GUARD] + sides.whole[GUARD + MEMORY_BYTES :]
    assert guards == b"\xa5" * (2 * GUARD), "something was written outside the guest's memory"
