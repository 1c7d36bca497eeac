"""Runs inside the nested test's outer guest, as root: the service has a VM on the thin VMM, on real KVM.

Judges nothing, like ``steps.py``, and reports in the same way; ``test_thin`` on the host says what must be in
it. All of one VM's life, and below all of it one fio that writes, reads back and compares. Nobody asks for
the thin VMM: what the VM lacks beside those of ``steps.py`` is a card on user networking.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duovisor.client.endpoint import SOCKET_NAME, find_endpoint
from duovisor.client.errors import ApiError, ServiceUnreachableError
from duovisor.client.service import ServiceClient, vm_path
from duovisor.controlling.images.probe_client import connect_probe
from duovisor.controlling.images.store import load_image
from duovisor.controlling.probe_vm import SCRATCH_SERIAL, build_probe_spec, make_scratch_disk
from duovisor.directories import find_directories
from duovisor.hypervisor.qemu.console import QMP_SOCKET, port_socket
from duovisor.spec.processors import CpuModel
from duovisor.spec.vm import Design, NicSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    from duovisor.controlling.images.probe_client import ProbeClient

REPORT_PORT = Path("/dev/virtio-ports/org.duovisor.nested")
NAME = "inner-thin"
CPUS = 2
SCRATCH_MIB = 16
# for what hangs: seconds are enough on a machine that is not busy
TIMEOUT_S = 300.0
BRIDGE, HOST = "br-inner", "10.0.8.1"
STREAM_MIB = 4
SET_UP_CARD = f"ip address add 10.0.8.3/24 dev eth0; ip link set eth0 up; ping -c 3 -W 5 {HOST}"
IDENTITY = "cat /proc/sys/kernel/random/boot_id"
WHO_RUNS_US = "dmesg | grep -o 'Hypervisor detected: .*'; cat /sys/class/tty/console/active"
REFUSED = {
    "switch": {"design": "monolithic"},
    "attach-nic": {"nic": {"bridge": BRIDGE}},
    "detach-disk": {"device": "disk0"},
}
LIMIT, LIMITED_KIB = 128 << 10, 384
IOPS_LIMIT, LIMITED_READS = 20, 40
LIMITED_READ = f"dd if={{}} of=/dev/null bs=4k count={LIMITED_READS} iflag=direct 2>&1"
READS = 500
READ = f"dd if={{}} of=/dev/null bs=4k count={READS} skip=2048 iflag=direct 2>&1"
LOAD_MIB = 2
LOAD = (
    "fio --output-format=json --filename={} --direct=1 --ioengine=libaio --thread --name=load --rw=randwrite "
    f"--bs=16k --iodepth=8 --size={LOAD_MIB}m --verify=crc32c --verify_fatal=1 --verify_backlog=32 "
    "--loops=1000000 --rate_iops=40"
)
END_LOAD = (
    "read pid </tmp/load.pid; kill -TERM $pid; "
    "while kill -0 $pid; do sleep 0.1; done 2>/dev/null; cat /tmp/load"
)
OURS = re.compile(r"duovisor-partition|bwrap|duovisor\.hypervisor\.thin|duovisor\.controlling")
LOG_BYTES = 64 << 10
SNAPSHOT = "under-load"


def report(step: str, **facts: Any) -> None:
    """Send one line to the host."""
    line = json.dumps({"step": step, "design": None, "uptime_s": time.monotonic(), **facts}, default=str)
    with REPORT_PORT.open("wb", buffering=0) as port:
        port.write(line.encode() + b"\n")
    print(f"{time.monotonic():6.1f} s  {step}", flush=True)


def run_folder() -> Path:
    """Where the VM's sockets are."""
    return find_directories().runtime / "vms" / NAME / "current"


