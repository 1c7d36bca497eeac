"""One running VMM process: carries out a launch plan and follows the machine's life.

The order of a start matters: ``prepare`` binds the sockets, so that drivers may connect; ``launch`` starts
the process, which waits for its drivers; ``run`` greets it over QMP and lets the processors go. Between
``greet`` and ``go`` one that succeeds another is given that one's state.
``detach`` leaves it running, and ``adopt`` takes over what another process left so.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from typing import TYPE_CHECKING, Any

from duovisor import process
from duovisor.hypervisor import drives, memory_modules, plugging, screen
from duovisor.hypervisor.errors import HypervisorError, QmpTimeoutError, VmmGoneError, VmmStartError
from duovisor.hypervisor.lifecycle import ENDED, Lifecycle, State
from duovisor.hypervisor.migration import handover
from duovisor.hypervisor.qemu.console import CONSOLE_LOG, QMP_SOCKET
from duovisor.hypervisor.qemu.nics import nic_backend
from duovisor.hypervisor.qmp import Qmp
from duovisor.hypervisor.thin_plan import STATE
from duovisor.hypervisor.vmm_devices import LIVE, VmmDevices
from duovisor.hypervisor.vmm_files import create_channels_folder, open_console_log, open_files
from duovisor.sandbox import build_sandbox_argv, find_scratch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Mapping
    from pathlib import Path

    from duovisor.hypervisor.plan import LaunchPlan
    from duovisor.hypervisor.thin_spare import Spare
    from duovisor.process import Record
    from duovisor.sandbox import SandboxTools

    TakeSpare = Callable[[LaunchPlan, SandboxTools], Spare]

CHANNELS = "channels"
START_TIMEOUT_S = 30.0
LAST_EVENTS_TIMEOUT_S = 2.0  # a dead VMM's socket is closed: only a host out of breath needs more
END_TIMEOUT_S = 2.0
NO_TAPS: Mapping[str, int] = {}
# QEMU's RunState (qapi/run-state.json) of a VMM that has run its guest
STATES = {
    "running": State.RUNNING,
    "suspended": State.RUNNING,
    "paused": State.PAUSED,
    "prelaunch": State.PAUSED,  # a reset while paused leads there too; never adopted before its first run
    "debug": State.PAUSED,
    "io-error": State.PAUSED,
    "internal-error": State.PAUSED,
    "guest-panicked": State.PAUSED,
    "watchdog": State.PAUSED,
    "postmigrate": State.PAUSED,  # its devices' state was saved for another VMM, which did not go on
    "shutdown": State.STOPPING,
}
SAVING = "finish-migrate"
SAVING_POLL_S = 0.01


class Vmm(VmmDevices):
    """A VMM process and the life cycle of its machine."""

    def __init__(self, plan: LaunchPlan, run_dir: Path, tools: SandboxTools | None = None) -> None:
        self.plan = plan
        self.run_dir = run_dir
        self.lifecycle = Lifecycle(plan.name)
        self.process: process.Process | None = None
        self._tools = tools
        self._qmp = Qmp(plan.name)
        self._listeners: dict[str, socket.socket] = {}
        self._follower: asyncio.Task[None] | None = None
        self._killed = False
        self.ran_on_s = 0.0
        self._waiting: handover.Waiting | None = None
        self._unplugged = plugging.Unplugged()
        self.on_unplugged: Callable[[str], None] = lambda device: None
        self.on_full: Callable[[str], None] = lambda device: None
        self.on_memory_told: Callable[[], None] = lambda: None

    @property
    def state(self) -> State:
        return self.lifecycle.state

    @property
    def owner(self) -> int | None:
        """The uid under which a sandboxed VMM runs; ``None``: as this process."""
        sandbox = self.plan.sandbox
        return sandbox.uid if sandbox and self._tools and self._tools.as_root else None

    @property
    def version(self) -> str:
        """The version of a VMM that was greeted, with its package."""
        return self._qmp.version

    def socket_path(self, name: str) -> Path:
        """Where the plan's socket ``name`` is bound."""
        if name not in self.plan.bound:
            return self.run_dir / f"{name}.sock"
        path = self.run_dir / CHANNELS / f"{name}.sock"
        return path if self.process is None else find_scratch(self.process.pid, path)

    def prepare(self) -> None:
        """Bind the sockets; the memory file is there. Raises ``HypervisorError``; ``clean_up`` undoes it."""
        if self.plan.sandbox is not None:  # also for cards that are plugged in later
            create_channels_folder(self.run_dir / CHANNELS, self.owner)
        for name in self.plan.sockets:
            self._bind(name)

    def _bind(self, name: str) -> None:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listeners[name] = listener
        try:
            listener.bind(str(self.socket_path(name)))
        except OSError as error:
            raise HypervisorError(
                f"cannot bind {self.socket_path(name)}: {error}",
                remedy="choose a shorter DUOVISOR_RUNTIME_DIR" if "too long" in str(error) else "",
            ) from error
        listener.listen(4)

    def launch(
        self,
        console_log: Path,
        *,
        die_with_owner: bool,
        record: Record | None = None,
        taps: Mapping[str, int] = NO_TAPS,
        take_spare: TakeSpare | None = None,
    ) -> None:
        """Start the process, which appends what its guest prints to ``console_log`` and inherits ``taps``.

        ``die_with_owner``: it ends with this one. ``record`` is told of it before its program begins.
        ``take_spare`` gives a process that waits for such a plan. Raises ``ProgramNotFoundError``,
        ``VmmStartError``, ``HypervisorError`` when the log or a file cannot be opened.
        """
        self.lifecycle.enter(State.STARTING)
        with open_console_log(console_log) as log, open_files(self.plan.files) as files:
            descriptors = {name: listener.fileno() for name, listener in self._listeners.items()}
            descriptors |= {CONSOLE_LOG: log, **files, **taps}
            if self.plan.sandbox is not None and self._tools is not None and take_spare is not None:
                spare = take_spare(self.plan, self._tools)
                self.process = spare.assign(self.plan, descriptors, self.run_dir / "vmm.log", record)
                if die_with_owner:
                    self.process.guard()
                self._close_listeners()
                return
            self.process = process.start(
                self._full_argv(descriptors),
                role="vmm",
                log=self.run_dir / "vmm.log",
                pass_fds=tuple(descriptors.values()),
                sandboxed=self.plan.sandbox is not None,
                die_with_owner=die_with_owner,
                record=record,
            )
        self._close_listeners()

    def _full_argv(self, descriptors: dict[str, int]) -> tuple[str, ...]:
        argv = self.plan.resolve_argv(descriptors)
        if self.plan.sandbox is not None and self._tools is not None:
            return build_sandbox_argv(self.plan.sandbox, self._tools, argv)
        return argv

    async def run(self) -> None:
        """Greet the VMM and start the processors. Raises ``VmmStartError`` with its last words."""
        await self.greet()
        await self.go()

    async def greet(self) -> None:
        """Connect to a VMM that was launched and follow it. Raises ``VmmStartError`` with its last words."""
        assert self.process is not None
        async with self._starting(self.process):
            await self._greet(self.process)
            self._follower = asyncio.create_task(self._follow())

    async def go(self) -> None:
        """Start the processors of a VMM that was greeted; its guest may have ended when this returns.

        Raises ``VmmStartError``, ``QmpError``.
        """
        assert self.process is not None
        async with self._starting(self.process):
            await self._qmp.cont()
            has_ended = await self._wait_told(LIVE, "start") in ENDED
            if has_ended and State.RUNNING not in self.lifecycle.history:
                raise self._start_error(self.process)

    @contextlib.asynccontextmanager
    async def _starting(self, started: process.Process) -> AsyncIterator[None]:
        """Says why a VMM ended that was to start. Raises ``VmmStartError``."""
        try:
            yield
        except VmmGoneError:
            # a process that ends closes its sockets before the kernel reports its end
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(END_TIMEOUT_S):
                    await started.wait()
            if started.returncode is None:
                raise
            raise self._start_error(started) from None

    async def _greet(self, started: process.Process) -> None:
        """Connect to QMP, or see the process end."""
        greeting = asyncio.create_task(
            self._qmp.connect(self.socket_path(QMP_SOCKET), timeout_s=START_TIMEOUT_S)
        )
        ended = asyncio.create_task(started.wait())
        try:
            await asyncio.wait({greeting, ended}, return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                raise self._start_error(started)
            await greeting
        finally:
            for task in (greeting, ended):
                task.cancel()
            await asyncio.gather(greeting, ended, return_exceptions=True)

    def _start_error(self, ended: process.Process) -> VmmStartError:
        if self.state not in ENDED:
            self.lifecycle.enter(State.CRASHED)
        return VmmStartError(f"{self.plan.name}: {ended.failure().message}")

    async def adopt(self, found: process.Process) -> None:
        """Take over a VMM that has run its guest.

        Raises ``VmmStartError`` in a state without a guest, ``VmmGoneError``, ``QmpTimeoutError`` or
        ``QmpError``.
        """
        self.process = found
        self.lifecycle.enter(State.STARTING)
        await self._qmp.connect(self.socket_path(QMP_SOCKET))
        while (status := await self._qmp.query_status()) == SAVING:  # noqa: ASYNC110
            await asyncio.sleep(SAVING_POLL_S)  # for somebody who has died
        if status not in STATES:
            raise VmmStartError(f"{self.plan.name}: the VMM runs no guest, it is in {status}")
        self.lifecycle.enter(STATES[status])
        self._follower = asyncio.create_task(self._follow())  # with the events since the connection

    async def detach(self) -> None:
        """Let go of the VMM, which goes on; this object is of no use any more."""
        if self._follower is not None:
            self._follower.cancel()
            await asyncio.gather(self._follower, return_exceptions=True)
        await self._qmp.disconnect()
        self._close_listeners()
        if self.process is not None:
            self.process.release()

    async def _follow(self) -> None:
        """Drive the life cycle by what QMP and the kernel report, until the process has ended."""
        assert self.process is not None
        ended = asyncio.create_task(self.process.wait())
        event = asyncio.create_task(self._qmp.next_event())
        try:
            while not ended.done():
                await asyncio.wait({event, ended}, return_when=asyncio.FIRST_COMPLETED)
                if event.done():
                    self._on_event(*event.result())
                    event = asyncio.create_task(self._qmp.next_event())
            event.cancel()
            with contextlib.suppress(TimeoutError):
                await self._qmp.wait_closed(timeout_s=LAST_EVENTS_TIMEOUT_S)
            for name, data in self._qmp.pending_events():
                self._on_event(name, data)
            # how an adopted one ended, its parent alone was told: what it said last must do
            said_goodbye = ended.result() is None and self.state is State.STOPPING
            clean = ended.result() == 0 or self._killed or said_goodbye
            if self.state not in ENDED:
                self.lifecycle.enter(State.STOPPED if clean else State.CRASHED)
        finally:
            ended.cancel()
            event.cancel()

    def _on_event(self, name: str, data: dict[str, Any]) -> None:
        if name in (plugging.DELETED, plugging.REFUSED) and "device" in data:
            gone, device = name == plugging.DELETED, str(data["device"])
            self._unplugged.tell(device, gone=gone)
            if gone:
                self.on_unplugged(device)
        if self.state in ENDED or self.state is State.STOPPING:
            return
        if name == memory_modules.TOLD:
            self.on_memory_told()
        if name == "BLOCK_IO_ERROR" and data.get("nospace") and data.get("action") == "stop":
            self.on_full(str(data.get("node-name", "")).partition("-")[0])
        match name:
            case "RESUME":
                self.lifecycle.enter(State.RUNNING)
            case "STOP":
                self.lifecycle.enter(State.PAUSED)
            case "SHUTDOWN":
                self.lifecycle.enter(State.STOPPING)

    async def _wait_told(self, states: Collection[State], action: str) -> State:
        """Wait for the event that a command brings about. Raises ``QmpTimeoutError``."""
        try:
            return await self.lifecycle.wait_for(states, timeout_s=START_TIMEOUT_S)
        except TimeoutError as error:
            raise QmpTimeoutError(
                f"{self.plan.name}: the VMM took the order to {action} but did not tell of it within "
                f"{START_TIMEOUT_S:g} s; outcome unknown"
            ) from error

    async def pause(self) -> None:
        """Stop the processors. Raises ``WrongStateError``."""
        self.lifecycle.require({State.RUNNING}, "pause")
        await self._qmp.stop()
        await self._wait_told({State.PAUSED}, "pause")

    async def resume(self) -> None:
        """Let the processors go on. Raises ``WrongStateError``."""
        self.lifecycle.require({State.PAUSED}, "resume")
        await self._qmp.cont()
        await self._wait_told({State.RUNNING}, "resume")

    async def go_on(self) -> None:
        """Let the processors run, whether or not they were stopped. Raises ``WrongStateError``."""
        self.lifecycle.require(LIVE, "go on")
        await self._qmp.cont()
        await self._wait_told({State.RUNNING, *ENDED}, "go on")

    async def reset(self) -> None:
        """Press the reset button. Raises ``WrongStateError``."""
        self.lifecycle.require(LIVE, "reset")
        await self._qmp.system_reset()

    async def press_power_button(self) -> None:
        """Ask the guest to shut down, as the ACPI power button does. Raises ``WrongStateError``."""
        self.lifecycle.require({State.RUNNING}, "shut down")
        await self._qmp.system_powerdown()

    async def read_disk_sizes(self) -> dict[str, int]:
        """The size in bytes of each disk whose driver is in the VMM, by the disk's name."""
        return await self._qmp.query_node_sizes()

    async def read_disk_threads(self) -> dict[str, int]:
        """The host's thread ids of the threads that serve disks in the VMM, by the threads' names."""
        return await self._qmp.query_iothreads()

    async def resize_disk(self, disk: str, size_bytes: int) -> None:
        """Make a disk larger whose driver is in the VMM. Raises ``WrongStateError`` or ``QmpError``."""
        self.lifecycle.require(LIVE, "resize a disk of")
        await self._qmp.block_resize(disk, size_bytes)

    async def prepare_to_move(self) -> None:
        """Have the VMM ready to save or load its devices' state; its guest does not notice.

        Raises ``HandoverError`` for one that cannot, ``QmpError``, ``QmpTimeoutError`` or ``VmmGoneError``.
        """
        await handover.prepare(self._qmp)

    async def save_state(self) -> bytes:
        """The state of a running machine's devices; it stands still then, its VMM has let go of its images.

        ``ran_on_s`` tells for how long it ran on before it was stopped, while its VMM made ready. ``go_on``
        lets it go on, also after a failure. Raises ``WrongStateError``, and as ``prepare_to_move``.
        """
        self.lifecycle.require({State.RUNNING}, "save the state of")
        ordered_at = time.time()
        stream = await handover.save(self._qmp)
        self.ran_on_s = max(0.0, self._qmp.migration_active_at - ordered_at)
        return stream

    async def await_state(self) -> None:
        """Have a greeted successor wait for another's state. Raises as ``prepare_to_move``."""
        assert self.process is not None
        self._waiting = await handover.await_state(self._qmp, last_words=self.process.last_words)

    async def load_state(self, stream: bytes) -> None:
        """Give a successor that waits the state of another's devices. Raises as ``prepare_to_move``."""
        assert self._waiting is not None
        try:
            await self._waiting.load(stream)
        finally:
            self._waiting.close()

    async def write_state(self, descriptor: int) -> None:
        """Have a paused thin VMM write its machine's state, without the memory, to an open file.

        Raises ``WrongStateError``, ``QmpError``, ``QmpTimeoutError`` or ``VmmGoneError``.
        """
        self.lifecycle.require({State.PAUSED}, "save the state of")
        await self._qmp.getfd(STATE, descriptor)
        await self._qmp.save_machine(STATE)

    async def open_screen(self) -> socket.socket:
        """A connection to the VNC server of one that has a screen; see ``hypervisor.screen``.

        Raises ``WrongStateError`` or ``QmpError``.
        """
        self.lifecycle.require(LIVE, "look at the screen of")
        return await screen.open_screen(self._qmp)

    async def take_picture(self) -> bytes:
        """What its screen shows, as PNG. Raises ``WrongStateError`` or ``QmpError``."""
        self.lifecycle.require(LIVE, "look at the screen of")
        return await screen.take_picture(self._qmp)

    async def eject_medium(self, drive: str, node: str, *, force: bool) -> None:
        """Empty a CD-ROM drive, in which ``node`` may be.

        Raises ``WrongStateError``, ``TrayLockedError`` with everything as it was, or ``QmpError``.
        """
        self.lifecycle.require(LIVE, "change a CD-ROM of")
        await drives.eject(self._qmp, drive, node, force=force)

    async def insert_medium(self, drive: str, medium: dict[str, Any]) -> None:
        """Put a medium into an empty CD-ROM drive. Raises ``WrongStateError`` or ``QmpError``."""
        self.lifecycle.require(LIVE, "change a CD-ROM of")
        await drives.insert(self._qmp, drive, medium)

    async def set_link(self, nic: str, *, up: bool) -> None:
        """Plug the cable of a network card in or out. Raises ``WrongStateError`` or ``QmpError``."""
        self.lifecycle.require(LIVE, "set a link")
        await self._qmp.set_link(nic_backend(nic), up=up)

    async def wait_ended(self, *, timeout_s: float | None = None) -> State:
        """Wait until the machine has stopped or crashed. Raises ``TimeoutError``."""
        return await self.lifecycle.wait_for(ENDED, timeout_s=timeout_s)

    async def ends_within(self, timeout_s: float) -> bool:
        """Whether the machine has stopped or crashed, or does within that time."""
        try:
            await self.wait_ended(timeout_s=timeout_s)
        except TimeoutError:
            return False
        return True

    async def kill(self) -> None:
        """End the process at once; what the guest had not written is lost, as by a pulled plug."""
        if self.process is None or self.state in ENDED:
            return
        self._killed = True
        if self.state in LIVE:
            self.lifecycle.enter(State.STOPPING)
        await self.process.kill()
        if self._follower is not None:
            await self.wait_ended()
        else:
            self.lifecycle.enter(State.STOPPED)

    async def clean_up(self) -> None:
        """Kill what still runs and remove the sockets."""
        await self.kill()
        if self._waiting is not None:
            self._waiting.close()
        if self._follower is not None:
            with contextlib.suppress(VmmGoneError, asyncio.CancelledError):
                await self._follower
        await self._qmp.disconnect()
        self._close_listeners()
        for name in (*self.plan.sockets, *self.plan.bound):
            self.socket_path(name).unlink(missing_ok=True)

    def _close_listeners(self) -> None:
        for listener in self._listeners.values():
            listener.close()
        self._listeners.clear()
