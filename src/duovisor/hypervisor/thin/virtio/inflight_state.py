"""The log of requests in flight as a snapshot has it: mostly zeros, so it is packed."""

from __future__ import annotations

import binascii
import os
import zlib

from duovisor.channel.inflight import create_inflight

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from duovisor.channel.frontend_link import Inflight

_MAX_QUEUES, _MAX_QUEUE_SIZE = 256, 32768


def save_inflight(held: Inflight) -> dict[str, Any]:
    """The whole log, as JSON can hold it."""
    descriptor, description = held
    data = os.pread(descriptor, description.mmap_size, description.mmap_offset)
    packed = binascii.b2a_base64(zlib.compress(data, 1), newline=False).decode()
    return {"queues": description.queues, "queue_size": description.queue_size, "data": packed}


def restore_inflight(saved: dict[str, Any]) -> Inflight:
    """A new log with the old content; the caller closes its descriptor.

    Raises ``ValueError``, ``KeyError`` or ``TypeError`` for what ``save_inflight`` did not return.
    """
    queues, queue_size = int(saved["queues"]), int(saved["queue_size"])
    if not 0 < queues <= _MAX_QUEUES or not 0 < queue_size <= _MAX_QUEUE_SIZE:
        raise ValueError(f"a log of {queues} queues of {queue_size} entries")
    descriptor, description = create_inflight(queues, queue_size)
    try:
        unpacker = zlib.decompressobj()
        data = unpacker.decompress(binascii.a2b_base64(saved["data"]), description.mmap_size)
        if len(data) != description.mmap_size or not unpacker.eof:
            raise ValueError("the log of requests in flight has another size")
        os.pwrite(descriptor, data, 0)
    except zlib.error as error:
        os.close(descriptor)
        raise ValueError(f"the log of requests in flight cannot be unpacked: {error}") from error
    except (ValueError, TypeError):
        os.close(descriptor)
        raise
    return descriptor, description
