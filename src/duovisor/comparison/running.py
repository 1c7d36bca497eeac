"""One run of a comparison on this host: folders, network, guests, and the steps that are left."""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from duovisor.comparison.campaign import run_campaign
from duovisor.comparison.interruption import handle_signals
from duovisor.comparison.measures.context import Context
from duovisor.comparison.measures.faults import GONE_S
from duovisor.comparison.measures.table import MEASURES
from duovisor.comparison.own_network import try_own_network
from duovisor.comparison.rig import Rig
from duovisor.comparison.sidelined import SidelinedService
from duovisor.comparison.sweeper import sweeping
from duovisor.controlling.images.errors import GuestGoneError
from duovisor.directories import Directories

if TYPE_CHECKING:
    from duovisor.comparison.campaign import Tell
    from duovisor.comparison.measures.context import Figures
    from duovisor.comparison.plan import Step
    from duovisor.comparison.samples import SampleStore
    from duovisor.controlling.images.image import Image
    from duovisor.errors import DuovisorError
    from duovisor.hardware.capabilities import HostCapabilities


def run_comparison(
    store: SampleStore, directories: Directories, capabilities: HostCapabilities, image: Image, tell: Tell
) -> None:
    """Do what is left of a comparison; nothing of it is on the host afterwards but the store's folder.

    Raises ``KeyboardInterrupt`` at SIGINT, SIGTERM and SIGHUP. To be called from the main thread.
    """
    directories.state.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        # short: the path of a Unix socket has 107 bytes
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dvc-", dir="/tmp")))
        root.chmod(0o755)
        disks = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="comparison-", dir=directories.state))
        )
        disks.chmod(0o755)
        stack.enter_context(sweeping(root, disks))
        problem = stack.enter_context(try_own_network())
        service = SidelinedService(root, directories.cache)
        stack.callback(service.close)
        own = Directories(state=disks, runtime=root / "rig", cache=directories.cache)
        rig = Rig(own, capabilities, image, disks, no_network=problem)
        asyncio.run(_run(store, rig, service, tell))


async def _run(store: SampleStore, rig: Rig, service: SidelinedService, tell: Tell) -> None:
    handle_signals()
    context = Context(store.header.scale, rig, service)
    try:
        async with rig:
            await run_campaign(store, partial(run_step, context), partial(recover, context), tell)
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


async def run_step(context: Context, step: Step) -> Figures:
    """One measurement. Raises a ``DuovisorError`` where it fails."""
    return await MEASURES[step.measure](context, step.design)


async def recover(context: Context, step: Step, error: DuovisorError) -> str:
    """Leave the guest behind in which something failed: the next step begins with a fresh one."""
    wait_s = GONE_S if isinstance(error, GuestGoneError) else 0.0  # its line goes before its VMM does
    dead = await context.rig.find_dead(step.design, wait_s)
    said = error.message if dead is None else f"the guest died: its VMM {dead.describe_end()}"
    await context.rig.drop(step.design)
    return said
