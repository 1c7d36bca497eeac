"""What VMs of a trial have besides a disk: CD-ROM drives, TPMs, UEFI variables, cards, room for processors.

And what is left of those, or is not as the definition says.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.service_process import build_small_vm
from tests.networks import list_ports

from duovisor.spec.vm import Design

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable

    from duovisor.controlling.description import MachineDescription
    from duovisor.directories import Directories

ISOS = ("first.iso", "second.iso")
ISO_BYTES = 64 << 10
HAS_DRIVE, HAS_TPM, HAS_UEFI, HAS_CARD, HAS_ROOM = 0.5, 0.3, 0.1, 0.4, 0.5
CPUS_MAX = 3
UEFI_MEMORY_MIB = 64
DESIGNS = tuple(Design)


def write_isos(folder: Path) -> None:
    """The media that are put into drives."""
    for name in ISOS:
        (folder / name).write_bytes(bytes(ISO_BYTES))


def build_vm(
    name: str, disk: Path, choose: random.Random, *, devices: bool, bridge: str | None
) -> dict[str, Any]:
    """The specification of a small VM, with some of those ``devices`` or none; cards are on ``bridge``."""
    spec = build_small_vm(name, choose.choice(DESIGNS), disk)
    if not devices:
        return spec
    if choose.random() < HAS_DRIVE:
        spec["cdroms"] = [choose.choice([{}, {"path": str(disk.with_name(ISOS[0]))}])]
    if choose.random() < HAS_UEFI:
        spec |= {"firmware": "uefi", "memory_mib": UEFI_MEMORY_MIB, "tpm": True}
    elif choose.random() < HAS_TPM:
        spec["tpm"] = True
    if bridge is not None and choose.random() < HAS_CARD:
        spec["nics"] = [{"bridge": bridge}]
    if choose.random() < HAS_ROOM:
        spec |= {"cpus_max": CPUS_MAX, "vmm": "qemu"}
    return spec


def find_processor_faults(name: str, vm: dict[str, Any], description: MachineDescription) -> list[str]:
    """Whether a running VM has more processors than its definition.

    Fewer are right: those that were asked for when the service was killed come at the next start.
    """
    defined, has = vm["record"]["spec"]["cpus"], description.spec.cpus
    return [f"{name} has {has} processors, and is defined with {defined}"] if has > defined else []


def find_card_faults(bridge: str, known: Iterable[MachineDescription]) -> list[str]:
    """Whether the ports of the bridge are those of the running VMs' cards."""
    ports, cards = list_ports(bridge), sum(len(each.spec.nics) for each in known)
    return [] if len(ports) == cards else [f"the bridge has the ports {ports}, the VMs {cards} cards"]


def list_media(spec: dict[str, Any]) -> list[str]:
    """What is in the drives of a VM's definition."""
    return [cdrom["path"] for cdrom in spec["cdroms"]]


def find_media_faults(name: str, vm: dict[str, Any], description: MachineDescription) -> list[str]:
    """Where definition, run folder and processes differ in what is in a VM's drives, one line each."""
    defined = list_media(vm["record"]["spec"])
    described = [cdrom.path for cdrom in description.spec.cdroms]
    found = (
        []
        if defined == described
        else [f"{name} has {described} in its drives, and is defined with {defined}"]
    )
    served = sorted(each.device for each in description.processes if each.role == "media server")
    if description.spec.design is Design.MICROKERNELIZED:
        wanted = [f"cdrom{index}" for index, path in enumerate(described) if path]
        return found if served == wanted else [*found, f"{name} serves the drives {served}, not {wanted}"]
    vmm = next(each for each in description.processes if each.is_vmm)
    opened = {path for path in list_open_files(vmm.pid) if path.endswith(ISOS)}
    return found if opened == {*described} - {""} else [*found, f"{name} reads {opened}, not {described}"]


def list_open_files(pid: int) -> set[str]:
    """What a process has open, by path; nothing of one that has ended."""
    found = set()
    try:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            found.add(os.readlink(link))
    except OSError:
        pass
    return found


def find_leftovers(directories: Directories, uuids: set[str]) -> list[str]:
    """Folders of what outlasts a run, variables and TPMs, that belong to no VM."""
    folder = directories.state / "vms"
    left = {path.name for path in folder.iterdir()} - uuids if folder.is_dir() else set()
    return [f"variables or TPMs of nothing: {sorted(left)}"] if left else []
