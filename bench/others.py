"""Our two designs beside what people use today: the same work in the same run, as ratios.

Storage: QEMU with a disk inside, ``qemu-storage-daemon`` over vhost-user-blk and over NBD. Network: QEMU on a
TAP, and its user network (root, and iperf3 on the host). Life cycle: libvirt (its daemon and virsh).
What is missing is left out, and named. One command for all (about ten minutes on a quiet machine);
``--only`` for one part. ``--markdown`` writes the tables of docs/performance.md. JSON: ``storage``,
``network``, ``libvirt``, each with ``ratio``; ``missing``.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
import tempfile
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.others_libvirt import find_missing, measure_libvirt
from bench.others_network import measure_network
from bench.others_storage import measure_storage
from bench.others_table import build_markdown
from bench.service_process import write_json
from tests.networks import enter_network, why_no_namespace

from duovisor.comparison.facts import build_facts
from duovisor.controlling.images.probe import build_probe_image
from duovisor.controlling.images.tools_disk import build_program_disk
from duovisor.directories import find_directories
from duovisor.hardware.capabilities import read_capabilities

if TYPE_CHECKING:
    from collections.abc import Callable

PARTS = ("storage", "network", "libvirt")


def find_obstacles() -> dict[str, str]:
    """What keeps a part from being measured on this host."""
    found = {
        "storage": "" if shutil.which("qemu-storage-daemon") else "there is no qemu-storage-daemon",
        "network": why_no_namespace() or ("" if shutil.which("iperf3") else "there is no iperf3"),
        "libvirt": f"not installed: {find_missing()}" if find_missing() else "",
    }
    if os.geteuid() and not found["libvirt"]:
        found["libvirt"] = "a libvirtd of its own needs root"
    return {part: reason for part, reason in found.items() if reason}


def measure(parts: list[str], rounds: int, seconds: float, missing: dict[str, str]) -> dict[str, Any]:
    """Each part after the other; one that fails is noted in ``missing``."""
    directories = find_directories()
    image = build_probe_image(directories, print)
    capabilities = read_capabilities(directories.cache)
    document: dict[str, Any] = {
        "machine": build_facts(capabilities).describe(),
        "rounds": rounds,
        "seconds": seconds,
        "load_before": round(os.getloadavg()[0], 1),
    }

    def take_network() -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="duovisor-bench-") as folder, enter_network():
            programs = Path(folder) / "programs.raw"
            build_program_disk(programs, Path(folder), "iperf3", label="programs")
            return asyncio.run(measure_network(image, capabilities, programs, rounds, seconds))

    takes: dict[str, Callable[[], dict[str, Any]]] = {
        "storage": lambda: asyncio.run(measure_storage(image, capabilities, directories, rounds, seconds)),
        "network": take_network,
        "libvirt": lambda: measure_libvirt(kvm=capabilities.kvm.state == "usable", rounds=3 * rounds),
    }
    for part in parts:
        try:
            document[part] = takes[part]()
        except (Exception, SystemExit) as error:  # what the other parts took minutes for is kept
            traceback.print_exc()
            missing[part] = f"it failed: {error!r}"
    document["load_after"] = round(os.getloadavg()[0], 1)
    return document


def show(document: dict[str, Any]) -> None:
    """The ratios, a line each."""
    for part in PARTS:
        for pair, jobs in document.get(part, {}).get("ratio", {}).items():
            print(f"\n{pair}, median [least … most]")
            for job, (median, least, most) in jobs.items():
                print(f"  {job:18} {median:.2f}  [{least:.2f} … {most:.2f}]")
    if libvirt := document.get("libvirt"):
        print(f"\nthe service's memory, PSS in MiB: {libvirt['service_pss_mib']}")
    for part, reason in document["missing"].items():
        print(f"\n{part} was not measured: {reason}")


def main() -> None:
    """Parse options, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=PARTS, action="append", help="measure this part, not all of them")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each kind")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one measurement")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--markdown", type=Path, help="write tables of them to this file")
    options = parser.parse_args()
    missing = find_obstacles()
    parts = [part for part in options.only or PARTS if part not in missing]
    document = {**measure(parts, options.rounds, options.seconds, missing), "missing": missing}
    show(document)
    write_json(options.json, document)
    if options.markdown is not None:
        options.markdown.write_text(build_markdown(document))


if __name__ == "__main__":
    main()
