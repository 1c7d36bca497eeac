"""A program that another process started: recorded before it begins, known again, watched to its end."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from duovisor import process
from duovisor.process import ProgramNotFoundError
from duovisor.process_identity import ProcessIdentity, is_living, open_living, read_identity

if TYPE_CHECKING:
    from pathlib import Path


def start(folder: Path, script: str, record: process.Record) -> process.Process:
    argv = ("/bin/sh", "-c", script, "a b", "$c")
    return process.start(argv, role="test", log=folder / "log", record=record)


async def test_nothing_begins_before_it_is_recorded(tmp_path: Path) -> None:
    seen: list[ProcessIdentity] = []

    def record(started: process.Process) -> None:
        assert not (tmp_path / "begun").exists()
        assert is_living(started.identity)
        seen.append(started.identity)

    script = f'touch {tmp_path}/begun; echo "$$ $0 $1"; cat; exit 7'
    program = start(tmp_path, script, record)
    assert await program.wait() == 7
    assert (tmp_path / "log").read_text() == f"{seen[0].pid} a b $c\n"
    assert program.identity == seen[0]


async def test_what_cannot_be_recorded_does_not_begin(tmp_path: Path) -> None:
    tried: list[process.Process] = []

    def refuse(started: process.Process) -> None:
        tried.append(started)
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        start(tmp_path, f"touch {tmp_path}/begun", refuse)
    assert tried[0].has_ended
    assert not (tmp_path / "begun").exists()
    with pytest.raises(ProgramNotFoundError, match="cannot start /none"):
        process.start(["/none"], role="test", log=tmp_path / "log", record=tried.append)
    assert len(tried) == 1


async def test_released_and_adopted(tmp_path: Path) -> None:
    program = start(tmp_path, "trap 'exit 3' TERM; while :; do sleep 0.01; done", lambda started: None)
    identity = program.identity
    program.release()
    adopted = process.adopt(identity, program.argv, role="test", log=program.log, sandboxed=False)
    assert adopted is not None
    assert (adopted.pid, adopted.has_ended, adopted.returncode) == (identity.pid, False, None)
    await adopted.kill()
    assert adopted.has_ended
    assert process.adopt(identity, (), role="test", log=program.log, sandboxed=False) is None


async def test_how_somebody_else_s_child_ended_is_unknown(tmp_path: Path) -> None:
    """A grandchild: its parent has gone, as a killed service has."""
    program = process.run(["/bin/sh", "-c", "sleep 600 > /dev/null 2>&1 & echo $!"])
    identity = read_identity(int(program))
    adopted = process.adopt(identity, ("sleep",), role="test", log=tmp_path / "log", sandboxed=False)
    assert adopted is not None
    assert await adopted.kill() is None
    assert str(adopted.failure()) == "sleep ended without a word"


def test_a_reused_number_is_somebody_else() -> None:
    me = read_identity(os.getpid())
    assert is_living(me)
    pidfd = open_living(me)
    assert pidfd is not None
    os.close(pidfd)
    before = ProcessIdentity(me.pid, me.start_ticks - 1)
    assert not is_living(before)
    assert open_living(before) is None


def test_a_zombie_has_ended() -> None:
    child = os.fork()
    if child == 0:
        signal.pause()
    identity = read_identity(child)
    os.kill(child, signal.SIGKILL)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert not is_living(identity)
    assert open_living(identity) is None
    os.waitpid(child, 0)
