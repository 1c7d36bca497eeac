"""A VM manager without VMs: definitions in memory, and guests that do what their name says.

A VM called ``slow…`` takes a minute to start, ``refusing…`` cannot start, ``faulty…`` meets a fault of ours,
``stubborn…`` does not shut down.
"""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from duovisor.controlling.agent.answers import GuestInfo, GuestInterface
from duovisor.controlling.agent.errors import AgentSilentError
from duovisor.controlling.anatomy import Anatomy, ProcessAnatomy
from duovisor.controlling.description import Duty
from duovisor.controlling.moving.errors import MoveFailedError, MoveRefusedError
from duovisor.controlling.plugging.changes import (
    add_device,
    name_devices,
    place_disk,
    place_nic,
    remove_device,
)
from duovisor.controlling.snapshots.documents import SnapshotView
from duovisor.controlling.snapshots.errors import SnapshotExistsError, SnapshotNotFoundError
from duovisor.controlling.supervision.records import DeviceState, DriverStatus, Replacement
from duovisor.controlling.vms.errors import (
    DeviceNotFoundError,
    GraphicsMissingError,
    RevisionConflictError,
    ShutdownTimeoutError,
    VmNameInUseError,
    VmNotFoundError,
)
from duovisor.controlling.vms.limits import limit_in_spec
from duovisor.controlling.vms.records import (
    Autostart,
    EventKind,
    MoveResult,
    Page,
    ProcessState,
    ProcessStatus,
    Progress,
    RecoveryReport,
    VmEvent,
    VmRecord,
    VmStatus,
    VmView,
    now,
)
from duovisor.controlling.vms.resource_actions import change_spec
from duovisor.hypervisor.errors import UnplugTimeoutError, VmmStartError, WrongStateError
from duovisor.hypervisor.lifecycle import State
from duovisor.spec.vm import Accelerator, Design, DiskSpec, NicSpec, VmmKind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from duovisor.controlling.store.interface import Store
    from duovisor.controlling.vms.volumes import Grow, Lend
    from duovisor.directories import Directories
    from duovisor.spec.cdrom import CdromSpec
    from duovisor.spec.vm import VirtualMachineSpec

SLOW_S = 60.0
NOT_RUNNING = (State.DEFINED, State.STOPPED, State.CRASHED)


def build_move(old: Design, new: Design) -> MoveResult:
    """A VM got another VMM."""
    return MoveResult(
        vmm=VmmKind.QEMU, old_design=old, new_design=new, old_version="7.2.22", new_version="10.0.3",
        old_pid=100, new_pid=200, pause_ms=18.2, total_ms=310.5, stream_bytes=412 << 10,
        step_ms={"start": 250.0, "pause": 1.5},
    )  # fmt: skip


class FakeConsole:
    """Answers every line that is typed with the same in capitals."""

    def __init__(self, name: str) -> None:
        self.scrollback = bytearray(f"{name} login: ".encode())
        self._viewers: list[Callable[[bytes], None]] = []

    def attach(self, show: Callable[[bytes], None]) -> Callable[[], None]:
        show(bytes(self.scrollback))
        self._viewers.append(show)
        return lambda: self._viewers.remove(show)

    def write(self, data: bytes) -> None:
        answer = data.upper()
        self.scrollback += answer
        for show in self._viewers:
            show(answer)


