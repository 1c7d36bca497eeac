"""A driver that attacks: it runs in a real partition of a factory that only the tests start.

``create_device`` tries every attack and writes what came of each to the descriptor ``image``, as JSON: the
name of the error, or ``"done"`` when nothing stopped it.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import socket
import sys
from functools import partial
from typing import TYPE_CHECKING, NoReturn

from duovisor.controlling.drivers.errors import DriverError
from duovisor.controlling.drivers.factory import run

if TYPE_CHECKING:
    from collections.abc import Callable

    from duovisor.channel.device import VirtioDevice

AT_FDCWD = -100
VICTIM = b"VICTIM"  # stands for the path of a file that anybody may write to
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

# arguments: integers, or bytes for a pointer to them
CALLS: dict[str, tuple[int | bytes, ...]] = {
    # host files
    "open": (2, b"/etc/passwd", 0, 0),
    "open the root": (2, b"/", 0, 0),
    "openat": (257, AT_FDCWD, b"/proc/1/environ", 0, 0),
    "openat O_PATH": (257, AT_FDCWD, b"/etc/passwd", 0o10000000, 0),
    "openat above the birth socket": (257, 0, b"../../etc/passwd", 0, 0),
    "openat above the log": (257, 2, b"..", 0, 0),
    "openat2": (437, AT_FDCWD, b"/etc/passwd", bytes(24), 24),
    "creat": (85, b"/file", 0o600),
    "open_by_handle_at": (304, 2, bytes(136), 0),
    "name_to_handle_at": (303, AT_FDCWD, b"/", bytes(136), bytes(4), 0),
    "mkdir": (83, b"/folder", 0o700),
    "mknod": (133, b"/disk", 0o60600, 0x800),
    "symlink": (88, b"/etc", b"/link"),
    "link": (86, b"/etc/passwd", b"/link"),
    "rename": (82, VICTIM, b"/x"),
    "unlink": (87, VICTIM),
    "truncate": (76, VICTIM, 0),
    "write": (2, VICTIM, os.O_RDWR, 0),
    "chmod": (90, b"/", 0o777),
    "fchmod the log": (91, 2, 0o6777),
    "fchown the log": (93, 2, 0, 0),
    "stat": (4, b"/etc/passwd", bytes(256)),
    "access": (21, b"/etc/passwd", 0),
    "readlink": (89, b"/proc/self/exe", bytes(256), 256),
    "getdents": (217, 0, bytes(256), 256),
    "chdir": (80, b"/etc"),
    "inotify": (294, 0),
    # sockets
    "socketpair": (53, 1, 1, 0, bytes(8)),
    "bind": (49, 0, b"\x01\x00\x00duovisor", 11),
    "connect": (42, 0, b"\x01\x00\x00duovisor", 11),
    "listen": (50, 0, 1),
    # other processes
    "kill": (62, 1, 9),
    "kill everybody": (62, -1, 9),
    "tkill": (200, 1, 9),
    "rt_sigqueueinfo": (129, 1, 9, bytes(128)),
    "pidfd_open": (434, 1, 0),
    "pidfd_getfd": (438, 0, 0, 0),
    "pidfd_send_signal": (424, 0, 9, 0, 0),
    "process_vm_readv": (310, 1, bytes(16), 1, bytes(16), 1, 0),
    "process_vm_writev": (311, 1, bytes(16), 1, bytes(16), 1, 0),
    "ptrace": (101, 16, 1, 0, 0),
    "ptrace oneself": (101, 0, 0, 0, 0),
    "kcmp": (312, 1, 1, 0, 0, 0),
    "process_madvise": (440, 0, 0, 0, 0, 0),
    "setpriority": (141, 0, 0, -20),
    "sched_setscheduler": (144, 0, 1, bytes(4)),
    "ioprio_set": (251, 1, 0, 0),
    # other programs and processes
    "fork": (57,),
    "vfork through clone": (56, 0x4111, 0, 0, 0, 0),
    "clone with new namespaces": (56, 0x10000011, 0, 0, 0, 0),
    "execve": (59, b"/bin/sh", 0, 0),
    "execveat": (322, 2, b"", 0, 0, 0x1000),
    # mounts and namespaces
    "mount": (165, b"none", b"/", b"tmpfs", 0, 0),
    "remount": (165, 0, b"/", 0, 0x20, 0),
    "umount2": (166, b"/", 2),
    "chroot": (161, b"/"),
    "pivot_root": (155, b".", b"."),
    "setns": (308, 0, 0),
    "fsopen": (430, b"tmpfs", 0),
    "open_tree": (428, AT_FDCWD, b"/", 1),
    "move_mount": (429, AT_FDCWD, b"/", AT_FDCWD, b"/", 0),
    **{f"unshare {name}": (272, flag) for name, flag in {
        "mount": 0x20000, "cgroup": 0x02000000, "uts": 0x04000000, "ipc": 0x08000000, "user": 0x10000000,
        "pid": 0x20000000, "net": 0x40000000, "files": 0x400,
    }.items()},
    # more of oneself
    "setuid": (105, 0),
    "setresuid": (117, 0, 0, 0),
    "setgroups": (116, 0, 0),
    "capset": (126, b"\x22\x05\x08\x20\0\0\0\0", b"\xff" * 24),
    "raise a limit": (302, 0, 7, (1 << 20).to_bytes(8, "little") * 2, 0),
    "limit of another": (302, 1, 7, 0, bytes(16)),
    "setrlimit": (160, 7, (1 << 20).to_bytes(8, "little") * 2),
    "be dumpable": (157, 4, 1, 0, 0, 0),
    "keep capabilities": (157, 8, 1, 0, 0, 0),
    "another filter": (317, 1, 0, 0),
    "personality": (135, 0x0400000),
    "executable memory": (9, 0, 4096, 7, 0x22, -1, 0),
    # the kernel's other doors
    "io_uring_setup": (425, 8, bytes(120)),
    "bpf": (321, 0, bytes(72), 72),
    "keyctl": (250, 0, -3, 0),
    "add_key": (248, b"user", b"k", b"v", 1, -3),
    "userfaultfd": (323, 0),
    "perf_event_open": (298, bytes(128), 0, -1, -1, 0),
    "init_module": (175, 0, 0, b""),
    "kexec_load": (246, 0, 0, 0, 0),
    "reboot": (169, 0xFEE1DEAD, 672274793, 0, 0),
    "sethostname": (170, b"x", 1),
    "settimeofday": (164, bytes(16), 0),
    "iopl": (172, 3),
    "ioperm": (173, 0, 1, 1),
    "modify_ldt": (154, 0, 0, 0),
    "syslog": (103, 3, bytes(64), 64),
    "shmget": (29, 0, 4096, 0o1600),
    "msgget": (68, 0, 0o1600),
    "semget": (64, 0, 1, 0o1600),
    "mq_open": (240, b"queue", 0o102, 0o600, 0),
    "fanotify": (300, 0, 0),
    "type into a terminal": (16, 0, 0x5412, b"x"),
    "SCSI command": (16, 2, 0x2285, bytes(128)),
    "open by its x32 number": (0x40000000 | 2, b"/etc/passwd", 0, 0),
    "a call that does not exist": (1000,),
}  # fmt: skip


def call(number: int | bytes, *arguments: int | bytes) -> None:
    """A system call; raises ``OSError`` when it fails."""
    words = [word if isinstance(word, bytes) else ctypes.c_long(word) for word in arguments]
    assert isinstance(number, int)
    if _libc.syscall(ctypes.c_long(number), *words) < 0:
        raise OSError(ctypes.get_errno(), "")


def try_one(attack: Callable[[], object]) -> str:
    """What comes of it: ``done``, or the name of the error."""
    try:
        attack()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    except (ImportError, RuntimeError, MemoryError) as error:
        return type(error).__name__
    return "done"


def make_executable() -> None:
    """Turn written memory into code."""
    page = mmap.mmap(-1, 4096)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    call(10, address, 4096, 5)


def use_much_memory() -> None:
    """More private memory than a partition may have."""
    held = bytearray(1 << 30)
    held[-1] = 1


def open_many_descriptors() -> None:
    for _ in range(1 << 16):
        os.dup(0)


def try_families() -> str:
    """A socket of any family."""
    made = [family for family in range(46) for kind in (1, 2, 3, 5) if try_socket(family, kind)]
    return f"done: {made}" if made else "EPERM"


def try_socket(family: int, kind: int) -> bool:
    try:
        socket.socket(family, kind).close()
    except PermissionError:
        return False
    return True


def attack_all(victim: str) -> dict[str, str]:
    """The outcome of every attack; ``victim`` is the path of a file that anybody may write to."""
    outcomes = {}
    for name, words in CALLS.items():
        real = [victim.encode() if word == VICTIM else word for word in words]
        outcomes[name] = try_one(partial(call, *real))
    outcomes["socket"] = try_families()
    outcomes["make written memory executable"] = try_one(make_executable)
    outcomes["import from a file"] = try_one(partial(__import__, "this"))
    outcomes["private memory beyond the limit"] = try_one(use_much_memory)
    outcomes["descriptors beyond the limit"] = try_one(open_many_descriptors)
    return outcomes


def create_device(words: list[str], descriptors: dict[str, int]) -> NoReturn:
    """Attack the file that is named first, tell, refuse to serve."""
    os.pwrite(descriptors["image"], json.dumps(attack_all(words[0])).encode(), 0)
    raise DriverError("the attack is over")


DRIVERS: dict[str, Callable[[list[str], dict[str, int]], VirtioDevice]] = {"attack": create_device}


def main() -> None:
    """A factory whose partitions attack."""
    run(DRIVERS, sys.argv[1:])
