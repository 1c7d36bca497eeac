"""The VMM of the microkernelized design as an attacker who has taken it over would find it.

First the living VMM, as the kernel shows it; then the same sandbox with a hostile program in QEMU's place.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from duovisor.hypervisor.build import VMM_DESCRIPTORS, VMM_PRIVATE_MIB, VMM_THREADS
from duovisor.hypervisor.errors import QmpError, VmmGoneError
from duovisor.hypervisor.lifecycle import State
from duovisor.sandbox import SCRATCH_INODES, SCRATCH_KIB, uid_of
from duovisor.spec.vm import Design

from .conftest import booting, lend_folders, make_scratch
from .hostile_vmm import INTERPRETER, attack

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from duovisor.controlling.images.image import Image
    from duovisor.hardware.capabilities import HostCapabilities

    from .conftest import Boot, Guest
    from .hostile_vmm import Outcomes

pytestmark = pytest.mark.vm
looks = pytest.mark.asyncio(loop_scope="module")  # where the guest was started

NAMESPACES = ("mnt", "pid", "net", "ipc", "uts", "cgroup")
CAPABILITY_SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
KERNEL_OBJECTS = re.compile(r"anon_inode:(\[(eventfd|signalfd|eventpoll|io_uring)\]|kvm-.*)|/dev/(null|kvm)")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guest(capabilities: HostCapabilities, probe_image: Image) -> AsyncIterator[Guest]:
    """One guest for all that look at it and leave it as it is."""
    with lend_folders() as folders:
        async with booting(folders, probe_image, capabilities) as boot:
            yield await boot(Design.MICROKERNELIZED, disks=[{"path": str(make_scratch(folders))}], nics=[{}])


def proc(guest: Guest) -> Path:
    """The VMM's folder in /proc."""
    assert guest.machine.vmm.process is not None
    return Path("/proc") / str(guest.machine.vmm.process.program_pid())


