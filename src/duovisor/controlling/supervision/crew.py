"""The partitions of one device: making them, telling each its duty, and what they share.

``active`` serves, ``spare`` stands by with a copy of its session, ``newcomer`` has no duty yet. They share
the page on which a driver notes that it is in the middle of a message; the heir holds the owner's copy of
the session.
"""

from __future__ import annotations

import json
import os
import socket
from typing import TYPE_CHECKING

from duovisor.channel.page import create_page
from duovisor.controlling.description import Duty, describe_process
from duovisor.controlling.errors import PartitionError
from duovisor.controlling.partitions.control import bind_listener
from duovisor.controlling.supervision.heir import Heir
from duovisor.controlling.supervision.seat import Seat

if TYPE_CHECKING:
    from collections.abc import Callable

    from duovisor.controlling.description import ProcessDescription
    from duovisor.controlling.partitions.factory import PartitionFactory
    from duovisor.controlling.supervision.plan import DevicePlan, Host

SERVING_TIMEOUT_S = 5.0
FACTS_CHARACTERS = 4096


class Crew:
    """``page`` is a descriptor, -1 before the first partition; the crew owns it.

    ``notify`` is called when a partition said something or ended.
    """

    def __init__(self, plan: DevicePlan, host: Host, notify: Callable[[], None]) -> None:
        self.plan = plan
        self.heir = Heir()
        self.page = -1
        self.active: Seat | None = None
        self.spare: Seat | None = None
        self.newcomer: Seat | None = None
        self._host = host
        self._facts = ""  # what the driver told of its device, for who stands in for it
        self.notify = notify

    def describe(self) -> list[ProcessDescription]:
        """The partitions there are, for the VM's description."""
        found = []
        for seat, duty in ((self.active, Duty.ACTIVE), (self.spare, Duty.SPARE), (self.newcomer, Duty.NONE)):
            if seat is not None and not seat.has_ended:
                described = describe_process(seat.process, self.plan.device)
                found.append(described.model_copy(update={"duty": duty, "control": seat.control_name}))
        return found

    async def serve_new(self, factory: PartitionFactory, driver: str = "") -> Seat:
        """A partition that serves on a new connection. Raises ``PartitionError``; nothing is left then."""
        with self._host.connect(self.plan.device) as channel:
            seat = await self._enlist(factory)
            try:
                await self._assign(seat, "serve", {"channel": channel.fileno()}, driver=driver)
            except BaseException:
                await self._dismiss_newcomer()
                raise
        await self.seat_active(seat)
        return seat

    async def inherit(self, factory: PartitionFactory, driver: str = "") -> Seat | None:
        """A partition that goes on with the session that the heir holds; ``None`` if that cannot be.

        The partition that sent it must have ended. Raises ``PartitionError`` when none can be started.
        """
        seat = await self._enlist(factory)
        try:
            bequest = self.heir.bequeath()
            if bequest is not None:
                with bequest:
                    await self._assign(seat, "stand_by", {"succession": bequest.fileno()}, driver=driver)
                if await seat.wait_for("serving", "interrupted", "failed", timeout_s=SERVING_TIMEOUT_S):
                    if seat.has_said("serving"):
                        await self.seat_active(seat)
                        return seat
        except PartitionError:
            pass  # as if there had been nothing to inherit
        except BaseException:
            await self._dismiss_newcomer()
            raise
        await self._dismiss_newcomer()
        return None

    async def stand_by(self, factory: PartitionFactory, driver: str = "") -> Seat:
        """A partition that will succeed the active one. Raises ``PartitionError``; nothing is left then."""
        active = self.active
        if active is None or active.has_ended:
            raise PartitionError(f"{self.plan.device} has no driver that could have a spare")
        seat = await self._enlist(factory)
        try:
            theirs, ours = _make_pair()
            with theirs, ours:
                watched = _watch(active)
                try:
                    descriptors = {"succession": ours.fileno(), "active": watched}
                    await self._assign(seat, "stand_by", descriptors, driver=driver, hang_s=self.plan.hang_s)
                finally:
                    os.close(watched)
                await active.request("add_successor", {"succession": theirs.fileno()}, name="spare")
        except BaseException:
            await self._dismiss_newcomer()
            raise
        self.spare, self.newcomer = seat, None
        self._host.record()
        return seat

    async def seat_active(self, seat: Seat) -> None:
        """``seat`` serves from now on, and the heir is told of its session."""
        self.active = seat
        if seat is self.spare:
            self.spare = None
        if seat is self.newcomer:
            self.newcomer = None
        self._host.record()
        with self.heir.open() as theirs:
            try:
                await seat.request("add_successor", {"succession": theirs.fileno()}, name="owner")
                if self.plan.is_known_by_facts:
                    told = (await seat.request("status")).get("device")
                    self._facts = json.dumps(told)[:FACTS_CHARACTERS]
            except PartitionError:
                return  # it has just ended; whoever waits for that sees it

    async def end(self) -> None:
        """End all partitions and close what they shared."""
        for seat in self._all():
            await seat.stop()
        for path in self._host.run_dir.glob(f"{self.plan.device}.*.control"):
            path.unlink(missing_ok=True)  # also of one that was just being dismissed
        self.close_shared()

    async def detach(self) -> None:
        """Let go of all partitions, which go on."""
        for seat in self._all():
            await seat.close()
        self.close_shared()

    def close_shared(self) -> None:
        """Close what the partitions shared with us."""
        self.heir.close()
        if self.page >= 0:
            os.close(self.page)
            self.page = -1
        self.active = self.spare = self.newcomer = None

    async def dismiss_spare(self) -> None:
        """End the spare, if there is one."""
        spare, self.spare = self.spare, None
        if spare is not None:
            await spare.kill()
            self._remove_socket(spare)

    async def bury(self, seat: Seat) -> None:
        """Let go of a partition that has ended."""
        if seat is self.active:
            self.active = None
        if seat is self.spare:
            self.spare = None
        await seat.close()
        self._remove_socket(seat)

    def _all(self) -> list[Seat]:
        return [seat for seat in (self.active, self.spare, self.newcomer) if seat is not None]

    async def _enlist(self, factory: PartitionFactory) -> Seat:
        """A partition that is written down and waits for its duty."""
        plan, name = self.plan, self._host.name
        partition = await factory.create(
            name=f"{name}/{plan.device}",
            uid=plan.uid,
            gid=plan.uid,
            log=self._host.run_dir / f"{plan.device}.log",
            limits=plan.limits,
            role=plan.role,
        )
        control_name = f"{plan.device}.{partition.process.pid}.control"
        code = plan.code_of(factory.code)
        seat = Seat(partition.process, partition.control, code, control_name, self.notify)
        self.newcomer = seat
        try:
            self._host.record()
        except BaseException:
            await self._dismiss_newcomer()
            raise
        return seat

    async def _assign(
        self, seat: Seat, order: str, descriptors: dict[str, int], *, driver: str = "", hang_s: float = 0.0
    ) -> None:
        if self.page < 0:
            self.page = create_page()
        plan = self.plan
        words = [self._facts] if driver and self._facts else list(plan.words)
        fields = {"driver": driver or plan.driver, "options": words, "poll_us": plan.poll_us}
        if any(plan.rate):
            fields["rate"] = list(plan.rate)
        if order == "stand_by":
            fields["hang_s"] = hang_s
        with bind_listener(self._host.run_dir / seat.control_name) as listener:
            given = {"listener": listener.fileno(), "page": self.page, **plan.descriptors, **descriptors}
            async with self._host.page_memory() as paging:
                await seat.request(order, {**given, **paging}, **fields)

    async def _dismiss_newcomer(self) -> None:
        seat, self.newcomer = self.newcomer, None
        if seat is not None:
            await seat.kill()
            self._remove_socket(seat)
            self._host.record()

    def _remove_socket(self, seat: Seat) -> None:
        (self._host.run_dir / seat.control_name).unlink(missing_ok=True)


def _make_pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def _watch(seat: Seat) -> int:
    try:
        return seat.process.duplicate_pidfd()
    except ProcessLookupError as error:
        raise PartitionError(str(error)) from error
