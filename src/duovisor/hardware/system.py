"""Reads what the host runs: kernel, distribution, and the machine's name in its firmware."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from duovisor.hardware.attributes import read_text

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class System:
    """``distribution_id`` as in os-release(5) (``debian``); ``product`` as the firmware names the machine."""

    hostname: str
    kernel_release: str
    distribution: str
    distribution_id: str
    product: str


def read_system(root: Path) -> System:
    """Kernel, distribution and machine."""
    text = read_text(root / "etc/os-release") or read_text(root / "usr/lib/os-release")
    release = parse_os_release(text)
    dmi = root / "sys/class/dmi/id"
    product = (read_text(dmi / "sys_vendor"), read_text(dmi / "product_name"))
    return System(
        hostname=read_text(root / "proc/sys/kernel/hostname"),
        kernel_release=read_text(root / "proc/sys/kernel/osrelease"),
        distribution=release.get("PRETTY_NAME", ""),
        distribution_id=release.get("ID", ""),
        product=" ".join(filter(None, product)),
    )


def parse_os_release(text: str) -> dict[str, str]:
    """The shell-like assignments of os-release(5)."""
    return dict(word.split("=", 1) for word in shlex.split(text, comments=True) if "=" in word)
