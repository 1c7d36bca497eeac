"""How much memory a microkernelized VM costs beside its VMM: PSS of our own processes, per VM.

Starts VMs with one disk each, lets each guest read and write, and adds up the proportional set size of driver
partitions, spares, the factory they come from and the sandbox's own process (``/proc/PID/smaps_rollup``),
without the pages of guest memory, which are the guest's. Goal: at most 10 MiB per VM. Beside that, what those
partitions take that wait for the next VM: they are the service's, however many VMs it has.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.contract.driver_partition.waiting import find_waiting

from duovisor.comparison.processes import read_pss_kib
from duovisor.controlling.images.probe import PORT_NAME, build_probe_image
from duovisor.controlling.images.probe_client import connect_probe
from duovisor.controlling.machine import Machine
from duovisor.controlling.probe_vm import build_probe_spec
from duovisor.controlling.supervision.factories import WAITING, Factories
from duovisor.directories import find_directories
from duovisor.hardware.capabilities import read_capabilities
from duovisor.spec.vm import Design

if TYPE_CHECKING:
    from duovisor.directories import Directories

GOAL_MIB = 10.0
BOOT_TIMEOUT_S = 180.0
DISK_BYTES = 64 << 20
WORK = (
    "dd if=/dev/zero of=/dev/vda bs=64k count=256 oflag=direct; dd if=/dev/vda of=/dev/null bs=4k count=4096"
)


async def measure(vms: int) -> dict[str, Any]:
    """Start ``vms`` VMs, one after the other, and look at their processes when each has worked."""
    directories = find_directories()
    image = build_probe_image(directories, print)
    async with AsyncExitStack() as stack:
        factories = Factories(directories.runtime, end_with_owner=True)
        stack.push_async_callback(factories.close)
        machines = [await start(stack, factories, directories, image, number) for number in range(vms)]
        factory = (await factories.get()).process.pid
        shared = read_pss_kib(factory, -1)[0]
        roles: dict[str, float] = {"factory": shared}
        for machine in machines:
            memory_inode = Path(machine.description.memory_file).stat().st_ino
            for each in machine.description.processes:
                pid = each.watched_pid if each.is_vmm else each.pid  # of the VMM, the sandbox's own process
                total, guest = read_pss_kib(pid, memory_inode)
                role = "sandbox" if each.is_vmm else f"{each.role} ({each.duty or 'helper'})"
                roles[role] = roles.get(role, 0) + total - guest
        waiting = await count_waiting(factories, factory)
    per_vm = {role: round(kib / 1024 / vms, 2) for role, kib in roles.items()}
    return {
        "vms": vms,
        "pss_mib_per_vm": round(sum(per_vm.values()), 2),
        "by_role": per_vm,
        "waiting_mib_per_service": round(waiting / 1024, 2),
    }


async def count_waiting(factories: Factories, factory: int) -> int:
    """Have the partitions there that wait for the next VM; their PSS in KiB."""
    factories.prepare_partitions(0.0)
    while len(found := find_waiting(factory)) < WAITING:  # noqa: ASYNC110 (nothing tells of it)
        await asyncio.sleep(0.05)
    return sum(read_pss_kib(pid, -1)[0] for pid in found)


async def start(
    stack: AsyncExitStack, factories: Factories, directories: Directories, image: Any, number: int
) -> Machine:
    """A VM whose guest has used its disk, and whose driver has a spare."""
    scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dv-"))) / "disk.raw"
    with scratch.open("wb") as file:
        file.truncate(DISK_BYTES)
    spec = build_probe_spec(f"memory-{number}", Design.MICROKERNELIZED, image, scratch)
    spec = spec.model_copy(update={"disks": spec.disks[:1], "nics": (), "memory_mib": 192})
    machine = await Machine.start(
        spec, read_capabilities(directories.cache), directories, factories, die_with_owner=True
    )
    stack.push_async_callback(machine.clean_up)
    async with connect_probe(machine.port_path(PORT_NAME)) as probe:
        await probe.wait_booted(BOOT_TIMEOUT_S)
        await probe.run(WORK, timeout_s=BOOT_TIMEOUT_S)
    while machine.devices["disk0"].describe().spare_pid is None:  # noqa: ASYNC110 (nothing tells of it)
        await asyncio.sleep(0.05)
    return machine


def main() -> None:
    """Parse options, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vms", type=int, nargs="+", default=[1, 3], help="how many VMs at once")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    found = [asyncio.run(measure(vms)) for vms in options.vms]
    for figures in found:
        print(f"{figures['vms']} VMs: {figures['pss_mib_per_vm']:.1f} MiB per VM beside the VMM")
        for role, mib in figures["by_role"].items():
            print(f"  {mib:6.2f}  {role}")
        print(f"  {figures['waiting_mib_per_service']:6.2f}  partitions that wait, of the service")
    met = all(figures["pss_mib_per_vm"] <= GOAL_MIB for figures in found)
    print(f"  goal ≤ {GOAL_MIB:g} MiB: {'met' if met else 'missed'}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
