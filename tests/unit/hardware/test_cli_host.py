"""``duovisor host``: the shape of its JSON, its text, its exit codes."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from tests.unit.hardware.fake_qemu import write_fake_qemu
from tests.unit.hardware.recorded_hosts import INTERPRETED, XEON, find_root
from tests.unit.hardware.test_check import EVERYTHING, build_capabilities

from duovisor.cli.host import command
from duovisor.cli.host_text import print_host, print_verdicts
from duovisor.hardware.check import check_host
from duovisor.hardware.host import read_host

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUOVISOR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("DUOVISOR_QEMU", str(write_fake_qemu(tmp_path)))
    monkeypatch.setenv("COLUMNS", "96")


def invoke(*arguments: str, exit_code: int = 0) -> str:
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == exit_code, result.output
    return result.output


def test_show_json() -> None:
    document: dict[str, Any] = json.loads(invoke("show", "--json"))
    assert list(document) == [
        "system", "processors", "memory", "numa_nodes", "pci_devices", "block_devices", "nics",
        "capabilities",
    ]  # fmt: skip
    assert document["capabilities"]["qemu"]["version"] == [7, 2, 1]
    assert document["capabilities"]["kvm"]["state"]
    assert document["memory"]["total_mib"] == document["capabilities"]["memory_total_mib"]


def test_check_json() -> None:
    result = CliRunner().invoke(command, ["check", "--json"], catch_exceptions=False)
    document: dict[str, Any] = json.loads(result.output)
    assert list(document) == ["accelerator", "accelerator_reason", "designs"]
    assert document["accelerator"] in ("kvm", "tcg")
    assert list(document["designs"]) == ["monolithic", "microkernelized"]
    verdicts = {entry["verdict"] for entry in document["designs"].values()}
    assert result.exit_code == (5 if verdicts == {"no"} else 0)
    for entry in document["designs"].values():
        assert set(entry["findings"][0]) == {"subject", "level", "seen", "remedy"}


def test_check_without_qemu_exits_with_5(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUOVISOR_QEMU", str(tmp_path / "absent"))
    text = invoke("check", exit_code=5)
    assert f"cannotstart{tmp_path}/absent:Nosuchfileordirectory" in "".join(text.split())  # it is wrapped
    document = json.loads(invoke("check", "--json", exit_code=5))
    assert {entry["verdict"] for entry in document["designs"].values()} == {"no"}


def test_show_without_qemu_still_shows_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUOVISOR_QEMU", str(tmp_path / "absent"))
    assert json.loads(invoke("show", "--json"))["capabilities"]["qemu_problem"]["code"] == "program-not-found"
    assert "processors" in invoke("show")


def test_text_of_a_host(capsys: pytest.CaptureFixture[str]) -> None:
    print_host(read_host(find_root(XEON)), build_capabilities(XEON))
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    for line in (
        "host rack7 · Dell Inc. PowerEdge R650",
        "system Debian GNU/Linux 12 (bookworm), Linux 6.1.0-37-amd64",
        "memory 503.6 GiB, 392.0 GiB available",
        "huge pages 1.0 GiB: 48 of 64 free",
        "NUMA node 1 CPUs 1,3,5,7, 251.9 GiB",
        "0000:b1:00.0 144d:a80a NVMe controller nvme 77",
        "nvme0n1 3840.8 GB flash SAMSUNG MZQL23T8HCLS-00A07 /, /boot/efi and 1 more",
        "enp49s0f0np0 physical up 100000 Mbit/s b8:ce:f6:00:00:01 mlx5_core",
    ):
        assert line in lines


def test_text_of_verdicts(capsys: pytest.CaptureFixture[str]) -> None:
    capabilities = replace(build_capabilities(INTERPRETED), tools=replace(EVERYTHING, passt=None))
    print_verdicts(check_host(read_host(find_root(INTERPRETED)), capabilities))
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == [
        "              monolithic  microkernelized",
        "QEMU          ok          ok               7.2.22, /usr/bin/qemu-system-x86_64",
        "accelerator   ok, slower  ok, slower       tcg: KVM answers but interprets guest code: 657 ns",
        "                                           per loop iteration, hardware needs about 1",
        "                                           try: use a machine, or a VM type, whose processor",
        "                                           shows vmx or svm",
        "memory        ok          ok               23.2 GiB of 23.5 GiB available",
        "guest memory  ok          ok               a tmpfs of our own",
        "limits        ok          ok               each process, and each VM in a systemd scope",
        "io_uring      ok          ok               allowed",
        "sandbox       –           ok               bubblewrap, as root",
        "user network  –           ok, limited      passt is not installed: no user networking",
        "                                           try: apt install passt",
        "",
        "verdict       ok, slower  ok, limited",
    ]
