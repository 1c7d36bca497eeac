"""Runs inside the nested test's outer guest, as root: the project on a host with real KVM.

Judges nothing. Each step is one JSON line on a virtio-serial port, ``{"step": ..., "design": ..., ...}``;
``test_nested_kvm`` on the host says what must be in it. A step that fails reports ``failed`` with its
traceback, and what comes after it is tried all the same. The last line is ``done``.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duovisor.controlling.anatomy import read_anatomy
from duovisor.controlling.description import describe_machine
from duovisor.controlling.images.probe import PORT_NAME
from duovisor.controlling.images.probe_client import connect_probe
from duovisor.controlling.images.storage_jobs import run_verify
from duovisor.controlling.images.store import load_image
from duovisor.controlling.machine import start_machine
from duovisor.controlling.networks.bridged import open_bridged_tap
from duovisor.controlling.networks.interfaces import read_tap_name
from duovisor.controlling.plugging.memory import add_memory, look_at_memory
from duovisor.controlling.probe_vm import SCRATCH_SERIAL, build_probe_spec, make_scratch_disk
from duovisor.directories import find_directories
from duovisor.hardware.capabilities import read_capabilities
from duovisor.process import as_command_line
from duovisor.spec.vm import Design, NicSpec

if TYPE_CHECKING:
    from duovisor.controlling.images.image import Image
    from duovisor.controlling.images.probe_client import ProbeClient
    from duovisor.controlling.machine import Machine
    from duovisor.spec.vm import VirtualMachineSpec

REPORT_PORT = Path("/dev/virtio-ports/org.duovisor.nested")
SCRATCH_MIB = 32
VERIFY_MIB = 4
# for what hangs: seconds are enough on a machine that is not busy
BOOT_TIMEOUT_S = 300.0
COMMAND_TIMEOUT_S = 300.0
LOG_BYTES = 256 << 10
OURS = re.compile(r"qemu-system|bwrap|passt|duovisor\.controlling\.drivers")

# what the inner guest's kernel found out about who runs it, and that its network card got an address
WHO_RUNS_US = "dmesg | grep -o 'Hypervisor detected: .*'"
SHOW_ADDRESS = "ip -4 address show eth0 | grep -o 'inet [0-9.]*'"
WAIT_FOR_ADDRESS = f"for i in $(seq 100); do {SHOW_ADDRESS} && exit; sleep 0.1; done; exit 1"

MORE_MEMORY_MIB = 128
COUNT_MEMORY = "awk '/MemTotal/ {print $2}' /proc/meminfo"
SWITCH_MEMORY_ON = (
    "for f in /sys/devices/system/memory/memory*/state; do grep -q online $f || echo online > $f; done"
)

# the second card: on a bridge of the outer guest, whose address is this
BRIDGE, HOST = "br-inner", "10.0.8.1"
CARD = "nic1"
TRUNK, VLAN = "br-trunk", 7
STREAM_MIB = 8
SET_UP_CARD = f"ip address add 10.0.8.2/24 dev eth1; ip link set eth1 up; ping -c 3 -W 5 {HOST}"
SHOW_INTERRUPTS = 'grep "$(basename $(readlink /sys/class/net/eth1/device))-" /proc/interrupts'


def report(step: str, design: Design | None = None, **facts: Any) -> None:
    """Send one line to the host."""
    line = json.dumps({"step": step, "design": design, "uptime_s": time.monotonic(), **facts}, default=str)
    with REPORT_PORT.open("wb", buffering=0) as port:
        port.write(line.encode() + b"\n")
    print(f"{time.monotonic():6.1f} s  {step} {design or ''}", flush=True)


def ask_cli(*words: str) -> dict[str, Any]:
    """Run ``duovisor WORDS --json`` as a user would; its exit code, document and complaint."""
    argv = [sys.executable, "-m", "duovisor", *words, "--json"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False)
    return {
        "exit": done.returncode,
        "document": json.loads(done.stdout) if done.stdout else None,
        "stderr": done.stderr,
    }


async def run_machine(spec: VirtualMachineSpec) -> None:
    """One VM from start to shutdown; its logs are reported while its run folder still exists."""
    directories = find_directories()
    started = time.monotonic()
    async with start_machine(spec, read_capabilities(directories.cache), directories) as machine:
        report("running", spec.design, start_s=time.monotonic() - started)
        try:
            await exercise(machine, started)
        finally:
            report("logs", spec.design, files=read_logs(machine))


async def wait_spares(machine: Machine) -> None:
    """Wait until every driver has one that stands by."""
    async with asyncio.timeout(BOOT_TIMEOUT_S):
        while any(device.crew.spare is None for device in machine.devices.values()):
            await asyncio.sleep(0.1)


async def exercise(machine: Machine, started: float) -> None:
    """Boot signal, anatomy, commands, verified storage, shutdown."""
    design = machine.spec.design
    async with connect_probe(machine.port_path(PORT_NAME)) as guest:
        booted = await guest.wait_booted(BOOT_TIMEOUT_S)
        report("booted", design, boot_s=time.monotonic() - started, guest=booted.model_dump())
        await wait_spares(machine)
        report("anatomy", design, anatomy=asdict(read_anatomy(describe_machine(machine))))
        report("vmm", design, **inspect_vmm(machine))
        for step, command in (("who-runs-us", WHO_RUNS_US), ("address", WAIT_FOR_ADDRESS)):
            done = await guest.run(command, COMMAND_TIMEOUT_S)
            report(step, design, exit=done.exit, output=done.output.decode(errors="replace"))
        await add_to(machine, guest)
        device = booted.find_disk(SCRATCH_SERIAL)
        verified = await run_verify(guest, device, size_mib=VERIFY_MIB) if device else "there is no disk"
        report("verify", design, verify=verified)
        await exercise_card(machine, guest)
    obeyed = await machine.shut_down()
    report("shutdown", design, obeyed=obeyed, history=machine.vmm.lifecycle.history)


async def add_to(machine: Machine, guest: ProbeClient) -> None:
    """More memory, which the guest switches on; what comes next may use it."""
    had = await guest.run(COUNT_MEMORY, COMMAND_TIMEOUT_S)
    await add_memory(machine, machine.spec.memory_room_mib)
    said = await look_at_memory(machine, COMMAND_TIMEOUT_S)
    has = await guest.run(f"{SWITCH_MEMORY_ON}; {COUNT_MEMORY}", COMMAND_TIMEOUT_S)
    report("memory", machine.spec.design, said=said, had=had.output.decode(), has=has.output.decode())


async def exercise_card(machine: Machine, guest: ProbeClient) -> None:
    """The card on the bridge: it reaches us, and a stream is whole though its driver is killed meanwhile."""
    design = machine.spec.design
    pinged = await guest.run(SET_UP_CARD, COMMAND_TIMEOUT_S)
    report("bridged", design, exit=pinged.exit, output=pinged.output.decode(errors="replace"))
    block = os.urandom(STREAM_MIB << 20)
    killed = []

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for start in range(0, len(block), 1 << 20):
            writer.write(block[start : start + (1 << 20)])
            await writer.drain()
            if start == len(block) // 2 and CARD in machine.devices:
                pid = machine.devices[CARD].describe().pid
                assert pid is not None
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
        writer.close()

    async with await asyncio.start_server(serve, HOST, 0) as server:
        port = server.sockets[0].getsockname()[1]
        done = await guest.run(f"nc {HOST} {port} </dev/null | md5sum", COMMAND_TIMEOUT_S)
    wanted = hashlib.md5(block, usedforsecurity=False).hexdigest()
    report("stream", design, whole=done.output.split()[:1] == [wanted.encode()], killed=killed,
           deaths=machine.devices[CARD].describe().deaths if killed else None)  # fmt: skip
    shown = await guest.run(SHOW_INTERRUPTS, COMMAND_TIMEOUT_S)
    report("interrupts", design, lines=shown.output.decode(errors="replace").splitlines())


def inspect_vmm(machine: Machine) -> dict[str, Any]:
    """What the kernel says of the VMM process: who it is, and every descriptor that it holds."""
    assert machine.vmm.process is not None
    proc = Path("/proc") / str(machine.vmm.process.program_pid())
    status = dict(
        line.split(":\t", 1) for line in (proc / "status").read_text().splitlines() if ":\t" in line
    )
    device = os.stat("/dev/kvm")
    return {
        "uid": int(status["Uid"].split()[0]),
        "groups": [int(group) for group in status["Groups"].split()],
        "files": sorted(os.readlink(link) for link in (proc / "fd").iterdir()),
        "kvm_mode": f"{device.st_mode & 0o777:o}",
        "kvm_gid": device.st_gid,
    }


def read_logs(machine: Machine) -> dict[str, str]:
    """The ends of a VM's logs by file name, and the command lines that made it."""
    logs = {path.name: path.read_bytes()[-LOG_BYTES:].decode(errors="replace")
            for path in machine.run_dir.rglob("*.log")}  # fmt: skip
    processes = [machine.vmm.process, *machine.helpers.values()]
    commands = [as_command_line(process.argv) for process in processes if process is not None]
    return {**logs, "commands.txt": "\n\n".join(commands) + "\n"}


