"""What the guest's processor runs first: SeaBIOS, UEFI (OVMF in flash), or a Linux kernel."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from duovisor.hypervisor.errors import PlanError
from duovisor.spec.vm import Firmware

if TYPE_CHECKING:
    from duovisor.hypervisor.plan import VmmPaths
    from duovisor.spec.kernel import KernelSpec
    from duovisor.spec.vm import VirtualMachineSpec

# where the files appear to a VMM in a sandbox
SANDBOX_KERNEL = "/boot/kernel"
SANDBOX_INITRD = "/boot/initrd"
SANDBOX_UEFI_CODE = "/boot/uefi-code"
SANDBOX_UEFI_VARS = "/boot/uefi-vars"

# the variables can be written by code in system management mode alone, which never sleeps (OVMF's README)
SECURE_BOOT = (
    "-machine", "smm=on",
    "-global", "driver=cfi.pflash01,property=secure,value=on",
    "-global", "ICH9-LPC.disable_s3=1",
)  # fmt: skip


def build_firmware(spec: VirtualMachineSpec, paths: VmmPaths, *, sandboxed: bool) -> list[str]:
    """Arguments for the specified firmware. Raises ``PlanError`` where UEFI's files are missing."""
    match spec.firmware:
        case Firmware.BIOS:
            return ["-boot", "strict=on"]
        case Firmware.UEFI:
            return [*_build_uefi(paths, sandboxed=sandboxed), *(SECURE_BOOT if spec.secure_boot else ())]
        case Firmware.DIRECT_KERNEL:
            assert spec.kernel is not None  # the spec's own check
            return _build_kernel(spec.kernel, sandboxed=sandboxed)


def _build_kernel(kernel: KernelSpec, *, sandboxed: bool) -> list[str]:
    arguments = ["-kernel", SANDBOX_KERNEL if sandboxed else kernel.path]
    if kernel.initrd:
        arguments += ["-initrd", SANDBOX_INITRD if sandboxed else kernel.initrd]
    if kernel.arguments:
        arguments += ["-append", kernel.arguments]
    return arguments


def _build_uefi(paths: VmmPaths, *, sandboxed: bool) -> list[str]:
    if paths.uefi_code is None or paths.uefi_vars is None:
        raise PlanError("firmware uefi needs OVMF, which is not on this host", remedy="apt-get install ovmf")
    code = SANDBOX_UEFI_CODE if sandboxed else str(paths.uefi_code)
    variables = SANDBOX_UEFI_VARS if sandboxed else str(paths.uefi_vars)
    nodes = [
        {"driver": "file", "node-name": "uefi-code", "filename": code, "read-only": True},
        {"driver": "file", "node-name": "uefi-vars", "filename": variables, "read-only": False},
    ]
    arguments = [argument for node in nodes for argument in ("-blockdev", json.dumps(node))]
    return [*arguments, "-machine", "pflash0=uefi-code,pflash1=uefi-vars"]
