"""A VMM process from its plan to its end, against a fake VMM that is a real process."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
import sys
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.recorded.abilities import load_abilities
from tests.unit.hypervisor import fake_vmm

from duovisor.hypervisor import qmp, vmm
from duovisor.hypervisor.build import build_launch_plan
from duovisor.hypervisor.errors import (
    HypervisorError,
    QmpError,
    QmpTimeoutError,
    VmmGoneError,
    VmmStartError,
    WrongStateError,
)
from duovisor.hypervisor.lifecycle import State
from duovisor.hypervisor.memory import MemoryFileError, create_memory_file
from duovisor.hypervisor.plan import VmmPaths
from duovisor.hypervisor.vmm import Vmm
from duovisor.process import ProgramNotFoundError
from duovisor.sandbox import SandboxTools
from duovisor.spec.loading import build_spec
from duovisor.spec.vm import Accelerator

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

TOOLS = SandboxTools(Path("/usr/bin/bwrap"), Path("/usr/bin/setpriv"), as_root=os.geteuid() == 0)
BORN = [State.DEFINED, State.STARTING, State.RUNNING]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: a Unix socket's may have 107 bytes. What a test leaves in it fails the test."""
    with tempfile.TemporaryDirectory(prefix="dvt-", dir="/tmp") as name:
        path = Path(name)
        (path / "run").mkdir()
        yield path
        assert {each.name for each in (path / "run").iterdir()} <= {"vmm.log"}


def write_program(folder: Path, behaviour: str) -> Path:
    """The fake VMM as a program; its own arguments come after the behaviour."""
    program = folder / "fake-qemu"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -E "{fake_vmm.__file__}" {behaviour} "$@"\n')
    program.chmod(0o755)
    return program


def build_vmm(folder: Path, behaviour: str) -> Vmm:
    """A VMM of the monolithic design, not yet prepared."""
    spec = build_spec({"name": "vm", "memory": "16M", "ports": ["a"]})
    paths = VmmPaths(qemu=write_program(folder, behaviour), memory_file=folder / "memory")
    plan = build_launch_plan(spec, load_abilities("7.2"), Accelerator.TCG, paths)
    return Vmm(plan, folder / "run", TOOLS)


@asynccontextmanager
async def started(folder: Path, behaviour: str) -> AsyncIterator[Vmm]:
    """A VMM that was prepared and launched, and is cleaned up; its process must be gone then."""
    machine = build_vmm(folder, behaviour)
    try:
        machine.prepare()
        machine.launch(folder / "console.log", die_with_owner=False)
        yield machine
    finally:
        await machine.clean_up()
        if machine.process is not None:
            assert machine.process.returncode is not None


@asynccontextmanager
async def running(folder: Path, behaviour: str = "works") -> AsyncIterator[Vmm]:
    async with started(folder, behaviour) as machine:
        await machine.run()
        assert machine.lifecycle.history == BORN
        yield machine


def test_prepare_makes_what_the_plan_says(folder: Path) -> None:
    machine = build_vmm(folder, "works")
    machine.prepare()
    for name in ("qmp", "console", "port0"):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(machine.socket_path(name)))  # before the process exists
    assert machine.state is State.DEFINED
    asyncio.run(machine.clean_up())


def test_memory_is_one_sparse_private_file(folder: Path) -> None:
    create_memory_file(folder / "memory", 16, None)
    memory = (folder / "memory").stat()
    assert (memory.st_size, stat.S_IMODE(memory.st_mode), memory.st_blocks) == (16 << 20, 0o600, 0)


def test_memory_that_does_not_fit_is_refused(folder: Path) -> None:
    with pytest.raises(MemoryFileError, match="MiB of guest memory do not fit"):
        create_memory_file(folder / "memory", 1 << 40, None)
    assert not (folder / "memory").exists()


async def test_a_socket_path_that_is_too_long_is_refused(folder: Path) -> None:
    machine = build_vmm(folder, "works")
    machine.run_dir = folder / "run" / ("x" * 120)
    machine.run_dir.mkdir()
    with pytest.raises(HypervisorError) as caught:
        machine.prepare()
    assert caught.value.remedy == "choose a shorter DUOVISOR_RUNTIME_DIR"
    await machine.clean_up()
    machine.run_dir.rmdir()


async def test_guest_shuts_down(folder: Path) -> None:
    async with running(folder) as machine:
        await machine.press_power_button()
        assert await machine.wait_ended(timeout_s=60) is State.STOPPED
        assert machine.lifecycle.history == [*BORN, State.STOPPING, State.STOPPED]


async def test_pause_resume_reset(folder: Path) -> None:
    async with running(folder) as machine:
        await machine.pause()
        assert machine.state is State.PAUSED
        await machine.reset()
        await machine.resume()
        await machine.reset()
        assert machine.lifecycle.history == [*BORN, State.PAUSED, State.RUNNING]


async def test_kill(folder: Path) -> None:
    async with running(folder) as machine:
        await machine.kill()
        assert machine.lifecycle.history == [*BORN, State.STOPPING, State.STOPPED]
        await machine.kill()  # a second time is no error


async def test_kill_while_paused(folder: Path) -> None:
    async with running(folder) as machine:
        await machine.pause()
        await machine.kill()
        assert machine.lifecycle.history == [*BORN, State.PAUSED, State.STOPPING, State.STOPPED]


async def test_kill_9_from_outside_is_a_crash(folder: Path) -> None:
    async with running(folder) as machine:
        assert machine.process is not None
        os.kill(machine.process.pid, signal.SIGKILL)
        assert await machine.wait_ended(timeout_s=60) is State.CRASHED
        assert machine.lifecycle.history == [*BORN, State.CRASHED]
        assert machine.process.returncode == -signal.SIGKILL


