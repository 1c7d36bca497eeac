"""A running VM moves to another VMM: of the other design, and back."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from bench.switch_guest import parse_pings
from tests.networks import BRIDGE, HOST
from tests.vm.test_network import Peer

from duovisor.controlling.images.probe import PORT_NAME
from duovisor.controlling.images.probe_client import connect_probe
from duovisor.controlling.images.storage_jobs import run_verify
from duovisor.controlling.moving.errors import MoveFailedError
from duovisor.controlling.moving.move import move
from duovisor.controlling.moving.report import Step
from duovisor.hardware.qemu_probe import probe_qemu
from duovisor.hypervisor.lifecycle import State
from duovisor.hypervisor.migration import handover
from duovisor.hypervisor.migration.translator import AllowedFeatures, translate
from duovisor.process import run
from duovisor.spec.vm import Design

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.vm.conftest import Guest

    from duovisor.controlling.machine import Machine
    from duovisor.controlling.moving.report import MoveReport
    from duovisor.hardware.capabilities import HostCapabilities

    Boot = Callable[..., Awaitable[Guest]]

pytestmark = pytest.mark.vm
THERE_AND_BACK = (Design.MICROKERNELIZED, Design.MONOLITHIC)


def build_disks(scratch: Path) -> tuple[list[dict[str, str]], Path]:
    """A raw disk and one in a format, as of a specification; and the latter's file."""
    formatted = scratch.with_suffix(".qcow2")
    run(["qemu-img", "convert", "-O", "qcow2", str(scratch), str(formatted)])
    return [{"path": str(scratch)}, {"path": str(formatted), "format": "qcow2"}], formatted


async def test_there_and_back(boot: Boot, scratch: Path, capabilities: HostCapabilities) -> None:
    disks, formatted = build_disks(scratch)
    guest = await boot(Design.MONOLITHIC, disks=disks)
    machine = guest.machine
    assert await guest.output("echo here > /tmp/mark; cat /tmp/mark") == "here\n"
    there, back = THERE_AND_BACK
    for design in (there, back, there, there, back, back):
        report = await move(machine, design, capabilities)
        assert machine.vmm.state is State.RUNNING
        assert (report.new_design, machine.spec.design) == (design, design)
        async with connect_probe(machine.port_path(PORT_NAME)) as probe:
            assert (await probe.run("cat /tmp/mark", timeout_s=120)).output == b"here\n"
            assert await run_verify(probe, "/dev/vda", size_mib=8) == "ok"
            assert await run_verify(probe, "/dev/vdb", size_mib=8) == "ok"
    assert machine.current.number == 7
    await machine.clean_up()
    run(["qemu-img", "check", "-q", "-f", "qcow2", str(formatted)])


class Saboteur:
    """Does ``harm`` to a move when it comes to a step; ``task`` is the move."""

    def __init__(
        self,
        machine: Machine,
        step: Step,
        harm: Callable[[Saboteur], None],
        patch: pytest.MonkeyPatch,
    ) -> None:
        self.machine = machine
        self.patch = patch
        self.task: asyncio.Task[MoveReport]
        self.done = False
        self._step, self._harm = step, harm

    def __call__(self, step: Step) -> None:
        if step is self._step:
            self.done = True
            self._harm(self)

    @property
    def new_vmm(self) -> int:
        assert self.machine.other is not None
        assert self.machine.other.vmm.process is not None
        return self.machine.other.vmm.process.program_pid()


def kill_new_vmm(saboteur: Saboteur) -> None:
    os.kill(saboteur.new_vmm, signal.SIGKILL)


def hang_new_vmm(saboteur: Saboteur) -> None:
    """It does nothing any more, which is not waited for as long as otherwise."""
    waits = handover.Waiting.load.__kwdefaults__
    assert waits is not None
    saboteur.patch.setitem(waits, "timeout_s", 1.0)
    os.kill(saboteur.new_vmm, signal.SIGSTOP)


def interrupt(saboteur: Saboteur) -> None:
    saboteur.task.cancel()


def truncate(saboteur: Saboteur) -> None:
    """The old VMM's state arrives with its end cut off."""
    vmm = saboteur.machine.vmm
    save = vmm.save_state

    async def save_in_part() -> bytes:
        return (await save())[:-1000]

    saboteur.patch.setattr(vmm, "save_state", save_in_part)


def mismatch(saboteur: Saboteur) -> None:
    """The guest uses what the other VMM does not offer."""
    nothing = AllowedFeatures(disk=0, bridged_nic=0)
    saboteur.patch.setattr("duovisor.controlling.moving.move.translate", partial(translate, allowed=nothing))


def disturb(_: Saboteur) -> None:
    raise MoveFailedError("for the test")


FAILURES: tuple[tuple[Callable[[Saboteur], None], tuple[Step, ...]], ...] = (
    (kill_new_vmm, (Step.SAVE, Step.LOAD, Step.GO)),
    (disturb, (Step.START, Step.PAUSE, Step.TRANSLATE, Step.HAND_OVER, Step.GO)),
    (interrupt, (Step.START, Step.PAUSE, Step.LOAD)),
    (hang_new_vmm, (Step.LOAD,)),
    (truncate, (Step.SAVE,)),
    (mismatch, (Step.SAVE,)),
)


