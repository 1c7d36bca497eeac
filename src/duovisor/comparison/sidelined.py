"""A duovisord beside the host's own, with folders of its own, to be killed and started again."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from duovisor import process
from duovisor.client.connection import connect_unix
from duovisor.client.endpoint import Endpoint
from duovisor.client.service import ServiceClient, vm_path
from duovisor.comparison.errors import SidelinedServiceError
from duovisor.comparison.shell import Shell
from duovisor.controlling.images.probe import PORT_NAME
from duovisor.hypervisor.qemu.console import port_socket

if TYPE_CHECKING:
    from pathlib import Path

    from duovisor.spec.vm import VirtualMachineSpec

START_S = 60.0
BOOT_S = 120.0
POLL_S = 0.01


class SidelinedService:
    """Started when it is first needed; whoever owns ``root`` ends it and its VMs."""

    def __init__(self, root: Path, cache: Path) -> None:
        self.root = root
        self._cache = cache
        self._process: process.Process | None = None
        self._guests: dict[str, Shell] = {}

    @property
    def socket(self) -> Path:
        return self.root / "run/duovisord.sock"

    async def guest(self, spec: VirtualMachineSpec) -> Shell:
        """The guest of a VM of the service, which is defined, started and booted if it is not yet.

        Raises ``SidelinedServiceError``, ``ApiError``, or what waiting for the guest raises.
        """
        if self._process is None:
            await self.start()
        if spec.name not in self._guests:
            await asyncio.to_thread(self._run_vm, spec)
            port = port_socket(spec.ports.index(PORT_NAME))
            path = self.root / f"run/vms/{spec.name}/current/{port}.sock"
            shell = Shell(lambda: path)
            await shell.wait_booted(BOOT_S)
            self._guests[spec.name] = shell
        return self._guests[spec.name]

    async def start(self) -> None:
        """Start the service and wait until it answers. Raises ``SidelinedServiceError``."""
        environment = {
            **os.environ,
            "DUOVISOR_STATE_DIR": str(self.root / "state"),
            "DUOVISOR_RUNTIME_DIR": str(self.root / "run"),
            "DUOVISOR_CACHE_DIR": str(self._cache),
        }
        log = self.root / "duovisord.log"
        program = ("env", "-C", "/", sys.executable, "-P", "-m", "duovisor.controlling.service")
        self._process = process.start(program, role="service", log=log, env=environment)
        deadline = time.monotonic() + START_S
        while not self._listens():
            if self._process.has_ended or time.monotonic() > deadline:
                said = self._process.last_words()
                raise SidelinedServiceError(f"duovisord was not ready in time: {said}")
            await asyncio.sleep(POLL_S)

    def kill(self) -> None:
        """End the service with SIGKILL; its VMs run on."""
        assert self._process is not None
        self._process.kill_now()

    async def wait_running(self, name: str) -> int:
        """Wait until the service says that a VM runs; the pid that it tells. Raises ``ApiError``."""
        async with asyncio.timeout(START_S):
            while True:
                status = await asyncio.to_thread(self._read_status, name)
                if status["state"] == "running":
                    return int(status["pid"])
                await asyncio.sleep(POLL_S)

    def close(self) -> None:
        """End the service; its VMs are left to the sweeper of ``root``."""
        if self._process is not None:
            self.kill()
            self._process = None

    def _connect(self) -> ServiceClient:
        return ServiceClient(Endpoint(self.socket))

    def _run_vm(self, spec: VirtualMachineSpec) -> None:
        with self._connect() as client:
            client.request("POST", "/v1/vms", {"spec": spec.model_dump(mode="json")})
            client.follow(client.act(spec.name, "start"))

    def _read_status(self, name: str) -> dict[str, Any]:
        with self._connect() as client:
            status: dict[str, Any] = client.get(vm_path(name))["status"]
            return status

    def _listens(self) -> bool:
        with suppress(OSError):
            connect_unix(str(self.socket)).close()
            return True
        return False
