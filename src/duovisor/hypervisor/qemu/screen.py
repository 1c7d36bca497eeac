"""The graphical console: a VGA card, a pointer that can be placed, and a VNC server that listens nowhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from duovisor.hypervisor.qemu.pci import SCREEN_SLOT, TABLET_SLOT, at

if TYPE_CHECKING:
    from duovisor.spec.vm import VirtualMachineSpec


def build_screen(spec: VirtualMachineSpec) -> list[str]:
    """What ``graphics`` asks for; who looks is handed to the VNC server over QMP, one connection each."""
    if not spec.graphics:
        return []
    return [
        # the card that every firmware and system knows; the keyboard is the PC's own
        "-device", f"VGA,id=screen,bus=pcie.0,addr={SCREEN_SLOT:#x}",
        "-device", f"virtio-tablet-pci,id=tablet,{at(TABLET_SLOT)}",
        "-vnc", "none",
    ]  # fmt: skip
