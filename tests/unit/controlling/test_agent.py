"""Asking a guest's agent, which may be absent, slow, confused or hostile."""

from __future__ import annotations

import asyncio
import json
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit.vms.fake_agent import FakeAgent

from duovisor.controlling.agent import client
from duovisor.controlling.agent.answers import read_count, read_interfaces, read_offline_blocks
from duovisor.controlling.agent.client import MAX_REPLY_BYTES, connect_agent
from duovisor.controlling.agent.errors import AgentError, AgentRefusedError, AgentSilentError
from duovisor.controlling.agent.protocol import clean

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    Answer = Callable[[bytes], bytes]


@pytest.fixture
def port() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="dvt-", dir="/tmp") as name:
        yield Path(name) / "port.sock"


@asynccontextmanager
async def serving(port: Path, answer: Answer, first: bytes = b"") -> AsyncIterator[None]:
    """Whoever connects hears ``first``, then the answers to what it says; none when that is empty."""

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(first)
        while data := await reader.read(1 << 16):
            writer.write(answer(data))
        writer.close()

    server = await asyncio.start_unix_server(converse, str(port))
    async with server:
        yield


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SYNC_S", "REFUSAL_S"):
        monkeypatch.setattr(client, name, 0.2)


async def test_a_guest_tells_of_itself(port: Path) -> None:
    agent = FakeAgent()
    async with serving(port, agent.feed), connect_agent(port, "web") as connection:
        told = await connection.read_info()
    assert (told.hostname, told.system, told.kernel, told.agent_version, told.frozen) == (
        "web", "Debian GNU/Linux 12 (bookworm)", "6.1.0-1", "7.2.22", False,
    )  # fmt: skip
    (card,) = told.interfaces
    assert (card.name, card.mac) == ("eth0", "52:54:00:12:34:56")
    assert card.addresses == ("192.0.2.7/24", "fe80::1/64")


async def test_what_an_earlier_conversation_left_is_skipped(port: Path) -> None:
    agent = FakeAgent()
    left = b'{"return": {"version": "of somebody else"}}\n\xff{"return": 7}\n\xffno JSON\nhalf a l'
    async with serving(port, agent.feed, left), connect_agent(port, "web") as connection:
        assert (await connection.read_info()).agent_version == "7.2.22"


async def test_what_an_agent_cannot_is_empty(port: Path) -> None:
    agent = FakeAgent()
    agent.answers.clear()
    async with serving(port, agent.feed), connect_agent(port, "web") as connection:
        told = await connection.read_info()
        with pytest.raises(AgentRefusedError) as refused:
            await connection.set_time(1.5)
    assert (told.hostname, told.system, told.interfaces) == ("", "", ())
    assert refused.value.message == (
        "the guest's agent refuses: The command guest-set-time has not been found"
    )


async def test_the_clock_is_set_in_nanoseconds(port: Path) -> None:
    agent = FakeAgent()
    async with serving(port, agent.feed), connect_agent(port, "web") as connection:
        await connection.set_time(1.5)
    assert agent.was_told["guest-set-time"] == {"time": 1_500_000_000}


@pytest.mark.usefixtures("impatient")
async def test_frozen_file_systems_are_thawed_before_a_shutdown(port: Path) -> None:
    agent = FakeAgent()
    async with serving(port, agent.feed), connect_agent(port, "web") as connection:
        assert await connection.freeze() == 2
        assert (await connection.read_info()).frozen
        await connection.shut_down()
    assert (agent.is_frozen, agent.wants_to_shut_down) == (False, True)
    assert agent.was_told["guest-shutdown"] == {"mode": "powerdown"}


