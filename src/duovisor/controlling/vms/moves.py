"""What the manager does to give a running VM another VMM: of the other design, or of what is installed now.

What happened to the VM decides what is stored, told and answered, not how the call for it ended: a move is
given up when it is cancelled before the guest stands still, and done to its end after.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

from duovisor.controlling.moving.errors import MoveFailedError, MoveRefusedError
from duovisor.controlling.moving.move import move
from duovisor.controlling.moving.report import Step
from duovisor.controlling.vms.documents import Intent
from duovisor.controlling.vms.records import EventKind, MoveResult
from duovisor.hypervisor.lifecycle import State
from duovisor.spec.vm import VmmKind

if TYPE_CHECKING:
    from collections.abc import Callable

    from duovisor.controlling.machine import Machine
    from duovisor.controlling.moving.report import MoveReport
    from duovisor.controlling.vms.active import ActiveVm
    from duovisor.controlling.vms.definitions import Definitions
    from duovisor.controlling.vms.host_vms import HostVms
    from duovisor.controlling.vms.records import Progress, VmRecord
    from duovisor.hardware.capabilities import HostCapabilities
    from duovisor.spec.vm import Design

    Emit = Callable[[EventKind, str, str, str], None]

# how far a move is when a step begins, in percent of the time that it usually takes
PERCENT = {
    Step.START: 10,
    Step.SETTLE: 70,
    Step.PAUSE: 75,
    Step.SAVE: 76,
    Step.TRANSLATE: 78,
    Step.LOAD: 80,
    Step.HAND_OVER: 84,
    Step.GO: 86,
    Step.END: 90,
}
CAN_BE_GIVEN_UP = frozenset({Step.START, Step.SETTLE})
CANCELLED = "it was cancelled; it runs on as it was"


class _Kinds(NamedTuple):
    done: EventKind
    failed: EventKind


_SWITCH = _Kinds(EventKind.SWITCHED, EventKind.SWITCH_FAILED)
_UPDATE = _Kinds(EventKind.VMM_UPDATED, EventKind.VMM_UPDATE_FAILED)


class Moves:
    """Moves VMs, on which nobody else acts meanwhile; ``tell`` takes an event's kind, name, uuid, message."""

    def __init__(self, definitions: Definitions, host: HostVms, tell: Emit) -> None:
        self._definitions = definitions
        self._host = host
        self._tell = tell

    async def switch_at_rest(self, record: VmRecord, design: Design, progress: Progress) -> None:
        """Change the design of a VM that does not run. Raises ``MoveRefusedError``."""
        if record.spec.design is design:
            raise MoveRefusedError(f"{record.name} is {design} already")
        await self._definitions.change_design(record, design)
        said = f"{design} at its next start"
        self._tell(EventKind.SWITCHED, record.name, record.uuid, f"{record.spec.design} → {said}")
        progress(100, said)

    async def switch(
        self,
        vm: ActiveVm,
        record: VmRecord,
        design: Design,
        capabilities: HostCapabilities,
        progress: Progress,
    ) -> MoveResult:
        """Move a running VM to a VMM of another design, and keep that in its definition.

        Raises ``MoveRefusedError``, ``WrongStateError``, ``MoveFailedError`` or what a start may raise.
        """
        vm.machine.vmm.lifecycle.require({State.RUNNING}, "switch")
        if vm.machine.spec.design is design:
            raise MoveRefusedError(
                f"{vm.name} is {design} already",
                remedy=""
                if record.spec.design is design
                else f"duovisor vm edit {vm.name} --set design={design} keeps it so when it starts again",
            )
        check_switch(vm.name, vm.machine.current.decision.kind)
        await self._host.announce(vm, Intent.SWITCH, design)
        try:
            result = await self._move(vm, design, capabilities, progress, _SWITCH)
        finally:
            await asyncio.shield(self._settle(vm, record, design))
        progress(100, f"{design} now: {describe_cost(result)}")
        return result

    async def update(self, vm: ActiveVm, capabilities: HostCapabilities, progress: Progress) -> MoveResult:
        """Move a running VM to a new VMM of its kind, QEMU: of ``capabilities``. Raises as ``switch``."""
        vm.machine.vmm.lifecycle.require({State.RUNNING}, "update the VMM of")
        result = await self._move(vm, vm.machine.spec.design, capabilities, progress, _UPDATE)
        progress(100, f"{describe_versions(result)}: {describe_cost(result)}")
        return result

    async def _settle(self, vm: ActiveVm, record: VmRecord, design: Design) -> None:
        """The design that runs is the one that is wanted, whatever was said of the move."""
        if vm.machine.spec.design is design:
            await self._definitions.change_design(record, design)
        if self._host.find(vm.uuid) is vm:
            await self._host.announce(vm, Intent.NONE)

    async def _move(
        self,
        vm: ActiveVm,
        design: Design,
        capabilities: HostCapabilities,
        progress: Progress,
        kinds: _Kinds,
    ) -> MoveResult:
        old_version = vm.machine.vmm.version
        try:
            report = await follow_move(vm, design, capabilities, progress)
        except MoveFailedError as error:
            await asyncio.shield(self._host.note_failure(vm, kinds.failed, str(error)))
            raise
        except asyncio.CancelledError:
            self._tell(kinds.failed, vm.name, vm.uuid, CANCELLED)
            raise
        finally:
            vm.watch_helpers()
        result = build_result(report, old_version, vm.machine)
        self._tell(kinds.done, vm.name, vm.uuid, describe_move(result))
        return result


