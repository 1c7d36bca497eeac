"""Machine type and processors."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from duovisor.spec.processors import CpuModel
from duovisor.spec.vm import Accelerator

if TYPE_CHECKING:
    from collections.abc import Sequence

    from duovisor.hardware.qemu import QemuAbilities
    from duovisor.spec.vm import VirtualMachineSpec

# the oldest processors that are of these levels (target/i386/cpu.c), without what other makers' lack
MODELS = {
    CpuModel.X86_64_V2: "Nehalem,vme=off",
    CpuModel.X86_64_V3: "Haswell-noTSX,vme=off,pcid=off,invpcid=off",
}
TCG_LACKS = ",x2apic=off,tsc-deadline=off"


def build_machine(spec: VirtualMachineSpec, qemu: QemuAbilities, accelerator: Accelerator) -> list[str]:
    """The machine: a versioned q35, so that another QEMU builds the same hardware, and no default device."""
    return [
        "-name", f"guest={spec.name},debug-threads=on",
        "-nodefaults", "-no-user-config", "-display", "none", "-vga", "none",
        "-machine", f"{qemu.q35_machine},memory-backend=ram,usb=off,vmport=off,dump-guest-core=off",
        *build_accelerator(accelerator), "-cpu", build_processor(spec.cpu_model, accelerator),
        "-smp", build_processors(spec),
        "-rtc", "base=utc",
    ]  # fmt: skip


def build_processors(spec: VirtualMachineSpec) -> str:
    """How many there are; with room for more, these are further cores of the one socket."""
    room = f"maxcpus={spec.cpus_room}," if spec.cpus_room > spec.cpus else ""
    return f"{spec.cpus},{room}sockets=1,cores={spec.cpus_room},threads=1"


def read_machine_type(argv: Sequence[str]) -> str:
    """The versioned machine type in a command line that ``build_machine`` made."""
    return next(value for option, value in pairwise(argv) if option == "-machine").partition(",")[0]


def read_machine_version(machine_type: str) -> tuple[int, int]:
    """The version in ``pc-q35-7.2``."""
    major, minor = machine_type.rpartition("-")[2].split(".")[:2]
    return int(major), int(minor)


def build_accelerator(accelerator: Accelerator) -> list[str]:
    """What runs the guest's instructions."""
    return ["-accel", "kvm" if accelerator is Accelerator.KVM else "tcg,thread=multi"]


def build_processor(model: CpuModel, accelerator: Accelerator) -> str:
    """The processor in QEMU's words; a host that lacks something of a named one is refused by QEMU itself."""
    if model is not CpuModel.HOST:
        lacks = "" if accelerator is Accelerator.KVM else TCG_LACKS
        return f"{MODELS[model]}{lacks},enforce=on"
    # la57 off: five-level page tables would cost every emulated page walk a level more
    return "host" if accelerator is Accelerator.KVM else "max,la57=off"
