"""The TAPs of a VM's bridged network cards: opened for a start, or taken from who holds them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from duovisor.controlling.networks.bridged import check_bridge, is_tap, open_bridged_tap
from duovisor.controlling.networks.interfaces import read_tap_name
from duovisor.controlling.networks.moving import prepare_move
from duovisor.controlling.supervision.adoption import list_descriptors, take_descriptor
from duovisor.hypervisor.qemu.nics import mac_of, nic_socket

if TYPE_CHECKING:
    from collections.abc import Iterable
    from contextlib import ExitStack

    from duovisor.controlling.networks.moving import CardMove
    from duovisor.spec.vm import VirtualMachineSpec


def check_networks(spec: VirtualMachineSpec) -> None:
    """Raises ``NetworkError`` when a card's bridge is not there."""
    for nic in spec.nics:
        if nic.bridge is not None:
            check_bridge(nic.bridge)


def open_taps(spec: VirtualMachineSpec, held: ExitStack) -> dict[str, int]:
    """A new TAP for each bridged card, by the card's name; ``held`` closes them.

    Raises ``NetworkError`` or ``HostLacksError``.
    """
    taps = {nic_socket(index): open_card_tap(spec, index, held) for index, _ in spec.numbered_nics()}
    return {name: tap for name, tap in taps.items() if tap is not None}


def open_card_tap(spec: VirtualMachineSpec, index: int, held: ExitStack) -> int | None:
    """A new TAP for card ``index``, if it is bridged; ``held`` closes it. Raises as ``open_taps``."""
    nic = spec.nic_at(index)
    if nic.bridge is None:
        return None
    tap = open_bridged_tap(spec.name, index, nic.bridge, mac_of(spec.name, index, nic))
    held.callback(os.close, tap)
    return tap


def adopt_tap(spec: VirtualMachineSpec, index: int, pids: Iterable[int], held: ExitStack) -> int:
    """The TAP of card ``index`` that one of its drivers holds, or else a new one; ``held`` closes it.

    Raises as ``open_taps``.
    """
    nic = spec.nic_at(index)
    assert nic.bridge is not None
    tap = next((tap for pid in pids if (tap := take_descriptor(pid, is_tap)) is not None), None)
    if tap is None:
        tap = open_bridged_tap(spec.name, index, nic.bridge, mac_of(spec.name, index, nic))
    held.callback(os.close, tap)
    return tap


def find_taps(spec: VirtualMachineSpec, pids: Iterable[int], held: ExitStack) -> dict[str, int]:
    """The TAPs that the processes of a VM hold, by the card's name; ``held`` closes them.

    Which card a TAP is for is the last word of its name.
    """
    taps: dict[str, int] = {}
    names = {str(index): nic_socket(index) for index, nic in spec.numbered_nics() if nic.bridge is not None}
    for tap in (each for pid in pids for each in list_descriptors(pid, is_tap)):
        held.callback(os.close, tap)
        name = names.get(read_tap_name(tap).rpartition("-")[2])
        if name is not None:
            taps.setdefault(name, tap)
    return taps


def prepare_moves(
    spec: VirtualMachineSpec, old: dict[str, int], new: dict[str, int], held: ExitStack
) -> dict[str, CardMove]:
    """The move of each bridged card from its TAP to a fresh one, which gets no frames until then.

    ``held`` closes the moves. Raises as ``open_taps``; no card has moved then.
    """
    moves = {}
    for index, nic in spec.numbered_nics():
        if nic.bridge is not None:
            name = nic_socket(index)
            moves[name] = prepare_move(old[name], new[name], mac_of(spec.name, index, nic))
            held.callback(moves[name].close)
    return moves