def check_switch(name: str, program: VmmKind) -> None:
    """The thin VMM is of one design, and no QEMU reads what it writes. Raises ``MoveRefusedError``."""
    if program is not VmmKind.QEMU:
        raise MoveRefusedError(
            f"{name} runs on the {program} VMM, whose state no QEMU understands",
            remedy=f"stop it, and duovisor vm edit {name} --set vmm=qemu",
        )


async def follow_move(
    vm: ActiveVm, design: Design, capabilities: HostCapabilities, progress: Progress
) -> MoveReport:
    """Move a VM and say how far it is; a cancellation that comes too late to give it up is none.

    Raises what ``move`` raises.
    """
    reached = Step.START

    def follow(step: Step) -> None:
        nonlocal reached
        reached = step
        progress(PERCENT[step], step)

    moving = asyncio.create_task(move(vm.machine, design, capabilities, follow), name=f"move {vm.name}")
    while not moving.done():
        try:
            await asyncio.wait({moving})
        except asyncio.CancelledError:
            if reached in CAN_BE_GIVEN_UP and not moving.cancelling():
                moving.cancel()
            if (task := asyncio.current_task()) is not None:
                task.uncancel()
    return await moving


def build_result(report: MoveReport, old_version: str, machine: Machine) -> MoveResult:
    """What is answered: the report's figures, and between which programs it was."""
    return MoveResult(
        vmm=machine.current.decision.kind,
        old_design=report.old_design,
        new_design=report.new_design,
        old_version=old_version,
        new_version=machine.vmm.version,
        old_pid=report.old_pid,
        new_pid=report.new_pid,
        pause_ms=report.pause_ms,
        total_ms=report.total_ms,
        stream_bytes=report.stream_bytes,
        step_ms={step.name.lower(): took_ms for step, took_ms in report.step_ms.items()},
    )


def describe_move(result: MoveResult) -> str:
    """A move in a line, for the log of events."""
    what = describe_versions(result)
    if result.old_design is not result.new_design:
        what = f"{result.old_design} → {result.new_design}"
    size = describe_size(result.stream_bytes)
    return f"{what}, pid {result.old_pid} → {result.new_pid}, paused {result.pause_ms:.1f} ms, {size}"


def describe_versions(result: MoveResult) -> str:
    """From which program to which: ``QEMU 7.2.22 → 10.0.3``."""
    program = "QEMU" if result.vmm is VmmKind.QEMU else f"{result.vmm} VMM"
    if result.old_version == result.new_version:
        return f"the same {program} {result.new_version}"
    return f"{program} {result.old_version} → {result.new_version}"


def describe_cost(result: MoveResult) -> str:
    """What a move took: ``paused 18.2 ms, 412 KiB moved, 0.3 s in all``."""
    total_s = result.total_ms / 1000
    return (
        f"paused {result.pause_ms:.1f} ms, {describe_size(result.stream_bytes)} moved, {total_s:.1f} s in all"
    )


def describe_size(size_bytes: int) -> str:
    """Bytes in KiB."""
    return f"{size_bytes / 1024:.0f} KiB"
