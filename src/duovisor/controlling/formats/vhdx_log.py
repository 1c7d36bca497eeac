"""Mends what a kill can do to a VHDX image: a log that is announced and empty.

QEMU (``block/vhdx-log.c``, tried with 7.2 and 10.0) writes a log GUID into the image's header, then the log
entry that belongs to it. Killed in between, it leaves a header that names a log without a valid entry, in
which there is nothing to replay; QEMU opens the image and then refuses each write that allocates a block. The
remedy is what QEMU itself does after a replay: a header without a GUID.
"""

from __future__ import annotations

import functools
import os
from struct import Struct
from typing import NamedTuple

from duovisor.controlling.disk_lock import lock_disk

HEADER_BYTES = 4096
HEADERS_AT = (64 << 10, 128 << 10)
SECTOR_BYTES = 4096
LOG_BYTES_MAX = 64 << 20
OFFSET_MAX = 1 << 62
NO_GUID = bytes(16)

_HEADER = Struct(
    "<4sIQ16s16s16sHHIQ"
)  # signature, checksum, sequence, 3 GUIDs, 2 versions, log length and place
_LOG_GUID_AT = 48
_SEQUENCE_AT = 8
_CHECKSUM_AT = 4
_ENTRY = Struct(
    "<4sIIIQII16s"
)  # signature, checksum, length, tail, sequence, descriptors, reserved, log GUID


class VhdxHeader(NamedTuple):
    """The current one of an image's two headers, and which it is."""

    place: int
    data: bytes
    sequence: int
    log_guid: bytes
    log_bytes: int
    log_at: int


def mend_image(path: str) -> bool:
    """Mend an image that nobody uses, if it needs that; True when it did. Raises ``DiskLockedError``."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        lock_disk(descriptor, path, read_only=False)
        return clear_stale_log(descriptor)
    finally:
        os.close(descriptor)


def clear_stale_log(descriptor: int) -> bool:
    """Clear the log GUID of an image that nobody uses if no valid entry bears it; True when that was so.

    ``descriptor`` is open for reading and writing. What is no sound VHDX image is left alone: QEMU will say
    what is wrong with it.
    """
    header = find_current_header([os.pread(descriptor, HEADER_BYTES, at) for at in HEADERS_AT])
    if header is None or header.log_guid == NO_GUID:
        return False
    if header.log_bytes > LOG_BYTES_MAX or header.log_at > OFFSET_MAX:
        return False
    if has_valid_entry(os.pread(descriptor, header.log_bytes, header.log_at), header.log_guid):
        return False
    os.pwrite(descriptor, build_header_without_log(header), HEADERS_AT[1 - header.place])
    os.fsync(descriptor)
    return True


def find_current_header(candidates: list[bytes]) -> VhdxHeader | None:
    """The valid header with the highest sequence number; pure."""
    found = []
    for place, data in enumerate(candidates):
        if len(data) == HEADER_BYTES and data[:4] == b"head" and _is_sound(data):
            _, _, sequence, _, _, guid, _, _, log_bytes, log_at = _HEADER.unpack_from(data)
            found.append(VhdxHeader(place, data, sequence, guid, log_bytes, log_at))
    return max(found, key=lambda header: header.sequence, default=None)


def has_valid_entry(log: bytes, guid: bytes) -> bool:
    """Whether a ring of log sectors holds an entry that could be replayed; pure."""
    ring = log + log  # an entry may go on at the beginning
    for start in range(0, len(log) - _ENTRY.size, SECTOR_BYTES):
        signature, _, length, _, _, _, _, owner = _ENTRY.unpack_from(log, start)
        if signature == b"loge" and owner == guid and 0 < length <= len(log) and not length % SECTOR_BYTES:
            if _is_sound(ring[start : start + length]):
                return True
    return False


def build_header_without_log(header: VhdxHeader) -> bytes:
    """The header that follows this one and names no log; pure."""
    data = bytearray(header.data)
    data[_SEQUENCE_AT : _SEQUENCE_AT + 8] = (header.sequence + 1).to_bytes(8, "little")
    data[_LOG_GUID_AT : _LOG_GUID_AT + 16] = NO_GUID
    data[_CHECKSUM_AT : _CHECKSUM_AT + 4] = bytes(4)
    data[_CHECKSUM_AT : _CHECKSUM_AT + 4] = crc32c(bytes(data)).to_bytes(4, "little")
    return bytes(data)


def _is_sound(data: bytes) -> bool:
    """Whether the checksum of a header or log entry is that of its bytes."""
    stored = int.from_bytes(data[_CHECKSUM_AT : _CHECKSUM_AT + 4], "little")
    return crc32c(data[:_CHECKSUM_AT] + bytes(4) + data[_CHECKSUM_AT + 4 :]) == stored


def crc32c(data: bytes) -> int:
    """The CRC-32C of some bytes (RFC 3720, B.4), about 10 MB/s."""
    table, crc = _crc_table(), 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


@functools.cache
def _crc_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)
