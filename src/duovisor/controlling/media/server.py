"""The media server of one CD-ROM drive: started, watched, and started again when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import stat
import time
from typing import TYPE_CHECKING

from duovisor import process
from duovisor.controlling.description import describe_process
from duovisor.controlling.errors import DiskFileError, PartitionError
from duovisor.controlling.formats.process import build_format_sandbox, find_storage_daemon
from duovisor.controlling.supervision.records import DriverEvent, DriverEventKind
from duovisor.errors import DuovisorError
from duovisor.hypervisor.qemu.cdroms import medium_socket
from duovisor.hypervisor.qemu.images import ImageFile
from duovisor.sandbox import build_sandbox_argv, uid_of
from duovisor.spec.vm import Design, DiskFormat, DiskSpec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from duovisor.controlling.description import ProcessDescription
    from duovisor.controlling.formats.process import FormatEnvironment
    from duovisor.controlling.supervision.records import Tell
    from duovisor.hardware.capabilities import HostCapabilities
    from duovisor.spec.vm import VirtualMachineSpec

ROLE = "media server"
FOLDER = "media"
NODE = "medium"
FIRST_DELAY_S, LAST_DELAY_S = 0.1, 30.0
LASTED_S = 60.0  # after that a death is the first again


def check_medium(path: str) -> None:
    """Raises ``DiskFileError`` for what cannot be in a CD-ROM drive."""
    try:
        status = os.stat(path)
        os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
    except OSError as error:
        raise DiskFileError(f"cannot read the CD-ROM image {path}: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise DiskFileError(f"the CD-ROM image {path} is no regular file", remedy="name an ISO image")
    if status.st_size == 0:
        raise DiskFileError(f"the CD-ROM image {path} is empty", remedy="name an ISO image")


def check_media(spec: VirtualMachineSpec, capabilities: HostCapabilities) -> None:
    """Check what is in a VM's drives, and that it can be served.

    Raises ``DiskFileError`` or ``HostLacksError``. A volume is checked when it is found.
    """
    for cdrom in spec.cdroms:
        if cdrom.path:
            check_medium(cdrom.path)
    if spec.cdroms and spec.design is Design.MICROKERNELIZED:
        find_storage_daemon(capabilities.tools.qemu_storage_daemon)


class MediaServer:
    """Serves the image ``path`` to the drive ``index``; ``note`` is called when its process has changed."""

    def __init__(
        self,
        environment: FormatEnvironment,
        index: int,
        path: str,
        note: Callable[[], None],
        tell: Tell,
    ) -> None:
        self.path = path
        self.name = f"cdrom{index}"
        self.described: ProcessDescription | None = None
        self._environment = environment
        self._socket = environment.run_dir / FOLDER / medium_socket(index)
        self._note = note
        self._tell = tell
        self._process: process.Process | None = None
        self._watch: asyncio.Task[None] | None = None

    @property
    def is_running(self) -> bool:
        """Whether its process is there."""
        return self._process is not None and not self._process.has_ended

    def start(self) -> None:
        """Start it; whoever connects meanwhile waits until it is ready. Raises ``PartitionError``."""
        self._launch()
        self._watch = asyncio.create_task(self._keep(), name=f"{ROLE} {self.name}")

    def adopt(self, running: process.Process | None, described: ProcessDescription | None) -> None:
        """Take over the server that a previous owner started; one that has ended is started again."""
        self._process, self.described = running, described
        self._watch = asyncio.create_task(self._keep(), name=f"{ROLE} {self.name}")

    async def end(self) -> None:
        """End it and remove its socket."""
        await self._stop_watching()
        if self._process is not None:
            await self._process.kill()  # it reads, and has nothing to lose
        self._socket.unlink(missing_ok=True)

    async def let_go(self) -> None:
        """Leave it running; this object is of no use any more."""
        await self._stop_watching()
        if self._process is not None:
            self._process.release()

    async def _stop_watching(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)

    async def _keep(self) -> None:
        """Start it again whenever it ends, after a while if it does so again and again."""
        delay_s = FIRST_DELAY_S
        while True:
            began = time.monotonic()
            words = "it ended while the service was away"
            if self._process is not None:
                await self._process.wait()
                words = self._process.failure().message
            self._tell(DriverEvent(DriverEventKind.DIED, self.name, f"{ROLE}: {words}"))
            if time.monotonic() - began > LASTED_S:
                delay_s = FIRST_DELAY_S
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, LAST_DELAY_S)
            with contextlib.suppress(DuovisorError, OSError):
                self._launch()
                self._tell(DriverEvent(DriverEventKind.RECOVERED, self.name, f"another {ROLE} serves"))

    def _launch(self) -> None:
        environment = self._environment
        disk = DiskSpec(path=self.path, read_only=True)
        chain = (ImageFile(self.path, DiskFormat.RAW),)
        try:
            self._socket.parent.mkdir(mode=0o711, exist_ok=True)
            self._socket.unlink(missing_ok=True)
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
                listener.bind(str(self._socket))
                if environment.tools.as_root:  # who may write to it may connect to it
                    owner = uid_of(environment.vm_name)
                    os.chown(self._socket, owner, owner, follow_symlinks=False)
                listener.listen()
                self._process = process.start(
                    build_sandbox_argv(
                        build_format_sandbox(environment, disk, chain),
                        environment.tools,
                        build_server_argv(environment.storage_daemon, self.name, listener.fileno()),
                    ),
                    role=ROLE,
                    log=environment.run_dir / f"{self.name}.log",
                    pass_fds=(listener.fileno(),),
                    sandboxed=True,
                    record=self._record,
                )
        except OSError as error:
            raise PartitionError(f"the {ROLE} of {self.name} cannot be started: {error}") from error

    def _record(self, started: process.Process) -> None:
        self.described = describe_process(started, self.name)
        self._note()


def build_server_argv(storage_daemon: Path, export: str, listener: int) -> tuple[str, ...]:
    """The command line inside the sandbox; ``listener`` is the inherited socket. Pure."""
    node = {"driver": "file", "node-name": NODE, "filename": "/image0", "read-only": True}
    server = {"addr": {"type": "fd", "str": str(listener)}}
    exported = {"type": "nbd", "id": NODE, "node-name": NODE, "name": export}
    return (
        str(storage_daemon),
        "--blockdev", json.dumps(node),
        "--nbd-server", json.dumps(server),
        "--export", json.dumps(exported),
    )  # fmt: skip
