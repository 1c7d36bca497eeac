"""How much code runs in each layer, counted on what is installed here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import duovisor
from duovisor.comparison.measures.context import Context, Figures
from duovisor.comparison.processes import read_code_bytes
from duovisor.controlling.description import Duty, find_program

if TYPE_CHECKING:
    from collections.abc import Iterable

    from duovisor.spec.vm import Design

ROOT = Path(duovisor.__file__).parent
# who → the parts of duovisor whose Python it runs
PARTS = {
    "driver partition": ("channel", "controlling/drivers"),
    "controlling layer": ("controlling", "hypervisor", "hardware", "spec"),
}
BYTES_PER_MIB = 1 << 20


async def measure_code(context: Context, design: Design) -> Figures:
    """Lines of our own Python; and the machine code that each process has mapped, libraries included."""
    guest = await context.rig.guest(design)
    values = {f"python_lines:{who}": float(count_lines(folders)) for who, folders in PARTS.items()}
    for each in guest.machine.description.processes:
        if each.duty is Duty.SPARE:
            continue
        values[f"code_mib:{each.role}"] = read_code_bytes(find_program(each).pid) / BYTES_PER_MIB
    return Figures(values)


def count_lines(folders: Iterable[str], root: Path = ROOT) -> int:
    """Lines of Python that are neither empty nor a comment alone; those of drivers only where asked for."""
    total = 0
    for folder in folders:
        for path in sorted((root / folder).rglob("*.py")):
            if folder == "controlling" and "drivers" in path.relative_to(root).parts:
                continue
            lines = (line.strip() for line in path.read_text().splitlines())
            total += sum(1 for line in lines if line and not line.startswith("#"))
    return total
