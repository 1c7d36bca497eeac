"""The specification's own checks, field by field."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from duovisor.spec.errors import SpecError
from duovisor.spec.loading import build_spec
from duovisor.spec.names import NAME_MAX, check_name
from duovisor.spec.vm import MAX_DISKS, MAX_NICS, CacheMode, Design, DiskFormat, Firmware, PortForward


def build(**fields: Any) -> Any:
    return build_spec({"name": "vm", **fields})


def refuse(**fields: Any) -> str:
    with pytest.raises(SpecError) as caught:
        build(**fields)
    return str(caught.value)


def test_defaults() -> None:
    spec = build()
    assert (spec.design, spec.accelerator, spec.firmware) == (Design.MONOLITHIC, "auto", Firmware.BIOS)
    assert (spec.cpus, spec.memory_mib, spec.disks, spec.nics, spec.ports) == (1, 512, (), (), ())
    disk = build(disks=[{"path": "a"}]).disks[0]
    assert (disk.format, disk.cache) == (DiskFormat.RAW, CacheMode.WRITEBACK)
    assert (disk.queues, disk.queue_size, disk.read_only, disk.serial) == (1, 256, False, "")


def test_a_specification_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        build().cpus = 2


def test_json_reads_back() -> None:
    spec = build(
        memory="1G", disks=[{"path": "a"}], nics=[{"forward": ["udp:10.0.0.1:53:5353"]}], ports=["a.b"]
    )
    assert type(spec).model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize("name", ["a", "A9", "web-1", "a_b.c", "9", "a" * NAME_MAX])
def test_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "must not be empty"),
        ("a" * 300, "the name is 300 characters long; 63 is the most"),
        ("a/b", "'a/b' is not a name"),
        ("../etc", "is not a name"),
        ("..", "is not a name"),
        (".", "is not a name"),
        ("-a", "is not a name"),
        ("a-", "is not a name"),
        ("a b", "is not a name"),
        ("a\n", "is not a name"),
        ("a\0", "is not a name"),
        ("a,b=c", "is not a name"),
        ("ä", "is not a name"),
        ("@qmp@", "is not a name"),
    ],
)
def test_bad_names(name: str, said: str) -> None:
    with pytest.raises(ValueError, match=said.replace("(", r"\(")):
        check_name(name)


@given(st.text(max_size=80))
def test_a_name_is_a_file_name_and_a_qemu_value(name: str) -> None:
    try:
        check_name(name)
    except ValueError:
        return
    assert name not in (".", "..")
    assert len(name) <= NAME_MAX
    assert not set(name) & set("/,=@\0\n ")


@pytest.mark.parametrize(
    ("given", "memory_mib"),
    [("512M", 512), ("2G", 2048), ("1.5G", 1536), ("512", 512), (512, 512), ("16777216k", 16384)],
)
def test_memory(given: object, memory_mib: int) -> None:
    assert build(memory=given).memory_mib == memory_mib
    assert build(memory_mib=given).memory_mib == memory_mib


def test_bad_memory() -> None:
    assert "'2X' is not a size" in refuse(memory="2X")
    assert "'1k' is not a whole number of MiB" in refuse(memory="1k")
    assert "greater than or equal to 16 (got 15)" in refuse(memory_mib=15)
    assert "less than or equal to 16777216" in refuse(memory="17T")
    assert "give memory or memory_mib, not both" in refuse(memory="1G", memory_mib=1024)
    assert "finite number" in refuse(memory=float("inf"))
    assert "valid integer" in refuse(memory=[1])


@pytest.mark.parametrize("cpus", [0, -1, 256, "x", 1.5, None])
def test_bad_cpus(cpus: object) -> None:
    assert refuse(cpus=cpus).startswith("cpus: ")


def test_the_agent_s_port_is_the_last() -> None:
    assert build(ports=["a"], guest_agent=True).all_ports == ("a", "org.qemu.guest_agent.0")
    assert build(ports=["a"]).all_ports == ("a",)
    assert "leave it out of ports" in refuse(ports=["org.qemu.guest_agent.0"], guest_agent=True)


def test_cdroms_and_what_is_started_from() -> None:
    spec = build(cdroms=["/srv/a.iso", {}, {"volume": "isos/b"}], boot_order=["network", "disk"])
    assert [each.path for each in spec.cdroms] == ["/srv/a.iso", "", ""]
    assert [each.is_empty for each in spec.cdroms] == [False, True, False]
    assert spec.boot_order == ("network", "disk")
    assert build().boot_order == ("disk", "cdrom")
    assert "names a kind of device twice: disk, disk" in refuse(boot_order=["disk", "disk"])
    assert "boot_order.0" in refuse(boot_order=["floppy"])
    assert "at most 4" in refuse(cdroms=[{}] * 5)
    found = spec.model_copy(update={"cdroms": (spec.cdroms[2].model_copy(update={"path": "/pool/b"}),)})
    assert found.without_places().cdroms == (spec.cdroms[2],)


def test_secure_boot_is_uefi_s() -> None:
    assert build(firmware="uefi", secure_boot=True).secure_boot
    assert "secure_boot is for firmware uefi, not bios" in refuse(secure_boot=True)


def test_kernel_and_firmware_belong_together() -> None:
    kernel = {"path": "/boot/vmlinuz"}
    assert build(firmware="direct-kernel", kernel=kernel).kernel.command_line == ""
    assert "needs a kernel: add kernel.path" in refuse(firmware="direct-kernel")
    assert "only with firmware direct-kernel, not uefi" in refuse(firmware="uefi", kernel=kernel)
    assert "kernel: path is missing" in refuse(firmware="direct-kernel", kernel={"path": " "})
    assert "found_arguments are of a kernel on a disk" in refuse(
        firmware="direct-kernel", kernel={**kernel, "found_arguments": "x"}
    )
    assert "at most 2047" in refuse(firmware="direct-kernel", kernel={**kernel, "command_line": "x" * 2048})


def test_disks() -> None:
    assert "disks.0.queue_size: 100 is not a power of two" in refuse(disks=[{"path": "a", "queue_size": 100}])
    assert "disks.0.queue_size: " in refuse(disks=[{"path": "a", "queue_size": 2048}])
    assert "disks.0.queues: " in refuse(disks=[{"path": "a", "queues": 17}])
    assert "is not a disk serial" in refuse(disks=[{"path": "a", "serial": "x" * 21}])
    assert "is not a disk serial" in refuse(disks=[{"path": "a", "serial": "a,b"}])
    assert "disks.0: path is missing: name the disk's image file" in refuse(disks=[{"path": ""}])
    assert "zero byte" in refuse(disks=[{"path": "a\0b"}])
    assert f"at most {MAX_DISKS} items" in refuse(disks=[{"path": str(n)} for n in range(MAX_DISKS + 1)])


@pytest.mark.parametrize(
    ("disk", "said"),
    [
        (
            {"path": "a", "driver": "magic"},
            "disks.0.driver: 'magic' is neither block nor encrypted nor a Python",
        ),
        ({"path": "a", "driver": "encrypted"}, "needs a key_file; duovisor disk-key new FILE makes one"),
        ({"path": "a", "driver": "encrypted", "key_file": ""}, "disks.0.key_file: "),
        ({"path": "a", "key_file": "k"}, "key_file is for driver encrypted, not block"),
        ({"path": "a", "sector_bytes": 4096}, "sector_bytes is for driver encrypted, not block"),
        (
            {"path": "a", "driver": "encrypted", "key_file": "k", "sector_bytes": 1024},
            "disks.0.sector_bytes: ",
        ),
        ({"path": "a", "driver": "encrypted", "key_file": "k", "format": "qcow2"}, "works on raw images"),
        ({"driver": "encrypted", "key_file": "k"}, "path is missing"),
        ({"path": "a", "options": {"x": 1}}, "driver block takes no options"),
        ({"driver": "a.py", "options": {"X": 1}}, "disks.0.options"),
        ({"driver": "a.py", "key_file": "k"}, "key_file is for driver encrypted, not a.py"),
        ({"driver": "a.py", "path": "a", "format": "vmdk"}, "driver a.py works on raw images, not on vmdk"),
    ],
)
def test_bad_disk_drivers(disk: dict[str, Any], said: str) -> None:
    assert said in refuse(disks=[disk])


def test_disk_drivers() -> None:
    encrypted, own = build(
        disks=[{"path": "a", "driver": "encrypted", "key_file": "k"}, {"driver": "a.py", "options": {"x": 1}}]
    ).disks
    assert (encrypted.driver_file, own.driver_file, own.path) == (None, "a.py", "")
    assert len(build(disks=[{"driver": "a.py"}, {"driver": "a.py"}]).disks) == 2  # neither has a file


def test_a_disk_has_one_writer() -> None:
    reader, writer = {"path": "a", "read_only": True}, {"path": "a"}
    assert len(build(disks=[reader, reader]).disks) == 2
    assert "'a' is given for two disks and one of them writes to it" in refuse(disks=[reader, writer])
    assert "'a' is given for two disks" in refuse(disks=[writer, writer])


def test_nics() -> None:
    assert build(nics=[{"mac": "52:54:00:AA:bb:cc"}]).nics[0].mac == "52:54:00:aa:bb:cc"
    assert "is not a MAC address" in refuse(nics=[{"mac": "52:54:00:aa:bb"}])
    assert "is a multicast address" in refuse(nics=[{"mac": "01:00:5e:00:00:01"}])
    assert "nics.0.network: " in refuse(nics=[{"network": "a b"}])
    assert build(nics=[{"bridge": "br0"}]).nics[0].network == "bridge"
    assert "needs the bridge's name" in refuse(nics=[{"network": "bridge"}])
    assert "leave network out to use br0" in refuse(nics=[{"network": "user", "bridge": "br0"}])
    assert "is not an interface's name" in refuse(nics=[{"bridge": "a-name-of-16-char"}])
    assert "has an address of its own" in refuse(nics=[{"bridge": "br0", "forward": ["1:2"]}])
    assert "mac_filter is for a bridged card" in refuse(nics=[{"mac_filter": True}])
    assert f"at most {MAX_NICS} items" in refuse(nics=[{}] * (MAX_NICS + 1))


@pytest.mark.parametrize(
    ("text", "forward"),
    [
        ("2222:22", ("tcp", "127.0.0.1", 2222, 22)),
        ("udp:53:5353", ("udp", "127.0.0.1", 53, 5353)),
        ("0.0.0.0:80:8080", ("tcp", "0.0.0.0", 80, 8080)),
        ("tcp:10.1.2.3:80:8080", ("tcp", "10.1.2.3", 80, 8080)),
    ],
)
def test_port_forwards(text: str, forward: tuple[str, str, int, int]) -> None:
    read = PortForward.model_validate(text)
    assert (read.protocol, read.host_address, read.host_port, read.guest_port) == forward


@pytest.mark.parametrize(
    "given",
    [
        "",
        "22",
        "a:b",
        "sctp:1:2",
        "0:22",
        "65536:22",
        "22:0",
        "1.2.3.4.5:1:2",
        "300.1.1.1:1:2",
        "1:2:3",
        5,
        {"host_address": "127.0.0.1,smb=/", "host_port": 1, "guest_port": 2},
        {"host_address": "", "host_port": 1, "guest_port": 2},
    ],
)
def test_bad_port_forwards(given: object) -> None:
    assert "forward" in refuse(nics=[{"forward": [given]}])


def test_ports() -> None:
    assert build(ports=["org.qemu.guest_agent.0"]).ports == ("org.qemu.guest_agent.0",)
    assert "is not a port name" in refuse(ports=["a,b"])
    assert "at most 8 items" in refuse(ports=[f"p{n}" for n in range(9)])
