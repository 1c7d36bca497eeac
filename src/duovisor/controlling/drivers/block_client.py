"""A virtio-blk guest in a few lines: requests over a ``FrontEnd``, for tests and benchmarks.

A *slot* is a prepared request with its own header, data and status in guest memory; submitting it again costs
one store into its header and one into the ring.
"""

from __future__ import annotations

from duovisor.controlling.drivers import block_layout as layout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from duovisor.channel.frontend import FrontEnd
    from duovisor.channel.frontend_queue import FrontEndQueue

NO_STATUS = 0xFF


class Slot:
    """One request in guest memory; ``data`` is what is written to or read from the disk."""

    __slots__ = ("data", "head", "header", "queue", "status")

    def __init__(
        self, queue: FrontEndQueue, head: int, header: memoryview, data: memoryview, status: memoryview
    ) -> None:
        self.queue = queue
        self.head = head
        self.header = header
        self.data = data
        self.status = status


class BlockClient:
    """Requests on one queue of a front end; ``timeout_s`` bounds each synchronous one."""

    def __init__(self, front_end: FrontEnd, queue: int = 0, *, timeout_s: float = 10.0) -> None:
        self.queue = front_end.queues[queue]
        self.timeout_s = timeout_s
        self._front_end = front_end

    def make_slot(self, kind: int, length: int, *, pieces: int = 1, alignment: int = 4096) -> Slot:
        """Prepare a request of type ``kind`` with ``length`` bytes of data in ``pieces`` equal parts."""
        allocate = self._front_end.allocate
        header_address, header = allocate(layout.REQUEST_HEADER.size)
        status_address, status = allocate(1)
        data_address, data = allocate(length, alignment)
        table = allocate(16 * (pieces + 2))
        step = -(-length // pieces) if length else 0
        parts = (
            [(data_address + at, min(step, length - at)) for at in range(0, length, step)] if length else []
        )
        reads = kind in (layout.REQUEST_IN, layout.REQUEST_GET_ID)
        readable = [(header_address, len(header)), *([] if reads else parts)]
        writable = [*(parts if reads else []), (status_address, 1)]
        layout.REQUEST_HEADER.pack_into(header, 0, kind, 0, 0)
        return Slot(self.queue, self.queue.prepare(readable, writable, table), header, data, status)

    def submit(self, slot: Slot, sector: int) -> None:
        """Make a slot's request available at ``sector``; the queue's ``kick`` tells the driver."""
        kind = layout.REQUEST_HEADER.unpack_from(slot.header)[0]
        layout.REQUEST_HEADER.pack_into(slot.header, 0, kind, 0, sector)
        slot.status[0] = NO_STATUS
        slot.queue.submit(slot.head)

    def run(self, slot: Slot, sector: int = 0) -> int:
        """Do one request alone and return its status."""
        self.submit(slot, sector)
        self.queue.kick()
        self.queue.wait(self.timeout_s)
        return slot.status[0]

    def request(
        self, kind: int, sector: int = 0, data: bytes | int = 0, *, pieces: int = 1
    ) -> tuple[int, bytes]:
        """Do one request with a fresh slot; return its status and its data afterwards.

        ``data`` is what to send, or how many bytes to receive.
        """
        slot = self.make_slot(kind, data if isinstance(data, int) else len(data), pieces=pieces)
        if isinstance(data, bytes):
            slot.data[:] = data
        status = self.run(slot, sector)
        self.queue.release(slot.head)
        return status, bytes(slot.data)

    def read(self, sector: int, length: int) -> bytes:
        """Read ``length`` bytes; raises ``OSError`` for any status but OK."""
        status, data = self.request(layout.REQUEST_IN, sector, length)
        return data if _expect_ok(status) else b""

    def write(self, sector: int, data: bytes) -> None:
        """Write; raises ``OSError`` for any status but OK."""
        _expect_ok(self.request(layout.REQUEST_OUT, sector, data)[0])

    def flush(self) -> None:
        """Flush; raises ``OSError`` for any status but OK."""
        _expect_ok(self.request(layout.REQUEST_FLUSH)[0])

    def drive(self, slots: Sequence[Slot], sectors: Sequence[int]) -> None:
        """Keep all slots in flight until each of ``sectors`` was done once."""
        queue, submit = self.queue, self.submit
        by_head = {slot.head: slot for slot in slots}
        remaining = iter(sectors)
        for slot, sector in zip(slots, remaining, strict=False):
            submit(slot, sector)
        queue.kick()
        while queue.outstanding:
            for head, _ in queue.wait(self.timeout_s):
                slot = by_head[head]
                _expect_ok(slot.status[0])
                sector = next(remaining, -1)
                if sector >= 0:
                    submit(slot, sector)
            queue.kick()


def _expect_ok(status: int) -> bool:
    if status != layout.STATUS_OK:
        raise OSError(f"the driver answers with status {status}")
    return True
