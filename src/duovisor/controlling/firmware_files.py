"""UEFI's files: the firmware of this host, and the variables that each VM has of its own.

A VM's variables (boot entries, enrolled keys, what its system keeps there) are made from the firmware's
template at its first start and stay as long as the VM. With secure boot they are others: those begin with
Microsoft's keys enrolled.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from duovisor.controlling.errors import BootFileError, HostLacksError
from duovisor.spec.vm import Firmware

if TYPE_CHECKING:
    from duovisor.spec.vm import VirtualMachineSpec

# Debian and Ubuntu: the 4 MiB build first, as newer releases have only that one
OVMF = Path("/usr/share/OVMF")
PLAIN_PAIRS = (("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"), ("OVMF_CODE.fd", "OVMF_VARS.fd"))
SECURE_PAIRS = (
    ("OVMF_CODE_4M.secboot.fd", "OVMF_VARS_4M.ms.fd"),
    ("OVMF_CODE.secboot.fd", "OVMF_VARS.ms.fd"),
)
VARIABLES, SECURE_VARIABLES = "uefi-vars.fd", "uefi-vars-secure.fd"


class UefiFirmware(NamedTuple):
    """The code that is run, and the template of its variables."""

    code: Path
    template: Path


def find_firmware(spec: VirtualMachineSpec) -> UefiFirmware | None:
    """The firmware of a VM with UEFI; ``None`` for others. Raises ``HostLacksError``."""
    if spec.firmware is not Firmware.UEFI:
        return None
    for code, template in SECURE_PAIRS if spec.secure_boot else PLAIN_PAIRS:
        if (OVMF / code).is_file() and (OVMF / template).is_file():
            return UefiFirmware(OVMF / code, OVMF / template)
    what = "secure boot needs OVMF with Microsoft's keys" if spec.secure_boot else "firmware uefi needs OVMF"
    raise HostLacksError(f"{what}, which is not in {OVMF}", remedy="apt-get install ovmf")


def variables_path(spec: VirtualMachineSpec, folder: Path) -> Path:
    """Where a VM keeps its variables in its folder."""
    return folder / (SECURE_VARIABLES if spec.secure_boot else VARIABLES)


def make_variables(spec: VirtualMachineSpec, firmware: UefiFirmware, folder: Path, owner: int | None) -> Path:
    """A VM's variables, for ``owner`` to write: those that it has, or else a copy of the template.

    Raises ``BootFileError`` for variables of another build of the firmware, which it would not understand.
    """
    path = variables_path(spec, folder)
    if not path.exists():
        _copy(firmware.template, path)
    size_bytes, wanted_bytes = path.stat().st_size, firmware.template.stat().st_size
    if size_bytes != wanted_bytes:
        raise BootFileError(
            f"the UEFI variables of {spec.name} have {size_bytes} bytes; this firmware's have {wanted_bytes}",
            remedy=f"duovisor vm reset-nvram {spec.name} begins with fresh ones",
        )
    if owner is not None:
        os.chown(path, owner, owner)
    return path


def remove_variables(folder: Path) -> bool:
    """Remove a VM's variables, so that its next start begins with fresh ones; whether there were any."""
    found = [path for name in (VARIABLES, SECURE_VARIABLES) if (path := folder / name).exists()]
    for path in found:
        path.unlink(missing_ok=True)
    return bool(found)


def _copy(template: Path, path: Path) -> None:
    """Whole or not at all: a half-written file of variables is one that no firmware takes."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.new")
    shutil.copyfile(template, fresh)
    fresh.chmod(0o600)
    descriptor = os.open(fresh, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    fresh.replace(path)
