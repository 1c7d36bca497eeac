"""The owner's side of partitions, with somebody hostile in the partition's place."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from duovisor.controlling.drivers.control import receive_packet, send_packet
from duovisor.controlling.errors import PartitionError
from duovisor.controlling.partitions.code_digest import read_code_digest
from duovisor.controlling.partitions.control import EVENTS_KEPT, ControlConnection, bind_listener
from duovisor.controlling.partitions.errors import PartitionGoneError, PartitionRefusedError
from duovisor.controlling.partitions.factory import MAIN, PartitionFactory, build_factory_argv
from duovisor.controlling.partitions.limits import build_limits
from duovisor.controlling.python_runtime import interpreter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

Peers = tuple[ControlConnection, socket.socket]


@pytest_asyncio.fixture
async def peers() -> AsyncIterator[Peers]:
    """A connection, and the socket of whoever plays the partition."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection = ControlConnection(ours)
    yield connection, theirs
    connection.close()
    theirs.close()


def answer(partition: socket.socket, **fields: object) -> None:
    """Answer the one request that is there."""
    packet = receive_packet(partition)
    assert packet is not None
    send_packet(partition, {"reply": packet.message["do"], "id": packet.message["id"], **fields})


async def test_requests_and_replies(peers: Peers) -> None:
    connection, partition = peers
    first = asyncio.create_task(connection.request("status"))
    second = asyncio.create_task(connection.request("hand_over", to="spare"))
    await asyncio.sleep(0)
    answer(partition, ok=True, role="idle")
    answer(partition, ok=False, message="not now")
    assert (await first)["role"] == "idle"
    with pytest.raises(PartitionRefusedError, match=r"^not now$"):
        await second


async def test_descriptors_travel_with_their_names(peers: Peers) -> None:
    connection, partition = peers
    task = asyncio.create_task(connection.request("attach", descriptors={"format": 0}))
    await asyncio.sleep(0)
    packet = receive_packet(partition)
    assert packet is not None
    taken = packet.take_descriptors()
    assert list(taken) == ["format"]
    os.close(taken["format"])
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_no_answer(peers: Peers) -> None:
    with pytest.raises(PartitionGoneError, match=r"did not answer status within 0\.01 s"):
        await peers[0].request("status", timeout_s=0.01)


@pytest.mark.parametrize("reply", [{}, {"ok": 1}, {"ok": "true"}, {"ok": None, "message": 5}])
async def test_only_true_is_a_yes(peers: Peers, reply: dict[str, object]) -> None:
    task = asyncio.create_task(peers[0].request("end"))
    await asyncio.sleep(0)
    answer(peers[1], **reply)
    with pytest.raises(PartitionRefusedError):
        await task


async def test_replies_that_nobody_waits_for_are_ignored(peers: Peers) -> None:
    connection, partition = peers
    numbers: tuple[object, ...] = (5, "1", None, [1], {}, 1e9, True)
    for number in numbers:
        send_packet(partition, {"reply": "status", "id": number, "ok": True})
    send_packet(partition, {"event": "ready"})
    assert await connection.next_event() == {"event": "ready"}
    assert connection.is_open


@pytest.mark.parametrize("garbage", [b"{", b"[]", b"\xff", b"[" * 60_000, b"x" * 70_000])
async def test_garbage_ends_the_connection(peers: Peers, garbage: bytes) -> None:
    connection, partition = peers
    task = asyncio.create_task(connection.request("status"))
    await asyncio.sleep(0)
    partition.send(garbage)
    with pytest.raises(PartitionGoneError, match="the partition is gone: a message"):
        await task
    with pytest.raises(PartitionGoneError):
        await connection.next_event()


async def test_descriptors_from_a_partition_are_closed(peers: Peers) -> None:
    connection, partition = peers
    before = len(os.listdir("/proc/self/fd"))
    send_packet(partition, {"event": "ready"}, (0, 0))
    with pytest.raises(PartitionGoneError, match="it sent descriptors"):
        await connection.next_event()
    assert len(os.listdir("/proc/self/fd")) == before - 1  # the connection's own


