"""The one gate through which duovisor starts other programs.

A program that fails is reported with the command line as a person could paste it and with its last words.
Two doors: ``run`` for a short program whose output is wanted, ``start`` for one that stays.
Nothing here needs a shell. Waiting uses pidfds (Linux 5.3), so that a process which is not our child can be
watched in the same way.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from duovisor.errors import DuovisorError
from duovisor.guard import Guard

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

LAST_WORDS_BYTES = 4096


class ProcessError(DuovisorError):
    """Root of what this gate can raise."""

    code = "process"


class ProgramNotFoundError(ProcessError):
    """The program is not installed, or not executable."""

    code = "program-not-found"


class ProgramFailedError(ProcessError):
    """The program ran and said that it failed; ``returncode`` is negative for a signal."""

    code = "program-failed"

    def __init__(self, argv: Sequence[str], returncode: int, last_words: str, *, remedy: str = "") -> None:
        self.argv = tuple(argv)
        self.returncode = returncode
        self.last_words = last_words
        said = f": {last_words}" if last_words else " without a word"
        super().__init__(f"{os.path.basename(argv[0])} {describe_exit(returncode)}{said}", remedy=remedy)


class ProgramTimeoutError(ProcessError):
    """The program did not finish in time and was killed."""

    code = "program-timeout"


def describe_exit(returncode: int) -> str:
    """Say how a process ended: ``exited with 3`` or ``was killed by SIGKILL``."""
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
            capture_output=True, timeout=timeout_s, env=env, cwd=cwd, check=False,
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
    """A running program, watched through its pidfd.

    ``log`` is the file that holds its standard output and error. ``returncode`` is ``None`` while it runs.
    In a sandbox, ``pid`` is bubblewrap's, which waits for the program; signals go to the program.
    """

    def __init__(
        self,
        popen: subprocess.Popen[bytes],
        argv: tuple[str, ...],
        role: str,
        log: Path,
        sandboxed: bool,
        guard: Guard | None,
    ) -> None:
        self.popen = popen
        self.argv = argv
        self.role = role
        self.log = log
        self.pid = popen.pid
        self._sandboxed = sandboxed
        self._guard = guard
        self._pidfd: int | None = os.pidfd_open(popen.pid)

    @property
    def returncode(self) -> int | None:
        return self.popen.poll()

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
        return ProgramFailedError(self.argv, self.returncode or 0, self.last_words(), remedy=remedy)

    def program_pid(self) -> int:
        """The program's own process id: inside a sandbox, bubblewrap's only child (or ``pid``: none yet)."""
        if self._sandboxed and self._pidfd is not None:
            with contextlib.suppress(OSError, ValueError):
                # /proc/PID/task/TID/children: proc(5), kernels with CONFIG_PROC_CHILDREN
                return int(Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()[0])
        return self.pid

    def send_signal(self, number: signal.Signals) -> None:
        """Signal the program; nothing happens when it is gone already."""
        program = self.program_pid()
        with contextlib.suppress(ProcessLookupError):
            if program != self.pid:
                os.kill(program, number)  # its number cannot be reused: its parent has not reaped it
            elif self._pidfd is not None:
                signal.pidfd_send_signal(self._pidfd, number)

    async def wait(self) -> int:
        """Wait for the end of the process; return its exit status (negative: the signal)."""
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

    async def stop(self, *, grace_s: float = 2.0) -> int:
        """End the process: SIGTERM, then SIGKILL after ``grace_s`` seconds."""
        self.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace_s):
                return await self.wait()
        except TimeoutError:
            return await self.kill()

    async def kill(self) -> int:
        """End the process at once with SIGKILL."""
        self.send_signal(signal.SIGKILL)
        return await self.wait()

    def kill_now(self) -> int:
        """SIGKILL and wait, without an event loop; for clean-up when no loop runs any more."""
        self.send_signal(signal.SIGKILL)
        return self._reap()

    def _reap(self) -> int:
        returncode = self.popen.wait()
        if self._guard is not None:
            self._guard.dismiss()
            self._guard = None
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None
        return returncode


def start(
    argv: Sequence[str],
    *,
    role: str,
    log: Path,
    pass_fds: Sequence[int] = (),
    env: Mapping[str, str] | None = None,
    sandboxed: bool = False,
    die_with_owner: bool = False,
) -> Process:
    """Start a program that stays, its output going to ``log``; descriptors keep their numbers.

    The program gets a session of its own, so that a Ctrl-C in the terminal reaches only the command that
    the user typed. ``sandboxed``: ``argv`` is a bubblewrap command line;
    ``die_with_owner``: it is killed when this process ends. Raises ``ProgramNotFoundError``.
    """
    with log.open("ab") as output:
        try:
            popen = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                pass_fds=pass_fds, env=env, start_new_session=True,
            )  # fmt: skip
        except (FileNotFoundError, PermissionError, NotADirectoryError) as error:
            raise ProgramNotFoundError(f"cannot start {argv[0]}: {error.strerror}") from error
    return Process(popen, tuple(argv), role, log, sandboxed, Guard(popen.pid) if die_with_owner else None)
