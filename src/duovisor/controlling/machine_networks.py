"""The TAPs of a VM's bridged network cards: opened for a start, or taken from who holds them."""

from __future__ import annotations

import contextlib
import logging
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING

from duovisor.controlling.errors import NetworkError
from duovisor.controlling.networks.bridged import check_bridge, is_tap, open_bridged_tap, require_bridge
from duovisor.controlling.networks.card_filter import forget_filter, install_filter, remove_filter
from duovisor.controlling.networks.interfaces import read_tap_name
from duovisor.controlling.networks.moving import prepare_move
from duovisor.controlling.supervision.adoption import list_descriptors, take_descriptor
from duovisor.errors import DuovisorError
from duovisor.hypervisor.qemu.nics import mac_of, nic_socket
from duovisor.spec.vm import Design

if TYPE_CHECKING:
    from collections.abc import Iterable

    from duovisor.controlling.networks.moving import CardMove
    from duovisor.spec.vm import NicSpec, VirtualMachineSpec

_log = logging.getLogger("duovisord")


def check_networks(spec: VirtualMachineSpec) -> None:
    """Raises ``NetworkError`` when a card's bridge is not there."""
    for nic in spec.nics:
        if nic.is_bridged:
            check_bridge(require_bridge(nic))


def open_taps(spec: VirtualMachineSpec, held: ExitStack) -> dict[str, int]:
    """A new TAP for each bridged card, by the card's name; ``held`` closes them.

    Raises ``NetworkError`` or ``HostLacksError``.
    """
    taps = {nic_socket(index): open_card_tap(spec, index, held) for index, _ in spec.numbered_nics()}
    return {name: tap for name, tap in taps.items() if tap is not None}


def open_card_tap(spec: VirtualMachineSpec, index: int, held: ExitStack) -> int | None:
    """A new TAP for card ``index``, if it is bridged; ``held`` closes it. Raises as ``open_taps``."""
    return _open_tap(spec, index, held) if spec.nic_at(index).is_bridged else None


def adopt_tap(spec: VirtualMachineSpec, index: int, pids: Iterable[int], held: ExitStack) -> int:
    """The TAP of card ``index`` that one of its drivers holds, or else a new one; ``held`` closes it.

    Raises as ``open_taps``.
    """
    tap = next((tap for pid in pids if (tap := take_descriptor(pid, is_tap)) is not None), None)
    if tap is None:
        return _open_tap(spec, index, held)
    _hold_tap(tap, host_card(spec, index), held)
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


def host_card(spec: VirtualMachineSpec, index: int) -> NicSpec:
    """Card ``index`` as the host's packet filter is to see it: the limits that its driver keeps are none."""
    nic = spec.nic_at(index)
    return nic if spec.design is Design.MONOLITHIC else nic.without_limits()


def restore_rules(spec: VirtualMachineSpec, pids: Iterable[int], ruled: set[str]) -> None:
    """Put the rules of a running VM's cards in force again, whoever removed them; ``pids`` hold its TAPs.

    The VM runs on where that fails, and the log says so. ``ruled`` gets the names of those TAPs.
    """
    cards = {nic_socket(index): (index, host_card(spec, index)) for index, _ in spec.numbered_nics()}
    if not any((nic.is_filtered or nic.is_limited) for _, nic in cards.values()):
        return
    with ExitStack() as found:
        try:
            for name, tap in find_taps(spec, pids, found).items():
                index, nic = cards[name]
                if nic.is_filtered or nic.is_limited:
                    ruled.add(read_tap_name(tap))
                    install_filter(read_tap_name(tap), mac_of(spec.name, index, nic), nic)
        except (DuovisorError, OSError) as error:
            _log.warning("the rules of %s's cards may be missing: %s", spec.name, error)


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


def _open_tap(spec: VirtualMachineSpec, index: int, held: ExitStack) -> int:
    nic = host_card(spec, index)
    tap = open_bridged_tap(spec.name, index, nic, mac_of(spec.name, index, nic))
    _hold_tap(tap, nic, held)
    return tap


def _hold_tap(tap: int, nic: NicSpec, held: ExitStack) -> None:
    """Close a TAP with ``held``, and remove its rules if it is gone then."""
    if nic.is_filtered or nic.is_limited:
        held.callback(_remove_rules, read_tap_name(tap))
    held.callback(os.close, tap)


def change_rules(spec: VirtualMachineSpec, index: int, pids: Iterable[int], ruled: set[str]) -> None:
    """Put card ``index``'s rules in force for the TAP that these processes hold, whose name ``ruled`` gets.

    Raises ``NetworkError`` or ``HostLacksError``; what was in force is, then.
    """
    nic = host_card(spec, index)
    with ExitStack() as found:
        tap = find_taps(spec, pids, found).get(nic_socket(index))
        if tap is None:
            raise NetworkError(f"{nic_socket(index)} of {spec.name} has no TAP on this host")
        name = read_tap_name(tap)
        if nic.is_filtered or nic.is_limited:
            ruled.add(name)
            install_filter(name, mac_of(spec.name, index, nic), nic)
        else:
            forget_filter(name)


def remove_rules(taps: Iterable[str]) -> None:
    """Remove the rules of TAPs that are gone."""
    for tap in taps:
        _remove_rules(tap)


def _remove_rules(tap: str) -> None:
    with contextlib.suppress(DuovisorError):  # a sweep finds them, or removed them just now
        remove_filter(tap)
