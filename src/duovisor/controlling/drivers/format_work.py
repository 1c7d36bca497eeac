"""What a formatted disk works on: requests of the guest, and the commands into which each is cut."""

from __future__ import annotations

from duovisor.controlling.drivers import block_layout as layout
from duovisor.controlling.drivers.replay_log import KINDS
from duovisor.controlling.drivers.replay_memory import READ_BUFFER_BYTES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from duovisor.channel.chain import Chain

WRITE_PART_BYTES = 1 << 20
RANGE_PART_BYTES = 32768 << layout.SECTOR_SHIFT  # the most that QEMU's export takes in one request


class Request:
    """A request of the guest: how many commands of it are left, and what to tell it in the end."""

    __slots__ = ("chain", "code", "flushes", "parts", "status", "written")

    def __init__(self, chain: Chain, status: memoryview, *, written: int = 1, flushes: bool = False) -> None:
        self.chain = chain
        self.status = status
        self.written = written
        self.flushes = flushes
        self.parts = 0
        self.code = layout.STATUS_OK


class Command:
    """One request to the format process; ``request`` is ``None`` for one that no guest waits for.

    ``record`` is its place in the replay log (for a flush, the place up to which it makes the log needless),
    -1 before it has one. ``repeats``: it makes a change again that was acknowledged before.
    """

    __slots__ = ("buffers", "data_at", "kind", "length", "offset", "record", "repeats", "request")

    def __init__(
        self,
        kind: int,
        offset: int = 0,
        length: int = 0,
        request: Request | None = None,
        buffers: list[memoryview] | None = None,
    ) -> None:
        self.kind = kind
        self.offset = offset
        self.length = length
        self.request = request
        self.buffers = buffers or []
        self.record = -1
        self.data_at = 0
        self.repeats = False

    @property
    def changes(self) -> bool:
        """Whether it changes the disk's content."""
        return self.kind in KINDS

    def overlaps(self, others: Iterable[Command]) -> bool:
        """Whether one of the others changes something of the same range."""
        start, end = self.offset, self.offset + self.length
        for other in others:
            if other.offset < end and start < other.offset + other.length and other.kind in KINDS:
                return True
        return False


def cut(
    request: Request, kind: int, offset: int, length: int, buffers: list[memoryview] | None = None
) -> list[Command]:
    """The commands of a request, each no larger than a buffer or a request of its kind may be."""
    if kind == layout.REQUEST_IN:
        most = READ_BUFFER_BYTES
    else:
        most = WRITE_PART_BYTES if kind == layout.REQUEST_OUT else RANGE_PART_BYTES
    if length <= most:
        commands = [Command(kind, offset, length, request, buffers)]
    else:
        commands = [
            Command(kind, offset + at, size, request, slice_buffers(buffers or [], at, size))
            for at in range(0, length, most)
            for size in (min(most, length - at),)
        ]
    request.parts = len(commands)
    return commands


def slice_buffers(buffers: list[memoryview], start: int, length: int) -> list[memoryview]:
    """``length`` bytes of the buffers from byte ``start`` on."""
    found = []
    for buffer in buffers:
        if start < len(buffer) and length:
            piece = buffer[start : start + length]
            found.append(piece)
            length -= len(piece)
        start = max(start - len(buffer), 0)
    return found
