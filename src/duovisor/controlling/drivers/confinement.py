"""How a process of the factory becomes a driver partition: what it gives up, in which order, for good.

Afterwards it has two descriptors' worth of authority: its birth socket and its log. It sees an empty,
read-only root, no other process, no network; it has no capability, and a short list of system calls.

Root needs no user namespace and takes on the uid of the VM. Anybody else gets a user namespace with one id,
nobody, which is their own outside.
"""

from __future__ import annotations

import os
import resource
import signal
import socket

from duovisor.controlling.drivers import system_calls as system
from duovisor.controlling.drivers.seccomp import filter_system_calls

BIRTH, LOG = 0, 2  # the descriptors of a partition that has no assignment yet; 1 is its log too
NOBODY = 65534
HOST_NAME = "partition"

_NAMESPACES = (
    system.CLONE_NEWNS
    | system.CLONE_NEWNET
    | system.CLONE_NEWIPC
    | system.CLONE_NEWUTS
    | system.CLONE_NEWCGROUP
    | system.CLONE_NEWPID
)


class Confinement:
    """Whom a partition is to be, and the limits of its resources, in bytes and numbers."""

    __slots__ = ("address_space_bytes", "data_bytes", "gid", "open_files", "threads", "uid")

    def __init__(
        self,
        uid: int,
        gid: int,
        *,
        address_space_bytes: int,
        data_bytes: int,
        open_files: int,
        threads: int,
    ) -> None:
        self.uid = uid
        self.gid = gid
        self.address_space_bytes = address_space_bytes
        self.data_bytes = data_bytes
        self.open_files = open_files
        self.threads = threads


def leave_namespaces() -> None:
    """Make new namespaces of every kind; the next child is the first process of its own."""
    if os.geteuid() == 0:
        system.unshare(_NAMESPACES)
        return
    uid, gid = os.geteuid(), os.getegid()
    system.unshare(_NAMESPACES | system.CLONE_NEWUSER)
    for name, content in (
        ("setgroups", "deny"),
        ("uid_map", f"{NOBODY} {uid} 1"),
        ("gid_map", f"{NOBODY} {gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(content)


def confine(confinement: Confinement, birth: int, log: int, *, as_root: bool) -> None:
    """Give up everything but the two descriptors, which become ``BIRTH`` and ``LOG``; raises ``OSError``.

    Runs in the first process of the new namespaces. What is called first needs what is given up later.
    """
    enclose(birth, log)
    surrender(confinement, as_root=as_root)


def enclose(birth: int, log: int) -> None:
    """The part that is the same for everybody: no other descriptor, nothing in sight; raises ``OSError``."""
    keep_descriptors(birth, log)
    os.setsid()
    os.umask(0o077)
    socket.sethostname(HOST_NAME)
    _enter_empty_root()


def surrender(confinement: Confinement, *, as_root: bool) -> None:
    """Then limits, identity, capabilities and system calls; raises ``OSError``."""
    _set_limits(confinement)
    system.drop_bounding_set()
    if as_root:
        os.setgroups([])
        os.setresgid(confinement.gid, confinement.gid, confinement.gid)
        os.setresuid(confinement.uid, confinement.uid, confinement.uid)
    system.drop_capabilities()
    system.forbid_new_privileges()
    if as_root:  # of another owner no other partition can trace it, and the owner counts its memory
        system.forbid_inspection()
    filter_system_calls()


def reset_signals() -> None:
    """Undo what the factory set; an interrupt is for the command in the terminal, never for a partition."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def keep_descriptors(birth: int, log: int) -> None:
    """Close all but these, which become ``BIRTH`` and ``LOG``."""
    spare = [os.dup(birth), os.dup(log)]  # neither may be overwritten before it was copied
    os.dup2(spare[0], BIRTH)
    os.dup2(spare[1], 1)
    os.dup2(spare[1], LOG)
    os.closerange(LOG + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[1])


def _enter_empty_root() -> None:
    system.mount("", "/", "", system.MS_REC | system.MS_SLAVE)  # nothing of ours becomes the host's
    flags = system.MS_RDONLY | system.MS_NOSUID | system.MS_NODEV | system.MS_NOEXEC
    system.mount("none", "/tmp", "tmpfs", flags, "mode=0555,size=4k,nr_inodes=1")
    os.chdir("/tmp")
    system.enter_root()


def _set_limits(confinement: Confinement) -> None:
    limits = {
        resource.RLIMIT_AS: confinement.address_space_bytes,
        resource.RLIMIT_DATA: confinement.data_bytes,
        resource.RLIMIT_NOFILE: confinement.open_files,
        resource.RLIMIT_NPROC: confinement.threads,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_NICE: 0,
        resource.RLIMIT_RTPRIO: 0,
    }
    for kind, limit in limits.items():
        highest = resource.getrlimit(kind)[1]
        if highest != resource.RLIM_INFINITY:
            limit = min(limit, highest)
        resource.setrlimit(kind, (limit, limit))
