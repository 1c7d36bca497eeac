"""The options that describe a VM on the command line, and the specification document they add up to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from duovisor.spec.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Command = TypeVar("Command", bound="Callable[..., Any]")

VOLUME = "volume="

_OPTIONS = (
    click.option("--image", help="Boot this image (see `duovisor image list`)."),
    click.option("--name", help="Name of the VM; by default the image's."),
    click.option(
        "--design",
        type=click.Choice(["monolithic", "microkernelized"]),
        help="Drivers inside the hypervisor layer, or in the controlling layer.  [default: monolithic]",
    ),
    click.option("--cpus", type=int, help="Number of vCPUs.  [default: 1]"),
    click.option("--cpus-max", type=int, help="Room for more that come while it runs.  [default: none]"),
    click.option(
        "--cpu-model",
        type=click.Choice(["host", "x86-64-v2", "x86-64-v3"]),
        help="What they have: all of the host's, or a level that is the same everywhere.  [default: host]",
    ),
    click.option("--memory", help="Guest memory: 512M, 2G; a bare number is MiB.  [default: 512M]"),
    click.option("--memory-max", help="Room for more that comes while it runs.  [default: none]"),
    click.option(
        "--disk",
        "disks",
        multiple=True,
        metavar="PATH|volume=NAME[,KEY=VALUE…]",
        help="A disk: an image, or a volume; keys: format, cache, read_only, serial, queues, queue_size, "
        "driver, key_file, sector_bytes, iops_limit, bandwidth_limit. Repeatable.",
    ),
    click.option(
        "--cdrom",
        "cdroms",
        multiple=True,
        metavar="PATH|volume=NAME|empty",
        help="A CD-ROM drive with an ISO image in it, or empty. Repeatable.",
    ),
    click.option(
        "--boot-order",
        metavar="KIND[,KIND…]",
        help="Of disk, cdrom, network: what firmware starts from.  [default: disk,cdrom]",
    ),
    click.option(
        "--nic",
        "nics",
        multiple=True,
        metavar="user|network=NAME|bridge=NAME[,KEY=VALUE…]",
        help="A NIC; keys: mac, mac_filter, vlan, address, in_limit, out_limit, "
        "firewall='in tcp 22;in icmp'. Repeatable.",
    ),
    click.option(
        "--device",
        "devices",
        multiple=True,
        metavar="rng|FILE.py",
        help="An entropy source, or a device with a driver of your own. Repeatable.",
    ),
    click.option(
        "--forward",
        "forwards",
        multiple=True,
        metavar="HOST:GUEST",
        help="Lead a host port on loopback to the first NIC, for example 2222:22. Repeatable.",
    ),
    click.option("--accelerator", type=click.Choice(["auto", "kvm", "tcg"]), help="[default: auto]"),
    click.option("--vmm", type=click.Choice(["auto", "thin", "qemu"]), help="The VMM. [default: auto]"),
    click.option("--firmware", type=click.Choice(["bios", "uefi", "direct-kernel"]), help="[default: bios]"),
    click.option(
        "--secure-boot",
        is_flag=True,
        default=None,
        help="UEFI that starts only what is signed with a key that it knows, at first Microsoft's.",
    ),
    click.option(
        "--tpm", is_flag=True, default=None, help="A TPM 2.0 of the VM's own, which keeps its keys."
    ),
    click.option(
        "--guest-agent",
        is_flag=True,
        default=None,
        help="A port for qemu-guest-agent: shutdown, addresses, time, freezing file systems.",
    ),
    click.option(
        "--graphics", is_flag=True, default=None, help="A screen, keyboard and pointer, seen by VNC."
    ),
    click.option("--kernel", type=click.Path(), help="Linux kernel to boot without firmware."),
    click.option(
        "--kernel-from-disk",
        is_flag=True,
        default=None,
        help="Take kernel and RAM disk from the first disk at each start: those that GRUB would start.",
    ),
    click.option("--initrd", type=click.Path(), help="Its initial RAM disk."),
    click.option("--append", help="Its command line."),
)


def vm_options(command: Command) -> Command:
    """Give a command the options that describe a VM."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def build_document(base: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """A specification document: the file's, with what the options say in its place or added to it.

    Raises ``SpecError`` where the file's cannot be added to.
    """
    document = dict(base)
    _check_kinds(document)
    for key in (
        "name",
        "design",
        "cpus",
        "cpus_max",
        "cpu_model",
        "memory",
        "memory_max",
        "accelerator",
        "vmm",
        "firmware",
    ):
        if options[key] is not None:
            document[key] = options[key]
    for key in ("tpm", "guest_agent", "graphics"):
        if options[key]:
            document[key] = True
    if options["secure_boot"]:
        document["secure_boot"] = True
        document.setdefault("firmware", "uefi")
    if options["memory"] is not None:
        document.pop("memory_mib", None)
    if options["memory_max"] is not None:
        document.pop("memory_max_mib", None)
    kernel = {
        key: options[option]
        for key, option in (("path", "kernel"), ("initrd", "initrd"), ("command_line", "append"))
        if options[option] is not None
    }
    if options["kernel_from_disk"]:
        kernel["disk"] = 0
    if kernel:
        document["kernel"] = {**document.get("kernel", {}), **kernel}
        document.setdefault("firmware", "direct-kernel")
    if options["disks"]:
        document["disks"] = [*document.get("disks", ()), *map(parse_disk, options["disks"])]
    if options["cdroms"]:
        document["cdroms"] = [*document.get("cdroms", ()), *map(parse_cdrom, options["cdroms"])]
    if options["boot_order"] is not None:
        document["boot_order"] = [kind.strip() for kind in options["boot_order"].split(",")]
    if options["devices"]:
        devices = [{"driver": find_driver(each)} for each in options["devices"]]
        document["devices"] = [*document.get("devices", ()), *devices]
    if options["nics"] or options["forwards"]:
        document["nics"] = _add_nics(document.get("nics", ()), options["nics"], options["forwards"])
    return document


def _check_kinds(document: Mapping[str, Any]) -> None:
    """What options and images are added to must be of the right kind; the rest is checked as a whole."""
    for key, kind, name in (
        ("disks", list | tuple, "a list"),
        ("nics", list | tuple, "a list"),
        ("devices", list | tuple, "a list"),
        ("cdroms", list | tuple, "a list"),
        ("ports", list | tuple, "a list"),
        ("kernel", dict, "a mapping"),
    ):
        if key in document and not isinstance(document[key], kind):
            raise SpecError(f"{key}: {_shorten(document[key])} is not {name}")


def _shorten(value: Any) -> str:
    from duovisor.spec.loading import shorten  # with pydantic: --help does without

    return shorten(repr(value))


def parse_disk(text: str) -> dict[str, Any]:
    """``PATH[,KEY=VALUE…]`` as a disk's document; a key alone means true. The path becomes absolute.

    ``volume=[POOL/]NAME`` may stand in the path's place.
    """
    path, *settings = text.split(",")
    document: dict[str, Any]
    if path.startswith(VOLUME):
        document = {"volume": path.removeprefix(VOLUME)}
    else:
        document = {"path": str(Path(path).absolute()) if path else ""}
    for setting in settings:
        key, _, value = setting.partition("=")
        document[key] = value if value else True
    if document.get("driver"):
        document["driver"] = find_driver(str(document["driver"]))
    if isinstance(document.get("key_file"), str):
        document["key_file"] = str(Path(document["key_file"]).absolute())
    return document


def parse_cdrom(text: str) -> dict[str, Any]:
    """``PATH``, ``volume=[POOL/]NAME`` or ``empty`` as a CD-ROM drive's document, with an absolute path."""
    if text.startswith(VOLUME):
        return {"volume": text.removeprefix(VOLUME)}
    return {} if text == "empty" else {"path": str(Path(text).absolute())}


def find_driver(text: str) -> str:
    """A driver as it was typed: its name, or the absolute path of its file."""
    return str(Path(text).absolute()) if text.endswith(".py") else text


def parse_nic(text: str) -> dict[str, Any]:
    """``user``, ``network=NAME`` or ``bridge=NAME``, then ``,KEY=VALUE…``, as a NIC's document."""
    document: dict[str, Any] = {}
    for position, setting in enumerate(text.split(",")):
        key, equals, value = setting.partition("=")
        if not position and not equals:
            document["network"] = key
        else:
            document[key] = value if equals else True
    return document


def _add_nics(given: Any, nics: tuple[str, ...], forwards: tuple[str, ...]) -> list[Any]:
    documents = [*given, *map(parse_nic, nics)] or [{}]
    if not forwards:
        return documents
    first = documents[0]
    given_forwards = first.get("forward", ()) if isinstance(first, dict) else None
    if not isinstance(given_forwards, list | tuple):
        raise SpecError(f"nics.0: {_shorten(first)} cannot be given a --forward")
    return [{**first, "forward": [*given_forwards, *forwards]}, *documents[1:]]
