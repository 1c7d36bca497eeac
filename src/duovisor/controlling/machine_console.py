"""The console of a VM on the thin VMM, which has no serial port: a driver like all others.

It serves the guest's console and named ports, keeps the console's log, and listens on the sockets that QEMU
would listen on: who connects to them need not know which VMM there is.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

from duovisor.controlling.errors import PartitionError
from duovisor.controlling.partitions.limits import build_limits
from duovisor.controlling.supervision.adoption import is_file, list_descriptors, take_descriptor
from duovisor.controlling.supervision.plan import DevicePlan
from duovisor.hypervisor.qemu.console import CONSOLE_SOCKET, port_socket
from duovisor.hypervisor.thin_plan import CONSOLE_CHANNEL
from duovisor.hypervisor.vmm_files import open_console_log
from duovisor.sandbox import uid_of
from duovisor.spec.vm import DriverFailure

if TYPE_CHECKING:
    from collections.abc import Iterable
    from contextlib import ExitStack
    from pathlib import Path

    from duovisor.spec.vm import VirtualMachineSpec

ROLE = "console driver"
KIND = "console"
HANG_S = 10.0


def plan_console(spec: VirtualMachineSpec, descriptors: dict[str, int]) -> DevicePlan:
    """How the console of a VM and its ports are served; ``descriptors`` are what its driver may hold."""
    return DevicePlan(
        device=CONSOLE_CHANNEL,
        role=ROLE,
        driver=KIND,
        words=tuple(word for name in spec.all_ports for word in ("--port", name)),
        descriptors=descriptors,
        hang_s=HANG_S,
        on_failure=DriverFailure.REPORT,
        uid=uid_of(spec.name),
        limits=build_limits(spec.memory_room_mib),
        kind=KIND,
    )


def open_console(spec: VirtualMachineSpec, run_dir: Path, log: Path, held: ExitStack) -> dict[str, int]:
    """Bind the sockets in ``run_dir``, with which they are removed, and open the log; ``held`` closes them.

    Raises ``PartitionError`` or ``HypervisorError``.
    """
    descriptors = {name: _bind(path, held) for name, path in _list_sockets(spec, run_dir).items()}
    descriptors["log"] = os.dup(held.enter_context(open_console_log(log)))
    held.callback(os.close, descriptors["log"])
    return descriptors


def adopt_console(
    spec: VirtualMachineSpec, run_dir: Path, log: Path, pids: Iterable[int], held: ExitStack
) -> dict[str, int]:
    """What one of these processes holds of a console, or else opened again; raises as ``open_console``."""
    for pid in pids:
        descriptors = _take(spec, run_dir, log, pid, held)
        if descriptors is not None:
            return descriptors
    return open_console(spec, run_dir, log, held)


def _list_sockets(spec: VirtualMachineSpec, run_dir: Path) -> dict[str, Path]:
    ports = map(port_socket, range(len(spec.all_ports)))
    return {name: run_dir / f"{name}.sock" for name in (CONSOLE_SOCKET, *ports)}


def _bind(path: Path, held: ExitStack) -> int:
    path.unlink(missing_ok=True)  # of a driver that ended while nobody looked
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    held.enter_context(listener)
    try:
        listener.bind(str(path))
    except OSError as error:
        raise PartitionError(f"cannot bind {path}: {error}") from error
    listener.listen(4)
    listener.setblocking(False)
    return listener.fileno()


def _take(
    spec: VirtualMachineSpec, run_dir: Path, log: Path, pid: int, held: ExitStack
) -> dict[str, int] | None:
    wanted = {str(path): name for name, path in _list_sockets(spec, run_dir).items()}
    found: dict[str, int] = {}
    for descriptor in list_descriptors(pid, lambda link: os.readlink(link).startswith("socket:")):
        held.callback(os.close, descriptor)
        with socket.socket(fileno=os.dup(descriptor)) as candidate:
            name = _name_of(candidate, wanted)
        if name is not None:
            found[name] = descriptor
    log_descriptor = take_descriptor(pid, is_file(str(log)))
    if log_descriptor is not None:
        held.callback(os.close, log_descriptor)
        found["log"] = log_descriptor
    return found if len(found) == len(wanted) + 1 else None


def _name_of(candidate: socket.socket, wanted: dict[str, str]) -> str | None:
    try:
        listens = candidate.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        return wanted.get(str(candidate.getsockname())) if listens else None
    except OSError:
        return None
