"""A host whose duovisord is killed and comes back, in folders of its own, and two ways to ask it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol

from duovisor.client.endpoint import Endpoint
from duovisor.client.service import ServiceClient, vm_path
from duovisor.client.starting import PROGRAM, ensure_service
from duovisor.controlling.images.boot import add_image
from duovisor.controlling.images.probe import PORT_NAME
from duovisor.controlling.images.probe_client import connect_probe
from duovisor.hypervisor.qemu.console import port_socket
from duovisor.spec.loading import build_spec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from duovisor.controlling.images.image import Image
    from duovisor.controlling.images.probe_client import ProbeClient
    from duovisor.directories import Directories

ANY = {"If-Match": "*"}
COMMAND_TIMEOUT_S = 180.0
BOOT_TIMEOUT_S = 300.0  # for what hangs: three seconds are enough on a machine that is not busy
KERNEL_SPEAKS = {"command_line": "console=ttyS0 cryptomgr.notests"}  # the image's own is quiet


class ServiceHost:
    """``kill`` ends the service with SIGKILL; whoever asks next starts it again."""

    def __init__(self, directories: Directories) -> None:
        self.directories = directories
        self.endpoint = Endpoint(directories.runtime / "duovisord.sock")
        self.environment = {
            f"DUOVISOR_{name.upper()}_DIR": str(folder) for name, folder in directories._asdict().items()
        }

    def start(self, program: Sequence[str] = PROGRAM) -> None:
        """Start the service, if it does not run, as a client would."""
        assert self.endpoint.socket is not None
        ensure_service(self.endpoint.socket, program)

    def connect(self) -> ServiceClient:
        return ServiceClient(self.endpoint)

    def get(self, path: str) -> Any:
        with self.connect() as client:
            return client.get(path)

    def end(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Signal the service and wait for its end."""
        pid = int(self.get("/v1/service")["pid"])
        pidfd = os.pidfd_open(pid)
        signal.pidfd_send_signal(pidfd, number)
        assert select.select([pidfd], [], [], COMMAND_TIMEOUT_S)[0]
        os.close(pidfd)
        with contextlib.suppress(ChildProcessError):  # a command may have started it
            os.waitpid(pid, 0)

    def kill_and_restart(self) -> dict[str, Any]:
        """Returns what the new service found on the host."""
        self.end()
        self.start()
        found: dict[str, Any] = self.get("/v1/service")["recovery"]
        assert found["problems"] == []
        return found

    def lose_power(self, vms: Sequence[str]) -> None:
        """What a host's sudden end leaves: no process, no runtime folder; the state folder as it was."""
        processes = [process for name in vms for process in self.get(vm_path(name))["status"]["processes"]]
        self.end()
        for process in processes:
            kill_and_wait(process["pid"])
        memory = self.directories.runtime / "memory"
        subprocess.run(["umount", str(memory)], check=os.path.ismount(memory), capture_output=True)
        shutil.rmtree(self.directories.runtime)


def build_document(image: Image) -> dict[str, Any]:
    document = add_image({"name": "t", "memory_mib": 256, "kernel": KERNEL_SPEAKS}, image)
    return build_spec(document).model_dump(mode="json")


@asynccontextmanager
async def reach_guest(host: ServiceHost, name: str, image: Image) -> AsyncIterator[ProbeClient]:
    """The guest of a VM, which has booted."""
    ports = build_document(image)["ports"]
    path = host.directories.vms / name / "current" / f"{port_socket(ports.index(PORT_NAME))}.sock"
    async with connect_probe(path) as guest:
        await guest.wait_booted(BOOT_TIMEOUT_S)
        yield guest


def kill_and_wait(pid: int) -> None:
    """SIGKILL; a process that ended because another did is gone already."""
    with contextlib.suppress(ProcessLookupError):
        pidfd = os.pidfd_open(pid)
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        select.select([pidfd], [], [], COMMAND_TIMEOUT_S)
        os.close(pidfd)


class Way(Protocol):
    """A way to ask the service for the life of a VM."""

    def create(self, name: str, design: str) -> None: ...

    def act(self, name: str, action: str) -> None: ...

    def set_memory(self, name: str, memory_mib: int) -> None: ...

    def rename(self, name: str, new: str) -> None: ...

    def delete(self, name: str) -> None: ...

    def show(self, name: str) -> dict[str, Any]: ...

    def names(self) -> list[str]: ...

    def log(self, name: str) -> str: ...


class Rest:
    """Through the REST API."""

    def __init__(self, host: ServiceHost, spec: dict[str, Any]) -> None:
        self._host = host
        self._spec = spec

    def request(self, method: str, path: str, document: Any = None, **headers: str) -> Any:
        with self._host.connect() as client:
            return client.request(method, path, document, headers).document

    def create(self, name: str, design: str) -> None:
        self.request("POST", "/v1/vms", {"spec": {**self._spec, "name": name, "design": design}})

    def act(self, name: str, action: str) -> None:
        with self._host.connect() as client:
            client.follow(client.act(name, action))

    def set_memory(self, name: str, memory_mib: int) -> None:
        with self._host.connect() as client:
            seen = client.request("GET", vm_path(name))
            record = seen.document["record"]
            changed = {
                "spec": {**record["spec"], "memory_mib": memory_mib},
                "autostart": record["autostart"],
            }
            client.request("PUT", vm_path(name), changed, {"If-Match": seen.etag})

    def rename(self, name: str, new: str) -> None:
        with self._host.connect() as client:
            client.request("POST", f"{vm_path(name)}/rename", {"name": new}, ANY)

    def delete(self, name: str) -> None:
        with self._host.connect() as client:
            client.request("DELETE", vm_path(name), headers=ANY)

    def show(self, name: str) -> dict[str, Any]:
        vm: dict[str, Any] = self.request("GET", vm_path(name))
        return vm

    def names(self) -> list[str]:
        return [vm["record"]["name"] for vm in self.request("GET", "/v1/vms")["items"]]

    def log(self, name: str) -> str:
        with self._host.connect() as client:
            return client.request("GET", f"{vm_path(name)}/console/log").body.decode()


class Cli:
    """Through the ``duovisor`` program."""

    def __init__(self, host: ServiceHost, spec_file: Path) -> None:
        self._host = host
        self._spec_file = spec_file

    def run(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "duovisor", *arguments],
            env={**os.environ, **self._host.environment}, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done
        return done.stdout

    def create(self, name: str, design: str) -> None:
        self.run("vm", "create", str(self._spec_file), "--name", name, "--design", design)

    def act(self, name: str, action: str) -> None:
        self.run("vm", action, name)

    def set_memory(self, name: str, memory_mib: int) -> None:
        self.run("vm", "edit", name, "--set", f"memory_mib={memory_mib}")

    def rename(self, name: str, new: str) -> None:
        self.run("vm", "rename", name, new)

    def delete(self, name: str) -> None:
        self.run("vm", "delete", name)

    def show(self, name: str) -> dict[str, Any]:
        vm: dict[str, Any] = json.loads(self.run("vm", "show", name, "--json"))
        return vm

    def names(self) -> list[str]:
        return [vm["record"]["name"] for vm in json.loads(self.run("vm", "list", "--json"))]

    def log(self, name: str) -> str:
        return self.run("vm", "log", name)
