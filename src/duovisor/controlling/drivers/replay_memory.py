"""The memory that outlives the drivers and format processes of one disk; all of it is one shared file.

=============  ==========================================================================================
header         4096 bytes: what is committed, as 64-bit words; each changes by a single store
ring           a split virtqueue towards the format process, which maps this file as its guest's memory
slots          one request each: virtio-blk header, range, status, and what a successor must know of it
records        the replay log's index, 32 bytes each
read buffers   ``READ_BUFFER_BYTES`` per slot
data           the replay log's data, pages
=============  ==========================================================================================

The file is sparse and sealed against resizing: what was never touched costs nothing. A driver holds it, its
spare and the format process too, and whoever creates them. The format process parses images that may be
hostile: what it could have changed here is checked before it is used, and can harm nothing but its own disk.
"""

from __future__ import annotations

import fcntl
import mmap
import os

from duovisor.controlling.drivers.errors import DriverError

MAGIC = int.from_bytes(b"duoreply", "little")
VERSION = 1
PAGE_BYTES = 4096

# Words of the header.
MAGIC_WORD, VERSION_WORD, DATA_BYTES_WORD, ONE_CHANGE_WORD = 0, 1, 2, 3
CONNECTION_WORD, PHASE_WORD = 4, 5
SUBMITTED_WORD, REAPED_WORD = 6, 7
FIRST_WORD, NEXT_WORD = 8, 9

POSITION_MAX = 1 << 62  # of a request in the ring, or a record in the log: never reached by counting

QUEUE_SIZE = 256  # descriptors: three for each slot
SLOTS = 64
SLOT_BYTES = 64
READ_BUFFER_BYTES = 128 << 10
RECORD_BYTES = 32

DESCRIPTORS_AT = PAGE_BYTES
AVAILABLE_AT = DESCRIPTORS_AT + 16 * QUEUE_SIZE
USED_AT = AVAILABLE_AT + 1024
SLOTS_AT = 3 * PAGE_BYTES
RECORDS_AT = SLOTS_AT + PAGE_BYTES

DEFAULT_DATA_BYTES = 32 << 20
DATA_BYTES_MIN, DATA_BYTES_MAX = 4 << 20, 1 << 30


class ReplayMemory:
    """The file, mapped; ``words`` are those of its header, the numbers are offsets in bytes."""

    __slots__ = (
        "data_at",
        "data_bytes",
        "descriptor",
        "mapping",
        "one_change",
        "read_buffers_at",
        "records",
        "view",
        "words",
    )

    def __init__(self, descriptor: int, mapping: mmap.mmap, data_bytes: int) -> None:
        self.descriptor = descriptor
        self.mapping = mapping
        self.view = memoryview(mapping)
        self.words = self.view[:PAGE_BYTES].cast("Q")
        self.data_bytes = data_bytes
        self.one_change = bool(self.words[ONE_CHANGE_WORD])
        self.records = data_bytes // PAGE_BYTES
        self.read_buffers_at = _read_buffers_at(data_bytes)
        self.data_at = self.read_buffers_at + SLOTS * READ_BUFFER_BYTES

    def release(self, start: int, end: int) -> None:
        """Give the memory between two offsets back to the host; it reads as zeros."""
        start, end = -(-start // PAGE_BYTES) * PAGE_BYTES, end // PAGE_BYTES * PAGE_BYTES
        if start < end:
            self.mapping.madvise(mmap.MADV_REMOVE, start, end - start)

    def close(self) -> None:
        """Close the descriptor; the mapping goes with the last slice of it."""
        os.close(self.descriptor)


def _read_buffers_at(data_bytes: int) -> int:
    return RECORDS_AT + data_bytes // PAGE_BYTES * RECORD_BYTES


def _file_bytes(data_bytes: int) -> int:
    return _read_buffers_at(data_bytes) + SLOTS * READ_BUFFER_BYTES + data_bytes


def create_replay(data_bytes: int = DEFAULT_DATA_BYTES, *, one_change: bool = False) -> int:
    """A new memory file whose log keeps up to ``data_bytes``, whole MiB; the caller closes the descriptor.

    ``one_change``: never have two changes of the disk under way at once, for a format that cannot stand it.
    """
    if data_bytes % (1 << 20) or not DATA_BYTES_MIN <= data_bytes <= DATA_BYTES_MAX:
        raise DriverError(f"a replay log cannot keep {data_bytes} bytes")
    descriptor = os.memfd_create("duovisor-replay", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, _file_bytes(data_bytes))
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    memory = memoryview(mmap.mmap(descriptor, PAGE_BYTES)).cast("Q")
    memory[VERSION_WORD] = VERSION
    memory[DATA_BYTES_WORD] = data_bytes
    memory[ONE_CHANGE_WORD] = one_change
    memory[MAGIC_WORD] = MAGIC
    return descriptor


def open_replay(descriptor: int) -> ReplayMemory:
    """Map a file of ``create_replay`` and take its descriptor over; raises ``DriverError`` for any other."""
    try:
        size = os.fstat(descriptor).st_size
        mapping = mmap.mmap(descriptor, size)
    except (OSError, ValueError) as error:
        raise DriverError(f"descriptor {descriptor} is no replay memory: {error}") from error
    words = memoryview(mapping)[: min(size, PAGE_BYTES) & ~7].cast("Q")
    if len(words) <= NEXT_WORD or (words[MAGIC_WORD], words[VERSION_WORD]) != (MAGIC, VERSION):
        raise DriverError(f"descriptor {descriptor} is no replay memory of version {VERSION}")
    data_bytes = words[DATA_BYTES_WORD]
    if not DATA_BYTES_MIN <= data_bytes <= DATA_BYTES_MAX or size != _file_bytes(data_bytes):
        raise DriverError(f"a replay memory of {size} bytes cannot keep {data_bytes}")
    return ReplayMemory(descriptor, mapping, data_bytes)
