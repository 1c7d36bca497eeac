"""Whether this host can keep what a VM asks of processors and memory; else it is refused, never ignored."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from duovisor.controlling.errors import HostLacksError, ProcessorsTakenError
from duovisor.hardware.attributes import read_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from duovisor.hardware.capabilities import HostCapabilities
    from duovisor.spec.vm import VirtualMachineSpec

ROOT = Path("/")


def check_group_limits(spec: VirtualMachineSpec, capabilities: HostCapabilities, root: Path = ROOT) -> None:
    """Raises ``HostLacksError`` when there are no groups (cgroup v2) for what the VM asks."""
    if not spec.needs_group:
        return
    problem, wants_cpu = capabilities.groups_problem, spec.processor_share is not None
    if (
        not problem
        and wants_cpu
        and "cpu" not in read_text(root / "sys/fs/cgroup/cgroup.controllers").split()
    ):
        problem = "cgroup v2 has no controller for processors here"
    if problem:
        raise cannot_keep(spec, problem)
    if (spec.cpu_limit or 0) > capabilities.cpus:
        raise HostLacksError(
            f"cpu_limit of {spec.name} is {spec.cpu_limit:g}; this host has {capabilities.cpus} processors",
            remedy="leave it out, or ask for less",
        )


def cannot_keep(spec: VirtualMachineSpec, problem: str) -> HostLacksError:
    """What to say where limits would be ignored."""
    return HostLacksError(
        f"{spec.name} has limits of processors or memory, which this host cannot keep: {problem}",
        remedy="leave cpu_weight, cpu_limit, cpu_reservation and memory_limit out, or use a host with "
        "systemd and cgroup v2",
    )


def check_reservation(spec: VirtualMachineSpec, others: Mapping[str, VirtualMachineSpec], cpus: int) -> None:
    """Raises ``ProcessorsTakenError`` when others have reserved what the VM wants reserved."""
    wanted = spec.cpu_reservation
    if wanted is None:
        return
    taken = sum_reserved(others.values())
    if taken + wanted > cpus + 1e-9:
        holders = ", ".join(sorted(name for name, other in others.items() if other.cpu_reservation))
        raise ProcessorsTakenError(
            f"{spec.name} reserves {wanted:g} processors; of {cpus} only {cpus - taken:g} are left",
            remedy=f"stop one that has reserved some ({holders})" if holders else "reserve less",
        )


def sum_reserved(specs: Iterable[VirtualMachineSpec]) -> float:
    """How many processors are reserved."""
    return sum(spec.cpu_reservation or 0.0 for spec in specs)
