"""A systemd scope for a VM: a group that systemd made for us and leaves to us (``Delegate=``).

Why not groups below the service's own: with systemd before 254 a service whose group has groups with
controllers below it cannot be started again (219/CGROUP: the kernel lets no process into an inner group),
and VMs outlive their service. A scope belongs to its VM alone, whoever asked for it, and is gone with its
last process.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from typing import TYPE_CHECKING

from duovisor import process
from duovisor.controlling.resources.group_folder import PROC, find_group

if TYPE_CHECKING:
    from pathlib import Path

    from duovisor.controlling.resources.limits import GroupLimits
    from duovisor.spec.limits import ProcessorShare

SLICE = "duovisor.slice"
HOLD_S = 30  # the first process of the scope ends by itself if nobody relieves it
SCOPE_TIMEOUT_S = 3.0
LOOK_S = 0.002  # systemd has nothing we could wait for without a connection to its bus
NAME = re.compile(r"duovisor-.+\.scope")


class ScopeError(Exception):
    """systemd made no scope; the message says why."""


def build_scope_argv(
    systemd_run: Path, vm: str, limits: GroupLimits, *, as_root: bool, share: ProcessorShare | None = None
) -> tuple[str, ...]:
    """The command line of a scope's first process, which only holds it; the scope's name is new each time."""
    processors = []
    if share is not None and share.weight is not None:
        processors.append(f"--property=CPUWeight={share.weight}")
    if share is not None and share.limit is not None:
        processors.append(f"--property=CPUQuota={round(share.limit * 100)}%")
    user = () if as_root else ("--user",)
    return (
        str(systemd_run), *user, "--scope", "--quiet", "--collect",
        f"--unit=duovisor-{vm}-{secrets.token_hex(4)}.scope", f"--slice={SLICE}",
        f"--description=duovisor: virtual machine {vm}",
        "--property=Delegate=yes",
        f"--property=MemoryMax={limits.memory_mib}M", f"--property=TasksMax={limits.processes}", *processors,
        "--", "sleep", str(HOLD_S),
    )  # fmt: skip


async def start_scope(argv: tuple[str, ...], log: Path, proc: Path = PROC) -> tuple[process.Process, Path]:
    """Start a scope; returns the process that holds it, and its folder.

    Raises ``ScopeError`` or ``ProgramNotFoundError``.
    """
    holder = process.start(argv, role="scope holder", log=log)
    try:
        async with asyncio.timeout(SCOPE_TIMEOUT_S):
            while not holder.has_ended:
                folder = find_group(
                    holder.pid, proc
                )  # systemd-run becomes the program when the scope is there
                if folder is not None and NAME.fullmatch(folder.name):
                    return holder, folder
                await asyncio.sleep(LOOK_S)
    except TimeoutError:
        await holder.kill()
        raise ScopeError(f"systemd made no scope within {SCOPE_TIMEOUT_S:g} s") from None
    except BaseException:
        await holder.kill()
        raise
    await holder.wait()
    raise ScopeError(holder.last_words() or "systemd-run ended without a word")
