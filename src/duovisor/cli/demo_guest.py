"""One VM of the demo: a throw-away VM of the service, and the conversation with its guest on this host."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from duovisor.cli.throwaway import throwaway_vm
from duovisor.cli.vm_anatomy import build_anatomy
from duovisor.client.errors import ApiError
from duovisor.client.service import vm_path
from duovisor.controlling.images.probe import PORT_NAME
from duovisor.controlling.images.probe_client import connect_probe
from duovisor.controlling.probe_vm import BOOT_TIMEOUT_S, build_probe_spec, measure_guest
from duovisor.hypervisor.qemu.console import port_socket
from duovisor.spec.vm import Accelerator

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from duovisor.client.events import EventStream
    from duovisor.client.service import ServiceClient
    from duovisor.controlling.anatomy import Anatomy
    from duovisor.controlling.images.image import Image
    from duovisor.controlling.images.storage_jobs import StorageFigures
    from duovisor.spec.vm import Design, VirtualMachineSpec

T = TypeVar("T")

FATAL = frozenset({"vm.fault", "vm.crashed", "vm.stopped"})


class DesignResult(NamedTuple):
    """What one design came to: seconds from start to the guest's signal, figures, and who did it."""

    boot_s: float
    figures: StorageFigures
    anatomy: Anatomy


def build_demo_spec(
    design: Design, image: Image, scratch: Path, cpus: int, accelerator: Accelerator
) -> VirtualMachineSpec:
    """The demo's VM. On KVM it has no card, as the thin VMM has no user networking; auto picks it then."""
    spec = build_probe_spec(f"demo-{design}", design, image, scratch, cpus)
    return spec.model_copy(update={"nics": ()}) if accelerator is Accelerator.KVM else spec


def measure_design(
    client: ServiceClient,
    spec: VirtualMachineSpec,
    *,
    runtime_s: float,
    progress: Callable[[str], None],
    on_booted: Callable[[Anatomy, float], None],
) -> DesignResult:
    """Boot one VM, look at its anatomy, verify and measure its scratch disk, shut it down.

    Raises ``ApiError``, also when a driver partition is lost meanwhile, and what the guest's client raises.
    """
    progress("boot")
    port = find_port(client, spec)
    started = time.monotonic()
    with throwaway_vm(client, spec, quiet=True) as after, client.open_events(after=after) as events:

        async def work() -> DesignResult:
            async with connect_probe(port) as guest:
                await guest.wait_booted(BOOT_TIMEOUT_S)
                boot_s = time.monotonic() - started
                anatomy = build_anatomy(client.get(f"{vm_path(spec.name)}/anatomy"))
                on_booted(anatomy, boot_s)
                figures = await measure_guest(guest, runtime_s=runtime_s, progress=progress)
                return DesignResult(boot_s, figures, anatomy)

        result = asyncio.run(unless_lost(work(), events, f"vm/{spec.name}"))
        progress("shutdown")
        client.follow(client.act(spec.name, "shutdown"))
    return result


def find_port(client: ServiceClient, spec: VirtualMachineSpec) -> Path:
    """Where the socket of the guest's port will be."""
    folder = Path(client.get("/v1/service")["runtime_folder"])
    return folder / "vms" / spec.name / "current" / f"{port_socket(spec.ports.index(PORT_NAME))}.sock"


async def unless_lost(work: Coroutine[Any, Any, T], events: EventStream, vm: str) -> T:
    """The result of the work; it is ended when the VM ends or loses a driver. Raises ``ApiError``."""
    loop = asyncio.get_running_loop()
    lost: asyncio.Future[str] = loop.create_future()

    def hear() -> None:
        for message in events.read():
            event = message.document
            if event.get("object") == vm and event["action"] in FATAL and not lost.done():
                lost.set_result(event["message"] or event["action"])
        if events.is_ended:
            loop.remove_reader(events)  # the VM runs on without the service, and the work with it

    task = asyncio.create_task(work)
    loop.add_reader(events, hear)
    if events.has_more:
        hear()
    ends: tuple[asyncio.Future[Any], ...] = (task, lost)
    try:
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError("partition-failed", lost.result())
        return task.result()
    finally:
        loop.remove_reader(events)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
