"""The compatibility list, from recorded hosts and recorded abilities."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.recorded.abilities import load_abilities
from tests.unit.hardware.recorded_hosts import EPYC, INTERPRETED, PLAIN_VM, XEON, find_root, load_probe

from duovisor.hardware.capabilities import DevKvm, HostCapabilities, QemuProblem, Tools
from duovisor.hardware.check import DesignVerdict, Finding, Level, check_host
from duovisor.hardware.host import read_host
from duovisor.hardware.sandboxing import SandboxProbe
from duovisor.spec.vm import Design

EVERYTHING = Tools(*map(Path, ("/bin/bwrap", "/bin/setpriv", "/bin/passt", "/bin/qemu-storage-daemon")))


def build_capabilities(name: str) -> HostCapabilities:
    """A host with everything installed, root, and QEMU 7.2."""
    return HostCapabilities(
        kvm=load_probe(name),
        dev_kvm=DevKvm(mode=0o660, uid=0, gid=104),
        qemu_path=Path("/usr/bin/qemu-system-x86_64"),
        qemu=load_abilities("7.2"),
        qemu_problem=None,
        sandbox=SandboxProbe(True, "bubblewrap, as root"),
        tools=EVERYTHING,
        memory_total_mib=64 << 10,
        cpus=8,
        shm_free_mib=1024,
        is_root=True,
    )


def check(name: str, capabilities: HostCapabilities) -> dict[Design, DesignVerdict]:
    verdicts = check_host(read_host(find_root(name)), capabilities)
    return {verdict.design: verdict for verdict in verdicts}


def find(verdict: DesignVerdict, subject: str) -> Finding:
    (finding,) = (finding for finding in verdict.findings if finding.subject == subject)
    return finding


@pytest.mark.parametrize("name", [XEON, EPYC])
def test_a_host_with_kvm_runs_both_designs(name: str) -> None:
    verdicts = check(name, build_capabilities(name))
    assert {design: verdict.level for design, verdict in verdicts.items()} == dict.fromkeys(Design, Level.OK)


@pytest.mark.parametrize("name", [PLAIN_VM, INTERPRETED])
def test_a_host_without_kvm_is_slower(name: str) -> None:
    capabilities = build_capabilities(name)
    host = read_host(find_root(name))
    roomy = replace(host, memory=replace(host.memory, available_mib=4096))
    for verdict in check_host(roomy, capabilities):
        assert verdict.level is Level.SLOWER
        assert find(verdict, "accelerator").seen.startswith(f"tcg: {capabilities.kvm.reason}")


def test_no_kvm_is_explained_by_the_processor() -> None:
    finding = find(check(PLAIN_VM, build_capabilities(PLAIN_VM))[Design.MONOLITHIC], "accelerator")
    assert finding.seen.endswith("the processor shows neither vmx nor svm")
    assert finding.remedy == "turn on nested virtualization for this VM on its host"


@pytest.mark.parametrize(("name", "remedy"), [(XEON, "modprobe kvm_intel"), (EPYC, "modprobe kvm_amd")])
def test_no_kvm_module_on_a_processor_that_can(name: str, remedy: str) -> None:
    capabilities = replace(build_capabilities(name), kvm=load_probe(PLAIN_VM), dev_kvm=None)
    assert find(check(name, capabilities)[Design.MONOLITHIC], "accelerator").remedy == remedy


def test_too_little_memory() -> None:
    finding = find(check(PLAIN_VM, build_capabilities(PLAIN_VM))[Design.MONOLITHIC], "memory")
    assert finding.level is Level.NO
    assert finding.seen == "200 MiB of 1.9 GiB available"


def test_no_qemu_stops_both_designs() -> None:
    problem = QemuProblem("program-not-found", "qemu-system-x86_64 is not in PATH", "apt install it")
    capabilities = replace(build_capabilities(XEON), qemu=None, qemu_path=None, qemu_problem=problem)
    for verdict in check(XEON, capabilities).values():
        assert verdict.level is Level.NO
        assert find(verdict, "QEMU") == Finding("QEMU", Level.NO, problem.message, problem.remedy)


def test_an_old_qemu_is_refused() -> None:
    old = replace(load_abilities("7.2"), version=(6, 2, 0))
    verdict = check(XEON, replace(build_capabilities(XEON), qemu=old))[Design.MONOLITHIC]
    assert find(verdict, "QEMU").seen == "6.2.0 is older than 7.2"


def test_a_qemu_without_vhost_user_runs_one_design() -> None:
    types = tuple(kind for kind in load_abilities("7.2").device_types if kind != "vhost-user-blk-pci")
    poor = replace(load_abilities("7.2"), device_types=types)
    verdicts = check(XEON, replace(build_capabilities(XEON), qemu=poor))
    assert verdicts[Design.MONOLITHIC].level is Level.OK
    assert find(verdicts[Design.MICROKERNELIZED], "QEMU").seen == "it was built without vhost-user-blk-pci"


def test_a_qemu_without_any_accelerator_that_works() -> None:
    poor = replace(load_abilities("7.2"), tcg=False)
    verdict = check(INTERPRETED, replace(build_capabilities(INTERPRETED), qemu=poor))[Design.MONOLITHIC]
    assert find(verdict, "accelerator").level is Level.NO


def test_a_qemu_without_kvm_is_slower() -> None:
    poor = replace(load_abilities("7.2"), kvm=False)
    finding = find(
        check(XEON, replace(build_capabilities(XEON), qemu=poor))[Design.MONOLITHIC], "accelerator"
    )
    assert (finding.level, finding.seen) == (Level.SLOWER, "tcg: this QEMU was built without KVM")


def test_kvm_for_root_only_is_no_good_to_an_unprivileged_vmm() -> None:
    closed = replace(build_capabilities(XEON), dev_kvm=DevKvm(mode=0o600, uid=0, gid=0))
    verdicts = check(XEON, closed)
    assert verdicts[Design.MONOLITHIC].level is Level.OK
    assert find(verdicts[Design.MICROKERNELIZED], "accelerator").level is Level.NO


def test_no_sandbox_stops_the_microkernelized_design() -> None:
    refused = SandboxProbe(False, "bubblewrap is not installed", "apt install bubblewrap")
    verdicts = check(XEON, replace(build_capabilities(XEON), sandbox=refused))
    assert verdicts[Design.MONOLITHIC].level is Level.OK
    assert verdicts[Design.MICROKERNELIZED].level is Level.NO
    assert find(verdicts[Design.MICROKERNELIZED], "sandbox").remedy == "apt install bubblewrap"


def test_root_needs_setpriv_to_drop_its_privileges() -> None:
    capabilities = replace(build_capabilities(XEON), tools=replace(EVERYTHING, setpriv=None))
    assert check(XEON, capabilities)[Design.MICROKERNELIZED].level is Level.NO
    as_user = replace(capabilities, is_root=False)
    assert check(XEON, as_user)[Design.MICROKERNELIZED].level is Level.OK


def test_no_passt_limits_the_microkernelized_design() -> None:
    capabilities = replace(build_capabilities(XEON), tools=replace(EVERYTHING, passt=None))
    verdict = check(XEON, capabilities)[Design.MICROKERNELIZED]
    assert verdict.level is Level.LIMITED
    assert find(verdict, "user network").remedy == "apt install passt"


@pytest.mark.parametrize(("free_mib", "level"), [(None, Level.NO), (64, Level.NO), (1024, Level.OK)])
def test_users_need_room_in_dev_shm(free_mib: int | None, level: Level) -> None:
    capabilities = replace(build_capabilities(XEON), is_root=False, shm_free_mib=free_mib)
    assert find(check(XEON, capabilities)[Design.MONOLITHIC], "guest memory").level is level


def test_no_io_uring_is_slower() -> None:
    threads = replace(load_abilities("7.2"), io_uring=False)
    verdict = check(XEON, replace(build_capabilities(XEON), qemu=threads))[Design.MONOLITHIC]
    assert verdict.level is Level.SLOWER


def test_whatever_is_not_ok_has_a_remedy() -> None:
    bare = replace(
        build_capabilities(INTERPRETED),
        tools=Tools(None, None, None, None),
        sandbox=SandboxProbe(False, "bubblewrap is not installed", "apt install bubblewrap"),
        is_root=False,
        shm_free_mib=None,
        qemu=replace(load_abilities("7.2"), io_uring=False),
    )
    findings = [finding for verdict in check(INTERPRETED, bare).values() for finding in verdict.findings]
    bad = [finding for finding in findings if finding.level is not Level.OK]
    assert len(bad) == 8
    assert all(finding.remedy for finding in bad)
