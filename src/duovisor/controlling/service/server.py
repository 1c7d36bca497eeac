"""One run of duovisord, from the lock on its state folder to the last event.

It starts to listen only when it knows what runs on this host, and stops without touching a VM: operations
get a few seconds to end, then count as interrupted; VMs and their drivers run on.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from duovisor import __version__
from duovisor.controlling.cloning import Cloner
from duovisor.controlling.images.library import Library
from duovisor.controlling.kernel_files import KernelFiles
from duovisor.controlling.networks.lending import Sweeper, lend_all
from duovisor.controlling.networks.networks import Networks
from duovisor.controlling.recovery_report import count_found
from duovisor.controlling.seeds import Seeds
from duovisor.controlling.service.app import build_app
from duovisor.controlling.service.autodestroy import Autodestroy
from duovisor.controlling.service.context import Service
from duovisor.controlling.service.errors import ListenError
from duovisor.controlling.service.events import EventLog, Outcome
from duovisor.controlling.service.gate import Gatekeeper
from duovisor.controlling.service.http_server import build_uvicorn_config, start_http
from duovisor.controlling.service.identity import current_uid, find_gid, service_identity
from duovisor.controlling.service.manager import VmManager
from duovisor.controlling.service.operations import Operations
from duovisor.controlling.service.sockets import (
    SOCKET_NAME,
    make_runtime_folder,
    notify_manager,
    open_https_socket,
    open_unix_socket,
)
from duovisor.controlling.service.tokens import Tokens, utc_now
from duovisor.controlling.storage.lending import Lender
from duovisor.controlling.storage.space_watch import AWAY, LOW, SpaceWatch
from duovisor.controlling.storage.storage import Storage
from duovisor.controlling.store.interface import Store
from duovisor.controlling.store.sqlite import open_sqlite_store
from duovisor.controlling.vms.definitions import Definitions
from duovisor.controlling.vms.records import EventKind, RecoveryReport, VmEvent
from duovisor.controlling.vms.volumes import Lend
from duovisor.directories import Directories

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from duovisor.controlling.service.config import ServiceConfig

STORE_FILE = "store.sqlite"
SEEDS_FOLDER, KERNELS_FOLDER = "seeds", "kernels"
OPERATIONS_GRACE_S = 5.0

Emit = Callable[[VmEvent], None]
MakeManager = Callable[[Store, Directories, Emit, Lend], VmManager]

# who asked for these is known only to the API, which notes them itself
_NOTED_BY_THE_API = frozenset({EventKind.CREATED, EventKind.UPDATED, EventKind.RENAMED, EventKind.DELETED})
_BAD = frozenset(
    {
        EventKind.START_FAILED,
        EventKind.SWITCH_FAILED,
        EventKind.VMM_UPDATE_FAILED,
        EventKind.SNAPSHOT_FAILED,
        EventKind.CRASHED,
        EventKind.FAULT,
    }
)

_log = logging.getLogger("duovisord")


async def serve(
    config: ServiceConfig, directories: Directories, make_manager: MakeManager, stop: asyncio.Event
) -> None:
    """Run the service until ``stop`` is set. Raises ``DuovisorError`` when it cannot start."""
    async with AsyncExitStack() as stack:
        service = await stack.enter_async_context(open_service(config, directories, make_manager))
        app = build_app(service)
        path = directories.runtime / SOCKET_NAME
        listener = stack.enter_context(open_unix_socket(path, find_gid(config.group)))
        await stack.enter_async_context(start_http(build_uvicorn_config(app, None), listener))
        if config.https is not None:
            tls = build_uvicorn_config(app, config.https)
            listener = stack.enter_context(open_https_socket(config.https))
            await stack.enter_async_context(start_http(tls, listener))
            _log.info("listens on https://%s:%d", *listener.getsockname()[:2])
        _log.info("duovisord %s listens on %s", __version__, path)
        _spare_what_stays()
        notify_manager("READY=1")
        await service.autodestroy.open()
        stack.push_async_callback(service.autodestroy.close)
        async with _autostart(service.manager), _space_watch(service):
            await stop.wait()
        notify_manager("STOPPING=1")
        await service.operations.close(grace_s=OPERATIONS_GRACE_S)
        await service.events.wait_written(service.events.last_emitted)
        service.stopping.set()


@asynccontextmanager
async def open_service(
    config: ServiceConfig, directories: Directories, make_manager: MakeManager
) -> AsyncIterator[Service]:
    """Everything but the listening: store, events, operations, tokens, and the VMs found on this host.

    Raises ``StoreInUseError`` when another service has the state folder.
    """
    begun, started_at = time.monotonic(), utc_now()
    make_runtime_folder(directories.runtime)
    _make_state_folder(directories)
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_sqlite_store(directories.state / STORE_FILE))
        events = EventLog(store, kept=config.history.events)
        await events.open()
        stack.push_async_callback(events.close)
        tokens = Tokens(store)
        await tokens.open()
        operations = Operations(store, events, kept=config.history.operations)
        interrupted = await operations.open()
        storage = Storage(store, directories)
        settled = await storage.recover()
        library, seeds = Library(storage, directories), Seeds(directories.state / SEEDS_FOLDER)
        kernels = KernelFiles(directories.state / KERNELS_FOLDER)
        library.sweep()

        networks = Networks(store, directories, lambda name, said: note_server(events, name, said))
        stack.push_async_callback(networks.close)
        made = await networks.recover()
        sweeper = Sweeper(networks)
        stack.push_async_callback(sweeper.close)

        def tell(event: VmEvent) -> None:
            note(events, event)
            seeds.on_event(event)
            kernels.on_event(event)
            sweeper.notice(event)

        lend = lend_all(kernels.around(seeds.around(Lender(storage).lend)), networks.place)
        manager = make_manager(store, directories, tell, lend)
        await manager.open()
        stack.push_async_callback(manager.close)
        recovery = await manager.recover()
        seeds.sweep(recovery.adopted)
        kernels.sweep(recovery.adopted)
        cloner = Cloner(store, storage, Definitions(store), manager.create)
        undone = await cloner.recover()
        who = service_identity().name
        stack.callback(events.emit, who, "service.stop", "service", message="VMs run on")
        events.emit(who, "service.start", "service", message=describe_start(recovery, interrupted))
        if any(settled):
            events.emit(who, "storage.recover", "storage", message=str(settled))
        for name in undone:
            events.emit(who, "vm.clone", f"vm/{name}", Outcome.FAILED, "it was interrupted and undone")
        if any(made):
            outcome = Outcome.FAILED if made.problems else Outcome.DONE
            events.emit(who, "network.recover", "network", outcome, str(made))
        autodestroy = Autodestroy(store, manager, operations, events)
        yield Service(
            manager=manager,
            storage=storage,
            library=library,
            cloner=cloner,
            networks=networks,
            events=events,
            operations=operations,
            autodestroy=autodestroy,
            tokens=tokens,
            gatekeeper=Gatekeeper(tokens, service_uid=current_uid(), admin_gid=find_gid(config.group)),
            directories=directories,
            recovery=recovery,
            started_at=started_at,
            start_s=round(time.monotonic() - begun, 3),
        )


def _spare_what_stays() -> None:
    """Keep the garbage collector from what lives as long as the service, nearly all of it modules.

    To look through it took 40 ms, in which nothing was answered (docs/performance.md).
    """
    gc.collect()
    gc.freeze()


def note(events: EventLog, event: VmEvent) -> None:
    """Keep what the manager says happened to a VM."""
    if event.kind in _NOTED_BY_THE_API:
        return
    outcome = Outcome.FAILED if event.kind in _BAD else Outcome.DONE
    events.emit(service_identity().name, f"vm.{event.kind}", f"vm/{event.name}", outcome, event.message)


def note_server(events: EventLog, network: str, said: str) -> None:
    """Keep what became of a network's DHCP and DNS server."""
    events.emit(service_identity().name, "network.server-died", f"network/{network}", Outcome.FAILED, said)


