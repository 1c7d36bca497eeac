"""A newcomer's day: every command of docs/first-day.md, and what it prints; afterwards nothing is left.

Both designs at once: each guest is a whole Debian, and boots twice. On two processors that nothing else needs
it takes about four minutes under TCG, of which the image takes one.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from tests.networks import enter_network, run_ip, why_no_namespace
from tests.style.source_tree import ROOT
from tests.vm.first_day import matches, parse_guide

from duovisor.controlling.images import debian
from duovisor.controlling.images.errors import ImageBuildError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from tests.vm.first_day import Step
    from tests.vm.service_host import ServiceHost

WHY_NOT = "" if os.environ.get("DUOVISOR_LONG") else "takes five minutes and more: ./test --long"
pytestmark = [pytest.mark.vm, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "none")]

GUIDE = ROOT / "docs/first-day.md"
PATIENCE_S = 1800.0  # for what hangs, on a machine that is busy with other tests
IMAGE = os.environ.get("DUOVISOR_DAY_IMAGE")  # for trials by hand: one that was built before
BUILD, LIST = "duovisor image build debian-12", "duovisor image list"
LOCK = ".lock"  # of the folder of images, empty
NEEDED = ("ssh", "ssh-keygen", "dnsmasq", "nft")

# a person waits until the guest lets him in, and says yes to its host key; 255 is of ssh itself
SSH = """#!/bin/sh
for try in $(seq 1500); do
    "$REAL_SSH" -n -i "$HOME/.ssh/id_ed25519" -o BatchMode=yes -o StrictHostKeyChecking=no -o LogLevel=ERROR \
        -o UserKnownHostsFile=/dev/null -o ConnectTimeout=90 "$@"
    status=$?
    [ $status -eq 255 ] || exit $status
    sleep 1
done
exit 255
"""
DUOVISOR = """#!/bin/sh
exec "{python}" -m duovisor "$@"
"""


def write_program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


@pytest.fixture(autouse=True)
def able() -> None:
    if reason := why_no_namespace():
        pytest.skip(reason)
    try:
        debian.check_host()
    except ImageBuildError as error:
        pytest.skip(f"no image of Debian can be built here: {error}")
    if missing := [name for name in NEEDED if shutil.which(name) is None]:
        pytest.skip(f"not on this host: {', '.join(missing)}")


@contextmanager
def network_of_its_own(host: ServiceHost) -> Iterator[None]:
    """The rest of the day is in a network namespace, the service too: the host's own is not for tests."""
    host.end(signal.SIGTERM)
    with enter_network():
        host.start()
        before = run_ip("-oneline", "link")
        yield
        assert run_ip("-oneline", "link") == before, "something of the network was left behind"


@pytest.fixture
def environment(host: ServiceHost, tmp_path: Path) -> dict[str, str]:
    """A newcomer's shell: a key in his home folder, our program and a patient ssh on his path."""
    (tmp_path / ".ssh").mkdir()
    (tmp_path / "bin").mkdir()
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / ".ssh/id_ed25519"], check=True
    )
    write_program(tmp_path / "bin", "ssh", SSH)
    write_program(tmp_path / "bin", "duovisor", DUOVISOR.format(python=sys.executable))
    return {
        **os.environ, **host.environment, "HOME": str(tmp_path), "REAL_SSH": str(shutil.which("ssh")),
        "PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "COLUMNS": "120",
    }  # fmt: skip


def test_a_newcomers_day(host: ServiceHost, environment: dict[str, str]) -> None:
    differs: list[str] = []
    steps = list(parse_guide(GUIDE.read_text()))
    alone = next(index for index, step in enumerate(steps) if " network create " in step.command)
    type_in(steps[:alone], environment, differs)  # packages come from the world outside
    with network_of_its_own(host):
        type_in(steps[alone:], environment, differs)
    assert differs == [], "\n".join(differs)
    left = {path.name for path in host.directories.state.rglob("*") if path.is_file()}
    assert {name for name in left if not name.startswith("store.sqlite")} <= {LOCK}


def type_in(steps: Sequence[Step], environment: Mapping[str, str], differs: list[str]) -> None:
    """Type each command as its turn comes; ``differs`` gets what did not print what the guide says."""
    for step in steps:
        command = step.command
        if IMAGE and command == BUILD:
            command = f"duovisor image import {IMAGE} --as debian-12 --user {debian.USER}"
        done = subprocess.run(
            ["bash", "-c", command], env=environment, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=PATIENCE_S, check=False,
        )  # fmt: skip
        print(f"$ {step.command}\n{done.stdout}{done.stderr}", flush=True)
        assert done.returncode == 0, done
        if not (matches(step.printed, done.stdout) or (IMAGE and command == LIST)):
            differs.append(f"{step.command}\n{done.stdout}")
