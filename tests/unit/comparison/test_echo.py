"""Pings: what a packet looks like, and what the answers tell of a gap."""

from __future__ import annotations

import asyncio
import os

import pytest

from duovisor.comparison.echo import (
    Echo,
    build_request,
    compute_checksum,
    judge,
    parse_reply,
    start_echoes,
)

IP = bytes([0x45]) + bytes(19)


def test_a_request_sums_up_to_zero() -> None:
    for number in (0, 1, 0xFFFF):
        assert compute_checksum(build_request(0x1234, number)) == 0


def test_only_answers_to_our_own_requests_count() -> None:
    answer = bytes([0]) + build_request(7, 42)[1:]
    assert parse_reply(IP + answer, 7) == 42
    assert parse_reply(IP + answer, 8) is None
    assert parse_reply(IP + build_request(7, 42), 7) is None
    for packet in (b"", b"\x45", IP, IP + answer[:7], bytes([0x4F]) + bytes(19) + answer):
        assert parse_reply(packet, 7) is None


def test_a_steady_guest_has_small_gaps() -> None:
    echoes = [Echo(at / 100, 0.001) for at in range(100)]
    verdict = judge(echoes)
    assert (verdict.sent, verdict.lost) == (100, 0)
    assert verdict.gap_ms == pytest.approx(10.0)


def test_lost_pings_and_the_time_without_an_answer() -> None:
    echoes = [Echo(at / 100, None if 50 <= at < 60 else 0.001) for at in range(100)]
    verdict = judge(echoes, since=0.45)
    assert (verdict.sent, verdict.lost) == (55, 10)
    assert verdict.gap_ms == pytest.approx(110.0)


def test_an_answer_that_comes_late_is_part_of_the_gap() -> None:
    echoes = [Echo(0.00, 0.001), Echo(0.01, 0.2), Echo(0.21, 0.001)]
    assert judge(echoes).gap_ms == pytest.approx(209.0)


def test_pings_behind_the_last_answer_are_still_under_way() -> None:
    verdict = judge([Echo(0.0, 0.001), Echo(0.01, 0.001), Echo(0.02, None)])
    assert (verdict.sent, verdict.lost) == (2, 0)


def test_nobody_answers() -> None:
    assert judge([Echo(0.0, None), Echo(0.01, None)]) == (2, 2, 0.0)
    assert judge([]) == (0, 0, 0.0)


@pytest.mark.skipif(os.geteuid() != 0, reason="raw sockets need root")
async def test_this_host_answers() -> None:
    async with start_echoes("127.0.0.1", os.getpid() & 0xFFFF) as echoes:
        while not any(echo.round_trip_s is not None for echo in echoes.collect()):
            await asyncio.sleep(0.01)
    assert judge(echoes.collect()).lost < len(echoes.collect())
