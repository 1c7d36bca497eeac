"""What a failure does to a guest at work: the same fault, wherever the driver is.

A *driver fault* is SIGSEGV, what a wild pointer raises, sent to the thread that runs the driver's back end:
of QEMU in the monolithic design, of the driver's partition in the other. A VMM is killed with SIGKILL. A
guest that dies of it is booted again at once, by this program: nothing restarts a crashed VM by itself.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import secrets
import signal
import time
from typing import TYPE_CHECKING

from duovisor.comparison.echo import judge, start_echoes
from duovisor.comparison.errors import MeasureError
from duovisor.comparison.load import begin_load, finish_load, read_token, write_token
from duovisor.comparison.measures.context import Context, Figures
from duovisor.comparison.measures.network import prepare_network
from duovisor.comparison.processes import list_processes
from duovisor.controlling.images.errors import GuestGoneError
from duovisor.hypervisor.qemu.disks import disk_socket
from duovisor.spec.vm import Design

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from duovisor.comparison.guest import Guest

DISK = disk_socket(0)
CARD = "nic0"
DIES_WITHIN_S = 1.0  # of a fault, if it dies of it
GONE_S = 10.0  # whose line is gone, has died or will within this
PINGS_AFTER_S = 1.0

_libc = ctypes.CDLL(None, use_errno=True)


async def measure_quiet(context: Context, design: Design) -> Figures:
    """The same work without a fault: the longest wait that is there anyway."""
    guest = await context.rig.guest(design)
    await begin_load(guest, context.scale.load_s)
    verdict = await finish_load(guest)
    if verdict.complaint:
        raise MeasureError(f"the guest's disk is not sound: {verdict.complaint}")
    return Figures({"longest_wait_ms": verdict.longest_ms})


async def measure_storage_driver(context: Context, design: Design) -> Figures:
    """A fault in the back end of the guest's disk."""
    return await _hurt(context, design, _fault_storage)


async def measure_vmm(context: Context, design: Design) -> Figures:
    """The VMM is killed."""
    return await _hurt(context, design, _kill_vmm)


async def _hurt(context: Context, design: Design, inflict: Callable[[Guest], Awaitable[str]]) -> Figures:
    """A fault under the storage load; what the guest saw of it."""
    guest = await context.rig.guest(design)
    token = secrets.token_hex(8)
    await write_token(guest, token)
    await begin_load(guest, context.scale.load_s)
    await asyncio.sleep(context.scale.load_s / 3)
    began = time.monotonic()
    hurt = await inflict(guest)
    try:
        verdict = await finish_load(guest)
    except GuestGoneError:
        if not await _wait_dead(guest, GONE_S):
            raise
        return await _boot_again(context, guest, began, hurt, token)
    values = {
        "survived": 1.0,
        "longest_wait_ms": verdict.longest_ms,
        "until_normal_s": verdict.longest_ms / 1e3,
        "errors": float(bool(verdict.complaint)),
        "flushed_writes_lost": float(await read_token(guest) != token),
    }
    return Figures(values, {"hurt": hurt, "complaint": verdict.complaint})


async def measure_network_driver(context: Context, design: Design) -> Figures:
    """A fault in the back end of the guest's network card, while the host pings it."""
    guest = await context.rig.guest(design)
    await prepare_network(context, guest)
    token = secrets.token_hex(8)
    await write_token(guest, token)
    async with start_echoes(guest.address, os.getpid() & 0xFFFF) as echoes:
        await asyncio.sleep(PINGS_AFTER_S / 2)
        began = time.monotonic()
        hurt = await _fault_network(guest)
        died = await _wait_dead(guest, DIES_WITHIN_S)
        if not died:
            await asyncio.sleep(PINGS_AFTER_S)
        found = echoes.collect()
    if died:
        return await _boot_again(context, guest, began, hurt, token)
    before, after = judge([echo for echo in found if echo.sent_at < began]), judge(found, since=began - 0.05)
    values = {
        "survived": 1.0,
        "longest_wait_ms": after.gap_ms,
        "until_normal_s": after.gap_ms / 1e3,
        "pings_lost": float(after.lost),
        "quiet_gap_ms": before.gap_ms,
        "flushed_writes_lost": float(await read_token(guest) != token),
    }
    return Figures(values, {"hurt": hurt})


async def _wait_dead(guest: Guest, within_s: float) -> bool:
    """Whether the VMM ends within a moment."""
    try:
        async with asyncio.timeout(within_s):
            await guest.machine.wait_ended()
    except TimeoutError:
        return False
    return True


async def _boot_again(context: Context, dead: Guest, began: float, hurt: str, token: str) -> Figures:
    """The guest died: what it takes to have it back, and what is gone."""
    said = dead.describe_end()
    guest = await context.rig.boot(dead.design)
    values = {
        "survived": 0.0,
        "until_normal_s": time.monotonic() - began,
        "flushed_writes_lost": float(await read_token(guest) != token),
    }
    return Figures(values, {"hurt": hurt, "said": f"its VMM {said}"})


async def _fault_storage(guest: Guest) -> str:
    if guest.design is Design.MICROKERNELIZED:
        return _fault_driver(guest, DISK)
    threads = await guest.machine.vmm.read_disk_threads()
    pid = find_vmm(guest)
    _send_to_thread(pid, threads[f"{DISK}-thread"])
    return f"SIGSEGV to the disk's thread {threads[f'{DISK}-thread']} of the VMM {pid}"


async def _fault_network(guest: Guest) -> str:
    if guest.design is Design.MICROKERNELIZED:
        return _fault_driver(guest, CARD)
    pid = find_vmm(guest)
    _send_to_thread(pid, pid)  # QEMU serves TAPs in its main loop
    return f"SIGSEGV to the main loop, which serves the card, of the VMM {pid}"


async def _kill_vmm(guest: Guest) -> str:
    pid = find_vmm(guest)
    os.kill(pid, signal.SIGKILL)
    return f"SIGKILL to the VMM {pid}"


def _fault_driver(guest: Guest, device: str) -> str:
    pid = guest.machine.devices[device].describe().pid
    if pid is None:
        raise MeasureError(f"{device} has no driver at this moment")
    os.kill(pid, signal.SIGSEGV)
    return f"SIGSEGV to the driver partition {pid} of {device}"


def find_vmm(guest: Guest) -> int:
    """The VMM's own process id. Raises ``MeasureError`` when it has ended."""
    for each in list_processes(guest.machine.description):
        if each.role == "vmm":
            return each.pid
    raise MeasureError("the VMM has ended")


def _send_to_thread(pid: int, thread: int) -> None:
    """tgkill(2) with SIGSEGV."""
    if _libc.tgkill(pid, thread, signal.SIGSEGV) < 0:
        raise MeasureError(f"cannot signal thread {thread}: {os.strerror(ctypes.get_errno())}")
