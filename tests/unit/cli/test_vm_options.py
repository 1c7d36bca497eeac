"""What the options of ``duovisor run`` add up to."""

from __future__ import annotations

import os
from typing import Any

import click
import pytest

from duovisor.cli.vm_options import build_document, parse_disk, vm_options
from duovisor.spec.errors import SpecError


def build(*arguments: str, base: dict[str, Any] | None = None) -> dict[str, Any]:
    @click.command()
    @vm_options
    def command(**options: Any) -> None: ...

    with command.make_context("run", list(arguments)) as context:
        return build_document(base or {}, context.params)


def refuse(*arguments: str, base: dict[str, Any]) -> str:
    with pytest.raises(SpecError) as caught:
        build(*arguments, base=base)
    return str(caught.value)


def test_nothing_given_is_nothing_said() -> None:
    assert build() == {}
    assert build(base={"name": "a", "unknown": 1}) == {"name": "a", "unknown": 1}


def test_options_take_the_file_s_place() -> None:
    base = {"name": "file", "cpus": 1, "memory_mib": 512, "design": "monolithic", "firmware": "uefi"}
    document = build(
        "--name", "given", "--cpus", "4", "--memory", "2G", "--design", "microkernelized",
        "--firmware", "bios", "--accelerator", "tcg", base=base,
    )  # fmt: skip
    assert document == {
        "name": "given",
        "cpus": 4,
        "memory": "2G",
        "design": "microkernelized",
        "firmware": "bios",
        "accelerator": "tcg",
    }
    assert base["cpus"] == 1  # the file's document is not changed


def test_cdroms_and_boot_order() -> None:
    given = (
        "--cdrom",
        "a.iso",
        "--cdrom",
        "empty",
        "--cdrom",
        "volume=isos/b",
        "--boot-order",
        "cdrom, disk",
    )
    assert build(*given, base={"cdroms": [{}]}) == {
        "cdroms": [{}, {"path": os.path.abspath("a.iso")}, {}, {"volume": "isos/b"}],
        "boot_order": ["cdrom", "disk"],
    }
    assert "cdroms: 5 is not a list" in refuse("--cdrom", "a.iso", base={"cdroms": 5})


def test_secure_boot_means_uefi() -> None:
    assert build("--secure-boot") == {"secure_boot": True, "firmware": "uefi"}
    assert build("--secure-boot", "--firmware", "bios")["firmware"] == "bios"  # which the check refuses


def test_a_kernel_is_completed_and_sets_the_firmware() -> None:
    assert build("--kernel", "k") == {"kernel": {"path": "k"}, "firmware": "direct-kernel"}
    assert build("--kernel-from-disk") == {"kernel": {"disk": 0}, "firmware": "direct-kernel"}
    base = {"kernel": {"path": "k", "command_line": "old"}, "firmware": "direct-kernel"}
    assert build("--initrd", "i", "--append", "new", base=base)["kernel"] == {
        "path": "k",
        "initrd": "i",
        "command_line": "new",
    }
    assert build("--kernel", "k", "--firmware", "bios")["firmware"] == "bios"


def test_disks_come_after_the_file_s() -> None:
    base = {"disks": [{"path": "/first"}]}
    document = build("--disk", "/second,serial=s", "--disk", "/third,read_only", base=base)
    assert document["disks"] == [
        {"path": "/first"},
        {"path": "/second", "serial": "s"},
        {"path": "/third", "read_only": True},
    ]
    assert len(base["disks"]) == 1


def test_forwards_go_to_the_first_nic() -> None:
    assert build("--forward", "2222:22")["nics"] == [{"forward": ["2222:22"]}]
    assert build("--nic", "user", "--nic", "user", "--forward", "1:2", "--forward", "3:4")["nics"] == [
        {"network": "user", "forward": ["1:2", "3:4"]},
        {"network": "user"},
    ]
    base = {"nics": [{"mac": "52:54:00:00:00:01", "forward": ["5:6"]}]}
    assert build("--forward", "7:8", base=base)["nics"][0]["forward"] == ["5:6", "7:8"]
    assert base["nics"][0]["forward"] == ["5:6"]


@pytest.mark.parametrize(
    ("text", "document"),
    [
        ("/a.raw", {"path": "/a.raw"}),
        ("/a.raw,cache=none,queues=4", {"path": "/a.raw", "cache": "none", "queues": "4"}),
        ("/a.raw,read_only=false", {"path": "/a.raw", "read_only": "false"}),
        ("/a.raw,serial=a=b", {"path": "/a.raw", "serial": "a=b"}),
        ("a.raw", {"path": f"{os.getcwd()}/a.raw"}),
        ("", {"path": ""}),
    ],
)
def test_a_disk(text: str, document: dict[str, Any]) -> None:
    assert parse_disk(text) == document


@pytest.mark.parametrize("key", ["disks", "nics", "ports", "kernel"])
@pytest.mark.parametrize("value", [5, "text", None, True])
def test_what_cannot_be_added_to_is_named(key: str, value: object) -> None:
    said = refuse("--disk", "/a", "--forward", "1:2", "--append", "x", base={key: value})
    assert said.startswith(f"{key}: {value!r} is not a")


def test_a_nic_that_is_none_gets_no_forward() -> None:
    assert "nics.0: 'user' cannot be given a --forward" in refuse("--forward", "1:2", base={"nics": ["user"]})
    assert "cannot be given a --forward" in refuse("--forward", "1:2", base={"nics": [{"forward": 5}]})


def test_drivers_and_keys_are_named_by_absolute_paths() -> None:
    disk = parse_disk("/a.raw,driver=encrypted,key_file=k,sector_bytes=4096")
    here = os.getcwd()
    assert disk == {
        "path": "/a.raw", "driver": "encrypted", "key_file": f"{here}/k", "sector_bytes": "4096"
    }  # fmt: skip
    assert parse_disk(",driver=./mine.py") == {"path": "", "driver": f"{here}/mine.py"}


def test_devices_are_added_to_the_files() -> None:
    document = build("--device", "rng", "--device", "./dice.py", base={"devices": [{"driver": "rng"}]})
    assert [each["driver"] for each in document["devices"]] == ["rng", "rng", f"{os.getcwd()}/dice.py"]
    assert "devices: 5 is not a list" in refuse("--device", "rng", base={"devices": 5})
