"""TAPs: their names, and what is said when there can be none."""

from __future__ import annotations

import itertools
import os
import stat
from pathlib import Path

import pytest
from tests.networks import BRIDGE, enter_network, list_ports, run_ip, why_no_namespace
from tests.unit.controlling.conftest import let_in, run_as_stranger

from duovisor.controlling.errors import HostLacksError, NetworkError
from duovisor.controlling.networks import interfaces
from duovisor.controlling.networks.bridged import build_tap_names, check_bridge, is_tap, open_bridged_tap
from duovisor.controlling.networks.interfaces import NAME_MAX
from duovisor.spec.vm import NicSpec

MAC = "52:54:00:12:34:56"
CARD = NicSpec(network="bridge", bridge=BRIDGE)
needs_root = pytest.mark.skipif(bool(why_no_namespace()), reason=why_no_namespace() or "none")


def test_names_tell_the_vm_and_fit() -> None:
    for vm in ("web1", "a" * 63, "x.y-z_1", "9"):
        names = list(itertools.islice(build_tap_names(vm, 7), 8))
        assert len(set(names)) == len(names)
        assert all(len(name) <= NAME_MAX and name.endswith("-7") for name in names)
    assert next(build_tap_names("web1", 0)).startswith("web1-")
    assert next(build_tap_names("web1-blue", 0)) != next(build_tap_names("web1-green", 0))


def test_a_missing_bridge_has_a_remedy() -> None:
    with pytest.raises(NetworkError, match="bridge br-none does not exist") as caught:
        check_bridge("br-none")
    assert "ip link add br-none type bridge" in caught.value.remedy


@needs_root
def test_a_tap_lives_as_long_as_its_descriptor() -> None:
    with enter_network():
        first, second = (open_bridged_tap("web1", 0, CARD, MAC) for _ in range(2))  # of two services
        ports = list_ports()
        assert len(ports) == 2
        assert "fe:54:00:12:34:56" in run_ip("link", "show", ports[0])
        assert all(is_tap(Path(f"/proc/self/fd/{each}")) for each in (first, second))
        assert not os.get_inheritable(first)
        os.close(first)
        os.close(second)
        assert list_ports() == []


@needs_root
def test_what_is_no_bridge_is_named() -> None:
    with enter_network():
        with pytest.raises(NetworkError, match="lo is an interface, but no Linux bridge"):
            open_bridged_tap("web1", 0, NicSpec(network="bridge", bridge="lo"), MAC)
        run_ip("link", "set", BRIDGE, "mtu", "9000")
        tap = open_bridged_tap("web1", 0, CARD, MAC)
        assert "mtu 9000" in run_ip("link", "show", list_ports()[0])
        os.close(tap)


def refuse_tap() -> None:
    with pytest.raises(HostLacksError, match="CAP_NET_ADMIN") as caught:
        open_bridged_tap("web1", 0, CARD, MAC)
    assert "run as root, or use network: user" in caught.value.remedy


@needs_root
@pytest.mark.parametrize("mode", [0o666, 0o600], ids=["may open it", "may not open it"])
def test_an_ordinary_user_is_told_what_is_missing(
    mode: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Distributions differ in whether every user may open the device; making a TAP takes more."""
    let_in(tmp_path)
    device = tmp_path / "tun"
    os.mknod(device, stat.S_IFCHR | mode, interfaces.TUN_DEVICE)
    device.chmod(mode)
    monkeypatch.setattr(interfaces, "TUN_PATH", str(device))
    with enter_network():
        run_as_stranger(refuse_tap)
        assert list_ports() == []


def test_a_host_without_the_device_has_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interfaces, "TUN_PATH", str(tmp_path / "tun"))
    with pytest.raises(HostLacksError, match="which this host lacks") as caught:
        open_bridged_tap("web1", 0, NicSpec(network="bridge", bridge="lo"), MAC)
    assert caught.value.remedy == "modprobe tun"