def describe_start(recovery: RecoveryReport, interrupted: int) -> str:
    """What a start found, in one line; pure."""
    found = count_found(
        ("VMs adopted", recovery.adopted),
        ("ended meanwhile", recovery.ended),
        ("stops finished", recovery.finished),
        ("starts rolled back", recovery.rolled_back),
        ("leftovers removed", recovery.removed),
        ("problems", recovery.problems),
    )
    if interrupted:
        found.append(f"{interrupted} operations interrupted")
    return ", ".join(found) or "nothing ran"


def _make_state_folder(directories: Directories) -> None:
    try:
        directories.state.mkdir(parents=True, exist_ok=True, mode=0o711)
    except OSError as error:
        raise ListenError(
            f"cannot make the folder {directories.state}: {error.strerror}", remedy="set DUOVISOR_STATE_DIR"
        ) from error


@asynccontextmanager
async def _space_watch(service: Service) -> AsyncIterator[None]:
    """Tell when a pool gets full."""

    def tell(action: str, pool: str, message: str) -> None:
        outcome = Outcome.FAILED if action in (AWAY, LOW) else Outcome.DONE
        service.events.emit(service_identity().name, action, f"pool/{pool}", outcome, message)

    task = asyncio.create_task(SpaceWatch(service.storage.pools, tell).run())
    task.add_done_callback(_log_failure)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def _autostart(manager: VmManager) -> AsyncIterator[None]:
    """Start the VMs that start with the host, beside everything else."""
    task = asyncio.create_task(manager.start_autostart_vms())
    task.add_done_callback(_log_failure)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await task


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("the autostart of VMs ended early: %s", error)
