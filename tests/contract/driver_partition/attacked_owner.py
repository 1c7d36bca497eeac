"""The owner of a partition that attacks, as a process of its own: any user can be it.

Started with a folder, the path of the victim, and ``waited`` or ``forked``: whether the partition waited
before it was the victim's. Prints one JSON object: what the partition looks like from outside (``/proc``),
and what came of its attacks.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import sys
from pathlib import Path
from typing import Any

from duovisor.channel.page import create_page
from duovisor.controlling.partitions.errors import PartitionRefusedError
from duovisor.controlling.partitions.factory import WAITING_TITLE, PartitionFactory
from duovisor.controlling.partitions.limits import build_limits
from duovisor.process_identity import read_children

HERE = str(Path(__file__).parent)
MAIN = f"import sys; sys.path.insert(0, {HERE!r}); from attack_driver import main; main()"
NAMESPACES = ("mnt", "pid", "net", "ipc", "uts", "cgroup", "user")
VM_UID = 0x70001234
MEMORY_MIB = 64
PIDFD_GETFD = 438


def look(pid: int) -> dict[str, Any]:
    """What the kernel says of a process."""
    proc = Path(f"/proc/{pid}")
    status = dict(line.split(":", 1) for line in read_lines(proc / "status"))
    return {
        "namespaces": {name: os.readlink(proc / "ns" / name) for name in NAMESPACES},
        "status": {name: value.split() for name, value in status.items()},
        "descriptors": {int(name.name): os.readlink(name) for name in (proc / "fd").iterdir()},
        "mounts": [line.split()[3:6] for line in read_lines(proc / "mountinfo")],
        "root": os.listdir(proc / "root"),
        "limits": {line[:26].strip(): line[26:].split()[:2] for line in read_lines(proc / "limits")},
        "command_line": (proc / "cmdline").read_text().strip("\0"),
        "session": os.getsid(pid) == pid,
    }  # fmt: skip


def read_lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def waits(pid: int) -> bool:
    """Whether a process is a partition that waits."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().startswith(WAITING_TITLE)
    except OSError:
        return False


def take_descriptor(pid: int) -> str:
    """Whether the owner can get at a descriptor of the partition: pidfd_getfd(2)."""
    pidfd = os.pidfd_open(pid)
    libc = ctypes.CDLL(None, use_errno=True)
    taken = libc.syscall(ctypes.c_long(PIDFD_GETFD), pidfd, 0, 0)
    os.close(pidfd)
    return "taken" if taken >= 0 else os.strerror(ctypes.get_errno())


async def be_attacked(folder: Path, victim: str, how: str) -> dict[str, Any]:
    """Make a partition, look at it, let it attack."""
    factory = await PartitionFactory.start(log=folder / "factory.log", end_with_owner=True, main=MAIN)
    try:
        if how == "waited":
            factory.keep(1)
            while not any(map(waits, children := read_children(factory.process.pid))):
                await asyncio.sleep(0.01)
        partition = await factory.create(
            name="vm/disk0", uid=VM_UID, gid=VM_UID, log=folder / "disk0.log", limits=build_limits(MEMORY_MIB)
        )
        pid = partition.process.pid
        assert how != "waited" or pid in children
        found = {"partition": look(pid), "taken": take_descriptor(pid)}
        found["host"] = {"namespaces": {name: os.readlink(f"/proc/self/ns/{name}") for name in NAMESPACES}}
        results = os.open(folder / "results", os.O_RDWR | os.O_CREAT)
        descriptors = {"image": results, "page": create_page()}
        refused = ""
        try:
            await partition.control.request(
                "serve", driver="attack", options=[victim], descriptors=descriptors
            )
        except PartitionRefusedError as error:
            refused = str(error)
        status = await partition.process.wait()
        outcomes = json.loads((folder / "results").read_text())
        return {**found, "outcomes": outcomes, "refused": refused, "status": status}
    finally:
        await factory.close()


if __name__ == "__main__":
    print(json.dumps(asyncio.run(be_attacked(Path(sys.argv[1]), *sys.argv[2:]))))
