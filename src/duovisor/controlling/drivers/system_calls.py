"""The system calls that confinement needs and Python does not have, through ctypes; each raises ``OSError``.

ctypes takes 5 ms to import: only the factory does it, once for all its partitions.
"""

from __future__ import annotations

import ctypes
import os

# linux/sched.h
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

# linux/mount.h
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REC, MS_SLAVE = 0x4000, 0x80000
_MNT_DETACH = 2

# linux/prctl.h
_PR_SET_DUMPABLE = 4
_PR_SET_NAME = 15
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2
_PR_CAPBSET_DROP = 24
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4

_CAPABILITIES_MAX = 64  # bits of the sets in /proc/PID/status
_CAPABILITY_VERSION_3 = 0x20080522
_CAP_SETGID, _CAP_SETUID, _CAP_SETPCAP = 6, 7, 8  # linux/capability.h
_SYS_PIVOT_ROOT, _SYS_CAPSET = 155, 126  # x86-64

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
_libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
_libc.syscall.restype = ctypes.c_long


class _FilterProgram(ctypes.Structure):
    """struct sock_fprog of linux/filter.h."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _prctl(what: str, option: int, *arguments: int) -> None:
    _check(_libc.prctl(option, *arguments, *([0] * (4 - len(arguments)))), what)


def unshare(flags: int) -> None:
    """Leave the namespaces in ``flags``; the one of process numbers only for later children."""
    _check(_libc.unshare(ctypes.c_int(flags)), "new namespaces")


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    """mount(2)."""
    words = (source.encode(), target.encode(), kind.encode(), flags, options.encode())
    _check(_libc.mount(*words), f"mount {kind or target}")


def enter_root() -> None:
    """Make the working directory the root file system, and drop the old one with all below it."""
    # pivot_root(2), "pivot_root(".", ".")": the old root then lies on top of the new one
    _check(_libc.syscall(ctypes.c_long(_SYS_PIVOT_ROOT), b".", b"."), "pivot_root")
    _check(_libc.umount2(b".", ctypes.c_int(_MNT_DETACH)), "umount of the old root")
    os.chdir("/")


def become_subreaper() -> None:
    """From now on, a descendant whose parent ends becomes a child of this process."""
    _prctl("subreaper", _PR_SET_CHILD_SUBREAPER, 1)


def drop_bounding_set() -> None:
    """No capability can be gained any more by executing a file."""
    for capability in range(_CAPABILITIES_MAX):
        try:
            _prctl("capability bounding set", _PR_CAPBSET_DROP, capability)
        except OSError:
            if not capability:
                raise
            return  # the kernel's last capability was the one before


def drop_capabilities() -> None:
    """Give up every capability of this process, ambient ones too."""
    _prctl("ambient capabilities", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    _set_capabilities(0)


def keep_becoming_another() -> None:
    """Give up every capability but those that taking on another uid and ``drop_bounding_set`` need."""
    _prctl("ambient capabilities", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    _set_capabilities(1 << _CAP_SETGID | 1 << _CAP_SETUID | 1 << _CAP_SETPCAP)


def _set_capabilities(kept: int) -> None:
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)(kept, kept)  # effective, permitted, inheritable, each up to bit 31
    _check(_libc.syscall(ctypes.c_long(_SYS_CAPSET), header, sets), "capset")


def forbid_new_privileges() -> None:
    """No executed file can give privileges; an unprivileged process may then filter its system calls."""
    _prctl("no_new_privs", _PR_SET_NO_NEW_PRIVS, 1)


def forbid_inspection() -> None:
    """No other process of this uid may trace this one or read its memory, and it leaves no core file."""
    _prctl("dumpable", _PR_SET_DUMPABLE, 0)


def set_filter(program: bytes) -> None:
    """Install a seccomp filter: an array of ``struct sock_filter``, for good."""
    whole = _FilterProgram(len(program) // 8, program)
    _prctl("seccomp", _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(whole))


def set_name(name: str) -> None:
    """The name of this thread as ``top`` and the kernel's log show it: up to 15 bytes."""
    buffer = ctypes.create_string_buffer(name.encode()[:15])
    _prctl("name", _PR_SET_NAME, ctypes.addressof(buffer))


class CommandLine:
    """Where the kernel finds this process's command line, to be overwritten by its children."""

    def __init__(self) -> None:
        with open("/proc/self/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        self._start, self._end = int(fields[45]), int(fields[46])  # proc(5): arg_start, arg_end

    def overwrite(self, text: str) -> None:
        """What ``ps`` shows from now on, cut to the room that there is."""
        room = self._end - self._start
        if room > 1:
            data = text.encode(errors="replace")[: room - 1]
            ctypes.memset(self._start, 0, room)
            ctypes.memmove(self._start, data, len(data))
