"""What is read out of iperf3's and ping's reports, from reports of either."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from bench.network_streams import Pings, build_ping, find_silence, parse_pings, parse_streams

if TYPE_CHECKING:
    from pathlib import Path


def build_intervals(*streams: list[int]) -> list[dict[str, Any]]:
    """Intervals of half a second, from the bytes of each stream in them."""
    rows = zip(*streams, strict=True)
    return [{"streams": [{"seconds": 0.5, "bytes": moved} for moved in row]} for row in rows]


def build_report(intervals: list[dict[str, Any]], *, reverse: bool, moved: int = 1 << 20) -> dict[str, Any]:
    """A client's report; the server's is in it, as --get-server-output has it."""
    quiet = build_intervals([0, 0])
    return {
        "start": {"test_start": {"reverse": int(reverse)}},
        "intervals": intervals if reverse else quiet,
        "server_output_json": {"intervals": quiet if reverse else intervals},
        "end": {
            "sum_received": {"bytes": moved, "bits_per_second": 8e6},
            "sum_sent": {"retransmits": 3},
        },
    }


@pytest.mark.parametrize("reverse", [False, True])
def test_a_whole_stream_is_judged_at_its_receiver(reverse: bool) -> None:
    report = build_report(build_intervals([7, 0, 0, 7, 0, 7]), reverse=reverse)
    found = parse_streams(0, json.dumps(report))
    assert found == ("", 8.0, 6, 1.0, 3)


def test_silence_is_that_of_one_stream_among_others() -> None:
    assert find_silence(build_intervals([1, 1, 1, 1], [0, 0, 0, 1])) == 1.5
    assert find_silence(build_intervals([1, 0, 1, 0], [0, 1, 0, 1])) == 0.5
    assert find_silence(build_intervals([1, 1])) == 0.0


def test_a_broken_stream_says_why() -> None:
    whole = build_report(build_intervals([1, 1]), reverse=True)
    told = json.dumps({"error": "control socket has closed unexpectedly"})
    assert "control socket has closed unexpectedly" in parse_streams(1, told).broken
    assert "control socket has closed unexpectedly" in parse_streams(0, told).broken
    assert "ended with 1" in parse_streams(1, json.dumps(whole)).broken
    assert "Segmentation" in parse_streams(139, "Segmentation fault").broken
    assert "no interval" in parse_streams(0, json.dumps(whole | {"intervals": []})).broken
    assert (
        "nothing"
        in parse_streams(0, json.dumps(build_report(whole["intervals"], reverse=True, moved=0))).broken
    )


PINGED = """\
64 bytes from 10.77.0.1: seq=9999 ttl=64 time=0.9 ms

--- 10.77.0.1 ping statistics ---
10000 packets transmitted, 9997 packets received, 0% packet loss
round-trip min/avg/max = 0.401/1.234/56.789 ms
longest gap 2
"""


def test_pings_are_counted() -> None:
    assert parse_pings(PINGED) == Pings(10_000, 3, 0, 2, 1.234, 56.789)
    doubled = PINGED.replace("received, ", "received, 4 duplicates, ")
    assert parse_pings(doubled).duplicates == 4
    silent = "9 packets transmitted, 0 packets received, 100% packet loss\nlongest gap 9\n"
    assert parse_pings(silent) == Pings(9, 9, 0, 9, 0.0, 0.0)
    with pytest.raises(ValueError, match="Network is unreachable"):
        parse_pings("ping: sendto: Network is unreachable")


@pytest.mark.skipif(shutil.which("busybox") is None, reason="needs busybox")
@pytest.mark.parametrize(
    ("answered", "gap"),
    [([0, 1, 2, 3], 0), ([2, 3], 2), ([0, 3], 2), ([0, 1], 2), ([], 4), ([0, 2, 1, 3], 1), ([0, 0, 1, 3], 1)],
)
def test_the_longest_gap_is_found_by_the_guest_s_own_shell(
    answered: list[int], gap: int, tmp_path: Path
) -> None:
    """ping is a function here, which the command line calls with its options."""
    lines = "".join(f"64 bytes from 10.0.0.1: seq={number} ttl=64 time=0.1 ms\n" for number in answered)
    script = f"ping() {{ printf '{lines}'; }}; {build_ping('10.0.0.1', 4, 0.01, str(tmp_path / 'log'))}"
    done = subprocess.run(["busybox", "sh", "-c", script], capture_output=True, text=True, check=True)
    assert f"longest gap {gap}\n" in done.stdout
