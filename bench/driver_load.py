"""What a guest does while its storage driver is killed: writes that fio verifies, reads that feel each pause.

Two fio run side by side on one disk. The *load* keeps ``depth`` requests in flight: it writes random blocks
with checksums, reads them back as it goes and once more at the end of each round; each round has a seed of
its own, so that what an earlier one left does not pass for this one's. The *reader* has one read in flight at
any time and logs how long each took, by the guest's clock; of each 10 ms the longest is kept.
"""

from __future__ import annotations

import re
import shlex
import time
from typing import TYPE_CHECKING, NamedTuple, Protocol

from bench.driver_pauses import Clock, Read, parse_latency_log

if TYPE_CHECKING:
    from duovisor.controlling.images.probe_client import ProbeResult

LOAD_MIB = 32
READER_MIB = 64
COMMAND_S = 60.0
ROUND_S = 180.0
HUNG_TASK_S = 20
LOG_MS = 10
CLOCK_LOOKS = 20
BEGUN = 500  # requests that nothing else in the guest makes
# drivers/virtio/virtio_ring.c: what a completion that comes twice, or of nothing, is met with
TWICE = re.compile(r"id \d+ is not a head|id \d+ out of range|virtio.*broken")
FAILED = re.compile(r"I/O error, dev vd|Buffer I/O error")
HUNG = re.compile(r"blocked for more than")

# fio's words for a block that does not hold what was written
BAD_BLOCK = "^(verify: bad|[a-z0-9]+: verify failed)"
_LOAD = """
round={seed}
while [ ! -e /run/stop ]; do
    round=$((round + 1))
    {load} --randseed=$round >/run/round 2>&1
    status=$?
    echo $status >>/run/rounds
    [ $status = 0 ] || cat /run/round >>/run/complaints
    grep -E '{bad_block}' /run/round >>/run/corrupt
done
{load} --randseed=$round --verify_only=1 >/run/round 2>&1 || cat /run/round >>/run/complaints
grep -E '{bad_block}' /run/round >>/run/corrupt
touch /run/done
"""


class Verdict(NamedTuple):
    """What the guest says in the end; ``complaints`` are fio's and the kernel's own words."""

    rounds: int
    lost: int
    duplicated: int
    corrupt: int
    hung: int
    complaints: str


class Commands(Protocol):
    """Where a command is run in the guest, as ``ProbeClient`` does."""

    async def run(self, command: str, timeout_s: float) -> ProbeResult: ...


class GuestLoad:
    """The two fio in one guest; ``start``, then ``stop``, then ``judge``."""

    def __init__(
        self, guest: Commands, device: str, *, depth: int, seed: int, writes_per_s: int | None = None
    ) -> None:
        self._guest = guest
        self._device = device
        self._depth = depth
        self._seed = seed
        self._writes_per_s = writes_per_s
        self.clock = Clock()

    async def start(self) -> None:
        """Start both; the load's first round begins."""
        load = shlex.join(build_load_command(self._device, self._depth, self._writes_per_s))
        reader = shlex.join(build_reader_command(self._device))
        script = _LOAD.format(seed=self._seed, load=load, bad_block=BAD_BLOCK)
        await self._run("fio --version")  # mounts the tools disk
        await self._run(f"echo {HUNG_TASK_S} >/proc/sys/kernel/hung_task_timeout_secs; dmesg -n 4; dmesg -c")
        await self._run(f"cat >/run/load.sh <<'END'\n{script}\nEND\n: >/run/corrupt; : >/run/complaints")
        await self._compare_clocks()  # while the guest has nothing else to do
        await self._run("sh /run/load.sh </dev/null >/dev/null 2>&1 &")
        await self._run(f"{reader} </dev/null >/run/reader 2>&1 & echo $! >/run/reader.pid")
        statistics = f"/sys/block/{self._device.rpartition('/')[2]}/stat"
        # Documentation/block/stat.rst: reads and writes that are done are the first and the fifth number
        await self._wait(f"awk '{{ exit !($1 > {BEGUN} && $5 > {BEGUN}) }}' {statistics}")

    async def stop(self) -> list[Read]:
        """Let the round end and verify it anew; returns what the reader saw."""
        await self._run("touch /run/stop; kill -INT $(cat /run/reader.pid)")
        await self._wait("[ -e /run/done ] && ! pidof loader")
        await self._compare_clocks()
        return parse_latency_log(await self._run("cat /run/pause_lat*.log"))

    async def _wait(self, condition: str) -> None:
        """Wait until the condition holds in the guest, each look shorter than a command's time."""
        deadline = time.monotonic() + ROUND_S
        look = f"for i in $(seq 100); do {condition} && echo yes && exit; sleep 0.2; done"
        while "yes" not in (await self._run(look)).split():
            if time.monotonic() > deadline:
                raise TimeoutError(f"the guest's load did not end within {ROUND_S:g} s")

    async def _compare_clocks(self) -> None:
        for _ in range(CLOCK_LOOKS):
            before = time.monotonic()
            said = await self._run("echo | ts %.s")
            self.clock.add(before, time.monotonic(), float(said.split()[0]))

    async def judge(self) -> Verdict:
        """Count what went wrong, by fio and by the guest's kernel."""
        inflight = await self._run(f"cat /sys/block/{self._device.rpartition('/')[2]}/inflight")
        kernel = await self._run("dmesg")
        complaints = await self._run("cat /run/complaints")
        rounds = (await self._run("cat /run/rounds")).split()
        corrupt = len((await self._run("cat /run/corrupt")).splitlines())
        return Verdict(
            rounds=len(rounds),
            lost=sum(map(int, inflight.split())) + len(FAILED.findall(kernel)),
            duplicated=len(TWICE.findall(kernel)),
            corrupt=corrupt or sum(status != "0" for status in rounds),
            hung=len(HUNG.findall(kernel)),
            complaints=f"{complaints}\n{kernel}".strip(),
        )

    async def _run(self, command: str) -> str:
        done = await self._guest.run(command, timeout_s=COMMAND_S)
        return done.output.decode(errors="replace")


def build_load_command(device: str, depth: int, writes_per_s: int | None = None) -> list[str]:
    """fio that writes ``LOAD_MIB`` in random order with checksums, flushes now and then, and verifies all.

    Without ``writes_per_s`` as fast as it goes.
    """
    pace = [] if writes_per_s is None else [f"--rate_iops={writes_per_s}"]
    return [
        "fio", "--name=load", f"--filename={device}", "--direct=1", "--ioengine=libaio", "--thread",
        "--rw=randwrite", "--bs=4k", f"--iodepth={depth}", f"--size={LOAD_MIB}m",
        "--verify=crc32c", "--do_verify=1", "--verify_backlog=1024", "--continue_on_error=verify",
        "--fdatasync=512", *pace,
    ]  # fmt: skip


def build_reader_command(device: str) -> list[str]:
    """fio that reads one block after the other behind the load's, until it is interrupted."""
    return [
        "fio", "--name=reader", f"--filename={device}", "--direct=1", "--ioengine=psync", "--thread",
        "--rw=randread", "--norandommap", "--bs=4k", f"--offset={LOAD_MIB}m", f"--size={READER_MIB}m",
        "--time_based", "--runtime=86400", "--write_lat_log=/run/pause", "--log_unix_epoch=1",
        "--disable_clat=1", "--disable_slat=1", f"--log_avg_msec={LOG_MS}", "--log_max_value=1",
    ]  # fmt: skip