async def test_wrong_states(folder: Path) -> None:
    async with running(folder) as machine:
        with pytest.raises(WrongStateError, match="cannot resume vm: it is running"):
            await machine.resume()
        await machine.pause()
        with pytest.raises(WrongStateError, match="cannot pause vm: it is paused"):
            await machine.pause()
        with pytest.raises(WrongStateError, match="cannot shut down vm: it is paused"):
            await machine.press_power_button()
        await machine.kill()
        for action in (machine.pause, machine.resume, machine.reset, machine.press_power_button):
            with pytest.raises(WrongStateError, match="it is stopped"):
                await action()


async def test_leaving_while_it_runs_leaves_nothing(folder: Path) -> None:
    async with running(folder, "ignores") as machine:
        await machine.press_power_button()
        with pytest.raises(TimeoutError):
            await machine.wait_ended(timeout_s=0.1)
        assert machine.lifecycle.history == BORN
    assert machine.lifecycle.history == [*BORN, State.STOPPING, State.STOPPED]


@pytest.mark.parametrize("behaviour", ["dies", "dies-connected", "dies-at-cont"])
async def test_death_at_start_shows_the_last_words(folder: Path, behaviour: str) -> None:
    async with started(folder, behaviour) as machine:
        with pytest.raises(VmmStartError) as caught:
            await machine.run()
        assert str(caught.value) == (
            "vm: fake-qemu exited with 1: first words; qemu: could not open the moon"
        )
        assert machine.lifecycle.history == [State.DEFINED, State.STARTING, State.CRASHED]


async def test_a_guest_that_ends_at_once_was_started(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with started(folder, "brief") as machine:
        cont = machine._qmp.cont

        async def cont_late() -> None:
            await cont()
            await machine.lifecycle.wait_for(())  # all is over before anybody looks

        monkeypatch.setattr(machine._qmp, "cont", cont_late)
        await machine.run()
        assert machine.lifecycle.history == [*BORN, State.STOPPING, State.STOPPED]


async def test_silence_ends_at_the_deadline(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vmm, "START_TIMEOUT_S", 0.3)
    async with started(folder, "silent") as machine:
        with pytest.raises(QmpTimeoutError, match=r"vm did not greet on QMP within 0\.3 s"):
            await machine.run()


async def test_a_deaf_vmm_ends_at_the_deadline(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with started(folder, "deaf") as machine:
        monkeypatch.setattr(qmp, "COMMAND_TIMEOUT_S", 0.3)
        with pytest.raises(QmpTimeoutError, match="cont did not answer within"):
            await machine.run()


async def test_a_refusal_says_why(folder: Path) -> None:
    async with started(folder, "refuses") as machine:
        with pytest.raises(QmpError, match="vm: cont: not today"):
            await machine.run()


async def test_something_that_is_not_qmp(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vmm, "END_TIMEOUT_S", 0.1)
    async with started(folder, "garbage") as machine:
        with pytest.raises(VmmGoneError, match="vm: no VMM answers on QMP"):
            await machine.run()


async def test_a_program_that_does_not_exist(folder: Path) -> None:
    machine = build_vmm(folder, "works")
    (folder / "fake-qemu").unlink()
    machine.prepare()
    with pytest.raises(ProgramNotFoundError, match=r"cannot start .*/fake-qemu: No such file or directory"):
        machine.launch(folder / "console.log", die_with_owner=False)
    await machine.clean_up()


async def test_the_vmm_appends_to_the_console_log(folder: Path) -> None:
    """Even after the file was emptied by another process: it goes on at its beginning."""
    log = folder / "console.log"
    async with running(folder) as machine:
        assert stat.S_IMODE(log.stat().st_mode) == 0o600
        assert log.read_bytes() == fake_vmm.PRINTED
        os.truncate(log, 0)
        await machine.pause()
        await machine.resume()
        assert log.read_bytes() == fake_vmm.PRINTED
    async with running(folder):
        assert log.read_bytes() == 2 * fake_vmm.PRINTED


async def test_a_console_log_that_cannot_be_opened(folder: Path) -> None:
    machine = build_vmm(folder, "works")
    machine.prepare()
    with pytest.raises(HypervisorError, match=r"cannot open the console's log .*/none/log: No such file"):
        machine.launch(folder / "none" / "log", die_with_owner=False)
    await machine.clean_up()


async def test_many_lives_at_once(folder: Path) -> None:
    """Several VMMs in one event loop do not take each other's events."""
    folders = [folder / str(index) for index in range(4)]
    for each in folders:
        (each / "run").mkdir(parents=True)

    async def live(each: Path) -> list[State]:
        async with running(each) as machine:
            await machine.pause()
            await machine.resume()
            await machine.press_power_button()
            await machine.wait_ended(timeout_s=20)
        return machine.lifecycle.history

    expected = [*BORN, State.PAUSED, State.RUNNING, State.STOPPING, State.STOPPED]
    assert await asyncio.gather(*map(live, folders)) == [expected] * 4


async def test_the_last_event_is_read_before_the_end_is_told(folder: Path) -> None:
    """The shutdown event and the process's end race each other; the state between is never skipped."""
    for _ in range(10):
        async with running(folder) as machine:
            await machine.press_power_button()
            await machine.wait_ended(timeout_s=60)
            assert machine.lifecycle.history == [*BORN, State.STOPPING, State.STOPPED]