def read_status(guest: Guest) -> dict[str, str]:
    lines = (proc(guest) / "status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def read_limits(guest: Guest) -> dict[str, tuple[str, str]]:
    lines = (proc(guest) / "limits").read_text().splitlines()[1:]
    return {line[:26].strip(): (line[26:47].strip(), line[47:68].strip()) for line in lines}


def read_unix_sockets() -> dict[str, str]:
    """Path by inode number, of every Unix socket of the host's network namespace."""
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    return {fields[6]: fields[7] if len(fields) > 7 else "" for fields in lines}


@looks
async def test_each_descriptor_is_accounted_for(guest: Guest) -> None:
    """Guest memory, sockets of its own run folder, two logs, in-flight logs, and the kernel's own objects."""
    run_dir = guest.machine.run_dir
    memory = guest.machine.vmm.plan.memory_file.stat()
    sockets = read_unix_sockets()
    unknown, memory_files = [], 0
    for link in sorted((proc(guest) / "fd").iterdir(), key=lambda each: int(each.name)):
        target, status = os.readlink(link), link.stat()
        if stat.S_ISSOCK(status.st_mode):
            path = sockets.get(target.removeprefix("socket:[").removesuffix("]"), "not a Unix socket")
            known = Path(path).parent == run_dir / "1"
        elif (status.st_dev, status.st_ino) == (memory.st_dev, memory.st_ino):
            memory_files += 1
            known = True
        elif target in (str(run_dir / "1/vmm.log"), str(run_dir / "console.log")):
            known = link.lstat().st_mode & 0o600 == 0o200  # open for writing alone
        else:
            known = bool(KERNEL_OBJECTS.fullmatch(target)) or target.startswith("/memfd:duovisor-")
        if not known:
            unknown.append(f"{link.name} {target}")
    assert unknown == []
    assert memory_files == 1


@looks
async def test_namespaces_and_privileges(guest: Guest) -> None:
    own = {
        name
        for name in NAMESPACES
        if os.readlink(proc(guest) / "ns" / name) != os.readlink(f"/proc/self/ns/{name}")
    }
    assert own == set(NAMESPACES)
    same_users = os.readlink(proc(guest) / "ns/user") == os.readlink("/proc/self/ns/user")
    assert same_users is (os.geteuid() == 0)
    status = read_status(guest)
    uid = str(uid_of(guest.machine.spec.name) if os.geteuid() == 0 else os.geteuid())
    assert status["Uid"].split() == [uid] * 4
    if os.geteuid() == 0:
        assert (status["Gid"].split(), status["Groups"]) == ([uid] * 4, "")
    assert {name: int(status[name], 16) for name in CAPABILITY_SETS} == dict.fromkeys(CAPABILITY_SETS, 0)
    assert (status["Seccomp"], status["NoNewPrivs"]) == ("2", "1")
    assert status["NSpid"].split()[-1] == "1"


@looks
async def test_file_system_is_what_qemu_needs(guest: Guest) -> None:
    root = proc(guest) / "root"
    mounts, limits = {}, {}
    for line in (proc(guest) / "mountinfo").read_text().splitlines():
        _, _, _, _, place, options, *_ = line.split()
        mounts[place] = set(options.split(","))
        limits[place] = set(line.split()[-1].split(","))
    writable = {place for place, options in mounts.items() if "rw" in options}
    assert writable == {"/memory", "/channels", "/dev/null", "/dev/urandom"}
    assert {place for place, options in mounts.items() if "nodev" not in options} == {
        "/dev/null",
        "/dev/urandom",
    }
    assert all("nosuid" in options for options in mounts.values())
    if os.geteuid() == 0:
        assert limits["/channels"] >= {f"size={SCRATCH_KIB}k", f"nr_inodes={SCRATCH_INODES}"}
    tools = {"setpriv", "prlimit"} if os.geteuid() == 0 else {"prlimit"}
    qemu = Path(guest.machine.vmm.plan.argv[0]).name
    assert set(os.listdir(root / "usr/bin")) == {qemu, *tools}
    files = {"bin", "boot", "dev", "etc", "lib", "lib64", "sbin", "usr"}
    assert set(os.listdir(root)) == {*files, "memory", "channels"}
    assert os.listdir(root / "channels") == []  # where it binds the sockets of cards on a bridge
    assert set(os.listdir(root / "dev")) == {"null", "urandom"}
    assert os.listdir(root / "etc") == ["ld.so.cache"]
    assert set(os.listdir(root / "boot")) == {"kernel", "initrd"}
    assert set(os.listdir(root / "usr")) <= {"bin", "lib", "lib64", "share"}


@looks
async def test_limits(guest: Guest) -> None:
    limits = read_limits(guest)
    private = str(VMM_PRIVATE_MIB + 16 << 20)
    assert limits["Max core file size"] == ("0", "0")
    assert limits["Max data size"] == (private, private)
    assert limits["Max processes"] == (str(VMM_THREADS), str(VMM_THREADS))
    assert limits["Max open files"] == (str(VMM_DESCRIPTORS), str(VMM_DESCRIPTORS))


async def test_seccomp_ends_a_vmm_that_starts_a_program(boot: Boot) -> None:
    """``migrate exec:`` is QEMU's way to start a shell, and ``spawn=deny`` kills it for that.

    With the C library of Debian 13 it asks in another way, which its filter refuses.
    """
    guest = await boot(Design.MICROKERNELIZED)
    argv = guest.machine.vmm.plan.argv
    wanted = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
    assert argv[argv.index("-sandbox") + 1] == wanted
    qmp = guest.machine.vmm._qmp
    with pytest.raises((VmmGoneError, QmpError)) as refused:
        await qmp.execute("migrate", uri="exec:/usr/bin/prlimit")
    if isinstance(refused.value, QmpError):
        assert "Failed to fork (Operation not permitted)" in refused.value.message
        return
    assert await guest.machine.vmm.wait_ended(timeout_s=60) is State.CRASHED
    assert guest.machine.vmm.process is not None
    assert guest.machine.vmm.process.returncode in (-signal.SIGSYS, 128 + signal.SIGSYS)


@pytest.fixture(scope="module", params=[True, False], ids=["root", "user"])
def outcomes(request: pytest.FixtureRequest) -> Outcomes:
    """What the attacker met in the sandbox that root makes, and in the one that another user makes."""
    if request.param and os.geteuid() != 0:
        pytest.skip("only root can make root's sandbox")
    if not INTERPRETER.exists():
        pytest.skip("the attacker is a program for the system's Python, which is not installed")
    folder = Path(tempfile.mkdtemp(prefix="dvt-", dir="/tmp"))
    folder.chmod(0o755)
    try:
        return attack(folder, as_root=request.param)
    finally:
        shutil.rmtree(folder)


def test_attacker_reaches_no_file_of_the_host(outcomes: Outcomes) -> None:
    assert len(outcomes["files"]) > 50
    assert set(outcomes["files"].values()) == {"ENOENT", "ENOTDIR"}


def test_attacker_sees_and_signals_no_process(outcomes: Outcomes) -> None:
    assert outcomes["processes"].pop("list processes") == "ENOENT"
    assert len(outcomes["processes"]) == 13
    assert set(outcomes["processes"].values()) <= {"ESRCH", "EINVAL", "EPERM"}


def test_attacker_connects_to_nothing(outcomes: Outcomes) -> None:
    sockets = outcomes["sockets"]
    assert sockets.pop("interfaces") == "lo"
    assert sorted(sockets.values()) == ["ECONNREFUSED", "ECONNREFUSED", "ENOENT", "EPERM"]


def test_attacker_gains_no_privilege_and_runs_no_shell(outcomes: Outcomes) -> None:
    assert outcomes["privileges"].pop("run a shell") == "ENOENT"
    assert set(outcomes["privileges"].values()) <= {"EPERM", "EROFS", "EINVAL"}


def test_attacker_changes_nothing_it_may_read(outcomes: Outcomes) -> None:
    assert set(outcomes["writing"].values()) <= {"EROFS", "EACCES", "EISDIR"}


def test_attacker_fills_no_memory_with_files(outcomes: Outcomes) -> None:
    """Where root's VMM may make sockets; another user's fills what is that user's own."""
    filled = outcomes["filling"]
    if not filled:
        pytest.skip("the sandbox of another user")
    assert filled == {
        "files": "ENOSPC", "file_count": SCRATCH_INODES - 1, "folders": "ENOSPC", "bytes": "ENOSPC",
        "byte_count": SCRATCH_KIB << 10,
    }  # fmt: skip


def test_attacker_meets_each_limit(outcomes: Outcomes) -> None:
    used = outcomes["resources"]
    assert (used["memory"], used["descriptors"]) == ("ENOMEM", "EMFILE")
    assert VMM_PRIVATE_MIB - 256 < used["memory_mib"] <= VMM_PRIVATE_MIB + 16
    assert VMM_DESCRIPTORS - 16 < used["descriptor_count"] < VMM_DESCRIPTORS
    assert used["threads"] == "RuntimeError"
    assert VMM_THREADS - 16 < used["thread_count"] < VMM_THREADS
