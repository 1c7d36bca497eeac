"""Every measure by the name that the plan has for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from duovisor.comparison.measures import (
    authority,
    code,
    faults,
    network,
    processor,
    resources,
    service,
    start,
    storage,
    updates,
)
from duovisor.comparison.plan import SERVICE_FAULT

if TYPE_CHECKING:
    from duovisor.comparison.measures.context import Measure

MEASURES: dict[str, Measure] = {
    "boot": start.measure_boot,
    "idle": resources.measure_idle,
    "authority": authority.measure_authority,
    "code": code.measure_code,
    **storage.MEASURES,
    **network.MEASURES,
    "processor": processor.measure_processor,
    "quiet": faults.measure_quiet,
    "update.driver": updates.measure_driver,
    "update.design": updates.measure_design,
    "fault.storage_driver": faults.measure_storage_driver,
    "fault.network_driver": faults.measure_network_driver,
    "fault.vmm": faults.measure_vmm,
    SERVICE_FAULT: service.measure_service,
}
