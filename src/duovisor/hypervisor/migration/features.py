"""Virtio's feature bits by name, and those that a device can have in both designs.

Sources: virtio 1.2, sections 5.1.3, 5.2.3 and 6; QEMU ``hw/block/vhost-user-blk.c``, ``hw/net/vhost_net.c``
(``user_feature_bits``). Whoever goes on with a device must know what its guest negotiated: QEMU refuses other
features too, but says only a number.
"""

from __future__ import annotations

CTRL_GUEST_OFFLOADS = 1 << 2

_COMMON = {
    24: "NOTIFY_ON_EMPTY",
    27: "ANY_LAYOUT",
    28: "INDIRECT_DESC",
    29: "EVENT_IDX",
    32: "VERSION_1",
    33: "ACCESS_PLATFORM",
    34: "RING_PACKED",
    35: "IN_ORDER",
    36: "ORDER_PLATFORM",
    37: "SR_IOV",
    38: "NOTIFICATION_DATA",
    40: "RING_RESET",
}
_BLOCK = {
    1: "SIZE_MAX",
    2: "SEG_MAX",
    4: "GEOMETRY",
    5: "RO",
    6: "BLK_SIZE",
    7: "SCSI",
    9: "FLUSH",
    10: "TOPOLOGY",
    11: "CONFIG_WCE",
    12: "MQ",
    13: "DISCARD",
    14: "WRITE_ZEROES",
    16: "SECURE_ERASE",
    17: "ZONED",
}
_NET = {
    0: "CSUM",
    1: "GUEST_CSUM",
    2: "CTRL_GUEST_OFFLOADS",
    3: "MTU",
    5: "MAC",
    6: "GSO",
    7: "GUEST_TSO4",
    8: "GUEST_TSO6",
    9: "GUEST_ECN",
    10: "GUEST_UFO",
    11: "HOST_TSO4",
    12: "HOST_TSO6",
    13: "HOST_ECN",
    14: "HOST_UFO",
    15: "MRG_RXBUF",
    16: "STATUS",
    17: "CTRL_VQ",
    18: "CTRL_RX",
    19: "CTRL_VLAN",
    20: "CTRL_RX_EXTRA",
    21: "GUEST_ANNOUNCE",
    22: "MQ",
    23: "CTRL_MAC_ADDR",
    54: "GUEST_USO4",
    55: "GUEST_USO6",
    56: "HOST_USO",
    57: "HASH_REPORT",
    59: "GUEST_HDRLEN",
    60: "RSS",
    61: "RSC_EXT",
    62: "STANDBY",
    63: "SPEED_DUPLEX",
}


def _mask(names: dict[int, str], *wanted: str) -> int:
    return sum(1 << bit for bit, name in (names | _COMMON).items() if name in wanted)


_BOTH = ("INDIRECT_DESC", "EVENT_IDX", "VERSION_1")
# a disk: what QEMU's virtio-blk and our storage driver both offer
DISK = _mask(
    _BLOCK, *_BOTH, "SEG_MAX", "GEOMETRY", "RO", "BLK_SIZE", "FLUSH", "TOPOLOGY", "CONFIG_WCE", "MQ",
    "DISCARD", "WRITE_ZEROES",
)  # fmt: skip
# a bridged card: what QEMU's on a TAP and our network driver both offer, and what is QEMU's own work in both
BRIDGED_NIC = _mask(
    _NET, *_BOTH, "CSUM", "GUEST_CSUM", "GUEST_TSO4", "GUEST_TSO6", "GUEST_ECN", "HOST_TSO4", "HOST_TSO6",
    "HOST_ECN", "MRG_RXBUF", "MAC", "STATUS", "CTRL_VQ", "CTRL_RX", "CTRL_VLAN", "CTRL_RX_EXTRA",
    "GUEST_ANNOUNCE", "CTRL_MAC_ADDR",
)  # fmt: skip


def name_disk_features(features: int) -> str:
    """The feature bits of a disk as text."""
    return _describe(features, _BLOCK)


def name_nic_features(features: int) -> str:
    """The feature bits of a network card as text."""
    return _describe(features, _NET)


def _describe(features: int, names: dict[int, str]) -> str:
    known = names | _COMMON
    bits = [bit for bit in range(features.bit_length()) if features >> bit & 1]
    return ", ".join(known.get(bit, f"bit {bit}") for bit in bits)
