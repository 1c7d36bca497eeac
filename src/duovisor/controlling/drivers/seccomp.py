"""Which system calls a driver partition may make: a list, and the filter program that the kernel runs.

A partition works on descriptors that it was given. So nothing that opens a file, makes or connects a socket,
starts a program or looks at another process is on the list; all that is not gets EPERM. Numbers are those of
x86-64 (arch/x86/entry/syscalls/syscall_64.tbl); calls of another architecture end the process.
"""

from __future__ import annotations

import errno
import os
from struct import Struct

from duovisor.controlling.drivers import system_calls
from duovisor.controlling.drivers.errors import DriverError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

ALLOWED = {
    # data, on descriptors
    "read": 0, "write": 1, "lseek": 8, "pread64": 17, "pwrite64": 18, "readv": 19, "writev": 20,
    "preadv": 295, "pwritev": 296, "preadv2": 327, "pwritev2": 328, "fsync": 74, "fdatasync": 75,
    "ftruncate": 77, "fadvise64": 221, "sync_file_range": 277, "fallocate": 285,
    # descriptors
    "close": 3, "fstat": 5, "dup": 32, "dup2": 33, "fcntl": 72, "newfstatat": 262, "dup3": 292,
    "close_range": 436, "eventfd2": 290, "memfd_create": 319,
    # waiting
    "poll": 7, "select": 23, "epoll_wait": 232, "epoll_ctl": 233, "pselect6": 270, "ppoll": 271,
    "epoll_pwait": 281, "timerfd_create": 283, "timerfd_settime": 286, "timerfd_gettime": 287,
    "epoll_create1": 291, "epoll_pwait2": 441,
    # sockets that others made and connected
    "sendto": 44, "recvfrom": 45, "accept": 43, "sendmsg": 46, "recvmsg": 47, "shutdown": 48,
    "getsockname": 51, "getpeername": 52, "setsockopt": 54, "getsockopt": 55, "accept4": 288,
    # memory; mmap and mprotect are below
    "munmap": 11, "brk": 12, "mremap": 25, "msync": 26, "madvise": 28,
    # threads of its own, and time
    "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15, "sched_yield": 24, "nanosleep": 35,
    "getpid": 39, "exit": 60, "gettimeofday": 96, "getrusage": 98, "getuid": 102, "getgid": 104,
    "geteuid": 107, "getegid": 108, "getppid": 110, "sigaltstack": 131, "gettid": 186, "futex": 202,
    "sched_getaffinity": 204, "restart_syscall": 219, "clock_gettime": 228, "clock_getres": 229,
    "clock_nanosleep": 230, "exit_group": 231, "tgkill": 234, "set_robust_list": 273, "getcpu": 309,
    "getrandom": 318, "rseq": 334,
}  # fmt: skip

_MMAP, _MPROTECT, _IOCTL, _CLONE, _PRCTL, _PRLIMIT, _CLONE3 = 9, 10, 16, 56, 157, 302, 435
_PROT_EXEC = 4
_CLONE_THREAD = 0x00010000
_PR_SET_NAME = 15
_IOCTLS = (
    0x5401, 0x5421, 0x5450, 0x5451,  # TCGETS (isatty), FIONBIO, FIONCLEX, FIOCLEX: Python's own
    0x1268, 0x1272, 0x1277, 0x127F,  # BLKSSZGET, BLKGETSIZE64, BLKDISCARD, BLKZEROOUT
    # userfaultfd's, on a descriptor that it was given: NEW, API, REGISTER, UNREGISTER, WAKE, COPY, ZEROPAGE
    0xAA00, 0xC018AA3F, 0xC020AA00, 0x8010AA01, 0x8010AA02, 0xC028AA03, 0xC020AA04,
    0x400454D0, 0x400454D8,  # TUNSETOFFLOAD, TUNSETVNETHDRSZ: what a guest chose, on a TAP that it was given
)  # fmt: skip

# linux/filter.h, linux/seccomp.h, linux/audit.h
_INSTRUCTION = Struct("=HBBI")
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_KILL_PROCESS, _ERRNO, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_ARCHITECTURE_X86_64 = 0xC000003E
_X32 = 0x40000000
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16

Instruction = tuple[int, int, int, int]
_REFUSE: Instruction = (_RETURN, 0, 0, _ERRNO | errno.EPERM)
_PERMIT: Instruction = (_RETURN, 0, 0, _ALLOW)


def _load_argument(index: int, *, high: bool = False) -> Instruction:
    return (_LOAD, 0, 0, _ARGUMENTS_AT + 8 * index + (4 if high else 0))


def _without_bits(index: int, bits: int) -> list[Instruction]:
    return [_load_argument(index), (_ANY_BIT, 0, 1, bits), _REFUSE, _PERMIT]


def _with_bits(index: int, bits: int) -> list[Instruction]:
    return [_load_argument(index), (_ANY_BIT, 0, 1, bits), _PERMIT, _REFUSE]


def _one_of(index: int, values: Iterable[int]) -> list[Instruction]:
    steps = [_load_argument(index)]
    for value in values:
        steps += [(_EQUAL, 0, 1, value), _PERMIT]
    return [*steps, _REFUSE]


def _only_reading_its_own_limits() -> list[Instruction]:
    """prlimit64(pid=0, resource, new=NULL, …): glibc asks for the size of stacks."""
    steps: list[Instruction] = []
    for load in (_load_argument(0), _load_argument(2), _load_argument(2, high=True)):
        steps += [load, (_EQUAL, 1, 0, 0), _REFUSE]
    return [*steps, _PERMIT]


def build_filter() -> bytes:
    """The filter program; pure."""
    program: list[Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_EQUAL, 1, 0, _ARCHITECTURE_X86_64),
        (_RETURN, 0, 0, _KILL_PROCESS),
        (_LOAD, 0, 0, _NUMBER_AT),
        (_AT_LEAST, 0, 1, _X32),
        _REFUSE,
    ]
    conditions = {
        _MMAP: _without_bits(2, _PROT_EXEC),  # nothing that it writes can be run
        _MPROTECT: _without_bits(2, _PROT_EXEC),
        _IOCTL: _one_of(1, _IOCTLS),
        _CLONE: _with_bits(0, _CLONE_THREAD),
        _CLONE3: [(_RETURN, 0, 0, _ERRNO | errno.ENOSYS)],  # a filter cannot read its flags; glibc uses clone
        _PRCTL: _one_of(0, (_PR_SET_NAME,)),
        _PRLIMIT: _only_reading_its_own_limits(),
    }
    for number, steps in [*((number, [_PERMIT]) for number in ALLOWED.values()), *conditions.items()]:
        program += [(_EQUAL, 0, len(steps), number), *steps]
    return b"".join(_INSTRUCTION.pack(*step) for step in [*program, _REFUSE])


# built once, in the factory: 0.4 MB less of a partition's own pages
_PROGRAM = build_filter()


def filter_system_calls() -> None:
    """Confine this process and its threads to the list, for good; needs no_new_privs.

    Raises ``DriverError`` on another architecture, ``OSError`` where the kernel has no seccomp filters.
    """
    machine = os.uname().machine
    if machine != "x86_64":
        raise DriverError(f"there is no list of system calls for {machine}, only for x86_64")
    system_calls.set_filter(_PROGRAM)
