"""The one gate through which duovisor starts other programs.

A program that fails is reported with the command line as a person could paste it and with its last words.
Two doors: ``run`` for a short program whose output is wanted, ``start`` for one that stays.
No command line is parsed by a shell. Waiting uses pidfds (Linux 5.3), so that a process which is not our
child can be watched in the same way.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import shlex
import shutil
import signal
import subprocess
import time
from typing import TYPE_CHECKING

from duovisor.errors import DuovisorError
from duovisor.guard import Guard
from duovisor.process_identity import (
    ProcessIdentity,
    open_living,
    read_children,
    read_start_ticks,
    read_state,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    Record = Callable[["Process"], None]

LAST_WORDS_BYTES = 4096
# Room for what a program says at once: QEMU's answers (300 KB) are lost if it quits before they are read.
OUTPUT_PIPE_BYTES = 1 << 20
STOP_TIMEOUT_S = 0.5

# waits for a line before it becomes the program; its pid and start time stay the same. When whoever should
# write that line has died, the end of the pipe ends it
_GATE = 'read -r _ && exec "$@" </dev/null; exit 125'


class ProcessError(DuovisorError):
    """Root of what this gate can raise."""

    code = "process"


class ProgramNotFoundError(ProcessError):
    """The program is not installed, or not executable."""

    code = "program-not-found"


class ProgramFailedError(ProcessError):
    """The program ran and said that it failed; ``returncode``: negative for a signal, None: unknown."""

    code = "program-failed"

    def __init__(
        self, argv: Sequence[str], returncode: int | None, last_words: str, *, remedy: str = ""
    ) -> None:
        self.argv = tuple(argv)
        self.returncode = returncode
        self.last_words = last_words
        said = f": {last_words}" if last_words else " without a word"
        super().__init__(f"{os.path.basename(argv[0])} {describe_exit(returncode)}{said}", remedy=remedy)


class ProgramTimeoutError(ProcessError):
    """The program did not finish in time and was killed."""

    code = "program-timeout"


def describe_exit(returncode: int | None) -> str:
    """Say how a process ended: ``exited with 3``, ``was killed by SIGKILL``, or just ``ended``."""
    if returncode is None:
        return "ended"
    if returncode >= 0:
        return f"exited with {returncode}"
    with contextlib.suppress(ValueError):
        return f"was killed by {signal.Signals(-returncode).name}"
    return f"was killed by signal {-returncode}"


def as_command_line(argv: Sequence[str]) -> str:
    """The command as it could be pasted into a shell."""
    return shlex.join(argv)


def last_words(text: str, *, lines: int = 3) -> str:
    """The last non-empty lines of what a program printed, joined into one."""
    return "; ".join([line.strip() for line in text.splitlines() if line.strip()][-lines:])


def run(
    argv: Sequence[str],
    *,
    timeout_s: float = 60.0,
    stdin: bytes | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    remedy: str = "",
) -> str:
    """Run a program to its end and return its standard output.

    Raises ``ProgramNotFoundError``, ``ProgramFailedError`` (exit status other than 0) or
    ``ProgramTimeoutError``; ``remedy`` is shown with each.
    """
    try:
        done = subprocess.run(
            argv, input=stdin, stdin=None if stdin is not None else subprocess.DEVNULL,
            capture_output=True, timeout=timeout_s, pipesize=OUTPUT_PIPE_BYTES, env=env, cwd=cwd, check=False,
        )  # fmt: skip
    except (FileNotFoundError, PermissionError, NotADirectoryError) as error:
        raise ProgramNotFoundError(f"cannot start {argv[0]}: {error.strerror}", remedy=remedy) from error
    except subprocess.TimeoutExpired as error:
        raise ProgramTimeoutError(
            f"{as_command_line(argv)} did not finish within {timeout_s:g} s", remedy=remedy
        ) from error
    if done.returncode:
        said = last_words((done.stderr or done.stdout).decode(errors="replace"))
        raise ProgramFailedError(argv, done.returncode, said, remedy=remedy)
    return done.stdout.decode(errors="replace")


class Process:
    """A program that was started, watched through its pidfd; a child of ours, or adopted.

    ``log`` is the file that holds its standard output and error. ``returncode`` is ``None`` while it runs,
    and for an adopted one ever after: the kernel tells only the parent how a process ended.
    In a sandbox, ``pid`` is bubblewrap's, which waits for the program; signals go to the program.
    """

    def __init__(
        self,
        identity: ProcessIdentity,
        pidfd: int,
        argv: tuple[str, ...],
        role: str,
        log: Path,
        *,
        sandboxed: bool,
        popen: subprocess.Popen[bytes] | None = None,
    ) -> None:
        self.identity = identity
        self.argv = argv
        self.role = role
        self.log = log
        self.sandboxed = sandboxed
        self._popen = popen
        self._returncode: int | None = None
        self._guard: Guard | None = None
        self._pidfd: int | None = pidfd

    @property
    def pid(self) -> int:
        return self.identity.pid

    @property
    def returncode(self) -> int | None:
        return self._popen.poll() if self._popen is not None else self._returncode

    @property
    def has_ended(self) -> bool:
        return self._pidfd is None or bool(select.select([self._pidfd], [], [], 0)[0])

    def guard(self) -> None:
        """From now on, the program is killed when this process ends."""
        self._guard = Guard(self.pid)

    def last_words(self) -> str:
        """The end of what the program printed."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, self.log.stat().st_size - LAST_WORDS_BYTES))
                return last_words(file.read().decode(errors="replace"))
        except FileNotFoundError:
            return ""

    def failure(self, *, remedy: str = "") -> ProgramFailedError:
        """The error to raise for a program that ended when it should not have."""
        return ProgramFailedError(self.argv, self.returncode, self.last_words(), remedy=remedy)

    def program_pid(self) -> int:
        """The program's own process id: inside a sandbox, bubblewrap's only child (or ``pid``: none yet)."""
        if self.sandboxed and self._pidfd is not None:
            return next(iter(read_children(self.pid)), self.pid)
        return self.pid

    def send_signal(self, number: signal.Signals) -> None:
        """Signal the program; nothing happens when it is gone already."""
        program = self.program_pid()
        if program != self.pid:
            _send(program, number)  # its number cannot be reused: its parent has not reaped it
        elif self._pidfd is not None:
            with contextlib.suppress(ProcessLookupError):
                if self.sandboxed and number is signal.SIGKILL:
                    self._kill_before_begin(self._pidfd)
                signal.pidfd_send_signal(self._pidfd, number)

    def _kill_before_begin(self, pidfd: int) -> None:
        """Stop bubblewrap first: the program that it may be starting this moment would survive it."""
        signal.pidfd_send_signal(pidfd, signal.SIGSTOP)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while read_state(self.pid) not in ("T", "Z") and time.monotonic() < deadline:
            time.sleep(0.0005)  # the kernel has no event for it that a non-parent could wait for
        for child in read_children(self.pid):
            _send(child, signal.SIGKILL)

    async def wait(self) -> int | None:
        """Wait for the end of the process; return its exit status (negative: the signal; None: unknown)."""
        if self._pidfd is not None:
            loop = asyncio.get_running_loop()
            ended: asyncio.Future[None] = loop.create_future()
            pidfd = os.dup(self._pidfd)  # one each, so that several tasks may wait
            loop.add_reader(pidfd, lambda: None if ended.done() else ended.set_result(None))
            try:
                await ended
            finally:
                loop.remove_reader(pidfd)
                os.close(pidfd)
        return self._reap()

    async def stop(self, *, grace_s: float = 2.0) -> int | None:
        """End the process: SIGTERM, then SIGKILL after ``grace_s`` seconds."""
        self.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace_s):
                return await self.wait()
        except TimeoutError:
            return await self.kill()

    async def kill(self) -> int | None:
        """End the process at once with SIGKILL."""
        self.send_signal(signal.SIGKILL)
        return await self.wait()

    def kill_now(self) -> int | None:
        """SIGKILL and wait, without an event loop; for clean-up when no loop runs any more."""
        self.send_signal(signal.SIGKILL)
        if self._pidfd is not None:
            select.select([self._pidfd], [], [])
        return self._reap()

    def duplicate_pidfd(self) -> int:
        """A pidfd for another process to watch this one by; the caller closes it.

        Raises ``ProcessLookupError`` when it has ended and been seen to.
        """
        if self._pidfd is None:
            raise ProcessLookupError(f"{self.role} {self.pid} has ended")
        return os.dup(self._pidfd)

    def release(self) -> None:
        """Let go of a program that goes on without us."""
        if self._popen is not None:
            self._popen.returncode = 0  # else Python warns of a child that was forgotten
        self._let_go()

    def _reap(self) -> int | None:
        if self._popen is not None:
            self._popen.wait()
        elif self._pidfd is not None:
            with contextlib.suppress(ChildProcessError):  # what this process released may be adopted by it
                self._returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self._let_go()
        return self.returncode

    def _let_go(self) -> None:
        if self._guard is not None:
            self._guard.dismiss()
            self._guard = None
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None


