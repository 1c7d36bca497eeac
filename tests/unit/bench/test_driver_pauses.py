"""What a guest felt of a kill, from logs made by hand."""

from __future__ import annotations

import pytest
from bench.driver_pauses import Clock, Read, find_pause, find_pauses, parse_latency_log, summarize


def test_fio_s_log_is_read() -> None:
    text = "1795402141218, 10707069, 0, 0, 0\n1795402141226, 2537932, 0, 0, 0\n\n"
    assert parse_latency_log(text) == [
        Read(1795402141.218, 0.010707069), Read(1795402141.226, 0.002537932),
    ]  # fmt: skip


def test_the_guest_s_clock_is_taken_from_the_shortest_comparisons_and_drifts() -> None:
    clock = Clock()
    clock.add(10.0, 10.4, 1010.9)  # long ones say little
    clock.add(11.0, 11.02, 1011.01)
    clock.add(111.0, 111.02, 1111.11)
    clock.add(112.0, 112.3, 1113.0)
    assert clock.to_guest(11.01) == pytest.approx(1011.01)
    assert clock.to_guest(111.01) == pytest.approx(1111.11)
    assert clock.to_guest(61.01) == pytest.approx(1061.06)


def test_a_pause_is_the_longest_read_under_way_at_the_kill_or_soon_after() -> None:
    reads = [Read(1.0, 0.5), Read(1.99, 0.002), Read(2.04, 0.045), Read(2.05, 0.001), Read(9.0, 3.0)]
    assert find_pause(reads, 2.0) == 0.045
    assert find_pause(reads, 6.1) == 3.0  # it ended late, but had begun
    with pytest.raises(ValueError, match="empty"):
        find_pause(reads, 3.0)


def test_each_kill_has_its_own_pause() -> None:
    reads = [Read(number / 100, 0.009) for number in range(1000)]
    reads[300] = Read(3.0, 0.030)
    reads[700] = Read(7.0, 0.080)
    assert find_pauses(reads, [2.97, 5.0, 6.95]) == pytest.approx([30.0, 9.0, 80.0])


def test_figures_of_many_pauses() -> None:
    assert summarize([float(n) for n in range(1, 1001)]) == {"p50": 500.5, "p99": 991.0, "max": 1000.0}
    assert summarize([]) == {"p50": 0.0, "p99": 0.0, "max": 0.0}