@pytest.mark.parametrize("design", Design)
async def test_what_fails_leaves_the_vm_as_it_was(
    boot: Boot,
    scratch: Path,
    capabilities: HostCapabilities,
    monkeypatch: pytest.MonkeyPatch,
    design: Design,
) -> None:
    guest = await boot(design, disks=build_disks(scratch)[0])
    machine = guest.machine
    (other,) = {*Design} - {design}
    pid = machine.description.processes[0].pid
    for harm, steps in FAILURES:
        for step in steps:
            with pytest.MonkeyPatch.context() as patch:
                saboteur = Saboteur(machine, step, harm, patch)
                saboteur.task = asyncio.create_task(move(machine, other, capabilities, saboteur))
                with pytest.raises((MoveFailedError, asyncio.CancelledError)):
                    await saboteur.task
            where = f"{harm.__name__} at {step}"
            assert saboteur.done, where
            assert (machine.vmm.state, machine.spec.design) == (State.RUNNING, design), where
            assert (machine.current.number, machine.other) == (1, None), where
            assert machine.description.processes[0].pid == pid, where
            folders = sorted(path.name for path in machine.run_dir.iterdir() if path.is_dir())
            assert folders == ["1", "current"], where
            read = "dd of=/dev/null bs=64k count=4 iflag=direct"
            await guest.output(f"{read} if=/dev/vda; {read} if=/dev/vdb")
    assert await run_verify(guest.probe, "/dev/vda", size_mib=8) == "ok"
    assert await run_verify(guest.probe, "/dev/vdb", size_mib=8) == "ok"
    late = Saboteur(
        machine, Step.HAND_OVER, interrupt, monkeypatch
    )  # the point of no return is before the next step
    late.task = asyncio.create_task(move(machine, other, capabilities, late))
    assert (await late.task).new_design is other
    async with connect_probe(machine.port_path(PORT_NAME)) as probe:
        assert await run_verify(probe, "/dev/vda", size_mib=8) == "ok"


@pytest.mark.parametrize("step", [Step.LOAD, Step.GO])
async def test_drivers_die_while_they_take_over(
    boot: Boot, scratch: Path, capabilities: HostCapabilities, step: Step
) -> None:
    """The new VMM gets others, or the move fails: the guest goes on either way, and nothing is lost."""
    guest = await boot(Design.MONOLITHIC, disks=[{"path": str(scratch)}])
    machine = guest.machine

    def kill_drivers(reached: Step) -> None:
        if reached is step:
            assert machine.other is not None
            for pid in machine.other.devices["disk0"].pids:
                os.kill(pid, signal.SIGKILL)

    try:
        await move(machine, Design.MICROKERNELIZED, capabilities, kill_drivers)
    except MoveFailedError:
        assert machine.spec.design is Design.MONOLITHIC
    assert machine.vmm.state is State.RUNNING
    async with connect_probe(machine.port_path(PORT_NAME)) as probe:
        assert await run_verify(probe, "/dev/vda", size_mib=8) == "ok"


@pytest.mark.usefixtures("network")
async def test_streams_and_pings_go_on(boot: Boot, scratch: Path, capabilities: HostCapabilities) -> None:
    nics = [{"bridge": BRIDGE, "mac": "52:54:00:77:00:02"}]
    guest = await boot(Design.MONOLITHIC, nics=nics, disks=[{"path": str(scratch)}])
    machine = guest.machine
    await guest.output(
        f"killall udhcpc; ip addr add 10.77.0.2/24 dev eth0; ip link set eth0 up; ping -c1 -W5 {HOST}"
    )
    peer = Peer(mib=48)
    await guest.output(f"(nc {HOST} {peer.port} | md5sum > /tmp/sum; touch /tmp/end) > /dev/null 2>&1 & true")
    await guest.output(
        f"(ping -i 0.01 -c 400 -W 5 {HOST} > /tmp/ping; touch /tmp/pinged) > /dev/null 2>&1 & true"
    )
    for design in THERE_AND_BACK * 2:
        await asyncio.sleep(0.3)
        await move(machine, design, capabilities)
    async with connect_probe(machine.port_path(PORT_NAME)) as probe:
        wait = "while [ ! -e /tmp/end -o ! -e /tmp/pinged ]; do sleep 0.1; done"
        done = await probe.run(f"{wait}; cat /tmp/sum; grep ^IcmpMsg /proc/net/snmp", timeout_s=120)
    said = done.output.decode()
    assert said.split()[0] == peer.finish()
    sent, answered = parse_pings(said)
    assert sent == answered >= 400


@pytest.mark.parametrize("design", Design)
async def test_another_process_takes_over(
    boot: Boot, scratch: Path, capabilities: HostCapabilities, design: Design
) -> None:
    """The same design: what `vm update-vmm` does; with DUOVISOR_OTHER_QEMU, to a QEMU of another version."""
    other = os.environ.get("DUOVISOR_OTHER_QEMU")
    guest = await boot(design, disks=[{"path": str(scratch)}])
    if other:
        capabilities = replace(capabilities, qemu_path=Path(other), qemu=probe_qemu(Path(other)))
    for _ in range(2):
        report = await move(guest.machine, design, capabilities)
        assert (report.old_design, report.new_design) == (design, design)
        assert report.old_pid != report.new_pid
        async with connect_probe(guest.machine.port_path(PORT_NAME)) as probe:
            assert await run_verify(probe, "/dev/vda", size_mib=8) == "ok"
