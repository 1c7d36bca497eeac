"""Images that start from a disk, VMs on their clones, cloud-init: what is typed, sent and shown."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit.cli.conftest import check_refusal

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.cli.conftest import Program

CONTENT = bytes(range(256)) * 8192
SHA256 = hashlib.sha256(CONTENT).hexdigest()
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA me@here"


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "small.raw"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "id.pub"
    path.write_text(f"# mine\n{KEY}\n")
    return path


def read_spec(duovisor: Program, name: str) -> dict[str, Any]:
    spec: dict[str, Any] = json.loads(duovisor.run("vm", "show", name, "--json").output)["record"]["spec"]
    return spec


def test_a_day_with_an_image(duovisor: Program, disk: Path, key: Path) -> None:
    done = duovisor.run("image", "import", disk, "--user", "ada", "--sha256", SHA256.upper())
    assert done.output == "image small: 2 MiB, qcow2\n", done
    assert duovisor.run("image", "list").output.splitlines()[1].split()[:2] == ["small", "disk"]
    shown = duovisor.run("image", "show", "small").output
    assert "volume images/small" in shown
    words = ("vm", "create", "--image", "small", "--ssh-key", key, "--disk-size", "4M")
    done = duovisor.run(*words, "--name", "web")
    assert done.output == "web is defined; start it with: duovisor vm start web\n", done
    first, seed = read_spec(duovisor, "web")["disks"]
    assert (first["volume"], seed["cloud_init"]["ssh_keys"]) == ("default/web", [KEY])
    check_refusal(duovisor.run(*words, "--name", "web"), 4)
    said = check_refusal(duovisor.run("image", "delete", "small"), 4)
    assert "linked clones" in said
    done = duovisor.run("vm", "clone", "web", "db")
    assert done.output == "db is a copy of web\n"
    assert [each["volume"] for each in read_spec(duovisor, "db")["disks"]] == ["default/db", None]
    done = duovisor.run("vm", "delete", "web", "db", "--disks")
    assert done.output == (
        "web is deleted; its disks default/web too\ndb is deleted; its disks default/db too\n"
    )
    assert duovisor.run("image", "delete", "small").output == "image small is deleted\n"
    assert duovisor.run("volume", "list").output.startswith("no volumes")


def test_what_cloud_init_is_told_can_be_changed(duovisor: Program, key: Path, tmp_path: Path) -> None:
    duovisor.run("vm", "create", "--name", "web")
    assert "no cloud-init disk" in duovisor.run("vm", "cloud-init", "show", "web").output
    assert duovisor.run("vm", "cloud-init", "set", "web", "--user", "ada").output == "web is changed\n"
    network = tmp_path / "network.yaml"
    network.write_text("version: 2\nethernets: {all: {match: {name: 'e*'}, dhcp4: true}}\n")
    duovisor.run("vm", "cloud-init", "set", "web", "--ssh-key", key, "--network-config", network)
    seed = json.loads(duovisor.run("vm", "cloud-init", "show", "web", "--json").output)
    assert (seed["user"], seed["ssh_keys"], seed["network"]["version"]) == ("ada", [KEY], 2)
    assert "cloud-init (made at each start" in duovisor.run("vm", "show", "web").output
    duovisor.run("vm", "cloud-init", "set", "web", "--clear")
    assert duovisor.run("vm", "cloud-init", "show", "web").output == "{}\n"
    assert len(read_spec(duovisor, "web")["disks"]) == 1


def test_pull_by_its_checksum(duovisor: Program, disk: Path) -> None:
    url = f"file://{disk}"
    said = check_refusal(duovisor.run("image", "pull", url, "--sha256", "0" * 64, "--json"), 6)
    assert f"has the sha256 {SHA256}" in said
    done = duovisor.run("image", "pull", url, "--sha256", SHA256, "--as", "mine")
    assert done.output == "image mine: 2 MiB, qcow2\n", done
    assert url in duovisor.run("image", "show", "mine").output
    assert duovisor.run("image", "delete", "mine").exit_code == 0


def test_what_cannot_be_meant_is_refused(duovisor: Program, disk: Path, tmp_path: Path) -> None:
    private = tmp_path / "id"
    private.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nx\n")
    assert "give the public one" in duovisor.run("vm", "create", "--ssh-key", private).errors
    assert "--full" in duovisor.run("vm", "create", "--name", "web", "--full").errors
    assert "has no other name" in duovisor.run("image", "build", "probe", "--as", "x").errors
    duovisor.refuse("image", "pull", "ftp://x/y", "--sha256", SHA256, exit_code=2)
    duovisor.refuse("vm", "create", "--image", "none", "--name", "web", exit_code=3)
    duovisor.refuse("vm", "screenshot", "none", tmp_path / "x.png", exit_code=3)
    duovisor.run("image", "import", disk)
    assert "needs a clone" in duovisor.refuse("run", "--image", "small", exit_code=2)
    assert duovisor.run("image", "delete", "small").exit_code == 0


def test_a_vm_that_does_not_run_shows_no_screen(duovisor: Program, tmp_path: Path) -> None:
    duovisor.run("vm", "create", "--name", "web", "--graphics")
    assert "vm screenshot web" in duovisor.run("vm", "show", "web").output
    for words in (("screenshot", "web", tmp_path / "x.png"), ("vnc", "web")):
        assert "does not run" in duovisor.refuse("vm", *words, exit_code=4)
    assert not (tmp_path / "x.png").exists()
