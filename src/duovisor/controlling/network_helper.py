"""User networking in the microkernelized design: passt, a process of the controlling layer for each card.

passt turns the guest's frames into the host's ordinary sockets without any privilege; it isolates itself
(namespaces, seccomp, uid nobody). The guest sees the same addresses as with QEMU's built-in user networking:
10.0.2.15, gateway 10.0.2.2, which also leads to the host's loopback.
"""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING

from duovisor import process
from duovisor.controlling.channel_socket import connect_channel
from duovisor.controlling.errors import HostLacksError, PartitionError

if TYPE_CHECKING:
    from pathlib import Path

    from duovisor.spec.vm import NicSpec

GUEST, NETMASK, GATEWAY = "10.0.2.15", "24", "10.0.2.2"
# passt's tables are 70 MB; each connection of the guest is a descriptor or two. Others share its uid:
# a limit on processes would count theirs
LIMITS = ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_DATA, 256 << 20), (resource.RLIMIT_NOFILE, 16384))
GATEWAY_MAC = "52:55:0a:00:02:02"  # what QEMU's built-in user networking answers with


def build_passt_argv(passt: Path, nic: NicSpec, channel: int) -> tuple[str, ...]:
    """passt's command line on an inherited, connected socket; pure."""
    argv = [str(passt), "--foreground", "--quiet", "--stderr", "--ipv4-only", "--fd", str(channel)]
    argv += ["--address", GUEST, "--netmask", NETMASK, "--gateway", GATEWAY, "--mac-addr", GATEWAY_MAC]
    argv += ["--mtu", "1500"]
    for protocol in ("tcp", "udp"):
        for forward in nic.forward:
            if forward.protocol == protocol:
                target = f"{forward.host_address}/{forward.host_port}:{forward.guest_port}"
                argv += [f"--{protocol}-ports", target]
    return tuple(argv)


def start_network_helper(
    passt: Path | None, socket_path: Path, run_dir: Path, nic: NicSpec, record: process.Record | None = None
) -> process.Process:
    """Start passt for the card whose socket listens already; its log is in ``run_dir``.

    It is limited, and ``record`` is told of it, before passt begins. Raises ``HostLacksError`` without passt,
    ``PartitionError`` when nobody listens.
    """
    if passt is None:
        raise HostLacksError(
            "user networking in the microkernelized design needs passt, which is not on this host",
            remedy="apt-get install passt, or use the monolithic design",
        )

    def limit_and_record(started: process.Process) -> None:
        limit_process(started.pid)
        if record is not None:
            record(started)

    name = socket_path.stem
    try:
        connected = connect_channel(socket_path)
    except OSError as error:
        raise PartitionError(f"channel {name} refuses: {error}") from error
    with connected as channel:
        return process.start(
            build_passt_argv(passt, nic, channel.fileno()),
            role="network helper",
            log=run_dir / f"{name}.log",
            pass_fds=(channel.fileno(),),
            record=limit_and_record,
        )


def limit_process(pid: int) -> None:
    """Lower the process's limits to ours where they are higher."""
    for kind, ours in LIMITS:
        _, hard = resource.prlimit(pid, kind)
        lower = ours if hard == resource.RLIM_INFINITY else min(ours, hard)
        resource.prlimit(pid, kind, (lower, lower))
