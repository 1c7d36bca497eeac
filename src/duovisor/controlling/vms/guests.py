"""When the guest of a running VM is asked through its agent, and what is done where none answers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from duovisor.controlling.agent.client import connect_agent
from duovisor.controlling.agent.errors import AgentError, AgentSilentError
from duovisor.controlling.vms.records import EventKind
from duovisor.hypervisor.errors import VmmGoneError, WrongStateError
from duovisor.hypervisor.lifecycle import ENDED, State
from duovisor.spec.vm import AGENT_PORT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
    from typing import Any

    from duovisor.controlling.agent.answers import GuestInfo
    from duovisor.controlling.agent.client import Agent
    from duovisor.controlling.vms.active import ActiveVm
    from duovisor.controlling.vms.records import Progress

    Emit = Callable[[EventKind, str, str, str], None]

POWER_BUTTON = "power button pressed"

_log = logging.getLogger(__name__)


class Guests:
    """Asks guests, one errand at a time each; ``tell`` takes an event's kind, name, uuid, message."""

    def __init__(self, tell: Emit) -> None:
        self._tell = tell
        self._turns: WeakKeyDictionary[ActiveVm, asyncio.Lock] = WeakKeyDictionary()
        self._thaws: dict[str, asyncio.Task[None]] = {}
        self._errands: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Give up what is under way; a successor thaws what is frozen."""
        tasks = (*self._thaws.values(), *self._errands)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def read_info(self, vm: ActiveVm) -> GuestInfo:
        """What a guest tells of itself. Raises ``AgentError`` or ``WrongStateError``."""
        async with self._conversing(vm) as agent:
            return await agent.read_info()

    async def shut_down(self, vm: ActiveVm, timeout_s: float, progress: Progress) -> None:
        """Have a guest shut down, and wait for its end: by its agent if it has one, else the power button.

        A guest whose agent was asked in vain has the button pressed when half of the time is over. Raises
        ``TimeoutError``.
        """
        ends_at = time.monotonic() + timeout_s
        if vm.machine.spec.guest_agent and await self._ask_agent_to_shut_down(vm, progress):
            with contextlib.suppress(TimeoutError):
                await vm.wait_gone(timeout_s=(ends_at - time.monotonic()) / 2)
                return
        with contextlib.suppress(VmmGoneError, WrongStateError):  # it has just ended, or somebody stopped it
            await vm.machine.vmm.press_power_button()
            progress(50, POWER_BUTTON)
        await vm.wait_gone(timeout_s=max(0.0, ends_at - time.monotonic()))

    async def _ask_agent_to_shut_down(self, vm: ActiveVm, progress: Progress) -> bool:
        try:
            async with self._conversing(vm) as agent:
                await agent.shut_down()
        except (AgentError, WrongStateError) as error:
            progress(20, str(error.message))
            return False
        progress(20, "the guest's agent was asked")
        return True

    def set_time(self, vm: ActiveVm) -> None:
        """Set the clock of a guest that stood still to the host's, as far as it has an agent."""
        if vm.machine.spec.guest_agent:
            self._begin(self._set_time(vm))

    async def freeze(self, vm: ActiveVm, for_s: float) -> int:
        """Freeze a guest's file systems for at most that long; how many there are.

        Raises ``AgentError`` or ``WrongStateError``; none is frozen then.
        """
        try:
            async with self._conversing(vm) as agent:
                count = await agent.freeze()
        except AgentSilentError:
            self._begin(self._thaw_unasked(vm, 0.0, "its agent did not answer in time"))  # it may have begun
            raise
        self._forget_thaw(vm)
        thaw = self._thaw_unasked(vm, for_s, f"its {for_s:g} s were over")
        self._thaws[vm.uuid] = asyncio.create_task(thaw, name=f"thaw {vm.name}")
        self._tell(EventKind.FROZEN, vm.name, vm.uuid, f"{count} file systems, for at most {for_s:g} s")
        return count

    async def thaw(self, vm: ActiveVm) -> int:
        """Thaw a guest's file systems; how many there were. Raises ``AgentError`` or ``WrongStateError``."""
        async with self._conversing(vm) as agent:
            count = await agent.thaw()
        self._forget_thaw(vm)
        self._tell(EventKind.THAWED, vm.name, vm.uuid, f"{count} file systems")
        return count

    async def switch_memory_on(self, vm: ActiveVm) -> str:
        """Have a guest that has an agent use all of its memory; what there is to say of that."""
        if not vm.machine.spec.guest_agent:
            return ""
        try:
            async with self._conversing(vm) as agent:
                offline = await agent.switch_memory_on()
        except (AgentError, WrongStateError) as error:
            return f"its guest was not asked to switch on its memory: {error.message}"
        return f"its guest leaves {offline} blocks of its memory switched off" if offline else ""

    def look_at_adopted(self, vms: Iterable[ActiveVm]) -> None:
        """Thaw what a service that was killed had frozen; nobody else would."""
        for vm in vms:
            if vm.machine.spec.guest_agent and vm.machine.vmm.state is State.RUNNING:
                self._begin(self._thaw_unasked(vm, 0.0, "the service that had frozen them was gone"))

    async def _set_time(self, vm: ActiveVm) -> None:
        try:
            async with self._conversing(vm) as agent:
                await agent.set_time(time.time())
        except (AgentError, WrongStateError) as error:
            _log.info("the clock of %s was not set: %s", vm.name, error)

    async def _thaw_unasked(self, vm: ActiveVm, after_s: float, why: str) -> None:
        await asyncio.sleep(after_s)
        await vm.machine.vmm.lifecycle.wait_for({State.RUNNING, *ENDED})  # a paused one could not answer
        try:
            async with self._conversing(vm) as agent:
                if not await agent.is_frozen():
                    return
                count = await agent.thaw()
        except WrongStateError:
            return  # it has ended
        except AgentError as error:
            if after_s:
                self._tell(EventKind.FAULT, vm.name, vm.uuid, f"its file systems stay frozen: {error}")
            return
        self._tell(EventKind.THAWED, vm.name, vm.uuid, f"{count} file systems: {why}")

    @asynccontextmanager
    async def _conversing(self, vm: ActiveVm) -> AsyncIterator[Agent]:
        """A conversation with the agent of a VM that runs."""
        if not vm.machine.spec.guest_agent:
            raise AgentSilentError(
                f"{vm.name} has no guest agent", remedy=f"duovisor vm edit {vm.name} --set guest_agent=true"
            )
        async with self._turns.setdefault(vm, asyncio.Lock()):
            vm.machine.vmm.lifecycle.require({State.RUNNING}, "ask the guest of")
            async with connect_agent(vm.machine.port_path(AGENT_PORT), vm.name) as agent:
                yield agent

    def _forget_thaw(self, vm: ActiveVm) -> None:
        task = self._thaws.pop(vm.uuid, None)
        if task is not None and task is not asyncio.current_task():
            task.cancel()

    def _begin(self, errand: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(errand)
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)
