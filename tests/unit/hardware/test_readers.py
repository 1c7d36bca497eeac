"""The readers, on recorded hosts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.unit.hardware.recorded_hosts import EPYC, HOSTS, INTERPRETED, PLAIN_VM, XEON, find_root

from duovisor.hardware.block import parse_mountinfo
from duovisor.hardware.host import read_host
from duovisor.hardware.memory import HugePages, NumaNode, parse_meminfo
from duovisor.hardware.network import NicKind
from duovisor.hardware.system import parse_os_release

if TYPE_CHECKING:
    from pathlib import Path


def test_reads_processors_with_vmx() -> None:
    processors = read_host(find_root(XEON)).processors
    assert (processors.sockets, processors.cores, processors.threads) == (2, 4, 8)
    assert (processors.extension, processors.nested_paging, processors.nested_kvm) == ("vmx", True, True)
    assert processors.model == "Intel(R) Xeon(R) Gold 6338 CPU @ 2.00GHz"
    assert not processors.is_virtual


def test_reads_processors_with_svm() -> None:
    processors = read_host(find_root(EPYC)).processors
    assert (processors.sockets, processors.cores, processors.threads) == (1, 2, 4)
    assert (processors.extension, processors.nested_paging, processors.nested_kvm) == ("svm", True, True)
    assert processors.vendor == "AuthenticAMD"


@pytest.mark.parametrize("name", [PLAIN_VM, INTERPRETED])
def test_reads_processors_without_extension(name: str) -> None:
    processors = read_host(find_root(name)).processors
    assert (processors.extension, processors.nested_paging, processors.nested_kvm) == ("", False, None)
    assert processors.is_virtual
    assert processors.threads == 2


def test_reads_memory_and_numa() -> None:
    host = read_host(find_root(XEON))
    assert (host.memory.total_mib, host.memory.available_mib) == (515672, 401408)
    assert host.memory.huge_pages == (HugePages(2048, 0, 0), HugePages(1048576, 64, 48))
    assert host.numa_nodes == (
        NumaNode(0, "0,2,4,6", 257767, (10, 20)),
        NumaNode(1, "1,3,5,7", 257905, (20, 10)),
    )


def test_reads_pci_devices_with_iommu_groups() -> None:
    host = read_host(find_root(XEON))
    nvme = host.pci_devices[-1]
    assert (nvme.address, nvme.ids, nvme.class_name) == ("0000:b1:00.0", "144d:a80a", "NVMe controller")
    assert (nvme.driver, nvme.iommu_group, nvme.numa_node) == ("nvme", 77, 1)
    assert host.pci_devices[0].driver is None


def test_reads_pci_devices_without_iommu() -> None:
    assert {device.iommu_group for device in read_host(find_root(EPYC)).pci_devices} == {None}


def test_names_a_pci_class_that_it_does_not_know_in_detail() -> None:
    assert read_host(find_root(INTERPRETED)).pci_devices[1].class_name == "unassigned"
    assert read_host(find_root(XEON)).pci_devices[0].class_name == "system"


def test_reads_disks_and_their_mounts() -> None:
    (disk,) = read_host(find_root(XEON)).block_devices  # loop0 is empty
    assert (disk.name, disk.size_bytes, disk.logical_block_bytes) == ("nvme0n1", 3_840_755_982_336, 4096)
    assert (disk.rotational, disk.read_only) == (False, False)
    assert disk.mounted_at == ("/", "/boot/efi", "/srv/with blank")


def test_reads_holders_and_btrfs_mounts() -> None:
    disks = {disk.name: disk for disk in read_host(find_root(EPYC)).block_devices}
    assert disks["sda"].mounted_at == ("/",)
    assert disks["sda"].holders == ("dm-0",)
    assert disks["sr0"].read_only


def test_reads_nics() -> None:
    nics = {nic.name: nic for nic in read_host(find_root(XEON)).nics}
    assert {name: nic.kind for name, nic in nics.items()} == {
        "br0": NicKind.BRIDGE,
        "enp49s0f0np0": NicKind.PHYSICAL,
        "lo": NicKind.LOOPBACK,
        "vnet0": NicKind.TAP,
    }
    port = nics["enp49s0f0np0"]
    assert (port.driver, port.state, port.speed_mbit, port.mtu) == ("mlx5_core", "up", 100000, 9000)


def test_speed_of_a_nic_without_link_is_none() -> None:
    nics = {nic.name: nic for nic in read_host(find_root(EPYC)).nics}
    assert (nics["eno2"].state, nics["eno2"].speed_mbit) == ("down", None)


def test_reads_the_system() -> None:
    system = read_host(find_root(EPYC)).system
    assert system.kernel_release == "6.8.0-60-generic"
    assert (system.distribution, system.distribution_id) == ("Ubuntu 24.04.2 LTS", "ubuntu")
    assert system.product == "Supermicro AS -1014S-WTRT"


@pytest.mark.parametrize("name", HOSTS)
def test_every_recorded_host_has_the_basics(name: str) -> None:
    host = read_host(find_root(name))
    assert host.processors.threads
    assert host.memory.total_mib > host.memory.available_mib > 0
    assert host.block_devices
    assert [nic.name for nic in host.nics if nic.kind is NicKind.LOOPBACK] == ["lo"]


def test_an_empty_tree_is_a_host_with_nothing(tmp_path: Path) -> None:
    host = read_host(tmp_path)
    assert (host.processors.threads, host.memory.total_mib) == (0, 0)
    assert (host.numa_nodes, host.pci_devices, host.block_devices, host.nics) == ((), (), (), ())


def test_reads_the_machine_it_runs_on() -> None:
    host = read_host()
    assert host.processors.threads >= 1
    assert host.memory.total_mib > 0
    assert host.system.kernel_release


def test_malformed_lines_are_passed_over() -> None:
    assert parse_meminfo("MemTotal: 12 kB\nnonsense\nMemFree:\nMemUsed: x") == {"MemTotal": 12}
    assert parse_mountinfo("1 2\n- - -\n") == ()
    assert parse_os_release('# comment\nID=debian\nNAME="A B"\nstray\n') == {"ID": "debian", "NAME": "A B"}
