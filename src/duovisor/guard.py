"""A guard ends a program when the process that owns it ends, however that ends.

PR_SET_PDEATHSIG cannot do it for a sandboxed program: the kernel sends that signal with the rights of the
dying parent (kernel/signal.c, check_kill_permission), and bubblewrap has given its rights away. So a shell
waits for the end of a pipe whose other end the owner holds.
"""

from __future__ import annotations

import subprocess

# $1 is the program, or the bubblewrap around it, which has the program as its only child
_SCRIPT = 'read -r _; for pid in $(cat "/proc/$1/task/$1/children") "$1"; do kill -KILL "$pid"; done'


class Guard:
    """Watches over one process; ``dismiss`` when it has ended or may outlive its owner."""

    def __init__(self, pid: int) -> None:
        self._shell = subprocess.Popen(
            ["/bin/sh", "-c", _SCRIPT, "duovisor-guard", str(pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def dismiss(self) -> None:
        """End the guard and leave the process alone."""
        self._shell.kill()
        self._shell.wait()
        if self._shell.stdin is not None:
            self._shell.stdin.close()
