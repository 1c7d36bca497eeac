"""What came of a stream of iperf3, and of pings, as their own reports say it; pure."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

_COUNTS = re.compile(r"(\d+) packets transmitted, (\d+) packets received")
_DUPLICATES = re.compile(r"(\d+) duplicates")
_TIMES = re.compile(r"= [\d.]+/([\d.]+)/([\d.]+) ms")
_GAP = re.compile(r"longest gap (\d+)")


class Streams(NamedTuple):
    """One run of iperf3; ``broken`` says why it did not come to its end, empty when it did.

    ``silent_s`` is the longest time, in whole intervals, in which one of the streams moved nothing, at the
    receiver.
    """

    broken: str
    mbit_s: float = 0.0
    intervals: int = 0
    silent_s: float = 0.0
    retransmits: int = 0


class Pings(NamedTuple):
    """``gap`` is the most pings in a row without an answer; times in milliseconds."""

    sent: int
    lost: int
    duplicates: int
    gap: int
    mean_ms: float
    longest_ms: float


def parse_streams(status: int, text: str) -> Streams:
    """Read the client's ``--json --get-server-output``."""
    try:
        report = json.loads(text)
    except ValueError:
        return Streams(f"iperf3 ended with {status} and said {text[-200:]!r}")
    if status or "error" in report:
        return Streams(f"iperf3 ended with {status}: {report.get('error', 'no reason given')}")
    receiver = report
    if not report["start"]["test_start"]["reverse"]:
        receiver = report.get("server_output_json", {})
    intervals = receiver.get("intervals", [])
    if not intervals:
        return Streams("iperf3's receiver reports no interval")
    end = report["end"]
    return Streams(
        broken="" if end["sum_received"]["bytes"] else "iperf3 moved nothing",
        mbit_s=end["sum_received"]["bits_per_second"] / 1e6,
        intervals=len(intervals),
        silent_s=find_silence(intervals),
        retransmits=end["sum_sent"]["retransmits"],
    )


def find_silence(intervals: list[dict[str, Any]]) -> float:
    """The longest time in seconds in which one stream moved nothing."""
    longest = 0.0
    silent: dict[int, float] = {}
    for interval in intervals:
        for index, stream in enumerate(interval["streams"]):
            quiet = silent.get(index, 0.0) + stream["seconds"]
            silent[index] = 0.0 if stream["bytes"] else quiet
            longest = max(longest, silent[index])
    return longest


def build_ping(address: str, pings: int, every_s: float, log: str = "/tmp/pings") -> str:
    """A shell command that pings into the file ``log`` and prints what ``parse_pings`` reads; pure."""
    numbers = r"sed -n 's/.*seq=\([0-9]*\).*/\1/p'"
    gaps = "BEGIN{last=-1} $1>last{if($1-last-1>gap)gap=$1-last-1; last=$1}"
    gaps += f' END{{if({pings}-last-1>gap)gap={pings}-last-1; print "longest gap",gap+0}}'
    ping = f"ping -i {every_s:g} -c {pings} {address} >{log}"
    return f"{ping}; tail -n 3 {log}; {numbers} {log} | awk '{gaps}'"


def parse_pings(text: str) -> Pings:
    """Read the last lines of busybox's ping, and the gap. Raises ``ValueError`` for anything else."""
    counts, gap, times = _COUNTS.search(text), _GAP.search(text), _TIMES.search(text)
    if counts is None or gap is None:
        raise ValueError(f"ping said {text[-300:]!r}")
    sent, received = map(int, counts.groups())
    duplicates = _DUPLICATES.search(text)
    return Pings(
        sent=sent,
        lost=sent - received,
        duplicates=int(duplicates[1]) if duplicates else 0,
        gap=int(gap[1]),
        mean_ms=float(times[1]) if times else 0.0,
        longest_ms=float(times[2]) if times else 0.0,
    )
