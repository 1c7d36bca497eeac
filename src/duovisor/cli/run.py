"""``duovisor run``: a virtual machine in the foreground, its serial console on this terminal."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from duovisor.cli.output import json_option, print_json
from duovisor.cli.vm_options import build_document, vm_options

if TYPE_CHECKING:
    from duovisor.controlling.machine import Machine
    from duovisor.directories import Directories
    from duovisor.spec.vm import VirtualMachineSpec

EPILOG = """
\b
Examples:
  duovisor run --image probe
  duovisor run --image probe --design microkernelized --cpus 2 --memory 1G --nic user
  duovisor run server.toml --design microkernelized
  duovisor run --disk debian.raw --memory 2G --nic user --forward 2222:22
"""


@click.command(name="run", epilog=EPILOG)
@click.argument("spec_file", metavar="[SPEC]", required=False, type=click.Path(path_type=Path))
@vm_options
@json_option
def command(spec_file: Path | None, as_json: bool, **options: Any) -> int:
    """Run a virtual machine in the foreground.

    SPEC is a specification in TOML, YAML or JSON; options add to it or take the place of what it says. The
    serial console is on this terminal: Ctrl-] presses the VM's power button and leaves when it is off, a
    second Ctrl-] pulls the plug. With --json the console is not shown, and a summary is printed at the end.
    """
    from duovisor.directories import find_directories

    directories = find_directories()
    spec = build_spec_from(spec_file, options, directories)
    try:
        return asyncio.run(_run(spec, directories, as_json=as_json))
    except asyncio.CancelledError:
        raise click.Abort from None


def build_spec_from(
    spec_file: Path | None, options: dict[str, Any], directories: Directories
) -> VirtualMachineSpec:
    """The specification that file, image and options add up to. Raises ``DuovisorError``."""
    from duovisor.spec.loading import build_spec, load_document

    document = build_document(load_document(spec_file) if spec_file else {}, options)
    image_name = document.pop("image", None) if options["image"] is None else options["image"]
    if image_name is not None:
        from duovisor.controlling.images.boot import add_image
        from duovisor.controlling.images.store import load_image

        document = add_image(document, load_image(str(image_name), directories))
    document.setdefault("name", image_name or (spec_file.stem if spec_file else "vm"))
    return build_spec(document)


async def _run(spec: VirtualMachineSpec, directories: Directories, *, as_json: bool) -> int:
    from duovisor.controlling.machine import start_machine
    from duovisor.hardware.capabilities import read_capabilities

    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGHUP):  # until the VM runs; then they press its power button
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    capabilities = read_capabilities(directories.cache)
    started = time.monotonic()
    async with start_machine(spec, capabilities, directories) as machine:
        start_s = time.monotonic() - started
        if not as_json:
            _say(f"{spec.name}: {spec.design}, on {machine.decision.accelerator}; Ctrl-] ends it")
        await _stay(machine, show=not as_json)
        state = machine.vmm.state
    summary = {
        "name": spec.name,
        "design": spec.design,
        "accelerator": machine.decision.accelerator,
        "accelerator_reason": machine.decision.reason,
        "state": state,
        "start_s": round(start_s, 3),
        "ran_s": round(time.monotonic() - started, 3),
    }
    if as_json:
        print_json(summary)
    else:
        _say(f"{spec.name}: {state} after {summary['ran_s']:.1f} s")
    return 0 if state == "stopped" else 6


async def _stay(machine: Machine, *, show: bool) -> None:
    """Stay until the VM has ended; Ctrl-] or a signal asks it to, a second one makes it."""
    from duovisor.cli.terminal import attach_terminal
    from duovisor.hypervisor.lifecycle import ENDED

    ending: list[asyncio.Task[None]] = []

    def end() -> None:
        ending.append(asyncio.create_task(_end(machine, force=bool(ending))))

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, end)
    lost = asyncio.create_task(machine.wait_partition_lost())
    ended = asyncio.create_task(machine.vmm.wait_ended())
    with attach_terminal(machine.console, end) if show else contextlib.nullcontext():
        done, _ = await asyncio.wait({lost, ended}, return_when=asyncio.FIRST_COMPLETED)
    for task in (lost, ended, *ending):
        task.cancel()
    await asyncio.gather(lost, ended, *ending, return_exceptions=True)
    if ended not in done and machine.vmm.state not in ENDED:
        raise lost.result()


async def _end(machine: Machine, *, force: bool) -> None:
    if force:
        await machine.vmm.kill()
        return
    _say(f"{machine.spec.name}: power button pressed; again to pull the plug")
    if not await machine.shut_down():
        _say(f"{machine.spec.name}: the guest did not shut down; pulling the plug")
        await machine.vmm.kill()


def _say(text: str) -> None:
    # \r: the terminal may be raw
    click.echo(f"\r{click.style(text, dim=True)}\r", err=True)
    sys.stderr.flush()
