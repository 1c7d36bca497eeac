"""A thin VMM that waits for its machine: its process has started, and imported all it needs, beforehand.

Its sandbox is a machine's own from the beginning: an empty root with nothing but the interpreter and our
package, namespaces that nobody shares. What makes it a certain machine's comes over its birth socket: its
user, its limits and its descriptors, none of which it can refuse or choose.
"""

from __future__ import annotations

import json
import os
import socket
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from duovisor import process
from duovisor.hypervisor.errors import HypervisorError, VmmStartError
from duovisor.hypervisor.thin_plan import CPUS_MAX, DEV_KVM, PROGRAM, build_limits
from duovisor.sandbox import build_sandbox_argv

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from duovisor.hypervisor.plan import LaunchPlan
    from duovisor.process import Process, Record
    from duovisor.sandbox import Sandbox, SandboxTools

ROLE = "vmm"
# what it takes to become another user, and to give up the rest
CAPABILITIES = ("setuid", "setgid", "setpcap")
FOLDERS = ("channel", "hypervisor", "hypervisor/thin", "hypervisor/thin/pci", "hypervisor/thin/virtio")


class SpareKind(NamedTuple):
    """What machines must have in common to take the same spare; ``code`` is of its files when it started."""

    program: tuple[str, ...]
    sandbox: Sandbox
    tools: SandboxTools
    code: tuple[tuple[str, int, int], ...]


def find_kind(plan: LaunchPlan, tools: SandboxTools) -> SpareKind:
    """The kind of spare that a machine of this plan can take."""
    assert plan.sandbox is not None
    sandbox = replace(plan.sandbox, limits=build_limits(CPUS_MAX))
    if tools.as_root:
        sandbox = replace(sandbox, uid=0, gids=(), capabilities=CAPABILITIES)
    package = next(source for source, _ in sandbox.read_only if source.name == "duovisor")
    program = plan.argv[: plan.argv.index(PROGRAM) + 1]
    return SpareKind(program, sandbox, tools, read_code(package))


def read_code(package: Path) -> tuple[tuple[str, int, int], ...]:
    """Name, size and time of change of each file that it runs; another one is another program."""
    found = []
    for folder in FOLDERS:
        with os.scandir(package / folder) as entries:
            for entry in entries:
                if entry.name.endswith(".py"):
                    about = entry.stat()
                    found.append((f"{folder}/{entry.name}", about.st_size, about.st_mtime_ns))
    return tuple(sorted(found))


class Spare:
    """One that waits, or is about to; ``discard`` it or ``assign`` it to a machine."""

    def __init__(self, kind: SpareKind, log: Path) -> None:
        """Start it. Raises ``ProgramNotFoundError``, or ``HypervisorError`` without /dev/kvm."""
        self.kind = kind
        self._log = log
        self._birth, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                self._process = _start(kind, theirs.fileno(), log)
            except BaseException:
                self._birth.close()
                raise

    @property
    def has_ended(self) -> bool:
        return self._process.has_ended

    def assign(
        self, plan: LaunchPlan, descriptors: Mapping[str, int], log: Path, record: Record | None
    ) -> Process:
        """Make it the VMM of a plan; the process, which prints to ``log`` from now on.

        ``record`` is told of it before. Raises ``VmmStartError`` when it has ended, or as ``record`` does.
        """
        assert plan.sandbox is not None
        assert plan.sandbox.limits is not None
        words = plan.resolve_argv({name: index for index, name in enumerate(descriptors)})
        order = {
            "name": plan.name,
            "words": words[words.index(PROGRAM) + 1 :],
            "uid": plan.sandbox.uid if self.kind.tools.as_root else None,
            "gids": plan.sandbox.gids,
            "private_bytes": plan.sandbox.limits.private_mib << 20,
        }
        started, self._process.log = self._process, log
        try:
            if record is not None:
                record(started)
            with log.open("ab") as output:
                data = json.dumps(order).encode()
                socket.send_fds(self._birth, [data], [*descriptors.values(), output.fileno()])
        except BaseException as error:
            started.kill_now()
            if isinstance(error, OSError):
                raise VmmStartError(f"{plan.name}: its VMM could not be told what to run: {error}") from error
            raise
        finally:
            self._birth.close()
            self._log.unlink(missing_ok=True)
        return started

    def discard(self) -> None:
        """It is not needed."""
        self._birth.close()
        self._process.kill_now()
        self._log.unlink(missing_ok=True)


def _start(kind: SpareKind, birth: int, log: Path) -> Process:
    try:
        kvm = os.open(DEV_KVM, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise HypervisorError(f"cannot open {DEV_KVM}: {error.strerror}") from error
    try:
        words = (*kind.program, "--birth", str(birth), str(kvm))
        argv = build_sandbox_argv(kind.sandbox, kind.tools, words)
        return process.start(argv, role=ROLE, log=log, pass_fds=(birth, kvm), sandboxed=True)
    finally:
        os.close(kvm)
