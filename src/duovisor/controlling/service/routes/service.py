"""The service itself: alive, since when, what it found, and its numbers for Prometheus."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import datetime
from typing import Literal

from fastapi import APIRouter, Response

from duovisor import __version__
from duovisor.controlling.service.context import Service, ServiceDep
from duovisor.controlling.service.gate import Viewer
from duovisor.controlling.service.metrics import CONTENT_TYPE, Metric, Sample, build_text
from duovisor.controlling.service.process_usage import find_usage
from duovisor.controlling.service.replies import ApiModel
from duovisor.controlling.service.routes.drivers import iterate_vms
from duovisor.controlling.vms.records import RecoveryReport, VmView
from duovisor.hypervisor.lifecycle import State

router = APIRouter(tags=["service"])


class Health(ApiModel):
    """Said to everybody, and therefore little."""

    status: Literal["ok", "stopping"]


class ServiceView(ApiModel):
    """This run of the service; `start_s` is how long it took to be ready, `recovery` what it found."""

    version: str
    pid: int
    who: str
    role: str
    started_at: datetime
    start_s: float
    state_folder: str
    runtime_folder: str
    recovery: RecoveryReport


@router.get("/v1/health", summary="Say that the service answers; needs no token")
async def get_health(service: ServiceDep) -> Health:
    return Health(status="stopping" if service.stopping.is_set() else "ok")


@router.get("/v1/service", summary="Show this service, what it found when it started, and who you are to it")
async def get_service_view(service: ServiceDep, who: Viewer) -> ServiceView:
    return ServiceView(
        version=__version__,
        pid=os.getpid(),
        who=who.name,
        role=str(who.role),
        started_at=service.started_at,
        start_s=service.start_s,
        state_folder=str(service.directories.state),
        runtime_folder=str(service.directories.runtime),
        recovery=service.recovery,
    )


@router.get(
    "/metrics",
    summary="Numbers for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def get_metrics(service: ServiceDep, _: Viewer) -> Response:
    vms = [vm async for vm in iterate_vms(service)]
    return Response(build_text(_metrics(service, vms)), media_type=CONTENT_TYPE)


def _metrics(service: Service, vms: list[VmView]) -> Iterator[Metric]:
    states = dict.fromkeys(State, 0)
    for vm in vms:
        states[vm.status.state] += 1
    yield Metric(
        "duovisor_vms", "gauge", "VMs by state.",
        [Sample({"state": state}, count) for state, count in states.items()],
    )  # fmt: skip
    yield Metric(
        "duovisor_operations", "gauge", "Operations that are kept, by state.",
        [Sample({"state": s}, count) for s, count in service.operations.count_by_state().items()],
    )  # fmt: skip
    yield Metric("duovisor_events_total", "counter", "Events since the store was made.",
                 [Sample({}, service.events.last)])  # fmt: skip
    yield service.requests.metric()
    memory, cpu = _process_samples(service, vms)
    yield Metric("duovisor_process_resident_bytes", "gauge", "Memory of each process.", memory)
    yield Metric("duovisor_process_cpu_seconds_total", "counter", "Processor time of each process.", cpu)


def _process_samples(service: Service, vms: list[VmView]) -> tuple[list[Sample], list[Sample]]:
    """Memory and processor time of the service and of each process of each VM."""
    memory, cpu = [], []
    processes = [("", "service", "", os.getpid())]
    processes += [(vm.record.name, p.role, p.device, p.pid) for vm in vms for p in vm.status.processes]
    for vm_name, role, device, pid in processes:
        if usage := find_usage(pid):
            labels = {"vm": vm_name, "role": role, "device": device}
            memory.append(Sample(labels, usage.resident_bytes))
            cpu.append(Sample(labels, usage.cpu_s))
    return memory, cpu
