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
OUT, IN = NEXT, NEXT | WRITE  # forms of a frame: the flags of its middle buffer
MAX_CHAIN_LENGTH = 1024  # QEMU's VIRTQUEUE_MAX_SIZE and the kernel's IOV_MAX
MAX_CHAIN_BYTES = 1 << 32  # virtio 1.2, section 2.7.5.2
# Tables up to this length have an unpacker that is kept; those of all lengths would take 67 MB.
KEPT_TABLE_LENGTH = 256

_unpackers: dict[int, Callable[..., tuple[int, ...]]] = {}


class Frame:
    """Where the buffers of the chain that nearly every storage request is lie: three, all inside ``view``.

    The first is readable, at offset ``first`` with ``first_bytes``; the second is ``OUT`` (readable) or
    ``IN`` (writable) as ``form`` says, its slice the only item of ``buffers``; the third is writable, at
    ``last`` with ``last_bytes``. It is made from a checked indirect table and serves every chain that has
    the same table again.
    """

    __slots__ = (
        "buffers", "descriptors", "first", "first_bytes", "form", "last", "last_bytes", "middle_bytes",
        "view",
    )  # fmt: skip

    def __init__(
        self, descriptors: tuple[int, ...], view: memoryview, first: int, middle: int, last: int
    ) -> None:
        _, self.first_bytes, _, _, _, self.middle_bytes, self.form, _, _, self.last_bytes, _, _ = descriptors
        self.descriptors = descriptors
        self.view = view
        self.first = first
        self.last = last
        self.buffers = [view[middle : middle + self.middle_bytes]]


def find_frame(descriptors: tuple[int, ...], view: memoryview, origin: int) -> Frame | None:
    """The frame that a table of three descriptors makes in the memory ``view`` at address ``origin``.

    ``None`` for a table that another rule must judge: not in order, not all in this memory, or wrong.
    """
    first, first_bytes, flags, second, middle, middle_bytes, form, third, last, last_bytes, end, _ = (
        descriptors
    )
    limit = len(view)
    first -= origin
    middle -= origin
    last -= origin
    if (
        flags != NEXT or second != 1 or third != 2 or end != WRITE or (form != IN and form != OUT)
        or first < 0 or middle < 0 or last < 0
        or first + first_bytes > limit or middle + middle_bytes > limit or last + last_bytes > limit
        or not first_bytes or not middle_bytes or not last_bytes
        or first_bytes + middle_bytes + last_bytes > MAX_CHAIN_BYTES
    ):  # fmt: skip
        return None
    return Frame(descriptors, view, first, middle, last)


class Chain:
    """One request: what the device reads, then what it writes.

    ``readable`` and ``writable`` are lists of slices of guest memory; the guest may change the bytes at any
    time, so read each once. There is one object per head of a queue, filled anew for each request.
    ``frame`` is there until somebody asks for the lists, if the chain has that form. ``written`` is for
    ``Virtqueue.complete_all``.
    """

    __slots__ = (
        "_readable", "_writable", "busy", "counter_place", "descriptors", "frame", "head", "link_place",
        "queue", "state_place", "table_place", "written",
    )  # fmt: skip

    def __init__(self, queue: Virtqueue, head: int) -> None:
        self.queue = queue
        self.head = head
        self.busy = False
        self.written = 0
        self.frame: Frame | None = None
        self.descriptors: Sequence[int] = ()
        self._readable: list[memoryview] = []
        self._writable: list[memoryview] = []
        # where its words lie in the descriptor table and in the in-flight log
        self.table_place = DESCRIPTOR_BYTES * head
        self.state_place = 16 + 16 * head
        self.link_place = 11 + 8 * head
        self.counter_place = 3 + 2 * head

    @property
    def readable(self) -> list[memoryview]:
        """What the device reads."""
        if self.frame is not None:
            self._split(self.frame)
        return self._readable

    @property
    def writable(self) -> list[memoryview]:
        """What the device writes."""
        if self.frame is not None:
            self._split(self.frame)
        return self._writable

    def set_buffers(self, readable: list[memoryview], writable: list[memoryview]) -> None:
        """Say what the device reads and writes."""
        self.frame = None
        self._readable = readable
        self._writable = writable

    def _split(self, frame: Frame) -> None:
        view = frame.view
        readable = [view[frame.first : frame.first + frame.first_bytes]]
        writable = [view[frame.last : frame.last + frame.last_bytes]]
        if frame.form == IN:
            writable[:0] = frame.buffers
        else:
            readable += frame.buffers
        self.set_buffers(readable, writable)


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


def count_writable(descriptors: Sequence[int]) -> int:
    """How many bytes the device may write to a chain of these descriptors."""
    total = 0
    entries = iter(descriptors)
    for _, length, flags, _ in zip(entries, entries, entries, entries, strict=True):
        if flags & WRITE:
            total += length
        if not flags & NEXT:
            break
    return total


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
    readable: list[memoryview] = []
    writable: list[memoryview] = []
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
    chain.descriptors = descriptors
    chain.set_buffers(readable, writable)
