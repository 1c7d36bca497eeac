"""The TAPs of a VM's bridged network cards: opened for a start, or taken from who holds them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from duovisor.controlling.networks.bridged import check_bridge, is_tap, open_bridged_tap
from duovisor.controlling.supervision.adoption import take_descriptor
from duovisor.hypervisor.qemu.nics import mac_of, nic_socket

if TYPE_CHECKING:
    from collections.abc import Iterable
    from contextlib import ExitStack

    from duovisor.spec.vm import VirtualMachineSpec


def check_networks(spec: VirtualMachineSpec) -> None:
    """Raises ``NetworkError`` when a card's bridge is not there."""
    for nic in spec.nics:
        if nic.bridge is not None:
            check_bridge(nic.bridge)


def open_taps(spec: VirtualMachineSpec, held: ExitStack) -> dict[str, int]:
    """The TAP of each bridged card, by the card's name; ``held`` closes them.

    Raises ``NetworkError`` or ``HostLacksError``.
    """
    taps = {}
    for index, nic in enumerate(spec.nics):
        if nic.bridge is not None:
            tap = open_bridged_tap(spec.name, index, nic.bridge, mac_of(spec.name, index, nic))
            held.callback(os.close, tap)
            taps[nic_socket(index)] = tap
    return taps


def adopt_tap(spec: VirtualMachineSpec, index: int, pids: Iterable[int], held: ExitStack) -> int:
    """The TAP of card ``index`` that one of its drivers holds, or else a new one; ``held`` closes it.

    Raises as ``open_taps``.
    """
    nic = spec.nics[index]
    assert nic.bridge is not None
    tap = next((tap for pid in pids if (tap := take_descriptor(pid, is_tap)) is not None), None)
    if tap is None:
        tap = open_bridged_tap(spec.name, index, nic.bridge, mac_of(spec.name, index, nic))
    held.callback(os.close, tap)
    return tap
