"""The import law: each layer knows only what is below it."""

from __future__ import annotations

import ast
import sys

import pytest
from tests.style.source_tree import LAYERS, Module, list_imports, read_modules

FOUNDATION = "foundation"  # errors, process, directories and the other modules beside the packages
PACKAGES = (*LAYERS, "spec", "client", "comparison", "cli")

# who → whom it may import, besides itself; a module of the foundation can be named alone
LAW = {
    FOUNDATION: set[str](),
    "spec": {"errors"},
    "channel": {"errors"},
    "hardware": {FOUNDATION, "spec"},
    "hypervisor": {FOUNDATION, "spec", "hardware", "channel"},
    "hypervisor.thin": {"errors", "channel", "hypervisor.errors"},
    "controlling.drivers": {"errors", "channel"},
    "controlling": {FOUNDATION, "spec", "hardware", "hypervisor", "channel", "controlling.drivers"},
    "client": {FOUNDATION, "spec"},
    "comparison": {FOUNDATION, "spec", "client", "hardware", "hypervisor", "controlling"},
    "cli": {FOUNDATION, "spec", "client", "hardware", "hypervisor", "controlling", "comparison"},
}
# the imports of drivers are a guest-visible pause, those of the client a user-visible one, and those of the
# thin VMM are all in each VM's own memory
ONLY_STANDARD_LIBRARY = {"channel", "controlling.drivers", "client", "hypervisor.thin"}
# the encrypting driver's factory alone imports it
EXCEPTIONS = {("controlling.drivers.xts", "cryptography")}


def find_place(name: str) -> str:
    """The part of the law that a module below ``duovisor`` comes under."""
    for inner in ("controlling.drivers", "hypervisor.thin"):
        if name == inner or name.startswith(f"{inner}."):
            return inner
    first = name.partition(".")[0]
    if first == "__main__":
        return "cli"
    return first if first in PACKAGES else FOUNDATION


def list_prefixes(name: str) -> set[str]:
    """The packages that a name is in, and the name itself."""
    parts = name.split(".")
    return {".".join(parts[:length]) for length in range(1, len(parts) + 1)}


def find_violations(name: str, tree: ast.Module) -> list[str]:
    """What a module imports against the law."""
    place = find_place(name)
    found = []
    for imported in list_imports(tree):
        package, _, rest = imported.partition(".")
        if package != "duovisor":
            known = package in sys.stdlib_module_names or (name, package) in EXCEPTIONS
            if place in ONLY_STANDARD_LIBRARY and not known:
                found.append(imported)
        elif rest and not rest.startswith("__"):
            target = find_place(rest)
            allowed = {target, *list_prefixes(rest)} & LAW[place]
            if target != place and not allowed:
                found.append(imported)
    return found


@pytest.mark.parametrize("module", read_modules(), ids=lambda module: module.name or "duovisor")
def test_module_keeps_the_law(module: Module) -> None:
    assert find_violations(module.name, module.tree) == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("hardware.pci", "from duovisor.hypervisor import plan"),
        ("hypervisor.vmm", "def f():\n    import duovisor.controlling.machine"),
        ("hypervisor.vmm", "from duovisor.cli.output import print_json"),
        ("controlling.machine", "from duovisor.cli import output"),
        ("channel.session", "from duovisor import process"),
        ("channel.session", "import pydantic"),
        ("hypervisor.thin.machine", "from duovisor.hypervisor.vmm import Vmm"),
        ("hypervisor.thin.machine", "from duovisor.spec.vm import Design"),
        ("controlling.drivers.block", "from duovisor.controlling.errors import ControllingError"),
        ("controlling.drivers.block", "if TYPE_CHECKING:\n    from duovisor.spec.vm import DiskSpec"),
        ("spec.vm", "from duovisor.process import run"),
        ("process", "from duovisor.spec.vm import Design"),
        ("cli.run", "from duovisor.channel.session import Session"),
        ("client.service", "from duovisor.controlling.vms.records import VmView"),
        ("client.connection", "import httpx"),
        ("controlling.drivers.image", "from cryptography import x509"),
        ("controlling.machine", "from duovisor.client.service import ServiceClient"),
        ("controlling.machine", "from duovisor.comparison.plan import QUICK"),
        ("comparison.rig", "from duovisor.cli.output import print_json"),
    ],
)
def test_the_law_sees_each_kind_of_violation(name: str, source: str) -> None:
    assert len(find_violations(name, ast.parse(source))) == 1


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("controlling.machine", "from duovisor.hypervisor.vmm import Vmm"),
        ("controlling.drivers.block", "from duovisor.channel.device import VirtioDevice\nimport os"),
        ("cli.main", "from duovisor import __version__"),
        ("cli.vm_list", "from duovisor.client.service import vm_path"),
        ("comparison.sidelined", "from duovisor.client.service import vm_path"),
        ("client.starting", "from duovisor.process import start"),
        ("hardware.qemu", "from duovisor import process"),
        ("hypervisor.thin.kvm", "from duovisor.hypervisor.errors import HypervisorError"),
    ],
)
def test_the_law_allows_what_is_below(name: str, source: str) -> None:
    assert find_violations(name, ast.parse(source)) == []
