"""Moves a running VM to another VMM beside its own: guest memory stays, the devices' state is carried over.

The guest stands still from ``save`` to ``go``: its VMM stops it, when it has made ready to save. Until the
successor was told to go, the old VMM has lost nothing: whatever fails before, it goes on. From then on it
never may, for the guest's memory is the other's.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack, ExitStack, suppress
from typing import TYPE_CHECKING, Any

from duovisor.controlling.machine_limits import limit_disks_inside
from duovisor.controlling.moving.cards import CardMoves
from duovisor.controlling.moving.checks import check_move
from duovisor.controlling.moving.disks import hand_over_disks, write_out
from duovisor.controlling.moving.errors import MoveFailedError, MoveRefusedError
from duovisor.controlling.moving.report import MoveReport, Step, ignore_steps
from duovisor.errors import DuovisorError
from duovisor.hypervisor.lifecycle import State
from duovisor.hypervisor.migration.translator import translate
from duovisor.hypervisor.qemu.console import CONSOLE_SOCKET
from duovisor.hypervisor.vmm import Vmm
from duovisor.spec.vm import VmmKind

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from duovisor.controlling.incarnation import Incarnation
    from duovisor.controlling.machine import Machine
    from duovisor.controlling.machine_checks import CheckedStart
    from duovisor.controlling.moving.report import Follow
    from duovisor.hardware.capabilities import HostCapabilities
    from duovisor.spec.vm import Design


async def move(
    machine: Machine, design: Design, capabilities: HostCapabilities, follow: Follow = ignore_steps
) -> MoveReport:
    """Move a running VM to a new VMM of ``design``, of the QEMU in ``capabilities``.

    Raises ``MoveRefusedError`` or another ``DuovisorError`` before anything is touched, ``MoveFailedError``
    when something went wrong under way: the VM runs on as it was then, unless its state says otherwise.
    """
    async with machine.moving:
        try:
            checked = check_move(machine, design, capabilities)
        except OSError as error:
            raise MoveRefusedError(f"{machine.name} does not move: {error}") from error
        return await _Move(machine, checked, follow).run()


class _Move:
    def __init__(self, machine: Machine, checked: CheckedStart, follow: Follow) -> None:
        self._machine = machine
        self._checked = checked
        self._follow = follow
        self._old = machine.current
        self._began = time.monotonic()
        self._step_began = self._began
        self._step = Step.START
        self._step_ms: dict[Step, float] = {}
        self._paused_at = 0.0
        self._went_at = 0.0
        self._stream_bytes = 0
        self._problem = ""
        self._is_cancelled = False
        self._cards: CardMoves | None = None

    async def run(self) -> MoveReport:
        machine, old = self._machine, self._old
        new = self._open_successor()
        old_pid = machine.description.processes[0].pid
        try:
            await self._start(new)
            await self._prepare(new)
            await self._to_its_end(self._cut_over(new))
        except BaseException as error:
            await self._to_its_end(self._abandon(new))
            if isinstance(error, DuovisorError | OSError):
                raise self._explain(error) from error
            raise
        self._enter(Step.END)
        await self._to_its_end(self._conclude(new))
        ended = time.monotonic()
        self._step_ms[self._step] = (ended - self._step_began) * 1000
        return MoveReport(
            old_design=old.spec.design,
            new_design=new.spec.design,
            old_pid=old_pid,
            new_pid=machine.description.processes[0].pid,
            pause_ms=(self._went_at - self._paused_at) * 1000,
            total_ms=(ended - self._began) * 1000,
            stream_bytes=self._stream_bytes,
            step_ms=self._step_ms,
            problem=self._problem,
        )

    async def _to_its_end(self, work: Coroutine[Any, Any, None]) -> None:
        """Do what must not be left half done; a cancellation is heeded before the next step."""
        task = asyncio.create_task(work)
        while not task.done():
            try:
                await asyncio.wait({task})
            except asyncio.CancelledError:
                self._is_cancelled = True
        task.result()

    def _enter(self, step: Step) -> None:
        if self._is_cancelled and step not in (Step.GO, Step.END):
            raise asyncio.CancelledError
        now = time.monotonic()
        if step is not self._step:
            self._step_ms[self._step] = (now - self._step_began) * 1000
        self._step, self._step_began = step, now
        self._follow(step)

    def _explain(self, error: BaseException) -> MoveFailedError:
        said = error.message if isinstance(error, DuovisorError) else str(error)
        remedy = error.remedy if isinstance(error, DuovisorError) else ""
        where = f"cannot {self._step} of {self._machine.name}: {said}"
        if self._machine.vmm.state is State.RUNNING:
            return MoveFailedError(f"{where}; it runs on as it was", remedy=remedy)
        return MoveFailedError(f"{where}; it is {self._machine.vmm.state}", remedy=remedy)

    def _open_successor(self) -> Incarnation:
        """The folder and the plan of the successor; nothing runs yet."""
        machine, checked = self._machine, self._checked
        number = self._old.number + 1
        with ExitStack() as undo:
            held = undo.enter_context(checked.open_disks)
            run_dir = machine.place.open_incarnation(number)
            undo.callback(machine.place.remove_incarnation, number)
            plan = checked.build_plan(run_dir, machine.place).as_successor()
            vmm = Vmm(plan, run_dir, checked.tools)
            new = machine.make_incarnation(number, checked.spec, checked.vmm, vmm, held)
            undo.pop_all()
        machine.other = new
        machine.write()
        return new

    async def _start(self, new: Incarnation) -> None:
        self._enter(Step.START)
        machine = self._machine
        machine.place.give_files(new.spec, new.vmm.owner)
        new.prepare()
        self._cards = CardMoves(self._old, new)
        await new.begin(
            self._checked, machine.console_log, die_with_owner=machine.die_with_owner, old=self._old
        )
        await new.unless_lost(new.vmm.greet())
        new.settle()
        await self._old.vmm.prepare_to_move()
        await new.vmm.prepare_to_move()
        await self._cards.occupy()

    async def _prepare(self, new: Incarnation) -> None:
        """What can be done before the guest stands still, so that it stands still for less."""
        self._enter(Step.SETTLE)
        await self._machine.console.listen(new.vmm.socket_path(CONSOLE_SOCKET))
        await asyncio.to_thread(write_out, self._old)
        await new.vmm.await_state()

    async def _cut_over(self, new: Incarnation) -> None:
        machine, old = self._machine, self._old
        assert self._cards is not None
        self._enter(Step.PAUSE)
        await self._cards.divert()
        self._enter(Step.SAVE)
        self._paused_at = time.monotonic()
        stream = await old.vmm.save_state()
        self._paused_at += old.vmm.ran_on_s
        self._stream_bytes = len(stream)
        self._enter(Step.TRANSLATE)
        if new.decision.kind is VmmKind.QEMU:  # the thin VMM's state is the same on both sides
            stream = translate(stream, new.spec.design)
        self._enter(Step.LOAD)
        await new.vmm.load_state(stream)
        self._enter(Step.HAND_OVER)
        async with AsyncExitStack() as undo:
            await hand_over_disks(old, new, undo)
            self._cards.settle()
            machine.place.decide(new.number)
            undo.callback(machine.place.undecide)
            self._enter(Step.GO)
            try:
                await new.unless_lost(new.vmm.go())
            except BaseException:
                await self._end_if_gone(new)
                raise
            undo.pop_all()
        self._went_at = time.monotonic()
        self._cards.finish()

    async def _end_if_gone(self, new: Incarnation) -> None:
        """If the successor let the guest go on before it failed, the old VMM must not: the guest is lost.

        QEMU tells of that (RESUME) before it starts a processor (softmmu/cpus.c, vm_prepare_start), and what
        it told is read to the end even of a dead one.
        """
        await new.vmm.kill()
        if State.RUNNING in new.vmm.lifecycle.history and self._old.vmm.process is not None:
            await self._old.vmm.process.kill()

    async def _conclude(self, new: Incarnation) -> None:
        """The successor runs: it is the VM from now on, and the old one goes."""
        machine, old = self._machine, self._old
        machine.current, machine.other = new, old
        with suppress(DuovisorError):  # it has ended, and so has its VM
            await limit_disks_inside(new)
        machine.write()
        machine.place.point_to(new.number)
        machine.place.undecide()
        await machine.console.move()
        if self._cards is not None:
            await self._cards.close()
        try:
            await old.end()
        except (DuovisorError, OSError) as error:  # the VM has moved, whatever stays
            self._problem = f"something of the old VMM stays on the host: {error}"
        machine.other = None
        machine.place.remove_incarnation(old.number)
        machine.write()

    async def _abandon(self, new: Incarnation) -> None:
        """The old one goes on, and the successor is taken off the host."""
        machine = self._machine
        if self._cards is not None:
            with suppress(DuovisorError):
                self._cards.back()
        if self._paused_at:
            with suppress(DuovisorError):
                await self._old.vmm.go_on()
        if self._cards is not None:
            await self._cards.close()
        await machine.console.stay()
        await new.end()
        machine.other = None
        machine.place.remove_incarnation(new.number)
        machine.place.give_files(self._old.spec, self._old.vmm.owner)
        machine.write()