def start(
    argv: Sequence[str],
    *,
    role: str,
    log: Path,
    pass_fds: Sequence[int] = (),
    env: Mapping[str, str] | None = None,
    sandboxed: bool = False,
    die_with_owner: bool = False,
    record: Record | None = None,
) -> Process:
    """Start a program that stays, its output going to ``log``; descriptors keep their numbers.

    The program gets a session of its own, so that a Ctrl-C in the terminal reaches only the command that
    the user typed. ``sandboxed``: ``argv`` is a bubblewrap command line; ``die_with_owner``: it is killed
    when this process ends. ``record`` is told of the process before its program begins, and nothing begins
    unless it returns: whatever happens to this process, what it recorded is all that it has started.
    Raises ``ProgramNotFoundError``.
    """
    gated = record is not None
    if gated and shutil.which(argv[0]) is None:
        raise ProgramNotFoundError(f"cannot start {argv[0]}: no such program, or not executable")
    with log.open("ab") as output:
        try:
            popen = subprocess.Popen(
                ("/bin/sh", "-c", _GATE, "duovisor-gate", *argv) if gated else argv,
                stdin=subprocess.PIPE if gated else subprocess.DEVNULL,
                stdout=output, stderr=subprocess.STDOUT,
                pass_fds=pass_fds, env=env, start_new_session=True,
            )  # fmt: skip
        except (FileNotFoundError, PermissionError, NotADirectoryError) as error:
            raise ProgramNotFoundError(f"cannot start {argv[0]}: {error.strerror}") from error
    identity = ProcessIdentity(popen.pid, read_start_ticks(popen.pid))
    pidfd = os.pidfd_open(popen.pid)
    started = Process(identity, pidfd, tuple(argv), role, log, sandboxed=sandboxed, popen=popen)
    if record is not None:
        _pass_gate(popen, started, record)
    if die_with_owner:
        started.guard()
    return started


def adopt(
    identity: ProcessIdentity, argv: Sequence[str], *, role: str, log: Path, sandboxed: bool
) -> Process | None:
    """Watch a program that another process started; ``None`` when it has ended."""
    pidfd = open_living(identity)
    if pidfd is None:
        return None
    return Process(identity, pidfd, tuple(argv), role, log, sandboxed=sandboxed)


def _pass_gate(popen: subprocess.Popen[bytes], started: Process, record: Record) -> None:
    assert popen.stdin is not None
    try:
        record(started)
        popen.stdin.write(b"\n")
    except BaseException:
        popen.stdin.close()  # the gate ends without having started anything
        started.kill_now()
        raise
    popen.stdin.close()


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
