"""QEMU's own agent, asked on this host instead of in a guest; what would change the host is blocked."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from duovisor.controlling.agent.client import connect_agent
from duovisor.controlling.agent.errors import AgentRefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator

QEMU_GA = shutil.which("qemu-ga") or shutil.which("qemu-ga", path="/usr/sbin")
CHANGES_THE_HOST = (
    "guest-shutdown", "guest-set-time", "guest-fsfreeze-freeze", "guest-fsfreeze-freeze-list",
    "guest-fsfreeze-thaw", "guest-suspend-disk", "guest-suspend-ram", "guest-suspend-hybrid", "guest-exec",
    "guest-file-open", "guest-set-user-password", "guest-fstrim",
)  # fmt: skip


@pytest.fixture
def port() -> Iterator[Path]:
    if QEMU_GA is None:
        pytest.skip("qemu-guest-agent is not installed")
    with tempfile.TemporaryDirectory(prefix="dvt-", dir="/tmp") as name:
        path = Path(name) / "agent.sock"
        command = [QEMU_GA, "--method", "unix-listen", "--path", str(path), "--statedir", name]
        command += ["--pidfile", f"{name}/pid", f"--block-rpcs={','.join(CHANGES_THE_HOST)}"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as agent:
            try:
                _wait_listening(path, agent)
                yield path
            finally:
                agent.kill()


def _wait_listening(path: Path, agent: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        if agent.poll() is not None:
            pytest.skip("this qemu-ga does not block commands as we ask it to")
        assert time.monotonic() < deadline
        time.sleep(0.02)


async def test_the_real_agent_is_understood(port: Path) -> None:
    async with connect_agent(port, "here") as agent:
        told = await agent.read_info()
        assert told.hostname == socket.gethostname()
        assert told.agent_version[:1].isdigit()
        assert told.kernel
        assert not told.frozen
        with pytest.raises(AgentRefusedError, match="guest-set-time"):
            await agent.set_time(0)
    async with connect_agent(port, "here") as again:
        assert (await again.read_info()).agent_version == told.agent_version
