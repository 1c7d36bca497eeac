"""How long a VM takes from specification to QMP ``running``, against the same QEMU command started bare.

Both are timed in this process, in turn. ``ratio`` is the monolithic design ÷ its own QEMU command
without anything of ours around it: goal ≤ 1.25. ``ratio_microkernelized`` sets the other design, with its
sandbox and a driver partition for each disk, against that same bare command.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import statistics
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duovisor.controlling.images.probe import build_probe_image
from duovisor.controlling.machine import start_machine
from duovisor.controlling.probe_vm import build_probe_spec, make_scratch_disk
from duovisor.directories import find_directories
from duovisor.hardware.capabilities import read_capabilities
from duovisor.hypervisor.memory import create_memory_file
from duovisor.hypervisor.qemu.console import CONSOLE_LOG, QMP_SOCKET
from duovisor.hypervisor.qmp import Qmp
from duovisor.hypervisor.vmm_files import open_console_log
from duovisor.process import start
from duovisor.spec.vm import Design

if TYPE_CHECKING:
    from duovisor.directories import Directories
    from duovisor.hypervisor.plan import LaunchPlan
    from duovisor.spec.vm import VirtualMachineSpec


async def time_ours(spec: VirtualMachineSpec, directories: Directories) -> tuple[float, LaunchPlan]:
    """Seconds from specification to running VM: capabilities, checks, sandboxes, partitions included."""
    started = time.perf_counter()
    async with start_machine(spec, read_capabilities(directories.cache), directories) as machine:
        return time.perf_counter() - started, machine.vmm.plan


async def time_bare(plan: LaunchPlan, folder: Path) -> float:
    """Seconds from spawn to QMP ``running`` of the plan's command line."""
    create_memory_file(plan.memory_file, plan.memory_mib, None)
    async with AsyncExitStack() as stack:
        stack.callback(plan.memory_file.unlink)
        listeners = {}
        for name in plan.sockets:
            listeners[name] = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            listeners[name].bind(str(folder / f"{name}.sock"))
            stack.callback((folder / f"{name}.sock").unlink)
            listeners[name].listen(1)
        descriptors = {name: listener.fileno() for name, listener in listeners.items()}
        descriptors[CONSOLE_LOG] = stack.enter_context(open_console_log(folder / "console.log"))
        started = time.perf_counter()
        vmm = start(
            plan.resolve_argv(descriptors),
            role="bare",
            log=folder / "bare.log",
            pass_fds=tuple(descriptors.values()),
        )
        stack.push_async_callback(vmm.kill)
        qmp = Qmp("bare")
        await qmp.connect(folder / f"{QMP_SOCKET}.sock")
        stack.push_async_callback(qmp.disconnect)
        await qmp.cont()
        while await qmp.query_status() != "running":
            pass
        return time.perf_counter() - started


async def measure(rounds: int) -> dict[str, Any]:
    """Time ``rounds`` starts of each kind after one that is not counted."""
    directories = find_directories()
    image = build_probe_image(directories, print)
    seconds: dict[str, list[float]] = {"bare": [], **{str(design): [] for design in Design}}
    with make_scratch_disk(directories.state) as scratch, tempfile.TemporaryDirectory(prefix="dv-") as folder:
        specs = {design: build_probe_spec(f"start-{design}", design, image, scratch) for design in Design}
        for number in range(rounds + 1):
            ours, plan = await time_ours(specs[Design.MONOLITHIC], directories)
            plan.memory_file.parent.mkdir(exist_ok=True)  # a plain folder: the mount went with the VM
            bare = await time_bare(plan, Path(folder))
            plan.memory_file.parent.rmdir()
            micro, _ = await time_ours(specs[Design.MICROKERNELIZED], directories)
            if number:
                for name, value in zip(seconds, (bare, ours, micro), strict=True):
                    seconds[name].append(value)
    ratios = {
        design: [ours / bare for ours, bare in zip(seconds[str(design)], seconds["bare"], strict=True)]
        for design in Design
    }
    return {
        "ratio": round(statistics.median(ratios[Design.MONOLITHIC]), 3),
        "ratio_microkernelized": round(statistics.median(ratios[Design.MICROKERNELIZED]), 3),
        "spread": [round(edge(ratios[Design.MONOLITHIC]), 3) for edge in (min, max)],
        "spread_microkernelized": [round(edge(ratios[Design.MICROKERNELIZED]), 3) for edge in (min, max)],
        "median_ms": {name: round(statistics.median(values) * 1e3, 1) for name, values in seconds.items()},
    }


def main() -> None:
    """Parse options, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="starts of each kind")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    document = asyncio.run(measure(options.rounds))
    print("start to QMP running, median ms:", document["median_ms"])
    for design, suffix in (("monolithic", ""), ("microkernelized", "_microkernelized")):
        low, high = document[f"spread{suffix}"]
        print(f"  {design} ÷ bare QEMU: {document[f'ratio{suffix}']:.2f}  [{low:.2f} … {high:.2f}]")
    print(f"  goal ≤ 1.25 for the monolithic design: {'met' if document['ratio'] <= 1.25 else 'missed'}")
    if options.json:
        options.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
