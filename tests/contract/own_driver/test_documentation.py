"""What docs/write-a-driver.md prints works as printed; so does what ``duovisor driver new`` writes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner
from tests.contract.own_driver.documentation import (
    DISK,
    DISK_TEST,
    DISK_YAML,
    DRIVER,
    DRIVER_TEST,
    MODULES,
    VM_YAML,
)

import duovisor
from duovisor.cli.driver_new import TYPES, command
from duovisor.cli.vm_document import _find_drivers
from duovisor.controlling.driver_files import open_disk_driver, open_driver
from duovisor.controlling.drivers import library
from duovisor.hypervisor.qemu.devices import MODELS
from duovisor.spec.loading import build_spec, parse_document

if TYPE_CHECKING:
    from .conftest import Stage

PACKAGE = Path(duovisor.__file__).parent


def run_pytest(folder: Path) -> None:
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(folder)]
    paths = {"PYTHONPATH": f"{folder}:{PACKAGE.parent}"}
    done = subprocess.run(
        [*words, str(folder)], cwd=folder, env={**os.environ, **paths}, capture_output=True, text=True,
        check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


def test_the_driver_is_short_and_its_test_passes(tmp_path: Path) -> None:
    assert len(DRIVER.splitlines()) <= 30
    (tmp_path / "dice.py").write_text(DRIVER)
    (tmp_path / "test_dice.py").write_text(DRIVER_TEST)
    run_pytest(tmp_path)


async def test_the_driver_runs_in_a_partition(stage: Stage) -> None:
    device = stage.build_device(DRIVER, sides=20)
    await device.start()
    rolls = await stage.ask(room=2000)
    assert set(rolls) == set(range(1, 21))
    assert device.crew.active is not None
    status = await device.crew.active.request("status")
    assert status["statistics"]["device"] == {"rolls": 2000}


def test_the_specification_names_the_file_beside_it(tmp_path: Path) -> None:
    document = parse_document(VM_YAML, ".yaml")
    assert document.pop("image") == "probe"
    _find_drivers(document, tmp_path)
    [device] = build_spec(document).devices
    assert device.driver == str(tmp_path / "dice.py")
    assert device.options == {"sides": 20}


def test_the_disk_is_short_and_its_test_passes(tmp_path: Path) -> None:
    assert len(DISK.splitlines()) <= 30
    (tmp_path / "inverted.py").write_text(DISK)
    (tmp_path / "test_inverted.py").write_text(DISK_TEST)
    run_pytest(tmp_path)


def test_the_specification_of_the_disk_names_the_file_beside_it(tmp_path: Path) -> None:
    document = parse_document(DISK_YAML, ".yaml")
    _find_drivers(document, tmp_path)
    [disk] = build_spec({"name": "vm", **document}).disks
    assert disk.driver_file == str(tmp_path / "inverted.py")
    assert disk.options == {"flip": 255}


def test_the_list_of_modules_is_what_a_factory_imports() -> None:
    assert MODULES == [name.split(".")[0] for name in library.MODULES]


@pytest.mark.parametrize("kind", TYPES)
def test_a_new_driver_passes_its_test(kind: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(command, ["my_driver", "--type", kind, "--folder", str(tmp_path)])
    assert done.exit_code == 0, done.output
    if kind == "block":
        with open_disk_driver(str(tmp_path / "my_driver.py")) as opened:
            assert opened.device_type in (None, TYPES[kind])
    else:
        with open_driver(str(tmp_path / "my_driver.py")) as opened:
            assert opened.device_type == TYPES[kind]
            assert TYPES[kind] in MODELS
    run_pytest(tmp_path)


@pytest.mark.parametrize(
    ("name", "complaint"), [("my-driver", "is not a module's name"), ("class", "not a"), ("old", "exists")]
)
def test_a_new_driver_that_cannot_be(name: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "test_old.py").write_text("")
    done = CliRunner().invoke(command, [name, "--folder", str(tmp_path)])
    assert done.exit_code == 2
    assert complaint in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["test_old.py"]
