"""The supervisor of one device: a driver that serves, one that stands by, and what follows the end of either.

A driver that dies is succeeded by the spare, which needs nobody for that; the supervisor learns of it and
provides the next spare. Only when both are gone, or a driver died while it answered the VMM, it starts one
itself: from the session that it holds as a copy, or on a new connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from duovisor.channel.page import Page
from duovisor.controlling.errors import PartitionError
from duovisor.controlling.supervision.backoff import FRUITFUL_S, Backoff
from duovisor.controlling.supervision.crew import SERVING_TIMEOUT_S, Crew
from duovisor.controlling.supervision.records import (
    DeviceState,
    DriverEvent,
    DriverEventKind,
    DriverStatus,
    Replacement,
)
from duovisor.spec.vm import DriverFailure

if TYPE_CHECKING:
    from duovisor.controlling.partitions.factory import PartitionFactory
    from duovisor.controlling.supervision.factories import Factories
    from duovisor.controlling.supervision.format import FormatKeeper
    from duovisor.controlling.supervision.plan import DevicePlan, Host
    from duovisor.controlling.supervision.records import Tell
    from duovisor.controlling.supervision.seat import Seat

TAKEOVER_TIMEOUT_S = 2.0
ENDING_TOGETHER_S = 1.0  # a driver that ends this long before its VMM ended because the VMM did
LEAVING_S = 10.0
SPARE_RETRY_S = 0.2
COUNTERS_TIMEOUT_S = 0.5
COUNTERS_MAX, COUNTER_NAME_MAX = 32, 40
GREETING_POLL_S = 0.005
DEAF_VMM = (
    "met a VMM that does not take the channel up again (QEMU before 9.0 gives a device up when a driver dies "
    "during the first messages of a connection); only a restart of the VM helps"
)


class DeviceSupervisor:
    """Supervises one device from ``start`` until ``end`` or ``detach``; ``crew`` may have been adopted.

    ``failed`` is set while the device's drivers are given up; ``reason`` says why then. ``keeper`` looks
    after the format process behind the drivers, if the device has one.
    """

    def __init__(
        self,
        plan: DevicePlan,
        host: Host,
        factories: Factories,
        tell: Tell,
        keeper: FormatKeeper | None = None,
    ) -> None:
        self.plan = plan
        self.keeper = keeper
        self.state = DeviceState.RECOVERING
        self.reason = ""
        self.failed = asyncio.Event()
        self._host = host
        self._factories = factories
        self._tell_owner = tell
        self.backoff = Backoff()
        self._deaths = 0
        self._last_pause_ms: float | None = None
        self._completed_before = 0
        self._spare_from = 0.0
        self._failing, self._parked = f"failing-{plan.kind}", f"parked-{plan.kind}"
        self._paused_vm = False
        self._trouble = ""
        self._turn = asyncio.Lock()
        self._poked = asyncio.Event()
        self.crew = Crew(plan, host, self._poked.set)
        self._task: asyncio.Task[None] | None = None
        self._cable: asyncio.Task[None] | None = None
        self.is_full = False  # its driver waits for room on the host
        self.is_leaving = False  # its VMM was told to take the device out

    @property
    def pids(self) -> list[int]:
        """The living drivers: the one that serves first, then the one that stands by."""
        return [seat.pid for seat in (self.crew.active, self.crew.spare) if seat and not seat.has_ended]

    async def start(self, *, spare_after_s: float = 0.0) -> None:
        """Start the first driver, and supervise from now on; its spare comes later, or when wanted.

        Raises ``PartitionError``.
        """
        self._spare_from = time.monotonic() + spare_after_s
        if self.crew.active is None:
            await self.crew.serve_new(await self._factories.get(self.plan.modules))
        self.supervise()

    def want_spare(self, after_s: float = 0.0) -> None:
        """There is time for it now, or so many seconds from now."""
        self._spare_from = time.monotonic() + after_s
        self._poked.set()

    def supervise(self) -> None:
        """Watch over what the crew is; without an active driver, one is started."""
        if self.crew.active is not None:
            self.state = DeviceState.RUNNING
        self._completed_before = self._read_completed()
        if self.keeper is not None:
            self.keeper.watch(self)
        self._task = asyncio.create_task(self._run(), name=f"supervise {self._host.name} {self.plan.device}")

    async def end(self) -> None:
        """End the drivers; the VMM has ended, or is about to."""
        await self.stop_watching()
        await self.crew.end()
        if self.keeper is not None:
            await self.keeper.end()

    async def detach(self) -> None:
        """Let go of the drivers, which go on."""
        await self.stop_watching()
        await self.crew.detach()
        if self.keeper is not None:
            await self.keeper.detach()

    async def attach(self, name: str, descriptor: int) -> None:
        """Give a descriptor to the drivers that there are; those to come find it in the plan."""
        async with self._turn:
            for seat in (self.crew.active, self.crew.spare):
                if seat is not None:
                    with contextlib.suppress(PartitionError):  # it has just ended, and others notice that
                        await seat.request("attach", {name: descriptor})

    async def retry(self) -> None:
        """There is room again: have the driver do what waited for it."""
        self.is_full = False
        active = self.crew.active
        if active is not None:
            with contextlib.suppress(PartitionError):  # its successor does so anyway
                await active.request("retry")

    async def set_rate(self, rate: tuple[int, int]) -> None:
        """Let through so much a second from now on, as ``DevicePlan`` has it; 0: as much as there is.

        Raises ``PartitionError`` when the driver does not do so; its successor will.
        """
        async with self._turn:
            self._follow(replace(self.plan, rate=rate))
            for seat in (self.crew.spare, self.crew.active):
                if seat is not None and not seat.has_ended:
                    await seat.request("limit", rate=list(rate))

    async def give_up(self, reason: str) -> None:
        """What the drivers need cannot be had: do what the policy says."""
        async with self._turn:
            if not self.failed.is_set():
                await self._fail(reason)

    def describe(self) -> DriverStatus:
        """How the device is served now."""
        active, spare = self.crew.active, self.crew.spare
        return DriverStatus(
            device=self.plan.device,
            state=self.state,
            pid=active.pid if active and not active.has_ended else None,
            spare_pid=spare.pid if spare and not spare.has_ended else None,
            code=active.code if active else "",
            deaths=self._deaths,
            last_pause_ms=self._last_pause_ms,
            reason=self.reason,
        )

    async def read_counters(self) -> dict[str, int]:
        """What the driver that serves has counted; empty if it counts nothing or does not answer at once."""
        active = self.crew.active
        if active is None or active.has_ended:
            return {}
        try:
            return parse_counters(await active.request("status", timeout_s=COUNTERS_TIMEOUT_S))
        except PartitionError:
            return {}

    async def replace(self, *, latest: bool) -> Replacement:
        """Replace the driver by a new process, with the code that is on disk if ``latest``: drained, no loss.

        A device that was given up is tried again. Raises ``PartitionError``; the driver goes on then.
        """
        if self.failed.is_set() and self.keeper is not None:
            await self.keeper.revive()
        async with self._turn:
            old = self.crew.active
            if old is None:
                raise PartitionError(f"{self.plan.device} has no driver at this moment", remedy="try again")
            get = self._factories.get_latest if latest else self._factories.get
            factory, plan = await get(self.plan.modules), self.plan
            if latest and plan.reread is not None:
                self._follow(await asyncio.to_thread(plan.reread))
            try:
                new, pause_ms = await self._hand_over(old, factory)
            except BaseException:
                self._follow(plan)
                raise
            finally:
                self._poked.set()
            done = Replacement(old.pid, new.pid, old.code, new.code, pause_ms)
            await self._revive()
        self.tell(DriverEventKind.REPLACED, f"pid {done.old_pid} → {done.new_pid}, {_describe_code(done)}")
        return done

    def _follow(self, plan: DevicePlan) -> None:
        self.plan = self.crew.plan = plan

    async def _hand_over(self, old: Seat, factory: PartitionFactory, driver: str = "") -> tuple[Seat, float]:
        """Let a spare go on where ``old`` stops; returns it, and how long nobody served, in milliseconds."""
        spare = self.crew.spare
        if driver or spare is None or spare.has_ended or spare.code != self.plan.code_of(factory.code):
            await self.crew.dismiss_spare()
            spare = await self.crew.stand_by(factory, driver)
        began = time.monotonic()
        await old.request("hand_over", to="spare")
        if not await spare.wait_for("serving", timeout_s=TAKEOVER_TIMEOUT_S):
            raise PartitionError(f"the new driver of {self.plan.device} did not take over; see its events")
        pause_ms = (spare.served_since - began) * 1000
        await old.wait_for(timeout_s=TAKEOVER_TIMEOUT_S)  # for its end
        await self.crew.bury(old)
        await self.crew.seat_active(spare)
        self._last_pause_ms = pause_ms
        self._completed_before = self._read_completed()
        return spare, pause_ms

    async def _revive(self) -> None:
        """A device that was given up is served again."""
        if self.failed.is_set():
            self.backoff.forgive()
            self.failed.clear()
            self.state, self.reason = DeviceState.RUNNING, ""
            if self._paused_vm:
                self._paused_vm = False
                await self._host.resume()
            elif self.plan.kind == "net":
                self._set_link(up=True)

    # Watching

    async def _run(self) -> None:
        while True:
            if not self._is_due():
                await self._wait_for_change()
            self._poked.clear()
            async with self._turn:
                await self._attend()

    async def _wait_for_change(self) -> None:
        """Wait until something is new, or it is time for a new spare."""
        wants_spare = self.crew.spare is None and not self.failed.is_set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(
                max(0.0, self._spare_from - time.monotonic()) if wants_spare else None
            ):
                await self._poked.wait()

    def _is_due(self) -> bool:
        active, spare = self.crew.active, self.crew.spare
        if self.failed.is_set():
            return active is not None and active.has_ended
        if active is None or active.has_ended or (spare is not None and spare.has_ended):
            return True
        if active.has_said("full"):
            return True
        if spare is None:
            return time.monotonic() >= self._spare_from
        return bool(spare.hung_because)

    async def _attend(self) -> None:
        """Do what is due; another turn may have done it meanwhile."""
        active, spare = self.crew.active, self.crew.spare
        if self.failed.is_set():
            if active is not None and active.has_ended:
                await self._replace_caretaker(active)
        elif active is None:
            await self._take_care(0.0, "", time.monotonic())
        elif active.has_ended:
            await self._succeed(active)
        elif active.take_event("full"):
            self.is_full = await self._host.note_full(self.plan.device)
            if not self.is_full:
                with contextlib.suppress(PartitionError):
                    await active.request("report")
        elif spare is not None and spare.has_ended:
            await self.crew.bury(spare)
            self._spare_from = time.monotonic() + SPARE_RETRY_S
        elif spare is not None and spare.hung_because and self.is_full:
            spare.hung_because = ""  # it waits for room, and so does the VM
        elif spare is not None and spare.hung_because:
            active.hung_because = spare.hung_because
            spare.hung_because = ""
            self.tell(DriverEventKind.HUNG, f"{active.describe()}: {active.hung_because}; it is ended")
            if self.keeper is not None:
                await self.keeper.kill()  # what hangs may be behind the driver
            await active.process.kill()
        elif spare is None and time.monotonic() >= self._spare_from:
            await self._provide_spare()

    async def _provide_spare(self) -> None:
        try:
            await self.crew.stand_by(await self._factories.get(self.plan.modules))
        except PartitionError:
            active = self.crew.active
            if active is not None and not active.died_at:
                self._spare_from = time.monotonic() + SPARE_RETRY_S
                await self._end_if_deaf(active)

    async def _end_if_deaf(self, active: Seat) -> None:
        """A driver that hangs before it has a spare hears no order either: nobody else would notice."""
        if not self.plan.hang_s:
            return
        try:
            await active.request("status", timeout_s=self.plan.hang_s)
        except PartitionError:
            if not active.has_ended and not active.died_at:
                active.hung_because = f"it answered no order for {self.plan.hang_s:g} s"
                self.tell(DriverEventKind.HUNG, f"{active.describe()}: {active.hung_because}; it is ended")
                await active.process.kill()

    # Succession

    async def _succeed(self, dead: Seat) -> None:
        """The active driver has ended: find out who serves now, or see to it that somebody does."""
        self.state = DeviceState.RECOVERING
        spare = self.crew.spare
        if spare is not None:
            await spare.wait_for("serving", "interrupted", "failed", timeout_s=TAKEOVER_TIMEOUT_S)
        if spare is not None and spare.has_said("serving"):
            delay_s = self._count_death(dead)
            await self.crew.bury(dead)
            await self.crew.seat_active(spare)
            # without patience left there is no spare until this one has shown that it lives
            self._spare_from = time.monotonic() + (FRUITFUL_S if delay_s is None else delay_s)
            self._recovered(spare, dead.died_at, "the spare took over")
            return
        if await self._host.wait_ended(timeout_s=ENDING_TOGETHER_S if dead.process.returncode == 0 else 0.0):
            await asyncio.Future()  # the VM ends, and so does this
        if self.is_leaving and dead.process.returncode == 0:
            await asyncio.sleep(LEAVING_S)  # the VMM closed the channel, and whoever asked for that is told
        await self.crew.dismiss_spare()
        delay_s = self._count_death(dead)
        await self.crew.bury(dead)
        await self._take_care(delay_s, dead.describe_end(), dead.died_at)

    async def _take_care(self, delay_s: float | None, reason: str, began: float) -> None:
        """Nobody serves: start a driver, again and again until one runs or patience ends.

        While that waits, a caretaker answers the VMM, which would wait with all its devices otherwise, and
        leaves the guest's requests alone.
        """
        if delay_s != 0.0 and self.crew.active is None:
            await self._begin_again(self._parked)
        while delay_s is not None:
            await asyncio.sleep(delay_s)
            seat = await self._begin_again()
            if seat is not None:
                self._recovered(seat, began, "a new one goes on")
                return
            if await self._host.wait_ended(timeout_s=0.0):
                await asyncio.Future()
            delay_s = self.backoff.died(time.monotonic(), lived_s=0.0, requests=0)
        await self._give_up(reason or self._trouble)

    async def _begin_again(self, driver: str = "") -> Seat | None:
        """A driver that serves, in the place of a caretaker if there is one; ``None``: see ``_trouble``."""
        crew = self.crew
        try:
            factory = await self._factories.get(self.plan.modules)
            if crew.active is not None and not crew.active.has_ended:
                return (await self._hand_over(crew.active, factory, driver))[0]
            if crew.active is not None:
                await crew.bury(crew.active)
            seat = await crew.inherit(factory, driver) if crew.heir.holds else None
            if seat is None:
                crew.heir.let_go()
                seat = await crew.serve_new(factory, driver)
                if not await self._wait_greeted(seat):
                    await seat.kill()
                    await crew.bury(seat)
                    return None
            return seat
        except PartitionError as error:
            self._trouble = error.message
            return None

    async def _wait_greeted(self, seat: Seat) -> bool:
        """Wait until the VMM has taken up a new connection; if not, ``_trouble`` says why."""
        deadline = time.monotonic() + SERVING_TIMEOUT_S
        while await seat.wait_for("serving", timeout_s=SERVING_TIMEOUT_S) and time.monotonic() < deadline:
            statistics = (await seat.request("status")).get("statistics")
            if isinstance(statistics, dict) and statistics.get("messages"):
                return True
            await asyncio.sleep(GREETING_POLL_S)
        self._trouble = seat.describe_end() if seat.has_ended else DEAF_VMM
        return False

    async def _give_up(self, reason: str) -> None:
        """The drivers keep dying."""
        await self._fail(f"{self.backoff.describe()}; the last one {reason}")

    async def _fail(self, reason: str) -> None:
        """Do what the policy says, and say why."""
        await self.crew.dismiss_spare()  # whoever stands in must not be succeeded by a driver
        self.state = DeviceState.FAILED
        self.reason = reason
        remedy = f"duovisor driver restart {self._host.name} {self.plan.device} tries again"
        if self.plan.on_failure is DriverFailure.REPORT:
            await self._begin_again(self._failing)
            what = "its requests wait" if self.plan.kind == "device" else "the guest is told of errors"
            if self.plan.kind == "net":
                self._set_link(up=False)
                what = "its link is down"
        else:
            self._paused_vm = await self._host.pause()
            what = "the VM is paused" if self._paused_vm else "nobody serves it"
        self.failed.set()
        self.tell(DriverEventKind.FAILED, f"{self.reason}; {what}; {remedy}")

    def _set_link(self, *, up: bool) -> None:
        """Begin to plug the cable in or out: the VMM asks the driver, which may end before it answers."""
        before = self._cable

        async def follow() -> None:
            if before is not None:
                await before
            await self._host.set_link(self.plan.device, up=up)

        self._cable = asyncio.create_task(follow())

    async def _replace_caretaker(self, dead: Seat) -> None:
        """Who stands in for the drivers of a device that was given up has ended, too."""
        await self.crew.bury(dead)
        if await self._host.wait_ended(timeout_s=ENDING_TOGETHER_S):
            await asyncio.Future()
        reports = self.plan.on_failure is DriverFailure.REPORT
        await self._begin_again(self._failing if reports else self._parked)

    # Telling

    def _count_death(self, dead: Seat) -> float | None:
        completed = self._read_completed()
        requests, self._completed_before = completed - self._completed_before, completed
        self._deaths += 1
        lived_s = max(0.0, dead.died_at - (dead.served_since or dead.died_at))
        killed = dead.process.returncode == -signal.SIGKILL and not dead.hung_because
        self.tell(DriverEventKind.DIED, f"{dead.describe()} {dead.describe_end()}")
        return self.backoff.died(dead.died_at, lived_s=lived_s, requests=requests, killed=killed)

    def _recovered(self, seat: Seat, since: float, how: str) -> None:
        self.state = DeviceState.RUNNING
        pause_ms = max(0.0, seat.served_since - since) * 1000
        self._last_pause_ms = pause_ms
        self.tell(DriverEventKind.RECOVERED, f"{how} after {pause_ms:.1f} ms, pid {seat.pid}")

    def _read_completed(self) -> int:
        """How many requests the device's drivers have completed since the VM started."""
        if self.crew.page < 0:
            return 0
        return Page.open(self.crew.page).completed

    def tell(self, kind: DriverEventKind, message: str) -> None:
        self._tell_owner(DriverEvent(kind, self.plan.device, message))

    async def stop_watching(self) -> None:
        """Do nothing more by itself; what runs goes on."""
        tasks = [task for task in (self._task, self._cable) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._task = self._cable = None


def parse_counters(status: dict[str, Any]) -> dict[str, int]:
    """The counters of a device in its driver's answer, which is not trusted: few, and numbers."""
    statistics = status.get("statistics")
    counted = statistics.get("device") if isinstance(statistics, dict) else None
    if not isinstance(counted, dict):
        return {}
    pairs = [(name, value) for name, value in counted.items() if type(value) is int and 0 <= value < 1 << 63]
    return {str(name)[:COUNTER_NAME_MAX]: value for name, value in pairs[:COUNTERS_MAX]}


def _describe_code(done: Replacement) -> str:
    changed = "same code" if done.old_code == done.new_code else f"code {done.old_code} → {done.new_code}"
    return f"{changed}, paused {done.pause_ms:.1f} ms"
