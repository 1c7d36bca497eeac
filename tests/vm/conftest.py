"""Fixtures for tests that boot real guests: a ladder from folders to a running guest.

``folders`` → ``probe_image`` → ``boot`` (a function that starts a VM of either design). What a test starts is
ended with it, and ``folders`` fails the test when anything is left: process, mount, socket or file.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import pytest_asyncio
from tests.networks import enter_network, list_ports, why_no_namespace
from tests.vm.service_host import BOOT_TIMEOUT_S, ServiceHost, kill_and_wait

from duovisor.client.service import vm_path
from duovisor.controlling.images.boot import add_image
from duovisor.controlling.images.probe import PORT_NAME, build_probe_image
from duovisor.controlling.images.probe_client import connect_probe
from duovisor.controlling.machine import start_machine
from duovisor.controlling.supervision.records import ignore_driver_events
from duovisor.directories import Directories, find_directories
from duovisor.hardware.capabilities import HostCapabilities, read_capabilities
from duovisor.process import ProgramNotFoundError
from duovisor.process_identity import read_children
from duovisor.spec.loading import build_spec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from duovisor.controlling.images.image import Image
    from duovisor.controlling.images.probe_client import ProbeClient
    from duovisor.controlling.images.probe_protocol import BootReport
    from duovisor.controlling.machine import Machine
    from duovisor.controlling.supervision.records import Tell


class Guest(NamedTuple):
    """A booted probe guest and the machine around it."""

    machine: Machine
    probe: ProbeClient
    report: BootReport

    async def output(self, command: str, *, timeout_s: float = 180.0) -> str:
        """Run a command in the guest, which must succeed, and return what it printed."""
        done = await self.probe.run(command, timeout_s=timeout_s)
        assert done.exit == 0, f"{command}: {done.output.decode(errors='replace')}"
        return done.output.decode()


if TYPE_CHECKING:
    Boot = Callable[..., Awaitable[Guest]]


@pytest.fixture(scope="session")
def capabilities() -> HostCapabilities:
    try:
        found = read_capabilities(find_directories().cache)
        found.require_qemu()
    except ProgramNotFoundError as error:
        pytest.skip(f"real VMs need QEMU: {error}")
    return found


@pytest.fixture(scope="session")
def probe_image() -> Image:
    """The probe image where users keep it, so that a second run is fast."""
    return build_probe_image(find_directories(), print)


@contextlib.contextmanager
def lend_folders() -> Iterator[Directories]:
    """State and runtime folders in which nothing may be left; short: a Unix socket's path has 107 bytes."""
    root = Path(tempfile.mkdtemp(prefix="dvt-", dir="/tmp"))
    root.chmod(0o755)
    directories = Directories(root / "state", root / "run", find_directories().cache)
    directories.state.mkdir()
    before = find_processes(root)
    assert not before
    yield directories
    left = [str(path) for path in sorted(root.glob("run/vms/*"))]
    left += [line for line in Path("/proc/mounts").read_text().splitlines() if str(root) in line]
    for _ in range(50):  # the factory of a service that was killed is about to end
        if not (processes := find_processes(root)):
            break
        time.sleep(0.1)
    left += processes
    end_what_is_left(root, processes)
    shutil.rmtree(root, ignore_errors=True)
    assert not left, f"left behind: {left}"


@pytest.fixture
def network() -> Iterator[None]:
    """The test runs in a network namespace with a bridge, and leaves no TAP in it."""
    if reason := why_no_namespace():
        pytest.skip(reason)
    with enter_network():
        yield
        end_s = time.monotonic() + 10  # a TAP goes with the last process that has it
        while left := list_ports():
            assert time.monotonic() < end_s, f"left behind on the bridge: {left}"
            time.sleep(0.1)


@pytest.fixture
def folders() -> Iterator[Directories]:
    """Folders of this test alone."""
    with lend_folders() as directories:
        yield directories


def end_what_is_left(root: Path, processes: list[str]) -> None:
    """A test that failed half-way must not leave its VMs to the tests after it."""
    pids = [int(process.split(":")[0]) for process in processes]
    inside = [child for pid in pids for child in read_children(pid)]  # of sandboxes
    for pid in inside + pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    memory = root / "run/memory"
    if os.path.ismount(memory):
        subprocess.run(["umount", "--lazy", str(memory)], check=True)


def find_processes(root: Path) -> list[str]:
    """Processes whose command line names a folder of the test."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(root) in command and "pytest" not in command:
            found.append(f"{path.parent.name}: {command[:120]}")
    return found


@pytest.fixture
def scratch(folders: Directories) -> Path:
    """A disk image of this test alone."""
    return make_scratch(folders)


def make_scratch(folders: Directories) -> Path:
    """A 64 MiB disk image full of a known pattern: sector n holds n, 64 times."""
    path = folders.state / "scratch.raw"
    with path.open("wb") as file:
        for sector in range(64 << 11):
            file.write(sector.to_bytes(8, "little") * 64)
    return path


@pytest.fixture
def host(folders: Directories, capabilities: HostCapabilities) -> Iterator[ServiceHost]:
    """A service that is there before and after the test; all VMs are deleted by the test itself."""
    made = ServiceHost(folders)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in made.environment.items():
            patch.setenv(name, value)
        made.start()
        yield made
        made.start()
        left = [vm["record"]["name"] for vm in made.get("/v1/vms")["items"]]
        for name in left:
            for process in made.get(vm_path(name))["status"]["processes"]:
                kill_and_wait(process["pid"])
        made.end()
    assert left == []


@asynccontextmanager
async def booting(folders: Directories, image: Image, capabilities: HostCapabilities) -> AsyncIterator[Boot]:
    """Boot guests of an image, ended at the end: ``await boot(design, **specification)``."""
    async with AsyncExitStack() as stack:

        async def start(design: str, tell: Tell = ignore_driver_events, **document: Any) -> Guest:
            full = {"name": f"t-{design[:5]}", "memory_mib": 256, "design": design, **document}
            spec = build_spec(add_image(full, image))
            machine = await stack.enter_async_context(start_machine(spec, capabilities, folders, tell=tell))
            probe = await stack.enter_async_context(connect_probe(machine.port_path(PORT_NAME)))
            waiting = asyncio.create_task(probe.wait_booted(BOOT_TIMEOUT_S))
            lost = asyncio.create_task(machine.current.wait_device_lost())
            done, _ = await asyncio.wait({waiting, lost}, return_when=asyncio.FIRST_COMPLETED)
            lost.cancel()
            if waiting not in done:
                raise lost.result()
            return Guest(machine, probe, waiting.result())

        yield start


@pytest_asyncio.fixture
async def boot(
    folders: Directories, probe_image: Image, capabilities: HostCapabilities
) -> AsyncIterator[Boot]:
    """Boot guests of this test alone."""
    async with booting(folders, probe_image, capabilities) as start:
        yield start
