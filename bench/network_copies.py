"""scp between a guest and the host: an sshd on the bridge, and copies with checksums in both directions.

The host needs openssh-server, whose daemon runs with a key, a configuration and a port of the benchmark's
own. The guest has the host's ssh and scp.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bench.network_guest import RUN
from tests.networks import HOST

from duovisor import process
from duovisor.controlling.images.errors import GuestTimeoutError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from bench.network_guest import Guest

PORT = 2222
COPY_TIMEOUT_S = 1800.0
CONFIGURATION = f"""
Port {PORT}
ListenAddress {HOST}
HostKey FOLDER/host_key
AuthorizedKeysFile FOLDER/user_key.pub
PermitRootLogin yes
PasswordAuthentication no
StrictModes no
UsePAM no
PidFile none
Subsystem sftp internal-sftp
"""
INSTALL = f"""
mkdir -p /root
echo root:x:0:0:root:/root:/bin/sh >/etc/passwd
cat >/root/key <<'END'
KEYEND
chmod 600 /root/key
cat >/root/ssh <<'END'
#!/bin/sh
exec {RUN}ssh "$@"
END
chmod 755 /root/ssh
"""
SCP = (
    f"{RUN}scp -q -S /root/ssh -i /root/key -P {PORT} -o BatchMode=yes -o StrictHostKeyChecking=no "
    "-o UserKnownHostsFile=/dev/null -o LogLevel=ERROR "
)


class Copy(NamedTuple):
    """One scp; ``broken`` says what was wrong, empty when every byte came."""

    broken: str
    seconds: float


def find_sshd() -> str | None:
    """The host's sshd, which is seldom in a user's PATH."""
    return shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


@asynccontextmanager
async def run_sshd(folder: Path) -> AsyncIterator[None]:
    """An sshd of our own on the bridge; ``folder`` gets its keys. Raises ``RuntimeError`` when it ends."""
    sshd = find_sshd()
    assert sshd is not None
    for key in ("host_key", "user_key"):
        process.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", key, "-f", str(folder / key)])
    (folder / "sshd_config").write_text(CONFIGURATION.replace("FOLDER", str(folder)))
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # its own unit makes it, where it runs
    with (folder / "sshd.log").open("wb") as log:
        daemon = await asyncio.create_subprocess_exec(
            sshd, "-D", "-e", "-f", str(folder / "sshd_config"), stderr=log, stdout=log
        )
    try:
        await asyncio.sleep(0.5)
        if daemon.returncode is not None:
            raise RuntimeError(f"sshd: {(folder / 'sshd.log').read_text()}")
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            daemon.terminate()
        await daemon.wait()


async def install_key(guest: Guest, folder: Path) -> None:
    """Let a guest log in to our sshd."""
    await guest.output(INSTALL.replace("KEY", (folder / "user_key").read_text(), 1))


async def copy_to_guest(guest: Guest, source: Path, digest: str) -> Copy:
    """The guest fetches a file to its extra disk."""
    copied = await _run_scp(guest, f"root@{HOST}:{source} /extra/copy")
    if copied.broken:
        return copied
    found = await guest.output("md5sum </extra/copy", timeout_s=COPY_TIMEOUT_S)
    return copied if found.split()[0] == digest else copied._replace(broken="the copy differs")


async def copy_from_guest(guest: Guest, target: Path, digest: str) -> Copy:
    """The guest sends its copy of the file to the host."""
    copied = await _run_scp(guest, f"/extra/copy root@{HOST}:{target}")
    if copied.broken or find_digest(target) == digest:
        return copied
    return copied._replace(broken="the copy differs")


async def _run_scp(guest: Guest, words: str) -> Copy:
    started = time.monotonic()
    try:
        done = await guest.probe.run(SCP + words, timeout_s=COPY_TIMEOUT_S)
    except GuestTimeoutError as error:
        return Copy(error.message, time.monotonic() - started)
    said = done.output.decode(errors="replace")[-300:]
    broken = f"scp ended with {done.exit}: {said}" if done.exit else ""
    return Copy(broken, time.monotonic() - started)


def make_file(path: Path, mib: int) -> str:
    """Write ``mib`` MiB of random bytes; their digest."""
    with path.open("wb") as file:
        for _ in range(mib):
            file.write(os.urandom(1 << 20))
    return find_digest(path)


def find_digest(path: Path) -> str:
    """The digest that the guest's md5sum prints."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def make_extra_disk(path: Path, mib: int) -> None:
    """A disk of ext4 with room for a copy of so many MiB."""
    with path.open("wb") as file:
        file.truncate((mib + mib // 16 + 32) << 20)
    process.run(["mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-m", "0", str(path)])
