"""A duovisord with folders of its own, to be measured, or killed and started again."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from duovisor.client.connection import Connection
from duovisor.client.endpoint import Endpoint
from duovisor.directories import Directories, find_directories

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0
STORE_IN_USE = 4  # the exit code; see duovisor.error_table
POLL_S = 0.01

# ds = 0; prints the message at the end on COM1; enables the power button's event (ACPI's PM1_EN at 0x602 of
# a q35), sleeps until PM1_STS at 0x600 shows it, and powers off through PM1_CNT at 0x604
_BOOT_CODE = bytes.fromhex(
    "31c0 8ed8 baf803 be2c7c ac 84c0 7403 ee ebf8"
    "ba0206 b80001 ef f4 ba0006 ed f6c401 74f6 ba0406 b80020 ef ebed"
)
MESSAGE = b"boot-sector-runs"


class ServiceEndedError(Exception):
    """The service ended though nobody killed it, or did not start."""


def build_boot_disk() -> bytes:
    """A disk whose boot sector says so on the console, then sleeps until the power button is pressed."""
    assert len(_BOOT_CODE) == 0x2C  # the message's address in the code
    sector = (_BOOT_CODE + MESSAGE + b"\0").ljust(510, b"\0") + b"\x55\xaa"
    return sector.ljust(1 << 20, b"\0")  # SeaBIOS passes over a disk of one sector


def build_small_vm(name: str, design: str, disk: Path) -> dict[str, Any]:
    """The specification of a VM of 16 MiB that boots from a disk."""
    return {"name": name, "design": design, "memory_mib": 16, "disks": [{"path": str(disk)}]}


class ServiceProcess:
    """The service; a context manager that leaves no process and no folder."""

    def __init__(self) -> None:
        # short: the path of a Unix socket has 107 bytes
        self.root = Path(tempfile.mkdtemp(prefix="dvb-", dir="/tmp"))
        self.root.chmod(0o755)
        self.directories = Directories(self.root / "state", self.root / "run", find_directories().cache)
        self.socket = self.directories.runtime / "duovisord.sock"
        self.log = self.root / "duovisord.log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> ServiceProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        for pid in find_processes(self.root):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)  # a measurement that was broken off leaves VMs
        while find_processes(self.root):
            time.sleep(POLL_S)
        memory = self.directories.runtime / "memory"
        if memory.is_mount():
            subprocess.run(["umount", str(memory)], check=True)
        shutil.rmtree(self.root)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def spawn(self) -> None:
        """Start the process; ``wait_ready`` says when it answers."""
        folders = self.directories
        environment = {
            **os.environ,
            "DUOVISOR_STATE_DIR": str(folders.state),
            "DUOVISOR_RUNTIME_DIR": str(folders.runtime),
            "DUOVISOR_CACHE_DIR": str(folders.cache),
        }
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                (sys.executable, "-P", "-m", "duovisor.controlling.service"),
                env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/",
                start_new_session=True,
            )  # fmt: skip

    def wait_ready(self) -> None:
        """Wait until it listens. Raises ``ServiceEndedError``."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._listens():
            if self.has_ended:
                if self._process is None or self._process.returncode != STORE_IN_USE:
                    raise ServiceEndedError(f"the service did not start: {self.last_words()}")
                self.spawn()  # a program that the last one was just starting had its lock still
            if time.monotonic() > deadline:
                raise ServiceEndedError(f"the service was not ready in time: {self.last_words()}")
            time.sleep(POLL_S)

    def start(self) -> float:
        """Start the service and wait until it answers; returns how many seconds that took."""
        begun = time.monotonic()
        self.spawn()
        self.wait_ready()
        return time.monotonic() - begun

    def kill(self) -> None:
        """End it with SIGKILL, if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(STOP_TIMEOUT_S)

    def stop(self) -> int:
        """End it in order; returns its exit code."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(STOP_TIMEOUT_S)

    def connect(self) -> Connection:
        """A connection that starts no service by itself."""
        return Connection(Endpoint(self.socket))

    def last_words(self) -> str:
        """The end of what the service printed."""
        return " / ".join(self.log.read_text(errors="replace").splitlines()[-5:])

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(str(self.socket))
            except OSError:
                return False
        return True


def find_processes(root: Path) -> dict[int, str]:
    """Processes that name a file under a folder or print to one, removed or not; pid → command line."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
            texts = [command, *(os.fsencode(os.readlink(folder / "fd" / number)) for number in ("1", "2"))]
        except OSError:
            continue  # it has just ended
        if any(bytes(root) + b"/" in text for text in texts) and int(folder.name) != os.getpid():
            found[int(folder.name)] = command.replace(b"\0", b" ").decode(errors="replace")[:200]
    return found


def read_pss_mib(pid: int) -> float:
    """Memory of a process, shared pages counted in part; proc(5)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def list_vms(connection: Connection) -> list[dict[str, Any]]:
    """Every VM that the service knows."""
    found: list[dict[str, Any]] = []
    after = ""
    while True:
        page = connection.request("GET", f"/v1/vms?limit=1000{after}").document
        found += page["items"]
        if page["after"] is None:
            return found
        after = f"&after={page['after']}"


def write_json(path: Path | None, document: dict[str, Any]) -> None:
    """Write figures to the file that was asked for, if one was."""
    if path is not None:
        path.write_text(json.dumps(document, indent=2) + "\n")