async def test_nothing_to_freeze_is_an_error(port: Path) -> None:
    def answer(data: bytes) -> bytes:
        return agent.feed(data).replace(b'{"return": 2}', b'{"return": 0}')

    agent = FakeAgent()
    async with serving(port, answer), connect_agent(port, "web") as connection:
        with pytest.raises(AgentRefusedError, match="found no file system to freeze"):
            await connection.freeze()


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    "answer",
    [lambda data: b"", lambda data: b'\xff{"return": 1}\n', lambda data: b'\xff{"return": true}\n'],
    ids=["nothing", "another number", "no number"],
)
async def test_who_does_not_answer_is_not_waited_for(port: Path, answer: Answer) -> None:
    async with serving(port, answer):
        with pytest.raises(AgentSilentError, match=r"the agent of web did not answer within 0\.2 s"):
            async with connect_agent(port, "web"):
                pass


async def test_who_talks_without_end_is_cut_off(port: Path) -> None:
    async with serving(port, lambda data: b"x" * (MAX_REPLY_BYTES + (1 << 17))):
        with pytest.raises(AgentError, match="says more than 256 KiB at once"):
            async with connect_agent(port, "web"):
                pass


async def test_nobody_there(port: Path) -> None:
    with pytest.raises(AgentSilentError, match="the agent of web cannot be reached"):
        async with connect_agent(port, "web"):
            pass


NONSENSE: list[Any] = [
    None, 1, "text", [], {}, [[]], [None, 1], [{"name": 5}], [{"name": "a", "ip-addresses": 7}],
    [{"name": "a", "ip-addresses": [{"ip-address": "no address", "prefix": 1}]}],
    [{"name": "a", "ip-addresses": [{"ip-address": "192.0.2.1", "prefix": 999}]}],
    [{"name": "a", "ip-addresses": [{"ip-address": ["192.0.2.1"], "prefix": {}}]}],
]  # fmt: skip


@pytest.mark.parametrize("answer", NONSENSE, ids=json.dumps)
def test_what_is_no_interface_is_left_out(answer: Any) -> None:
    assert all(each.addresses == () for each in read_interfaces(answer))


def test_a_guest_cannot_fill_our_memory_or_our_terminal() -> None:
    address = {"ip-address": "192.0.2.1", "prefix": 24}
    many = [{"name": f"\x1b[2Jeth{i}\n" + "x" * 999, "ip-addresses": [address] * 999} for i in range(999)]
    found = read_interfaces(many)
    assert len(found) == 64
    assert {len(each.addresses) for each in found} == {32}
    assert all(each.name.isprintable() and len(each.name) <= 64 for each in found)
    assert clean("a\x00b\x9bc\u202e") == "a b c"
    assert [read_count(each) for each in (3, -1, True, "3", 10**9)] == [3, 0, 0, 0, 0]


async def test_an_answer_nested_without_end_is_none(port: Path) -> None:
    def answer(data: bytes) -> bytes:
        return b"[" * 100_000 + b"\n" if b"guest-info" in data else agent.feed(data)

    agent = FakeAgent()
    async with serving(port, answer), connect_agent(port, "web") as connection:
        with pytest.raises(AgentError, match="does not answer in JSON"):
            await connection.execute("guest-info")


def test_memory_blocks_that_cannot_be_are_left_out() -> None:
    blocks = [
        {"phys-index": 3, "online": False}, {"phys-index": 4, "online": True}, {"phys-index": 5},
        {"phys-index": -1, "online": False}, {"phys-index": 1 << 32, "online": False},
        {"phys-index": "6", "online": False}, {"online": False}, "7", None,
    ]  # fmt: skip
    assert read_offline_blocks(blocks) == (3,)
    assert read_offline_blocks({"phys-index": 3}) == read_offline_blocks(None) == ()


async def test_a_guest_switches_its_memory_on(port: Path) -> None:
    agent = FakeAgent()
    agent.offline = {1, 3}  # the last one never comes
    async with serving(port, agent.feed), connect_agent(port, "web") as connection:
        assert await connection.switch_memory_on() == 1
        assert agent.was_told["guest-set-memory-blocks"]["mem-blks"] == [
            {"phys-index": 1, "online": True}, {"phys-index": 3, "online": True},
        ]  # fmt: skip
        agent.offline = set()
        agent.asked.clear()
        assert await connection.switch_memory_on() == 0
        assert agent.asked == ["guest-get-memory-blocks"]
