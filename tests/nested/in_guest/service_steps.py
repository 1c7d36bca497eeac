"""Runs inside the nested test's outer guest, as root: duovisord as a systemd unit, and the groups of its VMs.

Judges nothing, like ``steps.py``, and reports in the same way; ``test_systemd`` on the host says what must be
in it. The unit has the folders that users' hosts have, not those of ``steps.py``.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duovisor.controlling.resources.group_folder import find_group, list_processes, read_limits
from duovisor.controlling.resources.vm_group import open_vm_group
from duovisor.hardware.capabilities import read_capabilities
from duovisor.spec.loading import build_spec

if TYPE_CHECKING:
    from collections.abc import Callable

REPORT_PORT = Path("/dev/virtio-ports/org.duovisor.nested")
PAYLOAD = Path("/payload")
PROBE = PAYLOAD / "state/images/probe"
UNIT = "duovisord.service"
UNITS = Path("/etc/systemd/system")
SLICE = Path("/sys/fs/cgroup/duovisor.slice")
SPEC = {
    "name": "inner",
    "design": "microkernelized",
    "firmware": "direct-kernel",
    "memory_mib": 128,
    "kernel": {"path": str(PROBE / "vmlinuz"), "initrd": str(PROBE / "initrd.img")},
    "disks": [{"path": "/run/inner.raw"}],
    "nics": [{}],
}
COMMAND_TIMEOUT_S = 300
SETTLE_S = 300.0
HOG_MIB = 1024
PR_SET_PDEATHSIG = 1


def report(step: str, **facts: Any) -> None:
    """Send one line to the host."""
    line = json.dumps({"step": step, "design": None, "uptime_s": time.monotonic(), **facts}, default=str)
    with REPORT_PORT.open("wb", buffering=0) as port:
        port.write(line.encode() + b"\n")
    print(f"{time.monotonic():6.1f} s  {step}", flush=True)


def run(*argv: str) -> dict[str, Any]:
    """Run a program to its end."""
    done = subprocess.run(argv, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False)
    return {"exit": done.returncode, "output": done.stdout + done.stderr}


def ask(*words: str) -> Any:
    """``duovisor WORDS --json``; its document, or what it said instead."""
    done = run("duovisor", *words, "--json")
    try:
        return json.loads(done["output"])
    except ValueError:
        return done["output"]


def install() -> None:
    """What a package would do: the commands, the unit, a VM's disk and definition."""
    for command, module in (("duovisor", "duovisor"), ("duovisord", "duovisor.controlling.service")):
        path = Path("/usr/local/bin") / command
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            f'#!/bin/sh\nexec env PYTHONPATH={PAYLOAD}/python {sys.executable} -m {module} "$@"\n'
        )
        path.chmod(0o755)
    shutil.copyfile(PAYLOAD / UNIT, UNITS / UNIT)
    with Path("/run/inner.raw").open("wb") as disk:
        disk.truncate(16 << 20)
    Path("/run/inner.json").write_text(json.dumps(SPEC))
    report("unit-installed", verify=run("systemd-analyze", "verify", str(UNITS / UNIT)))


def show_unit() -> dict[str, Any]:
    """The unit's state as systemd has it, and the service's own words on what it found."""
    properties = "ActiveState,SubState,MainPID,NRestarts,Result"
    shown = run("systemctl", "show", UNIT, f"--property={properties}")["output"]
    return dict(line.split("=", 1) for line in shown.splitlines())


def has_spares() -> bool:
    """Whether each driver of the VM has one that stands by."""
    listed = ask("driver", "list")
    duties = [each["duty"] for each in listed] if isinstance(listed, list) else []
    return "active" in duties and duties.count("active") == duties.count("spare")


def show_vm() -> dict[str, Any]:
    """The VM's processes, each with its group and the limits there."""
    anatomy = ask("vm", "anatomy", "inner")
    if not isinstance(anatomy, dict):
        return {"groups": {}, "mounts": [], "said": anatomy}
    groups = {}
    for process in anatomy["processes"]:
        group = find_group(process["pid"])
        limits = read_limits(group) if group else None
        groups[f"{process['role']} {process['pid']}"] = {
            "group": str(group),
            "limits": limits,
            "scope": read_limits(group.parent) if group else None,
            "confinement": process["confinement"],
        }
    return {"groups": groups, "mounts": [line for line in read_mounts() if "duovisor/memory" in line]}


def read_mounts() -> list[str]:
    return Path("/proc/mounts").read_text().splitlines()


