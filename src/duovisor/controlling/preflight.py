"""What can be checked before anything is made on the host: a start that must fail fails here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from duovisor.controlling.errors import BootFileError, HostLacksError, MemoryTooLargeError
from duovisor.hardware.accelerator import decide_accelerator
from duovisor.sandbox import SandboxTools
from duovisor.spec.vm import Accelerator, Design

if TYPE_CHECKING:
    from duovisor.hardware.accelerator import AcceleratorDecision
    from duovisor.hardware.capabilities import DevKvm, HostCapabilities
    from duovisor.spec.vm import VirtualMachineSpec


def check_memory(spec: VirtualMachineSpec, host_memory_mib: int) -> None:
    """Raises ``MemoryTooLargeError`` when the guest would have more memory (MiB) than the host."""
    if spec.memory_mib > host_memory_mib:
        raise MemoryTooLargeError(
            f"{spec.name} asks for {spec.memory_mib} MiB of memory; this host has {host_memory_mib} MiB",
            remedy=f"memory_mib must be below {host_memory_mib}",
        )


def check_boot_files(spec: VirtualMachineSpec) -> None:
    """Raises ``BootFileError`` for a kernel or initrd that cannot be read."""
    if spec.kernel is None:
        return
    for what, path in (("kernel", spec.kernel.path), ("initrd", spec.kernel.initrd)):
        if path is not None and not (os.path.isfile(path) and os.access(path, os.R_OK)):
            raise BootFileError(f"{what} {path} is no readable file", remedy=f"correct kernel.{_field(what)}")


def _field(what: str) -> str:
    return "path" if what == "kernel" else what


def find_sandbox_tools(design: Design, capabilities: HostCapabilities) -> SandboxTools:
    """The programs that make sandboxes. Raises ``HostLacksError`` when this design lacks one."""
    tools = capabilities.tools
    if tools.setpriv is None:
        raise HostLacksError("setpriv is not on this host", remedy="apt-get install util-linux")
    if design is Design.MICROKERNELIZED:
        if not capabilities.sandbox.works:
            raise HostLacksError(
                f"the microkernelized design needs sandboxes: {capabilities.sandbox.reason}",
                remedy=f"{capabilities.sandbox.remedy}; or use the monolithic design",
            )
    return SandboxTools(tools.bwrap or Path("bwrap"), tools.setpriv, capabilities.is_root)


def find_libraries(root: Path = Path("/")) -> Path:
    """The folder of this machine's shared libraries: Debian's and Ubuntu's, or what others have."""
    multiarch = Path("usr/lib/x86_64-linux-gnu")
    return Path("/") / (multiarch if (root / multiarch).is_dir() else "usr/lib")


def choose_accelerator(spec: VirtualMachineSpec, capabilities: HostCapabilities) -> AcceleratorDecision:
    """Decide between KVM and TCG for this VM.

    Raises ``AcceleratorUnavailableError`` when KVM is demanded and does not work.
    """
    return decide_accelerator(spec.accelerator, capabilities.kvm)


def check_kvm_device(
    spec: VirtualMachineSpec, capabilities: HostCapabilities, accelerator: Accelerator
) -> None:
    """Whether a QEMU on KVM can open /dev/kvm; the thin VMM gets it opened.

    Raises ``HostLacksError`` when KVM works but the unprivileged VMM of the microkernelized design could not
    open it: a silent change to TCG would make the VM ten times slower.
    """
    device = capabilities.dev_kvm
    if accelerator is not Accelerator.KVM or device is None:
        return
    unprivileged = spec.design is Design.MICROKERNELIZED and capabilities.is_root
    if unprivileged and not (device.opens_to_its_group or _opens_to_all(device)):
        raise HostLacksError(
            f"the unprivileged VMM of the microkernelized design cannot open /dev/kvm (mode {device.mode:o})",
            remedy="chgrp kvm /dev/kvm && chmod 660 /dev/kvm, or accelerator tcg",
        )


def find_kvm_gids(capabilities: HostCapabilities) -> tuple[int, ...]:
    """The group that an unprivileged VMM must be in to open /dev/kvm: none when anybody may."""
    device = capabilities.dev_kvm
    if device is None or _opens_to_all(device) or not device.opens_to_its_group:
        return ()
    return (device.gid,)


def _opens_to_all(device: DevKvm) -> bool:
    return device.mode & 0o006 == 0o006
