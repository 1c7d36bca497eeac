"""A sandbox for one process: what it may see, as data, and the bubblewrap command line that makes it so.

The process starts in an empty root file system and new PID, network, IPC, UTS and cgroup namespaces. It sees
the listed paths and inherits the listed descriptors; nothing else of the host. It has no capability and
cannot gain one (bubblewrap sets no_new_privs), and cannot use more than its limits.

Two ways lead there. Root needs no user namespace (which Ubuntu 24.04 forbids to others): bubblewrap keeps
CAP_SETUID and CAP_SETGID just until ``setpriv`` has dropped to an unprivileged uid. Any other user gets a
user namespace in which they are nobody.
"""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

# systemd's UID table leaves 0x70000000 to 0x7fffffff unassigned: no account, no container uses them
UID_BASE = 0x70000000
UID_COUNT = 0x0FFFFFFF
NOBODY = 65534
# for some sockets: a program that was taken over must not fill the host's memory with files, or their names
SCRATCH_KIB, SCRATCH_INODES = 64, 32
_MOUNT_SCRATCH = 'mount -t tmpfs -o "$1" duovisor "$2" && shift 2 && exec "$@"'


@dataclass(frozen=True)
class ResourceLimits:
    """What a process may use at most.

    ``private_mib`` is memory that it shares with nobody (RLIMIT_DATA): the guest's is not in it. ``threads``
    counts all threads of its uid in its user namespace (RLIMIT_NPROC). None leaves a core dump.
    """

    private_mib: int
    threads: int
    descriptors: int


@dataclass(frozen=True)
class Sandbox:
    """What a sandboxed process may see. Paths are ``(on the host, in the sandbox)``.

    ``scratch`` are folders that root's program finds empty, on a file system in memory that holds next to
    nothing (another user's program may write to the folder itself); ``find_scratch`` is the way from outside
    to what it makes there. ``if_there`` are folders that lie at the same place inside, and are left out where
    the host has none.
    ``uid`` and ``gids`` are used when root starts it; ``environment`` is all it gets. ``capabilities`` are
    those (``dac_override``) that root's program keeps in it. ``host_network``: it is in the host's network
    instead of one of its own.
    """

    uid: int
    gids: tuple[int, ...] = ()
    read_only: tuple[tuple[Path, str], ...] = ()
    writable: tuple[tuple[Path, str], ...] = ()
    scratch: tuple[tuple[Path, str], ...] = ()
    devices: tuple[str, ...] = ()
    links: tuple[tuple[str, str], ...] = ()
    environment: tuple[tuple[str, str], ...] = field(default=())
    if_there: tuple[str, ...] = ()
    limits: ResourceLimits | None = None
    capabilities: tuple[str, ...] = ()
    host_network: bool = False


@dataclass(frozen=True)
class SandboxTools:
    """The programs that make a sandbox, and whether root runs them."""

    bwrap: Path
    setpriv: Path
    as_root: bool

    @property
    def unshare(self) -> Path:
        """As ``prlimit``."""
        return self.setpriv.with_name("unshare")

    @property
    def prlimit(self) -> Path:
        """It comes with setpriv, in util-linux, and lies beside it."""
        return self.setpriv.with_name("prlimit")

    def used_inside(self, sandbox: Sandbox) -> tuple[Path, ...]:
        """Those that run inside, on the way to the program."""
        return (*((self.setpriv,) if self.as_root else ()), *((self.prlimit,) if sandbox.limits else ()))


def uid_of(name: str) -> int:
    """The unprivileged uid of everything that belongs to one VM: the same at every start, its own."""
    return UID_BASE + zlib.crc32(name.encode()) % UID_COUNT


def build_sandbox_argv(sandbox: Sandbox, tools: SandboxTools, argv: Sequence[str]) -> tuple[str, ...]:
    """The command line that runs ``argv`` inside ``sandbox``; pure."""
    network = () if sandbox.host_network else ("--unshare-net",)
    command = [str(tools.bwrap), "--as-pid-1", "--unshare-pid", *network, "--unshare-ipc"]
    command += ["--unshare-uts", "--hostname", "sandbox", "--unshare-cgroup-try", "--clearenv"]
    if tools.as_root:
        command += ["--cap-drop", "ALL"]
        kept = tuple(f"CAP_{name.upper()}" for name in sandbox.capabilities)
        for capability in ("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP", *kept):
            command += ["--cap-add", capability]
    else:
        command += ["--unshare-user", "--uid", str(NOBODY), "--gid", str(NOBODY), "--cap-drop", "ALL"]
    command += _paths(_add_tools(sandbox, tools))
    for name, value in sandbox.environment:
        command += ["--setenv", name, value]
    command += ["--chdir", "/", "--"]
    if sandbox.limits is not None:
        # inside, where a user namespace counts only its own processes; and while root is still allowed to
        command += [str(tools.prlimit), *_limit_options(sandbox.limits), "--"]
    if tools.as_root:
        command += _drop_privileges(sandbox, tools)
    return (*_build_scratch(sandbox, tools), *command, *argv)


