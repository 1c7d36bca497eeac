"""virtio-net as numbers: features, the header before each frame, and what of them a TAP takes.

Sources: virtio 1.2, section 5.1; Linux ``if_tun.h``.
"""

from __future__ import annotations

from struct import Struct

from duovisor.channel.features import VERSION_1

DEVICE_ID = 1
RECEIVE, TRANSMIT = 0, 1
QUEUES = 2

CSUM = 1 << 0
GUEST_CSUM = 1 << 1
GUEST_TSO4 = 1 << 7
GUEST_TSO6 = 1 << 8
GUEST_ECN = 1 << 9
HOST_TSO4 = 1 << 11
HOST_TSO6 = 1 << 12
HOST_ECN = 1 << 13
MERGEABLE_BUFFERS = 1 << 15
GUEST_ANNOUNCE = 1 << 21  # the VMM's own work, through its control queue; offered so that it may

# What QEMU's virtio-net has on a TAP, as hypervisor/qemu/nics.py asks for it. Queues for control, the MAC
# address and the link's state are the VMM's own, and no matter of a driver.
OFFERED_FEATURES = (
    CSUM | GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN | HOST_TSO4 | HOST_TSO6 | HOST_ECN
    | MERGEABLE_BUFFERS | GUEST_ANNOUNCE
)  # fmt: skip

HEADER_BYTES = 12
LEGACY_HEADER_BYTES = 10  # of a guest that knows neither virtio 1.0 nor mergeable buffers
BUFFER_COUNT = Struct("<H")
BUFFER_COUNT_OFFSET = 10  # of num_buffers in the header; the kernel leaves these two bytes alone
ETHERNET_BYTES = 14
MAC_BYTES = 6
FRAME_BYTES_MAX = 1 << 16  # a TAP segments what is larger
OVERFLOW_BYTES = FRAME_BYTES_MAX + 4096

# linux/if_tun.h: TUN_F_*
_TAP_OFFLOADS = {GUEST_CSUM: 1, GUEST_TSO4: 2, GUEST_TSO6: 4, GUEST_ECN: 8}


def header_bytes(features: int) -> int:
    """Size of the header before each frame, as the guest's features say."""
    return HEADER_BYTES if features & (VERSION_1 | MERGEABLE_BUFFERS) else LEGACY_HEADER_BYTES


def tap_offloads(features: int) -> int:
    """What a TAP may leave undone for this guest, as TUNSETOFFLOAD wants it; nothing without checksums."""
    if not features & GUEST_CSUM:
        return 0
    if not features & (GUEST_TSO4 | GUEST_TSO6):
        features &= ~GUEST_ECN  # the kernel refuses the one without the other
    return sum(flag for feature, flag in _TAP_OFFLOADS.items() if features & feature)
