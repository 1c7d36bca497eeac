"""The bytes of a snapshot; its descriptors travel beside them, in the order of ``Snapshot.descriptors``.

They come from a sibling process that a guest may have taken over: every number is checked.
"""

from __future__ import annotations

from struct import Struct

from duovisor.channel.errors import ChannelError
from duovisor.channel.inflight import DEVICE_STATE_MAX
from duovisor.channel.memory import MAX_MEMORY_SLOTS
from duovisor.channel.messages import InflightDescription, RegionDescription, VringAddress
from duovisor.channel.ring_state import RingState

TYPE_CHECKING = False
if TYPE_CHECKING:
    from duovisor.channel.snapshot import Snapshot

MAX_RINGS = 256

# Features, protocol features, status, presence; regions, rings, bytes of device state.
_STATE = Struct("=QQBBHHB")
_HAS_INFLIGHT, _HAS_LOG, _HAS_LOG_SIGNAL = 1, 2, 4
_REGION = Struct("=QQQQ")
_INFLIGHT = Struct("=QQHH")
_LOG = Struct("=QQ")
_RING = Struct("=HIHIQQQQ")  # flags, size, base, address: flags, descriptors, used, available, log
_ENABLED, _FAILED, _RUNNING, _HAS_ADDRESS, _HAS_KICK, _HAS_CALL, _HAS_ERROR, _HAS_OWN_LOG = (
    1 << bit for bit in range(8)
)


def build_payload(snapshot: Snapshot) -> bytes:
    """The bytes of a snapshot; its ``descriptors`` travel beside them."""
    held = snapshot.holdings
    presence = (
        _HAS_INFLIGHT * (held.inflight is not None)
        | _HAS_LOG * (held.log is not None)
        | _HAS_LOG_SIGNAL * (held.log_signal is not None)
    )
    state = snapshot.device_state
    parts = [
        _STATE.pack(
            snapshot.features, snapshot.protocol_features, snapshot.status, presence,
            len(held.regions), len(snapshot.rings), len(state),
        ),
        state,
    ]  # fmt: skip
    for region, _ in held.regions:
        parts.append(_REGION.pack(region.guest_address, region.size, region.user_address, region.mmap_offset))
    if held.inflight is not None:
        log = held.inflight[0]
        parts.append(_INFLIGHT.pack(log.mmap_size, log.mmap_offset, log.queues, log.queue_size))
    if held.log is not None:
        parts.append(_LOG.pack(*held.log[:2]))
    parts += [_build_ring(ring) for ring in snapshot.rings]
    return b"".join(parts)


def _build_ring(ring: RingState) -> bytes:
    address = ring.address or VringAddress(0, 0, 0, 0, 0, 0)
    flags = (
        _ENABLED * ring.enabled
        | _FAILED * ring.failed
        | _RUNNING * ring.running
        | _HAS_ADDRESS * (ring.address is not None)
        | _HAS_KICK * (ring.kick is not None)
        | _HAS_CALL * (ring.call is not None)
        | _HAS_ERROR * (ring.error is not None)
        | _HAS_OWN_LOG * (ring.own_log is not None)
    )
    return _RING.pack(
        flags, ring.size, ring.base, address.flags,
        address.descriptors, address.used, address.available, address.log_guest_address,
    )  # fmt: skip


class _Reader:
    """Takes structures and descriptors in order; raises ``ChannelError`` when there are too few."""

    def __init__(self, payload: bytes, descriptors: list[int]) -> None:
        self.payload = payload
        self.position = 0
        self.descriptors = iter(descriptors)

    def take(self, struct: Struct) -> tuple[int, ...]:
        end = self.position + struct.size
        if end > len(self.payload):
            raise ChannelError(f"a snapshot ends after {len(self.payload)} bytes, in the middle of something")
        fields = struct.unpack_from(self.payload, self.position)
        self.position = end
        return fields

    def take_bytes(self, length: int) -> bytes:
        end = self.position + length
        if end > len(self.payload):
            raise ChannelError(f"a snapshot of {len(self.payload)} bytes announces {end}")
        taken = self.payload[self.position : end]
        self.position = end
        return taken

    def descriptor(self) -> int:
        found = next(self.descriptors, None)
        if found is None:
            raise ChannelError("a snapshot comes with fewer descriptors than it names")
        return found

    def finish(self) -> None:
        """Raise unless everything was taken."""
        if self.position != len(self.payload) or next(self.descriptors, None) is not None:
            raise ChannelError("a snapshot comes with more bytes or descriptors than it names")


def parse_payload(snapshot: Snapshot, payload: bytes, descriptors: list[int]) -> None:
    """Fill an empty snapshot, which owns ``descriptors`` then.

    Raises ``ChannelError`` when the two do not fit together; the descriptors remain the caller's then.
    """
    reader = _Reader(payload, descriptors)
    features, protocol_features, status, presence, regions, rings, length = reader.take(_STATE)
    if regions > MAX_MEMORY_SLOTS or rings > MAX_RINGS or length > DEVICE_STATE_MAX:
        raise ChannelError(
            f"a snapshot has {regions} memory regions, {rings} rings and {length} bytes of device state"
        )
    snapshot.connection = reader.descriptor()
    snapshot.features, snapshot.protocol_features, snapshot.status = features, protocol_features, status
    snapshot.device_state = reader.take_bytes(length)
    held = snapshot.holdings
    held.regions = [(RegionDescription(*reader.take(_REGION)), reader.descriptor()) for _ in range(regions)]
    if presence & _HAS_INFLIGHT:
        held.inflight = (InflightDescription(*reader.take(_INFLIGHT)), reader.descriptor())
    if presence & _HAS_LOG:
        size, offset = reader.take(_LOG)
        held.log = (size, offset, reader.descriptor())
    if presence & _HAS_LOG_SIGNAL:
        held.log_signal = reader.descriptor()
    snapshot.rings = [_parse_ring(reader, index) for index in range(rings)]
    reader.finish()


def _parse_ring(reader: _Reader, index: int) -> RingState:
    flags, size, base, address_flags, descriptors, used, available, log = reader.take(_RING)
    ring = RingState()
    ring.size, ring.base = size, base
    ring.enabled = bool(flags & _ENABLED)
    ring.failed = bool(flags & _FAILED)
    ring.running = bool(flags & _RUNNING)
    if flags & _HAS_ADDRESS:
        ring.address = VringAddress(index, address_flags, descriptors, used, available, log)
    ring.kick = reader.descriptor() if flags & _HAS_KICK else None
    ring.call = reader.descriptor() if flags & _HAS_CALL else None
    ring.error = reader.descriptor() if flags & _HAS_ERROR else None
    ring.own_log = reader.descriptor() if flags & _HAS_OWN_LOG else None
    if ring.running and (ring.address is None or ring.kick is None):
        raise ChannelError(f"a snapshot says that queue {index} runs, but not where")
    return ring
