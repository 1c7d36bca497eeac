"""Keeps what the probes found, for as long as nothing that decides it has changed.

Only good news and an interpreting KVM are kept: whatever failed is tried again the next time. The file can
be deleted at any time; one that cannot be read, or cannot be written, counts as none.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duovisor import __version__
from duovisor.hardware.attributes import read_text
from duovisor.hardware.kvm import DEV_KVM, KvmProbe, KvmState
from duovisor.hardware.qemu import QemuAbilities
from duovisor.hardware.sandboxing import SandboxProbe

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ROOT = Path("/")
LASTING_KVM_STATES = (KvmState.WORKS, KvmState.INTERPRETED)


@dataclass(frozen=True, slots=True)
class CacheKey:
    """Everything that can change an outcome: ``files`` holds path, size, time and mode of what was run."""

    duovisor: str
    boot_id: str
    euid: int
    io_uring_disabled: str
    userns_sysctls: str
    files: str

    @classmethod
    def read(cls, qemu: Path | None, bwrap: Path | None, root: Path = ROOT) -> CacheKey:
        """The key of this moment."""
        sysctl = root / "proc/sys"
        switches = (
            "user/max_user_namespaces",
            "kernel/unprivileged_userns_clone",
            "kernel/apparmor_restrict_unprivileged_userns",
        )
        return cls(
            duovisor=__version__,
            boot_id=read_text(sysctl / "kernel/random/boot_id"),
            euid=os.geteuid(),
            io_uring_disabled=read_text(sysctl / "kernel/io_uring_disabled"),
            userns_sysctls=" ".join(read_text(sysctl / switch, "-") for switch in switches),
            files=" ".join(map(describe_file, (qemu, bwrap, root / DEV_KVM.relative_to("/")))),
        )


@dataclass(frozen=True, slots=True)
class Probed:
    """The outcomes; None for those that were not worth keeping."""

    kvm: KvmProbe | None
    qemu: QemuAbilities | None
    sandbox: SandboxProbe | None


def describe_file(path: Path | None) -> str:
    """What tells one state of a file, or one device, from another.

    A device's times say nothing: udev sets those of /dev/kvm anew at each start and end of a VM, of which KVM
    tells it (kvm_uevent_notify_change).
    """
    if path is None:
        return "-"
    try:
        status = path.stat()
    except OSError:
        return f"{path}:-"
    owner = f"{status.st_mode:o}:{status.st_uid}:{status.st_gid}"
    if stat.S_ISCHR(status.st_mode):
        return f"{path}:{status.st_rdev}:{status.st_ino}:{owner}"
    return f"{path}:{status.st_size}:{status.st_mtime_ns}:{status.st_ino}:{owner}"


def find_cached(cache_dir: Path, key: CacheKey) -> Probed | None:
    """What was kept under ``key``; None when there is nothing that can be trusted."""
    try:
        document = json.loads(build_path(cache_dir).read_text())
        return parse_cached(document, key)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def parse_cached(document: Mapping[str, Any], key: CacheKey) -> Probed | None:
    """The outcomes in a cache file; None when its key is another one."""
    if document["key"] != asdict(key):
        return None

    def read(name: str, make: Callable[[Mapping[str, Any]], Any]) -> Any:
        return None if document[name] is None else make(document[name])

    return Probed(
        kvm=read("kvm", KvmProbe.from_document),
        qemu=read("qemu", QemuAbilities.from_document),
        sandbox=read("sandbox", SandboxProbe.from_document),
    )


def keep_lasting(kvm: KvmProbe, qemu: QemuAbilities | None, sandbox: SandboxProbe) -> Probed:
    """Of what was found, that which stays true until the key changes; pure."""
    return Probed(
        kvm=kvm if kvm.state in LASTING_KVM_STATES else None,
        qemu=qemu,
        sandbox=sandbox if sandbox.works else None,
    )


def store(cache_dir: Path, key: CacheKey, probed: Probed) -> None:
    """Keep ``probed`` in one step: a reader sees the old file or the new one. A full disk is no error."""
    with contextlib.suppress(OSError):
        cache_dir.mkdir(parents=True, exist_ok=True)
        _replace(build_path(cache_dir), json.dumps({"key": asdict(key), **asdict(probed)}))


def build_path(cache_dir: Path) -> Path:
    """Where the outcomes are kept."""
    return cache_dir / "capabilities.json"


def _replace(path: Path, text: str) -> None:
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".capabilities-")
    try:
        with open(descriptor, "w") as file:
            file.write(text)
        os.replace(name, path)
    except OSError:
        os.unlink(name)
        raise
