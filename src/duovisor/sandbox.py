"""A sandbox for one process: what it may see, as data, and the bubblewrap command line that makes it so.

The process starts in an empty root file system and new PID, network, IPC, UTS and cgroup namespaces. It sees
the listed paths and inherits the listed descriptors; nothing else of the host. It has no capability and
cannot gain one (bubblewrap sets no_new_privs).

Two ways lead there. Root needs no user namespace (which Ubuntu 24.04 forbids to others): bubblewrap keeps
CAP_SETUID and CAP_SETGID just until ``setpriv`` has dropped to an unprivileged uid. Any other user gets a
user namespace in which they are nobody.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

# systemd's UID table leaves 0x70000000 to 0x7fffffff unassigned: no account, no container uses them
UID_BASE = 0x70000000
UID_COUNT = 0x0FFFFFFF
NOBODY = 65534


@dataclass(frozen=True)
class Sandbox:
    """What a sandboxed process may see. Paths are ``(on the host, in the sandbox)``.

    ``uid`` and ``gids`` are used when root starts it; ``environment`` is all it gets.
    """

    uid: int
    gids: tuple[int, ...] = ()
    read_only: tuple[tuple[Path, str], ...] = ()
    writable: tuple[tuple[Path, str], ...] = ()
    devices: tuple[str, ...] = ()
    links: tuple[tuple[str, str], ...] = ()
    environment: tuple[tuple[str, str], ...] = field(default=())


@dataclass(frozen=True)
class SandboxTools:
    """The programs that make a sandbox, and whether root runs them."""

    bwrap: Path
    setpriv: Path
    as_root: bool


def uid_of(name: str) -> int:
    """The unprivileged uid of everything that belongs to one VM: the same at every start, its own."""
    return UID_BASE + zlib.crc32(name.encode()) % UID_COUNT


def build_sandbox_argv(sandbox: Sandbox, tools: SandboxTools, argv: Sequence[str]) -> tuple[str, ...]:
    """The command line that runs ``argv`` inside ``sandbox``; pure."""
    command = [str(tools.bwrap), "--as-pid-1", "--unshare-pid", "--unshare-net", "--unshare-ipc"]
    command += ["--unshare-uts", "--hostname", "sandbox", "--unshare-cgroup-try", "--clearenv"]
    if tools.as_root:
        command += ["--cap-drop", "ALL"]
        for capability in ("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP"):
            command += ["--cap-add", capability]
    else:
        command += ["--unshare-user", "--uid", str(NOBODY), "--gid", str(NOBODY), "--cap-drop", "ALL"]
    command += _paths(sandbox)
    for name, value in sandbox.environment:
        command += ["--setenv", name, value]
    command += ["--chdir", "/", "--"]
    if tools.as_root:
        command += _drop_privileges(sandbox, tools)
    return (*command, *argv)


def _paths(sandbox: Sandbox) -> list[str]:
    options = []
    for folder in _ancestors(sandbox):
        options += ["--dir", folder]  # what bubblewrap makes by itself is closed to any uid but root's
    for source, target in sandbox.read_only:
        options += ["--ro-bind", str(source), target]
    for source, target in sandbox.writable:
        options += ["--bind", str(source), target]
    for device in ("/dev/null", "/dev/urandom", *sandbox.devices):
        options += ["--dev-bind", device, device]
    for target, link in sandbox.links:
        options += ["--symlink", target, link]
    return [*options, "--remount-ro", "/"]


def _ancestors(sandbox: Sandbox) -> list[str]:
    targets = [target for _, target in (*sandbox.read_only, *sandbox.writable)]
    targets += [link for _, link in sandbox.links] + ["/dev/null", *sandbox.devices]
    folders = {str(parent) for target in targets for parent in PurePosixPath(target).parents}
    bound = set(targets)
    return sorted(
        folder
        for folder in folders - {"/"}
        if not bound & {folder, *(str(above) for above in PurePosixPath(folder).parents)}
    )


def _drop_privileges(sandbox: Sandbox, tools: SandboxTools) -> list[str]:
    groups = ["--groups", ",".join(map(str, sandbox.gids))] if sandbox.gids else ["--clear-groups"]
    return [
        str(tools.setpriv), f"--reuid={sandbox.uid}", f"--regid={sandbox.uid}", *groups,
        "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs", "--",
    ]  # fmt: skip
