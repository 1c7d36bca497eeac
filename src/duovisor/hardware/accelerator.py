"""Decides what runs guests' instructions: KVM where it was seen to work, else QEMU's TCG."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from duovisor.hardware.errors import AcceleratorUnavailableError
from duovisor.hardware.kvm import KvmState
from duovisor.spec.vm import Accelerator

if TYPE_CHECKING:
    from duovisor.hardware.kvm import KvmProbe


@dataclass(frozen=True, slots=True)
class AcceleratorDecision:
    """KVM or TCG, never ``auto``, and why."""

    accelerator: Accelerator
    reason: str


def decide_accelerator(wanted: Accelerator, probe: KvmProbe) -> AcceleratorDecision:
    """What to use, from what was asked for and what was seen; pure.

    Raises ``AcceleratorUnavailableError`` when KVM is demanded and does not run guests.
    """
    works = probe.state is KvmState.WORKS
    match wanted:
        case Accelerator.TCG:
            return AcceleratorDecision(Accelerator.TCG, "TCG was asked for")
        case Accelerator.KVM if not works:
            raise AcceleratorUnavailableError(
                f"accelerator kvm does not work here: {probe.reason}",
                remedy=f"accelerator auto or tcg (slower), or: {probe.remedy}",
            )
        case Accelerator.KVM | Accelerator.AUTO:
            return AcceleratorDecision(Accelerator.KVM if works else Accelerator.TCG, probe.reason)
