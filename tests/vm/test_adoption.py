"""VMs and their drivers outlive the service: killed with -9, its successor adopts them, in both designs."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import TYPE_CHECKING

import pytest
from tests.unit.vms.killed_manager import NAME, Trials, run_trials
from tests.vm.adopting import adopting
from tests.vm.service_host import BOOT_TIMEOUT_S

from duovisor.controlling.description import load_description
from duovisor.controlling.images.boot import add_image
from duovisor.controlling.images.probe import PORT_NAME
from duovisor.controlling.images.probe_client import connect_probe
from duovisor.controlling.images.storage_jobs import run_verify
from duovisor.controlling.vms.records import VmStatus
from duovisor.hypervisor.lifecycle import State
from duovisor.spec.loading import build_spec
from duovisor.spec.vm import Design, VirtualMachineSpec

if TYPE_CHECKING:
    from pathlib import Path

    from duovisor.controlling.images.image import Image
    from duovisor.directories import Directories
    from duovisor.hardware.capabilities import HostCapabilities

pytestmark = pytest.mark.vm
both_designs = pytest.mark.parametrize("design", list(Design))

# a service that starts one VM, tells its processes when the spares are there, and stays until it is killed
SERVICE = """
import asyncio, json, sys
from pathlib import Path
from duovisor.controlling.store.sqlite import open_sqlite_store
from duovisor.controlling.vms.manager import VmManager
from duovisor.controlling.vms.records import Autostart
from duovisor.directories import Directories
from duovisor.spec.loading import build_spec

async def serve(state, runtime, cache, document):
    directories = Directories(Path(state), Path(runtime), Path(cache))
    async with open_sqlite_store(directories.state / "store.sqlite") as store:
        manager = VmManager(store, directories, lambda event: None)
        await manager.open()
        await manager.recover()
        spec = build_spec(json.loads(document))
        await manager.create(spec, Autostart())
        await manager.start(spec.name)
        while not all(each.spare_pid for each in (await manager.get(spec.name)).status.drivers):
            await asyncio.sleep(0.05)
        print((await manager.get(spec.name)).status.model_dump_json(), flush=True)
        await asyncio.Event().wait()

asyncio.run(serve(*sys.argv[1:]))
"""


async def run_service(directories: Directories, spec: VirtualMachineSpec) -> VmStatus:
    """Start a VM with a service, kill that with -9, and return how the VM was then."""
    service = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SERVICE, *map(str, directories), spec.model_dump_json(),
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert service.stdout is not None
    try:
        async with asyncio.timeout(BOOT_TIMEOUT_S):
            line = await service.stdout.readline()
    finally:
        service.kill()
        await service.wait()
    return VmStatus.model_validate(json.loads(line))


def build_probe_vm(design: Design, image: Image, disk: Path) -> VirtualMachineSpec:
    document = {
        "name": NAME,
        "design": design,
        "memory_mib": 256,
        "disks": [{"path": str(disk)}],
        "nics": [{}],
    }
    return build_spec(add_image(document, image))


def list_actives(status: VmStatus) -> list[tuple[str, int | None, int]]:
    return [(driver.device, driver.pid, driver.deaths) for driver in status.drivers]


@both_designs
async def test_a_successor_adopts(
    folders: Directories, probe_image: Image, scratch: Path, design: Design
) -> None:
    spec = build_probe_vm(design, probe_image, scratch)
    before = await run_service(folders, spec)
    assert (before.state, len(before.drivers)) == (State.RUNNING, 2 if design == "microkernelized" else 0)
    port = folders.vms / NAME / "current/port0.sock"
    assert spec.ports == (PORT_NAME,)
    async with connect_probe(port) as guest:
        await guest.wait_booted(BOOT_TIMEOUT_S)  # nobody owns the VM now, and it runs
        done = await guest.run("echo written | dd of=/dev/vda conv=fsync,sync bs=512", timeout_s=120)
        assert done.exit == 0
    for _ in range(2):  # a service after the other
        async with adopting(folders) as manager:
            status = (await manager.get(NAME)).status
            assert list_actives(status) == list_actives(before)
            changing = {"faults": (), "drivers": (), "processes": ()}  # spares come and go
            assert status.model_copy(update=changing) == before.model_copy(update=changing)
            assert (await manager.anatomy(NAME)).processes[0].pid == os.getpid()
            await manager.pause(NAME)
            assert (await manager.get(NAME)).status.state is State.PAUSED
            await manager.resume(NAME)
            async with connect_probe(port) as guest:
                assert await run_verify(guest, "/dev/vda", size_mib=8) == "ok"
    async with adopting(folders) as manager:
        await manager.reset(NAME)
        async with connect_probe(port) as guest:
            await guest.wait_booted(BOOT_TIMEOUT_S)
        await manager.shutdown(NAME)
        status = (await manager.get(NAME)).status
        assert (status.state, status.faults) == (State.STOPPED, ())
        await manager.start(NAME)  # the disk is free again
        await manager.stop(NAME)
        assert load_description(folders.vms / NAME) is None


@both_designs
def test_killed_while_it_starts_and_stops(
    folders: Directories, probe_image: Image, scratch: Path, capabilities: HostCapabilities, design: Design
) -> None:
    """With real VMMs, drivers and sandboxes; a guest that has not booted ignores the power button."""
    root = folders.state.parent
    spec = build_probe_vm(design, probe_image, scratch)
    trials = Trials(root, capabilities, spec, shutdown_timeout_s=0.2)
    outcome = run_trials(trials, ("moments", "20", "0.8"))
    assert outcome["violations"] == []
    assert outcome["killed"] > 5
