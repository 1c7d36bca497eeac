"""A guest's first boot: what is accepted, what the seed says, and that it is a disk which can be read."""

from __future__ import annotations

import io
import json
from typing import Any

import pycdlib
import pytest
from pydantic import ValidationError

from duovisor.controlling.images.seed import build_files, build_seed
from duovisor.spec.cloud_init import CloudInitSpec
from duovisor.spec.vm import DiskSpec, VirtualMachineSpec

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA me@here"


def read_vendor_data(seed: CloudInitSpec) -> dict[str, Any]:
    first, text = build_files("web", seed)["vendor-data"].split("\n", 1)
    assert first == "#cloud-config"
    document: dict[str, Any] = json.loads(text)
    return document


def test_a_key_alone_is_for_the_images_own_user() -> None:
    said = read_vendor_data(CloudInitSpec(ssh_keys=(KEY,)))
    assert said["ssh_authorized_keys"] == [KEY]
    assert "users" not in said


def test_a_user_is_made_with_the_keys() -> None:
    said = read_vendor_data(CloudInitSpec(user="ada", ssh_keys=(KEY,)))
    (user,) = said["users"]
    assert (user["name"], user["ssh_authorized_keys"]) == ("ada", [KEY])
    assert "ssh_authorized_keys" not in said


def test_the_host_name_is_the_vms_and_a_change_is_a_new_instance() -> None:
    metas = [
        json.loads(build_files(name, seed)["meta-data"])
        for name, seed in (
            ("web", CloudInitSpec()),
            ("db", CloudInitSpec()),
            ("web", CloudInitSpec(ssh_keys=(KEY,))),
        )
    ]
    assert [meta["local-hostname"] for meta in metas] == ["web", "db", "web"]
    assert len({meta["instance-id"] for meta in metas}) == 3


def test_user_data_and_network_are_passed_on() -> None:
    network = {"version": 2, "ethernets": {"all": {"match": {"name": "e*"}, "dhcp4": True}}}
    seed = CloudInitSpec(user_data="#!/bin/sh\necho hello", network=network)
    files = build_files("web", seed)
    assert files["user-data"] == "#!/bin/sh\necho hello"
    assert json.loads(files["network-config"]) == network
    assert "network-config" not in build_files("web", CloudInitSpec())


def test_the_disk_has_its_label_and_files() -> None:
    image = build_seed("web", CloudInitSpec(ssh_keys=(KEY,)))
    assert len(image) % 512 == 0
    iso = pycdlib.PyCdlib()
    iso.open_fp(io.BytesIO(image))
    assert iso.pvd.volume_identifier.rstrip() == b"CIDATA"
    for name, text in build_files("web", CloudInitSpec(ssh_keys=(KEY,))).items():
        found = io.BytesIO()
        iso.get_file_from_iso_fp(found, rr_path=f"/{name}")
        assert found.getvalue().decode() == text
    iso.close()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"user": "Root User"}, "not a user's name"),
        ({"ssh_keys": ["-----BEGIN OPENSSH PRIVATE KEY-----"]}, "private SSH key"),
        ({"ssh_keys": ["hello"]}, "not a public SSH key"),
        ({"ssh_keys": [f"{KEY}\n{KEY}"]}, "in one line"),
        ({"user_data": "packages: [nginx]"}, "not with #cloud-config"),
        ({"network": {"ethernets": {}}}, "needs version"),
        ({"passwords": 1}, "Extra inputs"),
    ],
)
def test_what_cannot_be_meant_is_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        CloudInitSpec.model_validate(wrong)


def test_a_seed_is_a_read_only_disk_without_a_place() -> None:
    disk = DiskSpec.model_validate({"cloud_init": {}})
    assert (disk.read_only, disk.path, disk.is_found) == (True, "", True)
    spec = VirtualMachineSpec(name="web", disks=(disk,))
    found = spec.model_copy(update={"disks": (disk.model_copy(update={"path": "/s/web.iso"}),)})
    assert found.without_places() == spec


@pytest.mark.parametrize(
    ("disks", "said"),
    [
        ([{"cloud_init": {}, "read_only": False}], "is read-only"),
        ([{"cloud_init": {}, "volume": "web"}], "is made by duovisor"),
        ([{"cloud_init": {}, "format": "qcow2"}], "is made by duovisor"),
        ([{"cloud_init": {}}, {"cloud_init": {}}], "a guest reads one"),
    ],
)
def test_a_seed_has_nothing_else(disks: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        VirtualMachineSpec.model_validate({"name": "web", "disks": disks})
