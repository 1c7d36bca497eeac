"""Which VMM runs a VM: QEMU, or in the microkernelized design on KVM our own thin one."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from duovisor.controlling.errors import HostLacksError
from duovisor.hypervisor.thin_plan import find_obstacle
from duovisor.spec.vm import VmmKind

if TYPE_CHECKING:
    from duovisor.spec.vm import Accelerator, VirtualMachineSpec


class VmmDecision(NamedTuple):
    """The VMM, which is never ``auto``, and why it is that one."""

    kind: VmmKind
    reason: str


def choose_vmm(spec: VirtualMachineSpec, accelerator: Accelerator) -> VmmDecision:
    """Decide between the VMMs. Raises ``HostLacksError`` for the thin one where it cannot run this VM."""
    if spec.vmm is VmmKind.QEMU:
        return VmmDecision(VmmKind.QEMU, "it was asked for")
    obstacle = find_obstacle(spec, accelerator)
    if obstacle is None:
        reason = "it was asked for" if spec.vmm is VmmKind.THIN else "it can run this VM"
        return VmmDecision(VmmKind.THIN, reason)
    if spec.vmm is VmmKind.THIN:
        raise HostLacksError(obstacle, remedy="use vmm: qemu, or leave the choice open with vmm: auto")
    return VmmDecision(VmmKind.QEMU, obstacle)
