"""Kills what lives on a host with -9 at step after step of its life; tests of what the next one makes of it.

A step is anything that touches the host (Python's audit events: files, sockets, processes) or the store. For
each step number a child is forked that lives and kills itself there; then the next one recovers and host and
store are compared.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import traceback
from abc import ABC, abstractmethod
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duovisor.controlling.store.errors import StoreInUseError
from duovisor.controlling.store.sqlite import open_sqlite_store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from duovisor.controlling.store.interface import Store

TESTS = Path(__file__).parents[2]
# events that change nothing outside this process, or are no step of ours
IGNORED = (
    "object.",
    "code.",
    "compile",
    "exec",
    "import",
    "marshal.",
    "sys.",
    "builtins.",
    "ctypes.",
    "array.",
)
NEVER = 1 << 62


class Steps:
    """Counts steps, and kills this process at the one that was asked for."""

    def __init__(self, fatal: int) -> None:
        self._left = fatal
        sys.addaudithook(self._on_event)

    def _on_event(self, event: str, _: tuple[Any, ...]) -> None:
        if not event.startswith(IGNORED):
            self.count()

    def count(self) -> None:
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def count_store_steps(store: Store, count: Callable[[], None]) -> None:
    """Make each write a step before and a step after it."""
    for name in ("put", "commit", "delete"):
        write = getattr(store, name)

        async def counted(*arguments: Any, write: Any = write, **options: Any) -> Any:
            count()
            result = await write(*arguments, **options)
            count()
            return result

        setattr(store, name, counted)


class KillTrials(ABC):
    """One host, with its state in ``state``, on which one life after the other is killed.

    ``acknowledged`` is a file in which a life notes what it was told is done.
    """

    def __init__(self, root: Path, state: Path) -> None:
        self.state = state
        self.acknowledged = root / "acknowledged"
        self.kinds: Counter[str] = Counter()
        self.violations: list[str] = []

    @abstractmethod
    async def live(self, steps: Steps) -> None:
        """The life, with a note of each thing that was acknowledged."""

    @abstractmethod
    async def recover(self, step: int) -> None:
        """What the next one makes of it, which ends what it finds; differences become ``violations``."""

    def kill_at(self, step: int, *, after_s: float | None = None) -> bool:
        """Let a life go on until this step, or for so many seconds; returns whether it came that far."""
        self.acknowledged.write_text("")
        child = os.fork()
        if child == 0:
            try:
                if after_s is not None:  # SIGALRM, not handled, ends it as SIGKILL does
                    signal.setitimer(signal.ITIMER_REAL, after_s)
                asyncio.run(self.live(Steps(step)))
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        status = os.waitpid(child, 0)[1]
        if status not in (0, signal.SIGKILL, signal.SIGALRM):
            self.violations.append(f"step {step}: it failed by itself ({status})")
        return status != 0

    @asynccontextmanager
    async def open_store(self, steps: Steps | None = None) -> AsyncIterator[Store]:
        """A program that the dead one was just starting has its locks still, until it has begun."""
        async with AsyncExitStack() as stack:
            for _ in range(200):
                try:
                    store = await stack.enter_async_context(open_sqlite_store(self.state / "store.sqlite"))
                except StoreInUseError:
                    await asyncio.sleep(0.02)
                    continue
                if steps is not None:
                    count_store_steps(store, steps.count)
                yield store
                return
            raise TimeoutError("somebody has the store")

    def run(self, first: int, every: int) -> dict[str, Any]:
        """Kill and recover until a life is over before its step comes."""
        killed, step = 0, first
        while self.kill_at(step):
            asyncio.run(self.recover(step))
            killed += 1
            step += every
        return self.describe(killed)

    def describe(self, killed: int) -> dict[str, Any]:
        return {"killed": killed, "kinds": self.kinds, "violations": self.violations}


def run_program(module: str, root: Path, *arguments: str) -> dict[str, Any]:
    """What a program of trials prints, in a process of its own: nothing of pytest's is forked or counted."""
    command = [sys.executable, "-m", module, str(root), *arguments]
    done = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    outcome: dict[str, Any] = json.loads(done.stdout)
    return outcome
