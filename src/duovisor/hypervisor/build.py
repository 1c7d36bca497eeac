"""``specification + abilities → LaunchPlan``: a pure function, put together from the device families."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from duovisor.hypervisor.plan import LaunchPlan, VmmPaths
from duovisor.hypervisor.qemu import console, disks, firmware, machine, nics
from duovisor.sandbox import Sandbox, uid_of
from duovisor.spec.vm import Accelerator, Design, Firmware

if TYPE_CHECKING:
    from duovisor.hardware.qemu import QemuAbilities
    from duovisor.spec.vm import VirtualMachineSpec

SANDBOX_MEMORY = "/memory"
USR_MERGED = (("usr/lib", "/lib"), ("usr/lib64", "/lib64"), ("usr/bin", "/bin"), ("usr/sbin", "/sbin"))


def build_launch_plan(
    spec: VirtualMachineSpec,
    qemu: QemuAbilities,
    accelerator: Accelerator,
    paths: VmmPaths,
    kvm_gids: tuple[int, ...] = (),
) -> LaunchPlan:
    """Plan the VMM process of a virtual machine; ``kvm_gids`` are the groups that may open /dev/kvm.

    Raises ``PlanError`` for what this design or this QEMU cannot do: a plan that exists can be started.
    """
    sandboxed = spec.design is Design.MICROKERNELIZED
    channels = (
        *((disks.disk_socket(i) for i in range(len(spec.disks))) if sandboxed else ()),
        *((nics.nic_socket(i) for i in range(len(spec.nics))) if sandboxed else ()),
    )
    ports = tuple(console.port_socket(index) for index in range(len(spec.ports)))
    argv = (
        str(paths.qemu),
        *machine.build_machine(spec, qemu, accelerator),
        *machine.build_memory(spec.memory_mib, SANDBOX_MEMORY if sandboxed else str(paths.memory_file)),
        *firmware.build_firmware(spec, paths, sandboxed=sandboxed),
        *disks.build_disks(spec, qemu, paths.block_devices),
        *nics.build_nics(spec),
        *console.build_monitor(),
        *console.build_console(),
        *console.build_ports(spec),
        *build_hardening(qemu),
    )
    return LaunchPlan(
        name=spec.name,
        design=spec.design,
        accelerator=accelerator,
        argv=argv,
        sockets=(console.QMP_SOCKET, console.CONSOLE_SOCKET, *ports, *channels),
        channels=channels,
        memory_file=paths.memory_file,
        memory_mib=spec.memory_mib,
        sandbox=build_vmm_sandbox(spec, accelerator, paths, kvm_gids) if sandboxed else None,
    )


def build_hardening(qemu: QemuAbilities) -> list[str]:
    """QEMU's own seccomp filter with every denial; a VMM never starts a program or gains a privilege."""
    if not qemu.seccomp:
        return []
    return ["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]


def build_vmm_sandbox(
    spec: VirtualMachineSpec, accelerator: Accelerator, paths: VmmPaths, kvm_gids: tuple[int, ...]
) -> Sandbox:
    """The empty sandbox of a microkernelized VMM: QEMU's own files, the boot files, the guest's memory."""
    read_only = [(Path("/usr"), "/usr"), (Path("/etc/ld.so.cache"), "/etc/ld.so.cache")]
    own = find_qemu_folder(paths.qemu)
    if own is not None:
        read_only.append((own, str(own)))
    writable = [(paths.memory_file, SANDBOX_MEMORY)]
    if spec.kernel is not None:
        read_only.append((Path(spec.kernel.path), firmware.SANDBOX_KERNEL))
        if spec.kernel.initrd:
            read_only.append((Path(spec.kernel.initrd), firmware.SANDBOX_INITRD))
    if spec.firmware is Firmware.UEFI and paths.uefi_code and paths.uefi_vars:
        read_only.append((paths.uefi_code, firmware.SANDBOX_UEFI_CODE))
        writable.append((paths.uefi_vars, firmware.SANDBOX_UEFI_VARS))
    kvm = accelerator is Accelerator.KVM
    return Sandbox(
        uid=uid_of(spec.name),
        gids=kvm_gids if kvm else (),
        read_only=tuple(read_only),
        writable=tuple(writable),
        devices=("/dev/kvm",) if kvm else (),
        links=USR_MERGED,
    )


def find_qemu_folder(qemu: Path) -> Path | None:
    """What of the host a QEMU needs that lies outside /usr: its installation prefix, or where it was built.

    Never the root folder: a sandbox that sees all of the host is none.
    """
    if qemu.is_relative_to("/usr") or qemu.parent in (Path("/bin"), Path("/sbin")):
        return None
    folder = qemu.parent.parent if qemu.parent.name == "bin" else qemu.parent
    return qemu if folder == Path("/") else folder
