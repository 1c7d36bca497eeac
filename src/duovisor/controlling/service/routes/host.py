"""The host: what it has, and which designs it can run."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter

from duovisor.controlling.service.context import ServiceDep
from duovisor.controlling.service.gate import Viewer
from duovisor.controlling.service.replies import ApiModel
from duovisor.hardware.accelerator import decide_accelerator
from duovisor.hardware.capabilities import read_capabilities
from duovisor.hardware.check import Level, check_host
from duovisor.hardware.host import read_host
from duovisor.spec.vm import Accelerator, Design

router = APIRouter(prefix="/v1/host", tags=["host"])

Section = dict[str, Any]  # as the hardware layer describes it, docs/host.md


class HostView(ApiModel):
    """What this machine has."""

    system: Section
    processors: Section
    memory: Section
    numa_nodes: tuple[Section, ...]
    pci_devices: tuple[Section, ...]
    block_devices: tuple[Section, ...]
    nics: tuple[Section, ...]
    capabilities: Section


class FindingView(ApiModel):
    """One thing that a design needs."""

    subject: str
    level: Level
    seen: str
    remedy: str


class VerdictView(ApiModel):
    """Whether a design can run here; the worst finding decides."""

    verdict: Level
    findings: tuple[FindingView, ...]


class HostCheck(ApiModel):
    """A verdict per design."""

    accelerator: Accelerator
    accelerator_reason: str
    designs: dict[Design, VerdictView]


@router.get("", summary="Show what this host has")
async def get_host(service: ServiceDep, _: Viewer) -> HostView:
    host, capabilities = await asyncio.to_thread(
        lambda: (read_host(), read_capabilities(service.directories.cache))
    )
    return HostView(**asdict(host), capabilities=asdict(capabilities))


@router.get("/check", summary="Say for each design whether this host can run it, and why")
async def check(service: ServiceDep, _: Viewer) -> HostCheck:
    host, capabilities = await asyncio.to_thread(
        lambda: (read_host(), read_capabilities(service.directories.cache))
    )
    decision = decide_accelerator(Accelerator.AUTO, capabilities.kvm)
    return HostCheck(
        accelerator=decision.accelerator,
        accelerator_reason=decision.reason,
        designs={
            verdict.design: VerdictView(
                verdict=verdict.level,
                findings=tuple(FindingView(**asdict(finding)) for finding in verdict.findings),
            )
            for verdict in check_host(host, capabilities)
        },
    )
