"""``duovisor run``: a throw-away virtual machine, its serial console on this terminal."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from duovisor.cli.connection import connect
from duovisor.cli.output import json_option, print_json
from duovisor.cli.vm_options import vm_options

if TYPE_CHECKING:
    from duovisor.client.service import ServiceClient
    from duovisor.spec.vm import VirtualMachineSpec

    Document = dict[str, Any]

EPILOG = """
\b
Examples:
  duovisor run --image probe
  duovisor run --image probe --design microkernelized --cpus 2 --memory 1G --nic user
  duovisor run server.toml --design microkernelized
  duovisor run --disk debian.raw --memory 2G --nic user --forward 2222:22
"""
FAILED = 6
GRACE_S = 20.0  # for a guest that was asked to shut down


@click.command(name="run", epilog=EPILOG)
@click.argument("spec_file", metavar="[SPEC]", required=False, type=click.Path(path_type=Path))
@vm_options
@json_option
def command(spec_file: Path | None, as_json: bool, **options: Any) -> int:
    """Run a throw-away virtual machine in the foreground.

    SPEC is a specification in TOML, YAML or JSON; options add to it or take the place of what it says. The
    serial console is on this terminal: Ctrl-] presses the VM's power button and leaves when it is off, a
    second Ctrl-] pulls the plug. Its definition is gone then, its disks stay. With --json the console is not
    shown, and a summary is printed at the end.
    """
    from duovisor.cli.vm_document import build_spec_from, find_kernel_image

    client = connect()
    spec = build_spec_from(spec_file, options, lambda name: find_kernel_image(client, name))
    return run(client, spec, as_json=as_json)


def run(client: ServiceClient, spec: VirtualMachineSpec, *, as_json: bool) -> int:
    """Run a VM to its end; returns the exit code. Raises ``DuovisorError``."""
    from duovisor.cli.console_session import ConsoleSession
    from duovisor.cli.terminal import open_terminal
    from duovisor.cli.throwaway import throwaway_vm
    from duovisor.client.service import vm_path

    started = time.monotonic()
    with throwaway_vm(client, spec, quiet=True) as after:
        start_s = time.monotonic() - started
        status = client.get(vm_path(spec.name))["status"]
        if not as_json:
            _say(f"{spec.name}: {spec.design}, on {status['accelerator'] or 'nothing'}; Ctrl-] ends it")
        owner = Owner(client, spec.name)
        with contextlib.nullcontext() if as_json else open_terminal() as terminal:
            ConsoleSession(client, spec.name, owner, terminal, after).run()
        state = client.get(vm_path(spec.name))["status"]["state"]
    owner.raise_fault()
    summary = {
        "name": spec.name,
        "design": spec.design,
        "accelerator": status["accelerator"],
        "accelerator_reason": status["accelerator_reason"],
        "state": state,
        "start_s": round(start_s, 3),
        "ran_s": round(time.monotonic() - started, 3),
    }
    if as_json:
        print_json(summary)
    else:
        _say(f"{spec.name}: {state} after {summary['ran_s']:.1f} s")
    return 0 if state == "stopped" else FAILED


class Owner:
    """Presses the power button at the first Ctrl-], pulls the plug at the next or when the guest will not."""

    def __init__(self, client: ServiceClient, name: str) -> None:
        self._client = client
        self._name = name
        self._shutdown: Document | None = None
        self._is_pulled = False
        self._fault = ""

    def on_escape(self) -> bool:
        if self._shutdown is None:
            self._press()
        elif not self._is_pulled:
            self._is_pulled = True
            self._cancel_shutdown()
        return False

    def on_event(self, event: Document) -> bool:
        """What the VM's ends, faults and shutdowns lead to; true when there is nothing left to stay for."""
        match event["action"], event["outcome"]:
            case (("vm.stopped" | "vm.crashed"), _):
                return True
            case "vm.fault", _:
                self._fault = event["message"]
                return True
            case "vm.shutdown", ("failed" | "cancelled" | "interrupted"):
                if not self._is_pulled:
                    _say(f"{self._name}: the guest did not shut down; pulling the plug")
                self._is_pulled = True
                self._pull()
        return False

    def raise_fault(self) -> None:
        """Raise ``ApiError`` when the VM lost a driver, without which it could not go on."""
        from duovisor.client.errors import ApiError

        if self._fault:
            raise ApiError("partition-failed", self._fault)

    def _press(self) -> None:
        from duovisor.client.errors import ApiError

        _say(f"{self._name}: power button pressed; again to pull the plug")
        try:
            self._shutdown = self._client.act(self._name, "shutdown", {"timeout_s": GRACE_S})
        except ApiError:  # paused, resetting, or ended this moment: there is nobody to ask
            self._shutdown, self._is_pulled = {}, True
            self._pull()

    def _cancel_shutdown(self) -> None:
        from duovisor.client.errors import ApiError

        assert self._shutdown is not None
        with contextlib.suppress(ApiError):  # it has ended, of which an event will tell
            self._client.request("POST", f"/v1/operations/{self._shutdown['id']}/cancel")

    def _pull(self) -> None:
        from duovisor.client.errors import ApiError

        with contextlib.suppress(ApiError):  # off already, of which an event will tell
            self._client.act(self._name, "stop")


def _say(text: str) -> None:
    from duovisor.cli.vm_console import say

    say(text)