class Service:
    """The management service, which may be killed, and a client of it."""

    def __init__(self) -> None:
        self._log = Path("/run/thin-service.log").open("ab")
        self.client = ServiceClient(find_endpoint(f"unix://{find_directories().runtime / SOCKET_NAME}"))
        self.spawn()

    def spawn(self) -> None:
        """Start it, and wait until it answers."""
        argv = (sys.executable, "-m", "duovisor.controlling.service")
        self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log)
        end = time.monotonic() + TIMEOUT_S
        while True:
            try:
                self.client.get("/v1/health")
                return
            except ServiceUnreachableError:
                if time.monotonic() > end or self._process.poll() is not None:
                    raise
            time.sleep(0.2)  # nothing tells when a socket will be there

    def end(self, number: int) -> None:
        """Send it a signal and wait for its end."""
        self._process.send_signal(number)
        self._process.wait(TIMEOUT_S)

    async def act(
        self, action: str, path: str = vm_path(NAME), document: Any = None, method: str = "POST"
    ) -> dict[str, Any]:
        """An action, followed to its end, while the guest's conversation goes on."""

        def work() -> dict[str, Any]:
            with ServiceClient(self.client.endpoint) as client:
                return client.follow(client.request(method, f"{path}/{action}", document).document)

        return await asyncio.to_thread(work)

    async def refuse(self, action: str, document: Any) -> dict[str, Any]:
        """What is answered to something that cannot be."""
        try:
            with ServiceClient(self.client.endpoint) as client:
                client.follow(client.act(NAME, action, document))
        except ApiError as error:
            return {"code": error.code, "message": error.message, "remedy": error.remedy}
        return {}

    def drivers(self, device: str) -> list[dict[str, Any]]:
        """The drivers of one device, the one that serves it first."""
        return [each for each in self.client.get("/v1/drivers")["items"] if each["device"] == device]

    async def settle(self, device: str, without: int = 0) -> list[dict[str, Any]]:
        """The drivers of one device once one serves and one stands by, neither of them ``without``; or as
        they are when that takes too long.
        """
        found: list[dict[str, Any]] = []

        def is_settled() -> bool:
            found[:] = self.drivers(device)
            duties = [each["duty"] for each in found]
            return duties == ["active", "spare"] and without not in [each["pid"] for each in found]

        await wait_until(is_settled)
        return found

    async def look(self) -> dict[str, Any]:
        """The VM's anatomy when every driver has its spare."""
        for device in {each["device"] for each in self.client.get("/v1/drivers")["items"]}:
            await self.settle(device)
        anatomy: dict[str, Any] = self.client.get(f"{vm_path(NAME)}/anatomy")
        return anatomy

    async def kill_driver(self, device: str) -> dict[str, Any]:
        """Kill the one that serves; what is there once a successor and its spare are."""
        victim = (await self.settle(device))[0]
        os.kill(victim["pid"], signal.SIGKILL)
        return {"before": victim, "after": await self.settle(device, without=victim["pid"])}


async def wait_until(condition: Callable[[], bool]) -> bool:
    """Whether it came to hold before long."""
    end = time.monotonic() + TIMEOUT_S
    while not condition():
        if time.monotonic() > end:
            return False
        await asyncio.sleep(0.2)
    return True


@contextlib.asynccontextmanager
async def converse() -> Any:
    """The conversation with the guest; it ends with the console driver or the VMM that it goes through."""
    async with connect_probe(run_folder() / f"{port_socket(0)}.sock") as guest:
        yield guest


async def ask(guest: ProbeClient, command: str) -> str:
    """What a command in the guest says; one that fails is an error."""
    done = await guest.run(command, TIMEOUT_S)
    output = done.output.decode(errors="replace")
    if done.exit:
        raise RuntimeError(f"{command!r} ended with {done.exit}: {output}")
    return output


