"""dnsmasq for one network: its command line, its files, and the sandbox that it runs in.

It answers cards that the store knows, with the addresses that the store has for them, and nobody else. It
sees of the host: its program, its files, where to ask for other names, and the host's network, in which it
may bind low ports and has, as dnsmasq insists, CAP_NET_ADMIN.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from duovisor.controlling.errors import HostLacksError
from duovisor.controlling.networks.documents import build_domain, build_label
from duovisor.controlling.networks.nft import ELSEWHERE
from duovisor.controlling.networks.records import Lease, NetworkKind
from duovisor.controlling.preflight import find_libraries
from duovisor.hypervisor.build import USR_MERGED
from duovisor.sandbox import ResourceLimits, Sandbox, SandboxTools, build_sandbox_argv, uid_of

if TYPE_CHECKING:
    from duovisor.controlling.networks.documents import NetworkDocument

KNOWN, CARDS, NAMES, LEASES = "known", "cards", "names", "leases"
LEASE_TIME = "1h"
LIMITS = ResourceLimits(private_mib=128, threads=16, descriptors=1024)
CAPABILITIES = ("net_admin", "net_bind_service")
INSTALL = "apt-get install dnsmasq-base; or make the network with --no-dhcp"
_INSIDE = "/network"
_RESOLVER = Path("/etc/resolv.conf")


def find_dnsmasq() -> Path:
    """The program. Raises ``HostLacksError``."""
    found = shutil.which("dnsmasq") or shutil.which("dnsmasq", path=ELSEWHERE)
    if found is None:
        raise HostLacksError("dnsmasq, for DHCP and names, is not on this host", remedy=INSTALL)
    return Path(os.path.realpath(found))


def find_tools() -> SandboxTools:
    """The programs that make its sandbox. Raises ``HostLacksError``."""
    bwrap, setpriv = shutil.which("bwrap"), shutil.which("setpriv")
    if bwrap is None or setpriv is None:
        raise HostLacksError(
            "the sandbox of dnsmasq needs bubblewrap and setpriv",
            remedy="apt-get install bubblewrap util-linux; or make the network with --no-dhcp",
        )
    return SandboxTools(Path(bwrap), Path(setpriv), as_root=os.geteuid() == 0)


def build_command(
    name: str, document: NetworkDocument, folder: Path, program: Path, tools: SandboxTools
) -> tuple[str, ...]:
    """The command line of a network's server, from the sandbox on."""
    read_only = [Path("/etc/ld.so.cache"), find_libraries(), program]
    sandbox = Sandbox(
        uid=server_uid(document),
        read_only=(
            *((path, str(path)) for path in read_only),
            (folder / KNOWN, f"{_INSIDE}/{KNOWN}"),
            *(((_RESOLVER.resolve(), str(_RESOLVER)),) if _RESOLVER.exists() else ()),
        ),
        writable=((folder / LEASES, f"{_INSIDE}/{LEASES}"),),
        links=USR_MERGED,
        if_there=("/usr/lib64",),
        limits=LIMITS,
        capabilities=CAPABILITIES,
        host_network=True,
    )
    return build_sandbox_argv(sandbox, tools, build_argv(name, document, program))


def server_uid(document: NetworkDocument) -> int:
    """The unprivileged uid of a network's server: its own."""
    return uid_of(f"network {document.uuid}")


def build_argv(name: str, document: NetworkDocument, program: Path) -> tuple[str, ...]:
    """dnsmasq's own command line; pure. Source: dnsmasq(8), 2.90."""
    subnet, gateway, domain = document.network, document.gateway, build_domain(name)
    assert subnet is not None
    leads_out = document.type is NetworkKind.NAT
    return (
        str(program), "--keep-in-foreground", "--conf-file=/dev/null", "--pid-file=", "--user=", "--group=",
        "--log-facility=-", "--quiet-dhcp", f"--interface={document.interface}", "--except-interface=lo",
        "--bind-interfaces", "--no-hosts", f"--addn-hosts={_INSIDE}/{KNOWN}/{NAMES}",
        "--expand-hosts", f"--domain={domain}", f"--local=/{domain}/", "--domain-needed", "--bogus-priv",
        f"--dhcp-range={subnet.network_address},static,{subnet.netmask},{LEASE_TIME}",
        f"--dhcp-hostsfile={_INSIDE}/{KNOWN}/{CARDS}", f"--dhcp-leasefile={_INSIDE}/{LEASES}/{LEASES}",
        "--dhcp-authoritative", "--no-ping", f"--dhcp-option=option:dns-server,{gateway}",
        f"--dhcp-option=option:router{f',{gateway}' if leads_out else ''}",
        *(() if leads_out else ("--no-resolv",)),
    )  # fmt: skip


def build_leases(document: NetworkDocument) -> tuple[Lease, ...]:
    """What the cards of a network have; of two VMs that would have the same name, one gets it; pure."""
    leases: list[Lease] = []
    for each in document.reservations:
        label = build_label(each.vm)
        name = "" if label in {lease.name for lease in leases} else label
        leases.append(Lease(mac=each.mac, address=each.address, vm=each.vm, name=name))
    return tuple(leases)


def build_cards(document: NetworkDocument) -> str:
    """The file of who gets which address; pure."""
    lines = (",".join(filter(None, (each.mac, each.address, each.name))) for each in build_leases(document))
    return "".join(f"{line}\n" for line in lines)


def build_names(document: NetworkDocument) -> str:
    """The file of names, in the manner of hosts(5); pure."""
    return "".join(f"{each.address} {each.name}\n" for each in build_leases(document) if each.name)
