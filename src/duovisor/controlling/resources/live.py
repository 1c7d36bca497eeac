"""Other limits for a VM that runs: systemd, to whom its scope belongs, is told, then the kernel is asked.

Writing into the scope's folder ourselves would do until systemd writes what it knows, at a daemon-reload.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from duovisor import process
from duovisor.controlling.errors import ControllingError
from duovisor.controlling.resources.limits import build_vm_group_limits
from duovisor.controlling.resources.processors import cannot_keep
from duovisor.hardware.attributes import read_text

if TYPE_CHECKING:
    from pathlib import Path

    from duovisor.controlling.resources.vm_group import VmGroup
    from duovisor.hardware.capabilities import HostCapabilities
    from duovisor.spec.vm import VirtualMachineSpec

TIMEOUT_S = 20.0
WEIGHT = 100  # what everybody has


class MemoryInUseError(ControllingError):
    """The VM uses more than it is to be allowed."""

    code = "memory-in-use"


async def change_limits(group: VmGroup, spec: VirtualMachineSpec, capabilities: HostCapabilities) -> None:
    """Let a running VM have what ``spec`` says. Raises ``HostLacksError`` or ``MemoryInUseError``."""
    folder, systemd_run = group.folder, capabilities.tools.systemd_run
    if folder is None or systemd_run is None:
        raise cannot_keep(spec, group.problem or capabilities.groups_problem or "it has no group")
    wanted = build_vm_group_limits(spec).memory_mib
    used_mib = read_used(folder) >> 20
    if wanted <= used_mib:
        raise MemoryInUseError(
            f"{spec.name} uses {used_mib} MiB of memory, more than {wanted}: it would be ended",
            remedy="shut it down first, or leave it more",
        )
    systemctl = systemd_run.parent / "systemctl"
    argv = build_change_argv(systemctl, folder.name, spec, as_root=capabilities.is_root)
    try:
        await asyncio.to_thread(process.run, argv, timeout_s=TIMEOUT_S)
    except process.ProcessError as error:
        raise cannot_keep(spec, f"systemd refuses ({error})") from error
    if problem := find_difference(folder, spec):
        raise cannot_keep(spec, problem)


def build_change_argv(
    systemctl: Path, unit: str, spec: VirtualMachineSpec, *, as_root: bool
) -> tuple[str, ...]:
    """The command line that changes a scope until it ends; pure. What is empty is the default again."""
    share = spec.processor_share
    weight = share.weight if share is not None and share.weight is not None else ""
    quota = f"{round(share.limit * 100)}%" if share is not None and share.limit is not None else ""
    memory_mib = build_vm_group_limits(spec).memory_mib
    user = () if as_root else ("--user",)
    return (
        str(systemctl), *user, "set-property", "--runtime", unit,
        f"CPUWeight={weight}", f"CPUQuota={quota}", f"MemoryMax={memory_mib}M",
    )  # fmt: skip


def find_difference(folder: Path, spec: VirtualMachineSpec) -> str:
    """What of the limits is not in force; empty when all is."""
    share = spec.processor_share
    weight = share.weight if share is not None and share.weight is not None else None
    limit = share.limit if share is not None else None
    found = read_text(folder / "cpu.weight").strip()
    if found != str(weight or WEIGHT) and (weight is not None or found):
        return f"the weight of its group is {found or 'unknown'}, not {weight or WEIGHT}"
    quota, _, period = read_text(folder / "cpu.max").strip().partition(" ")
    if limit is None:
        if quota not in ("", "max"):
            return f"its group still has a limit of processors, {quota} of {period} µs"
    elif not quota.isdigit() or not period.isdigit() or abs(int(quota) / int(period) - limit) > 0.01:
        return f"the limit of its group is {quota or 'unknown'} {period}, not {limit:g} processors"
    memory = read_text(folder / "memory.max").strip()
    wanted = build_vm_group_limits(spec).memory_mib << 20
    return "" if memory == str(wanted) else f"memory.max of its group is {memory or 'unknown'}, not {wanted}"


def read_used(folder: Path) -> int:
    """How many bytes of memory, in no file on a disk, a group's processes use; 0 if that is unknown."""
    lines = (line.split() for line in read_text(folder / "memory.stat").splitlines())
    return sum(int(words[1]) for words in lines if len(words) == 2 and words[0] in ("anon", "shmem"))
