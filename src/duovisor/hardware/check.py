"""The compatibility list of one host: can it run each design, why, and what to do about it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from duovisor.hardware import qemu as qemu_facts
from duovisor.hardware.kvm import KvmState
from duovisor.spec.vm import Design

if TYPE_CHECKING:
    from collections.abc import Callable

    from duovisor.hardware.capabilities import HostCapabilities
    from duovisor.hardware.host import Host

MIB_PER_GIB = 1024
MEMORY_NEEDED_MIB = 256  # the probe guest's memory, its VMM and its driver partitions
DEVICES_NEEDED = {
    Design.MONOLITHIC: ("memory-backend-file", "virtio-blk-pci", "virtio-net-pci"),
    Design.MICROKERNELIZED: ("memory-backend-file", "vhost-user-blk-pci", "virtio-net-pci"),
}


class Level(StrEnum):
    """How well, from best to worst."""

    OK = "ok"
    SLOWER = "ok, slower"
    LIMITED = "ok, limited"
    NO = "no"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a design needs: what was seen, and what to do if that is not enough."""

    subject: str
    level: Level
    seen: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class DesignVerdict:
    """The worst of the findings decides."""

    design: Design
    findings: tuple[Finding, ...]

    @property
    def level(self) -> Level:
        return max((finding.level for finding in self.findings), key=list(Level).index, default=Level.OK)


def check_host(host: Host, capabilities: HostCapabilities) -> tuple[DesignVerdict, ...]:
    """A verdict for each design, in the order of ``Design``."""
    return tuple(
        DesignVerdict(design, tuple(check(design, host, capabilities) for check in CHECKS[design]))
        for design in Design
    )


def check_qemu(design: Design, host: Host, capabilities: HostCapabilities) -> Finding:
    """QEMU is there, new enough, and has the devices of the design."""
    qemu, problem = capabilities.qemu, capabilities.qemu_problem
    if qemu is None:
        seen, remedy = (problem.message, problem.remedy) if problem else ("was not asked", "")
        return Finding("QEMU", Level.NO, seen, remedy)
    if qemu.version < qemu_facts.OLDEST:
        oldest = ".".join(map(str, qemu_facts.OLDEST[:2]))
        return Finding(
            "QEMU", Level.NO, f"{qemu.version_text} is older than {oldest}", "install a newer QEMU"
        )
    missing = [name for name in DEVICES_NEEDED[design] if name not in qemu.device_types]
    if missing:
        return Finding("QEMU", Level.NO, f"it was built without {', '.join(missing)}", qemu_facts.INSTALL)
    return Finding("QEMU", Level.OK, f"{qemu.version_text}, {capabilities.qemu_path}")


def check_accelerator(design: Design, host: Host, capabilities: HostCapabilities) -> Finding:
    """KVM runs guests; where it does not, TCG is slower but does."""
    kvm, qemu, dev_kvm = capabilities.kvm, capabilities.qemu, capabilities.dev_kvm
    if kvm.state is KvmState.WORKS and (qemu is None or qemu.kvm):
        if design is Design.MICROKERNELIZED and capabilities.is_root and dev_kvm is not None:
            return _check_unprivileged_kvm(kvm.reason, dev_kvm.opens_to_its_group)
        return Finding("accelerator", Level.OK, f"kvm: {kvm.reason}")
    reason, remedy = kvm.reason, kvm.remedy
    if kvm.state is KvmState.WORKS:
        reason, remedy = "this QEMU was built without KVM", qemu_facts.INSTALL
    elif kvm.state is KvmState.ABSENT:
        reason, remedy = f"{reason}; {_describe_extension(host)}", _absent_remedy(host, remedy)
    if qemu is not None and not qemu.tcg:
        return Finding("accelerator", Level.NO, f"{reason}; this QEMU was built without TCG", remedy)
    return Finding("accelerator", Level.SLOWER, f"tcg: {reason}", remedy)


def _check_unprivileged_kvm(reason: str, opens_to_its_group: bool) -> Finding:
    if opens_to_its_group:
        return Finding("accelerator", Level.OK, f"kvm: {reason}")
    return Finding(
        "accelerator",
        Level.NO,
        "/dev/kvm opens to root only, and the VMM of this design runs without privilege",
        "chgrp kvm /dev/kvm && chmod 0660 /dev/kvm",
    )


