"""The machine's state out of this VMM and into its successor, beside it on the same memory.

Who moves a QEMU (``hypervisor/migration/handover.py``) moves this VMM too: the commands, their order and the
events are those of QEMU's migration with ``x-ignore-shared``; what goes through the pipe is our own state.
A command is answered first and carried out after, for the other end of the pipe may be who asked.
"""

from __future__ import annotations

import os
import select
import time

from duovisor.hypervisor.errors import HypervisorError
from duovisor.hypervisor.thin.errors import ThinConfigError
from duovisor.hypervisor.thin.state import STATE_BYTES_MAX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from duovisor.hypervisor.thin.machine import Emit, Machine

    Command = Callable[[dict[str, Any]], Any]

ABILITIES = ("x-ignore-shared", "late-block-activate", "events")
PIPE_TIMEOUT_S = 10.0
PART_BYTES = 256 << 10
_URI = "fd:"


class HandOver:
    """Saving and loading; ``descriptors`` are those that came with ``getfd``, ``emit`` tells of events."""

    def __init__(self, machine: Machine, descriptors: dict[str, int], emit: Emit) -> None:
        self._machine = machine
        self._descriptors = descriptors
        self._emit = emit
        self._status = "none"
        self._problem = ""
        self._work: Callable[[], None] | None = None

    def build_commands(self) -> dict[str, Command]:
        """The commands by name."""
        return {
            "query-migrate-capabilities": lambda _: [
                {"capability": name, "state": True} for name in ABILITIES
            ],
            "migrate-set-capabilities": self._set_capabilities,
            "migrate-set-parameters": lambda _: {},
            "migrate": self._begin_save,
            "migrate-incoming": self._begin_load,
            "migrate_cancel": lambda _: {},  # between two turns of the loop nothing is under way
            "query-migrate": self._query,
            "closefd": self._close,
        }

    def work(self) -> None:
        """Do what was asked for. Raises ``ThinConfigError`` for a state that cannot be loaded: the end."""
        work, self._work = self._work, None
        if work is not None:
            work()

    def _set_capabilities(self, arguments: dict[str, Any]) -> dict[str, Any]:
        if unknown := {str(each["capability"]) for each in arguments["capabilities"]} - set(ABILITIES):
            raise HypervisorError(f"this VMM has no {', '.join(sorted(unknown))}")
        return {}

    def _query(self, _: dict[str, Any]) -> dict[str, Any]:
        if self._status == "none":
            return {}
        return {"status": self._status, **({"error-desc": self._problem} if self._problem else {})}

    def _close(self, arguments: dict[str, Any]) -> dict[str, Any]:
        os.close(self._take(str(arguments["fdname"])))
        return {}

    def _take(self, name: str) -> int:
        descriptor = self._descriptors.pop(name, None)
        if descriptor is None:
            raise HypervisorError(f"no descriptor was sent as {name}")
        return descriptor

    def _take_pipe(self, arguments: dict[str, Any]) -> int:
        uri = str(arguments["uri"])
        if not uri.startswith(_URI):
            raise HypervisorError(f"{uri}: a state goes only through a descriptor, fd:NAME")
        return self._take(uri.removeprefix(_URI))

    def _begin_save(self, arguments: dict[str, Any]) -> dict[str, Any]:
        pipe = self._take_pipe(arguments)
        self._step("setup")
        self._work = lambda: self._save(pipe)
        return {}

    def _begin_load(self, arguments: dict[str, Any]) -> dict[str, Any]:
        if not self._machine.is_incoming:
            raise HypervisorError("this VMM was not started to take on a state")
        pipe = self._take_pipe(arguments)
        self._step("setup")
        self._work = lambda: self._load(pipe)
        return {}

    def _save(self, pipe: int) -> None:
        self._step("active")
        try:
            self._machine.stop()
            write_all(pipe, self._machine.save())
        except (HypervisorError, OSError) as error:
            self._problem = str(error)
            self._step("failed")
        else:
            self._step("completed")
        finally:
            os.close(pipe)

    def _load(self, pipe: int) -> None:
        self._step("active")
        try:
            self._machine.restore(read_all(pipe))
        except OSError as error:
            raise ThinConfigError(f"the state cannot be read: {error}") from error
        finally:
            os.close(pipe)
        self._step("completed")

    def _step(self, status: str) -> None:
        self._status = status
        self._emit("MIGRATION", {"status": status})


def write_all(pipe: int, data: bytes) -> None:
    """Write as the reader takes it. Raises ``OSError``, ``TimeoutError`` for one that takes nothing."""
    left = memoryview(data)
    while left:
        _wait(pipe, select.POLLOUT)
        try:
            left = left[os.write(pipe, left[:PART_BYTES]) :]
        except BlockingIOError:
            time.sleep(0.001)  # ready for less than the part


def read_all(pipe: int) -> bytes:
    """Read to the end. Raises ``OSError``, ``TimeoutError`` for a writer that stops half-way."""
    data = bytearray()
    while len(data) <= STATE_BYTES_MAX:
        _wait(pipe, select.POLLIN)
        part = os.read(pipe, PART_BYTES)
        if not part:
            return bytes(data)
        data += part
    raise OSError(f"it has more than {STATE_BYTES_MAX} bytes")


def _wait(pipe: int, events: int) -> None:
    poller = select.poll()
    poller.register(pipe, events)
    if not poller.poll(PIPE_TIMEOUT_S * 1000):
        raise TimeoutError(f"the other end did nothing for {PIPE_TIMEOUT_S:g} s")