def find_leftovers() -> dict[str, Any]:
    """What of ours is still on the host though no VM runs."""
    runtime = find_directories().runtime
    processes = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has just ended
            continue
        if OURS.search(command):
            processes.append(command)
    mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(runtime) in line]
    files = [str(path) for path in runtime.rglob("*") if not path.is_dir()]
    ports = os.listdir(f"/sys/class/net/{BRIDGE}/brif")
    return {"processes": processes, "mounts": mounts, "files": files, "ports": ports}


async def run_design(design: Design, image: Image) -> None:
    """One VM of this design; what goes wrong is told to the host, and the other design has its turn."""
    try:
        with make_scratch_disk(Path("/run"), design, size_mib=SCRATCH_MIB) as scratch:
            spec = build_probe_spec(f"inner-{design}", design, image, scratch)
            nics = (*spec.nics, NicSpec(bridge=BRIDGE))
            room = {"memory_max_mib": spec.memory_mib + MORE_MEMORY_MIB}
            await run_machine(spec.model_copy(update={"nics": nics, **room}))
    except Exception:  # whatever it is, the host wants to know
        report("failed", design, traceback=traceback.format_exc())


def report_vlan() -> None:
    """The VLANs of a card's port on a bridge that tells them apart, which not every test's own kernel can."""
    try:
        subprocess.run(("ip", "link", "add", TRUNK, "type", "bridge", "vlan_filtering", "1"), check=True)
        tap = open_bridged_tap("vlan", 0, NicSpec(bridge=TRUNK, vlan=VLAN), "52:54:00:00:00:07")
        words = ("bridge", "-json", "vlan", "show", "dev", read_tap_name(tap))
        shown = subprocess.run(words, check=True, capture_output=True, text=True).stdout
        os.close(tap)
        subprocess.run(("ip", "link", "delete", TRUNK), check=True)
        report("vlan", ports=json.loads(shown))
    except Exception:  # whatever it is, the host wants to know
        report("failed", traceback=traceback.format_exc())


def main() -> None:
    """All steps."""
    report_vlan()
    report("host-check", **ask_cli("host", "check"))
    report("host-show", **ask_cli("host", "show"))
    image = load_image("probe", find_directories())
    for design in Design:  # not both at once: an emulated KVM host is no place to look for races
        asyncio.run(run_design(design, image))
    report("leftovers", **find_leftovers())
    report("done")


if __name__ == "__main__":
    main()
