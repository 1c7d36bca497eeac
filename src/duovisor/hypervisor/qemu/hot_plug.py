"""Disks and network cards for a QEMU that runs: the command line's words for them as QMP commands.

Pure. A device that is plugged in is what it would be at a start, for it is built by the same functions.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from duovisor.hypervisor.qemu.disks import build_disks, disk_socket
from duovisor.hypervisor.qemu.nics import SANDBOX_CHANNELS, build_nics, nic_socket
from duovisor.spec.vm import Design

if TYPE_CHECKING:
    from collections.abc import Sequence

    from duovisor.hardware.qemu import QemuAbilities
    from duovisor.hypervisor.qemu.images import ImageFile
    from duovisor.spec.vm import Accelerator, VirtualMachineSpec

# properties that are text though they may look like a number or a switch
_TEXT = frozenset({"id", "bus", "addr", "serial", "mac", "drive", "netdev", "disable-legacy", "romfile"})


class Command(NamedTuple):
    """A QMP command."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Plug:
    """How ``device`` gets into a QEMU that runs, in this order: the channel to its driver, what is behind
    it, itself.

    ``descriptors`` are handed to QEMU before, by these names: sockets that listen, or a TAP. ``binds`` are
    sockets that it binds itself.
    """

    device: str
    channel: tuple[Command, ...]
    back_end: tuple[Command, ...]
    front_end: Command
    descriptors: tuple[str, ...]
    binds: tuple[str, ...] = ()


def build_disk_plug(
    spec: VirtualMachineSpec, slot: int, qemu: QemuAbilities, chain: Sequence[ImageFile]
) -> Plug:
    """How the disk with this slot is plugged in; ``chain`` is its image and what that is based on.

    Raises ``PlanError`` for what the design cannot have.
    """
    disk = spec.disk_at(slot).model_copy(update={"slot": slot})
    alone = spec.model_copy(update={"disks": (disk,)})
    inside = spec.design is Design.MONOLITHIC
    words = build_disks(alone, qemu, chains=(tuple(chain),))
    return _read(disk_socket(slot), words, descriptors=() if inside else (disk_socket(slot),))


def build_nic_plug(
    spec: VirtualMachineSpec, slot: int, qemu: QemuAbilities, accelerator: Accelerator
) -> Plug:
    """How the network card with this slot is plugged in. Raises ``PlanError``."""
    nic = spec.nic_at(slot).model_copy(update={"slot": slot})
    words = build_nics(spec.model_copy(update={"nics": (nic,)}), qemu, accelerator)
    name, inside = nic_socket(slot), spec.design is Design.MONOLITHIC
    taps = (name,) if inside and nic.bridge is not None else ()
    plug = _read(name, words, descriptors=taps, binds=() if inside else (name,))
    return plug if inside or nic.bridge is not None else _listen_early(plug)


def _listen_early(plug: Plug) -> Plug:
    """A card whose helper connects to QEMU's back end itself, on a socket that QEMU binds.

    QEMU 7.2 listens from a thread that knows no descriptor by a name, and dies of that (net/stream.c).
    """
    (netdev,) = plug.back_end
    address = {"type": "unix", "path": f"{SANDBOX_CHANNELS}/{plug.device}.sock"}
    listen = Command(netdev.name, {**netdev.arguments, "addr": address})
    return replace(plug, channel=(listen,), back_end=())


def _read(
    device: str, words: Sequence[str], *, descriptors: tuple[str, ...], binds: tuple[str, ...] = ()
) -> Plug:
    channel, back_end, front_end = [], [], []
    for option, word in pairwise(words):
        match option:
            case "-chardev":
                channel.append(_read_chardev(word))
            case "-object":
                back_end.append(Command("object-add", json.loads(word)))
            case "-blockdev":
                back_end.append(Command("blockdev-add", json.loads(word)))
            case "-netdev":
                back_end.append(_read_netdev(word))
            case "-device":
                front_end.append(_read_device(word))
    (only,) = front_end
    return Plug(device, tuple(channel), tuple(back_end), only, descriptors, binds)


def _read_chardev(word: str) -> Command:
    """A socket of which QEMU is the server, on a descriptor or under a path."""
    _, pairs = _split(word)
    given = dict(pairs)
    if "fd" in given:
        address = {"type": "fd", "data": {"str": _name_of(given["fd"])}}
    else:
        address = {"type": "unix", "data": {"path": given["path"]}}
    socket = {"addr": address, "server": True, "wait": False}
    return Command("chardev-add", {"id": given["id"], "backend": {"type": "socket", "data": socket}})


def _read_netdev(word: str) -> Command:
    kind, pairs = _split(word)
    arguments: dict[str, Any] = {"type": kind}
    for key, value in pairs:
        match key:
            case "hostfwd":
                arguments.setdefault("hostfwd", []).append({"str": value})
            case "addr.type":
                arguments.setdefault("addr", {})["type"] = value
            case "addr.str":
                arguments.setdefault("addr", {})["str"] = _name_of(value)
            case "fd":
                arguments["fd"] = _name_of(value)
            case "queues":
                arguments["queues"] = int(value)
            case _:
                arguments[key] = {"on": True, "off": False}.get(value, value)
    return Command("netdev_add", arguments)


def _read_device(word: str) -> Command:
    """QEMU from 9.2 on takes a switch or a number for what is one, and no text (qdev_device_add)."""
    driver, pairs = _split(word)
    arguments: dict[str, Any] = {"driver": driver}
    for key, value in pairs:
        if key in _TEXT:
            arguments[key] = value
        elif value in ("on", "off"):
            arguments[key] = value == "on"
        else:
            arguments[key] = int(value) if value.isdecimal() else value
    return Command("device_add", arguments)


def _split(word: str) -> tuple[str, list[tuple[str, str]]]:
    kind, *settings = word.split(",")
    return kind, [(key, value) for key, _, value in (each.partition("=") for each in settings)]


def _name_of(placeholder: str) -> str:
    """The descriptor that ``@NAME@`` stands for."""
    return placeholder.strip("@")
