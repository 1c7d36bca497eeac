"""``specification + abilities → LaunchPlan``: a pure function, put together from the device families."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from duovisor.hypervisor.plan import LaunchPlan, VmmPaths
from duovisor.hypervisor.qemu import (
    cdroms,
    console,
    devices,
    disks,
    firmware,
    machine,
    memory,
    nics,
    pci,
    screen,
    tpm,
)
from duovisor.sandbox import ResourceLimits, Sandbox, uid_of
from duovisor.spec.vm import Accelerator, Design, Firmware

if TYPE_CHECKING:
    from duovisor.hardware.qemu import QemuAbilities
    from duovisor.spec.vm import VirtualMachineSpec

SANDBOX_MEMORY = "/memory"
# firmware and option ROMs, some as links into the others; the libraries' loader
QEMU_FOLDERS = ("/usr/lib64", "/usr/lib/ipxe", "/usr/share/ipxe", "/usr/share/qemu", "/usr/share/seabios")
# TCG alone may take 1 GiB for the guest's code in its translation; what a VMM takes besides is below 200 MiB
VMM_PRIVATE_MIB, VCPU_PRIVATE_MIB = 2048, 16
VMM_THREADS, VMM_DESCRIPTORS = 512, 4096
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
        *((disks.disk_socket(slot) for slot, _ in spec.numbered_disks()) if sandboxed else ()),
        *((name for name in nics.find_unbridged(spec)) if sandboxed else ()),
        *((devices.device_socket(i) for i in range(len(spec.devices))) if sandboxed else ()),
    )
    ports = tuple(console.port_socket(index) for index in range(len(spec.all_ports)))
    argv = (
        str(paths.qemu),
        *machine.build_machine(spec, qemu, accelerator),
        *memory.build_memory(
            spec.memory_mib - sum(paths.modules_mib),
            spec.memory_room_mib,
            SANDBOX_MEMORY if sandboxed else str(paths.memory_file),
            [show_module(spec.design, number, file) for number, file in enumerate(paths.module_files)],
            paths.modules_mib,
        ),
        *firmware.build_firmware(spec, paths, sandboxed=sandboxed),
        *pci.build_hot_plug_bus(),
        *disks.build_disks(spec, qemu, paths.block_devices, paths.chains),
        *cdroms.build_cdroms(spec),
        *nics.build_nics(spec, qemu, accelerator),
        *devices.build_devices(spec, qemu, paths.device_types),
        *tpm.build_tpm(spec),
        *screen.build_screen(spec),
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
        sockets=(console.QMP_SOCKET, console.CONSOLE_SOCKET, *ports, *tpm.find_tpm(spec), *channels),
        channels=channels,
        memory_file=paths.memory_file,
        memory_mib=spec.memory_mib,
        sandbox=build_vmm_sandbox(spec, accelerator, paths, kvm_gids) if sandboxed else None,
        taps=() if sandboxed else nics.find_bridged(spec),
        bound=nics.find_bridged(spec) if sandboxed else (),
        modules_mib=paths.modules_mib,
    )


def show_module(design: Design, number: int, file: Path) -> str:
    """Where a VMM finds a memory module's file."""
    return f"{SANDBOX_MEMORY}-{number}" if design is Design.MICROKERNELIZED else str(file)


def build_hardening(qemu: QemuAbilities) -> list[str]:
    """QEMU's own seccomp filter with every denial; a VMM never starts a program or gains a privilege."""
    if not qemu.seccomp:
        return []
    return ["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]


def build_vmm_sandbox(
    spec: VirtualMachineSpec, accelerator: Accelerator, paths: VmmPaths, kvm_gids: tuple[int, ...]
) -> Sandbox:
    """The empty sandbox of a microkernelized VMM: QEMU's own files, the boot files, the guest's memory."""
    own = find_qemu_folder(paths.qemu)
    files = (Path("/etc/ld.so.cache"), paths.libraries, own)
    read_only = [(path, str(path)) for path in files]
    modules = [
        (file, show_module(spec.design, number, file)) for number, file in enumerate(paths.module_files)
    ]
    writable = [(paths.memory_file, SANDBOX_MEMORY), *modules]
    if spec.kernel is not None:
        read_only.append((Path(spec.kernel.path), firmware.SANDBOX_KERNEL))
        if spec.kernel.initrd:
            read_only.append((Path(spec.kernel.initrd), firmware.SANDBOX_INITRD))
    if spec.firmware is Firmware.UEFI and paths.uefi_code and paths.uefi_vars:
        read_only.append((paths.uefi_code, firmware.SANDBOX_UEFI_CODE))
        writable.append((paths.uefi_vars, firmware.SANDBOX_UEFI_VARS))
    if spec.cdroms:
        read_only.append((paths.media, cdroms.SANDBOX_MEDIA))
    kvm = accelerator is Accelerator.KVM
    return Sandbox(
        uid=uid_of(spec.name),
        gids=kvm_gids if kvm else (),
        read_only=tuple(read_only),
        writable=tuple(writable),
        scratch=((paths.channels, nics.SANDBOX_CHANNELS),),  # of cards that it has, or is given later
        devices=("/dev/kvm",) if kvm else (),
        links=USR_MERGED,
        if_there=QEMU_FOLDERS,
        limits=build_vmm_limits(spec.cpus_room),
    )


def build_vmm_limits(cpus: int) -> ResourceLimits:
    """What a VMM may use besides its guest's memory; never so little that a sound one meets it."""
    return ResourceLimits(VMM_PRIVATE_MIB + cpus * VCPU_PRIVATE_MIB, VMM_THREADS, VMM_DESCRIPTORS)


def find_qemu_folder(qemu: Path) -> Path:
    """What of the host a QEMU is: the program, its installation prefix, or where it was built.

    Never the root folder or /usr: a sandbox that sees the host's programs is none.
    """
    if qemu.parent in (Path("/bin"), Path("/sbin")):
        return Path("/usr", *qemu.parts[1:])
    folder = qemu.parent.parent if qemu.parent.name == "bin" else qemu.parent
    return qemu if folder in (Path("/"), Path("/usr")) else folder
