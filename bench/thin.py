"""The thin VMM against QEMU: the same microkernelized VM on both, in turn, in one run. Needs KVM.

- ``start_ratio``, ``boot_ratio``: start request → first instruction, and → the guest's signal that it is up;
  thin ÷ QEMU, medians. Goal ≤ 0.7 for both.
- ``memory_mib``, ``memory_ratio``: PSS of the VMM's process beyond guest memory, after work on the disk.
  Goal ≤ 20 MiB, and ≤ 0.4 × QEMU's.
- ``exits_per_1000_io``: exits that reached Python while the guest read from its disk. Goal ≤ 1.
- ``restore_ratio``: a saved guest of ``--memory`` MiB answers again, ÷ its cold boot. Goal ≤ 0.1.
- ``network_ratio.{to_guest,from_guest}``, ``storage_ratio.*``: throughput of a card on a bridge (root,
  iperf3) and of a disk; thin ÷ QEMU (``thin_streams.py``).
- ``lines``: of code that the VMM's process imports from duovisor, without blank lines, comments and
  docstrings. Goal ≤ 4,000.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import io
import json
import statistics
import subprocess
import sys
import time
import tokenize
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.thin_restore import time_restore
from bench.thin_streams import bridged, build_ratio_lines, build_ratios, measure_throughput

from duovisor.comparison.processes import read_pss_kib
from duovisor.controlling.images.probe import PORT_NAME, build_probe_image
from duovisor.controlling.images.probe_client import connect_probe
from duovisor.controlling.machine import Machine
from duovisor.controlling.probe_vm import build_probe_spec, find_scratch, make_scratch_disk
from duovisor.controlling.supervision.factories import Factories
from duovisor.directories import find_directories
from duovisor.hardware.capabilities import read_capabilities
from duovisor.spec.vm import Accelerator, Design, VmmKind

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from bench.thin_streams import Bridged

    from duovisor.controlling.images.image import Image
    from duovisor.controlling.images.probe_client import ProbeClient
    from duovisor.directories import Directories
    from duovisor.spec.vm import VirtualMachineSpec

BOOT_TIMEOUT_S = 300.0
KINDS = (VmmKind.QEMU, VmmKind.THIN)
GOALS = {
    "start_ratio": 0.7, "boot_ratio": 0.7, "memory_mib": 20.0, "memory_ratio": 0.4,
    "exits_per_1000_io": 1.0, "restore_ratio": 0.1, "lines": 4000,
}  # fmt: skip
_DESCRIBED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_NO_CODE = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER
}  # fmt: skip
LIST_MODULES = (
    "import sys; import duovisor.hypervisor.thin.__main__; "
    "print(*(m.__file__ for n, m in sys.modules.items() if n.split('.')[0] == 'duovisor'), sep='\\n')"
)


def build_read_command(device: str, count: int) -> str:
    """So many reads of 4 KiB, 8 at a time, past the guest's page cache."""
    return (
        f"fio --name=read --filename={device} --direct=1 --ioengine=libaio --thread --rw=randread --bs=4k "
        f"--iodepth=8 --number_ios={count} --minimal"
    )


def list_module_files() -> list[Path]:
    """The files of ours that a thin VMM's process has imported when its machine begins."""
    done = subprocess.run([sys.executable, "-c", LIST_MODULES], check=True, capture_output=True, text=True)
    return [Path(line) for line in done.stdout.splitlines()]


def count_lines() -> int:
    """Lines of code in these files: without blank lines, comments and docstrings."""
    return sum(count_code_lines(path.read_text()) for path in list_module_files())


def count_code_lines(text: str) -> int:
    """Lines of one module that hold code; pure."""
    described: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, _DESCRIBED) and ast.get_docstring(node, clean=False) is not None:
            described.update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - described)


def summarize(rounds: list[dict[str, dict[str, float]]]) -> dict[str, float]:
    """Medians and ratios of what was measured on each VMM in each round; pure."""

    def median(kind: VmmKind, name: str) -> float:
        return statistics.median(each[kind][name] for each in rounds)

    figures = {
        f"{name}_ratio": median(VmmKind.THIN, f"{name}_s") / median(VmmKind.QEMU, f"{name}_s")
        for name in ("start", "boot")
    }
    memory = median(VmmKind.THIN, "memory_mib")
    figures["memory_mib"] = memory
    figures["memory_ratio"] = memory / median(VmmKind.QEMU, "memory_mib")
    figures["exits_per_1000_io"] = median(VmmKind.THIN, "exits_per_1000_io")
    return {name: round(value, 3) for name, value in figures.items()}


def build_lines(figures: dict[str, float]) -> list[str]:
    """What a person reads: each figure beside its goal."""
    return [
        f"  {name:18} {value:10.3f}   goal ≤ {GOALS[name]:g}: {'met' if value <= GOALS[name] else 'missed'}"
        for name, value in figures.items()
    ]


async def count_exits(machine: Machine) -> int:
    """Exits to the thin VMM's Python so far."""
    counted = await machine.vmm._qmp.execute("x-duovisor-exits")  # no part of a VM's life, so of no method
    return sum(counted[kind] for kind in ("io", "mmio", "other"))


def read_memory_mib(machine: Machine) -> float:
    """PSS of the VMM's process without the pages of guest memory."""
    inode = Path(machine.description.memory_file).stat().st_ino
    [vmm] = [each for each in machine.description.processes if each.is_vmm]
    total, guest = read_pss_kib(vmm.pid, inode)
    return (total - guest) / 1024


