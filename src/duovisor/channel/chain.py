"""Descriptor chains: one request of the guest as lists of memory slices.

Source: virtio 1.2, sections 2.7.5 (descriptor table) and 2.7.5.3 (indirect descriptors).
"""

from __future__ import annotations

from struct import Struct

from duovisor.channel.errors import GuestMemoryError, QueueError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from duovisor.channel.memory import GuestMemory
    from duovisor.channel.virtqueue import Virtqueue

DESCRIPTOR = Struct("=QIHH")  # address, length, flags, next
DESCRIPTOR_BYTES = 16
NEXT, WRITE, INDIRECT = 1, 2, 4
MAX_CHAIN_LENGTH = 1024  # QEMU's VIRTQUEUE_MAX_SIZE and the kernel's IOV_MAX
MAX_CHAIN_BYTES = 1 << 32  # virtio 1.2, section 2.7.5.2
# Tables up to this length have an unpacker that is kept; those of all lengths would take 67 MB.
KEPT_TABLE_LENGTH = 256

_unpackers: dict[int, Callable[..., tuple[int, ...]]] = {}


class Chain:
    """One request: what the device reads, then what it writes.

    ``readable`` and ``writable`` are slices of guest memory; the guest may change the bytes at any time, so
    read each once. There is one object per head of a queue, filled anew for each request.
    """

    __slots__ = ("busy", "descriptors", "head", "queue", "readable", "writable")

    def __init__(self, queue: Virtqueue, head: int) -> None:
        self.queue = queue
        self.head = head
        self.busy = False
        self.readable: list[memoryview] = []
        self.writable: list[memoryview] = []
        self.descriptors: Sequence[int] = ()


def table_unpacker(length: int) -> Callable[..., tuple[int, ...]]:
    """A function that reads an indirect table of ``length`` bytes at once: ``unpack(buffer, offset)``.

    Raises ``QueueError`` for a table that is empty, too long, or not made of whole descriptors.
    """
    unpack = _unpackers.get(length)
    if unpack is None:
        count, rest = divmod(length, DESCRIPTOR_BYTES)
        if rest or not 0 < count <= MAX_CHAIN_LENGTH:
            raise QueueError(
                f"an indirect table has {length} bytes; up to {MAX_CHAIN_LENGTH} × 16 are allowed"
            )
        unpack = Struct("=" + "QIHH" * count).unpack_from
        if count <= KEPT_TABLE_LENGTH:
            _unpackers[length] = unpack
    return unpack


def follow_table(flat: Sequence[int]) -> list[int]:
    """The descriptors of an indirect table in the order of its links; raises ``QueueError``."""
    walked: list[int] = []
    size = len(flat) // 4
    index = 0
    for _ in range(size):
        descriptor = flat[4 * index : 4 * index + 4]
        _, _, flags, following = descriptor
        if flags & INDIRECT:
            raise QueueError("an indirect table holds another indirect table")
        walked.extend(descriptor)
        if not flags & NEXT:
            return walked
        if following >= size:
            raise QueueError(f"an indirect table of {size} descriptors links to descriptor {following}")
        index = following
    raise QueueError(f"an indirect table of {size} descriptors is a loop")


def map_chain(chain: Chain, descriptors: Sequence[int], memory: GuestMemory) -> None:
    """Fill a chain from descriptors in order, across memory regions where a buffer spans several."""
    if sum(descriptors[1::4]) > MAX_CHAIN_BYTES:
        raise QueueError(f"queue {chain.queue.index} has a chain of more than {MAX_CHAIN_BYTES} bytes")
    chain.descriptors = descriptors
    chain.readable = readable = []
    chain.writable = writable = []
    entries = iter(descriptors)
    for address, length, flags, _ in zip(entries, entries, entries, entries, strict=True):
        try:
            pieces = memory.slices(address, length)
        except GuestMemoryError as error:
            raise QueueError(f"queue {chain.queue.index}: {error}") from error
        if flags & WRITE:
            writable += pieces
        elif writable:
            raise QueueError(f"queue {chain.queue.index} has a readable buffer after a writable one")
        else:
            readable += pieces
    if len(readable) + len(writable) > MAX_CHAIN_LENGTH:
        raise QueueError(f"queue {chain.queue.index} has a chain of more than {MAX_CHAIN_LENGTH} pieces")
