"""A partition from its gate to its end, with a disk in between."""

from __future__ import annotations

import os
import signal
import socket
from typing import TYPE_CHECKING, Any

import pytest

from duovisor.controlling.drivers import block_layout as layout
from duovisor.controlling.errors import PartitionError
from duovisor.controlling.partitions.errors import PartitionGoneError, PartitionRefusedError
from duovisor.controlling.partitions.factory import PartitionFactory, read_code_digest
from duovisor.controlling.partitions.limits import PartitionLimits, build_limits

if TYPE_CHECKING:
    from pathlib import Path

    from tests.contract.driver_partition.served_disk import ServedDisk


async def test_a_gate_that_closes_ends_the_partition(disk: ServedDisk) -> None:
    partition = await disk.create()
    partition.control.close()
    assert await partition.process.wait() == 0
    assert partition.process.last_words() == ""
    assert partition.process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_signals_end_a_partition_at_its_gate(disk: ServedDisk, number: signal.Signals) -> None:
    partition = await disk.create()
    partition.process.send_signal(number)
    assert await partition.process.wait() == (0 if number is signal.SIGTERM else -signal.SIGKILL)
    with pytest.raises(PartitionGoneError):
        await partition.control.next_event()


async def test_orders_that_make_no_sense_are_refused_at_the_gate(disk: ServedDisk) -> None:
    control = (await disk.create()).control
    for order, said in {
        "dance": "order 'dance' is unknown",
        "hand_over": "to is None, not a name",
        "add_successor": "this partition is idle, not active",
        "attach": "this device takes no descriptors",
    }.items():
        with pytest.raises(PartitionRefusedError) as caught:
            await control.request(order)
        assert str(caught.value) == said
    status = await control.request("status")
    assert (status["role"], status["ready"], status["code"]) == ("idle", False, read_code_digest())


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"driver": "tape"}, "there is no driver of that name, but block"),
        ({"driver": "block", "options": ["--bogus"]}, "option --bogus is unknown"),
        ({"driver": "block"}, "the descriptor image is missing"),
    ],
)
async def test_an_assignment_that_cannot_be_ends_the_partition(
    disk: ServedDisk, fields: dict[str, Any], said: str
) -> None:
    partition = await disk.create()
    with pytest.raises(PartitionRefusedError) as caught:
        await partition.control.request("serve", **fields)
    assert str(caught.value).startswith(said)
    assert await partition.process.wait() == 1
    assert f" driver: {said}" in partition.process.last_words()


async def test_every_kind_of_request_is_served(disk: ServedDisk) -> None:
    partition = await disk.serve()
    client, content = disk.client, bytearray(disk.image.read_bytes())
    assert client.read(8, 65536) == content[4096 : 4096 + 65536]
    client.write(16, b"x" * 512)
    content[8192 : 8192 + 512] = b"x" * 512
    slots = [client.make_slot(layout.REQUEST_IN, 1 << 17) for _ in range(8)]
    client.drive(slots, range(0, 2048, 256))  # by the threads
    ranges = {layout.REQUEST_WRITE_ZEROES: (64, 8), layout.REQUEST_DISCARD: (128, 8)}
    for kind, (sector, count) in ranges.items():
        assert client.request(kind, 0, layout.RANGE.pack(sector, count, 0))[0] == layout.STATUS_OK
        content[sector * 512 : (sector + count) * 512] = bytes(count * 512)
    client.flush()
    assert disk.image.read_bytes() == content
    statistics = (await partition.control.request("status"))["statistics"]
    assert statistics["queues"][0]["completed"] == 13
    await partition.control.request("end")
    assert (await partition.process.wait(), partition.process.last_words()) == (0, "")


async def test_the_closing_front_end_ends_it(disk: ServedDisk) -> None:
    partition = await disk.serve()
    disk.close()
    assert (await partition.process.wait(), partition.process.last_words()) == (0, "")