@asynccontextmanager
async def boot(
    spec: VirtualMachineSpec, directories: Directories, factories: Factories
) -> AsyncIterator[tuple[Machine, ProbeClient, dict[str, float]]]:
    """A VM from start request to the guest's signal; machine, guest, and seconds of both steps."""
    started = time.monotonic()
    machine = await Machine.start(
        spec, read_capabilities(directories.cache), directories, factories, die_with_owner=True
    )
    try:
        running = time.monotonic()
        async with connect_probe(machine.port_path(PORT_NAME)) as guest:
            await guest.wait_booted(BOOT_TIMEOUT_S)
            yield machine, guest, {"start_s": running - started, "boot_s": time.monotonic() - started}
    finally:
        await machine.clean_up()


async def measure_vmm(
    spec: VirtualMachineSpec, directories: Directories, factories: Factories, reads: int
) -> dict[str, float]:
    """All figures of one VM."""
    async with boot(spec, directories, factories) as (machine, guest, figures):
        command = build_read_command(find_scratch(guest), reads)
        await guest.run(command, BOOT_TIMEOUT_S)  # what happens once is not the steady state
        thin = spec.vmm is VmmKind.THIN
        before = await count_exits(machine) if thin else 0
        await guest.run(command, BOOT_TIMEOUT_S)
        if thin:
            figures["exits_per_1000_io"] = (await count_exits(machine) - before) * 1000 / reads
        figures["memory_mib"] = read_memory_mib(machine)
    return figures


def build_bench_spec(kind: VmmKind, image: Image, scratch: Path, memory_mib: int) -> VirtualMachineSpec:
    """The probe guest with its disks and nothing else: what both VMMs have."""
    spec = build_probe_spec(f"thin-{kind}", Design.MICROKERNELIZED, image, scratch)
    return spec.model_copy(
        update={"nics": (), "vmm": kind, "memory_mib": memory_mib, "accelerator": Accelerator.KVM}
    )


async def measure(rounds: int, reads: int, memory_mib: int) -> dict[str, Any]:
    """Everything, in alternating order; the first round fills caches and is not counted."""
    directories = find_directories()
    image = build_probe_image(directories, print)
    factories = Factories(directories.runtime, end_with_owner=True)
    measured: list[dict[str, dict[str, float]]] = []
    try:
        with make_scratch_disk(directories.state, size_mib=32) as scratch:
            for number in range(rounds + 1):
                specs = [build_bench_spec(kind, image, scratch, memory_mib) for kind in KINDS]
                found = {
                    str(spec.vmm): await measure_vmm(spec, directories, factories, reads) for spec in specs
                }
                print(f"round {number}: {json.dumps(found)}", flush=True)
                if number or not rounds:
                    measured.append(found)
            spec = build_bench_spec(VmmKind.THIN, image, scratch, memory_mib)
            boot_s = statistics.median(each[VmmKind.THIN]["boot_s"] for each in measured)
            restored = await time_restore(spec, directories, factories)
            print(f"restore: {json.dumps(restored)}", flush=True)
    finally:
        await factories.close()
    ratio = round(restored["restore_s"] / boot_s, 3)
    figures = {**summarize(measured), "restore_ratio": ratio, "lines": count_lines()}
    return {"figures": figures, "rounds": measured, "restore": restored}


async def measure_streams(
    rounds: int, seconds: float, memory_mib: int, network: Bridged | None
) -> list[dict[VmmKind, dict[str, float]]]:
    """Throughput on each VMM, in alternating order."""
    directories = find_directories()
    image = build_probe_image(directories, print)
    factories = Factories(directories.runtime, end_with_owner=True)
    measured: list[dict[VmmKind, dict[str, float]]] = []
    try:
        with make_scratch_disk(directories.state, size_mib=32) as scratch:
            for number in range(max(1, rounds)):
                found: dict[VmmKind, dict[str, float]] = {}
                for kind in KINDS if number % 2 == 0 else KINDS[::-1]:
                    spec = build_bench_spec(kind, image, scratch, memory_mib)
                    spec = network.add_to(spec) if network else spec
                    async with boot(spec, directories, factories) as (_, guest, _):
                        found[kind] = await measure_throughput(guest, seconds, network=bool(network))
                print(f"throughput {number}: {json.dumps(found)}", flush=True)
                measured.append(found)
    finally:
        await factories.close()
    return measured


def main() -> None:
    """Parse options, measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="VMs on each VMM; 0: one, with cold caches")
    parser.add_argument("--reads", type=int, default=2000, help="reads of 4 KiB for the count of exits")
    parser.add_argument("--memory", type=int, default=1024, help="MiB of guest memory")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of each job of fio and iperf3")
    parser.add_argument("--streams-only", action="store_true", help="network_ratio and storage_ratio alone")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    document: dict[str, Any] = {"figures": {}}
    if not options.streams_only:
        document = asyncio.run(measure(options.rounds, options.reads, options.memory))
    with bridged() as network:
        streams = asyncio.run(measure_streams(options.rounds, options.seconds, options.memory, network))
    document["streams"] = streams
    document |= (ratios := build_ratios(streams))
    print("\n".join([*build_lines(document["figures"]), *build_ratio_lines(ratios)]))
    if options.json:
        options.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
