"""What is remembered of a host, and when it is asked again."""

from __future__ import annotations

import json
import os
import stat
import time
from dataclasses import replace
from pathlib import Path

import pytest
from tests.recorded.abilities import load_abilities
from tests.unit.hardware.fake_qemu import build_answers, count_starts, write_fake_qemu, write_script

from duovisor.hardware.capabilities import find_dev_kvm, find_free_mib, read_capabilities
from duovisor.hardware.capabilities_cache import (
    CacheKey,
    Probed,
    build_path,
    describe_file,
    find_cached,
    keep_lasting,
    store,
)
from duovisor.hardware.errors import QemuUnusableError
from duovisor.hardware.kvm import KvmProbe, KvmState
from duovisor.hardware.sandboxing import SandboxProbe, build_trial_argv, explain_refusal, probe_sandbox
from duovisor.process import ProgramNotFoundError

KEY = CacheKey("0.1.0", "5d0f", 0, "0", "- - -", "/usr/bin/qemu-system-x86_64:1:2:3:100755:0:0 - -")
WORKS = KvmProbe(KvmState.WORKS, "KVM ran a guest", ns_per_iteration=0.4)
SANDBOX = SandboxProbe(True, "bubblewrap, as root")


@pytest.fixture
def fake_qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a QEMU that counts its starts, found through the environment."""
    monkeypatch.setenv("DUOVISOR_QEMU", str(write_fake_qemu(tmp_path)))
    return tmp_path


def test_the_second_reading_comes_from_the_cache(fake_qemu: Path) -> None:
    cache = fake_qemu / "cache"
    first, second = read_capabilities(cache), read_capabilities(cache)
    assert count_starts(fake_qemu) == 1
    assert (first.kvm, first.qemu, first.sandbox) == (second.kvm, second.qemu, second.sandbox)
    assert [path.name for path in cache.iterdir()] == ["capabilities.json"]


def test_a_cached_reading_takes_less_than_5_ms(fake_qemu: Path) -> None:
    cache = fake_qemu / "cache"
    read_capabilities(cache)
    store(cache, CacheKey.read(fake_qemu / "qemu-system-x86_64", None), Probed(WORKS, None, None))
    key = CacheKey.read(fake_qemu / "qemu-system-x86_64", None)
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        assert find_cached(cache, key) is not None
        times.append(time.perf_counter() - begin)
    assert min(times) < 0.005


def test_refresh_asks_again(fake_qemu: Path) -> None:
    cache = fake_qemu / "cache"
    read_capabilities(cache)
    read_capabilities(cache, refresh=True)
    assert count_starts(fake_qemu) == 2


def test_another_binary_is_asked_again(fake_qemu: Path) -> None:
    cache = fake_qemu / "cache"
    read_capabilities(cache)
    write_fake_qemu(fake_qemu, build_answers(version=(10, 0, 3)))
    with (fake_qemu / "qemu-system-x86_64").open("a") as file:
        file.write("# upgraded\n")
    upgraded = read_capabilities(cache).qemu
    assert upgraded is not None
    assert upgraded.version == (10, 0, 3)
    assert count_starts(fake_qemu) == 2


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '{"key": null}', '{"kvm": {}}', "\x00" * 64], ids=repr
)
def test_a_corrupt_cache_counts_as_none(fake_qemu: Path, content: str) -> None:
    cache = fake_qemu / "cache"
    first = read_capabilities(cache)
    build_path(cache).write_text(content)
    assert read_capabilities(cache).qemu == first.qemu
    assert count_starts(fake_qemu) == 2
    read_capabilities(cache)
    assert count_starts(fake_qemu) == 2  # and it was written anew


def test_a_cache_of_another_shape_counts_as_none(tmp_path: Path) -> None:
    store(tmp_path, KEY, Probed(WORKS, load_abilities("7.2"), SANDBOX))
    document = json.loads(build_path(tmp_path).read_text())
    document["qemu"]["colour"] = "red"
    build_path(tmp_path).write_text(json.dumps(document))
    assert find_cached(tmp_path, KEY) is None


def test_what_was_stored_is_found(tmp_path: Path) -> None:
    probed = Probed(WORKS, load_abilities("10.0"), SANDBOX)
    store(tmp_path, KEY, probed)
    assert find_cached(tmp_path, KEY) == probed


@pytest.mark.parametrize(
    "change",
    [
        {"duovisor": "0.2.0"},
        {"boot_id": "77aa"},
        {"euid": 1000},
        {"io_uring_disabled": "2"},
        {"userns_sysctls": "0 - -"},
        {"files": "- - -"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_decides_an_outcome_is_in_the_key(tmp_path: Path, change: dict[str, object]) -> None:
    store(tmp_path, KEY, Probed(WORKS, None, SANDBOX))
    assert find_cached(tmp_path, replace(KEY, **change)) is None  # type: ignore[arg-type]  # one field each


def test_a_folder_that_cannot_be_written_is_no_error(fake_qemu: Path) -> None:
    (fake_qemu / "cache").touch()
    assert read_capabilities(fake_qemu / "cache").qemu is not None


@pytest.mark.parametrize("state", KvmState)
def test_only_what_lasts_is_kept(state: KvmState) -> None:
    kept = keep_lasting(KvmProbe(state, "seen"), None, SandboxProbe(False, "no"))
    assert (kept.kvm is not None) == (state in (KvmState.WORKS, KvmState.INTERPRETED))
    assert kept.sandbox is None


def test_a_missing_qemu_is_a_finding_not_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DUOVISOR_QEMU", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    capabilities = read_capabilities(tmp_path / "cache")
    assert capabilities.qemu is None
    assert (capabilities.tools.bwrap, capabilities.sandbox.works) == (None, False)
    with pytest.raises(ProgramNotFoundError, match="is not in PATH"):
        capabilities.require_qemu()


def test_a_dying_qemu_is_asked_again_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = write_script(tmp_path / "qemu", f"echo start >> '{tmp_path}/starts'; echo broken >&2; exit 1")
    monkeypatch.setenv("DUOVISOR_QEMU", str(binary))
    for _ in range(2):
        with pytest.raises(QemuUnusableError, match="exited with 1: broken"):
            read_capabilities(tmp_path / "cache").require_qemu()
    assert count_starts(tmp_path) == 2


def test_who_may_open_kvm(tmp_path: Path) -> None:
    assert find_dev_kvm(tmp_path / "kvm") is None
    (tmp_path / "kvm").touch()
    for mode, expected in ((0o660, True), (0o600, False), (0o640, False)):
        (tmp_path / "kvm").chmod(mode)
        dev_kvm = find_dev_kvm(tmp_path / "kvm")
        assert dev_kvm is not None
        assert (dev_kvm.mode, dev_kvm.opens_to_its_group) == (mode, expected)


def test_free_space(tmp_path: Path) -> None:
    free_mib = find_free_mib(tmp_path)
    assert free_mib is not None
    assert free_mib >= 0
    assert find_free_mib(tmp_path / "absent") is None


def test_a_bubblewrap_that_is_refused(tmp_path: Path) -> None:
    bwrap = write_script(
        tmp_path / "bwrap", "echo 'bwrap: setting up uid map: Permission denied' >&2; exit 1"
    )
    probe = probe_sandbox(bwrap, tmp_path)
    assert not probe.works
    assert "setting up uid map: Permission denied" in probe.reason
    assert probe.remedy


def test_only_other_users_need_a_user_namespace() -> None:
    assert "--unshare-user" in build_trial_argv(Path("bwrap"), as_root=False)
    assert "--unshare-user" not in build_trial_argv(Path("bwrap"), as_root=True)


@pytest.mark.parametrize(
    ("sysctl", "value", "words"),
    [
        ("user/max_user_namespaces", "0", "user namespaces are off"),
        ("kernel/unprivileged_userns_clone", "0", "only root may make"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1", "AppArmor"),
    ],
)
def test_a_refusal_is_explained_by_the_sysctl(tmp_path: Path, sysctl: str, value: str, words: str) -> None:
    path = tmp_path / "proc/sys" / sysctl
    path.parent.mkdir(parents=True)
    path.write_text(value + "\n")
    why, remedy = explain_refusal(tmp_path, is_root=False)
    assert words in why
    assert sysctl.replace("/", ".") in remedy


def test_a_device_that_udev_touched_is_the_same_device(tmp_path: Path) -> None:
    device, file = tmp_path / "kvm", tmp_path / "program"
    file.touch()
    try:
        os.mknod(device, stat.S_IFCHR | 0o660, os.makedev(10, 232))
    except PermissionError:
        pytest.skip("only root can make a device")
    before = describe_file(device), describe_file(file)
    for path in (device, file):
        os.utime(path, ns=(1, 1))
    assert describe_file(device) == before[0]
    assert describe_file(file) != before[1]
    device.chmod(0o666)
    assert describe_file(device) != before[0]
