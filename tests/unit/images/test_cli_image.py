"""``duovisor image`` as a person and as a program sees it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner
from tests.unit.images.host_programs import write_host, write_kernel, write_program

from duovisor.cli.image import command
from duovisor.controlling.images.errors import ImageNotFoundError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def runner(tmp_path: Path) -> CliRunner:
    write_kernel(tmp_path / "package")
    write_host(tmp_path / "bin", tmp_path / "package")
    (tmp_path / "loader").write_bytes(b"loader")
    write_program(tmp_path / "bin", "ldd", f'echo "  {tmp_path}/loader (0x00007f00)"')
    return CliRunner(env={"PATH": str(tmp_path / "bin"), "DUOVISOR_STATE_DIR": str(tmp_path / "state")})


def test_build_list_show_delete(runner: CliRunner) -> None:
    built = runner.invoke(command, ["build", "probe", "--json"], catch_exceptions=False)
    assert json.loads(built.stdout)["name"] == "probe"
    assert "writing the initramfs" in built.stderr

    listed = json.loads(runner.invoke(command, ["list", "--json"]).stdout)
    assert [(image["name"], image["broken"]) for image in listed] == [("probe", False)]
    assert "probe" in runner.invoke(command, ["list"]).stdout

    shown = runner.invoke(command, ["show", "probe", "--json"])
    assert json.loads(shown.stdout)["damaged"] == []
    assert "3, as they were built" in runner.invoke(command, ["show", "probe"]).stdout

    assert runner.invoke(command, ["delete", "probe"]).stdout == "image probe is deleted\n"
    assert runner.invoke(command, ["list"]).stdout == "no images; try: duovisor image build probe\n"


def test_broken_image_is_listed_as_broken(runner: CliRunner, tmp_path: Path) -> None:
    (tmp_path / "state/images/probe").mkdir(parents=True)
    assert json.loads(runner.invoke(command, ["list", "--json"]).stdout) == [
        {"name": "probe", "broken": True}
    ]
    assert "broken" in runner.invoke(command, ["list"]).stdout


def test_damage_is_shown(runner: CliRunner, tmp_path: Path) -> None:
    runner.invoke(command, ["build", "probe"])
    (tmp_path / "state/images/probe/vmlinuz").write_bytes(b"other")
    assert "damaged: vmlinuz" in runner.invoke(command, ["show", "probe"]).stdout


@pytest.mark.parametrize("verb", ["show", "delete"])
def test_unknown_image_is_the_error_of_its_code(runner: CliRunner, verb: str) -> None:
    with pytest.raises(ImageNotFoundError, match="there is no image 'x'"):
        runner.invoke(command, [verb, "x"], catch_exceptions=False)