def wait_until(condition: Callable[[], bool]) -> bool:
    """Whether it came to hold before long."""
    end = time.monotonic() + SETTLE_S
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def live_under_systemd() -> None:
    """The service starts, is restarted, is killed, and stops; its VM does not notice."""
    report("unit-started", start=run("systemctl", "start", UNIT), unit=show_unit())
    created = run("duovisor", "vm", "create", "/run/inner.json")
    started = run("duovisor", "vm", "start", "inner")
    wait_until(has_spares)  # no process comes from here on
    report("vm-started", create=created, start=started, vm=show_vm())
    restarted = run("systemctl", "restart", UNIT)
    report(
        "unit-restarted", restart=restarted, unit=show_unit(), found=ask("service", "status"), vm=show_vm()
    )
    killed = int(show_unit()["MainPID"])
    os.kill(killed, signal.SIGKILL)
    back = wait_until(lambda: show_unit()["SubState"] == "running" and int(show_unit()["MainPID"]) != killed)
    report("unit-killed", back=back, unit=show_unit(), vm=show_vm())
    report("check", check=ask("host", "check"))
    limit_live()
    stopped = run("duovisor", "vm", "stop", "inner")
    gone = wait_until(lambda: not list(SLICE.glob("*.scope")))
    left = [str(path) for path in SLICE.glob("*.scope")]
    report("vm-stopped", stop=stopped, gone=gone, scopes=left)
    report("unit-stopped", stop=run("systemctl", "stop", UNIT), unit=show_unit())


def limit_live() -> None:
    """Other limits under the guest; systemd keeps them when it reads its units again."""
    words = ("--cpu-limit", "0.5", "--cpu-weight", "50", "--memory-limit", "3G")
    limited = run("duovisor", "vm", "set-limits", "inner", *words)
    reloaded, found = run("systemctl", "daemon-reload"), read_scope()
    none = ("--cpu-limit", "none", "--cpu-weight", "none", "--memory-limit", "none")
    freed = run("duovisor", "vm", "set-limits", "inner", *none)
    report(
        "limited-live", limited=limited, reloaded=reloaded, found=found, freed=freed, afterwards=read_scope()
    )


def read_scope() -> list[str]:
    """The limits of the VM's scope, as the kernel has them."""
    (scope,) = SLICE.glob("*.scope")
    return [(scope / name).read_text().strip() for name in ("cpu.max", "cpu.weight", "memory.max")]


def meet_limits() -> None:
    """Three processes in one VM's group: those that take too much are stopped, the other goes on."""
    spec = build_spec({"name": "hogs", "memory_mib": 16, "design": "monolithic"})
    group = asyncio.run(open_vm_group(spec, read_capabilities(Path("/run/cache")), Path("/run")))
    hogs = {name: start_hog(take) for name, take in (("memory", take_memory), ("forks", take_processes))}
    neighbour = subprocess.Popen(["sleep", "300"])
    group.place("neighbour", neighbour.pid)
    for name, (pid, _) in hogs.items():
        group.place(name, pid)
    ends = {}
    for name, (pid, gate) in hogs.items():
        os.write(gate, b"\n")
        ends[name] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    leaf = find_group(neighbour.pid)
    lives = neighbour.poll() is None and leaf is not None and neighbour.pid in list_processes(leaf)
    report("limits", problem=group.problem, folder=str(group.folder), ends=ends, neighbour_lives=lives)
    neighbour.kill()
    neighbour.wait()


def start_hog(take: Callable[[], int]) -> tuple[int, int]:
    """A process that waits for a line and then does its worst; its id, and where to write the line."""
    gate, ours = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.read(gate, 1)
        os._exit(take())
    os.close(gate)
    return pid, ours


def take_memory() -> int:
    """A memory file, which no resource limit counts."""
    descriptor = os.memfd_create("hog")
    for _ in range(HOG_MIB):
        os.write(descriptor, bytes(1 << 20))
    return 0


def take_processes() -> int:
    """Children until there can be no more; how many tens there were."""
    children = 0
    while children < 1000:
        try:
            pid = os.fork()
        except OSError:
            break
        if pid == 0:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            time.sleep(60)
            os._exit(0)
        children += 1
    return children // 10


def attempt(step: Callable[[], None]) -> None:
    """What goes wrong is told to the host, and the next step has its turn."""
    try:
        step()
    except Exception:  # whatever it is, the host wants to know
        report("failed", traceback=traceback.format_exc())


def main() -> None:
    """All steps."""
    attempt(install)
    attempt(meet_limits)
    attempt(live_under_systemd)
    report("journal", text=run("journalctl", "--unit", UNIT, "--no-pager", "--output=cat")["output"][-8000:])
    report("service-done")


if __name__ == "__main__":
    main()
