"""Guest memory in QEMU's words: what it boots with, and the modules (DIMMs) that came later.

Source: QEMU, docs/memory-hotplug.txt. A module takes the next place in its order, so that a QEMU that begins
with the same ones has each at the same address, without which their contents would not be found again.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from duovisor.hypervisor.qemu.hot_plug import Command

if TYPE_CHECKING:
    from collections.abc import Sequence

MAIN = "ram"


def build_memory(
    boot_mib: int, room_mib: int, memory_file: str, module_files: Sequence[str], modules_mib: Sequence[int]
) -> list[str]:
    """File-backed and shared in both designs, so that a driver or a successor can map it.

    The guest booted with ``boot_mib`` and may have ``room_mib``; it has the modules of the sizes
    ``modules_mib``, each in one of ``module_files``.
    """
    size = f"{boot_mib}M"
    if room_mib > boot_mib:
        size += f",slots={len(module_files)},maxmem={room_mib}M"
    words = ["-m", size, "-object", json.dumps(_build_backend(MAIN, boot_mib, memory_file))]
    for number, mib in enumerate(modules_mib):
        backend, front_end = build_module_plug(number, mib, module_files[number])
        device = ",".join(f"{key}={value}" for key, value in front_end.arguments.items() if key != "driver")
        words += ["-object", json.dumps(backend.arguments)]
        words += ["-device", f"{front_end.arguments['driver']},{device}"]
    return words


def build_module_plug(number: int, mib: int, file: str) -> tuple[Command, Command]:
    """How a module gets into a QEMU that runs: what is behind it, itself."""
    backend = module_backend(number)
    device = {"driver": "pc-dimm", "id": f"dimm{number}", "memdev": backend, "slot": number}
    return Command("object-add", _build_backend(backend, mib, file)), Command("device_add", device)


def module_backend(number: int) -> str:
    """What is behind the module in the slot ``number``."""
    return f"dimm{number}-{MAIN}"


def _build_backend(name: str, mib: int, file: str) -> dict[str, Any]:
    return {
        "qom-type": "memory-backend-file",
        "id": name,
        "size": mib << 20,
        "mem-path": file,
        "share": True,
    }
