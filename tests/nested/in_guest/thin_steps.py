"""Runs inside the nested test's outer guest, as root: a VM on the thin VMM, on real KVM, with a stock kernel.

Judges nothing, like ``steps.py``, and reports in the same way; ``test_thin`` on the host says what must be in
it. The VM has four processors and no card: what else it lacks is what the two VMs of ``steps.py`` have.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duovisor.controlling.anatomy import read_anatomy
from duovisor.controlling.comparison import SCRATCH_SERIAL, build_probe_spec, make_scratch_disk
from duovisor.controlling.description import describe_machine
from duovisor.controlling.images.probe import PORT_NAME
from duovisor.controlling.images.probe_client import connect_probe
from duovisor.controlling.images.storage_jobs import run_verify
from duovisor.controlling.images.store import load_image
from duovisor.controlling.machine import start_machine
from duovisor.controlling.moving.move import move
from duovisor.directories import find_directories
from duovisor.hardware.capabilities import read_capabilities
from duovisor.hypervisor.thin_plan import CONSOLE_CHANNEL
from duovisor.spec.vm import Design, VmmKind

if TYPE_CHECKING:
    from duovisor.controlling.images.probe_client import ProbeClient
    from duovisor.controlling.machine import Machine
    from duovisor.hardware.capabilities import HostCapabilities

REPORT_PORT = Path("/dev/virtio-ports/org.duovisor.nested")
CPUS = 4
SCRATCH_MIB = 32
VERIFY_MIB = 4
READS = 500
BOOT_TIMEOUT_S = 120.0
COMMAND_TIMEOUT_S = 60.0
LOG_BYTES = 256 << 10
READ = f"dd if={{}} of=/dev/null bs=4k count={READS} skip=2048 2>&1; echo 3 >/proc/sys/vm/drop_caches"
IDENTITY = "cat /proc/sys/kernel/random/boot_id"


def report(step: str, **facts: Any) -> None:
    """Send one line to the host."""
    line = json.dumps({"step": step, "design": None, "uptime_s": time.monotonic(), **facts}, default=str)
    with REPORT_PORT.open("wb", buffering=0) as port:
        port.write(line.encode() + b"\n")
    print(f"{time.monotonic():6.1f} s  {step}", flush=True)


async def ask(guest: ProbeClient, command: str) -> dict[str, Any]:
    """Run a command in the guest."""
    done = await guest.run(command, COMMAND_TIMEOUT_S)
    return {"exit": done.exit, "output": done.output.decode(errors="replace")}


async def run_machine(scratch: Path) -> None:
    """One VM from start to shutdown; its logs are reported while its run folder still exists."""
    directories = find_directories()
    capabilities = read_capabilities(directories.cache)
    image = load_image("probe", directories)
    spec = build_probe_spec("inner-thin", Design.MICROKERNELIZED, image, scratch, CPUS)
    spec = spec.model_copy(update={"nics": (), "vmm": VmmKind.THIN})
    async with start_machine(spec, capabilities, directories) as machine:
        try:
            await exercise(machine, capabilities)
        finally:
            found = sorted(machine.run_dir.rglob("*.log"))
            texts = [path.read_bytes()[-LOG_BYTES:].decode(errors="replace") for path in found]
            names = [str(path.relative_to(machine.run_dir)) for path in found]
            report("thin-logs", files=dict(zip(names, texts, strict=True)))


async def exercise(machine: Machine, capabilities: HostCapabilities) -> None:
    """Boot, storage, a killed driver, pause, a new VMM under the running guest, reset, shutdown."""
    async with connect_probe(machine.port_path(PORT_NAME)) as guest:
        booted = await guest.wait_booted(BOOT_TIMEOUT_S)
        report("thin-booted", guest=booted.model_dump(), kind=machine.current.decision.kind)
        report("thin-anatomy", anatomy=asdict(read_anatomy(describe_machine(machine))))
        device = booted.find_disk(SCRATCH_SERIAL)
        assert device is not None
        await count_exits(machine, guest, device)
        report("thin-verify", verify=await verify_under_kills(machine, guest, device))
        await machine.vmm.pause()
        await machine.vmm.resume()
        before = await ask(guest, IDENTITY)
    kill_driver(machine, CONSOLE_CHANNEL)  # and with it this connection
    moved = await move(machine, Design.MICROKERNELIZED, capabilities)
    async with connect_probe(machine.port_path(PORT_NAME)) as guest:
        report("thin-moved", before=before, after=await ask(guest, IDENTITY), report=asdict(moved))
        report("thin-verify-moved", verify=await run_verify(guest, device, size_mib=VERIFY_MIB))
    await machine.vmm.reset()
    async with connect_probe(machine.port_path(PORT_NAME)) as guest:
        await guest.wait_booted(BOOT_TIMEOUT_S)
        report("thin-reset", after=await ask(guest, IDENTITY))
    obeyed = await machine.shut_down()
    console = bytes(machine.console.scrollback).decode(errors="replace")
    report("thin-shutdown", obeyed=obeyed, history=machine.vmm.lifecycle.history, console=console[-2000:])


async def count_exits(machine: Machine, guest: ProbeClient, device: str) -> None:
    """How often the VMM's process was entered while the guest read."""
    await ask(guest, READ.format(device))
    before = await machine.vmm._qmp.execute("x-duovisor-exits")
    read = await ask(guest, READ.format(device))
    after = await machine.vmm._qmp.execute("x-duovisor-exits")
    report("thin-exits", read=read, reads=READS, exits={kind: after[kind] - before[kind] for kind in after})


async def verify_under_kills(machine: Machine, guest: ProbeClient, device: str) -> str:
    """What fio says of what it wrote while the storage driver was killed."""
    verifying = asyncio.create_task(run_verify(guest, device, size_mib=VERIFY_MIB))
    await asyncio.sleep(1.0)
    kill_driver(machine, "disk0")
    return await verifying


def kill_driver(machine: Machine, device: str) -> None:
    """SIGKILL for the driver that serves a device."""
    pid = machine.current.devices[device].describe().pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


def main() -> None:
    """All steps; what goes wrong is told to the host."""
    try:
        with make_scratch_disk(Path("/run"), "thin", size_mib=SCRATCH_MIB) as scratch:
            asyncio.run(run_machine(scratch))
    except Exception:  # whatever it is, the host wants to know
        report("thin-failed", traceback=traceback.format_exc())


if __name__ == "__main__":
    main()
