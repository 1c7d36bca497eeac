"""The vCPUs, each a thread in KVM_RUN, and stopping them all.

A thread runs guest code, lets the buses answer an exit, and goes on. To stop it, its ``immediate_exit`` is
set and it gets a signal: KVM finishes the access that is half done and returns (api.rst, KVM_RUN); then the
thread waits. So a stopped processor's registers are whole, and the interpreter's lock is free while the guest
runs. What an exit cannot settle by itself is a happening: the main thread is told, with everything stopped.
"""

from __future__ import annotations

import signal
import threading
from collections import deque

from duovisor.hypervisor.thin import kvm_abi as abi
from duovisor.hypervisor.thin.exits import ExitHandler

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from duovisor.hypervisor.thin.bus import Bus
    from duovisor.hypervisor.thin.kvm_vcpu import Vcpu

KICK = signal.SIGUSR1
STOP_TIMEOUT_S = 10.0

# what happened
RESET, SHUTDOWN, PANIC, FAILED = "reset", "shutdown", "panic", "failed"


class Processors:
    """All vCPUs of a machine; they begin stopped. ``wake`` is called when something happened."""

    def __init__(
        self, vcpus: Sequence[Vcpu], memory_space: Bus, io_space: Bus, wake: Callable[[], None]
    ) -> None:
        self._vcpus = tuple(vcpus)
        self._wake = wake
        self._happenings: deque[tuple[str, str]] = deque()
        self._changed = threading.Condition()
        self._running = False
        self._stopped = 0
        self._handlers = [ExitHandler(vcpu.run_view, memory_space, io_space) for vcpu in vcpus]
        signal.signal(KICK, lambda *_: None)  # its only use is to interrupt KVM_RUN
        self._threads = [
            threading.Thread(target=self._run, args=(vcpu, handler), name=f"vcpu{vcpu.index}", daemon=True)
            for vcpu, handler in zip(self._vcpus, self._handlers, strict=True)
        ]
        for vcpu in self._vcpus:
            vcpu.ask_to_leave(asked=True)
        for thread in self._threads:
            thread.start()

    @property
    def running(self) -> bool:
        return self._running

    def resume(self) -> None:
        """Let them run guest code."""
        with self._changed:
            for vcpu in self._vcpus:
                vcpu.ask_to_leave(asked=False)
            self._running = True
            self._changed.notify_all()

    def pause(self) -> None:
        """Stop them all and wait until each has. Raises ``TimeoutError``."""
        self._running = False
        for vcpu, thread in zip(self._vcpus, self._threads, strict=True):
            vcpu.ask_to_leave(asked=True)
            if thread.ident is not None and thread.is_alive():
                signal.pthread_kill(thread.ident, KICK)
        with self._changed:
            if not self._changed.wait_for(lambda: self._stopped == len(self._vcpus), STOP_TIMEOUT_S):
                raise TimeoutError(f"a processor did not stop within {STOP_TIMEOUT_S:g} s")

    def happen(self, what: str, detail: str = "") -> None:
        """Report something from a processor's thread, which runs no guest code from here on."""
        self._happenings.append((what, detail))
        for vcpu in self._vcpus:
            vcpu.ask_to_leave(asked=True)
        self._running = False
        self._wake()

    def take_happening(self) -> tuple[str, str] | None:
        """The next thing that happened; at most one for each processor waits here."""
        return self._happenings.popleft() if self._happenings else None

    def forget_happenings(self) -> None:
        """What happened was another life's; all processors are stopped."""
        self._happenings.clear()

    def count_exits(self) -> dict[str, int]:
        """How often guest code was left for this process, by kind, since the start."""
        kinds = ("io", "mmio", "other")
        return {kind: sum(handler.counts[kind] for handler in self._handlers) for kind in kinds}

    def _run(self, vcpu: Vcpu, handler: ExitHandler) -> None:
        while True:
            self._wait_running()
            try:
                self._run_guest(vcpu, handler)
            except Exception as error:  # whatever it is: a processor must not stand still unnoticed
                self.happen(FAILED, f"vCPU {vcpu.index}: {error!r}")

    def _wait_running(self) -> None:
        with self._changed:
            self._stopped += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._running)
            self._stopped -= 1

    def _run_guest(self, vcpu: Vcpu, handler: ExitHandler) -> None:
        """Run guest code until it is to stop."""
        while True:
            match vcpu.run():
                case None:
                    if not self._running:
                        return
                case abi.EXIT_MMIO:
                    handler.handle_mmio()
                case abi.EXIT_IO:
                    handler.handle_io()
                case abi.EXIT_SHUTDOWN:  # a triple fault: a PC's processor resets the machine
                    self.happen(RESET, "triple fault")
                case reason:
                    handler.counts["other"] += 1
                    if reason != abi.EXIT_INTR:
                        self.happen(FAILED, f"vCPU {vcpu.index}: {handler.describe(reason)}")
