"""The TPM: QEMU has the registers that a guest sees, and a process beside it what is behind them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from duovisor.spec.vm import VirtualMachineSpec

TPM_SOCKET = "tpm"


def build_tpm(spec: VirtualMachineSpec) -> list[str]:
    """A TPM 2.0, whose emulator has connected to QEMU's socket before QEMU begins."""
    if not spec.tpm:
        return []
    return [
        # QEMU asks the emulator what it can as soon as the device is made: it waits until it has connected
        "-chardev", f"socket,id={TPM_SOCKET}-channel,fd=@{TPM_SOCKET}@,server=on,wait=on",
        "-tpmdev", f"emulator,id={TPM_SOCKET}-emulator,chardev={TPM_SOCKET}-channel",
        "-device", f"tpm-crb,id={TPM_SOCKET},tpmdev={TPM_SOCKET}-emulator",
    ]  # fmt: skip


def find_tpm(spec: VirtualMachineSpec) -> tuple[str, ...]:
    """The name of the TPM's socket, if the VM has one."""
    return (TPM_SOCKET,) if spec.tpm else ()
