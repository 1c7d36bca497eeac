"""kill -9 of the format process, of the driver and of both: no acknowledged write is lost, flushed or not."""

from __future__ import annotations

import hashlib
import random
import subprocess
from typing import TYPE_CHECKING

import pytest
from tests.contract.formats.load import Load
from tests.contract.formats.stack import Stack, check_image, compare_images, create_image

from duovisor.channel.frontend import FrontEnd
from duovisor.hypervisor.qemu.images import ImageFile
from duovisor.spec.vm import DiskFormat

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 24 << 20
KILLS = 12
FORMATS = (DiskFormat.QCOW2, DiskFormat.VMDK, DiskFormat.VHDX, DiskFormat.VDI)


def kill_randomly(stack: Stack, load: Load, source: random.Random, kills: int) -> None:
    """Kill one process or both after a moment of work, again and again."""
    for _ in range(kills):
        load.run(source.uniform(0.0, 0.05))
        match source.randrange(5):
            case 0:
                stack.kill_format()
            case 1:
                stack.kill_driver()
            case 2:
                stack.kill_both()
            case 3:  # the driver dies while there is no format process
                stack.lose_format()
                load.run(0.005)
                stack.kill_driver()
                stack.start_format()
            case _:  # the driver dies while it makes the lost writes again
                stack.kill_format()
                load.run(source.uniform(0.0, 0.004))
                stack.kill_driver()
    load.run(0.05, at_least=300)


@pytest.mark.parametrize("disk_format", FORMATS)
@pytest.mark.parametrize("seed", range(2))
def test_killed_again_and_again(tmp_path: Path, disk_format: DiskFormat, seed: int) -> None:
    path, reference = tmp_path / "disk", tmp_path / "reference"
    create_image(path, disk_format, SIZE)
    with FrontEnd(memory_bytes=16 << 20) as front, Stack(path, disk_format, front) as stack:
        load = Load(front, SIZE, seed)
        kill_randomly(stack, load, random.Random(seed), KILLS)
        load.finish()
        load.save(reference)
    assert load.compared > 3
    check_image(path, disk_format)
    compare_images(path, disk_format, reference)


def test_what_is_below_is_never_written(tmp_path: Path) -> None:
    base, middle, top = (tmp_path / name for name in ("base", "middle", "top"))
    content = random.Random(1).randbytes(SIZE)
    base.write_bytes(content)
    run_qemu_img("create", "-f", "qcow2", "-b", str(base), "-F", "raw", str(middle))
    run_qemu_img("create", "-f", "qcow2", "-b", str(middle), "-F", "qcow2", str(top))
    before = [hashlib.sha256(path.read_bytes()).digest() for path in (base, middle)]
    backing = (ImageFile(str(middle), DiskFormat.QCOW2), ImageFile(str(base), DiskFormat.RAW))
    with (
        FrontEnd(memory_bytes=16 << 20) as front,
        Stack(top, DiskFormat.QCOW2, front, backing=backing) as stack,
    ):
        load = Load(front, SIZE, 7, content)
        kill_randomly(stack, load, random.Random(7), KILLS)
        load.finish()
        load.save(tmp_path / "reference")
    assert [hashlib.sha256(path.read_bytes()).digest() for path in (base, middle)] == before
    check_image(top, DiskFormat.QCOW2)
    compare_images(top, DiskFormat.QCOW2, tmp_path / "reference")


def run_qemu_img(*words: str) -> None:
    subprocess.run(["qemu-img", *words], check=True, capture_output=True)
