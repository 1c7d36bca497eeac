"""A program that took over a sandboxed process: tries what it should not be able to do, tells the outcomes.

Standard input: JSON with the ways that lead to the host: ``{"files": [...], "pids": [...], "ports": [...],
"unix": [...], "read_only": [...], "fill": "/folder"}``. Output: JSON, for each attempt the name of the error
that it met, or ``done``. Runs inside the sandbox, with the standard library alone.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import signal
import socket
import sys
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

LIBC = ctypes.CDLL(None, use_errno=True)
PTRACE_ATTACH = 16
MS_BIND = 0x1000
CLONE_NEWNS, CLONE_NEWNET = 0x20000, 0x40000000
X86_64 = {"process_vm_readv": 310, "pidfd_getfd": 438, "pivot_root": 155}


def call(name: str, *arguments: Any) -> None:
    """Call a function of the C library, or a system call by its name. Raises ``OSError``."""
    number = X86_64.get(name)
    result = LIBC.syscall(number, *arguments) if number else getattr(LIBC, name)(*arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), name)


def attempt(action: Callable[..., object], *arguments: Any, **options: Any) -> str:
    """Do it; ``done``, or the name of the error."""
    try:
        action(*arguments, **options)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    except (RuntimeError, MemoryError) as error:
        return type(error).__name__
    return "done"


def connect(family: int, address: Any) -> None:
    with socket.socket(family, socket.SOCK_STREAM) as client:
        client.settimeout(2)
        client.connect(address)


def trace(pid: int) -> None:
    call("ptrace", PTRACE_ATTACH, pid, 0, 0)


def read_memory_of(pid: int) -> None:
    buffer = ctypes.create_string_buffer(16)
    vector = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), 16)
    call("process_vm_readv", pid, vector, 1, vector, 1, 0)


def steal_descriptor(pid: int) -> None:
    call("pidfd_getfd", os.pidfd_open(pid), 0, 0)


def try_files(files: list[str]) -> dict[str, str]:
    """By name, by O_PATH, and from each inherited descriptor upwards."""
    outcomes = {}
    for path in files:
        outcomes[f"read {path}"] = attempt(os.open, path, os.O_RDONLY)
        outcomes[f"name {path}"] = attempt(os.open, path, os.O_PATH)
        climb = "../" * 12 + path.lstrip("/")
        for inherited in (0, 1, 2):
            outcomes[f"climb {inherited} {path}"] = attempt(os.open, climb, os.O_RDONLY, dir_fd=inherited)
    return outcomes


def try_processes(pids: list[int]) -> dict[str, str]:
    outcomes = {"list processes": attempt(os.listdir, "/proc")}
    outcomes["signal everybody"] = attempt(os.kill, -1, signal.SIGTERM)
    for pid in pids:
        outcomes[f"signal {pid}"] = attempt(os.kill, pid, signal.SIGKILL)
        outcomes[f"trace {pid}"] = attempt(trace, pid)
        outcomes[f"read memory of {pid}"] = attempt(read_memory_of, pid)
        outcomes[f"steal from {pid}"] = attempt(steal_descriptor, pid)
    return outcomes


def try_sockets(ports: list[int], names: list[str]) -> dict[str, str]:
    """To the host's loopback, to its Unix sockets by path and, with a leading @, by abstract name."""
    outcomes = {}
    for port in ports:
        outcomes[f"tcp {port}"] = attempt(connect, socket.AF_INET, ("127.0.0.1", port))
    for name in names:
        outcomes[f"unix {name}"] = attempt(connect, socket.AF_UNIX, name.replace("@", "\0"))
    outcomes["raw packets"] = attempt(socket.socket, socket.AF_PACKET, socket.SOCK_RAW)
    outcomes["interfaces"] = " ".join(name for _, name in socket.if_nameindex())
    return outcomes


