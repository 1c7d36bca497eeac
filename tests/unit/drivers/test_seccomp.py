"""The list of system calls as the kernel reads it: the filter program, run by an interpreter of ours."""

from __future__ import annotations

import errno
from struct import Struct, pack

import pytest

from duovisor.controlling.drivers.seccomp import ALLOWED, build_filter

X86_64, I386 = 0xC000003E, 0x40000003
ALLOW, KILL = 0x7FFF0000, 0x80000000
EPERM, ENOSYS = 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
INSTRUCTION = Struct("=HBBI")
LAST_CALL = 470


def judge(number: int, *arguments: int, architecture: int = X86_64) -> int:
    """What the filter returns for a call: classic BPF over struct seccomp_data (linux/seccomp.h)."""
    words = [argument & (1 << 64) - 1 for argument in arguments] + [0] * (6 - len(arguments))
    data = pack("=IIQ6Q", number, architecture, 0, *words)
    program = list(INSTRUCTION.iter_unpack(build_filter()))
    at, accumulator = 0, 0
    while True:
        code, yes, no, operand = program[at]
        at += 1
        if code == LOAD:
            accumulator = int.from_bytes(data[operand : operand + 4], "little")
        elif code == RETURN:
            return int(operand)
        else:
            holds = {
                EQUAL: accumulator == operand,
                AT_LEAST: accumulator >= operand,
                ANY_BIT: bool(accumulator & operand),
            }[code]
            at += yes if holds else no


def test_the_list_is_what_is_allowed_whatever_the_arguments() -> None:
    allowed = {number for number in range(LAST_CALL) if judge(number, *[-1] * 6) == ALLOW}
    assert allowed - {56} == set(ALLOWED.values())  # clone with all flags has CLONE_THREAD too
    assert len(ALLOWED) == len(set(ALLOWED.values()))


def test_nothing_that_opens_starts_or_looks_is_on_the_list() -> None:
    never = {
        "open", "openat", "socket", "connect", "bind", "execve", "fork", "vfork", "kill", "ptrace", "mount",
        "unshare", "setns", "bpf", "io_uring_setup", "io_uring_enter", "pidfd_open", "prctl", "ioctl", "mmap",
    }  # fmt: skip
    assert not never & set(ALLOWED)


def test_another_architecture_ends_the_process() -> None:
    assert judge(0, architecture=I386) == KILL


@pytest.mark.parametrize("number", [0, 1, 2, 520])
def test_x32_is_refused(number: int) -> None:
    assert judge(0x40000000 | number) == EPERM


@pytest.mark.parametrize(
    ("number", "arguments", "verdict"),
    [
        (9, (0, 4096, 3, 0x22, -1, 0), ALLOW),  # mmap read and write
        (9, (0, 4096, 4, 0x22, -1, 0), EPERM),  # execute
        (9, (0, 4096, 7, 0x22, -1, 0), EPERM),
        (10, (0, 4096, 1), ALLOW),
        (10, (0, 4096, 5), EPERM),
        (16, (3, 0x5421, 0), ALLOW),  # FIONBIO
        (16, (3, 0x1277, 0), ALLOW),  # BLKDISCARD
        (16, (3, 0x5412, 0), EPERM),  # TIOCSTI
        (16, (3, 0x2285, 0), EPERM),  # SG_IO
        (56, (0x3D0F00,), ALLOW),  # what glibc makes a thread with
        (56, (0x1200011,), EPERM),  # what it forks with
        (56, (0x4111,), EPERM),
        (435, (0, 0), ENOSYS),  # clone3
        (157, (15, 0), ALLOW),  # PR_SET_NAME
        (157, (4, 1), EPERM),  # PR_SET_DUMPABLE
        (302, (0, 3, 0, 1), ALLOW),  # its own limits, to read
        (302, (0, 3, 1, 1), EPERM),
        (302, (0, 3, 1 << 32, 1), EPERM),
        (302, (1, 3, 0, 1), EPERM),
    ],
)
def test_calls_that_depend_on_their_arguments(number: int, arguments: tuple[int, ...], verdict: int) -> None:
    assert judge(number, *arguments) == verdict
