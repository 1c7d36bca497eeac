"""A guest on a linked clone, in each design: it sees its base, writes beside it, and grows where it can."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from tests.vm.service_host import ANY, build_document, reach_guest

from duovisor.client.errors import ApiError
from duovisor.client.service import vm_path
from duovisor.client.transfer import send_file
from duovisor.spec.vm import Design

if TYPE_CHECKING:
    from pathlib import Path

    from tests.vm.service_host import ServiceHost

    from duovisor.client.service import ServiceClient
    from duovisor.controlling.images.image import Image

pytestmark = pytest.mark.vm

VOLUMES = "/v1/volumes"
BASE, CLONE = f"{VOLUMES}/default/base", f"{VOLUMES}/default/clone"
MIB = 1 << 20


def do(client: ServiceClient, method: str, path: str, document: Any = None) -> None:
    """Do an operation to its end."""
    client.follow(client.request(method, path, document).document)


def refuse(client: ServiceClient, method: str, path: str, document: Any = None) -> str:
    """The code with which an operation fails."""
    with pytest.raises(ApiError) as caught:
        do(client, method, path, document)
    return caught.value.code


@pytest.mark.parametrize("design", Design)
async def test_a_guest_on_a_linked_clone(
    host: ServiceHost, probe_image: Image, scratch: Path, design: Design
) -> None:
    spec = build_document(probe_image)
    spec |= {
        "name": "web",
        "design": design,
        "disks": [*spec["disks"], {"volume": "clone", "serial": "data"}],
    }
    with host.connect() as client:
        client.follow(send_file(client, f"{BASE}/content", scratch, lambda done, size_bytes: None))
        do(client, "POST", f"{BASE}/clone", {"name": "clone", "linked": True})
        client.request("POST", "/v1/vms", {"spec": spec})
        client.follow(client.act("web", "start"))
        async with reach_guest(host, "web", probe_image) as guest:
            at = "/dev/$(grep -l data /sys/block/vd*/serial | cut -d/ -f4)"
            seen = await guest.run(
                f"dd if={at} bs=512 skip=9 count=1 2>/dev/null | hexdump -n 1", timeout_s=60
            )
            assert b"0009" in seen.output
            wrote = await guest.run(
                f"echo by-guest | dd of={at} bs=512 seek=9 conv=notrunc,sync,fsync", timeout_s=60
            )
            assert wrote.exit == 0
            assert refuse(client, "DELETE", CLONE) == "volume-in-use"
            assert refuse(client, "DELETE", BASE) == "volume-in-use"
            assert not client.get(vm_path("web"))["status"]["restart_needed"]
            larger = {"size_bytes": 128 * MIB}
            if design is Design.MONOLITHIC:
                do(client, "POST", f"{CLONE}/resize", larger)
                grown = await guest.run(f"blockdev --getsize64 {at}", timeout_s=60)
                assert int(grown.output) == 128 * MIB
            else:
                assert refuse(client, "POST", f"{CLONE}/resize", larger) == "wrong-state"
        host.kill_and_restart()
        client.close()
        client.follow(client.act("web", "stop"))
        if design is Design.MICROKERNELIZED:
            do(client, "POST", f"{CLONE}/resize", larger)
        assert client.get(CLONE)["size_bytes"] == 128 * MIB
        do(client, "POST", f"{CLONE}/clone", {"name": "copy", "format": "raw"})
        content = (host.directories.state / "volumes/copy.raw").read_bytes()
        assert content[9 * 512 :].startswith(b"by-guest\n")
        assert (host.directories.state / "volumes/base.raw").read_bytes() == scratch.read_bytes()
        client.request("DELETE", vm_path("web"), headers=ANY)
        for name in ("copy", "clone", "base"):
            do(client, "DELETE", f"{VOLUMES}/default/{name}")
