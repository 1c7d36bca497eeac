"""The vhost-user wire format: request numbers, and pure functions between bytes and numbers.

What a back end alone reads is in ``requests``. Every ``parse_`` function takes the bytes of one payload and
raises ``ProtocolError`` for a wrong length or value. Numbers are in the machine's byte order. Source:
vhost-user specification, "Message Specification".
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct

from duovisor.channel.errors import ProtocolError

VERSION = 0x1
VERSION_MASK = 0x3
FLAG_REPLY = 0x4
FLAG_NEED_REPLY = 0x8

MAX_DESCRIPTORS = 8  # "at most 8 descriptors in each message"
MAX_CONFIG_BYTES = 256
MAX_PAYLOAD_BYTES = 4096  # far above the largest payload there is, 268 bytes

HEADER = Struct("=III")  # request, flags, payload size
HEADER_BYTES = HEADER.size
U64 = Struct("=Q")
_VRING_STATE = Struct("=II")
VRING_ADDRESS = Struct("=IIQQQQ")
REGION = Struct("=QQQQ")
TABLE_HEADER = Struct("=II")
_CONFIG_HEADER = Struct("=III")
_INFLIGHT = Struct("=QQHH")
_INFLIGHT_BYTES = (20, 24)  # QEMU sends the structure with its 4 bytes of padding, others without
LOG = Struct("=QQ")


class Request(IntEnum):
    """Front-end message types, and what each is called in the specification (without VHOST_USER_)."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    GET_CONFIG = 24
    SET_CONFIG = 25
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    RESET_DEVICE = 34
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40


class RegionDescription:
    """One memory region as the front end describes it; addresses and sizes in bytes."""

    __slots__ = ("guest_address", "mmap_offset", "size", "user_address")

    def __init__(self, guest_address: int, size: int, user_address: int, mmap_offset: int) -> None:
        self.guest_address = guest_address
        self.size = size
        self.user_address = user_address
        self.mmap_offset = mmap_offset


class VringAddress:
    """Where a ring lies: user addresses of its three parts, and the guest address under which to log it."""

    __slots__ = ("available", "descriptors", "flags", "index", "log_guest_address", "used")

    def __init__(
        self, index: int, flags: int, descriptors: int, used: int, available: int, log_guest_address: int
    ) -> None:
        self.index = index
        self.flags = flags
        self.descriptors = descriptors
        self.used = used
        self.available = available
        self.log_guest_address = log_guest_address


class InflightDescription:
    """The buffer that tracks requests in flight: size and offset in bytes, then what it was made for."""

    __slots__ = ("mmap_offset", "mmap_size", "queue_size", "queues")

    def __init__(self, mmap_size: int, mmap_offset: int, queues: int, queue_size: int) -> None:
        self.mmap_size = mmap_size
        self.mmap_offset = mmap_offset
        self.queues = queues
        self.queue_size = queue_size


def expect(payload: bytes, size: int, what: str) -> None:
    """Raises ``ProtocolError`` for a payload of another size."""
    if len(payload) != size:
        raise ProtocolError(f"{what} has {len(payload)} bytes instead of {size}")


def build_header(request: int, flags: int, size: int) -> bytes:
    """The 12 bytes before a payload of ``size`` bytes; the version is added to ``flags``."""
    return HEADER.pack(request, flags | VERSION, size)


def parse_header(data: bytes) -> tuple[int, int, int]:
    """Request number, flags without the version, and payload size of a message."""
    request, flags, size = HEADER.unpack(data)
    if flags & VERSION_MASK != VERSION:
        raise ProtocolError(f"a message has version {flags & VERSION_MASK} instead of {VERSION}")
    if size > MAX_PAYLOAD_BYTES:
        raise ProtocolError(f"a message announces {size} bytes; at most {MAX_PAYLOAD_BYTES} are allowed")
    return request, flags & ~VERSION_MASK, size


def build_u64(value: int) -> bytes:
    return U64.pack(value)


def parse_u64(payload: bytes) -> int:
    expect(payload, U64.size, "a 64-bit integer")
    value: int = U64.unpack(payload)[0]
    return value


def build_vring_state(index: int, number: int) -> bytes:
    return _VRING_STATE.pack(index, number)


def parse_vring_state(payload: bytes) -> tuple[int, int]:
    """Queue index and its number (a size, a base or a switch, as the request says)."""
    expect(payload, _VRING_STATE.size, "a vring state")
    index, number = _VRING_STATE.unpack(payload)
    return index, number


def build_vring_address(address: VringAddress) -> bytes:
    return VRING_ADDRESS.pack(
        address.index,
        address.flags,
        address.descriptors,
        address.used,
        address.available,
        address.log_guest_address,
    )


def build_memory_table(regions: list[RegionDescription]) -> bytes:
    return TABLE_HEADER.pack(len(regions), 0) + b"".join(_pack_region(region) for region in regions)


def build_memory_region(region: RegionDescription) -> bytes:
    return U64.pack(0) + _pack_region(region)


def _pack_region(region: RegionDescription) -> bytes:
    return REGION.pack(region.guest_address, region.size, region.user_address, region.mmap_offset)


def build_config(offset: int, flags: int, data: bytes) -> bytes:
    return _CONFIG_HEADER.pack(offset, len(data), flags) + data


def parse_config(payload: bytes) -> tuple[int, int, bytes]:
    """Offset in the configuration space, flags, and data of GET_CONFIG or SET_CONFIG."""
    if len(payload) < _CONFIG_HEADER.size:
        raise ProtocolError(f"a configuration access has only {len(payload)} bytes")
    offset, size, flags = _CONFIG_HEADER.unpack_from(payload)
    if size > MAX_CONFIG_BYTES or offset > MAX_CONFIG_BYTES - size:
        raise ProtocolError(
            f"a configuration access of {size} bytes at {offset} is beyond {MAX_CONFIG_BYTES}"
        )
    if len(payload) != _CONFIG_HEADER.size + size:
        raise ProtocolError(
            f"a configuration access of {size} bytes carries {len(payload) - _CONFIG_HEADER.size}"
        )
    return offset, flags, payload[_CONFIG_HEADER.size :]


def build_inflight(description: InflightDescription) -> bytes:
    return (
        _INFLIGHT.pack(
            description.mmap_size, description.mmap_offset, description.queues, description.queue_size
        )
        + b"\0\0\0\0"
    )


def parse_inflight(payload: bytes) -> InflightDescription:
    if len(payload) not in _INFLIGHT_BYTES:
        raise ProtocolError(f"an in-flight description has {len(payload)} bytes instead of 20 or 24")
    return InflightDescription(*_INFLIGHT.unpack_from(payload))


def build_log(size: int, offset: int) -> bytes:
    return LOG.pack(size, offset)