def try_privileges() -> dict[str, str]:
    epoch = (ctypes.c_long * 2)(0, 0)
    return {
        "bind mount": attempt(call, "mount", b"/usr", b"/usr", None, MS_BIND, None),
        "mount tmpfs": attempt(call, "mount", b"tmpfs", b"/usr", b"tmpfs", 0, None),
        "unmount": attempt(call, "umount2", b"/memory", 0),
        "change root": attempt(os.chroot, "/usr"),
        "pivot root": attempt(call, "pivot_root", b"/usr", b"/usr"),
        "new mounts": attempt(call, "unshare", CLONE_NEWNS),
        "new network": attempt(call, "unshare", CLONE_NEWNET),
        "become root": attempt(os.setuid, 0),
        "make a device": attempt(os.mknod, "/memory-2", 0o60600, os.makedev(8, 0)),
        "set the clock": attempt(call, "settimeofday", epoch, None),
        "rename the host": attempt(call, "sethostname", b"x", 1),
        "run a shell": attempt(os.execv, "/bin/sh", ["sh"]),
    }


def try_writing(paths: list[str]) -> dict[str, str]:
    """``paths`` are files and folders that are there to be read."""
    outcomes = {"make a file": attempt(os.open, "/file", os.O_CREAT | os.O_WRONLY)}
    for path in paths:
        outcomes[f"write {path}"] = attempt(os.open, path, os.O_WRONLY)
        outcomes[f"remove {path}"] = attempt(os.unlink, path)
        outcomes[f"change {path}"] = attempt(os.chmod, path, 0o777)
    return outcomes


def try_filling(folder: str) -> dict[str, Any]:
    """How many files, and how much in one of them, a folder takes."""
    outcomes: dict[str, Any] = {}
    made: list[str] = []

    def make_files() -> None:
        for number in range(100_000):
            path = f"{folder}/{number}"
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            made.append(path)

    outcomes["files"] = attempt(make_files)
    outcomes["file_count"] = len(made)
    outcomes["folders"] = attempt(os.mkdir, f"{folder}/folder")
    written = [0]

    def write_bytes() -> None:
        for _ in range(1 << 14):
            written[0] += os.write(descriptor, bytes(4096))

    descriptor = os.open(made[0], os.O_WRONLY)
    outcomes["bytes"] = attempt(write_bytes)
    outcomes["byte_count"] = written[0]
    return outcomes


def try_resources() -> dict[str, Any]:
    """How far memory, descriptors and threads go; each ends at its limit."""
    outcomes: dict[str, Any] = {}
    memory: list[mmap.mmap] = []

    def take_memory() -> None:
        for _ in range(1024):
            memory.append(mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))

    outcomes["memory"] = attempt(take_memory)
    outcomes["memory_mib"] = len(memory) * 64
    memory.clear()
    hold = threading.Event()
    threads: list[threading.Thread] = []

    def take_threads() -> None:
        for _ in range(4096):
            thread = threading.Thread(target=hold.wait)
            thread.start()
            threads.append(thread)

    threading.stack_size(64 << 10)
    outcomes["threads"] = attempt(take_threads)
    outcomes["thread_count"] = len(threads)
    hold.set()
    for thread in threads:
        thread.join()
    descriptors: list[int] = []

    def take_descriptors() -> None:
        for _ in range(100_000):
            descriptors.append(os.dup(0))

    outcomes["descriptors"] = attempt(take_descriptors)
    outcomes["descriptor_count"] = len(descriptors)
    for descriptor in descriptors:
        os.close(descriptor)
    return outcomes


def main() -> None:
    """All attempts; the resources last."""
    ways = json.load(sys.stdin)
    outcomes: dict[str, Any] = {
        "files": try_files(ways["files"]),
        "processes": try_processes(ways["pids"]),
        "sockets": try_sockets(ways["ports"], ways["unix"]),
        "privileges": try_privileges(),
        "writing": try_writing(ways["read_only"]),
        "filling": try_filling(ways["fill"]) if ways["fill"] else {},
        "resources": try_resources(),
    }
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main()
