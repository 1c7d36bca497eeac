"""What the running VMM may ask the kernel for: a seccomp filter, laid over all its threads after set-up.

No file can be opened, no socket, process or thread made, no memory become executable; of ioctl's requests
those are left that a running guest, a reset and a saved state need. The rest fails with EPERM.
Sources: Linux Documentation/userspace-api/seccomp_filter.rst, seccomp(2), linux/filter.h, linux/audit.h;
arch/x86/entry/syscalls/syscall_64.tbl for the numbers.
"""

from __future__ import annotations

import ctypes
import errno
import os
from struct import Struct

from duovisor.hypervisor.thin import kvm_abi as abi
from duovisor.hypervisor.thin.errors import KvmError

ALLOWED = {
    # the channel and the control socket; event counters; the log
    "read": 0, "write": 1, "poll": 7, "pread64": 17, "pwrite64": 18, "readv": 19, "writev": 20, "select": 23,
    "sendto": 44, "recvfrom": 45, "sendmsg": 46, "recvmsg": 47, "shutdown": 48, "getsockname": 51,
    "getpeername": 52, "setsockopt": 54, "getsockopt": 55, "epoll_wait": 232, "epoll_ctl": 233, "ppoll": 271,
    "epoll_pwait": 281, "accept4": 288, "eventfd2": 290, "preadv": 295, "preadv2": 327, "memfd_create": 319,
    "epoll_pwait2": 441,
    # descriptors
    "close": 3, "fstat": 5, "lseek": 8, "dup": 32, "fcntl": 72, "ftruncate": 77, "newfstatat": 262,
    # memory; mmap and mprotect are below
    "munmap": 11, "brk": 12, "mremap": 25, "madvise": 28,
    # threads that are there, signals to them, and time
    "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15, "sched_yield": 24, "nanosleep": 35,
    "getpid": 39, "exit": 60, "sigaltstack": 131, "gettid": 186, "futex": 202, "restart_syscall": 219,
    "clock_gettime": 228, "clock_nanosleep": 230, "exit_group": 231, "getrandom": 318, "rseq": 334,
}  # fmt: skip

IOCTLS = (
    abi.RUN, abi.IRQFD, abi.IOEVENTFD, abi.SET_GSI_ROUTING, abi.SET_CLOCK, abi.GET_CLOCK, abi.KVMCLOCK_CTRL,
    abi.GET_DIRTY_LOG, abi.SET_USER_MEMORY_REGION, abi.GET_IRQCHIP, abi.SET_IRQCHIP, abi.GET_MSRS,
    abi.SET_MSRS, abi.GET_REGS, abi.SET_REGS, abi.GET_SREGS, abi.SET_SREGS, abi.GET_LAPIC, abi.SET_LAPIC,
    abi.GET_MP_STATE, abi.SET_MP_STATE, abi.GET_VCPU_EVENTS, abi.SET_VCPU_EVENTS, abi.GET_DEBUGREGS,
    abi.SET_DEBUGREGS, abi.GET_XSAVE, abi.GET_XSAVE2, abi.SET_XSAVE, abi.GET_XCRS, abi.SET_XCRS,
    abi.GET_MSR_INDEX_LIST,
    0x5421, 0x5450, 0x5451,  # FIONBIO, FIONCLEX, FIOCLEX: Python's own
)  # fmt: skip

_MMAP, _MPROTECT, _IOCTL, _TGKILL = 9, 10, 16, 234
_PROT_EXEC = 4
_INSTRUCTION = Struct("=HBBI")
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_KILL_PROCESS, _ERRNO, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_ARCHITECTURE_X86_64, _X32 = 0xC000003E, 0x40000000
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16

_SYS_SECCOMP, _SET_MODE_FILTER, _ALL_THREADS = 317, 1, 1
_PR_SET_NO_NEW_PRIVS = 38

Instruction = tuple[int, int, int, int]
_REFUSE: Instruction = (_RETURN, 0, 0, _ERRNO | errno.EPERM)
_PERMIT: Instruction = (_RETURN, 0, 0, _ALLOW)


class _FilterProgram(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def build_filter(process: int) -> bytes:
    """The filter for the process with this id (signals go to its own threads alone); pure."""
    program: list[Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_EQUAL, 1, 0, _ARCHITECTURE_X86_64),
        (_RETURN, 0, 0, _KILL_PROCESS),
        (_LOAD, 0, 0, _NUMBER_AT),
        (_AT_LEAST, 0, 1, _X32),
        _REFUSE,
    ]
    not_executable = [(_LOAD, 0, 0, _argument(2)), (_ANY_BIT, 0, 1, _PROT_EXEC), _REFUSE, _PERMIT]
    conditions = {
        _IOCTL: _one_of(1, IOCTLS),
        _MMAP: not_executable,
        _MPROTECT: not_executable,
        _TGKILL: _one_of(0, (process,)),
    }
    for number, steps in conditions.items():
        program += [(_EQUAL, 0, len(steps), number), *steps]
    for number in ALLOWED.values():
        program += [(_EQUAL, 0, 1, number), _PERMIT]
    return b"".join(_INSTRUCTION.pack(*step) for step in [*program, _REFUSE])


def confine() -> None:
    """Lay the filter over all threads of this process, for good. Raises ``KvmError`` where that fails."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    program = build_filter(os.getpid())
    whole = _FilterProgram(len(program) // _INSTRUCTION.size, program)
    words = [ctypes.c_ulong(word) for word in (_SYS_SECCOMP, _SET_MODE_FILTER, _ALL_THREADS)]
    if (
        libc.prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), *[ctypes.c_ulong(0)] * 3)
        or libc.syscall(*words, ctypes.byref(whole)) != 0
    ):
        raise KvmError(f"system calls cannot be filtered: {os.strerror(ctypes.get_errno())}")


def _argument(index: int) -> int:
    return _ARGUMENTS_AT + 8 * index


def _one_of(index: int, values: tuple[int, ...]) -> list[Instruction]:
    steps: list[Instruction] = [(_LOAD, 0, 0, _argument(index))]
    for value in values:
        steps += [(_EQUAL, 0, 1, value), _PERMIT]
    return [*steps, _REFUSE]
