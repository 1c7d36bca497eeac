"""A thin VMM's process: ``python -m duovisor.hypervisor.thin --config JSON --descriptor NAME=NUMBER…``.

Or ``--birth NUMBER KVM``, and these words come later.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import threading

from duovisor.channel.event_loop import EventLoop
from duovisor.errors import DuovisorError
from duovisor.hypervisor.thin.birth import BIRTH, await_words
from duovisor.hypervisor.thin.config import CONTROL, STATE, parse_arguments
from duovisor.hypervisor.thin.control import ControlServer
from duovisor.hypervisor.thin.hand_over import HandOver
from duovisor.hypervisor.thin.log import tell
from duovisor.hypervisor.thin.machine import SHUT_DOWN, Machine, create_vm
from duovisor.hypervisor.thin.monitor import build_commands
from duovisor.hypervisor.thin.seccomp import confine
from duovisor.hypervisor.thin.state import STATE_BYTES_MAX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from duovisor.hypervisor.thin.kvm import VirtualMachine


STACK_BYTES = 512 << 10  # of each processor's thread; the C library's 8 MiB count as the process's own


def main(arguments: Sequence[str]) -> int:
    """Run the machine to its end; the exit status."""
    try:
        if arguments[0] == BIRTH:
            return run_later(int(arguments[1]), int(arguments[2]))
        return run(arguments)
    except (DuovisorError, OSError) as error:
        tell("thin VMM", str(error))
        return 1


def run_later(birth: int, kvm: int) -> int:
    """Be ready for a machine that does not exist yet, then run it; an error waits for it, too."""
    problem, vm = None, None
    try:
        vm = create_vm(kvm)
    except DuovisorError as error:
        problem = error
    words = await_words(birth)
    if problem is not None:
        raise problem
    return run(words, vm)


def run(arguments: Sequence[str], vm: VirtualMachine | None = None) -> int:
    """Build the machine, wait for its drivers, then do what the control socket says."""
    threading.stack_size(STACK_BYTES)
    config = parse_arguments(arguments)
    loop = EventLoop()
    server: ControlServer | None = None

    def emit(event: str, data: dict[str, Any]) -> None:
        if server is not None:
            server.emit(event, data)

    machine = Machine(config, loop, emit, vm)
    saved = config.descriptors.get(STATE)
    if saved is None and not machine.is_incoming:
        machine.load_kernel()
    machine.wait_drivers()
    if saved is not None:
        with open(saved, "rb") as file:
            machine.restore(file.read(STATE_BYTES_MAX))
    descriptors: dict[str, int] = {}
    hand_over = HandOver(machine, descriptors, emit)
    commands = {**build_commands(machine, descriptors), **hand_over.build_commands()}
    server = ControlServer(socket.socket(fileno=config.descriptors[CONTROL]), loop, commands, descriptors)

    terminated = threading.Event()

    def terminate(*_: object) -> None:
        terminated.set()  # no more: it may be in the middle of anything
        loop.wake()

    signal.signal(signal.SIGTERM, terminate)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.freeze()
    server.start()
    confine()
    while machine.status != SHUT_DOWN:
        loop.turn()
        hand_over.work()
        if terminated.is_set() and machine.status != SHUT_DOWN:
            machine.end(guest=False, reason="host-signal")
    server.close()
    return 0


if __name__ == "__main__":
    # at once: the interpreter's own end would meet threads that are still in it
    os._exit(main(sys.argv[1:]))
