"""What a back end alone reads of the wire format, of requests that a front end makes.

Every ``parse_`` function takes the bytes of one payload and raises ``ProtocolError`` for a wrong length or
value. Source: vhost-user specification, "Message Specification".
"""

from __future__ import annotations

from duovisor.channel.errors import ProtocolError
from duovisor.channel.messages import (
    LOG,
    REGION,
    TABLE_HEADER,
    U64,
    VRING_ADDRESS,
    RegionDescription,
    VringAddress,
    expect,
    parse_u64,
)

MAX_REGIONS = 8  # of one SET_MEM_TABLE
VRING_INDEX_MASK = 0xFF
VRING_NO_DESCRIPTOR = 0x100


def parse_vring_address(payload: bytes) -> VringAddress:
    expect(payload, VRING_ADDRESS.size, "a vring address")
    return VringAddress(*VRING_ADDRESS.unpack(payload))


def parse_vring_descriptor(payload: bytes) -> tuple[int, bool]:
    """Queue index, and whether a descriptor comes with the message (SET_VRING_KICK, _CALL, _ERR)."""
    value = parse_u64(payload)
    return value & VRING_INDEX_MASK, not value & VRING_NO_DESCRIPTOR


def parse_memory_table(payload: bytes) -> list[RegionDescription]:
    """The regions of SET_MEM_TABLE, at most 8."""
    if len(payload) < TABLE_HEADER.size:
        raise ProtocolError(f"a memory table has only {len(payload)} bytes")
    count = TABLE_HEADER.unpack_from(payload)[0]
    if count > MAX_REGIONS:
        raise ProtocolError(f"a memory table has {count} regions; at most {MAX_REGIONS} are allowed")
    used = TABLE_HEADER.size + count * REGION.size
    if len(payload) < used:
        raise ProtocolError(f"a memory table of {count} regions has only {len(payload)} bytes")
    return [RegionDescription(*fields) for fields in REGION.iter_unpack(payload[TABLE_HEADER.size : used])]


def parse_memory_region(payload: bytes) -> RegionDescription:
    """The region of ADD_MEM_REG or REM_MEM_REG."""
    expect(payload, U64.size + REGION.size, "a memory region")
    return RegionDescription(*REGION.unpack_from(payload, U64.size))


def parse_log(payload: bytes) -> tuple[int, int]:
    """Size and offset in bytes of the dirty log inside its descriptor."""
    expect(payload, LOG.size, "a log description")
    size, offset = LOG.unpack(payload)
    return size, offset
