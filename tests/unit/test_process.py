"""The gate through which programs are started, with real programs."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from duovisor import process
from duovisor.process import (
    Process,
    ProgramFailedError,
    ProgramNotFoundError,
    ProgramTimeoutError,
    as_command_line,
    describe_exit,
    last_words,
    run,
    start,
)

STUBBORN = "trap '' TERM; echo ready; while :; do sleep 0.05; done"


def start_shell(folder: Path, script: str, **options: bool) -> Process:
    return start(["/bin/sh", "-c", script], role="test", log=folder / "log", **options)  # type: ignore[arg-type]  # flags only


async def wait_for_text(log: Path, text: str) -> None:
    async with asyncio.timeout(10):
        while text not in log.read_text():  # a file tells nobody that it has grown
            await asyncio.sleep(0.005)


def test_run_returns_the_output() -> None:
    assert run(["cat"], stdin=b"abc") == "abc"
    assert run(["/bin/sh", "-c", "echo $A; pwd"], env={"A": "b"}, cwd=Path("/")) == "b\n/\n"
    assert run(["cat"]) == ""  # no standard input is inherited


def test_run_says_what_the_program_said() -> None:
    with pytest.raises(ProgramFailedError) as caught:
        run(["/bin/sh", "-c", "echo one >&2; echo >&2; echo two >&2; exit 3"], remedy="do better")
    assert str(caught.value) == "sh exited with 3: one; two (do better)"
    assert caught.value.returncode == 3
    with pytest.raises(ProgramFailedError, match="sh exited with 1: to stdout"):
        run(["/bin/sh", "-c", "echo to stdout; exit 1"])
    with pytest.raises(ProgramFailedError, match="sh was killed by SIGKILL without a word"):
        run(["/bin/sh", "-c", "kill -9 $$"])


def test_run_ends_what_takes_too_long() -> None:
    started = time.monotonic()
    with pytest.raises(ProgramTimeoutError, match=r"sleep 60 did not finish within 0\.1 s"):
        run(["sleep", "60"], timeout_s=0.1)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("name", "said"),
    [("none", "No such file"), ("plain", "Permission denied"), ("plain/below", "Not a directory")],
)
def test_what_cannot_be_started(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "plain").write_text("not executable")
    program = str(tmp_path / name)
    with pytest.raises(ProgramNotFoundError, match=f"cannot start {program}: {said}"):
        run([program], remedy="install it")
    with pytest.raises(ProgramNotFoundError, match=said):
        start([program], role="test", log=tmp_path / "log")


def test_texts() -> None:
    assert describe_exit(0) == "exited with 0"
    assert describe_exit(-9) == "was killed by SIGKILL"
    assert describe_exit(-99) == "was killed by signal 99"
    assert last_words("a\n\n b \nc\nd\n") == "b; c; d"
    assert last_words("") == ""
    assert as_command_line(["a b", "$c", "d"]) == "'a b' '$c' d"


async def test_start_logs_and_waits(tmp_path: Path) -> None:
    program = start_shell(tmp_path, "echo out; echo err >&2; exit 4")
    assert list(await asyncio.gather(program.wait(), program.wait(), program.wait())) == [4, 4, 4]
    assert await program.wait() == 4  # after its end, too
    assert program.last_words() == "out; err"
    assert str(program.failure(remedy="r")) == "sh exited with 4: out; err (r)"
    assert program.returncode == 4


async def test_only_the_end_of_a_long_log_is_read(tmp_path: Path) -> None:
    program = start_shell(
        tmp_path, "head -c 3000000 /dev/zero | tr '\\0' x; echo; printf 'end \\377'; exit 1"
    )
    await program.wait()
    assert len(program.last_words()) <= process.LAST_WORDS_BYTES + 10
    assert program.last_words().endswith("end \N{REPLACEMENT CHARACTER}")
    (tmp_path / "log").unlink()
    assert program.last_words() == ""


async def test_stop_asks_first(tmp_path: Path) -> None:
    program = start_shell(tmp_path, "trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.05; done")
    await wait_for_text(tmp_path / "log", "ready")
    assert await program.stop() == 0
    assert program.last_words().endswith("bye")


async def test_stop_insists(tmp_path: Path) -> None:
    program = start_shell(tmp_path, STUBBORN)
    await wait_for_text(tmp_path / "log", "ready")
    assert await program.stop(grace_s=0.1) == -signal.SIGKILL
    assert await program.kill() == -signal.SIGKILL  # nothing happens: it is gone


async def test_a_cancelled_wait_leaves_the_process_and_other_waits(tmp_path: Path) -> None:
    program = start_shell(tmp_path, STUBBORN)
    first, second = (asyncio.create_task(program.wait()) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert program.returncode is None
    await program.kill()
    assert await second == -signal.SIGKILL


def test_kill_without_an_event_loop(tmp_path: Path) -> None:
    assert start_shell(tmp_path, STUBBORN).kill_now() == -signal.SIGKILL


async def test_descriptors_keep_their_numbers_and_no_other_is_inherited(tmp_path: Path) -> None:
    read, write = os.pipe()
    kept = os.open("/dev/null", os.O_RDONLY)
    program = start(
        ["/bin/bash", "-c", f"ls -l /proc/$$/fd; echo given >&{write}"],
        role="test", log=tmp_path / "log", pass_fds=(write,),
    )  # fmt: skip
    await program.wait()
    os.close(write)
    assert os.read(read, 10) == b"given\n"
    os.close(read)
    os.close(kept)
    links = [line.split() for line in (tmp_path / "log").read_text().splitlines() if " -> " in line]
    numbers = {words[words.index("->") - 1] for words in links}
    assert numbers <= {"0", "1", "2", str(write)}


async def test_no_descriptor_of_ours_is_left(tmp_path: Path) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(5):
        await start_shell(tmp_path, "exit 0").wait()
        await start_shell(tmp_path, STUBBORN).kill()
    assert sorted(os.listdir("/proc/self/fd")) == before


OWNER = """
import sys, time
from pathlib import Path
from duovisor.process import start
program = start(["sleep", "600"], role="test", log=Path(sys.argv[1]), die_with_owner=sys.argv[2] == "dies")
print(program.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("fate", ["dies", "stays"])
def test_a_program_may_end_with_its_owner(tmp_path: Path, fate: str) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path / "log"), fate], stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    pid = int(owner.stdout.readline())
    watch = os.pidfd_open(pid)
    owner.kill()
    owner.wait()
    owner.stdout.close()
    ended = process_ended(watch, timeout_s=5 if fate == "dies" else 0.3)
    if not ended:
        signal.pidfd_send_signal(watch, signal.SIGKILL)
    os.close(watch)
    assert ended == (fate == "dies")


def process_ended(pidfd: int, *, timeout_s: float) -> bool:
    return bool(select.select([pidfd], [], [], timeout_s)[0])
