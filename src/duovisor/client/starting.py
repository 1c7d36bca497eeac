"""Starts duovisord on this host when a command finds it absent: a first-time user needs no extra step.

One client starts it, the others wait for the lock and find it there. The service has a session of its own
and outlives the command; where systemd has a unit for it, systemd starts it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import select
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from duovisor.client.connection import connect_unix
from duovisor.client.endpoint import SYSTEM_SOCKET
from duovisor.client.errors import ServiceStartError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from duovisor.process import Process

START_TIMEOUT_S = 60.0
OTHER_TIMEOUT_S = 10.0  # for a service that somebody else is starting
RETRY_S = 0.05
LOG_NAME = "duovisord.log"
LOCK_NAME = "duovisord.start.lock"
PROGRAM = (sys.executable, "-P", "-m", "duovisor.controlling.service")  # -P: not from the current folder
FOLDER_VARIABLES = ("DUOVISOR_STATE_DIR", "DUOVISOR_RUNTIME_DIR", "DUOVISOR_CACHE_DIR")

_SYSTEMD = Path("/run/systemd/system")
_UNIT = "duovisord.service"
_UNIT_FOLDERS = (Path("/etc/systemd/system"), Path("/usr/lib/systemd/system"), Path("/lib/systemd/system"))


def ensure_service(
    path: Path, program: Sequence[str] = PROGRAM, *, timeout_s: float = START_TIMEOUT_S
) -> None:
    """Make sure that a service answers on a Unix socket of this host.

    Raises ``ServiceStartError`` with the service's last words.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        lock = (path.parent / LOCK_NAME).open("a")
    except OSError as error:
        raise ServiceStartError(
            f"cannot start duovisord: {path.parent}: {error.strerror}", remedy="set DUOVISOR_RUNTIME_DIR"
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if can_connect(path):
            return
        if path == SYSTEM_SOCKET and has_unit():
            _start_unit()
        else:
            _start_program(path, program, timeout_s)


def can_connect(path: Path) -> bool:
    """Whether a service listens there."""
    try:
        connect_unix(str(path)).close()
    except OSError:
        return False
    return True


def has_unit() -> bool:
    """Whether systemd runs this host and knows the service."""
    return _SYSTEMD.is_dir() and any((folder / _UNIT).exists() for folder in _UNIT_FOLDERS)


def build_environment(environ: Mapping[str, str], notify: str) -> dict[str, str]:
    """The service's environment: it has another current folder, and says on ``notify`` when it is ready."""
    folders = {name: os.path.abspath(environ[name]) for name in FOLDER_VARIABLES if environ.get(name)}
    return {**environ, **folders, "NOTIFY_SOCKET": notify}


def _start_unit() -> None:
    from duovisor.process import ProcessError, run

    try:
        run(["systemctl", "start", _UNIT], timeout_s=START_TIMEOUT_S)
    except ProcessError as error:
        raise ServiceStartError(error.message, remedy=f"journalctl -u {_UNIT}") from error


def _start_program(path: Path, program: Sequence[str], timeout_s: float) -> None:
    from duovisor.process import ProcessError, start

    log = path.parent / LOG_NAME
    with _listen_for_ready() as (ready, address):
        environment = build_environment(os.environ, address)
        try:
            process = start(("env", "-C", "/", *program), role="service", log=log, env=environment)
        except (OSError, ProcessError) as error:
            raise ServiceStartError(f"cannot start duovisord: {error}") from error
        if _wait_ready(ready, process.pid, timeout_s):
            process.release()
        else:
            _meet_failure(process, path, log)


@contextlib.contextmanager
def _listen_for_ready() -> Iterator[tuple[socket.socket, str]]:
    """A socket as systemd has it for its services, in Linux's abstract namespace; sd_notify(3)."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
        name = f"duovisor-ready-{os.getpid()}-{secrets.token_hex(8)}"
        ready.bind(f"\0{name}")
        yield ready, f"@{name}"


def _wait_ready(ready: socket.socket, pid: int, timeout_s: float) -> bool:
    """Whether the service said that it is ready before it ended and before the time was over."""
    pidfd = os.pidfd_open(pid)
    try:
        readable, _, _ = select.select([ready.fileno(), pidfd], [], [], timeout_s)
        return ready.fileno() in readable
    finally:
        os.close(pidfd)


def _meet_failure(process: Process, path: Path, log: Path) -> None:
    """The service ended, or takes too long; all is well when somebody else started another one meanwhile."""
    if not process.has_ended:
        process.kill_now()
        raise ServiceStartError(
            f"duovisord was not ready in time: {process.last_words()}", remedy=f"see {log}"
        )
    process.kill_now()
    if process.returncode == 4 and _wait_for_other(path):  # the state folder is in use
        return
    said = process.last_words().removeprefix("error: ") or f"it ended with {process.returncode}"
    raise ServiceStartError(f"duovisord did not start: {said}", remedy=f"see {log}")


def _wait_for_other(path: Path) -> bool:
    """Whether a service that holds the state folder begins to listen; nothing tells us but trying."""
    deadline = time.monotonic() + OTHER_TIMEOUT_S
    while time.monotonic() < deadline:
        if can_connect(path):
            return True
        time.sleep(RETRY_S)
    return False
