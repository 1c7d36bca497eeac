"""The commands of the control socket: the subset of QMP by which ``hypervisor/vmm.py`` drives a VMM."""

from __future__ import annotations

from duovisor.hypervisor.errors import HypervisorError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from duovisor.hypervisor.thin.machine import Machine

    Command = Callable[[dict[str, Any]], Any]


def build_commands(machine: Machine, descriptors: dict[str, int]) -> dict[str, Command]:
    """The table of commands; ``descriptors`` are those that came with ``getfd``.

    Names and results are QEMU's, but for those that begin with ``x-duovisor-``.
    """

    def query_status() -> dict[str, Any]:
        return {"status": machine.status, "running": machine.status == "running"}

    def do(action: Callable[[], object]) -> Command:
        def run(_: dict[str, Any]) -> Any:
            action()
            return {}

        return run

    def save(arguments: dict[str, Any]) -> dict[str, Any]:
        """Write the paused machine's state, without its memory, to a descriptor, and close that."""
        descriptor = descriptors.pop(str(arguments["fdname"]), None)
        if descriptor is None:
            raise HypervisorError(f"no descriptor was sent as {arguments['fdname']}")
        with open(descriptor, "wb", buffering=0) as target:
            state = memoryview(machine.save())
            try:
                while state:
                    state = state[target.write(state) :]
            except OSError as error:
                raise HypervisorError(f"the state cannot be written: {error.strerror}") from error
        return {}

    return {
        "query-status": lambda _: query_status(),
        "cont": do(machine.cont),
        "stop": do(machine.stop),
        "system_reset": do(lambda: machine.reset(guest=False, reason="host-qmp-system-reset")),
        "system_powerdown": do(machine.press_power_button),
        "quit": do(lambda: machine.end(guest=False, reason="host-qmp-quit")),
        "x-duovisor-save": save,
        "x-duovisor-exits": lambda _: machine.count_exits(),
    }
