"""Regions come and go, logs are mapped, addresses translated: always as a plain model says, or refused."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

from tests.fuzz.input_bytes import InputBytes

from duovisor.channel.dirty_log import map_dirty_log
from duovisor.channel.errors import ChannelError, GuestMemoryError, ProtocolError
from duovisor.channel.inflight import map_inflight, region_bytes
from duovisor.channel.memory import MAX_MEMORY_SLOTS, GuestMemory, map_region
from duovisor.channel.messages import InflightDescription, RegionDescription

if TYPE_CHECKING:
    from collections.abc import Callable

FILE_BYTES = 0x4000
BASES = (0, 0x1000, 0x2000, 0x4000, 1 << 32, (1 << 64) - 0x1000)
SIZES = (0x1000, 0x800, 16, 1, FILE_BYTES)
STEPS = 40
LIMIT = 1 << 64


class Model:
    """The regions as a list, and a file with what it should contain."""

    def __init__(self) -> None:
        self.memory = GuestMemory()
        self.regions: list[RegionDescription] = []
        self.descriptor = os.memfd_create("guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.descriptor, FILE_BYTES)
        os.pwrite(self.descriptor, bytes(index * 7 & 0xFF for index in range(FILE_BYTES)), 0)

    def is_possible(self, new: RegionDescription) -> bool:
        """Whether a region may be added."""
        return (
            0 < new.size
            and new.guest_address + new.size <= LIMIT
            and new.user_address + new.size <= LIMIT
            and new.mmap_offset + new.size <= FILE_BYTES
            and len(self.regions) < MAX_MEMORY_SLOTS
            and all(
                have.guest_address + have.size <= new.guest_address
                or new.guest_address + new.size <= have.guest_address
                for have in self.regions
            )
            and all(
                have.user_address + have.size <= new.user_address
                or new.user_address + new.size <= have.user_address
                for have in self.regions
            )
        )

    def translate(self, address: int, length: int) -> list[tuple[int, int]] | None:
        """Offset in the file and length of each piece of a guest range, or ``None``."""
        pieces: list[tuple[int, int]] = []
        end = address + length
        while address < end:
            for region in self.regions:
                if region.guest_address <= address < region.guest_address + region.size:
                    part = min(end, region.guest_address + region.size) - address
                    pieces.append((region.mmap_offset + address - region.guest_address, part))
                    address += part
                    break
            else:
                return None
        return pieces or None


def read_region(source: InputBytes) -> RegionDescription:
    return RegionDescription(
        source.edge(64, BASES), source.edge(64, SIZES), source.edge(64, BASES), source.edge(64, (0, 0x1000))
    )


def add(model: Model, source: InputBytes) -> None:
    new = read_region(source)
    possible = model.is_possible(new)
    try:
        model.memory.add(map_region(new, model.descriptor))
        assert possible, "an impossible region was taken"
        model.regions.append(new)
    except ProtocolError:
        assert not possible, "a possible region was refused"


def remove(model: Model, source: InputBytes) -> None:
    chosen = source.choose(model.regions) if model.regions and source.number(1) & 1 else read_region(source)
    key = (chosen.guest_address, chosen.size, chosen.user_address)
    kept = [have for have in model.regions if (have.guest_address, have.size, have.user_address) != key]
    try:
        model.memory.remove(chosen)
        assert len(kept) == len(model.regions) - 1
    except ProtocolError:
        assert len(kept) == len(model.regions)
    model.regions = kept


def replace(model: Model, source: InputBytes) -> None:
    before, model.regions = model.regions, []
    wanted = [read_region(source) for _ in range(source.number(1) % 4)]
    possible = True
    for region in wanted:
        possible = possible and model.is_possible(region)
        model.regions.append(region)
    try:
        model.memory.replace([map_region(region, model.descriptor) for region in wanted])
        assert possible, "an impossible table was taken"
    except ProtocolError:
        assert not possible, "a possible table was refused"
        model.regions = before


def translate(model: Model, source: InputBytes) -> None:
    near = [region.guest_address + region.size for region in model.regions] + list(BASES)
    address, length = source.edge(64, near), source.edge(32, SIZES)
    expected = model.translate(address, length)
    try:
        pieces = model.memory.slices(address, length)
        assert expected is not None, "an address outside was translated"
        assert [bytes(piece) for piece in pieces] == [
            os.pread(model.descriptor, size, offset) for offset, size in expected
        ]
    except GuestMemoryError:
        assert expected is None, "an address inside was refused"


def translate_user(model: Model, source: InputBytes) -> None:
    near = [region.user_address + region.size for region in model.regions] + list(BASES)
    address, length = source.edge(64, near), source.edge(32, SIZES)
    holder = [
        region
        for region in model.regions
        if region.user_address <= address < region.user_address + region.size
        and address + length <= region.user_address + region.size
    ]
    try:
        found = model.memory.user_slice(address, length)
        assert holder
        offset = holder[0].mmap_offset + address - holder[0].user_address
        assert bytes(found) == os.pread(model.descriptor, length, offset)
    except GuestMemoryError:
        assert not holder


def mark(model: Model, source: InputBytes) -> None:
    descriptor = os.memfd_create("log", os.MFD_CLOEXEC)
    near = [region.guest_address for region in model.regions] or [0]
    try:
        os.ftruncate(descriptor, 256)
        size, offset = source.edge(64, (8, 64, 256)), source.edge(64, (0, 8))
        log = map_dirty_log(descriptor, size, offset)
        assert 0 < size <= 256 - offset
        for _ in range(4):
            address, length = (
                source.edge(64, (*near, log.guest_end)),
                source.edge(32, (0x1000, log.guest_end)),
            )
            before = os.pread(descriptor, 256, 0)
            expected = int.from_bytes(before, "little")
            if length:
                first, last = address >> 12, (address + length - 1) >> 12
                if address + length <= log.guest_end:
                    expected |= ((1 << (last - first + 1)) - 1) << (first + 8 * offset)
            try:
                log.mark(address, length)
                assert not length or address + length <= log.guest_end
            except ProtocolError:
                assert address + length > log.guest_end
            assert os.pread(descriptor, 256, 0) == expected.to_bytes(256, "little")
    except ProtocolError:
        pass  # the log itself was impossible
    finally:
        os.close(descriptor)


def build_log(source: InputBytes) -> tuple[bytes, int]:
    """A region of the log in flight as a back end leaves one, with wrong words in it; and a used index."""
    batch_head, used_index = source.edge(16, (0, 7, 8)), source.edge(16)
    content = struct.pack("=QHHHH", 0, source.edge(16, (1,)), source.edge(16, (8,)), batch_head, used_index)
    for _ in range(8):
        in_flight, following = source.number(1) & 3, source.edge(16, (0, 1, 7, 8))
        content += struct.pack("=B5xHQ", in_flight, following, source.edge(64, (1, 5, 1 << 63)))
    return content, (used_index + source.edge(16, (0, 1, 8))) & 0xFFFF


def recover(_: Model, source: InputBytes) -> None:
    descriptor = os.memfd_create("inflight", os.MFD_CLOEXEC)
    try:
        os.ftruncate(descriptor, 4096)
        content, used_index = build_log(source)
        os.pwrite(descriptor, content, 0)
        os.pwrite(descriptor, source.take(source.number(1) % 16), source.number(1))
        size, offset = source.edge(64, (4096, region_bytes(8), 1024)), source.edge(64)
        description = InflightDescription(size, offset, source.choose((1, 2, 0, 3)), source.edge(16, (8,)))
        log = map_inflight(description, descriptor, 2)
        for region in log.regions:
            heads = region.recover(used_index)
            assert len(set(heads)) == len(heads)
            assert all(0 <= head < region.queue_size for head in heads)
            assert all(region.states[16 + 16 * head] for head in heads)
            assert region.next_counter(heads) < LIMIT
        state = log.load_device_state()
        assert state is None or len(state) <= 48
        log.save_device_state(b"state")
    except ChannelError:
        pass  # nonsense, and seen as such
    finally:
        os.close(descriptor)


ACTIONS: tuple[Callable[[Model, InputBytes], None], ...] = (
    add, translate, translate_user, remove, replace, mark, recover
)  # fmt: skip


def run_one(data: bytes) -> None:
    """One life of a guest's memory."""
    source, model = InputBytes(data), Model()
    try:
        for _ in range(STEPS):
            if not source.remaining:
                break
            source.choose(ACTIONS)(model, source)
    finally:
        os.close(model.descriptor)
