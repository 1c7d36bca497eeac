"""The conversation with a probe guest, with a fake guest at the other end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.images.fake_guest import REPORT, Answer, encode, encode_done, start_guest

from duovisor.controlling.images import probe_protocol
from duovisor.controlling.images.errors import GuestGoneError, GuestProtocolError, GuestTimeoutError
from duovisor.controlling.images.probe_client import connect_probe

if TYPE_CHECKING:
    from pathlib import Path


def echo(command: str) -> Answer:
    return Answer(len(command), command.encode())


async def test_report_says_what_the_guest_has(tmp_path: Path) -> None:
    async with start_guest(tmp_path / "s", echo), connect_probe(tmp_path / "s") as client:
        report = await client.wait_booted(5)
        assert (report.kernel, report.cpus, report.nics) == ("6.1.0", 2, ("eth0",))
        assert report.find_disk("duovisor-tools") == "/dev/vdb"
        assert report.find_disk("other") is None
        assert client.boot_report == report


async def test_commands_run_one_after_the_other(tmp_path: Path) -> None:
    async with start_guest(tmp_path / "s", echo) as heard, connect_probe(tmp_path / "s") as client:
        results = await asyncio.gather(client.run("ä\nb", 5), client.run("c", 5))
        assert [result.output.decode() for result in results] == ["ä\nb", "c"]
        assert heard == ["ä\nb", "c"]


async def test_long_output_arrives_whole(tmp_path: Path) -> None:
    big = bytes(range(256)) * 4096
    async with (
        start_guest(tmp_path / "s", lambda command: Answer(0, big)),
        connect_probe(tmp_path / "s") as c,
    ):
        assert (await c.run("x", 5)).output == big


@pytest.mark.parametrize("remains", [b'Y2Q="}\n', encode_done(3, Answer(0, b"old")), encode(REPORT)])
async def test_an_earlier_connections_remains_are_passed_over(tmp_path: Path, remains: bytes) -> None:
    async with start_guest(tmp_path / "s", echo, greeting=remains), connect_probe(tmp_path / "s") as client:
        assert await client.run("abc", 5) == (3, b"abc")


async def test_nonsense_later_is_an_error(tmp_path: Path) -> None:
    async with (
        start_guest(tmp_path / "s", echo, greeting=encode(REPORT) + b"{}\n"),
        connect_probe(tmp_path / "s") as client,
    ):
        with pytest.raises(GuestProtocolError, match=r"'{}'"):
            await client.run("abc", 5)


async def test_a_guest_that_hangs_up_is_gone(tmp_path: Path) -> None:
    async with (
        start_guest(tmp_path / "s", lambda command: None),
        connect_probe(tmp_path / "s") as client,
    ):
        with pytest.raises(GuestGoneError):
            await client.run("poweroff -f", 5)


async def test_a_silent_guest_ends_in_a_timeout(tmp_path: Path) -> None:
    async with start_guest(tmp_path / "s", echo, deaf=True), connect_probe(tmp_path / "s") as client:
        with pytest.raises(GuestTimeoutError, match=r"did not report that it is up within 0\.05 s"):
            await client.wait_booted(0.05)
        with pytest.raises(GuestTimeoutError, match="did not finish 'sleep 9'"):
            await client.run("sleep 9", 0.05)


async def test_no_socket_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(GuestGoneError, match="cannot reach the guest"):
        async with connect_probe(tmp_path / "none"):
            pass


@given(st.binary(max_size=200))
def test_any_line_is_a_message_or_a_protocol_error(line: bytes) -> None:
    try:
        message = probe_protocol.parse_message(line)
    except GuestProtocolError:
        pass
    else:
        assert message.event in ("booted", "done")


def test_unknown_keys_are_passed_over() -> None:
    line = encode({**REPORT, "later": 1})
    assert isinstance(probe_protocol.parse_message(line), probe_protocol.BootReport)


def test_request_is_one_line() -> None:
    assert probe_protocol.build_request(7, "echo a\necho b") == b"7 ZWNobyBhCmVjaG8gYg==\n"