async def live(service: Service, scratch: Path) -> None:
    """All of the VM's life."""
    spec = build_probe_spec(
        NAME, Design.MICROKERNELIZED, load_image("probe", find_directories()), scratch, CPUS
    )
    spec = spec.model_copy(update={"nics": (NicSpec(bridge=BRIDGE),), "cpu_model": CpuModel.X86_64_V3})
    service.client.request("POST", "/v1/vms", {"spec": spec.model_dump(mode="json")})
    await service.act("start")
    async with converse() as guest:
        booted = await guest.wait_booted(TIMEOUT_S)
        anatomy = await service.look()
        report("thin-booted", guest=booted.model_dump(), anatomy=anatomy, says=await ask(guest, WHO_RUNS_US))
        report("thin-processor", flags=(await ask(guest, "grep -m 1 ^flags /proc/cpuinfo")).split())
        device = booted.find_disk(SCRATCH_SERIAL)
        assert device is not None
        report("thin-stream", **await stream(service, guest))
        report("thin-limited", **await be_limited(service, guest, device))
        load = f"{LOAD.format(shlex.quote(device))} </dev/null >/tmp/load 2>&1 & echo $! >/tmp/load.pid"
        await ask(guest, load)
        report("thin-storage", killed=await service.kill_driver("disk0"))
        path = f"/v1/drivers/{NAME}/disk0"
        report("thin-updated-driver", operation=await service.act("update", path))
        await service.act("pause")
        paused = service.client.get(vm_path(NAME))["status"]["state"]
        await service.act("resume")
        report("thin-paused", state=paused, says=await ask(guest, "echo on"))
        before = await service.look()
        service.end(signal.SIGKILL)
        report("thin-exits", reads=READS, exits=await count_exits(guest, device))
        service.spawn()
        found = service.client.get("/v1/service")["recovery"]
        after = await service.look()
        report("thin-adopted", found=found, before=before, after=after, says=await ask(guest, "echo on"))
        identity = await ask(guest, IDENTITY)
        taken = await service.act("snapshots", document={"name": SNAPSHOT})
        report("thin-snapshot", operation=taken, says=await ask(guest, "echo on"))
    report("thin-console", killed=await service.kill_driver("console-channel"))
    answers = [await service.refuse(action, document) for action, document in REFUSED.items()]
    report("thin-refused", answers=dict(zip(REFUSED, answers, strict=True)))
    updated = await service.act("update-vmm")
    async with converse() as guest:
        now = await ask(guest, IDENTITY)
        report("thin-moved", operation=updated, before=identity, after=now, anatomy=await service.look())
        report("thin-storage-moved", killed=await service.kill_driver("disk0"))
        report("thin-load", **await end_load(guest))
    await service.act("reset")
    async with converse() as guest:
        await guest.wait_booted(TIMEOUT_S)
        report("thin-reset", before=identity, after=await ask(guest, IDENTITY))
    await service.act("stop")
    restored = await service.act(f"snapshots/{SNAPSHOT}/restore")
    async with converse() as guest:
        now = await ask(guest, IDENTITY)
        report("thin-restored", operation=restored, before=identity, after=now, **await end_load(guest))
    await service.act(f"snapshots/{SNAPSHOT}", method="DELETE")
    report("thin-shutdown", operation=await service.act("shutdown"))
    service.client.request("DELETE", vm_path(NAME), headers={"If-Match": "*"})


async def end_load(guest: ProbeClient) -> dict[str, Any]:
    """End fio: whether it has met anything wrong, and how much it did."""
    said = await ask(guest, END_LOAD)
    (job,) = json.loads(said[said.find("{") : said.rfind("}") + 1])["jobs"]
    ios = {side: job[side]["total_ios"] for side in ("read", "write")}
    return {"error": job["error"], "ios": ios, "said": said[: said.find("{")]}


def find_leftovers() -> list[str]:
    """What of the VM is on the host after it and the service have gone."""
    left = [str(path) for path in (find_directories().runtime / "vms").iterdir()]
    left += os.listdir(f"/sys/class/net/{BRIDGE}/brif")
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has just ended
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if OURS.search(command):
                left.append(command)
    return left


async def stream(service: Service, guest: ProbeClient) -> dict[str, Any]:
    """A stream to the guest and back, whole though the card's driver is killed on the way."""
    pinged = await ask(guest, SET_UP_CARD)
    block = os.urandom(STREAM_MIB << 20)
    returned = bytearray()
    killed: list[int] = []

    def kill() -> None:
        killed.append(service.drivers("nic0")[0]["pid"])
        os.kill(killed[-1], signal.SIGKILL)

    async def send(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for start in range(0, len(block), 1 << 20):
            writer.write(block[start : start + (1 << 20)])
            await writer.drain()
            if start == len(block) // 2:
                kill()
        writer.close()

    async def receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 20):
            returned.extend(data)
            if len(killed) == 1 and len(returned) > len(block) // 2:
                kill()
        writer.close()

    async with await asyncio.start_server(send, HOST, 0) as server:
        port = server.sockets[0].getsockname()[1]
        await ask(guest, f"nc {HOST} {port} </dev/null >/tmp/stream")
    async with await asyncio.start_server(receive, HOST, 0) as server:
        port = server.sockets[0].getsockname()[1]
        await ask(guest, f"nc {HOST} {port} </tmp/stream; rm /tmp/stream")
    return {
        "pinged": pinged,
        "whole": returned == block,
        "killed": killed,
        "after": await service.settle("nic0"),
    }


