"""A VM's status, put together from its machine, its latest run and its definition; pure but for pidfds."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from duovisor.controlling.vms.records import CardAddress, ProcessState, ProcessStatus, VmStatus
from duovisor.hypervisor.lifecycle import ENDED, State
from duovisor.hypervisor.qemu.nics import mac_of, nic_socket

if TYPE_CHECKING:
    from duovisor.controlling.description import ProcessDescription
    from duovisor.controlling.machine import Machine
    from duovisor.controlling.vms.documents import RunDocument
    from duovisor.controlling.vms.records import VmRecord
    from duovisor.spec.vm import VirtualMachineSpec


def build_resting_status(run: RunDocument, boot_id: str, action: str) -> VmStatus:
    """The status of a VM that does not run: ``stopped`` or ``crashed`` after a run in this boot."""
    ended_now = run.ended_boot_id == boot_id
    resting = run.state if ended_now and run.state in ENDED else State.DEFINED
    return VmStatus(
        state=State.STARTING if action == "start" else resting,
        ended_at=run.ended_at,
        faults=run.faults,
        action=action,
    )


def build_active_status(machine: Machine, run: RunDocument, record: VmRecord, action: str) -> VmStatus:
    """The status of a VM that has a machine; it counts as ``stopping`` until nothing of it is left."""
    description = machine.description
    state = machine.vmm.state
    return VmStatus(
        state=State.STOPPING if state in ENDED else state,
        accelerator=description.accelerator,
        accelerator_reason=description.accelerator_reason,
        vmm=description.current.vmm,
        vmm_reason=description.current.vmm_reason,
        pid=description.processes[0].pid,
        started_at=datetime.fromtimestamp(description.started_at, UTC),
        processes=tuple(list_processes(machine)),
        drivers=tuple(device.describe() for device in machine.devices.values()),
        addresses=list_addresses(description.spec),
        faults=run.faults,
        full_disks=machine.current.full,
        memory_note=machine.memory_note,
        action=action,
        restart_needed=description.spec.without_places() != record.spec,
    )


def list_addresses(spec: VirtualMachineSpec) -> tuple[CardAddress, ...]:
    """The addresses that a VM's cards were given, or said to have; pure."""
    return tuple(
        CardAddress(
            card=nic_socket(index),
            network=nic.network,
            mac=mac_of(spec.name, index, nic),
            address=nic.address,
        )
        for index, nic in spec.numbered_nics()
        if nic.address is not None
    )


def list_processes(machine: Machine) -> list[ProcessStatus]:
    """Each process of a VM, and whether it runs."""
    running = {name for name, process in machine.helpers.items() if not process.has_ended}
    if machine.vmm.process is not None and not machine.vmm.process.has_ended:
        running.add("")
    running |= machine.current.media.list_running()
    running |= {name for name, keeper in machine.current.keepers.items() if keeper.is_running}
    serving = {pid for device in machine.devices.values() for pid in device.pids}
    return [
        ProcessStatus(
            role=process.role,
            pid=process.pid,
            device=process.device,
            state=ProcessState.RUNNING if _is_running(process, running, serving) else ProcessState.ENDED,
            duty=process.duty,
        )
        for process in machine.description.processes
    ]


def _is_running(process: ProcessDescription, running: set[str], serving: set[int]) -> bool:
    return process.pid in serving if process.control else process.device in running
