"""The NoCloud seed: what a guest's cloud-init reads at its first boot, as an ISO 9660 image.

Source: cloud-init 22.4, datasource NoCloud: a file system with the label ``CIDATA`` and, in its root, the
files ``meta-data``, ``user-data``, ``vendor-data`` and perhaps ``network-config``. JSON is YAML, too.
"""

from __future__ import annotations

import hashlib
import io
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from duovisor.spec.cloud_init import CloudInitSpec

LABEL = "CIDATA"
SUDO = "ALL=(ALL) NOPASSWD:ALL"
NOTHING = "#cloud-config\n{}\n"


def build_files(name: str, seed: CloudInitSpec) -> dict[str, str]:
    """The files of a seed for the VM ``name``, by their names; pure.

    What duovisor says itself is vendor data, before which user data goes. A changed seed is a new instance
    to cloud-init: it does its work once more.
    """
    files = {"user-data": seed.user_data or NOTHING, "vendor-data": _build_vendor_data(seed)}
    if seed.network is not None:
        files["network-config"] = json.dumps(seed.network)
    digest = hashlib.sha256(json.dumps([name, files], sort_keys=True).encode()).hexdigest()
    meta = {"instance-id": f"{name}-{digest[:16]}", "local-hostname": name}
    return {"meta-data": json.dumps(meta) + "\n", **files}


def build_seed(name: str, seed: CloudInitSpec) -> bytes:
    """The image of a seed."""
    import pycdlib  # only a VM that has a seed needs it

    iso = pycdlib.PyCdlib()
    iso.new(vol_ident=LABEL, joliet=3, rock_ridge="1.09")
    try:
        for number, (file, text) in enumerate(build_files(name, seed).items()):
            data = text.encode()
            iso.add_fp(io.BytesIO(data), len(data), f"/FILE{number}.;1", rr_name=file, joliet_path=f"/{file}")
        image = io.BytesIO()
        iso.write_fp(image)
    finally:
        iso.close()
    return image.getvalue()


def _build_vendor_data(seed: CloudInitSpec) -> str:
    document: dict[str, Any] = {"manage_etc_hosts": "localhost"}
    if seed.user is not None:
        document["users"] = [
            {
                "name": seed.user,
                "sudo": SUDO,
                "shell": "/bin/bash",
                "lock_passwd": True,
                "ssh_authorized_keys": list(seed.ssh_keys),
            }
        ]
    elif seed.ssh_keys:
        document["ssh_authorized_keys"] = list(seed.ssh_keys)
    return "#cloud-config\n" + json.dumps(document) + "\n"
