"""The two drivers of ``driver_native.py``, each a process of its own behind a vhost-user socket."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bench.native_load import QUEUE_SIZE, Load

import duovisor
from duovisor.channel.frontend import FrontEnd
from duovisor.controlling.machine_disks import POLL_US
from duovisor.controlling.python_runtime import interpreter

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bench.native_load import Figure, Job


GUEST_BYTES = 64 << 20
STORAGE_MAIN = "from duovisor.controlling.drivers.block import main; main()"

# Ways to set up qemu-storage-daemon: how it does its I/O, and whether the export has a thread of its own.
DAEMON_SETUPS = {
    f"{aio}{'+iothread' if iothread else ''}": (aio, iothread)
    for aio in ("threads", "io_uring")
    for iothread in (False, True)
}


class Driver(NamedTuple):
    """A running driver and the front end on it."""

    name: str
    process: subprocess.Popen[bytes]
    front_end: FrontEnd
    loads: dict[str, Load]

    def measure(self, job: Job, seconds: float) -> Figure:
        """Run one job."""
        return self.loads[job.name].run(seconds, process_clock(self.process.pid))


def process_clock(pid: int) -> int:
    """The clock of the processor time of a whole process (Linux ``posix-timers.h``, CPUCLOCK_SCHED)."""
    return (~pid << 3) | 2


def build_daemon_argv(setup: str, image: Path, address: Path) -> list[str]:
    """The command line of ``qemu-storage-daemon`` for one of ``DAEMON_SETUPS``; pure."""
    aio, iothread = DAEMON_SETUPS[setup]
    node = f"driver=file,node-name=disk,filename={image},cache.direct=off,aio={aio},locking=off"
    export = f"type=vhost-user-blk,id=export,node-name=disk,writable=on,addr.type=unix,addr.path={address}"
    argv = ["qemu-storage-daemon", "--blockdev", node]
    if iothread:
        argv += ["--object", "iothread,id=thread"]
        export += ",iothread=thread"
    return [*argv, "--export", export]


@contextmanager
def start_ours(
    image: Path, jobs: Sequence[Job], package: Path | None = None, options: Sequence[str] = ()
) -> Iterator[Driver]:
    """Our storage driver as a partition runs it, without the sandbox; ``package`` is where its code lies."""
    ours, theirs = socket.socketpair()
    descriptor = os.open(image, os.O_RDWR)
    argv = [str(interpreter()), "-S", "-s", "-B", "-c", STORAGE_MAIN]
    argv += ["--channel-fd", str(theirs.fileno()), "--image-fd", str(descriptor)]
    argv += ["--queue-size", str(QUEUE_SIZE), "--poll-us", str(POLL_US), *options]
    path = package or Path(duovisor.__file__).parent.parent
    process = subprocess.Popen(
        argv, pass_fds=(theirs.fileno(), descriptor), env={"PYTHONPATH": str(path), "PATH": os.defpath}
    )
    theirs.close()
    os.close(descriptor)
    with _attach("ours", process, ours, image, jobs) as driver:
        yield driver


@contextmanager
def start_daemon(setup: str, image: Path, jobs: Sequence[Job], folder: Path) -> Iterator[Driver]:
    """``qemu-storage-daemon`` on the same image."""
    address = folder / f"{setup}.sock"
    process = subprocess.Popen(build_daemon_argv(setup, image, address))
    connected = socket.socket(socket.AF_UNIX)
    deadline = time.monotonic() + 10
    while True:
        try:
            connected.connect(str(address))
            break
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"qemu-storage-daemon with {setup} does not serve {address}")
            time.sleep(0.02)
    with _attach(setup, process, connected, image, jobs) as driver:
        yield driver


@contextmanager
def _attach(
    name: str,
    process: subprocess.Popen[bytes],
    connected: socket.socket,
    image: Path,
    jobs: Sequence[Job],
) -> Iterator[Driver]:
    try:
        with FrontEnd(memory_bytes=GUEST_BYTES, queue_size=QUEUE_SIZE) as front_end:
            front_end.connect(connected)
            loads = {job.name: Load(front_end, job, image.stat().st_size) for job in jobs}
            yield Driver(name, process, front_end, loads)
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:  # qemu-storage-daemon 7.2 with an iothread never ends
            process.kill()
            process.wait()
