"""Commands in a probe guest, whoever owns its VM."""

from __future__ import annotations

from typing import TYPE_CHECKING

from duovisor.comparison.errors import MeasureError
from duovisor.controlling.images.probe_client import connect_probe

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

COMMAND_S = 60.0
SCRATCH_SERIAL = "scratch"
FINISHED = "/run/job.done"


class Shell:
    """Each command has a connection of its own: a VM that changes its VMM has another socket afterwards."""

    def __init__(self, find_port: Callable[[], Path]) -> None:
        self._find_port = find_port
        self._scratch = ""

    async def wait_booted(self, timeout_s: float) -> None:
        """Wait for the guest's word that it is up. Raises ``GuestTimeoutError``, ``GuestGoneError``."""
        async with connect_probe(self._find_port()) as probe:
            await probe.wait_booted(timeout_s)

    async def output(self, command: str, *, timeout_s: float = COMMAND_S) -> str:
        """What a command in the guest printed.

        Raises ``MeasureError`` when it failed, ``GuestGoneError`` or ``GuestTimeoutError``.
        """
        async with connect_probe(self._find_port()) as probe:
            done = await probe.run(command, timeout_s)
        printed = done.output.decode(errors="replace")
        if done.exit:
            said = " ".join(printed.split())[-300:] or "without a word"
            raise MeasureError(f"in the guest, {command.split(maxsplit=1)[0]} failed: {said}")
        return printed

    async def find_scratch(self) -> str:
        """The scratch disk's device in the guest, without ``/dev/``."""
        if not self._scratch:
            look = f"grep -lx {SCRATCH_SERIAL} /sys/block/vd*/serial"
            self._scratch = (await self.output(look)).split("/")[3]
        return self._scratch

    async def begin(self, command: str) -> None:
        """Begin a command that goes on beside others; ``finish`` waits for it."""
        job = "sh /run/job.sh </dev/null >/run/job.out 2>&1; echo $? >/run/job.exit"
        await self.output(
            f"rm -f {FINISHED}; cat >/run/job.sh <<'END'\n{command}\nEND\n"
            f"({job}; mv /run/job.exit {FINISHED}) >/dev/null 2>&1 & true"
        )

    async def finish(self, timeout_s: float) -> tuple[int, str]:
        """Wait for what was begun; its exit code and what it printed. Raises as ``output``."""
        look = f"until [ -e {FINISHED} ]; do sleep 0.05; done; cat {FINISHED} /run/job.out"
        code, _, printed = (await self.output(look, timeout_s=timeout_s)).partition("\n")
        return int(code), printed
