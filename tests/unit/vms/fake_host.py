"""A host for the manager's tests: folders of its own, a fake QEMU, and a look at what is on it."""

from __future__ import annotations

import os
import select
import signal
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.recorded.abilities import load_abilities
from tests.unit.vms.fake_qemu import write_fake_qemu

from duovisor.controlling.memory_folder import SHARED_MEMORY
from duovisor.directories import Directories
from duovisor.hardware.capabilities import HostCapabilities, Tools
from duovisor.hardware.kvm import KvmProbe, KvmState
from duovisor.hardware.sandboxing import SandboxProbe
from duovisor.spec.loading import build_spec

if TYPE_CHECKING:
    from duovisor.spec.vm import VirtualMachineSpec


def build_directories(root: Path) -> Directories:
    """The folders under ``root``, whose path must be short: a Unix socket's has 107 bytes at most."""
    directories = Directories(root / "state", root / "run", root / "cache")
    directories.state.mkdir(exist_ok=True)
    return directories


def build_capabilities(root: Path) -> HostCapabilities:
    """A host with the fake QEMU, in the monolithic design alone."""
    return HostCapabilities(
        kvm=KvmProbe(KvmState.ABSENT, "there is no /dev/kvm"),
        dev_kvm=None,
        qemu_path=write_fake_qemu(root),
        qemu=load_abilities("7.2"),
        qemu_problem=None,
        sandbox=SandboxProbe(works=False, reason="not here"),
        tools=Tools(bwrap=None, setpriv=Path("/usr/bin/setpriv"), passt=None, qemu_storage_daemon=None),
        memory_total_mib=1024,
        cpus=2,
        shm_free_mib=None,
        is_root=os.geteuid() == 0,
    )


def build_vm(name: str = "vm", **document: Any) -> VirtualMachineSpec:
    """A small VM."""
    return build_spec({"name": name, "memory_mib": 16, **document})


def kill_and_wait(pid: int) -> None:
    """Kill a process that is not our child, and wait until it is dead."""
    pidfd = os.pidfd_open(pid)
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    assert select.select([pidfd], [], [], 10)[0]
    os.close(pidfd)


def find_processes(root: Path) -> set[int]:
    """The processes, but this one, that name a file under ``root`` or print to one, removed or not."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        texts: list[bytes] = []
        try:
            texts.append((process / "cmdline").read_bytes())
            texts += [os.fsencode(os.readlink(process / "fd" / number)) for number in ("1", "2")]
        except OSError:
            pass  # it has just ended, or closed its output
        if any(bytes(root) + b"/" in text for text in texts) and int(process.name) != os.getpid():
            found.add(int(process.name))
    return found


def find_files(directories: Directories) -> set[str]:
    """Run folders, memory files and mounts of VMs, in a form that can be compared."""
    runtime = directories.runtime
    found = {f"run {path.name}" for path in runtime.glob("vms/*")}
    shared = SHARED_MEMORY.glob(f"duovisor-{os.geteuid()}-{zlib.crc32(bytes(runtime)):08x}/*")
    found |= {f"memory {path.name}" for path in (*runtime.glob("memory/*"), *shared)}
    if os.path.ismount(runtime / "memory"):
        found.add("mount")
    return found