def _describe_extension(host: Host) -> str:
    extension = host.processors.extension
    return f"the processor has {extension}" if extension else "the processor shows neither vmx nor svm"


def _absent_remedy(host: Host, remedy: str) -> str:
    modules = {"vmx": "modprobe kvm_intel", "svm": "modprobe kvm_amd"}
    if host.processors.extension:
        return modules[host.processors.extension]
    if host.processors.is_virtual:
        return "turn on nested virtualization for this VM on its host"
    return "turn on VT-x or AMD-V in the firmware's setup" if host.processors.flags else remedy


def check_memory(design: Design, host: Host, capabilities: HostCapabilities) -> Finding:
    """A small guest fits."""
    available_mib = host.memory.available_mib
    seen = f"{describe_mib(available_mib)} of {describe_mib(host.memory.total_mib)} available"
    if available_mib < MEMORY_NEEDED_MIB:
        return Finding("memory", Level.NO, seen, f"free at least {MEMORY_NEEDED_MIB} MiB")
    return Finding("memory", Level.OK, seen)


def check_guest_memory(design: Design, host: Host, capabilities: HostCapabilities) -> Finding:
    """Guest memory is a shared file: root mounts a tmpfs for it, other users need ``/dev/shm``."""
    free_mib = capabilities.shm_free_mib
    if capabilities.is_root:
        return Finding("guest memory", Level.OK, "a tmpfs of our own")
    if free_mib is None or free_mib < MEMORY_NEEDED_MIB:
        seen = "there is no /dev/shm" if free_mib is None else f"/dev/shm has {describe_mib(free_mib)} free"
        return Finding("guest memory", Level.NO, seen, "mount -o remount,size=50% /dev/shm, or run as root")
    return Finding("guest memory", Level.OK, f"/dev/shm, {describe_mib(free_mib)} free")


def check_limits(design: Design, host: Host, capabilities: HostCapabilities) -> Finding:
    """What a VM may use is limited process by process, and where systemd does it, for the whole VM too."""
    problem = capabilities.groups_problem
    seen = f"each process by itself: {problem}" if problem else "each process, and each VM in a systemd scope"
    return Finding("limits", Level.OK, seen)


def check_io_uring(design: Design, host: Host, capabilities: HostCapabilities) -> Finding:
    """Disk requests go through io_uring; threads take its place."""
    if capabilities.qemu is not None and not capabilities.qemu.io_uring:
        return Finding(
            "io_uring",
            Level.SLOWER,
            "QEMU or the kernel does without; threads are used",
            "sysctl kernel.io_uring_disabled=0, or a container profile that allows it",
        )
    return Finding("io_uring", Level.OK, "allowed")


def check_sandbox(design: Design, host: Host, capabilities: HostCapabilities) -> Finding:
    """Driver partitions and the VMM run in sandboxes."""
    sandbox = capabilities.sandbox
    if not sandbox.works:
        return Finding("sandbox", Level.NO, sandbox.reason, sandbox.remedy)
    if capabilities.is_root and capabilities.tools.setpriv is None:
        return Finding("sandbox", Level.NO, "setpriv is not installed", "apt install util-linux")
    return Finding("sandbox", Level.OK, sandbox.reason)


def check_user_network(design: Design, host: Host, capabilities: HostCapabilities) -> Finding:
    """passt carries user networking outside the VMM."""
    if capabilities.tools.passt is None:
        seen = "passt is not installed: no user networking"
        return Finding("user network", Level.LIMITED, seen, "apt install passt")
    return Finding("user network", Level.OK, f"passt, {capabilities.tools.passt}")


def describe_mib(mib: int) -> str:
    """An amount of memory as people write it."""
    return f"{mib / MIB_PER_GIB:.1f} GiB" if mib >= MIB_PER_GIB else f"{mib} MiB"


_COMMON: tuple[Callable[[Design, Host, HostCapabilities], Finding], ...] = (
    check_qemu,
    check_accelerator,
    check_memory,
    check_guest_memory,
    check_limits,
    check_io_uring,
)
CHECKS = {
    Design.MONOLITHIC: _COMMON,
    Design.MICROKERNELIZED: (*_COMMON, check_sandbox, check_user_network),
}
