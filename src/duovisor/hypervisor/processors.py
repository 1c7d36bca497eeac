"""Processors that come to a QEMU that runs, over QMP: into the places that its command line left room for.

Source: QEMU, docs/system/cpu-hotplug.rst. They come in the order of their cores, which is that of a QEMU that
begins with as many: so the one's state fits the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from duovisor.hypervisor.qmp import Qmp

PRESENT = "qom-path"


class Place(NamedTuple):
    """Where a processor is, or could be."""

    core: int
    is_taken: bool
    driver: str
    properties: dict[str, Any]


async def list_places(qmp: Qmp) -> list[Place]:
    """All places in their order. Raises ``QmpError`` and its like."""
    found = [
        Place(int(each["props"].get("core-id", 0)), PRESENT in each, str(each["type"]), dict(each["props"]))
        for each in await qmp.execute("query-hotpluggable-cpus")
    ]
    return sorted(found, key=lambda place: place.core)


async def count_processors(qmp: Qmp) -> int:
    """How many processors the guest has."""
    return sum(place.is_taken for place in await list_places(qmp))


async def add_processors(qmp: Qmp, wanted: int) -> None:
    """Let the guest have as many. Raises ``QmpError``; some may have come then."""
    for place in (await list_places(qmp))[:wanted]:
        if not place.is_taken:
            await qmp.execute("device_add", driver=place.driver, id=f"cpu{place.core}", **place.properties)
