"""A VM's TPM: swtpm in a sandbox, beside the VMM in both designs.

It sees its own program and libraries, the folder with this VM's TPM and nothing else of the host; it speaks
with the VMM over one socket that it inherits. What the TPM must not forget (its seeds, keys, counters) it
writes into that folder before it answers. Nobody can succeed it: its registers are in its memory, and QEMU
greets it once.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from duovisor import process
from duovisor.controlling.errors import HostLacksError, PartitionError
from duovisor.controlling.preflight import find_libraries, find_sandbox_tools
from duovisor.hypervisor.build import USR_MERGED
from duovisor.hypervisor.qemu.tpm import TPM_SOCKET
from duovisor.sandbox import ResourceLimits, Sandbox, SandboxTools, build_sandbox_argv, uid_of
from duovisor.spec.vm import Design

if TYPE_CHECKING:
    from duovisor.hardware.capabilities import HostCapabilities
    from duovisor.spec.vm import VirtualMachineSpec

ROLE = "TPM"
FOLDER = "tpm"
SANDBOX_STATE = "/state"
LIMITS = ResourceLimits(private_mib=128, threads=512, descriptors=256)


@dataclass(frozen=True)
class TpmEnvironment:
    """The program, and what makes its sandbox."""

    swtpm: Path
    tools: SandboxTools


def find_tpm_environment(spec: VirtualMachineSpec, capabilities: HostCapabilities) -> TpmEnvironment | None:
    """What a VM's TPM is run with; ``None`` for a VM without one. Raises ``HostLacksError``."""
    if not spec.tpm:
        return None
    if capabilities.tools.swtpm is None:
        raise HostLacksError("tpm needs swtpm, which is not on this host", remedy="apt-get install swtpm")
    if not capabilities.sandbox.works:
        raise HostLacksError(
            f"tpm needs a sandbox: {capabilities.sandbox.reason}", remedy=capabilities.sandbox.remedy
        )
    tools = find_sandbox_tools(Design.MICROKERNELIZED, capabilities)
    return TpmEnvironment(Path(os.path.realpath(capabilities.tools.swtpm)), tools)


def start_tpm(
    environment: TpmEnvironment,
    vm_name: str,
    run_dir: Path,
    kept: Path,
    record: process.Record | None = None,
) -> process.Process:
    """Start the TPM of a VM whose VMM's socket listens already; ``kept`` is the folder of what stays.

    ``record`` is told of it before its program begins. Raises ``PartitionError``.
    """
    owner = uid_of(vm_name) if environment.tools.as_root else None
    try:
        state = make_state_folder(kept, owner)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
            channel.connect(str(run_dir / f"{TPM_SOCKET}.sock"))
            return process.start(
                build_sandbox_argv(
                    build_tpm_sandbox(environment.swtpm, vm_name, state),
                    environment.tools,
                    build_tpm_argv(environment.swtpm, channel.fileno()),
                ),
                role=ROLE,
                log=run_dir / f"{TPM_SOCKET}.log",
                pass_fds=(channel.fileno(),),
                sandboxed=True,
                record=record,
            )
    except OSError as error:
        raise PartitionError(f"the TPM of {vm_name} cannot be started: {error}") from error


def make_state_folder(kept: Path, owner: int | None) -> Path:
    """The folder with a VM's TPM, for ``owner`` alone; an empty one is a TPM that is new. Raises ``OSError``.

    A VM that was renamed has another uid.
    """
    folder = kept / FOLDER
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if owner is not None:
        for path in (folder, *folder.iterdir()):
            os.chown(path, owner, owner, follow_symlinks=False)
    return folder


def build_tpm_argv(swtpm: Path, channel: int) -> tuple[str, ...]:
    """The command line inside the sandbox; ``channel`` is the inherited, connected socket. Pure.

    It ends with its connection, and so with the VMM.
    """
    return (
        str(swtpm), "socket", "--tpm2",
        "--tpmstate", f"dir={SANDBOX_STATE},mode=0600",
        "--ctrl", f"type=unixio,clientfd={channel}",
        "--terminate",
    )  # fmt: skip


def build_tpm_sandbox(swtpm: Path, vm_name: str, state: Path) -> Sandbox:
    """What a TPM may see; pure."""
    return Sandbox(
        uid=uid_of(vm_name),
        read_only=tuple((path, str(path)) for path in (Path("/etc/ld.so.cache"), find_libraries(), swtpm)),
        writable=((state, SANDBOX_STATE),),
        links=USR_MERGED,
        if_there=("/usr/lib64",),
        limits=LIMITS,
    )
