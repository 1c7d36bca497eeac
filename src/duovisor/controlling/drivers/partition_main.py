"""What a partition runs once it is confined: a gate, then one driver, active or as a spare.

Nothing happens before its owner says so on the birth connection: the owner writes down first that this
process exists. Exit status: 0 after an orderly end, 1 after an error, whose last line on standard error says
why, 3 for a spare that could not take over.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import threading
import time
import traceback
from enum import StrEnum

from duovisor.channel.backend import Backend
from duovisor.channel.device import check_device, read_device_config
from duovisor.channel.event_loop import EventLoop
from duovisor.channel.page import Page
from duovisor.channel.standby import Outcome, Standby
from duovisor.controlling.drivers import system_calls
from duovisor.controlling.drivers.block import SWITCH_INTERVAL_S
from duovisor.controlling.drivers.block_protocol import BlockProtocol
from duovisor.controlling.drivers.bounded_log import print_to
from duovisor.controlling.drivers.confinement import BIRTH, LOG
from duovisor.controlling.drivers.control_server import ControlServer
from duovisor.controlling.drivers.errors import DriverError
from duovisor.controlling.drivers.memory_on_demand import MemoryOnDemand
from duovisor.controlling.drivers.net_device import NetDevice
from duovisor.controlling.drivers.net_throttle import NetThrottle
from duovisor.controlling.drivers.orders import Assignment, parse_assignment, parse_name, parse_rate
from duovisor.controlling.drivers.pager import Pager, parse_load, parse_pace
from duovisor.controlling.drivers.resting import describe_device
from duovisor.controlling.drivers.throttle import Throttle
from duovisor.errors import DuovisorError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    from duovisor.channel.device import VirtioDevice
    from duovisor.controlling.drivers.control import Packet
    from duovisor.controlling.drivers.registry import CreateDevice

EXIT_FAILED = 1
EXIT_INTERRUPTED = 3
THREAD_STACK_BYTES = 512 * 1024


class Role(StrEnum):
    """What a partition does."""

    IDLE = "idle"
    ACTIVE = "active"
    SPARE = "spare"
    PAGER = "pager"


def run_partition(become: Callable[[], None], drivers: dict[str, CreateDevice], code: str) -> NoReturn:
    """Confine this process, which ``become`` does, and serve until the end of it."""
    status = EXIT_FAILED
    try:
        system_calls.set_name("driver")
        become()
        print_to(LOG)
        gc.enable()
        status = Partition(socket.socket(fileno=BIRTH), drivers, code).run()
    except BaseException as error:  # nothing may go back to the factory's code
        traceback.print_exc()
        say("partition", f"{type(error).__name__}: {error}")
    finally:
        os._exit(status)


def say(who: str, line: str) -> None:
    """One line in the log, if there is room: a full disk is no reason to stop serving."""
    try:
        sys.stderr.flush()
        os.write(LOG, f"{who}: {line}\n".encode(errors="replace"))
    except OSError:
        pass


class Partition:
    """The process of one driver: its control connections, its device, and its part in serving it."""

    def __init__(self, birth: socket.socket, drivers: dict[str, CreateDevice], code: str) -> None:
        self._drivers = drivers
        self._code = code
        self._role = Role.IDLE
        self._assignment: Assignment | None = None
        self._device: VirtioDevice | None = None
        self._backend: Backend | None = None
        self._standby: Standby | None = None
        self._pager: Pager | None = None
        self._throttle: Throttle | None = None
        self._card_throttle: NetThrottle | None = None
        self._hung: dict[str, object] | None = None
        self._facts: dict[str, Any] | None = None
        self._ends = False
        self._refused = False
        self._loop = EventLoop()
        self._control = ControlServer(self._loop, birth, self._obey, self._abandoned)
        self._orders: dict[str, Callable[[Packet], dict[str, Any]]] = {
            "serve": self._begin,
            "stand_by": self._begin,
            "load": self._load,
            "add_successor": self._add_successor,
            "hand_over": self._hand_over,
            "attach": self._attach,
            "retry": self._retry,
            "limit": self._limit,
            "report": self._report_errors,
            "status": self._status,
            "end": self._end,
        }

    def run(self) -> int:
        """Wait at the gate, serve, and return the exit status."""
        signal.signal(signal.SIGTERM, lambda *_: self._stop())
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        threading.stack_size(THREAD_STACK_BYTES)
        self._control.announce("ready")
        try:
            while self._role is Role.IDLE and not self._ends:
                self._loop.turn()
            if self._role is Role.IDLE:
                return EXIT_FAILED if self._refused else 0
            return self._work()
        except DuovisorError as error:
            self._fail(str(error))
        except Exception as error:
            traceback.print_exc()
            self._fail(f"{type(error).__name__}: {error}")
        return EXIT_FAILED

    def _work(self) -> int:
        if self._pager is not None:
            self._pager.run(lambda: self._ends)
            return 0
        connection = "new"
        if self._standby is not None:
            outcome = self._standby.run()
            if outcome is Outcome.INTERRUPTED:
                self._say("the driver before this one died in the middle of a message; not taking over")
                self._control.announce("interrupted")
                return EXIT_INTERRUPTED
            if outcome is not Outcome.TOOK_OVER:
                return 0
            self._backend = self._standby.backend
            self._role = Role.ACTIVE
            connection = "inherited"
        assert self._backend is not None
        self._control.announce("serving", connection=connection)
        if self._ends:
            self._backend.stop()  # told to before there was a back end
        self._backend.run()
        if self._device is not None:
            self._device.close()
        return 0

    # Orders

    def _obey(self, packet: Packet) -> dict[str, Any]:
        order = self._orders.get(str(packet.message.get("do")))
        if order is None:
            raise DriverError(f"order {packet.message.get('do')!r} is unknown")
        return order(packet)

    def _begin(self, packet: Packet) -> dict[str, Any]:
        if self._role is not Role.IDLE:
            raise DriverError(f"this partition has its assignment: {self._role}")
        assignment = parse_assignment(packet)
        self._assignment = assignment
        create = self._drivers.get(assignment.driver)
        try:
            if create is None:
                raise DriverError(f"there is no driver of that name, but {', '.join(self._drivers)}")
            self._device = create(assignment.options, assignment.take_others())
            if isinstance(self._device, BlockProtocol):
                self._device.on_full = self._full
            check_device(self._device)
            read_device_config(self._device)
            self._facts = describe_device(self._device)
            self._set_rate(assignment.rate)
            self._start(assignment, self._device)
        except DuovisorError as error:
            self._ends = self._refused = True  # nothing half-made serves: the owner makes another
            self._say(str(error))
            raise
        finally:
            assignment.close()
        return {}

    def _load(self, packet: Packet) -> dict[str, Any]:
        """This is no driver, but fills the memory of the guest."""
        if self._role is not Role.IDLE:
            raise DriverError(f"this partition has its assignment: {self._role}")
        given, pace_s = parse_load(packet)
        try:
            self._pager = Pager(self._loop, given, pace_s, lambda: self._control.announce("loaded"))
        except OSError as error:
            self._ends = self._refused = True
            raise DriverError(f"the memory cannot be loaded: {error.strerror}") from error
        self._role = Role.PAGER
        self._control.listen(socket.socket(fileno=given["listener"]))
        return self._pager.report()

    def _start(self, assignment: Assignment, device: VirtioDevice) -> None:
        page = Page.open(assignment.find("page"))
        maker, pager = assignment.take("userfault"), assignment.take("pager")
        if maker is not None and pager is not None:
            device.on_demand = MemoryOnDemand(maker, pager, self._loop)
        listener = assignment.take_socket("listener")
        if assignment.stands_by:
            self._standby = Standby(
                device, page=page, succession=assignment.require_socket("succession"),
                active=assignment.take("active"), hang_s=assignment.hang_s, on_hang=self._hangs,
                poll_us=assignment.poll_us, report=self._report, loop=self._loop,
            )  # fmt: skip
            self._role = Role.SPARE
        else:
            self._backend = Backend(
                assignment.require_socket("channel"), device, poll_us=assignment.poll_us,
                report=self._report, page=page, loop=self._loop,
            )  # fmt: skip
            self._role = Role.ACTIVE
        if listener is not None:
            self._control.listen(listener)

    def _active_backend(self) -> Backend:
        if self._backend is None or self._role is not Role.ACTIVE:
            raise DriverError(f"this partition is {self._role}, not active")
        return self._backend

    def _add_successor(self, packet: Packet) -> dict[str, Any]:
        backend, name = self._active_backend(), parse_name(packet, "name")
        descriptor = packet.take_descriptors().get("succession")
        if descriptor is None:
            raise DriverError("add_successor needs the descriptor succession")
        if not backend.add_successor(name, socket.socket(fileno=descriptor)):
            raise DriverError(f"{name} does not take the snapshot")
        return {}

    def _hand_over(self, packet: Packet) -> dict[str, Any]:
        name = parse_name(packet, "to")
        if not self._active_backend().hand_over(name):
            raise DriverError(f"{name} does not take over; this driver goes on")
        return {}

    def _attach(self, packet: Packet) -> dict[str, Any]:
        if self._pager is not None:
            for descriptor in packet.take_descriptors().values():
                self._pager.add(descriptor)
            return {}
        attach = getattr(self._device, "attach", None)
        if attach is None:
            raise DriverError("this device takes no descriptors")
        for name, descriptor in packet.take_descriptors().items():
            attach(name, descriptor)
        return {}

    def _retry(self, _: Packet) -> dict[str, Any]:
        if isinstance(self._device, BlockProtocol):
            self._device.retry()
        return {}

    def _report_errors(self, _: Packet) -> dict[str, Any]:
        if isinstance(self._device, BlockProtocol):
            self._device.report()
        return {}

    def _limit(self, packet: Packet) -> dict[str, Any]:
        if self._pager is not None:
            self._pager.pace_s = parse_pace(packet)
            return {}
        self._set_rate(parse_rate(packet.message))
        return {}

    def _set_rate(self, rate: tuple[int, int]) -> None:
        if isinstance(self._device, NetDevice):
            self._limit_card(self._device, rate)
        if self._throttle is None and any(rate) and isinstance(self._device, BlockProtocol):
            self._throttle = Throttle(self._device, self._loop)
        if self._throttle is not None:
            self._throttle.set_rate(*rate)

    def _limit_card(self, card: NetDevice, rate: tuple[int, int]) -> None:
        if self._card_throttle is None and any(rate):
            self._card_throttle = NetThrottle(self._loop, self._reap)
        if self._card_throttle is not None:
            self._card_throttle.set_rate(*rate)
            card.throttle = self._card_throttle
            self._reap()
            if self._card_throttle.is_idle:
                card.throttle = None

    def _reap(self) -> None:
        """The throttle of a card lets more through."""
        if self._backend is not None:
            self._backend.reap()

    def _status(self, _: Packet) -> dict[str, Any]:
        if self._pager is not None:
            return self._pager.report()
        return {
            "role": self._role,
            "driver": self._assignment.driver if self._assignment else None,
            "code": self._code,
            "ready": self._backend is not None or (self._standby is not None and self._standby.ready),
            "hung": self._hung,
            "full": isinstance(self._device, BlockProtocol) and bool(self._device.parked),
            "device": self._facts,
            "statistics": self._backend.statistics() if self._backend else None,
        }

    def _end(self, _: Packet) -> dict[str, Any]:
        self._stop()
        return {}

    # Events

    def _stop(self) -> None:
        """Drain and end; may be called from a signal handler."""
        self._ends = True
        if self._backend is not None:
            self._backend.stop()
        if self._standby is not None:
            self._standby.stop()
        self._loop.wake()

    def _abandoned(self) -> None:
        if self._role is Role.IDLE:
            self._ends = True  # whoever made this process is gone, or has thought better of it

    def _hangs(self, queue: int | None, seconds: float) -> None:
        self._hung = {"queue": queue, "seconds": seconds, "at": time.time()}
        self._control.announce("hung", queue=queue, seconds=seconds)

    def _full(self) -> None:
        self._say("no room is left for what the guest writes; it waits")
        self._control.announce("full")

    def _report(self, line: str) -> None:
        self._say(line)
        self._control.announce("queue_failed", message=line)

    def _fail(self, message: str) -> None:
        self._say(message)
        self._control.announce("failed", message=message)

    def _say(self, line: str) -> None:
        say(f"{self._assignment.driver} driver" if self._assignment else "partition", line)
