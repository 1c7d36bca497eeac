"""How much a VM and each of its processes may use, besides what their resource limits (setrlimit) allow.

What the kernel charges to a group is all memory that its processes were the first to touch: their own, the
guest's, files in the page cache (given back before anything else), and memory files, which no resource limit
counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from duovisor.hypervisor.build import VMM_THREADS, build_vmm_limits

if TYPE_CHECKING:
    from duovisor.spec.vm import VirtualMachineSpec

HELPER_MIB = 512  # a driver's private memory is 256 MiB at most; the rest is for its image in the page cache
HELPER_PROCESSES = 256
HELPERS_PER_DEVICE = 3  # the one that serves, its spare, and the process of the disk's format


class GroupLimits(NamedTuple):
    """``memory.max`` in MiB and ``pids.max``, which counts threads too."""

    memory_mib: int
    processes: int


def build_vmm_group_limits(spec: VirtualMachineSpec) -> GroupLimits:
    """For the VMM: its guest's memory, as much as may come, and its own."""
    return GroupLimits(spec.memory_room_mib + build_vmm_limits(spec.cpus_room).private_mib, VMM_THREADS)


def build_helper_group_limits(spec: VirtualMachineSpec) -> GroupLimits:
    """For a process beside the VMM; any page of the guest may be one that a driver touched first."""
    return GroupLimits(spec.memory_room_mib + HELPER_MIB, HELPER_PROCESSES)


def build_vm_group_limits(spec: VirtualMachineSpec) -> GroupLimits:
    """For all processes of a VM together; the guest's memory is there once, unless it says how much."""
    vmm = build_vmm_group_limits(spec)
    helpers = HELPERS_PER_DEVICE * (
        len(spec.disks) + len(spec.nics) + len(spec.devices) + len(spec.cdroms) + spec.tpm
    )
    memory_mib = spec.memory_limit_mib or vmm.memory_mib + helpers * HELPER_MIB
    return GroupLimits(memory_mib, vmm.processes + helpers * HELPER_PROCESSES)
