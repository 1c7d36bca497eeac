"""The tables of ``bench/others.py``: ratios, figures, and where ours lost."""

from __future__ import annotations

from typing import Any

from bench.others_figures import build_ratios
from bench.others_storage import PAIRS
from bench.others_table import build_markdown

FIGURES = {
    "read_4k_qd1": {
        "monolithic": [2000.0, 2100.0, 1900.0],
        "microkernelized": [1500.0, 1600.0, 1700.0],
        "qemu": [2000.0, 2000.0, 2000.0],
        "qsd_vhost_user": [2000.0, 2000.0, 2000.0],
        "qsd_nbd": [1000.0, 1000.0, 1000.0],
    }
}
STARTS = {
    "start": {
        "libvirt": [200.0, 200.0, 200.0],
        "monolithic": [80.0, 100.0, 120.0],
        "microkernelized": [240.0, 260.0, 300.0],
    }
}


def build_document() -> dict[str, Any]:
    return {
        "machine": "Example, 2 CPUs",
        "rounds": 3,
        "seconds": 2.0,
        "load_before": 0.2,
        "load_after": 2.5,
        "storage": {"ratio": build_ratios(FIGURES, PAIRS), "figures": FIGURES},
        "libvirt": {
            "ratio": build_ratios(STARTS, [(who, "libvirt") for who in ("monolithic", "microkernelized")]),
            "figures": STARTS,
            "service_pss_mib": {"libvirt": 30.0, "duovisord": 60.0},
        },
        "missing": {"network": "there is no iperf3"},
    }


def test_ratios_and_figures_have_their_places() -> None:
    text = build_markdown(build_document())
    assert "3 rounds of 2 s a job on Example, 2 CPUs; load 0.2 before, 2.5 after." in text
    assert "| read_4k_qd1 | 1.00 [0.95 … 1.05] | 0.80 [0.75 … 0.85] | 1.60 [1.50 … 1.70] |" in text
    assert "| read_4k_qd1, IOPS | 2,000 | 1,600 | 2,000 | 2,000 | 1,000 |" in text
    assert "| start | 0.50 [0.40 … 0.60] | 1.30 [1.20 … 1.50] |" in text
    assert "libvirt 30, duovisord 60" in text
    assert "Not measured: network, for there is no iperf3." in text


def test_every_table_is_one() -> None:
    tables = [block for block in build_markdown(build_document()).split("\n\n") if block.startswith("|")]
    assert len(tables) == 4
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1
        assert set(table.splitlines()[1]) == set("|- ")


def test_what_is_lost_in_every_round_is_told_and_what_is_not_is_not() -> None:
    text = build_markdown(build_document())
    assert "microkernelized ÷ `qemu-storage-daemon`, vhost-user-blk: 20 % less" in text
    assert "start, microkernelized ÷ libvirt: 30 % more" in text
    assert "monolithic ÷ QEMU by hand:" not in text
    assert "NBD:" not in text
