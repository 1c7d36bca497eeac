"""What launch plans need to know of this host: the probes' outcomes, and what is installed.

The three probes run programs (about 200 ms together); what they found is kept by ``capabilities_cache``.
Everything else is read anew each time, so that a package installed a moment ago is seen.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from duovisor.errors import DuovisorError
from duovisor.hardware.capabilities_cache import CacheKey, find_cached, keep_lasting, store
from duovisor.hardware.errors import QemuUnusableError
from duovisor.hardware.kvm import DEV_KVM, KvmProbe, find_obstacle, probe_kvm
from duovisor.hardware.memory import read_memory
from duovisor.hardware.qemu import QemuAbilities, find_qemu
from duovisor.hardware.resource_groups import find_groups_problem
from duovisor.hardware.sandboxing import SandboxProbe, probe_sandbox
from duovisor.process import ProgramNotFoundError

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path("/")
SHM = Path("/dev/shm")
BYTES_PER_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class QemuProblem:
    """Why there are no abilities: the error that asking for them met."""

    code: str
    message: str
    remedy: str


@dataclass(frozen=True, slots=True)
class DevKvm:
    """Who may open ``/dev/kvm``."""

    mode: int
    uid: int
    gid: int

    @property
    def opens_to_its_group(self) -> bool:
        """Whether an unprivileged VMM can be let in by giving it the group."""
        return self.mode & 0o060 == 0o060


@dataclass(frozen=True, slots=True)
class Tools:
    """Programs found in ``PATH``; None for what is not installed."""

    bwrap: Path | None
    setpriv: Path | None
    passt: Path | None
    qemu_storage_daemon: Path | None
    systemd_run: Path | None = None
    swtpm: Path | None = None


@dataclass(frozen=True, slots=True)
class HostCapabilities:
    """One of ``qemu`` and ``qemu_problem`` is None. ``shm_free_mib`` is None without a ``/dev/shm``.

    ``groups_problem`` says why processes cannot be limited in groups; it is empty where they can.
    """

    kvm: KvmProbe
    dev_kvm: DevKvm | None
    qemu_path: Path | None
    qemu: QemuAbilities | None
    qemu_problem: QemuProblem | None
    sandbox: SandboxProbe
    tools: Tools
    memory_total_mib: int
    cpus: int
    shm_free_mib: int | None
    is_root: bool
    groups_problem: str = ""

    def require_qemu(self) -> tuple[Path, QemuAbilities]:
        """The binary and its abilities; raises the error that asking it met."""
        if self.qemu is not None and self.qemu_path is not None:
            return self.qemu_path, self.qemu
        problem = self.qemu_problem or QemuProblem("qemu-unusable", "QEMU was not asked", "")
        kind = ProgramNotFoundError if problem.code == ProgramNotFoundError.code else QemuUnusableError
        raise kind(problem.message, remedy=problem.remedy)


def read_capabilities(cache_dir: Path, *, refresh: bool = False) -> HostCapabilities:
    """This host's capabilities; ``refresh`` runs the probes though their outcomes are cached."""
    tools = find_tools(os.environ)
    path, problem = _find_qemu(os.environ)
    key = CacheKey.read(path, tools.bwrap)
    cached = None if refresh else find_cached(cache_dir, key)
    kvm = find_obstacle(DEV_KVM) or (cached.kvm if cached else None) or probe_kvm(DEV_KVM)
    qemu = cached.qemu if cached else None
    if qemu is None and path is not None:
        qemu, problem = _probe_qemu(path)
    sandbox = (cached.sandbox if cached else None) or probe_sandbox(tools.bwrap, ROOT)
    lasting = keep_lasting(kvm, qemu, sandbox)
    if lasting != cached:
        store(cache_dir, key, lasting)
    is_root = os.geteuid() == 0
    return HostCapabilities(
        kvm=kvm,
        dev_kvm=find_dev_kvm(DEV_KVM),
        qemu_path=path,
        qemu=qemu,
        qemu_problem=problem,
        sandbox=sandbox,
        tools=tools,
        memory_total_mib=read_memory(ROOT).total_mib,
        cpus=len(os.sched_getaffinity(0)),
        shm_free_mib=find_free_mib(SHM),
        is_root=is_root,
        groups_problem=find_groups_problem(ROOT, tools.systemd_run, os.environ, is_root=is_root),
    )


def find_tools(environ: Mapping[str, str]) -> Tools:
    """The programs in ``PATH`` that one design or the other uses."""

    def find(name: str) -> Path | None:
        found = shutil.which(name, path=environ.get("PATH"))
        return Path(found) if found else None

    return Tools(
        bwrap=find("bwrap"),
        setpriv=find("setpriv"),
        passt=find("passt"),
        qemu_storage_daemon=find("qemu-storage-daemon"),
        systemd_run=find("systemd-run"),
        swtpm=find("swtpm"),
    )


def find_dev_kvm(dev: Path) -> DevKvm | None:
    """Who may open ``dev``; None when it does not exist."""
    try:
        status = dev.stat()
    except OSError:
        return None
    return DevKvm(mode=status.st_mode & 0o7777, uid=status.st_uid, gid=status.st_gid)


def find_free_mib(folder: Path) -> int | None:
    """Free space of a file system in MiB; None when there is no such folder."""
    try:
        state = os.statvfs(folder)
    except OSError:
        return None
    return state.f_bavail * state.f_frsize // BYTES_PER_MIB


def _find_qemu(environ: Mapping[str, str]) -> tuple[Path | None, QemuProblem | None]:
    try:
        return find_qemu(environ), None
    except ProgramNotFoundError as error:
        return None, QemuProblem(error.code, error.message, error.remedy)


def _probe_qemu(path: Path) -> tuple[QemuAbilities | None, QemuProblem | None]:
    from duovisor.hardware.qemu_probe import probe_qemu  # with ctypes: not loaded when the outcome is cached

    try:
        return probe_qemu(path), None
    except DuovisorError as error:
        return None, QemuProblem(error.code, error.message, error.remedy)
