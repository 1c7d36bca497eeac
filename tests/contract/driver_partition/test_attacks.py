"""A driver partition as an attacker finds it: nothing of the host is in reach.

The attacks are those of ``attack_driver``, in a real partition, with root and with an ordinary user as its
owner; what the kernel says of the partition is read from outside.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from tests.contract.driver_partition.attack_driver import CALLS
from tests.contract.driver_partition.attacked_owner import VM_UID
from tests.contract.driver_partition.conftest import ROOT, STRANGER

from duovisor.controlling.partitions.limits import build_limits

if TYPE_CHECKING:
    Attack = tuple[dict[str, Any], bool]

# what is refused by something else than the list of system calls
OTHERWISE = {
    "import from a file": "ModuleNotFoundError",
    "private memory beyond the limit": "MemoryError",
    "descriptors beyond the limit": "EMFILE",
}


def test_every_attack_fails(attack: Attack) -> None:
    outcomes = attack[0]["outcomes"]
    assert set(CALLS) < set(outcomes)
    assert outcomes == {name: OTHERWISE.get(name, "EPERM") for name in outcomes}


def test_what_refuses_ends_with_one_clear_line(attack: Attack) -> None:
    assert (attack[0]["refused"], attack[0]["status"]) == ("the attack is over", 1)


def test_namespaces_are_its_own(attack: Attack) -> None:
    found, as_root = attack
    partition, host = found["partition"]["namespaces"], found["host"]["namespaces"]
    shared = {name for name in partition if partition[name] == host[name]}
    assert shared == ({"user"} if as_root else set())  # root needs no user namespace
    assert found["partition"]["status"]["NSpid"][1:] == ["1"]


def test_privileges_are_none(attack: Attack) -> None:
    found, as_root = attack
    status = found["partition"]["status"]
    if as_root:
        assert status["Groups"] == []  # another owner cannot drop theirs: they are of no use in there
    user = STRANGER if ROOT else os.getuid()
    group = STRANGER if ROOT else os.getgid()
    assert status["Uid"] == [str(VM_UID if as_root else user)] * 4
    assert status["Gid"] == [str(VM_UID if as_root else group)] * 4
    for capabilities in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[capabilities][0], 16) == 0
    assert (status["NoNewPrivs"], status["Seccomp"], status["Threads"]) == (["1"], ["2"], ["1"])


def test_descriptors_are_accounted_for(attack: Attack) -> None:
    descriptors = attack[0]["partition"]["descriptors"]
    assert descriptors.pop("0").startswith("socket:")  # the birth connection
    assert {descriptors.pop(name).rpartition("/")[2] for name in ("1", "2")} == {"disk0.log"}
    assert sorted(descriptors.values()) == ["anon_inode:[eventfd]", "anon_inode:[eventpoll]"]


def test_the_root_is_empty_and_read_only(attack: Attack) -> None:
    partition = attack[0]["partition"]
    assert partition["root"] == []
    [[_, mounted_at, options]] = partition["mounts"]
    assert mounted_at == "/"
    assert {"ro", "nosuid", "nodev", "noexec"} <= set(options.split(","))


def test_limits(attack: Attack) -> None:
    limits = {name: values for name, values in attack[0]["partition"]["limits"].items() if name != "Limit"}
    wanted = build_limits(64)
    expected = {
        "Max address space": wanted.address_space_bytes,
        "Max data size": wanted.data_bytes,
        "Max open files": wanted.open_files,
        "Max processes": wanted.threads,
        "Max core file size": 0,
        "Max locked memory": 0,
        "Max msgqueue size": 0,
    }
    assert {name: limits[name] for name in expected} == {
        name: [str(value)] * 2 for name, value in expected.items()
    }


def test_the_owner_can_still_look_inside(attack: Attack) -> None:
    """Root in spite of PR_SET_DUMPABLE; another owner because the partition is dumpable."""
    assert attack[0]["taken"] == "taken"
    assert attack[0]["partition"]["session"]
    assert attack[0]["partition"]["command_line"].startswith("duovisor-partition vm/disk0 /tmp/dvt-")