async def test_a_flood_of_events_is_bounded_and_others_have_their_turn(peers: Peers) -> None:
    connection, partition = peers
    sent = 0
    while sent < EVENTS_KEPT * 2:
        try:
            send_packet(partition, {"event": "hung", "number": sent})
            sent += 1
        except BlockingIOError:
            await asyncio.sleep(0)
    while (await asyncio.wait_for(connection.next_event(), 1))["number"] != sent - 1:
        pass
    partition.close()
    with pytest.raises(PartitionGoneError):
        await connection.next_event()


async def test_what_was_told_before_the_end_is_not_lost(peers: Peers) -> None:
    connection, partition = peers
    send_packet(partition, {"event": "failed", "message": "x"})
    partition.close()
    assert (await connection.next_event())["message"] == "x"
    with pytest.raises(PartitionGoneError, match="the peer closed the connection"):
        await connection.request("status")


async def test_only_the_owner_may_connect(tmp_path: Path) -> None:
    path = tmp_path / "disk0.control"
    with bind_listener(path):
        assert path.stat().st_mode & 0o777 == 0o600
        connection = await ControlConnection.connect(path)
        connection.close()
        with pytest.raises(OSError, match="in use"):
            bind_listener(path)
    with pytest.raises(PartitionGoneError, match="no partition listens at"):
        await ControlConnection.connect(path)


def test_limits_grow_with_the_guest() -> None:
    small, large = build_limits(256), build_limits(4096)
    assert large.address_space_bytes - small.address_space_bytes == 4 * (4096 - 256) << 20
    assert small.address_space_bytes > 1 << 32
    assert (small.data_bytes, small.open_files, small.threads) == (256 << 20, 4096, 512)


def test_factory_command_line(tmp_path: Path) -> None:
    argv = build_factory_argv(MAIN, 7, "abc", tmp_path, end_with_owner=True)
    assert argv[0] == str(interpreter())
    assert {"-S", "-s", "-P", "-B"} <= set(argv)
    assert argv[-6:] == (MAIN, "7", "abc", "--end-with-owner", "--log", str(tmp_path))
    assert "--end-with-owner" not in build_factory_argv(MAIN, 7, "abc", tmp_path, end_with_owner=False)


def test_the_digest_follows_the_sources(tmp_path: Path) -> None:
    for folder in ("channel", "controlling/drivers"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a.py").write_text("x = 1")
    before = read_code_digest(tmp_path)
    assert len(before) == 12
    (tmp_path / "channel/notes.txt").write_text("no code")
    assert read_code_digest(tmp_path) == before
    (tmp_path / "channel/a.py").write_text("x = 2")
    assert read_code_digest(tmp_path) != before


@pytest.mark.parametrize(
    ("main", "said"),
    [("raise SystemExit('no luck')", "no luck"), ("import no_such_module", "no_such_module")],
)
async def test_a_factory_that_does_not_start(tmp_path: Path, main: str, said: str) -> None:
    with pytest.raises(PartitionError, match=f"the partition factory did not start: .*{said}"):
        await PartitionFactory.start(log=tmp_path / "log", end_with_owner=True, main=main)


async def test_a_factory_that_answers_nonsense(tmp_path: Path) -> None:
    main = (
        "import socket, sys; s = socket.socket(fileno=int(sys.argv[1]));"
        'tell = lambda text: s.send(text.encode()); tell(\'{"event": "ready"}\'); s.recv(9999);'
        'tell(\'{"reply": "create"}\'); s.recv(9999)'
    )
    factory = await PartitionFactory.start(log=tmp_path / "log", end_with_owner=True, main=main)
    with pytest.raises(PartitionError, match="the partition factory is gone"):
        await factory.create(name="x", uid=1, gid=1, log=tmp_path / "x", limits=build_limits(1))
    assert factory.has_ended
    await factory.close()
