"""A VM moves while its service is killed with -9: the next one finishes the move, or takes it back."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

import pytest
from tests.unit.vms.killed_manager import NAME
from tests.vm.adopting import adopting
from tests.vm.service_host import BOOT_TIMEOUT_S
from tests.vm.test_move import build_disks

from duovisor.controlling.images.boot import add_image
from duovisor.controlling.images.probe_client import connect_probe
from duovisor.controlling.images.storage_jobs import run_verify
from duovisor.controlling.moving.report import Step
from duovisor.hypervisor.lifecycle import State
from duovisor.spec.loading import build_spec
from duovisor.spec.vm import Design

if TYPE_CHECKING:
    from pathlib import Path

    from duovisor.controlling.images.image import Image
    from duovisor.directories import Directories

pytestmark = pytest.mark.vm

# a service that adopts or starts a VM, begins to move it, and kills itself at a step or after some time
SERVICE = """
import asyncio, json, os, signal, sys, threading
from pathlib import Path
from duovisor.controlling.moving.move import move
from duovisor.controlling.store.sqlite import open_sqlite_store
from duovisor.controlling.vms.manager import VmManager
from duovisor.controlling.vms.records import Autostart
from duovisor.directories import Directories
from duovisor.hardware.capabilities import read_capabilities
from duovisor.spec.loading import build_spec
from duovisor.spec.vm import Design

def die():
    os.kill(os.getpid(), signal.SIGKILL)

async def serve(state, runtime, cache, document, design, when):
    directories = Directories(Path(state), Path(runtime), Path(cache))
    async with open_sqlite_store(directories.state / "store.sqlite") as store:
        manager = VmManager(store, directories, lambda event: None)
        await manager.open()
        await manager.recover()
        spec = build_spec(json.loads(document))
        if not (await manager.list()).items:
            await manager.create(spec, Autostart())
            await manager.start(spec.name)
        if not design:
            die()
        machine = manager._host.find_by_name(spec.name).machine
        if when.replace(".", "").isdigit():
            threading.Timer(float(when), die).start()
        await move(machine, Design(design), read_capabilities(directories.cache),
                   lambda step: die() if step == when else None)
        await asyncio.Event().wait()

asyncio.run(serve(*sys.argv[1:]))
"""


async def run_killed_service(directories: Directories, document: str, design: str, when: str) -> None:
    service = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SERVICE, *map(str, directories), document, design, when
    )
    async with asyncio.timeout(BOOT_TIMEOUT_S):
        assert await service.wait() == -9


async def test_killed_at_every_step(folders: Directories, probe_image: Image, scratch: Path) -> None:
    document = {
        "name": NAME,
        "design": "monolithic",
        "memory_mib": 256,
        "disks": build_disks(scratch)[0],
    }
    text = build_spec(add_image(document, probe_image)).model_dump_json()
    await run_killed_service(folders, text, "", "")
    port = folders.vms / NAME / "current/port0.sock"
    async with connect_probe(port) as guest:
        await guest.wait_booted(BOOT_TIMEOUT_S)
        await guest.run("echo here > /tmp/mark", timeout_s=120)
    design = Design.MONOLITHIC
    for when in (Step.START, Step.LOAD, Step.END, Step.GO, "0.2", "0.3"):
        (other,) = {*Design} - {design}
        await run_killed_service(folders, text, other, when)
        async with adopting(folders) as manager:
            status = (await manager.get(NAME)).status
            assert (status.state, status.faults) == (State.RUNNING, ()), when
            now = (await manager.anatomy(NAME)).design
            if isinstance(when, Step):
                assert now == (other if when is Step.END else design), when
            design = now
            run_folders = [path.name for path in (folders.vms / NAME).iterdir() if path.is_dir()]
            assert len(run_folders) == 2, run_folders  # the incarnation's, and the link to it
            async with connect_probe(port) as guest:
                assert (await guest.run("cat /tmp/mark", timeout_s=120)).output == b"here\n", when
                assert await run_verify(guest, "/dev/vda", size_mib=1) == "ok", when
                assert await run_verify(guest, "/dev/vdb", size_mib=1) == "ok", when
    async with adopting(folders) as manager:
        await manager.stop(NAME)