def find_scratch(pid: int, path: Path) -> Path:
    """Where root finds what a sandboxed program made in its scratch folder ``path``.

    ``pid`` is bubblewrap's own process: its mount namespace is the one with the folder in it.
    """
    return Path(f"/proc/{pid}/root{path}") if os.geteuid() == 0 else path


def _build_scratch(sandbox: Sandbox, tools: SandboxTools) -> list[str]:
    """What mounts the scratch folders first, in a mount namespace that is bubblewrap's alone.

    So nobody has to unmount them: they are gone with the program. What the host unmounts goes from there too
    (slave), or every file system of the host would be busy as long as the program runs.
    """
    words: list[str] = []
    for path, _ in sandbox.scratch if tools.as_root else ():
        if not words:
            words = [str(tools.unshare), "--mount", "--propagation", "slave", "--"]
        options = (
            f"size={SCRATCH_KIB}k,nr_inodes={SCRATCH_INODES},mode=0700,uid={sandbox.uid},gid={sandbox.uid}"
        )
        words += [
            "/bin/sh",
            "-c",
            _MOUNT_SCRATCH,
            "duovisor-scratch",
            f"{options},nosuid,nodev,noexec",
            str(path),
        ]
    return words


def _add_tools(sandbox: Sandbox, tools: SandboxTools) -> Sandbox:
    """With the tools that run inside, where no folder that holds them is there anyway."""
    bound = {target for _, target in sandbox.read_only}
    wanted = [(tool, _in_usr(tool)) for tool in tools.used_inside(sandbox)]
    missing = [
        (tool, target)
        for tool, target in wanted
        if not bound & {target, *map(str, PurePosixPath(target).parents)}
    ]
    return replace(sandbox, read_only=(*sandbox.read_only, *missing))


def _in_usr(path: Path) -> str:
    """Where a program lies with a merged /usr: /bin is a link there."""
    return f"/usr{path}" if path.parts[1] in ("bin", "sbin") else str(path)


def _limit_options(limits: ResourceLimits) -> list[str]:
    return [
        "--core=0",
        f"--data={limits.private_mib << 20}",
        f"--nproc={limits.threads}",
        f"--nofile={limits.descriptors}",
    ]


def _paths(sandbox: Sandbox) -> list[str]:
    options = []
    for folder in _ancestors(sandbox):
        options += ["--dir", folder]  # what bubblewrap makes by itself is closed to any uid but root's
    for source, target in sandbox.read_only:
        options += ["--ro-bind", str(source), target]
    for path in sandbox.if_there:
        options += ["--ro-bind-try", path, path]
    for source, target in (*sandbox.writable, *sandbox.scratch):
        options += ["--bind", str(source), target]
    for device in ("/dev/null", "/dev/urandom", *sandbox.devices):
        options += ["--dev-bind", device, device]
    for target, link in sandbox.links:
        options += ["--symlink", target, link]
    return [*options, "--remount-ro", "/"]


def _ancestors(sandbox: Sandbox) -> list[str]:
    bound = (*sandbox.read_only, *sandbox.writable, *sandbox.scratch)
    targets = [target for _, target in bound] + list(sandbox.if_there)
    targets += [link for _, link in sandbox.links] + ["/dev/null", *sandbox.devices]
    folders = {str(parent) for target in targets for parent in PurePosixPath(target).parents}
    there = set(targets)
    return sorted(
        folder
        for folder in folders - {"/"}
        if not there & {folder, *(str(above) for above in PurePosixPath(folder).parents)}
    )


def _drop_privileges(sandbox: Sandbox, tools: SandboxTools) -> list[str]:
    groups = ["--groups", ",".join(map(str, sandbox.gids))] if sandbox.gids else ["--clear-groups"]
    kept = "".join(f",+{name}" for name in sandbox.capabilities)
    ambient = [f"--ambient-caps=-all{kept}"] if kept else []
    return [
        str(tools.setpriv), f"--reuid={sandbox.uid}", f"--regid={sandbox.uid}", *groups,
        f"--inh-caps=-all{kept}", *ambient, f"--bounding-set=-all{kept}", "--no-new-privs", "--",
    ]  # fmt: skip
