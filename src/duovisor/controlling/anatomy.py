"""The anatomy of a running VM: which process sits in which layer, and what of the host it can reach.

Nothing here is what we intended; everything is read from /proc while the VM runs, but for a driver's duty,
which its supervisor knows.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from duovisor.controlling.description import Duty
from duovisor.controlling.key_files import KEY_MEMORY
from duovisor.controlling.resources.group_folder import find_group, read_limits
from duovisor.controlling.resources.scope import NAME as SCOPE
from duovisor.controlling.snapshots.paging import ROLE as PAGER_ROLE
from duovisor.spec.vm import Design, DiskSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from duovisor.controlling.description import MachineDescription, ProcessDescription

PROC = Path("/proc")
FULL_CAPABILITIES = 30  # a process with more than this many is root in all but name
LIMIT_NAME = 26  # characters of the first column of /proc/PID/limits
SECCOMP_FILTER = "2"  # proc(5), Seccomp field


@dataclass(frozen=True)
class ProcessAnatomy:
    """One process: its layer, what it does, and what of the host it holds or could reach.

    ``duty`` says of a driver whether it serves its device or stands by.
    """

    layer: str
    role: str
    pid: int
    command: str
    host_access: tuple[str, ...]
    confinement: tuple[str, ...]
    drivers: tuple[str, ...]
    duty: Duty = Duty.NONE


@dataclass(frozen=True)
class Anatomy:
    """A VM's processes, from the controlling layer down, and what runs its processors."""

    name: str
    design: Design
    accelerator: str
    vmm: str
    vmm_reason: str
    processes: tuple[ProcessAnatomy, ...]


def read_anatomy(machine: MachineDescription) -> Anatomy:
    """Look at every process of a running VM; one that has just ended is left out."""
    manager = [_read_process("controlling", "manager", machine.owner_pid, (), machine)]
    rest = [
        _read_process(
            "hypervisor" if process.role == "vmm" else "controlling",
            process.role,
            process.pid,
            _drivers_of(process, machine),
            machine,
            process.duty,
        )
        for process in machine.processes
    ]
    ordered = manager + [p for p in rest if p and p.layer == "controlling"]
    ordered += [p for p in rest if p and p.layer == "hypervisor"]
    return Anatomy(
        name=machine.spec.name,
        design=machine.spec.design,
        accelerator=machine.accelerator,
        vmm=machine.current.vmm,
        vmm_reason=machine.current.vmm_reason,
        processes=tuple(process for process in ordered if process is not None),
    )


def _drivers_of(process: ProcessDescription, machine: MachineDescription) -> tuple[str, ...]:
    """The device drivers (back ends) inside a process."""
    if process.role == PAGER_ROLE:
        return ()
    if process.role != "vmm":
        return (process.device,)
    if machine.spec.design is Design.MICROKERNELIZED:
        return ()
    disks = [f"disk{index}" for index, _ in machine.spec.numbered_disks()]
    nics = [f"nic{index}" for index, _ in machine.spec.numbered_nics()]
    cdroms = [f"cdrom{index}" for index in range(len(machine.spec.cdroms))]
    return (*disks, *cdroms, *nics, *(f"device{index}" for index in range(len(machine.spec.devices))))


def _read_process(
    layer: str,
    role: str,
    pid: int,
    drivers: tuple[str, ...],
    machine: MachineDescription,
    duty: Duty = Duty.NONE,
) -> ProcessAnatomy | None:
    try:
        return ProcessAnatomy(
            layer=layer,
            role=role,
            pid=pid,
            command=(PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip(),
            host_access=tuple(_host_access(pid, machine)),
            confinement=tuple(_confinement(pid)),
            drivers=drivers,
            duty=duty,
        )
    except (FileNotFoundError, ProcessLookupError):
        return None


def _host_access(pid: int, machine: MachineDescription) -> Iterator[str]:
    try:
        yield from sorted(set(_held(pid, machine)))
        for namespace, meaning in (
            ("mnt", "host file system"),
            ("net", "host network"),
            ("pid", "host processes"),
        ):
            if _namespace(pid, namespace) == _namespace("self", namespace):
                yield meaning
    except PermissionError:
        yield "unknown: this user may not look into the process"


def _held(pid: int, machine: MachineDescription) -> Iterator[str]:
    """What the process's descriptors and mappings stand for."""
    images = {_find_identity(disk.path): disk for disk in machine.spec.media}
    for link in (PROC / str(pid) / "fd").iterdir():
        try:
            target, status = os.readlink(link), link.stat()
        except FileNotFoundError:
            continue
        disk = images.get((status.st_dev, status.st_ino))
        if disk is not None:
            writes = isinstance(disk, DiskSpec) and not disk.read_only
            yield f"image {disk.path} ({'read-write' if writes else 'read-only'})"
        elif stat.S_ISCHR(status.st_mode) and target != "/dev/null" and not target.startswith("/dev/pts"):
            yield f"device {target}"
        elif stat.S_ISBLK(status.st_mode):
            yield f"block device {target}"
        elif target.startswith(KEY_MEMORY):
            yield "disk key"
    if machine.memory_file and _maps(pid, machine.memory_file):
        yield "guest memory"


def _find_identity(path: str) -> tuple[int, int] | None:
    """What tells the file from every other; None when it is not under that name any more."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _maps(pid: int, memory_file: str) -> bool:
    identity = _find_identity(memory_file)
    if identity is None:
        return False
    wanted = identity[1]
    for line in (PROC / str(pid) / "maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) > 4 and int(fields[4]) == wanted:
            return True
    return False


def _namespace(pid: int | str, name: str) -> str:
    return os.readlink(PROC / str(pid) / "ns" / name)


def _confinement(pid: int) -> Iterator[str]:
    fields = dict(
        line.split(":\t", 1)
        for line in (PROC / str(pid) / "status").read_text().splitlines()
        if ":\t" in line
    )
    yield f"uid {fields['Uid'].split()[0]}"
    capabilities = int(fields["CapEff"], 16).bit_count()
    yield (
        "no capabilities"
        if not capabilities
        else ("all capabilities" if capabilities > FULL_CAPABILITIES else f"{capabilities} capabilities")
    )
    if fields.get("Seccomp") == SECCOMP_FILTER:
        yield "seccomp"
    if fields.get("NoNewPrivs") == "1":
        yield "no new privileges"
    yield from _limits(pid)


def _limits(pid: int) -> Iterator[str]:
    """What it may use: private memory and threads by itself, and in its group where it has one."""
    rows = (PROC / str(pid) / "limits").read_text().splitlines()
    soft = {row[:LIMIT_NAME].strip(): row[LIMIT_NAME:].split()[0] for row in rows[1:]}
    if soft["Max data size"] != "unlimited":
        yield f"at most {int(soft['Max data size']) >> 20} MiB of its own, {soft['Max processes']} threads"
    leaf = find_group(pid)
    limits = read_limits(leaf) if leaf is not None and SCOPE.fullmatch(leaf.parent.name) else None
    if limits is not None:
        yield f"cgroup of {limits.memory_mib} MiB, {limits.processes} threads"
