"""How bridged network cards are served: from the specification to what a driver is started with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from duovisor.controlling.partitions.limits import build_limits
from duovisor.controlling.supervision.plan import DevicePlan
from duovisor.hypervisor.qemu.nics import mac_of, nic_socket
from duovisor.sandbox import uid_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from duovisor.spec.vm import NicSpec, VirtualMachineSpec

NETWORK_ROLE = "network driver"


def build_net_words(spec: VirtualMachineSpec, index: int) -> tuple[str, ...]:
    """The options of the network driver of a bridged card."""
    nic = spec.nic_at(index)
    return () if nic.mac_filter is False else ("--mac", mac_of(spec.name, index, nic))


def rate_of_card(nic: NicSpec) -> tuple[int, int]:
    """How many bytes a second a card's driver lets through, to the guest and from it; 0 is no limit."""
    return nic.in_limit or 0, nic.out_limit or 0


def plan_nic(spec: VirtualMachineSpec, index: int, descriptors: Mapping[str, int]) -> DevicePlan:
    """How the bridged card ``index`` is served; ``descriptors`` are what its driver may hold."""
    nic = spec.nic_at(index)
    return DevicePlan(
        device=nic_socket(index),
        role=NETWORK_ROLE,
        driver="net",
        words=build_net_words(spec, index),
        descriptors=descriptors,
        hang_s=nic.driver_hang_s,
        on_failure=nic.on_driver_failure,
        uid=uid_of(spec.name),
        limits=build_limits(spec.memory_room_mib),
        rate=rate_of_card(nic),
        kind="net",
    )
