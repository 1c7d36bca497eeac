"""One signal, several for the same wish, and one of somebody who waits no longer."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys

import pytest

from duovisor.comparison.interruption import INTERRUPTED, SAME_WISH_S, SIGNALS, Interruption

# a task that takes its time to clean up, and says when it has
PROGRAM = """
import asyncio
from duovisor.comparison.interruption import handle_signals

async def main():
    handle_signals()
    print("ready", flush=True)
    try:
        await asyncio.Event().wait()
    finally:
        print("cleaning", flush=True)
        await asyncio.sleep(CLEANING)
        print("clean", flush=True)

try:
    asyncio.run(main())
except asyncio.CancelledError:
    print("interrupted", flush=True)
"""


async def wait_for_ever() -> None:
    await asyncio.Event().wait()


async def test_the_first_cancels_and_others_of_the_same_moment_do_nothing() -> None:
    now, left = [10.0], list[int]()
    task = asyncio.create_task(wait_for_ever())
    await asyncio.sleep(0)
    interruption = Interruption(task, left.append, lambda: now[0])
    interruption.take()
    now[0] += SAME_WISH_S / 2
    interruption.take()
    assert task.cancelling() == 1
    assert left == []
    now[0] += SAME_WISH_S
    interruption.take()
    assert task.cancelling() == 1
    assert left == [INTERRUPTED]
    with pytest.raises(asyncio.CancelledError):
        await task


def start(cleaning_s: float) -> subprocess.Popen[str]:
    program = PROGRAM.replace("CLEANING", str(cleaning_s))
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", SIGNALS)
def test_each_signal_twice_at_once_still_cleans_up(number: signal.Signals) -> None:
    with start(0.1) as process:
        for _ in range(2):
            process.send_signal(number)
        said, _ = process.communicate(timeout=60)
    assert said == "cleaning\nclean\ninterrupted\n"
    assert process.returncode == 0


def test_who_waits_no_longer_is_let_go() -> None:
    with start(1000) as process:
        assert process.stdout is not None
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "cleaning\n"
        while process.poll() is None:  # until one comes that is not of the same wish
            os.kill(process.pid, signal.SIGINT)
            with_patience(process)
    assert process.returncode == INTERRUPTED


def with_patience(process: subprocess.Popen[str]) -> None:
    """Wait a little for the end."""
    try:
        process.wait(0.2)
    except subprocess.TimeoutExpired:
        return
