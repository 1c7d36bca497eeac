"""``duovisor pool`` and ``volume``: what is typed, sent and shown, with a service of its own."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from tests.unit.cli.conftest import check_refusal

from duovisor.cli.vm_options import parse_disk

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.cli.conftest import Program

MIB = 1 << 20
CONTENT = bytes(MIB) + bytes(range(256)) * (MIB // 256)


def test_a_day_with_volumes(duovisor: Program, tmp_path: Path) -> None:
    image = tmp_path / "tools.raw"
    image.write_bytes(CONTENT)
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    assert duovisor.run("pool", "list").output.startswith("no pools; ")
    done = duovisor.run("volume", "create", "web", "--size", "10M", "--format", "raw")
    assert done.output == "volume default/web is made: 10 MiB, raw\n"
    done = duovisor.run("volume", "upload", image, "--sha256", sha256.upper())
    assert done.output == "volume default/tools: 2 MiB, raw\n"
    assert "upload tools.raw: 100 % 2 MiB" in done.errors
    lines = duovisor.run("volume", "list").output.splitlines()
    assert [line.split()[0] for line in lines] == ["NAME", "default/tools", "default/web"]
    assert "2 MiB (2097152 bytes)" in duovisor.run("volume", "show", "tools").output
    done = duovisor.run("volume", "download", "tools", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == CONTENT
    assert sha256 in done.output
    done = duovisor.run("volume", "resize", "web", "20M", "--json")
    assert json.loads(done.output)["state"] == "done"
    assert duovisor.run("volume", "delete", "web", "tools").output == (
        "volume default/web is deleted\nvolume default/tools is deleted\n"
    )
    (pool,) = json.loads(duovisor.run("pool", "list", "--json").output)
    assert (pool["name"], pool["volumes"]) == ("default", 0)


def test_what_is_refused_says_why(duovisor: Program, tmp_path: Path) -> None:
    image = tmp_path / "odd"
    image.write_bytes(b"no disk")
    said = duovisor.run("volume", "upload", image, "a")
    assert (said.exit_code, said.output) == (2, "")
    assert "a raw image of 7 bytes is no disk" in said.errors
    assert "there is no volume default/a" in duovisor.refuse("volume", "delete", "a", exit_code=3)
    assert "cannot read" in duovisor.refuse("volume", "upload", tmp_path / "none", "a", exit_code=2)
    pool = duovisor.run("pool", "create", "slow", tmp_path / "x" / "y")
    assert "cannot make the folder" in check_refusal(pool, 2)
    pool = duovisor.run("pool", "create", "thin", "--kind", "lvm-thin", "--vg", "a/b", "--thin-pool", "c")
    assert "is no thin pool" in check_refusal(pool, 2)
    for words, wanted in (
        (("/y", "--type", "lvm-thin"), "needs --vg and --thin-pool"),
        (("/y", "--vg", "z"), "go with --kind lvm-thin"),
        ((), "Missing argument"),
    ):
        wrong = duovisor.run("pool", "create", "x", *words)
        assert wrong.exit_code == 2
        assert wanted in wrong.errors


def test_a_disk_that_is_a_volume() -> None:
    assert parse_disk("volume=fast/web,read_only") == {"volume": "fast/web", "read_only": True}