async def test_a_service_comes_back_through_the_listener(disk: ServedDisk) -> None:
    partition = await disk.serve()
    partition.control.close()
    again = [await disk.connect(partition) for _ in range(2)]
    for connection in again:
        assert (await connection.request("status"))["role"] == "active"
    assert disk.client.read(0, 512) == disk.image.read_bytes()[:512]
    await again[0].request("end")
    assert await partition.process.wait() == 0


async def test_garbage_costs_one_connection(disk: ServedDisk) -> None:
    partition = await disk.serve()
    path = str(disk.folder / "disk0.control")
    for garbage in (b"{", b"[]", b"\xff", b"[" * 60000, b"5"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.connect(path)
            connection.send(garbage)
            assert connection.recv(100) == b""
    assert (await partition.control.request("status"))["role"] == "active"


async def test_many_connections_are_not_kept(disk: ServedDisk) -> None:
    partition = await disk.serve()
    made = []
    for _ in range(15):  # and the one that it was born with
        made.append(await disk.connect(partition))
        await made[-1].request("status")
    made.append(await disk.connect(partition))
    with pytest.raises(PartitionGoneError):
        await made[-1].request("status")
    assert (await partition.control.request("status"))["role"] == "active"
    for connection in made:
        connection.close()


async def test_a_peer_that_breaks_the_protocol_is_told_of(disk: ServedDisk) -> None:
    partition = await disk.serve()
    disk.channel.send(b"\xff" * 12)
    failed = await partition.control.next_event()
    assert failed == {"event": "failed", "message": "a message has version 3 instead of 1"}
    assert await partition.process.wait() == 1
    assert partition.process.last_words() == "block driver: a message has version 3 instead of 1"


@pytest.mark.parametrize("end_with_owner", [True, False])
async def test_partitions_live_on_only_if_they_shall(folder: Path, end_with_owner: bool) -> None:
    factory = await PartitionFactory.start(log=folder / "factory.log", end_with_owner=end_with_owner)
    partition = await factory.create(
        name="vm/disk0", uid=1, gid=1, log=folder / "disk0.log", limits=build_limits(64)
    )
    await factory.close()
    assert factory.has_ended
    with pytest.raises(PartitionGoneError, match="the partition factory has ended"):
        await factory.create(name="x", uid=1, gid=1, log=folder / "x.log", limits=build_limits(64))
    if end_with_owner:
        assert await partition.process.wait() is None  # whoever could tell is gone
    else:
        assert (await partition.control.request("status"))["role"] == "idle"
        assert await partition.process.kill() is None
    partition.control.close()


async def test_a_killed_factory_leaves_its_partitions_alone(disk: ServedDisk) -> None:
    partition = await disk.serve()
    await disk.factory.process.kill()
    assert disk.client.read(0, 512) == disk.image.read_bytes()[:512]
    await partition.control.request("end")
    assert await partition.process.wait() is None
    with pytest.raises(PartitionError):
        await disk.create()


async def test_what_cannot_be_confined_does_not_start(disk: ServedDisk) -> None:
    """Too little address space for anything: it dies, and its last words are told."""
    log = disk.folder / "small.log"
    with pytest.raises(PartitionError, match="partition vm/small did not start"):
        await disk.factory.create(
            name="vm/small",
            uid=1,
            gid=1,
            log=log,
            limits=PartitionLimits(address_space_bytes=1, open_files=3),
        )
    await disk.create()


async def test_descriptors_of_a_serving_partition(disk: ServedDisk) -> None:
    partition = await disk.serve()
    folder = f"/proc/{partition.process.pid}/fd"
    targets = [os.readlink(f"{folder}/{name}") for name in os.listdir(folder)]
    kinds = {target.partition(":")[0].rpartition("/")[2] for target in targets}
    assert kinds <= {"socket", "anon_inode", "disk0.log", "disk.raw", "memfd"}
    assert sum(target.endswith("disk.raw") for target in targets) == 1
    assert not [target for target in targets if target.startswith("/memfd:") and "duovisor" not in target]
