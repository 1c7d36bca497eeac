"""The format processes of a VM's disks: from its checked start, or from what a previous owner left."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from duovisor.controlling.formats.chain import read_chain
from duovisor.controlling.formats.process import (
    ROLE,
    FormatEnvironment,
    adopt_format_process,
    find_storage_daemon,
    socket_path,
)
from duovisor.controlling.leftovers import adopt_process
from duovisor.controlling.preflight import find_libraries
from duovisor.controlling.supervision.adoption import is_memory_file, list_descriptors, take_descriptor
from duovisor.controlling.supervision.format import FormatKeeper, take_connection

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from duovisor.controlling.description import ProcessDescription
    from duovisor.hardware.capabilities import HostCapabilities
    from duovisor.sandbox import SandboxTools
    from duovisor.spec.vm import DiskSpec

REPLAY_NAME = "/memfd:duovisor-replay"


def build_format_environment(
    name: str, run_dir: Path, tools: SandboxTools, capabilities: HostCapabilities
) -> FormatEnvironment:
    """What the format processes of a VM have in common. Raises ``HostLacksError``."""
    program = find_storage_daemon(capabilities.tools.qemu_storage_daemon)
    return FormatEnvironment(name, run_dir, tools, program, find_libraries())


def is_format_process(described: ProcessDescription) -> bool:
    """Whether this is a disk's format process."""
    return described.role == ROLE


def adopt_keeper(
    environment: FormatEnvironment,
    device: str,
    disk: DiskSpec,
    described: ProcessDescription,
    drivers: Sequence[int],
    note: Callable[[], None],
) -> FormatKeeper:
    """The keeper of a format process that a previous owner started; ``drivers`` are its drivers' pids.

    Raises ``DiskFileError`` or ``PartitionError``.
    """
    keeper = FormatKeeper(environment, device, disk, read_chain(disk.path, disk.format), note)
    found = adopt_process(described, environment.run_dir)
    running = adopt_format_process(found, environment.run_dir, device) if found is not None else None
    descriptors: dict[str, int] = {}
    path = str(socket_path(environment.run_dir, device))
    for pid in drivers:
        if "replay" not in descriptors:
            _keep(descriptors, "replay", take_descriptor(pid, is_memory_file(REPLAY_NAME)))
        if "format" not in descriptors:
            _keep(descriptors, "format", take_connection(list_descriptors(pid, _is_socket), path))
    keeper.adopt(running, described, descriptors)
    return keeper


def _keep(descriptors: dict[str, int], name: str, descriptor: int | None) -> None:
    if descriptor is not None:
        descriptors[name] = descriptor


def _is_socket(link: Path) -> bool:
    return os.readlink(link).startswith("socket:")
