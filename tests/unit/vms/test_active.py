"""A VM that is watched: its helpers, also when it gets another VMM with helpers of its own."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from tests.unit.vms.fake_host import build_vm

from duovisor.controlling.vms.active import ActiveVm
from duovisor.hypervisor.lifecycle import Lifecycle, State

if TYPE_CHECKING:
    from collections.abc import Mapping

    from duovisor.controlling.machine import Machine
    from duovisor.controlling.supervision.device import DeviceSupervisor
    from duovisor.spec.vm import VirtualMachineSpec


class Helper:
    """A process that ends when it is told to."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()

    async def wait(self) -> None:
        await self.ended.wait()


class Vmm:
    """A VMM that ends when it is told to."""

    process = None

    def __init__(self) -> None:
        self.lifecycle = Lifecycle("vm")
        self.lifecycle.enter(State.STARTING)
        self.lifecycle.enter(State.RUNNING)

    async def wait_ended(self, *, timeout_s: float | None = None) -> State:
        return await self.lifecycle.wait_for((), timeout_s=timeout_s)


class Incarnation:
    """A VMM with one helper."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.vmm = Vmm()
        self.helpers = {"nic0": Helper()}

    def describe_loss(self, name: str) -> str:
        return f"{name} of VMM {self.number} is lost"

    def end(self) -> None:
        self.vmm.lifecycle.enter(State.STOPPED)
        self.helpers["nic0"].ended.set()


class FakeMachine:
    """A machine that has one incarnation after the other."""

    class description:
        processes = ()

    def __init__(self) -> None:
        self.spec: VirtualMachineSpec = build_vm()
        self.current = Incarnation(1)
        self.gone = asyncio.Event()

    @property
    def vmm(self) -> Vmm:
        return self.current.vmm

    @property
    def helpers(self) -> Mapping[str, Helper]:
        return self.current.helpers

    @property
    def devices(self) -> Mapping[str, DeviceSupervisor]:
        return {}

    async def wait_ended(self) -> State:
        await self.gone.wait()
        return State.STOPPED

    async def clean_up(self) -> None:
        return


async def test_the_helpers_of_the_vmm_that_runs_are_watched() -> None:
    machine, faults = FakeMachine(), asyncio.Queue[str]()

    async def on_fault(vm: ActiveVm, message: str) -> None:
        faults.put_nowait(message)

    async def on_end(vm: ActiveVm, state: State) -> None:
        faults.put_nowait(state)

    vm = ActiveVm("uuid", cast("Machine", machine), on_fault, on_end)
    old = machine.current
    await asyncio.sleep(0)  # it watches
    machine.current = Incarnation(2)
    vm.watch_helpers()
    vm.watch_helpers()
    old.end()
    machine.current.helpers["nic0"].ended.set()
    async with asyncio.timeout(10):
        assert await faults.get() == "nic0 of VMM 2 is lost"
        machine.gone.set()
        assert await faults.get() == State.STOPPED
        await vm.wait_gone()


async def test_helpers_come_and_go_with_their_devices() -> None:
    machine, faults = FakeMachine(), asyncio.Queue[str]()

    async def on_fault(vm: ActiveVm, message: str) -> None:
        faults.put_nowait(message)

    async def on_end(vm: ActiveVm, state: State) -> None:
        faults.put_nowait(state)

    vm = ActiveVm("uuid", cast("Machine", machine), on_fault, on_end)
    await asyncio.sleep(0)
    helpers = machine.current.helpers
    helpers["nic1"] = Helper()
    vm.watch_helpers()
    gone = helpers.pop("nic0")  # plugged out: it ends, and that is no fault
    gone.ended.set()
    await asyncio.sleep(0)
    helpers["nic1"].ended.set()
    async with asyncio.timeout(10):
        assert await faults.get() == "nic1 of VMM 1 is lost"
        machine.gone.set()
        assert await faults.get() == State.STOPPED
        await vm.wait_gone()