async def be_limited(service: Service, guest: ProbeClient, device: str) -> dict[str, Any]:
    """How long some bytes each way and some reads take under limits, the bytes by the next driver."""

    def limit(what: str, **limits: Any) -> None:
        service.client.request("POST", f"{vm_path(NAME)}/limit-{what}", limits)

    async def send(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(bytes(LIMITED_KIB << 10))
        writer.close()

    async def receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(len(await reader.read()))
        writer.close()

    async def measure(command: str) -> float:
        began = time.monotonic()
        await ask(guest, command)
        return time.monotonic() - began

    received: list[int] = []
    limit("nic", device="nic0", in_limit=LIMIT, out_limit=LIMIT)
    killed = await service.kill_driver("nic0")
    async with await asyncio.start_server(send, HOST, 0) as server:
        to_guest_s = await measure(f"nc {HOST} {server.sockets[0].getsockname()[1]} </dev/null >/dev/null")
    async with await asyncio.start_server(receive, HOST, 0) as server:
        to_host = f"nc {HOST} {server.sockets[0].getsockname()[1]}"
        from_guest_s = await measure(f"dd if=/dev/zero bs=1k count={LIMITED_KIB} 2>/dev/null | {to_host}")
        await wait_until(lambda: bool(received))  # the guest's program may end before its last bytes come
    limit("nic", device="nic0", in_limit=None, out_limit=None)
    limit("disk", device="disk0", iops_limit=IOPS_LIMIT, bandwidth_limit=None)
    reads_s = await measure(LIMITED_READ.format(device))
    limit("disk", device="disk0", iops_limit=None, bandwidth_limit=None)
    return {
        "killed": killed, "received": received[0], "sent": LIMITED_KIB << 10,
        "to_guest_s": to_guest_s, "from_guest_s": from_guest_s, "least_s": (LIMITED_KIB << 10) / LIMIT,
        "reads_s": reads_s, "reads_least_s": LIMITED_READS / IOPS_LIMIT,
    }  # fmt: skip


async def count_exits(guest: ProbeClient, device: str) -> dict[str, int]:
    """How often the VMM's process was entered while the guest read; there is no service now."""
    with socket.socket(socket.AF_UNIX) as control:
        control.connect(str(run_folder() / f"{QMP_SOCKET}.sock"))
        lines = control.makefile("rwb")
        lines.readline()

        def execute(command: str) -> Any:
            lines.write(json.dumps({"execute": command}).encode() + b"\n")
            lines.flush()
            while "return" not in (answer := json.loads(lines.readline())):
                pass
            return answer["return"]

        execute("qmp_capabilities")
        before = execute("x-duovisor-exits")
        await ask(guest, READ.format(device))
        after = execute("x-duovisor-exits")
    return {kind: after[kind] - before[kind] for kind in after}


def main() -> None:
    """All steps; what goes wrong is told to the host."""
    service = Service()
    try:
        with make_scratch_disk(Path("/run"), "thin", size_mib=SCRATCH_MIB) as scratch:
            asyncio.run(live(service, scratch))
    except Exception:  # whatever it is, the host wants to know
        report("thin-failed", traceback=traceback.format_exc())
    finally:
        found = [*Path("/run").glob("thin-service.log"), *find_directories().runtime.rglob("*.log")]
        texts = {path.name: path.read_bytes()[-LOG_BYTES:].decode(errors="replace") for path in found}
        report("thin-logs", files=texts)
        with contextlib.suppress(ApiError, ServiceUnreachableError):
            service.client.follow(service.client.act(NAME, "stop"))
        service.end(signal.SIGTERM)
    report("thin-leftovers", found=find_leftovers())


if __name__ == "__main__":
    main()