class FakeVmManager:
    """Keeps the manager's contract as far as the API can see it."""

    def __init__(
        self, store: Store, directories: Directories, emit: Callable[[VmEvent], None], lend: Lend
    ) -> None:
        self._emit = emit
        self._vms: dict[str, VmView] = {}
        self._consoles: dict[str, FakeConsole] = {}
        self._screens: set[asyncio.Task[None]] = set()
        self._snapshots: dict[tuple[str, str], SnapshotView] = {}
        self._revision = 100

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def start_autostart_vms(self) -> None: ...

    async def recover(self) -> RecoveryReport:
        return RecoveryReport(adopted=("survivor",))

    async def list(self, limit: int = 100, after: str | None = None) -> Page[VmView]:
        names = [name for name in sorted(self._vms) if after is None or name > after]
        items = tuple(self._vms[name] for name in names[:limit])
        return Page(items=items, after=names[limit - 1] if len(names) > limit else None)

    async def get(self, name: str) -> VmView:
        try:
            return self._vms[name]
        except KeyError:
            raise VmNotFoundError(f"there is no VM {name!r}", remedy="duovisor vm list") from None

    async def create(
        self, spec: VirtualMachineSpec, autostart: Autostart, *, uuid: str | None = None
    ) -> VmView:
        self._require_free(spec.name)
        record = VmRecord(
            name=spec.name,
            uuid=uuid or str(uuid4()),
            spec=spec,
            autostart=autostart,
            created_at=now(),
            revision=self._next_revision(),
        )
        return self._keep(VmView(record=record, status=VmStatus(state=State.DEFINED)))

    async def update(
        self, name: str, spec: VirtualMachineSpec, autostart: Autostart, if_revision: int
    ) -> VmView:
        vm = await self._seen(name, if_revision)
        return self._keep(self._with_record(vm, spec=spec, autostart=autostart))

    async def rename(self, name: str, new: str, if_revision: int) -> VmView:
        vm = await self._seen(name, if_revision)
        self._require_free(new)
        self._require(vm, *NOT_RUNNING)
        del self._vms[name]
        spec = vm.record.spec.model_copy(update={"name": new})
        return self._keep(self._with_record(vm, name=new, spec=spec))

    async def delete(self, name: str, if_revision: int) -> None:
        self._require(await self._seen(name, if_revision), *NOT_RUNNING)
        del self._vms[name]

    async def change_medium(
        self, name: str, drive: int, cdrom: CdromSpec, progress: Progress, *, force: bool
    ) -> None:
        vm = await self.get(name)
        if drive >= len(vm.record.spec.cdroms):
            raise DeviceNotFoundError(f"{name} has no CD-ROM drive cdrom{drive}")
        progress(100, f"cdrom{drive}: {cdrom.path}")

    async def read_guest(self, name: str) -> GuestInfo:
        self._require(await self.get(name), State.RUNNING)
        if name.startswith("stubborn"):
            raise AgentSilentError(f"the agent of {name} did not answer within 3 s", remedy="install one")
        card = GuestInterface(name="eth0", mac="52:54:00:00:00:01", addresses=("192.0.2.7/24",))
        return GuestInfo(hostname=name, system="Debian", kernel="6.1", interfaces=(card,))

    async def freeze(self, name: str, for_s: float, progress: Progress) -> None:
        self._require(await self.get(name), State.RUNNING)
        progress(100, "1 file systems are frozen")

    async def thaw(self, name: str, progress: Progress) -> None:
        self._require(await self.get(name), State.RUNNING)
        progress(100, "1 file systems are thawed")

    async def reset_nvram(self, name: str) -> None:
        self._require(await self.get(name), *NOT_RUNNING)

    async def start(self, name: str, progress: Progress) -> VmView:
        self._require(await self.get(name), *NOT_RUNNING)
        progress(10, "checking")
        if name.startswith("refusing"):
            raise VmmStartError("the VMM fell silent", remedy="read its log")
        if name.startswith("faulty"):
            raise ZeroDivisionError(name)
        if name.startswith("slow"):
            progress(42, "being slow")
            await asyncio.sleep(SLOW_S)
        progress(90, "waiting for the guest")
        return self._enter(name, State.RUNNING, EventKind.STARTED)

    async def shutdown(self, name: str, timeout_s: float, progress: Progress) -> VmView:
        self._require(await self.get(name), State.RUNNING)
        if name.startswith("stubborn"):
            progress(10, "power button pressed")
            await asyncio.sleep(timeout_s)
            raise ShutdownTimeoutError(f"{name} runs on")
        return self._enter(name, State.STOPPED, EventKind.STOPPED)

    async def stop(self, name: str) -> VmView:
        return self._enter(name, State.STOPPED, EventKind.STOPPED)

    async def pause(self, name: str) -> VmView:
        return self._enter(name, State.PAUSED, EventKind.PAUSED)

    async def resume(self, name: str) -> VmView:
        return self._enter(name, State.RUNNING, EventKind.RESUMED)

    async def reset(self, name: str) -> VmView:
        return self._enter(name, State.RUNNING, EventKind.RESET)

    async def switch(self, name: str, design: Design, progress: Progress) -> MoveResult | None:
        vm = await self.get(name)
        old = vm.record.spec.design
        if old is design:
            raise MoveRefusedError(f"{name} is {design} already")
        if name.startswith("refusing"):
            raise MoveFailedError(f"cannot load it of {name}: it is too heavy; it runs on as it was")
        running = vm.status.state is State.RUNNING
        spec = vm.record.spec.model_copy(update={"design": design})
        self._keep(self._with_record(vm, spec=spec))
        self._emit(VmEvent(kind=EventKind.SWITCHED, name=name, uuid=vm.record.uuid))
        if not running:
            progress(100, f"{design} at its next start")
            return None
        progress(100, f"{design} now: paused 18.2 ms, 412 KiB moved, 0.3 s in all")
        return build_move(old, design)

    async def update_vmm(self, name: str, progress: Progress) -> MoveResult:
        vm = await self.get(name)
        self._require(vm, State.RUNNING)
        self._emit(VmEvent(kind=EventKind.VMM_UPDATED, name=name, uuid=vm.record.uuid))
        progress(100, "QEMU 7.2.22 → 10.0.3: paused 18.2 ms, 412 KiB moved, 0.3 s in all")
        return build_move(vm.record.spec.design, vm.record.spec.design)

    async def list_snapshots(self, name: str) -> tuple[SnapshotView, ...]:
        uuid = (await self.get(name)).record.uuid
        return tuple(each for (owner, _), each in self._snapshots.items() if owner == uuid)

    async def get_snapshot(self, name: str, snapshot: str) -> SnapshotView:
        uuid = (await self.get(name)).record.uuid
        if (uuid, snapshot) not in self._snapshots:
            raise SnapshotNotFoundError(f"there is no snapshot {snapshot!r}")
        return self._snapshots[uuid, snapshot]

    async def create_snapshot(self, name: str, snapshot: str, progress: Progress) -> None:
        vm = await self.get(name)
        self._require(vm, State.RUNNING, State.PAUSED)
        if (vm.record.uuid, snapshot) in self._snapshots:
            raise SnapshotExistsError(f"there is a snapshot {snapshot!r} already")
        self._snapshots[vm.record.uuid, snapshot] = SnapshotView(
            name=snapshot, created_at=now(), memory_mib=vm.record.spec.memory_mib, memory_bytes=182 << 20,
            disks={"disk0": 1 << 30}, host_bytes=300 << 20, processor="a processor", pause_ms=210.3,
        )  # fmt: skip
        progress(100, "paused 210.3 ms, 182 MiB of memory, 1 disk, 300 MiB on the host")

    async def restore_snapshot(self, name: str, snapshot: str, progress: Progress) -> None:
        vm = await self.get(name)
        self._require(vm, *NOT_RUNNING)
        self._enter(name, State.RUNNING, EventKind.STARTED)
        progress(100, "runs on from 2026-01-02 03:04:05")

    async def delete_snapshot(self, name: str, snapshot: str) -> None:
        await self.get_snapshot(name, snapshot)
        del self._snapshots[(await self.get(name)).record.uuid, snapshot]

    async def attach(self, name: str, device: DiskSpec | NicSpec, progress: Progress) -> None:
        vm = await self.get(name)
        place: Any = place_disk if isinstance(device, DiskSpec) else place_nic
        spec = add_device(vm.record.spec, place(device, [vm.record.spec]))
        self._keep(self._with_record(vm, spec=spec))
        (added,) = name_devices(spec).keys() - name_devices(vm.record.spec).keys()
        progress(100, f"{added} attached")

    async def limit_disk(
        self, name: str, disk: str, iops_limit: int | None, bandwidth_limit: int | None
    ) -> VmView:
        vm = await self.get(name)
        if disk not in name_devices(vm.record.spec):
            raise DeviceNotFoundError(f"{name} has no disk {disk!r}")
        limits = {"iops_limit": iops_limit, "bandwidth_limit": bandwidth_limit}
        return self._keep(self._with_record(vm, spec=limit_in_spec(vm.record.spec, disk, limits)))

    async def limit_nic(self, name: str, nic: str, in_limit: int | None, out_limit: int | None) -> VmView:
        vm = await self.get(name)
        if nic not in name_devices(vm.record.spec):
            raise DeviceNotFoundError(f"{name} has no network card {nic!r}")
        limits = {"in_limit": in_limit, "out_limit": out_limit}
        return self._keep(self._with_record(vm, spec=limit_in_spec(vm.record.spec, nic, limits)))

    async def set_limits(self, name: str, changes: Mapping[str, Any]) -> VmView:
        vm = await self.get(name)
        return self._keep(self._with_record(vm, spec=change_spec(vm.record.spec, changes)))

    async def set_cpus(self, name: str, cpus: int) -> VmView:
        vm = await self.get(name)
        return self._keep(self._with_record(vm, spec=change_spec(vm.record.spec, {"cpus": cpus})))

    async def set_memory(self, name: str, memory_mib: int) -> VmView:
        vm = await self.get(name)
        made = self._with_record(vm, spec=change_spec(vm.record.spec, {"memory_mib": memory_mib}))
        note = "its guest takes nothing" if name.startswith("stubborn") else ""
        return self._keep(
            made.model_copy(update={"status": made.status.model_copy(update={"memory_note": note})})
        )

    async def detach(self, name: str, device: str, timeout_s: float, progress: Progress) -> None:
        vm = await self.get(name)
        if device not in name_devices(vm.record.spec):
            raise DeviceNotFoundError(f"{name} has no disk or network card {device!r}")
        if name.startswith("stubborn"):
            raise UnplugTimeoutError(f"the guest of {name} did not let go of {device}")
        self._keep(self._with_record(vm, spec=remove_device(vm.record.spec, device)))
        progress(100, f"{device} detached")

    async def resize_volume(self, volume: str, grow_first: Grow) -> None:
        raise WrongStateError(f"volume {volume} is in use, and not by a VM that names it")

    async def replace_driver(self, name: str, device: str, *, latest: bool) -> Replacement:
        self._require(await self.get(name), State.RUNNING, State.PAUSED)
        if device != "disk0":
            raise DeviceNotFoundError(f"{name} has no driver partition {device!r}")
        return Replacement(100, 200, "aaa", "bbb" if latest else "aaa", 2.5)

    async def read_counters(self, name: str) -> dict[str, dict[str, int]]:
        return {"disk0": {"sent_frames": 7}}

    async def anatomy(self, name: str) -> Anatomy:
        vm = await self.get(name)
        self._require(vm, State.RUNNING, State.PAUSED)
        service = ProcessAnatomy("controlling", "manager", os.getpid(), "duovisord", (), (), ())
        return Anatomy(name, vm.record.spec.design, "tcg", "qemu", "it was asked for", (service,))

    def console(self, name: str) -> FakeConsole:
        if name not in self._vms:
            raise VmNotFoundError(f"there is no VM {name!r}")
        return self._consoles.setdefault(name, FakeConsole(name))

    async def require_screen(self, name: str) -> None:
        vm = await self.get(name)
        if not vm.record.spec.graphics:
            raise GraphicsMissingError(f"{name} has no screen")

    async def open_screen(self, name: str) -> socket.socket:
        """A screen that answers with what it is sent, until it is sent a Q."""
        await self.require_screen(name)
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)

        async def echo() -> None:
            reader, writer = await asyncio.open_connection(sock=theirs)
            writer.write(b"RFB 003.008\n")
            while (data := await reader.read(1 << 16)) and b"Q" not in data:
                writer.write(data)
            writer.close()

        self._screens.add(asyncio.create_task(echo()))
        return ours

    async def take_screenshot(self, name: str) -> bytes:
        await self.require_screen(name)
        return b"\x89PNG\r\n\x1a\n"

    async def read_console_log(self, name: str, max_bytes: int) -> bytes:
        await self.get(name)
        return bytes(self.console(name).scrollback[-max_bytes:])

    def _enter(self, name: str, state: State, kind: EventKind) -> VmView:
        vm = self._vms[name]
        running = state in (State.RUNNING, State.PAUSED)
        driver = ProcessStatus(
            role="storage", pid=os.getpid(), device="disk0", state=ProcessState.RUNNING, duty=Duty.ACTIVE
        )
        device = DriverStatus(
            device="disk0", state=DeviceState.RUNNING, pid=os.getpid(), spare_pid=None, code="aaa",
            deaths=3, last_pause_ms=1.5, reason="",
        )  # fmt: skip
        status = VmStatus(
            state=state,
            accelerator=Accelerator.TCG if running else None,
            pid=os.getpid() if running else None,
            started_at=now() if running else None,
            processes=(driver,) if running else (),
            drivers=(device,) if running else (),
        )
        self._emit(VmEvent(kind=kind, name=name, uuid=vm.record.uuid))
        return self._keep(vm.model_copy(update={"status": status}))

    async def _seen(self, name: str, revision: int) -> VmView:
        vm = await self.get(name)
        if vm.record.revision != revision:
            raise RevisionConflictError(f"{name} was changed", remedy="read it again and repeat the change")
        return vm

    def _with_record(self, vm: VmView, **changes: object) -> VmView:
        record = vm.record.model_copy(update={**changes, "revision": self._next_revision()})
        return vm.model_copy(update={"record": record})

    def _require_free(self, name: str) -> None:
        if name in self._vms:
            raise VmNameInUseError(f"there is a VM {name!r} already", remedy="choose another name")

    @staticmethod
    def _require(vm: VmView, *states: State) -> None:
        if vm.status.state not in states:
            raise WrongStateError(f"{vm.record.name} is {vm.status.state}")

    def _keep(self, vm: VmView) -> VmView:
        self._vms[vm.record.name] = vm
        return vm

    def _next_revision(self) -> int:
        self._revision += 1
        return self._revision
