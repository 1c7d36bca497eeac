"""Ratios of throughput: which jobs are told of, and which way round."""

from __future__ import annotations

from bench.thin_streams import build_ratio_lines, build_ratios

from duovisor.spec.vm import VmmKind

DISK = {"read_4k_qd1": 10.0, "read_4k_qd32": 10.0, "randwrite_4k_qd32": 10.0, "read_1m_qd4": 10.0}


def test_ratios_are_medians_of_rounds() -> None:
    rounds = [
        {VmmKind.QEMU: {**DISK, "to_guest": 100.0, "from_guest": 100.0},
         VmmKind.THIN: {**DISK, "to_guest": thin, "from_guest": 50.0}}
        for thin in (300.0, 110.0, 90.0)
    ]  # fmt: skip
    found = build_ratios(rounds)
    assert found["network_ratio"] == {"to_guest": 1.1, "from_guest": 0.5}
    assert set(found["storage_ratio"]) == set(DISK)
    lines = build_ratio_lines(found)
    assert len(lines) == 6
    assert "network_ratio.to_guest" in lines[0]
    assert "1.100" in lines[0]


def test_what_was_not_measured_is_not_told() -> None:
    found = build_ratios([{VmmKind.QEMU: dict(DISK), VmmKind.THIN: dict(DISK)}])
    assert found["network_ratio"] == {}
    assert found["storage_ratio"] == dict.fromkeys(DISK, 1.0)
