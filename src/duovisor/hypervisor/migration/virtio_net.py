"""What a virtio network card itself saves, between its queues and its subsections.

Source: QEMU ``hw/net/virtio-net.c`` (``vmstate_virtio_net_device``); the same in 7.2 and 10.0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from duovisor.hypervisor.migration.features import CTRL_GUEST_OFFLOADS

if TYPE_CHECKING:
    from duovisor.hypervisor.migration.reader import Reader
    from duovisor.hypervisor.migration.virtio import VirtioHead

QUEUES = 3  # to receive, to transmit, for control: our cards have one pair
_MAC_BYTES, _VLAN_BYTES = 6, 4096 // 8


def read_card(reader: Reader, head: VirtioHead) -> bool:
    """Pass it over; whether packets have a header for offloads, as a bridged card's do.

    Raises ``StreamError``.
    """
    if head.queues > QUEUES:
        raise reader.fail(f"a network card with {head.queues} queues")
    reader.skip(_MAC_BYTES + 4 + 4 + 2 + 1 + 1, "network card")  # address, waiting, mergeable, status, modes
    addresses = reader.u32("table of MAC addresses")
    reader.skip(addresses * _MAC_BYTES, "table of MAC addresses")
    reader.skip(_VLAN_BYTES, "table of VLANs")
    has_header = bool(reader.u32("header for offloads"))
    reader.skip(6 + 1, "filters of the network card")  # six of them, and whether the back end segments UDP
    if head.features & CTRL_GUEST_OFFLOADS:
        reader.skip(8, "offloads of the guest")
    return has_header
