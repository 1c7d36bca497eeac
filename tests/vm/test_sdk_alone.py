"""``duovisor.channel`` without the rest of duovisor: a few files, the standard library, and any QEMU."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.contract.own_driver.documentation import DRIVER

import duovisor
from duovisor.hypervisor.qemu.devices import MODELS

if TYPE_CHECKING:
    from duovisor.hardware.capabilities import HostCapabilities

PACKAGE = Path(duovisor.__file__).parent
QUEUES = {41: 2}

MAIN = """
import socket, sys
sys.path[:0] = [{folder!r}]
from duovisor.channel.backend import Backend
{driver}
Dice.device_id, Dice.queues = {number}, {queues}
connected = socket.socket(socket.AF_UNIX)
connected.connect({path!r})
backend = Backend(connected, Dice(), report=print)
backend.run()
first = {{name.partition(".")[0] for name in sys.modules}}
foreign = first - sys.stdlib_module_names - {{"duovisor", "__main__"}}
ours = {{name for name in sys.modules if name.startswith("duovisor")}}
are_copies = all(sys.modules[name].__file__.startswith({folder!r}) for name in ours)
print(backend.messages, sorted(foreign), are_copies)
print(sorted(name for name in ours if not name.startswith("duovisor.channel")))
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder in which ``duovisor`` is the channel and its errors, nothing else."""
    caches = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE / "channel", tmp_path / "duovisor/channel", ignore=caches)
    shutil.copy(PACKAGE / "errors.py", tmp_path / "duovisor")
    (tmp_path / "duovisor/__init__.py").touch()
    return tmp_path


@pytest.mark.parametrize(("number", "model"), MODELS.items(), ids=lambda value: str(value))
def test_any_qemu_takes_the_driver(
    number: int, model: str, package: Path, capabilities: HostCapabilities
) -> None:
    path = f"/tmp/dvt-alone-{os.getpid()}-{number}.sock"
    Path(path).unlink(missing_ok=True)
    main = MAIN.format(
        folder=str(package), driver=DRIVER, number=number, queues=QUEUES.get(number, 1), path=path
    )
    qemu = subprocess.Popen(
        [str(capabilities.require_qemu()[0]), "-nodefaults", "-display", "none", "-S", "-accel", "tcg",
         "-machine", "q35,memory-backend=ram", "-m", "64M", "-monitor", "stdio",
         "-object", "memory-backend-memfd,id=ram,size=64M,share=on",
         "-chardev", f"socket,id=channel,path={path},server=on",
         "-device", f"{model},chardev=channel,id=mine"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    driver = None
    try:
        while not Path(path).exists():
            assert qemu.poll() is None, qemu.communicate()
        time.sleep(0.05)  # the socket is bound, and listens a moment later
        driver = subprocess.Popen(
            [sys.executable, "-S", "-s", "-I", "-c", main],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        said = qemu.communicate("info qtree\nquit\n", timeout=180)[0]
        told = driver.communicate(timeout=120)[0]
        assert f'dev: {model}, id "mine"' in said, (said, told)
        figures, modules = told.splitlines()
        assert driver.returncode == 0
        assert int(figures.split()[0]) > 3
        assert figures.endswith(" [] True")
        assert modules == "['duovisor', 'duovisor.errors']"
    finally:
        for process in (qemu, driver):
            if process is not None:
                process.kill()
                process.communicate()
        Path(path).unlink(missing_ok=True)
