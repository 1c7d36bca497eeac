"""The group of one VM: a leaf for each of its processes, below one limit for all.

``open_vm_group`` before the first process, ``place`` for each before it does anything, ``find_vm_group`` in
the successor of a service. Nothing has to be removed: the group ends with the VM's last process.
A host without systemd has no groups for us; what limits a process then is its resource limits alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from duovisor.controlling.resources import group_folder
from duovisor.controlling.resources.limits import (
    build_helper_group_limits,
    build_vm_group_limits,
    build_vmm_group_limits,
)
from duovisor.controlling.resources.processors import cannot_keep
from duovisor.controlling.resources.scope import NAME, ScopeError, build_scope_argv, start_scope
from duovisor.process import ProcessError
from duovisor.process_identity import read_children

if TYPE_CHECKING:
    from pathlib import Path

    from duovisor.hardware.capabilities import HostCapabilities
    from duovisor.process import Process
    from duovisor.spec.vm import VirtualMachineSpec

VMM = "vmm"


class VmGroup:
    """``folder`` is ``None`` where there are no groups; ``problem`` says why, or what went wrong since."""

    def __init__(
        self,
        spec: VirtualMachineSpec,
        folder: Path | None,
        *,
        problem: str = "",
        holder: Process | None = None,
    ) -> None:
        self.folder = folder
        self.problem = problem
        self._holder = holder
        self._limits = {VMM: build_vmm_group_limits(spec)}
        self._helper_limits = build_helper_group_limits(spec)

    def place(self, device: str, pid: int) -> None:
        """Limit a process, which has not begun its work; ``device`` is what it serves, empty for the VMM.

        Nothing happens when it was placed already, or there are no groups. Never raises: a process that could
        not be placed has its resource limits, and ``problem`` says so.
        """
        if self.folder is None or self._holds(pid):
            return
        role = device or VMM
        leaf = self.folder / f"{role}-{pid}"
        try:
            group_folder.remove_empty_children(self.folder)
            leaf.mkdir()
            for each in (pid, *read_children(pid)):  # in a sandbox that waited, the program is there
                group_folder.add_process(leaf, each)
            self._relieve_holder(self.folder)
            group_folder.write_limits(leaf, self._limits.get(role, self._helper_limits))
        except ProcessLookupError:
            pass  # it has ended
        except OSError as error:
            self.problem = f"{role} could not be put into its group: {error.strerror} ({error.filename})"

    def grow(self, spec: VirtualMachineSpec) -> None:
        """Leave room for the devices that the VM has now. Never raises, as ``place``."""
        if self.folder is not None and self._holder is None:
            try:
                group_folder.write_limits(self.folder, build_vm_group_limits(spec))
            except OSError as error:
                self.problem = f"the limit for all could not be changed: {error.strerror} ({error.filename})"

    def close(self) -> None:
        """Let go of a group in which there may be nothing yet."""
        if self._holder is not None:
            self._holder.kill_now()
            self._holder = None

    def _holds(self, pid: int) -> bool:
        leaf = group_folder.find_group(pid)
        return leaf is None or leaf.parent == self.folder

    def _relieve_holder(self, folder: Path) -> None:
        """From the first process on the scope needs nobody to hold it, and its leaves can have limits."""
        if self._holder is not None:
            self.close()
            group_folder.turn_controllers_on(folder)


async def open_vm_group(spec: VirtualMachineSpec, capabilities: HostCapabilities, run_dir: Path) -> VmGroup:
    """A group for a VM that is about to start; see ``VmGroup.problem``.

    Raises ``HostLacksError`` for a VM with limits that only a group can keep.
    """
    systemd_run = capabilities.tools.systemd_run
    if capabilities.groups_problem or systemd_run is None:
        return VmGroup(spec, None, problem=capabilities.groups_problem)
    limits = build_vm_group_limits(spec)
    argv = build_scope_argv(
        systemd_run, spec.name, limits, as_root=capabilities.is_root, share=spec.processor_share
    )
    try:
        holder, folder = await start_scope(argv, run_dir / "scope.log")
    except (ScopeError, ProcessError) as error:
        if spec.needs_group:
            raise cannot_keep(spec, str(error)) from error
        return VmGroup(spec, None, problem=str(error))
    return VmGroup(spec, folder, holder=holder)


def find_vm_group(spec: VirtualMachineSpec, pid: int) -> VmGroup:
    """The group of a VM that runs, by the process id of its VMM."""
    leaf = group_folder.find_group(pid)
    if leaf is not None and NAME.fullmatch(leaf.parent.name):
        return VmGroup(spec, leaf.parent)
    return VmGroup(spec, None, problem="it was started without a group")
