"""What a guest does while it is switched to and fro: verified writes, pings, and one long TCP stream."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.switch_pauses import Question, parse_questions
from tests.networks import HOST

from duovisor.controlling.images.probe import PORT_NAME
from duovisor.controlling.images.probe_client import connect_probe

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from duovisor.controlling.images.probe_client import ProbeResult
    from duovisor.controlling.machine import Machine

GUEST = "10.77.0.2"
ASKING = Path(__file__).with_name("switch_questions.py")
END_S = 60.0
_PINGS = f"while [ ! -e /run/unplug ]; do ping -q -i 0.01 -c 200 -W 5 {HOST}; done; touch /run/unplugged"


class MovingGuest:
    """Runs commands in the guest of a machine, wherever that is by now."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    async def run(self, command: str, timeout_s: float) -> ProbeResult:
        """As ``ProbeClient.run``, on a connection of its own."""
        async with connect_probe(self._machine.port_path(PORT_NAME)) as guest:
            return await guest.run(command, timeout_s)

    async def output(self, command: str) -> str:
        """What a command printed. Raises ``RuntimeError`` when it failed."""
        done = await self.run(command, END_S)
        said = done.output.decode(errors="replace")
        if done.exit:
            raise RuntimeError(f"{command} in the guest: {said}")
        return said


class NetworkVerdict(NamedTuple):
    """What the network's users saw; the stream is as it should be when ``stream_error`` is empty."""

    questions: list[Question]
    pings: int
    lost_pings: int
    streamed_bytes: int
    stream_error: str


class NetworkLoad:
    """Pings from the guest every 10 ms, a download, and the questions of ``switch_questions.py``."""

    def __init__(self, guest: MovingGuest, asking: asyncio.subprocess.Process, path: Path) -> None:
        self._guest = guest
        self._asking = asking
        self._path = path

    async def stop(self) -> NetworkVerdict:
        """End all of it, and compare both ends."""
        await self._guest.output("touch /run/unplug; while [ ! -e /run/unplugged ]; do sleep 0.1; done")
        said, _ = await asyncio.wait_for(self._asking.communicate(b""), END_S)
        sent: dict[str, Any] = json.loads(said)
        got = await self._guest.output("while [ ! -e /run/streamed ]; do sleep 0.1; done; cat /run/sum")
        pings, answers = parse_pings(await self._guest.output("cat /proc/net/snmp"))
        error = sent["error"] or ("" if got.split()[0] == sent["md5"] else "the guest got something else")
        return NetworkVerdict(
            questions=parse_questions(self._path.read_text()),
            pings=pings,
            lost_pings=pings - answers,
            streamed_bytes=sent["bytes"],
            stream_error=error,
        )


def parse_pings(snmp: str) -> tuple[int, int]:
    """The echo requests that a kernel has sent, and the answers it got, from its /proc/net/snmp.

    What ping itself prints lacks those that came while its socket, of 7 KiB in busybox, was full.
    """
    names, values = (line.split()[1:] for line in snmp.splitlines() if line.startswith("IcmpMsg:"))
    counts = dict(zip(names, map(int, values), strict=True))
    return counts.get("OutType8", 0), counts.get("InType0", 0)


@asynccontextmanager
async def start_network_load(guest: MovingGuest, path: Path) -> AsyncIterator[NetworkLoad]:
    """Give the guest its address and start everything; questions and answers go to ``path`` at the end."""
    await guest.output(f"killall udhcpc; ip addr add {GUEST}/24 dev eth0; ip link set eth0 up")
    await guest.output(f"ping -c1 -W5 {HOST}")
    asking = await asyncio.create_subprocess_exec(
        sys.executable, str(ASKING), HOST, GUEST, str(path),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert asking.stdout is not None
    try:
        port = int(await asking.stdout.readline())
        download = f"nc {HOST} {port} </dev/null | md5sum >/run/sum; touch /run/streamed"
        await guest.output(f"({download}) >/dev/null 2>&1 & ({_PINGS}) >/dev/null 2>&1 & true")
        yield NetworkLoad(guest, asking, path)
    finally:
        with contextlib.suppress(ProcessLookupError):
            asking.kill()
        await asking.wait()
