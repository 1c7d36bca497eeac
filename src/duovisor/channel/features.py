"""Feature bits that the channel itself acts on; a device adds those of its own type.

Sources: virtio 1.2, sections 6 and 2.7; vhost-user specification, "Protocol features"; Linux
``vhost_types.h``.
"""

from __future__ import annotations

# Ring features, offered by the back end and acknowledged by the guest.
RING_INDIRECT_DESC = 1 << 28
RING_EVENT_IDX = 1 << 29
VERSION_1 = 1 << 32
ACCESS_PLATFORM = 1 << 33
RING_PACKED = 1 << 34

# vhost's own bits, which live among the device features.
LOG_ALL = 1 << 26
PROTOCOL_FEATURES = 1 << 30

CHANNEL_FEATURES = RING_INDIRECT_DESC | RING_EVENT_IDX | VERSION_1 | LOG_ALL | PROTOCOL_FEATURES
# What the channel cannot do, so that a front end which insists is refused at once.
REFUSED_FEATURES = ACCESS_PLATFORM | RING_PACKED

# vhost-user protocol features.
PROTOCOL_MQ = 1 << 0
PROTOCOL_LOG_SHMFD = 1 << 1
PROTOCOL_REPLY_ACK = 1 << 3
PROTOCOL_CONFIG = 1 << 9
PROTOCOL_INFLIGHT_SHMFD = 1 << 12
PROTOCOL_RESET_DEVICE = 1 << 13
PROTOCOL_CONFIGURE_MEM_SLOTS = 1 << 15
PROTOCOL_STATUS = 1 << 16

CHANNEL_PROTOCOL_FEATURES = (
    PROTOCOL_MQ
    | PROTOCOL_LOG_SHMFD
    | PROTOCOL_REPLY_ACK
    | PROTOCOL_CONFIG
    | PROTOCOL_INFLIGHT_SHMFD
    | PROTOCOL_RESET_DEVICE
    | PROTOCOL_CONFIGURE_MEM_SLOTS
    | PROTOCOL_STATUS
)
